"""One step of a scheduler of diffusers, read alone: on unit vectors for the sample, the network's output and noise."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from diffcore.interop import _schedulers
from diffcore.interop._reading import SWITCHES, Draw, caller, kept, on_host
from diffcore.plan import Float64
from diffcore.samplers import _trace


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
    function: str,
    scheduler: Any,
    timestep: Any,
    step: Mapping[str, Any],
    output: tuple[Any, int] | None = None,
    variance: float | None = None,
) -> Alone | None:
    """Return what a single step does, or None where the scheduler remembers something of it for the next one.

    Args:
        function: what messages begin with.
        scheduler: as it is before the step.
        timestep: of the step.
        step: further arguments of `scheduler.step`.
        output: `output` and `length`, where they are known.
        variance: what the other half of the network's output is everywhere; None where it has none.

    Raises:
        ValueError: a step that is not linear.
    """
    import torch

    from diffcore.interop._torch import Reading

    units = 3 + DRAWS
    numbers = np.random.default_rng(0).normal(size=(units, units + len(SIZES)))
    numbers[:, :units], numbers[:, units:] = np.eye(units), numbers[:, units:] * SIZES
    z, y, x, *noises = (torch.tensor(row)[None] for row in numbers)
    y = y if variance is None else torch.cat([y, torch.full_like(y, variance)], dim=1)
    name, clipped, drawn = type(scheduler).__name__, [], []

    def draw(dtype: Any, *between: Any) -> Any:
        drawn.append(Draw(1.0, dtype, tuple(float(sigma) for sigma in between)))
        if len(drawn) > DRAWS:
            raise ValueError(f"{function}: a step of {name} draws noise more than {DRAWS} times")
        return noises[len(drawn) - 1]

    def clip(value: Any) -> Any:
        clipped.append(value)
        return x

    host, outputs = on_host(scheduler), []
    for as_dict in (False, True) if output is None else (False,):
        own = copy.deepcopy(host)
        if hasattr(own, "noise_sampler"):
            own.noise_sampler = lambda *between: draw(None, *between)
        if hasattr(own, "_threshold_sample"):
            own._threshold_sample = clip
        drawn.clear()
        clipped.clear()
        with Reading(draw, z.shape, clip if any(own.config.get(switch) for switch in SWITCHES) else None):
            if hasattr(own, "scale_model_input"):
                own.scale_model_input(z, timestep)
            log_snr = _schedulers.log_snr(own, timestep)
            outputs.append(caller(own, step)(y, timestep, z, as_dict))
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
    form, length = output or (kept(type(outputs[1])), len(found))
    return Alone(
        merged[0],
        merged[1] if len(found) > 1 else None,
        merged[-1] if clipped else None,
        tuple(one._replace(weight=float(weight) / size) for one, weight in zip(drawn, weights, strict=False)),
        log_snr,
        form,
        length,
    )


def _remembers(scheduler: Any, shape: Any) -> bool:
    """Return whether a scheduler holds tensors of a shape, or takes its memory from its caller."""
    held = [part for value in vars(scheduler).values() for part in (value if isinstance(value, list) else [value])]
    kept = any(getattr(part, "shape", None) == shape for part in held)
    return kept or "timestep_back" in inspect.signature(scheduler.step).parameters
