"""Samplers that are known by name, as the loops that they were published as: over sigma, in z where alpha = 1."""

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


def descend(t: float, s: float, eta: float, flow: bool) -> tuple[float, float, float]:
    """What a step goes down to, the factor of it, and the noise that leads up again."""
    if flow:
        down = s * (1.0 + eta * (s / t - 1.0))
        factor = (1.0 - s) / (1.0 - down)
        return down, factor, math.sqrt(max(s**2 - (factor * down) ** 2, 0.0))
    up = min(s, eta * math.sqrt(s**2 * (t**2 - s**2) / t**2))
    return math.sqrt(s**2 - up**2), 1.0, up


def euler_ancestral(
    model: Any, z: Any, sigmas: Any, draw: Any, flow: bool, eta: float = 1.0, noise_scale: float = 1.0
) -> Any:
    for t, s in itertools.pairwise(sigmas):
        down, factor, up = descend(t, s, eta, flow)
        z = z + (z - model(z, t)) / t * (down - t)
        if s > 0.0:
            z = factor * z + noise_scale * up * draw()
    return z


def dpm2(model: Any, z: Any, sigmas: Any, draw: Any, flow: bool, eta: float = 0.0, noise_scale: float = 1.0) -> Any:
    for t, s in itertools.pairwise(sigmas):
        down, factor, up = descend(t, s, eta, flow)
        d = (z - model(z, t)) / t
        if s == 0.0:
            z = z + d * (s - t)
            continue
        middle = math.exp(0.5 * (math.log(t) + math.log(down)))
        there = z + d * (middle - t)
        z = z + (there - model(there, middle)) / middle * (down - t)
        z = factor * z + noise_scale * up * draw() if up else z
    return z


def heunpp(model: Any, z: Any, sigmas: Any, draw: Any, flow: bool) -> Any:
    for i in range(len(sigmas) - 1):
        t, s = sigmas[i : i + 2]
        d = (z - model(z, t)) / t
        end = z + d * (s - t)
        if i < len(sigmas) - 2:
            d_2 = (end - model(end, s)) / s
            if i == len(sigmas) - 3:
                w_2 = s / (2.0 * sigmas[0])
                slope = d * (1.0 - w_2) + d_2 * w_2
            else:
                r = sigmas[i + 2]
                after = end + d_2 * (r - s)
                d_3 = (after - model(after, r)) / r
                w_2, w_3 = s / (3.0 * sigmas[0]), r / (3.0 * sigmas[0])
                slope = d * (1.0 - w_2 - w_3) + d_2 * w_2 + d_3 * w_3
            end = z + slope * (s - t)
        z = end
    return z


def runge_kutta(a: Any, b: Any, c: Any) -> Published:
    def method(model: Any, z: Any, sigmas: Any, draw: Any, flow: bool = False) -> Any:
        for t, s in itertools.pairwise(sigmas):
            if s == 0.0:
                return model(z, t)
            slopes: list[Any] = []
            for row, node in zip(a, c, strict=True):
                at = t + node * (s - t)
                inner = z + (s - t) * sum((w * k for w, k in zip(row, slopes, strict=True)), start=0.0)
                slopes.append((inner - model(inner, at)) / at)
            z = z + (s - t) * sum(w * k for w, k in zip(b, slopes, strict=True))
        return z

    return method


