"""Every schedule with its formula as its paper has it, in arithmetic of any precision."""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np

from diffcore.schedules import (
    Cauchy,
    Cosine,
    Flow,
    Geometric,
    InverseCosine,
    Karras,
    Laplace,
    LinearBeta,
    LinearLogSNR,
    Monotone,
    Polynomial,
    PolynomialVP,
    Schedule,
    Sigmoid,
    SubVP,
    Table,
    interpolate,
    shift,
    simple_diffusion,
    truncate,
)

mpf = mpmath.mpf
Formula = Callable[[Any], Any]
INF = math.inf

# Each formula as its paper has it, of t at any precision.


def cosine(low: float, high: float) -> Formula:
    def formula(t: Any) -> Any:
        first, last = mpmath.atan(mpmath.exp(-mpf(high) / 2)), mpmath.atan(mpmath.exp(-mpf(low) / 2))
        return -2 * mpmath.log(mpmath.tan(first + (last - first) * t))

    return formula


def linear_beta(low: float, high: float) -> Formula:
    return lambda t: -mpmath.log(mpmath.expm1(mpf(low) * t + (mpf(high) - mpf(low)) * t**2 / 2))


def of_alpha(alpha: Formula, sigma: Formula) -> Formula:
    return lambda t: 2 * mpmath.log(alpha(t) / sigma(t))


def of_alpha_2(alpha_2: Formula) -> Formula:
    return lambda t: mpmath.log(alpha_2(t) / (1 - alpha_2(t)))


def integral(t: Any) -> Any:
    return mpf(0.1) * t + (mpf(20) - mpf(0.1)) * t**2 / 2


def cauchy(mu: float, gamma: float, low: float, high: float) -> Formula:
    """A Cauchy distribution's quantile function, from that of its upper end down."""

    def formula(t: Any) -> Any:
        upto, below = (mpmath.atan((mpf(end) - mpf(mu)) / mpf(gamma)) for end in (high, low))
        return mpf(mu) + mpf(gamma) * mpmath.tan(upto + (below - upto) * t)

    return formula


def karras(low: float, high: float, rho: float) -> Formula:
    def formula(t: Any) -> Any:
        a, b = (mpf(sigma) ** (1 / mpf(rho)) for sigma in (low, high))
        return -2 * mpmath.log((a + t * (b - a)) ** mpf(rho))

    return formula


def sigmoid(start: float, end: float, tau: float) -> Formula:
    def formula(t: Any) -> Any:
        at = (mpf(start) + t * (mpf(end) - mpf(start))) / mpf(tau)
        s_0, s, s_1 = (1 / (1 + mpmath.exp(-u)) for u in (mpf(start) / mpf(tau), at, mpf(end) / mpf(tau)))
        return mpmath.log((s_1 - s) / (s - s_0))

    return formula


def flow(t: Any) -> Any:
    return 2 * mpmath.log((1 - t) / t)


def flow_within(half: float) -> Formula:
    def formula(t: Any) -> Any:
        first, last = 1 / (1 + mpmath.exp(half)), 1 / (1 + mpmath.exp(-half))
        return flow(first + (last - first) * t)

    return formula


def lines(*knots: Any) -> Formula:
    def formula(t: Any) -> Any:
        i = min(int(mpmath.floor(t * (len(knots) - 1))), len(knots) - 2)
        return mpf(knots[i]) + (mpf(knots[i + 1]) - mpf(knots[i])) * (t * (len(knots) - 1) - i)

    return formula


def softmax_lines(low: float, high: float, *raw: float) -> Formula:
    def formula(t: Any) -> Any:
        done = [sum(mpmath.exp(mpf(one)) for one in raw[:k]) for k in range(len(raw) + 1)]
        return lines(*(mpf(high) + (mpf(low) - mpf(high)) * part / done[-1] for part in done))(t)

    return formula


