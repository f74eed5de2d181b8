"""Samplers as plain loops, as their papers have them: `samplers.trace` reads them, diffcore's plans are held to them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import diffcore as dc
from diffcore.samplers._exponential import interpolation_weights

Loop = Callable[[Any, Any, Any], Any]


class Grid:
    """A grid of log-SNRs under a scaling: what the loops below read their coefficients from."""

    def __init__(self, log_snr: Any, scaling: str = "vp") -> None:
        self.log_snr, self.scaling = np.asarray(log_snr, dtype=np.float64), scaling
        level = dc.levels.level(self.log_snr, scaling)
        self.alpha, self.sigma = level.alpha, level.sigma

    def __len__(self) -> int:
        return len(self.log_snr) - 1

    def ratio(self, k: int) -> float:
        return float(self.sigma[k] / self.alpha[k])


def ddim(g: Grid, eta: float = 0.0) -> Loop:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(g)):
            x = denoise(z, g.log_snr[k])
            eps = (z - g.alpha[k] * x) / g.sigma[k]
            added = eta * g.sigma[k + 1] * math.sqrt(1.0 - math.exp(g.log_snr[k] - g.log_snr[k + 1]))
            z = g.alpha[k + 1] * x + math.sqrt(g.sigma[k + 1] ** 2 - added**2) * eps
            z = z + added * draw() if added else z
        return z

    return loop


def ancestral_step(g: Grid, k: int, z: Any, x: Any, draw: Any, gamma: float) -> Any:
    left = math.exp(g.log_snr[k] - g.log_snr[k + 1])
    mean = left * (g.alpha[k + 1] / g.alpha[k]) * z + (1.0 - left) * g.alpha[k + 1] * x
    if math.isinf(g.log_snr[k + 1]):
        return mean
    posterior, transition = (1.0 - left) * g.sigma[k + 1] ** 2, (1.0 - left) * g.sigma[k] ** 2
    return mean + math.sqrt(posterior ** (1.0 - gamma) * transition**gamma) * draw()


def ancestral(g: Grid, gamma: float = 0.0) -> Loop:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(g)):
            z = ancestral_step(g, k, z, denoise(z, g.log_snr[k]), draw, gamma)
        return z

    return loop


def predictor_corrector(g: Grid, gamma: float = 0.0, delta: float = 0.1) -> Loop:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(g)):
            z = ancestral_step(g, k, z, denoise(z, g.log_snr[k]), draw, gamma)
            if k + 1 < len(g):
                eps = (z - g.alpha[k + 1] * denoise(z, g.log_snr[k + 1])) / g.sigma[k + 1]
                z = z - 0.5 * delta * g.sigma[k + 1] * eps + math.sqrt(delta) * g.sigma[k + 1] * draw()
        return z

    return loop


def slope(g: Grid, denoise: Any, u: Any, r: float) -> Any:
    """dr/du of u = z / alpha over r = sigma / alpha, at any r: z is in the scaling of the grid."""
    log_snr = -2.0 * math.log(r)
    alpha = dc.levels.level(log_snr, g.scaling).alpha
    return (u - denoise(alpha * u, log_snr)) / r


def runge_kutta(a: list[list[float]], b: list[float]) -> Callable[[Grid], Loop]:
    """An explicit method in u = z / alpha over r = sigma / alpha with nodes c = sum of a, Euler for the step to clean data."""

    def method(g: Grid) -> Loop:
        def loop(denoise: Any, z: Any, draw: Any) -> Any:
            u = z / g.alpha[0]
            for k in range(len(g)):
                r, h = g.ratio(k), g.ratio(k + 1) - g.ratio(k)
                if g.ratio(k + 1) == 0.0:
                    u = u + h * slope(g, denoise, u, r)
                    continue
                slopes: list[Any] = []
                for row in a:
                    at = u + h * sum((w * s for w, s in zip(row, slopes, strict=True)), start=0.0)
                    slopes.append(slope(g, denoise, at, r + h * sum(row)))
                u = u + h * sum((w * s for w, s in zip(b, slopes, strict=True)), start=0.0)
            return g.alpha[-1] * u

        return loop

    return method


euler = runge_kutta([[]], [1.0])
heun = runge_kutta([[], [1.0]], [0.5, 0.5])
midpoint = runge_kutta([[], [0.5]], [0.0, 1.0])
rk4 = runge_kutta([[], [0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6])


def edm(heun: bool) -> Callable[..., Loop]:
    """Algorithm 2 of Karras et al. 2022 in u = z / alpha over r = sigma / alpha, begun at the first churned level; under "flow" the
    slope of the correction is that of z over sigma."""

    def method(g: Grid, churn: float = 0.0, noise_scale: float = 1.0) -> Loop:
        grown = 1.0 + min(churn / len(g), math.sqrt(2.0) - 1.0)

        def loop(denoise: Any, z: Any, draw: Any) -> Any:
            for k in range(len(g)):
                r = g.ratio(k) * grown
                hat = dc.levels.level(-2.0 * math.log(r), g.scaling)
                if k and churn:
                    u = z / g.alpha[k] + noise_scale * math.sqrt(r**2 - g.ratio(k) ** 2) * draw()
                    z = hat.alpha * u
                x = denoise(z, hat.log_snr)
                u = z / hat.alpha
                end = g.alpha[k + 1] * (u + (g.ratio(k + 1) - r) * (u - x) / r)
                if heun and g.ratio(k + 1) > 0.0:
                    y = denoise(end, g.log_snr[k + 1])
                    if g.scaling == "flow":
                        velocity = (z - x) / hat.sigma + (end - y) / g.sigma[k + 1]
                        end = z + 0.5 * (g.sigma[k + 1] - hat.sigma) * velocity
                    else:
                        slopes = (u - x) / r + (end / g.alpha[k + 1] - y) / g.ratio(k + 1)
                        end = g.alpha[k + 1] * (u + 0.5 * (g.ratio(k + 1) - r) * slopes)
                z = end
            return z

        return loop

    return method


ADAMS = [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


def adams(order: int) -> Callable[[Grid], Loop]:
    """Adams-Bashforth in eps with the weights of even steps, each step by DDIM."""

    def method(g: Grid) -> Loop:
        def loop(denoise: Any, z: Any, draw: Any) -> Any:
            past: list[Any] = []
            for k in range(len(g)):
                past = [(z - g.alpha[k] * denoise(z, g.log_snr[k])) / g.sigma[k], *past][:order]
                eps = sum(w * e for w, e in zip(ADAMS[len(past) - 1], past, strict=True))
                z = (g.alpha[k + 1] / g.alpha[k]) * (z - g.sigma[k] * eps) + g.sigma[k + 1] * eps
            return z

        return loop

    return method


def plms(g: Grid) -> Loop:
    """Adams-Bashforth of order 4 in eps whose first step is Heun's, as in pseudo numerical methods (arXiv 2202.09778)."""

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        def transfer(z: Any, k: int, eps: Any) -> Any:
            return (g.alpha[k + 1] / g.alpha[k]) * (z - g.sigma[k] * eps) + g.sigma[k + 1] * eps

        past: list[Any] = []
        for k in range(len(g)):
            past = [(z - g.alpha[k] * denoise(z, g.log_snr[k])) / g.sigma[k], *past][:4]
            if k == 0:
                ahead = transfer(z, k, past[0])
                eps = 0.5 * (past[0] + (ahead - g.alpha[1] * denoise(ahead, g.log_snr[1])) / g.sigma[1])
            else:
                eps = sum(w * e for w, e in zip(ADAMS[len(past) - 1], past, strict=True))
            z = transfer(z, k, eps)
        return z

    return loop


