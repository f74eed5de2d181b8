"""What JAX makes of a run: one trace, in memory that is used again."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_cases import SAMPLERS, schedule_of
from test_sampling import denoise, host, start_of

import diffcore as dc

jax.config.update("jax_platforms", "cpu")


def test_on_jax_a_run_is_one_trace() -> None:
    calls = []

    def counted(z: Any, log_snr: Any) -> Any:
        calls.append(1)
        assert log_snr.shape == (2,)
        return -0.6 * z

    for name in (
        "ancestral",
        "predictor_corrector",
        "heun churn=4.0 noise_scale=1.003",
        "dpm_solver_pp order=3",
        "unipc",
    ):
        calls.clear()
        dc.sample(counted, SAMPLERS[name](schedule_of("vp"), steps=6), start_of(jnp.asarray), seed=1, prediction="v")
        assert len(calls) == 1, name


def test_on_jax_a_kept_run_serves_every_plan_that_reads_the_same() -> None:
    calls = []

    def counted(z: Any, log_snr: Any) -> Any:
        calls.append(1)
        return -0.6 * z

    first, second = dc.samplers.ddim(schedule_of("vp"), steps=6), dc.samplers.euler(schedule_of("vp"), steps=6)
    a = dc.sample(counted, first, start_of(jnp.asarray), prediction="v", compile=True)
    b = dc.sample(counted, second, start_of(jnp.asarray), prediction="v", compile=True)
    assert len(calls) == 1
    np.testing.assert_allclose(host(a), host(b), atol=1e-6)


def test_on_jax_a_kept_run_reads_the_weights_of_the_denoiser() -> None:
    """Arrays of a pytree are arguments: those that a model has now count, and one trace serves them all."""
    calls, z, plan = [], start_of(jnp.asarray), dc.samplers.ddim(schedule_of("vp"), steps=6)

    def scaled(weight: Any, z: Any, log_snr: Any) -> Any:
        calls.append(1)
        return weight * z

    for weight in (-0.6, 0.25):
        call = jax.tree_util.Partial(scaled, jnp.float32(weight))
        found = dc.sample(call, plan, z, prediction="v", compile=True)
        want = dc.sample(lambda z, _, weight=weight: weight * z, plan, z, prediction="v")
        np.testing.assert_allclose(host(found), host(want), atol=1e-6)
    assert len(calls) == 1


GUIDED = {
    "two denoisers": lambda net, cond: dc.guidance.classifier_free(net(1.0), net(0.5), weight=2.0),
    "a doubled batch": lambda net, cond: dc.guidance.classifier_free(net(1.0), cond=cond, null=0.0 * cond, weight=2.0),
    "in an interval": lambda net, cond: dc.guidance.classifier_free(
        net(1.0), cond=np.asarray(cond), null=0.0 * np.asarray(cond), weight=lambda log_snr: 2.0, interval=(-3.0, 3.0)
    ),
    "reconstruction": lambda net, cond: dc.conditioning.reconstruction(
        net(1.0), cond, cond > 0, weight=3.0, prediction="v", schedule=schedule_of("vp")
    ),
    "moment matching": lambda net, cond: dc.conditioning.moment_matching(
        net(1.0), cond, cond > 0, iterations=2, prediction="v", schedule=schedule_of("vp")
    ),
}


@pytest.mark.parametrize("name", GUIDED)
def test_on_jax_a_kept_run_reads_the_arrays_inside_what_guides_it(name: str) -> None:
    calls, z, plan = [], start_of(jnp.asarray), dc.samplers.ddim(schedule_of("vp"), steps=6)

    def scaled(weight: Any, z: Any, log_snr: Any, cond: Any = 0.25) -> Any:
        calls.append(1)
        return weight * z + cond

    traced = []
    for weight in (-0.6, 0.25):
        cond = jnp.full(z.shape, weight).at[0].set(-1.0)
        guided = GUIDED[name](lambda by, weight=weight: jax.tree_util.Partial(scaled, jnp.float32(by * weight)), cond)
        calls.clear()
        kept = dc.sample(guided, plan, z, prediction="v", compile=True)
        traced.append(len(calls))
        plain = GUIDED[name](lambda by, weight=weight: lambda *given: scaled(by * weight, *given), cond)
        np.testing.assert_allclose(host(kept), host(dc.sample(plain, plan, z, prediction="v")), atol=1e-5)
    assert traced[0] > 0
    assert traced[1] == 0 or name == "in an interval"  # whose weight is another function


def test_on_jax_settings_that_are_no_key_keep_the_run_of_one_denoiser() -> None:
    @partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=["settings"])
    @dataclasses.dataclass
    class Net:
        weight: Any
        settings: dict[str, float]

        def __call__(self, z: Any, log_snr: Any) -> Any:
            return self.weight * self.settings["by"] * z

    z, plan = start_of(jnp.asarray), dc.samplers.ddim(schedule_of("vp"), steps=6)
    for weight in (-0.6, 0.25):
        found = dc.sample(Net(jnp.float32(weight), {"by": 0.5}), plan, z, prediction="v", compile=True)
        want = dc.sample(lambda z, _, weight=weight: weight * 0.5 * z, plan, z, prediction="v")
        np.testing.assert_allclose(host(found), host(want), atol=1e-6)


def test_on_jax_a_kept_run_of_a_network_follows_its_training() -> None:
    from flax import nnx

    config = dc.unet3d.UNet3DConfig(
        frames=2, size=8, channels=1, base_channels=8, multipliers=(1,), blocks=1, attention=(), head_dim=8
    )
    model = dc.unet3d.build(config, "jax", seed=1)
    plan, settings = dc.samplers.ddim(dc.schedules.Cosine(), steps=2), {"shape": (1, 2, 8, 8, 1), "like": jnp.zeros(1)}
    first = host(dc.sample(model, plan, compile=True, **settings))
    nnx.update(model, jax.tree.map(lambda weight: weight + 0.05, nnx.state(model)))
    second = host(dc.sample(model, plan, compile=True, **settings))
    assert np.abs(second - first).max() > 1e-3
    np.testing.assert_allclose(second, host(dc.sample(model, plan, **settings)), atol=1e-5)


def test_on_jax_a_run_goes_under_jit_grad_and_vmap() -> None:
    plan = SAMPLERS["dpm_solver_pp order=2 eta=1.0"](schedule_of("vp"), steps=4)

    def run(z: Any) -> Any:
        return dc.sample(denoise, plan, z, seed=1, prediction="v")

    z = start_of(jnp.asarray)
    np.testing.assert_allclose(host(jax.jit(run)(z)), host(run(z)), atol=1e-6)
    slope = host(jax.grad(lambda z: run(z).sum())(z))
    assert np.isfinite(slope).all()
    assert slope.std() < 1e-5  # the run is linear in z: the same slope everywhere
    both = jax.vmap(run)(jnp.stack([z, 2.0 * z]))
    np.testing.assert_allclose(host(both[0]), host(run(z)), atol=1e-6)


@pytest.mark.parametrize("keep", [True, None])
def test_on_jax_a_run_writes_over_its_own_start_and_never_over_a_callers(keep: bool | None) -> None:
    from diffcore.backends import Run
    from diffcore.backends.jax_backend import backend

    plan = SAMPLERS["dpm_solver_pp order=3 eta=1.0"](schedule_of("vp"), steps=4)
    z = start_of(jnp.asarray)
    state = dc.start(plan, z, seed=3)
    for start, seed in ((z, 3), (state, None)):
        first, second = (dc.sample(denoise, plan, start, seed=seed, prediction="v", compile=keep) for _ in range(2))
        np.testing.assert_array_equal(host(first), host(second))
    run = Run(denoise, plan, plan.coefficients("v"), compile=keep)
    fresh = dc.start(plan, shape=(2, 5), like=z, seed=3)
    want = host(backend.run(run, fresh).z)
    assert not fresh.z.is_deleted()
    np.testing.assert_array_equal(host(backend.run(dataclasses.replace(run, owned=True), fresh).z), want)
    assert all(array.is_deleted() for array in (fresh.z, *fresh.memory))
    cached = jnp.ones((2, 5))
    drawn = [
        dc.sample(denoise, plan, shape=(2, 5), like=z, noise=lambda *_: cached, prediction="v", compile=keep)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(host(drawn[0]), host(drawn[1]))
