"""Every sampler's table against its paper, written out a second time with numbers of 50 digits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampler_cases import SAMPLERS, every_sampler, every_scaling, schedule_of

import diffcore as dc
from diffcore.plan import Plan
from diffcore.samplers._exponential import exponential_moments, interpolation_weights

Z, NOISE, X = 0, 1, 2  # columns of a plan without memory


def exact_level(log_snr: float, scaling: str) -> tuple[Any, Any]:
    if log_snr == math.inf:
        return mp.mpf(1), mp.mpf(0)
    e = mp.e ** (mp.mpf(log_snr) / 2)  # alpha / sigma
    if scaling == "vp":
        return e / mp.sqrt(1 + e * e), 1 / mp.sqrt(1 + e * e)
    return (mp.mpf(1), 1 / e) if scaling == "ve" else (e / (1 + e), 1 / (1 + e))


def assert_close(got: Any, want: Any, digits: float = 1e-12) -> None:
    assert abs(mp.mpf(float(got)) - want) <= digits * max(abs(want), mp.mpf(10) ** -3), (float(got), float(want))


@every_scaling
@every_sampler
def test_last_step_to_clean_data_returns_x_hat(make: Callable[..., Plan], scaling: str) -> None:
    plan = make(schedule_of(scaling), steps=5)
    assert plan.next_log_snr[-1] == math.inf
    last, x = plan.update[-1, 0], plan.form.x
    assert last[x] == 1.0
    assert not np.any(np.delete(last, x))


@every_scaling
@every_sampler
def test_a_stage_begins_where_the_last_one_ended(make: Callable[..., Plan], scaling: str) -> None:
    plan = make(schedule_of(scaling), steps=6)
    np.testing.assert_array_equal(plan.log_snr[1:], plan.next_log_snr[:-1])


@every_scaling
@every_sampler
def test_a_perfect_denoiser_of_one_point_is_followed_exactly(make: Callable[..., Plan], scaling: str) -> None:
    """With x-hat = x fixed, z = alpha x + sigma eps keeps its eps under every deterministic update."""
    plan = make(schedule_of(scaling), grid=np.linspace(-8.0, 8.0, 7))
    level, after = plan.levels, dc.levels.level(plan.next_log_snr, scaling)
    memory = [np.zeros(2)] * plan.memory
    for stage in range(len(plan)):
        x = np.array([1.0, 0.0])
        z = np.array([level.alpha[stage], level.sigma[stage]])
        new, *memory = plan.update[stage] @ np.stack([z, *memory, np.zeros(2), x])
        assert abs(new[0] - after.alpha[stage]) < 1e-11
        added = plan.update[stage, 0, plan.form.noise]
        if added == 0.0:
            assert abs(new[1] - after.sigma[stage]) < 1e-11 * max(1.0, float(after.sigma[stage]))


@every_scaling
@pytest.mark.parametrize("name", ["ancestral", "ancestral gamma=0.3", "ddim", "ddim eta=0.5", "ddim eta=1.0"])
def test_noise_keeps_the_marginal_variance(name: str, scaling: str) -> None:
    """Given x, (coefficient of z)^2 sigma_t^2 + noise^2 = sigma_s^2: q(z_t|x) goes to q(z_s|x); gamma > 0 adds more."""
    plan = SAMPLERS[name](schedule_of(scaling), grid=np.linspace(-8.0, 8.0, 9))
    before = plan.levels.sigma**2 * plan.update[:, 0, Z] ** 2 + plan.update[:, 0, NOISE] ** 2
    want = dc.levels.level(plan.next_log_snr, scaling).sigma ** 2
    if name == "ancestral gamma=0.3":
        assert np.all(before > want)
    else:
        np.testing.assert_allclose(before, want, rtol=1e-12)


@every_scaling
def test_ancestral_is_the_paper(scaling: str) -> None:
    with mp.workdps(50):
        grid = [-8.0, -1.5, 0.25, 7.0, math.inf]
        plan = dc.samplers.ancestral(schedule_of(scaling), grid=np.array(grid), gamma=0.3)
        for stage, (lt, ls) in enumerate(itertools.pairwise(grid)):
            (at, st_), (as_, ss) = exact_level(lt, scaling), exact_level(ls, scaling)
            e = mp.e ** (mp.mpf(lt) - mp.mpf(ls))
            assert_close(plan.update[stage, 0, Z], e * as_ / at)
            assert_close(plan.update[stage, 0, X], (1 - e) * as_)
            lower, upper = (1 - e) * ss**2, (1 - e) * st_**2
            assert_close(plan.update[stage, 0, NOISE], mp.sqrt(lower**0.7 * upper**0.3) if ss else mp.mpf(0))


@every_scaling
def test_ddim_is_the_paper(scaling: str) -> None:
    with mp.workdps(50):
        grid = [-8.0, -1.5, 0.25, 0.2500001, 7.0]
        for eta in (0.0, 0.4, 1.0):
            plan = dc.samplers.ddim(schedule_of(scaling), grid=np.array(grid), eta=eta)
            for stage, (lt, ls) in enumerate(itertools.pairwise(grid)):
                (at, st_), (as_, ss) = exact_level(lt, scaling), exact_level(ls, scaling)
                noise = mp.mpf(eta) ** 2 * (1 - mp.e ** (mp.mpf(lt) - mp.mpf(ls))) * ss**2
                keep = mp.sqrt(ss**2 - noise) / st_
                assert_close(plan.update[stage, 0, Z], keep)
                assert_close(plan.update[stage, 0, X], as_ - keep * at)
                assert_close(plan.update[stage, 0, NOISE], mp.sqrt(noise))


@pytest.mark.parametrize("scaling", ["vp", "ve"])
def test_heun_with_churn_is_edm_algorithm_2(scaling: str) -> None:
    """In u = z / alpha and r = sigma / alpha, with symbols for the two estimates and the noise, in 50 digits."""
    with mp.workdps(50):
        grid = [-8.0, -3.0, 0.5, 4.0, math.inf]
        churn, count = 1.0, 4
        plan = dc.samplers.heun(schedule_of(scaling), grid=np.array(grid), churn=churn, noise_scale=1.003)
        form = plan.form
        ratio = [mp.e ** (-mp.mpf(level) / 2) if level != math.inf else mp.mpf(0) for level in grid]
        grown = [r * (1 + min(mp.mpf(churn) / count, mp.sqrt(2) - 1)) for r in ratio]
        for step in range(count - 1):
            hat, to = grown[step], ratio[step + 1]
            (a_hat, _), (a_to, _) = (exact_level(float(-2 * mp.log(r)), scaling) for r in (hat, to))
            churned = grown[step + 1] if step + 1 < count else to
            (a_churned, _) = exact_level(float(-2 * mp.log(churned)), scaling)
            first, second = plan.update[2 * step], plan.update[2 * step + 1]
            assert_close(first[0, 0], a_to / a_hat * (1 + (to - hat) / hat))
            assert_close(first[0, form.x], a_to * -(to - hat) / hat)
            half, scale = (to - hat) / 2, a_churned
            assert_close(second[0, 1] * first[1, 0], scale / a_hat * (1 + half / hat))
            assert_close(second[0, 1] * first[1, form.x], scale * -half / hat)
            assert_close(second[0, 0], scale / a_to * half / to, 1e-11)
            assert_close(second[0, form.x], scale * -half / to, 1e-11)
            assert_close(second[0, form.noise], scale * mp.sqrt(churned**2 - to**2) * mp.mpf("1.003"))
        assert len(plan) == 7


@pytest.mark.parametrize("name", ["Cosine", "Karras", "LinearLogSNR", "Sigmoid"])
def test_heun_by_a_number_of_steps_is_usable_on_any_schedule(name: str) -> None:
    """As EDM spaces them, and so that the variance drawn is near the data's in 20 steps."""
    schedule = dc.schedules.table()[name]
    for variance in (0.05, 1.0):
        drawn = dc.exact.moments(dc.samplers.heun(schedule, 20), dc.exact.Gaussian(np.zeros(1), variance)).covariance
        assert 0.9 < drawn / variance < 1.15
    edm = dc.schedules.Karras()
    assert dc.samplers.heun(edm, 18) == dc.samplers.heun(edm, grid=dc.grids.karras(edm, 18))
    beyond = dc.samplers.heun(dc.schedules.LinearLogSNR(log_snr_min=13.0, log_snr_max=20.0), 3)
    assert beyond.log_snr[0] == 13.0