RK4 = ([[], [0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], [0.0, 0.5, 0.5, 1.0])
KUTTA3 = ([[], [0.5], [-1.0, 2.0]], [1 / 6, 2 / 3, 1 / 6], [0.0, 0.5, 1.0])


def shifted_kutta3(model: Any, z: Any, sigmas: Any, draw: Any) -> Any:
    """Kutta's method of order 3 on w = (z - x_1) / sigma over -log sigma, whose slope is (x - x_1) / sigma."""
    a, b, c = KUTTA3
    for t, s in itertools.pairwise(sigmas):
        first = model(z, t)
        if s == 0.0:
            return first
        w, h, slopes = (z - first) / t, math.log(t / s), [0.0 * z]
        for row, node in zip(a[1:], c[1:], strict=True):
            at = t * (s / t) ** node
            inner = w + h * sum(k * v for k, v in zip(row, slopes, strict=True))
            slopes.append((model(first + at * inner, at) - first) / at)
        z = first + s * (w + h * sum(k * v for k, v in zip(b, slopes, strict=True)))
    return z


def exponential(method: Any) -> Published:
    """A step of an exponential method (model, z, t, s) on each pair, x-hat for the step to clean data."""

    def whole(model: Any, z: Any, sigmas: Any, draw: Any, **settings: Any) -> Any:
        for t, s in itertools.pairwise(sigmas):
            z = model(z, t) if s == 0.0 else method(model, z, t, s, draw, **settings)
        return z

    return whole


def solver(model: Any, z: Any, t: float, s: float, draw: Any, order: int = 2) -> Any:
    """DPM-Solver-2 and -3 as in k-diffusion."""
    h, d = math.log(t / s), (z - model(z, t)) / t
    if order == 2:
        m = t * math.exp(-h / 2.0)
        u = z - m * math.expm1(h / 2.0) * d
        d_m = (u - model(u, m)) / m
        return z - s * math.expm1(h) * d - s * math.expm1(h) * (d_m - d)
    m, n = t * math.exp(-h / 3.0), t * math.exp(-2.0 * h / 3.0)
    u = z - m * math.expm1(h / 3.0) * d
    d_m = (u - model(u, m)) / m
    u = z - n * math.expm1(2 * h / 3) * d - n * 2.0 * (math.expm1(2 * h / 3) / (2 * h / 3) - 1.0) * (d_m - d)
    d_n = (u - model(u, n)) / n
    return z - s * math.expm1(h) * d - s * 1.5 * (math.expm1(h) / h - 1.0) * (d_n - d)


def lower(g: Grid, k: int, eta: float) -> tuple[Any, Any, Any]:
    """The level that step k goes down to, and the factors of z and of the noise that lead up again."""
    flow = g.scaling == "flow"
    sigma = [float(g.sigma[j]) if flow else g.ratio(j) for j in (k, k + 1)]
    down, factor, up = descend(*sigma, eta, flow)
    d = dc.levels.level(2.0 * (math.log1p(-down) - math.log(down)) if flow else -2.0 * math.log(down), g.scaling)
    return (d, factor, up) if flow else (d, g.alpha[k + 1] / d.alpha, g.alpha[k + 1] * up)


def pp_2s(g: Grid, eta: float = 0.0, noise_scale: float = 1.0) -> Loop:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(g)):
            x = denoise(z, g.log_snr[k])
            if math.isinf(g.log_snr[k + 1]):
                return x
            d, factor, up = lower(g, k, eta)
            m = dc.levels.level(0.5 * (g.log_snr[k] + d.log_snr), g.scaling)
            there = m.sigma / g.sigma[k] * z - m.alpha * math.expm1(0.5 * (g.log_snr[k] - m.log_snr)) * x
            x = denoise(there, m.log_snr)
            z = d.sigma / g.sigma[k] * z - d.alpha * math.expm1(0.5 * (g.log_snr[k] - d.log_snr)) * x
            z = factor * z + noise_scale * up * draw() if eta else z
        return z

    return loop


def pp_3s(model: Any, z: Any, t: float, s: float, draw: Any) -> Any:
    h, x = math.log(t / s), model(z, t)
    m, n = t * math.exp(-h / 3.0), t * math.exp(-2.0 * h / 3.0)
    x_m = model(m / t * z - math.expm1(-h / 3.0) * x, m)
    inner = n / t * z - math.expm1(-2 * h / 3) * x + 2.0 * (math.expm1(-2 * h / 3) / (2 * h / 3) + 1.0) * (x_m - x)
    return s / t * z - math.expm1(-h) * x + 1.5 * (math.expm1(-h) / h + 1.0) * (model(inner, n) - x)


