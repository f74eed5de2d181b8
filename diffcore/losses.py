r"""The denoising loss: defined once, on x, and computed in the space of the prediction.

    loss = w(lambda) ||x - x-hat||^2 = w(lambda) (sigma / D)^2 ||y w_y - a x - b eps||^2,    D = alpha b - sigma a

for a network that predicts y, with y w_y = a x + b eps its row (`predictions`), since x and x-hat belong to the same z. The
right side needs no x-hat, so nothing is divided by a vanishing alpha; and its factor is a product of powers of alpha
and sigma whose exponents are added first:

| prediction | sigma / D | exponents of (alpha, sigma) in (sigma / D)^2 |
|---|---|---|
| `x` | -1 | 0, 0 |
| `eps`, `score` | sigma / alpha, -sigma / alpha | -2, 2 |
| `v`, `flow`, `edm`, any other with D != 0 | sigma / D | 0, 2 |

With the exponents of `weights` the factor is 1 for "eps" under `Eps`, and 1 for "v" under `V` (variance preserving), at
every level. It diverges where the sum of an exponent is negative: no finite loss on x gives those predictions a meaning
there ("eps" under `X` at alpha = 0: any x-hat at all agrees with the noise).

Source: Ho et al. 2022 (arXiv 2204.03458), sec. 2, eq. 5; Salimans & Ho 2022 (arXiv 2202.00512), sec. 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffcore import _array, _check, _explained, _weight, levels, predictions, weights
from diffcore._array import Array
from diffcore._weight import Split, Weight
from diffcore.levels import Level
from diffcore.predictions import Prediction

WeightLike = Weight | Callable[[Level, Any], Array]
"""A weight of `diffcore.weights`, or a function (level, slope) -> w(lambda) of one's own."""


def target(x: Array, eps: Array, level: Level, *, prediction: Prediction) -> Array:
    r"""Return the prediction of a perfect network: y = (a x + b eps) / w_y.

    Args:
        x: clean data, a floating array (B, ...).
        eps: the noise in z = alpha x + sigma eps, of the shape of `x`.
        level: of shape (), (B,) or (B, T), aligned with the leading axes of `x`.
        prediction: "x", "eps", "v", "score", "flow", "edm" or a row function.

    Returns:
        An array of the shape, dtype, device and library of `x`. The score of clean data (sigma = 0) is infinite.

    Raises:
        TypeError: mixed libraries, or an integer array.
        ValueError: shapes that differ or do not align; an unknown prediction.

    Source: Salimans & Ho 2022 (arXiv 2202.00512), app. D.

    >>> import numpy as np
    >>> from diffcore.levels import level
    >>> target(np.ones(1), np.zeros(1), level(0.0), prediction="v").round(4)
    array([-0.7071])
    """
    function = "losses.target"
    xp = _weight.check_data(function, level, x=x, eps=eps)
    row = predictions.row_function(function, "prediction", prediction)
    wide_x, wide_eps = _array.widen(xp, x), _array.widen(xp, eps)
    with _array.quiet(xp):
        a, b, w = (_array.along(function, "level", part, wide_x, xp) for part in _row(function, row, level))
        return xp.astype((a * wide_x + b * wide_eps) / w, x.dtype, copy=False)


def factor(level: Level, *, prediction: Prediction, weight: WeightLike, slope: Array | None = None) -> Array:
    r"""Return w(lambda) (sigma / D)^2, what multiplies the squared error of a prediction: ||y w_y - a x - b eps||^2.

    w_y is 1 but for the score, where it is sigma; so for all others this is the weight on plain squared error.

    Args:
        level: of any shape.
        prediction: "x", "eps", "v", "score", "flow", "edm" or a row function with D != 0.
        weight: of `diffcore.weights`, on x; or a function (level, slope) -> array.
        slope: d lambda / dt, for the weights that need it; a number, or of the level's shape.

    Returns:
        An array of the level's shape and library, at least float32.

    Raises:
        ValueError: an unknown prediction; a missing slope, or one of another shape; two deviations of the data, that of
            `predictions.edm` and that of `weights.EDM`; a factor that diverges at a level given as numbers or NumPy
            arrays. (Arrays of other libraries give inf there, since checking them would wait for the device.)
        TypeError: `weight` is neither a weight nor a function.

    Source: Salimans & Ho 2022 (arXiv 2202.00512), sec. 4, for x, eps and v; here for any row.

    >>> from diffcore import weights
    >>> from diffcore.levels import level
    >>> [float(factor(level(s), prediction="eps", weight=weights.Eps())) for s in (float("-inf"), 3.0, float("inf"))]
    [1.0, 1.0, 1.0]
    """
    function = "losses.factor"
    levels.check_level(function, level=level)
    _weight.check(function, weight)
    row = predictions.row_function(function, "prediction", prediction)
    if isinstance(row, predictions.EDM) and isinstance(weight, weights.EDM) and row.sigma_data != weight.sigma_data:
        must = f"be weights.EDM({row.sigma_data!r}), for a network that predicts {row!r}"
        hint = "both need the one standard deviation of the data"
        raise _check.error(ValueError, function, "weight", must, weight, hint)
    xp, unit = _weight.unit_level(function, level)
    with _array.quiet(xp):
        error = _squared_ratio(xp, level, unit, row)
        of_weight = _weight.split(weight, level, slope)
        parts = Split(
            of_weight.alpha_power + error.alpha_power,
            of_weight.sigma_power + error.sigma_power,
            of_weight.coefficient * error.coefficient,
        )
        _check_finite(function, parts, unit, prediction, weight)
        return _array.scalar(_weight.product(parts, unit))


