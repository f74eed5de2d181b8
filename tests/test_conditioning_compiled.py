"""Replacement in compiled runs: one trace on JAX, one graph on torch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sampler_cases import SAMPLERS, schedule_of
from test_conditioning import CLIP, KNOWN, MASK, given
from test_sampling import denoise, host

import diffcore as dc
from diffcore.conditioning import replacement


def test_on_jax_a_constrained_run_is_one_trace_and_goes_under_jit_grad_and_vmap() -> None:
    plan, calls = SAMPLERS["dpm_solver_pp order=2 eta=1.0"](schedule_of("vp"), steps=4), []

    def counted(z: Any, log_snr: Any) -> Any:
        calls.append(1)
        return -0.6 * z

    def run(z: Any, observed: Any) -> Any:
        return dc.sample(counted, plan, z, seed=1, prediction="v", constraint=replacement(observed, MASK))

    z, clip = jnp.asarray(CLIP), jnp.asarray(CLIP + 1.0)
    want = run(z, clip)
    assert len(calls) == 1
    np.testing.assert_allclose(host(jax.jit(run)(z, clip)), host(want), atol=1e-6)
    slope = host(jax.grad(lambda z: run(z, clip).sum())(z))
    assert (slope[KNOWN] == 0.0).all()
    assert (slope[~KNOWN] != 0.0).all()
    both = jax.vmap(run)(jnp.stack([z, z]), jnp.stack([clip, 2.0 * clip]))
    np.testing.assert_array_equal(host(both[1])[KNOWN], 2.0 * host(clip)[KNOWN])


def test_on_jax_and_torch_ones_own_noise_is_asked_for_what_is_known() -> None:
    plan = SAMPLERS["ancestral gamma=0.3"](schedule_of("vp"), steps=3)
    kept: dict[str, Any] = {"prediction": "v", "constraint": given()}
    want = dc.sample(denoise, plan, CLIP, noise=lambda d, s: np.full(s, 0.1 * (int(d) % 3), np.float32), **kept)
    other: Any = dc.sample(denoise, plan, jnp.asarray(CLIP), noise=lambda d, s: jnp.full(s, 0.1 * (d % 3)), **kept)
    np.testing.assert_allclose(host(other), want, atol=1e-6)
    other = dc.sample(
        denoise, plan, torch.from_numpy(CLIP), noise=lambda d, s: torch.full(s, 0.1 * (int(d) % 3)), **kept
    )
    np.testing.assert_allclose(host(other), want, atol=1e-6)


@pytest.mark.usefixtures("without_code")
def test_on_torch_two_graphs_serve_every_stage_number_of_stages_and_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    from diffcore.backends import torch_backend

    monkeypatch.setattr(torch_backend, "FUSED", 0)
    counters.clear()
    z = torch.from_numpy(CLIP)
    for name, variant, steps, graphs in (
        ("ancestral", "marginal", 5, 1),
        ("ancestral", "posterior", 5, 1),
        ("predictor_corrector", "posterior", 5, 2),  # the first is for one number of stages, the second for all
        ("ancestral", "marginal", 7, 2),
    ):
        plan = SAMPLERS[name](schedule_of("vp"), steps=steps)
        mixes = lambda z, log_snr: 0.3 * z.mean(1, keepdim=True) - 0.6 * z  # noqa: E731  # so that z^a reaches z^b
        kept: dict[str, Any] = {"seed": 9, "prediction": "v", "constraint": given(variant)}
        fused = dc.sample(mixes, plan, z, compile=True, **kept)
        np.testing.assert_allclose(host(fused), host(dc.sample(mixes, plan, z, **kept)), atol=5e-6)
        np.testing.assert_array_equal(host(fused)[KNOWN], CLIP[KNOWN])
        assert counters["stats"]["unique_graphs"] == graphs


def test_on_torch_a_constrained_step_of_ones_own_is_one_graph() -> None:
    plan, held = SAMPLERS["ancestral gamma=0.3"](schedule_of("vp"), steps=3), replacement(torch.from_numpy(CLIP), MASK)
    whole = torch.compile(
        lambda state, y: dc.step(plan, state, y, prediction="eps", constraint=held), fullgraph=True, backend="eager"
    )
    state = want = dc.start(plan, torch.from_numpy(CLIP), seed=5, constraint=held)
    for _ in range(len(plan)):
        state = whole(state, 0.9 * state.z)
        want = dc.step(plan, want, 0.9 * want.z, prediction="eps", constraint=held)
    np.testing.assert_allclose(host(state.z), host(want.z), rtol=1e-5, atol=1e-5)
