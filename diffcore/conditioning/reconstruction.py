r"""Reconstruction guidance: x-hat moves so that its known part comes closer to the observation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from diffcore import _array, _brief, _check
from diffcore._array import Array
from diffcore._wrapping import along
from diffcore.conditioning._guided import Guided, Linear, Term, given, see
from diffcore.conditioning._observed import beside
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule

FUNCTION = "conditioning.reconstruction"


@dataclass(frozen=True, eq=False)
class Reconstruction(Guided):
    """A denoiser under reconstruction guidance: what `reconstruction` returns, which documents it."""

    function: ClassVar[str] = FUNCTION
    __repr__ = _brief.fields

    def shift(self, at: Linear) -> Array:
        """Return w alpha J^T A^T (x^a - A x-hat), 0 where elements are replaced."""
        xp = _array.library(at.x)
        pulled, replaced = xp.zeros_like(at.x), None
        for term in self.terms:
            seen = see(FUNCTION, term, at.x)
            weight = term.strength(at.level.log_snr) if callable(term.strength) else term.strength
            pulled = pulled + along(FUNCTION, weight, at.x) * seen.adjoint(seen.residual)
            if term.measure is None and term.mask is not None:
                known = beside(FUNCTION, "mask", term.mask, at.x, boolean=False) == 1
                replaced = known if replaced is None else replaced | known
        delta = along(FUNCTION, at.level.alpha, at.x) * at.pull(pulled)
        if replaced is not None:
            delta = xp.where(replaced, xp.zeros_like(delta), delta)
        return delta


def reconstruction(
    denoise: Callable[[Array, Array], Array],
    observed: Any,
    mask: Any = None,
    *,
    measure: Callable[[Array], Array] | None = None,
    weight: float | Callable[[Array], Array],
    prediction: Prediction | None = None,
    schedule: Schedule | None = None,
) -> Reconstruction:
    r"""Return a denoiser under reconstruction guidance, from any denoiser.

        x~ = x-hat - (w alpha / 2) grad_z || x^a - A(x-hat(z)) ||^2

    The gradient goes through the denoiser; the norm is a sum over each sample. Two uses, which combine:

    * **Known frames or pixels**: `mask`, no `measure`. A picks the known elements. Only the unknown ones move, by the
      gradient with respect to z^b, and z^a is still replaced: `dc.sample(..., constraint=replacement(observed, mask))`.
    * **A measurement**, linear or not: `measure`, such as `downsample(4)`. Every element moves, by the gradient with
      respect to all of z. A mask then selects the elements of the measurement that count.

    For both at once, wrap twice: `reconstruction(reconstruction(denoise, frames, mask, weight=9.0), low,
    measure=downsample(4), weight=5.0)`. The terms add up; the denoiser is called, and its gradient taken, once.

    It replaces q(x^a | z_t) by N(x-hat^a, (sigma^2 / alpha^2) / w): w = 1 is the derivation, the paper uses 9 to 50.
    With levels per frame, alpha is that of the element that moves.

    Args:
        denoise: (z, log_snr) -> prediction, differentiable; classifier-free guidance may be inside or around.
        observed: x^a, floating, broadcasts to the data (B, T, H, W, C), or to the measurement of it; entries outside
            the mask are not read.
        mask: booleans, or weights m in [0, 1], that broadcast likewise by NumPy's rule; true (1) is known. A weight in
            between multiplies w for that element. None means everything.
        measure: a differentiable function x -> array, (B, ...) -> (B, ...), that treats all samples the same.
        weight: w, 0 is off; or a function of log_snr, (), (B,) or (B, T), that returns w of that shape.
        prediction: what the denoiser returns, and so the wrapper: "x", "eps", "v", "score", "flow", "edm" or a row
            function. May be left out if the denoiser has the attribute.
        schedule: gives the scaling; may be left out in `diffcore.sample`, which takes the plan's.

    Returns:
        `Reconstruction`, a callable (z, log_snr) -> prediction with the attributes `prediction` and `scaling`; finite
        at lambda = +-inf.

    Raises:
        TypeError: `prediction` is missing; an argument that is not an array or a function; when called, NumPy arrays, which
            carry no gradients, unless the denoiser is one of `diffcore.exact`.
        ValueError: a weight that is not finite; a mask with numbers outside [0, 1]; shapes that do not broadcast.

    Source: Ho et al. 2022 (arXiv 2204.03458), eq. 7 and 8; Chung et al. 2023 (arXiv 2209.14687) for measurements that are
    not linear.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros(2), np.array([[1.0, 0.8], [0.8, 1.0]]))
    >>> x, mask = np.array([1.0, np.nan]), np.array([True, False])
    >>> guided = dc.conditioning.reconstruction(data, x, mask, weight=2.0, schedule=dc.schedules.Cosine())
    >>> guided(np.zeros((1, 2)), 0.0).round(4)
    array([[0.    , 0.4762]])
    """
    term = Term(observed, mask, measure, weight_of(FUNCTION, weight))
    return Reconstruction(*given(FUNCTION, Reconstruction, denoise, term, prediction, schedule))


def weight_of(function: str, weight: Any) -> float | Callable[[Array], Array]:
    """Return a weight, a finite number or a function, or raise."""
    if callable(weight):
        return weight  # type: ignore[no-any-return]
    return _check.number(function, "weight", weight, hint="or a function of log_snr")
