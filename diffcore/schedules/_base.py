"""What every schedule is: a decreasing map from time to log-SNR, its inverse, its slope, and a scaling."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from diffcore import _array, levels
from diffcore._array import Array
from diffcore.levels import Level


class Schedule(ABC):
    r"""A decreasing map t in [0, 1] -> lambda = log(alpha^2 / sigma^2), and the scaling that makes it a level.

    t = 0 is data, t = 1 is noise. A schedule is a frozen dataclass of Python floats; a new one supplies `_log_snr`, `_time`
    and `_slope` on arrays of any library, and a field `scaling`.

    >>> from diffcore.schedules import Cosine
    >>> schedule = Cosine(log_snr_min=-20.0, log_snr_max=20.0)
    >>> schedule(0.5).alpha.round(12)
    np.float64(0.707106781187)
    """

    scaling: str

    @abstractmethod
    def _log_snr(self, xp: Any, t: Array) -> Array: ...

    @abstractmethod
    def _time(self, xp: Any, log_snr: Array) -> Array: ...

    @abstractmethod
    def _slope(self, xp: Any, t: Array) -> Array: ...

    def log_snr(self, t: Array) -> Array:
        r"""Return lambda(t).

        Args:
            t: times in [0, 1], a number or a floating array of any shape; halves are widened to float32, numbers give
                float64.

        Raises:
            TypeError: `t` is an integer array, or no array.
        """
        return self._call("log_snr", "t", self._log_snr, t)

    def time(self, log_snr: Array) -> Array:
        r"""Return t with lambda(t) = log_snr: the inverse of `log_snr`, for log-SNRs that the schedule reaches.

        Args:
            log_snr: a number or a floating array of any shape.

        Raises:
            TypeError: `log_snr` is an integer array, or no array.
        """
        return self._call("time", "log_snr", self._time, log_snr)

    def slope(self, t: Array) -> Array:
        r"""Return d lambda / d t, which is negative.

        Args:
            t: times in [0, 1], a number or a floating array of any shape.

        Raises:
            TypeError: `t` is an integer array, or no array.
        """
        return self._call("slope", "t", self._slope, t)

    def __call__(self, t: Array) -> Level:
        """Return the level at time t, in the schedule's scaling."""
        return levels.level(self.log_snr(t), self.scaling)

    def _call(self, method: str, argument: str, formula: Any, value: Array) -> Array:
        xp, array = _array.level_array(f"schedules.{type(self).__name__}.{method}", argument, value)
        with _array.quiet(xp):
            return _array.scalar(formula(xp, array))

    def _check(self, **limits: tuple[float, float]) -> None:
        """Raise ValueError for a field outside its open interval, or for an unknown scaling."""
        where = f"schedules.{type(self).__name__}"
        for field, (low, high) in limits.items():
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{where}: `{field}` is {value!r}, but takes a number")
            if not low < value < high:
                raise ValueError(f"{where}: `{field}` is {value!r}, but takes a number in ({low}, {high})")
        levels.check_scaling(where, self.scaling)

    def _check_order(self, low: str, high: str) -> None:
        if not getattr(self, low) < getattr(self, high):
            raise ValueError(
                f"schedules.{type(self).__name__}: `{low}` is {getattr(self, low)!r} and `{high}` is "
                f"{getattr(self, high)!r}, but the first must be smaller; exchange them"
            )


ANY = (-math.inf, math.inf)
POSITIVE = (0.0, math.inf)

frozen = dataclass(frozen=True, kw_only=True)
"""The form of every schedule."""
