"""What wrappers of a denoiser share: its attributes, its scaling, and the kinds of prediction between which they go.

At one z all kinds are affine maps of one another, s = p z + q y. A change of s by delta is one of y by delta / q. Neither p nor
1 / q is finite at every level: where y does not determine s (x from eps at alpha = 0), or s cannot change y, it stays as it is.
"""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np

from diffcore import _array, _check, _layout, levels, predictions
from diffcore._array import Array
from diffcore.levels import Level
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule
from diffcore.schedules._base import scaling_of


class Staged:
    """A base of wrappers that are dataclasses with a field `denoise`, which may be another one at each stage."""

    denoise: Any

    def at(self, log_snr: Any) -> Self:
        """Return the denoiser for a stage whose log-SNR is known on the host."""
        return replace(self, denoise=self.denoise.at(log_snr)) if hasattr(self.denoise, "at") else self  # type: ignore[type-var]


class Scaled:
    """A base of wrappers that are dataclasses with fields `denoise` and `scaling`: both are for another scaling together."""

    denoise: Any
    scaling: str | None

    def with_scaling(self, scaling: str) -> Self:
        """Return the same denoiser for "vp", "ve" or "flow"; `diffcore.sample` calls it if no schedule was given."""
        levels.check_scaling(type(self).__name__, scaling)
        return replace(self, denoise=scaled(self.denoise, scaling), scaling=scaling)  # type: ignore[type-var]


class Forwarding:
    """A base of wrappers that are dataclasses with a field `denoise`, whose attributes they have."""

    denoise: Any

    def __getattr__(self, name: str) -> Any:
        if name in ("prediction", "scaling", "schedule", "with_scaling") and "denoise" in self.__dict__:
            inner = self.__dict__["denoise"]  # which a copy that is being made lacks
            if name != "with_scaling":
                return getattr(inner, name)
            if hasattr(inner, name):
                return lambda scaling: replace(self, denoise=inner.with_scaling(scaling))  # type: ignore[type-var]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class Mixing(NamedTuple):
    """s = p z + q y and dy/ds, lined up with the data; 0 where they are not finite."""

    p: Any
    q: Any
    back: Any

    def into(self, z: Array, y: Array) -> Array:
        """Return s."""
        return self.p * z + self.q * y


def level_of(function: str, log_snr: Array, scaling: str | None) -> Level:
    """Return the level at a log-SNR; raise where the scaling is not known."""
    if scaling is None:
        raise ValueError(
            f"{function}: the scaling is not known; give `schedule`, or call it through diffcore.sample, which uses the plan's"
        )
    return levels.level(log_snr, scaling)


def mixing(function: str, level: Level, source: Prediction, target: Prediction, z: Array) -> Mixing:
    """Return how a prediction of one kind becomes one of another at a level, for data like z."""
    xp = _array.namespace(function, log_snr=level.log_snr)
    level = Level(*(_array.as_array(xp, part) for part in level))
    rows = [predictions.row_function(function, "prediction", kind) for kind in (source, target)]
    with _array.quiet(xp):
        p, q = predictions.solve(xp, level, *rows)
        back = predictions.solve(xp, level, *rows[::-1]).from_y
        zero, finite = xp.zeros_like(p), xp.isfinite(p) & xp.isfinite(q)
        solved = (xp.where(finite, p, zero), xp.where(finite, q, zero), xp.where(xp.isfinite(back), back, zero))
    return Mixing(*(along(function, _array.scalar(part), z) for part in solved))


def along(function: str, value: Any, data: Array) -> Any:
    """Return what belongs to a level, of any library, as a float or lined up with the data."""
    xp = _array.library(data)
    if isinstance(value, np.ndarray):
        value = _layout.beside(xp.asarray(value, dtype=data.dtype, device=_array.device(data)), data)
    return _array.along(function, "log_snr", value, data, xp)


def own_scaling(denoise: Any) -> str | None:
    """Return the scaling that a denoiser says it is for, itself or by its schedule."""
    return getattr(denoise, "scaling", None) or getattr(getattr(denoise, "schedule", None), "scaling", None)


