"""One check of a number, an integer, a flag, a choice, an interval, a shape and a type each; one form of message.

    samplers.ancestral: `gamma` must be a number in [0, 1], got 2

and then, where there is one, the way out. TypeError is for a value of the wrong kind, ValueError for a wrong value of the
right kind. NumPy's scalars of every width count as Python's; a bool counts as no number. Arrays are never printed.
"""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import numpy as np

from diffcore import _synonyms

T = TypeVar("T")

LONGEST = 500
"""Characters of the longest message."""


class _Short(reprlib.Repr):
    """Values in few characters: an array by its kind, a number of any size, a class by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring = 2, 80
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = 5

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, type):
            return f"the class {x.__name__}"
        if isinstance(x, np.generic):
            return str(x) if isinstance(x, np.number | np.bool_) else self.repr1(x.item(), level)
        if is_array(x):
            return f"{type(x).__name__} of shape {tuple(x.shape)} and dtype {x.dtype}"
        return super().repr1(x, level)

    def repr_int(self, x: int, _: int) -> str:
        if x.bit_length() <= 128:
            return repr(x)
        return f"{'-' if x < 0 else ''}2^{x.bit_length() - 1}..."  # Python refuses to print ints of 4300 digits

    def repr_instance(self, x: Any, level: int) -> str:
        """What holds arrays, what is long and what cannot be printed goes by its type."""
        parts = x if isinstance(x, tuple) else getattr(x, "__dict__", {}).values()
        text = "" if any(map(is_array, parts)) else super().repr_instance(x, level)
        return text if text and len(text) < self.maxother else f"an object of type {type(x).__name__}"


def is_array(x: object) -> bool:
    """Return whether a value is an array of any library, as far as its attributes say."""
    return isinstance(getattr(x, "shape", None), tuple) and hasattr(x, "dtype") and not isinstance(x, type)


def shown(value: object) -> str:
    """Return a value as messages print it, in at most 120 characters.

    >>> shown(np.float32(0.1)), shown(np.zeros((2, 3))), shown(10**5000)
    ('0.1', 'ndarray of shape (2, 3) and dtype float64', '2^16609...')
    """
    try:
        return cut(_Short().repr(value), 120)
    except Exception:  # such as the shape of a parameter that torch has not made yet
        return f"an object of type {type(value).__name__}"


def error(kind: type[Exception], function: str, argument: str, must: str, value: object, hint: str = "") -> Exception:
    """Return the exception of one form: what an argument must be, what it is, and the way out.

    >>> error(ValueError, "samplers.ancestral", "gamma", "be a number in [0, 1]", 2)
    ValueError('samplers.ancestral: `gamma` must be a number in [0, 1], got 2')
    """
    where = f"{function}: " if function else ""
    return kind(cut(f"{where}`{argument}` must {must}, got {shown(value)}{'; ' + hint if hint else ''}", LONGEST))


def no_field(value: tuple[Any, ...], name: str, hint: str = "") -> AttributeError:
    """Return the error for a field that a named tuple does not have: with those that it has."""
    fields = ", ".join(getattr(type(value), "_fields", ()))
    text = f"{type(value).__name__!r} object has no attribute {name!r}; it has {fields}{'; ' + hint if hint else ''}"
    return AttributeError(text, name=name, obj=value)


def number(
    function: str,
    argument: str,
    value: object,
    low: float | None = None,
    high: float | None = None,
    *,
    open_low: bool = False,
    open_high: bool = False,
    finite: bool = True,
    hint: str = "",
) -> float:
    """Return a number as a float, or raise; the bounds belong to what is allowed unless they are open, NaN never does.

    >>> number("samplers.ancestral", "gamma", np.float16(0.5), 0, 1)
    0.5
    >>> number("samplers.ancestral", "gamma", 2, 0, 1, open_high=True)
    Traceback (most recent call last):
    ValueError: samplers.ancestral: `gamma` must be a number in [0, 1), got 2
    """

    def wrong(kind: type[Exception]) -> Exception:
        noun = "a finite number" if finite and (low is None or high is None) else "a number"
        return error(kind, function, argument, f"be {_within(noun, low, high, open_low, open_high)}", value, hint)

    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise wrong(TypeError)
    try:
        found = float(value)
    except OverflowError:  # an int or a fraction beyond the floats
        found = math.inf if value > 0 else -math.inf  # type: ignore[operator]  # `Real` says no more than `object`
    above = low is None or (found > low if open_low else found >= low)
    below = high is None or (found < high if open_high else found <= high)
    known = -math.inf < found < math.inf if finite else found == found  # torch traces no `math.isnan`
    if not (known and above and below):
        raise wrong(ValueError)
    return found


def integer(
    function: str, argument: str, value: object, low: int | None = 0, high: int | None = None, *, hint: str = ""
) -> int:
    """Return an integer in [low, high] as an int, or raise; 2.0 is none.

    >>> integer("grids.uniform", "steps", np.uint8(4), 1)
    4
    >>> integer("noise.keys", "seed", -1, 0, 2**64 - 1)
    Traceback (most recent call last):
    ValueError: noise.keys: `seed` must be an int in [0, 2^64 - 1], got -1
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise error(TypeError, function, argument, f"be {_within('an int', low, high)}", value, hint)
    found = int(value)
    if (low is not None and found < low) or (high is not None and found > high):
        raise error(ValueError, function, argument, f"be {_within('an int', low, high)}", value, hint)
    return found


