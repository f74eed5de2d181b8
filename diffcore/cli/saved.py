"""Weights files and the models that are included: what a name on the command line stands for, and what is known of it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import diffcore as dc
from diffcore import _synonyms
from diffcore.cli.report import absent, usage


def shipped() -> list[str]:
    """Return the names of the models that are shipped."""
    return list(dc.unet3d.MODELS)


_PICKLES = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}


def weights_file(weights: str) -> Path | None:
    """Return the path of a weights file, or None for a shipped model; refuse anything else."""
    if weights in shipped():
        return None
    from diffcore.cli.files import readable

    path, choose = Path(weights), f"give a .safetensors file, a run's folder, or one of {', '.join(shipped())}"
    if path.is_dir():
        inside = path / "model.safetensors"
        if inside.is_file():
            return inside
        if list(path.glob("checkpoint*")):
            usage(
                f"{weights} holds a run that has not ended; the command that began it goes on with it, to model.safetensors"
            )
        usage(f"{weights} is a folder without model.safetensors; {choose}")
    if not path.is_file():
        meant, _ = _synonyms.meant(weights, shipped())
        usage(
            f"{absent(weights)}, nor an included model of that name; {f'did you mean {meant}? Or ' if meant else ''}{choose}"
        )
    kind = path.suffix.lower()
    if kind in readable():
        usage(
            f"{weights} is a video and holds no weights; {choose}. A video to go on from: diffcore extend {weights} OUT"
        )
    if kind in _PICKLES:
        usage(f"{weights} is a pickle, to judge by its name, and to open one is to run it; {choose}")
    about: dict[str, str] = {}
    with contextlib.suppress(Exception):  # a damaged file is refused where it is loaded
        about = _metadata(path)
    if "glimpse" in about:
        usage(f"{weights} is a checkpoint of a run, at whose end its weights are in model.safetensors beside it")
    return path


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def notes(weights: str) -> dict[str, str]:
    """Return what a weights file says beside the weights."""
    from diffcore.unet3d.pretrained import shipped as included

    path = weights_file(weights)
    with included(weights) if path is None else contextlib.nullcontext(path) as found:
        return _metadata(found)


def rate_of(weights: str) -> float | None:
    """Return how many frames a second the clips had that a model was trained on; None where its file does not say."""
    weights_file(weights)
    with contextlib.suppress(Exception):  # a damaged file is refused where it is loaded
        rate = float(notes(weights)["fps"])
        return rate if 0.01 <= rate <= 1000.0 else None
    return None


def knows_levels(weights: str) -> bool | None:
    """Return whether a model was trained with a noise level for each frame; None where its file does not say."""
    settings = notes(weights).get("settings")
    return None if settings is None else re.search(r"frame_times='(?!shared)", settings) is not None
