"""Samplers that are known by name against the schedulers of diffusers, on their own levels."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from peers_cases import START, VE, VP, Noise, estimate, ours

import diffcore as dc

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def wide(scheduler: Any) -> Any:
    """Let a scheduler compute in float64, on its own levels."""
    for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod", "betas", "alphas"):
        if torch.is_tensor(getattr(scheduler, name, None)):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def their_run(
    scheduler: Any, levels: Callable[[int], Any], z: Any, timesteps: Any = None, kind: str = "eps", **given: Any
) -> Any:
    """Run a diffusers scheduler; levels(call) is the (alpha, sigma) of a call."""
    for call, timestep in enumerate(scheduler.timesteps if timesteps is None else timesteps):
        alpha, sigma = (torch.as_tensor(part, dtype=torch.float64) for part in levels(call))
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.scale_model_input(z, timestep)  # which must be called before a step
        x = estimate(z / alpha, sigma / alpha)
        eps = (z - alpha * x) / sigma
        z = scheduler.step({"eps": eps, "v": alpha * eps - sigma * x, "x": x}[kind], timestep, z, **given).prev_sample
    return z


def log_snrs(alpha: Any, sigma: Any) -> Any:
    with np.errstate(divide="ignore"):
        return 2.0 * (np.log(np.asarray(alpha, dtype=np.float64)) - np.log(np.asarray(sigma, dtype=np.float64)))


def vp_level(product: Any) -> tuple[Any, Any]:
    return np.sqrt(product), np.sqrt(1.0 - product)


@pytest.mark.parametrize(("name", "skip"), [("plms", True), ("pndm", False)])
def test_diffusers_pndm(name: str, skip: bool) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = wide(diffusers.PNDMScheduler(skip_prk_steps=skip, steps_offset=1, beta_schedule="scaled_linear"))
    scheduler.set_timesteps(10)
    product = scheduler.alphas_cumprod.numpy()
    times = [*range(901, 0, -100)]
    grid = log_snrs(np.sqrt([*product[times], product[0]]), np.sqrt(1.0 - np.array([*product[times], product[0]])))
    called = [int(t) for t in scheduler.timesteps]
    if skip:
        assert called == [901, 801, *times[1:]]
    # the schedule whose time is theirs, so that half-way between two steps is theirs, too
    table = dc.schedules.from_alphas_cumprod(product) if not skip else VP
    plan = dc.samplers.make(name, table, grid=grid)
    assert plan.log_snr == pytest.approx(log_snrs(np.sqrt(product[called]), np.sqrt(1.0 - product[called])), abs=1e-9)
    want = their_run(
        scheduler, lambda call: (product[called[call]] ** 0.5, (1.0 - product[called[call]]) ** 0.5), START
    )
    torch.testing.assert_close(ours(plan, START), want, rtol=0, atol=1e-10)


def test_diffusers_ipndm() -> None:
    """From its second level on: at the first alpha is 0."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(8)
    wide(scheduler)
    scheduler.alphas = (1.0 - scheduler.betas**2).sqrt()
    alpha, sigma = scheduler.alphas[1:], scheduler.betas[1:]
    plan = dc.samplers.ipndm(VP, grid=log_snrs(alpha, sigma), final="full")
    want = their_run(scheduler, lambda call: (alpha[call], sigma[call]), START, scheduler.timesteps[1:], "v")
    torch.testing.assert_close(ours(plan, START), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_diffusers_deis(order: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DEISMultistepScheduler(solver_order=order)
    scheduler.set_timesteps(10)
    wide(scheduler)
    sigmas = scheduler.sigmas.numpy()
    plan = dc.samplers.deis(VP, grid=-2.0 * np.log(sigmas), order=order, lower_order_final=True)
    level = plan.levels
    want = their_run(scheduler, lambda call: (level.alpha[call], level.sigma[call]), START)
    torch.testing.assert_close(ours(plan, START), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_diffusers_unipc(order: int, variant: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    end = "sigma_min" if variant == "bh1" else "zero"  # bh1 computes inf * 0 in the step to clean data
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=order, solver_type=variant, final_sigmas_type=end)
    scheduler.set_timesteps(10)
    wide(scheduler)
    with np.errstate(divide="ignore"):
        plan = dc.samplers.unipc(
            VP, grid=-2.0 * np.log(scheduler.sigmas.numpy()), order=order, variant=variant, lower_order_final=True
        )
    level = plan.levels
    want = their_run(scheduler, lambda call: (level.alpha[call], level.sigma[call]), START)
    torch.testing.assert_close(ours(plan, START), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [2, 3])
def test_diffusers_dpm_solver(order: int, solver: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=order, solver_type=solver)
    scheduler.set_timesteps(10)
    wide(scheduler)
    with np.errstate(divide="ignore"):
        grid = -2.0 * np.log(scheduler.sigmas.numpy())
    plan = dc.samplers.dpm_solver_pp(VP, grid=grid, order=order, solver=solver, lower_order_final=True)
    level = plan.levels
    want = their_run(scheduler, lambda call: (level.alpha[call], level.sigma[call]), START)
    # it computes a step in float32
    torch.testing.assert_close(ours(plan, START), want.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("order", "corrector_order"), [(1, 1), (2, 2), (3, 3), (3, 4)])
def test_diffusers_sa_solver(order: int, corrector_order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_sasolver

    monkeypatch.setattr(scheduling_sasolver, "randn_tensor", lambda shape, generator, **_: generator())
    scheduler = diffusers.SASolverScheduler(
        predictor_order=order, corrector_order=corrector_order, tau_func=lambda t: 0.8 if 200 <= t <= 800 else 0.0
    )
    scheduler.set_timesteps(12)
    wide(scheduler)
    sigmas = scheduler.sigmas.numpy()
    inside = sigmas[:-1][(scheduler.timesteps.numpy() >= 200) & (scheduler.timesteps.numpy() <= 800)]
    plan = dc.samplers.sa_solver(
        VP,
        grid=-2.0 * np.log(sigmas),
        order=order,
        corrector_order=corrector_order,
        tau=0.8,
        tau_range=(inside.min(), inside.max()),
        lower_order_final=True,
    )
    noise = Noise()

    class Skipping:
        """It draws where tau is 0, too."""

        def __init__(self) -> None:
            self.call = -1

        def __call__(self) -> Any:
            self.call += 1
            return noise() if plan.noisy[self.call] else torch.zeros_like(START)

    level = plan.levels
    want = their_run(scheduler, lambda call: (level.alpha[call], level.sigma[call]), START, generator=Skipping())
    torch.testing.assert_close(ours(plan, START), want, rtol=0, atol=1e-10)


def test_diffusers_tcd(monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_tcd

    monkeypatch.setattr(scheduling_tcd, "randn_tensor", lambda shape, generator, **_: generator())
    scheduler = wide(diffusers.TCDScheduler())
    scheduler.set_timesteps(5)
    product, called = scheduler.alphas_cumprod.numpy(), [int(t) for t in scheduler.timesteps]
    after = [*called[1:], 0]
    inner = [math.floor(0.7 * t) for t in after]  # (1 - gamma) of the next timestep, rounded down to one of theirs
    level = vp_level(product[called])
    grid = log_snrs(np.sqrt(product[[*called, 0]]), np.sqrt(1.0 - product[[*called, 0]]))

    class Theirs(type(VP)):  # type: ignore[misc]
        """The levels of a step's end and of what it goes down to, at times that `tcd` asks for."""

        def time(self, log_snr: Any) -> Any:
            return np.asarray(after) / 1000.0

        def log_snr(self, t: Any) -> Any:
            return (
                log_snrs(np.sqrt(product[inner]), np.sqrt(1.0 - product[inner])) if np.ndim(t) else super().log_snr(t)
            )

    plan = dc.samplers.tcd(Theirs(log_snr_min=-20.0, log_snr_max=20.0), grid=grid, gamma=0.3)
    want = their_run(scheduler, lambda call: (level[0][call], level[1][call]), START, eta=0.3, generator=Noise())
    torch.testing.assert_close(ours(plan, START), want, rtol=0, atol=1e-10)


def test_diffusers_consistency_models(monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_consistency_models

    monkeypatch.setattr(scheduling_consistency_models, "randn_tensor", lambda shape, generator, **_: generator())
    scheduler = diffusers.CMStochasticIterativeScheduler(clip_denoised=False, sigma_min=0.002)
    monkeypatch.setattr(scheduler, "get_scalings_for_boundary_condition", lambda sigma: (0.0, 1.0))
    scheduler.set_timesteps(5)
    wide(scheduler)
    sigmas = scheduler.sigmas.numpy()
    floor = float(scheduler.config.sigma_min)
    plan = dc.samplers.lcm(VE, grid=-2.0 * np.log(np.maximum(sigmas, floor)), floor=floor)
    want = their_run(scheduler, lambda call: (1.0, sigmas[call]), START * sigmas[0], kind="x", generator=Noise())
    torch.testing.assert_close(ours(plan, START * sigmas[0]), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "scheduler", ["EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler"]
)
def test_diffusers_in_sigma(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    module = importlib.import_module(getattr(diffusers, scheduler).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, generator, **__: generator(), raising=False)
    theirs = getattr(diffusers, scheduler)()
    theirs.set_timesteps(8)
    for name in ("sigmas", "sigmas_interpol"):
        if torch.is_tensor(getattr(theirs, name, None)):
            setattr(theirs, name, getattr(theirs, name).double())
    name, settings, given = {
        "EulerAncestralDiscreteScheduler": ("euler_ancestral", {}, {"generator": Noise()}),
        "KDPM2DiscreteScheduler": ("dpm2", {}, {}),
        "LMSDiscreteScheduler": ("lms", {"final": "full"}, {}),
    }[scheduler]
    sigmas = theirs.sigmas.numpy()
    sigmas = np.append(sigmas[0:-2:2], 0.0) if name == "dpm2" else sigmas
    with np.errstate(divide="ignore"):
        plan = dc.samplers.make(name, VE, grid=-2.0 * np.log(sigmas), **settings)
    called = np.exp(-0.5 * plan.log_snr)
    want = their_run(theirs, lambda call: (1.0, called[call]), START * sigmas[0], **given)
    # diffusers computes a step in float32, and integrates LMS by quadrature
    digits = {"euler_ancestral": 1e-6, "dpm2": 1e-5, "lms": 1e-3}[name]
    torch.testing.assert_close(ours(plan, START * sigmas[0]), want.double(), rtol=0, atol=digits)