@pytest.mark.parametrize("start", [1.0, 0.9])
def test_heun_under_flow_averages_velocities(start: float) -> None:
    """As flow-matching code does: Heun's textbook method on dz/dt = velocity, from pure noise too."""

    def velocity(z: Any, t: Any) -> Any:
        return np.tanh(z * (1.0 + t)) + 0.3 * t

    schedule, z = dc.schedules.Flow(), np.array([[0.3, -1.2, 2.0]])
    plan = dc.samplers.heun(schedule, grid=dc.grids.uniform(schedule, 5, start=start))
    got = dc.sample(lambda z, log_snr: velocity(z, schedule.time(log_snr)), plan, z, prediction="flow")
    for t, s in itertools.pairwise(np.linspace(start, 0.0, 6)):
        euler = z + (s - t) * velocity(z, t)
        z = z + (s - t) * (velocity(z, t) + velocity(euler, s)) / 2 if s > 0.0 else euler
    np.testing.assert_allclose(got, z, rtol=0, atol=1e-14)


@every_scaling
def test_dpm_solver_2m_is_the_paper(scaling: str) -> None:
    with mp.workdps(50):
        grid = [-8.0, -5.0, 0.5, 4.0]
        for eta in (0.0, 1.0):
            plan = dc.samplers.dpm_solver_pp(schedule_of(scaling), grid=np.array(grid), order=2, eta=eta)
            for stage in (1, 2):
                lt, ls = grid[stage], grid[stage + 1]
                h, before = mp.mpf(ls - lt) / 2, mp.mpf(lt - grid[stage - 1]) / 2
                (_, st_), (as_, ss) = exact_level(lt, scaling), exact_level(ls, scaling)
                r = before / h
                total = as_ * (1 - mp.e ** (-h * (1 + eta)))
                of_z, of_last, of_noise, of_x = plan.update[stage, 0]
                assert_close(of_z, ss / st_ * mp.e ** (-eta * h))
                assert_close(of_x, total * (1 + 1 / (2 * r)))
                assert_close(of_last, -total / (2 * r))
                assert_close(of_noise, ss * mp.sqrt(1 - mp.e ** (-2 * eta * h)))
                assert plan.update[stage, 1].tolist() == [0.0, 0.0, 0.0, 1.0]  # m' = x-hat


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_dpm_solver_3m_integrates_a_parabola_exactly(eta: float) -> None:
    """For x-hat = 1 + 2 tau - tau^2 the step equals the integral, by quadrature in 40 digits."""
    with mp.workdps(40):
        grid = [-4.0, -1.0, 2.0, 3.0]
        plan = dc.samplers.dpm_solver_pp(schedule_of("ve"), grid=np.array(grid), order=3, eta=eta)
        h = mp.mpf(grid[3] - grid[2]) / 2
        x_hat = lambda tau: 1 + 2 * tau - tau**2  # noqa: E731
        want = mp.quad(lambda tau: (1 + eta) * mp.e ** (-(1 + eta) * (h - tau)) * x_hat(tau), [0, h])
        at = [(mp.mpf(level) - grid[2]) / 2 for level in (grid[2], grid[1], grid[0])]
        got = sum(mp.mpf(float(w)) * x_hat(tau) for w, tau in zip(plan.update[2, 0, [4, 1, 2]], at, strict=True))
        assert_close(got, want)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_weights_integrate_polynomials_exactly(count: int) -> None:
    """sum_j w_j u_j^k = H int_0^1 e^{-H (1 - u)} u^k du for all powers below the number of nodes, by quadrature."""
    with mp.workdps(40):
        for step in (0.2, 1.5, -0.7):
            nodes = [mp.mpf(1) / 3, 1, -1, mp.mpf("-2.5")][:count]
            weights = interpolation_weights(np.array(step), np.array([float(node) for node in nodes]))
            for power in range(count):
                want = step * mp.quad(lambda u, h=step, k=power: mp.e ** (-h * (1 - u)) * u**k, [0, 1])
                assert_close(
                    sum(mp.mpf(float(w)) * mp.mpf(float(u)) ** power for w, u in zip(weights, nodes, strict=True)), want
                )


