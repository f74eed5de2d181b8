"""The CPU's kernel in a JAX program: the bits of NumPy, in every dtype and under every transformation."""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from libraries import example, host
from sampler_cases import RUNS, SAMPLERS, schedule_of

import diffcore as dc
from diffcore.backends import cpu_threads, jax_kernel
from diffcore.plan import Form

jax.config.update("jax_platforms", "cpu")
pytestmark = pytest.mark.jax

needs_kernel = pytest.mark.skipif(cpu_threads.kernel is None, reason="the kernel was not compiled")
SIZE = 1024
CLIP = dc.guidance.clip(-0.7, 0.6)


def denoise(z: Any, log_snr: Any) -> Any:
    return -0.5 * z


def start(batch: int = 2, size: int = SIZE + 300, dtype: Any = np.float32) -> Any:
    return np.linspace(-2.0, 2.0, batch * size).astype(dtype).reshape(batch, size)


def make(name: str, steps: int = 4) -> dc.Plan:
    return SAMPLERS[name](schedule_of("vp"), steps=steps)


@needs_kernel
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_numpys_bit_for_bit(name: str) -> None:
    """With x-hat clipped and without, in turn: both, of every form, are in test_jax_forms."""
    transform_x = (None, CLIP)[list(RUNS).index(name) % 2]
    assert jax_kernel.works()
    settings: dict[str, Any] = {"seed": [3, 2**64 - 1], "prediction": "v", "transform_x": transform_x}
    want = dc.sample(denoise, make(name), start(), **settings)
    for compile in (None, True):
        found = dc.sample(denoise, make(name), jnp.asarray(start()), compile=compile, **settings)
        np.testing.assert_array_equal(np.asarray(found), want)


@needs_kernel
@pytest.mark.parametrize("name", ["ancestral gamma=0.3", "dpm_solver_pp order=3 eta=1.0", "unipc"])
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_so_it_is_in_every_dtype(dtype: str, name: str) -> None:
    settings: dict[str, Any] = {"seed": 3, "prediction": "v", "transform_x": CLIP}
    torch = pytest.importorskip("torch")  # NumPy has no bfloat16
    z = torch.from_numpy(start()).to(getattr(torch, dtype))
    want = host(dc.sample(denoise, make(name), z, **settings))
    with example("jax", dtype):
        found = dc.sample(denoise, make(name), jnp.asarray(z.double().numpy(), dtype), **settings)
        assert str(found.dtype) == dtype
        tiny = 2.0**-14 if dtype == "float16" else 0.0  # XLA's own operations, the denoiser's, know no subnormal
        np.testing.assert_allclose(host(found), want, rtol=0, atol=tiny)


@needs_kernel
@pytest.mark.parametrize("lead", [(2,), (2, 3), (1, 3)])
def test_levels_of_samples_and_frames_are_numpys(lead: tuple[int, ...]) -> None:
    highest = np.linspace(6.0, 9.0, math.prod(lead)).reshape(lead)
    grid = np.stack([np.full(lead, -9.0), np.zeros(lead), highest])
    plan = dc.samplers.ddim(schedule_of("vp"), grid=grid, eta=0.7)
    z = start().reshape(2, -1)[:, : 3 * 440].reshape(2, 3, 440)
    want = dc.sample(denoise, plan, z, seed=3, prediction="v", transform_x=CLIP)
    found = dc.sample(denoise, plan, jnp.asarray(z), seed=3, prediction="v", transform_x=CLIP)
    np.testing.assert_array_equal(np.asarray(found), want)


@needs_kernel
@pytest.mark.parametrize("name", ["ancestral gamma=0.3", "unipc", "dpm_solver_pp order=3"])
def test_what_the_denoiser_returns_may_be_anything(name: str) -> None:
    """Its own input, a constant, what it read from a caller's array: nothing is written over before it is read, or kept."""
    z, plan = start(), make(name)
    held = jnp.asarray(z)
    calls = {
        "input": lambda xp: lambda z, _: z,
        "constant": lambda xp: lambda z, _: xp.full_like(z, 0.25),
        "flipped": lambda xp: lambda z, _: xp.flip(z, axis=-1),
        "held": lambda xp: lambda z, _: xp.asarray(held),
    }
    for call in calls.values():
        want = dc.sample(call(np), plan, z, seed=3, prediction="v")
        found = dc.sample(call(jnp), plan, held, seed=3, prediction="v")
        np.testing.assert_array_equal(np.asarray(found), want)
    np.testing.assert_array_equal(np.asarray(held), z)


