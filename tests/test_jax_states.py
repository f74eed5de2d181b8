"""JAX: states, wrappers, constraints and seeds go through its transformations, and nothing of a caller's is kept for long."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_cases import SAMPLERS, schedule_of
from test_jax_forms import alike
from test_jax_kernel import denoise, start

import diffcore as dc
from diffcore._dispatch import backend_of
from diffcore.backends import jax_backend, jax_denoiser

jax.config.update("jax_platforms", "cpu")
pytestmark = pytest.mark.jax

every_name = pytest.mark.parametrize(
    "name", ["ancestral gamma=0.3", "dpm_solver_pp", "unipc", "dpm_solver_pp order=3 eta=1.0"]
)


def make(name: str) -> dc.Plan:
    return SAMPLERS[name](schedule_of("vp"), steps=5)


@every_name
def test_a_state_goes_through_jit_and_loops(name: str) -> None:
    """A step by hand keeps the structure and the types of a state, so that it is the carry of any loop."""
    plan = make(name)

    def step(state: dc.State) -> dc.State:
        return dc.step(plan, state, denoise(state.z, plan.level_for(state)), prediction="v")

    first = dc.start(plan, jnp.asarray(start()), seed=3)
    want, jitted = first, first
    for _ in range(len(plan)):
        want, jitted = step(want), jax.jit(step)(jitted)
        assert str(jax.tree.structure(jitted)) == str(jax.tree.structure(first))
    looped = jax.lax.fori_loop(0, len(plan), lambda _, state: step(state), first)
    scanned, seen = jax.lax.scan(lambda state, _: (step(state), state.x), first, length=len(plan))
    for found in (jitted, looped, scanned):
        assert int(found.mark) == plan.marks[-1]
        for got, expected in zip(jax.tree.leaves(found[:7]), jax.tree.leaves(want[:7]), strict=True):
            np.testing.assert_allclose(np.asarray(got), np.asarray(expected), atol=1e-6)
    assert seen.shape == (len(plan), *first.z.shape)
    for constraint in (None, dc.conditioning.replacement(first.z, jnp.arange(first.z.shape[1]) == 0)):
        with pytest.raises(ValueError, match=r"sample: the number of the next stage, `state\.index`, must be known"):
            jax.jit(lambda state, held=constraint: dc.sample(denoise, plan, state, prediction="v", constraint=held))(
                first
            )


def test_a_traced_step_leaves_to_the_next_what_it_cannot_refuse() -> None:
    """States that a step by hand refuses, of another plan or moved, are refused after steps under jit and vmap too."""
    plan, other = make("unipc"), SAMPLERS["unipc"](schedule_of("vp"), steps=8)

    def step(state: dc.State, plan: dc.Plan = plan) -> dc.State:
        return dc.step(plan, state, denoise(state.z, plan.level_for(state)), prediction="v")

    first, jitted = dc.start(plan, jnp.asarray(start())), jax.jit(step)
    own, foreign = jitted(jitted(first)), step(step(dc.start(other, first.z), other), other)
    moved = jitted(first)._replace(index=2)
    for wrong, says in ((foreign, "belongs to another plan"), (moved, "was moved to stage")):
        for state in (wrong, jitted(wrong)):
            with pytest.raises(ValueError, match=f"step: `state` .*{says}"):
                step(state)
    with pytest.raises(ValueError, match=r"sample: `state` .*belongs to another plan"):
        dc.sample(denoise, other, own, prediction="v")
    unknown = own._replace(mark=own.mark * 0 - 1)
    assert [int(jitted(state).mark) for state in (first, own, unknown)] == [plan.marks[at] for at in (1, 3, 3)]
    assert int(step(own).mark) == plan.marks[3]
    stacked: Any = jax.tree.map(lambda *parts: jnp.stack(parts), first, own, foreign)
    assert jax.jit(jax.vmap(step))(stacked).mark.tolist() == [plan.marks[1], plan.marks[3], int(foreign.mark)]


def test_a_run_that_is_mapped_over_what_its_denoiser_reads_gives_no_buffers_away() -> None:
    """Its start is not mapped, so that the result has another shape; JAX warned of buffers that it cannot use."""
    plan, settings = make("ancestral gamma=0.3"), {"shape": (2, 3), "seed": 3, "prediction": "v"}

    @jax.vmap
    def run(by: Any) -> Any:
        return dc.sample(lambda z, _: by * z, plan, like=jnp.zeros(1), **settings)

    for found, by in zip(run(jnp.asarray([0.5, -0.25])), (0.5, -0.25), strict=True):
        want = dc.sample(lambda z, _, by=by: by * z, plan, **settings)
        np.testing.assert_allclose(np.asarray(found), want, atol=1e-5)


@every_name
def test_seeds_and_key_words_may_be_traced_and_mapped(name: str) -> None:
    plan, z = make(name), jnp.asarray(start())

    def run(seed: Any) -> Any:
        return dc.sample(denoise, plan, z, seed=seed, prediction="v")

    words = jnp.asarray(dc.noise.keys(3, 2))
    other = jnp.asarray(dc.noise.keys(4, 2))
    np.testing.assert_array_equal(np.asarray(run(words)), np.asarray(run(3)))
    np.testing.assert_array_equal(np.asarray(jax.jit(run)(words)), np.asarray(run(3)))
    both = jax.vmap(run)(jnp.stack([words, other]))
    np.testing.assert_array_equal(np.asarray(both), np.stack([np.asarray(run(3)), np.asarray(run(4))]))


@dataclass(frozen=True)
class Scaled:
    """A wrapper of somebody's: what it wraps, and a number or an array; it checks what it is made of."""

    parts: ClassVar = ("denoise", "by")
    denoise: Any
    by: Any
    calls: Any = None

    def __post_init__(self) -> None:
        if not callable(self.denoise):
            raise TypeError("takes a denoiser")

    def __call__(self, z: Any, log_snr: Any) -> Any:
        if self.calls is not None:
            self.calls(1)
        return self.by * self.denoise(z, log_snr)