def lms(g: Grid) -> Loop:
    """Linear multistep of order 3 in u over r, with weights that integrate the interpolating polynomials exactly."""

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        u = z / g.alpha[0]
        past: list[Any] = []
        for k in range(len(g)):
            past = [slope(g, denoise, u, g.ratio(k)), *past][:3]
            nodes = np.array([g.ratio(k - j) for j in range(len(past))]) - g.ratio(k)
            h = g.ratio(k + 1) - g.ratio(k)
            powers = (nodes / h) ** np.arange(len(past))[:, None]
            weights = np.linalg.solve(powers, 1.0 / np.arange(1, len(past) + 1))
            u = u + h * sum(w * s for w, s in zip(weights, past, strict=True))
        return g.alpha[-1] * u

    return loop


def dpm_solver_pp(order: int, eta: float = 0.0) -> Callable[[Grid], Loop]:
    def method(g: Grid) -> Loop:
        lam = 0.5 * g.log_snr

        def loop(denoise: Any, z: Any, draw: Any) -> Any:
            past: list[Any] = []
            for k in range(len(g)):
                past = [denoise(z, g.log_snr[k]), *past][:order]
                h = lam[k + 1] - lam[k]
                phi = -math.expm1(-(1.0 + eta) * h)
                if math.isinf(h) or len(past) == 1:
                    mean = phi * past[0]
                elif len(past) == 2:
                    d = (past[0] - past[1]) * h / (lam[k] - lam[k - 1])
                    mean = phi * (past[0] + 0.5 * d)
                else:
                    nodes = np.array([0.0, lam[k - 1] - lam[k], lam[k - 2] - lam[k]]) / h
                    weights = interpolation_weights(np.array((1.0 + eta) * h), nodes)
                    mean = sum(w * x for w, x in zip(weights, past, strict=True))
                z = (g.sigma[k + 1] / g.sigma[k]) * (math.exp(-eta * h) if eta else 1.0) * z + g.alpha[k + 1] * mean
                if eta and g.sigma[k + 1] > 0.0:
                    z = z + g.sigma[k + 1] * math.sqrt(-math.expm1(-2.0 * eta * h)) * draw()
            return z

        return loop

    return method


