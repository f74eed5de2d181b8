"""What a rule of guidance is: how the conditional and the unconditional prediction make the guided one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from diffcore import _check
from diffcore._array import Array


class At(NamedTuple):
    """What a rule gets, in the space it works in and at least float32."""

    xp: Any
    c: Array
    u: Array
    difference: Array
    """c - u; for a rule with momentum, its running sum."""
    weight: Any
    """w, a number or lined up with c."""
    log_snr: Array

    def __getattr__(self, name: str) -> Any:
        raise _check.no_field(self, name, "the weight is w of (1 + w) c - w u, scale - 1")


class Rule(ABC):
    """A rule: a frozen dataclass that maps an `At` to the guided prediction, of the shape of c.

    A rule of one's own is a subclass of this one:

        @dataclass(frozen=True)
        class Half(guidance.Rule):
            space: ClassVar = "x"                  # what c and u are: "x", "eps", "flow", ... or None, where it does not matter

            def __call__(self, at):
                return at.c + 0.5 * at.weight * at.difference
    """

    space: ClassVar[str | None] = None
    momentum: float = 0.0

    @abstractmethod
    def __call__(self, at: At) -> Array:
        """Return the guided prediction."""


def axes_of(over: tuple[int, ...] | None, array: Array) -> tuple[int, ...]:
    """Return the axes that a norm goes over: those given, or all but the first."""
    return tuple(range(1, array.ndim)) if over is None else tuple([axis % array.ndim for axis in over])


def check_over(function: str, over: object) -> tuple[int, ...] | None:
    """Return axes as a tuple, or raise."""
    if over is None:
        return None
    entries = (over,) if isinstance(over, int) else over
    if not isinstance(entries, (tuple, list)) or not entries:
        raise _check.error(TypeError, function, "over", "be an axis or a tuple of axes, such as -1, or None", over)
    return tuple([_check.integer(function, "over", axis, None) for axis in entries])


def dot(xp: Any, a: Array, b: Array, axes: tuple[int, ...]) -> Array:
    """Return the inner product over some axes, which stay with size 1."""
    return xp.sum(a * b, axis=axes, keepdims=True)


def divided(xp: Any, a: Array, b: Array) -> Array:
    """Return a / b, and 0 where b = 0, with a gradient that is finite there too."""
    some = b != 0.0
    return xp.where(some, a / xp.where(some, b, xp.ones_like(b)), xp.zeros_like(a))


def at_most(xp: Any, squared: Array, limit: Any) -> Array:
    """Return min(1, limit / norm) for a squared norm; the square root is only taken where the norm is above the limit."""
    above = squared > limit**2
    return xp.where(above, limit / xp.sqrt(xp.where(above, squared, xp.ones_like(squared))), xp.ones_like(squared))