def any_runge_kutta(g: Grid, tableau: str = "rk4", variable: str = "rho") -> Loop:
    if variable == "lambda":
        return in_half(shifted_kutta3)(g)
    return published(runge_kutta(*RK4))(g)


def multistep(weigh: Any) -> Published:
    """The sum of weigh(sigmas, i, count) times the last slopes; Euler's step to clean data."""

    def method(model: Any, z: Any, sigmas: Any, draw: Any, flow: bool, final: str = "euler", **settings: Any) -> Any:
        past: list[Any] = []
        for i in range(len(sigmas) - 1):
            past = [(z - model(z, sigmas[i])) / sigmas[i], *past]
            if sigmas[i + 1] == 0.0 and final == "euler":
                return z - sigmas[i] * past[0]
            weights = weigh(sigmas, i, **settings)
            z = z + sum(w * d for w, d in zip(weights, past, strict=False))
        return z

    return method


def lagrange(nodes: Any, j: int) -> Any:
    """The polynomial that is 1 at node j and 0 at the others."""
    others = np.delete(nodes, j)
    return np.poly1d(np.poly(others) / np.prod(nodes[j] - others))


def lms_weights(sigmas: Any, i: int, order: int = 4) -> list[Any]:
    nodes = np.array([sigmas[i - j] for j in range(min(order, i + 1))])
    integrals = [lagrange(nodes - sigmas[i], j).integ() for j in range(len(nodes))]
    return [integral(sigmas[i + 1] - sigmas[i]) for integral in integrals]


def deis_weights(sigmas: Any, i: int, order: int = 3) -> list[Any]:
    """The integrals by Gauss's quadrature in log sigma."""
    nodes = np.log([sigmas[i - j] for j in range(min(order, i + 1))])
    at, width = np.polynomial.legendre.leggauss(40)
    h = math.log(sigmas[i + 1] / sigmas[i])
    at, width = 0.5 * h * (at + 1.0), 0.5 * h * width
    return [sum(width * sigmas[i] * np.exp(at) * lagrange(nodes - nodes[0], j)(at)) for j in range(len(nodes))]


