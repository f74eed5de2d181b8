"""The peers: other projects' steps, set to do what ours do. A peer that is not installed is a row that says so."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest

STEPS = 10
"""Steps a call of a large array; divide by it."""

MANY = 200
"""The same for a few numbers, where starting a run would else weigh."""

DIFFUSERS = {
    "ancestral": ("DDPMScheduler", {"clip_sample": True}),
    "ddim": ("DDIMScheduler", {"clip_sample": True}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2}),
}
"""Ours -> the class and settings of diffusers."""

HOW = ".venv/bin/pip install diffcore[peers], or --no-deps each of diffusers, k-diffusion and azula"


def diffusers(sampler: str, z: Any, y: Any, steps: int) -> Callable[[], Any]:
    """Return `STEPS` steps of a scheduler of diffusers in the middle of a run, given what the network says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = _package("diffusers")
        name, settings = DIFFUSERS[sampler]
        scheduler = getattr(package, name)(num_train_timesteps=1000, **settings)

    def run() -> Any:
        scheduler.set_timesteps(2 * steps)
        state = z
        for t in scheduler.timesteps[:steps]:
            state = scheduler.step(y, t, state).prev_sample
        return state

    return run


def k_diffusion(sampler: str, z: Any, y: Any, steps: int) -> Callable[[], Any]:
    """Return a run of k-diffusion, whose samplers own the loop; no clipping."""
    for name in ("torchsde", "torchdiffeq"):  # only its SDE and likelihood need them
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            stand_in = types.ModuleType(name)
            stand_in.odeint = None  # type: ignore[attr-defined]
            sys.modules[name] = stand_in
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            pytest.skip(f"k-diffusion is not installed; {HOW}")
        package = types.ModuleType(
            "k_diffusion"
        )  # its __init__ asks for torchvision, wandb and more, its samplers do not
        package.__path__ = list(spec.submodule_search_locations or [])
        utils = types.ModuleType("k_diffusion.utils")
        utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
        sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
        package.utils = utils  # type: ignore[attr-defined]
    sampling = importlib.import_module("k_diffusion.sampling")
    sigmas = sampling.get_sigmas_karras(steps, 0.02, 20.0, device=z.device)[: steps + 1]
    names = {"ancestral": "sample_euler_ancestral", "ddim": "sample_euler", "dpm++2m": "sample_dpmpp_2m"}
    function = names.get(sampler)
    if function is None:
        pytest.skip(f"k-diffusion has no {sampler}")
    return lambda: getattr(sampling, function)(lambda x, sigma: y, z, sigmas, disable=True)


def azula(sampler: str, z: Any, y: Any, steps: int) -> Callable[[], Any]:
    """Return a run of azula with a denoiser that always says the same; no clipping."""
    torch = importlib.import_module("torch")
    _package("azula")
    sample, denoise, noise = (importlib.import_module(f"azula.{name}") for name in ("sample", "denoise", "noise"))
    name = {"ancestral": "DDPMSampler", "ddim": "DDIMSampler"}.get(sampler)
    if name is None or not hasattr(sample, name):
        pytest.skip(f"azula has no {sampler} under a name known here")

    class Says(denoise.Denoiser):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = noise.VPSchedule()

        def forward(self, x_t: Any, t: Any, **_: Any) -> Any:
            return denoise.DiracPosterior(mean=y)

    built = getattr(sample, name)(Says(), steps=steps, silent=True, device=z.device)

    def run() -> Any:
        with torch.no_grad():
            return built(z)

    return run


PEERS = {"diffusers": diffusers, "k-diffusion": k_diffusion, "azula": azula}


def _package(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; {HOW}")
    return importlib.import_module(name)
