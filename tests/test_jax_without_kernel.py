"""JAX where the CPU's kernel is missing or does not serve, and at the end of a program."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_jax_kernel import CLIP, SIZE, denoise, make, needs_kernel, start

import diffcore as dc
from diffcore.backends import cpu_threads, jax_kernel

jax.config.update("jax_platforms", "cpu")
pytestmark = pytest.mark.jax


@pytest.mark.parametrize("name", ["dpm_solver_pp order=3 eta=1.0", "unipc"])
def test_where_it_does_not_work_xlas_operations_serve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = dc.sample(denoise, make(name), start(), seed=3, prediction="v", transform_x=CLIP)
    monkeypatch.setattr(jax_kernel, "works", lambda: False)
    jax.clear_caches()
    try:
        found = dc.sample(
            denoise, make(name), jnp.asarray(start()), seed=3, prediction="v", transform_x=CLIP, compile=False
        )
        drawn = dc.noise.normal(3, 1, (2, SIZE + 300), like=jnp.zeros(1))
        bits = dc.noise.bits(3, 1, (2, SIZE + 300), like=jnp.zeros(1))
    finally:
        jax.clear_caches()  # of what was traced without it
    np.testing.assert_allclose(np.asarray(found), want, rtol=0, atol=2e-5)
    np.testing.assert_allclose(np.asarray(drawn), dc.noise.normal(3, 1, (2, SIZE + 300)), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(np.asarray(bits), dc.noise.bits(3, 1, (2, SIZE + 300)))


def test_that_it_does_not_work_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, capsule: Any) -> None:
        raise ValueError("no such interface\nand more")

    monkeypatch.setattr(cpu_threads, "kernel", types.SimpleNamespace(xla_noise=None, xla_stage=None))
    monkeypatch.setattr(jax.ffi, "register_ffi_target", broken)
    with pytest.warns(RuntimeWarning, match=r"cannot call the compiled kernel here \(ValueError: no such interface\)"):
        assert not jax_kernel.works.__wrapped__()
    monkeypatch.setattr(cpu_threads, "kernel", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not jax_kernel.works.__wrapped__()


@pytest.mark.slow
def test_arrays_on_several_devices_stay_divided() -> None:
    """XLA divides its own operations among devices, but not a call."""
    program = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np, diffcore as dc
from diffcore.backends import jax_kernel
z = np.linspace(-1, 1, 2 * 2000, dtype=np.float32).reshape(2, -1)
where = jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices(), "b"), jax.sharding.PartitionSpec("b"))
call = lambda z, log_snr: -0.5 * z
for plan in (dc.samplers.ddim(dc.schedules.Cosine(), steps=3, eta=1.0), dc.samplers.unipc(dc.schedules.Cosine(), steps=3)):
    for clip in (None, dc.guidance.clip()):
        settings = {"seed": 1, "prediction": "v", "transform_x": clip}
        found = dc.sample(call, plan, jax.device_put(z, where), **settings)
        assert not jax_kernel.works() and len(found.devices()) == 2, found.sharding
        np.testing.assert_allclose(np.asarray(found), dc.sample(call, plan, z, **settings), atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@needs_kernel
@pytest.mark.parametrize(
    "last", ["dc.sample(call, plan, z, seed=1)", "jax.jit(lambda z: dc.sample(call, plan, z, seed=1))(z)"]
)
def test_a_program_may_end_while_xla_computes(last: str) -> None:
    program = f"""
import jax, jax.numpy as jnp, diffcore as dc
call, z = lambda z, log_snr: -0.5 * z, jnp.ones((4, 300_000))
call = type("Denoiser", (), {{"prediction": "v", "__call__": staticmethod(call)}})()
plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=200)
{last}
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
