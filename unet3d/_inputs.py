"""What every implementation checks of its arguments, by shapes alone, so that all of it traces; and the null condition."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from diffcore import _array, _check
from diffcore.schedules import Schedule
from diffcore.unet3d import structure
from diffcore.unet3d.config import UNet3DConfig

FUNCTION = "unet3d"


class Network:
    """What the networks of every library say of themselves: they are denoisers for `diffcore.sample`."""

    config: UNet3DConfig

    @property
    def prediction(self) -> str:
        """What the network predicts, for `diffcore.sample`."""
        return self.config.prediction

    @property
    def schedule(self) -> Schedule | None:
        """What it was trained on, or None: a plan of another scaling is refused."""
        return self.config.schedule

    @property
    def scaling(self) -> str | None:
        """The scaling of that schedule."""
        return None if self.config.schedule is None else self.config.schedule.scaling


class Sizes(NamedTuple):
    """Batch, all frames, independent images among them (the last ones), height and width."""

    batch: int
    frames: int
    images: int
    height: int
    width: int

    @property
    def of_past(self) -> tuple[int, int, int]:
        """Batch, height and width, which frames and those before them have in common."""
        return self.batch, self.height, self.width


def check(config: UNet3DConfig, z: Any, log_snr: Any, cond: Any, images: Any, *arrays: type) -> Sizes:
    """Return the sizes of a call, or raise ValueError or TypeError naming the argument that does not fit.

    `arrays` are the types of array that the model takes, its own first.
    """
    if not isinstance(z, arrays):
        own = arrays[0].__module__.partition(".")[0] + "." + arrays[0].__name__
        hint = 'unet3d.load(path, "numpy"), "torch" or "jax" gives another model'
        raise _check.error(TypeError, FUNCTION, "z", f"be a {own}", z, hint)
    shape = tuple(getattr(z, "shape", ()))
    if len(shape) != 5 or shape[4] != config.channels or 0 in shape[1:]:
        must = f"have shape (B, T, H, W, {config.channels}), with at least one frame and pixel"
        raise _check.error(ValueError, FUNCTION, "z", must, z)
    if not _array.is_floating(z):  # what the network says is cast to the dtype of z
        must = "have a real floating dtype"
        raise _check.error(TypeError, FUNCTION, "z", must, z, "frames of bytes are z.astype('float32') / 127.5 - 1")
    _check_log_snr(log_snr)
    batch, frames, height, width, _ = shape
    images = _check.integer(
        FUNCTION, "images", images, 0, frames, hint="so many of the last frames of `z` are independent images"
    )
    if tuple(getattr(log_snr, "shape", ())) not in {(), (batch,), (batch, frames)}:
        must = f"have shape (), ({batch},) or ({batch}, {frames}) for `z` of shape {shape}"
        raise _check.error(ValueError, FUNCTION, "log_snr", must, log_snr)
    if cond is not None:
        _check_condition(config, cond, (batch,), (batch, frames))
    return Sizes(batch, frames, int(images), height, width)


def check_past(config: UNet3DConfig, past: Any, batch: int, height: int, width: int) -> None:
    """Raise unless the network is causal and `past`, where there is one, is what its `past` returned for this batch and size."""
    if not config.causal:
        raise ValueError(
            f"{FUNCTION}: `past` is for networks whose frames see none after them; make one with UNet3DConfig(causal=True)"
        )
    if past is None:
        return
    pixels = [-(-height // 2**row.level) * -(-width // 2**row.level) for row in structure.rows(config) if row.attends]
    fits = isinstance(past, tuple | list) and len(past) == len(pixels)
    for pair, count in zip(past, pixels, strict=True) if fits else ():
        shapes = [tuple(getattr(part, "shape", ())) for part in pair]
        fits = (
            fits
            and len(shapes) == 2
            and all(
                len(shape) == 5 and (shape[0], shape[2], shape[4]) == (batch, count, config.head_dim)
                for shape in shapes
            )
        )
    if not fits:
        must = f"be what model.past returned for {batch} clips of {height}x{width} pixels"
        raise _check.error(ValueError, FUNCTION, "past", must, past)


def _check_log_snr(log_snr: Any) -> None:
    try:
        xp = _array.library(log_snr)
        known = not isinstance(log_snr, bool) and (
            xp is None or _array.is_floating(log_snr) or xp.isdtype(log_snr.dtype, "integral")
        )
    except TypeError:
        known = False
    if not known:
        must = "be a real number, or an array of them of shape (B,) or (B, T)"
        raise _check.error(TypeError, FUNCTION, "log_snr", must, log_snr)


def _check_condition(config: UNet3DConfig, cond: Any, *leads: tuple[int, ...]) -> None:
    if config.condition == "none":
        raise ValueError(f"{FUNCTION}: `cond` is given, but this model has no condition; leave it out")
    if config.condition == "class":
        if tuple(getattr(cond, "shape", ())) not in leads:
            must = f"be labels of shape {leads[0]} or {leads[1]}, ints in [0, {config.classes}]"
            raise _check.error(ValueError, FUNCTION, "cond", must, cond, f"{config.classes} is the null condition")
        if "int" not in str(cond.dtype):
            raise _check.error(TypeError, FUNCTION, "cond", "be labels, of an integer dtype", cond)
        if isinstance(cond, np.ndarray):
            check_labels(config, cond)
        return
    if not isinstance(cond, tuple | list) or len(cond) != 2:
        must = f"be a pair (tokens (B, L, {config.token_width}), mask (B, L))"
        raise _check.error(TypeError, FUNCTION, "cond", must, cond, "the mask is True for tokens that count")
    tokens, mask = (tuple(getattr(part, "shape", ())) for part in cond)
    if tokens[:-2] not in leads or tokens[-1] != config.token_width or mask != tokens[:-1] or 0 in mask[-1:]:
        width = config.token_width
        must = f"have shapes (B, L, {width}) and (B, L), L >= 1, or (B, T, L, {width}) and (B, T, L)"
        raise _check.error(ValueError, FUNCTION, "cond", must, tuple(cond))


def check_labels(config: UNet3DConfig, labels: Any) -> None:
    """Raise ValueError if labels, whose values the host knows, are out of range: a negative one would count from the end."""
    if 0 not in labels.shape and not (labels.min() >= 0 and labels.max() <= config.classes):
        raise ValueError(
            f"{FUNCTION}: `cond` must be labels in [0, {config.classes - 1}], or {config.classes} for the null condition, got "
            f"{int(labels.min())} to {int(labels.max())}; see model.null"
        )


def null(config: UNet3DConfig, cond: Any, xp: Any) -> Any:
    """Return the condition that says nothing, of the structure, shape and library of `cond`."""
    if config.condition == "none":
        raise ValueError(f"{FUNCTION}: this model has no condition, so it has no null condition either")
    if config.condition == "class":
        return xp.full_like(cond, config.classes)
    tokens, mask = cond
    return tokens, xp.zeros_like(mask)
