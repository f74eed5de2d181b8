"""`interop.k_diffusion`: samplers as k-diffusion writes them, copied here in short, against the plans read from them."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import diffcore as dc
from diffcore.interop import k_diffusion

torch = pytest.importorskip("torch")
import test_sampler_peers  # noqa: E402

library = test_sampler_peers.k_diffusion

pytestmark = pytest.mark.torch

SIGMAS = dc.levels.level(dc.grids.karras(dc.schedules.Karras(), steps=8), "ve").sigma


def to_d(x: Any, sigma: Any, denoised: Any) -> Any:
    return (x - denoised) / sigma


def ancestral_step(sigma_from: Any, sigma_to: Any, eta: float) -> tuple[Any, Any]:
    up = min(sigma_to, eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5)
    return (sigma_to**2 - up**2) ** 0.5, up


def default_noise_sampler(x: Any) -> Callable[[Any, Any], Any]:
    return lambda sigma, sigma_next: torch.randn_like(x)


def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None, s_churn=0.0, s_tmax=math.inf):
    extra_args, s_in = extra_args or {}, x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        gamma = min(s_churn / (len(sigmas) - 1), 2**0.5 - 1) if sigmas[i] <= s_tmax else 0.0
        eps = torch.randn_like(x)
        sigma_hat = sigmas[i] * (gamma + 1)
        if gamma > 0:
            x = x + eps * (sigma_hat**2 - sigmas[i] ** 2) ** 0.5
        denoised = model(x, sigma_hat * s_in, **extra_args)
        x = x + to_d(x, sigma_hat, denoised) * (sigmas[i + 1] - sigma_hat)
    return x


def sample_euler_ancestral(model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, noise_sampler=None):
    noise_sampler = default_noise_sampler(x) if noise_sampler is None else noise_sampler
    s_in = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * s_in, **extra_args)
        down, up = ancestral_step(sigmas[i], sigmas[i + 1], eta)
        x = x + to_d(x, sigmas[i], denoised) * (down - sigmas[i])
        if sigmas[i + 1] > 0:
            x = x + noise_sampler(sigmas[i], sigmas[i + 1]) * up
    return x


def sample_heun(model, x, sigmas, extra_args=None, callback=None, disable=None):
    s_in = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        d = to_d(x, sigmas[i], model(x, sigmas[i] * s_in))
        dt = sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] == 0:
            x = x + d * dt
        else:
            x_2 = x + d * dt
            d_2 = to_d(x_2, sigmas[i + 1], model(x_2, sigmas[i + 1] * s_in))
            x = x + (d + d_2) / 2 * dt
    return x


def sample_lms(model, x, sigmas, extra_args=None, callback=None, disable=None, order=4):
    s_in, ds = x.new_ones([x.shape[0]]), []
    knots = sigmas.numpy()
    for i in range(len(sigmas) - 1):
        ds = [*ds, to_d(x, sigmas[i], model(x, sigmas[i] * s_in))][-order:]
        nodes = knots[i::-1][: len(ds)]
        for j, d in enumerate(reversed(ds)):
            basis = np.poly1d([1.0])
            for k in range(len(ds)):
                if k != j:
                    basis *= np.poly1d([1.0, -nodes[k]]) / (nodes[j] - nodes[k])
            whole = basis.integ()
            x = x + (whole(knots[i + 1]) - whole(knots[i])) * d
    return x


def sample_dpmpp_2m(model, x, sigmas, extra_args=None, callback=None, disable=None):
    s_in, old = x.new_ones([x.shape[0]]), None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * s_in)
        t, t_next = -sigmas[i].log(), -sigmas[i + 1].log()
        h = t_next - t
        if old is None or sigmas[i + 1] == 0:
            d = denoised
        else:
            r = (t + sigmas[i - 1].log()) / h
            d = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old
        x = sigmas[i + 1] / sigmas[i] * x - (-h).expm1() * d
        old = denoised
    return x


def sample_dpmpp_sde(
    model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, noise_sampler=None, r=1 / 2
):
    s_in = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * s_in)
        if sigmas[i + 1] == 0:
            x = x + to_d(x, sigmas[i], denoised) * (sigmas[i + 1] - sigmas[i])
            continue
        t, t_next = -sigmas[i].log(), -sigmas[i + 1].log()
        s, fac = t + (t_next - t) * r, 1 / (2 * r)
        sd, su = ancestral_step((-t).exp(), (-s).exp(), eta)
        x_2 = sd / (-t).exp() * x - (t + sd.log()).expm1() * denoised + noise_sampler((-t).exp(), (-s).exp()) * su
        denoised_2 = model(x_2, (-s).exp() * s_in)
        sd, su = ancestral_step((-t).exp(), (-t_next).exp(), eta)
        d = (1 - fac) * denoised + fac * denoised_2
        x = sd / (-t).exp() * x - (t + sd.log()).expm1() * d + noise_sampler((-t).exp(), (-t_next).exp()) * su
    return x


def sample_rectified_flow(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for i in range(len(sigmas) - 1):
        x = x + to_d(x, sigmas[i], model(x, sigmas[i] * x.new_ones([x.shape[0]]))) * (sigmas[i + 1] - sigmas[i])
    return x


def network(x: Any, sigma: Any, **inputs: Any) -> Any:
    """A denoiser that is not linear, and differs between noise levels."""
    sigma = sigma.reshape(-1, 1)
    return 1.3 * torch.tanh(x / (1.0 + sigma)) + 0.1 * x / (1.0 + sigma**2) + inputs.get("shift", 0.0)


LOOPS: list[tuple[Any, str, dict[str, Any], int]] = [  # how many arrays each needs to remember
    (sample_euler, "ve", {}, 0),
    (sample_euler, "ve", {"s_churn": 2.0, "s_tmax": 40.0}, 0),
    (sample_euler_ancestral, "ve", {}, 0),
    (sample_euler_ancestral, "ve", {"eta": 0.5}, 0),
    (sample_heun, "ve", {}, 1),
    (sample_lms, "ve", {}, 3),
    (sample_dpmpp_2m, "ve", {}, 1),
    (sample_dpmpp_sde, "ve", {}, 1),
    (sample_rectified_flow, "flow", {}, 0),
]


def replayed(
    function: Any, plan: dc.Plan, sigmas: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Any]:
    """What a loop returns, and what its plan does, on the same noise: the draw of a stage is that of its number."""
    noises = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    calls = 0

    def counted(x: Any, sigma: Any, **inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        return network(x, sigma, **inputs)

    monkeypatch.setattr(torch, "randn_like", lambda x: noises[calls])
    takes = "noise_sampler" in inspect.signature(function).parameters
    given = {"noise_sampler": lambda a, b: noises[calls]} if takes else {}
    x = noises[0] * float(sigmas[0])
    theirs = function(counted, x, torch.tensor(sigmas), extra_args={}, disable=True, **given, **settings)
    assert len(plan) == calls
    denoise = k_diffusion.denoiser(network, scaling=plan.scaling)
    return dc.sample(denoise, plan, x, noise=lambda draw, shape: noises[int(draw)]), theirs


@pytest.mark.parametrize(("function", "scaling", "settings", "memory"), LOOPS)
def test_a_plan_is_the_loop_it_was_read_from(
    function: Any, scaling: str, settings: Any, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sigmas = SIGMAS if scaling == "ve" else np.linspace(1.0, 0.0, 9)
    plan = k_diffusion.plan(function, sigmas, scaling=scaling, **settings)
    assert (plan.scaling, plan.memory, plan.next_log_snr[-1]) == (scaling, memory, math.inf)
    ours, theirs = replayed(function, plan, sigmas, settings, monkeypatch)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-12, atol=1e-12)


def test_nothing_is_patched_and_the_generator_is_left_alone() -> None:
    before, function = torch.get_rng_state(), torch.randn_like
    assert not k_diffusion.plan(sample_euler, SIGMAS).stochastic
    assert k_diffusion.plan(sample_euler_ancestral, SIGMAS, noise_sampler=None).stochastic
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.randn_like is function


def adaptive(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
    sigma, last = sigmas[0], sigmas[-1]
    while sigma > last:
        d = to_d(x, sigma, model(x, sigma * x.new_ones([x.shape[0]])))
        step = sigma * (0.5 + 0.4 / (1.0 + d.abs().max()))
        after = torch.maximum(step, last)
        x, sigma = x + d * (after - sigma), after
    return x


def test_what_cannot_be_a_plan_is_refused_with_the_call() -> None:
    with pytest.raises(ValueError, match=r"the z of call 1 is not linear|log-SNR of call 1 depends on the data"):
        k_diffusion.plan(adaptive, SIGMAS[:-1])
    with pytest.raises(ValueError, match="noise is drawn before the first call"):
        k_diffusion.plan(sample_euler, SIGMAS, s_churn=2.0)
    with pytest.raises(ValueError, match=r"noise of shape \(3,\), but a plan adds noise of the shape of z"):
        k_diffusion.plan(lambda model, x, sigmas: model(x, sigmas[0]) + torch.randn(3).sum(), SIGMAS)
    with pytest.raises(ValueError, match=r"`sigmas` must be .* in \[0, 1\]"):
        k_diffusion.plan(sample_euler, SIGMAS, scaling="flow")
    with pytest.raises(ValueError, match="`scaling`"):
        k_diffusion.plan(sample_euler, SIGMAS, scaling="vp")


def test_functions_of_other_arguments_and_of_float32() -> None:
    """A lambda takes what it names; a cast to float32 that a sampler makes is left out."""
    plan = k_diffusion.plan(lambda model, x, sigmas: sample_heun(model, x.float(), sigmas.to(torch.float32)), SIGMAS)
    assert np.array_equal(plan.update, k_diffusion.plan(sample_heun, SIGMAS).update)
    assert k_diffusion.plan(sample_heun, SIGMAS[:-1]).next_log_snr[-1] == -2.0 * math.log(SIGMAS[-2])


@pytest.mark.parametrize("own", ["vp", "ve", "flow"])
@pytest.mark.parametrize("scaling", ["ve", "flow"])
def test_a_denoiser_as_their_model_meets_its_own_scaling(own: str, scaling: str) -> None:
    """E[x given z] of data N(0, 4) is 4 alpha z / (4 alpha^2 + sigma^2) under every scaling."""

    class Known:
        prediction = "eps"

        def __call__(self, z: Any, log_snr: Any) -> Any:
            at = dc.levels.level(log_snr, own)
            a, s = at.alpha[:, None], at.sigma[:, None]
            return (z - a * (4.0 * a * z / (4.0 * a**2 + s**2))) / s

    denoise = Known()
    denoise.scaling = own  # type: ignore[attr-defined]
    x, sigma = torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)[None], 0.7
    alpha = 1.0 if scaling == "ve" else 1.0 - sigma
    found = k_diffusion.model(denoise, scaling=scaling)(x, sigma, cond=1)
    np.testing.assert_allclose(found, 4.0 * alpha * x / (4.0 * alpha**2 + sigma**2), rtol=1e-12)


def test_inputs_reach_the_model() -> None:
    z, log_snr = torch.zeros(2, 3), torch.zeros(2)
    assert torch.all(k_diffusion.denoiser(network, shift=0.5)(z, log_snr) == 0.5)


NAMES = ["euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2s_ancestral"]
NAMES += ["dpmpp_sde", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpm_fast"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_functions_of_the_library(name: str, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    function = getattr(library, f"sample_{name}")
    if name == "dpm_fast":  # takes the ends of the range

        def function(model, x, sigmas, **given):
            return library.sample_dpm_fast(model, x, float(sigmas[-2]), float(sigmas[0]), 9, **given)

    plan = k_diffusion.plan(function, SIGMAS)
    ours, theirs = replayed(function, plan, SIGMAS, {}, monkeypatch)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-11, atol=1e-11)


def test_the_adaptive_sampler_of_the_library_is_refused(library: Any) -> None:
    def function(model, x, sigmas, **given):
        return library.sample_dpm_adaptive(model, x, float(sigmas[-2]), float(sigmas[0]), **given)

    with pytest.raises(ValueError, match=r"call \d+|depends on the data"):
        k_diffusion.plan(function, SIGMAS)


def test_loading_it_imports_no_library() -> None:
    code = (
        "import diffcore, sys; diffcore.interop.diffusers.plan; diffcore.interop.k_diffusion.plan; print([m for m in "
    )
    code += "('torch', 'diffusers', 'k_diffusion') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