@every_scaling
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_its_predictor_and_corrector(order: int, scaling: str) -> None:
    """The loop of the paper: every call first corrects the step that led there, then predicts the next one."""
    grid = np.array([-4.0, -2.5, -1.0, 0.5, 2.0, 3.0])
    plan, level = dc.samplers.unipc(schedule_of(scaling), grid=grid, order=order), dc.levels.level(grid, scaling)
    x, z = np.random.default_rng(0).normal(size=(5, 2)), np.array([[0.3, -1.2]])
    rows, found, at = iter(x), [], grid / 2  # half log-SNRs

    def weights(start: int, nodes: list[int]) -> Any:
        h = at[start + 1] - at[start]
        return interpolation_weights(h, (at[nodes] - at[start]) / h)

    def leads(start: int, state: Any, nodes: list[int]) -> Any:
        ratio = level.sigma[start + 1] / level.sigma[start]
        return ratio * state + level.alpha[start + 1] * weights(start, nodes) @ x[nodes]

    dc.sample(lambda z, _: next(rows)[None], plan, z, prediction="x", callback=lambda state: found.append(state.z))
    corrected = z
    for i in range(5):
        if i:
            corrected = leads(i - 1, corrected, list(range(i, max(-1, i - order - 1), -1)))
        predicted = leads(i, corrected, list(range(i, max(-1, i - order), -1)))
        np.testing.assert_allclose(found[i], predicted, rtol=1e-12, atol=1e-13)


