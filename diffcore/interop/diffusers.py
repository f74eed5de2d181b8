"""Schedulers of diffusers as plans, their noise levels as schedules, and networks made for them as denoisers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from diffcore import _array, levels, predictions, samplers, schedules
from diffcore._array import Array
from diffcore.interop import _schedulers
from diffcore.plan import Plan
from diffcore.samplers._least import responses
from diffcore.schedules import Schedule

SWITCHES = ("clip_sample", "thresholding")
"""What of a scheduler's settings is not linear in x-hat."""

CLEAN = 1e-5
"""What noise is none, beside the data at the end: schedulers keep their levels in float32."""


def plan(
    scheduler: Any, steps: int | None = None, *, step: Mapping[str, Any] = MappingProxyType({}), **set_timesteps: Any
) -> Plan:
    """Return the plan of a scheduler, so that `sample(denoiser(model, scheduler), plan, latents)` is their loop.

    The loop of `scheduler.step` is run in float64 on unit vectors, as `samplers.trace` does, on a copy. x-hat is theirs, and
    noise is one draw for each that they take from a generator or a Brownian path. States are scaled as their samples are:
    latents are `init_noise_sigma` times noise. Where a scheduler has a `begin_index`, as for image to image, the loop begins
    there.

    `clip_sample` and `thresholding` are no part of a plan and are read switched off: give `sample(..., transform_x=
    guidance.clip())`, which equals theirs where the scheduler computes all else from the clipped x-hat, as DDPM does.

    Args:
        scheduler: a scheduler of diffusers; after the call it has the timesteps, as after their own `set_timesteps`.
        steps: the number of steps; None, without further arguments, takes the timesteps that it has.
        step: further arguments of `scheduler.step`, such as {"eta": 1.0}.
        set_timesteps: further arguments of `scheduler.set_timesteps`, such as sigmas or mu.

    Raises:
        TypeError: something that has no such tables.
        ValueError: a scheduler that is not linear, with the call where it shows; an unknown `prediction_type`.

    Source: https://github.com/huggingface/diffusers, `diffusers.schedulers`.

    >>> import pytest; library = pytest.importorskip("diffusers")
    >>> plan(library.PNDMScheduler(skip_prk_steps=True), 8)
    <Plan PNDMScheduler, vp, 9 stages, memory 3>
    """
    _schedulers.kind(scheduler)
    if steps is not None or set_timesteps:
        scheduler.set_timesteps(*(() if steps is None else (steps,)), **set_timesteps)
    import torch

    from diffcore.interop._torch import Reading

    scaling = _schedulers.SCALINGS[_schedulers.kind(scheduler)]
    target = _schedulers.prediction(scheduler)

    def loop(denoise: Callable[..., Any], sample: Any, draw: Callable[[], Any]) -> Any:
        own = copy.deepcopy(scheduler)
        own.register_to_config(**{switch: False for switch in SWITCHES if switch in own.config})
        if hasattr(own, "noise_sampler"):
            own.noise_sampler = lambda *_: draw()
        with Reading(draw, sample.shape):
            call = _caller(own, step)
            for timestep in own.timesteps[getattr(own, "begin_index", None) or 0 :]:
                if hasattr(own, "scale_model_input"):
                    own.scale_model_input(sample, timestep)
                log_snr = _schedulers.log_snr(own, timestep)
                x = denoise(sample, log_snr)
                at = levels.level(torch.tensor([log_snr], dtype=torch.float64), scaling)
                output = predictions.convert(x, sample, at, source="x", target=target)
                sample = call(output, timestep, sample)
        return sample

    found = samplers.trace(loop, scaling, torch.zeros(1), name=type(scheduler).__name__)
    return _with_end(found)


def _caller(scheduler: Any, settings: Mapping[str, Any]) -> Callable[[Any, Any, Any], Any]:
    """Return (output, timestep, sample) -> sample, a step of a scheduler, with what some leave to their pipelines."""
    takes = inspect.signature(scheduler.step).parameters
    old: Any = (None, None)  # x-hat and timestep of the call before

    def call(output: Any, timestep: Any, sample: Any) -> Any:
        nonlocal old
        more = dict(settings)
        if "prev_timestep" in takes:  # UnCLIP's: the one that follows
            more["prev_timestep"] = next(iter(scheduler.timesteps[scheduler.timesteps < timestep]), None)
        if "timestep_back" in takes:  # CogVideoX's multistep method
            more |= {"old_pred_original_sample": old[0], "timestep_back": old[1]}
        found = scheduler.step(output, timestep=timestep, sample=sample, return_dict=False, **more)
        old = found[-1], timestep
        return found[0]

    return call