MANY = 100_000
"""Of whatever a table is worked out for on the host: steps, points. A slip of the keyboard would not end."""


def count(function: str, argument: str, value: object, low: int = 1, *, hint: str = "") -> int:
    """Return a number of steps or points as an int, in [low, MANY]; see `integer`."""
    found = integer(function, argument, value, low, hint=hint)
    if found > MANY:
        raise error(ValueError, function, argument, f"be {_within('an int', low, MANY)}", value, hint)
    return found


def flag(function: str, argument: str, value: object, *, hint: str = "") -> bool:
    """Return True or False, or raise for anything that is neither."""
    if not isinstance(value, bool | np.bool_):
        raise error(TypeError, function, argument, "be True or False", value, hint)
    return bool(value)


def choice(
    function: str,
    argument: str,
    value: object,
    choices: Collection[T],
    *,
    hint: str = "",
    others: Collection[str] = (),
) -> T:
    """Return the choice that a value equals, or raise, with the nearest one where a name is misspelt or another library's.

    The caller also takes the names in `others`, and has looked for them.

    >>> choice("predictions.convert", "source", "vv", ("eps", "v", "x"))
    Traceback (most recent call last):
    ValueError: predictions.convert: `source` must be 'eps', 'v' or 'x', got 'vv'; did you mean 'v'?
    """
    plain = value.item() if isinstance(value, np.generic) else value
    for option in choices:
        if plain is option or (type(option) in _kinds(plain) and plain == option):
            return option
    names = [*(str(option) for option in choices if isinstance(option, str)), *others]
    near, grid = _synonyms.meant(plain[:LONGEST], names) if isinstance(plain, str) else ("", "")
    if near:
        spaced = f" with grid=grids.by_name({grid!r}, schedule, steps)" if grid else ""
        hint = f"did you mean {near!r}{spaced}?" + (f" {hint}" if hint else "")
    kind = ValueError if any(type(option) in _kinds(plain) for option in choices) else TypeError
    raise error(kind, function, argument, f"be {_either(choices)}", value, hint)


def interval(
    function: str,
    argument: str,
    value: object,
    low: float | None = None,
    high: float | None = None,
    *,
    equal: bool = False,
    finite: bool = True,
    hint: str = "",
) -> tuple[float, float]:
    """Return two numbers (first, last) in [low, high], first < last, or first <= last where they may be `equal`.

    >>> interval("guidance.classifier_free", "interval", (3, 1))
    Traceback (most recent call last):
    ValueError: guidance.classifier_free: `interval` must be two finite numbers, (first, last) with first < last,
    got (3, 1)
    """
    noun = "two finite numbers" if finite and (low is None or high is None) else "two numbers"
    must = f"be {_within(noun, low, high)}, (first, last) with first {'<=' if equal else '<'} last"
    entries = _entries(value)
    if entries is None or len(entries) != 2:
        raise error(TypeError, function, argument, must, value, hint)
    try:
        first, last = (number(function, argument, entry, low, high, finite=finite) for entry in entries)
    except (TypeError, ValueError) as wrong:
        raise error(type(wrong), function, argument, must, value, hint) from None
    if not (first < last or (equal and first == last)):
        raise error(ValueError, function, argument, must, value, hint)
    return first, last


