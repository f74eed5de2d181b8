"""Noise drawn by the Triton kernel is that of every library: on the GPU where there is one, else interpreted."""

from __future__ import annotations

import importlib
import math
import subprocess
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_noise_regions import block, regions
from triton_cases import DEVICE, INTERPRETED, case, kernel

import diffcore as dc
from diffcore import _philox, noise
from diffcore.backends import cpu_threads, torch_noise
from diffcore.backends.torch_backend import backend
from diffcore.plan import Form

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LIKE = torch.zeros(1, device=DEVICE if INTERPRETED or torch.cuda.is_available() else "meta")


@pytest.fixture(autouse=True, scope="module")
def _on_this_device() -> Any:
    """Draw by the kernel on a CPU too, and fail where it is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_noise, "ON", DEVICE)
        patch.setattr(torch_noise, "warn", lambda *_: pytest.fail("the kernel was left"))
        yield


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows by what every launch got."""
    from diffcore.backends import torch_triton_noise

    launches: list[Any] = []
    real = torch_triton_noise.drawn

    def taken(*given: Any) -> Any:
        launches.append(given)
        return real(*given)

    monkeypatch.setattr(torch_triton_noise, "drawn", taken)
    return launches


def numbers(array: torch.Tensor) -> np.ndarray[Any, Any]:
    return array.cpu().double().numpy() if array.is_floating_point() else array.cpu().numpy()


