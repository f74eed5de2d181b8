"""Projection: x-hat agrees with the measurement, is moved no further than it must be, and everything traces."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from libraries import FRAMEWORKS, example, host, put

import diffcore as dc
from diffcore.conditioning import downsample, frame_average, projection

MEASURES = pytest.mark.parametrize("measure", [downsample(2), downsample((1, 4)), frame_average(2), downsample(1)])
PLAN = dc.samplers.ancestral(dc.schedules.Cosine(), steps=5)


def clip(batch: int = 2, seed: int = 3) -> Any:
    return dc.noise.normal(seed, 0, (batch, 2, 4, 4, 1)).astype(np.float64)


def matrix(function: Any, shape: tuple[int, ...]) -> Any:
    """A linear function of one sample as a matrix."""
    basis = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    return function(basis).reshape(len(basis), -1).T


@MEASURES
def test_spread_is_the_pseudo_inverse(measure: Any) -> None:
    a = matrix(measure, (2, 4, 4, 1))
    seen = measure(clip()).shape[1:]
    np.testing.assert_allclose(matrix(measure.spread, seen), np.linalg.pinv(a), atol=1e-12)


@MEASURES
def test_the_result_agrees_and_is_the_nearest_that_does(measure: Any) -> None:
    x, other = clip(), clip(seed=9)
    y = measure(other)
    moved = projection(y, measure=measure)(x)
    np.testing.assert_allclose(measure(moved), y, atol=1e-12)
    np.testing.assert_allclose(projection(y, measure=measure)(moved), moved, atol=1e-12)
    rest = other - moved  # in the null space, and at right angles to the way that x was moved
    assert abs(np.sum(rest * (moved - x))) < 1e-10


@given(part=st.integers(0, 3))
def test_only_what_is_known_is_set(part: int) -> None:
    measure, x = downsample(2), clip()
    y = np.full((2, 2, 2, 2, 1), np.nan)
    mask = np.zeros((2, 2, 1), dtype=bool)
    mask[part // 2, part % 2] = True
    y[:, :, part // 2, part % 2] = 0.25
    moved = projection(y, mask, measure=measure)(x)
    changed = measure(moved) - measure(x)
    assert np.all(changed[:, :, ~mask[..., 0]] == 0.0)
    np.testing.assert_allclose(measure(moved)[:, :, mask[..., 0]], 0.25)


@pytest.mark.parametrize("library", FRAMEWORKS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_run_ends_on_what_was_measured(library: str, dtype: str) -> None:
    with example(library, dtype) as like:
        y = put(np.linspace(-0.5, 0.5, 8).reshape(1, 2, 2, 2, 1), like)
        sets = projection(y, measure=downsample(2), after=dc.guidance.clip(-1.0, 1.0))
        found = dc.sample(
            lambda z, log_snr: 0.5 * z, PLAN, shape=(2, 2, 4, 4, 1), like=like, seed=7, prediction="v", transform_x=sets
        )
        assert found.dtype == like.dtype
        off = host(downsample(2)(found)) - host(y)
    assert np.max(np.abs(off)) < {"float32": 1e-6, "float16": 2e-3}[dtype]


@pytest.mark.torch
def test_it_runs_in_the_compiled_stage() -> None:
    import torch

    y = torch.linspace(-0.5, 0.5, 8 * 64).reshape(2, 2, 16, 8, 1)
    options: dict[str, Any] = {"shape": (2, 2, 64, 32, 1), "like": y, "seed": 7, "prediction": "v"}
    made = [
        dc.sample(
            lambda z, log_snr: 0.5 * z, PLAN, transform_x=projection(y, measure=downsample(4)), compile=fused, **options
        )
        for fused in (False, True)
    ]
    torch.testing.assert_close(*made, atol=2e-6, rtol=0)


@pytest.mark.jax
def test_it_traces() -> None:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def draw(y: Any) -> Any:
        sets = projection(y, measure=downsample(2))
        options: dict[str, Any] = {"shape": (1, 2, 4, 4, 1), "like": y, "seed": 7, "prediction": "v"}
        return dc.sample(lambda z, log_snr: 0.5 * z, PLAN, transform_x=sets, **options)

    y = jnp.linspace(-0.5, 0.5, 8).reshape(1, 2, 2, 2, 1)
    np.testing.assert_allclose(downsample(2)(draw(y)), y, atol=1e-6)


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="a method `spread`"):
        projection(np.zeros(1), measure=lambda x: x)
    with pytest.raises(ValueError, match="must broadcast to data"):
        projection(np.zeros((2, 3, 3, 1)), measure=downsample(2))(clip())
    with pytest.raises(ValueError, match="must be finite"):
        projection(np.full((2, 2, 2, 1), np.nan), measure=downsample(2))


def test_a_spread_of_another_shape_is_not_broadcast() -> None:
    class First:
        def __call__(self, x: Any) -> Any:
            return x[:, :1]

        def spread(self, y: Any) -> Any:
            return y

    with pytest.raises(ValueError, match=r"`measure.spread` must return the shape of x, .*, got \(2, 1, 4, 4, 1\)"):
        projection(np.zeros((1, 1, 4, 4, 1)), measure=First())(clip())
