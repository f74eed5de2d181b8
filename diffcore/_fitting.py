"""What is checked before a run of a plan begins: its arguments, the state that it goes on from, and whether the denoiser fits."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from diffcore import _array, _check, _wrapping
from diffcore._array import Array
from diffcore.plan import Float64, Plan, marks
from diffcore.stage import Draw, Source
from diffcore.state import State


def check_given(function: str, plan: object, noise: object = None, **given: object) -> Source | None:
    """Raise TypeError for a wrong plan or an argument that cannot be called; return the source of noise."""
    hint = f"by name it is samplers.make({_check.shown(plan)}, schedule, steps)" if isinstance(plan, str) else ""
    _check.instance(function, "plan", plan, Plan, "a diffcore.Plan, see diffcore.samplers", hint=hint)
    for argument, value in {"noise": noise, **given}.items():
        if not callable(value) and (value is not None or argument == "denoise"):
            takes = {"denoise": "(z, log_snr) -> y", "noise": "(draw, shape) -> eps", "transform_x": "x -> x"}
            hint = "give it as `constraint=`" if hasattr(value, "hold") else ""
            _check.callable_(function, argument, value, f"a function {takes.get(argument, '(state)')}", hint=hint)
    return None if noise is None else noise if isinstance(noise, Source) else Source(cast(Draw, noise))


def refuse_unread(function: str, z: object, like: object, seed: object, source: object) -> None:
    """Raise ValueError for what a run would not read: a seed beside a state, which has keys, or beside a source of noise; `like`
    beside z, which has a library, dtype and device."""
    if seed is not None and isinstance(z, State):
        hint = "or replace them: state._replace(keys=...)"
        raise _check.error(ValueError, function, "seed", "be left out for a State, which has its own keys", seed, hint)
    if seed is not None and source is not None:
        hint = "`noise` makes all draws; give it the seed itself, as noise=dc.noise.native(seed)"
        raise _check.error(ValueError, function, "seed", "be left out beside `noise`", seed, hint)
    if like is not None and z is not None:
        must = "be left out beside `z`, whose library, dtype and device a run has"
        raise _check.error(ValueError, function, "like", must, like, "convert z itself")


def check_place(function: str, plan: Plan, state: State, at: int) -> None:
    """Raise ValueError for a state that does not fit the stage of the plan that it is at."""
    if at >= len(plan.noisy):
        must = f"be at one of the {len(plan)} stages of {plan.sampler}"
        raise _check.error(ValueError, function, "state", must, at, "the run is over; begin another with `start`")
    if len(state.memory) != plan.form.memory:
        must = f"have the number of arrays that {plan.sampler} keeps in memory, {plan.memory}"
        hint = "it belongs to another plan; begin with `start(plan, ...)`"
        raise _check.error(ValueError, function, "state", must, len(state.memory), hint)
    through = went_through(plan, state, at)
    if through:
        return
    moved = through is False or ((draw := _array.known_int(state.draw)) is not None and draw <= at)
    if through is False and not any(marks.same(int(state.mark), other) for other in plan.marks):
        raise ValueError(
            f"{function}: `state` must have gone through the stages of {plan.sampler} before stage {at}, got one that went "
            f"through others: it belongs to another plan; to change plans, begin one at the state's level with "
            f"`start(plan, state)`"
        )
    if moved and plan.needs_memory[at]:
        raise ValueError(
            f"{function}: `state` was moved to stage {at} by hand, but {plan.sampler} needs the memory of the stages before; "
            f"run those, or make a plan for the remaining levels"
        )


def seen(function: str, array: Array | None) -> Float64:
    """Return an array on the host, for a driver that reads one after every step; raise where it is traced, or None stands for what
    is."""
    error: Exception | None = None
    try:
        if array is not None:
            return _array.to_host(array, np.float64)
    except TypeError as found:
        error = found
    raise TypeError(
        f"{function}: a run must not be traced, as by jax.jit, jax.vmap or torch.func.vmap, since how it goes on is decided on the "
        f"host; call it outside and put the denoiser alone in jax.jit, or take diffcore.sample"
    ) from error


def went_through(plan: Plan, state: State, at: int) -> bool | None:
    """Return whether a state went through the stages of a plan before stage `at`, or None where that is not known."""
    mark = _array.known_int(state.mark)
    if mark is None or mark < 0:
        return None
    return at == 0 or mark == plan.marks[at] or marks.same(mark, plan.marks[at])


def mark_after(plan: Plan, state: State) -> Array:
    """Return the mark of a state after a stage whose number is traced: that of the plan; or, where `check_place` would refuse the
    state, the one that it has, so that the next step that is not traced refuses it."""
    index, xp = state.index, _array.library(state.index)

    def put(values: Any) -> Array:
        return xp.asarray(values, device=_array.device(index))

    mark = put(state.mark)
    known, needs = put(np.array(plan.marks, np.int32)), put(np.array(plan.needs_memory))
    off = xp.abs(known - mark)
    near = xp.minimum(off, marks.MANY - off) <= marks.NEAR
    here, needed = _array.take_row(near, index, index), _array.take_row(needs, index, index)
    whole = xp.where(mark < 0, state.draw > index, here | (index == 0))
    fits = whole | (~needed & ((mark < 0) | xp.any(near)))
    return xp.astype(xp.where(fits, _array.take_row(known, index + 1, index), mark), mark.dtype)


def check_resumed(plan: Plan, state: State, source: object, held: bool) -> None:
    """Raise for a state that a run of the plan cannot go on from."""
    _array.check_floating("sample", state=state.z)
    at = _array.known_int(state.index)
    if at is not None and at < len(plan):
        check_place("sample", plan, state, at)
    if state.keys is None and source is None and (plan.stochastic or held):
        raise _check.error(ValueError, "sample", "state", "have keys", None, "give `noise`, or start with `seed`")


def memoryless(function: str, denoise: Any, plan: Plan) -> Any:
    """Return what `fitting` does; raise for a denoiser that carries something from stage to stage as well."""
    denoise = fitting(function, denoise, plan)
    if hasattr(denoise, "carrying"):
        must, hint = "depend on z and the level alone, not on the calls before", "use diffcore.sample"
        raise _check.error(TypeError, function, "denoise", must, denoise, hint)
    return denoise


def fitting(function: str, denoise: Any, plan: Plan) -> Any:
    """Return the denoiser for the scaling of the plan; raise where it is for another, or lacks what the plan reads."""
    if plan.second == "unguided" and not hasattr(denoise, "with_unguided"):
        must = "be guidance.classifier_free(...), or have a method with_unguided(z, log_snr)"
        hint = f"{plan.sampler} reads the prediction without guidance"
        raise _check.error(TypeError, function, "denoise", must, denoise, hint)
    scaling = _wrapping.own_scaling(denoise)
    if scaling is not None and scaling != plan.scaling:
        hint = f"make the plan from a schedule of scaling {scaling!r}"
        if hasattr(denoise, "with_scaling"):
            hint += f", or use denoise.with_scaling({plan.scaling!r})"
        raise _check.error(
            ValueError, function, "denoise", f"have the scaling of `plan`, {plan.scaling!r}", scaling, hint
        )
    return _wrapping.scaled(denoise, plan.scaling, function)
