"""What the closed-form denoisers share: levels along the data, the scaling, and quantities that follow from x-hat."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from diffcore import _array, levels
from diffcore._array import Array
from diffcore.levels import Level


@dataclass(frozen=True)
class Aligned:
    """A level ready to meet data z of shape (B, *event)."""

    xp: Any
    alpha: Array
    sigma: Array
    lead: int


class Denoiser(ABC):
    """A distribution of data that is at once its own denoiser, E[x | z_t].

    `scaling` None follows the plan in `diffcore.sample` and is "vp" in a call of one's own.
    """

    prediction: ClassVar[str] = "x"
    scaling: str | None
    event: tuple[int, ...]

    @abstractmethod
    def denoise(self, z: Array, log_snr: Array) -> Array:
        """Return E[x | z_t]."""

    @abstractmethod
    def log_likelihood(self, z: Array, log_snr: Array) -> Array:
        """Return log q(z_t) in nats, (B,)."""

    def __call__(self, z: Array, log_snr: Array) -> Array:
        """Return E[x | z_t], the best possible prediction of x; see `denoise`."""
        return self.denoise(z, log_snr)

    def with_scaling(self, scaling: str) -> Self:
        """Return the same distribution, as a denoiser for another scaling."""
        levels.check_scaling(f"exact.{type(self).__name__}.with_scaling", scaling)
        return replace(self, scaling=scaling)  # type: ignore[type-var]

    def score(self, z: Array, log_snr: Array) -> Array:
        r"""Return grad log q(z_t) = (alpha x-hat - z) / sigma^2 (Tweedie's formula), of the shape of z.

        Source: Efron 2011 (doi 10.1198/jasa.2011.tm11181), eq. 1.4.
        """
        at, wide, dtype = self._enter("score", z, log_snr)
        x = _array.widen(at.xp, self.denoise(wide, log_snr))
        return at.xp.astype((at.alpha * x - wide) / at.sigma**2, dtype, copy=False)

    def _enter(self, method: str, z: Array, log_snr: Array) -> tuple[Aligned, Array, Any]:
        """Return the level along z, z in the dtype it is computed in, and its own dtype."""
        function = f"exact.{type(self).__name__}.{method}"
        xp = _array.namespace(function, z=z)
        _array.check_floating(function, z=z)
        if tuple(z.shape[1:]) != self.event:
            raise ValueError(
                f"{function}: `z` has shape {tuple(z.shape)}, but takes (B, {', '.join(map(str, self.event))})"
            )
        wide = _array.widen(xp, z)
        level = self.level(log_snr, xp, wide)
        lead = len(getattr(level.alpha, "shape", ()))
        alpha, sigma = (self._along(xp, part, wide) for part in (level.alpha, level.sigma))
        return Aligned(xp, alpha, sigma, lead), wide, z.dtype

    def level(self, log_snr: Array, xp: Any, like: Array) -> Level:
        """Return the level, in the data's library: a host number or array is taken along."""
        if _array.library(log_snr) is not xp:
            log_snr = xp.asarray(log_snr, dtype=like.dtype, device=_array.device(like))
        return levels.level(log_snr, self.scaling or "vp")

    @staticmethod
    def _along(xp: Any, part: Array, like: Array) -> Array:
        found = _array.along("exact", "log_snr", part, like, xp)
        if isinstance(found, float):
            return xp.full((1,) * like.ndim, found, dtype=like.dtype, device=_array.device(like))
        return (
            xp.reshape(found, (1,) * (like.ndim - found.ndim) + tuple(found.shape)) if found.ndim < like.ndim else found
        )
