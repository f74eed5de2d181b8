"""What wrappers of a denoiser share: its attributes, its scaling, and the kinds of prediction between which they go.

At one z all kinds are affine maps of one another, s = p z + q y. A change of s by delta is one of y by delta / q. Neither p nor
1 / q is finite at every level: where y does not determine s (x from eps at alpha = 0), or s cannot change y, it stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np

from diffcore import _array, _layout, levels, predictions
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


def scaling_given(function: str, denoise: Any, schedule: Schedule | None) -> str | None:
    """Return the scaling of a denoiser or a schedule, which must agree; None where neither says."""
    own = own_scaling(denoise)
    if schedule is None:
        return own
    scaling = scaling_of(function, "schedule", schedule)
    if own is not None and own != scaling:
        raise ValueError(f"{function}: `schedule` must have the denoiser's scaling, {own!r}, got {scaling!r}")
    return scaling


def scaled(model: Any, scaling: str) -> Any:
    """Return a denoiser for a scaling, where it has none of its own."""
    if hasattr(model, "with_scaling") and getattr(model, "scaling", None) is None:
        return model.with_scaling(scaling)
    return model
