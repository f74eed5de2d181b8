"""The objective of a learned schedule: the least variance of a loss whose mean it does not change."""

from __future__ import annotations

from diffcore import _array, _check
from diffcore._array import Array
from diffcore.objectives._common import stopped


def schedule_variance(each: Array) -> Array:
    r"""Return the squared deviations of a batch of estimates from their mean, whose own mean is their variance.

        loss_i = (each_i - sg(mean each))^2 B / (B - 1)

    The continuous bound depends on the ends of a schedule alone; its shape in between decides how much an estimate at one random
    t varies. Give estimates at `schedule(t)` for stratified t, that is `losses.denoising` with `weights.VariationalBound()` and
    slope=schedule.slope(t), and take the gradient with respect to the schedule's inner parameters (`schedules.Monotone`) alone:
    that of the network and of the ends is the mean of the estimates.

    Args:
        each: estimates (B,), of at least two samples, that carry gradients to the schedule.

    Returns:
        (B,), at least float32.

    Raises:
        TypeError: no floating array.
        ValueError: another shape than (B,) with B >= 2.

    Source: Kingma et al. 2021 (arXiv 2107.00630), sec. 5.2 and app. I.2.

    >>> import numpy as np
    >>> float(schedule_variance(np.array([1.0, 2.0, 3.0])).mean())
    1.0
    """
    function = "objectives.schedule_variance"
    xp = _array.namespace(function, each=each)
    if _array.library(each) is None:
        raise _check.error(TypeError, function, "each", "be an array (B,)", each)
    _array.check_floating(function, each=each)
    if len(each.shape) != 1 or each.shape[0] < 2:
        must = "be one estimate for each of at least two samples, (B,)"
        raise _check.error(ValueError, function, "each", must, each)
    wide, count = _array.widen(xp, each), each.shape[0]
    return (wide - stopped(xp.mean(wide))) ** 2 * (count / (count - 1.0))
