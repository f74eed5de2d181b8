r"""Classifier guidance: x-hat moves along the gradient of log p(c | z_t)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diffcore import _array, _brief, _check, _wrapping
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore.guidance import _weights
from diffcore.guidance._weights import Weight
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule

FUNCTION = "guidance.classifier"


@dataclass(frozen=True, eq=False)
class Classifier(_wrapping.Staged, _wrapping.Scaled):
    """A denoiser under classifier guidance: what `classifier` returns, which documents it."""

    parts: ClassVar = ("denoise", "log_prob", "gradient", "weight")
    denoise: Callable[[Array, Array], Array]
    log_prob: Any
    gradient: Any
    weight: Weight
    prediction: Prediction
    scaling: str | None
    __repr__ = _brief.fields

    def __call__(self, z: Array, log_snr: Array) -> Array:
        """Return the guided prediction at z, of its shape and dtype."""
        y = self.denoise(z, log_snr)
        return y if _weights.is_off(self.weight) else self._moved(z, log_snr, y)

    def with_unguided(self, z: Array, log_snr: Array) -> tuple[Array, Array]:
        """Return the guided prediction at z and the one without guidance, for plans that read both."""
        y = self.denoise(z, log_snr)
        return self._moved(z, log_snr, y), y

    def _moved(self, z: Array, log_snr: Array, y: Array) -> Array:
        xp = _array.namespace(FUNCTION, z=z, y=y)
        wide = _array.widen(xp, z)
        slope = _array.widen(xp, self._slope(z, wide, log_snr))
        _check.equal_shapes(FUNCTION, "it is the gradient of log p(c | z)", z=z, gradient=slope)
        level = _wrapping.level_of(FUNCTION, log_snr, self.scaling)
        mixing = _wrapping.mixing(FUNCTION, level, self.prediction, "eps", wide)
        sigma = _wrapping.along(FUNCTION, level.sigma, wide)
        w = _weights.along(FUNCTION, self.weight, log_snr, wide, xp)
        return xp.astype(_array.widen(xp, y) - mixing.back * sigma * w * slope, y.dtype, copy=False)

    def _slope(self, z: Array, wide: Array, log_snr: Array) -> Array:
        if self.gradient is not None:
            return self.gradient(z, log_snr)
        xp = _array.library(z)
        if isinstance(z, np.ndarray):
            raise TypeError(f"{FUNCTION}: NumPy arrays carry no gradients; give `gradient`, or use torch or JAX arrays")
        value, pull = backend_of(z).gradient(
            lambda at: _array.widen(xp, self.log_prob(xp.astype(at, z.dtype, copy=False), log_snr)), wide
        )
        if tuple(value.shape) != (z.shape[0],):
            must = f"return one log-probability for each sample, of shape ({z.shape[0]},)"
            raise _check.error(ValueError, FUNCTION, "log_prob", must, value)
        return pull(xp.ones_like(value))


def classifier(
    denoise: Callable[[Array, Array], Array],
    log_prob: Callable[[Array, Array], Array] | None = None,
    *,
    gradient: Callable[[Array, Array], Array] | None = None,
    weight: Weight = 1.0,
    prediction: Prediction | None = None,
    schedule: Schedule | None = None,
) -> Classifier:
    r"""Return a denoiser under classifier guidance, from any denoiser.

        eps~ = eps - w sigma grad_z log p(c | z_t),    x~ = x-hat + w (sigma^2 / alpha) grad_z log p(c | z_t)

    At w = 1, with the classifier of the noisy data, this is E[x | z_t, c] exactly. Since log p(c | z_t) is
    log p(z_t | c) - log p(z_t) but for a constant, it is classifier-free guidance with scale = w.

    Args:
        denoise: (z, log_snr) -> prediction, without the condition.
        log_prob: (z, log_snr) -> log p(c | z_t) of each sample, (B,), up to a constant; torch and JAX differentiate it.
        gradient: instead of `log_prob`, (z, log_snr) -> its gradient, of the shape of z; any library.
        weight: w, 0 is off: a number, an array of shape (), (B,) or (B, T), or a function of log_snr.
        prediction: what the denoiser returns, and so the wrapper; may be left out if the denoiser has the attribute.
        schedule: gives the scaling; may be left out in `diffcore.sample`, which takes the plan's.

    Returns:
        A callable (z, log_snr) -> prediction with the attributes `prediction` and `scaling`. At alpha = 0, where z says nothing of
        c, it is the denoiser's own.

    Raises:
        TypeError: neither or both of `log_prob` and `gradient`; `prediction` is missing; when called, NumPy arrays with
            `log_prob`, which carry no gradients.
        ValueError: a weight that is not finite; when called, a log-probability that is not (B,), or a gradient of another shape
            than z; a scaling that is not known.

    Source: Dhariwal & Nichol 2021 (arXiv 2105.05233), eq. 14; Song et al. 2021 (arXiv 2011.13456), sec. 5.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros(1), 1.0)                     # c = x + unit noise, seen as 1
    >>> slope = lambda z, log_snr: (1.0 - z * 0.5**0.5) * 0.5**0.5 / 1.5  # c | z_t ~ N(alpha z, sigma^2 + 1)
    >>> guided = classifier(data, gradient=slope, schedule=dc.schedules.Cosine())
    >>> guided(np.zeros((1, 1)), 0.0).round(4)
    array([[0.3333]])
    """
    if (log_prob is None) == (gradient is None):
        raise TypeError(f"{FUNCTION}: give exactly one of `log_prob`, which is differentiated, and `gradient`")
    for name, function in (("log_prob", log_prob), ("gradient", gradient)):
        if function is not None:
            _check.callable_(FUNCTION, name, function, "a function of (z, log_snr)")
    w = _weights.check(FUNCTION, "weight", weight)
    denoise, kind, scaling = _wrapping.given(FUNCTION, denoise, prediction, schedule)
    return Classifier(denoise, log_prob, gradient, w, kind, scaling)
