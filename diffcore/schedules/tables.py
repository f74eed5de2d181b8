r"""Schedules from the tables of other libraries, and a learned one: knots in log-SNR, straight lines between them.

Entry i of a table of T entries lies at time t_i = i / (T - 1), so the integer timestep i of a library with a table of T
steps is the time i / (T - 1), and the levels there are the table's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array
from diffcore._array import Array
from diffcore.schedules._base import Schedule


def _between(xp: Any, knots: Array, position: Array) -> tuple[Array, Array, Array]:
    """Return the knots before and after each position in [0, K - 1], and how far along it is."""
    last = knots.shape[0] - 2
    below = xp.clip(xp.floor(position), 0, last)
    index = xp.reshape(xp.astype(below, xp.int64 if xp is _array.array_api_numpy else xp.int32), (-1,))
    before = xp.reshape(xp.take(knots, index, axis=0), position.shape)
    after = xp.reshape(xp.take(knots, index + 1, axis=0), position.shape)
    return before, after, position - below


def _interpolate(xp: Any, knots: Array, t: Array) -> Array:
    before, after, part = _between(xp, knots, t * (knots.shape[0] - 1.0))
    return before * (1.0 - part) + after * part


def _invert(xp: Any, knots: Array, value: Array) -> Array:
    """Return the time at which the decreasing knots take a value; the first and last pieces go on outside."""
    count = knots.shape[0]
    above = xp.sum(xp.astype(xp.expand_dims(value, axis=-1) < knots[1:-1], value.dtype), axis=-1)
    before, after, _ = _between(xp, knots, above)
    return (above + (before - value) / (before - after)) / (count - 1.0)


def _piece_slope(xp: Any, knots: Array, t: Array) -> Array:
    before, after, _ = _between(xp, knots, t * (knots.shape[0] - 1.0))
    return (after - before) * (knots.shape[0] - 1.0)


@dataclass(frozen=True, kw_only=True)
class Table(Schedule):
    r"""A schedule through the log-SNRs of a table, linear between them; made by `from_betas` and its kin.

    Args:
        log_snrs: at least two finite, strictly decreasing numbers, at times i / (T - 1).
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: the table is too short, not finite or not strictly decreasing; the message gives the place.

    >>> Table(log_snrs=(8.0, 0.0, -4.0)).log_snr(0.75)
    np.float64(-2.0)
    """

    log_snrs: tuple[float, ...]
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "log_snrs", tuple(float(value) for value in self.log_snrs))
        _refuse_disorder("schedules.Table", "log_snrs", np.asarray(self.log_snrs), decreasing=True)

    def _knots(self, xp: Any, like: Array) -> Array:
        return xp.asarray(self.log_snrs, dtype=like.dtype, device=_array.device(like))

    def _log_snr(self, xp: Any, t: Array) -> Array:
        return _interpolate(xp, self._knots(xp, t), t)

    def _time(self, xp: Any, log_snr: Array) -> Array:
        return _invert(xp, self._knots(xp, log_snr), log_snr)

    def _slope(self, xp: Any, t: Array) -> Array:
        return _piece_slope(xp, self._knots(xp, t), t)


@dataclass(frozen=True, kw_only=True, eq=False)
class Monotone(Schedule):
    r"""A learned schedule: decreasing whatever its parameters are, and differentiable in them.

        lambda(k / K) = log_snr_max - (log_snr_max - log_snr_min) sum_{i <= k} softmax(increments)_i,  linear between

    Args:
        increments: K >= 1 free parameters, a 1-D floating array of any library; gradients flow to them.
        log_snr_min, log_snr_max: the ends, numbers or 0-d arrays of that library (learned too).
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: `increments` is not 1-D, or the scaling is unknown.
        TypeError: `increments` is no floating array.

    Source: the monotone noise schedule of Kingma et al. 2021 (arXiv 2107.00630), app. H, as a piecewise linear
    function.

    >>> import numpy as np
    >>> Monotone(increments=np.zeros(4)).log_snr(np.array([0.0, 0.25, 1.0]))
    array([ 10.,   5., -10.])
    """

    increments: Array
    log_snr_min: Any = -10.0
    log_snr_max: Any = 10.0
    scaling: str = "vp"

    def __post_init__(self) -> None:
        self._check()
        _array.check_floating("schedules.Monotone", increments=self.increments)
        if len(self.increments.shape) != 1 or self.increments.shape[0] < 1:
            raise ValueError(
                f"schedules.Monotone: `increments` has shape {tuple(self.increments.shape)}, but takes (K,), K >= 1"
            )

    def _knots(self, xp: Any, like: Array) -> Array:
        name = "schedules.Monotone"
        own = _array.namespace(name, increments=self.increments)
        if own is not xp:
            _array.namespace(name, increments=self.increments, t=like)
        raw = xp.astype(self.increments, like.dtype, copy=False)
        parts = xp.exp(raw - xp.max(raw))
        done = xp.cumulative_sum(parts / xp.sum(parts), axis=0)
        done = xp.concat([xp.zeros_like(done[:1]), done[:-1], xp.ones_like(done[:1])])
        return self.log_snr_max - (self.log_snr_max - self.log_snr_min) * done

    def _log_snr(self, xp: Any, t: Array) -> Array:
        return _interpolate(xp, self._knots(xp, t), t)

    def _time(self, xp: Any, log_snr: Array) -> Array:
        return _invert(xp, self._knots(xp, log_snr), log_snr)

    def _slope(self, xp: Any, t: Array) -> Array:
        return _piece_slope(xp, self._knots(xp, t), t)


def from_betas(betas: Sequence[float] | npt.ArrayLike, scaling: str = "vp") -> Table:
    r"""Return the schedule of a table of betas, the variances of DDPM's steps.

        alpha^2_i = prod_{j <= i} (1 - beta_j)

    Args:
        betas: (T,), T >= 2, each in (0, 1).
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: an entry out of range, or a table whose log-SNR is not strictly decreasing.

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 4.

    >>> from_betas([0.1, 0.2]).log_snrs[0] == np.log(0.9) - np.log(0.1)
    True
    """
    values = _one_axis("from_betas", "betas", betas)
    _refuse("from_betas", "betas", values, (values > 0.0) & (values < 1.0), "a number in (0, 1)")
    log_alpha2 = np.cumsum(np.log1p(-values))
    return _table("from_betas", "betas", log_alpha2 - np.log(-np.expm1(log_alpha2)), scaling)


def from_alphas_cumprod(alphas_cumprod: Sequence[float] | npt.ArrayLike, scaling: str = "vp") -> Table:
    r"""Return the schedule of a table of alpha^2 ("alphas_cumprod", "alpha bar").

        lambda_i = log alpha^2_i - log(1 - alpha^2_i)

    Args:
        alphas_cumprod: (T,), T >= 2, each in (0, 1), strictly decreasing.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: an entry out of range (a table rescaled to zero terminal SNR ends on 0: drop that entry, or use
            `Cosine(log_snr_min=-inf)`), or a table that is not strictly decreasing.

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 4.

    >>> from_alphas_cumprod([0.9, 0.5]).log_snr(1.0)
    np.float64(0.0)
    """
    values = _one_axis("from_alphas_cumprod", "alphas_cumprod", alphas_cumprod)
    _refuse("from_alphas_cumprod", "alphas_cumprod", values, (values > 0.0) & (values < 1.0), "a number in (0, 1)")
    return _table("from_alphas_cumprod", "alphas_cumprod", np.log(values) - np.log1p(-values), scaling)


def from_sigmas(sigmas: Sequence[float] | npt.ArrayLike, scaling: str = "ve") -> Table:
    r"""Return the schedule of a table of sigma / alpha, the noise levels of EDM and of score models.

        lambda_i = -2 log sigma_i

    Args:
        sigmas: (T,), T >= 2, positive, strictly increasing or strictly decreasing (as samplers list them; a trailing 0
            for
            clean data is dropped: grids end on clean data by themselves).
        scaling: "ve", "vp" or "flow".

    Raises:
        ValueError: an entry out of range, or a table that is not strictly monotone.

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5.

    >>> from_sigmas([80.0, 1.0, 0.01, 0.0]).log_snr(0.5)
    np.float64(-0.0)
    """
    values = _one_axis("from_sigmas", "sigmas", sigmas)
    if values.size > 2 and values[-1] == 0.0:
        values = values[:-1]
    _refuse("from_sigmas", "sigmas", values, (values > 0.0) & (values < np.inf), "a positive finite number")
    if values[0] > values[-1]:
        values = values[::-1]
    return _table("from_sigmas", "sigmas", -2.0 * np.log(values), scaling)


def _one_axis(function: str, argument: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < 2:
        raise ValueError(f"schedules.{function}: `{argument}` has shape {array.shape}, but takes (T,), T >= 2")
    return array


def _refuse(
    function: str, argument: str, values: npt.NDArray[np.float64], good: npt.NDArray[np.bool_], takes: str
) -> None:
    if not np.all(good):
        index = int(np.argmin(good))
        raise ValueError(f"schedules.{function}: `{argument}[{index}]` is {values[index]!r}, but takes {takes}")


def _refuse_disorder(where: str, argument: str, values: npt.NDArray[np.float64], *, decreasing: bool) -> None:
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"{where}: `{argument}` has {values.size} entries, but takes at least 2")
    if not np.all(np.isfinite(values)):
        index = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"{where}: `{argument}[{index}]` is {values[index]!r}, but takes finite numbers")
    steps = np.diff(values)
    good = steps < 0.0 if decreasing else steps > 0.0
    if not np.all(good):
        index = int(np.argmin(good))
        raise ValueError(
            f"{where}: `{argument}` must be strictly {'decreasing' if decreasing else 'increasing'}, but entries "
            f"{index} and {index + 1} are {values[index]!r} and {values[index + 1]!r}"
        )


def _table(function: str, argument: str, log_snrs: npt.NDArray[np.float64], scaling: str) -> Table:
    steps = np.diff(log_snrs)
    if not np.all(steps < 0.0):
        index = int(np.argmin(steps < 0.0))
        raise ValueError(
            f"schedules.{function}: `{argument}` is not strictly monotone: entries {index} and {index + 1} have log-SNR "
            f"{log_snrs[index]:.6g} and {log_snrs[index + 1]:.6g}, which must decrease; was an end of it patched?"
        )
    return Table(log_snrs=tuple(log_snrs.tolist()), scaling=scaling)