def shape(
    function: str, argument: str, value: object, form: str = "(B, ...)", *, least: int = 0, hint: str = ""
) -> tuple[int, ...]:
    """Return a shape as a tuple of ints >= `least`, or raise; a final "..." of the form stands for any more axes.

    >>> shape("sample", "shape", [2, np.int64(3)])
    (2, 3)
    >>> shape("sample", "shape", (2, 3), "(B, T, H, W, C)", least=1)
    Traceback (most recent call last):
    ValueError: sample: `shape` must be (B, T, H, W, C), ints >= 1, got (2, 3)
    """
    must = f"be {form}, ints >= {least}"
    axes = form.strip("()").split(", ") if form != "()" else []
    fixed = len(axes) - ("..." in axes)
    entries = _entries(value)
    if entries is None:
        raise error(TypeError, function, argument, must, value, hint)
    try:
        sizes = tuple(integer(function, argument, size, least) for size in entries)
    except (TypeError, ValueError) as wrong:
        raise error(type(wrong), function, argument, must, value, hint) from None
    if len(sizes) < fixed or (len(sizes) > fixed and "..." not in axes):
        raise error(ValueError, function, argument, must, value, hint)
    return sizes


def equal_shapes(function: str, /, hint: str = "", **arrays: Any) -> tuple[int, ...]:
    """Return the one shape that the named arrays have, or raise ValueError with the first two that differ.

    >>> equal_shapes("losses.denoising", x=np.ones((2, 3)), eps=np.ones((2, 1)))
    Traceback (most recent call last):
    ValueError: losses.denoising: `x` and `eps` must have equal shapes, got (2, 3) and (2, 1)
    """
    (first, array), *rest = arrays.items()
    found = tuple(array.shape)
    for other, entry in rest:
        if tuple(entry.shape) != found:
            text = f"{function}: `{first}` and `{other}` must have equal shapes, got {found} and {tuple(entry.shape)}"
            raise ValueError(cut(text + ("; " + hint if hint else ""), LONGEST))
    return found


def instance(
    function: str, argument: str, value: object, types: type[T] | tuple[type[T], ...], what: str, *, hint: str = ""
) -> T:
    """Return a value of the given types, or raise TypeError; a class in place of its instance is seen.

    >>> instance("samplers.ancestral", "schedule", int, float | int, "a schedule, such as schedules.Cosine()")
    Traceback (most recent call last):
    TypeError: samplers.ancestral: `schedule` must be a schedule, such as schedules.Cosine(), got the class int; call it: int()
    """
    if isinstance(value, types):
        return value
    if isinstance(value, type) and issubclass(value, types):
        hint = f"call it: {value.__name__}()"
    elif hasattr(value, "__explained__"):
        hint = f"call it: {getattr(value, '__name__', argument)}(...)"
    raise error(TypeError, function, argument, f"be {what}", value, hint)


def callable_(function: str, argument: str, value: object, what: str, *, hint: str = "") -> Callable[..., Any]:
    """Return what can be called, or raise TypeError.

    >>> callable_("sample", "denoise", 3, "a function of (z, log_snr)")
    Traceback (most recent call last):
    TypeError: sample: `denoise` must be a function of (z, log_snr), got 3
    """
    if not callable(value):
        raise error(TypeError, function, argument, f"be {what}", value, hint)
    return value


def _entries(value: object) -> tuple[Any, ...] | None:
    """Return the entries of a tuple, a list or a NumPy vector, else None."""
    return tuple(value) if isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim) else None


def _within(noun: str, low: float | None, high: float | None, open_low: bool = False, open_high: bool = False) -> str:
    """Return a noun with its bounds: "a number in [0, 1)", "an int >= 1"."""
    if low is not None and high is not None:
        return f"{noun} in {'(' if open_low else '['}{_bound(low)}, {_bound(high)}{')' if open_high else ']'}"
    if low is not None:
        return f"{noun} {'>' if open_low else '>='} {_bound(low)}"
    if high is not None:
        return f"{noun} {'<' if open_high else '<='} {_bound(high)}"
    return noun


def _bound(value: float) -> str:
    """Return a bound: a whole number without its point, the largest of an unsigned type as a power."""
    if isinstance(value, int) and value >= 2**16 - 1 and value & (value + 1) == 0:
        return f"2^{value.bit_length()} - 1"
    return str(value).removesuffix(".0")


def _kinds(value: object) -> tuple[type, ...]:
    """Return the types of choices that a value may equal: True is not 1."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return (bool,) if isinstance(value, bool) else ()
    return (str,) if isinstance(value, str) else (int, float)


def _either(choices: Collection[object]) -> str:
    """Return "'a', 'b' or 'c'", of many as many as fit."""
    words = [shown(option) for option in choices]
    text = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)
    return text if len(text) <= 250 else f"one of {len(words)} choices: {text[: text.rindex(',', 0, 200)]}, ..."


def cut(text: str, longest: int = 200) -> str:
    """Return the beginning of a text that came from elsewhere, such as another library's message."""
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."


def counted(count: int, noun: str) -> str:
    """Return a number of things in words.

    >>> counted(1, "frame"), counted(0, "clip")
    ('1 frame', '0 clips')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"
