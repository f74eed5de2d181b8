"""Grids: where their points lie, that they lie in order, and that any other array is refused."""

import math
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import diffcore as dc
from diffcore import grids, schedules
from diffcore.schedules import Cosine, Flow, Karras, LinearLogSNR, Schedule

INF = math.inf
SCHEDULES = st.sampled_from(
    [Cosine(), Karras(), LinearLogSNR(), schedules.LinearBeta(), Flow(), schedules.from_sigmas([80.0, 3.0, 0.1])]
)
MAKERS = st.sampled_from([grids.uniform, grids.uniform_log_snr, grids.karras])


def test_uniform_is_uniform_in_time_and_ends_clean_at_zero() -> None:
    schedule = Cosine()
    times = np.array([1.0, 0.75, 0.5, 0.25])
    np.testing.assert_array_equal(grids.uniform(schedule, 4), [*schedule.log_snr(times), INF])
    np.testing.assert_array_equal(grids.uniform(schedule, 4, clean=False), schedule.log_snr(np.array([*times, 0.0])))
    np.testing.assert_array_equal(grids.uniform(schedule, 2, end=0.5), schedule.log_snr(np.array([1.0, 0.75, 0.5])))
    np.testing.assert_array_equal(grids.uniform(schedule, 2, end=0.5, clean=True)[-1], INF)


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_karras_is_edms_list_of_sigmas(steps: int) -> None:
    """Karras et al. 2022, eq. 5, written as they write it."""
    i, rho = np.arange(steps), 7.0
    spread = i / (steps - 1) if steps > 1 else i
    sigmas = (80.0 ** (1 / rho) + spread * (0.002 ** (1 / rho) - 80.0 ** (1 / rho))) ** rho
    grid = grids.karras(Karras(), steps)
    assert grid.shape == (steps + 1,)
    np.testing.assert_allclose(np.exp(-0.5 * grid), [*sigmas, 0.0], rtol=1e-12)
    # in time it is uniform in the schedule of the same rho, but one point short
    if steps > 1:
        np.testing.assert_allclose(grid[:-1], grids.uniform(Karras(), steps - 1, clean=False), rtol=1e-12)


def test_of_another_scaling_karras_spaces_sigma_over_alpha() -> None:
    grid = grids.karras(Cosine(log_snr_min=-9.0, log_snr_max=9.0), 5, clean=False)
    ratio = np.exp(-0.5 * grid) ** (1 / 7)
    np.testing.assert_allclose(np.diff(ratio), np.full(5, (math.exp(-4.5 / 7) - math.exp(4.5 / 7)) / 5), rtol=1e-12)


def test_uniform_log_snr_is_uniform_in_log_snr() -> None:
    np.testing.assert_allclose(grids.uniform_log_snr(Cosine(), 5), [-20.0, -10.0, 0.0, 10.0, 20.0, INF], atol=1e-13)
    np.testing.assert_allclose(grids.uniform_log_snr(Cosine(), 4, clean=False), [-20, -10, 0, 10, 20], atol=1e-13)
    np.testing.assert_allclose(grids.karras(Cosine(), 4, rho=1e9, clean=False), [-20, -10, 0, 10, 20], atol=1e-4)


@hypothesis.given(SCHEDULES, MAKERS, st.integers(1, 40), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.booleans())
def test_a_grid_increases_strictly_from_start_to_end(
    schedule: Schedule, make: Any, steps: int, a: float, b: float, swap: bool
) -> None:
    end, start = sorted((a, b))
    hypothesis.assume(start - end > 1e-3)
    hypothesis.assume(make is grids.uniform or np.all(np.isfinite(schedule.log_snr(np.array([start, end])))))
    hypothesis.assume(not swap or np.isfinite(schedule.log_snr(end)))
    grid = make(schedule, steps, start=end, end=start) if swap else make(schedule, steps, start=start, end=end)
    assert grid.shape == (steps + 1,)
    assert grid.dtype == np.float64
    assert np.all(np.diff(grid) < 0.0 if swap else np.diff(grid) > 0.0)
    ends = schedule.log_snr(np.array([start, end]))
    assert grid[-1 if swap else 0] == ends[0]
    assert grid[0 if swap else -1] == (INF if end == 0.0 and not swap else ends[1])


