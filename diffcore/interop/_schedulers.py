"""What diffusers' schedulers mean by their tables: the scaling of a sample, the level of a call, the prediction, the timesteps.

Each class writes this in its own `step`; here it is by kind, which shows in what a scheduler has:

| kind | shows by | scaling | level of a call |
|---|---|---|---|
| flow | a class FlowMatch..., `use_flow_sigmas`, flow_prediction | flow | `sigmas` |
| edm | `sigma_data` | ve | `sigmas` |
| ve | `sigmas`, no `_sigma_to_alpha_sigma_t` | ve | `sigmas`; between two of them in two-stage methods |
| vp | `_sigma_to_alpha_sigma_t` | vp | `sigmas`, which are sigma / alpha |
| table | `alphas_cumprod` alone | vp | `alphas_cumprod[timestep]` |
| circle | `alphas` and `betas` of the steps, sine and cosine | vp | these |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffcore import levels, predictions
from diffcore._array import Array
from diffcore.levels import Level
from diffcore.plan import Float64
from diffcore.predictions import Prediction, Row

SCALINGS = {"flow": "flow", "edm": "ve", "ve": "ve", "vp": "vp", "table": "vp", "circle": "vp"}

NAMES = {"epsilon": "eps", "sample": "x", "flow_prediction": "flow"}


@dataclass(frozen=True)
class Velocity:
    """The row of v for data of a standard deviation, under any scaling: -F of EDM. Under "vp" and at 1 it is "v"."""

    sigma_data: float = 1.0

    def __call__(self, xp: Any, level: Level) -> Row:
        """Return the row at a level."""
        a, b, w = predictions.edm(self.sigma_data)(xp, level)
        return Row(-a, -b, w)


def kind(scheduler: Any) -> str:
    """Return the kind of a scheduler; raise TypeError for one of no kind."""
    config = getattr(scheduler, "config", {})
    flow = type(scheduler).__name__.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction"
    if flow or config.get("use_flow_sigmas"):
        return "flow"
    if "sigma_data" in config and hasattr(scheduler, "sigmas"):
        return "edm"
    if hasattr(scheduler, "sigmas"):
        return "vp" if hasattr(scheduler, "_sigma_to_alpha_sigma_t") else "ve"
    if hasattr(scheduler, "alphas_cumprod"):
        return "table"
    if hasattr(scheduler, "timesteps") and hasattr(scheduler, "_get_prev_sample"):
        return "circle"
    raise TypeError(
        f"interop.diffusers: `scheduler` must be a scheduler of diffusers with sigmas or alphas_cumprod, got a "
        f"{type(scheduler).__name__}; write its loop for samplers.trace"
    )


def prediction(scheduler: Any) -> Prediction:
    """Return what a scheduler takes its network to predict."""
    of, config = kind(scheduler), scheduler.config
    name = config.get("prediction_type", {"flow": "flow_prediction", "circle": "v_prediction"}.get(of))
    if of == "edm":
        return predictions.edm(config["sigma_data"]) if name == "epsilon" else Velocity(config["sigma_data"])
    if name == "v_prediction":
        return "v" if SCALINGS[of] == "vp" else Velocity()
    if name not in NAMES:
        raise ValueError(f"interop.diffusers: `prediction_type` must be one of {[*NAMES, 'v_prediction']}, got {name!r}")
    return NAMES[name]


def log_snr(scheduler: Any, timestep: Any) -> float:
    """Return the level of the call that a scheduler, in the middle of its loop, makes at a timestep."""
    of = kind(scheduler)
    if of == "table":
        return float(from_alphas_cumprod(np.float64(scheduler.alphas_cumprod[int(timestep)])))
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    at = scheduler.step_index
    with np.errstate(divide="ignore"):
        if of == "circle":
            return float(2.0 * (np.log(np.float64(scheduler.alphas[at])) - np.log(np.float64(scheduler.betas[at]))))
        sigma = np.float64(scheduler.sigmas[at])
        if not getattr(scheduler, "state_in_first_order", True):  # the second stage of two
            if hasattr(scheduler, "sigmas_interpol"):
                sigma = np.float64(scheduler.sigmas_interpol[at])
            elif getattr(scheduler, "mid_point_sigma", None) is not None:
                sigma = np.float64(scheduler.mid_point_sigma)
        return float(2.0 * (np.log1p(-sigma) - np.log(sigma)) if of == "flow" else -2.0 * np.log(sigma))


def from_alphas_cumprod(values: Any) -> Any:
    """Return the log-SNR of alpha^2 under "vp"."""
    with np.errstate(divide="ignore"):
        return np.log(values) - np.log1p(-values)


def input_scale(scheduler: Any, log_snr: Array) -> Array | None:
    """Return by what a network's input is multiplied, like `log_snr`; None for 1."""
    of = kind(scheduler)
    if of == "edm":
        sigma = levels.level(log_snr, "ve").sigma
        return (sigma**2 + scheduler.config["sigma_data"] ** 2) ** -0.5
    return levels.level(log_snr, "vp").alpha if of == "ve" else None


def timesteps(scheduler: Any, log_snr: Float64) -> Float64:
    """Return the timesteps that a scheduler gives to its network at levels: where one of its steps is near, that one's."""
    of, near = kind(scheduler), 1.0
    if of == "flow":
        found = levels.level(log_snr, "flow").sigma * scheduler.config["num_train_timesteps"]
    elif of == "edm" or getattr(scheduler.config, "timestep_type", None) == "continuous":
        found, near = -0.125 * log_snr, 1e-3
    elif of == "circle":
        found, near = np.arctan2(*levels.level(log_snr, "vp")[1::-1]) / np.pi * 2.0, 1e-3
    else:
        table = from_alphas_cumprod(scheduler.alphas_cumprod.double().cpu().numpy())
        found = np.interp(-log_snr, -table, np.arange(len(table)))
    own = np.asarray(scheduler.timesteps.double().cpu())
    best = own[np.abs(own - found[..., None]).argmin(-1)]
    return np.where(np.abs(best - found) < near, best, found)