def given(
    function: str, denoise: Any, prediction: Prediction | None, schedule: Schedule | None
) -> tuple[Any, Prediction, str | None]:
    """Return what wrappers are given, checked: the denoiser, for the scaling of a schedule, its kind of prediction, its scaling."""
    _check.callable_(function, "denoise", denoise, "a function of (z, log_snr)")
    kind, scaling = predictions.kind_of(function, denoise, prediction), scaling_given(function, denoise, schedule)
    return denoise if schedule is None else scaled(denoise, schedule.scaling), kind, scaling


def scaling_given(function: str, denoise: Any, schedule: Schedule | None) -> str | None:
    """Return the scaling of a denoiser or a schedule, which must agree; None where neither says."""
    own = own_scaling(denoise)
    if schedule is None:
        return own
    scaling = scaling_of(function, "schedule", schedule)
    if own is not None and own != scaling:
        raise ValueError(f"{function}: `schedule` must have the denoiser's scaling, {own!r}, got {scaling!r}")
    return scaling


def scaled(model: Any, scaling: str, function: str = "with_scaling", name: str = "denoise") -> Any:
    """Return a denoiser for a scaling: by its `with_scaling` where it has none of its own, or else with its `parts` for it.

    Raise ValueError where it, or one of its parts, is for another scaling. A wrapper that says its own answers for its parts.
    """
    if isinstance(value := model, (tuple, list)):
        made = [scaled(part, scaling, function, f"{name}[{at}]") for at, part in enumerate(value)]
        if all(new is old for new, old in zip(made, value, strict=True)):
            return value
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    if type(value) is dict:
        found = {key: scaled(part, scaling, function, f"{name}[{key!r}]") for key, part in value.items()}
        return value if all(found[key] is value[key] for key in value) else found
    whole = has_parts(value)
    _check_parts(function, value, whole)
    if isinstance(value, (type, Schedule)) or not (whole or callable(value)):
        return value
    own = own_scaling(value)
    if own is None and hasattr(value, "with_scaling"):
        return value.with_scaling(scaling)
    if isinstance(own, str) and own != scaling:
        hint = f"make the plan from a schedule of scaling {own!r}; a wrapper that converts has a `scaling` of its own"
        raise _check.error(ValueError, function, name, f"have the scaling {scaling!r}", own, hint)
    if not whole or (own is not None and _says_scaling(value)):
        return value
    parts = {part: getattr(value, part) for part in type(value).parts}
    fitted = {part: scaled(old, scaling, function, f"{name}.{part}") for part, old in parts.items()}
    changed = {part: new for part, new in fitted.items() if new is not parts[part]}
    return _rebuilt(value, changed) if changed else value


def has_parts(value: Any) -> bool:
    """Return whether a value is a wrapper, a constraint or a transform that names its parts, see `diffcore.denoiser`."""
    return (
        is_dataclass(value) and not isinstance(value, type) and isinstance(getattr(type(value), "parts", None), tuple)
    )


def _check_parts(function: str, value: Any, whole: bool) -> None:
    """Raise TypeError for a wrapper whose `parts` name no fields, or are no tuple of names."""
    given = getattr(type(value), "parts", ()) if is_dataclass(value) else ()
    names = [each.name for each in fields(value)] if whole or isinstance(given, (str, list)) else []
    if whole and not {*given} <= {*names}:
        raise TypeError(f"{function}: `parts` of {type(value).__name__} must name fields of it, {names}, got {given}")
    if isinstance(given, (str, list)) and {*([given] if isinstance(given, str) else given)} <= {*names} - {"parts"}:
        way = f"({given!r},)" if isinstance(given, str) else repr(tuple(given))
        raise TypeError(f"{function}: `parts` of {type(value).__name__} must be a tuple of names, {way}, got {given!r}")


def _says_scaling(wrapper: Any) -> bool:
    """Return whether a wrapper has a scaling or a schedule itself, and does not forward that of a part."""
    return any(inspect.getattr_static(wrapper, attribute, None) is not None for attribute in ("scaling", "schedule"))


def _rebuilt(whole: Any, changed: dict[str, Any]) -> Any:
    """Return a wrapper with other parts: by its `__init__`, or, where that takes something else than its fields, without it."""
    try:
        return replace(whole, **changed)
    except (TypeError, ValueError):
        made = object.__new__(type(whole))
        kept = {field.name: getattr(whole, field.name) for field in fields(whole)}
        for name, value in {**getattr(whole, "__dict__", {}), **kept, **changed}.items():
            object.__setattr__(made, name, value)
        return made
