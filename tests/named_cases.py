"""Samplers that are known by name, as the loops that they were published as; those that begin every step anew are here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import named_multistep as many
import numpy as np
from published import SCHEDULES, Published, descend, exponential, in_half, lower, phi_1, phi_2, published
from trace_cases import Grid, Loop

import diffcore as dc


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


def fast(
    model: Any, z: Any, sigmas: Any, draw: Any, final: Any = (2, 1), eta: float = 0.0, noise_scale: float = 1.0
) -> Any:
    """DPM-Solver-fast as in k-diffusion."""
    count = len(sigmas) - 1
    for (t, s), order in zip(itertools.pairwise(sigmas), ([3] * count + list(final))[-count:], strict=True):
        if s == 0.0:
            return model(z, t)
        down = max(descend(t, s, eta, False)[0], sigmas[-1])
        up = math.sqrt(s**2 - down**2)
        z = z + (down - t) * (z - model(z, t)) / t if order == 1 else solver(model, z, t, down, draw, order)
        z = z + noise_scale * up * draw() if up else z
    return z


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
    "dpm_solver_fast": in_half(fast),
    "runge_kutta": any_runge_kutta,
    "lms": published(many.multistep(many.lms_weights)),
    "ipndm": published(many.multistep(many.even_weights)),
    "plms": published(many.plms),
    "pndm": many.pndm,
    "deis": published(many.multistep(many.deis_weights)),
    "gradient_estimation": published(many.multistep(many.gradient_weights)),
    "res_2s": in_half(exponential(res_2s)),
    "res_3s": in_half(exponential(res_3s)),
    "res_multistep": many.res_multistep,
    "dpm_solver_pp": many.dpm_solver_pp,
    "unipc": many.unipc,
    "sa_solver": many.sa_solver,
    "lcm": lcm,
    "tcd": tcd,
    "flow_grpo": flow_grpo,
    "cps": cps,
    "restart": restart,
    "er_sde": many.er_sde,
    "seeds": in_half(exponential(seeds)),
    "dpm_solver_pp_sde": in_half(exponential(pp_sde)),
}
"""The loop of each row of `samplers.table()` that is known by name, with its settings."""
