"""`diffcore evaluate`: a model by its loss at each noise level, or a video against the one that it should equal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import diffcore as dc
from diffcore import _check, _files
from diffcore.cli import conditions, drawing, files, models, options, report, saved, sets, sources, writers

LEVELS = (-10.0, -5.0, -2.5, 0.0, 2.5, 5.0, 10.0)
HELD_OUT = 2048
"""Real clips that those which are drawn are compared with."""

EXAMPLES = (
    "Examples:\n\n"
    "$ diffcore evaluate moving_digits --data digits --count 256\n\n"
    "$ diffcore evaluate run/model.safetensors --data held_out_videos --json\n\n"
    "$ diffcore evaluate made.mp4 --against real.mp4\n\n"
    "$ diffcore evaluate made_videos --against real_videos --features convolutions --rate 12 -n 256"
)


def evaluate(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS|VIDEO",
            help="A weights file or included model; or a video, with --against.",
            autocompletion=saved.shipped,
        ),
    ] = "moving_digits",
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="VIDEO|FOLDER",
            help="The video that it should equal: PSNR and SSIM. With --features, or for a folder: the set that it should be like.",
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --against: the Frechet distance of two sets of clips by features: pixels (means of blocks), convolutions "
            "(a small random 3D network, the default for folders), digits, or module:function of your own.",
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="With --features, or of folders: frames of a clip.")] = 16,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="With --features, or of folders: height x width; 64, for digits 32."),
    ] = None,
    data: Annotated[
        str, typer.Option(metavar="FOLDER|digits", help='Real videos: a folder, or "digits" (held-out ones).')
    ] = sources.DIGITS,
    count: Annotated[int, typer.Option("--count", "-n", min=2, help="How many clips.")] = 64,
    every: options.Every = None,
    rate: options.Rate = None,
    labels: options.Labels = None,
    background: options.Background = "black",
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of a model trained on text: what each video of --data shows, in the form that train takes. The digits have "
            "captions of their own.",
        ),
    ] = None,
    encoder: options.Encoder = None,
    samples: Annotated[
        bool, typer.Option("--samples/--no-samples", help="Draw clips too, and compare: Frechet distance, legibility.")
    ] = True,
    batch: Annotated[int, typer.Option(min=1, help="Clips drawn at once.")] = 16,
    backend: options.Backend = None,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    guidance: options.Guidance = None,
    sampler: options.Sampler = "dpm_solver_pp",
    steps: options.Steps = 16,
    grid: options.Grid = None,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None,
        options.output_option(metavar="FILE", help="Write the result as JSON here too."),
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure a model, or a video.

    A model: the squared error of x-hat, as the loss of v, at each noise level, on real clips. On digits clips are drawn too:
    their Frechet distance to held-out ones, and how often a classifier reads the digit that was asked for; by a model of
    texts, with --encoder, also how often it moves as its caption says.
    A video, with --against: PSNR in decibels and SSIM, frame by frame.
    """
    del debug
    if out is not None:
        writers.check_place(out, force)
    if features is not None and against is None:
        report.usage("--features needs --against, the video or folder that is compared with")
    if against is not None and (what in saved.shipped() or Path(what).suffix == ".safetensors" or _is_run(Path(what))):
        report.usage(
            f"{what} is a model, and --against compares videos; draw some first: diffcore sample made/%03d.mp4 -w {what} -n {count}"
        )
    if against is not None and (features is not None or against.is_dir() or Path(what).is_dir()):
        taken = sources.Taken(every, rate, None, background)
        row, text = sets.compared(Path(what), against, features, frames, size, count, taken)
    elif against is None and Path(what).suffix.lower() in files.readable():
        report.usage(
            f"{what} is a video; --against says which video or folder it is compared with, and `diffcore info` what it is"
        )
    elif against is not None:
        row, text = _compared(Path(what), against, background)
    else:
        began = time.perf_counter()
        with models.opened(what, backend, device, dtype) as model:
            plan = models.plan(sampler, steps, settings, model.config.schedule, grid)
            if data == sources.DIGITS:
                _check_digits(model.config, samples)
            taken = sources.as_trained(sources.Taken(every, rate, labels, background), what, data)
            source = sources.data(data, model.config, taken=taken, split="test", count=max(count, HELD_OUT))
            row = {"command": "evaluate", "weights": what, "data": data, "clips": count, "backend": model.backend,
                   "device": model.device}  # fmt: skip
            sources.say_repeats(data, source, count)
            source, conditions_of = _conditioned(model.config, source, data, captions, encoder)
            row["loss"] = _losses(model, source, conditions_of, count, batch, seed)
            if data == sources.DIGITS and samples:
                row["samples"] = _samples(
                    model, source, conditions_of, plan, count, batch, guidance, seed, models.frame_by_frame(what, model)
                )
            row["seconds"] = round(time.perf_counter() - began, 3)
        text = ""
    if out is not None:
        _files.write(out, report.as_text(row) + "\n")
    if as_json or text:
        report.result(row, text, as_json=as_json)
        return
    _show(row)


