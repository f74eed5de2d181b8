"""Noise is a pure function: published answers, equal bits everywhere, normals that are normal, seeds that are apart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import array_api_strict
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcore import _philox, noise
from diffcore.backends import cpu_threads

LIBRARIES: dict[str, Any] = {
    "numpy": np.zeros(1, np.float32),
    "torch": torch.zeros(1),
    "jax": jnp.zeros(1),
    "array_api_strict": array_api_strict.zeros(1, dtype=array_api_strict.float32),
}
every_library = pytest.mark.parametrize("like", LIBRARIES.values(), ids=LIBRARIES.keys())

seeds = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**32 - 1, 2**32, 2**63, 2**64 - 1]))
draws = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 1]))
EDGES = [1, 2, 255, 256, 257, 1023, 1024, 1025, 1300, 2048, 3000]


def host(array: Any) -> np.ndarray[Any, Any]:
    return np.asarray(array)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_published_answers(counter: tuple[int, ...], key: tuple[int, int], words: str) -> None:
    """The known-answer vectors of Random123 for philox4x32-10."""
    one = [np.array([[value]], dtype=np.uint64) for value in (*counter, *key)]
    found = _philox.rounds(_philox.multiply_wide, (one[0], one[1], one[2], one[3]), (one[4], one[5]))
    assert " ".join(f"{int(word[0, 0]):08x}" for word in found) == words


@every_library
def test_the_counter_is_block_draw_stream(like: Any) -> None:
    """Key (low, high) of the seed, counter (block low, block high, draw, stream): lane 0 of block 0 is the first element."""
    seed, draw, stream = 0x299F31D0_A4093822, 0x13198A2E, 0x03707344
    want = _philox.rounds(
        _philox.multiply_wide,
        tuple(np.array([[v]], dtype=np.uint64) for v in (0, 0, draw, stream)),  # type: ignore[arg-type]
        (np.array([[0xA4093822]], dtype=np.uint64), np.array([[0x299F31D0]], dtype=np.uint64)),
    )
    assert int(host(noise.bits([seed], draw, (1, 1), like=like, stream=stream))[0, 0]) == int(want[0][0, 0])


def test_without_the_compiled_kernel_the_plain_function_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """On NumPy and on eager torch: equal bits, and normals to a few ulp."""
    for like, atol in (
        (np.zeros(1, np.float32), 2e-6),
        (torch.zeros(1), 2e-6),
        (np.zeros(1), 1e-14),
        (np.zeros(1, np.float16), 2e-3),
    ):
        with monkeypatch.context() as patch:
            want = noise.normal(7, 2**32 - 1, (2, 1300), like=like), noise.bits(7, 5, (2, 1300), like=like, stream=3)
            patch.setattr(cpu_threads, "kernel", None)
            found = noise.normal(7, 2**32 - 1, (2, 1300), like=like), noise.bits(7, 5, (2, 1300), like=like, stream=3)
        assert [part.dtype for part in found] == [part.dtype for part in want]
        np.testing.assert_allclose(host(found[0]), host(want[0]), rtol=0, atol=atol)
        np.testing.assert_array_equal(host(found[1]), host(want[1]))


def test_jax_refuses_samples_that_it_cannot_count() -> None:
    for size, fits in [(2**34, True), (2**34 + 1, False)]:
        drawn = functools.partial(noise.normal, draw=0, shape=(1, size), like=jnp.zeros(1))
        if fits:
            assert jax.eval_shape(drawn, jnp.zeros((1, 2), jnp.uint32)).shape == (1, size)
        else:
            with pytest.raises(ValueError, match="at most 2\\^34"):
                jax.eval_shape(drawn, jnp.zeros((1, 2), jnp.uint32))


@settings(max_examples=25)
@given(seed=seeds, draw=draws, batch=st.integers(1, 3), size=st.sampled_from(EDGES), stream=st.integers(0, 3))
def test_the_bits_are_equal_on_every_library(seed: int, draw: int, batch: int, size: int, stream: int) -> None:
    want = host(noise.bits(seed, draw, (batch, size), like=LIBRARIES["array_api_strict"], stream=stream))
    for like in LIBRARIES.values():
        found = host(noise.bits(seed, draw, (batch, size), like=like, stream=stream))
        np.testing.assert_array_equal(found.astype(np.uint64), want)


@pytest.mark.parametrize("size", [3000, 200_000])
def test_the_normals_agree_to_a_few_ulp(size: int) -> None:
    exact = host(noise.normal(5, 9, (2, size), dtype=np.dtype(np.float64)))
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    for name, like in LIBRARIES.items():
        found = host(noise.normal(5, 9, (2, size), like=like)).astype(np.float64)
        assert np.max(np.abs(found - exact) / ulp) < 6.0, name


def test_numpy_and_eager_torch_are_equal_to_the_bit() -> None:
    for shape in ((1, 3), (3, 5, 77), (2, 70_000)):
        a, b = noise.normal(3, 1, shape), noise.normal(3, 1, shape, like=torch.zeros(1))
        np.testing.assert_array_equal(a, b.numpy())


def test_box_muller_in_sixty_digits() -> None:
    """Lanes 0 and 1 are r cos and r sin of words 0 and 1, with u = (w0 + 1/2) / 2^32 and the angle of w1 + 1/2."""
    size = 4 * _philox.TILE
    words = host(noise.bits(11, 2, (1, size)))[0].reshape(4, -1)
    normals = host(noise.normal(11, 2, (1, size), dtype=np.dtype(np.float64)))[0].reshape(4, -1)
    with mp.workdps(60):
        for column in range(0, words.shape[1], 16):
            for lane in (0, 2):
                u = (mp.mpf(int(words[lane, column])) + mp.mpf("0.5")) / 2**32
                angle = (mp.mpf(int(words[lane + 1, column])) + mp.mpf("0.5")) / 2**32 * 2 * mp.pi
                r = mp.sqrt(-2 * mp.log(u))
                for k, want in ((lane, r * mp.cos(angle)), (lane + 1, r * mp.sin(angle))):
                    assert abs(mp.mpf(float(normals[k, column])) - want) < 1e-14


@pytest.mark.parametrize("word", [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
def test_the_radius_is_right_at_both_ends(word: int) -> None:
    """Neither u near 0 nor u near 1 loses digits in float32: relative error of the radius within 4 ulp."""
    first, second = np.array([word], dtype=np.uint32), np.array([0], dtype=np.uint32)
    x, y = _philox.pair(np, first, second, np.float32, np.int32)
    with mp.workdps(60):
        want = mp.sqrt(-2 * mp.log((mp.mpf(word) + mp.mpf("0.5")) / 2**32))
        found = mp.sqrt(mp.mpf(float(x[0])) ** 2 + mp.mpf(float(y[0])) ** 2)
        assert abs(found / want - 1) < 4 * 2.0**-24


@every_library
@pytest.mark.parametrize("size", EDGES)
def test_a_batch_is_its_samples_and_a_prefix_is_a_prefix(like: Any, size: int) -> None:
    both = host(noise.normal([7, 2**64 - 1], 3, (2, size), like=like))
    np.testing.assert_array_equal(both[1:], host(noise.normal([2**64 - 1], 3, (1, size), like=like)))
    bits = host(noise.bits(7, 3, (1, 4000), like=like))
    np.testing.assert_array_equal(bits[:, :size], host(noise.bits(7, 3, (1, size), like=like)))


def test_many_small_samples_are_each_their_own() -> None:
    many = noise.normal(2**64 - 50, 1, (100, 5))
    for i in (0, 49, 50, 99):
        np.testing.assert_array_equal(many[i], noise.normal(noise.keys(2**64 - 50, 1, first=i), 1, (1, 5))[0])


def test_they_are_normal() -> None:
    x = noise.normal(1, 0, (4, 250_000)).astype(np.float64)
    assert scipy.stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    for k, want in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        spread = np.sqrt(scipy.stats.norm.moment(2 * k) / x.size)
        assert abs(np.mean(x**k) - want) < 5 * spread
    assert np.abs(x).max() > 4.5


def test_what_differs_is_independent() -> None:
    """Seeds, draws, streams and neighbouring elements: correlations within five standard errors of zero."""
    size = 200_000
    base = noise.normal(5, 0, (1, size))[0]
    others = [
        noise.normal(6, 0, (1, size))[0],
        noise.normal(5, 1, (1, size))[0],
        noise.normal(5 + 2**32, 0, (1, size))[0],
    ]
    others.append(noise.normal(5, 0, (1, size), stream=1)[0])
    others.extend(np.roll(base, shift) for shift in (1, 4, 256, 512, 1024))
    for other in others:
        for f in (lambda v: v, np.square):
            a, b = f(base.astype(np.float64)), f(other.astype(np.float64))
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(size)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_dtype_is_the_rounding_of_one_draw(dtype: str) -> None:
    exact = noise.normal(5, 9, (2, 300), dtype=np.dtype(np.float64))
    found = noise.normal(5, 9, (2, 300), like=torch.zeros(1, dtype=getattr(torch, dtype)))
    assert found.dtype == getattr(torch, dtype)
    step = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-22, "float64": 2.0**-50}[dtype]
    np.testing.assert_allclose(found.double().numpy(), exact, rtol=step, atol=1e-6 if dtype == "float16" else 1e-300)
    if dtype in ("float16", "bfloat16"):
        assert str(noise.normal(5, 9, (2, 3), like=jnp.zeros(1, dtype=dtype)).dtype) == dtype


def test_it_traces_under_jit_scan_and_vmap() -> None:
    words = jnp.asarray(noise.keys([7, 8], 2))
    like = jnp.zeros(1)

    def draw(number: Any) -> Any:
        return noise.normal(words, number, (2, 300), like=like)

    want = np.stack([host(draw(number)) for number in range(3)])
    np.testing.assert_allclose(host(jax.vmap(draw)(jnp.arange(3))), want, atol=1e-6)
    np.testing.assert_allclose(host(jax.lax.scan(lambda c, n: (c, draw(n)), 0, jnp.arange(3))[1]), want, atol=1e-6)
    np.testing.assert_allclose(host(jax.jit(draw)(jnp.uint32(2))), want[2], atol=1e-6)


def test_it_traces_under_torch_func_and_gives_meta_its_shape() -> None:
    words = torch.tensor([[7, 0], [8, 0]])
    like = torch.zeros(1)
    drawn = torch.func.vmap(lambda number: noise.normal(words, number, (2, 300), like=like))(torch.arange(3))
    want = torch.stack([noise.normal([7, 8], number, (2, 300), like=like) for number in range(3)])
    torch.testing.assert_close(drawn, want, atol=1e-6, rtol=0)
    assert noise.normal(1, 0, (2, 3000), like=torch.zeros(1, device="meta")).shape == (2, 3000)


@pytest.mark.slow
def test_it_compiles_to_one_graph_for_every_draw() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    like = torch.zeros(1)
    compiled = torch.compile(lambda words, number: noise.normal(words, number, (2, 3000), like=like), fullgraph=True)
    words = torch.tensor([[7, 0], [8, 0]])
    for number in (0, 1, 2**32 - 1):
        want = noise.normal([7, 8], number, (2, 3000), like=like)
        torch.testing.assert_close(compiled(words, torch.tensor(number)), want, atol=2e-6, rtol=0)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 0, 4)])
@every_library
def test_empty_shapes_are_empty(like: Any, shape: tuple[int, ...]) -> None:
    assert tuple(noise.normal(1, 0, shape, like=like).shape) == shape
    assert tuple(noise.bits(1, 0, shape, like=like).shape) == shape


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_native_generator_is_a_pure_function_of_seed_and_draw(name: str) -> None:
    source = noise.native(7, like=LIBRARIES[name])
    first = host(source(3, (2, 50)))
    source(4, (2, 50))
    np.testing.assert_array_equal(host(source(3, (2, 50))), first)
    assert not np.array_equal(host(source(4, (2, 50))), first)
    assert not np.array_equal(host(noise.native(8, like=LIBRARIES[name])(3, (2, 50))), first)


def test_a_library_without_a_known_generator_says_what_to_use() -> None:
    with pytest.raises(TypeError, match=r"`like` must be an array of NumPy, torch or JAX, .*array_api_strict"):
        noise.native(7, like=LIBRARIES["array_api_strict"])


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: noise.normal(-1, 0, (1, 2)), ValueError, r"`seed` must be an int in \[0, 2\^64 - 1\], got -1"),
    (lambda: noise.normal(2**64, 0, (1, 2)), ValueError, r"an int in \[0, 2\^64 - 1\], got 18446744073709551616"),
    (lambda: noise.normal([1, 2, 3], 0, (2, 2)), ValueError, r"one int, or have 2 entries, .*, got \[1, 2, 3\]"),
    (lambda: noise.normal(True, 0, (1, 2)), TypeError, "seed"),
    (lambda: noise.normal(1.5, 0, (1, 2)), TypeError, "seed"),
    (lambda: noise.normal([1.5], 0, (1, 2)), TypeError, "seed"),
    (lambda: noise.normal("7", 0, (1, 2)), TypeError, "seed"),
    (lambda: noise.normal(1, 0, (1, 2), dtype=np.dtype(np.int32)), TypeError, "int32, but takes float16"),
    (lambda: noise.normal(1, 0, (1, 2), like=torch.zeros(1, dtype=torch.int64)), TypeError, "int64, but takes"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_input_says_what_to_give(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
