"""Schedulers of diffusers as plans, their noise levels as schedules, and networks made for them as denoisers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from diffcore import _array, _brief, _check, _explained, predictions
from diffcore._array import Array
from diffcore.interop import _learned, _reading, _schedulers
from diffcore.interop._inputs import inputs
from diffcore.plan import Plan
from diffcore.schedules import Schedule

NOTHING: Mapping[str, Any] = MappingProxyType({})


def plan(scheduler: Any, steps: int | None = None, *, step: Mapping[str, Any] = NOTHING, **set_timesteps: Any) -> Plan:
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
    _check.instance(
        "interop.diffusers.plan", "step", step, Mapping, "a dict of arguments of scheduler.step, such as {'eta': 1.0}"
    )
    steps = None if steps is None else _check.count("interop.diffusers.plan", "steps", steps)
    if steps is not None or set_timesteps:
        takes = inspect.signature(scheduler.set_timesteps).parameters
        of_step = inspect.signature(scheduler.step).parameters
        if wrong := [name for name in set_timesteps if name not in takes and name in of_step]:
            raise TypeError(
                f"interop.diffusers.plan: `{wrong[0]}` is an argument of {type(scheduler).__name__}.step; give step="
                f"{{{wrong[0]!r}: {_check.shown(set_timesteps[wrong[0]])}}}"
            )
        scheduler.set_timesteps(*(() if steps is None else (steps,)), **set_timesteps)
    whole = not step and not getattr(scheduler, "begin_index", None)
    known = getattr(scheduler, "plan", None) if whole else None
    if isinstance(known, Plan):  # of a `Scheduler` of ours
        return known
    return _reading.read("interop.diffusers.plan", scheduler, step=step).plan


def __getattr__(name: str) -> Any:
    """Load `Scheduler`, which needs diffusers, when it is asked for."""
    if name == "Scheduler":
        return importlib.import_module("diffcore.interop._scheduler").Scheduler
    raise _explained.missing(__name__, name)


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
    return _schedulers.schedule("interop.diffusers.schedule", scheduler)


@dataclass(frozen=True, eq=False)
class _Denoiser:
    """A network made for a scheduler as a denoiser."""

    model: Any
    scheduler: Any
    inputs: Any
    table: Any
    known: dict[Any, Any] = field(default_factory=dict)
    """The timesteps of levels that were asked for, beside those of the scheduler then, so that none is at their place."""

    __repr__ = _brief.fields

    @property
    def scaling(self) -> str:
        return _schedulers.SCALINGS[_schedulers.kind(self.scheduler)]

    @property
    def prediction(self) -> predictions.Prediction:
        return _schedulers.prediction(self.scheduler)

    def __call__(self, z: Array, log_snr: Array, /, cond: Mapping[str, Any] = NOTHING) -> Array:
        if _compiles():
            times = _schedulers.timesteps(self.scheduler, log_snr, self.table)
            return self._network(z, log_snr, times.to(log_snr.dtype), cond)
        return self._call(
            z, log_snr, _schedulers.timesteps_of(self.scheduler, _array.to_host(log_snr, np.float64)), cond
        )

    def at(self, log_snr: Any) -> Callable[..., Array]:
        """Return the denoiser for a level that is known on the host, where nothing has to wait for the device."""
        if _compiles():
            return self
        level = np.asarray(log_snr, dtype=np.float64)
        key = id(self.scheduler.timesteps), level.tobytes()
        if key not in self.known or self.known[key][0] is not self.scheduler.timesteps:  # as in a copy
            self.known[key] = self.scheduler.timesteps, _schedulers.timesteps_of(self.scheduler, level)
        timesteps = self.known[key][1]

        def denoise(z: Array, log_snr: Array, /, cond: Mapping[str, Any] = NOTHING) -> Array:
            return self._call(z, log_snr, timesteps, cond)

        return denoise

    def _call(self, z: Array, log_snr: Array, timesteps: Any, cond: Mapping[str, Any]) -> Array:
        if not hasattr(z, "new_full"):
            hint = "give latents, or `like`, of torch"
            raise _check.error(TypeError, "interop.diffusers.denoiser", "z", "be a tensor of torch", z, hint)
        like = self.scheduler.timesteps
        whole = not like.is_floating_point() and bool(np.all(timesteps == np.round(timesteps)))
        dtype = like.dtype if whole else log_snr.dtype
        if timesteps.ndim:
            times = log_snr.new_tensor(timesteps, dtype=dtype)
        else:
            times = log_snr.new_full((z.shape[0],), timesteps.item(), dtype=dtype)
        return self._network(z, log_snr, times, cond)

    def _network(self, z: Array, log_snr: Array, times: Array, cond: Mapping[str, Any]) -> Array:
        scale = _schedulers.input_scale(self.scheduler, log_snr)
        if scale is not None:
            z = z * scale.reshape(-1, *(1,) * (z.ndim - 1)).to(z.dtype)
        found = self.model(z, times, **inputs("interop.diffusers.denoiser", self.inputs, cond))
        if hasattr(found, "sample"):
            found = found.sample
        elif isinstance(found, tuple) and found:
            found = found[0]
        learned = _learned.kind(self.scheduler) is not None and found.shape[1] == 2 * z.shape[1]
        return found[:, : z.shape[1]] if learned else found


def _compiles() -> bool:
    import torch

    return torch.compiler.is_compiling()


def denoiser(model: Callable[..., Any], scheduler: Any, **inputs: Any) -> Any:
    """Return a network that a scheduler calls, model(sample, timestep, **inputs), as a denoiser.

    Its input is scaled as by `scheduler.scale_model_input`, and its timesteps (B,) are the scheduler's: those of its steps at
    the levels of a plan read from it, and between them by its table, so that it can be used with any plan of the same scaling.

    Args:
        model: returns a tensor, something that has it as `.sample`, or a tuple that begins with it.
        scheduler: a scheduler of diffusers, which says prediction, scaling and timesteps.
        inputs: what the network gets at every call, such as encoder_hidden_states.

    Returns:
        A denoiser with `prediction` and `scaling`. It takes a third argument, a dict of further inputs, which take the place of
        equal names in `inputs`, so that guidance by two embeddings is one call:
        guidance.classifier_free(denoise, cond={"encoder_hidden_states": text}, null={...}, scale=7.5).

    Raises:
        TypeError, ValueError: as for `plan`.

    >>> import pytest; library = pytest.importorskip("diffusers")
    >>> denoise = denoiser(lambda sample, timestep: 0.1 * sample, library.DDPMScheduler())
    >>> denoise.prediction, denoise.scaling
    ('eps', 'vp')
    """
    _schedulers.prediction(scheduler)
    if hasattr(model, "components") and hasattr(model, "scheduler"):
        must, hint = "be a network, model(sample, timestep)", "give that of the pipeline: pipeline.unet or .transformer"
        raise _check.error(TypeError, "interop.diffusers.denoiser", "model", must, model, hint)
    return _Denoiser(model, scheduler, inputs, _schedulers.table_of(scheduler))


_explained.face(__name__)
