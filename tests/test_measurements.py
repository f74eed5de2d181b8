"""Measurements and masks of frames along any axes, and what is refused because it could be read two ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import every_library, example, host, put

import diffcore as dc
from diffcore.conditioning import downsample, frame_average, frames, replacement
from diffcore.conditioning._observed import known_of


@given(data=st.data(), factors=st.tuples(st.integers(1, 3), st.integers(1, 3)), rank=st.integers(2, 5))
def test_a_measurement_along_any_axes_is_that_along_its_own(data: Any, factors: tuple[int, int], rank: int) -> None:
    """Against the axes moved to where the default has them; and spread is the pseudo-inverse, A A^+ y = y."""
    axes = tuple(data.draw(st.permutations(range(rank)))[:2])
    shape = np.array(data.draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank)))
    shape[list(axes)] *= factors
    x = np.random.default_rng(0).normal(size=shape)
    signed = tuple(axis - rank * data.draw(st.booleans()) for axis in axes)
    down, moved = downsample(factors, axes=signed), np.moveaxis(x, axes, (-2, -1))[..., None]
    want = np.moveaxis(downsample(factors, axes=(-3, -2))(moved)[..., 0], (-2, -1), axes)
    np.testing.assert_allclose(down(x), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(down(down.spread(want)), want, rtol=1e-12, atol=1e-12)
    average, first = frame_average(factors[0], axis=signed[0]), np.moveaxis(x, axes[0], 1)
    want = np.moveaxis(frame_average(factors[0])(first), 1, axes[0])
    np.testing.assert_allclose(average(x), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(average(average.spread(want)), want, rtol=1e-12, atol=1e-12)


def test_channels_first_is_refused_until_the_axes_are_given() -> None:
    clip = np.arange(2.0 * 4 * 4 * 8).reshape(1, 2, 4, 4, 8)  # (B, T, C, H, W), whose sizes would all do
    with pytest.raises(ValueError, match=r"looks like channels first; give axes=\(-2, -1\)"):
        downsample(2)(clip)
    np.testing.assert_allclose(downsample(2, axes=(-2, -1))(clip)[0, 1, 2, 1, 3], clip[0, 1, 2, 2:, 6:].mean())
    np.testing.assert_allclose(downsample(2, axes=(-3, -2))(clip)[0, 1, 0, 1, 5], clip[0, 1, :2, 2:, 5].mean())


@pytest.mark.parametrize(("shape", "axis", "trailing"), [((2, 3, 7), 1, 1), ((3, 3, 3), 1, 1), ((2, 3, 5, 4, 4), 2, 2)])
def test_frames_of_any_axis(shape: tuple[int, ...], axis: int, trailing: int) -> None:
    mask = frames([0, -1], of=shape[axis], trailing=trailing)
    known = host(known_of("test", np.ones(shape), mask, np.zeros(shape))[1])
    want = np.zeros(shape)
    np.moveaxis(want, axis, 0)[[0, -1]] = 1.0
    np.testing.assert_array_equal(known, want)


@every_library
@pytest.mark.parametrize(
    ("shape", "of"), [((3,), (3, 3)), ((2, 2), (2, 2, 2)), ((1, 3), (2, 3, 3)), ((2, 2), (2, 2, 4, 2, 2))]
)
def test_what_could_be_read_two_ways_is_refused(library: str, shape: tuple[int, ...], of: tuple[int, ...]) -> None:
    with example(library) as like:
        data, mask = put(np.zeros(of), like), np.ones(shape, dtype=bool)
        for observed, given_mask in ((put(np.zeros(of), like), mask), (put(np.zeros(shape), like), None)):
            with pytest.raises(ValueError, match=r"fits both the first and the last axes of data.*reshape it to"):
                known_of("test", observed, given_mask, data)
        ones = (1,) * (len(of) - len(shape))
        for full in (shape + ones, ones + shape):
            known_of("test", data, mask.reshape(full), data)


def test_a_run_refuses_a_mask_of_frames_that_would_hit_other_axes() -> None:
    plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=2)
    settings: Any = {"prediction": "x", "shape": (3, 3, 3)}
    mask = np.array([[True, False, False]] * 3)
    with pytest.raises(ValueError, match=r"\(3, 3, 1\) for one of each sample or frame"):
        dc.sample(lambda z, _: 0.0 * z, plan, constraint=replacement(np.ones((3, 3, 3)), mask), **settings)
    found = dc.sample(
        lambda z, _: 0.0 * z, plan, constraint=replacement(np.ones((3, 3, 3)), mask[:, :, None]), **settings
    )
    np.testing.assert_array_equal(found, np.broadcast_to(mask[:, :, None], (3, 3, 3)).astype(np.float32))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: downsample(2, axes=(0, 0))(np.zeros((2, 2))),
            ValueError,
            r"must be 2 different axes of an array of 2, got \(0, 0\)",
        ),
        (
            lambda: downsample(2)(np.zeros((2, 2))),
            ValueError,
            r"must be 2 different axes of an array of 2, got \(-3, -2\)",
        ),
        (lambda: downsample(2, axes=(0,)), TypeError, r"`axes` must be two ints, \(height, width\), got \(0,\)"),
        (lambda: frame_average(2, axis=1.0), TypeError, r"`axis` must be an int, got 1\.0"),
        (lambda: frames([0], of=2, trailing=-1), ValueError, r"`trailing` must be an int in \[0, 62\], got -1"),
        (
            lambda: frames([0], of=2, trailing=10**9),
            ValueError,
            r"`trailing` must be an int in \[0, 62\], got 1000000000",
        ),
    ],
)
def test_bad_axes_are_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