def _with_end(plan: Plan) -> Plan:
    """Return the plan with the level at its end: that which its last state has if x-hat is right at every stage."""
    last = responses(plan.update)[-1]
    start = plan.start
    signal = last[0] * start.alpha + last[2::2].sum()
    noise = math.hypot(float(last[0] * start.sigma), *last[1::2])
    end = math.inf if noise < CLEAN * abs(signal) else 2.0 * math.log(abs(signal) / noise)
    after = np.append(plan.next_log_snr[:-1], end)
    return Plan(plan.sampler, plan.scaling, plan.log_snr, after, plan.update)


def schedule(scheduler: Any) -> Schedule:
    """Return the schedule that a scheduler's networks are trained with, scaled as its samples are.

    Entry i of its `alphas_cumprod` lies at time i / (T - 1); a flow is `schedules.Flow()`, and EDM's range `schedules.Karras`.

    Raises:
        TypeError: something that has no such tables.
        ValueError: a table that is no schedule.

    >>> import pytest; library = pytest.importorskip("diffusers")
    >>> float(schedule(library.DDPMScheduler()).log_snr(1.0).round(3))
    -10.118
    """
    of, config = _schedulers.kind(scheduler), scheduler.config
    if of == "flow":
        return schedules.Flow()
    if of == "edm":
        return schedules.Karras(
            sigma_min=config["sigma_min"], sigma_max=config["sigma_max"], rho=config.get("rho", 7.0)
        )
    if of == "circle":
        raise TypeError(f"interop.diffusers.schedule: a {type(scheduler).__name__} has no table of training")
    return schedules.from_alphas_cumprod(scheduler.alphas_cumprod.double().cpu().numpy(), _schedulers.SCALINGS[of])


@dataclass(frozen=True, eq=False)
class _Denoiser:
    """A network made for a scheduler as a denoiser."""

    model: Any
    scheduler: Any
    inputs: Any

    @property
    def scaling(self) -> str:
        return _schedulers.SCALINGS[_schedulers.kind(self.scheduler)]

    @property
    def prediction(self) -> predictions.Prediction:
        return _schedulers.prediction(self.scheduler)

    def __call__(self, z: Array, log_snr: Array, /) -> Array:
        scale = _schedulers.input_scale(self.scheduler, log_snr)
        if scale is not None:
            z = z * scale.reshape(-1, *(1,) * (z.ndim - 1)).to(z.dtype)
        timestep = _schedulers.timesteps(self.scheduler, _array.to_host(log_snr, np.float64))
        like = self.scheduler.timesteps
        whole = not like.is_floating_point() and bool(np.all(timestep == np.round(timestep)))
        dtype = like.dtype if whole else log_snr.dtype
        found = self.model(z, log_snr.new_tensor(timestep, dtype=dtype), **self.inputs)
        return getattr(found, "sample", found)


def denoiser(model: Callable[..., Any], scheduler: Any, **inputs: Any) -> Any:
    """Return a network that a scheduler calls, model(sample, timestep, **inputs), as a denoiser.

    Its input is scaled as by `scheduler.scale_model_input`, and its timesteps (B,) are the scheduler's: those of its steps at
    the levels of a plan read from it, and between them by its table, so that it can be used with any plan of the same scaling.

    Args:
        model: returns a tensor or something that has it as `.sample`.
        scheduler: a scheduler of diffusers, which says prediction, scaling and timesteps.
        inputs: what the network gets at every call, such as encoder_hidden_states.

    Returns:
        A denoiser with `prediction` and `scaling`.

    Raises:
        TypeError, ValueError: as for `plan`.

    >>> import pytest; library = pytest.importorskip("diffusers")
    >>> denoise = denoiser(lambda sample, timestep: 0.1 * sample, library.DDPMScheduler())
    >>> denoise.prediction, denoise.scaling
    ('eps', 'vp')
    """
    _schedulers.prediction(scheduler)
    return _Denoiser(model, scheduler, inputs)
