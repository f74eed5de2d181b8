"""Samplers as k-diffusion writes them, copied in short, and one for rectified flows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def to_d(x: Any, sigma: Any, denoised: Any) -> Any:
    return (x - denoised) / sigma


def ancestral_step(sigma_from: Any, sigma_to: Any, eta: float) -> tuple[Any, Any]:
    up = min(sigma_to, eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5)
    return (sigma_to**2 - up**2) ** 0.5, up


def default_noise_sampler(x: Any) -> Callable[[Any, Any], Any]:
    return lambda sigma, sigma_next: torch.randn_like(x)


def sample_euler(
    model: Any,
    x: Any,
    sigmas: Any,
    extra_args: Any = None,
    callback: Any = None,
    disable: Any = None,
    s_churn: Any = 0.0,
    s_tmax: Any = math.inf,
) -> Any:
    extra_args, s_in = extra_args or {}, x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        gamma = min(s_churn / (len(sigmas) - 1), 2**0.5 - 1) if sigmas[i] <= s_tmax else 0.0
        eps = torch.randn_like(x)
        sigma_hat = sigmas[i] * (gamma + 1)
        if gamma > 0:
            x = x + eps * (sigma_hat**2 - sigmas[i] ** 2) ** 0.5
        denoised = model(x, sigma_hat * s_in, **extra_args)
        x = x + to_d(x, sigma_hat, denoised) * (sigmas[i + 1] - sigma_hat)
    return x


def sample_euler_ancestral(
    model: Any,
    x: Any,
    sigmas: Any,
    extra_args: Any = None,
    callback: Any = None,
    disable: Any = None,
    eta: Any = 1.0,
    noise_sampler: Any = None,
) -> Any:
    noise_sampler = default_noise_sampler(x) if noise_sampler is None else noise_sampler
    s_in = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * s_in, **extra_args)
        down, up = ancestral_step(sigmas[i], sigmas[i + 1], eta)
        x = x + to_d(x, sigmas[i], denoised) * (down - sigmas[i])
        if sigmas[i + 1] > 0:
            x = x + noise_sampler(sigmas[i], sigmas[i + 1]) * up
    return x


def sample_heun(
    model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, disable: Any = None
) -> Any:
    s_in = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        d = to_d(x, sigmas[i], model(x, sigmas[i] * s_in))
        dt = sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] == 0:
            x = x + d * dt
        else:
            x_2 = x + d * dt
            d_2 = to_d(x_2, sigmas[i + 1], model(x_2, sigmas[i + 1] * s_in))
            x = x + (d + d_2) / 2 * dt
    return x


def sample_lms(
    model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, disable: Any = None, order: Any = 4
) -> Any:
    s_in, ds = x.new_ones([x.shape[0]]), list[Any]()
    knots = sigmas.numpy()
    for i in range(len(sigmas) - 1):
        ds = [*ds, to_d(x, sigmas[i], model(x, sigmas[i] * s_in))][-order:]
        nodes = knots[i::-1][: len(ds)]
        for j, d in enumerate(reversed(ds)):
            basis = np.poly1d([1.0])
            for k in range(len(ds)):
                if k != j:
                    basis *= np.poly1d([1.0, -nodes[k]]) / (nodes[j] - nodes[k])
            whole = basis.integ()
            x = x + (whole(knots[i + 1]) - whole(knots[i])) * d
    return x


def sample_dpmpp_2m(
    model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, disable: Any = None
) -> Any:
    s_in, old = x.new_ones([x.shape[0]]), None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * s_in)
        t, t_next = -sigmas[i].log(), -sigmas[i + 1].log()
        h = t_next - t
        if old is None or sigmas[i + 1] == 0:
            d = denoised
        else:
            r = (t + sigmas[i - 1].log()) / h
            d = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old
        x = sigmas[i + 1] / sigmas[i] * x - (-h).expm1() * d
        old = denoised
    return x


def sample_dpmpp_sde(
    model: Any,
    x: Any,
    sigmas: Any,
    extra_args: Any = None,
    callback: Any = None,
    disable: Any = None,
    eta: Any = 1.0,
    noise_sampler: Any = None,
    r: Any = 1 / 2,
) -> Any:
    s_in = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * s_in)
        if sigmas[i + 1] == 0:
            x = x + to_d(x, sigmas[i], denoised) * (sigmas[i + 1] - sigmas[i])
            continue
        t, t_next = -sigmas[i].log(), -sigmas[i + 1].log()
        s, fac = t + (t_next - t) * r, 1 / (2 * r)
        sd, su = ancestral_step((-t).exp(), (-s).exp(), eta)
        x_2 = sd / (-t).exp() * x - (t + sd.log()).expm1() * denoised + noise_sampler((-t).exp(), (-s).exp()) * su
        denoised_2 = model(x_2, (-s).exp() * s_in)
        sd, su = ancestral_step((-t).exp(), (-t_next).exp(), eta)
        d = (1 - fac) * denoised + fac * denoised_2
        x = sd / (-t).exp() * x - (t + sd.log()).expm1() * d + noise_sampler((-t).exp(), (-t_next).exp()) * su
    return x


def sample_rectified_flow(
    model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, disable: Any = None
) -> Any:
    for i in range(len(sigmas) - 1):
        x = x + to_d(x, sigmas[i], model(x, sigmas[i] * x.new_ones([x.shape[0]]))) * (sigmas[i + 1] - sigmas[i])
    return x
