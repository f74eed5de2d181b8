"""The base of all schedules: a decreasing map from time to log-SNR, its inverse, its slope, and a scaling.

Floats are dense at 0 and coarse at 1, and schedules are steep at t = 1. So formulas take the pair (t, rest) with
rest = 1 - t, and inverses return it: Flow is 2 (log rest - log t), which is accurate at both ends.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from diffcore import _array, _check, _memory, levels
from diffcore._array import Array
from diffcore.levels import Level

Pair = tuple[Array, Array]
"""A time as (t, 1 - t), each to full precision."""


class Schedule(ABC):
    r"""A decreasing map t in [0, 1] -> lambda = log(alpha^2 / sigma^2), and the scaling that makes it a level.

    t = 0 is data, t = 1 is noise. A schedule is a frozen, keyword-only dataclass of Python floats, so it is compared,
    hashed, printed and copied with `dataclasses.replace` like any other. `schedule(t)` is its `Level` at t.

    Your own schedule defines a field `scaling`, and `_log_snr`, `_time` and `_slope` for arrays of any library xp, with
    time as the pair (t, 1 - t):

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Logistic(Schedule):
    ...     scaling: str = "vp"
    ...     def _log_snr(self, xp, t, rest): return xp.log(rest) - xp.log(t)
    ...     def _time(self, xp, log_snr): return 1 / (1 + xp.exp(log_snr)), 1 / (1 + xp.exp(-log_snr))
    ...     def _slope(self, xp, t, rest): return -1 / (t * rest)
    >>> Logistic().log_snr(0.0), Logistic().time(0.0), Logistic()(0.5).alpha.round(6)
    (np.float64(inf), np.float64(0.5), np.float64(0.707107))
    """

    scaling: str

    @abstractmethod
    def _log_snr(self, xp: Any, t: Array, rest: Array, /) -> Array:
        """Return lambda at the time (t, rest); infinite at an end where it must be, never NaN."""

    @abstractmethod
    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        """Return the time (t, rest) of a log-SNR; for one out of reach any time beyond [0, 1], which `time` clips."""

    @abstractmethod
    def _slope(self, xp: Any, t: Array, rest: Array, /) -> Array:
        """Return d lambda / dt at the time (t, rest)."""

    def log_snr(self, t: Array) -> Array:
        r"""Return lambda(t).

        Args:
            t: times in [0, 1], a number or a floating array of any shape.

        Returns:
            An array of the shape, library and device of `t`; a number gives a NumPy float64, half precision float32.

        Raises:
            TypeError: `t` is an integer array, or not an array.
            ValueError: a time beyond [0, 1] where the host knows it: a number, a NumPy array, or an array of torch or JAX
                on the CPU. Elsewhere (another device, traced) the result is NaN there. NaN stays NaN.
        """
        xp, t = self._times("log_snr", t)
        with _array.quiet(xp):
            return _array.scalar(self._alike("_log_snr", self._log_snr(xp, t, 1.0 - t), t))

    def time(self, log_snr: Array) -> Array:
        r"""Return t with lambda(t) = log_snr, the inverse of `log_snr`; 0 or 1 for a log-SNR beyond that end.

        Args:
            log_snr: a number or a floating array of any shape, infinities included; NaN stays NaN.

        Returns:
            An array of the shape, library and device of `log_snr`, in [0, 1].

        Raises:
            TypeError: `log_snr` is an integer array, or not an array.
        """
        xp, log_snr = _array.level_array(f"schedules.{type(self).__name__}.time", "log_snr", log_snr)
        with _array.quiet(xp):
            pair = self._time(xp, log_snr)
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                where = f"schedules.{type(self).__name__}"
                raise _check.error(TypeError, where, "_time", "return the pair (t, 1 - t)", pair)
            return _array.scalar(clip(xp, self._alike("_time", pair[0], log_snr)))

    def slope(self, t: Array) -> Array:
        r"""Return d lambda / dt, which is negative; -inf at an end where lambda is infinite.

        Args, returns, raises: as for `log_snr`.
        """
        xp, t = self._times("slope", t)
        with _array.quiet(xp):
            slope = self._alike("_slope", self._slope(xp, t, 1.0 - t), t)
            return _array.scalar(slope + 0.0 * t)  # so that a constant slope is NaN at NaN too

    def __call__(self, t: Array) -> Level:
        """Return the level at time t, in the schedule's scaling."""
        if not hasattr(self, "scaling"):
            checked(f"schedules.{type(self).__name__}", "schedule", self)
        return levels.level(self.log_snr(t), self.scaling)

    def _times(self, method: str, t: Array) -> tuple[Any, Array]:
        """Return (xp, times), those just beyond an end moved onto it; raise where the host knows that one is further out."""
        where = f"schedules.{type(self).__name__}.{method}"
        xp, t = _array.level_array(where, "t", t)
        within = clip(xp, t)
        beyond = xp.abs(t - within) > 4.0 * float(xp.finfo(t.dtype).eps)  # less is rounding of a sum of steps
        seen = _memory.here(t) or _array.name(xp) == "torch"  # a device would be waited for
        if seen and (known := _array.known(beyond)) is not None and np.any(known):
            wrong = float(_array.known(t)[known].flat[0])
            hint = "timestep i of 0, ..., T - 1 is i / (T - 1)"
            raise _check.error(ValueError, where, "t", "be in [0, 1], 0 for data and 1 for noise", wrong, hint)
        return xp, within if isinstance(t, np.ndarray) else xp.where(beyond, math.nan, within)

    def _alike(self, method: str, found: Array, like: Array) -> Array:
        """Return what a method made of an array; raise where it is no array of its shape, which one number would become."""
        number = isinstance(found, _array.NUMBERS) and (method == "_slope" or not like.shape)  # a slope may be constant
        if number or getattr(found, "shape", None) == like.shape:
            return found
        must = f"return an array of the shape that it got, {tuple(like.shape)}"
        kind = ValueError if _check.is_array(found) else TypeError
        raise _check.error(kind, f"schedules.{type(self).__name__}", method, must, found)

    def _check_scaling(self) -> None:
        levels.check_scaling(f"schedules.{type(self).__name__}", self.scaling)

    def _check_number(
        self, field: str, low: float | None = None, high: float | None = None, *, closed: bool = False
    ) -> None:
        """Store a field as a float after checking that it is in (low, high) and finite, or in [low, high] if `closed`."""
        where, value = f"schedules.{type(self).__name__}", getattr(self, field)
        hint = "Monotone takes arrays" if _check.is_array(value) and not isinstance(value, np.generic) else ""
        found = _check.number(
            where, field, value, low, high, open_low=not closed, open_high=not closed, finite=not closed, hint=hint
        )
        object.__setattr__(self, field, found)

    def _check_order(self, low: str, high: str) -> None:
        if not getattr(self, low) < getattr(self, high):
            raise ValueError(
                f"schedules.{type(self).__name__}: `{low}` must be less than `{high}`, got {getattr(self, low)!r} and "
                f"{getattr(self, high)!r}; exchange them"
            )