@case
@settings(max_examples=8)
@given(
    place=regions(most=3000),
    draw=st.integers(0, 2**32 - 1),
    stream=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_words_are_those_of_numpy_and_a_region_is_a_block_bit_for_bit(
    place: Any, draw: int, stream: int, dtype: torch.dtype
) -> None:
    (shape, region), seed = place, 2**64 - 9
    words = noise.bits(seed, draw, shape, stream=stream)
    found = noise.bits(seed, draw, shape, like=LIKE, stream=stream)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(numbers(found), words)
    found = noise.bits(seed, torch.tensor(draw, device=DEVICE), shape, like=LIKE, stream=stream, region=region)
    np.testing.assert_array_equal(numbers(found), block(words, region))
    whole = noise.normal(seed, draw, shape, like=LIKE, dtype=dtype, stream=stream)
    part = noise.normal(seed, draw, shape, like=LIKE, dtype=dtype, stream=stream, region=region)
    assert part.dtype == whole.dtype == dtype
    np.testing.assert_array_equal(numbers(part), block(numbers(whole), region))


@case
@pytest.mark.parametrize("size", [1, 1008, 2500])
def test_normals_are_those_of_numpy_and_of_a_stage(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [3, 2**63 + 5]
    monkeypatch.setattr(cpu_threads, "kernel", None)  # NumPy's own logarithm, as the interpreter has it
    for draw in (2**31, 2**32 - 1):
        exact = noise.normal(seeds, draw, (2, size), dtype=np.dtype(np.float64))
        found = numbers(noise.normal(seeds, draw, (2, size), like=LIKE, dtype=torch.float64))
        if INTERPRETED:
            np.testing.assert_array_equal(found, exact)
        np.testing.assert_allclose(found, exact, rtol=1e-13, atol=0)
        narrow = noise.normal(seeds, draw, (2, size), like=LIKE)
        np.testing.assert_allclose(numbers(narrow), exact, rtol=6e-7, atol=0)
        z = torch.zeros(2, size, device=DEVICE)
        state, row = dc.State(z, (), None, 0, 0, backend.keys(noise.keys(seeds, 2), z)), [0.0, 0.0, 0.0, 1.0, 0.0]
        made = kernel().stage(Form(), state, z, torch.tensor(row, device=DEVICE), draw, stochastic=True)
        assert torch.equal(made.z, narrow)


@case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_differs_from_numpy_only_across_a_tie_of_rounding(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 numbers that differ by an ulp or two are rounded to neighbours where a tie lies between them, else to one number."""
    if INTERPRETED and dtype == torch.bfloat16:  # the interpreter cuts it off, where a GPU rounds to the nearest
        monkeypatch.setattr(
            importlib.import_module("triton.runtime.interpreter"),
            "_convert_float",
            lambda array, *_: torch.from_numpy(array).to(dtype).view(torch.uint16).numpy(),
        )
    shape = (2, 10_000)
    exact = noise.normal(5, 9, shape, dtype=np.dtype(np.float64))
    found = numbers(noise.normal(5, 9, shape, like=LIKE, dtype=dtype))
    want = numbers(torch.from_numpy(noise.normal(5, 9, shape)).to(dtype))
    differ = found != want
    assert differ.mean() < 2e-3
    tie = 0.5 * (found + want)[differ]
    np.testing.assert_allclose(exact[differ], tie, rtol=6e-7)
    assert np.all(np.abs(found - want)[differ] <= torch.finfo(dtype).eps * np.abs(tie))


@case
def test_one_launch_draws_all_and_leaves_keys_and_numbers_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = drawn(monkeypatch)
    words = torch.as_tensor(noise.keys(7, 4).astype(np.int64), device=DEVICE)
    number = torch.tensor(5, device=DEVICE)
    want = noise.bits(7, 5, (4, 3, 50))
    np.testing.assert_array_equal(numbers(noise.bits(words, number, (4, 3, 50), like=LIKE)), want)
    np.testing.assert_array_equal(numbers(noise.bits(words[::2], number, (2, 3, 50), like=LIKE)), want[::2])
    first = torch.tensor(1, device=DEVICE)
    region = ((0, 4), (first, 2), (first, 7))
    np.testing.assert_array_equal(
        numbers(noise.bits(words, 5, (4, 3, 50), like=LIKE, region=region)), want[:, 1:3, 1:8]
    )
    assert len(launches) == 3
    want = dc.times.independent(5, 0, 8)
    np.testing.assert_allclose(numbers(dc.times.independent(5, 0, 8, like=LIKE)), want, rtol=1e-6)
    assert len(launches) == 4


@case
def test_a_compiler_takes_the_kernel_as_one_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = drawn(monkeypatch)
    words = torch.as_tensor(noise.keys(7, 2).astype(np.int64), device=DEVICE)

    def run(words: Any, number: Any, first: Any) -> Any:
        region = ((0, 2), (first, 30))
        return noise.normal(words, number, (2, 300), like=LIKE), noise.bits(
            words, 5, (2, 300), like=LIKE, region=region
        )

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    for number in (0, 2**32 - 1):
        given = words, torch.tensor(number, device=DEVICE), torch.tensor(9, device=DEVICE)
        for found, want in zip(compiled(*given), run(*given), strict=True):
            assert torch.equal(found, want)
    assert len(launches) == 8
    assert math.prod(launches[0][1].shape) == 1


@case
def test_where_the_kernel_does_not_serve_the_plain_function_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    want = noise.bits([7, 8], 2, (2, 300))
    launches = drawn(monkeypatch)
    words = torch.as_tensor(noise.keys([7, 8], 2).astype(np.int64), device=DEVICE)
    mapped = torch.func.vmap(lambda number: noise.bits(words, number, (2, 300), like=LIKE))
    np.testing.assert_array_equal(numbers(mapped(torch.arange(3, device=DEVICE))[2]), want)
    with monkeypatch.context() as patch:
        patch.setattr(torch_noise, "_triton", False)
        np.testing.assert_array_equal(numbers(noise.bits(words, 2, (2, 300), like=LIKE)), want)
    assert not launches
    from diffcore.backends import torch_triton_noise

    said: list[Any] = []

    def fails(*given: Any) -> Any:
        raise subprocess.CalledProcessError(1, "ptxas")

    monkeypatch.setattr(torch_noise, "_triton", True)
    monkeypatch.setattr(torch_noise, "warn", lambda *given: said.append(given))
    monkeypatch.setattr(torch_triton_noise, "drawn", fails)
    for _ in range(2):
        np.testing.assert_array_equal(numbers(noise.bits(words, 2, (2, 300), like=LIKE)), want)
    assert len(said) == 1


@case
@pytest.mark.parametrize("half", [False, True])
def test_normals_are_right_at_both_ends_and_at_every_quadrant(half: bool) -> None:
    import kernels_for_tests

    turns = [(turn << 30) + offset for turn in range(4) for offset in (-(1 << 29), -1, 0, 1, (1 << 29) - 1)]
    ends = [base + offset for base in (0, 1 << 31, 1 << 32) for offset in (-(1 << 20), -300, -2, -1, 0, 1, 300)]
    words = np.array([(end, turn) for end in ends for turn in turns]) % 2**32
    words = np.concatenate([words, np.random.default_rng(1).integers(0, 2**32, (2048 - len(words), 2))])
    for got, want in zip(
        kernels_for_tests.normals(words, DEVICE, half),
        _philox.pair(np, words[:, 0].astype(np.uint64), words[:, 1].astype(np.uint64), np.float64, np.int64),
        strict=True,
    ):
        if half:  # bfloat16 rounds a number near 1 by 2^-9, float16 by 2^-12
            assert np.all(np.abs(got - want) <= 2.0**-16 * np.maximum(1.0, np.abs(want)))
        else:
            np.testing.assert_allclose(got, want, rtol=6e-7)  # a GPU's square root adds an ulp or two


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="a graph needs a device")
def test_noise_replays_in_a_graph_with_the_number_and_keys_that_are_there_then() -> None:
    words, number = torch.tensor([[7, 0]], device="cuda"), torch.tensor(0, device="cuda")
    noise.normal(words, number, (1, 5000), like=LIKE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = noise.normal(words, number, (1, 5000), like=LIKE)
    words.copy_(torch.tensor([[9, 1]]))
    number.fill_(3)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, noise.normal([9 + 2**32], 3, (1, 5000), like=LIKE))
