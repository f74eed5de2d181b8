"""Data to train and evaluate on, and the network that fits it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import diffcore as dc
from diffcore.cli import conditions, files, saved
from diffcore.cli.report import absent, no_such, note, usage

DIGITS = "digits"
TOKEN_HEADS = 8
"""Heads that pool the tokens of a model trained on captions: as many as this that divide its embedding."""


def presets() -> list[str]:
    """Return the names of the networks to start from: those without text."""
    return [name for name, config in dc.unet3d.PRESETS.items() if config.condition != "tokens"]


class Taken(NamedTuple):
    """How clips are taken from a folder of videos: as the options of the command line say."""

    every: int | None = None
    rate: float | None = None
    labels: Any = None
    background: str = "black"


AS_IT_IS = Taken()


def as_trained(taken: Taken, weights: str | None, name: str) -> Taken:
    """Return how clips are taken, where nothing says so as those were that the model of a weights file was trained on."""
    rate = None if weights is None or name == DIGITS or (taken.every or taken.rate) else saved.rate_of(weights)
    if rate is None:
        return taken
    note(
        f"note: clips are taken at {rate:.4g} frames a second, as those of {weights} were (--rate and --every say otherwise)"
    )
    return taken._replace(rate=rate)


def data(
    name: str,
    config: Any,
    *,
    taken: Taken = AS_IT_IS,
    split: Any = "train",
    count: int = 8192,
    option: str = "--data",
    fewer: str = "",
) -> Any:
    """Return the source of a name: "digits", or a folder of videos; see `folder`."""
    if name == DIGITS:
        return dc.unet3d.digits.moving_digits(frames=config.frames, size=config.size, count=count, split=split)
    if not Path(name).is_dir():
        found = f"{name} is a file" if Path(name).exists() else absent(f"{name.rstrip('/')}/")
        usage(f'{option} must be a folder of videos, or "{DIGITS}", and {found}')
    return folder(Path(name), config.frames, (config.size, config.size), taken, fewer=fewer)


def folder(path: Path, frames: int, size: tuple[int, int], taken: Taken = AS_IT_IS, *, fewer: str = "") -> Any:
    """Return a folder of videos as a source; `fewer` is the way to shorter clips, where they are too long for all videos."""
    if taken.every is not None and taken.rate is not None:
        usage("give --every or --rate, not both: one frame of every so many, or so many a second at equal times")
    how: dict[str, Any] = {"labels": taken.labels, "background": files.colour(taken.background), "report": _skipped}
    try:
        found = dc.unet3d.data.videos(path, frames=frames, size=size, every=taken.every, fps=taken.rate, **how)
    except ValueError as error:
        thicker = "a larger --rate" if taken.rate else "" if taken.every == 1 else "--every 1 takes each frame"
        text = str(error).removeprefix("data.videos: ")
        usage("; ".join(part for part in (text, *((fewer, thicker) if "; 0 files" not in text else ())) if part))
    small = [at for at, side in enumerate(found.sides) if files.enlarged(side, size)]
    if small:
        first, (height, width) = found.paths[small[0]].name, found.sides[small[0]]
        note(
            f"note: {len(small)} of the videos in {path}, such as {first} of {height}x{width}, are enlarged to cover "
            f"{size[0]}x{size[1]}"
        )
    return found


def say_repeats(name: object, source: Any, count: int) -> None:
    """Say where more clips are measured than there are videos, so that some are cut from one."""
    if len(source) < count and name != DIGITS:
        videos = f"{len(source)} videos" if len(source) > 1 else "one video"
        way = f"; -n {len(source)} takes one of each" if len(source) > 1 else ""
        note(f"note: {count} clips are cut from {videos} in {name}, at random places, which may overlap{way}")


def _skipped(line: str) -> None:
    note(f"note: {line.removeprefix('data.videos: ').replace('give fps= for', '--rate takes')}")


class Text(NamedTuple):
    """Training on text: a text encoder, and the file of captions, or None for those of the digits."""

    encoder: Any
    captions: Path | None


def text(name: str, captions: Path | None, encoder: Path | None) -> Text | None:
    """Return how a run is trained on text, or None."""
    if encoder is None and captions is None:
        return None
    if encoder is None:
        usage("--captions takes --encoder FOLDER, a text encoder as transformers saves it")
    if captions is not None and name == DIGITS:
        usage("--captions is for a folder of videos; the digits have captions of their own")
    if captions is None and name != DIGITS:
        usage("--encoder takes --captions FILE, lines of JSON that say what each video shows")
    return Text(conditions.encoder_in(encoder), captions)


def captioned(
    source: Any, name: str, config: Any, said: Text, *, split: Any = "train", known: Sequence[str] = ()
) -> Any:
    """Return the source of a name with its captions; of clips to validate on, `known` are those of the others.

    Captions of a folder that has no file of the same name as --captions are in that one, beside those of the others.
    """
    if name == DIGITS:
        truth = dc.unet3d.digits.moving_digits_truth(
            frames=config.frames, size=config.size, count=len(source), split=split
        )
        return dc.unet3d.data.captioned(source, dc.unet3d.digits.captions(truth), known=known)
    if said.captions is None:
        usage(f"--data {DIGITS} takes --validation {DIGITS} with --encoder, got {name}, whose captions are not known")
    own = Path(name) / said.captions.name
    path = own if split != "train" and own.is_file() else said.captions
    try:
        return dc.unet3d.data.captioned(source, path, known=known)
    except (OSError, ValueError) as error:
        way = "" if split == "train" else f"; they may be in {own}, as --captions are"
        usage(f"--captions {path}: {str(error).removeprefix('data.captioned: ')}{way if path != own else ''}")


def network_and_data(
    preset: str | None,
    changes: dict[str, Any],
    name: str,
    taken: Taken,
    *,
    text: Text | None = None,
    origin: Any = None,
) -> tuple[Any, Any]:
    """Return a config that fits the data, that of a preset or of weights to start from, and the data."""
    able = presets() if text is None else list(dc.unet3d.PRESETS)
    if preset is not None and preset not in able:
        if preset in dc.unet3d.PRESETS:
            usage(f"--preset {preset} takes --encoder FOLDER, for models on text; without it one of {', '.join(able)}")
        no_such("--preset", preset, able)
    if text is not None and taken.labels is not None:
        usage("--labels and --captions are both given; a network is trained on one of them")
    given = {field: value for field, value in changes.items() if value is not None}
    base = dc.unet3d.PRESETS[preset] if preset is not None else replace(origin, schedule=None)
    if base.condition == "tokens" and text is None:
        usage("the weights are of a model that was trained on text; give --encoder FOLDER, which reads captions")
    if name == DIGITS:
        given["channels"] = 1
        if base.condition == "class":
            given["classes"] = 10
    elif taken.labels is None:
        given.update(channels=3, condition="none", classes=0)
    else:
        given.update(channels=3, condition="class", classes=len(_classes(name)))
    if text is not None:
        heads = base.token_heads if base.condition == "tokens" else math.gcd(base.embedding, TOKEN_HEADS)
        given.update(condition="tokens", classes=0, token_heads=heads)
        given.update(token_width=text.encoder.width, encoder=text.encoder.name)
    if "size" in given:  # attention at the same levels
        given["attention"] = tuple(sorted({given["size"] * side // base.size for side in base.attention}))
    try:
        config = replace(base, **given)
    except ValueError as error:
        usage(str(error))
    source = data(name, config, taken=taken, fewer="--frames takes fewer")
    if taken.labels is not None and name != DIGITS and source.classes != config.classes:
        config = replace(config, classes=source.classes)
    return config, source if text is None else captioned(source, name, config, text)


def _classes(name: str) -> list[str]:
    """Return the sub-folders of a folder, which are its classes if there is a video in each."""
    found = [path.name for path in Path(name).iterdir() if path.is_dir()] if Path(name).is_dir() else []
    if not found:
        usage(f"--labels folders takes a folder with a sub-folder of videos for each class, but {name} has none")
    return found
