"""The standard normal quantile in plain array code, which no array standard has."""

from __future__ import annotations

import math
from typing import Any

from diffcore._array import Array


def normal_quantile(xp: Any, p: Array) -> Array:
    """Return Phi^{-1}(p), the standard normal quantile, for p in [0, 1]; -inf and inf at the ends.

    Source: Wichura 1988, algorithm AS 241 (PPND16), relative error 1e-16.

    >>> import numpy as np
    >>> normal_quantile(np, np.array([0.5, 0.975])).round(6)
    array([0.      , 1.959964])
    """
    one = xp.ones_like(p)
    centred = p - 0.5
    middle = xp.abs(centred) <= 0.425
    r = 0.180625 - xp.where(middle, centred, 0.0 * one) ** 2
    near = centred * _ratio(r, _NEAR)
    tail = xp.where(centred < 0, p, 1.0 - p)
    inner = ~middle & (tail > 0.0)
    root = xp.sqrt(-xp.log(xp.where(inner, tail, 0.25 * one)))
    far = xp.where(root <= 5.0, _ratio(root - 1.6, _MIDDLE), _ratio(root - 5.0, _FAR))
    far = xp.where(tail > 0.0, far, math.inf * one)
    return xp.where(middle, near, xp.where(centred < 0, -far, far))


def _ratio(r: Array, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    above, below = (_polynomial(r, part) for part in coefficients)
    return above / below


def _polynomial(r: Array, coefficients: tuple[float, ...]) -> Array:
    total = coefficients[-1] * r + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * r + coefficient
    return total


# fmt: off
_NEAR = (
    (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
     45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
    (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
     21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
)
_MIDDLE = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
     1.27045825245236838258, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)
_FAR = (
    (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)
# fmt: on
