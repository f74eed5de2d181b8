"""The table of samplers, which tests, benchmarks and the command line walk: a new sampler is one file and one row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from diffcore import _check, grids
from diffcore.plan import Plan
from diffcore.samplers._aliases import aliases
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
from diffcore.samplers.pndm import plms, pndm
from diffcore.samplers.renoising import lcm, tcd
from diffcore.samplers.res import res_2s, res_3s, res_multistep
from diffcore.samplers.restart import restart
from diffcore.samplers.runge_kutta import runge_kutta
from diffcore.samplers.sa_solver import sa_solver
from diffcore.samplers.seeds import dpm_solver_pp_sde, seeds
from diffcore.samplers.unipc import unipc
from diffcore.schedules import Schedule


class Variant(NamedTuple):
    """Settings that deserve tests of their own, and the properties that they have.

    Fields:
        settings: of the sampler.
        order: the order of convergence to the probability-flow ODE, or None where there is noise, or where it depends on the grid.
        weak: the order at which the variance that is drawn of Gaussian data converges, or None where it does not.
        marginal: whether, given x, a run goes through the marginals q(z_t | x).
        composes: whether, for a fixed x-hat, two steps t -> s -> u are one step t -> u, in distribution where there is noise, and
            to ten digits, which PNDM's Runge-Kutta steps lose where they are very long.
        pure_noise: whether a run may start at log_snr = -inf under "flow".
    """

    settings: Mapping[str, Any]
    order: int | None = None
    weak: int | None = None
    marginal: bool = True
    composes: bool = True
    pure_noise: bool = True


class Sampler(NamedTuple):
    """A row of the table.

    Fields:
        make: (schedule, steps, *, grid, **settings) -> Plan.
        calls: the number of steps to clean data -> how often the denoiser is called.
        variants: the settings that are tested and timed, from the default ones to the most general.
        ranges: of settings in random tests: ints or names to choose from, or two floats to draw between.
    """

    make: Callable[..., Plan]
    calls: Callable[[int], int]
    variants: tuple[Variant, ...]
    ranges: Mapping[str, tuple[float, ...] | tuple[str, ...]]

    def __repr__(self) -> str:
        """Return the call that it stands for, with the names of its settings."""
        settings = dict.fromkeys([name for variant in self.variants for name in variant.settings])
        return f"<{getattr(self.make, '__name__', self.make)}({', '.join(['schedule, steps', *settings])})>"


def _once(steps: int) -> int:
    return steps


def _twice(steps: int) -> int:
    return 2 * steps - 1


def _thrice(steps: int) -> int:
    return 3 * steps - 2


def table() -> dict[str, Sampler]:
    """Return the table of samplers, by name: the function of each, its calls, and its variants with their orders.

    >>> table()["heun"].calls(10)
    19
    """
    churned = Variant({"churn": 4.0, "noise_scale": 1.003}, marginal=False, composes=False, pure_noise=False)
    return {
        "ancestral": Sampler(
            ancestral,
            _once,
            (
                Variant({}, weak=1),
                Variant({"gamma": 0.3}, weak=1, marginal=False, composes=False),
                Variant({"gamma": 1.0}, weak=1, marginal=False, composes=False),
            ),
            {"gamma": (0.0, 1.0)},
        ),
        "predictor_corrector": Sampler(
            predictor_corrector,
            _twice,
            (
                Variant({}, marginal=False, composes=False),
                Variant({"gamma": 0.3, "delta": 0.2}, marginal=False, composes=False),
            ),
            {"gamma": (0.0, 1.0), "delta": (0.0, 1.0)},
        ),
        "ddim": Sampler(
            ddim,
            _once,
            (Variant({}, 1), Variant({"eta": 0.5}, weak=1, composes=False), Variant({"eta": 1.0}, weak=1)),
            {"eta": (0.0, 1.0)},
        ),
        "euler": Sampler(euler, _once, (Variant({}, 1), churned), {"churn": (0.0, 1.0)}),
        "heun": Sampler(heun, _twice, (Variant({}, 2), churned), {"churn": (0.0, 1.0)}),
        "dpm_solver_pp": Sampler(
            dpm_solver_pp,
            _once,
            (
                Variant({}, 2),
                Variant({"order": 1}, 1),
                Variant({"order": 3}, 3),
                Variant({"order": 1, "eta": 1.0}, weak=1),
                Variant({"order": 2, "eta": 0.5}, weak=2),
                Variant({"order": 2, "eta": 1.0}, weak=2),
                Variant({"order": 3, "eta": 1.0}, weak=2),
                Variant({"order": 3, "solver": "heun"}, 2),
            ),
            {"order": (1, 2, 3), "eta": (0.0, 1.0)},
        ),
        "unipc": Sampler(
            unipc,
            _once,
            (
                Variant({}, 3),
                Variant({"order": 1}, 2),
                Variant({"order": 3}, 4),
                Variant({"order": 2, "variant": "bh2"}, 3),
            ),
            {"order": (1, 2, 3)},
        ),
        "euler_ancestral": Sampler(
            euler_ancestral,
            _once,
            (Variant({}, weak=1, composes=False), Variant({"eta": 0.5}, weak=1, composes=False)),
            {"eta": (0.0, 1.0)},
        ),
        "dpm2": Sampler(dpm2, _twice, (Variant({}, 2),), {}),
        "dpm2_ancestral": Sampler(dpm2_ancestral, _twice, (Variant({}, weak=2, composes=False),), {"eta": (0.0, 1.0)}),
        "heunpp": Sampler(heunpp, lambda steps: max(3 * steps - 3, 1), (Variant({}, 1),), {}),
        "dpm_solver_pp_2s": Sampler(
            dpm_solver_pp_2s,
            _twice,
            (Variant({}, 2, pure_noise=False), Variant({"eta": 1.0}, weak=2, composes=False, pure_noise=False)),
            {"eta": (0.0, 1.0)},
        ),
        "dpm_solver_pp_3s": Sampler(dpm_solver_pp_3s, _thrice, (Variant({}, 3, pure_noise=False),), {}),
        "dpm_solver": Sampler(
            dpm_solver,
            _twice,
            (Variant({}, 2, pure_noise=False), Variant({"order": 3}, 3, pure_noise=False)),
            {"order": (2, 3)},
        ),
        "dpm_solver_fast": Sampler(
            dpm_solver_fast,
            lambda steps: max(3 * steps - 3, 1),
            (Variant({}, 2, pure_noise=False), Variant({"eta": 0.7}, weak=2, composes=False, pure_noise=False)),
            {"eta": (0.0, 1.0)},
        ),
        "runge_kutta": Sampler(
            runge_kutta,
            lambda steps: 4 * steps - 3,
            (Variant({}, 4), Variant({"tableau": "kutta3", "variable": "lambda"}, 3, pure_noise=False)),
            {"tableau": ("midpoint", "ralston", "kutta3", "rk4"), "variable": ("rho", "ratio", "lambda")},
        ),
        "lms": Sampler(lms, _once, (Variant({}), Variant({"order": 2}, 2)), {"order": (1, 2, 3, 4)}),
        "ipndm": Sampler(ipndm, _once, (Variant({}),), {"order": (1, 2, 3, 4)}),
        "plms": Sampler(plms, lambda steps: steps + (steps > 1), (Variant({}),), {}),
        "pndm": Sampler(pndm, lambda steps: steps + 3 * min(steps - 1, 3), (Variant({}, composes=False),), {}),
        "deis": Sampler(deis, _once, (Variant({}), Variant({"order": 2}, 2)), {"order": (1, 2, 3)}),
        "gradient_estimation": Sampler(gradient_estimation, _once, (Variant({}, 1),), {"gamma": (1.0, 3.0)}),
        "res_2s": Sampler(res_2s, _twice, (Variant({}, 2, pure_noise=False),), {}),
        "res_3s": Sampler(res_3s, _thrice, (Variant({}, 3, pure_noise=False),), {}),
        "res_multistep": Sampler(
            res_multistep, _once, (Variant({}, 2), Variant({"eta": 1.0}, weak=2, composes=False)), {"eta": (0.0, 1.0)}
        ),
        "sa_solver": Sampler(
            sa_solver,
            _once,
            (
                Variant({}, weak=2, pure_noise=False),
                Variant({"order": 3, "corrector_order": 4, "tau": 0.0, "variant": None, "mode": "pece"}, 4),
            ),
            {"order": (1, 2, 3), "tau": (0.0, 1.0)},
        ),
        "er_sde": Sampler(
            er_sde,
            _once,
            (Variant({}, weak=2), Variant({"noise": "ode"}, 2)),
            {"order": (1, 2, 3), "noise": ("er", "sde", "ode")},
        ),
        "seeds": Sampler(
            seeds,
            _twice,
            (Variant({}, weak=2, pure_noise=False), Variant({"order": 3, "eta": 0.5}, weak=2, pure_noise=False)),
            {"order": (2, 3), "eta": (0.0, 1.0)},
        ),
        "dpm_solver_pp_sde": Sampler(
            dpm_solver_pp_sde, _twice, (Variant({}, weak=2, pure_noise=False),), {"eta": (0.0, 1.0)}
        ),
        "lcm": Sampler(lcm, _once, (Variant({}),), {}),
        "tcd": Sampler(tcd, _once, (Variant({}, composes=False),), {"gamma": (0.0, 1.0)}),
        "flow_grpo": Sampler(
            flow_grpo, _once, (Variant({}, weak=1, marginal=False, composes=False),), {"noise": (0.1, 1.0)}
        ),
        "cps": Sampler(cps, _once, (Variant({}, composes=False),), {"eta": (0.0, 1.0)}),
        "restart": Sampler(restart, lambda steps: 2 * steps - 1 + 6 * (steps > 1), (Variant({}, composes=False),), {}),
    }


def others() -> dict[str, Callable[..., Plan]]:
    """Return, by name, the samplers whose plans need more of a denoiser than a prediction at (z, log_snr).

    >>> sorted(others())[-1]
    'flow_map'
    """
    return {
        "euler_cfg_pp": euler_cfg_pp,
        "dpm_solver_pp_2m_cfg_pp": dpm_solver_pp_2m_cfg_pp,
        "dpm_solver_pp_2s_cfg_pp": dpm_solver_pp_2s_cfg_pp,
        "flow_map": flow_map,
    }


def make(sampler: str, schedule: Schedule, steps: int | None = None, *, grid: Any = None, **settings: Any) -> Plan:
    """Return the plan of a sampler that is known by name.

    Args:
        sampler: a name of `table`, of `others`, or of `aliases`.
        schedule, steps, grid: as for every sampler.
        settings: of that sampler; they come before those of an alias.

    Raises:
        ValueError: an unknown name; errors of the sampler itself.

    >>> import diffcore as dc
    >>> schedule = dc.schedules.Cosine()
    >>> plan = dc.samplers.ancestral(schedule, steps=64, gamma=0.3)
    >>> make(schedule=schedule, grid=dc.grids.uniform_log_snr(schedule, 8), **plan.settings)
    <Plan ancestral(gamma=0.3), vp, 8 stages, memory 0>
    """
    known = {name: row.make for name, row in table().items()} | others()
    if isinstance(sampler, str) and sampler in aliases():
        sampler, more = aliases()[sampler]
        settings = {**more, **settings}
    return known[chosen("samplers.make", sampler, known)](schedule, steps, grid=grid, **settings)


def chosen(function: str, sampler: Any, known: Collection[str]) -> str:
    """Return a name of a sampler that is known, or raise with what may be meant, `aliases` among it."""
    hint = f"samplers.aliases() has {len(aliases())} names of other libraries; a sampler of your own is made by its own function"
    if isinstance(sampler, str) and "adaptive" in sampler.lower():
        hint = "for steps of adaptive size see dc.sample_adaptive"
    elif isinstance(sampler, str) and sampler.endswith("Scheduler"):
        hint = "interop.diffusers.plan(scheduler, steps) reads one of diffusers, or says what draws the same here"
    elif isinstance(sampler, str) and sampler in grids.table():
        hint = f"that is a grid, for every sampler: grid=grids.by_name({sampler!r}, schedule, steps)"
    return _check.choice(function, "sampler", sampler, sorted(known), hint=hint, others=aliases())
