"""The loop: by hand or whole, stopped and resumed, alone or in a batch, on every library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sampler_cases import SAMPLERS, schedule_of

import diffcore as dc
from diffcore.backends import cpu_threads

jax.config.update("jax_platforms", "cpu")

LIBRARIES: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda a: np.asarray(a),
    "torch": lambda a: torch.from_numpy(np.asarray(a)),
    "jax": lambda a: jnp.asarray(a),
}
every_library = pytest.mark.parametrize("to", LIBRARIES.values(), ids=LIBRARIES.keys())
every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())


def denoise(z: Any, log_snr: Any) -> Any:
    """Some bounded prediction of v: linear in z, so that every library rounds it the same way."""
    return -0.6 * z


def sample(call: Callable[[Any, Any], Any], plan: dc.Plan, *args: Any, to: Any = None, **kwargs: Any) -> Any:
    """`dc.sample`; on JAX the compiled run is kept, so that plans that read the same compile once."""
    return dc.sample(call, plan, *args, compile=True if to is LIBRARIES["jax"] else None, **kwargs)


def start_of(to: Callable[[Any], Any], batch: int = 2, dtype: Any = np.float32) -> Any:
    return to(np.linspace(-2.0, 2.0, batch * 15, dtype=dtype).reshape(batch, 5, 3))


def host(array: Any) -> np.ndarray[Any, Any]:
    return np.asarray(array.detach().float().numpy() if isinstance(array, torch.Tensor) else array)


@every_sampler
def test_one_seed_is_one_clip_on_every_library(make: Callable[..., dc.Plan]) -> None:
    plan = make(schedule_of("vp"), steps=6)
    clips = [
        host(sample(denoise, plan, shape=(2, 5, 3), like=to(np.zeros(1, np.float32)), seed=7, prediction="v", to=to))
        for to in LIBRARIES.values()
    ]
    for clip in clips[1:]:
        if cpu_threads.kernel is None:
            np.testing.assert_allclose(clip, clips[0], rtol=0, atol=2e-4 if "heun" in plan.sampler else 2e-6)
        else:
            np.testing.assert_array_equal(clip, clips[0])


@every_library
@every_sampler
def test_a_step_by_hand_is_the_run(make: Callable[..., dc.Plan], to: Callable[[Any], Any]) -> None:
    plan = make(schedule_of("vp"), steps=5)
    state = dc.start(plan, start_of(to), seed=7)
    for log_snr in plan.log_snr:
        state = dc.step(plan, state, denoise(state.z, log_snr), prediction="v")
    clip = sample(denoise, plan, start_of(to), seed=7, prediction="v", to=to)
    if to is LIBRARIES["jax"] and cpu_threads.kernel is None:  # XLA contracts a * b + c where it fuses
        np.testing.assert_allclose(host(state.z), host(clip), rtol=0, atol=2e-5)
    else:
        np.testing.assert_array_equal(host(state.z), host(clip))


@every_library
@pytest.mark.parametrize("history", [8, 9])
def test_a_plan_of_ones_own_may_read_many_estimates(history: int, to: Callable[[Any], Any]) -> None:
    """More than kernels do, and the oldest of them counts."""
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=12)
    update = np.zeros((*plan.update.shape[:-1], plan.update.shape[-1] + history))
    update[..., : plan.update.shape[-1]] = plan.update
    update[..., 0, -1] = 0.25
    plan = dataclasses.replace(plan, update=update)
    assert plan.history == history
    clip = host(sample(denoise, plan, start_of(to), prediction="v", to=to))
    z, past = host(start_of(np.asarray)), [0.0] * history
    for (of_z, of_y), row in zip(plan.coefficients("v")[:, :2], update[:, 0], strict=True):
        x = of_z * z + of_y * denoise(z, None)
        z = row[0] * z + row[3] * x + 0.25 * past[-1]
        past = [x, *past[:-1]]
    np.testing.assert_allclose(clip, z, rtol=1e-4, atol=1e-5)
    state = dc.start(plan, start_of(to))
    for _ in range(len(plan)):
        state = dc.step(plan, state, denoise(state.z, None), prediction="v")
    np.testing.assert_allclose(host(state.z), z, rtol=1e-4, atol=1e-5)


@every_library
@every_sampler
def test_a_resumed_run_is_the_straight_one_bit_for_bit(make: Callable[..., dc.Plan], to: Callable[[Any], Any]) -> None:
    plan = make(schedule_of("vp"), steps=5)
    states: list[dc.State] = []
    clip = dc.sample(denoise, plan, start_of(to), seed=[2**64 - 1, 3], prediction="v", callback=states.append)
    assert [int(state.index) for state in states] == list(range(1, len(plan) + 1))
    for stop in (0, len(plan) // 2, len(plan) - 2):
        kept = states[stop]
        saved = None if kept.saved is None else to(host(kept.saved).copy())  # through the host, as a file would
        state = dc.State(to(host(kept.z).copy()), saved, tuple(to(host(e).copy()) for e in kept.estimates), *kept[3:])
        np.testing.assert_array_equal(host(sample(denoise, plan, state, prediction="v", to=to)), host(clip))


@every_library
@every_sampler
def test_a_batch_is_its_samples_bit_for_bit(make: Callable[..., dc.Plan], to: Callable[[Any], Any]) -> None:
    plan = make(schedule_of("vp"), steps=4)
    seeds = [5, 2**63, 2**64 - 1]
    like = to(np.zeros(1, np.float32))
    clip = sample(denoise, plan, shape=(3, 7, 3), like=like, seed=seeds, prediction="v", to=to)
    for i, seed in enumerate(seeds):
        alone = sample(denoise, plan, shape=(1, 7, 3), like=like, seed=[seed], prediction="v", to=to)
        np.testing.assert_array_equal(host(alone)[0], host(clip)[i])


@every_library
def test_interleaved_runs_are_runs_in_sequence(to: Callable[[Any], Any]) -> None:
    plans = [SAMPLERS["unipc"](schedule_of("vp"), steps=5), SAMPLERS["dpm_solver_pp order=3 eta=1.0"](schedule_of("vp"), steps=5)]
    together = [dc.start(plan, start_of(to), seed=seed) for seed, plan in enumerate(plans)]
    for stage in range(5):
        for which, plan in enumerate(plans):
            y = denoise(together[which].z, plan.log_snr[stage])
            together[which] = dc.step(plan, together[which], y, prediction="v")
    for seed, plan in enumerate(plans):
        state = dc.start(plan, start_of(to), seed=seed)
        for log_snr in plan.log_snr:
            state = dc.step(plan, state, denoise(state.z, log_snr), prediction="v")
        np.testing.assert_array_equal(host(together[seed].z), host(state.z))


def test_a_step_leaves_the_state_it_was_given() -> None:
    plan = SAMPLERS["unipc"](schedule_of("vp"), steps=5)
    state = dc.start(plan, start_of(np.asarray), seed=1)
    before = state.z.copy()
    dc.step(plan, state, denoise(state.z, 0.0), prediction="v")
    np.testing.assert_array_equal(state.z, before)
    assert state.index == 0


@every_library
def test_the_last_step_returns_the_estimate_exactly(to: Callable[[Any], Any]) -> None:
    target = start_of(to) / 3.0

    def known(z: Any, log_snr: Any) -> Any:
        return target

    for name, make in SAMPLERS.items():
        plan = make(schedule_of("vp"), steps=4)
        clip = sample(known, plan, start_of(to), seed=1, prediction="x", to=to)
        np.testing.assert_array_equal(host(clip), host(target), err_msg=name)


@every_library
@pytest.mark.parametrize("prediction", ["x", "eps", "v", "score", "flow", "edm"])
@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
def test_what_is_predicted_does_not_matter(to: Callable[[Any], Any], prediction: str, scaling: str) -> None:
    plan = dc.samplers.dpm_solver_pp(schedule_of(scaling), grid=np.linspace(-5.0, 5.0, 6), order=2, eta=1.0)

    def predicts(kind: str) -> Callable[[Any, Any], Any]:
        def call(z: Any, log_snr: Any) -> Any:
            level = dc.levels.level(log_snr, scaling)
            x = z * float(host(level.alpha)[0] / (host(level.alpha)[0] ** 2 + host(level.sigma)[0] ** 2))
            return dc.predictions.convert(x, z, level, source="x", target=kind)

        return call

    start = host(start_of(np.asarray, dtype=np.float32))
    want = dc.sample(predicts("x"), plan, start.astype(np.float64), seed=3, prediction="x")
    if to is LIBRARIES["jax"]:
        with jax.disable_jit():
            got = _by_hand(plan, predicts(prediction), to(start), prediction)
    else:
        got = dc.sample(predicts(prediction), plan, to(start), seed=3, prediction=prediction)
    np.testing.assert_allclose(host(got), want, rtol=2e-3, atol=2e-4)


def _by_hand(plan: dc.Plan, call: Callable[[Any, Any], Any], z: Any, prediction: str) -> Any:
    state = dc.start(plan, z, seed=3)
    for log_snr in plan.log_snr:
        y = call(state.z, jnp.full((z.shape[0],), log_snr))
        state = dc.step(plan, state, y, prediction=prediction)
    return state.z


@every_library
@pytest.mark.parametrize("result", [False, 0, np.zeros(2)], ids=str)
def test_what_a_callback_returns_does_not_matter(result: Any, to: Callable[[Any], Any]) -> None:
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=2)
    seen: list[int] = []

    def callback(state: dc.State) -> Any:
        seen.append(int(state.index))
        return result

    dc.sample(denoise, plan, start_of(to), prediction="v", callback=callback)
    assert seen == [1, 2]


@every_library
@every_sampler
def test_a_run_that_is_over_is_returned_as_it_is(make: Callable[..., dc.Plan], to: Callable[[Any], Any]) -> None:
    plan = make(schedule_of("vp"), steps=2)
    states: list[dc.State] = []
    clip = dc.sample(denoise, plan, start_of(to), prediction="v", callback=states.append)
    np.testing.assert_array_equal(host(dc.sample(denoise, plan, states[-1], prediction="v")), host(clip))


@pytest.mark.parametrize("size", [5, 1 << 15])
@pytest.mark.parametrize("to", [LIBRARIES["numpy"], LIBRARIES["torch"]], ids=["numpy", "torch"])
def test_a_denoiser_may_write_every_prediction_to_the_same_memory(size: int, to: Callable[[Any], Any]) -> None:
    plan = SAMPLERS["dpm_solver_pp order=3"](schedule_of("vp"), steps=6)
    z = to(np.linspace(-2.0, 2.0, size, dtype=np.float32).reshape(1, -1))
    memory = z * 0.0

    def again(z: Any, log_snr: Any) -> Any:
        memory[...] = -0.6 * z
        return memory

    clip = dc.sample(again, plan, z, prediction="x")
    state = dc.start(plan, z)
    for log_snr in plan.log_snr:
        state = dc.step(plan, state, again(state.z, log_snr), prediction="x")
    memory[...] = 7.0
    want = dc.sample(denoise, plan, z, prediction="x")
    np.testing.assert_array_equal(host(clip), host(want))
    np.testing.assert_array_equal(host(state.z), host(want))


@every_library
@pytest.mark.parametrize("lead", [(2,), (2, 5), (1,)])
def test_levels_per_sample_and_per_frame_are_runs_side_by_side(to: Callable[[Any], Any], lead: tuple[int, ...]) -> None:
    low = np.linspace(-4.0, -2.0, int(np.prod(lead))).reshape(lead)
    grid = np.stack([low + 1.5 * k for k in range(5)])
    schedule = schedule_of("vp")
    plan = SAMPLERS["dpm_solver_pp order=3"](schedule, grid=grid)
    shapes = []

    def recorded(z: Any, log_snr: Any) -> Any:
        shapes.append(tuple(log_snr.shape))
        return -0.6 * z

    z = start_of(to, dtype=np.float32)
    clip = host(dc.sample(recorded, plan, z, prediction="v"))  # traced anew, so that the shapes are seen
    assert set(shapes) == {(2, *lead[1:])}
    for where in np.ndindex(lead):
        alone = SAMPLERS["dpm_solver_pp order=3"](schedule, grid=grid[(slice(None), *where)])
        want = host(sample(denoise, alone, z, prediction="v", to=to))
        index = where if lead[0] > 1 else ()
        np.testing.assert_allclose(clip[index], want[index], atol=2e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_in_is_dtype_out(dtype: str) -> None:
    plan = SAMPLERS["unipc"](schedule_of("vp"), steps=4)
    z = start_of(torch.from_numpy).to(getattr(torch, dtype))
    clip = dc.sample(denoise, plan, z, seed=1, prediction="v")
    assert clip.dtype == z.dtype
    drawn = dc.sample(denoise, plan, shape=(2, 3), like=z, seed=1, prediction="v")
    assert drawn.dtype == z.dtype
    if dtype != "float64":
        in_jax = dc.sample(denoise, plan, jnp.asarray(start_of(np.asarray), dtype=dtype), seed=1, prediction="v")
        assert str(in_jax.dtype) == dtype
        exact = host(dc.sample(denoise, plan, start_of(torch.from_numpy), seed=1, prediction="v"))
        np.testing.assert_allclose(host(clip), exact, atol=0.1 if "16" in dtype else 1e-5)


def test_meta_tensors_go_through_without_a_value() -> None:
    plan = SAMPLERS["dpm_solver_pp order=3 eta=1.0"](schedule_of("vp"), steps=4)
    clip = dc.sample(denoise, plan, shape=(2, 3), like=torch.zeros(1, device="meta"), prediction="v")
    assert clip.device.type == "meta"
    assert clip.shape == (2, 3)


@every_library
def test_an_empty_axis_stays_empty(to: Callable[[Any], Any]) -> None:
    plan = SAMPLERS["ancestral"](schedule_of("vp"), steps=3)
    clip = dc.sample(denoise, plan, shape=(2, 0, 3), like=to(np.zeros(1, np.float32)), seed=1, prediction="v")
    assert tuple(clip.shape) == (2, 0, 3)


def test_ones_own_noise_is_asked_once_a_draw() -> None:
    plan = SAMPLERS["ancestral"](schedule_of("vp"), steps=4)
    asked: list[tuple[int, tuple[int, ...]]] = []

    def mine(draw: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        asked.append((draw, shape))
        return np.random.default_rng(draw).standard_normal(shape).astype(np.float32)

    like = np.zeros(1, np.float32)
    clip = dc.sample(denoise, plan, shape=(2, 3), like=like, noise=mine, prediction="v")
    assert asked == [(draw, (2, 3)) for draw in range(4)]  # 0 is the start; the last stage adds none
    again = dc.sample(denoise, plan, mine(0, (2, 3)) * plan.start.sigma, noise=mine, prediction="v")
    np.testing.assert_allclose(again, clip, atol=1e-6)


def test_the_estimate_is_transformed_before_anything_is_computed_from_it() -> None:
    plan = SAMPLERS["ddim"](schedule_of("vp"), grid=np.array([-2.0, 2.0]))
    z = start_of(np.asarray, dtype=np.float64)
    got = dc.sample(lambda z, l: 9.0 * z, plan, z, prediction="x", transform_x=lambda x: np.clip(x, -1.0, 1.0))
    want = dc.sample(lambda z, l: np.clip(9.0 * z, -1.0, 1.0), plan, z, prediction="x")
    np.testing.assert_array_equal(got, want)


def test_progress_counts_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    plan = SAMPLERS["ancestral"](schedule_of("vp"), steps=4)
    dc.sample(denoise, plan, start_of(np.asarray), prediction="v", progress=True)
    assert "4/4" in capsys.readouterr().err


BAD: list[tuple[Callable[[dc.Plan, Any], Any], type[Exception], str]] = [
    (lambda p, z: dc.sample(denoise, p, z), TypeError, "`prediction` is missing"),
    (lambda p, z: dc.sample(denoise, p, z, prediction="noise"), ValueError, "'noise'.*takes one of"),
    (lambda p, z: dc.sample(denoise, p, prediction="v"), ValueError, "`z`.*`shape`"),
    (lambda p, z: dc.sample(denoise, p, z, shape=(2, 5, 3), prediction="v"), ValueError, "`z`.*`shape`"),
    (lambda p, z: dc.sample(denoise, p, shape=(), prediction="v"), ValueError, "at least one axis"),
    (lambda p, z: dc.sample(denoise, p, shape=(2, -1), prediction="v"), ValueError, "sizes >= 0"),
    (lambda p, z: dc.sample(denoise, p, z.astype(np.int64), prediction="v"), TypeError, "int64.*float"),
    (lambda p, z: dc.sample(denoise, p, z.tolist(), prediction="v"), TypeError, "list"),
    (lambda p, z: dc.sample(denoise, p, z, seed=[1, 2, 3], prediction="v"), ValueError, "seed"),
    (lambda p, z: dc.sample(denoise, p, z, seed=-1, prediction="v"), ValueError, "seed"),
    (lambda p, z: dc.sample(lambda z, l: z[:1], p, z, prediction="v"), ValueError, r"\(1, 5, 3\).*\(2, 5, 3\)"),
    (lambda p, z: dc.sample(lambda z, l: torch.zeros(2, 5, 3), p, z, prediction="v"), TypeError, "torch.*numpy"),
    (lambda p, z: dc.sample(denoise, "ddim", z, prediction="v"), TypeError, "Plan"),
    (lambda p, z: dc.step(p, dc.start(p, z)._replace(index=4), z, prediction="v"), ValueError, "the run is over"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_input_says_what_to_do(call: Callable[[dc.Plan, Any], Any], error: type[Exception], words: str) -> None:
    plan = SAMPLERS["ancestral"](schedule_of("vp"), steps=4)
    with pytest.raises(error, match=words):
        call(plan, start_of(np.asarray))


def test_levels_that_do_not_align_are_refused() -> None:
    plan = SAMPLERS["ddim"](schedule_of("vp"), grid=np.linspace([-2.0] * 3, [2.0] * 3, 4))
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 5, 3\)"):
        dc.sample(denoise, plan, start_of(np.asarray), prediction="v")


def test_eps_at_pure_noise_is_refused_before_the_first_call() -> None:
    plan = dc.samplers.ancestral(dc.schedules.Cosine(log_snr_min=-np.inf), steps=4)
    with pytest.raises(ValueError, match="alpha = 0"):
        dc.sample(lambda z, l: pytest.fail("called"), plan, start_of(np.asarray), prediction="eps")
    assert np.isfinite(dc.sample(denoise, plan, start_of(np.asarray), prediction="v")).all()


def test_a_state_of_another_plan_is_refused() -> None:
    state = dc.start(SAMPLERS["heun"](schedule_of("vp"), steps=4), start_of(np.asarray))
    with pytest.raises(ValueError, match="does not belong"):
        dc.sample(denoise, SAMPLERS["ddim"](schedule_of("vp"), steps=4), state, prediction="v")


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_a_state_of_integers_is_refused(dtype: Any) -> None:
    """Of 16 bits too, which a kernel takes for bfloat16."""
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=4)
    state = dc.start(plan, start_of(np.asarray))
    with pytest.raises(TypeError, match=rf"sample: `state` has dtype {np.dtype(dtype)}, .* cast it first"):
        dc.sample(denoise, plan, state._replace(z=np.ones(state.z.shape, dtype)), prediction="v")


def test_a_denoiser_for_another_scaling_is_refused() -> None:
    data = dc.exact.Gaussian(np.zeros(3), 1.0, scaling="ve")
    with pytest.raises(ValueError, match=r"'ve'.*'vp'"):
        dc.sample(data, SAMPLERS["ddim"](schedule_of("vp"), steps=4), shape=(1, 3))
