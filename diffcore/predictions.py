r"""A prediction is a row: y w = a x + b eps, three numbers per noise level, and one solver converts any into any other.

Together with z = alpha x + sigma eps the row is a 2-by-2 system with determinant D = alpha b - sigma a:

    x = (b z - sigma w y) / D,    eps = (alpha w y - a z) / D

so a target row (c, d, u) is, from a source row (a, b, w),

    u y' = c x + d eps = z (c b - d a) / D + y w (alpha d - sigma c) / D.

Nothing here assumes alpha^2 + sigma^2 = 1. The divisor w keeps the score finite where sigma = 0.

| name | y | row (a, b, w) | D under "vp" | cannot give x where |
|---|---|---|---|---|
| `x` | x | (1, 0, 1) | -sigma | - |
| `eps` | eps | (0, 1, 1) | alpha | alpha = 0 |
| `v` | alpha eps - sigma x | (-sigma, alpha, 1) | 1 | - |
| `score` | -eps / sigma | (0, -1, sigma) | -alpha | alpha = 0 |
| `flow` | eps - x | (-1, 1, 1) | alpha + sigma | - |
| `edm` | (sigma x / s - alpha s eps) / n | see `edm` | -1 at s = 1 | - |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diffcore import _array, _check, _explained, levels
from diffcore._array import Array
from diffcore.levels import Level


class Row(NamedTuple):
    """What a network predicts at a level: y w = a x + b eps.

    A new kind of prediction is a function from a `Level` to a `Row`, passed wherever a name of the table fits.
    """

    a: Array
    b: Array
    w: Array


RowFunction = Callable[[Any, Level], Row]
"""A function (xp, level) -> Row, which defines a kind of prediction."""

Prediction = str | RowFunction
"""A name of the table, or your own row function (xp, level) -> Row."""


def _x(xp: Any, level: Level) -> Row:
    one = xp.ones_like(level.log_snr)
    return Row(one, 0.0 * one, one)


def _eps(xp: Any, level: Level) -> Row:
    one = xp.ones_like(level.log_snr)
    return Row(0.0 * one, one, one)


def _v(xp: Any, level: Level) -> Row:
    return Row(-level.sigma, level.alpha, xp.ones_like(level.log_snr))


def _score(xp: Any, level: Level) -> Row:
    one = xp.ones_like(level.log_snr)
    return Row(0.0 * one, -one, level.sigma)


def _flow(xp: Any, level: Level) -> Row:
    one = xp.ones_like(level.log_snr)
    return Row(-one, one, one)


@dataclass(frozen=True)
class EDM:
    """The row of EDM's network F: what `edm` returns. Equal rows have equal `sigma_data`."""

    sigma_data: float

    def __call__(self, xp: Any, level: Level) -> Row:
        """Return the row at a level."""
        norm = xp.sqrt(level.sigma**2 + (level.alpha * self.sigma_data) ** 2)
        a, b = level.sigma / (self.sigma_data * norm), -level.alpha * self.sigma_data / norm
        return Row(a, b, xp.ones_like(level.log_snr))

    def __repr__(self) -> str:
        return f"predictions.edm({self.sigma_data!r})"


def edm(sigma_data: float = 0.5) -> EDM:
    r"""Return the row of EDM's network F for data of standard deviation `sigma_data`.

    With s = sigma_data and c_skip, c_out of EDM at the noise-to-signal ratio sigma / alpha,

        x = c_skip z / alpha + c_out F  <=>  F = (sigma x / s - alpha s eps) / sqrt(sigma^2 + alpha^2 s^2).

    Args:
        sigma_data: s, positive and finite; `weights.EDM` takes the same. One number for all channels: where theirs
            differ, divide each channel of the data by its own standard deviation, and multiply the samples by it.

    Raises:
        ValueError: `sigma_data` is not positive and finite.
        TypeError: `sigma_data` is not a number.

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 7 and table 1.

    >>> from diffcore.levels import level
    >>> round(float(convert(1.0, 0.5, level(0.0), source=edm(1.0), target="v")), 12)  # at s = 1, F = -v
    -1.0
    """
    return EDM(check_sigma_data("predictions.edm", sigma_data))


