r"""Schedules from the tables of other libraries: knots in log-SNR, straight lines between them.

Entry i of a table of T entries lies at time t_i = i / (T - 1). So the integer timestep i of a library whose table has T
steps is the time i / (T - 1), the timestep of a time is t (T - 1), and the levels at those times are the table's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check
from diffcore._array import Array
from diffcore.schedules import _piecewise
from diffcore.schedules._base import Pair, Schedule

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Table(Schedule):
    r"""A schedule through the log-SNRs of a table, linear between them; made by `from_betas` and similar.

        lambda(i / (T - 1)) = log_snrs[i]

    A last entry of -inf is pure noise, zero terminal SNR. No line reaches it, so the last piece takes the nearer entry.

    Args:
        log_snrs: T >= 2 finite, strictly decreasing numbers, after which -inf may follow.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: the table is too short, not finite or not strictly decreasing; the message gives the first place.
        TypeError: `log_snrs` are not real numbers.

    >>> Table(log_snrs=(8.0, 0.0, -4.0)).log_snr(0.75)
    np.float64(-2.0)
    """

    log_snrs: tuple[float, ...]
    scaling: str = "vp"
    _host: Float64 = field(init=False, repr=False, compare=False)
    _share: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        values = _column("Table", "log_snrs", self.log_snrs)
        finite = values[: -1 if len(values) > 2 and np.isneginf(values[-1]) else None]
        _refuse("Table", "log_snrs", finite, np.isfinite(finite), "a finite number, or -inf after two others")
        _refuse_disorder("Table", "log_snrs", values, falling=True)
        object.__setattr__(self, "log_snrs", tuple(values.tolist()))
        object.__setattr__(self, "_host", finite)
        # the lines take this share of the time, and the step to -inf the remainder
        object.__setattr__(self, "_share", (len(finite) - 1) / (len(values) - 1))
        self._check_scaling()

    def __repr__(self) -> str:
        first, last, count = self.log_snrs[0], self.log_snrs[-1], len(self.log_snrs)
        entries = repr(self.log_snrs) if count <= 8 else f"<{count} from {first:.4g} to {last:.4g}>"
        return f"Table(log_snrs={entries}, scaling={self.scaling!r})"

    def _knots(self, xp: Any, like: Array) -> Array:
        return xp.asarray(self._host, dtype=like.dtype, device=_array.device(like))

    def _inner(self, xp: Any, t: Array) -> Array:
        """Return the time among the finite entries."""
        return t if self._share == 1.0 else xp.where(t > self._share, xp.ones_like(t), t / self._share)

    def _ending(self, xp: Any, rest: Array, value: Array) -> Array:
        """Return -inf where the last entry is -inf and the nearest, else the value."""
        return value if self._share == 1.0 else xp.where(rest < 0.5 * (1.0 - self._share), value - math.inf, value)

    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        return self._ending(xp, rest, _piecewise.log_snr(xp, self._knots(xp, t), self._inner(xp, t)))

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        if self._share == 1.0:
            return _piecewise.time(xp, self._knots(xp, log_snr), log_snr)
        last = float(self._host[-1])
        near = xp.where(log_snr < last, last * xp.ones_like(log_snr), log_snr)
        t, rest = _piecewise.time(xp, self._knots(xp, log_snr), near)
        over, one = log_snr == -math.inf, xp.ones_like(log_snr)
        return (
            xp.where(over, one, self._share * t),
            xp.where(over, 0.0 * one, (1.0 - self._share) + self._share * rest),
        )

    def _slope(self, xp: Any, t: Array, rest: Array, /) -> Array:
        return self._ending(xp, rest, _piecewise.slope(xp, self._knots(xp, t), self._inner(xp, t)) / self._share)


def from_betas(betas: Sequence[float] | Array, scaling: str = "vp") -> Table:
    r"""Return the schedule of a table of betas, the variances of DDPM's steps.

        log alpha^2_i = sum_{j <= i} log(1 - beta_j)

    Args:
        betas: (T,), T >= 2, each in (0, 1); the last may be 1, zero terminal SNR: lambda(1) = -inf. One above 1 is refused:
            diffusers then takes the root of a negative alpha^2, NaN, and clips the betas of its own cosine to 0.999.
        scaling: "vp", "ve" or "flow".

    Returns:
        `Table`, whose entry i is at t = i / (T - 1).

    Raises:
        ValueError: an entry out of range, the message gives the first; betas that decrease as alphas do.
        TypeError: `betas` are not real numbers.

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 4.

    >>> betas = np.linspace(1e-4, 0.02, 1000)                      # DDPM's
    >>> level = from_betas(betas)(500 / 999)                       # at its timestep 500
    >>> bool(abs(level.alpha**2 - np.cumprod(1 - betas)[500]) < 1e-15)
    True
    """
    values = _column("from_betas", "betas", betas)
    good = (values > 0.0) & ((values < 1.0) | (_is_last(values) & (values == 1.0)))
    _refuse("from_betas", "betas", values, good, "a number in (0, 1), or 1 for the last", "clip it to 0.999")
    if values[0] > 0.5 and np.all(np.diff(values) < 0.0):  # the first step of a table of betas adds a little noise
        raise ValueError(
            f"schedules.from_betas: `betas` must not decrease from {float(values[0])!r} to {float(values[-1])!r}, as alphas do; "
            f"use from_alphas_cumprod, or give 1 - alphas"
        )
    with np.errstate(divide="ignore"):
        log_alpha_2 = np.cumsum(np.log1p(-values))
    found = log_alpha_2 - np.log(-np.expm1(log_alpha_2))
    fell = np.concatenate([[True], np.diff(found) < 0.0])
    _refuse("from_betas", "betas", values, fell, "a number large enough to lower alpha^2 in float64")
    return Table(log_snrs=tuple(found.tolist()), scaling=scaling)


def from_alphas_cumprod(alphas_cumprod: Sequence[float] | Array, scaling: str = "vp") -> Table:
    r"""Return the schedule of a table of alpha^2, "alphas_cumprod" or "alpha bar".

        lambda_i = log alpha^2_i - log(1 - alpha^2_i)

    Give it in float64, or give betas: where alpha^2 is near 1, a float32 table has few digits of 1 - alpha^2.

    Args:
        alphas_cumprod: (T,), T >= 2, each in (0, 1), strictly decreasing; the last may be 0, zero terminal SNR. (Some
            samplers of diffusers put 2^-24 there, which is often more than the entry before, and is refused then. Its
            purpose, eps-prediction from pure noise, is impossible: start at the entry before, the time
            (T - 2) / (T - 1), or predict v.)
        scaling: "vp", "ve" or "flow".

    Returns:
        `Table`, whose entry i is at t = i / (T - 1).

    Raises:
        ValueError: an entry out of range or out of order; the message gives the first.
        TypeError: `alphas_cumprod` are not real numbers.

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 4.

    >>> from_alphas_cumprod([0.9, 0.5]).log_snr(1.0)
    np.float64(0.0)
    """
    function, argument = "from_alphas_cumprod", "alphas_cumprod"
    values = _column(function, argument, alphas_cumprod)
    good = (values < 1.0) & ((values > 0.0) | (_is_last(values) & (values == 0.0)))
    hint = "drop a 1: grids add the clean point themselves"
    _refuse(function, argument, values, good, "a number in (0, 1), or 0 for the last", hint)
    _refuse_disorder(function, argument, values, falling=True)
    with np.errstate(divide="ignore"):
        log_snrs = np.log(values) - np.log1p(-values)
    return Table(log_snrs=tuple(log_snrs.tolist()), scaling=scaling)


def from_sigmas(sigmas: Sequence[float] | Array, scaling: str = "ve") -> Table:
    r"""Return the schedule of a table of sigma / alpha, the noise levels of EDM and of score models.

        lambda_i = -2 log sigma_i

    Args:
        sigmas: (T,), T >= 2, positive, strictly decreasing, as samplers list them, or strictly increasing; in both cases the
            smallest is at t = 0. A 0 at the clean end, as EDM's tables have, is dropped: grids add the clean point
            themselves.
        scaling: "ve", "vp" or "flow".

    Returns:
        `Table`; in increasing order, entry i is at t = i / (T - 1).

    Raises:
        ValueError: an entry out of range or out of order; the message gives the first.
        TypeError: `sigmas` are not real numbers.

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5.

    >>> from_sigmas([80.0, 1.0, 0.01, 0.0]).time(0.0)
    np.float64(0.5)
    """
    function, argument = "from_sigmas", "sigmas"
    values = _column(function, argument, sigmas)
    falling = bool(values[0] > values[-1])
    inner = values[: -1 if values[-1] == 0.0 else None] if falling else values[1 if values[0] == 0.0 else 0 :]
    first = len(values) - len(inner) if not falling else 0
    if len(inner) < 2:
        raise ValueError(
            f"schedules.{function}: `{argument}` must have at least 2 entries besides the 0 of its clean end, got {len(inner)}"
        )
    _refuse(function, argument, inner, (inner > 0.0) & (inner < np.inf), "a positive finite number", first=first)
    _refuse_disorder(function, argument, inner, falling=falling, first=first)
    log_snrs = -2.0 * np.log(inner[::-1] if falling else inner)
    return Table(log_snrs=tuple(log_snrs.tolist()), scaling=scaling)


def _is_last(values: Float64) -> npt.NDArray[np.bool_]:
    return np.asarray(np.arange(len(values)) == len(values) - 1)


def _column(function: str, argument: str, values: Any) -> Float64:
    array = _array.to_host(values, np.float64, function=f"schedules.{function}", argument=argument)
    if array.shape == (1,):
        raise ValueError(
            f"schedules.{function}: `{argument}` must have at least 2 entries, got 1, a single level; use "
            f"diffcore.levels.level, and a grid of the level and inf"
        )
    if array.ndim != 1 or array.size < 2:
        raise ValueError(
            f"schedules.{function}: `{argument}` must have one axis of at least 2 entries, got shape {array.shape}"
        )
    return array.copy()


def _refuse(
    function: str,
    argument: str,
    values: Float64,
    good: npt.NDArray[np.bool_],
    what: str,
    hint: str = "",
    *,
    first: int = 0,
) -> None:
    """Raise ValueError for the first entry that is not good; `first` is the index of values[0] in the argument."""
    if not np.all(good):
        index = int(np.argmin(good))
        raise _check.error(
            ValueError, f"schedules.{function}", f"{argument}[{first + index}]", f"be {what}", values[index], hint
        )


def _refuse_disorder(function: str, argument: str, values: Float64, *, falling: bool, first: int = 0) -> None:
    """Raise ValueError for the first entry that repeats the one before it or goes back."""
    steps = np.diff(values)
    good = steps < 0.0 if falling else steps > 0.0
    if not np.all(good):
        index = int(np.argmin(good))
        reversed_ = falling and values[-1] > values[0]
        hint = "reverse it, to run from data to noise" if reversed_ else "drop replaced or repeated entries"
        raise ValueError(
            f"schedules.{function}: `{argument}` must strictly {'decrease' if falling else 'increase'}, got "
            f"{float(values[index])!r} and {float(values[index + 1])!r} at [{first + index}] and [{first + index + 1}]; {hint}"
        )