@given(st.floats(-30.0, 60.0).filter(lambda h: h == 0.0 or abs(h) > 1e-12), st.integers(0, 3))
def test_exponential_moments_are_the_integral(step: float, power: int) -> None:
    with mp.workdps(80):
        h = mp.mpf(step)
        if h == 0:
            want = mp.mpf(0)
        else:
            want = 1 - mp.e**-h
            for k in range(1, power + 1):
                want = 1 - k * want / h
        got = exponential_moments(np.array(step), 4)[power]
        assert abs(mp.mpf(float(got)) - want) <= 1e-13 * max(abs(want), mp.mpf(10) ** -300)


@every_scaling
@given(gamma=st.sampled_from([0.0]), points=st.lists(st.floats(-15, 15), min_size=2, max_size=6, unique=True))
def test_ancestral_0_ddim_1_and_dpm_1_sde_are_one_sampler(scaling: str, gamma: float, points: list[float]) -> None:
    grid = np.sort(points)
    if np.min(np.diff(grid)) < 1e-6:
        return
    schedule = schedule_of(scaling)
    a = dc.samplers.ancestral(schedule, grid=grid, gamma=gamma)
    b = dc.samplers.ddim(schedule, grid=grid, eta=1.0)
    c = dc.samplers.dpm_solver_pp(schedule, grid=grid, order=1, eta=1.0)
    size = max(1.0, float(np.abs(a.update).max()))
    assert np.abs(a.update - b.update).max() <= 1e-12 * size
    assert np.abs(a.update - c.update).max() <= 1e-12 * size


