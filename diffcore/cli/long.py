"""`diffcore extend`, `interpolate` and `upscale`: longer, smoother and larger videos, streamed from file to file."""

from __future__ import annotations

import functools
import inspect
import time
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

import typer

import diffcore as dc
from diffcore.cli import conditions, estimates, files, models, options, report, saved, writers

EXTEND = (
    "Examples:\n\n"
    "$ diffcore extend clip.mp4 longer.mp4 --frames 64 --label 3\n\n"
    "$ diffcore extend clip.npy longer.gif --frames 64 --method replacement --backend numpy\n\n"
    "$ diffcore extend mine.mp4 longer.mp4 --frames 300 --overlap 8 -w run/model.safetensors\n\n"
    "$ diffcore extend mine.mp4 longer.mp4 --frames 900 -w forced/model.safetensors --method rolling --overlap 8 --steps 16"
)
INTERPOLATE = (
    "Examples:\n\n"
    "$ diffcore interpolate clip.mp4 smooth.mp4 --factor 2 --label 3\n\n"
    "$ diffcore interpolate clip.mp4 slow.mp4 --factor 4 --fps 10"
)
UPSCALE = (
    "Examples:\n\n"
    "$ diffcore upscale clip.mp4 large.mp4 --factor 2 --label 3\n\n"
    "$ diffcore upscale small.npy large.npy --size keep --method replacement"
)


class Job(NamedTuple):
    """The options that the three commands share, as fields."""

    source: options.In
    out: options.Out
    weights: options.Weights = "moving_digits"
    backend: options.Backend = None
    device: options.Device = None
    dtype: options.Dtype = "float32"
    label: options.Label = None
    prompt: options.Prompt = None
    encoder: options.Encoder = None
    guidance: options.Guidance = None
    sampler: options.Sampler = "dpm_solver_pp"
    steps: options.Steps = 16
    grid: options.Grid = None
    settings: options.Settings = None
    seed: options.Seed = 0
    method: options.Method = "auto"
    weight: options.Weight = None
    window: options.Window = None
    overlap: options.Overlap = None
    size: options.Size = None
    fps: options.Fps = None
    in_fps: options.InFps = None
    background: options.Background = "black"
    zoom: options.Zoom = None
    force: options.Force = False
    as_json: options.Json = False
    debug: options.Debug = False


