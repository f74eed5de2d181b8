r"""What a weight is: alpha^i sigma^j coefficient, with exponents that are known before any value is.

Split that way, a weight that is infinite at clean data and an error that vanishes there meet as exponents, whose sum is
exact, and not as inf * 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffcore import _array, _check, levels
from diffcore._array import Array
from diffcore.levels import Level


class Split(NamedTuple):
    """A weight or a factor as alpha^alpha_power sigma^sigma_power coefficient, alpha^2 + sigma^2 = 1, with `coefficient` finite."""

    alpha_power: float
    sigma_power: float
    coefficient: Array


class At(NamedTuple):
    """Where a weight is evaluated: the namespace, 1, A = sigmoid(lambda), S = sigmoid(-lambda), and d lambda/dt."""

    xp: Any
    one: Array
    alpha2: Array
    sigma2: Array
    slope: Array | None

    def __getattr__(self, name: str) -> Any:
        raise _check.no_field(self, name, "alpha2 is alpha^2, e^lambda is alpha2 / sigma2")


@dataclass(frozen=True)
class Weight(ABC):
    r"""A weight w(lambda) of ||x - x-hat||^2: call it as `weight(level)`, or `weight(level, slope)`.

    A new weight is a frozen dataclass with the method `split` below. (`losses.denoising` also takes any function
    (level, slope) -> array, which is then as finite at the ends as it is itself.)
    """

    @abstractmethod
    def split(self, at: At) -> Split:
        """Return (i, j, c) of w = alpha^i sigma^j c at a level, with c finite and not zero at both ends."""

    def __call__(self, level: Level, slope: Array | None = None) -> Array:
        r"""Return w(lambda) at a level.

        Args:
            level: of any shape; only its `log_snr` is read, so a weight is the same under every scaling.
            slope: d lambda / dt <= 0 of the schedule (`schedule.slope(t)`), a number or of the level's shape; read by `Sigmoid` and
                `VariationalBound` only.

        Returns:
            An array of the level's shape and library, at least float32; 0 or inf at lambda = +-inf where w is.

        Raises:
            ValueError: the weight needs `slope` and it is missing, or it is positive; a slope of another shape.

        >>> from diffcore.levels import level
        >>> from diffcore.weights import MinSNR, V
        >>> MinSNR(5.0)(level(0.0)), V()(level(float("inf")))
        (np.float64(1.0), np.float64(inf))
        """
        xp, unit = unit_level(f"weights.{type(self).__name__}", level)
        with _array.quiet(xp):
            return _array.scalar(product(split(self, level, slope), unit))


def check(function: str, weight: object) -> None:
    """Raise TypeError for what is no weight, such as a number or a class."""
    if not callable(weight) or isinstance(weight, type):
        must = "be a weight, such as diffcore.weights.MinSNR(5.0), or a function (level, slope) -> array"
        hint = f"call it: {weight.__name__}()" if isinstance(weight, type) else ""
        raise _check.error(TypeError, function, "weight", must, weight, hint)


def check_data(function: str, level: Level, /, **arrays: Array) -> Any:
    """Return the namespace of data (B, ...) of equal shapes at a level, or raise."""
    levels.check_level(function, level=level)
    _array.check_data(function, **arrays)
    _check.equal_shapes(function, **arrays)
    return _array.namespace(function, **arrays, **{"level.log_snr": level.log_snr})


def unit_level(function: str, level: Level) -> tuple[Any, Level]:
    """Return (xp, level) with the same log-SNR and alpha^2 + sigma^2 = 1, in at least float32."""
    levels.check_level(function, level=level)
    xp, log_snr = _array.level_array(function, "level.log_snr", level.log_snr)
    unit = levels.level(log_snr, "vp")
    return xp, Level(*(_array.as_array(xp, part) for part in unit))


def split(weight: Weight | Callable[[Level, Any], Array], level: Level, slope: Array | None) -> Split:
    """Return a weight at a level as exponents and a finite coefficient; a plain function has the exponents 0."""
    function = f"weights.{type(weight).__name__}" if isinstance(weight, Weight) else "losses"
    xp, unit = unit_level(function, level)
    lead = tuple(unit.alpha.shape)
    if tuple(getattr(slope, "shape", ())) not in ((), lead):  # else it would broadcast
        must = f"be one number, or one for each level, of shape {lead}"
        raise _check.error(ValueError, function, "slope", must, slope, "pass slope=schedule.slope(t), t of the level")
    if isinstance(weight, Weight):
        parts = weight.split(At(xp, xp.ones_like(unit.alpha), unit.alpha**2, unit.sigma**2, slope))
        if not isinstance(parts, tuple) or len(parts) != len(Split._fields):
            raise _check.error(TypeError, function, "split", "return weights.Split(i, j, coefficient)", parts)
        parts = Split(*parts)
    else:
        parts = Split(0.0, 0.0, weight(level, slope))
    if tuple(getattr(parts.coefficient, "shape", ())) not in ((), lead):
        must = f"return one number, or one for each level, of shape {lead}"
        raise _check.error(ValueError, function, "weight", must, parts.coefficient)
    return parts


def product(parts: Split, unit: Level) -> Array:
    """Return alpha^i sigma^j coefficient. An exponent of 0 is left out, since 0 * inf has no value."""
    return raised(raised(parts.coefficient, unit.alpha, parts.alpha_power), unit.sigma, parts.sigma_power)


def raised(value: Array, base: Array, power: float) -> Array:
    """Return value base^power; an integer power by steps, so that base^2 may underflow where the product does not."""
    if power not in (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0):
        return value * base**power
    for _ in range(abs(int(power))):
        value = value * base if power > 0 else value / base
    return value
