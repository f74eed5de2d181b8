r"""Grids: the points a sampler visits, as a host array of log-SNRs, (N + 1, *lead), one row per point.

A grid that denoises increases. It may begin and end anywhere; lambda = inf, allowed only at the last point, is clean
data. A grid that ends at t = 0 ends there by default, not at the schedule's finite lambda(0): the network's x-hat is an
estimate of clean data, so the last step may return it exactly, where a step to lambda(0) would mix some of the last
noise back in. A grid that decreases leads from data to noise, for deterministic samplers run backwards.

Starts and ends may be arrays of shape (B,) or (B, T), the lead axes: a level for each sample or each frame.

`table()` has all grids by name, `by_name` makes one.
"""

from diffcore import _explained
from diffcore.grids._base import check
from diffcore.grids._table import by_name, table
from diffcore.grids.curves import beta, bong_tangent, smoothstep
from diffcore.grids.flow import flow_match, resolution_mu, stretch
from diffcore.grids.given import Imported, from_sigmas, from_times, from_timesteps
from diffcore.grids.published import align_your_steps, gits, optimal_steps
from diffcore.grids.spaced import (
    beta_sigmas,
    karras,
    kl_optimal,
    linear_quadratic,
    polyexponential,
    uniform,
    uniform_log_snr,
)
from diffcore.grids.timesteps import ddim_uniform, leading, linspace, normal, simple, trailing

__all__ = [
    "Imported",
    "align_your_steps",
    "beta",
    "beta_sigmas",
    "bong_tangent",
    "by_name",
    "check",
    "ddim_uniform",
    "flow_match",
    "from_sigmas",
    "from_times",
    "from_timesteps",
    "gits",
    "karras",
    "kl_optimal",
    "leading",
    "linear_quadratic",
    "linspace",
    "normal",
    "optimal_steps",
    "polyexponential",
    "resolution_mu",
    "simple",
    "smoothstep",
    "stretch",
    "table",
    "trailing",
    "uniform",
    "uniform_log_snr",
]

_explained.face(
    __name__,
    lambda: {name: f'diffcore.grids.by_name("{name}", schedule, steps)' for name in table() if name not in __all__},
)
