"""Stages on memory that NumPy sees have the bits of the plain function: compiled or not, on threads, on NumPy and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage_cases import LIKE, TRANSFORMS, any_plan, both, denoise, every_library, every_plan, raw, same

import diffcore as dc
from diffcore import backends, conditioning, stage
from diffcore.backends import Run, cpu_threads
from diffcore.stage import Source
from diffcore.testing.conformance import plans


@every_library
@every_plan
@pytest.mark.parametrize("transform", list(TRANSFORMS))
def test_a_small_run_is_the_plain_loop_bit_for_bit(plan: dc.Plan, transform: str, like: Any) -> None:
    state = dc.start(plan, shape=(3, 5), like=like, seed=7)
    same(*both(plan, state, transform_x=TRANSFORMS[transform]))


@pytest.mark.parametrize("like", [LIKE[name] for name in ("numpy", "torch", "brain")], ids=["numpy", "torch", "brain"])
@every_plan
@pytest.mark.parametrize("transform", list(TRANSFORMS))
@pytest.mark.usefixtures("many")
def test_a_large_run_is_the_plain_loop_bit_for_bit(plan: dc.Plan, transform: str, like: Any) -> None:
    state = dc.start(plan, shape=(2, 3, 1000), like=like, seed=[5, 2**64 - 1])
    same(*both(plan, state, transform_x=TRANSFORMS[transform]))


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=any_plan(),
    like=st.sampled_from(list(LIKE.values())),
    transform=st.sampled_from(list(TRANSFORMS.values())),
    prediction=st.sampled_from(["v", "x"]),
    width=st.sampled_from([1, 70, 500]),
)
@pytest.mark.parametrize("large", [False, True])
def test_any_plan_is_the_plain_loop_bit_for_bit(
    plan: dc.Plan, like: Any, transform: Any, prediction: str, width: int, large: bool, request: pytest.FixtureRequest
) -> None:
    """Watched, by hand, resumed, and left alone, when x-hat is not written out."""
    if large:
        request.getfixturevalue("many")
    state = dc.start(plan, shape=(2, 3, width), like=like, seed=7)
    with np.errstate(all="ignore"):
        states, plain = both(plan, state, prediction=prediction, transform_x=transform)
        same(states, plain)
        reached = state
        for at, want in enumerate(plain):
            given: dict[str, Any] = {"prediction": prediction, "transform_x": transform}
            if plan.second == "unguided":
                given["unguided"] = 0.75 * reached.z
            reached = dc.step(plan, reached, -0.5 * reached.z, **given)
            same([reached], [want])
            with torch.no_grad():
                run = Run(denoise, plan, plan.coefficients(prediction), transform_x=transform)
                alone = backends.of(state.z).run(run, [state, *states][at])
            same([alone._replace(x=plain[-1].x)], plain[-1:])
            assert alone.x is None or raw(alone.x) == raw(plain[-1].x)


@given(
    plan=any_plan(most=8),
    like=st.sampled_from(list(LIKE.values())),
    clips=st.booleans(),
)
def test_any_plan_of_four_arrays_is_the_kernels(plan: dc.Plan, like: Any, clips: bool) -> None:
    if cpu_threads.kernel is None:
        pytest.skip("the kernel was not compiled")
    state = dc.start(plan, shape=(2, 3, 70), like=like, seed=7)
    with mock.patch.object(stage, "advance", side_effect=AssertionError("the plain function ran")):
        dc.sample(denoise, plan, state, prediction="v", transform_x=TRANSFORMS["clip"] if clips else None)


@every_library
@pytest.mark.parametrize("second", ["raw", "unguided"])
def test_a_second_estimate_is_what_its_name_says(second: Any, like: Any) -> None:
    """z' = x2 and m1' = x - x2, for x-hat beyond its clip, or of another prediction."""
    update = np.zeros((1, 2, 5))
    update[0, 0, 4], update[0, 1, 3:] = 1.0, [1.0, -1.0]
    plan = dc.Plan("second", "vp", np.array([0.0]), np.array([1.0]), update, second=second)
    state = dc.start(plan, shape=(2, 300), like=like, seed=7)
    states, _ = both(plan, state, prediction="x", transform_x=dc.guidance.clip(-0.25, 0.25))
    raw_x = (-0.5 if second == "raw" else 0.75) * state.z
    assert raw(states[0].z) == raw(raw_x)
    assert raw(states[0].memory[0]) == raw(states[0].x - raw_x)


@every_library
@pytest.mark.parametrize("shape", [(2, 7), (2, 3, 1000)])
def test_a_step_by_hand_and_a_resumed_run_are_the_run(
    like: Any, shape: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    if shape[-1] == 1000:
        request.getfixturevalue("many")
    for plan in plans().values():
        states: list[dc.State] = []
        clip = dc.sample(denoise, plan, shape=shape, like=like, seed=3, prediction="v", callback=states.append)
        state = dc.start(plan, shape=shape, like=like, seed=3)
        for log_snr in plan.log_snr:
            state = dc.step(plan, state, denoise(state.z, log_snr), prediction="v")
        assert raw(state.z) == raw(clip)
        again = dc.sample(denoise, plan, states[1], prediction="v")
        assert raw(again) == raw(clip)


@every_library
def test_a_prediction_of_another_dtype_goes_the_plain_way_and_is_asked_once(like: Any) -> None:
    calls: list[int] = []

    def wide(z: Any, log_snr: Any) -> Any:
        calls.append(1)
        return (
            -0.5 * z
            if len(calls) != 2
            else (-0.5 * z.astype(np.float64) if isinstance(z, np.ndarray) else -0.5 * z.double())
        )

    plan = plans()["unipc"]
    state = dc.start(plan, shape=(2, 5), like=like, seed=3)
    left, _ = both(plan, state, wide)
    assert len(calls) == 2 * len(plan)
    calls.clear()
    right = both(plan, state, wide)[0]
    same(left, right)


@every_library
@pytest.mark.usefixtures("many")
def test_ones_own_noise_and_known_elements(like: Any) -> None:
    plan = plans()["ancestral"]
    shape = (2, 3, 400)
    asked: list[int] = []

    def mine(draw: Any, shape: tuple[int, ...]) -> Any:
        asked.append(int(draw))
        return dc.noise.normal(9, draw, shape, like=like)

    state = dc.start(plan, shape=shape, like=like, noise=mine)
    same(*both(plan, state, noise=Source(mine)))
    observed = 0.25 + 0.0 * state.z
    mask: Any = np.zeros(shape, bool)
    mask[:, 0] = True
    if isinstance(state.z, torch.Tensor):
        mask = torch.from_numpy(mask)
    constraint = conditioning.replacement(observed, mask)
    state = dc.start(plan, shape=shape, like=like, seed=4, constraint=constraint)
    same(*both(plan, state, held=constraint.hold(plan, state.z)))


@every_library
def test_a_prediction_that_is_no_array_is_refused_in_words(like: Any) -> None:
    for plan in (plans()["ddim"], plans()["ancestral"]):
        with pytest.raises(TypeError, match=r"step: `y` must be an array of the shape of `z`, got \["):
            dc.sample(lambda z, log_snr: [1.0], plan, shape=(2, 5), like=like, prediction="v")


def test_the_fast_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "advance", lambda *_: pytest.fail("the plain function ran"))
    for like in LIKE.values():
        for plan in plans().values():
            dc.sample(denoise, plan, shape=(2, 5), like=like, seed=1, prediction="v", transform_x=TRANSFORMS["clip"])


LEVELS = {
    "samples": np.array([0.0, 0.5]),
    "one": np.zeros(1),
    "frames": np.array([[0.0, 0.25, 1.0]]),
    "both": np.array([[0.0, 0.25, 1.0], [0.5, 0.0, 2.0]]),
    "samples of frames": np.array([[0.0], [1.0]]),
}


SAMPLERS: dict[str, Callable[..., dc.Plan]] = {
    "ancestral": lambda grid: dc.samplers.ancestral(dc.schedules.Cosine(), grid=grid, gamma=0.3),
    "dpm_solver_pp": lambda grid: dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), grid=grid, order=3, eta=1.0),
    "heun": lambda grid: dc.samplers.heun(dc.schedules.Cosine(), grid=grid),
}


@pytest.mark.parametrize(
    "like", [LIKE[name] for name in ("numpy", "torch64", "brain")], ids=["numpy", "torch64", "brain"]
)
@pytest.mark.parametrize("levels", list(LEVELS))
@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("width", [5, 700])
@pytest.mark.usefixtures("many")
def test_levels_of_samples_and_frames_are_the_plain_loop_bit_for_bit(
    sampler: str, levels: str, width: int, like: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile of 1,024 elements holds several frames here, and parts of them."""
    grid = np.linspace(-6.0, 6.0, 5).reshape(-1, *np.ones_like(LEVELS[levels].shape)) + LEVELS[levels]
    plan = SAMPLERS[sampler](grid)
    assert plan.lead == LEVELS[levels].shape
    state = dc.start(plan, shape=(2, 3, width), like=like, seed=3)
    transform = TRANSFORMS["clip"]
    same(*both(plan, state, transform_x=transform))
    if cpu_threads.kernel is not None and width > 64:
        monkeypatch.setattr(stage, "advance", lambda *_: pytest.fail("the plain function ran"))
        clip = dc.sample(denoise, plan, state, prediction="v", transform_x=transform)
        for log_snr in plan.log_snr:
            state = dc.step(plan, state, denoise(state.z, log_snr), prediction="v", transform_x=transform)
        assert raw(state.z) == raw(clip)


