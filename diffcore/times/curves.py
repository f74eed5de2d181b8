"""Densities of times by curves of uniforms: SD3's mode and cosmap, Beta, and any density shifted towards noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffcore import _array, _check
from diffcore._array import Array
from diffcore._quantile import normal_quantile
from diffcore.schedules import _piecewise
from diffcore.times.densities import Density, Known


@dataclass(frozen=True)
class Mode(Known):
    r"""Times with a mode in the middle, or at the ends, and some density everywhere.

        t(u) = u + s (u - sin^2(pi u / 2)),   p(t) = 1 / (1 + s (1 - pi / 2 sin(pi u(t))))

    u(t) is found by search, to the precision of the dtype. The published formula is the same with 1 - u for u.

    Args:
        scale: s in [-1, 2 / (pi - 2)]; above 0 the mode is in the middle, 0 is uniform, below 0 more times are near the ends.

    Raises:
        ValueError: `scale` is out of range.

    Source: Esser et al. 2024 (arXiv 2403.03206), sec. 3.1, "mode sampling with heavy tails".

    >>> Mode()(0.5).round(9), Mode(0.5).density(0.5).round(6)
    (np.float64(0.5), np.float64(1.399381))
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        _check.number("times.Mode", "scale", self.scale, -1, 2.0 / (math.pi - 2.0))

    def _times(self, xp: Any, u: Array) -> Array:
        return u + self.scale * (u - xp.sin(0.5 * math.pi * u) ** 2)

    def _slope(self, xp: Any, u: Array) -> Array:
        return 1.0 + self.scale - (0.5 * math.pi * self.scale) * xp.sin(math.pi * u)

    def _log_density(self, xp: Any, t: Array) -> Array:
        return -xp.log(self._slope(xp, self._uniform(xp, t)))

    def _uniform(self, xp: Any, t: Array) -> Array:
        """Return u(t): each round keeps one of 32 parts of the interval, and a Newton step gives the gradient."""
        inner = xp.arange(1, 32, dtype=t.dtype, device=_array.device(t)) / 32.0
        u, width = xp.zeros_like(t), 1.0
        for _ in range(11 if str(t.dtype).endswith("float64") else 5):
            before = self._times(xp, u[..., None] + width * inner) < t[..., None]
            width = width / 32.0
            u = u + width * xp.sum(xp.astype(before, t.dtype), axis=-1)
        slope = self._slope(xp, u)
        steep = slope > 1e-3
        return u + xp.where(steep, t - self._times(xp, u), 0.0 * t) / xp.where(steep, slope, xp.ones_like(t))


@dataclass(frozen=True)
class CosMap(Known):
    r"""Times under which a flow has the log-SNRs that uniform times have on the cosine schedule.

        t(u) = 1 - 1 / (tan(pi u / 2) + 1),   p(t) = 2 / (pi (t^2 + (1 - t)^2))

    Source: Esser et al. 2024 (arXiv 2403.03206), sec. 3.1.

    >>> CosMap()(0.5).round(12), CosMap().density(0.5).round(6)
    (np.float64(0.5), np.float64(1.27324))
    """

    def _times(self, xp: Any, u: Array) -> Array:
        noise, signal = xp.sin(0.5 * math.pi * u), xp.sin(0.5 * math.pi * (1.0 - u))
        return noise / (noise + signal)

    def _log_density(self, xp: Any, t: Array) -> Array:
        return math.log(2.0 / math.pi) - xp.log(t**2 + (1.0 - t) ** 2)


