"""Schedules: what shifting, cutting and mixing keep, soundness for any settings, and errors."""

import math
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from diffcore.schedules import (
    Cauchy,
    Cosine,
    Flow,
    Geometric,
    Karras,
    Laplace,
    LinearBeta,
    LinearLogSNR,
    Polynomial,
    PolynomialVP,
    Schedule,
    Sigmoid,
    SubVP,
    Table,
    interpolate,
    shift,
    truncate,
)

INF = math.inf

LAWS = st.sampled_from(
    [Cosine(), Flow(scaling="vp"), LinearLogSNR(), Sigmoid(), Table(log_snrs=(9.5, 3.0, 2.5, 0.0, -4.0, -11.0))]
)
TIMES = st.floats(0.0, 1.0)


def any_type(value: Any) -> Any:
    """Hide a type from the type checker, which would refuse what the test wants refused."""
    return value


@hypothesis.given(LAWS, TIMES, st.floats(-9.0, 9.0), st.floats(-9.0, 9.0))
def test_shifts_add_up_and_keep_the_slope(schedule: Schedule, t: float, a: float, b: float) -> None:
    np.testing.assert_allclose(
        shift(shift(schedule, a), b).log_snr(t), schedule.log_snr(t) + (a + b), atol=1e-13, rtol=1e-15
    )
    assert shift(schedule, a).slope(t) == schedule.slope(t)
    assert shift(schedule, 0.0).log_snr(t) == schedule.log_snr(t)


@hypothesis.given(LAWS, TIMES, st.floats(-9.0, 9.0), st.floats(-9.0, 9.0))
def test_a_truncated_schedule_runs_over_the_same_levels(schedule: Schedule, t: float, a: float, b: float) -> None:
    low, high = sorted((a, b))
    hypothesis.assume(high - low > 1e-3)
    part = truncate(schedule, low, high)
    np.testing.assert_allclose(part.log_snr(np.array([0.0, 1.0])), [high, low], rtol=1e-13, atol=1e-13)
    # lambda' is lambda at a time linear in t, whatever was cut before
    first, last = schedule.time(np.array([high, low]))
    np.testing.assert_allclose(schedule.time(part.log_snr(t)), first + (last - first) * t, rtol=1e-9, atol=1e-12)
    middle = 0.5 * (low + high)
    twice, once = truncate(part, low, middle), truncate(schedule, low, middle)
    np.testing.assert_allclose(twice.log_snr(t), once.log_snr(t), rtol=1e-10, atol=1e-10)


@hypothesis.given(LAWS, LAWS, TIMES, st.integers(0, 16).map(lambda n: n / 16))
def test_between_two_schedules_lambda_is_between_and_so_is_time(a: Schedule, b: Schedule, t: float, w: float) -> None:
    both = interpolate(a, b, w)
    np.testing.assert_allclose(both.log_snr(t), interpolate(b, a, 1.0 - w).log_snr(t), rtol=1e-12, atol=1e-12)
    assert interpolate(a, b, 0.0).log_snr(t) == a.log_snr(t)
    assert interpolate(a, b, 1.0).time(1.5) == b.time(1.5)
    ends = sorted([float(a.time(1.5)), float(b.time(1.5))])
    assert ends[0] - 1e-12 <= both.time(1.5) <= ends[1] + 1e-12
    np.testing.assert_allclose(interpolate(a, a, w).time(a.log_snr(t)), a.time(a.log_snr(t)), rtol=1e-12, atol=1e-15)


MADE = st.one_of(
    st.builds(
        lambda low, width: Cosine(log_snr_min=low, log_snr_max=low + width),
        st.floats(-40.0, 20.0),
        st.floats(0.1, 40.0),
    ),
    st.builds(
        lambda low, more: LinearBeta(beta_min=low, beta_max=low + more), st.floats(0.01, 5.0), st.floats(0.0, 40.0)
    ),
    st.builds(
        lambda low, ratio: Geometric(sigma_min=low, sigma_max=low * ratio), st.floats(1e-4, 1.0), st.floats(1.1, 1e6)
    ),
    st.builds(
        lambda low, ratio, rho: Karras(sigma_min=low, sigma_max=low * ratio, rho=rho),
        st.floats(1e-4, 1.0),
        st.floats(1.1, 1e6),
        st.floats(0.5, 1e3),
    ),
    st.builds(
        lambda start, width, tau: Sigmoid(start=start, end=start + width, tau=tau),
        st.floats(-9.0, 9.0),
        st.floats(0.1, 9.0),
        st.floats(0.05, 50.0),
    ),
    st.builds(lambda mu, b: Laplace(mu=mu, b=b), st.floats(-9.0, 9.0), st.floats(0.05, 5.0)),
    st.builds(
        lambda mu, gamma, low: Cauchy(mu=mu, gamma=gamma, log_snr_min=low, log_snr_max=low + 20.0),
        st.floats(-9.0, 9.0),
        st.floats(0.05, 9.0),
        st.floats(-20.0, 5.0),
    ),
    st.builds(lambda low, more: SubVP(beta_min=low, beta_max=low + more), st.floats(0.01, 5.0), st.floats(0.0, 40.0)),
    st.builds(lambda kind, power: kind(power=power), st.sampled_from([Polynomial, PolynomialVP]), st.floats(0.2, 9.0)),
)


