"""Two sets of clips, in files or folders, by the Frechet distance of their features."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffcore as dc
from diffcore.cli import files, report, sources

DIGITS = "digits"


def names() -> list[str]:
    """Return the names of features."""
    return [*dc.metrics.features.table(), DIGITS]


def function_of(name: str) -> Callable[[Any], Any]:
    """Return features by their name, or a function of a module: "mine:embed", which lies in this folder or is installed."""
    if name in dc.metrics.features.table():
        return dc.metrics.features.table()[name]
    if name == DIGITS:
        return dc.unet3d.digits.features
    module, colon, function = name.partition(":")
    if not colon:
        report.usage(f"--features must be one of {', '.join(names())}, or module:function, got {name}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        report.usage(f"--features {name}: {error}; give the name of a module in this folder, a colon, and its function")
    finally:
        sys.path.pop(0)
    if not callable(found):
        report.usage(
            f"--features {name} must be a function of clips (n, T, H, W, C) that returns (n, D), got {type(found).__name__}"
        )
    return found  # type: ignore[no-any-return]


def clips_of(
    path: Path, frames: int, size: files.Size, channels: int, count: int, taken: sources.Taken
) -> files.Float32:
    """Return at most `count` clips (N, T, H, W, C): of a folder at random places of its videos, of a file one after another."""
    if path.is_dir():
        source = sources.folder(path, frames, size, taken._replace(labels=None), fewer="--frames takes fewer")
        sources.say_repeats(path, source, count)
        x = dc.unet3d.data.batch(source, count, step=0).x
        return (x @ files.LUMA)[..., None] if channels == 1 else x
    video = files.look(path, taken.rate, taken.background, option="--rate")
    files.say(video, option="--rate")
    if files.enlarged(video.size, size):
        report.note(
            f"note: the frames of {path}, {video.size[0]}x{video.size[1]}, are enlarged to cover {size[0]}x{size[1]} (--size says "
            f"otherwise)"
        )
    whole = files.read(video, size, channels)
    cut = whole.shape[1] // frames
    if not cut:
        report.usage(
            f"{path} has {whole.shape[1]} frames, but clips of {frames} are compared; give --frames {whole.shape[1]}"
        )
    clips = whole[:, : cut * frames].reshape(whole.shape[0] * cut, frames, *whole.shape[2:])
    return clips[:count]


def compared(
    made: Path, real: Path, features: str | None, frames: int, size: str | None, count: int, taken: sources.Taken
) -> tuple[report.Row, str]:
    """Return the Frechet distance of two sets, as a row and in words."""
    name = features or "convolutions"
    function, side = function_of(name), files.parse_size(size or ("32" if name == DIGITS else "64"))
    for path in (made, real):
        if not path.exists():
            report.usage(report.absent(path))
    channels = 1 if name == DIGITS else 3
    first, second = (clips_of(path, frames, side, channels, count, taken) for path in (made, real))
    fewer = min(len(first), len(second))
    if len(first) != len(second):
        report.note(
            f"note: {made} has {len(first)} clips and {real} {len(second)}; the first {fewer} of each are compared"
        )
    if fewer < 2:
        report.usage(f"a distance takes at least 2 clips of each, got {fewer}; give smaller --frames, or more videos")
    with report.warnings_as_notes():
        distance = dc.metrics.frechet_distance(second[:fewer], first[:fewer], features=function, batch=16)
    row = {"command": "evaluate", "made": str(made), "real": str(real), "features": name, "clips": fewer, "frames": frames,
           "size": list(side), "frechet_distance": distance}  # fmt: skip
    text = f"Frechet distance {distance:.6g} by {name}, of {fewer} clips each, {frames} frames of {side[0]}x{side[1]}"
    return row, text
