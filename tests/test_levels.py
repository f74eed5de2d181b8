"""Levels: to four units in the last place over the whole range, in any library, and traced as well as computed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import both_dtypes, every_framework, every_library, every_scaling, example, host, put

import diffcore as dc
from diffcore import testing
from diffcore.levels import level
from diffcore.testing import precision, strategies

ENDS = np.array([-np.inf, -20.0, -1.0, 0.0, 1.0, 20.0, np.inf])


@both_dtypes
@every_scaling
@every_framework
def test_levels_are_right_to_four_ulps_over_the_whole_range(library: str, scaling: str, dtype: str) -> None:
    with example(library, dtype) as like:
        assert testing.check_level_precision(like, scaling, ulps=4.0) < 4.0


@every_scaling
@given(values=st.lists(strategies.log_snrs(), min_size=1, max_size=30))
def test_levels_are_right_wherever_hypothesis_looks(scaling: str, values: list[float]) -> None:
    testing.check_level_precision(None, scaling, log_snr=np.array(values))
    testing.check_scaling(level(np.array(values), scaling), scaling)


@every_scaling
@every_library
def test_both_ends_are_exact(library: str, scaling: str) -> None:
    with example(library) as like:
        noise, clean = (level(put(at, like), scaling) for at in (-np.inf, np.inf))
        assert (float(clean.alpha), float(clean.sigma)) == (1.0, 0.0)
        assert (float(noise.alpha), float(noise.sigma)) == ((1.0, np.inf) if scaling == "ve" else (0.0, 1.0))


@every_scaling
@every_library
def test_a_level_keeps_shape_library_and_dtype(library: str, scaling: str) -> None:
    with example(library) as like:
        for shape in ((), (3,), (2, 3), (2, 0)):
            found = level(put(np.zeros(shape), like), scaling)
            assert {tuple(part.shape) for part in found} == {shape}
            assert {part.dtype for part in found} == {like.dtype}
            assert {type(part) for part in found} == {type(put(np.zeros(shape), like) * 1.0)} or shape == ()


@pytest.mark.torch
@every_scaling
def test_on_the_meta_device_a_level_stays_there(scaling: str) -> None:
    import torch

    found = level(torch.zeros(2, 3, device="meta"), scaling)
    assert {(part.device.type, tuple(part.shape), part.dtype) for part in found} == {("meta", (2, 3), torch.float32)}


@every_library
def test_half_precision_is_widened_and_never_computed_in(library: str) -> None:
    for dtype in ("bfloat16", "float16"):
        with example(library) as like:
            kind = getattr(__import__("jax.numpy").numpy if library == "jax" else __import__(library), dtype, None)
            if kind is None:
                continue
            narrow = testing._arrays.put(8.0, like, dtype=kind)
            assert level(narrow).sigma.dtype == like.dtype
            assert float(level(narrow).sigma) == pytest.approx(math.sqrt(1.0 / (1.0 + math.exp(8.0))), rel=1e-6)


@every_scaling
def test_numbers_give_float64(scaling: str) -> None:
    assert {part.dtype for part in level(0.25, scaling)} == {np.dtype(np.float64)}
    assert level(np.float32(0.25), scaling).alpha.dtype == np.float32


@every_scaling
@pytest.mark.jax
def test_on_jax_levels_go_under_jit_vmap_and_grad(scaling: str) -> None:
    import jax
    import jax.numpy as jnp

    at = jnp.asarray(ENDS[1:-1])
    want = level(at, scaling)
    for got in (jax.jit(lambda l: level(l, scaling))(at), jax.vmap(lambda l: level(l, scaling))(at)):
        for part, truth in zip(got, want, strict=True):
            np.testing.assert_allclose(host(part), host(truth), rtol=1e-6)
    for name in ("alpha", "sigma"):
        slope = jax.vmap(jax.grad(lambda l, name=name: getattr(level(l, scaling), name)))(at)
        np.testing.assert_allclose(host(slope), _slopes(name, scaling), rtol=1e-5, atol=1e-12)
        ends = jax.vmap(jax.grad(lambda l, name=name: getattr(level(l, scaling), name)))(jnp.asarray([80.0, -60.0]))
        assert np.isfinite(host(ends)).all()


@every_scaling
@pytest.mark.torch
def test_on_torch_levels_go_under_func_and_one_graph(scaling: str) -> None:
    import torch

    at = torch.tensor(ENDS[1:-1])
    for name in ("alpha", "sigma"):
        slope = torch.func.vmap(torch.func.grad(lambda l, name=name: getattr(level(l, scaling), name)))(at)
        np.testing.assert_allclose(host(slope), _slopes(name, scaling), rtol=1e-12, atol=1e-18)
    graph = torch.compile(lambda l: level(l, scaling), fullgraph=True, backend="eager")
    for part, truth in zip(graph(at), level(at, scaling), strict=True):
        np.testing.assert_array_equal(host(part), host(truth))


def _slopes(name: str, scaling: str) -> Any:
    """d alpha / d lambda and d sigma / d lambda, from the definitions."""
    l = ENDS[1:-1]
    a, s = 1.0 / (1.0 + np.exp(-l)), 1.0 / (1.0 + np.exp(l))
    a_half, s_half = 1.0 / (1.0 + np.exp(-l / 2)), 1.0 / (1.0 + np.exp(l / 2))
    table = {
        "vp": {"alpha": 0.5 * s * np.sqrt(a), "sigma": -0.5 * a * np.sqrt(s)},
        "ve": {"alpha": 0.0 * l, "sigma": -0.5 * np.exp(-l / 2)},
        "flow": {"alpha": 0.5 * a_half * s_half, "sigma": -0.5 * a_half * s_half},
    }
    return table[scaling][name]


def test_the_ranges_that_are_checked_are_those_promised() -> None:
    assert precision.log_snr_range("float32") == 80.0
    assert precision.log_snr_range("float64") == 700.0
    assert {-np.inf, np.inf, 80.0, -80.0} <= set(precision.log_snrs_over("float32"))


def test_an_unknown_scaling_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"`scaling` must be 'flow', 've' or 'vp', got 'variance'"):
        level(0.0, "variance")


@every_library
def test_an_integer_array_is_refused_with_the_way_out(library: str) -> None:
    with example(library) as like:
        xp = dc._array.library(like)
        with pytest.raises(TypeError, match=r"levels\.level: `log_snr` has dtype .*int.*cast it first"):
            level(xp.asarray([1, 2]))


def test_no_array_is_refused() -> None:
    with pytest.raises(TypeError, match="`log_snr` takes an array"):
        level("0.5")
