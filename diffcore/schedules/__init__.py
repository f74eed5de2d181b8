"""Noise schedules: decreasing maps t in [0, 1] -> lambda = log(alpha^2 / sigma^2), each with its inverse and its slope.

A schedule is a frozen dataclass of Python floats; `schedule(t)` is a `diffcore.Level`. Any goes with any scaling.
"""

from diffcore.schedules._base import Schedule
from diffcore.schedules._table import from_dict, table, to_dict
from diffcore.schedules.combinators import Shifted, Truncated, shift, truncate
from diffcore.schedules.cosine import Cosine
from diffcore.schedules.exploding import Flow, Geometric, Karras
from diffcore.schedules.interpolated import Interpolated, interpolate
from diffcore.schedules.learned import Monotone
from diffcore.schedules.sigmoid import Sigmoid
from diffcore.schedules.tables import Table, from_alphas_cumprod, from_betas, from_sigmas
from diffcore.schedules.variance_preserving import Laplace, LinearBeta, LinearLogSNR

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
    "from_dict",
    "from_sigmas",
    "interpolate",
    "shift",
    "table",
    "to_dict",
    "truncate",
]
