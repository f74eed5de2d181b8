"""What was being checked is named where a backend or a denoiser of one's own raises, or returns something else."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from diffcore import _check
from diffcore.backends import Backend
from diffcore.plan import Plan
from diffcore.testing._arrays import Float64, fail_unless, host


@contextlib.contextmanager
def naming(backend: Backend, method: str, kind: str = "") -> Iterator[None]:
    """Name the method of a backend that is being checked in what is raised: the one that raised, where one did."""
    owner, of = type(backend).__name__, f" in {kind}" if kind else ""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{owner}.{method}{of}: {error}") from error
    except Exception as error:
        raised = _raiser(backend, error)
        did = f"{owner}.{raised} raised" if raised else f"{owner}.{method}, as it was checked, led to"
        what = _check.cut(f"{type(error).__name__}: {error}")
        raise AssertionError(f"{did}{of} {what}; it must be {promise(raised or method)}") from error


def _raiser(backend: Backend, error: Exception) -> str | None:
    """Return which method of a backend was the last to be called before an error, or None."""
    names, trace = [], error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        if frame.f_locals.get("self") is backend and frame.f_code.co_name in vars(Backend):
            names.append(frame.f_code.co_name)
    return names[-1] if names else None


def promise(method: str) -> str:
    """Return what the contract says of a method: how it is called, and its first sentence."""
    function = getattr(Backend, method)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    ]
    sentence = " ".join((inspect.getdoc(function) or "").split()).split(". ")[0].rstrip(".")
    return f"{method}{inspect.Signature(bare)}: {sentence}"


def methods(function: str, names: tuple[str, ...], of: str = "diffcore.exact", **given: Any) -> None:
    """Raise TypeError, with what it lacks, unless an object has the methods of those of a module."""
    ((argument, found),) = given.items()
    missing = [name for name in names if not hasattr(found, name)]
    if missing or isinstance(found, type):
        must = f"have {', '.join(names)}, as those of {of} have"
        hint = "give an instance" if isinstance(found, type) else f"it lacks {', '.join(missing)}"
        raise _check.error(TypeError, function, argument, must, found, hint)


def schedule_of(function: str, schedule: Any) -> None:
    """Raise TypeError unless an object has what a schedule has."""
    methods(function, ("log_snr", "time", "slope", "scaling", "__call__"), "diffcore.schedules", schedule=schedule)


def plan_of(function: str, plan: Any, argument: str = "plan") -> None:
    """Raise TypeError for anything but a plan, such as what makes one."""
    hint = "call it to make the plan" if callable(plan) else ""
    _check.instance(function, argument, plan, Plan, "a Plan, as a sampler returns", hint=hint)


def maker_of(function: str, make_plan: Any, takes: str = "grid") -> None:
    """Raise TypeError for anything but a function that makes plans, such as a plan."""
    what = f"a function of ({takes}) that returns a Plan, such as lambda {takes}: samplers.ddim(schedule, {takes}=...)"
    what = what.replace(f"{takes}=...", ", ".join(f"{name}={name}" for name in takes.split(", ")))
    _check.callable_(function, "make_plan", make_plan, what)


def called(name: str, data: Any, method: str, shape: tuple[int, ...], *given: Any) -> Float64:
    """Return what a method of (z, ...) returns, on the host; raise AssertionError, naming it, where it raises, or the shape is
    another one."""
    what = f"{type(data).__name__}.{method} of z of shape {given[0].shape}"
    try:
        found = host(getattr(data, method)(*given))
    except Exception as error:
        why = _check.cut(f"{type(error).__name__}: {error}")
        raise AssertionError(f"{name}: {what} raised {why}; it must return an array of shape {shape}") from error
    fail_unless(found.shape == shape, name, f"{what} returned shape {found.shape}, but should return {shape}")
    return found
