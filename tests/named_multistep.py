"""Multistep samplers that are known by name, as the loops that they were published as."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from published import SCHEDULES, Published, lagrange, lower, phi_1, phi_2, published
from trace_cases import Grid, Loop


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
