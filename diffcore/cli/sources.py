"""Data to train and evaluate on, and the network that fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffcore.cli.report import note, usage

DIGITS = "digits"


def presets() -> list[str]:
    """Return the names of the networks to start from: those without text."""
    from diffcore.unet3d import PRESETS

    return [name for name, config in PRESETS.items() if config.condition != "tokens"]


def data(name: str, config: Any, *, every: int = 2, split: Any = "train", count: int = 8192) -> Any:
    """Return the source of a name: "digits", or a folder of videos."""
    from diffcore.unet3d import data as there
    from diffcore.unet3d import digits

    if name == DIGITS:
        return digits.moving_digits(frames=config.frames, size=config.size, count=count, split=split)
    if not Path(name).is_dir():
        usage(f'--data must be a folder of videos, or "{DIGITS}", got {name}')
    found = there.videos(name, frames=config.frames, size=(config.size, config.size), every=every, report=_skipped)
    return found


def _skipped(line: str) -> None:
    note(f"note: {line}")


def network_and_data(preset: str, changes: dict[str, Any], name: str, every: int) -> tuple[Any, Any]:
    """Return a config that fits the data, and the data."""
    from diffcore import unet3d

    if preset not in presets():
        usage(f"--preset must be one of {', '.join(presets())}, got {preset}")
    given = {field: value for field, value in changes.items() if value is not None}
    base = unet3d.PRESETS[preset]
    if name == DIGITS:
        given["channels"] = 1
        if base.condition == "class":
            given["classes"] = 10
    else:
        given.update(channels=3, condition="none", classes=0)
    if "size" in given:  # attention at the same levels
        given["attention"] = tuple(sorted({given["size"] * side // base.size for side in base.attention}))
    try:
        config = unet3d.preset(preset, **given)
    except ValueError as error:
        usage(str(error))
    return config, data(name, config, every=every)
