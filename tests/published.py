"""What loops of published samplers share: the coordinates that they are written in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from trace_cases import Grid, Loop

import diffcore as dc

Published = Callable[..., Any]
"""(model, z, sigmas, draw, flow) -> z, model(z, sigma) -> x-hat; under "flow" sigma is that of alpha = 1 - sigma."""


def published(method: Published) -> Callable[..., Loop]:
    """Make a loop over a grid of one over sigmas: in z / alpha over sigma / alpha, or z over sigma under "flow"."""

    def make(g: Grid, **settings: Any) -> Loop:
        flow = g.scaling == "flow"
        sigmas = g.sigma if flow else g.sigma / g.alpha

        def loop(denoise: Any, z: Any, draw: Any) -> Any:
            def model(u: Any, sigma: Any) -> Any:
                log_snr = 2.0 * (math.log1p(-sigma) - math.log(sigma) if flow else -math.log(sigma))
                return denoise(u if flow else dc.levels.level(log_snr, g.scaling).alpha * u, log_snr)

            u = method(model, z if flow else z / g.alpha[0], sigmas, draw, flow=flow, **settings)
            return u if flow else g.alpha[-1] * u

        return loop

    return make


def in_half(method: Published) -> Callable[..., Loop]:
    """Make a loop over a grid of one in z / alpha over sigma / alpha under every scaling."""

    def make(g: Grid, **settings: Any) -> Loop:
        def loop(denoise: Any, z: Any, draw: Any) -> Any:
            def model(u: Any, sigma: Any) -> Any:
                log_snr = -2.0 * math.log(sigma)
                return denoise(dc.levels.level(log_snr, g.scaling).alpha * u, log_snr)

            return g.alpha[-1] * method(model, z / g.alpha[0], g.sigma / g.alpha, draw, **settings)

        return loop

    return make


def exponential(method: Any) -> Published:
    """A step of an exponential method (model, z, t, s) on each pair, x-hat for the step to clean data."""

    def whole(model: Any, z: Any, sigmas: Any, draw: Any, **settings: Any) -> Any:
        for t, s in itertools.pairwise(sigmas):
            z = model(z, t) if s == 0.0 else method(model, z, t, s, draw, **settings)
        return z

    return whole


def descend(t: float, s: float, eta: float, flow: bool) -> tuple[float, float, float]:
    """What a step goes down to, the factor of it, and the noise that leads up again."""
    if flow:
        down = s * (1.0 + eta * (s / t - 1.0))
        factor = (1.0 - s) / (1.0 - down)
        return down, factor, math.sqrt(max(s**2 - (factor * down) ** 2, 0.0))
    up = min(s, eta * math.sqrt(s**2 * (t**2 - s**2) / t**2))
    return math.sqrt(s**2 - up**2), 1.0, up


def lower(g: Grid, k: int, eta: float) -> tuple[Any, Any, Any]:
    """The level that step k goes down to, and the factors of z and of the noise that lead up again."""
    flow = g.scaling == "flow"
    sigma = [float(g.sigma[j]) if flow else g.ratio(j) for j in (k, k + 1)]
    down, factor, up = descend(sigma[0], sigma[1], eta, flow)
    d = dc.levels.level(2.0 * (math.log1p(-down) - math.log(down)) if flow else -2.0 * math.log(down), g.scaling)
    return (d, factor, up) if flow else (d, g.alpha[k + 1] / d.alpha, g.alpha[k + 1] * up)


def lagrange(nodes: Any, j: int) -> Any:
    """The polynomial that is 1 at node j and 0 at the others."""
    others = np.delete(nodes, j)
    return np.poly1d(np.poly(others) / np.prod(nodes[j] - others))


def phi_1(h: float) -> float:
    return -math.expm1(-h) / h


def phi_2(h: float) -> float:
    return (math.exp(-h) - 1.0 + h) / h**2


SCHEDULES = {"vp": dc.schedules.Cosine(), "ve": dc.schedules.Karras(), "flow": dc.schedules.Flow()}
"""Whose time PNDM halves."""
