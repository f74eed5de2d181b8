"""Noise schedules: decreasing maps t in [0, 1] -> lambda = log(alpha^2 / sigma^2), each with its inverse and its slope.

A schedule is a frozen dataclass of Python floats. `schedule(t)` is a `diffcore.Level`.
"""

from diffcore.schedules._base import Schedule
from diffcore.schedules.combinators import Interpolated, Shifted, Truncated, interpolate, shift, truncate
from diffcore.schedules.exploding import Flow, Geometric, Karras
from diffcore.schedules.preserving import Cosine, Laplace, LinearBeta, LinearLogSNR, Sigmoid
from diffcore.schedules.tables import Monotone, Table, from_alphas_cumprod, from_betas, from_sigmas

__all__ = [
    "Cosine",
    "Flow",
    "Geometric",
    "Interpolated",
    "Karras",
    "Laplace",
    "LinearBeta",
    "LinearLogSNR",
    "Monotone",
    "Schedule",
    "Shifted",
    "Sigmoid",
    "Table",
    "Truncated",
    "from_alphas_cumprod",
    "from_betas",
    "from_sigmas",
    "interpolate",
    "shift",
    "truncate",
]
