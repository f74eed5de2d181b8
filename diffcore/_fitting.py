"""What is checked before a run of a plan begins: its arguments, the state that it goes on from, and whether the denoiser fits."""

from __future__ import annotations

from typing import Any, cast

from diffcore import _array, _check, _wrapping
from diffcore.plan import Plan, marks
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


def refuse_seed(function: str, seed: object) -> None:
    """Raise ValueError for a seed beside a state, which has keys of its own."""
    if seed is not None:
        hint = "or replace them: state._replace(keys=...)"
        raise _check.error(ValueError, function, "seed", "be left out for a State, which has its own keys", seed, hint)


def check_place(function: str, plan: Plan, state: State, at: int) -> None:
    """Raise ValueError for a state that does not fit the stage of the plan that it is at."""
    if at >= len(plan):
        must = f"be at one of the {len(plan)} stages of {plan.sampler}"
        raise _check.error(ValueError, function, "state", must, at, "the run is over; begin another with `start`")
    if len(state.memory) != plan.memory:
        must = f"have the number of arrays that {plan.sampler} keeps in memory, {plan.memory}"
        hint = "it belongs to another plan; begin with `start(plan, ...)`"
        raise _check.error(ValueError, function, "state", must, len(state.memory), hint)
    through, draw = went_through(plan, state, at), _array.known_int(state.draw)
    moved = draw is not None and draw <= at if through is None else not through
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


def went_through(plan: Plan, state: State, at: int) -> bool | None:
    """Return whether a state went through the stages of a plan before stage `at`, or None where that is not known."""
    mark = _array.known_int(state.mark)
    return None if mark is None or mark < 0 else at == 0 or marks.same(mark, plan.marks[at])


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
