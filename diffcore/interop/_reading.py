"""A scheduler of diffusers, read: its steps run once on unit vectors, and what they compute is a plan."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from diffcore import levels, predictions
from diffcore.interop import _learned, _schedulers
from diffcore.plan import Float64, Plan
from diffcore.samplers import _trace
from diffcore.samplers._least import responses

SWITCHES = ("clip_sample", "thresholding")
"""What of a scheduler's settings is not linear in x-hat."""

CLEAN = 1e-5
"""What noise is none, beside the data at the end: schedulers keep their levels in float32."""


class Draw(NamedTuple):
    """One of a step's draws of noise.

    Fields:
        weight: its part in the noise of the stage.
        dtype: that it is drawn in, whatever the network returns; None for the network's.
        between: the noise levels between which it is an increment of a Brownian path, where it is one.
    """

    weight: float
    dtype: Any
    between: tuple[float, ...]


class Read(NamedTuple):
    """What a scheduler does from a timestep on.

    Fields:
        plan: its steps. Where x-hat is clipped, "x" is x-hat clipped, and the second estimate, "raw", x-hat itself.
        clips: for each stage what is clipped, as coefficients of z and x-hat; None where nothing is.
        draws: those of each stage, in order.
        second: what each step returns beside the sample, as coefficients of the z before, noise, x-hat and raw x-hat; None
            where that is x-hat, or nothing.
        output: what the steps return where a dictionary is asked for.
        length: how many tensors they return where a tuple is.
    """

    plan: Plan
    clips: tuple[tuple[float, float] | None, ...]
    draws: tuple[tuple[Draw, ...], ...]
    second: tuple[Float64 | None, ...]
    output: type | None
    length: int


def read(
    function: str,
    scheduler: Any,
    timesteps: Iterable[Any] | None = None,
    step: Mapping[str, Any] | None = None,
    *,
    apart: bool = False,
) -> Read:
    """Return what a scheduler does at timesteps, on a copy; by default at all of its own from its `begin_index` on.

    Args:
        function: what messages begin with.
        scheduler: with its timesteps set.
        timesteps: consecutive ones.
        step: further arguments of `scheduler.step`.
        apart: whether "x" is what they clip, their x-hat, which differs from ours by the rounding of their tables, and not
            x-hat clipped; then `clips` has that.

    Raises:
        ValueError: a scheduler that is not linear.
    """
    import torch

    from diffcore.interop._torch import Reading

    if _learned.kind(scheduler) in _learned.LEARNED:
        raise ValueError(
            f"{function}: `scheduler` adds noise whose variance its network predicts, variance_type="
            f"{scheduler.config['variance_type']!r}, which is no number of a plan; read it with variance_type='fixed_small', step "
            f"with interop.diffusers.Scheduler, or sample with objectives.sample_learned_variance"
        )
    scheduler = on_host(scheduler)
    scaling = _schedulers.SCALINGS[_schedulers.kind(scheduler)]
    target = _schedulers.prediction(scheduler)
    clips = any(scheduler.config.get(switch) for switch in SWITCHES)
    calls: list[_Call] = []
    outputs: list[Any] = []  # of the first run, on random numbers; the second, on unit vectors, returns tuples

    def loop(denoise: Callable[..., Any], sample: Any, draw: Callable[[], Any]) -> Any:
        first = not outputs
        calls.clear()

        def drawn(dtype: Any, *between: Any) -> Any:
            calls[-1].draws.append(
                (draw(), None if dtype is torch.float64 else dtype, tuple(float(sigma) for sigma in between))
            )
            return calls[-1].draws[-1][0]

        def clip(value: Any) -> Any:
            z, x, raw, *_ = calls[-1]
            of_z, of_x = torch.linalg.lstsq(torch.cat([z, raw]).T, value.T).solution[:, 0].tolist()
            if not torch.allclose(value, raw, rtol=1e-3, atol=1e-3 * float(z.abs().max())):
                raise ValueError(f"{function}: call {len(calls) - 1} clips something else than x-hat")
            calls[-1] = calls[-1]._replace(clipped=(of_z, of_x))
            return x if apart else of_z * z + of_x * x

        own = copy.deepcopy(scheduler)
        if hasattr(own, "noise_sampler"):
            own.noise_sampler = lambda *between: drawn(None, *between)
        if hasattr(own, "_threshold_sample"):
            own._threshold_sample = clip
        times = own.timesteps[getattr(own, "begin_index", None) or 0 :] if timesteps is None else timesteps
        with Reading(drawn, sample.shape, clip if clips else None):
            call = caller(own, step or {})
            for timestep in times:
                if hasattr(own, "scale_model_input"):
                    own.scale_model_input(sample, timestep)
                log_snr = _schedulers.log_snr(own, timestep)
                estimates = denoise(sample, log_snr)
                x, raw = estimates if clips else (estimates, estimates)
                calls.append(_Call(sample, x, raw, []))
                at = levels.level(torch.tensor([log_snr], dtype=torch.float64), scaling)
                y = predictions.convert(raw, sample, at, source="x", target=target)
                returned = call(y, timestep, sample, first)
                outputs.append(type(returned))
                calls[-1] = calls[-1]._replace(
                    returned=tuple(returned.values() if isinstance(returned, dict) else returned)
                )
                sample = calls[-1].returned[0]
        return sample

    name = type(scheduler).__name__
    found = _trace.read(
        function, loop, scaling, torch.zeros(1), second="raw" if clips else None, name=name, several=False
    )
    found = _with_end(found)
    return Read(
        _clipped(found) if clips else found,
        tuple(call.clipped for call in calls),
        tuple(call.drawn() for call in calls),
        tuple(call.second() for call in calls),
        next((one for one in map(kept, outputs) if one), None),
        len(calls[0].returned),
    )