def clip(xp: Any, value: Array) -> Array:
    """Return a value clipped to [0, 1], NaN staying NaN; `where` has the same gradient in every library, unlike `clip`."""
    return xp.where(value < 0.0, xp.zeros_like(value), xp.where(value > 1.0, xp.ones_like(value), value))


def nearer(xp: Any, early: Array, t: Array, rest: Array) -> Pair:
    """Return the time that is `t` after the start where `early`, else `rest` before the end."""
    return xp.where(early, t, 1.0 - rest), xp.where(early, 1.0 - t, rest)


def softplus(xp: Any, value: Array) -> Array:
    """Return log(1 + e^value), from the smaller of the two exponentials, with the right gradient at zero."""
    negative = value < 0.0
    return xp.log1p(xp.exp(xp.where(negative, value, -value))) + xp.where(negative, xp.zeros_like(value), value)


def scaling_of(function: str, argument: str, schedule: object) -> str:
    """Return the scaling of a schedule; raise TypeError for anything else."""
    return checked(function, argument, schedule).scaling


def checked(function: str, argument: str, schedule: object) -> Schedule:
    """Return a schedule; raise TypeError for anything else, with how it becomes one."""
    hint = ""
    if isinstance(schedule, str):
        hint = f"by name it is schedules.by_name({_check.shown(schedule)})"
    elif hasattr(schedule, "config") and hasattr(schedule, "set_timesteps"):
        hint = "that of a scheduler of diffusers is interop.diffusers.schedule(scheduler)"
    elif _check.is_array(schedule) or isinstance(schedule, list | tuple):
        hint = "of a table it is schedules.from_betas, from_alphas_cumprod or from_sigmas"
    elif callable(schedule) or hasattr(schedule, "log_snr"):
        hint = "one of your own is a subclass of schedules.Schedule, see its help"
    found = _check.instance(function, argument, schedule, Schedule, "a schedule, such as schedules.Cosine()", hint=hint)
    if not hasattr(found, "scaling"):
        raise _check.error(TypeError, function, argument, "define a field `scaling`, 'vp', 've' or 'flow'", schedule)
    return found
