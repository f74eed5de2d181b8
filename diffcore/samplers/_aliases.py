"""Samplers by the names that they have elsewhere."""

from __future__ import annotations

from typing import Any


def aliases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return other names of samplers, those of k-diffusion, ComfyUI and diffusers, with their default settings there.

    name -> (sampler, settings), which `make` takes as well: `make("dpmpp_2m_sde", schedule, 20)`. Where a sampler differs from
    that of its name, its docstring says how.

    >>> aliases()["dpmpp_2m_sde"]
    ('dpm_solver_pp', {'order': 2, 'eta': 1.0})
    """
    k_diffusion: dict[str, tuple[str, dict[str, Any]]] = {
        "ddpm": ("ancestral", {}),
        "dpm_2": ("dpm2", {}),
        "dpm_2_ancestral": ("dpm2_ancestral", {}),
        "heunpp2": ("heunpp", {}),
        "dpm_fast": ("dpm_solver_fast", {}),
        "dpmpp_2s_ancestral": ("dpm_solver_pp_2s", {"eta": 1.0}),
        "dpmpp_sde": ("dpm_solver_pp_sde", {}),
        "dpmpp_2m": ("dpm_solver_pp", {"order": 2}),
        "dpmpp_2m_sde": ("dpm_solver_pp", {"order": 2, "eta": 1.0}),
        "dpmpp_2m_sde_heun": ("dpm_solver_pp", {"order": 2, "eta": 1.0, "solver": "heun"}),
        "dpmpp_3m_sde": ("dpm_solver_pp", {"order": 3, "eta": 1.0, "solver": "heun"}),
    }
    comfyui: dict[str, tuple[str, dict[str, Any]]] = {
        "ipndm_v": ("lms", {}),
        "res_multistep_ancestral": ("res_multistep", {"eta": 1.0}),
        "seeds_2": ("seeds", {"order": 2}),
        "seeds_3": ("seeds", {"order": 3}),
        "sa_solver_pece": ("sa_solver", {"mode": "pece"}),
        "uni_pc": ("unipc", {"order": 3, "variant": "bh1"}),
        "uni_pc_bh2": ("unipc", {"order": 3, "variant": "bh2"}),
        "dpmpp_2m_cfg_pp": ("dpm_solver_pp_2m_cfg_pp", {}),
    }
    diffusers: dict[str, tuple[str, dict[str, Any]]] = {
        "DDPMScheduler": ("ancestral", {}),
        "DDIMScheduler": ("ddim", {}),
        "PNDMScheduler": ("pndm", {}),
        "LMSDiscreteScheduler": ("lms", {"final": "full"}),
        "EulerDiscreteScheduler": ("euler", {}),
        "EulerAncestralDiscreteScheduler": ("euler_ancestral", {}),
        "HeunDiscreteScheduler": ("heun", {}),
        "KDPM2DiscreteScheduler": ("dpm2", {}),
        "KDPM2AncestralDiscreteScheduler": ("dpm2_ancestral", {}),
        "DPMSolverMultistepScheduler": ("dpm_solver_pp", {"order": 2}),
        "DPMSolverSDEScheduler": ("dpm_solver_pp_sde", {}),
        "DEISMultistepScheduler": ("deis", {"order": 2}),
        "IPNDMScheduler": ("ipndm", {"final": "full"}),
        "UniPCMultistepScheduler": ("unipc", {"order": 2, "variant": "bh2"}),
        "SASolverScheduler": ("sa_solver", {}),
        "LCMScheduler": ("lcm", {}),
        "TCDScheduler": ("tcd", {}),
        "FlowMatchEulerDiscreteScheduler": ("euler", {}),
        "FlowMatchHeunDiscreteScheduler": ("heun", {}),
        "FlowMatchLCMScheduler": ("lcm", {}),
    }
    return k_diffusion | comfyui | diffusers