ADAMS = [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


def even_weights(sigmas: Any, i: int, order: int = 4) -> list[Any]:
    return [(sigmas[i + 1] - sigmas[i]) * w for w in ADAMS[min(order, i + 1) - 1]]


def gradient_weights(sigmas: Any, i: int, gamma: float = 2.0) -> list[Any]:
    return [(sigmas[i + 1] - sigmas[i]) * w for w in ([gamma, 1.0 - gamma] if i else [1.0])]


def plms(model: Any, z: Any, sigmas: Any, draw: Any, flow: bool, final: str = "euler") -> Any:
    past: list[Any] = []
    for i in range(len(sigmas) - 1):
        t, s = sigmas[i : i + 2]
        past = [(z - model(z, t)) / t, *past][:4]
        slope = sum(w * d for w, d in zip(ADAMS[len(past) - 1], past, strict=True))
        if i == 0 and s > 0.0:
            ahead = z + (s - t) * past[0]
            slope = 0.5 * (past[0] + (ahead - model(ahead, s)) / s)
        elif s == 0.0 and final == "euler":
            slope = past[0]
        z = z + (s - t) * slope
    return z


SCHEDULES = {"vp": dc.schedules.Cosine(), "ve": dc.schedules.Karras(), "flow": dc.schedules.Flow()}
"""Whose time PNDM halves."""


def pndm(g: Grid, final: str = "euler") -> Loop:
    schedule = SCHEDULES[g.scaling]

    def method(model: Any, z: Any, sigmas: Any, draw: Any, flow: bool) -> Any:
        past: list[Any] = []
        for i in range(len(sigmas) - 1):
            t, s = sigmas[i : i + 2]
            first = (z - model(z, t)) / t
            past = [first, *past][:4]
            if i < 3 and s > 0.0:
                middle = schedule(0.5 * sum(schedule.time(log_snr) for log_snr in g.log_snr[i : i + 2]))
                m = middle.sigma if flow else middle.sigma / middle.alpha
                inner = z + (m - t) * first
                second = (inner - model(inner, m)) / m
                inner = z + (m - t) * second
                third = (inner - model(inner, m)) / m
                inner = z + (s - t) * third
                slope = (first + 2.0 * second + 2.0 * third + (inner - model(inner, s)) / s) / 6.0
            elif s == 0.0 and final == "euler":
                slope = first
            else:
                slope = sum(w * d for w, d in zip(ADAMS[len(past) - 1], past, strict=True))
            z = z + (s - t) * slope
        return z

    return published(method)(g)


def phi_1(h: float) -> float:
    return -math.expm1(-h) / h


def phi_2(h: float) -> float:
    return (math.exp(-h) - 1.0 + h) / h**2


def res_2s(model: Any, z: Any, t: float, s: float, draw: Any) -> Any:
    h, x = math.log(t / s), model(z, t)
    m = t * math.exp(-h / 2.0)
    second = model(m / t * z + 0.5 * h * phi_1(h / 2.0) * x, m)
    return s / t * z + h * ((phi_1(h) - 2.0 * phi_2(h)) * x + 2.0 * phi_2(h) * second)


def res_3s(model: Any, z: Any, t: float, s: float, draw: Any) -> Any:
    h, x = math.log(t / s), model(z, t)
    m, c_2, c_3 = t * math.exp(-h / 2.0), 0.5, 1.0
    gamma = (3.0 * c_3**3 - 2.0 * c_3) / (c_2 * (2.0 - 3.0 * c_2))
    second = model(m / t * z + c_2 * h * phi_1(c_2 * h) * x, m)
    a_32 = gamma * c_2 * phi_2(c_2 * h) + c_3**2 / c_2 * phi_2(c_3 * h)
    third = model(s / t * z + h * ((c_3 * phi_1(c_3 * h) - a_32) * x + a_32 * second), s)
    b_2, b_3 = gamma / (gamma * c_2 + c_3) * phi_2(h), 1.0 / (gamma * c_2 + c_3) * phi_2(h)
    return s / t * z + h * ((phi_1(h) - b_2 - b_3) * x + b_2 * second + b_3 * third)


def res_multistep(g: Grid, eta: float = 0.0, noise_scale: float = 1.0) -> Loop:
    lam = 0.5 * g.log_snr

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        old = old_down = None
        for k in range(len(g)):
            x = denoise(z, g.log_snr[k])
            if math.isinf(lam[k + 1]):
                return x
            d, factor, up = lower(g, k, eta)
            h = 0.5 * d.log_snr - lam[k]
            if old is None:
                mean = -math.expm1(-h) * x
            else:
                c_2 = (lam[k - 1] - old_down) / h
                mean = h * ((phi_1(h) - phi_2(h) / c_2) * x + phi_2(h) / c_2 * old)
            z = d.sigma / g.sigma[k] * z + d.alpha * mean
            z = factor * z + noise_scale * up * draw() if eta else z
            old, old_down = x, 0.5 * d.log_snr
        return z

    return loop


def exact_weights(lam: Any, k: int, nodes: list[int], eta: float, short: str | None = None) -> list[Any]:
    """The integrals of (1 + eta) e^{-(1 + eta) (lam_{k+1} - lam)} l_j(lam) over step k, by quadrature, or their short cut."""
    h, kappa = lam[k + 1] - lam[k], 1.0 + eta
    if short and len(nodes) == 2:
        share = 0.5 * (kappa * h if short == "bh1" else -math.expm1(-kappa * h))
        other = next(j for j in nodes if j != k)
        of_other = share * h / (lam[other] - lam[k])
        return [of_other if j == other else -math.expm1(-kappa * h) - of_other for j in nodes]
    at, width = np.polynomial.legendre.leggauss(60)
    at, width = 0.5 * h * (at + 1.0), 0.5 * h * width
    kernel = kappa * np.exp(-kappa * (h - at)) * width
    places = np.array([lam[j] for j in nodes]) - lam[k]
    return [sum(kernel * lagrange(places, j)(at)) for j in range(len(nodes))]


def sa_solver(
    g: Grid,
    order: int = 2,
    corrector_order: int = 2,
    tau: float = 1.0,
    mode: str = "pec",
    variant: str | None = "bh1",
) -> Loop:
    lam, eta = 0.5 * g.log_snr, tau**2

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        found: dict[int, Any] = {}

        def move(z: Any, k: int, newest: int, use: int, eps: Any) -> Any:
            if math.isinf(lam[k + 1]):
                return found[k]
            h, nodes = lam[k + 1] - lam[k], [newest - j for j in range(use)]
            weights = exact_weights(lam, k, nodes, eta, variant)
            mean = sum(w * found[j] for w, j in zip(weights, nodes, strict=True))
            z = g.sigma[k + 1] / g.sigma[k] * math.exp(-eta * h) * z + g.alpha[k + 1] * mean
            return z + g.sigma[k + 1] * math.sqrt(-math.expm1(-2.0 * eta * h)) * eps if eta else z

        corrected, eps = z, None
        for k in range(len(g)):
            found[k] = denoise(z, g.log_snr[k])
            if k:
                corrected = move(corrected, k - 1, k, min(corrector_order, k + 1), eps)
                if mode == "pece":
                    found[k] = denoise(corrected, g.log_snr[k])
            eps = draw() if eta and g.sigma[k + 1] > 0.0 else None
            z = move(corrected, k, k, min(order, k + 1), eps)
        return z

    return loop


def unipc(g: Grid, order: int = 2, variant: str | None = None) -> Loop:
    return sa_solver(g, order, order + 1, 0.0, "pec", variant)


def dpm_solver_pp(g: Grid, order: int = 2, eta: float = 0.0, solver: str | None = None) -> Loop:
    """As k-diffusion's 2M SDE and 3M SDE, but with the midpoint's second step unless it is Heun's; 3M is exact without `solver`."""
    lam = 0.5 * g.log_snr

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        past: list[Any] = []
        for k in range(len(g)):
            past = [denoise(z, g.log_snr[k]), *past][:order]
            if math.isinf(lam[k + 1]):
                return past[0]
            h = lam[k + 1] - lam[k]
            h_eta = h * (eta + 1.0)
            mean = -math.expm1(-h_eta) * past[0]
            first = h_eta * phi_2(h_eta)
            if len(past) == 2:
                r = (lam[k] - lam[k - 1]) / h
                mean = mean + (first if solver == "heun" else -0.5 * math.expm1(-h_eta)) / r * (past[0] - past[1])
            if len(past) == 3:
                r_0, r_1 = (lam[k] - lam[k - 1]) / h, (lam[k - 1] - lam[k - 2]) / h
                d_0, d_1 = (past[0] - past[1]) / r_0, (past[1] - past[2]) / r_1
                d_2 = (d_0 - d_1) / (r_0 + r_1)
                third = first / h_eta - 0.5
                mean = mean + first * (d_0 + d_2 * r_0) - (1.0 if solver else 2.0) * third * d_2
            z = g.sigma[k + 1] / g.sigma[k] * math.exp(-eta * h) * z + g.alpha[k + 1] * mean
            z = z + g.sigma[k + 1] * math.sqrt(-math.expm1(-2.0 * eta * h)) * draw() if eta else z
        return z

    return loop


def er_sde(g: Grid, order: int = 3, noise: str = "er", noise_scale: float = 1.0) -> Loop:
    phi = {"er": lambda r: r * (np.exp(r**0.3) + 10.0), "ode": lambda r: r}[noise]

    def integral(f: Any, low: float, high: float) -> float:
        at, width = np.polynomial.legendre.leggauss(200)
        half = 0.5 * (math.log(high) - math.log(low))
        r = low * np.exp(half * (at + 1.0))
        return float(sum(half * width * r * f(r)))

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        past: list[Any] = []
        slopes: list[Any] = []
        for k in range(len(g)):
            past = [denoise(z, g.log_snr[k]), *past]
            if g.sigma[k + 1] == 0.0:
                return past[0]
            t, s = g.ratio(k), g.ratio(k + 1)
            q = phi(s) / phi(t)
            u = q * z / g.alpha[k] + (1.0 - q) * past[0]
            if k and order > 1:
                slopes = [(past[0] - past[1]) / (t - g.ratio(k - 1)), *slopes]
                u = u + (s - t + phi(s) * integral(lambda r: 1.0 / phi(r), s, t)) * slopes[0]
            if k > 1 and order > 2:
                bend = (slopes[0] - slopes[1]) / ((t - g.ratio(k - 2)) / 2.0)
                u = u + ((s - t) ** 2 / 2.0 + phi(s) * integral(lambda r, t=t: (r - t) / phi(r), s, t)) * bend
            if noise != "ode":
                u = u + noise_scale * math.sqrt(s**2 - (q * t) ** 2) * draw()
            z = g.alpha[k + 1] * u
        return z

    return loop


def seeds(model: Any, z: Any, t: float, s: float, draw: Any, order: int = 2, eta: float = 1.0) -> Any:
    h = math.log(t / s)
    h_eta, x = h * (eta + 1.0), model(z, t)

    def noise(path: Any, length: float) -> Any:
        return math.exp(-length * h * eta) * path + math.sqrt(-math.expm1(-2.0 * length * h * eta)) * draw()

    if order == 2:
        m = t * math.exp(-h / 2.0)
        path = noise(0.0, 0.5)
        x_m = model(m / t * math.exp(-h * eta / 2.0) * z - math.expm1(-h_eta / 2.0) * x + m * path, m)
        return s / t * math.exp(-h * eta) * z - math.expm1(-h_eta) * x_m + s * noise(path, 0.5)
    m, n = t * math.exp(-h / 3.0), t * math.exp(-2.0 * h / 3.0)
    path = noise(0.0, 1 / 3)
    x_m = model(m / t * math.exp(-h * eta / 3.0) * z - math.expm1(-h_eta / 3.0) * x + m * path, m)
    path = noise(path, 1 / 3)
    a_32 = 2.0 * (2.0 * h_eta / 3.0) * phi_2(2.0 * h_eta / 3.0)
    a_31 = -math.expm1(-2.0 * h_eta / 3.0) - a_32
    x_n = model(n / t * math.exp(-2.0 * h * eta / 3.0) * z + a_31 * x + a_32 * x_m + n * path, n)
    b_3 = h_eta * phi_2(h_eta) * 1.5
    path = noise(path, 1 / 3)
    return s / t * math.exp(-h * eta) * z + (-math.expm1(-h_eta) - b_3) * x + b_3 * x_n + s * path


def pp_sde(model: Any, z: Any, t: float, s: float, draw: Any, eta: float = 1.0) -> Any:
    m = math.sqrt(t * s)
    (d, _, up_m), (e, _, up_s) = descend(t, m, eta, False), descend(t, s, eta, False)
    x = model(z, t)
    first, share = draw(), (t - m) / (t - s)
    x = model(d / t * z - math.expm1(math.log(d / t)) * x + up_m * first, m)
    noise = math.sqrt(share) * first + math.sqrt(1.0 - share) * draw()
    return e / t * z - math.expm1(math.log(e / t)) * x + up_s * noise


def lcm(g: Grid) -> Loop:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(g)):
            z = g.alpha[k + 1] * denoise(z, g.log_snr[k])
            z = z + g.sigma[k + 1] * draw() if g.sigma[k + 1] else z
        return z

    return loop


