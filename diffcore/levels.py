r"""A noise level, and the three scalings that turn a log-SNR into one.

With lambda = log(alpha^2 / sigma^2), a scaling is the extra condition that fixes alpha and sigma:

| name | condition | alpha | sigma |
|---|---|---|---|
| `"vp"` variance preserving | alpha^2 + sigma^2 = 1 | sqrt(sigmoid(lambda)) | sqrt(sigmoid(-lambda)) |
| `"ve"` variance exploding | alpha = 1 | 1 | exp(-lambda / 2) |
| `"flow"` | alpha + sigma = 1 | sigmoid(lambda / 2) | sigmoid(-lambda / 2) |

Each is evaluated from exp(-|lambda| / 2), whose argument is exact, so alpha and sigma are right to a few units in the
last place for every lambda, where sqrt(1 - alpha^2) has lost all digits of sigma at lambda = 17 in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from diffcore import _array, _check, _explained
from diffcore._array import Array


class Level(NamedTuple):
    """A noise level: z = alpha x + sigma eps, with log_snr = log(alpha^2 / sigma^2).

    The three arrays share one shape, (), (B,) or (B, T), which aligns with the leading axes of the data.

    >>> from diffcore.levels import level
    >>> level(0.0)
    Level(alpha=np.float64(0.7071067811865475), sigma=np.float64(0.7071067811865475), log_snr=np.float64(0.0))
    """

    alpha: Array
    sigma: Array
    log_snr: Array


class Gaussian(NamedTuple):
    """A Gaussian with independent elements: N(mean, variance).

    `mean` has the shape and dtype of the data. `variance` broadcasts against it (a level's axes lead) and has at least
    float32, since variances at clean levels underflow in half precision.
    """

    mean: Array
    variance: Array


def _variance_preserving(xp: Any, log_snr: Array) -> tuple[Array, Array]:
    # exp(-|lambda| / 2), with the right gradient at zero; its square keeps the errors of both terms correlated
    small = xp.exp(0.5 * xp.where(log_snr < 0, log_snr, -log_snr))
    root = xp.sqrt(1.0 + small * small)
    larger, smaller = 1.0 / root, small / root
    return xp.where(log_snr < 0, smaller, larger), xp.where(log_snr < 0, larger, smaller)


def _variance_exploding(xp: Any, log_snr: Array) -> tuple[Array, Array]:
    return xp.ones_like(log_snr), xp.exp(-0.5 * log_snr)


def _flow(xp: Any, log_snr: Array) -> tuple[Array, Array]:
    small = xp.exp(0.5 * xp.where(log_snr < 0, log_snr, -log_snr))
    larger, smaller = 1.0 / (1.0 + small), small / (1.0 + small)
    return xp.where(log_snr < 0, smaller, larger), xp.where(log_snr < 0, larger, smaller)


def scalings() -> dict[str, Callable[[Any, Array], tuple[Array, Array]]]:
    """Return the table of scalings: name -> function (xp, log_snr) -> (alpha, sigma).

    >>> sorted(scalings())
    ['flow', 've', 'vp']
    """
    return {"vp": _variance_preserving, "ve": _variance_exploding, "flow": _flow}


def check_scaling(function: str, scaling: object) -> str:
    """Return the scaling if the table has it, else raise TypeError or ValueError with the choices."""
    if isinstance(scaling, str) and scaling in scalings():  # in traced code nothing more is called
        return scaling
    return _check.choice(function, "scaling", scaling, sorted(scalings()))


def check_level(function: str, **given: object) -> None:
    """Raise TypeError for anything but a level, such as a plain time or log-SNR."""
    for argument, value in given.items():
        if not hasattr(value, "alpha"):
            must = "be a diffcore.Level, such as schedule(t) or diffcore.levels.level(log_snr)"
            raise _check.error(TypeError, function, argument, must, value)


def line_up(function: str, /, **given: Level) -> tuple[Level, ...]:
    """Return levels that broadcast against each other by their leading axes: beside (B, T), one of (B,) becomes (B, 1).

    Raises:
        TypeError: an argument that is not a level, or levels of two libraries.
        ValueError: shapes that do not align.

    >>> import numpy as np
    >>> s, t = line_up("mine", s=level(np.zeros((2, 3))), t=level(np.zeros(2)))
    >>> t.alpha.shape
    (2, 1)
    """
    check_level(function, **given)
    _array.namespace(function, **{f"{argument}.log_snr": value.log_snr for argument, value in given.items()})
    lined_up = zip(
        *(
            _array.line_up(function, **dict(zip(given, parts, strict=True)))
            for parts in zip(*given.values(), strict=True)
        ),
        strict=True,
    )
    return tuple(Level(*parts) for parts in lined_up)


def level(log_snr: Array, scaling: str = "vp") -> Level:
    r"""Return the noise level at a log-SNR under a scaling.

        vp:   alpha = sigmoid(lambda)^(1/2),  sigma = sigmoid(-lambda)^(1/2)
        ve:   alpha = 1,                      sigma = exp(-lambda / 2)
        flow: alpha = sigmoid(lambda / 2),    sigma = sigmoid(-lambda / 2)

    Args:
        log_snr: a number or a floating array of any shape, -inf and inf included; float16 and bfloat16 are widened to
            float32, a number gives float64. NaN stays NaN.
        scaling: "vp", "ve" or "flow".

    Returns:
        `Level` of arrays of the shape, library and device of `log_snr`. At lambda = inf sigma is exactly 0; at -inf
        alpha is exactly 0 ("vp", "flow") or sigma is inf ("ve").

    Raises:
        ValueError: an unknown scaling.
        TypeError: `log_snr` is an integer array, or no array.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 3 for "vp"; Song et al. 2021 (arXiv 2011.13456), sec. 3.4 for
    "ve"; Lipman et al. 2023 (arXiv 2210.02747), eq. 20-22 for "flow".

    >>> level(float("inf")).sigma
    np.float64(0.0)
    """
    check_scaling("levels.level", scaling)
    xp, log_snr = _array.level_array("levels.level", "log_snr", log_snr)
    with _array.quiet(xp):
        alpha, sigma = scalings()[scaling](xp, log_snr)
    return Level(_array.scalar(alpha), _array.scalar(sigma), _array.scalar(log_snr))


_explained.face(__name__)
