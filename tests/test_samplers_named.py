"""Samplers that are known by name: their orders, what they become at the ends of their settings, and what they refuse.

That each is the loop it was published as, with the least memory, is tested in test_trace.py, from the loops in named_cases.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sampler_cases import every_scaling, schedule_of
from trace_cases import Grid

import diffcore as dc
from diffcore.testing.convergence import UNEVEN, order_of_convergence

S = dc.samplers
LONG = dc.schedules.LinearLogSNR(log_snr_min=-30.0, log_snr_max=30.0)
GRID = np.array([-6.0, -3.5, -2.0, 0.5, 1.0, 4.0])
CLEAN = np.append(GRID, np.inf)


def order(
    make: Callable[..., dc.Plan], gaps: tuple[float, ...] = (1.0,), start: float = -12.0, **settings: Any
) -> float:
    return order_of_convergence(lambda grid: make(LONG, grid=grid, **settings), gaps=gaps, log_snrs=(start, 6.0)).order


@pytest.mark.parametrize("gaps", [(1.0,), UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize(
    ("make", "settings", "want"),
    [
        (S.lms, {"order": 4}, 4.0),
        (S.lms, {"order": 3}, 3.0),
        (S.deis, {"order": 3}, 3.0),
        (S.dpm_solver_pp, {"solver": "heun"}, 2.0),
        (S.er_sde, {"order": 1, "noise": "ode"}, 1.0),
        (S.er_sde, {"order": 2, "noise": "sde"}, 2.0),
        (S.seeds, {"order": 3, "eta": 0.0}, 3.0),
        (S.sa_solver, {"order": 2, "corrector_order": 1, "tau": 0.0}, 1.0),
        (S.sa_solver, {"order": 2, "corrector_order": 2, "tau": 0.0, "mode": "pece"}, 2.0),
        (S.runge_kutta, {"tableau": "midpoint", "variable": "lambda"}, 2.0),
        (S.runge_kutta, {"tableau": "ralston", "variable": "ratio"}, 2.0),
        (S.runge_kutta, {"tableau": "kutta3"}, 3.0),
        (S.runge_kutta, {"tableau": "rk4", "variable": "lambda"}, 4.0),
    ],
)
def test_orders(make: Any, settings: dict[str, Any], want: float, gaps: tuple[float, ...]) -> None:
    assert order(make, gaps, start=-28.0 if make is S.deis else -12.0, **settings) == pytest.approx(want, abs=0.3)


def test_dormand_and_prince_have_order_5() -> None:
    """Over lambda: over sigma / alpha the curves of Gaussian data are hyperbolas, which do better."""

    def make(grid: Any) -> dc.Plan:
        return S.runge_kutta(LONG, grid=grid, tableau="dopri5", variable="lambda")

    found = order_of_convergence(make, steps=(16, 32, 64), log_snrs=(-2.0, 6.0))
    assert found.order == pytest.approx(5.0, abs=0.2)


@pytest.mark.parametrize("make", [S.ipndm, S.plms, S.pndm])
def test_weights_of_even_steps_have_order_2_on_smooth_grids_and_1_on_others(make: Any) -> None:
    assert order(make) == pytest.approx(2.0, abs=0.1)
    assert order(make, UNEVEN) == pytest.approx(1.0, abs=0.1)


def test_the_published_3m_is_of_order_2_and_ours_of_order_3() -> None:
    assert order(S.dpm_solver_pp, order=3, solver="heun") == pytest.approx(2.0, abs=0.1)
    assert order(S.dpm_solver_pp, order=3) == pytest.approx(3.0, abs=0.15)


SAME: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("tcd", {"gamma": 0.0}, "ddim", {}),
    ("cps", {"eta": 0.0}, "ddim", {}),
    ("cps", {"eta": 1.0}, "lcm", {}),
    ("deis", {"order": 1}, "ddim", {}),
    ("lms", {"order": 1}, "euler", {}),
    ("ipndm", {"order": 1}, "euler", {}),
    ("gradient_estimation", {"gamma": 1.0}, "euler", {}),
    ("gradient_estimation", {"gamma": 1.5}, "ipndm", {"order": 2}),
    ("er_sde", {"order": 1, "noise": "ode"}, "ddim", {}),
    ("er_sde", {"order": 1, "noise": "sde"}, "ancestral", {}),
    ("seeds", {"eta": 0.0}, "dpm_solver_pp_2s", {}),
    ("seeds", {"eta": 0.0, "order": 3}, "dpm_solver_pp_3s", {}),
    ("dpm_solver_pp_sde", {"eta": 0.0}, "dpm_solver_pp_2s", {}),
    ("dpm2_ancestral", {"eta": 0.0}, "dpm2", {}),
    ("res_multistep", {}, "dpm_solver_pp", {"solver": "heun"}),
    ("runge_kutta", {"tableau": ([[], [1.0]], [0.5, 0.5], [0.0, 1.0])}, "heun", {}),
    ("sa_solver", {"corrector_order": 3, "tau": 0.0, "variant": None}, "unipc", {}),
    ("restart", {"intervals": ()}, "heun", {}),
]


@every_scaling
@pytest.mark.parametrize("case", SAME, ids=lambda case: f"{case[0]} {case[1]}")
@pytest.mark.parametrize("grid", [GRID, CLEAN], ids=["noisy", "clean"])
def test_the_ends_of_a_family_are_others(case: Any, scaling: str, grid: Any) -> None:
    name, settings, other, others = case
    schedule = schedule_of(scaling)
    first = S.make(name, schedule, grid=grid, **settings)
    second = S.make(other, schedule, grid=grid, **others)
    assert_same_responses(first, second)


def assert_same_responses(first: dc.Plan, second: dc.Plan) -> None:
    """Every state of both as a combination of the start, the noises and the estimates; Heun's table has another memory."""
    from diffcore.samplers._least import responses

    assert first.log_snr == pytest.approx(second.log_snr, abs=1e-12)
    one, two = (responses(plan.update) for plan in (first, second))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-12 * np.abs(two).max())