def check_sigma_data(function: str, sigma_data: object) -> float:
    """Return the standard deviation of data as a float, or raise TypeError or ValueError."""
    if np.ndim(sigma_data) > 0:  # type: ignore[arg-type]
        hint = "divide each channel of the data by its own standard deviation, and take 1.0"
        raise _check.error(TypeError, function, "sigma_data", "be one number for all channels", sigma_data, hint)
    return _check.number(function, "sigma_data", sigma_data, 0, open_low=True)


def table() -> dict[str, RowFunction]:
    """Return the table of predictions: name -> row function (xp, level) -> Row.

    >>> sorted(table())
    ['edm', 'eps', 'flow', 'score', 'v', 'x']
    """
    return {"x": _x, "eps": _eps, "v": _v, "score": _score, "flow": _flow, "edm": EDM(0.5)}


ELSEWHERE = {
    "noise": "'eps'",
    "v_prediction": "'v'",
    **dict.fromkeys(("sample", "original_sample", "x_start"), "'x'"),
    **dict.fromkeys(("flow_prediction", "rectified_flow"), "'flow'"),
    "velocity": "'v', alpha eps - sigma x, or 'flow', eps - x,",
}
"""Names of other libraries that are not near ours, for messages."""


def row_function(function: str, argument: str, prediction: Prediction) -> RowFunction:
    """Return the row function of a prediction, or raise TypeError or ValueError with the choices."""
    if callable(prediction):
        return prediction
    rows = table()
    if isinstance(prediction, str) and prediction in rows:  # in traced code nothing more is called
        return rows[prediction]
    hint = "or give a row function (xp, level) -> Row"
    if isinstance(prediction, str) and prediction in ELSEWHERE:
        hint = f"{prediction!r} is called {ELSEWHERE[prediction]} here"
    return rows[_check.choice(function, argument, prediction, sorted(rows), hint=hint)]


class Mixing(NamedTuple):
    """The conversion at a level, as two coefficients: target = from_z z + from_y y."""

    from_z: Array
    from_y: Array


def mixing(level: Level, source: Prediction, target: Prediction) -> Mixing:
    r"""Return (p, q) such that target = p z + q source, for one level or an array of levels.

        p = (c b - d a) / (u D),    q = w (alpha d - sigma c) / (u D),    D = alpha b - sigma a

    Args:
        level: arrays of any shape; must be of one library, or numbers.
        source, target: names of the table or row functions; the same one twice gives (0, 1) at every level.

    Raises:
        ValueError: an unknown name, or D = 0 at a level given as numbers or NumPy arrays (eps or score at alpha = 0,
            anything but x from x at sigma = 0). Arrays of other libraries give inf or NaN there, since checking them
            would wait for the device.

    >>> from diffcore.levels import level
    >>> [float(c) for c in mixing(level(float("inf")), "v", "x")]
    [1.0, 0.0]
    """
    function = "predictions.mixing"
    levels.check_level(function, level=level)
    source_row = row_function(function, "source", source)
    target_row = source_row if source == target else row_function(function, "target", target)
    xp = _array.namespace(function, alpha=level.alpha, sigma=level.sigma, log_snr=level.log_snr)
    level = Level(*(_array.as_array(xp, part) for part in level))
    with _array.quiet(xp):
        found = solve(xp, level, source_row, target_row)
    if isinstance(level.alpha, np.ndarray):
        check_solvable(function, source, target, level, found, "source")
    return found


def solve(xp: Any, level: Level, source: RowFunction, target: RowFunction) -> Mixing:
    """Return what `mixing` does for two row functions, without reading the values: inf or NaN where D = 0."""
    if source == target:
        zero = xp.zeros_like(level.alpha)
        return Mixing(zero, zero + 1.0)
    a, b, w = _row(source, xp, level)
    c, d, u = _row(target, xp, level)
    determinant = level.alpha * b - level.sigma * a  # u divides apart: their product leaves the range of a dtype early
    return Mixing((c * b - d * a) / determinant / u, w * (level.alpha * d - level.sigma * c) / determinant / u)


def _row(row: RowFunction, xp: Any, level: Level) -> Row:
    found = row(xp, level)
    if not isinstance(found, tuple) or len(found) != len(Row._fields):
        raise _check.error(TypeError, "predictions", name_of(row), "return a predictions.Row", found)
    return found