@needs_kernel
@pytest.mark.parametrize("name", ["ancestral gamma=0.3", "dpm_solver_pp order=3 eta=1.0"])
def test_it_goes_under_jit_vmap_and_grad(name: str) -> None:
    plan, z = make(name), jnp.asarray(start())

    def run(z: Any, seed: Any = 3) -> Any:
        return dc.sample(denoise, plan, z, seed=seed, prediction="v")

    want = np.asarray(run(z))
    np.testing.assert_array_equal(np.asarray(jax.jit(run)(z)), want)
    both = jax.vmap(run)(jnp.stack([z, -z]))
    np.testing.assert_array_equal(np.asarray(both[0]), want)
    np.testing.assert_array_equal(np.asarray(both[1]), np.asarray(run(-z)))
    # A run is linear in z up to its noise, so that it is its own derivative, which the plain function gives.
    value, tangent = jax.jvp(run, (z,), (z,))
    np.testing.assert_allclose(np.asarray(value), want, atol=1e-5)
    still = np.asarray(run(jnp.zeros_like(z)))
    np.testing.assert_allclose(np.asarray(tangent), want - still, atol=2e-5)
    slope = np.asarray(jax.grad(lambda z: run(z).sum())(z))
    np.testing.assert_allclose(slope, slope[0, 0], rtol=1e-4)
    np.testing.assert_allclose((slope * np.asarray(z)).sum(), (want - still).sum(), rtol=1e-3, atol=1e-3)


@needs_kernel
@pytest.mark.parametrize("name", ["ancestral gamma=0.3", "unipc"])
def test_known_elements_and_ones_own_noise_are_numpys(name: str) -> None:
    z, plan = start(), make(name)
    held = [dc.conditioning.replacement(to(np.clip(z, -1.0, 1.0)), to(z > 0.5)) for to in (np.asarray, jnp.asarray)]
    draws = np.random.default_rng(0).standard_normal((2 * len(plan) + 3, *z.shape)).astype(np.float32)

    def noise(xp: Any) -> Any:
        return lambda draw, shape: xp.asarray(draws)[draw % len(draws)]

    for source in ({"seed": 3}, None):
        found, want = (
            dc.sample(denoise, plan, to(z), constraint=at, prediction="v", **(source or {"noise": noise(xp)}))
            for to, at, xp in ((jnp.asarray, held[1], jnp), (np.asarray, held[0], np))
        )
        np.testing.assert_allclose(np.asarray(found), want, rtol=0, atol=2e-5)


@needs_kernel
def test_noise_has_no_derivative_and_stops_none() -> None:
    """Wherever a derivative passes by: seeds and draws are tangents of integers in a run that is differentiated."""
    words = jnp.asarray(dc.noise.keys([7, 8], 2))

    def scaled(scale: Any) -> Any:
        def body(total: Any, draw: Any) -> Any:
            total, number, seeds = jax.lax.optimization_barrier((total, draw, words))
            return total + scale * dc.noise.normal(seeds, number, (2, 5), like=total), None

        return jax.lax.scan(body, jnp.zeros((2, 5)), jnp.arange(3))[0]

    value, tangent = jax.jvp(scaled, (jnp.float32(2.0),), (jnp.float32(1.0),))
    np.testing.assert_allclose(np.asarray(value), 2.0 * np.asarray(tangent), rtol=1e-6)
    assert jax.grad(lambda scale: scaled(scale).sum())(jnp.float32(2.0)) == pytest.approx(
        float(tangent.sum()), rel=1e-5
    )
    bits = jax.jit(lambda scale: dc.noise.bits(words, 1, (2, 5), like=scale))
    assert jax.jvp(bits, (jnp.float32(1.0),), (jnp.float32(1.0),))[1].dtype == jax.dtypes.float0


