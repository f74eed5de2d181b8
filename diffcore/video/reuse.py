"""Known frames computed once: a causal network as a denoiser that keeps what it computed of the frames before a block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffcore import _brief, _check, guidance
from diffcore._array import Array

FUNCTION = "video.reusing"


@dataclass(frozen=True, eq=False)
class Reusing:
    """A denoiser that keeps the past: what `reusing` returns. It is also a plain one, (z, log_snr) -> prediction."""

    model: Any
    cond: Any = None
    null: Any = None
    weight: Any = None
    __repr__ = _brief.fields

    @property
    def prediction(self) -> Any:
        """What the model says of its prediction."""
        return getattr(self.model, "prediction", None)

    @property
    def scaling(self) -> Any:
        """What the model says of its scaling."""
        return getattr(self.model, "scaling", None)

    def __call__(self, z: Array, log_snr: Array) -> Array:
        """Return the prediction for all frames."""
        return self.after(None)(z, log_snr)

    def past(self, z: Array, log_snr: Array) -> Any:
        """Return what is kept of known frames (B, P, ...) at their level: under the condition, and without where it guides."""
        kept = self.model.past(z, log_snr, self.cond)
        return (kept, None if self.weight is None else self.model.past(z, log_snr, self.null))

    def after(self, past: Any) -> Callable[[Array, Array], Array]:
        """Return the denoiser of the frames that follow."""
        of_cond, of_null = (None, None) if past is None else past

        def told(z: Array, log_snr: Array) -> Array:
            return self.model(z, log_snr, self.cond, past=of_cond)

        def free(z: Array, log_snr: Array) -> Array:
            return self.model(z, log_snr, self.null, past=of_null)

        for denoise in (told, free):  # as guidance and samplers ask for it
            denoise.prediction, denoise.scaling = self.prediction, self.scaling  # type: ignore[attr-defined]
        return told if self.weight is None else guidance.classifier_free(told, free, weight=self.weight)


def reusing(model: Any, cond: Any = None, *, null: Any = None, weight: Any = None) -> Reusing:
    r"""Return a causal network as a denoiser for `extend(method="forcing")` and "rolling", which computes known frames once.

    Frames of a causal network see none after them, so that the keys and values of known frames do not change while a block is
    drawn. With n known frames and m new ones, a block of N steps costs n + N m frames instead of N (n + m), and comes
    out the same to rounding.

    Args:
        model: a `unet3d` of a config with causal=True; or another with `model(z, log_snr, cond, past=)` and `model.past(z,
            log_snr, cond)`, whose arrays begin with the batch axis.
        cond: the condition of the clips, or None.
        null, weight: for classifier-free guidance, (1 + w) c - w u: `model.null(cond)` and w.

    Returns:
        A callable (z, log_snr) -> prediction, which any method takes; forcing and rolling make use of what it keeps.

    Raises:
        TypeError: a model without `past`.
        ValueError: a model that is not causal; one of `null` and `weight` without the other.

    Source: Yin et al. 2025 (arXiv 2412.07772), sec. 3.4, for keys and values kept in autoregressive diffusion.

    >>> from diffcore import unet3d
    >>> denoise = reusing(unet3d.build(unet3d.preset("tiny", causal=True)))
    >>> denoise.prediction
    'v'
    """
    if not callable(getattr(model, "past", None)):
        must = "have a method `past`, as networks of unet3d have"
        raise _check.error(TypeError, FUNCTION, "model", must, model)
    if not getattr(getattr(model, "config", None), "causal", True):
        raise ValueError(
            f"{FUNCTION}: `model` is not causal, so that known frames change with those after them; give it to video.extend as "
            f"it is"
        )
    if (null is None) != (weight is None):
        raise ValueError(
            f"{FUNCTION}: `null` and `weight` come together: the condition that says nothing, and w of guidance"
        )
    return Reusing(model, cond, null, weight)
