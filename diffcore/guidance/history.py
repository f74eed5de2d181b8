r"""History guidance: guidance of new frames by the frames that are known, through a denoiser with a level for every frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diffcore import _array, _brief, _check, _streams, _wrapping, noise
from diffcore._array import Array
from diffcore.guidance._sources import Apart
from diffcore.guidance._weights import Weight, check
from diffcore.guidance.composed import Composed
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule

FUNCTION = "guidance.history"


@dataclass(frozen=True, eq=False)
class Remembering(_wrapping.Scaled):
    """A denoiser that sees some known frames at a level of their own and the others as pure noise; of all of them its x-hat is what
    is known."""

    parts: ClassVar = ("denoise", "observed", "seed")
    denoise: Any
    observed: Array
    known: tuple[bool, ...]
    seen: tuple[bool, ...]
    level: float
    absent: float
    seed: Any
    prediction: Prediction
    scaling: str | None
    __repr__ = _brief.fields

    def __call__(self, z: Array, log_snr: Array) -> Array:
        """Return the prediction at z."""
        xp = _array.namespace(FUNCTION, z=z, observed=self.observed)
        if z.ndim < 2 or z.shape[1] != len(self.known):
            must = f"have the frames of `known`, {len(self.known)}, on its second axis"
            raise _check.error(ValueError, FUNCTION, "z", must, z)
        wide, where = _array.widen(xp, z), _array.device(z)
        rest = (1,) * (z.ndim - 2)
        known, seen = (
            xp.reshape(xp.asarray(np.array(flags), device=where), (1, -1, *rest)) for flags in (self.known, self.seen)
        )
        x = xp.broadcast_to(_array.widen(xp, self.observed), z.shape)
        x = xp.where(known, x, xp.zeros_like(wide))
        eps = noise.normal(self.seed, 0, tuple(z.shape), like=wide, stream=_streams.HISTORY)
        at, here, gone = (_wrapping.level_of(FUNCTION, at, self.scaling) for at in (log_snr, self.level, self.absent))
        old = xp.where(
            seen, float(here.alpha) * x + float(here.sigma) * eps, float(gone.alpha) * x + float(gone.sigma) * eps
        )
        given = xp.astype(xp.where(known, old, wide), z.dtype, copy=False)
        own = np.where(np.array(self.seen), self.level, self.absent)
        y = self.denoise(given, self._levels(xp, wide, log_snr, own))
        # in known frames: the prediction whose x-hat, at the level of the state, is what is known
        mixing = _wrapping.mixing(FUNCTION, at, self.prediction, "x", wide)
        y_wide = _array.widen(xp, y)
        told = y_wide + mixing.back * (x - mixing.into(wide, y_wide))
        return xp.astype(xp.where(known, told, y_wide), y.dtype, copy=False)

    def _levels(self, xp: Any, z: Array, log_snr: Any, own: Any) -> Array:
        """Return the levels (B, T) of what the denoiser sees."""
        given = (
            xp.asarray(log_snr, dtype=z.dtype, device=_array.device(z))
            if _array.library(log_snr) is not xp
            else log_snr
        )
        given = xp.astype(given, z.dtype, copy=False)
        given = xp.reshape(given, tuple(given.shape) + (1,) * (2 - given.ndim))
        given = xp.broadcast_to(given, tuple(z.shape[:2]))
        own = xp.asarray(own, dtype=z.dtype, device=_array.device(z))
        return xp.where(xp.asarray(np.array(self.known), device=_array.device(z)), own, given)


def history(
    denoise: Any,
    observed: Array,
    known: Sequence[bool] | Array,
    *,
    scale: Weight | Sequence[Weight],
    seen: Sequence[Sequence[bool] | Array] | None = None,
    level: float | Sequence[float] = 20.0,
    absent: float = -20.0,
    seed: Any = 0,
    prediction: Prediction | None = None,
    schedule: Schedule | None = None,
) -> Composed:
    r"""Return a denoiser of video whose new frames are guided by the known ones.

        u + s_1 (c_1 - u) + s_2 (c_2 - u) + ...

    c_i sees some of the known frames, at a level of their own; u sees none of them: they are pure noise there. It takes a
    denoiser with a level for every frame, and no other training.

    * **vanilla**: one c that sees all of them, clean; scale 1 is plain conditioning, more leads to frames that fit them better.
    * **fractional**: `level` below that of clean frames, so that only what is coarse in them guides.
    * **temporal**: `seen` names several subsets, such as the long and the short history, each with its scale.

    In the known frames x-hat is what is known, so that they come out so.

    Args:
        denoise: (z, log_snr) -> prediction, with log_snr of shape (B, T).
        observed: the frames (B, T, ...), of the library of z; a batch of 1 serves all samples; entries of unknown frames are not
            read.
        known: T flags, true for a frame that is known.
        scale: of each subset; 0 is the prediction without history. A number, an array of shape (), (B,) or (B, T), or a function
            of log_snr.
        seen: the subsets, each T flags, true only in known frames; one of all known frames without it.
        level: the log-SNR at which a subset is seen; one for all, or one for each.
        absent: the log-SNR of what is not seen, the most noise that the denoiser was trained with.
        seed: of the noise in known frames, see `noise.keys`; it is the same in every call.
        prediction: what the denoiser returns, and so the wrapper; may be left out if the denoiser has the attribute.
        schedule: gives the scaling; may be left out in `diffcore.sample`, which takes the plan's.

    Returns:
        A callable (z, log_snr) -> prediction with the attributes `prediction` and `scaling`.

    Raises:
        ValueError: no known frame, or flags of another number than frames; a subset with unknown frames; another number of
            scales or levels than of subsets; NaN as a level.
        TypeError: a denoiser that cannot be called, `prediction` is missing.

    Source: Song et al. 2025 (arXiv 2502.06764), sec. 5, vanilla, temporal and fractional history guidance.

    >>> import numpy as np, diffcore as dc
    >>> video = dc.exact.Gaussian(np.zeros(2), np.array([[1.0, 0.5], [0.5, 1.0]]), scaling="vp")
    >>> guided = history(video, np.array([[3.0, 0.0]]), [True, False], scale=1.0, level=np.inf, absent=-np.inf)
    >>> guided(np.zeros((1, 2)), -50.0).round(6)           # E[x_2 | x_1 = 3] = 1.5
    array([[3. , 1.5]])
    """
    frames = _flags("known", known, None)
    if not any(frames):
        raise _check.error(ValueError, FUNCTION, "known", "have a frame that is known", known)
    subsets = [frames] if seen is None else [_flags("seen", subset, frames) for subset in seen]
    scales = [check(FUNCTION, "scale", part) for part in _each("scale", scale, len(subsets))]
    at = [_check.number(FUNCTION, "level", part, finite=False) for part in _each("level", level, len(subsets))]
    _array.namespace(FUNCTION, observed=observed)
    _array.check_floating(FUNCTION, observed=observed)
    denoise, kind, scaling = _wrapping.given(FUNCTION, denoise, prediction, schedule)
    gone = _check.number(FUNCTION, "absent", absent, finite=False)
    made = [
        Remembering(denoise, observed, frames, subset, part, gone, seed, kind, scaling)
        for subset, part in [*zip(subsets, at, strict=True), ((False,) * len(frames), gone)]
    ]
    return Composed(Apart(tuple(made)), tuple(scales))


def _flags(argument: str, flags: Any, within: tuple[bool, ...] | None) -> tuple[bool, ...]:
    """Return flags of frames, true only where those they are within are."""
    try:
        found = tuple([_check.flag(FUNCTION, argument, flag) for flag in flags])
    except TypeError:
        raise _check.error(TypeError, FUNCTION, argument, "be flags, one for each frame", flags) from None
    if within is not None and (
        len(found) != len(within) or any(a and not b for a, b in zip(found, within, strict=True))
    ):
        must = f"hold flags for the {len(within)} frames of `known`, true only where it is"
        raise _check.error(ValueError, FUNCTION, argument, must, flags)
    return found


def _each(argument: str, value: Any, count: int) -> list[Any]:
    """Return one value for each subset."""
    if not isinstance(value, (tuple, list)):
        return [value] * count
    if len(value) != count:
        raise _check.error(ValueError, FUNCTION, argument, f"have one entry for each of {count} subsets", value)
    return list(value)
