"""The denoiser under classifier-free guidance, and the parts that rules share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from diffcore import _array, _brief, _check, _layout, _rescale, _wrapping
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore.guidance import _weights
from diffcore.guidance._sources import Apart, Denoiser, Together
from diffcore.guidance._weights import Weight

FUNCTION = "guidance.classifier_free"
_FORWARDED = ("prediction", "scaling")


class Sourced:
    """A base of wrappers that are dataclasses with a field `source`, whose models' attributes they have."""

    source: Apart | Together

    def at(self, log_snr: Any) -> Any:
        """Return the denoiser for a stage whose log-SNR is known on the host; see `ClassifierFree.at`."""
        source = self.source.at(log_snr)
        return self if source is self.source else replace(self, source=source)  # type: ignore[type-var]

    def __getattr__(self, name: str) -> Any:
        if name in _FORWARDED or name == "with_scaling":
            models = self.__dict__["source"].models  # which torch traces, as it does no `__getattribute__`
            if name == "with_scaling" and any(hasattr(model, name) for model in models):
                return self._with_scaling
            for model in models if name in _FORWARDED else ():
                if hasattr(model, name):
                    return getattr(model, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _with_scaling(self, scaling: str) -> Self:
        source = self.source.map(lambda model: _wrapping.scaled(model, scaling))
        return replace(self, source=source)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class ClassifierFree(Sourced):
    """A denoiser under classifier-free guidance: what `classifier_free` returns, which documents the fields."""

    parts: ClassVar = ("source", "weight")
    source: Apart | Together
    weight: Weight
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    __repr__ = _brief.fields

    def __call__(self, z: Array, log_snr: Array) -> Array:
        """Return the guided prediction at z, of its shape and dtype.

        Outside the interval the unconditional pass is left out where that is known: on the host if `log_snr` is a
        number or a NumPy array, by a branch on the device on JAX. On torch, `at` decides; without it both passes run
        and the second is discarded.
        """
        return self._branch(self._guided, self._conditional, z, log_snr)

    def at(self, log_snr: Any) -> Denoiser:
        """Return the denoiser for a stage whose log-SNR, or all of them, is known on the host.

        `diffcore.sample` calls this before each stage, so that outside the interval only the conditional pass runs, on any
        library, and nothing waits for the device.

        >>> from diffcore.guidance import classifier_free
        >>> guided = classifier_free(lambda z, l: z, lambda z, l: 1 / 0, weight=2.0, interval=(0.0, 5.0))
        >>> guided.at(-3.0)(4.0, -3.0)
        4.0
        """
        if self.interval is None or _array.traced():  # whose numbers are not known: the call decides
            return super().at(log_snr)  # type: ignore[no-any-return]
        source, (low, high) = self.source.at(log_snr), self.interval
        found = np.asarray(log_snr)
        active = (found >= low) & (found <= high)
        if not np.any(active):
            return source.conditional
        return replace(self, source=source, interval=None if np.all(active) else self.interval)

    def apart(self, z: Array, log_snr: Array) -> tuple[Array, Array, float, float] | None:
        """Return (c, u, w, phi) where guidance is c + w (c - u) with a number w, rescaled by phi, and nothing else, for a kernel
        that computes it with the other parts of a step; else None.

        >>> from diffcore.guidance import classifier_free
        >>> guided = classifier_free(lambda z, l: z, lambda z, l: -z, weight=2.0)
        >>> guided.apart(1.0, 0.0), replace(guided, interval=(0.0, 1.0)).apart(1.0, 0.0)
        ((1.0, -1.0, 2.0, 0.0), None)
        """
        if not isinstance(self.weight, float) or self.weight == 0.0 or self.interval is not None:
            return None
        c, u = self.source.all(z, log_snr)
        return c, u, self.weight, self.rescale

    def with_unguided(self, z: Array, log_snr: Array) -> tuple[Array, Array]:
        """Return the guided prediction at z and the unconditional one, for plans that read both; outside the interval the
        conditional prediction is both.

        >>> from diffcore.guidance import classifier_free
        >>> guided = classifier_free(lambda z, l: z, lambda z, l: -z, weight=2.0)
        >>> guided.with_unguided(np.ones((1, 1)), 0.0)
        (array([[5.]]), array([[-1.]]))
        """

        def both(z: Array, log_snr: Array, inside: Array | None) -> tuple[Array, Array]:
            c, u = self._both(z, log_snr)
            return self._between(z, log_snr, c, u, inside), chosen(z, inside, u, c)

        def alone(z: Array, log_snr: Array, inside: Array | None) -> tuple[Array, Array]:
            c = self._conditional(z, log_snr, inside)
            return c, c

        return self._branch(both, alone, z, log_snr)  # type: ignore[no-any-return]

    def _branch(self, guided: Any, conditional: Any, z: Array, log_snr: Array, *carried: Any) -> Any:
        """Return guided(z, log_snr, inside, ...) or conditional(...), which take the same; `inside` is None where all is."""
        if self.interval is None:
            return guided(z, log_snr, None, *carried)
        low, high = self.interval
        if _array.library(log_snr) is None or isinstance(log_snr, np.ndarray):
            active = (np.asarray(log_snr) >= low) & (np.asarray(log_snr) <= high)
            if not np.any(active):
                return conditional(z, log_snr, None, *carried)
            inside = None if np.all(active) else _array.library(z).asarray(active, device=_array.device(z))
            return guided(z, log_snr, inside, *carried)
        xp = _array.namespace(FUNCTION, z=z, log_snr=log_snr)
        inside = (log_snr >= low) & (log_snr <= high)
        if _array.name(xp) == "torch":  # its `cond` runs both branches, and would call the model three times
            return guided(z, log_snr, inside, *carried)
        return backend_of(z).cond(xp.any(inside), guided, conditional, z, log_snr, inside, *carried)

    def _conditional(self, z: Array, log_snr: Array, inside: Array | None) -> Array:  # noqa: ARG002
        return self.source.conditional(z, log_snr)

    def _guided(self, z: Array, log_snr: Array, inside: Array | None) -> Array:
        if _weights.is_off(self.weight):
            return self.source.conditional(z, log_snr)
        c, u = self._both(z, log_snr)
        return self._between(z, log_snr, c, u, inside)

    def _both(self, z: Array, log_snr: Array) -> tuple[Array, Array]:
        """Return (c, u), with whole samples in every process where what follows reads more of them than single elements."""
        c, u = self.source.all(z, log_snr)
        return (_layout.samples(c), _layout.samples(u)) if self._reads_samples else (c, u)

    @property
    def _reads_samples(self) -> bool:
        return self.rescale != 0.0

    def _between(self, z: Array, log_snr: Array, c: Array, u: Array, inside: Array | None) -> Array:
        xp = _array.namespace(FUNCTION, z=z)
        wide_c = _array.widen(xp, c)
        guided = self._rescaled(xp, self._combined(xp, z, log_snr, wide_c, _array.widen(xp, u)), wide_c)
        return chosen(z, inside, xp.astype(guided, c.dtype, copy=False), c)

    def _combined(self, xp: Any, z: Array, log_snr: Array, c: Array, u: Array) -> Array:  # noqa: ARG002
        return c + _weights.along(FUNCTION, self.weight, log_snr, c, xp) * (c - u)

    def _rescaled(self, xp: Any, guided: Array, c: Array) -> Array:
        return guided if self.rescale == 0.0 else guided * _rescale.factor(xp, guided, c, self.rescale)


def check_alike(function: str, argument: str, denoise: Any, other: Any) -> None:
    """Raise where two denoisers predict differently, or are for two scalings."""
    for name in _FORWARDED:
        own, found = (getattr(model, name, None) for model in (denoise, other))
        if own is not None and found is not None and own != found:
            raise _check.error(ValueError, function, argument, f"have the `{name}` of `denoise`, {own!r}", found)


def chosen(z: Array, inside: Array | None, guided: Array, c: Array) -> Array:
    """Return what is guided inside the interval, and c outside."""
    if inside is None:
        return guided
    xp = _array.namespace(FUNCTION, z=z)
    _array.check_lead(FUNCTION, "log_snr", tuple(inside.shape), tuple(c.shape))
    return xp.where(xp.reshape(inside, tuple(inside.shape) + (1,) * (c.ndim - inside.ndim)), guided, c)
