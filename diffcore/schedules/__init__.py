"""Noise schedules: decreasing maps t in [0, 1] -> lambda = log(alpha^2 / sigma^2), each with its inverse and its slope.

A schedule is a frozen dataclass of Python floats; `schedule(t)` is a `diffcore.Level`. Any goes with any scaling.
"""

from diffcore import _explained
from diffcore.schedules._base import Schedule
from diffcore.schedules._table import from_dict, table, to_dict
from diffcore.schedules.combinators import Shifted, Truncated, shift, truncate
from diffcore.schedules.cosine import Cosine, InverseCosine
from diffcore.schedules.exploding import Flow, Geometric, Karras
from diffcore.schedules.interpolated import Interpolated, interpolate
from diffcore.schedules.learned import Monotone
from diffcore.schedules.named import betas, by_name, named, simple_diffusion, zero_terminal_snr
from diffcore.schedules.polynomial import Polynomial, PolynomialVP
from diffcore.schedules.sigmoid import Sigmoid
from diffcore.schedules.tables import Table, from_alphas_cumprod, from_betas, from_sigmas
from diffcore.schedules.variance_preserving import Cauchy, Laplace, LinearBeta, LinearLogSNR, SubVP

__all__ = [
    "Cauchy",
    "Cosine",
    "Flow",
    "Geometric",
    "Interpolated",
    "InverseCosine",
    "Karras",
    "Laplace",
    "LinearBeta",
    "LinearLogSNR",
    "Monotone",
    "Polynomial",
    "PolynomialVP",
    "Schedule",
    "Shifted",
    "Sigmoid",
    "SubVP",
    "Table",
    "Truncated",
    "betas",
    "by_name",
    "from_alphas_cumprod",
    "from_betas",
    "from_dict",
    "from_sigmas",
    "interpolate",
    "named",
    "shift",
    "simple_diffusion",
    "table",
    "to_dict",
    "truncate",
    "zero_terminal_snr",
]

_explained.face(__name__, lambda: {name: f'diffcore.schedules.by_name("{name}")' for name in named()})
