"""Clips that lie in an array: in memory, or in a file that is read as it is needed."""

from __future__ import annotations

import os
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _check, _files
from diffcore.unet3d.data.source import Float32, Source

_LOOKED_AT = 16
_SLACK = 1e-4  # what resampling in half precision may have added to 1


class Arrays(Source):
    r"""A source over an array of clips, which are cut in time at random.

        uint8:     x = u / 127.5 - 1
        floating:  x, which has to be in [-1, 1]

    Args:
        clips: (N, T', H, W, C) with T' >= frames, uint8 or floating. It is neither copied nor read whole: of floating
            clips some are checked here, and each where it is drawn.
        labels: (N,) integers in [0, classes), or None.
        frames: T, how many frames are cut from a clip, >= 1.
        classes: how many there are; from the labels, the greatest + 1.

    Raises:
        TypeError: `clips` is no NumPy array, or is neither uint8 nor floating; labels that are no integers.
        ValueError: clips of another rank, none, or too short; values outside [-1, 1]; labels that do not fit.

    >>> import numpy as np
    >>> source = Arrays(np.full((5, 20, 8, 8, 1), 255, dtype=np.uint8), frames=16)
    >>> source.shape, len(source), source.classes
    ((16, 8, 8, 1), 5, None)
    >>> float(source.frame(0, np.random.default_rng(0)).max())
    1.0
    """

    def __init__(
        self,
        clips: npt.NDArray[Any],
        labels: npt.ArrayLike | None = None,
        *,
        frames: int,
        classes: int | None = None,
    ) -> None:
        function = "data.Arrays"
        _check.instance(function, "clips", clips, np.ndarray, "a NumPy array (N, T, H, W, C)")
        if clips.ndim != 5:
            grey = "grey clips take a last axis of one channel: clips[..., None]" if clips.ndim == 4 else ""
            raise _check.error(ValueError, function, "clips", "have shape (N, T, H, W, C)", clips, grey)
        if 0 in clips.shape:
            raise _check.error(ValueError, function, "clips", "have no empty axis", clips)
        if clips.dtype != np.uint8 and not np.issubdtype(clips.dtype, np.floating):
            raise _check.error(TypeError, function, "clips", "be uint8 from 0 to 255 or floats in [-1, 1]", clips)
        frames = _check.integer(function, "frames", frames, 1)
        if clips.shape[1] < frames:
            raise ValueError(
                f"{function}: `frames` is {frames}, but the clips have {clips.shape[1]}; take frames <= {clips.shape[1]}"
            )
        self.clips = clips
        self.labels, self._classes = _labels(function, labels, clips.shape[0], classes)
        self._frames = frames
        for index in np.unique(np.linspace(0, clips.shape[0] - 1, _LOOKED_AT).astype(int)):
            _check_range(int(index), clips[index])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of a clip."""
        return (self._frames, *self.clips.shape[2:])

    @property
    def classes(self) -> int | None:
        """How many classes there are, or None without labels."""
        return self._classes

    def __len__(self) -> int:
        return int(self.clips.shape[0])

    def clip(self, index: int, rng: np.random.Generator) -> Float32:
        """Return T consecutive frames of clip `index`, (T, H, W, C) in [-1, 1]; every start is as likely."""
        start = int(rng.integers(self.clips.shape[1] - self._frames + 1))
        return _scaled(index, self.clips[index, start : start + self._frames])

    def frame(self, index: int, rng: np.random.Generator) -> Float32:
        """Return one of the T' frames of clip `index`, (H, W, C) in [-1, 1]."""
        return _scaled(index, self.clips[index, int(rng.integers(self.clips.shape[1]))])

    def label(self, index: int) -> int | None:
        """Return the label of clip `index`, or None."""
        return None if self.labels is None else int(self.labels[index])


def _check_range(index: int, pixels: npt.NDArray[Any]) -> None:
    """Raise ValueError for floats outside [-1, 1]; nothing is copied, since a clip may be as large as its file."""
    if pixels.dtype == np.uint8:
        return
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1.0 - _SLACK and high <= 1.0 + _SLACK):  # so written that NaN is outside
        raise ValueError(
            f"data.Arrays: `clips` has values from {low:g} to {high:g} in clip {index}, but takes floats in [-1, 1]; "
            f"scale them, x * 2 - 1 from [0, 1] or x / 127.5 - 1 from [0, 255], or give uint8"
        )


def _scaled(index: int, pixels: npt.NDArray[Any]) -> Float32:
    _check_range(index, pixels)
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    return pixels.astype(np.float32)


def array_file(path: str | os.PathLike[str], *, frames: int, classes: int | None = None) -> Arrays:
    """Return a source over a file of clips: .npy, memory-mapped, or .npz with "clips" and, if there are any, "labels".

    Args:
        path: a .npy file (N, T', H, W, C), which is read as it is needed and may be larger than memory; or a .npz
            file, which is read whole.
        frames: T, how many frames are cut from a clip.
        classes: how many there are; from the labels, the greatest + 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of NumPy arrays, a .npz without "clips" or one that unpacks to over 100 times its size, or
            what `Arrays` refuses.
        TypeError: what `Arrays` refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(folder + "/some.npz", clips=np.zeros((3, 8, 4, 4, 1), np.uint8), labels=[0, 2, 1])
    ...     source = array_file(folder + "/some.npz", frames=8)
    >>> len(source), source.classes
    (3, 3)
    """
    function = "data.array_file"
    path = _files.regular(function, path)
    archive = zipfile.is_zipfile(path)
    if archive:
        _files.archive(function, path)
    held: Any
    try:
        if archive:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                held = {name: file[name] for name in file.files if name in ("clips", "labels")}
        else:
            held = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy raises many kinds for a file of another format
        reason = _check.cut(str(error))
        raise ValueError(
            f"{function}: {_check.shown(path.name)} is no .npy or .npz file of numbers ({reason})"
        ) from None
    if isinstance(held, np.ndarray):
        return Arrays(held, frames=frames, classes=classes)
    if "clips" not in held:
        raise ValueError(f"{function}: {_check.shown(path.name)} lacks an array named 'clips'")
    return Arrays(held["clips"], held.get("labels"), frames=frames, classes=classes)


def _labels(
    function: str, labels: npt.ArrayLike | None, count: int, classes: int | None
) -> tuple[npt.NDArray[np.int64] | None, int | None]:
    if labels is None:
        if classes is not None:
            raise ValueError(f"{function}: `classes` is {classes!r}, but there are no labels; give `labels` (N,)")
        return None, None
    found = np.asarray(labels)
    if not np.issubdtype(found.dtype, np.integer):
        raise _check.error(TypeError, function, "labels", "be integers", found)
    if found.shape != (count,):
        raise _check.error(ValueError, function, "labels", f"be one for each clip, ({count},)", found)
    low, high = int(found.min()), int(found.max())
    classes = high + 1 if classes is None else _check.integer(function, "classes", classes, 1)
    if low < 0 or high >= classes:
        raise ValueError(f"{function}: `labels` must be in [0, {classes - 1}], got {low} to {high}")
    return found.astype(np.int64), classes
