"""Schedulers of diffusers to read as plans: class, settings, further arguments of step, arrays of memory."""

from __future__ import annotations

from typing import Any

ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}

# The first compute with samples in float64, the others in float32.
EXACT: list[tuple[str, dict[str, Any], dict[str, Any], int]] = [
    ("DDIMScheduler", {}, {}, 0),
    ("DDIMScheduler", ZERO, {}, 0),
    ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}, {"eta": 1.0}, 0),
    ("DDIMScheduler", {"prediction_type": "sample", "thresholding": True}, {"eta": 0.5}, 0),
    ("DDIMParallelScheduler", {}, {}, 0),
    ("DDPMScheduler", {}, {}, 0),
    ("DDPMScheduler", {"variance_type": "fixed_large"}, {}, 0),
    ("DDPMParallelScheduler", {}, {}, 0),
    ("UnCLIPScheduler", {}, {}, 0),
    ("PNDMScheduler", {"skip_prk_steps": True}, {}, 3),
    ("PNDMScheduler", {"skip_prk_steps": True, "prediction_type": "v_prediction"}, {}, 3),
    ("PNDMScheduler", {}, {}, 4),
    ("LCMScheduler", {}, {}, 0),
    ("TCDScheduler", {}, {}, 0),
    ("CogVideoXDDIMScheduler", ZERO, {}, 0),
    ("CogVideoXDPMScheduler", ZERO, {}, 1),
    ("IPNDMScheduler", {}, {}, 3),
    ("DEISMultistepScheduler", {}, {}, 1),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}, {}, 1),
    ("UniPCMultistepScheduler", {"solver_order": 3}, {}, 3),
    ("UniPCMultistepScheduler", FLOW, {}, 2),
    ("SASolverScheduler", {}, {}, 2),
    ("DPMSolverMultistepInverseScheduler", {}, {}, 1),
]
ROUNDED: list[tuple[str, dict[str, Any], dict[str, Any], int]] = [
    ("EulerDiscreteScheduler", {}, {}, 0),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}, {}, 0),
    ("EulerDiscreteScheduler", {"prediction_type": "sample", "final_sigmas_type": "sigma_min"}, {}, 0),
    (
        "EulerDiscreteScheduler",
        {
            "timestep_type": "continuous",
            "prediction_type": "v_prediction",
            "use_karras_sigmas": True,
            "sigma_max": 700.0,
        }
        | {"sigma_min": 0.002},
        {},
        0,
    ),
    ("EulerDiscreteScheduler", ZERO, {}, 0),
    ("UniPCMultistepScheduler", ZERO, {}, 2),
    ("EulerAncestralDiscreteScheduler", {}, {}, 0),
    ("HeunDiscreteScheduler", {}, {}, 1),
    ("HeunDiscreteScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}, {}, 1),
    ("LMSDiscreteScheduler", {}, {}, 3),
    ("KDPM2DiscreteScheduler", {}, {}, 1),
    ("KDPM2AncestralDiscreteScheduler", {}, {}, 1),
    ("DPMSolverMultistepScheduler", {}, {}, 1),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}, {}, 1),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "prediction_type": "v_prediction"}
        | {"solver_order": 3},
        {},
        2,
    ),
    ("DPMSolverMultistepScheduler", FLOW | {"flow_shift": 3.0}, {}, 1),
    ("DPMSolverSDEScheduler", {}, {}, 1),
    ("EDMEulerScheduler", {}, {}, 0),
    ("EDMDPMSolverMultistepScheduler", {}, {}, 1),
    ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, {}, 1),
    ("CosineDPMSolverMultistepScheduler", {}, {}, 1),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {}, 0),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, {}, 0),
    ("FlowMatchHeunDiscreteScheduler", {}, {}, 1),
    ("FlowMatchLCMScheduler", {}, {}, 0),
    ("LTXEulerAncestralRFScheduler", {}, {}, 0),
]
