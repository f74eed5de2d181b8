"""Plans made of plans: parts, one after another, back to noise, and frames that each go their own way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampler_cases import SAMPLERS, schedule_of

import diffcore as dc
from diffcore import exact, testing
from diffcore.testing import strategies

FRAMES = 4
COVARIANCE = 0.9 ** np.abs(np.arange(FRAMES)[:, None] - np.arange(FRAMES))


def pyramid(stages: int, frames: int = FRAMES, lag: int = 1) -> Any:
    """Frame f begins f * lag stages after the first one."""
    order = np.arange(stages + lag * (frames - 1))[:, None] - lag * np.arange(frames)
    return np.where((order >= 0) & (order < stages), order, -1)


def moments(plan: dc.Plan, covariance: Any = COVARIANCE) -> Any:
    return exact.moments(plan, exact.Gaussian(np.full(FRAMES, 0.7), covariance))


@pytest.mark.parametrize("name", SAMPLERS)
def test_frames_in_step_are_the_plan_itself(name: str) -> None:
    plan = SAMPLERS[name](schedule_of("vp"), grid=np.linspace(-6.0, 6.0, 5))
    together = plan.per_frame(np.repeat(np.arange(len(plan))[:, None], FRAMES, axis=1))
    assert together.lead == (1, FRAMES)
    np.testing.assert_array_equal(together.update[:, 0, 2], plan.update)
    np.testing.assert_allclose(moments(together).covariance[0], moments(plan).covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_frames_that_know_nothing_of_each_other_may_wait(name: str) -> None:
    """Where frames are independent a pyramid draws of each what the plan draws; memory is kept over a wait."""
    plan = SAMPLERS[name](schedule_of("vp"), grid=[-6.0, -2.0, 1.0, 4.0, np.inf])
    waiting = plan.per_frame(pyramid(len(plan), lag=2))
    assert waiting.next_log_snr[-1].tolist() == [[np.inf] * FRAMES]
    independent = np.diag([0.3, 1.0, 2.0, 0.0])
    np.testing.assert_allclose(
        moments(waiting, independent).covariance[0], moments(plan, independent).covariance, rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(moments(waiting, independent).mean[0], moments(plan, independent).mean, rtol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm_solver_pp order=3 eta=1.0", "unipc", "ancestral gamma=1.0"])
def test_exact_moments_of_waiting_and_clean_frames_are_those_of_the_loop(name: str) -> None:
    plan = SAMPLERS[name](schedule_of("vp"), grid=[-6.0, -2.0, 1.0, np.inf])
    waiting = plan.per_frame(pyramid(len(plan)))
    data = exact.Gaussian(np.full((FRAMES, 1), 0.7), COVARIANCE)
    drawn, found = testing.drawn_by(data, waiting, (FRAMES, 1)), exact.moments(waiting, data)
    np.testing.assert_allclose(found.mean.reshape(-1), drawn.mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.covariance.reshape(FRAMES, FRAMES), drawn.covariance, rtol=1e-8, atol=1e-9)


def test_autoregression_in_small_steps_draws_the_truth() -> None:
    """Each frame is drawn to the end given clean frames before it: exact as steps shrink, by the product rule."""
    plan = dc.samplers.ancestral(schedule_of("vp"), grid=np.append(np.linspace(-14.0, 14.0, 1500), np.inf))
    one_by_one = plan.per_frame(pyramid(len(plan), frames=2, lag=len(plan)))
    found = exact.moments(one_by_one, exact.Gaussian(np.zeros((2, 1)), COVARIANCE[:2, :2]))
    np.testing.assert_allclose(found.covariance.reshape(2, 2), COVARIANCE[:2, :2], atol=0.02)


def test_orders_of_frames_that_cannot_be_are_refused() -> None:
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=3)
    for stages, words in (
        ([[1, 0]], "frame 0 takes stage 1 at stage 0, after 0 of 3"),
        ([[0, 0], [0, 1]], "frame 0 takes stage 0 at stage 1, after 1"),
        ([[0, 3]], "frame 1 takes stage 3"),
        ([0, 1], r"ints \(N, T\)"),
        ([[0.0]], "float64"),
    ):
        with pytest.raises(ValueError, match=words):
            plan.per_frame(stages)
    with pytest.raises(ValueError, match=r"must have shape \(\), got \(1, 2\)"):
        plan.per_frame([[0, 0]]).per_frame([[0, 0]])


@given(plan=strategies.plans(clean=True), back=st.floats(-8.0, 4.0))
def test_back_to_noise_and_down_again_keeps_the_marginals(plan: dc.Plan, back: float) -> None:
    """Given x, from clean data to q(z_t | x), and by a sampler that keeps marginals down again."""
    rest = dc.samplers.ddim(dc.schedules.Cosine(scaling=plan.scaling), grid=[back, 5.0, np.inf])
    again = plan.noised(back) + rest
    assert again.noisy[len(plan) - 1]
    testing.check_keeps_marginals(again[len(plan) :])
    testing.check_moments(again, rtol=1e-8)
    form, level = again.form, dc.levels.level(back, plan.scaling)
    last = again.update[len(plan) - 1, 0]
    np.testing.assert_allclose([last[form.x], last[form.noise]], [level.alpha, level.sigma], rtol=1e-9)


def test_back_to_noise_from_a_noisy_level_is_the_transition() -> None:
    plan = SAMPLERS["ancestral"](schedule_of("vp"), grid=[-6.0, -2.0, 3.0])
    noised = plan.noised(-1.0)
    testing.check_keeps_marginals(noised)
    with pytest.raises(ValueError, match=r"`log_snr` must be below 3\.0"):
        plan.noised(3.0)


def test_a_plan_that_cannot_follow_is_refused() -> None:
    first, flow = SAMPLERS["ddim"](schedule_of("vp"), steps=3), SAMPLERS["ddim"](schedule_of("flow"), steps=3)
    with pytest.raises(ValueError, match=r"ends at log_snr inf .* starts at -9"):
        first + first
    with pytest.raises(ValueError, match="differ in `scaling`"):
        first + flow
    for part in (3, slice(None, None, 2)):
        with pytest.raises(TypeError, match=r"slice of its stages, such as plan\[4:\]"):
            first[part]  # type: ignore[index]
    with pytest.raises(ValueError, match="empty"):
        first[3:]


@given(plan=strategies.plans(), cut=st.integers(0, 12))
def test_two_parts_are_the_whole(plan: dc.Plan, cut: int) -> None:
    free = [stage for stage, needs in enumerate(plan.needs_memory) if not needs and stage]
    if not free:
        return
    at = free[cut % len(free)]
    again = plan[:at] + plan[at:]
    np.testing.assert_array_equal(again.update, plan.update)
    np.testing.assert_array_equal(again.next_log_snr, plan.next_log_snr)


def test_a_plan_that_follows_begins_with_an_empty_memory() -> None:
    """Also one whose first stage reads memory, which is 0 at the start of a run."""
    schedule = schedule_of("vp")
    first = SAMPLERS["dpm_solver_pp"](schedule, grid=[-6.0, -3.0, -1.0, 0.0])
    reads = SAMPLERS["dpm_solver_pp"](schedule, grid=[0.0, 1.0, 3.0])
    reads = replace(reads, update=np.concatenate([reads.update[1:], reads.update[1:]]))
    assert reads.needs_memory[0]
    z = np.linspace(-2.0, 2.0, 12).reshape(2, 6)

    def run(plan: dc.Plan, z: Any) -> Any:
        return dc.sample(lambda z, log_snr: np.tanh(z), plan, z, prediction="x")

    np.testing.assert_allclose(run(first + reads, z), run(reads, run(first, z)), rtol=1e-13, atol=1e-13)