def finite(scheduler: Any, timesteps: Any, step: Mapping[str, Any]) -> int:
    """Return after how many steps, at least one, what a scheduler returns is not finite; some of theirs end so."""
    import torch

    own, x = copy.deepcopy(on_host(scheduler)), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    if hasattr(own, "noise_sampler"):
        own.noise_sampler = lambda *_: x
    draws = "generator" in inspect.signature(own.step).parameters
    call = caller(own, {"generator": torch.Generator(), **step} if draws else step)
    for k, timestep in enumerate(timesteps):
        if hasattr(own, "scale_model_input"):
            own.scale_model_input(x, timestep)
        x = call(0.1 * x, timestep, x, False)[0]
        if not torch.isfinite(x).all():
            return max(k, 1)
    return len(timesteps)


def kept(output: type) -> type | None:
    """Return the class of an output where it has more than the sample."""
    return output if dataclasses.is_dataclass(output) and len(dataclasses.fields(output)) > 1 else None


def on_host(scheduler: Any) -> Any:
    """Return a copy of a scheduler with its tables on the CPU, and without variances that it leaves unused."""
    import torch

    found = _learned.fixed(scheduler) if _learned.kind(scheduler) == "unused" else copy.copy(scheduler)
    for name, value in vars(found).items():
        if isinstance(value, torch.Tensor):
            setattr(found, name, value.cpu())
    return found


class _Call(NamedTuple):
    """A step in the run on unit vectors: (1, D) each."""

    z: Any
    x: Any
    raw: Any
    draws: list[tuple[Any, Any, tuple[float, ...]]]
    returned: tuple[Any, ...] = ()
    clipped: tuple[float, float] | None = None

    def drawn(self) -> tuple[Draw, ...]:
        weights = np.array([float((self.returned[0] * noise).sum()) for noise, *_ in self.draws])
        if len(weights) == 1:
            weights = np.ones(1)  # which may be read by a later step alone
        size = np.sqrt(np.sum(weights**2)) or 1.0
        return tuple(
            Draw(float(weight / size), dtype, between)
            for weight, (_, dtype, between) in zip(weights, self.draws, strict=True)
        )

    def second(self) -> Float64 | None:
        if len(self.returned) < 2:
            return None
        found = self.returned[1].numpy()[0]
        if np.allclose(found, self.x.numpy()[0], rtol=0.0, atol=1e-5 * max(np.abs(found).max(), 1.0)):
            return None
        noise = sum(noise * drawn.weight for drawn, (noise, *_) in zip(self.drawn(), self.draws, strict=True))
        parts = [self.z, noise if self.draws else self.z * 0.0, self.x, self.raw]
        basis = np.stack([part.numpy()[0] for part in parts])
        solved = np.linalg.lstsq(basis.T, found, rcond=None)[0]
        return np.asarray(np.where(np.abs(solved) < 1e-12, 0.0, solved))


def _clipped(plan: Plan) -> Plan:
    """Return the plan of a scheduler that clips without the column that it does not read, if there is one."""
    x, raw = (not np.any(plan.update[..., column]) for column in (plan.form.x, plan.form.x + 1))
    if not (x or raw):
        return plan
    update = np.delete(plan.update, plan.form.x if x else plan.form.x + 1, axis=-1)
    return replace(plan, update=update, second=None)


def caller(scheduler: Any, settings: Mapping[str, Any]) -> Callable[[Any, Any, Any, bool], Any]:
    """Return (output, timestep, sample, return_dict) -> what a step returns, with what some leave to their pipelines."""
    takes = inspect.signature(scheduler.step).parameters
    old: Any = (None, None)  # x-hat and timestep of the call before

    def call(output: Any, timestep: Any, sample: Any, return_dict: bool) -> Any:
        nonlocal old
        more = dict(settings)
        if "prev_timestep" in takes and "prev_timestep" not in more:  # UnCLIP's: the one that follows
            more["prev_timestep"] = next(iter(scheduler.timesteps[scheduler.timesteps < timestep]), None)
        if "timestep_back" in takes:  # CogVideoX's multistep method
            more |= {"old_pred_original_sample": old[0], "timestep_back": old[1]}
        found = scheduler.step(output, timestep=timestep, sample=sample, return_dict=return_dict, **more)
        old = list(found.values() if isinstance(found, dict) else found)[-1], timestep
        return found

    return call


def _with_end(plan: Plan) -> Plan:
    """Return the plan with the level at its end: that which its last state has if x-hat is right at every stage."""
    last, inputs = responses(plan.update)[-1], 2 + (plan.second is not None)
    start = plan.start
    signal = last[0] * start.alpha + sum(last[column::inputs].sum() for column in range(2, 1 + inputs))
    noise = math.hypot(float(last[0] * start.sigma), *last[1::inputs])
    end = math.inf if noise < CLEAN * abs(signal) else 2.0 * math.log(abs(signal) / noise)
    after = np.append(plan.next_log_snr[:-1], end)
    return replace(plan, next_log_snr=after)
