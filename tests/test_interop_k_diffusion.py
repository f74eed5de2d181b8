"""`interop.k_diffusion`: samplers as k-diffusion writes them, copied here in short, against the plans read from them."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import diffcore as dc
from diffcore.interop import k_diffusion

torch = pytest.importorskip("torch")
import test_sampler_peers  # noqa: E402
from k_diffusion_loops import (  # noqa: E402
    sample_dpmpp_2m,
    sample_dpmpp_sde,
    sample_euler,
    sample_euler_ancestral,
    sample_heun,
    sample_lms,
    sample_rectified_flow,
    to_d,
)

library = test_sampler_peers.k_diffusion

pytestmark = pytest.mark.torch

SIGMAS = dc.levels.level(dc.grids.karras(dc.schedules.Karras(), steps=8), "ve").sigma


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


def adaptive(
    model: Any,
    x: Any,
    sigmas: Any,
    extra_args: Any = None,
    callback: Any = None,
    disable: Any = None,
    noise_sampler: Any = None,
) -> Any:
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

        def function(model: Any, x: Any, sigmas: Any, **given: Any) -> Any:
            return library.sample_dpm_fast(model, x, float(sigmas[-2]), float(sigmas[0]), 9, **given)

    plan = k_diffusion.plan(function, SIGMAS)
    ours, theirs = replayed(function, plan, SIGMAS, {}, monkeypatch)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-11, atol=1e-11)


def test_the_adaptive_sampler_of_the_library_is_refused(library: Any) -> None:
    def function(model: Any, x: Any, sigmas: Any, **given: Any) -> Any:
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


def test_a_function_of_comfyui_finds_its_model_callback_and_noise() -> None:
    """Their samplers ask the model for its sampling, call back, and make a noise sampler of a seed."""

    class Sampling:
        sigma_max = 80.0

    class Inner:
        model_sampling = Sampling()

    def sample_comfy(
        model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, disable: Any = None
    ) -> Any:
        top = model.inner_model.model_sampling.sigma_max
        generator = torch.Generator().manual_seed(extra_args.get("seed", 0))
        for i in range(len(sigmas) - 1):
            denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
            if callback is not None:
                callback({"x": x, "i": i, "denoised": denoised})
            x = denoised + (x - denoised) * sigmas[i + 1] / sigmas[i]
            x = x + torch.randn(x.shape, generator=generator, dtype=x.dtype) * sigmas[i + 1] / top
        return x

    plan = k_diffusion.plan(sample_comfy, [80.0, 8.0, 0.0], inner_model=Inner())
    np.testing.assert_allclose(plan.update[0, 0], [0.1, 0.1, 0.9], rtol=1e-12)
    with pytest.raises(ValueError, match=r"^interop\.k_diffusion\.plan: .* is not linear"):
        k_diffusion.plan(lambda model, x, sigmas: model(x, sigmas[0]).tanh(), [80.0, 8.0])


def test_guidance_by_two_conditions_is_that_of_their_wrapper() -> None:
    """CFGDenoiser as ComfyUI and others have it: uncond + (cond - uncond) * scale, in x-hat."""

    def model(x: Any, sigma: Any, cond: Any) -> Any:
        return np.tanh(x) / (1.0 + sigma[:, None] ** 2) + cond

    x, sigma = np.linspace(-2.0, 2.0, 6).reshape(2, 3), np.array([0.5, 2.0])
    cond, empty = np.full((1, 1), 0.5), np.zeros((1, 1))
    denoise = k_diffusion.denoiser(model, cond=empty)
    guided = dc.guidance.classifier_free(denoise, cond={"cond": cond}, null={"cond": empty}, scale=3.0)
    want = model(x, sigma, empty) + 3.0 * (model(x, sigma, cond) - model(x, sigma, empty))
    np.testing.assert_allclose(guided(x, -2.0 * np.log(sigma)), want, rtol=1e-12)
    np.testing.assert_allclose(denoise(x, -2.0 * np.log(sigma)), model(x, sigma, empty), rtol=1e-12)
    with pytest.raises(
        TypeError, match=r"interop\.k_diffusion\.denoiser: `cond` must be a dict of inputs of the network"
    ):
        denoise(x, -2.0 * np.log(sigma), cond)


def test_functions_that_take_no_sigmas_are_answered_with_their_like() -> None:
    def fast(model: Any, x: Any, sigma_min: float, sigma_max: float, n: int) -> Any:
        return x

    with pytest.raises(
        TypeError, match=r"`function` must take \(model, x, sigmas, \.\.\.\), .* samplers\.dpm_solver_fast"
    ):
        k_diffusion.plan(fast, [1.0, 0.0])
    with pytest.raises(TypeError, match=r"`function` must be a sampler \(model, x, sigmas, \.\.\.\).*got 'heun'"):
        k_diffusion.plan("heun", [1.0, 0.0])