@dataclass(frozen=True)
class Net:
    """A denoiser of somebody's, inside of wrappers."""

    parts: ClassVar = ("weight",)
    weight: Any

    def __call__(self, z: Any, log_snr: Any) -> Any:
        return self.weight * z


@dataclass(frozen=True)
class Pull:
    """A constraint of somebody's, which moves the state, and what it holds in a run."""

    parts: ClassVar = ("to",)
    to: Any
    strength: float = 0.25

    def hold(self, plan: dc.Plan, z: Any) -> Pull:
        return self

    def begin(self, state: dc.State, noise: Any) -> Any:
        return state.z

    def after(self, before: dc.State, state: dc.State, noise: Any) -> Any:
        moved = state.z + self.strength * (self.to - state.x) + 0.01 * noise() + 0.001 * before.z
        return moved + sum(0.125 * array for array in state.memory)


def test_wrappers_of_anyone_are_kept_with_the_arrays_that_they_have_now() -> None:
    calls: list[int] = []
    plan, z = make("unipc"), jnp.asarray(start())
    for weight, by in ((-0.6, 0.5), (0.25, 0.75), (0.1, -0.5)):
        net = Scaled(Scaled(Net(jnp.float32(weight)), jnp.float32(by), calls.append), 2.0)
        found = dc.sample(net, plan, z, prediction="v", compile=True)
        np.testing.assert_allclose(
            np.asarray(found),
            dc.sample(lambda z, _, w=2.0 * weight * by: w * z, plan, start(), prediction="v"),
            atol=1e-5,
        )
        assert len(calls) == 1
    dc.sample(Scaled(net.denoise, 3.0), plan, z, prediction="v", compile=True)
    assert len(calls) == 2  # a number is a setting


