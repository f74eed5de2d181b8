"""Checkpoints: the state of a run between two steps, in the last few files, each with a digest.

The newest is `checkpoint.safetensors`; `checkpoint.1.safetensors` is the one before it, and so on. A run goes on from the
newest that is whole.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _files
from diffcore.unet3d import weights

FUNCTION = "training.train"
NEWEST = "checkpoint.safetensors"

Arrays = dict[str, npt.NDArray[Any]]
Form = Mapping[str, tuple[int, ...]]


class Checkpoint(NamedTuple):
    """What a file holds: the state of a trainer, what it belongs to, and how many steps are done."""

    path: Path
    state: Arrays
    metadata: dict[str, str]
    step: int


def places(folder: Path) -> list[Path]:
    """Return the files of a folder that hold checkpoints, the newest first."""
    older = [path for path in folder.glob("checkpoint.*.safetensors") if path.name.split(".")[1].isdecimal()]
    older.sort(key=lambda path: int(path.name.split(".")[1]))
    return [path for path in (folder / NEWEST, *older) if path.is_file()]


def write(folder: Path, state: Arrays, metadata: Mapping[str, str], kept: int) -> None:
    """Write a checkpoint, which makes those that are there one older, and keep so many.

    Raises:
        ValueError: NaN or infinity in the state, which leaves the files as they are.
    """
    try:
        weights.check_finite(FUNCTION, state)
    except ValueError as error:
        raise ValueError(
            f"{error} after step {metadata['step']}; start in a new folder with a lower learning rate or a longer warm-up. The "
            f"last checkpoint is from before"
        ) from None
    _make_room(folder, kept)
    weights.write(folder / NEWEST, state, metadata)
    for path in places(folder)[kept:]:
        path.unlink(missing_ok=True)


def _make_room(folder: Path, kept: int) -> None:
    """Rename the newest checkpoint and those that follow it without a gap, which a run that was killed here leaves."""
    names = [folder / NEWEST, *(folder / f"checkpoint.{age}.safetensors" for age in range(1, kept))]
    gap = next((age for age, path in enumerate(names) if not path.exists()), kept - 1)
    for age in range(gap, 0, -1):
        names[age - 1].replace(names[age])


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, with a warning about those that are not; None where there is none at all.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    damaged: list[str] = []
    for path in places(folder):
        try:
            state, metadata = weights.read_arrays(FUNCTION, path, digest=True)
            found = Checkpoint(path, state, metadata, int(metadata.get("step", "none")))
        except ValueError as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(f"{damaged[0]}; going on from {path.name}, at step {found.step}", stacklevel=3)
        return found
    if damaged:
        raise ValueError(f"{damaged[0]}; no older one is whole, so begin anew with overwrite=True")
    return None


def remove(folder: Path, *, all_of_them: bool) -> None:
    """Remove what a run that was killed left half written, and, where that is wanted, all checkpoints."""
    _files.remove_parts(folder / NEWEST)
    for path in places(folder) if all_of_them else ():
        path.unlink(missing_ok=True)


def check_same(folder: Path, found: Checkpoint, identity: Mapping[str, str], glimpse: list[float]) -> None:
    """Raise ValueError where a checkpoint is of another run.

    `glimpse` is the mean of each clip of the first batch: other data that are as many and as large show there, while
    another decoder's rounding does not.
    """
    for part, value in identity.items():
        if found.metadata.get(part) != value:
            raise ValueError(
                f"{FUNCTION}: the folder {folder.name!r} holds a run with another {part}: "
                f"{_difference(found.metadata.get(part), value)}; go on with what it was, or take another folder"
            )
    seen = json.loads(found.metadata.get("glimpse", json.dumps(glimpse)))
    if len(seen) != len(glimpse) or not np.allclose(seen, glimpse, rtol=0.0, atol=0.02):
        raise ValueError(
            f"{FUNCTION}: the folder {folder.name!r} holds a run on other data: the means of its first clips are "
            f"{np.round(seen[:3], 2).tolist()} instead of {np.round(glimpse[:3], 2).tolist()}; go on with the data it had, in "
            f"their order, or take another folder"
        )


def check_form(found: Checkpoint, form: Form) -> None:
    """Raise ValueError where a state lacks arrays, or has others, of another shape or not of float32 (int32 for a count)."""
    for name, shape in form.items():
        array, dtype = found.state.get(name), "int32" if name == "count" else "float32"
        if array is None or array.shape != shape or array.dtype != dtype:
            has = "lacks" if array is None else f"has shape {array.shape} and dtype {array.dtype} for"
            raise ValueError(f"{FUNCTION}: {found.path.name} {has} {name!r}, which takes {shape} of {dtype}")
    if extra := found.state.keys() - form.keys():
        raise ValueError(f"{FUNCTION}: {found.path.name} has unknown arrays: {', '.join(sorted(extra)[:3])}")


def _difference(found: str | None, wanted: str) -> str:
    try:
        old, new = json.loads(found or "{}"), json.loads(wanted)
        names = [name for name in new if old.get(name) != new[name]] + [name for name in old if name not in new]
        return ", ".join(f"{name} {old.get(name)} instead of {new.get(name)}" for name in names)
    except (ValueError, AttributeError):
        return f"{found} instead of {wanted}"
