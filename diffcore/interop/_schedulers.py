"""What diffusers' schedulers mean by their tables: the scaling of a sample, the level of a call, the prediction, the timesteps.

Each class writes this in its own `step`; here it is by kind, which shows in what a scheduler has:

| kind | shows by | scaling | level of a call |
|---|---|---|---|
| flow | the name of the class, `use_flow_sigmas`, flow_prediction | flow | `sigmas` |
| edm | `precondition_outputs` | ve | `sigmas` |
| ve | `sigmas`, no `_sigma_to_alpha_sigma_t` | ve | `sigmas`; between two of them in two-stage methods |
| vp | `_sigma_to_alpha_sigma_t` | vp | `sigmas`, which are sigma / alpha |
| table | `alphas_cumprod` alone | vp | `alphas_cumprod[timestep]` |
| circle | `alphas` and `betas` of the steps, sine and cosine | vp | these |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from diffcore import _check, levels, predictions, schedules
from diffcore._array import Array, to_host
from diffcore.grids.given import levels_of
from diffcore.interop import _untaken
from diffcore.levels import Level
from diffcore.plan import Float64
from diffcore.predictions import Prediction, Row
from diffcore.schedules import Schedule

FLOWS = ("FlowMatch", "LTXEulerAncestralRF")
"""How the names of classes begin that are made for flows alone."""

SCALINGS = {"flow": "flow", "edm": "ve", "ve": "ve", "vp": "vp", "table": "vp", "circle": "vp"}

STEPS = ("timesteps", "sigmas", "_init_step_index")

NEEDS = {
    "flow": STEPS,
    "edm": STEPS,
    "ve": (*STEPS, "alphas_cumprod"),
    "vp": (*STEPS, "alphas_cumprod"),
    "table": ("timesteps", "alphas_cumprod"),
    "circle": ("timesteps", "_init_step_index"),
}
"""What a scheduler of each kind is asked for."""

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
    if isinstance(scheduler, type) and hasattr(scheduler, "from_config"):
        raise _wrong(scheduler, f"call it: {scheduler.__name__}(), or .from_config(pipeline.scheduler.config)")
    if hasattr(scheduler, "scheduler") and not hasattr(scheduler, "set_timesteps"):  # a scheduler may serve its config
        raise _wrong(scheduler, "give its scheduler: pipeline.scheduler")
    config = getattr(scheduler, "config", {})
    if hasattr(scheduler, "initial_alpha_cumprod"):
        raise TypeError(
            f"interop.diffusers: `scheduler` is a {type(scheduler).__name__}, which takes the output of its network to be "
            f"at another level than that of its timestep; use DPMSolverMultistepInverseScheduler, or samplers.ddim on a rising grid"
        )
    named = config.get("scheduler", type(scheduler).__name__)  # of a `Scheduler` of ours, the one that it stands for
    _untaken.refuse(scheduler, named)
    found = _kind(scheduler, named, config)
    if found is None or not all(map(partial(hasattr, scheduler), NEEDS[found])):
        hint = "write its loop for samplers.trace"
        if isinstance(scheduler, Mapping | str):
            hint = "give the scheduler itself, such as DDIMScheduler.from_config(config)"
        elif callable(scheduler):
            hint = "a network goes before it, as in denoiser(model, scheduler)"
        elif hasattr(scheduler, "config"):
            hint = f"{_untaken.TAKEN}; of another, {hint}"
        raise _wrong(scheduler, hint)
    return found


def _kind(scheduler: Any, named: str, config: Mapping[str, Any]) -> str | None:
    flow = named.startswith(FLOWS) or config.get("prediction_type") == "flow_prediction"
    if flow or config.get("use_flow_sigmas"):
        return "flow"
    if hasattr(scheduler, "precondition_outputs"):
        return "edm"
    if hasattr(scheduler, "sigmas"):
        return "vp" if hasattr(scheduler, "_sigma_to_alpha_sigma_t") else "ve"
    if hasattr(scheduler, "alphas_cumprod"):
        return "table"
    if hasattr(scheduler, "timesteps") and hasattr(scheduler, "_get_prev_sample"):
        return "circle"
    return None


def _wrong(scheduler: object, hint: str) -> Exception:
    must = "be a scheduler of diffusers with sigmas or alphas_cumprod"
    return _check.error(TypeError, "interop.diffusers", "scheduler", must, scheduler, hint)


def prediction(scheduler: Any) -> Prediction:
    """Return what a scheduler takes its network to predict."""
    of, config = kind(scheduler), scheduler.config
    name = config.get("prediction_type", {"flow": "flow_prediction", "circle": "v_prediction"}.get(of))
    if of == "edm":
        return predictions.edm(config["sigma_data"]) if name == "epsilon" else Velocity(config["sigma_data"])
    if name == "v_prediction":
        return "v" if SCALINGS[of] == "vp" else Velocity()
    if name is None:
        raise ValueError(
            f"interop.diffusers: the config of `scheduler`, a {type(scheduler).__name__}, has no `prediction_type`, so that what "
            f"its network returns is not known; {_untaken.TAKEN}; of another, write the loop for samplers.trace"
        )
    if name not in NAMES:
        must = f"be one of {[*NAMES, 'v_prediction']}"
        hint = f"of another, write the loop of {type(scheduler).__name__} for samplers.trace"
        raise _check.error(ValueError, "interop.diffusers", "prediction_type", must, name, hint)
    return NAMES[name]


def log_snr(scheduler: Any, timestep: Any) -> float:
    """Return the level of the call that a scheduler, in the middle of its loop, makes at a timestep."""
    of = kind(scheduler)
    if of == "table":
        return float(from_alphas_cumprod(np.float64(float(scheduler.alphas_cumprod[int(timestep)]))))
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    with np.errstate(divide="ignore"):
        if of == "circle":
            alpha, sigma = (
                np.float64(float(table[scheduler.step_index])) for table in (scheduler.alphas, scheduler.betas)
            )
            return float(2.0 * (np.log(alpha) - np.log(sigma)))
        return float(levels_of(np.asarray(_sigma(scheduler)), "flow" if of == "flow" else "ve"))


def _sigma(scheduler: Any) -> np.float64:
    at, sigmas = scheduler.step_index, scheduler.sigmas
    # the second of two stages may be between two sigmas
    if not getattr(scheduler, "state_in_first_order", True):
        if hasattr(scheduler, "sigmas_interpol"):
            at -= hasattr(scheduler, "sigmas_down")  # the ancestral one counts from 0
            sigmas = scheduler.sigmas_interpol
        elif getattr(scheduler, "mid_point_sigma", None) is not None:
            return np.float64(float(scheduler.mid_point_sigma))
    return np.float64(float(sigmas[at]))


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


def table_of(scheduler: Any) -> Any:
    """Return the log-SNRs of a scheduler's table of training and their timesteps, a tensor (2, n), or None where it has none.

    Where its last entry, 0 in training, is replaced by 2^-24, those before that are less are left out.
    """
    if kind(scheduler) in ("flow", "edm", "circle"):
        return None
    found = from_alphas_cumprod(to_host(scheduler.alphas_cumprod, np.float64))
    falls = np.append(found[:-1] > found[-1], True)
    return scheduler.alphas_cumprod.double().new_tensor(np.stack([found, np.arange(len(found))])[:, falls])


def timesteps(scheduler: Any, log_snr: Any, table: Any) -> Any:
    """Return the timesteps that a scheduler gives to its network at levels: where one of its steps is near, that one's.

    Levels and timesteps are tensors, whose values are not read, so that it can be traced; `table` is that of `table_of`.
    """
    import torch

    of, near, level = kind(scheduler), 1e-3, log_snr.double()
    if of == "circle":
        at = levels.level(level, "vp")
        found = torch.atan2(at.sigma, at.alpha) / torch.pi * 2.0
    elif of == "edm":
        found = scheduler.precondition_noise(torch.exp(-0.5 * level))
    elif scheduler.config.get("timestep_type") == "continuous":
        found = -0.125 * level
    elif of == "flow":
        found, near = levels.level(level, "flow").sigma * scheduler.config["num_train_timesteps"], 1.0
    else:
        log_snrs, numbers = table.to(level.device)
        rising = -log_snrs
        after = torch.searchsorted(rising, -level).clamp(1, len(rising) - 1)
        low, high = rising[after - 1], rising[after]
        part = ((-level - low) / (high - low)).clamp(0.0, 1.0).nan_to_num(1.0)  # of pure noise, inf / inf
        found, near = torch.lerp(numbers[after - 1], numbers[after], part), 1.0  # some round, others cut off
    own = scheduler.timesteps.to(level.device).double()
    best = own[(own - found[..., None]).abs().argmin(-1)]
    return torch.where((best - found).abs() < near, best, found)


def timesteps_of(scheduler: Any, log_snr: Float64) -> Float64:
    """Return those of levels that are known on the host."""
    import torch

    return np.asarray(timesteps(scheduler, torch.from_numpy(np.array(log_snr)), table_of(scheduler)))


def schedule(function: str, scheduler: Any) -> Schedule:
    """Return the schedule of a scheduler's table; see `interop.diffusers.schedule`."""
    of, config = kind(scheduler), scheduler.config
    if of == "flow":
        return schedules.Flow()
    if of == "edm":
        return schedules.Karras(
            sigma_min=config["sigma_min"], sigma_max=config["sigma_max"], rho=config.get("rho", 7.0)
        )
    if of == "circle":
        raise TypeError(f"{function}: a {type(scheduler).__name__} has no table of training")
    table = np.array(to_host(scheduler.alphas_cumprod, np.float64))
    if table[-1] > table[-2]:  # 2^-24 in place of 0
        table[-1] = 0.0
    return schedules.from_alphas_cumprod(table, SCALINGS[of])


def grid(scheduler: Any, *, timesteps: Any = None, sigmas: Any = None) -> Float64:
    """Return the log-SNRs of a scheduler's steps and of their end, each once; or those of other timesteps or sigmas."""
    of = kind(scheduler)
    with np.errstate(divide="ignore"):
        if of == "circle":
            found = 2.0 * (np.log(to_host(scheduler.alphas, np.float64)) - np.log(to_host(scheduler.betas, np.float64)))
        elif timesteps is not None or (of == "table" and sigmas is None):
            times = to_host(scheduler.timesteps if timesteps is None else timesteps, np.float64)
            table = from_alphas_cumprod(to_host(scheduler.alphas_cumprod, np.float64))
            found = np.interp(times, np.arange(len(table)), table)
            end = getattr(scheduler, "final_alpha_cumprod", 1.0)
            found = np.append(found, from_alphas_cumprod(np.float64(float(end))))
        else:
            at = to_host(scheduler.sigmas if sigmas is None else [*sigmas, 0.0], np.float64)
            found = levels_of(at, "flow" if of == "flow" else "ve")
        return np.asarray(found[np.append(True, found[1:] != found[:-1])])
