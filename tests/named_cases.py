"""Samplers that are known by name, as the loops that they were published as: over sigma, in z where alpha = 1."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

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


def pp_2s(g: Grid, eta: float = 0.0, noise_scale: float = 1.0) -> Loop:
    """In alpha, sigma and lambda, so that it is the rectified-flow form, too."""

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(g)):
            x = denoise(z, g.log_snr[k])
            if math.isinf(g.log_snr[k + 1]):
                return x
            flow = g.scaling == "flow"
            sigma = [float(g.sigma[j]) if flow else g.ratio(j) for j in (k, k + 1)]
            down, factor, up = descend(*sigma, eta, flow)
            d = 2.0 * (math.log1p(-down) - math.log(down)) if flow else -2.0 * math.log(down)
            m = 0.5 * (g.log_snr[k] + d)
            (alpha_m, sigma_m, _), (alpha_d, sigma_d, _) = (dc.levels.level(l, g.scaling) for l in (m, d))
            there = sigma_m / g.sigma[k] * z - alpha_m * math.expm1(0.5 * (g.log_snr[k] - m)) * x
            z = sigma_d / g.sigma[k] * z - alpha_d * math.expm1(0.5 * (g.log_snr[k] - d)) * denoise(there, m)
            if up:
                scale = 1.0 if flow else g.alpha[k + 1]
                z = (factor if flow else scale / alpha_d) * z + noise_scale * up * scale * draw()
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


NAMED: dict[str, Callable[..., Loop]] = {
    "euler_ancestral": published(euler_ancestral),
    "dpm2": published(dpm2),
    "dpm2_ancestral": published(lambda *given, eta=1.0, **other: dpm2(*given, eta=eta, **other)),
    "heunpp": published(heunpp),
    "dpm_solver_pp_2s": pp_2s,
    "dpm_solver_pp_3s": in_half(exponential(pp_3s)),
    "dpm_solver": in_half(exponential(solver)),
    "runge_kutta": any_runge_kutta,
}
"""The loop of each row of `samplers.table()` that is known by name, with its settings."""
