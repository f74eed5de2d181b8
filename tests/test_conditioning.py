"""Replacement in the loop: what is known comes back, at every call it is at its level, and its noise is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from sampler_cases import SAMPLERS, every_run, schedule_of
from test_sampling import LIBRARIES, denoise, every_library, host, sample

import diffcore as dc
from diffcore import _streams, levels, process
from diffcore.conditioning import frames, replacement
from diffcore.stage import Source

jax.config.update("jax_platforms", "cpu")
torch.set_num_threads(1)

RNG = np.random.default_rng(0)
SHAPE = (2, 4, 2, 3)
CLIP = RNG.normal(size=SHAPE).astype(np.float32) * 3.0
MASK = np.array([True, False, True, False]).reshape(4, 1, 1)
KNOWN = np.broadcast_to(MASK, SHAPE)
every_variant = pytest.mark.parametrize("variant", ["marginal", "posterior"])


def given(variant: str = "marginal", mask: Any = MASK, clip: Any = CLIP) -> Any:
    return replacement(np.where(np.broadcast_to(mask, SHAPE), clip, np.nan), mask, variant=variant)


@every_library
@every_run
@every_variant
def test_known_elements_come_back_bit_for_bit(make: Callable[..., Any], to: Callable[[Any], Any], variant: str) -> None:
    for grid in (None, np.linspace(-5.0, 3.0, 5)):
        plan = make(schedule_of("vp"), **({"steps": 4} if grid is None else {"grid": grid}))
        kept = {"like": to(np.zeros(1, np.float32)), "seed": 3, "prediction": "v", "constraint": given(variant)}
        clip = host(sample(denoise, plan, shape=SHAPE, to=to, **kept))
        np.testing.assert_array_equal(clip[KNOWN], CLIP[KNOWN])
        assert np.isfinite(clip).all()
        if to is not LIBRARIES["numpy"]:
            break  # the second plan is of the same code


def coded(draw: Any, shape: tuple[int, ...]) -> Any:
    """Noise that tells its draw: constant over the elements."""
    return np.full(shape, np.cos(1.0 + 7.0 * int(draw)))


@every_run
@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
def test_at_every_call_what_is_known_is_noised_at_the_level_of_the_call(make: Callable[..., Any], scaling: str) -> None:
    """z_k^a = alpha_k x^a + sigma_k eps with its own draw, at the start, in a corrector, and between two stages."""
    plan = make(schedule_of(scaling), steps=5)
    seen = []

    def recorded(z: Any, log_snr: Any) -> Any:
        seen.append((z, float(log_snr[0])))
        return -0.6 * z

    start = np.zeros(SHAPE)
    dc.sample(recorded, plan, start, noise=coded, prediction="v", constraint=given(clip=CLIP.astype(np.float64)))
    assert len(seen) == len(plan)
    for stage, (z, log_snr) in enumerate(seen):
        level = levels.level(log_snr, scaling)
        eps = coded(Source.OTHER + stage, SHAPE)
        want = level.alpha * CLIP.astype(np.float64) + level.sigma * eps
        np.testing.assert_allclose(z[KNOWN], want[KNOWN], rtol=1e-12, atol=1e-12, err_msg=str(stage))


@every_run
@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
def test_the_posterior_variant_keeps_the_marginal_and_the_correlation(make: Callable[..., Any], scaling: str) -> None:
    """By algebra: from q(z_t | x) each row leads to q(z_s | x), with the covariance of the process."""
    plan = make(schedule_of(scaling), steps=5)
    at = levels.level(np.append(plan.log_snr[0], plan.next_log_snr), scaling)
    rows = plan.known["posterior"]
    gain, variance = rows[0, 1], rows[0, 2] ** 2
    for k in range(1, len(rows) - 1):
        c_z, c_x, c_eps = rows[k]
        covariance = c_z * variance
        gain, variance = c_z * gain + c_x, c_z**2 * variance + c_eps**2
        np.testing.assert_allclose([gain, variance], [at.alpha[k], at.sigma[k] ** 2], rtol=1e-9, err_msg=str(k))
        noisier, cleaner = (k - 1, k) if at.log_snr[k] >= at.log_snr[k - 1] else (k, k - 1)
        want = at.alpha[noisier] / at.alpha[cleaner] * at.sigma[cleaner] ** 2  # q(z_t | z_s) carries the noise of z_s
        np.testing.assert_allclose(covariance, want, rtol=1e-9, err_msg=str(k))
    np.testing.assert_array_equal(rows[-1], [0.0, 1.0, 0.0])
    marginal = plan.known["marginal"]
    np.testing.assert_allclose(marginal[:-1, 1], at.alpha[:-1], rtol=1e-13)
    np.testing.assert_allclose(marginal[:-1, 2], at.sigma[:-1], rtol=1e-13)


def test_the_posterior_variant_is_the_posterior_of_the_process() -> None:
    plan = dc.samplers.ancestral(schedule_of("vp"), steps=4)
    z, x = RNG.normal(size=(2, 1, 1))
    for k in range(3):
        s, t = levels.level(plan.next_log_snr[k]), levels.level(plan.log_snr[k])
        q = process.posterior(z, x, s=s, t=t)
        c_z, c_x, c_eps = plan.known["posterior"][k + 1]
        np.testing.assert_allclose(c_z * z + c_x * x, q.mean, rtol=1e-12)
        np.testing.assert_allclose(c_eps**2, q.variance[0, 0], rtol=1e-12)


def test_a_run_towards_noise_ends_on_noised_elements() -> None:
    plan = dc.samplers.ddim(schedule_of("vp"), grid=np.linspace(4.0, -4.0, 5))
    level = levels.level(-4.0)
    for variant in ("marginal", "posterior"):
        end = dc.sample(denoise, plan, CLIP.astype(np.float64), seed=1, prediction="v", constraint=given(variant))
        spread = (end - level.alpha * CLIP)[KNOWN]
        assert 0.5 * level.sigma < spread.std() < 1.5 * level.sigma


def test_the_noise_of_what_is_known_is_independent_of_all_other_noise() -> None:
    """No draw serves twice, and the stream is apart: correlations vanish over 2^16 elements, at equal draws too."""
    size, draws = (1, 2**16), range(4)
    drawn = [dc.noise.normal(7, d, size, stream=stream) for stream in (_streams.SAMPLER, _streams.KNOWN) for d in draws]
    correlation = np.corrcoef(np.concatenate(drawn)) - np.eye(8)
    assert np.abs(correlation).max() < 5.0 / 2**8
    asked = []

    def mine(draw: Any, shape: tuple[int, ...]) -> Any:
        asked.append(int(draw))
        return np.zeros(shape)

    for name in ("ancestral gamma=0.3", "predictor_corrector", "dpm_solver_pp order=2 eta=1.0"):
        for variant in ("marginal", "posterior"):
            asked.clear()
            plan = SAMPLERS[name](schedule_of("vp"), steps=5)
            dc.sample(denoise, plan, shape=SHAPE, like=CLIP, noise=mine, prediction="v", constraint=given(variant))
            assert len(set(asked)) == len(asked)
            assert {draw - Source.OTHER for draw in asked if draw > len(plan)} <= set(range(len(plan) + 1))


def test_with_seeds_each_noise_is_the_one_it_should_be() -> None:
    """The start and each stage from stream 4, draw 0, 1, 2, ...; the rest of the run as without a constraint."""
    plan, clip = SAMPLERS["ancestral"](schedule_of("vp"), steps=4), CLIP.astype(np.float64)
    state = dc.start(plan, shape=SHAPE, like=clip, seed=9, constraint=given(clip=clip))
    free = dc.start(plan, shape=SHAPE, like=clip, seed=9)
    for k in range(len(plan)):
        eps = dc.noise.normal(9, k, SHAPE, like=clip, stream=_streams.KNOWN)
        level = levels.level(plan.log_snr[k])
        np.testing.assert_allclose(state.z[KNOWN], (level.alpha * clip + level.sigma * eps)[KNOWN], rtol=1e-12)
        np.testing.assert_array_equal(state.z[~KNOWN], free.z[~KNOWN])
        y = np.zeros(SHAPE)
        state = dc.step(plan, state, y, prediction="x", constraint=given(clip=clip))
        free = dc.step(plan, free, y, prediction="x")


@every_library
@pytest.mark.parametrize(
    "name",
    [
        "ancestral gamma=0.3",
        "heun churn=4.0 noise_scale=1.003",
        "dpm_solver_pp order=3 eta=1.0",
        "unipc",
        "predictor_corrector",
    ],
)
def test_a_resumed_run_is_the_straight_one_bit_for_bit(name: str, to: Callable[[Any], Any]) -> None:
    plan = SAMPLERS[name](schedule_of("vp"), steps=4)
    states: list[dc.State] = []
    kept: dict[str, Any] = {"prediction": "v", "constraint": given("posterior")}
    clip = dc.sample(denoise, plan, to(CLIP), seed=[5, 2**63], callback=states.append, **kept)
    for stop in (0, len(plan) - 2):
        old = states[stop]
        assert not np.array_equal(host(old.z)[KNOWN], CLIP[KNOWN])
        memory = tuple(to(host(array).copy()) for array in old.memory)
        state = old._replace(z=to(host(old.z).copy()), memory=memory, x=None)
        np.testing.assert_array_equal(host(sample(denoise, plan, state, to=to, **kept)), host(clip))


@every_library
@every_variant
def test_steps_by_hand_are_the_run(to: Callable[[Any], Any], variant: str) -> None:
    plan = SAMPLERS["dpm_solver_pp order=2 eta=1.0"](schedule_of("vp"), steps=4)
    constraint = given(variant)
    state = dc.start(plan, to(CLIP), seed=7, constraint=constraint)
    for log_snr in plan.log_snr:
        state = dc.step(plan, state, denoise(state.z, log_snr), prediction="v", constraint=constraint)
    clip = sample(denoise, plan, to(CLIP), seed=7, prediction="v", constraint=constraint, to=to)
    if to is LIBRARIES["jax"]:
        np.testing.assert_allclose(host(state.z), host(clip), atol=2e-5)
    else:
        np.testing.assert_array_equal(host(state.z), host(clip))


@every_library
def test_a_batch_is_its_samples_bit_for_bit(to: Callable[[Any], Any]) -> None:
    plan, like = SAMPLERS["ancestral gamma=0.3"](schedule_of("vp"), steps=4), to(np.zeros(1, np.float32))
    kept: dict[str, Any] = {"like": like, "prediction": "v", "to": to}
    both = sample(denoise, plan, shape=SHAPE, seed=[3, 2**64 - 1], constraint=given(), **kept)
    for i, seed in enumerate((3, 2**64 - 1)):
        one = replacement(CLIP[i : i + 1], MASK)
        alone = sample(denoise, plan, shape=(1, *SHAPE[1:]), seed=[seed], constraint=one, **kept)
        np.testing.assert_array_equal(host(alone)[0], host(both)[i])


@every_library
@pytest.mark.parametrize("lead", [(2,), (2, 4), (1, 4)])
@every_variant
def test_levels_per_sample_and_per_frame_are_runs_side_by_side(
    to: Callable[[Any], Any], lead: tuple[int, ...], variant: str
) -> None:
    low = np.linspace(-4.0, -2.0, int(np.prod(lead))).reshape(lead)
    grid = np.stack([low + 1.5 * k for k in range(4)])
    schedule, noise = schedule_of("vp"), {"seed": 5, "prediction": "v", "constraint": given(variant)}
    clip = host(sample(denoise, SAMPLERS["ancestral gamma=0.3"](schedule, grid=grid), to(CLIP), to=to, **noise))
    for where in np.ndindex(lead):
        alone = SAMPLERS["ancestral gamma=0.3"](schedule, grid=grid[(slice(None), *where)])
        want = host(sample(denoise, alone, to(CLIP), to=to, **noise))
        index = where if lead[0] > 1 else (slice(None), where[1])
        np.testing.assert_allclose(clip[index], want[index], atol=2e-6)


def test_frames_that_are_clean_from_the_start_stay_clean() -> None:
    grid = np.stack([np.array([[np.inf, -3.0, np.inf, -3.0]]), np.array([[np.inf, 0.0, np.inf, 0.0]])])
    update = np.zeros((1, 1, 4, 1, 3))
    update[..., 0, 0] = 1.0
    plan = dc.Plan("still", "vp", grid[:1], grid[1:], update)
    for variant in ("marginal", "posterior"):
        assert np.isfinite(plan.known[variant]).all()
        clip = dc.sample(denoise, plan, np.zeros(SHAPE), prediction="v", constraint=given(variant))
        np.testing.assert_array_equal(clip[KNOWN], CLIP[KNOWN])


def test_what_is_remembered_of_known_elements_reaches_no_other() -> None:
    """So that a constraint may leave them alone."""
    for name in ("dpm_solver_pp order=3", "unipc order=3", "heun", "dpm_solver_pp order=2 eta=1.0"):
        plan = SAMPLERS[name](schedule_of("vp"), steps=5)
        state = dc.start(plan, CLIP, seed=1, constraint=given())
        for stage, log_snr in enumerate(plan.log_snr):
            other = state._replace(memory=tuple(np.where(KNOWN, np.float32(99.0), array) for array in state.memory))
            y = denoise(state.z, log_snr)
            states = [dc.step(plan, s, y, prediction="v", constraint=given()) for s in (state, other)]
            np.testing.assert_array_equal(states[0].z, states[1].z, err_msg=f"{name}, stage {stage}")
            state = states[0]


@every_library
def test_nothing_known_changes_no_bit_and_all_known_is_what_is_known(to: Callable[[Any], Any]) -> None:
    for name in ("ancestral gamma=0.3", "heun"):
        plan = SAMPLERS[name](schedule_of("vp"), steps=4)
        run = lambda constraint: host(  # noqa: E731
            dc.sample(denoise, plan, to(CLIP), seed=2, prediction="v", constraint=constraint)  # noqa: B023
        )
        free = run(given(mask=np.zeros((4, 1, 1), bool)))
        np.testing.assert_allclose(free, run(None), atol=3e-5 if to is LIBRARIES["jax"] else 0.0)  # XLA fuses anew
        np.testing.assert_array_equal(run(given(mask=np.ones((4, 1, 1), bool))), CLIP)


def test_a_clip_of_one_frame_and_an_empty_one() -> None:
    plan = SAMPLERS["ancestral gamma=0.3"](schedule_of("vp"), steps=4)
    one = CLIP[:, :1]
    for mask, want in ((True, one), (False, None)):
        held = replacement(one, frames([0] if mask else [], of=1)[..., 0])
        clip = dc.sample(denoise, plan, shape=one.shape, like=one, seed=2, prediction="v", constraint=held)
        free = dc.sample(denoise, plan, shape=one.shape, like=one, seed=2, prediction="v")
        np.testing.assert_array_equal(clip, free if want is None else want)
    empty = dc.sample(
        denoise, plan, shape=(2, 0, 3), seed=2, prediction="v", constraint=replacement(np.zeros((2, 0, 3)), True)
    )
    assert empty.shape == (2, 0, 3)


def test_out_of_range_observations_come_back_whatever_is_clipped() -> None:
    plan = SAMPLERS["ancestral gamma=0.3"](schedule_of("vp"), steps=4)
    assert np.abs(CLIP[KNOWN]).max() > 1.0
    for bounded in (dc.guidance.clip(-1.0, 1.0), dc.guidance.dynamic_threshold(0.9)):
        clip = dc.sample(denoise, plan, CLIP, seed=1, prediction="v", constraint=given(), transform_x=bounded)
        np.testing.assert_array_equal(clip[KNOWN], CLIP[KNOWN])
        assert np.abs(clip[~KNOWN]).max() <= 1.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtype_in_is_dtype_out(dtype: str) -> None:
    plan = SAMPLERS["dpm_solver_pp order=2 eta=1.0"](schedule_of("vp"), steps=4)
    z = torch.from_numpy(CLIP).to(getattr(torch, dtype))
    clip = dc.sample(denoise, plan, z, seed=1, prediction="v", constraint=given())
    assert clip.dtype == z.dtype
    np.testing.assert_array_equal(host(clip)[KNOWN], host(z)[KNOWN])


BAD: list[tuple[Callable[[dc.Plan], Any], type[Exception], str]] = [
    (
        lambda p: replacement(CLIP, np.ones(5, bool)),
        ValueError,
        r"must broadcast .*, got \(2, 4, 2, 3\) and \(5,\); .*frames",
    ),
    (lambda p: replacement(CLIP, np.full((4, 1, 1), 2)), ValueError, "`mask` must be booleans, or weights"),
    (lambda p: replacement(CLIP * np.nan, MASK), ValueError, "must be finite .* in 24 known entries"),
    (lambda p: replacement(torch.full((2,), torch.inf), torch.ones(2)), ValueError, "2 known entries"),
    (lambda p: replacement((CLIP * 100).astype(np.uint8), MASK), TypeError, "uint8.*floating"),
    (lambda p: replacement("frames", MASK), TypeError, "`observed`"),
    (
        lambda p: replacement(CLIP, MASK, variant="transition"),
        ValueError,
        "must be 'marginal' or 'posterior', got 'transition'",
    ),
    (
        lambda p: run(p, replacement(0.0, np.ones((5, 1, 1)))),
        ValueError,
        r"`mask` must broadcast .* got shape \(5, 1, 1\)",
    ),
    (
        lambda p: run(p, replacement(np.zeros((3, 1, 1, 1)), True)),
        ValueError,
        r"`observed` must broadcast .* got shape \(3, 1, 1, 1\)",
    ),
    (lambda p: run(p, replacement(torch.from_numpy(CLIP), MASK)), TypeError, "torch.*numpy"),
    (lambda p: run(p, MASK), TypeError, "`constraint` must be .*replacement.*ndarray"),
    (lambda p: dc.start(p, CLIP, constraint=3.0), TypeError, "start: `constraint` must be "),
    (lambda p: frames([4], of=4), ValueError, r"`which` must be an int in \[-4, 3\], got 4; the clip has 4 frames"),
    (lambda p: frames([0], of=0), ValueError, "`of` must be an int >= 1, got 0"),
]


def run(plan: dc.Plan, constraint: Any) -> Any:
    return dc.sample(denoise, plan, CLIP, prediction="v", constraint=constraint)


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_input_says_what_to_do(call: Callable[[dc.Plan], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(SAMPLERS["ancestral"](schedule_of("vp"), steps=3))


def test_a_state_without_keys_asks_for_noise() -> None:
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=4)
    state = dc.start(plan, CLIP, noise=coded)
    with pytest.raises(ValueError, match=r"must have keys.*`noise`"):
        dc.sample(denoise, plan, state, prediction="v", constraint=given())


def test_frames_takes_numbers_from_both_ends_and_slices() -> None:
    assert frames(slice(0, None, 2), of=5).ravel().tolist() == [True, False, True, False, True]
    assert frames(range(2), of=3).ravel().tolist() == [True, True, False]
    assert not frames([], of=3).any()
