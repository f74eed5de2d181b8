"""A region of an array of noise is that block of the whole array, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import EVERY, example, host

from diffcore import _philox, noise
from diffcore.backends import cpu_threads, numpy_noise

Region = tuple[tuple[int, int], ...]


@st.composite
def regions(draw: Any, most: int = 60_000) -> tuple[tuple[int, ...], Region]:
    """Draw a shape and a region of it; axes are often whole, and samples often have several tiles."""
    dims = [draw(st.integers(1, 3))]
    for _ in range(draw(st.integers(1, 3))):
        room = most // math.prod(dims[1:])
        sizes = [n for n in (1, 3, 16, 255, 256, 257, 1024, 1300, 4097) if n <= room]
        dims.append(draw(st.one_of(st.sampled_from(sizes), st.integers(1, min(room, 30)))))
    pairs = []
    for extent in dims:
        first = draw(st.one_of(st.just(0), st.integers(0, extent)))
        pairs.append((first, draw(st.one_of(st.just(extent - first), st.integers(0, extent - first)))))
    return tuple(dims), tuple(pairs)


def block(whole: Any, region: Region) -> Any:
    return np.asarray(whole)[tuple(slice(first, first + size) for first, size in region)]


@settings(max_examples=80)
@given(case=regions(), kernel=st.booleans(), dtype=st.sampled_from(["float16", "float32", "float64"]))
def test_a_region_is_that_block_of_the_whole_on_numpy(case: tuple[Any, Region], kernel: bool, dtype: str) -> None:
    (shape, region), like = case, np.zeros(1, dtype)
    with mock.patch.object(cpu_threads, "kernel", cpu_threads.kernel if kernel else None):
        for draw in (noise.normal, noise.bits):
            found = draw(2**64 - 9, 5, shape, like=like, region=region)
            np.testing.assert_array_equal(found, block(draw(2**64 - 9, 5, shape, like=like), region))


@settings(max_examples=8)
@given(case=regions(most=9000))
@pytest.mark.parametrize("library", EVERY)
def test_a_region_is_that_block_of_the_whole_on_every_library(library: str, case: tuple[Any, Region]) -> None:
    shape, region = case
    with example(library) as like:
        for draw in (noise.normal, noise.bits):
            whole = host(draw(7, 5, shape, like=like))
            np.testing.assert_array_equal(host(draw(7, 5, shape, like=like, region=region)), block(whole, region))


@given(case=regions())
def test_runs_are_the_elements_of_a_region_in_order(case: tuple[Any, Region]) -> None:
    shape, region = case
    if 0 in _philox.sizes(shape, region):
        return
    starts, size = _philox.runs(np, shape, region, np.uint64)
    elements = np.arange(math.prod(shape[1:])).reshape(1, *shape[1:])
    want = block(elements, ((0, 1), *region[1:])).ravel()
    np.testing.assert_array_equal(_philox.elements(np, starts, size), want)
    origin, counts, strides = _philox.axes(shape, region)
    grid = np.indices(counts[::-1]).reshape(len(counts), -1)[::-1]
    np.testing.assert_array_equal(origin + np.array(strides) @ grid, want)


def test_a_region_far_into_a_sample_is_counted_in_64_bits() -> None:
    """A sample of 2^40 elements, of which only some are ever there; the reference agrees element by element."""
    shape, region = (1, 2**30, 1024), ((0, 1), (2**29 + 3, 2), (1000, 24))
    words = noise.keys([5], 1)
    found = noise.bits(words, 1, shape, region=region)
    want = _philox.bits(np, words, 1, shape, region=region)
    np.testing.assert_array_equal(found, want)
    with mock.patch.object(cpu_threads, "kernel", None):
        np.testing.assert_array_equal(numpy_noise.bits(words, 1, shape, region=region), want)


@pytest.mark.torch
def test_a_region_is_the_same_block_in_compiled_torch() -> None:
    import torch

    like, region = torch.zeros(1), ((1, 2), (2, 3), (100, 700))
    whole = noise.normal(7, 5, (3, 6, 900), like=like)
    drawn = torch.compile(lambda keys: noise.normal(keys, 5, (3, 6, 900), like=like, region=region), fullgraph=True)
    found = drawn(torch.from_numpy(noise.keys(7, 3).astype(np.int64)))
    torch.testing.assert_close(found, torch.from_numpy(block(whole, region)), atol=2e-6, rtol=0)
    mapped = torch.func.vmap(lambda n: noise.bits(7, n, (3, 6, 900), like=like, region=region))(torch.arange(2))
    for n in range(2):
        np.testing.assert_array_equal(mapped[n].numpy(), block(noise.bits(7, n, (3, 6, 900)), region))


@pytest.mark.jax
@pytest.mark.parametrize("kernel", [True, False])
def test_first_indices_may_be_traced_on_jax(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import jax
    import jax.numpy as jnp

    from diffcore.backends import jax_kernel

    if not kernel:
        monkeypatch.setattr(jax_kernel, "works", lambda: False)
    jax.clear_caches()
    like, shape = jnp.zeros(1), (3, 6, 900)

    def part(at: Any) -> Any:
        return noise.normal(7, 5, shape, like=like, region=((at[0], 2), (at[1], 3), (at[2], 450)))

    try:
        whole = noise.normal(7, 5, shape, like=like)
        for at in ((0, 0, 0), (1, 3, 450), (1, 2, 137)):
            region = tuple((first, size) for first, size in zip(at, (2, 3, 450), strict=True))
            found = jax.jit(part)(jnp.asarray(at))
            np.testing.assert_array_equal(np.asarray(found), block(whole, region))
            np.testing.assert_array_equal(np.asarray(part(at)), block(whole, region))
    finally:
        jax.clear_caches()


def test_keys_are_of_the_whole_batch_or_of_the_regions_samples() -> None:
    region = ((1, 2), (3, 4))
    want = noise.normal(7, 0, (5, 9))[1:3, 3:7]
    for seed in (7, noise.keys(7, 5), noise.keys(7, 2, first=1)):
        np.testing.assert_array_equal(noise.normal(seed, 0, (5, 9), region=region), want)
    np.testing.assert_array_equal(
        noise.normal([1, 2, 3, 4, 5], 0, (5, 9), region=region), noise.normal([2, 3], 0, (5, 9), region=region)
    )
    with pytest.raises(ValueError, match="`seed` must be one int, or have 2 entries"):
        noise.normal([1, 2, 3], 0, (5, 9), region=region)


@pytest.mark.parametrize(
    "region",
    [
        ((0, 1),),
        ((0, 1), (0, 1), (0, 1)),
        ((0, 1), (0, 10)),
        ((0, 1), (5, 5)),
        ((0, 1), (-1, 2)),
        ((0, 1), (0, -1)),
        ((0, 1), (0.5, 1)),
        ((0, 1), (0, 1, 2)),
        ((4, 2), (0, 1)),
    ],
)
def test_regions_that_do_not_fit_are_refused(region: Any) -> None:
    for draw in (noise.normal, noise.bits):
        with pytest.raises((TypeError, ValueError), match="`region`"):
            draw(7, 0, (5, 9), region=region)


@pytest.mark.jax
def test_jax_refuses_regions_that_it_cannot_count() -> None:
    import jax.numpy as jnp

    draw: Callable[..., Any] = noise.bits
    region = ((0, 1), (2**22 - 1, 1), (0, 3))
    assert draw(7, 0, (1, 2**22, 1024), like=jnp.zeros(1), region=region).shape == (1, 1, 3)
    with pytest.raises(ValueError, match="at most 2\\^32 for a region"):
        draw(7, 0, (1, 2**22 + 1, 1024), like=jnp.zeros(1), region=region)