def with_job(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the fields of a `Job` as options beside its own."""
    types = typing.get_type_hints(command, include_extras=True) | typing.get_type_hints(Job, include_extras=True)
    own = {name: given for name, given in inspect.signature(command).parameters.items() if name != "job"}
    shared = dict(inspect.signature(Job).parameters)
    names = ["source", "out", *own, *(name for name in shared if name not in {"source", "out"})]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        mine = {name: given.pop(name) for name in own}
        command(Job(**given), **mine)

    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=(own | shared)[name].default, annotation=types[name]
        )
        for name in names
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {name: types[name] for name in names}
    return run


def extend(
    job: Job,
    frames: Annotated[int, typer.Option(min=1, help="How many in total, those of the input included.")],
    history: options.History = None,
) -> None:
    """Make a video longer: new frames after those that are there, block by block, or one by one with --method rolling.

    Each block knows the last frames of the one before. The frames of the input come first in the output. They are scaled
    to cover the model's size and cut to it in the middle, and made grey for a grey model.
    """
    video = _looked(job, slower=True)
    if video.frames >= frames:
        report.usage(
            f"--frames is {frames}, but {job.source} has {video.frames} already; it is the total, so give more"
        )
    _run(
        "extend",
        job,
        video,
        lambda dc, *given, **how: dc.video.extend(*given, frames=frames, **how),
        frames,
        history=history,
    )


def interpolate(
    job: Job, factor: Annotated[int, typer.Option(min=1, max=1024, help="How many times as many frames.")] = 2
) -> None:
    """Make a video smoother: new frames between those that are there.

    T frames become (T - 1) factor + 1, and those of the input stay as they are. The frame rate is multiplied too, so that
    the motion keeps its speed; --fps says otherwise.
    """
    if job.window is not None and job.window <= factor:
        report.usage(f"--window must be more than --factor {factor}, for two of the frames of IN, got {job.window}")
    video = _looked(job)
    if video.frames == 1:
        report.note(f"note: {job.source} has one frame, and nothing lies between; it is written as it is")
    rate = (video.fps or saved.rate_of(job.weights) or writers.FPS) * factor
    _say_rate(job, rate)
    job = job._replace(fps=job.fps or rate)
    total = (video.frames - 1) * factor + 1
    _run("interpolate", job, video, lambda dc, *given, **how: dc.video.interpolate(*given, factor, **how), total)


def upscale(
    job: Job, factor: Annotated[int, typer.Option(min=1, max=64, help="How many times as high and as wide.")] = 2
) -> None:
    """Make a video larger: the averages of the new frames over factor x factor pixels are near the frames of the input.

    How near depends on --method, --steps and the model: reconstruction and moment_matching pull towards them and may miss where
    the model disagrees.
    The model works at the large size. An input up to the model's size is taken as it is; a larger one is first scaled to
    cover the model's size and cut to it, unless --size says otherwise ("keep": as it is). --window 1 is quicker for a
    single picture, and draws each frame by itself.
    """
    video = _looked(job)
    _say_rate(job, video.fps)
    _run("upscale", job, video, lambda dc, *given, **how: dc.video.upscale(*given, factor, **how), video.frames, factor)


def _stochastic(job: Job) -> list[str]:
    """Return the settings of the sampler, with fresh noise at each step unless `eta` is given: the noise of known frames
    is fresh, which an ODE solver does not expect."""
    given = job.settings or []
    if job.sampler not in {"dpm_solver_pp", "ddim"} or any(text.startswith("eta") for text in given):
        return given
    return ["eta=1", *given]


def _looked(job: Job, *, slower: bool = False) -> files.Video:
    """Return what is read of IN; `slower` takes no more frames a second than the model was trained on."""
    writers.check(job.out, job.force)
    video = files.look(job.source, job.in_fps, job.background)
    if slower:
        rate = saved.rate_of(job.weights)
        if rate is not None and job.in_fps is None and video.fps is not None and video.fps > 1.01 * rate:
            report.note(
                f"note: {job.source} has {video.fps:.4g} frames a second and the clips that the model was trained on had "
                f"{rate:.4g}; so many are taken (--in-fps {video.fps:.4g} takes all)"
            )
            video = files.look(job.source, rate, job.background)
        else:
            _say_rate(job, video.fps)
    files.say(video)
    return video


def _say_rate(job: Job, made: float | None) -> None:
    """Say where frames are further apart, or nearer, than those of the clips that a model was trained on."""
    rate = saved.rate_of(job.weights)
    if rate is not None and made is not None and not 0.99 * rate <= made <= 1.01 * rate:
        report.note(
            f"note: the model draws {made:.4g} frames a second here, and the clips that it was trained on had {rate:.4g}, so that "
            f"its motion has another speed"
        )


def _run(
    command: str,
    job: Job,
    video: files.Video,
    make: Callable[..., Any],
    total: int,
    enlarged: int | None = None,
    *,
    history: float | None = None,
) -> None:
    """Read, make and write, a block at a time."""
    began = time.perf_counter()
    with models.opened(job.weights, job.backend, job.device, job.dtype) as model:
        config = model.config
        plan = models.plan(job.sampler, job.steps, _stochastic(job), config.schedule, job.grid)
        side = _side(job, video, config.size, enlarged)
        method = models.method_for(model, job.method)
        if method in {"forcing", "rolling"} and command != "extend":
            usage = f"--method {method} is for extend; {command} takes reconstruction, moment_matching or replacement"
            report.usage(usage)
        if job.weight is not None and method != "reconstruction":
            report.usage(f"--weight {job.weight:g} is for --method reconstruction, and not for {method}")
        if method in {"forcing", "rolling"}:
            models.say_levels(job.weights, f"--method {method}")
        condition, _ = conditions.condition_for(job.weights, config, job.label, job.prompt, job.encoder, video.clips)
        denoise = models.denoiser(model, condition, job.guidance, reuses=method in {"forcing", "rolling"})
        window = config.frames if job.window is None else job.window
        if job.overlap is not None and job.overlap >= window:
            report.usage(f"--overlap must be in [0, {window - 1}] for blocks of {window} frames, got {job.overlap}")
        reuses = isinstance(denoise, dc.video.Reusing)
        overlap = (window - 1 if reuses else window // 4) if job.overlap is None else job.overlap
        how: dict[str, Any] = {
            "window": window,
            "overlap": job.overlap,
            "method": method,
            "seed": job.seed,
            "prediction": config.prediction,
            "transform_x": dc.guidance.clip(),
        }
        if job.weight is not None:
            how["weight"] = job.weight
        if command == "extend":
            how["history"] = models.history_for(config.schedule, method, history)
        if method == "rolling":
            moving = window - overlap
            if len(plan) % moving:
                report.usage(
                    f"--method rolling takes --steps that are a multiple of window - overlap, {moving} here, got {len(plan)}; "
                    f"give --steps {-(-len(plan) // moving) * moving}, or another --overlap"
                )

        def given() -> Iterator[Any]:
            for block in files.blocks(video, side, config.channels):
                yield model.put(block)

        fps = job.fps or video.fps or saved.rate_of(job.weights) or writers.FPS
        made, shape = 0, (*side, config.channels)
        expected = window - overlap
        works = (side[0] * (enlarged or 1), side[1] * (enlarged or 1))
        of_a_block = len(plan) + (-(-overlap // expected) if reuses else 0)  # known frames once
        writers.check_frames(job.out, (video.clips, total, *works, config.channels), job.zoom)
        calls = -(-total // expected) * of_a_block * (1 if condition is None or job.guidance == 0 else 2)
        gradients = method in {"reconstruction", "moment_matching"}
        estimates.say(model, estimates.Work(calls, video.clips, expected if reuses else window, works, gradients))
        with (
            report.Bar(command, total, stages=len(plan), block=expected) as bar,
            writers.opened(job.out, fps, job.zoom) as file,
        ):
            for block in make(dc, denoise, plan, given(), callback=bar.stage, **how):
                file.write(models.sound(block))
                made, shape = made + block.shape[1], tuple(block.shape[2:])
                bar.made(block.shape[1])
    seconds = time.perf_counter() - began
    row = {
        "command": command,
        "input": str(job.source),
        "output": str(job.out),
        "clips": video.clips,
        "frames": made,
        "size": list(shape[:2]),
        "method": how["method"],
        "weights": job.weights,
        "sampler": plan.sampler,
        "calls": len(plan),
        "seed": job.seed,
        "backend": model.backend,
        "device": model.device,
        "seconds": round(seconds, 3),
    }
    text = f"{job.out}: {video.clips} x {made} frames of {shape[0]}x{shape[1]}, {how['method']}, {plan.sampler}, "
    report.result(row, text + f"{model.backend} on {model.device}, {seconds:.1f} s", as_json=job.as_json)


def _side(job: Job, video: files.Video, size: int, enlarged: int | None) -> files.Size:
    """Return (H, W) that the input is brought to, and say so where it changes."""
    own = (size, size)
    default = video.size if enlarged is not None and max(video.size) <= size else own
    side = files.fitted(video, job.size, default)
    if side != video.size:
        report.note(
            f"note: {job.source} is {video.size[0]}x{video.size[1]}; its frames are scaled to cover {side[0]}x{side[1]} and "
            f"cut to it in the middle (--size keep takes them as they are)"
        )
    works = (side[0] * (enlarged or 1), side[1] * (enlarged or 1))
    models.say_size(size, works)
    return side
