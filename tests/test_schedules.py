"""Schedules: one battery over a table of all of them, against 60-digit arithmetic, on every library."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import json
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
from schedule_cases import CASES, INF, mpf

from diffcore import schedules
from diffcore.schedules import (
    Cosine,
    Flow,
    Geometric,
    Karras,
    Laplace,
    LinearBeta,
    LinearLogSNR,
    Schedule,
    Sigmoid,
    truncate,
)

ON_HOST = {"monotone"}  # has parameters of one library; test_schedule_tables.py tries it on the others
LIBRARIES = {
    "numpy": (),
    "array_api_strict": (),
    "torch": (pytest.mark.torch,),
    "jax.numpy": (pytest.mark.jax,),
}
FLAT = {"cosine, clean half", "linear beta, constant", "sigmoid, flat", "linear vp", "cauchy, endless"}
SOME = [name for name in CASES if name not in {*FLAT, *ON_HOST}]
COMPILED = list({type(CASES[name][0]): name for name in reversed(SOME) if name != "by time"}.values())
"""One schedule of each kind, for compilers."""
BATTERY = [
    pytest.param(name, library, dtype, marks=marks)
    for at, (library, marks) in enumerate(LIBRARIES.items())
    for number, name in enumerate(CASES if library == "numpy" else SOME)
    for dtype in ("float32", "float64")
    if library == "numpy" or dtype == ("float32", "float64")[(number + at) % 2]
    if library != "jax.numpy" or name not in {"interpolated", "by time"}  # a long search, slow unless jitted
]
INSIDE = np.concatenate(
    [np.linspace(0.0, 1.0, 42)[1:-1], 10.0 ** -np.arange(2, 8), 1 - 2.0 ** -np.arange(7, 24, 2), [0.5]]
)


@pytest.fixture(scope="module", autouse=True)
def _sixty_digits() -> Iterator[None]:
    with mpmath.workdps(60):
        yield


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.contextmanager
def arrays(library: str, dtype: str) -> Iterator[Callable[[Any], Any]]:
    """Yield the function that makes arrays; JAX has float64 inside."""
    xp = importlib.import_module(library)
    with contextlib.ExitStack() as stack:
        if library == "jax.numpy" and dtype == "float64":
            stack.enter_context(importlib.import_module("jax").enable_x64(True))
        stack.enter_context(np.errstate(all="ignore" if library == "array_api_strict" else "warn"))
        yield lambda values: xp.asarray(np.asarray(values, dtype=dtype))


def host(array: Any) -> Any:
    return np.asarray(array, dtype=np.float64)


@functools.cache
def truth(name: str, dtype: str) -> tuple[list[Any], list[Any]]:
    """Return lambda and its slope at the times INSIDE, as they are in the dtype."""
    formula = CASES[name][1]
    with mpmath.workdps(60):
        times = [mpf(float(t)) for t in INSIDE.astype(dtype)]
        return [formula(t) for t in times], [mpmath.diff(formula, t, h=mpf(10) ** -25) for t in times]


def worst(found: Any, expected: list[Any], dtype: str, scale: Callable[[Any], Any]) -> float:
    eps = mpf(float(np.finfo(dtype).eps))
    pairs = zip(host(found), expected, strict=True)
    return max(float(abs(mpf(float(one)) - other) / (eps * scale(other))) for one, other in pairs)


def test_every_schedule_is_in_the_table() -> None:
    kinds = {kind for _, kind in inspect.getmembers(schedules, inspect.isclass) if issubclass(kind, Schedule)}
    assert {type(schedule) for schedule, _ in CASES.values()} == kinds - {Schedule}


@pytest.mark.parametrize(("case", "library", "dtype"), BATTERY)
def test_log_snr_and_slope_are_their_formulas_at_60_digits(case: str, library: str, dtype: str) -> None:
    """To 12 units in the last place of max(1, |lambda|), in float32 too, at t = 1 - 2^-23 too."""
    schedule, (log_snrs, slopes) = CASES[case][0], truth(case, dtype)
    with arrays(library, dtype) as make:
        t = make(INSIDE)
        found, slope = schedule.log_snr(t), schedule.slope(t)
    assert found.dtype == slope.dtype == t.dtype
    assert worst(found, log_snrs, dtype, lambda value: max(1, abs(value))) <= 12
    knots = np.isin(INSIDE, np.linspace(0.0, 1.0, 6)) if case == "table" else np.zeros(INSIDE.shape, dtype=bool)
    assert worst(host(slope)[~knots], list(np.array(slopes)[~knots]), dtype, abs) <= 12


@pytest.mark.parametrize(("case", "library", "dtype"), BATTERY)
def test_time_is_the_inverse_both_ways(case: str, library: str, dtype: str) -> None:
    """To 4 units of what the numbers resolve: those of t, and those of lambda through the slope."""
    schedule, eps = CASES[case][0], float(np.finfo(dtype).eps)
    with arrays(library, dtype) as make:
        t = host(make(INSIDE))
        log_snr, slope = host(schedule.log_snr(make(t))), host(schedule.slope(make(t)))
        back = host(schedule.time(make(log_snr)))
        assert np.all(np.abs(back - t) <= 4 * eps * (t + np.maximum(1.0, np.abs(log_snr)) / np.abs(slope)))
        levels = np.linspace(schedule.log_snr(1.0 - 2.0**-10), schedule.log_snr(2.0**-10), 33)
        levels = host(make(levels))
        at = schedule.time(make(levels))
        assert np.all((host(at) >= 0.0) & (host(at) <= 1.0))
        error = np.abs(host(schedule.log_snr(at)) - levels)
        resolved = np.maximum(1.0, np.abs(levels)) + np.abs(host(schedule.slope(at))) * host(at)
        assert np.all(error <= 4 * eps * resolved)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_decreases_from_end_to_end_and_is_never_nan(case: str, dtype: str) -> None:
    schedule = CASES[case][0]
    t = np.linspace(0.0, 1.0, 2049, dtype=dtype)
    log_snr = schedule.log_snr(t)
    assert np.all(np.diff(log_snr) < 0.0)
    assert np.all(schedule.slope(t) < 0.0)
    assert np.all(np.diff(schedule.time(log_snr)) > 0.0)
    np.testing.assert_array_equal(schedule.time(np.array([INF, -INF], dtype=dtype)), [0.0, 1.0])
    unknown = np.full(1, np.nan, dtype=dtype)
    assert np.isnan(schedule.log_snr(unknown))
    assert np.isnan(schedule.time(unknown))


@pytest.mark.parametrize(
    ("schedule", "top", "bottom"),
    [
        (Cosine(), 20.0, -20.0),
        (Cosine(log_snr_min=-3.0, log_snr_max=INF), INF, -3.0),
        (Cosine(log_snr_min=-INF, log_snr_max=3.0), 3.0, -INF),
        (Geometric(), -2.0 * math.log(0.01), -2.0 * math.log(50.0)),
        (Karras(), -2.0 * math.log(0.002), -2.0 * math.log(80.0)),
        (LinearLogSNR(log_snr_min=-7.3, log_snr_max=11.1), 11.1, -7.3),
        (truncate(Flow(), -9.0, 13.0), 13.0, -9.0),
        (truncate(Laplace(), -INF, 2.0), 2.0, -INF),
        (truncate(Sigmoid(), -30.0, -25.0), -25.0, -30.0),
        (Flow(), INF, -INF),
        (Sigmoid(), INF, -INF),
        (LinearBeta(), INF, -math.log(math.expm1(10.05))),
    ],
)
def test_the_ends_are_the_ends_to_a_few_ulp(schedule: Schedule, top: float, bottom: float) -> None:
    np.testing.assert_allclose(schedule.log_snr(np.array([0.0, 1.0])), [top, bottom], rtol=1e-15)
    found = schedule.log_snr(np.array([0.0, 1.0], dtype=np.float32))
    np.testing.assert_allclose(found, [top, bottom], rtol=5e-7)


def test_of_a_number_it_is_a_numpy_scalar_and_halves_are_widened(case: str) -> None:
    schedule = CASES[case][0]
    for call in (schedule.log_snr, schedule.time, schedule.slope):
        assert isinstance(call(0.25), np.float64)
        assert call(np.full((2, 0), 0.25, dtype=np.float16)).dtype == np.float32
        assert call(np.full((2, 3), 0.25)).shape == (2, 3)
        with pytest.raises(TypeError, match=r"schedules\.\w+\.\w+: `(t|log_snr)` has dtype int64, .* cast it first"):
            call(np.arange(3))
    level = schedule(np.array([0.25]))
    np.testing.assert_allclose(2.0 * np.log(level.alpha / level.sigma), level.log_snr, rtol=1e-12)


def test_it_is_a_value(case: str) -> None:
    schedule: Any = CASES[case][0]
    if case not in ON_HOST:
        assert pickle.loads(pickle.dumps(schedule)) == schedule
        assert hash(dataclasses.replace(schedule)) == hash(schedule)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.scaling = "ve"


@pytest.mark.torch
@pytest.mark.parametrize("case", COMPILED)
def test_on_torch_it_compiles_maps_differentiates_and_knows_shapes_alone(case: str) -> None:
    import torch

    schedule = CASES[case][0]
    t = torch.tensor(np.linspace(0.03, 0.98, 6).reshape(2, 3))
    log_snr, slope = schedule.log_snr(t), schedule.slope(t)

    def everything(t: Any, log_snr: Any) -> Any:
        return schedule(t).sigma, schedule.slope(t), schedule.time(log_snr)

    torch._dynamo.reset()  # so that no case counts as another's recompilation
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(t, log_snr), everything(t, log_snr))
    torch.testing.assert_close(torch.func.vmap(everything)(t, log_snr), everything(t, log_snr))
    derivative = torch.func.vmap(torch.func.vmap(torch.func.grad(schedule.log_snr)))
    inverse = torch.func.vmap(torch.func.vmap(torch.func.grad(schedule.time)))
    torch.testing.assert_close(derivative(t), slope, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(inverse(log_snr), 1.0 / slope, rtol=1e-9, atol=0.0)
    assert schedule.log_snr(t.to(torch.bfloat16)).dtype == torch.float32
    meta = everything(t.to("meta"), t.to("meta"))
    assert all(part.shape == (2, 3) and part.device.type == "meta" for part in meta)


@pytest.mark.jax
@pytest.mark.parametrize("case", COMPILED)
def test_on_jax_it_jits_maps_and_differentiates(case: str) -> None:
    import jax

    schedule = CASES[case][0]
    with arrays("jax.numpy", "float64") as make:
        t = make(np.linspace(0.03, 0.98, 6))

        def everything(schedule: Any, t: Any) -> Any:
            level = schedule(t)
            slopes = jax.vmap(jax.grad(schedule.log_snr))(t), jax.vmap(jax.grad(schedule.time))(level.log_snr)
            return level, schedule.slope(t), *slopes

        jitted, slope, of_log_snr, of_time = jax.jit(everything, static_argnums=0)(schedule, t)  # a value: static
        for one, other in zip(jitted, schedule(np.asarray(t)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(of_log_snr, slope, rtol=1e-10)
        np.testing.assert_allclose(of_time, 1.0 / slope, rtol=1e-9)


@pytest.mark.parametrize("name", schedules.table())
def test_a_schedule_is_read_back_from_plain_values(name: str) -> None:
    schedule = schedules.table()[name]
    again = schedules.from_dict(json.loads(json.dumps(schedules.to_dict(schedule))))
    assert again == schedule
    assert type(again).__name__ == name


def test_plain_values_that_are_no_schedule_are_refused() -> None:
    class Mine(schedules.Cosine):
        """A kind that no other program knows."""

    for call, error, words in (
        (lambda: schedules.to_dict(Mine()), TypeError, r"got Mine.*schedules\.Table\(log_snrs="),
        (lambda: schedules.from_dict({"kind": "cosine"}), ValueError, "`kind` must be .*'Cosine'"),
        (
            lambda: schedules.from_dict({"kind": "Cosine", "beta": 2.0}),
            ValueError,
            r"`values` must have the fields of Cosine, .*got \['beta'\]",
        ),
        (lambda: schedules.from_dict("Cosine"), TypeError, "`values` must be what schedules.to_dict returns"),
    ):
        with pytest.raises(error, match=words):
            call()