def tcd(g: Grid, gamma: float = 0.3) -> Loop:
    schedule = SCHEDULES[g.scaling]

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(g)):
            x = denoise(z, g.log_snr[k])
            if g.sigma[k + 1] == 0.0:
                return x
            d = schedule((1.0 - gamma) * schedule.time(g.log_snr[k + 1]))
            eps = (z - g.alpha[k] * x) / g.sigma[k]
            share = g.alpha[k + 1] / d.alpha
            z = share * (d.alpha * x + d.sigma * eps)
            z = z + math.sqrt(g.sigma[k + 1] ** 2 - (share * d.sigma) ** 2) * draw()
        return z

    return loop


def flow_grpo(g: Grid, noise: float = 0.7) -> Loop:
    """In z / (alpha + sigma), where it is a flow."""
    whole = g.alpha + g.sigma
    tau = g.sigma / whole

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        w = z / whole[0]
        for k in range(len(g)):
            x = denoise(w * whole[k], g.log_snr[k])
            if tau[k + 1] == 0.0:
                return x
            dt, v = tau[k + 1] - tau[k], (w - x) / tau[k]
            std = noise * math.sqrt(tau[k] / (1.0 - tau[k]))
            mean = w * (1.0 + std**2 / (2.0 * tau[k]) * dt) + v * (1.0 + std**2 * (1.0 - tau[k]) / (2.0 * tau[k])) * dt
            w = mean + std * math.sqrt(-dt) * draw()
        return w * whole[-1]

    return loop


