r"""Autoguidance: guidance away from a worse model."""

from __future__ import annotations

from typing import Any

from diffcore import _check
from diffcore._array import Array
from diffcore.guidance import _weights
from diffcore.guidance._guided import ClassifierFree, check_alike
from diffcore.guidance._rule import Rule
from diffcore.guidance._ruled import guided_by
from diffcore.guidance._sources import Apart, Under
from diffcore.guidance._weights import Weight
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule

FUNCTION = "guidance.autoguidance"


def autoguidance(
    denoise: Any,
    worse: Any,
    *,
    cond: Any = None,
    weight: Weight | None = None,
    scale: float | Array | None = None,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
    rule: Rule | None = None,
    prediction: Prediction | None = None,
    schedule: Schedule | None = None,
) -> ClassifierFree:
    r"""Return a denoiser that is guided by a worse version of itself: (1 + w) y - w y_worse.

    The worse model is smaller, trained for a shorter time, or the model itself with some of its layers perturbed or left out, as in
    perturbed-attention and skip-layer guidance (PAG, SLG): how, only the network can say, so it is passed here. Both see the
    same condition, so that the guidance leads to better samples and not to more typical ones.

    Args:
        denoise, worse: (z, log_snr) -> prediction; with `cond`, (z, log_snr, cond) -> prediction.
        cond: what both are conditioned on: arrays (B, ...), or dicts, tuples and lists of them; a batch of 1 serves all samples.
        weight, scale, rescale, interval, rule, prediction, schedule: as for `classifier_free`.

    Returns:
        As `classifier_free`: at weight 0 the worse model is not called.

    Raises:
        As `classifier_free`.

    Source: Karras et al. 2024 (arXiv 2406.02507), eq. 4; Ahn et al. 2024 (arXiv 2403.17377) for PAG.

    >>> import numpy as np
    >>> guided = autoguidance(lambda z, l, c: z + c, lambda z, l, c: 0.5 * (z + c), cond=np.ones((1, 2)), weight=1.0)
    >>> guided(np.zeros((1, 2)), 0.0)
    array([[1.5, 1.5]])
    """
    w = _weights.of_two(FUNCTION, weight, scale)
    for name, model in (("denoise", denoise), ("worse", worse)):
        takes = "(z, log_snr)" if cond is None else "(z, log_snr, cond)"
        _check.callable_(FUNCTION, name, model, f"a function of {takes}")
    check_alike(FUNCTION, "worse", denoise, worse)
    models = (denoise, worse) if cond is None else (Under(FUNCTION, denoise, cond), Under(FUNCTION, worse, cond))
    return guided_by(FUNCTION, Apart(models), w, rescale, interval, rule, prediction, schedule)