@every_scaling
def test_euler_ancestral_is_ddim_with_noise_but_for_flow(scaling: str) -> None:
    for eta in (0.3, 1.0):
        first = S.euler_ancestral(schedule_of(scaling), grid=CLEAN, eta=eta).update
        same = np.allclose(first, S.ddim(schedule_of(scaling), grid=CLEAN, eta=eta).update, rtol=0, atol=1e-12)
        assert same == (scaling != "flow")


@pytest.mark.parametrize("name", ["lms", "ipndm", "plms", "pndm"])
def test_a_full_last_step_goes_on_as_before(name: str) -> None:
    """To clean data from the slopes alone: the limit of ends that are ever cleaner, of which x-hat is not one."""
    full = S.make(name, schedule_of("vp"), grid=CLEAN, final="full")
    near = S.make(name, schedule_of("vp"), grid=np.append(GRID, 60.0))
    np.testing.assert_allclose(full.update[-1, 0], near.update[-1, 0], rtol=0, atol=1e-10)
    assert np.any(full.update[-1, 0, 1:-2] != 0.0)


@pytest.mark.parametrize("name", ["deis", "dpm_solver_pp", "unipc"])
def test_lower_orders_at_the_end(name: str) -> None:
    plan = S.make(name, schedule_of("vp"), grid=GRID, order=3, lower_order_final=True)
    full = S.make(name, schedule_of("vp"), grid=GRID, order=3)
    np.testing.assert_array_equal(plan.update[:-2], full.update[:-2])
    first = S.make("ddim", schedule_of("vp"), grid=GRID).update[-1, 0]
    if name != "unipc":  # whose last stage corrects, too
        np.testing.assert_allclose(plan.update[-1, 0, [0, -1]], first[[0, -1]], rtol=1e-12)
        assert not np.any(plan.update[-1, 0, 1:-2])


def guided(z: Any, log_snr: Any) -> tuple[Any, Any]:
    """x-hat with guidance, and without."""
    return np.tanh(z) + 0.3 * np.cos(z), np.tanh(0.8 * z)


class Guided:
    def __call__(self, z: Any, log_snr: Any) -> Any:
        return guided(z, log_snr)[0]

    def with_unguided(self, z: Any, log_snr: Any) -> Any:
        return guided(z, log_snr)


def run(plan: dc.Plan, z: Any) -> Any:
    return dc.sample(Guided(), plan, z, prediction="x")


