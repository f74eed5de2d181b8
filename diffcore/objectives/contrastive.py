"""Contrastive flow matching: predictions that keep away from the targets of other samples."""

from __future__ import annotations

from diffcore import _array, _check, losses, weights
from diffcore._array import Array
from diffcore._weight import check_data
from diffcore.levels import Level
from diffcore.predictions import Prediction


def contrastive(
    y: Array,
    x: Array,
    eps: Array,
    level: Level,
    *,
    prediction: Prediction,
    other: tuple[Array, Array] | None = None,
    share: float = 0.05,
    weight: losses.WeightLike = weights.Flow(),  # noqa: B008
) -> Array:
    r"""Return the contrastive loss: the error of a prediction, less a share of its error to another sample's target.

        loss = w (|y - target(x, eps)|^2 - share |y - target(x', eps')|^2),    averaged over elements

    The best prediction is (E[target | z] - share E[target']) / (1 - share), so that what is common to all samples does not move.

    Args:
        y: the prediction at z = alpha x + sigma eps, a floating array (B, ...).
        x, eps: data and noise of that shape.
        level: of shape (), (B,) or (B, T).
        prediction: what `y` is; the paper's is "flow".
        other: (x', eps') of other samples, of that shape, best of other classes; None takes the sample before in the batch.
        share: in [0, 1).
        weight: as for `losses.denoising`; the default makes it plain error of "flow".

    Returns:
        (B,), at least float32.

    Raises:
        TypeError, ValueError: as `losses.denoising`; a batch of one without `other`.

    Source: Stoica et al. 2025 (arXiv 2506.05350), sec. 3.

    >>> import numpy as np
    >>> from diffcore.levels import level
    >>> x, eps = np.array([[1.0], [0.0]]), np.zeros((2, 1))
    >>> contrastive(-x, x, eps, level(0.0, "flow"), prediction="flow", share=0.5)     # right, and 1 away from the other's
    array([-0.5, -0.5])
    """
    function = "objectives.contrastive"
    _check.number(function, "share", share, 0.0, 1.0, open_high=True)
    check_data(function, level, y=y, x=x, eps=eps)
    loss = losses.denoising(y, x, eps, level, prediction=prediction, weight=weight)
    if other is None:
        if x.shape[0] < 2:
            hint = "or give `other`"
            raise _check.error(ValueError, function, "x", "have at least two samples", x.shape[0], hint)
        xp = _array.library(x)
        other = (xp.roll(x, 1, axis=0), xp.roll(eps, 1, axis=0))
    if not isinstance(other, tuple) or len(other) != 2:
        raise _check.error(TypeError, function, "other", "be two arrays (x, eps) of other samples, or None", other)
    away = losses.denoising(y, *other, level, prediction=prediction, weight=weight)
    xp = _array.library(loss)
    return loss - share * xp.where(xp.isinf(loss), xp.zeros_like(away), away)  # beyond the dtype inf, not inf - inf