def cps(g: Grid, eta: float = 0.7) -> Loop:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(g)):
            x = denoise(z, g.log_snr[k])
            std = g.sigma[k + 1] * math.sin(eta * math.pi / 2.0)
            eps = (z - g.alpha[k] * x) / g.sigma[k]
            z = g.alpha[k + 1] * x + math.sqrt(g.sigma[k + 1] ** 2 - std**2) * eps
            z = z + std * draw() if std else z
        return z

    return loop


def restart(g: Grid) -> Loop:
    low, high, inner = 0.06, 0.3, 3
    index = 1 + int(np.argmin(np.abs(g.log_snr[1:-1] + 2.0 * math.log(low))))
    r = math.exp(-0.5 * g.log_snr[index])
    down = np.linspace((r * high / low) ** (1 / 7), r ** (1 / 7), inner + 1) ** 7

    def method(model: Any, z: Any, sigmas: Any, draw: Any, flow: bool) -> Any:
        def heun(z: Any, at: Any) -> Any:
            for t, s in itertools.pairwise(at):
                slope = (z - model(z, t)) / t
                end = z + (s - t) * slope
                z = z + (s - t) * 0.5 * (slope + (end - model(end, s)) / s) if s else end
            return z

        inside = down / (1.0 + down) if flow else down
        inside[-1] = sigmas[index]
        z, top = heun(z, sigmas[: index + 1]), inside[0]
        share = (1.0 - top) / (1.0 - inside[-1]) if flow else 1.0
        z = share * z + math.sqrt(top**2 - (share * inside[-1]) ** 2) * draw()
        return heun(heun(z, inside), sigmas[index:])

    return published(method)(g)