KNOTS = (9.5, 3.0, 2.5, 0.0, -4.0, -11.0)
CASES: dict[str, tuple[Schedule, Formula]] = {
    "cosine": (Cosine(), cosine(-20, 20)),
    "cosine, endless": (Cosine(log_snr_min=-INF, log_snr_max=INF), cosine(-INF, INF)),
    "cosine, clean half": (Cosine(log_snr_min=5, log_snr_max=9), cosine(5, 9)),
    "cosine, noisy half": (Cosine(log_snr_min=-40, log_snr_max=-20), cosine(-40, -20)),
    "linear beta": (LinearBeta(), linear_beta(0.1, 20)),
    "linear beta, constant": (LinearBeta(beta_min=12, beta_max=12), linear_beta(12, 12)),
    "flow": (Flow(), flow),
    "geometric": (Geometric(), lambda t: -2 * mpmath.log(mpf(0.01) * (mpf(50) / mpf(0.01)) ** t)),
    "karras": (Karras(), karras(0.002, 80, 7)),
    "karras, rho = 1": (Karras(rho=1), karras(0.002, 80, 1)),
    "linear in log-SNR": (LinearLogSNR(), lambda t: 10 - 20 * t),
    "sigmoid": (Sigmoid(), sigmoid(-3, 3, 1)),
    "sigmoid, steep": (Sigmoid(tau=0.1), sigmoid(-3, 3, 0.1)),
    "sigmoid, one-sided": (Sigmoid(start=0, end=3, tau=0.7), sigmoid(0, 3, 0.7)),
    "sigmoid, flat": (Sigmoid(tau=100), sigmoid(-3, 3, 100)),
    "laplace": (
        Laplace(mu=0.5, b=0.7),
        lambda t: mpf(0.5) + mpf(0.7) * mpmath.sign(0.5 - t) * -mpmath.log(1 - abs(1 - 2 * t)),
    ),
    "cauchy": (Cauchy(), cauchy(0, 1, -20, 20)),
    "cauchy, endless": (Cauchy(mu=-0.5, gamma=0.7, log_snr_min=-INF, log_snr_max=INF), cauchy(-0.5, 0.7, -INF, INF)),
    "sub-vp": (SubVP(), of_alpha(lambda t: mpmath.exp(-integral(t) / 2), lambda t: 1 - mpmath.exp(-integral(t)))),
    "inverse cosine": (InverseCosine(), of_alpha_2(lambda t: mpmath.acos(2 * t - 1) / mpmath.pi)),
    "polynomial": (Polynomial(power=3), of_alpha(lambda t: (1 - t) ** 3, lambda t: 1 - (1 - t) ** 3)),
    "linear vp": (PolynomialVP(), of_alpha_2(lambda t: (1 - t) ** 2)),
    "polynomial vp": (PolynomialVP(power=2), of_alpha_2(lambda t: (1 - t**2) ** 2)),
    "by time": (
        simple_diffusion(128, low=32, high=256),
        lambda t: cosine(-15, 15)(t) + 2 * ((1 - t) * mpmath.log(mpf(2)) - t * mpmath.log(mpf(4))),
    ),
    "shifted": (shift(Cosine(), -1.5), lambda t: cosine(-20, 20)(t) - 1.5),
    "truncated cosine": (truncate(Cosine(log_snr_min=-INF, log_snr_max=INF), -20, 20), cosine(-20, 20)),
    "truncated flow": (truncate(Flow(), -20, 20), flow_within(10)),
    "interpolated": (
        interpolate(Cosine(scaling="flow"), Flow(), 0.25),
        lambda t: 0.75 * cosine(-20, 20)(t) + flow(t) / 4,
    ),
    "table": (Table(log_snrs=KNOTS), lines(*KNOTS)),
    "monotone": (Monotone(increments=np.array([0.0, 0.7, 1.6])), softmax_lines(-10, 10, 0.0, 0.7, 1.6)),
}
