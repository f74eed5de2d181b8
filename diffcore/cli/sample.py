"""`diffcore sample`: new clips."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import typer

from diffcore.cli import conditions, files, models, options, report, writers

EXAMPLES = (
    "Examples:\n\n"
    "$ diffcore sample clip.mp4 --label 3\n\n"
    "$ diffcore sample four.gif -l 2 -l 3 -l 5 -l 7 --zoom 4 --seed 7\n\n"
    "$ diffcore sample long.mp4 --label 3 --frames 64 --steps 12\n\n"
    "$ diffcore sample said.mp4 -w run/model.safetensors --prompt 'a three moves up left' --encoder models/bert\n\n"
    "$ diffcore sample set.npy --count 100 --sampler ancestral --set gamma=0.1 --steps 256\n\n"
    "$ diffcore sample mine.mp4 -w run/model.safetensors --backend torch --device cuda --dtype bfloat16"
)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=options.help_of(sample), epilog=EXAMPLES)(sample)


def sample(
    out: options.Out,
    weights: options.Weights = "moving_digits",
    backend: options.Backend = None,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    label: options.Label = None,
    prompt: options.Prompt = None,
    encoder: options.Encoder = None,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", min=1, help="How many clips; side by side.", rich_help_panel=options.SAMPLING),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Frames of a clip; the model's without it. More than the model's are made block by block, as by extend.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    guidance: options.Guidance = None,
    sampler: options.Sampler = "dpm_solver_pp",
    steps: options.Steps = 16,
    grid: options.Grid = None,
    settings: options.Settings = None,
    order: Annotated[
        Literal["together", "pyramid", "autoregressive"],
        typer.Option(
            help="In which order frames take the steps: all together; each --lag steps behind the one before; or one after "
            "another, clean before the next begins. The last two are for models trained with a level for each frame "
            "(train --frame-times).",
            rich_help_panel=options.SAMPLING,
        ),
    ] = "together",
    lag: Annotated[
        int, typer.Option(min=1, help="Of --order pyramid, in steps.", rich_help_panel=options.SAMPLING)
    ] = 1,
    seed: options.Seed = 0,
    size: options.Size = None,
    fps: options.Fps = None,
    zoom: options.Zoom = None,
    force: options.Force = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw new clips from a model.

    The shipped model draws clips of a handwritten digit, 0 to 9, that glides and bounces: --label says which. Equal seeds
    give equal clips on every backend and device, whatever is drawn beside them.
    """
    import diffcore as dc

    del debug
    writers.check(out, force)
    began = time.perf_counter()
    with models.opened(weights, backend, device, dtype) as model:
        config = model.config
        plan = models.plan(sampler, steps, settings, config.schedule, grid)
        condition, clips = conditions.condition_for(config, label, prompt, encoder, count)
        denoise = models.denoiser(model, condition, guidance)
        length = config.frames if frames is None else frames
        if order != "together":
            if length > config.frames:
                report.usage(f"--order {order} is for up to the model's {config.frames} frames; use extend for more")
            orders = dc.video.orders
            pyramid = order == "pyramid"
            stages = (orders.pyramid if pyramid else orders.autoregressive)(
                len(plan), length, **({"lag": lag} if pyramid else {})
            )
            plan = plan.per_frame(stages)
        side = (config.size, config.size) if size in {None, "keep"} else files.parse_size(str(size))
        shape = (clips, length, *side, config.channels)
        how: dict[str, Any] = {"seed": seed, "prediction": config.prediction, "transform_x": dc.guidance.clip()}
        made = 0
        with (
            report.Bar(f"{clips} x {length} frames", length, stages=len(plan), block=min(length, config.frames)) as bar,
            writers.opened(out, fps or writers.FPS, zoom) as file,
        ):
            if length <= config.frames:
                blocks: Any = [dc.sample(denoise, plan, shape=shape, like=model.like, callback=bar.stage, **how)]
            else:
                nothing = model.put(files.nothing(shape))
                method = models.method_for(model, "auto")
                how.update(window=config.frames, method=method, callback=bar.stage)
                blocks = dc.video.extend(denoise, plan, nothing, frames=length, **how)
            for block in blocks:
                file.write(models.sound(block))
                made += block.shape[1]
                bar.made(block.shape[1])
    seconds = time.perf_counter() - began
    row = {
        "command": "sample",
        "output": str(out),
        "clips": clips,
        "frames": made,
        "size": list(side),
        "labels": None if condition is None or prompt else condition.tolist(),
        "prompts": prompt,
        "weights": weights,
        "sampler": plan.sampler,
        "calls": len(plan),
        "seed": seed,
        "backend": model.backend,
        "device": model.device,
        "seconds": round(seconds, 3),
    }
    text = f"{out}: {clips} x {made} frames of {side[0]}x{side[1]}, {plan.sampler}, {len(plan)} calls a block, "
    report.result(row, text + f"{model.backend} on {model.device}, {seconds:.1f} s", as_json=as_json)