@pytest.mark.parametrize("make", [grids.uniform, grids.uniform_log_snr, grids.karras])
def test_a_grid_of_many_is_the_grids_of_each(make: Any) -> None:
    """Lead axes: starts and ends of shape (B,) and (B, T), some of which end clean and some do not."""
    schedule, start, end = Cosine(), np.array([1.0, 0.6]), np.array([[0.0, 0.25], [0.5, 0.1]])
    both = make(schedule, 7, start=start, end=end)
    assert both.shape == (8, 2, 2)
    for i, j in np.ndindex(2, 2):
        np.testing.assert_allclose(both[:, i, j], make(schedule, 7, start=start[i], end=end[i, j]), rtol=1e-14)
    assert np.array_equal(np.isposinf(both[-1]), [[True, False], [False, False]])


def test_any_times_make_a_grid() -> None:
    schedule, times = LinearLogSNR(), np.array([[1.0, 0.9], [0.5, 0.3], [0.0, 0.1]])
    np.testing.assert_array_equal(grids.from_times(schedule, times), [[-10.0, -8.0], [0.0, 4.0], [INF, 8.0]])
    np.testing.assert_array_equal(grids.from_times(schedule, times, clean=False)[-1], [10.0, 8.0])
    np.testing.assert_array_equal(grids.from_times(schedule, [0.0, 0.5, 1.0]), [10.0, 0.0, -10.0])
    assert grids.from_times(schedule, times[:, :, None] * np.ones(4)).shape == (3, 2, 4)
    np.testing.assert_array_equal(grids.from_times(Flow(), [1.0, 0.5, 0.0]), [-INF, 0.0, INF])


@pytest.mark.torch
def test_times_starts_and_grids_may_be_torch_tensors_and_schedules_learned() -> None:
    import torch

    times = torch.tensor([1.0, 0.5, 0.25], requires_grad=True)
    np.testing.assert_array_equal(grids.from_times(LinearLogSNR(), times), [-10.0, 0.0, 5.0])
    learned = schedules.Monotone(increments=torch.zeros(4, requires_grad=True))
    np.testing.assert_allclose(grids.uniform(learned, 4, start=times[0]), [-10.0, -5.0, 0.0, 5.0, INF])
    np.testing.assert_allclose(grids.karras(learned, 2, rho=1e9), [-10.0, 10.0, INF], atol=1e-5)


