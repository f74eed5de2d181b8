r"""A linear measurement by its singular value decomposition A = U S V^T, and what was observed in that basis.

    U^T y = S V^T x + noise,    so  x-bar = S^{-1} U^T y = V^T x + noise of deviation s / S

Each direction is then an element of its own that is known, more or less, or is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diffcore import _array, _brief, _check
from diffcore._array import Array
from diffcore.conditioning._observed import check, deviation_of, known_of
from diffcore.conditioning.measurements import Svd
from diffcore.plan import Plan

SMALL = 1e-10
"""Singular values below this, times the largest, count as 0."""


@dataclass(frozen=True)
class Same:
    """The decomposition of the identity, for a mask without a measurement."""

    values: float = 1.0
    aligned: bool = True
    __repr__ = _brief.fields

    def seen(self, y: Array) -> Array:
        """Return y."""
        return y

    into = out = seen


def svd_of(function: str, measure: Any) -> Svd | Same:
    """Return the decomposition of a measurement, or raise where it has none."""
    if measure is None:
        return Same()
    if not callable(getattr(measure, "svd", None)):
        must = "be downsample(f), frame_average(k) or linear(...), or have a method `svd`"
        hint = "pigdm, moment_matching and diffpir take any measurement"
        raise _check.error(TypeError, function, "measure", must, measure, hint)
    found: Svd = measure.svd()
    return found


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What was observed, in the basis of V: x-bar (0 where nothing is known), its deviation, and what is known."""

    parts: ClassVar = ("x", "deviation", "known", "values")
    x: Array
    deviation: Array
    known: Array
    values: Array
    """S, 1 where nothing is known."""
    measure: Any
    __repr__ = _brief.fields

    def into(self, x: Array) -> Array:
        """Return V^T x."""
        return x if self.measure is None else self.measure.svd().into(x)

    def out(self, c: Array) -> Array:
        """Return V c."""
        return c if self.measure is None else self.measure.svd().out(c)

    def moved(self, z: Array, target: Array) -> Array:
        """Return z with its known directions at a target, and all others as they are."""
        xp = _array.library(z)
        if self.measure is None:
            return xp.where(self.known, xp.astype(target, z.dtype, copy=False), z)
        wide = _array.widen(xp, z)
        svd = self.measure.svd()
        step = xp.where(self.known, target - svd.into(wide), xp.zeros_like(target))
        return xp.astype(wide + svd.out(step), z.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Measured:
    """The arguments that the constraints share, checked."""

    observed: Any
    mask: Any
    measure: Any
    noise_std: float
    __repr__ = _brief.fields

    def spectrum(self, function: str, z: Array) -> Spectrum:
        """Return what was observed for states like z."""
        xp = _array.check_data(function, z=z)
        svd, wide = svd_of(function, self.measure), _array.widen(xp, z)
        found = wide if self.measure is None else self.measure(wide)
        if self.mask is not None and not svd.aligned:
            hint = "drop the rows of the matrix that are not observed"
            raise _check.error(ValueError, function, "mask", "be None for this measurement", self.mask, hint)
        truth, weight = known_of(function, self.observed, self.mask, found)
        values = svd.values if isinstance(svd.values, float) else xp.asarray(np.array(svd.values), dtype=found.dtype)
        if not isinstance(values, float) and _array.device(wide) is not None:
            values = xp.asarray(values, device=_array.device(wide))
        coefficients = svd.seen(truth)
        values = values * xp.ones_like(coefficients)
        known = values > SMALL * float(np.max(svd.values))
        root = xp.ones_like(values)
        if svd.aligned:
            known = known & (weight if weight.dtype == xp.bool else weight > 0)
            if weight.dtype != xp.bool:
                root = xp.sqrt(xp.where(known, weight, root))
        safe, zero = xp.where(known, values, xp.ones_like(values)), xp.zeros_like(values)
        x = xp.where(known, coefficients / safe, zero)
        return Spectrum(x, xp.where(known, self.noise_std / (safe * root), zero), known, safe, self.measure)


def measured(function: str, observed: Any, mask: Any, measure: Any, noise_std: Any) -> Measured:
    """Return the checked arguments of a constraint."""
    check(function, observed, mask)
    svd_of(function, measure)
    return Measured(observed, mask, measure, deviation_of(function, noise_std, mask))


def check_plan(function: str, plan: Plan) -> None:
    """Raise for a plan whose levels differ between samples or frames: directions need not stay within one."""
    _check.instance(function, "plan", plan, Plan, "a diffcore.Plan, see diffcore.samplers")
    if plan.lead:
        raise _check.error(ValueError, function, "plan", "have levels of shape ()", plan.lead)


def row_of(table: Array, at: Any, z: Array) -> list[Any]:
    """Return the entries of a row of the table, whose number may be traced."""
    number = _array.known_int(at)
    row = _array.take_row(table, at, z) if number is None else table[number]
    return [row[column] for column in range(row.shape[0])]