@needs_kernel
@pytest.mark.parametrize(("data", "drawn"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_ones_own_noise_may_be_of_another_dtype(data: str, drawn: str) -> None:
    """Which the kernel does not take: the stage goes the plain way."""
    z, plan = jnp.asarray(start(), data), make("ancestral gamma=0.3")

    def noise(draw: Any, shape: tuple[int, ...]) -> Any:
        return jnp.full(shape, 0.25, drawn)

    clip = dc.sample(denoise, plan, z, noise=noise, prediction="v").block_until_ready()
    assert clip.dtype == z.dtype
    state = dc.start(plan, z, noise=noise)
    for _ in range(len(plan)):
        state = dc.step(plan, state, denoise(state.z, None), noise=noise, prediction="v")
    np.testing.assert_allclose(host(clip), host(state.z), atol=0.02 if data == "bfloat16" else 1e-5)


@needs_kernel
@pytest.mark.parametrize("name", ["ancestral gamma=0.3", "unipc"])
def test_types_that_tell_of_devices_are_kept(name: str) -> None:
    """In a shard_map, and on a mesh with explicit axes, also where there is one device."""
    spec, z = jax.sharding.PartitionSpec("b"), jnp.asarray(start())
    kinds = jax.sharding.AxisType
    want = np.asarray(dc.sample(denoise, make(name), z, seed=3, prediction="v"))

    def run(z: Any) -> Any:
        return dc.sample(denoise, make(name), z, seed=3, prediction="v")

    mesh = jax.make_mesh((1,), ("b",), axis_types=(kinds.Auto,))
    found = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec))(z)
    np.testing.assert_allclose(np.asarray(found), want, atol=1e-5)
    if jax.__version_info__ < (0, 10):
        return  # XLA's own operations do not go on such a mesh there either
    mesh = jax.make_mesh((1,), ("b",), axis_types=(kinds.Explicit,))
    where = jax.sharding.NamedSharding(mesh, spec)
    with jax.set_mesh(mesh):
        for call in (run, jax.jit(run)):
            found = call(jax.device_put(start(), where))
            assert found.sharding.spec[0] == "b"
            np.testing.assert_allclose(np.asarray(found), want, atol=1e-5)


@needs_kernel
def test_whether_it_works_does_not_depend_on_who_asks_first() -> None:
    mesh, spec = jax.sharding.Mesh(jax.devices(), ("b",)), jax.sharding.PartitionSpec()
    found = []

    def ask(z: Any) -> Any:
        found.append(jax_kernel.works.__wrapped__())
        return z

    jax.shard_map(ask, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.zeros(3))
    with jax.transfer_guard("disallow"), jax.disable_jit():
        ask(None)
    assert all(found)


@needs_kernel
@pytest.mark.parametrize("size", [3, 255, SIZE + 1, 3 * SIZE + 700])
def test_noise_is_numpys_bit_for_bit_whatever_the_batch(size: int) -> None:
    seeds = [7, 2**64 - 1, 2**32]
    for like in (np.zeros(1, np.float32), np.zeros(1, np.float16), np.zeros(1, np.float64)):
        want = dc.noise.normal(seeds, 2**32 - 1, (3, size), like=like, stream=2)
        with example("jax", str(like.dtype)):
            to = jnp.zeros(1, str(like.dtype))
            found = np.asarray(dc.noise.normal(seeds, 2**32 - 1, (3, size), like=to, stream=2))
            alone = np.asarray(dc.noise.normal(seeds[1:2], 2**32 - 1, (1, size), like=to, stream=2))
        np.testing.assert_array_equal(found, want)
        np.testing.assert_array_equal(alone[0], want[1])


def test_slots_turn_into_order_and_back() -> None:
    """What stage i computed lies in slot i modulo their number, after the memory that does not move."""
    for form in (Form(1, 0), Form(3, 0), Form(2, 1), Form(4, 2), Form(4, 3)):
        fixed, count = ("fixed",) * (form.computed - 1), form.shifted + 1
        slots: list[Any] = [-1] * count
        jitted = jax.jit(partial(jax_kernel.ring, form))
        for stage in range(12):
            ordered = jax_kernel.ring(form, (*fixed, *slots), stage)
            assert ordered[form.computed - 1 :] == tuple(max(stage - 1 - back, -1) for back in range(count))
            assert jax_kernel.ring(form, ordered, stage) == (*fixed, *slots)
            numbers = tuple(map(jnp.asarray, (*[0] * len(fixed), *slots)))
            traced = jitted(numbers, jnp.int32(stage))
            assert tuple(map(int, traced))[len(fixed) :] == ordered[len(fixed) :]
            slots[stage % count] = stage


@needs_kernel
def test_runs_on_several_threads_at_once() -> None:
    plan, want = make("ancestral gamma=0.3", 20), {}
    settings: dict[str, Any] = {"prediction": "v"}
    for seed in range(4):
        want[seed] = dc.sample(denoise, plan, start(), seed=seed, **settings)
    found: dict[int, Any] = {}

    def work(seed: int) -> None:
        found[seed] = np.asarray(dc.sample(denoise, plan, jnp.asarray(start()), seed=seed, **settings))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120.0)
    for seed, clip in want.items():
        np.testing.assert_array_equal(found[seed], clip)