def test_numbers_are_keys_by_value_and_type_and_functions_by_identity() -> None:
    def rest(*given: Any) -> Any:
        return jax_denoiser.split(given)[1]

    assert rest(2.0) == rest(2.0)
    assert hash(rest(2.0)) == hash(rest(2.0))
    assert rest(1) != rest(True)
    assert rest(1) != rest(1.0)
    assert rest(jnp.ones(2)) == rest(jnp.zeros(3))
    assert rest(denoise) == rest(denoise)
    assert rest(lambda x: x) != rest(lambda x: x)
    assert rest(dc.guidance.clip(-1.0, 1.0)) == rest(dc.guidance.clip(-1.0, 1.0))
    assert rest(dc.guidance.clip(-1.0, 1.0)) != rest(dc.guidance.clip(-1.0, 0.5))
    assert rest(dc.guidance.dynamic_threshold(0.9)).lasting
    assert not rest(lambda x: x).lasting


def test_settings_without_a_hash_are_equal_to_themselves_alone() -> None:
    """And the arrays beside them are arguments as ever."""
    calls, plan, z = Unhashable(), make("dpm_solver_pp"), jnp.asarray(start())
    for by in (0.5, 0.25):
        net = Scaled(Net(jnp.float32(-1.0)), jnp.float32(by), calls)
        found = dc.sample(net, plan, z, prediction="v", compile=True)
        want = dc.sample(lambda z, _, by=by: -by * z, plan, start(), prediction="v")
        np.testing.assert_allclose(np.asarray(found), want, atol=1e-5)
        assert len(calls) == 1
    other = Unhashable()
    dc.sample(Scaled(net.denoise, net.by, other), plan, z, prediction="v", compile=True)
    assert (len(calls), len(other)) == (1, 1)


class Unhashable(list[int]):
    """A setting that has no hash, and counts."""

    def __call__(self, one: int) -> None:
        self.append(one)


def test_parts_that_are_no_fields_are_refused() -> None:
    @dataclass(frozen=True)
    class Wrong:
        parts: ClassVar = ("net",)
        denoise: Any

    with pytest.raises(
        TypeError, match=r"sample: `parts` of Wrong must name fields of it, \['denoise'\], got \('net',\)"
    ):
        jax_denoiser.split(Wrong(denoise))


@pytest.mark.parametrize("compile", [None, True])
@pytest.mark.parametrize("name", ["unipc", "dpm_solver_pp order=3 eta=1.0", "heun"])
def test_a_constraint_of_anyone_sees_the_state_in_order(name: str, compile: bool | None) -> None:
    """x-hat too, and the memory that moves up: all as in the plain loop."""
    plan = make(name)
    for to in (0.5, -0.25):
        want = dc.sample(
            denoise, plan, start(), seed=3, prediction="v", constraint=Pull(np.full((2, 1), to, np.float32))
        )
        held = Pull(jnp.full((2, 1), to))
        found = dc.sample(denoise, plan, jnp.asarray(start()), seed=3, prediction="v", constraint=held, compile=compile)
        np.testing.assert_allclose(np.asarray(found), want, atol=2e-5)


def test_a_source_of_noise_is_asked_with_the_levels_of_its_stage() -> None:
    plan = make("ancestral gamma=0.3")

    def noise(draw: Any, shape: tuple[int, ...], log_snr: Any, next_log_snr: Any) -> Any:
        if log_snr is None:  # the start
            return ones
        return (0.1 * log_snr + 1.0 / (2.0 + next_log_snr**2) + 0.01 * draw) * ones

    ones: Any = np.ones(start().shape, np.float32)
    want = dc.sample(denoise, plan, start(), noise=noise, prediction="v")
    ones = jnp.asarray(ones)
    for compile in (None, True):
        found = dc.sample(denoise, plan, jnp.asarray(start()), noise=noise, prediction="v", compile=compile)
        np.testing.assert_allclose(np.asarray(found), want, atol=1e-5)