@every_library
@pytest.mark.parametrize("wide", [True, False])
def test_a_transform_is_called_once_a_stage(like: Any, wide: bool) -> None:
    """Whether its result fits or not; so it may count, or draw numbers."""
    plan, calls = plans()["dpm_solver_pp"], []

    def transform(x: Any) -> Any:
        calls.append(1)
        return TRANSFORMS["wider"](x) if wide else 0.5 * x

    dc.sample(denoise, plan, shape=(2, 5), like=like, seed=3, prediction="v", transform_x=transform)
    assert len(calls) == len(plan)
    state = dc.start(plan, shape=(2, 5), like=like, seed=3)
    dc.step(plan, state, denoise(state.z, None), prediction="v", transform_x=transform)
    assert len(calls) == len(plan) + 1


def test_levels_that_do_not_align_are_refused_in_every_way() -> None:
    plan = dc.samplers.ddim(dc.schedules.Cosine(), grid=np.linspace(np.full((1, 4), -2.0), np.full((1, 4), 2.0), 4))
    state = dc.start(plan, shape=(2, 4, 100), seed=1)
    for shape in [(2, 8, 50), (2, 2, 200), (800,)]:
        other = state._replace(z=np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match="does not align"):
            dc.step(plan, other, other.z, prediction="v")
        with pytest.raises(ValueError, match="does not align"):
            dc.sample(denoise, plan, other, prediction="v")


def test_a_row_may_be_a_tuple() -> None:
    plan = plans()["ddim"]
    state = dc.start(plan, np.ones((2, 3), np.float32), seed=1)
    row = plan.coefficients("v")[0].tolist()
    found, want = (
        backends.of(state.z).advance(plan.form, state, state.z, kind(row), None, stochastic=False, transform_x=None)
        for kind in (tuple, list)
    )
    assert raw(found.z) == raw(want.z)


def test_what_is_known_may_lie_in_another_order() -> None:
    plan = plans()["ancestral"]
    observed = np.linspace(-1.0, 1.0, 24, dtype=np.float32).reshape(2, 3, 4)
    mask = np.zeros((2, 3, 4), bool)
    mask[:, 0] = True
    clips = [
        dc.sample(
            denoise, plan, shape=(2, 3, 4), seed=5, prediction="v",
            constraint=conditioning.replacement(order(observed), order(mask)),
        )
        for order in (np.ascontiguousarray, np.asfortranarray)
    ]  # fmt: skip
    assert np.array_equal(*clips)
    assert np.array_equal(clips[0][:, 0], observed[:, 0])