def denoising(
    y: Array,
    x: Array,
    eps: Array,
    level: Level,
    *,
    prediction: Prediction,
    weight: WeightLike = weights.MinSNR(5.0),  # noqa: B008
    slope: Array | None = None,
    mask: Array | None = None,
) -> Array:
    r"""Return the weighted error of a prediction, one number per sample: the mean over its elements of w |x - x-hat|^2.

        loss_i = mean_j w(lambda_ij) (x_ij - x-hat_ij)^2

    The same whatever `prediction` is: change the kind of network and the loss keeps its meaning. Take `.mean()` of it
    to train. It is a mean over elements, not a sum: times their number it is the squared norm of the equations.

    Args:
        y: the prediction of the network at z = alpha x + sigma eps, a floating array (B, ...).
        x: clean data of the shape of `y`.
        eps: the noise in z, of the shape of `y`.
        level: of shape (), (B,) or (B, T): one per batch, sample or frame.
        prediction: what `y` is: "x", "eps", "v", "score", "flow", "edm" or a row function.
        weight: of `diffcore.weights`. The default is finite at both ends for every prediction; `weights.Eps()` is the
            loss of the paper, plain error of the noise.
        slope: d lambda / dt of the schedule at t, for `weights.Sigmoid` and `weights.VariationalBound`; a number, or of the
            level's shape.
        mask: broadcasts to `x`; 0 for elements that do not count (padding, frames that are given), else 1, or a weight
            of their share in the mean. `y` is never read there, so it may be NaN. Nothing to count gives 0.

    Returns:
        An array of shape (B,), at least float32, that carries gradients to `y`.

    Raises:
        TypeError: mixed libraries, an integer array, or a weight that is neither.
        ValueError: shapes that differ or do not align; a mask that can be read two ways; and as `factor`.

    Source: Ho et al. 2022 (arXiv 2204.03458), eq. 5.

    >>> import numpy as np
    >>> from diffcore.levels import level
    >>> x, eps, here = np.ones((2, 3)), np.zeros((2, 3)), level(np.array([1.0, np.inf]))
    >>> denoising(np.ones((2, 3)), x, eps, here, prediction="x")
    array([0., 0.])
    """
    function = "losses.denoising"
    xp = _weight.check_data(function, level, y=y, x=x, eps=eps)
    if mask is not None:
        _array.namespace(function, x=x, mask=mask)
        _array.check_trailing(function, "mask", tuple(getattr(mask, "shape", ())), tuple(x.shape))
    scale = factor(level, prediction=prediction, weight=weight, slope=slope)
    row = predictions.row_function(function, "prediction", prediction)
    wide = [_array.widen(xp, part) for part in (y, x, eps)]
    dtype = xp.result_type(*wide)
    wide_y, wide_x, wide_eps = (xp.astype(part, dtype, copy=False) for part in wide)
    lined_up = (_array.along(function, "level", part, wide_x, xp) for part in (*_row(function, row, level), scale))
    a, b, w, scale = lined_up
    error = w * wide_y - (a * wide_x + b * wide_eps)
    if mask is None:
        each = _array.flat(scale * error**2)
        return xp.sum(each, axis=1) / max(each.shape[1], 1)
    share = _array.flat(xp.broadcast_to(xp.astype(mask, dtype), wide_x.shape))
    counted = xp.reshape(share != 0, wide_x.shape)
    error = xp.where(counted, error, xp.zeros_like(error))  # before it is squared: gradients of NaN are NaN
    total = xp.sum(share, axis=1)
    return xp.sum(share * _array.flat(scale * error**2), axis=1) / xp.where(total > 0, total, xp.ones_like(total))


def _row(function: str, row: predictions.RowFunction, level: Level) -> tuple[Array, ...]:
    """Return (a, b, w) in the library of the level, so that a level given as numbers stays in float64."""
    xp = _array.namespace(function, **{"level.alpha": level.alpha})
    with _array.quiet(xp):
        return tuple(_array.scalar(part) for part in row(xp, _as_arrays(xp, level)))


def _squared_ratio(xp: Any, level: Level, unit: Level, row: predictions.RowFunction) -> Split:
    """Return (sigma / D)^2, with what vanishes at an end in the exponents."""
    known = predictions.table()
    one = xp.ones_like(unit.alpha)
    if row is known["x"]:
        return Split(0.0, 0.0, one)
    if row is known["eps"] or row is known["score"]:
        return Split(-2.0, 2.0, one)
    # sigma = unit.sigma * norm, and the norm has no zero
    alpha, sigma, _ = _as_arrays(xp, level)
    a, b, _ = row(xp, Level(alpha, sigma, unit.log_snr))
    ratio = xp.hypot(alpha, sigma) / (alpha * b - sigma * a)
    return Split(0.0, 2.0, ratio * ratio)


def _check_finite(function: str, parts: Split, unit: Level, prediction: Prediction, weight: WeightLike) -> None:
    """Raise where a factor on the host diverges, with the way out; the values of other libraries are not read."""
    for power, part, end in (
        (parts.alpha_power, unit.alpha, "alpha = 0 (pure noise, log_snr = -inf)"),
        (parts.sigma_power, unit.sigma, "sigma = 0 (clean data, log_snr = inf)"),
    ):
        if power < 0 and isinstance(part, np.ndarray) and np.any(part == 0.0):
            must = f"give prediction={predictions.name_of(prediction)!r} a finite factor at {end}"
            hint = "use prediction='v' with weights.MinSNR(), or stay at a finite log-SNR"
            raise _check.error(ValueError, function, "weight", must, weight, hint)


def _as_arrays(xp: Any, level: Level) -> Level:
    return Level(*(_array.as_array(xp, part) for part in level))


_explained.face(__name__)
