"""`diffcore sample`: new clips."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np

import diffcore as dc
from diffcore import _check
from diffcore.cli import conditions, drawing, files, models, numbered, options, report, saved, writers

EXAMPLES = (
    "Examples:\n\n"
    "$ diffcore sample clip.mp4 --label 3\n\n"
    "$ diffcore sample four.gif -l 2 -l 3 -l 5 -l 7 --zoom 4 --seed 7\n\n"
    "$ diffcore sample long.mp4 --label 3 --frames 64 --steps 12\n\n"
    "$ diffcore sample said.mp4 -w run/model.safetensors --prompt 'a three moves up left' --encoder models/bert\n\n"
    "$ diffcore sample set.npy --count 100 --sampler ancestral --set gamma=0.1 --steps 256\n\n"
    "$ diffcore sample clips/%04d.mp4 --count 1000 --batch 16\n\n"
    "$ diffcore sample mine.mp4 -w run/model.safetensors --backend torch --device cuda --dtype bfloat16"
)


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
        options.sampling_option(
            "--count",
            "-n",
            min=1,
            help="How many clips, side by side; without it as many as labels or prompts.",
        ),
    ] = None,
    batch: Annotated[
        int,
        options.sampling_option(min=1, help="Clips drawn at once where each is a file of its own."),
    ] = 8,
    frames: Annotated[
        int | None,
        options.sampling_option(
            min=1,
            help="Frames of a clip; the model's without it. More than the model's are made block by block, as by extend.",
        ),
    ] = None,
    guidance: options.Guidance = None,
    sampler: options.Sampler = "dpm_solver_pp",
    steps: options.Steps = 16,
    grid: options.Grid = None,
    settings: options.Settings = None,
    order: Annotated[
        Literal["auto", "together", "pyramid", "autoregressive"],
        options.sampling_option(
            help="In which order frames take the steps: all together; each --lag steps behind the one before; or one after "
            "another, clean before the next begins. The last two are for models trained with a level for each frame "
            "(train --frame-times). auto: together, but one after another where the network is causal too, which then computes "
            "each frame once.",
        ),
    ] = "auto",
    lag: Annotated[
        int,
        options.sampling_option(
            min=1,
            help="Steps by which a frame is behind the one before it, with --order pyramid.",
        ),
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

    The included model draws clips of a handwritten digit, 0 to 9, that glides and bounces: --label says which. Equal seeds
    give equal clips on every backend and device, whatever is drawn beside them.

    A number in the name of the file, such as %04d, makes a file of each clip; clips, frames and seeds are counted from 0.
    Files that are there already are kept, and under torchrun processes share the clips:
    torchrun --nproc-per-node 4 -m diffcore sample clips/%04d.mp4 --count 1000
    """
    del debug
    apart = numbered.asked(out)
    if not apart:
        writers.check(out, force)
    began = time.perf_counter()
    with models.opened(weights, backend, numbered.device_of(device, backend), dtype) as model:
        config = model.config
        plan = models.plan(sampler, steps, settings, config.schedule, grid)
        condition, clips = conditions.condition_for(weights, config, label, prompt, encoder, count)
        length = config.frames if frames is None else frames
        alone = order == "auto" and models.frame_by_frame(weights, model)
        if order not in {"auto", "together"}:
            if length > config.frames:
                report.usage(f"--order {order} is for up to the model's {config.frames} frames; use extend for more")
            models.say_levels(weights, f"--order {order}")
            orders = dc.video.orders
            pyramid = order == "pyramid"
            stages = (orders.pyramid if pyramid else orders.autoregressive)(
                len(plan), length, **({"lag": lag} if pyramid else {})
            )
            plan = plan.per_frame(stages)
        side = (config.size, config.size) if size in {None, "keep"} else files.parse_size(str(size))
        models.say_size(config.size, side)
        rate = fps or saved.rate_of(weights) or writers.FPS
        writers.check_frames(out, (1 if apart else clips, length, *side, config.channels), zoom)
        made = 0

        def drawn(denoise: Any, count: int, seed: Any, bar: report.Bar) -> Iterator[Any]:
            shape = (count, length, *side, config.channels)
            return drawing.drawn(model, denoise, plan, shape, seed=seed, callback=bar.stage, alone=alone)

        if apart:
            todo = numbered.begin(out, clips, batch, force)
            total = sum(len(missing) for _, missing in todo)
            denoise = models.denoiser(model, None, guidance, reuses=alone) if condition is None else None
            with report.Bar(
                f"{total} clips", total or 1, stages=len(plan) * (length if alone else 1), block=batch
            ) as bar:
                for numbers, missing in todo:
                    some = None if condition is None else conditions.rows_of(condition, numbers)
                    own = denoise or models.denoiser(model, some, guidance, reuses=alone)
                    words = dc.noise.keys(seed, len(numbers), first=numbers[0])
                    whole = np.concatenate(list(drawn(own, len(numbers), words, bar)), axis=1)
                    for number in missing:
                        with writers.opened(numbered.path_of(out, number), rate, zoom) as file:
                            file.write(whole[number - numbers[0]][None])
                    made += len(missing)
                    bar.made(len(missing))
        else:
            denoise = models.denoiser(model, condition, guidance, reuses=alone)
            block = 1 if alone else min(length, config.frames)
            with (
                report.Bar(f"{clips} x {length} frames", length, stages=len(plan), block=block) as bar,
                writers.opened(out, rate, zoom) as file,
            ):
                for drawn_frames in drawn(denoise, clips, seed, bar):
                    file.write(drawn_frames)
                    made += drawn_frames.shape[1]
                    bar.made(drawn_frames.shape[1])
    seconds = time.perf_counter() - began
    row = {
        "command": "sample",
        "output": str(out),
        "clips": clips,
        "frames": length if apart else made,
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
    calls = _check.counted(len(plan), "call")
    text = f"{out}: {clips} x {row['frames']} frames of {side[0]}x{side[1]}, {plan.sampler}, {calls} a block, "
    if apart:
        here = numbered.process()
        row |= {"made": made, "process": here.rank, "processes": here.size}
        text += f"{made} made by process {here.rank} of {here.size}, " if here.size > 1 else f"{made} made, "
    report.result(row, text + f"{model.backend} on {model.device}, {seconds:.1f} s", as_json=as_json)
