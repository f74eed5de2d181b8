"""What every implementation checks of its arguments, by shapes alone, so that all of it traces; and the null condition."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from diffcore import _array
from diffcore.unet3d.config import UNet3DConfig

FUNCTION = "unet3d"


class Sizes(NamedTuple):
    """Batch, all frames, independent images among them (the last ones), height and width."""

    batch: int
    frames: int
    images: int
    height: int
    width: int


def check(config: UNet3DConfig, z: Any, log_snr: Any, cond: Any, images: Any, *arrays: type) -> Sizes:
    """Return the sizes of a call, or raise ValueError or TypeError naming the argument that does not fit.

    `arrays` are the types of array that the model takes, its own first.
    """
    if not isinstance(z, arrays):
        own = arrays[0].__module__.partition(".")[0] + "." + arrays[0].__name__
        raise TypeError(
            f"{FUNCTION}: `z` is {type(z).__module__.partition('.')[0]}.{type(z).__name__}, but this model takes {own}; another "
            f'is unet3d.load(path, "numpy"), "torch" or "jax"'
        )
    shape = tuple(getattr(z, "shape", ()))
    if len(shape) != 5 or shape[4] != config.channels or 0 in shape[1:]:
        raise ValueError(
            f"{FUNCTION}: `z` has shape {shape}, but takes (B, T, H, W, {config.channels}) with at least one frame and pixel"
        )
    if not _array.is_floating(z):  # what the network says is cast to the dtype of z
        raise TypeError(
            f"{FUNCTION}: `z` has dtype {z.dtype}, but takes a real floating dtype; frames of bytes are "
            f"z.astype('float32') / 127.5 - 1"
        )
    _check_log_snr(log_snr)
    batch, frames, height, width, _ = shape
    if isinstance(images, bool) or not hasattr(images, "__index__") or not 0 <= images <= frames:
        raise ValueError(
            f"{FUNCTION}: `images` is {images!r}, but takes how many of the {frames} frames of `z`, counted from the "
            f"last, are independent images"
        )
    if (lead := tuple(getattr(log_snr, "shape", ()))) not in {(), (batch,), (batch, frames)}:
        raise ValueError(
            f"{FUNCTION}: `log_snr` has shape {lead}, but takes (), ({batch},) or ({batch}, {frames}) for `z` of shape {shape}"
        )
    if cond is not None:
        _check_condition(config, cond, (batch,), (batch, frames))
    return Sizes(batch, frames, int(images), height, width)


def _check_log_snr(log_snr: Any) -> None:
    try:
        xp = _array.library(log_snr)
        known = not isinstance(log_snr, bool) and (
            xp is None or _array.is_floating(log_snr) or xp.isdtype(log_snr.dtype, "integral")
        )
    except TypeError:
        known = False
    if not known:
        raise TypeError(
            f"{FUNCTION}: `log_snr` is {type(log_snr).__name__} {log_snr!r}, but takes a real number, or an array of them of "
            f"shape (B,) or (B, T)"
        )


def _check_condition(config: UNet3DConfig, cond: Any, *leads: tuple[int, ...]) -> None:
    if config.condition == "none":
        raise ValueError(f"{FUNCTION}: `cond` is given, but this model has no condition; leave it out")
    if config.condition == "class":
        if tuple(getattr(cond, "shape", ())) not in leads:
            raise ValueError(
                f"{FUNCTION}: `cond` has shape {getattr(cond, 'shape', None)}, but takes labels of shape {leads[0]} or "
                f"{leads[1]}, ints in [0, {config.classes}], where {config.classes} is the null condition"
            )
        if "int" not in str(cond.dtype):
            raise TypeError(f"{FUNCTION}: `cond` has dtype {cond.dtype}, but takes integer labels")
        if isinstance(cond, np.ndarray):
            check_labels(config, cond)
        return
    if not isinstance(cond, tuple | list) or len(cond) != 2:
        raise ValueError(
            f"{FUNCTION}: `cond` is {type(cond).__name__}, but takes a pair (tokens (B, L, {config.token_width}), "
            f"mask (B, L)), where the mask is True for tokens that count"
        )
    tokens, mask = (tuple(getattr(part, "shape", ())) for part in cond)
    if tokens[:-2] not in leads or tokens[-1] != config.token_width or mask != tokens[:-1] or 0 in mask[-1:]:
        raise ValueError(
            f"{FUNCTION}: `cond` has tokens of shape {tokens} and a mask of shape {mask}, but takes (B, L, "
            f"{config.token_width}) and (B, L), L >= 1, or (B, T, L, {config.token_width}) and (B, T, L)"
        )


def check_labels(config: UNet3DConfig, labels: Any) -> None:
    """Raise ValueError if labels, whose values the host knows, are out of range: a negative one would count from the end."""
    if 0 not in labels.shape and not (labels.min() >= 0 and labels.max() <= config.classes):
        raise ValueError(
            f"{FUNCTION}: `cond` has labels from {int(labels.min())} to {int(labels.max())}, but takes 0 to {config.classes - 1}, "
            f"and {config.classes} for the null condition; see model.null"
        )


def null(config: UNet3DConfig, cond: Any, xp: Any) -> Any:
    """Return the condition that says nothing, of the structure, shape and library of `cond`."""
    if config.condition == "none":
        raise ValueError(f"{FUNCTION}: this model has no condition, so it has no null condition either")
    if config.condition == "class":
        return xp.full_like(cond, config.classes)
    tokens, mask = cond
    return tokens, xp.zeros_like(mask)
