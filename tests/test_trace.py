"""`samplers.trace`: loops written as their papers have them become plans that do the same, with the least memory."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import diffcore as dc
from diffcore.samplers.exponential import interpolation_weights

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


def ddim(g: Grid) -> Loop:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(g)):
            x = denoise(z, g.log_snr[k])
            eps = (z - g.alpha[k] * x) / g.sigma[k]
            z = g.alpha[k + 1] * x + g.sigma[k + 1] * eps
        return z

    return loop


def ancestral(g: Grid) -> Loop:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(g)):
            x = denoise(z, g.log_snr[k])
            left = math.exp(g.log_snr[k] - g.log_snr[k + 1])
            mean = left * (g.alpha[k + 1] / g.alpha[k]) * z + (1.0 - left) * g.alpha[k + 1] * x
            z = mean + (math.sqrt(1.0 - left) * g.sigma[k + 1] * draw() if g.sigma[k + 1] > 0.0 else 0.0)
        return z

    return loop


def predictor_corrector(g: Grid, delta: float = 0.1) -> Loop:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(g)):
            x = denoise(z, g.log_snr[k])
            left = math.exp(g.log_snr[k] - g.log_snr[k + 1])
            z = left * (g.alpha[k + 1] / g.alpha[k]) * z + (1.0 - left) * g.alpha[k + 1] * x
            if k + 1 < len(g):
                z = z + math.sqrt(1.0 - left) * g.sigma[k + 1] * draw()
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
        u, past = z / g.alpha[0], []
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
GRIDS = {
    "vp": Grid(np.append(np.linspace(-6.0, 7.0, 11), np.inf)),
    "ve": Grid(np.append(-2.0 * np.log(np.geomspace(80.0, 0.02, 11)), np.inf), "ve"),
    "flow": Grid(np.append(dc.grids.uniform(dc.schedules.Flow(), 12)[1:], []), "flow"),
    "the whole range": Grid(np.append(np.linspace(-20.0, 20.0, 41), np.inf)),
    "it ends noisy": Grid(np.linspace(-9.0, 3.0, 13)),
    "uneven": Grid([-20.0, -3.0, -2.9, -1.0, 0.0, 0.01, 2.0, 5.0, 5.5, 9.0, 12.0, np.inf]),
}


def denoiser(z: Any, log_snr: Any) -> Any:
    """A denoiser that is not linear, of data near -1 and 1."""
    level = dc.levels.level(np.asarray(log_snr, dtype=np.float64).reshape(-1)[0], "vp")
    return np.tanh(level.alpha * z / (level.sigma**2 + 0.04)) + 0.1 * np.sin(z)


def run(loop: Loop, z: Any, noise: Any) -> Any:
    """What a loop returns, with the draw that follows call k + 1 taken from noise[k]."""
    calls = [0]

    def denoise(z: Any, log_snr: Any) -> Any:
        calls[0] += 1
        return denoiser(z, log_snr)

    return loop(denoise, z, lambda: noise[calls[0] - 1])


def replay(plan: dc.Plan, z: Any, noise: Any) -> Any:
    """What a plan does, by its definition."""
    arrays = [z, *(np.zeros_like(z) for _ in range(plan.memory))]
    for k, rows in enumerate(plan.update):
        inputs = [*arrays, noise[k], denoiser(arrays[0], plan.log_snr[k])]
        arrays = [sum(c * a for c, a in zip(row, inputs, strict=True)) for row in rows]
    return arrays[0]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_loop_becomes_a_plan_that_does_the_same(name: str, grid: str) -> None:
    method, memory = METHODS[name]
    g = GRIDS[grid]
    plan = dc.samplers.trace(method(g), g.scaling, end=g.log_snr[-1])
    assert plan.memory == memory
    assert plan.log_snr[0] == pytest.approx(g.log_snr[0], abs=1e-12)
    assert np.array_equal(plan.next_log_snr[:-1], plan.log_snr[1:]) and plan.next_log_snr[-1] == g.log_snr[-1]
    random = np.random.default_rng(7)
    z, noise = random.normal(size=(3, 5)) * plan.start.sigma, random.normal(size=(len(plan), 3, 5))
    expected = run(method(g), z, noise)
    assert np.abs(replay(plan, z, noise) - expected).max() <= 1e-12 * max(np.abs(expected).max(), np.abs(z).max())
    sampled = dc.sample(denoiser, plan, z, prediction="x", noise=lambda draw, shape: noise[draw - 1])
    assert np.abs(sampled - expected).max() <= 1e-12 * max(np.abs(expected).max(), np.abs(z).max())