@every_scaling
def test_cfg_pp_goes_to_the_guided_estimate_along_unguided_noise(scaling: str) -> None:
    g, schedule = Grid(CLEAN, scaling), schedule_of(scaling)
    start = np.random.default_rng(3).normal(size=(1, 4)) * g.sigma[0]
    euler, two_m, two_s, past = start, start, start, None
    lam = 0.5 * g.log_snr
    for k in range(len(g)):
        ratio, h = g.sigma[k + 1] / g.sigma[k], lam[k + 1] - lam[k]
        x, u = guided(euler, None)
        euler = g.alpha[k + 1] * x + g.sigma[k + 1] * (euler - g.alpha[k] * u) / g.sigma[k]
        x, u = guided(two_m, None)
        two_m = g.alpha[k + 1] * x + ratio * (two_m - g.alpha[k] * u)
        if past is not None and np.isfinite(h):
            two_m = two_m - g.alpha[k + 1] * np.expm1(-h) * 0.5 * h / (lam[k] - lam[k - 1]) * (x - past)
        past = u
        x, u = guided(two_s, None)
        if np.isinf(h):
            two_s = x
            continue
        m = dc.levels.level(lam[k] + lam[k + 1], scaling)
        w = two_s + g.alpha[k] * (x - u)
        middle = m.sigma / g.sigma[k] * w - m.alpha * np.expm1(-h / 2.0) * x
        two_s = ratio * w - g.alpha[k + 1] * np.expm1(-h) * guided(middle, None)[0]
    for plan, want in [
        (S.euler_cfg_pp(schedule, grid=CLEAN), euler),
        (S.dpm_solver_pp_2m_cfg_pp(schedule, grid=CLEAN), two_m),
        (S.dpm_solver_pp_2s_cfg_pp(schedule, grid=CLEAN), two_s),
    ]:
        np.testing.assert_allclose(run(plan, start), want, rtol=0, atol=1e-12 * np.abs(start).max())
        assert S.make(schedule=schedule, grid=CLEAN, **plan.settings) == plan


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("euler_cfg_pp", "ddim"),
        ("dpm_solver_pp_2m_cfg_pp", "dpm_solver_pp"),
        ("dpm_solver_pp_2s_cfg_pp", "dpm_solver_pp_2s"),
    ],
)
def test_cfg_pp_without_guidance_is_the_sampler(name: str, other: str) -> None:
    data = dc.exact.Gaussian(np.array([1.0, 0.0]), np.array([0.3, 2.0]))
    for grid in (GRID, CLEAN):
        first, second = (dc.exact.moments(S.make(n, schedule_of("vp"), grid=grid), data) for n in (name, other))
        np.testing.assert_allclose(first.covariance, second.covariance, rtol=1e-11)
        np.testing.assert_allclose(first.mean, second.mean, rtol=1e-11)


@pytest.mark.parametrize("lead", [(2,), (2, 3)])
@pytest.mark.parametrize("name", sorted(S._table.others()))
def test_levels_of_many_samples_and_frames(name: str, lead: tuple[int, ...]) -> None:
    grid = CLEAN.reshape(-1, *(1,) * len(lead)) + 0.1 * np.arange(np.prod(lead)).reshape(lead)
    together = S.make(name, schedule_of("vp"), grid=grid)
    for where in np.ndindex(lead):
        alone = S.make(name, schedule_of("vp"), grid=grid[(slice(None), *where)])
        np.testing.assert_allclose(together.update[(slice(None), *where)], alone.update, rtol=1e-12, atol=1e-14)