def _is_run(path: Path) -> bool:
    return (path / "model.safetensors").is_file()


# Two videos


def _compared(made: Path, real: Path, background: str) -> tuple[report.Row, str]:
    first, second = (files.look(path, background=background) for path in (made, real))
    for video in (first, second):
        files.say(video, option=None)
    if first.clips != second.clips:
        report.usage(f"both videos must have as many clips, got {first.clips} in {made} and {second.clips} in {real}")
    size, channels = second.size, min(first.channels, second.channels)
    if first.size != size:
        report.note(
            f"note: {made} is {first.size[0]}x{first.size[1]}; scaled to cover {size[0]}x{size[1]}, as {real}, and cut"
        )
    frames, side, least = 0, min(size), min(first.frames, second.frames)
    psnr, ssim = np.zeros(first.clips), np.zeros(first.clips)
    if first.frames != second.frames:
        report.note(
            f"note: {made} has {first.frames} frames and {real} {second.frames}; the first {least} are compared"
        )
    with report.Bar("frames", least) as bar:  # both are means over frames, so that a block at a time is enough
        for x, y in zip(files.blocks(first, size, channels), files.blocks(second, size, channels), strict=False):
            count = min(x.shape[1], y.shape[1])
            pair = x[:, :count], y[:, :count]
            psnr += count * dc.metrics.psnr(*pair)
            window = {"win_size": min(7, side - 1 + side % 2)}
            ssim += count * dc.metrics.ssim(*pair, **window) if side >= 3 else np.nan
            frames += count
            bar.made(count)
    psnr, ssim = psnr / frames, ssim / frames
    row = {"command": "evaluate", "made": str(made), "real": str(real), "frames": frames, "psnr": psnr, "ssim": ssim}
    text = f"PSNR {float(np.mean(psnr)):.2f} dB, SSIM {float(np.mean(ssim)):.4f} over {frames} frames of {size[0]}x{size[1]}"
    return row, text


# A model


def _check_digits(config: Any, samples: bool) -> None:
    if samples and config.frames < 3:
        report.usage(
            f"clips of {_check.counted(config.frames, 'frame')} have no motion to compare; --no-samples measures the loss alone"
        )
    if config.channels != 1 or (config.condition == "class" and config.classes != 10):
        report.usage(
            f"--data digits has 1 channel and 10 classes, but the model has {config.channels} and {config.classes}; give "
            f"--data a folder of videos"
        )


def _conditioned(config: Any, source: Any, data: str, captions: Path | None, encoder: Path | None) -> tuple[Any, Any]:
    """Return a source whose labels number the conditions of a network, and the function from labels to these, or None."""
    said = sources.text(data, captions, encoder)
    if said is not None:
        conditions.check(config, said.encoder, str(encoder))
        source = sources.captioned(source, data, config, said, split="test" if data == sources.DIGITS else "train")
        table = said.encoder(source.captions)
        return source, lambda labels: tuple(part[labels] for part in table)
    if config.condition == "class" and source.classes is not None:
        return source, lambda labels: labels
    if data != sources.DIGITS and source.classes is not None:
        report.usage(
            f"--labels is for models of classes, and this one has the condition {config.condition!r}; leave it out"
        )
    if config.condition != "none":
        way = "; --encoder FOLDER reads captions" if config.condition == "tokens" else ""
        report.note(f"note: this model has the condition {config.condition!r}; it is measured without it{way}")
    return source, None


