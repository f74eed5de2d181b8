"""Samplers: each is a function that works out a `diffcore.Plan`; none owns a loop, a state or a random generator.

| function | what it solves | order | calls for N steps |
|---|---|---|---|
| `ancestral` | reverse process, variance by gamma | - | N |
| `predictor_corrector` | the same and a Langevin step each | - | 2 N - 1 |
| `ddim` | ODE (eta = 0) to ancestral (eta = 1) | 1 | N |
| `euler`, `heun` | ODE in sigma / alpha, with churn | 1, 2 | N, 2 N - 1 |
| `dpm_solver_pp` | ODE or SDE, exponential multistep 1, 2M, 3M | 1, 2, 3 | N |
| `unipc` | ODE, predictor and free corrector of order p | p + 1 | N |
"""

from diffcore.samplers._table import Sampler, Variant, make, table
from diffcore.samplers._trace import trace
from diffcore.samplers.ancestral import ancestral, predictor_corrector
from diffcore.samplers.ddim import ddim
from diffcore.samplers.edm import euler, heun
from diffcore.samplers.exponential import dpm_solver_pp, unipc

__all__ = [
    "Sampler",
    "Variant",
    "ancestral",
    "ddim",
    "dpm_solver_pp",
    "euler",
    "heun",
    "make",
    "predictor_corrector",
    "table",
    "trace",
    "unipc",
]