def unipc(order: int) -> Callable[[Grid], Loop]:
    def method(g: Grid) -> Loop:
        lam = 0.5 * g.log_snr

        def move(z: Any, k: int, newest: int, xs: list[Any]) -> Any:
            """The step k -> k + 1 from z, through the estimates at newest, newest - 1, ..."""
            h = lam[k + 1] - lam[k]
            if math.isinf(h):
                return xs[0]
            nodes = np.array([lam[newest - j] - lam[k] for j in range(len(xs))]) / h
            weights = interpolation_weights(np.array(h), nodes)
            return (g.sigma[k + 1] / g.sigma[k]) * z + g.alpha[k + 1] * sum(
                w * x for w, x in zip(weights, xs, strict=True)
            )

        def loop(denoise: Any, z: Any, draw: Any) -> Any:
            past: list[Any] = []
            corrected = z
            for k in range(len(g)):
                past = [denoise(z, g.log_snr[k]), *past]
                if k:
                    corrected = move(corrected, k - 1, k, past[: min(order, k) + 1])
                z = move(corrected, k, k, past[: min(order, k + 1)])
            return z

        return loop

    return method


OWN: dict[str, Callable[..., Loop]] = {
    "ancestral": ancestral,
    "predictor_corrector": predictor_corrector,
    "ddim": ddim,
    "euler": edm(False),
    "heun": edm(True),
    "dpm_solver_pp": lambda g, order=2, eta=0.0: dpm_solver_pp(order, eta)(g),
    "unipc": lambda g, order=2: unipc(order)(g),
}
"""The loop of each row of `samplers.table()`, with its settings."""

METHODS: dict[str, tuple[Callable[[Grid], Loop], int]] = {
    "ancestral": (ancestral, 0),
    "predictor-corrector": (predictor_corrector, 0),
    "ddim": (ddim, 0),
    "euler": (euler, 0),
    "heun": (heun, 1),
    "midpoint": (midpoint, 1),
    "rk4": (rk4, 2),
    "adams-bashforth 2": (adams(2), 1),
    "adams-bashforth 4": (adams(4), 3),
    "plms": (plms, 3),
    "lms": (lms, 2),
    "2m": (dpm_solver_pp(2), 1),
    "2m sde": (dpm_solver_pp(2, 1.0), 1),
    "3m": (dpm_solver_pp(3), 2),
    "3m sde": (dpm_solver_pp(3, 1.0), 2),
    "unipc 1": (unipc(1), 1),
    "unipc 2": (unipc(2), 2),
    "unipc 3": (unipc(3), 3),
}
"""Loops of a grid, and the memory that they need."""
