r"""The density of what a stochastic plan draws, stage by stage: log p(z' | z), for policy gradients.

A stage sets z' = mean + s eps, where mean is linear in the state, the memory and x-hat, and s is the plan's coefficient of noise:

    log p(z' | z, m) = -(1/2) sum [ ((z' - mean) / s)^2 + log(2 pi s^2) ]

Source: Black et al. 2024 (arXiv 2305.13301), sec. 4.3; Liu et al. 2025 (arXiv 2505.05470), sec. 4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from diffcore import _array, _check, _fitting, _layout, predictions, stage
from diffcore._array import Array
from diffcore._unwritten import called
from diffcore.likelihood._decoder import total
from diffcore.plan import Plan
from diffcore.predictions import Prediction
from diffcore.state import State


def transition(
    plan: Plan,
    before: State,
    after: State | Array,
    y: Array,
    *,
    prediction: Prediction,
    transform_x: Callable[[Array], Array] | None = None,
) -> Array:
    r"""Return log p(z' | z) of one stochastic stage of a plan, in nats, given what the denoiser predicts at z.

    Args:
        plan: the plan of the run.
        before: the state before the stage, from `start` or `step`.
        after: the state after it, or z' alone, an array (B, ...).
        y: the prediction for before.z, which may carry gradients: they reach the result.
        prediction: what `y` is: "x", "eps", "v", "score", "flow", "edm" or a row function.
        transform_x: as in the run.

    Returns:
        An array (B,), at least float32. Elements to which the stage adds no noise, such as frames that wait, count 0.

    Raises:
        ValueError: the stage adds no noise, so that z' has no density; a state of another plan, or at its end; shapes that differ.
        TypeError: `before` is not a state; mixed libraries.

    Source: Black et al. 2024 (arXiv 2305.13301), sec. 4.3.

    >>> import diffcore as dc, numpy as np
    >>> plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=4)
    >>> before = dc.start(plan, shape=(2, 3), seed=7)
    >>> after = dc.step(plan, before, 0.5 * before.z, prediction="v")
    >>> dc.likelihood.transition(plan, before, after, 0.5 * before.z, prediction="v").shape
    (2,)
    """
    function = "likelihood.transition"
    _fitting.check_given(function, plan, transform_x=transform_x)
    _check.instance(function, "before", before, State, "a diffcore.State, from diffcore.start")
    to = after.z if isinstance(after, State) else after
    _array.namespace(function, before=before.z, after=to, y=y)
    if _array.library(to) is None:
        raise _check.error(TypeError, function, "after", "be a diffcore.State, or z' of one, an array (B, ...)", to)
    _check.equal_shapes(function, before=before.z, after=to)
    stage.check_prediction(y, before.z)
    _refuse_second(function, plan)
    k = _array.known_int(before.index)
    if k is not None:
        _fitting.check_place(function, plan, before, k)
        if not plan.noisy[k]:
            must = f"be at a stage that adds noise; stage {k} of {plan.sampler} is deterministic, and z' has no density"
            hint = (
                "leave it out of the sum, as `likelihood.trajectory` does, or use a plan with noise, such as ancestral"
            )
            raise _check.error(ValueError, function, "before", must, k, hint)
    table = plan.coefficients(prediction)
    if k is None:
        row: Any = _array.take_row(_array.table_for(table, before.z), before.index, before.z)
    else:
        row = stage.row_of(table, k, before.z)
    return _drawn(plan, before, y, row, to, transform_x).log_prob


def trajectory(
    denoise: Callable[[Array, Array], Array],
    plan: Plan,
    states: Sequence[State | Array],
    *,
    prediction: Prediction | None = None,
    transform_x: Callable[[Array], Array] | None = None,
) -> Array:
    r"""Return log p(z' | z) of every stage of a recorded run that adds noise: their sum is log p of the run given its start.

    The denoiser is called again, with gradients. All that follows from its calls follows here too: the memory of multistep plans
    and the states after stages without noise are computed anew, and only what noise was added to is taken from the record. So the
    gradient is that of log p of the run, for every plan.

    Args:
        denoise: any callable (z, log_snr) -> prediction.
        plan: the stochastic plan of the run, one estimate a stage.
        states: the N + 1 states of the run from its start on, or their z, (B, ...); fewer for its first stages.
        prediction: what the denoiser returns; may be left out where it has an attribute `prediction`.
        transform_x: as in the run.

    Returns:
        An array (S, B), S the number of stages with noise among those recorded, at least float32. What follows the last of them,
        such as the step to clean data, has no density and takes no call.

    Raises:
        ValueError: no stage with noise; states of more than the plan's stages or less than one, without the start, or of another
            plan; and as `transition`.
        TypeError: mixed libraries; `prediction` is missing.

    Source: Black et al. 2024 (arXiv 2305.13301), sec. 4.3; for one stage `transition`.

    >>> import diffcore as dc, numpy as np
    >>> plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=4)
    >>> states = [dc.start(plan, shape=(2, 3), seed=7)]
    >>> for _ in range(len(plan)):
    ...     states.append(dc.step(plan, states[-1], 0.5 * states[-1].z, prediction="v"))
    >>> dc.likelihood.trajectory(lambda z, log_snr: 0.5 * z, plan, states, prediction="v").shape
    (3, 2)
    """
    function = "likelihood.trajectory"
    _fitting.check_given(function, plan, denoise=denoise, transform_x=transform_x)
    _refuse_second(function, plan)
    denoise = _fitting.fitting(function, denoise, plan)
    prediction = predictions.kind_of(function, denoise, prediction)
    if not isinstance(states, list | tuple):
        raise _check.error(TypeError, function, "states", "be a list of states, or of their z", states)
    found = [state.z if isinstance(state, State) else state for state in states]
    if not 2 <= len(found) <= len(plan) + 1:
        must = f"be the states of at least one of the {len(plan)} stages of {plan.sampler}, and the start"
        raise _check.error(ValueError, function, "states", must, len(found))
    _array.namespace(function, **{f"states[{k}]": z for k, z in enumerate(found)})
    found = [_array.placed_as(z, found[0]) for z in found]  # on a mesh of JAX a callback got them on its first device
    for z in found:
        number = _array.library(z) is None
        if number or tuple(z.shape) != tuple(found[0].shape):
            kind = TypeError if number else ValueError
            raise _check.error(kind, function, "states", "be states, or arrays (B, ...), of one shape", z)
    noisy = [k for k in range(len(found) - 1) if plan.noisy[k]]
    if not noisy:
        hint = "use a plan with noise, such as samplers.ancestral or samplers.flow_grpo"
        raise _check.error(ValueError, function, "plan", "add noise in a stage that is recorded", plan, hint)
    for k, given in enumerate(states):
        at = k if not isinstance(given, State) else _array.known_int(given.index)
        if at not in (k, None):
            hint = "they begin with the start of the run, from `start`, which a callback does not get"
            raise _check.error(ValueError, function, f"states[{k}]", f"be at stage {k} of the run", at, hint)
        if isinstance(given, State) and _fitting.went_through(plan, given, k) is False:
            raise ValueError(
                f"{function}: `states[{k}]` went through other stages than those of {plan.sampler}; give its plan"
            )
    xp, start = _array.library(found[0]), found[0]
    state = State(start, tuple(xp.zeros_like(start) for _ in range(plan.memory)), None, 0, 0, None)
    run = stage.Run(denoise, plan, plan.coefficients(prediction))
    rows, turns = stage.rows_of(run.coefficients, start), stage.turns(run, 0, stage.levels_of(run, start))
    each = []
    for k, call, levels, _ in itertools.islice(turns, noisy[-1] + 1):
        y = called(call, state.z, *levels, function=function)
        stage.check_prediction(y, state.z)
        drawn = _drawn(plan, state, y, rows[k], found[k + 1] if plan.noisy[k] else None, transform_x)
        state = drawn.after
        if plan.noisy[k]:
            each.append(drawn.log_prob)
    return xp.stack(each)


class _Drawn(NamedTuple):
    """A stage that drew what is known: its density, and the state after it."""

    log_prob: Array
    after: State


def _drawn(plan: Plan, before: State, y: Array, row: Any, to: Array | None, transform_x: Any) -> _Drawn:
    """Return log p(to | before) and the state after the stage; `to` is None for a stage without noise."""
    function, form = "likelihood", plan.form
    xp, z = _array.library(before.z), before.z
    x = stage.transformed(stage.estimate(z, y, row), z, transform_x)
    wide = before._replace(z=_array.widen(xp, z), memory=tuple(_array.widen(xp, part) for part in before.memory))
    second = stage.estimate(z, y, row) if form.second == "raw" else None
    mean = stage.update(form, wide, x, row, None, second)
    if to is None:
        return _Drawn(mean.z, mean)
    s = stage.columns_of(row)[2 + form.noise]
    deviation = _layout.beside(xp.asarray(_array.along(function, "plan", s, mean.z, xp), dtype=mean.z.dtype), z)
    deviation = xp.broadcast_to(deviation, z.shape)
    has = deviation != 0.0
    safe = xp.where(has, deviation, xp.ones_like(deviation))
    eps = (_array.widen(xp, to) - mean.z) / safe
    each = xp.where(has, -0.5 * (eps**2 + math.log(2.0 * math.pi)) - xp.log(xp.abs(safe)), xp.zeros_like(eps))
    log_prob = total(xp, each)
    eps = xp.where(has, eps, xp.zeros_like(eps))
    after = stage.update(form, wide, x, row, eps, second)
    exact = xp.where(has, _array.widen(xp, to), mean.z)  # without the rounding of eps, and without a gradient
    dtype = z.dtype
    memory = tuple(xp.astype(part, dtype, copy=False) for part in after.memory)
    return _Drawn(log_prob, after._replace(z=xp.astype(exact, dtype, copy=False), memory=memory))


def _refuse_second(function: str, plan: Plan) -> None:
    if plan.second == "unguided" or plan.ahead:
        must = "read the estimate of one level alone"
        raise _check.error(ValueError, function, "plan", must, plan, "use ancestral, flow_grpo or another such plan")