def _losses(model: models.Model, source: Any, conditions_of: Any, count: int, batch: int, seed: int) -> report.Row:
    """Return the mean squared error of v at each level, on the first clips of a source."""
    found = dict.fromkeys(LEVELS, 0.0)
    with report.Bar("loss", count * len(LEVELS)) as bar:
        for first in range(0, count, batch):
            some = [
                dc.unet3d.data.batch(source, 1, step=step, seed=seed)
                for step in range(first, min(first + batch, count))
            ]
            x = model.put(_in_channels(np.concatenate([one.x for one in some]), model.config.channels))
            cond = None
            if conditions_of is not None:
                cond = models.condition_on(model, conditions_of(np.concatenate([one.labels for one in some])))
            eps = dc.noise.normal(dc.noise.keys(seed, len(some), first=first), 0, tuple(x.shape), like=x)
            for level in LEVELS:
                at = dc.levels.level(model.put(np.full(len(some), level, dtype=np.float32)), model.net.scaling or "vp")
                y = model.net(dc.process.diffuse(x, eps, at), at.log_snr, cond)
                each = dc.losses.denoising(y, x, eps, at, prediction=model.config.prediction, weight=dc.weights.V())
                found[level] += float(each.mean()) * len(some)
                bar.made(len(some))
    return {f"{level:g}": total / count for level, total in found.items()}


def _in_channels(x: files.Float32, channels: int) -> files.Float32:
    grey: files.Float32 = (x @ files.LUMA)[..., None] if (x.shape[-1], channels) == (3, 1) else x
    return grey


def _samples(
    model: models.Model,
    source: Any,
    conditions_of: Any,
    plan: Any,
    count: int,
    batch: int,
    guidance: float | None,
    seed: int,
    alone: bool,
) -> report.Row:
    """Draw clips of all digits in turn, or of the first captions, and return what a classifier and the Frechet distance say."""
    digits, texts = dc.unet3d.digits, model.config.condition == "tokens" and conditions_of is not None
    digits_of = source.source if texts else source
    asked = np.array([source.label(index % len(source)) for index in range(count)]) if texts else np.arange(count) % 10
    labels = digits_of.labels[np.arange(count) % len(source)] if texts else asked
    free = models.denoiser(model, None, guidance, reuses=alone) if conditions_of is None else None
    parts, stages = [], len(plan) * (model.config.frames if alone else 1)
    with report.Bar("samples", count, stages=stages, block=min(batch, count)) as bar:
        for first in range(0, count, batch):
            some = asked[first : first + batch]
            denoise = free or models.denoiser(model, conditions_of(some), guidance, reuses=alone)
            shape, words = (len(some), *model.config.shape), dc.noise.keys(seed, len(some), first=first)
            blocks = drawing.drawn(model, denoise, plan, shape, seed=words, callback=bar.stage, alone=alone)
            parts.append(np.concatenate(list(blocks), axis=1))
            bar.made(len(some))
    clips = np.concatenate(parts)
    held = digits_of.clips.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    with report.warnings_as_notes():
        seen = digits.legibility(clips, None if conditions_of is None else labels)
        real, fake = (dc.metrics.moments(digits.features(some)) for some in (held, clips))
        distance = dc.metrics.frechet_distance(real, fake)
    row = {
        "calls": len(plan),
        "sampler": plan.sampler,
        "frechet_distance": distance,
        "legibility": seen.probability,
        "accuracy": seen.accuracy,
        "identity_held": digits.identity_held(clips),
    }
    if texts:
        real_ones = held[np.arange(count) % len(source)]
        row["moves_as_said"] = float(np.mean(digits.directions(clips) == digits.directions(real_ones)))
    return row


def _show(row: report.Row) -> None:
    title = f"{row['weights']} on {row['clips']} clips of {row['data']}, {row['backend']} on {row['device']}"
    report.table(title, ["log-SNR", "squared error of v"], [[at, f"{loss:.4f}"] for at, loss in row["loss"].items()])
    if "samples" in row:
        typer.echo()
        cells = [
            [key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value)]
            for key, value in row["samples"].items()
            if value is not None
        ]
        report.table("clips that it draws", ["", ""], cells)
