"""The loop: by hand or whole, stopped and resumed, alone or in a batch, on every library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sampler_cases import RUNS, SAMPLERS, schedule_of

import diffcore as dc
from diffcore.backends import cpu_threads
from diffcore.plan import marks

jax.config.update("jax_platforms", "cpu")

LIBRARIES: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda a: np.asarray(a),
    "torch": lambda a: torch.from_numpy(np.asarray(a)),
    "jax": lambda a: jnp.asarray(a),
}
every_library = pytest.mark.parametrize("to", LIBRARIES.values(), ids=LIBRARIES.keys())
ON_JAX = ("ddim", "heun churn=4.0 noise_scale=1.003", "dpm_solver_pp order=3 eta=1.0", "unipc")
run_on_library = pytest.mark.parametrize(
    ("make", "to"),
    [
        pytest.param(make, to, id=f"{name}-{library}")
        for library, to in LIBRARIES.items()
        for name, make in RUNS.items()
        if library != "jax" or name in ON_JAX  # all forms are compiled in test_jax_forms
    ],
)


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


@pytest.mark.parametrize("make", [RUNS[name] for name in ON_JAX], ids=ON_JAX)
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


@run_on_library
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
@pytest.mark.parametrize("memory", [4, 5])
def test_a_plan_of_ones_own_may_remember_much(memory: int, to: Callable[[Any], Any]) -> None:
    """More than kernels do, and the oldest estimate counts."""
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=12)
    update = np.zeros((len(plan), 1 + memory, memory + 3))
    update[:, 0, [0, -1]], update[:, 0, memory] = plan.update[:, 0, [0, -1]], 0.25
    update[:, 1, -1], update[:, range(2, memory + 1), range(1, memory)] = 1.0, 1.0
    plan = dataclasses.replace(plan, update=update)
    assert plan.form == dc.plan.Form(memory, memory - 1, keeps_x=True)
    clip = host(sample(denoise, plan, start_of(to), prediction="v", to=to))
    z, past = host(start_of(np.asarray)), [0.0] * memory
    for (of_z, of_y), row in zip(plan.coefficients("v")[:, :2], update[:, 0], strict=True):
        x = of_z * z + of_y * denoise(z, None)
        z = row[0] * z + row[-1] * x + 0.25 * past[-1]
        past = [x, *past[:-1]]
    np.testing.assert_allclose(clip, z, rtol=1e-4, atol=1e-5)
    state = dc.start(plan, start_of(to))
    for _ in range(len(plan)):
        state = dc.step(plan, state, denoise(state.z, None), prediction="v")
    np.testing.assert_allclose(host(state.z), z, rtol=1e-4, atol=1e-5)


@run_on_library
def test_a_resumed_run_is_the_straight_one_bit_for_bit(make: Callable[..., dc.Plan], to: Callable[[Any], Any]) -> None:
    plan = make(schedule_of("vp"), steps=5)
    states: list[dc.State] = []
    clip = dc.sample(denoise, plan, start_of(to), seed=[2**64 - 1, 3], prediction="v", callback=states.append)
    assert [int(state.index) for state in states] == list(range(1, len(plan) + 1))
    for stop in (0, len(plan) // 2, len(plan) - 2):
        kept = states[stop]
        memory = tuple(to(host(array).copy()) for array in kept.memory)  # through the host, as a file would
        state = kept._replace(z=to(host(kept.z).copy()), memory=memory, x=None)
        np.testing.assert_array_equal(host(sample(denoise, plan, state, prediction="v", to=to)), host(clip))


@run_on_library
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
    plans = [
        SAMPLERS["unipc"](schedule_of("vp"), steps=5),
        SAMPLERS["dpm_solver_pp order=3 eta=1.0"](schedule_of("vp"), steps=5),
    ]
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

    for name, make in ({name: RUNS[name] for name in ON_JAX} if to is LIBRARIES["jax"] else SAMPLERS).items():
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


@run_on_library
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
    (lambda p, z: dc.sample(denoise, p, z), TypeError, r"`prediction` must be .*, got None"),
    (lambda p, z: dc.sample(denoise, p, z, prediction="noise"), ValueError, "`prediction` must be .*, got 'noise'"),
    (lambda p, z: dc.sample(denoise, p, prediction="v"), ValueError, "`z`.*`shape`"),
    (lambda p, z: dc.sample(denoise, p, z, shape=(2, 5, 3), prediction="v"), ValueError, "`z`.*`shape`"),
    (lambda p, z: dc.sample(denoise, p, shape=(), prediction="v"), ValueError, r"`shape` must be \(B, "),
    (lambda p, z: dc.sample(denoise, p, shape=(2, -1), prediction="v"), ValueError, r"ints >= 0, got \(2, -1\)"),
    (lambda p, z: dc.sample(denoise, p, z.astype(np.int64), prediction="v"), TypeError, "int64.*float"),
    (lambda p, z: dc.sample(denoise, p, z.tolist(), prediction="v"), TypeError, "list"),
    (lambda p, z: dc.sample(denoise, p, z, seed=[1, 2, 3], prediction="v"), ValueError, "seed"),
    (lambda p, z: dc.sample(denoise, p, z, seed=-1, prediction="v"), ValueError, "seed"),
    (lambda p, z: dc.sample(lambda z, l: z[:1], p, z, prediction="v"), ValueError, r"\(1, 5, 3\).*\(2, 5, 3\)"),
    (lambda p, z: dc.sample(lambda z, l: torch.zeros(2, 5, 3), p, z, prediction="v"), TypeError, "torch.*numpy"),
    (lambda p, z: dc.sample(denoise, "ddim", z, prediction="v"), TypeError, "Plan"),
    (lambda p, z: dc.step(p, dc.start(p, z)._replace(index=4), z, prediction="v"), ValueError, "the run is over"),
    (lambda p, z: dc.step(p, z, z, prediction="v"), TypeError, "`state` must be a diffcore.State.*ndarray"),
    (
        lambda p, z: dc.step(p, dc.start(p, z), z, prediction="v", unguided=z),
        ValueError,
        "`unguided` must be None: .* does not read",
    ),
    (
        lambda p, z: dc.sample(denoise, p, dc.start(p, z), seed=3, prediction="v"),
        ValueError,
        "`seed` must be left out for a State",
    ),
    (lambda p, z: dc.start(p, dc.start(p, z), seed=3), ValueError, "`seed` must be left out for a State"),
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
    with pytest.raises(ValueError, match=r"`state` must have .*, got .*; it belongs to another plan"):
        dc.sample(denoise, SAMPLERS["ddim"](schedule_of("vp"), steps=4), state, prediction="v")


@every_library
def test_a_state_that_went_through_other_stages_is_refused(to: Callable[[Any], Any], tmp_path: Path) -> None:
    """Of a plan with as much memory, or none, also from a file; parts and longer plans of the same stages go on."""
    make = {name: partial(SAMPLERS[name], schedule_of("vp")) for name in ("unipc", "dpm_solver_pp order=3", "ddim")}
    for old, new in (("unipc", "unipc"), ("dpm_solver_pp order=3", "unipc"), ("ddim", "ddim")):
        before, plan = make[old](steps=8), make[new](steps=8 if old != new else 9)
        states: list[dc.State] = [dc.start(before, start_of(to), seed=3)]
        for _ in range(2):
            states.append(dc.step(before, states[-1], denoise(states[-1].z, None), prediction="v"))
        dc.save_state(tmp_path / "state", states[-1])
        loaded = dc.load_state(tmp_path / "state", like=states[-1].z)
        for state in (states[1], states[2], loaded):
            for call in (
                lambda state=state, plan=plan: dc.step(plan, state, state.z, prediction="v"),
                lambda state=state, plan=plan: dc.sample(denoise, plan, state, prediction="v"),
            ):
                with pytest.raises(ValueError, match=r"belongs to another plan; .* `start\(plan, state\)`"):
                    call()
        seen: list[dc.State] = []
        dc.sample(denoise, before[:4], loaded, prediction="v", callback=seen.append)
        jax.effects_barrier()
        assert int(dc.step(before, seen[-1], seen[-1].z, prediction="v").index) == 5


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_plan_made_on_another_machine_has_the_same_marks(name: str) -> None:
    """Where exponentials differ in their last digits, and no other plan has them."""
    plan = SAMPLERS[name](schedule_of("vp"), steps=6)
    rounded = replace(plan, log_snr=plan.log_snr + 1e-14, update=plan.update * (1.0 - 1e-13))
    assert all(map(marks.same, plan.marks, rounded.marks))
    one, other = (
        SAMPLERS[name](schedule_of("vp"), grid=np.append(np.linspace(-9.0, last, 6), np.inf)) for last in (8.0, 8.1)
    )
    assert not any(map(marks.same, one.marks[1:], other.marks[1:]))


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_a_state_of_integers_is_refused(dtype: Any) -> None:
    """Of 16 bits too, which a kernel takes for bfloat16."""
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=4)
    state = dc.start(plan, start_of(np.asarray))
    with pytest.raises(TypeError, match=rf"sample: `state` has dtype {np.dtype(dtype)}, .* cast it first"):
        dc.sample(denoise, plan, state._replace(z=np.ones(state.z.shape, dtype)), prediction="v")


def test_a_denoiser_for_another_scaling_is_refused() -> None:
    data = dc.exact.Gaussian(np.zeros(3), 1.0, scaling="ve")
    with pytest.raises(ValueError, match=r"`denoise` must have the scaling of `plan`, 'v[pe]', got 'v[pe]'"):
        dc.sample(data, SAMPLERS["ddim"](schedule_of("vp"), steps=4), shape=(1, 3))


@every_library
def test_a_state_that_was_moved_by_hand_is_refused_where_memory_is_missing(to: Callable[[Any], Any]) -> None:
    plan = SAMPLERS["dpm_solver_pp"](schedule_of("vp"), steps=6)
    moved = dc.start(plan, start_of(to))._replace(index=3)
    for call in (
        lambda: dc.step(plan, moved, moved.z, prediction="v"),
        lambda: dc.sample(denoise, plan, moved, prediction="v"),
    ):
        with pytest.raises(ValueError, match=r"moved to stage 3 by hand.*needs the memory"):
            call()
    later = dc.start(plan, moved._replace(draw=moved.draw + 5))  # whose draws go on from another plan's
    assert int(dc.step(plan, later, later.z, prediction="v").draw) == 7
    with pytest.raises(ValueError, match=r"moved to stage 2 by hand.*needs the memory"):
        dc.step(plan, later._replace(index=2), later.z, prediction="v")
    with pytest.raises(ValueError, match=r"stage 3; resume from a State.*samplers\.make"):
        plan[3:]


@every_library
def test_a_part_is_the_rest_of_a_run_and_parts_follow_one_another(to: Callable[[Any], Any]) -> None:
    """Without a draw used twice: the state of one run goes on in the next with its keys, and with its count of draws."""
    plan = SAMPLERS["ancestral gamma=0.3"](schedule_of("vp"), steps=5)
    whole = host(sample(denoise, plan, start_of(to), seed=3, prediction="v", to=to))
    states: list[dc.State] = []
    dc.sample(denoise, plan[:2], start_of(to), seed=3, prediction="v", callback=states.append)
    second = dc.start(plan[2:], states[-1])
    assert (int(second.index), int(second.draw)) == (0, 3)
    np.testing.assert_array_equal(host(dc.sample(denoise, plan[2:], second, prediction="v")), whole)
    again = dc.sample(denoise, plan[:2] + plan[2:], start_of(to), seed=3, prediction="v")
    np.testing.assert_array_equal(host(again), whole)


def test_settings_make_the_plan_again_on_another_grid() -> None:
    schedule, grid = schedule_of("vp"), np.linspace(-5.0, 5.0, 4)
    for name, make in SAMPLERS.items():
        again = dc.samplers.make(schedule=schedule, grid=grid, **make(schedule, steps=7).settings)
        assert again == make(schedule, grid=grid), name


@run_on_library
def test_the_estimate_is_in_the_state_and_in_the_callback(
    make: Callable[..., dc.Plan], to: Callable[[Any], Any]
) -> None:
    plan = make(schedule_of("vp"), steps=3)
    seen: list[dc.State] = []
    dc.sample(denoise, plan, start_of(to), seed=1, prediction="v", callback=seen.append)
    state = dc.start(plan, start_of(to), seed=1)
    assert not np.any(host(state.x))
    for k, (of_z, of_y) in enumerate(plan.coefficients("v")[:, :2]):
        y = denoise(state.z, None)
        want = of_z * host(state.z) + of_y * host(y)
        state = dc.step(plan, state, y, prediction="v", transform_x=None)
        np.testing.assert_allclose(host(state.x), want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
        np.testing.assert_allclose(host(seen[k].x), host(state.x), rtol=0, atol=1e-5 * np.abs(want).max())


@every_library
def test_the_level_for_a_state_is_what_a_network_takes(to: Callable[[Any], Any]) -> None:
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=3)
    state = dc.start(plan, start_of(to))
    for log_snr in plan.log_snr:
        level = plan.level_for(state)
        assert type(level) is type(state.z)
        np.testing.assert_array_equal(host(level), np.full(2, log_snr, np.float32))
        state = dc.step(plan, state, denoise(state.z, level), prediction="v")
    with pytest.raises(ValueError, match="run is over"):
        plan.level_for(state)


def test_a_source_of_noise_gets_what_it_asks_for_by_name() -> None:
    """The draw as an int; the levels of the stage; the stream of a constraint."""
    plan, asked = SAMPLERS["ancestral"](schedule_of("vp"), steps=3), []

    def mine(draw: int, shape: Any, *, log_snr: float, next_log_snr: float, stream: int) -> Any:
        asked.append((draw, log_snr, next_log_snr, stream))
        return np.zeros(shape)

    held = dc.conditioning.replacement(np.zeros((2, 5, 3)), True)
    dc.sample(denoise, plan, shape=(2, 5, 3), like=np.zeros(1), noise=mine, prediction="v", constraint=held)
    levels = list(zip(plan.log_snr.tolist(), plan.next_log_snr.tolist(), strict=True))
    assert [entry for entry in asked if entry[3] == 0] == [(0, None, None, 0), (1, *levels[0], 0), (2, *levels[1], 0)]
    assert [entry[0] for entry in asked if entry[3]] == [0, 1, 2]
    assert all(type(entry[0]) is int for entry in asked)


@every_library
@pytest.mark.parametrize("second", ["unguided", "raw"])
def test_a_plan_may_read_a_second_estimate(second: str, to: Callable[[Any], Any]) -> None:
    """CFG++: the guided x-hat with the noise of the unguided one; or of the x-hat before it was clipped."""
    schedule = schedule_of("vp")
    ddim = SAMPLERS["ddim"](schedule, steps=4)
    update = np.zeros((4, 1, 4))  # z, noise, x, second: z' = alpha_s x + (sigma_s / sigma_t) (z - alpha_t second)
    update[:, 0, 0] = ddim.update[:, 0, 0]
    update[:, 0, 2] = dc.levels.level(ddim.next_log_snr).alpha
    update[:, 0, 3] = -ddim.update[:, 0, 0] * ddim.levels.alpha
    plan = dc.Plan("second", "vp", ddim.log_snr, ddim.next_log_snr, update, second=second)
    clip = dc.guidance.clip(-0.5, 0.5)
    guided = dc.guidance.classifier_free(lambda z, _: -0.6 * z, lambda z, _: -0.3 * z, weight=1.5)
    got = host(sample(guided, plan, start_of(to), prediction="v", transform_x=clip, to=to))
    z = start_of(np.asarray, dtype=np.float64)
    state = dc.start(plan, z)
    for k in range(4):
        at, to_level = dc.levels.level(ddim.log_snr[k]), dc.levels.level(ddim.next_log_snr[k])
        x, unguided = (at.alpha * z - at.sigma * v for v in (2.5 * -0.6 * z - 1.5 * -0.3 * z, -0.3 * z))
        other = unguided if second == "unguided" else x
        by_hand = {"unguided": -0.3 * z} if second == "unguided" else {}
        state = dc.step(plan, state, guided(z, 0.0), prediction="v", transform_x=clip, **by_hand)
        z = to_level.alpha * np.clip(x, -0.5, 0.5) + to_level.sigma / at.sigma * (z - at.alpha * other)
        np.testing.assert_allclose(state.z, z, rtol=1e-12)
    np.testing.assert_allclose(got, z, rtol=0, atol=2e-5)
    if second == "unguided":
        with pytest.raises(TypeError, match=r"classifier_free.*without guidance"):
            dc.sample(denoise, plan, start_of(to), prediction="v")


@every_library
def test_a_plan_may_tell_the_denoiser_where_it_goes(to: Callable[[Any], Any]) -> None:
    ddim, seen = SAMPLERS["ddim"](schedule_of("vp"), grid=np.linspace(-3.0, 3.0, 4)), []
    plan = dataclasses.replace(ddim, ahead=True)

    def jumps(z: Any, log_snr: Any, next_log_snr: Any) -> Any:
        seen.append((tuple(log_snr.shape), tuple(next_log_snr.shape)))
        return -0.1 * z * (next_log_snr - log_snr)[:, None, None]

    got = dc.sample(jumps, plan, start_of(to), prediction="v")
    want = dc.sample(lambda z, _: -0.2 * z, ddim, start_of(to), prediction="v")  # each step is 2 in log-SNR
    assert set(seen) == {((2,), (2,))}
    np.testing.assert_allclose(host(got), host(want), atol=1e-6)
