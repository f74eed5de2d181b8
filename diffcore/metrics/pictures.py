"""Metrics of clips against the clips they should equal, frame by frame: PSNR and SSIM, by scikit-image."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check
from diffcore._array import Array

Float64 = npt.NDArray[np.float64]


def psnr(x: Array, y: Array, data_range: float = 2.0) -> Float64:
    r"""Return the peak signal-to-noise ratio of each clip: 10 log10(data_range^2 / mean (x - y)^2), the mean of its frames.

    Args:
        x, y: clips (B, T, H, W, C) of any library, of one shape.
        data_range: the distance between the least and the greatest value there can be; 2 for [-1, 1].

    Returns:
        (B,) in decibels, float64; inf for a clip with a frame that is equal.

    Raises:
        ImportError: scikit-image is missing; install diffcore[metrics].
        ValueError: shapes that differ or are no clips, entries that are not finite, data_range <= 0.

    Source: Huynh-Thu & Ghanbari 2008 (doi 10.1049/el:20080522).

    >>> psnr(np.zeros((1, 2, 8, 8, 3)), np.full((1, 2, 8, 8, 3), 0.2)).round(6)
    array([20.])
    """
    skimage = _skimage("metrics.psnr")
    first, second = _pair("metrics.psnr", x, y, data_range)
    with np.errstate(divide="ignore"):
        return _by_frame(skimage.peak_signal_noise_ratio, first, second, data_range=float(data_range))


def ssim(x: Array, y: Array, data_range: float = 2.0, *, win_size: int = 7) -> Float64:
    r"""Return the structural similarity of each clip, the mean of its frames, places and channels.

        (2 m_x m_y + c1)(2 c_xy + c2) / ((m_x^2 + m_y^2 + c1)(c_xx + c_yy + c2)),  c1 = (0.01 R)^2, c2 = (0.03 R)^2

    with means m and covariances c over a square window and R = data_range: scikit-image's, with a uniform window.

    Args:
        x, y, data_range: as in `psnr`.
        win_size: the side of the window in pixels: odd, at least 3, and no greater than H and W.

    Returns:
        (B,), float64, at most 1, which equal clips have.

    Raises:
        ImportError: scikit-image is missing; install diffcore[metrics].
        ValueError: as in `psnr`; win_size even, too small, or greater than a frame.

    Source: Wang et al. 2004 (doi 10.1109/TIP.2003.819861), eq. 13.

    >>> ssim(np.zeros((1, 2, 8, 8, 3)), np.zeros((1, 2, 8, 8, 3)))
    array([1.])
    """
    skimage = _skimage("metrics.ssim")
    first, second = _pair("metrics.ssim", x, y, data_range)
    side = min(first.shape[2:4])
    if win_size % 2 == 0 or not 3 <= win_size <= side:
        fits = f"use win_size={side - 1 + side % 2}" if side >= 3 else "SSIM takes frames of at least 3 x 3"
        must = f"be an odd number from 3 to the lesser side of a frame, {side}"
        raise _check.error(ValueError, "metrics.ssim", "win_size", must, win_size, fits)
    settings: dict[str, Any] = {"data_range": float(data_range), "win_size": win_size, "channel_axis": -1}
    with np.errstate(all="ignore"):
        found = _by_frame(skimage.structural_similarity, first, second, **settings)
    if not np.all(np.isfinite(found)):
        greatest = max(float(np.abs(part).max()) for part in (first, second))
        hint = f"scale them, for example by 1 / {greatest:g}"
        raise _check.error(ValueError, "metrics.ssim", "x", "have entries whose fourth powers float64 holds", x, hint)
    return found


def _skimage(function: str) -> ModuleType:
    try:
        import skimage.metrics
    except ImportError as error:
        raise ImportError(f"{function}: needs scikit-image; install diffcore[metrics]") from error
    return skimage.metrics


def _pair(function: str, x: Array, y: Array, data_range: float) -> tuple[Float64, Float64]:
    _array.namespace(function, x=x, y=y)
    first, second = (
        _array.to_host(part, np.float64, function=function, argument=name, finite=True)
        for name, part in (("x", x), ("y", y))
    )
    if first.shape != second.shape or first.ndim != 5 or not first.size:
        raise ValueError(
            f"{function}: `x` and `y` must have one shape (B, T, H, W, C), got {first.shape} and {second.shape}"
        )
    _check.number(function, "data_range", data_range, 0, open_low=True, hint="it is 2 for [-1, 1]")
    return first, second


def _by_frame(function: Callable[..., Any], x: Float64, y: Float64, **settings: Any) -> Float64:
    frames = [[function(*pair, **settings) for pair in zip(*clips, strict=True)] for clips in zip(x, y, strict=True)]
    return np.asarray(np.mean(frames, axis=1), dtype=np.float64)