def test_checking_a_grid_returns_it_as_float64() -> None:
    for grid in ([-3, 0, 2], [-INF, 0.0, INF], [5.0, 1.0, -INF], np.array([[-1.0, 3.0], [2.0, INF]], dtype=np.float32)):
        found = grids.check("mine", grid)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, grid)
    grid = np.array([-1.0, 2.0])
    assert not np.shares_memory(grids.check("mine", grid), grid)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: grids.uniform(Cosine(), 0), ValueError, r"grids\.uniform: `steps` must be an int >= 1, got 0"),
        (lambda: grids.uniform(Cosine(), True), TypeError, r"`steps` must be an int >= 1, got True"),
        (lambda: grids.karras(Cosine(), 4.0), TypeError, r"grids\.karras: `steps` must be an int >= 1, got 4\.0"),  # type: ignore[arg-type]
        (
            lambda: grids.uniform(Cosine, 4),
            TypeError,
            r"`schedule` must be a schedule, .*, got the class Cosine; call it: Cosine\(\)",
        ),  # type: ignore[arg-type]
        (lambda: grids.karras(Cosine, 4), TypeError, r"grids\.karras: `schedule` must be a schedule"),  # type: ignore[arg-type]
        (lambda: grids.uniform(Cosine(), 4, start=1.2), ValueError, r"`start` must be times in \[0, 1\], .*, got 1\.2"),
        (lambda: grids.uniform(Cosine(), 4, end=math.nan), ValueError, r"`end` must be times .*, got nan"),
        (
            lambda: grids.uniform(Cosine(), 4, start=0.0),
            ValueError,
            r"`start` and `end` must differ, got 0\.0 for both",
        ),
        (lambda: grids.uniform(Cosine(), 4, start=np.ones(2), end=np.zeros(3)), ValueError, r"shape \(2,\) .* \(3,\)"),
        (
            lambda: grids.uniform(Cosine(), 4, start=0.1, end=0.6, clean=True),
            ValueError,
            r"`clean` must not be True for times that increase",
        ),
        (lambda: grids.uniform(Cosine(), 4, clean=1), TypeError, r"`clean` must be True or False, got 1; or None"),  # type: ignore[arg-type]
        (lambda: grids.uniform(Cosine(), 4, start="now"), TypeError, r"`start` must be numbers"),
        (lambda: grids.uniform(Cosine(), 4, start=[0.2, 0.9], end=0.5), ValueError, r"`grid` must strictly"),
        (
            lambda: grids.uniform(Flow(), 4, start=0.0, end=1.0),
            ValueError,
            r"`grid\[0\]` must not be inf.*only the last point",
        ),
        (
            lambda: grids.uniform_log_snr(Flow(), 4),
            ValueError,
            r"must be finite, got -inf and inf; give `start` < 1 or `end` > 0, or use",
        ),
        (
            lambda: grids.karras(Karras(), 4, rho=0.0),
            ValueError,
            r"grids\.karras: `rho` must be a finite number > 0, got 0\.0; EDM uses 7",
        ),
        (
            lambda: grids.from_times(Cosine(), [0.5]),
            ValueError,
            r"`times` must be times \(N \+ 1,\).*, got shape \(1,\)",
        ),
        (
            lambda: grids.from_times(Cosine(), [0.9, 0.5, 0.5]),
            ValueError,
            r"`times` must strictly decrease .*, got 0\.5 and 0\.5 at \[1\] and \[2\]",
        ),
        (
            lambda: grids.from_times(Cosine(), [0.9, 0.1, 0.5]),
            ValueError,
            r"`times` must strictly decrease .*, got 0\.1 and 0\.5 at \[1\] and \[2\]",
        ),
        (
            lambda: grids.from_times(Cosine(), [1.1, 0.5]),
            ValueError,
            r"`times\[0\]` must be a time in \[0, 1\], got 1\.1",
        ),
        (lambda: grids.from_times(Cosine(), [1.0, math.nan]), ValueError, r"`times\[1\]` must be a time .*, got nan"),
        (
            lambda: grids.from_times(Cosine(), [[1.0, 0.5], [0.5, 0.7]]),
            ValueError,
            r"got 0\.5 and 0\.7 at \[0, 1\] and \[1, 1\]",
        ),
        (
            lambda: grids.from_times(Cosine(), [0.1, 0.7], clean=True),
            ValueError,
            r"`clean` must not be True for times that increase",
        ),
        (lambda: grids.from_times(Cosine(), np.zeros((2, 0))), ValueError, r"shape \(2, 0\)"),
        (lambda: grids.check("f", [1.0]), ValueError, r"f: `grid` must be log-SNRs \(N \+ 1,\).*, got shape \(1,\)"),
        (
            lambda: grids.check("f", [1.0, 1.0]),
            ValueError,
            r"f: `grid` must strictly decrease .*, got 1\.0 and 1\.0 at \[0\] and \[1\]",
        ),
        (lambda: grids.check("f", [-INF, -INF, 1.0]), ValueError, r"must strictly increase .*, got -inf and -inf"),
        (lambda: grids.check("f", [0.0, INF, INF]), ValueError, r"`grid\[1\]` must not be inf, clean data"),
        (lambda: grids.check("f", [INF, 1.0]), ValueError, r"`grid\[0\]` must not be inf.* start at a finite log-SNR"),
        (lambda: grids.check("f", [0.0, math.nan]), ValueError, r"`grid\[1\]` must be a log-SNR, got NaN"),
        (
            lambda: grids.check("f", [0.0, 3.0, 2.0]),
            ValueError,
            r"must strictly increase .*, got 3\.0 and 2\.0 at \[1\] and \[2\]",
        ),
        (lambda: grids.check("f", np.zeros((2, 1, 1, 1))), ValueError, r"shape \(2, 1, 1, 1\)"),
        (lambda: grids.check("f", object()), TypeError, r"f: `grid` must be numbers"),
    ],
)
def test_bad_input_gets_an_error_with_its_place(make: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


# Grids of other libraries

TO_SIGMA = {
    "ve": lambda at: np.exp(-0.5 * at),
    "flow": lambda at: 1.0 / (1.0 + np.exp(0.5 * at)),
    "vp": lambda at: np.sqrt(1.0 / (1.0 + np.exp(at))),
}


@pytest.mark.parametrize("scaling", TO_SIGMA)
@hypothesis.given(
    log_snrs=st.lists(st.integers(-10, 10), min_size=2, max_size=9, unique=True),
    clean=st.booleans(),
    repeats=st.integers(1, 3),
    rising=st.booleans(),
)
def test_sigmas_of_another_library_are_their_levels(
    scaling: str, log_snrs: list[int], clean: bool, repeats: int, rising: bool
) -> None:
    """Each listed once or more and rounded to float32, as schedulers of one call or two list them."""
    grid = np.sort(np.array(log_snrs, dtype=float))
    grid = grid[::-1] if rising else np.append(grid, INF) if clean else grid
    sigmas = np.repeat(TO_SIGMA[scaling](grid), repeats).astype(np.float32)
    jitter = 1.0 + np.finfo(np.float32).eps * np.random.default_rng(0).integers(-1, 2, len(sigmas))
    jitter = np.minimum(jitter, 1.0 / np.maximum(sigmas, 1e-9)) if scaling != "ve" else jitter
    found = grids.from_sigmas(sigmas * jitter.astype(np.float32), scaling=scaling)
    np.testing.assert_allclose(found.grid, grid, atol=1e-2 if scaling != "ve" else 1e-5)
    assert (found.note == "") == (repeats == 1)
    assert repeats == 1 or found.note.startswith(
        f"left out {(repeats - 1) * len(grid)} of {len(sigmas)} sigmas: [1] repeats"
    )


def test_the_sigmas_of_two_calls_a_step_make_the_plan_of_the_steps() -> None:
    """diffusers' Heun lists s_0, s_1, s_1, ..., 0; its plan is that of the levels once."""
    once = grids.karras(Karras(), 6)
    sigmas = np.exp(-0.5 * once).astype(np.float32)
    twice = np.concatenate([sigmas[:1], np.repeat(sigmas[1:-1], 2), sigmas[-1:]])
    found = grids.from_sigmas(twice)
    assert (
        found.note
        == "left out 5 of 12 sigmas: "
        + ", ".join(f"[{2 * k}] repeats {float(sigmas[k])!r}" for k in range(1, 5))
        + ", ..."
    )
    ends = dc.samplers.heun(Karras(), grid=found.grid), dc.samplers.heun(Karras(), grid=once)
    np.testing.assert_allclose(ends[0].update, ends[1].update, rtol=1e-4, atol=1e-5)


def test_the_ends_of_a_flow_are_pure_noise_and_clean_data() -> None:
    found = grids.from_sigmas([1.0, 0.5, 0.0], scaling="flow")
    np.testing.assert_array_equal(found.grid, [-INF, 0.0, INF])
    np.testing.assert_allclose(
        grids.from_sigmas([1.0, 0.6], scaling="vp").grid, [-INF, np.log(0.64 / 0.36)], rtol=1e-14
    )


def test_rounding_is_noted_and_a_mistake_is_refused() -> None:
    found = grids.from_sigmas([3.0, 1.0, math.nextafter(1.0, 2.0), 0.5])
    assert (
        found.note
        == f"left out 1 of 4 sigmas: [2] repeats 1.0 but for rounding, {np.nextafter(1.0, 2.0)!r}".replace(
            "np.float64(", ""
        ).rstrip(")")
    )
    np.testing.assert_allclose(found.grid, -2.0 * np.log([3.0, 1.0, 0.5]))
    with pytest.raises(ValueError, match=r"must decrease throughout.*, got 1\.0 and 1\.1 at \[1\] and \[2\]"):
        grids.from_sigmas([3.0, 1.0, 1.1, 0.5])
    assert len(grids.from_sigmas([3.0, 1.0, 1.1, 0.5], tolerance=0.2).grid) == 3


@pytest.mark.parametrize(
    ("sigmas", "settings", "error", "message"),
    [
        ([1.0], {}, ValueError, r"`sigmas` must be \(N \+ 1,\), N >= 1, got shape \(1,\)"),
        ([1.0, np.nan, 0.0], {}, ValueError, r"`sigmas\[1\]` must be a finite number >= 0 with scaling='ve', got nan"),
        ([1.0, -1.0], {}, ValueError, r"`sigmas\[1\]` must be .*, got -1\.0"),
        (
            [14.6, 0.0],
            {"scaling": "vp"},
            ValueError,
            r"`sigmas\[0\]` must be .*, got 14\.6; sigma / alpha goes with scaling='ve'",
        ),
        ([2.0, 2.0, 2.0], {}, ValueError, r"`sigmas` must have at least two levels, got only 2\.0"),
        ([0.0, 1.0], {}, ValueError, r"`grid\[0\]` must not be inf.*start at a finite log-SNR"),
        ([1.0, 0.0, 0.5], {}, ValueError, r"got 0\.0 and 0\.5 at \[1\] and \[2\]"),
        (["a", "b"], {}, TypeError, r"`sigmas` must be numbers, as a sequence"),
        ([1.0, 0.0], {"scaling": "edm"}, ValueError, r"`scaling` must be 'flow', .*, got 'edm'"),
        ([1.0, 0.0], {"tolerance": 1.0}, ValueError, r"`tolerance` must be a number in \[0, 1\), got 1\.0"),
    ],
)
def test_sigmas_that_are_no_grid_are_refused(
    sigmas: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        grids.from_sigmas(sigmas, **settings)