def name_of(prediction: Prediction) -> str:
    """Return the name of a prediction for messages."""
    return prediction if isinstance(prediction, str) else getattr(prediction, "__qualname__", repr(prediction))


def kind_of(function: str, denoise: Any, prediction: Prediction | None) -> Prediction:
    """Return the kind of prediction that a denoiser makes, checked: the caller's, or its attribute; they must agree."""
    own: Prediction | None = getattr(denoise, "prediction", None)
    found = own if prediction is None else prediction
    if found is None:
        must = f"be what the denoiser returns, one of {sorted(table())}"
        raise _check.error(TypeError, function, "prediction", must, None)
    row_function(function, "prediction", found)
    rows: dict[Any, RowFunction] = {**table()}  # "edm" is edm(0.5)
    if isinstance(own, (str, EDM)) and rows.get(own, own) != rows.get(found, found):
        must = f"be {own!r}, the attribute of the denoiser, or left out"
        raise _check.error(ValueError, function, "prediction", must, prediction)
    return found


def check_solvable(
    function: str, source: Prediction, target: Prediction, level: Level, found: Mixing, argument: str = "prediction"
) -> None:
    """Raise ValueError if a conversion computed on the host is not finite at some level, with the way out."""
    bad = ~(np.isfinite(found.from_z) & np.isfinite(found.from_y)) & np.isfinite(level.sigma)
    if np.any(bad):
        where = Level(*(float(np.broadcast_to(part, bad.shape)[bad][0]) for part in level))
        at, way_out = "a level beyond the range of the dtype", "give a less extreme log-SNR, or float64"
        if where.alpha == 0.0:
            at, way_out = "alpha = 0 (pure noise)", "use prediction='v', or start at a finite log-SNR"
        elif where.sigma == 0.0:
            at, way_out = "sigma = 0 (clean data)", "stop at a finite log-SNR"
        must = f"determine {name_of(target)!r} at {at}, log_snr = {where.log_snr}"
        raise _check.error(ValueError, function, argument, must, name_of(source), way_out)


def convert(y: Array, z: Array, level: Level, *, source: Prediction, target: Prediction) -> Array:
    r"""Return the prediction of kind `target` that is equivalent to the prediction `y` of kind `source`.

        target = p z + q y, with (p, q) of `mixing`; right under every scaling.

    Args:
        y: the prediction, a floating array of any shape (B, ...), or a number.
        z: the noisy data, of the shape of `y`.
        level: of shape (), (B,) or (B, T), aligned with the leading axes of `z`.
        source, target: "x", "eps", "v", "score", "flow", "edm" (sigma_data 0.5; `edm(s)` for another), or a row
            function.

    Returns:
        An array of the shape, dtype, device and library of `y` and `z`. Half precision is computed in float32.

    Raises:
        TypeError: mixed libraries, or an integer array.
        ValueError: an unknown name; shapes that differ; a level that does not align; an unsolvable level (see `mixing`).

    Source: Salimans & Ho 2022 (arXiv 2202.00512), app. D, for eps, x and v; solved here for any row.

    >>> import numpy as np
    >>> from diffcore.levels import level
    >>> here = level(np.float64(1.0))
    >>> x, eps = np.array([0.5]), np.array([-1.0])
    >>> z, v = here.alpha * x + here.sigma * eps, here.alpha * eps - here.sigma * x
    >>> convert(v, z, here, source="v", target="x").round(12), convert(v, z, here, source="v", target="eps").round(12)
    (array([0.5]), array([-1.]))
    """
    function = "predictions.convert"
    levels.check_level(function, level=level)
    xp = _array.namespace(function, y=y, z=z, alpha=level.alpha)
    _array.check_floating(function, y=y, z=z)
    y, z = _array.as_array(xp, y), _array.as_array(xp, z)
    _check.equal_shapes(function, y=y, z=z)
    p, q = (_array.scalar(c) for c in mixing(level, source, target))
    if source == target:
        return _array.scalar(y)
    dtype = xp.result_type(y, z)
    wide_y, wide_z = _array.widen(xp, y), _array.widen(xp, z)
    of_z, of_y = (_array.along(function, "level", c, data, xp) for c, data in ((p, wide_z), (q, wide_y)))
    return _array.scalar(xp.astype(of_z * wide_z + of_y * wide_y, dtype, copy=False))


_explained.face(__name__)
