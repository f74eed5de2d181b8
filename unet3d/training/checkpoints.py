"""Checkpoints: the state of a run between two steps, the last few, each with a digest.

One process writes files: the newest is `checkpoint.safetensors`; `checkpoint.1.safetensors` is the one before it, and so on.
Several write folders, `checkpoint-STEP`, each process its part of the state, in the format of torch.distributed.checkpoint
or of orbax; the first process seals a folder when all of it is there. A run goes on from the newest that is whole, whoever
wrote it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _check, _files
from diffcore.unet3d import weights

FUNCTION = "training.train"
NEWEST = "checkpoint.safetensors"
SEAL = "run.json"
"""Of a folder: its metadata and the digests of its files. One without it is not whole."""

Arrays = dict[str, npt.NDArray[Any]]
Form = Mapping[str, tuple[int, ...]]


class Checkpoint(NamedTuple):
    """What a checkpoint holds: the state of a trainer, {} of a folder; what it belongs to; how many steps are done."""

    path: Path
    state: Arrays
    metadata: dict[str, str]
    step: int


def place(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of several processes."""
    return folder / f"checkpoint-{step:09d}"


def _folders(folder: Path) -> list[tuple[Path, int]]:
    """Return the folders of checkpoints, whole or not, and the steps in their names."""
    named = [(path, re.match(r"checkpoint-(\d{9,})(\.|$)", path.name)) for path in folder.glob("checkpoint-*")]
    return [(path, int(name[1])) for path, name in named if name is not None and path.is_dir()]


def places(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    files = [path for path in folder.glob("checkpoint.*.safetensors") if path.name.split(".")[1].isdecimal()]
    files.sort(key=lambda path: int(path.name.split(".")[1]))
    files = [path for path in (folder / NEWEST, *files) if path.is_file()]
    folders = {path: step for path, step in _folders(folder) if (path / SEAL).is_file()}
    if not folders:
        return files
    steps, last = dict[Path, int](), 0
    for path in reversed(files):
        with contextlib.suppress(ValueError):  # a damaged one is taken to be as old as the one before it
            last = int(weights.read_metadata(FUNCTION, path).get("step", last))
        steps[path] = last
    return sorted([*files, *folders], key=lambda path: -(steps | folders)[path])


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
        discard(path)


def seal(path: Path, metadata: Mapping[str, str], kept: int) -> None:
    """Make a folder that is written a checkpoint, and keep so many."""
    digests = {file.relative_to(path).as_posix(): _digest(file) for file in sorted(path.rglob("*")) if file.is_file()}
    _files.write(path / SEAL, json.dumps({**metadata, "digests": digests}))
    for old in places(path.parent)[kept:]:
        discard(old)


def discard(path: Path) -> None:
    """Remove a checkpoint, of a folder the seal first."""
    if path.is_dir():
        (path / SEAL).unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unsealed(path: Path) -> dict[str, str]:
    """Return the metadata of a folder, or raise ValueError where one of its files is not what was written."""
    try:
        metadata = json.loads((path / SEAL).read_text(encoding="utf-8"))
        for name, digest in metadata.pop("digests").items():
            if _digest(path / name) != digest:
                raise ValueError(f"{FUNCTION}: {path.name} is damaged or was changed: {name} is not what was written")
    except (OSError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{FUNCTION}: {path.name} is not whole ({_check.cut(str(error))})") from None
    return dict(metadata)


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
            whole = path.is_dir()
            state, metadata = ({}, _unsealed(path)) if whole else weights.read_arrays(FUNCTION, path, digest=True)
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
        discard(path)
    for path, _ in _folders(folder):
        if not (path / SEAL).is_file():
            shutil.rmtree(path)


OTHER = {
    "config": "of another network",
    "settings": "with other settings",
    "source": "on other data",
    "backend": "with another backend",
    "start": "from other weights",
}
"""What differs between two runs, by the part of their identity."""


def check_same(folder: Path, found: Checkpoint, identity: Mapping[str, str], glimpse: list[float]) -> None:
    """Raise ValueError where a checkpoint is of another run.

    `glimpse` is the mean of each of the first clips: other data that are as many and as large show there, while another
    decoder's rounding does not.
    """
    for part, value in identity.items():
        before = found.metadata.get(part)
        if part == "source" and before is not None:  # which may be of an earlier version
            later = {"fps", "every"} - json.loads(before).keys()
            value = json.dumps({name: each for name, each in json.loads(value).items() if name not in later})
        if before != value:
            raise ValueError(
                f"{FUNCTION}: the folder {folder.name!r} holds a run {OTHER.get(part, f'with another {part}')}: "
                f"{_difference(before, value)}; go on with what it was, or take another folder"
            )
    seen = json.loads(found.metadata.get("glimpse", json.dumps(glimpse)))[: len(glimpse)]
    if len(seen) != len(glimpse) or not np.allclose(seen, glimpse, rtol=0.0, atol=0.02):
        raise ValueError(
            f"{FUNCTION}: the folder {folder.name!r} holds a run on other data: the means of its first clips are "
            f"{np.round(seen[:3], 2).tolist()} instead of {np.round(glimpse[:3], 2).tolist()}; go on with the data it had, in "
            f"their order, or take another folder"
        )


def held(state: Arrays) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shapes and dtypes of a state."""
    return {name: (array.shape, str(array.dtype)) for name, array in state.items()}


def check_form(path: Path, held: Mapping[str, tuple[tuple[int, ...], str]], form: Form) -> None:
    """Raise ValueError where what is held (shape, dtype) lacks arrays, or has others, of another shape or not of float32
    (int32 for a count)."""
    for name, shape in form.items():
        dtype = "int32" if name == "count" else "float32"
        if held.get(name) != (shape, dtype):
            has = "has shape {} and dtype {} for".format(*held[name]) if name in held else "lacks"
            raise ValueError(f"{FUNCTION}: {path.name} {has} {name!r}, which takes {shape} of {dtype}")
    if extra := held.keys() - form.keys():
        raise ValueError(f"{FUNCTION}: {path.name} has unknown arrays: {', '.join(sorted(extra)[:3])}")


def _difference(found: str | None, wanted: str) -> str:
    try:
        old, new = json.loads(found or "{}"), json.loads(wanted)
        names = [name for name in new if old.get(name) != new[name]] + [name for name in old if name not in new]
        return ", ".join(f"{name} {old.get(name)} instead of {new.get(name)}" for name in names)
    except (ValueError, AttributeError):
        return f"{found} instead of {wanted}"
