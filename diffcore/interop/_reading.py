"""A scheduler of diffusers, read: its steps run once on unit vectors, and what they compute is a plan."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from diffcore import levels, predictions
from diffcore.interop import _schedulers
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

    scheduler = _on_host(scheduler)

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
            call = _caller(own, step or {})
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
    found = _trace.read(function, loop, scaling, torch.zeros(1), second="raw" if clips else None, name=name)
    found = _with_end(found)
    return Read(
        _clipped(found) if clips else found,
        tuple(call.clipped for call in calls),
        tuple(call.drawn() for call in calls),
        tuple(call.second() for call in calls),
        next((output for output in outputs if issubclass(output, dict)), None),
        len(calls[0].returned),
    )


class Alone(NamedTuple):
    """One step, as coefficients of (z, the network's output, what is clipped, noise).

    Fields:
        after: of the sample that it returns.
        second: of what it returns beside that; None where there is nothing.
        clipped: of what is clipped; None where nothing is.
        draws: of noise.
        log_snr: of the call.
        output, length: as for `Read`.
    """

    after: Float64
    second: Float64 | None
    clipped: Float64 | None
    draws: tuple[Draw, ...]
    log_snr: float
    output: type | None
    length: int


SIZES = (1.0, -1e-3, 30.0, -1e4)
"""Sizes of the random numbers on which a step must do what it did on unit vectors."""

DRAWS = 3
"""How many times a step may draw noise."""


def alone(
    function: str, scheduler: Any, timestep: Any, step: Mapping[str, Any], output: tuple[Any, int] | None = None
) -> Alone | None:
    """Return what a single step does, or None where the scheduler remembers something of it for the next one.

    Args:
        function: what messages begin with.
        scheduler: as it is before the step.
        timestep: of the step.
        step: further arguments of `scheduler.step`.
        output: `output` and `length`, where they are known.

    Raises:
        ValueError: a step that is not linear.
    """
    import torch

    from diffcore.interop._torch import Reading

    units = 3 + DRAWS
    numbers = np.random.default_rng(0).normal(size=(units, units + len(SIZES)))
    numbers[:, :units], numbers[:, units:] = np.eye(units), numbers[:, units:] * SIZES
    z, y, x, *noises = (torch.tensor(row)[None] for row in numbers)
    name, clipped, drawn = type(scheduler).__name__, [], []

    def draw(dtype: Any, *between: Any) -> Any:
        drawn.append(Draw(1.0, dtype, tuple(float(sigma) for sigma in between)))
        if len(drawn) > DRAWS:
            raise ValueError(f"{function}: a step of {name} draws noise more than {DRAWS} times")
        return noises[len(drawn) - 1]

    def clip(value: Any) -> Any:
        clipped.append(value)
        return x

    host, outputs = _on_host(scheduler), []
    for as_dict in (False, True) if output is None else (False,):
        own = copy.deepcopy(host)
        if hasattr(own, "noise_sampler"):
            own.noise_sampler = lambda *between: draw(None, *between)
        if hasattr(own, "_threshold_sample"):
            own._threshold_sample = clip
        drawn.clear(), clipped.clear()
        with Reading(draw, z.shape, clip if any(own.config.get(switch) for switch in SWITCHES) else None):
            if hasattr(own, "scale_model_input"):
                own.scale_model_input(z, timestep)
            log_snr = _schedulers.log_snr(own, timestep)
            outputs.append(_caller(own, step)(y, timestep, z, as_dict))
        if _remembers(own, z.shape):
            return None
    found = outputs[0]
    rows = [part.numpy()[0] for part in (*found[:2], *clipped[:1])]
    for row in rows:
        off, bound = np.abs(row[:units] @ numbers - row), _trace.LINEAR * (np.abs(row[:units]) @ np.abs(numbers))
        if not np.all(off <= bound):
            raise ValueError(
                f"{function}: a step of {name} is not linear in the sample, the network's output and noise"
            )
    weights = rows[0][3:units]
    size = float(np.sqrt(np.sum(weights**2))) or 1.0
    size = float(weights[0]) or 1.0 if len(drawn) == 1 else size
    merged = [np.append(row[:3], (row[3:units] @ weights) / size if np.any(weights) else 0.0) for row in rows]
    merged[0][3] = size if np.any(weights) else 0.0
    kept, length = output or (type(outputs[1]) if isinstance(outputs[1], dict) else None, len(found))
    return Alone(
        merged[0],
        merged[1] if len(found) > 1 else None,
        merged[-1] if clipped else None,
        tuple(one._replace(weight=float(weight) / size) for one, weight in zip(drawn, weights, strict=False)),
        log_snr,
        kept,
        length,
    )


def _remembers(scheduler: Any, shape: Any) -> bool:
    """Return whether a scheduler holds tensors of a shape, or takes its memory from its caller."""
    held = [part for value in vars(scheduler).values() for part in (value if isinstance(value, list) else [value])]
    kept = any(getattr(part, "shape", None) == shape for part in held)
    return kept or "timestep_back" in inspect.signature(scheduler.step).parameters


def _on_host(scheduler: Any) -> Any:
    """Return a copy of a scheduler with its tables on the CPU."""
    import torch

    found = copy.copy(scheduler)
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


def _caller(scheduler: Any, settings: Mapping[str, Any]) -> Callable[[Any, Any, Any, bool], Any]:
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
