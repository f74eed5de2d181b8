r"""Samplers called ancestral in k-diffusion: a step goes from t to a level d below s, then adds noise up to s.

    z_s = (alpha_s / alpha_d) z_d + sqrt(sigma_s^2 - (alpha_s sigma_d / alpha_d)^2) noise_scale eps

With r = sigma / alpha, r_d^2 = r_s^2 (1 - eta^2 (1 - r_s^2 / r_t^2)), so that the noise is eta times that of the posterior
q(z_s | z_t, x); under "flow" sigma_d = sigma_s (1 + eta (sigma_s / sigma_t - 1)), as those who train it do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffcore import _check
from diffcore.plan import Float64
from diffcore.samplers._written import Draw, Point, Vector


def check_noise(function: str, eta: object, noise_scale: object) -> None:
    """Raise ValueError for an eta outside [0, 1], or a noise scale that is not positive."""
    _check.number(function, "eta", eta, 0.0, 1.0, hint="0 is deterministic")
    _check.number(function, "noise_scale", noise_scale, 0.0, open_low=True)


class Down(NamedTuple):
    """A level below s, and the noise from there up to s, as a share of sigma_s; None where there is none."""

    level: Point
    noise: Float64 | None


def down(t: Point, s: Point, eta: float, *, by_ratio: bool = False) -> Down:
    """Return the level below s that a step from t goes to, under "flow" by sigma / alpha if so wanted."""
    if not eta:
        return Down(s, None)
    if s.scaling == "flow" and not by_ratio:
        share = eta * (1.0 - s.sigma / t.sigma)
        noise = np.sqrt(share * (1.0 + s.ratio) * (2.0 + share * (s.ratio - 1.0))) / (1.0 + share * s.ratio)
        return Down(s.at_rho(s.sigma * (1.0 - share)), noise)
    step = 2.0 * (t.half - s.half)
    d = s.at_half(s.half - 0.5 * np.log((1.0 - eta**2) + eta**2 * np.exp(step)))
    return Down(d, eta * np.sqrt(-np.expm1(step)))


def up(z: Vector, d: Down, s: Point, noise_scale: float, draw: Draw) -> Vector:
    """Return z with noise from a level up to s."""
    if d.noise is None:
        return z
    return z * (s.alpha / d.level.alpha) + draw() * (noise_scale * s.sigma * d.noise)
