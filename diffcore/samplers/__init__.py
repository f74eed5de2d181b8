"""Samplers: each is a function that works out a `diffcore.Plan`; none owns a loop, a state or a random generator.

| function | what it solves | order | calls for N steps |
|---|---|---|---|
| `ancestral` | reverse process, variance by gamma | - | N |
| `predictor_corrector` | the same and a Langevin step each | - | 2 N - 1 |
| `ddim` | ODE (eta = 0) to ancestral (eta = 1) | 1 | N |
| `euler`, `heun` | ODE in sigma / alpha, with churn | 1, 2 | N, 2 N - 1 |
| `dpm_solver_pp` | ODE or SDE, exponential multistep 1, 2M, 3M | 1, 2, 3 | N |
| `unipc` | ODE, predictor and free corrector of order p | p + 1 | N |
| `euler_ancestral`, `dpm2_ancestral` | Euler's method, DPM2, with noise after each step | - | N, 2 N - 1 |
| `dpm2`, `heunpp` | ODE in sigma / alpha | 2, 1 | 2 N - 1, 3 N - 3 |
| `dpm_solver` | ODE, exponential single-step in eps-hat | 2, 3 | 2 N - 1, 3 N - 2 |
| `dpm_solver_fast` | the same with lower orders at the end, and noise | 2 | 3 N - 3 |
| `dpm_solver_pp_2s`, `dpm_solver_pp_3s` | ODE, exponential single-step in x-hat, 2S with noise | 2, 3 | 2 N - 1, 3 N - 2 |
| `runge_kutta` | ODE, by any explicit Butcher tableau | its own | its stages a step |
| `lms`, `deis` | ODE, multistep in sigma / alpha, in its logarithm | up to 4, 3 | N |
| `ipndm`, `plms`, `pndm` | ODE, multistep with the weights of even steps | 2 | N, N + 1, N + 9 |
| `gradient_estimation` | ODE, Euler's method with extrapolated slopes | 1 | N |
| `er_sde` | ODE to SDE, multistep in x-hat | - | N |
| `seeds`, `dpm_solver_pp_sde` | SDE, exponential single-step | - | 2 N - 1 |
| `restart` | ODE by `heun`, and back to more noise now and then | - | as many as its steps take |
| `lcm`, `tcd` | consistency models: x-hat, or most of the way to it, with fresh noise | - | N |
| `flow_grpo`, `cps` | SDE, for reinforcement learning | - | N |
| `euler_cfg_pp`, `dpm_solver_pp_2m_cfg_pp`, `dpm_solver_pp_2s_cfg_pp` | ODE, with CFG++ | - | N, N, 2 N - 1 |
| `flow_map` | flow maps, average velocities | - | N |
| `sa_solver` | ODE to SDE, multistep predictor and free corrector | its corrector's | N |
| `res_2s`, `res_3s`, `res_multistep` | ODE, exponential, the last with noise | 2, 3, 2 | 2 N - 1, 3 N - 2, N |
"""

from diffcore import _explained
from diffcore.samplers._aliases import aliases
from diffcore.samplers._table import Sampler, Variant, make, table
from diffcore.samplers._trace import trace
from diffcore.samplers.adams import gradient_estimation, ipndm, lms
from diffcore.samplers.ancestral import ancestral, predictor_corrector
from diffcore.samplers.cfg_pp import dpm_solver_pp_2m_cfg_pp, dpm_solver_pp_2s_cfg_pp, euler_cfg_pp, flow_map
from diffcore.samplers.ddim import ddim
from diffcore.samplers.deis import deis
from diffcore.samplers.dpm_solver import dpm_solver, dpm_solver_pp_2s, dpm_solver_pp_3s
from diffcore.samplers.dpm_solver_pp import dpm_solver_pp
from diffcore.samplers.er_sde import er_sde
from diffcore.samplers.euler import euler
from diffcore.samplers.fast import dpm_solver_fast
from diffcore.samplers.flow_sde import cps, flow_grpo
from diffcore.samplers.heun import heun
from diffcore.samplers.heunpp import heunpp
from diffcore.samplers.k_euler import dpm2, dpm2_ancestral, euler_ancestral
from diffcore.samplers.least import least
from diffcore.samplers.pndm import plms, pndm
from diffcore.samplers.renoising import lcm, tcd
from diffcore.samplers.res import res_2s, res_3s, res_multistep
from diffcore.samplers.restart import restart
from diffcore.samplers.runge_kutta import runge_kutta
from diffcore.samplers.sa_solver import sa_solver
from diffcore.samplers.seeds import dpm_solver_pp_sde, seeds
from diffcore.samplers.unipc import unipc

__all__ = [
    "Sampler",
    "Variant",
    "aliases",
    "ancestral",
    "cps",
    "ddim",
    "deis",
    "dpm2",
    "dpm2_ancestral",
    "dpm_solver",
    "dpm_solver_fast",
    "dpm_solver_pp",
    "dpm_solver_pp_2m_cfg_pp",
    "dpm_solver_pp_2s",
    "dpm_solver_pp_2s_cfg_pp",
    "dpm_solver_pp_3s",
    "dpm_solver_pp_sde",
    "er_sde",
    "euler",
    "euler_ancestral",
    "euler_cfg_pp",
    "flow_grpo",
    "flow_map",
    "gradient_estimation",
    "heun",
    "heunpp",
    "ipndm",
    "lcm",
    "least",
    "lms",
    "make",
    "plms",
    "pndm",
    "predictor_corrector",
    "res_2s",
    "res_3s",
    "res_multistep",
    "restart",
    "runge_kutta",
    "sa_solver",
    "seeds",
    "table",
    "tcd",
    "trace",
    "unipc",
]


def _here() -> dict[str, str]:
    """Return the names of other libraries with what makes the same here."""
    parts = {
        name: [here, *(f"{key}={value!r}" for key, value in more.items())] for name, (here, more) in aliases().items()
    }
    return {
        name: f"diffcore.samplers.{here}({', '.join(['schedule', 'steps', *more])})"
        for name, (here, *more) in parts.items()
    }


_explained.face(__name__, _here)
