r"""Replacement: the known elements of the state are overwritten after each stage by their noised observation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diffcore import _array, _brief, _check
from diffcore._array import Array
from diffcore.conditioning._observed import check, known_of
from diffcore.denoiser import Noise
from diffcore.plan import Plan
from diffcore.plan.known import BEFORE, CLEAN, NOISE
from diffcore.stage import combine
from diffcore.state import State

VARIANTS = ("marginal", "posterior")


@dataclass(frozen=True, eq=False)
class Replacement:
    """The known elements of x, for `diffcore.sample(..., constraint=...)`: see `replacement`, which documents the fields."""

    observed: Any
    mask: Any
    variant: str = "marginal"
    __repr__ = _brief.fields

    def __post_init__(self) -> None:
        function = "conditioning.replacement"
        _check.choice(function, "variant", self.variant, VARIANTS)
        check(function, self.observed, self.mask)

    def hold(self, plan: Plan, z: Array) -> Known:
        """Return the known elements for a run of the plan, in the library and shape of its states; the loop calls it."""
        x, known = known_of("conditioning.replacement", self.observed, self.mask, z)
        xp = _array.library(z)
        if known.dtype != xp.bool:  # the last state at which each element is held, of N + 1; -1 for none
            known = xp.where(known > 0, xp.floor(known * len(plan) + 1e-3), -xp.ones_like(known))
        table = np.array(plan.known[self.variant])  # a copy: torch warns of read-only arrays
        return Known(x, known, _array.table_for(table, z))


@dataclass(frozen=True, eq=False)
class Known:
    """The known elements in a run: x^a (0 elsewhere) of at least float32, which elements are known (for a soft mask until
    which state), and the table of `diffcore.plan.known`: the coefficients for the start, then those after each stage."""

    parts: ClassVar = ("x", "known", "table")
    x: Array
    known: Array
    table: Array
    __repr__ = _brief.fields

    @property
    def overwrites(self) -> tuple[Array, Array, Array]:
        """What is overwritten with what, for a kernel that does it; see `denoiser.Held`."""
        return self.x, self.known, self.table

    def begin(self, state: State, noise: Noise) -> Array:
        """Return z of a start, with its known elements at the level of the start."""
        return self._overwritten(state.z, state.z, 0, noise)

    def after(self, before: State, state: State, noise: Noise) -> Array:
        """Return z after a stage, with its known elements at the level that it leads to."""
        return self._overwritten(state.z, before.z, before.index + 1, noise)

    def _overwritten(self, z: Array, before: Array, at: Any, noise: Noise) -> Array:
        xp, number = _array.namespace("step", z=z, before=before, observed=self.x), _array.known_int(at)
        row: Any = _array.take_row(self.table, at, z) if number is None else self.table[number]
        if xp is np and row.ndim == 1:
            row = row.tolist()
        of_before, of_x, of_noise = row if isinstance(row, list) else (row[..., at] for at in (BEFORE, CLEAN, NOISE))
        quiet = isinstance(of_noise, float) and of_noise == 0.0
        wide, noisy = _array.widen(xp, before), None if quiet else _array.widen(xp, noise())
        value = combine(xp, wide, [(of_before, wide), (of_x, self.x), (of_noise, noisy)])
        known = self.known if self.known.dtype == xp.bool else self.known >= at
        return xp.where(known, xp.astype(value, z.dtype, copy=False), z)


def replacement(observed: Any, mask: Any, *, variant: str = "marginal") -> Replacement:
    r"""Return a constraint that holds the known elements of a run, x = (x^a, x^b) with x^a known.

        marginal:   z_s^a ~ q(z_s^a | x^a)           = N(alpha_s x^a, sigma_s^2)
        posterior:  z_s^a ~ q(z_s^a | x^a, z_t^a),   see `process.posterior`

    with s the level that a stage t -> s goes to; so at every call the denoiser sees z^a at its level. The start is at
    q(z^a | x^a). The run ends on x^a exactly, even if the plan ends before clean data; only a plan whose last stage
    goes towards more noise ends on noised x^a. The noise has its own stream, independent of the sampler's, of a
    corrector's, and of the start's.

    By itself, replacement is biased: z^b is denoised by E[x^b | z_t], where x^a appears only through its noise. Use it
    with `reconstruction`; `moment_matching` does not need it.

    Args:
        observed: x^a, a floating array that broadcasts to the data (B, T, H, W, C); entries outside the mask are not
            read. Used as it is, in or out of [-1, 1]. NumPy, or of the data's library.
        mask: booleans, or weights m in [0, 1], that broadcast to the data by NumPy's rule; true (1) is known. `frames` makes
            one. A weight in between is a strength: the element is held for the first share m of the run's stages, at the
            level of each, and is free after that.
        variant: "marginal", or "posterior", which keeps the noise of z^a correlated from level to level.

    Returns:
        `Replacement`, for `constraint=` of `diffcore.sample`, `start` and `step`. The plan's memory is left alone: a plan
        acts element by element, so memory of z^a affects no other element.

    Raises:
        TypeError: `observed` has an integer dtype; it or the mask is not an array.
        ValueError: another variant; a mask with numbers outside [0, 1]; shapes that do not broadcast, together, or
            to the data; a known element that is not finite.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 3.1; Song et al. 2021 (arXiv 2011.13456), app. I.2;
    Levin & Fried 2023 (arXiv 2306.00950), sec. 3, for strengths per element.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros(3), 1.0)
    >>> known = dc.conditioning.replacement(np.array([0.5, np.nan, np.nan]), np.array([True, False, False]))
    >>> plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=8)
    >>> dc.sample(data, plan, shape=(2, 3), seed=7, constraint=known)[:, 0]
    array([0.5, 0.5], dtype=float32)
    """
    return Replacement(observed, mask, variant)
