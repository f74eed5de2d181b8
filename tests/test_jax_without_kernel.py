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


SEVERAL = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np, diffcore as dc
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
z = np.linspace(-1, 1, 4 * 4 * 300, dtype=np.float32).reshape(4, 4, 300)
call, schedule = lambda z, log_snr: -0.5 * z, dc.schedules.Cosine()
kinds = {kind: jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind, kind)) for kind in (AxisType.Auto, AxisType.Explicit)}
third = dc.samplers.dpm_solver_pp(schedule, steps=4, order=3, eta=1.0)
settings = {"seed": 1, "prediction": "v", "transform_x": dc.guidance.clip()}
sample = lambda plan, z, **other: dc.sample(call, plan, z, **(settings | other))
"""


@needs_kernel
@pytest.mark.slow
def test_several_devices_share_the_kernel() -> None:
    """Bit for bit what one makes, without arrays that are gathered, however they lie."""
    program = """
frames = np.stack([np.full((4, 4), -9.0), np.zeros((4, 4)), np.linspace(5.0, 9.0, 16).reshape(4, 4)])
frames = dc.samplers.ddim(schedule, grid=frames, eta=0.7)
cases = [(third, P("a"), AxisType.Auto), (frames, P("b", "a"), AxisType.Auto), (third, P(None, None, ("a", "b")), AxisType.Auto),
         (third, P("a", None, "b"), AxisType.Explicit)]
for plan, spec, kind in cases:
    where = NamedSharding(kinds[kind], spec)
    run = jax.jit(lambda z: sample(plan, z)).lower(jax.device_put(z, where)).compile()
    assert "diffcore_stage" in run.as_text() and "all-gather" not in run.as_text()
    found = run(jax.device_put(z, where))
    assert found.sharding.is_equivalent_to(where, 3), found.sharding
    np.testing.assert_array_equal(np.asarray(found), sample(plan, z))
keys, mesh = jnp.asarray(dc.noise.keys(1, 4)), kinds[AxisType.Auto]
own = lambda z, keys: sample(third, z, seed=keys)
found = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=P(("a", "b")), out_specs=P(("a", "b"))))(z, keys)
np.testing.assert_array_equal(np.asarray(found), sample(third, z))
whole = {"shape": z.shape, "region": ((1, 2), (0, 4), (8, 256))}
both = jax.vmap(lambda draw: dc.noise.normal(1, draw, **whole, like=jnp.zeros(1)))
both = jax.jit(both, out_shardings=NamedSharding(mesh, P(None, "a")))
np.testing.assert_array_equal(np.asarray(both(jnp.arange(2)))[1], dc.noise.normal(1, 1, **whole))
run = jax.jit(lambda z: jax.lax.with_sharding_constraint(sample(third, z), NamedSharding(mesh, P("a"))))
np.testing.assert_array_equal(np.asarray(run(z[:3])), sample(third, z[:3]))  # three samples on two devices
"""
    subprocess.run([sys.executable, "-c", SEVERAL + program], check=True, timeout=300)


@pytest.mark.slow
def test_several_devices_share_xlas_operations() -> None:
    program = """
from diffcore.backends import jax_kernel
jax_kernel.works = lambda: False
found = sample(third, jax.device_put(z, NamedSharding(kinds[AxisType.Auto], P("a", "b"))))
assert len(found.devices()) == 4, found.sharding
np.testing.assert_allclose(np.asarray(found), sample(third, z), atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", SEVERAL + program], check=True, timeout=300)


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