NAMED: dict[str, Callable[..., Loop]] = {
    "euler_ancestral": published(euler_ancestral),
    "dpm2": published(dpm2),
    "dpm2_ancestral": published(lambda *given, eta=1.0, **other: dpm2(*given, eta=eta, **other)),
    "heunpp": published(heunpp),
    "dpm_solver_pp_2s": pp_2s,
    "dpm_solver_pp_3s": in_half(exponential(pp_3s)),
    "dpm_solver": in_half(exponential(solver)),
    "runge_kutta": any_runge_kutta,
    "lms": published(multistep(lms_weights)),
    "ipndm": published(multistep(even_weights)),
    "plms": published(plms),
    "pndm": pndm,
    "deis": published(multistep(deis_weights)),
    "gradient_estimation": published(multistep(gradient_weights)),
    "res_2s": in_half(exponential(res_2s)),
    "res_3s": in_half(exponential(res_3s)),
    "res_multistep": res_multistep,
    "dpm_solver_pp": dpm_solver_pp,
    "unipc": unipc,
    "sa_solver": sa_solver,
    "lcm": lcm,
    "tcd": tcd,
    "flow_grpo": flow_grpo,
    "cps": cps,
    "restart": restart,
    "er_sde": er_sde,
    "seeds": in_half(exponential(seeds)),
    "dpm_solver_pp_sde": in_half(exponential(pp_sde)),
}
"""The loop of each row of `samplers.table()` that is known by name, with its settings."""
