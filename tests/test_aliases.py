"""Samplers by other names: each is the peer's own where that is installed, and every noise can be scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import test_sampler_peers
import torch
from peers_cases import SIGMAS, START, VE, Noise, estimate, ours

import diffcore as dc

library = test_sampler_peers.k_diffusion
KNOWN = dc.samplers.table() | dc.samplers._table.others()
NOISY = {
    f"{name} {dict(variant.settings)}": (name, dict(variant.settings))
    for name, row in dc.samplers.table().items()
    for variant in row.variants
    if row.make(VE, 4, **variant.settings).stochastic
}


def model(u: Any, sigma: Any) -> Any:
    return estimate(u, sigma.reshape(-1, 1))


@pytest.mark.parametrize("name", dc.samplers.aliases())
def test_an_alias_is_a_sampler_with_settings(name: str) -> None:
    sampler, settings = dc.samplers.aliases()[name]
    assert name not in KNOWN
    assert dc.samplers.make(name, VE, 4) == dc.samplers.make(sampler, VE, 4, **settings)


def test_settings_come_before_those_of_the_alias() -> None:
    assert dc.samplers.make("dpmpp_2m_sde", VE, 4, eta=0.3) == dc.samplers.dpm_solver_pp(VE, 4, eta=0.3)


@pytest.mark.parametrize(
    "name", ["dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"]
)
def test_the_names_of_k_diffusion(name: str, library: Any) -> None:
    with np.errstate(divide="ignore"):
        plan = dc.samplers.make(name, VE, grid=-2.0 * np.log(SIGMAS))
    z, options = START * SIGMAS[0], {"noise_sampler": Noise()} if plan.stochastic else {}
    want = getattr(library, f"sample_{name}")(
        model, z, torch.tensor(SIGMAS, dtype=torch.float64), disable=True, **options
    )
    torch.testing.assert_close(ours(plan, z), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("calls", [1, 2, 6, 7, 8])
def test_dpm_fast_is_that_of_k_diffusion(calls: int, eta: float, library: Any) -> None:
    halves = np.linspace(-3.0, 4.0, calls // 3 + 2)
    final = (2, 1) if calls % 3 == 0 else (calls % 3,)
    plan = dc.samplers.dpm_solver_fast(VE, grid=2.0 * halves, final=final, eta=eta, noise_scale=1.1)
    assert len(plan) == calls
    z = START * np.exp(3.0)
    ends = [torch.tensor(end, dtype=torch.float64) for end in (-3.0, 4.0)]
    noise = Noise()
    drawn = lambda t, s: noise() if float(s) > np.exp(-4.0) * 1.001 else torch.zeros_like(z)  # noqa: E731
    linspace = torch.linspace
    with pytest.MonkeyPatch.context() as patch:  # k-diffusion's is in float32
        patch.setattr(torch, "linspace", lambda *given, **more: linspace(*given, **more, dtype=torch.float64))
        want = library.DPMSolver(model).dpm_solver_fast(z, *ends, calls, eta, 1.1, drawn)
    torch.testing.assert_close(ours(plan, z), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "settings"), NOISY.values(), ids=NOISY.keys())
def test_every_noise_can_be_scaled(name: str, settings: dict[str, Any]) -> None:
    """With half the noise scale a run is that with half its draws."""
    schedule = dc.schedules.LinearLogSNR(log_snr_min=-5.0, log_snr_max=5.0, scaling="vp")
    plan = dc.samplers.make(name, schedule, 4, **settings)
    half = dc.samplers.make(name, schedule, 4, **settings | {"noise_scale": 0.5 * settings.get("noise_scale", 1.0)})
    draw = lambda scale: lambda draw, shape: scale * dc.noise.normal(3, draw, shape, like=np.zeros(1))  # noqa: E731
    found, want = (
        dc.sample(lambda z, _: np.tanh(z), run, np.full((2, 3), 0.4), prediction="v", noise=draw(scale))
        for run, scale in ((half, 1.0), (plan, 0.5))
    )
    assert found == pytest.approx(want, abs=1e-12)
    assert dc.samplers.make(schedule=schedule, steps=4, **half.settings) == half


def test_only_the_last_step_is_eulers() -> None:
    grid = np.linspace(-4.0, 4.0, 7)
    plan = dc.samplers.dpm_solver_pp(VE, grid=grid, order=3, euler_at_final=True)
    assert np.array_equal(plan.update[:-1], dc.samplers.dpm_solver_pp(VE, grid=grid, order=3).update[:-1])
    last = dc.samplers.ddim(VE, grid=grid).update[-1, 0]
    assert plan.update[-1, 0, [0, -1]] == pytest.approx(last[[0, -1]], rel=1e-13)
    assert not plan.update[-1, 0, 1:-1].any()