@pytest.mark.parametrize("way", ["run", "kept run", "by hand", "projection"])
def test_no_function_of_a_caller_is_kept_for_long(way: str) -> None:
    """Closures over arrays, a fresh one each time: as many arrays are alive after many runs as after few."""
    plan, z, alive = dc.samplers.ddim(schedule_of("vp"), steps=2), jnp.ones((1, 2, 4, 4, 1)), []
    few = 2 + int(jax_backend._kept.cache_info().maxsize or 0)
    for run in range(few + 4):
        held = jnp.full((1, 2, 2, 2, 1), float(run))
        transform_x: Any = lambda x, held=held: 0.9 * x + held.mean()  # noqa: E731
        if way == "projection":
            transform_x = dc.conditioning.projection(held, measure=dc.conditioning.downsample(2), after=transform_x)
        if way == "by hand":
            state = dc.start(plan, z)
            for _ in range(len(plan)):
                state = dc.step(plan, state, denoise(state.z, None), prediction="v", transform_x=transform_x)
        else:
            compile = True if way != "run" else None
            dc.sample(denoise, plan, z, prediction="v", transform_x=transform_x, compile=compile).block_until_ready()
        del held, transform_x
        alive.append(sum(array.shape == (1, 2, 2, 2, 1) for array in jax.live_arrays()))
    assert alive[-1] <= alive[few - 1]
    assert alive[-1] <= 2 * int(jax_backend._kept.cache_info().maxsize or 0)


def test_projections_of_what_is_observed_share_one_trace() -> None:
    calls: list[int] = []
    plan, z = dc.samplers.ddim(schedule_of("vp"), steps=2), jnp.ones((1, 2, 4, 4, 1))

    def counted(z: Any, log_snr: Any) -> Any:
        calls.append(1)
        return -0.5 * z

    for value in (0.25, -0.5):
        observed = jnp.full((1, 2, 2, 2, 1), value)
        sets = dc.conditioning.projection(observed, measure=dc.conditioning.downsample(2), after=dc.guidance.clip())
        found = dc.sample(counted, plan, z, prediction="v", transform_x=sets, compile=True)
        np.testing.assert_allclose(np.asarray(dc.conditioning.downsample(2)(found)), value, atol=1e-6)
        state = dc.start(plan, z)
        for _ in range(len(plan)):
            state = dc.step(plan, state, denoise(state.z, None), prediction="v", transform_x=sets)
        alike(state._replace(z=found), state)
    assert len(calls) == 1


def test_a_loop_outside_a_trace_leaves_no_program_behind() -> None:
    """JAX itself keeps the last 4096 that are called so, each with its arrays."""
    plan = dc.samplers.ddim(dc.schedules.Cosine(), grid=[4.0, 0.0, -4.0])

    def run() -> int:
        held = jnp.ones(3)  # of this run's denoiser alone
        dc.likelihood.ode(lambda z, log_snr: held * z, jnp.ones((1, 3)), plan, prediction="v")
        backend_of(held).cond(held[0] > 0.0, lambda z: z + held, lambda z: z - held, held)
        gc.collect()
        return len(jax.devices()[0].client.live_executables())

    run()
    first = run()
    assert [run(), run()] == [first, first]


def test_a_loop_outside_a_trace_may_hold_what_is_traced() -> None:
    backend = backend_of(jnp.ones(1))
    for rate in (2.0, 3.0):
        power = jax.jit(jax.grad(lambda v: backend.repeat(3, lambda x: x * v, jnp.ones(()))))
        assert power(rate) == 3.0 * rate**2
        branch = jax.grad(lambda v: backend.cond(jnp.asarray(True), lambda x: x * v, lambda x: x, jnp.ones(())))
        assert branch(rate) == 1.0


def test_a_plan_is_an_argument_of_jit_and_an_equal_one_no_new_trace() -> None:
    traces: list[int] = []

    def draw(plan: dc.Plan, seed: Any) -> Any:
        traces.append(len(plan))
        return dc.sample(denoise, plan, shape=(2, 3), like=jnp.zeros(1), seed=seed, prediction="v")

    fast = jax.jit(draw)
    for seed in (1, 2):
        fast(make("unipc"), dc.noise.keys(seed, 2))
    assert traces == [5]