def test_a_flow_map_takes_its_average_velocity() -> None:
    schedule, z, seen = dc.schedules.Flow(), np.array([[0.3, -2.0]]), []

    def velocity(z: Any, log_snr: Any, next_log_snr: Any) -> Any:
        seen.append((float(schedule.time(log_snr)[0]), float(schedule.time(next_log_snr)[0])))
        return np.tanh(z) * (1.0 + seen[-1][0] - seen[-1][1])

    got = dc.sample(velocity, S.flow_map(schedule, 4), z, prediction="flow")
    for t, s in [(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]:
        z = z - (t - s) * np.tanh(z) * (1.0 + t - s)
    np.testing.assert_allclose(seen, [(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)], atol=1e-12)
    np.testing.assert_allclose(got, z, rtol=1e-12)


def test_a_consistency_model_keeps_its_least_noise() -> None:
    plan = S.lcm(dc.schedules.Karras(), grid=-2.0 * np.log([80.0, 2.0, 0.002]), floor=0.002)
    np.testing.assert_allclose(plan.update[:, 0, 1], [np.sqrt(4.0 - 0.002**2), 0.0], atol=1e-10)


def test_restart_goes_back_as_often_as_it_is_asked_to() -> None:
    schedule = dc.schedules.Karras()
    plan = S.restart(schedule, grid=dc.grids.karras(schedule, 18), intervals=((0.05, 0.3, 3, 2), (1.0, 4.0, 2, 1)))
    assert len(plan) == 35 + 2 * 6 + 4
    back = np.flatnonzero(plan.next_log_snr < plan.log_snr - 1e-9)
    np.testing.assert_allclose(plan.next_log_snr[:-1], plan.log_snr[1:], rtol=0, atol=1e-12)
    grown = np.exp(0.5 * (plan.log_snr[back] - plan.next_log_snr[back]))
    np.testing.assert_allclose(grown, [4.0, 6.0, 6.0], rtol=1e-12)
    assert [int(k) for k in np.flatnonzero(plan.noisy)] == back.tolist()


BAD: list[tuple[Callable[[Any], Any], str]] = [
    (lambda s: S.euler_ancestral(s, 4, eta=1.5), "`eta` must be"),
    (lambda s: S.dpm2_ancestral(s, 4, noise_scale=0.0), "`noise_scale` must be"),
    (lambda s: S.dpm_solver(s, 4, order=1), "`order` must be"),
    (lambda s: S.runge_kutta(s, 4, tableau="rk5"), "`tableau` must be"),
    (lambda s: S.runge_kutta(s, 4, tableau=([[], [0.5]], [0.5, 0.5], [0.0, 1.0])), "`tableau` must be"),
    (lambda s: S.runge_kutta(s, 4, tableau=([[0.0], [0.5]], [0.5, 0.5], [0.0, 0.5])), "`tableau` must be"),
    (lambda s: S.runge_kutta(s, 4, tableau=3), "`tableau` must be"),
    (lambda s: S.runge_kutta(s, 4, variable="time"), "`variable` must be"),
    (lambda s: S.lms(s, 4, order=5), "`order` must be"),
    (lambda s: S.lms(s, 4, final="heun"), "`final` must be"),
    (lambda s: S.pndm(s, 4, final="heun"), "`final` must be"),
    (lambda s: S.gradient_estimation(s, 4, gamma=0.5), "`gamma` must be"),
    (lambda s: S.dpm_solver_pp(s, 4, solver="published"), "`solver` must be"),
    (lambda s: S.unipc(s, 4, variant="bh3"), "`variant` must be"),
    (lambda s: S.sa_solver(s, 4, corrector_order=5), "`corrector_order` must be"),
    (lambda s: S.sa_solver(s, 4, mode="pecec"), "`mode` must be"),
    (lambda s: S.er_sde(s, 4, noise="none"), "`noise` must be"),
    (lambda s: S.seeds(s, 4, order=1), "`order` must be"),
    (lambda s: S.lcm(s, 4, floor=-1.0), "`floor` must be"),
    (lambda s: S.tcd(s, 4, gamma=2.0), "`gamma` must be"),
    (lambda s: S.flow_grpo(s, 4, noise=0.0), "`noise` must be"),
    (lambda s: S.cps(s, 4, eta=-0.1), "`eta` must be"),
    (lambda s: S.restart(s, 4, intervals=((0.3, 0.1, 3, 1),)), "`intervals` must have"),
    (lambda s: S.tcd(s, grid=GRID[::-1]), "towards more noise"),
    (lambda s: S.pndm(s, grid=np.stack([GRID, np.append(GRID[:-1], np.inf)], axis=1)), "for all samples or for none"),
    (lambda s: S.dpm_solver_pp_2s_cfg_pp(dc.schedules.Flow(), 4), "start at a finite log-SNR, got -inf"),
    (lambda s: S.lms(dc.schedules.Cosine(log_snr_min=-np.inf), 4), "start at a finite log-SNR, got -inf"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_what_is_out_of_range_is_refused(case: int) -> None:
    call, says = BAD[case]
    with pytest.raises((ValueError, TypeError), match=says):
        call(schedule_of("vp"))
