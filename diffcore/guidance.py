r"""Guidance without a classifier, and changes of x-hat: wrappers round any denoiser, and functions x -> x.

    guided = (1 + w) c - w u = u + scale (c - u),    scale = 1 + w

with c the prediction under the condition and u the one without it. Here `weight` is always w, 0 is off, and `scale` is
always 1 + w, 1 is off. c and u may be eps, x, v or score: at one z all of these are affine maps of one another and the
coefficients sum to one, so the result is the same; it is of the kind that the denoiser predicts.

Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6; Ho et al. 2022 (arXiv 2204.03458), eq. 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from diffcore import _array, _check
from diffcore._array import Array
from diffcore._pair import Denoiser, One, Two, merge
from diffcore._threshold import Clip, DynamicThreshold, clip, dynamic_threshold

__all__ = ["ClassifierFree", "Clip", "DynamicThreshold", "classifier_free", "clip", "dynamic_threshold"]

Weight = float | Array | Callable[[Array], Array]
"""A weight of guidance: a number, an array of shape (), (B,) or (B, T), or a function of log_snr."""

_FORWARDED = ("prediction", "scaling")


def classifier_free(
    denoise: Callable[..., Array],
    unconditional: Denoiser | None = None,
    *,
    cond: Any = None,
    null: Any = None,
    weight: Weight | None = None,
    scale: float | Array | None = None,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> ClassifierFree:
    r"""Return a denoiser with classifier-free guidance: (1 + w) c - w u.

    Two forms:

    * `classifier_free(denoise_cond, denoise_uncond, weight=w)`: two callables (z, log_snr).
    * `classifier_free(denoise, cond=c, null=n, weight=w)`: one callable (z, log_snr, cond), called once with a batch of
      2 B: first the samples with their condition, then the same samples with `null`.

    For a **negative condition** pass it as `null` (or as the second callable): guidance then leads away from it.

    Args:
        denoise: (z, log_snr) -> c, or, with `cond` and `null`, (z, log_snr, cond) -> prediction.
        unconditional: (z, log_snr) -> u.
        cond, null: arrays (B, ...), or dicts, tuples and lists of them, nested alike; a batch of 1 serves all samples.
        weight: w. A number; 0 is off, and calls no unconditional model. Or an array of shape (), (B,) or (B, T), one for
            each sample or frame, in NumPy or the library of z: it may be traced and carries gradients, and on JAX
            other values are no new trace. Or a function of log_snr, (), (B,) or (B, T), that returns w of that shape.
            Exactly one of weight and scale.
        scale: the other convention, u + scale (c - u): w = scale - 1, 1 is off; a number or an array.
        rescale: phi in [0, 1]; how far to bring the standard deviation of each sample back to that of c (Lin et al.). A
            sample without deviation is left as it is.
        interval: (low, high) in log-SNR, ends included; outside only the conditional pass runs (Kynkaanniemi et al.).

    Returns:
        A callable (z, log_snr) -> prediction that `diffcore.sample` takes, with the attributes `prediction` and
        `scaling` of the denoiser, where it has them.

    Raises:
        ValueError: neither or both of weight and scale; a weight that is not finite (of an array, where it is NumPy's);
            rescale or interval out of range; cond and null that differ in structure; two denoisers of different
            `prediction` or `scaling`; when called, a weight that does not align with the leading axes of z.
        TypeError: a denoiser that cannot be called; a weight that is neither a number nor an array; neither form;
            when called, a weight of another library than z.

    Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6; Lin et al. 2023 (arXiv 2305.08891), eq. 15-16; Kynkaanniemi et
    al. 2024 (arXiv 2404.07724), eq. 3.

    >>> import numpy as np
    >>> guided = classifier_free(lambda z, log_snr: z + 1.0, lambda z, log_snr: z, weight=2.0)
    >>> guided(np.zeros((1, 2)), 0.0)
    array([[3., 3.]])
    >>> one = classifier_free(lambda z, log_snr, cond: z + cond, cond=np.ones((1, 1)), null=np.zeros((1, 1)), scale=3.0)
    >>> one(np.zeros((1, 2)), 0.0)
    array([[3., 3.]])
    """
    function = "guidance.classifier_free"
    if (weight is None) == (scale is None):
        raise ValueError(f"{function}: give exactly one of `weight`, w of (1 + w) c - w u, and `scale` = 1 + w")
    if scale is not None:
        weight = _weight(function, "scale", scale) - 1.0
    elif not callable(weight):
        weight = _weight(function, "weight", weight)
    _check.number(function, "rescale", rescale, 0, 1)
    if interval is not None:
        interval = _check.interval(function, "interval", interval, equal=True, finite=False, hint="they are log-SNRs")
    _check.callable_(function, "denoise", denoise, "a function of (z, log_snr)")
    if unconditional is not None:
        _check.callable_(function, "unconditional", unconditional, "a function of (z, log_snr)")
    source: Two | One
    if unconditional is not None and cond is None and null is None:
        source = Two(denoise, unconditional)
        for name in _FORWARDED:
            own, other = (getattr(model, name, None) for model in (denoise, unconditional))
            if own is not None and other is not None and own != other:
                must = f"have the `{name}` of `denoise`, {own!r}"
                raise _check.error(ValueError, function, "unconditional", must, other)
    elif unconditional is None and cond is not None and null is not None:
        source = One(denoise, cond, null)
        merge(cond, null, 1, "")
    else:
        raise TypeError(f"{function}: give either (denoise_cond, denoise_uncond), or (denoise, cond=..., null=...)")
    assert weight is not None
    return ClassifierFree(source, weight, float(rescale), interval)


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """A denoiser under classifier-free guidance: what `classifier_free` returns, which documents the fields."""

    parts: ClassVar = ("source", "weight")
    source: Two | One
    weight: Weight
    rescale: float = 0.0
    interval: tuple[float, float] | None = None

    def __call__(self, z: Array, log_snr: Array) -> Array:
        """Return the guided prediction at z, of its shape and dtype.

        Outside the interval the unconditional pass is left out where that is known: on the host if `log_snr` is a
        number or a NumPy array, by a branch on the device on JAX. On torch, `at` decides; without it both passes run
        and the second is discarded.
        """
        if self.interval is None:
            return self._guided(z, log_snr, None)
        low, high = self.interval
        if _array.library(log_snr) is None or isinstance(log_snr, np.ndarray):
            active = (np.asarray(log_snr) >= low) & (np.asarray(log_snr) <= high)
            if not np.any(active):
                return self.source.conditional(z, log_snr)
            inside = None if np.all(active) else _array.library(z).asarray(active, device=_array.device(z))
            return self._guided(z, log_snr, inside)
        xp = _array.namespace("guidance.classifier_free", z=z, log_snr=log_snr)
        inside = (log_snr >= low) & (log_snr <= high)
        if _array.name(xp) == "torch":  # its `cond` runs both branches, and would call the model three times
            return self._guided(z, log_snr, inside)
        from diffcore._dispatch import backend_of

        guided: Array = backend_of(z).cond(xp.any(inside), self._guided, self._conditional, z, log_snr, inside)
        return guided

    def at(self, log_snr: Any) -> Denoiser:
        """Return the denoiser for a stage whose log-SNR, or all of them, is known on the host.

        `diffcore.sample` calls this before each stage, so that outside the interval only the conditional pass runs, on any
        library, and nothing waits for the device.

        >>> guided = classifier_free(lambda z, l: z, lambda z, l: 1 / 0, weight=2.0, interval=(0.0, 5.0))
        >>> guided.at(-3.0)(4.0, -3.0)
        4.0
        """
        source = self.source.at(log_snr)
        if self.interval is None:
            return self if source is self.source else replace(self, source=source)
        low, high = self.interval
        levels = np.asarray(log_snr)
        active = (levels >= low) & (levels <= high)
        if not np.any(active):
            return source.conditional
        return replace(self, source=source, interval=None if np.all(active) else self.interval)

    def apart(self, z: Array, log_snr: Array) -> tuple[Array, Array, float] | None:
        """Return (c, u, w) where guidance is c + w (c - u) with a number w and nothing else, for a kernel that computes it
        with the other parts of a step; else None.

        >>> guided = classifier_free(lambda z, l: z, lambda z, l: -z, weight=2.0)
        >>> guided.apart(1.0, 0.0), replace(guided, rescale=0.5).apart(1.0, 0.0)
        ((1.0, -1.0, 2.0), None)
        """
        if not isinstance(self.weight, float) or self.weight == 0.0 or self.rescale != 0.0 or self.interval is not None:
            return None
        return *self.source.both(z, log_snr), self.weight

    def with_unguided(self, z: Array, log_snr: Array) -> tuple[Array, Array]:
        """Return the guided prediction at z and the unconditional one, for plans that read both.

        >>> guided = classifier_free(lambda z, l: z, lambda z, l: -z, weight=2.0)
        >>> guided.with_unguided(np.ones((1, 1)), 0.0)
        (array([[5.]]), array([[-1.]]))
        """
        c, u = self.source.both(z, log_snr)
        given = replace(self, source=Two(lambda z, log_snr: c, lambda z, log_snr: u))  # noqa: ARG005
        return given(z, log_snr), u

    def __getattr__(self, name: str) -> Any:
        if name in _FORWARDED or name == "with_scaling":
            models = object.__getattribute__(self, "source").models
            if name == "with_scaling" and any(hasattr(model, name) for model in models):
                return self._with_scaling
            for model in models if name in _FORWARDED else ():
                if hasattr(model, name):
                    return getattr(model, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _with_scaling(self, scaling: str) -> ClassifierFree:
        scaled = self.source.map(lambda model: getattr(model, "with_scaling", lambda _: model)(scaling))
        return replace(self, source=scaled)

    def _conditional(self, z: Array, log_snr: Array, inside: Array) -> Array:  # noqa: ARG002
        return self.source.conditional(z, log_snr)

    def _guided(self, z: Array, log_snr: Array, inside: Array | None) -> Array:
        if isinstance(self.weight, float) and self.weight == 0.0:
            return self.source.conditional(z, log_snr)
        function = "guidance.classifier_free"
        xp = _array.namespace(function, z=z)
        c, u = self.source.both(z, log_snr)
        wide_c, wide_u = _array.widen(xp, c), _array.widen(xp, u)
        weight: Any = self.weight(log_snr) if callable(self.weight) else self.weight
        if inside is None:
            guided = wide_c + _along(function, weight, wide_c, xp) * (wide_c - wide_u)
            return xp.astype(self._rescaled(xp, guided, wide_c), c.dtype, copy=False)
        guided = self._rescaled(xp, wide_c + _along(function, weight, wide_c, xp) * (wide_c - wide_u), wide_c)
        _array.check_lead(function, "log_snr", tuple(inside.shape), tuple(c.shape))
        inside = xp.reshape(inside, tuple(inside.shape) + (1,) * (wide_c.ndim - inside.ndim))
        return xp.astype(xp.where(inside, guided, wide_c), c.dtype, copy=False)

    def _rescaled(self, xp: Any, guided: Array, c: Array) -> Array:
        """Return phi std(c) / std(guided) guided + (1 - phi) guided, the deviations over all axes but the first."""
        if self.rescale == 0.0:
            return guided
        axes = tuple(range(1, guided.ndim))
        wanted, found = (
            xp.mean((part - xp.mean(part, axis=axes, keepdims=True)) ** 2, axis=axes, keepdims=True)
            for part in (c, guided)
        )
        # the square root has no slope at 0, so it is not taken there
        zero, one = xp.zeros_like(found), xp.ones_like(found)
        positive, some = found > 0, (found > 0) & (wanted > 0)
        ratio = xp.sqrt(xp.where(some, wanted, one) / xp.where(some, found, one))
        ratio = xp.where(some, ratio, xp.where(positive, zero, one))
        return guided * (self.rescale * ratio + (1.0 - self.rescale))


def _along(function: str, weight: Any, data: Array, xp: Any) -> Any:
    if isinstance(weight, np.ndarray):
        weight = xp.asarray(weight, dtype=data.dtype, device=_array.device(data))
    _array.namespace(function, **{"the prediction": data, "weight": weight})
    weight = (
        weight.to(data.device) if hasattr(weight, "to") else weight
    )  # torch: a tensor of one number is often elsewhere
    return _array.along(function, "weight", weight, data, xp)


def _weight(function: str, argument: str, value: Any) -> Any:
    """Return a number as a finite float, and an array as it is, or raise TypeError or ValueError."""
    must = "be a finite number, or an array of them of shape (), (B,) or (B, T)"
    try:
        number = _array.library(value) is None
    except TypeError:
        raise _check.error(TypeError, function, argument, must, value) from None
    if isinstance(value, (bool, np.bool_)):
        raise _check.error(TypeError, function, argument, must, value)
    known = number or isinstance(value, np.ndarray)  # the values of other libraries are not read: they may be traced
    if known and not np.all(np.isfinite(value)):
        raise _check.error(ValueError, function, argument, must, value)
    return float(value) if number else value
