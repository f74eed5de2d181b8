"""A learned schedule: decreasing for any parameters."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffcore import _array, _check
from diffcore._array import Array
from diffcore.schedules import _piecewise
from diffcore.schedules._base import Pair, Schedule
from diffcore.schedules.tables import Table


@dataclass(frozen=True, kw_only=True, eq=False)
class Monotone(Schedule):
    r"""A learned schedule: decreasing for any parameters, and differentiable in them.

        lambda(k / K) = log_snr_max - (log_snr_max - log_snr_min) sum_{i <= k} softmax(increments)_i,  linear between

    Equal increments give `LinearLogSNR`. Gradients flow to the increments, and to ends that are arrays, wherever t (or
    the log-SNR) is an array of their library. For a number or a NumPy array it is evaluated on the host, in float64 and
    without a gradient, so grids and samplers take a learned schedule as it is; `table()` returns that host copy. With
    JAX it is a pytree: an argument of jitted functions, whose gradient with respect to it is another `Monotone`.

    Args:
        increments: K >= 1 free parameters, a 1-D floating array of any library.
        log_snr_min, log_snr_max: lambda at t = 1 and at t = 0; numbers, or 0-d arrays of that library if learned too.
        scaling: "vp", "ve" or "flow".

    Raises:
        ValueError: `increments` is not 1-D, ends given as numbers are out of order, or the scaling is unknown.
        TypeError: `increments` is not a floating array, or an end is neither a number nor a 0-d array.

    Source: the learned monotone schedule of Kingma et al. 2021 (arXiv 2107.00630), app. H, as straight lines.

    >>> import numpy as np
    >>> Monotone(increments=np.zeros(4)).log_snr(np.array([0.0, 0.25, 1.0]))
    array([ 10.,   5., -10.])
    """

    increments: Array
    log_snr_min: Any = -10.0
    log_snr_max: Any = 10.0
    scaling: str = "vp"

    def __post_init__(self) -> None:
        where = "schedules.Monotone"
        _array.namespace(where, increments=self.increments)
        if _array.library(self.increments) is None:
            raise _check.error(TypeError, where, "increments", "be a floating array of shape (K,)", self.increments)
        _array.check_floating(where, increments=self.increments)
        if len(self.increments.shape) != 1 or self.increments.shape[0] < 1:
            raise ValueError(f"{where}: `increments` must have shape (K,), K >= 1, got {tuple(self.increments.shape)}")
        ends = ("log_snr_min", "log_snr_max")
        for end in ends:
            value = getattr(self, end)
            if _array.library(value) is None:
                self._check_number(end)
            else:
                _array.namespace(where, increments=self.increments, **{end: value})
                _array.check_floating(where, **{end: value})
                if value.shape != ():
                    raise _check.error(TypeError, where, end, "be a number or a 0-d array", value)
        if all(isinstance(getattr(self, end), float) for end in ends):
            self._check_order(*ends)
        self._check_scaling()
        if _array.name(_array.library(self.increments)) == "jax":
            _register_with_jax(sys.modules["jax"])

    def table(self) -> Table:
        """Return the schedule at its current values as a `Table` of host numbers, which can be hashed and needs no framework.

        >>> import numpy as np
        >>> Monotone(increments=np.zeros(2)).table()
        Table(log_snrs=(10.0, 0.0, -10.0), scaling='vp')
        """
        return Table(log_snrs=tuple(self._knots(np, np.zeros(())).tolist()), scaling=self.scaling)

    def _knots(self, xp: Any, like: Array) -> Array:
        parts = {"increments": self.increments, "log_snr_min": self.log_snr_min, "log_snr_max": self.log_snr_max}
        if xp is np:
            parts = {
                argument: _array.to_host(part, np.float64, function="schedules.Monotone", argument=argument)
                for argument, part in parts.items()
            }
        else:
            _array.namespace("schedules.Monotone", increments=self.increments, t=like)
        raw, low, high = (
            part if isinstance(part, float) else xp.astype(part, like.dtype, copy=False) for part in parts.values()
        )
        shares = xp.exp(raw - xp.max(raw))
        # array_api_compat's cumulative_sum looks up the library, which makes torch.compile warn
        add_up = xp.cumsum if hasattr(xp, "cumsum") else xp.cumulative_sum
        done = add_up(shares / xp.sum(shares), axis=0)
        done = xp.concat([xp.zeros_like(done[:1]), done[:-1], xp.ones_like(done[:1])])
        return high * (1.0 - done) + low * done

    def _log_snr(self, xp: Any, t: Array, _rest: Array, /) -> Array:
        return _piecewise.log_snr(xp, self._knots(xp, t), t)

    def _time(self, xp: Any, log_snr: Array, /) -> Pair:
        return _piecewise.time(xp, self._knots(xp, log_snr), log_snr)

    def _slope(self, xp: Any, t: Array, _rest: Array, /) -> Array:
        return _piecewise.slope(xp, self._knots(xp, t), t)


@functools.cache
def _register_with_jax(jax: Any) -> None:
    """Register `Monotone` as a pytree, once; JAX is imported already, or there would be no JAX array."""

    def unflatten(scaling: str, children: tuple[Any, ...]) -> Monotone:
        made = object.__new__(Monotone)  # JAX also builds trees of placeholders, which would fail the checks
        for field, value in zip(
            ("increments", "log_snr_min", "log_snr_max", "scaling"), (*children, scaling), strict=True
        ):
            object.__setattr__(made, field, value)
        return made

    jax.tree_util.register_pytree_node(
        Monotone, lambda self: ((self.increments, self.log_snr_min, self.log_snr_max), self.scaling), unflatten
    )