@dataclass(frozen=True)
class Beta(Known):
    r"""t ~ Beta(a, b).

        p(t) = t^{a - 1} (1 - t)^{b - 1} / B(a, b)

    The quantile function has no closed form: logit t is read off a table in Phi^{-1}(u), with its slopes, to 1e-8 for u from
    1e-15 to 1 - 1e-15, and to 1e-9 for a and b above 0.3.

    Args:
        a, b: in [0.05, 10000]; a > b is towards noise, both below 1 are towards the ends.

    Raises:
        ValueError: `a` or `b` is out of range.

    Source: Black et al. 2024 (arXiv 2410.24164), app. B: pi_0 trains at a = 1.5, b = 1, on 0.999 of the range.

    >>> Beta(1.0, 2.0)(0.75).round(9), Beta(1.0, 2.0).density(0.25).round(9)
    (np.float64(0.5), np.float64(1.5))
    """

    a: float
    b: float
    _knots: tuple[np.ndarray[Any, np.dtype[np.float64]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            _check.number("times.Beta", name, getattr(self, name), 0.05, 1e4)
        from scipy.special import betaincinv, ndtr  # takes a while to import

        score = np.arange(-_WIDEST * _KNOTS, _WIDEST * _KNOTS + 1) / _KNOTS
        early = score < 0.0  # whichever of t and 1 - t is the quantile of the lower tail keeps its digits
        lower = np.where(early, betaincinv(self.a, self.b, ndtr(score)), betaincinv(self.b, self.a, ndtr(-score)))
        log_near, log_far = np.log(lower), np.log1p(-lower)
        log_t, log_rest = np.where(early, log_near, log_far), np.where(early, log_far, log_near)
        log_flow = self.a * log_t + self.b * log_rest - self._log_beta()  # log of p(t) t (1 - t)
        slope = np.exp(-0.5 * score**2 - 0.5 * math.log(2.0 * math.pi) - log_flow)
        object.__setattr__(self, "_knots", (log_t - log_rest, slope / _KNOTS))

    def _log_beta(self) -> float:
        return math.lgamma(self.a) + math.lgamma(self.b) - math.lgamma(self.a + self.b)

    def _times(self, xp: Any, u: Array) -> Array:
        place = _KNOTS * (normal_quantile(xp, u) + _WIDEST)
        most = 2.0 * _WIDEST * _KNOTS
        place = xp.where(place < 0.0, 0.0 * u, xp.where(place > most, most + 0.0 * u, place))
        value, slope = (_array.table_for(table, u) for table in self._knots)
        first, last, part = _piecewise.piece(xp, value, place)
        rise, fall, _ = _piecewise.piece(xp, slope, place)
        rest = 1.0 - part
        # the cubic with these values and slopes at both knots
        logit = first + (last - first) * part**2 * (3.0 - 2.0 * part) + part * rest * (rest * rise - part * fall)
        return 1.0 / (1.0 + xp.exp(-logit))

    def _inside(self, t: Array) -> Array:
        return (t > 0.0) & (t < 1.0)

    def _log_density(self, xp: Any, t: Array) -> Array:
        return (self.a - 1.0) * xp.log(t) + (self.b - 1.0) * xp.log1p(-t) - self._log_beta()


_WIDEST, _KNOTS = 8, 128
"""The table goes from -8 to 8 standard deviations, with so many knots for each."""


@dataclass(frozen=True)
class Shifted(Known):
    r"""The times of another density, shifted: as under a flow whose sigma is shifted.

        t' = s t / (1 + (s - 1) t),   p'(t') = p(t) s / (s (1 - t') + t')^2

    On `schedules.Flow` these times have the log-SNRs that the base's have on `schedules.shift(Flow(), -2 log s)`; of
    `LogitNormal(m, std)` they are `LogitNormal(m + log s, std)`. The dynamic shift by resolution is s = e^mu with mu =
    `grids.resolution_mu(tokens)`.

    Args:
        base: any density.
        shift: s, positive; above 1 towards noise.

    Raises:
        ValueError: `shift` is not positive.
        TypeError: `base` is not a density.

    Source: Esser et al. 2024 (arXiv 2403.03206), eq. 23.

    >>> from diffcore.times import LogitNormal
    >>> Shifted(LogitNormal(), 3.0)(0.5), Shifted(LogitNormal(), 3.0).density(0.75).round(6)
    (np.float64(0.75), np.float64(2.127692))
    """

    base: Density
    shift: float

    def __post_init__(self) -> None:
        what = "a density of diffcore.times, such as times.LogitNormal()"
        _check.instance("times.Shifted", "base", self.base, Density, what)
        _check.number("times.Shifted", "shift", self.shift, 0, open_low=True)

    def _times(self, _xp: Any, u: Array) -> Array:
        t = self.base(u)
        return self.shift * t / (1.0 - t + self.shift * t)

    def _log_density(self, xp: Any, t: Array) -> Array:
        below = self.shift * (1.0 - t) + t
        return _array.as_array(xp, self.base.log_density(t / below)) + math.log(self.shift) - 2.0 * xp.log(below)