@every_scaling
def test_euler_ddim_and_dpm_1_are_one_sampler(scaling: str) -> None:
    schedule = schedule_of(scaling)
    a, b = dc.samplers.ddim(schedule, steps=7), dc.samplers.euler(schedule, steps=7)
    c = dc.samplers.dpm_solver_pp(schedule, steps=7, order=1)
    np.testing.assert_allclose(a.update, b.update, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(a.update, c.update, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("lead", [(3,), (2, 4)])
@every_sampler
def test_levels_per_sample_and_per_frame_are_plans_side_by_side(
    make: Callable[..., Plan], lead: tuple[int, ...]
) -> None:
    """A grid with leading axes gives, for each entry, the table that its own grid would give."""
    low = np.linspace(-9.0, -5.0, math.prod(lead)).reshape(lead)
    grid = np.stack([low + k * (2.0 + 0.1 * k) for k in range(6)])
    schedule = schedule_of("vp")
    together = make(schedule, grid=grid)
    assert together.lead == lead
    for where in np.ndindex(lead):
        alone = make(schedule, grid=grid[(slice(None), *where)])
        np.testing.assert_allclose(together.update[(slice(None), *where)], alone.update, rtol=1e-12, atol=1e-14)


def test_ddim_backwards_undoes_a_step_of_fixed_x_hat() -> None:
    grid = np.array([-3.0, 0.0, 4.0])
    down = dc.samplers.ddim(schedule_of("vp"), grid=grid)
    up = dc.samplers.ddim(schedule_of("vp"), grid=grid[::-1])
    assert up.log_snr[0] == 4.0
    assert abs(down.update[1, 0, Z] * up.update[0, 0, Z] - 1.0) < 1e-14


BAD: list[tuple[Callable[[Any], Any], str]] = [
    (lambda s: dc.samplers.ancestral(s, steps=4, gamma=1.5), "gamma"),
    (lambda s: dc.samplers.ancestral(s, steps=4, gamma=float("nan")), "gamma"),
    (lambda s: dc.samplers.predictor_corrector(s, steps=4, delta=-0.1), "delta"),
    (lambda s: dc.samplers.ddim(s, steps=4, eta=2.0), "eta"),
    (lambda s: dc.samplers.heun(s, steps=4, churn=-1.0), "churn"),
    (lambda s: dc.samplers.euler(s, steps=4, churn_range=(3.0, 1.0)), "churn_range"),
    (lambda s: dc.samplers.euler(s, steps=4, noise_scale=0.0), "noise_scale"),
    (lambda s: dc.samplers.dpm_solver_pp(s, steps=4, order=4), "order"),
    (lambda s: dc.samplers.unipc(s, steps=4, order=0), "order"),
    (lambda s: dc.samplers.ddim(s), "steps"),
    (lambda s: dc.samplers.ddim(s, steps=4, grid=np.array([0.0, 1.0])), "grid"),
    (lambda s: dc.samplers.ddim(s, steps=0), "steps"),
    (lambda s: dc.samplers.ancestral(s, grid=np.array([-3.0, 0.0, 0.0, 3.0])), "grid"),
    (lambda s: dc.samplers.ancestral(s, grid=np.array([3.0, 0.0, -3.0])), "more noise"),
    (lambda s: dc.samplers.ancestral(s, grid=np.array([3.0, 0.0, 4.0])), "grid"),
    (lambda s: dc.samplers.ddim(s, grid=np.array([np.nan, 0.0])), "grid"),
]


@pytest.mark.parametrize(("call", "word"), BAD)
def test_bad_settings_say_which_and_what_to_do(call: Callable[[Any], Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        call(schedule_of("vp"))


def test_a_schedule_must_be_one() -> None:
    with pytest.raises(TypeError, match="schedule"):
        dc.samplers.ddim("cosine", steps=4)  # type: ignore[arg-type]