@hypothesis.given(MADE, st.one_of(TIMES, st.floats(0.0, 1e-6), st.floats(0.0, 1e-6).map(lambda rest: 1.0 - rest)))
def test_of_any_settings_it_is_sound_at_any_time(schedule: Schedule, t: float) -> None:
    log_snr, slope = schedule.log_snr(t), schedule.slope(t)
    assert schedule.log_snr(1.0) <= log_snr <= schedule.log_snr(0.0)
    assert slope < 0.0
    back, eps = schedule.time(log_snr), np.finfo(float).eps
    assert 0.0 <= back <= 1.0
    resolved = t if np.isinf(log_snr) else t + max(1.0, abs(log_snr), *_spans(schedule)) / abs(slope)
    assert abs(back - t) <= 16 * eps * resolved + 1e-300
    narrow = np.asarray(t, dtype=np.float32)
    assert not np.isnan(schedule.log_snr(narrow))
    assert not np.isnan(schedule.slope(narrow))


def _spans(schedule: Schedule) -> list[float]:
    """Return the sizes of the constants that lambda is a difference of: their rounding is felt at lambda = 0 too."""
    return [abs(float(schedule.log_snr(end))) for end in (0.0, 1.0) if np.isfinite(schedule.log_snr(end))]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Cosine(scaling="vq"), ValueError, r"schedules\.Cosine: `scaling` must be 'flow', .*, got 'vq'"),
        (
            lambda: Cosine(log_snr_min=3.0, log_snr_max=3.0),
            ValueError,
            r"`log_snr_min` must be less than .* exchange them",
        ),
        (
            lambda: Cosine(log_snr_min=math.nan),
            ValueError,
            r"schedules\.Cosine: `log_snr_min` must be a number, got nan",
        ),
        (lambda: Cosine(log_snr_min=True), TypeError, r"`log_snr_min` must be a number, got True"),
        (
            lambda: Cosine(log_snr_max=any_type(np.zeros(2))),
            TypeError,
            r"`log_snr_max` must be a number, got ndarray .*; Monotone takes arrays",
        ),
        (lambda: LinearBeta(beta_min=0.0), ValueError, r"`beta_min` must be a finite number > 0, got 0\.0"),
        (
            lambda: LinearBeta(beta_min=2.0, beta_max=1.0),
            ValueError,
            r"`beta_min` must be at most `beta_max`, got 2\.0 .* exchange them",
        ),
        (lambda: LinearLogSNR(log_snr_max=INF), ValueError, r"`log_snr_max` must be a finite number, got inf"),
        (lambda: Geometric(sigma_min=-1.0), ValueError, r"`sigma_min` must be a finite number > 0, got -1\.0"),
        (
            lambda: Karras(sigma_min=np.float64(-1.0)),
            ValueError,
            r"`sigma_min` must be a finite number > 0, got -1\.0$",
        ),
        (lambda: Karras(rho=0.0), ValueError, r"`rho` must be a finite number > 0, got 0\.0"),
        (lambda: Karras(rho=0.01), ValueError, r"schedules\.Karras: `rho` must be >= .* = 0\.132, got 0\.01"),
        (lambda: Sigmoid(start=3.0), ValueError, r"`start` must be less than `end`, got 3\.0 and 3\.0"),
        (lambda: Laplace(b=INF), ValueError, r"`b` must be a finite number > 0, got inf"),
        (
            lambda: shift(any_type(Cosine), 1.0),
            TypeError,
            r"schedules\.shift: `schedule` must be .*such as schedules\.Cosine\(\), got the class Cosine",
        ),
        (lambda: shift(Cosine(), INF), ValueError, r"`delta` must be a finite number, got inf"),
        (
            lambda: truncate(Cosine(), -21.0, 20.0),
            ValueError,
            r"schedules\.truncate: .* must be in the schedule's range .*, got -21\.0 and 20\.0",
        ),
        (
            lambda: truncate(Flow(), 2.0, 1.0),
            ValueError,
            r"`log_snr_min` must be less than `log_snr_max`, got 2\.0 and 1\.0",
        ),
        (
            lambda: interpolate(Cosine(), Flow(), 0.5),
            ValueError,
            r"`a` and `b` must have equal scalings, got 'vp' and 'flow'.*replace\(b",
        ),
        (
            lambda: interpolate(Cosine(), Sigmoid(), 1.5),
            ValueError,
            r"`weight` must be a number in \[0, 1\], got 1\.5",
        ),
    ],
)
def test_bad_settings_get_an_error_that_says_what_to_do(
    make: Callable[[], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        make()


def test_whole_numbers_and_numpy_numbers_become_floats() -> None:
    assert Cosine(log_snr_min=-20, log_snr_max=any_type(np.float32(20))) == Cosine()
    assert repr(Karras(rho=any_type(np.int64(7)))) == "Karras(sigma_min=0.002, sigma_max=80.0, rho=7.0, scaling='ve')"


def test_cutting_the_endless_cosine_gives_the_papers() -> None:
    """A float32 time near 1 has too few digits for this; the pair (t, 1 - t) has them."""
    cut, own = truncate(Cosine(log_snr_min=-INF, log_snr_max=INF), -20, 20), Cosine()
    for dtype in ("float32", "float64"):
        t, eps = np.linspace(0.0, 1.0, 4097, dtype=dtype), float(np.finfo(dtype).eps)
        np.testing.assert_allclose(cut.log_snr(t), own.log_snr(t), rtol=6 * eps, atol=6 * eps)
        np.testing.assert_allclose(cut.time(own.log_snr(t)), t, rtol=16 * eps, atol=16 * eps)
