"""Every check takes all that is meant, refuses all that is not, and says so in one form of message."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from libraries import every_framework, namespace

import diffcore as dc
from diffcore import _check

INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.intp, np.longlong, int]
FLOATS = [np.float16, np.float32, np.float64, np.longdouble, float]
NO_NUMBERS = [
    True,
    np.True_,
    "2",
    b"2",
    None,
    2j,
    np.complex64(2),
    [2],
    (2,),
    {},
    object(),
    float,
    np.ones(1),
    np.array(2.0),
]


@pytest.mark.parametrize("kind", INTEGERS)
def test_an_integer_is_one_in_every_width(kind: Any) -> None:
    found = _check.integer("f", "n", kind(3), 1, 3)
    assert (found, type(found)) == (3, int)
    assert type(_check.number("f", "n", kind(3), 1, 3)) is float
    assert _check.choice("f", "n", kind(3), (1, 2, 3)) == 3


@pytest.mark.parametrize("kind", [*FLOATS, Fraction])
def test_a_number_is_one_in_every_width_and_no_integer(kind: Any) -> None:
    found = _check.number("f", "n", kind(2))
    assert (found, type(found)) == (2.0, float)
    with pytest.raises(TypeError, match=r"^f: `n` must be an int >= 0, got "):
        _check.integer("f", "n", kind(2.0))


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_what_is_no_number_is_a_type_error(value: Any) -> None:
    for call in (_check.number, _check.integer):
        with pytest.raises(TypeError, match=r"^f: `n` must be an? (finite number|int >= 0), got "):
            call("f", "n", value)


@every_framework
def test_an_array_of_no_axes_is_no_number(library: str) -> None:
    xp = namespace(library)
    for value in (np.array(2.0), xp.ones(()), xp.ones((2, 3))):
        for call in (_check.number, _check.integer):
            with pytest.raises(TypeError, match=rf"got \w+ of shape \({', '.join(map(str, value.shape))}\) and dtype"):
                call("f", "n", value)


@pytest.mark.parametrize(
    ("settings", "inside", "outside", "text"),
    [
        ({}, [-1e308, 0, 10**300], [math.inf, -math.inf, 10**400, -(10**400), Fraction(10**400)], "a finite number"),
        ({"finite": False}, [math.inf, -math.inf, 10**400], [], "a number"),
        (
            {"low": 0, "high": 1},
            [0, 1, np.float16(0.5)],
            [-5e-324, 1.0000000000000002, math.inf],
            r"a number in \[0, 1\]",
        ),
        ({"low": 0, "high": 1, "open_low": True}, [5e-324, 1], [0, -0.0], r"a number in \(0, 1\]"),
        ({"low": 0.0, "high": 1.5, "open_high": True}, [0], [1.5], r"a number in \[0, 1.5\)"),
        ({"low": 0}, [0, 1e300], [-1, math.inf], "a finite number >= 0"),
        ({"low": 0, "open_low": True, "finite": False}, [5e-324, math.inf], [0], "a number > 0"),
        ({"high": 2}, [2, -1e300], [3, -math.inf], "a finite number <= 2"),
        ({"high": 2, "open_high": True}, [1], [2], "a finite number < 2"),
    ],
)
def test_bounds_of_a_number(settings: dict[str, Any], inside: list[Any], outside: list[Any], text: str) -> None:
    for value in inside:
        _check.number("f", "x", value, **settings)
    for value in [*outside, math.nan, np.float32("nan")]:
        with pytest.raises(ValueError, match=rf"^f: `x` must be {text}, got [^;]+$"):
            _check.number("f", "x", value, **settings)


@pytest.mark.parametrize(
    ("low", "high", "inside", "outside", "text"),
    [
        (0, None, [0, 10**400], [-1], "an int >= 0"),
        (None, None, [-(10**400), 10**400], [], "an int"),
        (None, 7, [-3, 7], [8], "an int <= 7"),
        (1, 3, [1, 3], [0, 4], r"an int in \[1, 3\]"),
        (0, 2**64 - 1, [2**64 - 1], [2**64, 10**5000], r"an int in \[0, 2\^64 - 1\]"),
        (0, 2**32 - 2, [0], [-1], r"an int in \[0, 4294967294\]"),
    ],
)
def test_bounds_of_an_integer(low: Any, high: Any, inside: list[Any], outside: list[Any], text: str) -> None:
    for value in inside:
        assert _check.integer("f", "n", value, low, high) == value
    for value in outside:
        with pytest.raises(ValueError, match=rf"^f: `n` must be {text}, got \S+$"):
            _check.integer("f", "n", value, low, high)


def test_the_way_out_comes_last() -> None:
    with pytest.raises(
        ValueError, match=r"^samplers.ddim: `eta` must be a number in \[0, 1\], got 2; give sqrt\(eta\)$"
    ):
        _check.number("samplers.ddim", "eta", 2, 0, 1, hint="give sqrt(eta)")
    with pytest.raises(ValueError, match=r"^`eta` must be an int >= 0, got -1$"):
        _check.integer("", "eta", -1)


@pytest.mark.parametrize("value", [True, False, np.True_, np.False_])
def test_a_flag(value: Any) -> None:
    assert _check.flag("f", "x", value) is bool(value)


@pytest.mark.parametrize("value", [0, 1, "True", None, np.int64(1), np.array(True)], ids=repr)
def test_no_flag(value: Any) -> None:
    with pytest.raises(TypeError, match="`x` must be True or False, got "):
        _check.flag("f", "x", value)


def test_a_choice_is_returned_as_it_stands_in_the_list() -> None:
    for value, choices in [(np.str_("v"), ("eps", "v")), (np.int8(2), (1, 2, 3)), (2.0, (1, 2)), (None, ("v", None))]:
        found = _check.choice("f", "x", value, choices)
        assert found == value
        assert any(found is option for option in choices)
    assert _check.choice("f", "x", "v", {"v": 1}.keys()) == "v"


@pytest.mark.parametrize(
    ("value", "choices", "kind", "text"),
    [
        ("Eps", ("eps", "v", "x"), ValueError, r"'eps', 'v' or 'x', got 'Eps'; did you mean 'eps'\?$"),
        ("cosinus", ["cosine", "linear"], ValueError, r"'cosine' or 'linear', got 'cosinus'; did you mean 'cosine'\?$"),
        ("zzz", ("eps", "v"), ValueError, "'eps' or 'v', got 'zzz'$"),
        (4, (1, 2, 3), ValueError, "1, 2 or 3, got 4$"),
        (math.nan, (1, 2), ValueError, "1 or 2, got nan$"),
        (True, (1, 2), TypeError, "1 or 2, got True$"),
        (1, (True, False), TypeError, "True or False, got 1$"),
        (3, ("eps", "v"), TypeError, "'eps' or 'v', got 3$"),
        (None, ("v",), TypeError, "'v', got None$"),
        ([], ("v", "x"), TypeError, r"'v' or 'x', got \[\]$"),
        (np.array(["v"]), ("v", "x"), TypeError, r"'v' or 'x', got ndarray of shape \(1,\) and dtype <U1$"),
        ("nil", [f"choice{i}" for i in range(99)], ValueError, r"one of 99 choices: 'choice0', .*\.\.\., got 'nil'"),
    ],
)
def test_what_is_no_choice(value: Any, choices: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=rf"^f: `x` must be {text}"):
        _check.choice("f", "x", value, choices)


def test_an_interval() -> None:
    for value in ((0, 1), [np.float32(0), np.uint8(1)], np.array([0, 1])):
        found = _check.interval("f", "x", value)
        assert found == (0.0, 1.0)
        assert {type(end) for end in found} == {float}
    assert _check.interval("f", "x", (0, math.inf), 0, finite=False) == (0.0, math.inf)
    assert _check.interval("f", "x", (1, 1), equal=True) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("value", "settings", "kind", "text"),
    [
        ((1, 1), {}, ValueError, r"two finite numbers, \(first, last\) with first < last, got \(1, 1\)"),
        ((2, 1), {"equal": True}, ValueError, "two finite numbers, .* first <= last, got "),
        ((0, 2), {"low": 0, "high": 1}, ValueError, r"two numbers in \[0, 1\], "),
        ((0, math.inf), {}, ValueError, "two finite numbers, "),
        ((math.nan, 1), {"finite": False}, ValueError, "two numbers, "),
        ((0, True), {}, TypeError, r"two finite numbers, .* got \(0, True\)"),
        ("01", {}, TypeError, "two finite numbers, .* got '01'"),
        ((1, 2, 3), {}, TypeError, "two finite numbers, "),
        (np.ones((2, 2)), {}, TypeError, "two finite numbers, .* got ndarray"),
        (2, {}, TypeError, "two finite numbers, .* got 2"),
        ([[1], [2, 3]], {}, TypeError, "two finite numbers, "),
    ],
)
def test_no_interval(value: Any, settings: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=f"^f: `x` must be {text}"):
        _check.interval("f", "x", value, **settings)


def test_a_shape() -> None:
    for value in ((2, 3), [2, 3], np.array([2, 3]), (np.uint8(2), np.int64(3))):
        found = _check.shape("f", "shape", value)
        assert found == (2, 3)
        assert {type(size) for size in found} == {int}
    assert _check.shape("f", "shape", (), "(...)") == ()
    assert _check.shape("f", "shape", (), "()") == ()
    assert _check.shape("f", "shape", (0, 1, 1, 1, 3), "(B, T, H, W, C)") == (0, 1, 1, 1, 3)


@pytest.mark.parametrize(
    ("value", "settings", "kind", "text"),
    [
        ((), {}, ValueError, r"\(B, \.\.\.\), ints >= 0, got \(\)"),
        ((-1,), {}, ValueError, r"\(B, \.\.\.\), ints >= 0, got \(-1,\)"),
        ((0,), {"least": 1}, ValueError, r"\(B, \.\.\.\), ints >= 1, got \(0,\)"),
        ((1, 2), {"form": "(B, T, C)"}, ValueError, r"\(B, T, C\), ints >= 0, got \(1, 2\)"),
        ((1, 2, 3, 4), {"form": "(B, T, C)"}, ValueError, r"\(B, T, C\), "),
        ((1,), {"form": "()"}, ValueError, r"\(\), "),
        ((1, True), {}, TypeError, "got "),
        ((1, 2.0), {}, TypeError, "got "),
        (4, {}, TypeError, "got 4"),
        ("22", {}, TypeError, "got '22'"),
        (np.ones((1, 1), int), {}, TypeError, "got ndarray"),
        ([[1], [1, 2]], {}, TypeError, "got "),
    ],
)
def test_no_shape(value: Any, settings: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=f"^f: `shape` must be .*{text}"):
        _check.shape("f", "shape", value, **settings)


@every_framework
def test_equal_shapes(library: str) -> None:
    x, y = namespace(library).ones((2, 3)), namespace(library).ones((2, 1))
    assert _check.equal_shapes("f", x=x, y=x) == (2, 3)
    with pytest.raises(
        ValueError, match=r"^f: `x` and `z` must have equal shapes, got \(2, 3\) and \(2, 1\); give both$"
    ):
        _check.equal_shapes("f", "give both", x=x, y=x, z=y)


def test_an_instance_and_its_class() -> None:
    schedule = dc.schedules.Cosine()
    base, what = dc.schedules.Schedule, "a schedule, such as schedules.Cosine()"
    assert _check.instance("f", "schedule", schedule, base, what) is schedule
    with pytest.raises(TypeError, match=r"must be a schedule, .*, got the class Cosine; call it: Cosine\(\)$"):
        _check.instance("f", "schedule", dc.schedules.Cosine, base, what)
    with pytest.raises(TypeError, match=r"got 'cosine'; look$"):
        _check.instance("f", "schedule", "cosine", (base, int), what, hint="look")


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


CONTENT = "123.25"
LONG: dict[str, Callable[[], Any]] = {
    "an int that Python refuses to print": lambda: 10**5000,
    "a negative one": lambda: -(10**5000),
    "a fraction of two": lambda: Fraction(10**5000, 3),
    "text": lambda: "x" * 10**6,
    "bytes": lambda: b"x" * 10**6,
    "a list": lambda: [CONTENT * 99] * 10**5,
    "nested": lambda: [[["x" * 999] * 99] * 99] * 99,
    "a dict": lambda: dict.fromkeys(range(999), "y" * 99),
    "a large array": lambda: np.full(10**6, float(CONTENT)),
    "a small array": lambda: np.full(2, float(CONTENT)),
    "an array in a list": lambda: [np.full(2, float(CONTENT))],
    "a level": lambda: dc.Level(*np.full((3, 2), float(CONTENT))),
    "what has an array": lambda: dc.exact.Gaussian(np.full(2, float(CONTENT)), 1.0),
    "what cannot be printed": _Unprintable,
    "a decimal": lambda: Decimal("1" * 9999),
}


@pytest.mark.parametrize("case", LONG)
def test_a_message_is_short_and_shows_no_array(case: str) -> None:
    value = LONG[case]()
    for call in (
        lambda: _check.integer("f" * 99, "n", value, 0, 2, hint="h" * 999),
        lambda: _check.choice("f", "x", value, [f"c{i}" * 40 for i in range(9)], hint="h" * 999),
        lambda: _check.interval("f", "x", value),
        lambda: _check.shape("f", "x", value, "(B)"),
        lambda: _check.instance("f", "x", value, dc.Plan, "a plan", hint="h" * 999),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert len(str(caught.value)) <= 500
    assert len(_check.shown(value)) <= 120
    assert "array" not in case or CONTENT not in str(_check.shown(value))
    assert "level" not in case or CONTENT not in str(_check.shown(value))


@pytest.mark.torch
def test_a_compiled_function_may_check() -> None:
    import torch

    @torch.compile(fullgraph=True, backend="eager", dynamic=True)
    def scaled(x: Any, factor: Any) -> Any:
        _check.shape("f", "shape", tuple(x.shape))
        _check.integer("f", "axes", len(x.shape), 1)
        _check.equal_shapes("f", x=x, y=x)
        _check.choice("f", "mode", "b", ("a", "b"))
        return x * _check.number("f", "factor", factor, 0, 3)

    assert scaled(torch.ones(2, 3), 2.0).tolist() == [[2.0] * 3] * 2
    assert scaled(torch.ones(3, 3), 3).shape == (3, 3)
