r"""Times to train at: uniforms that are pure functions of a seed, and densities that turn them into t in [0, 1].

    u = independent(seed, draw, B)      or stratified(...), or antithetic(...)
    t = density(u)                      t has the density p(t): Uniform, LogitNormal, LogNormal, Mode, CosMap, Beta, Shifted

`density.log_density(t)` is log p(t), so that E_{t ~ p}[f(t) / p(t)] is the integral of f over [0, 1] whatever the
density: divide the loss by p to train with a weight that is meant for uniform t.

The uniforms come from the bits of `diffcore.noise`, in a stream of their own: equal on every library and device, and
independent of the noise that samplers draw from the same seed. They are never 0 or 1. For levels by frame draw a shape
(B, T), or make one of the draws with `monotone` or `pyramid`.
"""

from diffcore import _explained
from diffcore.times._table import table
from diffcore.times.curves import Beta, CosMap, Mode, Shifted
from diffcore.times.densities import Density, LogitNormal, LogNormal, Uniform
from diffcore.times.uniforms import antithetic, independent, monotone, pyramid, stratified

__all__ = [
    "Beta",
    "CosMap",
    "Density",
    "LogNormal",
    "LogitNormal",
    "Mode",
    "Shifted",
    "Uniform",
    "antithetic",
    "independent",
    "monotone",
    "pyramid",
    "stratified",
    "table",
]

_explained.face(__name__)
