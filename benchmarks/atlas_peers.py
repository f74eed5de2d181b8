"""The samplers of k-diffusion, azula and diffusers as functions of a grid of log-SNRs, read as plans; see `benchmarks.atlas`."""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

import diffcore as dc

Make = Callable[[npt.NDArray[np.float64]], dc.Plan]

K_DIFFUSION: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sample_euler", {}),
    ("sample_euler_ancestral", {}),
    ("sample_heun", {}),
    ("sample_dpm_2", {}),
    ("sample_dpm_2_ancestral", {}),
    ("sample_lms", {}),
    ("sample_dpmpp_2s_ancestral", {}),
    ("sample_dpmpp_2s_ancestral", {"eta": 0.0}),
    ("sample_dpmpp_sde", {}),
    ("sample_dpmpp_2m", {}),
    ("sample_dpmpp_2m_sde", {}),
    ("sample_dpmpp_2m_sde", {"solver_type": "heun"}),
    ("sample_dpmpp_3m_sde", {}),
    ("sample_dpmpp_3m_sde", {"eta": 0.0}),
)

AZULA: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DDPMSampler", {}),
    ("DDIMSampler", {}),
    ("EulerSampler", {}),
    ("HeunSampler", {}),
    ("ItoSampler", {}),
    ("zABSampler", {"order": 2}),
    ("zABSampler", {"order": 3}),
    ("vABSampler", {"order": 2}),
    ("vABSampler", {"order": 3}),
    ("zEABSampler", {"order": 2}),
    ("zEABSampler", {"order": 3}),
    ("xEABSampler", {"order": 2}),
    ("xEABSampler", {"order": 3}),
    ("REABSampler", {"order": 2}),
    ("REABSampler", {"order": 3}),
    ("PCSampler", {"delta": 0.1}),
)

DIFFUSERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DDPMScheduler", {}),
    ("DDIMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("PNDMScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("DEISMultistepScheduler", {"solver_order": 2}),
    ("DEISMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 2}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    ("DPMSolverSDEScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_order": 2}),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
    ("SASolverScheduler", {}),
    ("TCDScheduler", {}),
    ("LCMScheduler", {}),
)


CLAIMS = {
    "sample_heun": 2,
    "sample_dpm_2": 2,
    "sample_lms": 4,
    "sample_dpmpp_2m": 2,
    "sample_dpmpp_2m_sde": 2,
    "sample_dpmpp_3m_sde": 3,
    "sample_dpmpp_2s_ancestral(eta=0.0)": 2,
    "HeunSampler": 2,
    "PNDMScheduler": 4,
    "HeunDiscreteScheduler": 2,
    "LMSDiscreteScheduler": 4,
    "KDPM2DiscreteScheduler": 2,
    "heun": 2,
    "heunpp": 2,
    "lms": 4,
    "ipndm": 4,
    "pndm": 4,
    "plms": 4,
    "deis": 3,
}
"""Orders by name or paper: of the classical method, or of the multistep formula, where the call does not say it."""


def claim(sampler: str) -> int | None:
    """Return the order that a sampler's name, settings or paper gives it; UniPC's corrector makes p into p + 1."""
    stated = re.search(r"(?<![a-z_])(?:solver_)?order=(\d)", sampler)
    number = int(stated.group(1)) if stated else CLAIMS.get(sampler, CLAIMS.get(sampler.partition("(")[0]))
    more = sampler.lower().startswith("unipc")
    return None if number is None else number + more


ALMOST_CLEAN = 40.0
"""Where azula's runs end: its exponential integrators divide by sigma."""


def named(name: str, settings: dict[str, Any]) -> str:
    """Return a name with its settings, as in a call."""
    inner = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"{name}({inner})" if inner else name


def makers() -> Iterator[tuple[str, str, Make]]:
    """Yield (library, sampler, grid -> plan) for what is installed."""
    for library, rows, make in (
        ("k-diffusion", K_DIFFUSION, k_diffusion),
        ("azula", AZULA, azula),
        ("diffusers", DIFFUSERS, diffusers),
    ):
        if importlib.util.find_spec(library.replace("-", "_")) is None:
            continue
        for name, settings in rows:
            yield library, named(name, settings), make(name, settings)


def k_diffusion(name: str, settings: dict[str, Any]) -> Make:
    """Return a sampler of k-diffusion, whose levels are sigmas."""
    function = getattr(_sampling(), name)

    def make(grid: npt.NDArray[np.float64]) -> dc.Plan:
        with np.errstate(over="ignore"):
            return dc.interop.k_diffusion.plan(function, np.exp(-0.5 * grid), **settings)

    return make


def _sampling() -> Any:
    """Return k-diffusion's module of samplers alone: the package imports much that no sampler needs."""
    if "k_diffusion" not in sys.modules:
        found = importlib.util.find_spec("k_diffusion")
        package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
        package.__path__ = list(found.submodule_search_locations or []) if found else []
        utils.append_dims = lambda x, count: x[(..., *(None,) * (count - x.ndim))]  # type: ignore[attr-defined]
        package.utils = utils  # type: ignore[attr-defined]
        sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    return importlib.import_module("k_diffusion.sampling")


def azula(name: str, settings: dict[str, Any]) -> Make:
    """Return a sampler of azula, whose times are read from a schedule: here the numbers of the points of the grid."""
    torch = importlib.import_module("torch")
    sampler = getattr(importlib.import_module("azula.sample"), name)
    reading = importlib.import_module("diffcore.interop._torch").Reading
    scaling = "flow" if name.startswith("vAB") else "vp"

    def make(grid: npt.NDArray[np.float64]) -> dc.Plan:
        grid = np.minimum(grid, ALMOST_CLEAN)
        level = dc.levels.level(grid, scaling)
        alpha, sigma = (torch.from_numpy(np.array(part)) for part in level[:2])

        def loop(denoise: Any, z: Any, draw: Any) -> Any:
            class Denoiser(torch.nn.Module):  # type: ignore[name-defined, misc]
                @staticmethod
                def schedule(time: Any) -> Any:
                    return alpha[time.long()], sigma[time.long()]

                def forward(self, z: Any, time: Any) -> Any:
                    return types.SimpleNamespace(mean=denoise(z, float(grid[int(time)])))

            theirs = type(name, (sampler,), {"timesteps": torch.arange(len(grid))})
            with reading(lambda _: draw(), z.shape):
                return theirs(Denoiser(), silent=True, **settings)(z)

        return dc.samplers.trace(loop, scaling, torch.zeros(1), end=float(grid[-1]), name=name)

    return make


def diffusers(name: str, settings: dict[str, Any]) -> Make:
    """Return a scheduler of diffusers, trained on a table that holds the points of the grid and no other."""
    library = importlib.import_module("diffusers")
    kind = getattr(library, name)

    def make(grid: npt.NDArray[np.float64]) -> dc.Plan:
        finite = grid[np.isfinite(grid)]
        kept = 1.0 / (1.0 + np.exp(-finite[::-1]))  # alpha^2, from the least noise
        betas = 1.0 - kept / np.concatenate([[1.0], kept[:-1]])
        offered: dict[str, Any] = {
            "trained_betas": betas.tolist(),
            "num_train_timesteps": len(betas),
            "steps_offset": 0,
            "timestep_spacing": "trailing",
            "set_alpha_to_one": True,
            "clip_sample": False,
            "original_inference_steps": len(betas),
        }
        takes = inspect.signature(kind.__init__).parameters
        scheduler = kind(**{key: value for key, value in offered.items() if key in takes}, **settings)
        every = {"timesteps": list(range(len(betas)))[::-1]} if name == "DPMSolverSinglestepScheduler" else {}
        found = dc.interop.diffusers.plan(scheduler, None if every else len(betas), **every)
        return found if math.isinf(grid[-1]) else up_to(found, float(grid[-1]))

    return make


def up_to(plan: dc.Plan, log_snr: float) -> dc.Plan:
    """Return the part of a plan that ends at a level, which the plan goes on from."""
    near = np.flatnonzero(np.abs(plan.next_log_snr - log_snr) < 1e-2)
    if not near.size:
        raise ValueError(f"no stage of {plan.sampler} ends at log-SNR {log_snr}")
    return plan[: int(near[-1]) + 1]
