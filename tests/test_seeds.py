"""Seeds: samples of different seeds have nothing in common, and every form of a seed is the same key on every library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import FRAMEWORKS, every_library, example, host, namespace

import diffcore as dc
from diffcore import _streams, noise, times
from diffcore.testing.noise import philox

PLAN = dc.samplers.ddim(dc.schedules.Cosine(), steps=2, eta=1.0)
ANY_SEED = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**32 - 1, 2**32, 2**63, 2**64 - 1]))
NUMBERS = st.one_of(st.integers(0, 2**30 - 8), st.sampled_from([0, 253, 256, 2**30 - 8]))


def denoise(z: Any, log_snr: Any) -> Any:
    return -0.5 * z


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: noise.normal(seed, 0, (100, 3)),
        lambda seed: dc.sample(denoise, PLAN, shape=(100, 3), seed=seed, prediction="v"),
        lambda seed: times.independent(seed, 0, (100, 3)),
        lambda seed: dc.exact.Gaussian(np.zeros(3), 1.0).sample(seed, 100),
        lambda seed: noise.fold_in(seed, 3, 100),
    ],
    ids=["normal", "sample", "times", "exact", "fold_in"],
)
def test_seeds_0_1_and_2_share_no_sample(draw: Callable[[int], Any]) -> None:
    assert len({row.tobytes() for seed in range(3) for row in np.asarray(draw(seed))}) == 300


@given(seed=ANY_SEED, first=NUMBERS, count=st.integers(0, 8))
def test_key_i_is_the_first_two_words_of_block_i(seed: int, first: int, count: int) -> None:
    found = noise.keys(seed, count, first)
    assert (found.shape, found.dtype) == ((count, 2), np.uint32)
    for i, key in enumerate(found.tolist()):
        words = philox((first + i, 0, 0, _streams.KEYS), (seed & 0xFFFFFFFF, seed >> 32))
        assert tuple(key) == words[:2]


@given(seed=ANY_SEED, number=NUMBERS)
def test_the_key_of_a_part_is_the_first_two_words_of_its_block(seed: int, number: int) -> None:
    words = philox((number, 0, 0, _streams.EXTEND), (seed & 0xFFFFFFFF, seed >> 32))
    found = noise.fold_in([5, seed], number, 2, stream=_streams.EXTEND)
    assert tuple(found[1].tolist()) == words[:2]
    np.testing.assert_array_equal(noise.fold_in(noise.keys([5, seed], 2), number, 2, stream=_streams.EXTEND), found)


@given(seed=ANY_SEED, split=st.integers(0, 600))
def test_a_batch_is_its_parts(seed: int, split: int) -> None:
    parts = [noise.keys(seed, split), noise.keys(seed, 600 - split, first=split)]
    np.testing.assert_array_equal(np.concatenate(parts), noise.keys(seed, 600))
    alone = noise.normal(noise.keys(seed, 1, first=split), 3, (1, 5))
    np.testing.assert_array_equal(noise.normal(seed, 3, (601, 5))[split], alone[0])


@pytest.mark.torch
@pytest.mark.jax
def test_every_form_of_a_seed_gives_the_same_keys_in_its_own_library() -> None:
    import jax.numpy as jnp
    import torch

    for seed in (0, 7, 2**31 - 1):
        want = noise.keys(seed, 300, first=200)
        forms = [
            np.uint8(seed % 8),
            np.asarray(seed),
            np.int64(seed),
            torch.tensor(seed),
            jnp.int32(seed),
            jnp.uint32(seed),
        ]
        for form in forms[1:]:
            found = noise.keys(form, 300, first=200)
            np.testing.assert_array_equal(host(found), want)
            kind = "torch.int64" if isinstance(form, torch.Tensor) else "uint32"
            assert str(found.dtype) == kind
        np.testing.assert_array_equal(noise.keys(forms[0], 3), noise.keys(seed % 8, 3))
    big = 2**63 + 5
    np.testing.assert_array_equal(noise.keys(np.uint64(big), 3), noise.keys(big, 3))
    with example("jax", "float64"):
        np.testing.assert_array_equal(np.asarray(noise.keys(jnp.uint64(big), 3)), noise.keys(big, 3))
        np.testing.assert_array_equal(np.asarray(noise.keys(jnp.int64(2**40), 3)), noise.keys(2**40, 3))
    np.testing.assert_array_equal(host(noise.keys(torch.tensor(big - 2**64), 3)), noise.keys(big, 3))


@every_library
def test_one_int_per_sample_and_words_are_used_as_they_are(library: str) -> None:
    xp = namespace(library)
    want = np.array([[3, 0], [2**31 - 1, 0]])
    for form in ([3, 2**31 - 1], np.array([3, 2**31 - 1]), xp.asarray([3, 2**31 - 1])):
        np.testing.assert_array_equal(host(noise.keys(form, 2)), want)
    if library != "torch":
        words = noise.keys(7, 2)
        kept = words if library == "numpy" else xp.asarray(words)
        np.testing.assert_array_equal(host(noise.keys(kept, 2)), words)
    with example(library) as like:
        drawn = noise.normal([3, 2**31 - 1], 1, (2, 5), like=like)
        for form in (xp.asarray([3, 2**31 - 1]), xp.asarray(want), noise.keys([3, 2**31 - 1], 2)):
            np.testing.assert_array_equal(host(noise.normal(form, 1, (2, 5), like=like)), host(drawn))


@pytest.mark.torch
def test_torchs_words_of_32_bits_are_words() -> None:
    import torch

    words = torch.tensor([[1, 2**32 - 1], [3, 4]], dtype=torch.int64)
    want = noise.normal(words.numpy(), 0, (2, 5))
    for kind in (torch.int64, torch.uint32):
        found = noise.normal(words.to(kind), 0, (2, 5), like=torch.zeros(1))
        np.testing.assert_array_equal(found.numpy(), want)


@pytest.mark.torch
def test_numpys_keys_seeds_and_draws_are_taken_by_compiled_torch() -> None:
    import torch

    words, like, one = noise.keys(7, 3), torch.ones(1), np.array(1)

    def run(like: Any) -> Any:
        begin = noise.normal(words, np.int64(5), (3, 4), like=like, region=((one, 2), (0, 4)))
        parts = noise.normal(noise.fold_in(np.int64(7), one, 1), 0, (1, 4), like=like)
        others = [noise.normal(seed, 0, (3, 4), like=like) for seed in (np.array([1, 2, 3]), np.array(7))]
        return begin, parts, others

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(like), run(like), atol=2e-6, rtol=0)


@pytest.mark.torch
@pytest.mark.jax
def test_a_number_may_be_an_integer_array_of_no_axes() -> None:
    import jax.numpy as jnp
    import torch

    words, shape = noise.keys(7, 4), (4, 6)
    want = noise.normal(words, 3, shape)
    for form in (np.array, np.int64, np.uint8, torch.tensor, jnp.asarray):
        for seed in (words, 7):
            region: Any = [(form(1), form(2)), (form(2), form(3))]
            np.testing.assert_array_equal(noise.normal(seed, form(3), shape, region=region), want[1:3, 2:5])
        np.testing.assert_array_equal(noise.keys(words, 4, first=form(0)), words)
        np.testing.assert_array_equal(host(noise.keys(7, 2, first=form(2))), words[2:])
        with pytest.raises(ValueError, match="`first` must be 0"):
            noise.keys(words, 4, first=form(1))


def test_what_numpy_holds_is_checked_like_an_int() -> None:
    for wrong in (np.array(-3), np.int64(-3), np.array(2**40)):
        with pytest.raises(ValueError, match=r"`draw` must be an int in \[0, 2\^32 - 1\]"):
            noise.normal(7, wrong, (4, 6))
        with pytest.raises(ValueError, match="`first` must be an int"):
            noise.keys(7, 2, first=wrong)
        with pytest.raises(ValueError, match="`region` must be"):
            noise.normal(7, 0, (4, 6), region=[(wrong, 2), (0, 6)])
    kind: Any
    for kind in (np.array(2.0), np.array(True), np.array([2])):
        with pytest.raises(TypeError, match="`region` must be"):
            noise.normal(7, 0, (4, 6), region=[(0, kind), (0, 6)])
        with pytest.raises(TypeError, match="`first` must be an int"):
            noise.keys([7, 8], 2, first=kind)


@pytest.mark.parametrize("library", FRAMEWORKS)
def test_a_run_takes_keys_wherever_it_takes_a_seed(library: str) -> None:
    xp = namespace(library)
    with example(library) as like:
        settings: dict[str, Any] = {"like": like, "prediction": "v"}
        whole = host(dc.sample(denoise, PLAN, shape=(5, 3), seed=7, **settings))
        for seed in (noise.keys(7, 2, first=3), noise.keys(xp.asarray(7), 2, first=3)):
            part = host(dc.sample(denoise, PLAN, shape=(2, 3), seed=seed, **settings))
            np.testing.assert_array_equal(part, whole[3:])
        one = xp.asarray(7)
        np.testing.assert_array_equal(host(dc.sample(denoise, PLAN, shape=(5, 3), seed=one, **settings)), whole)
        for draw in (times.independent, times.stratified, times.antithetic):
            np.testing.assert_array_equal(host(draw(one, 2, 5, like=like)), host(draw(7, 2, 5, like=like)))
            np.testing.assert_array_equal(host(draw(noise.keys(7, 5), 2, 5, like=like)), host(draw(7, 2, 5, like=like)))
    data = dc.exact.Mixture([0.5, 0.5], np.array([[-1.0], [1.0]]), 0.1)
    np.testing.assert_array_equal(data.sample(7, 5)[3:], data.sample(noise.keys(7, 2, first=3), 2))


@pytest.mark.jax
def test_a_seed_may_be_traced_and_vmapped_on_jax() -> None:
    import jax
    import jax.numpy as jnp

    like = jnp.zeros(1)

    def run(seed: Any) -> Any:
        drawn = dc.sample(denoise, PLAN, shape=(3, 5), like=like, seed=seed, prediction="v")
        return drawn, noise.normal(seed, 1, (3, 300), like=like), times.stratified(seed, 0, 3, like=like)

    jitted = jax.jit(run)
    for forms in (jnp.arange(2), jnp.arange(6, dtype=jnp.uint32).reshape(2, 3)):
        want = [jax.tree.map(np.asarray, run(np.asarray(form))) for form in forms]
        for i, form in enumerate(forms):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jitted(form), want[i])
        together = jax.vmap(run)(forms)
        for part, one in zip(together, zip(*want, strict=True), strict=True):
            np.testing.assert_allclose(np.asarray(part), np.stack(one), atol=1e-5)
    words = jnp.stack([jnp.asarray(noise.keys(seed, 3)) for seed in range(2)])
    np.testing.assert_allclose(jax.vmap(run)(words)[0], jax.vmap(run)(jnp.arange(2))[0], atol=1e-5)
    found = jax.jit(lambda seed, first: noise.keys(seed, 300, first))(jnp.int32(7), jnp.int32(77))
    np.testing.assert_array_equal(np.asarray(found), noise.keys(7, 300, first=77))
    np.testing.assert_array_equal(jax.jit(lambda n: noise.fold_in(7, 300, 2) + 0 * n)(1), noise.fold_in(7, 300, 2))


@pytest.mark.jax
def test_jaxs_own_keys_are_seeds() -> None:
    import jax
    import jax.numpy as jnp

    like, one = jnp.zeros(1), jax.random.key(7)
    low, high = np.asarray(jax.random.key_data(one)).tolist()
    want = noise.normal(low + 2**32 * high, 0, (3, 5))
    np.testing.assert_allclose(np.asarray(noise.normal(one, 0, (3, 5), like=like)), want, atol=1e-6)
    found = jax.jit(lambda key: noise.normal(key, 0, (3, 5), like=like))(one)
    np.testing.assert_allclose(np.asarray(found), want, atol=1e-6)
    many = jax.random.split(one, 3)
    np.testing.assert_array_equal(np.asarray(noise.keys(many, 3)), np.asarray(jax.random.key_data(many)))
    np.testing.assert_array_equal(np.asarray(noise.keys(many[1], 3)), noise.keys(noise_seed(many[1]), 3))
    with pytest.raises(TypeError, match="keys of two words"):
        noise.keys(jax.random.key(7, impl="rbg"), 3)
    old = jax.random.PRNGKey(7)
    for call in (noise.keys, jax.jit(noise.keys, static_argnums=1)):
        with pytest.raises(TypeError, match="one old key"):
            call(old, 2)
    np.testing.assert_array_equal(np.asarray(noise.keys(old.reshape(1, 2), 1))[0], jax.random.key_data(one))


def noise_seed(key: Any) -> int:
    import jax

    low, high = np.asarray(jax.random.key_data(key)).tolist()
    return int(low) + 2**32 * int(high)


@pytest.mark.jax
def test_shards_of_a_batch_draw_what_the_whole_batch_draws() -> None:
    """Inside a shard_map on two devices: by keys that are divided, by first numbers, and by regions."""
    program = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np, diffcore as dc
assert len(jax.devices()) == 2
P, mesh = jax.sharding.PartitionSpec, jax.sharding.Mesh(jax.devices(), ("b",))
like, shape = jnp.zeros(1), (4, 3, 700)
want = dc.noise.normal(7, 3, shape)
unsharded = np.asarray(dc.noise.normal(7, 3, shape, like=like))
np.testing.assert_allclose(unsharded, want, atol=2e-6)
shard = lambda call, *given: np.asarray(jax.jit(jax.shard_map(
    call, mesh=mesh, in_specs=tuple(P("b") for _ in given), out_specs=P("b")))(*given))
keys = jnp.asarray(dc.noise.keys(7, 4))
by_keys = shard(lambda keys: dc.noise.normal(keys, 3, (2, 3, 700), like=like), keys)
np.testing.assert_array_equal(by_keys, unsharded)
mine = lambda seed: dc.noise.keys(seed, 2, first=2 * jax.lax.axis_index("b"))
for seed in (7, jnp.uint32(7), jax.random.wrap_key_data(jnp.uint32([7, 0]))):
    by_number = shard(lambda: dc.noise.normal(mine(seed), 3, (2, 3, 700), like=like))
    np.testing.assert_array_equal(by_number, unsharded)
rows = lambda: ((2 * jax.lax.axis_index("b"), 2), (0, 3), (0, 700))
for seed, whole in ((7, unsharded), (keys, unsharded), (keys[:2], unsharded[[0, 1, 0, 1]])):
    found = shard(lambda: dc.noise.normal(seed, 3, shape, like=like, region=rows()))
    np.testing.assert_array_equal(found, whole)
wide = (2, 4, 900)
unsharded = np.asarray(dc.noise.normal(7, 3, wide, like=like))
part = lambda: dc.noise.normal(7, 3, wide, like=like, region=((0, 2), (2 * jax.lax.axis_index("b"), 2), (0, 900)))
found = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(), out_specs=P(None, "b")))()
np.testing.assert_array_equal(np.asarray(found), unsharded)
plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=3, eta=1.0)
z = np.linspace(-1, 1, 4 * 50, dtype=np.float32).reshape(4, 50)
run = lambda z, keys: dc.sample(lambda z, log_snr: -0.5 * z, plan, z, seed=keys, prediction="v")
np.testing.assert_allclose(shard(run, jnp.asarray(z), keys), run(z, 7), atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@pytest.mark.torch
def test_a_seed_may_be_vmapped_and_compiled_on_torch() -> None:
    import torch

    def draw(seed: Any) -> Any:
        return noise.normal(seed, 1, (3, 40), like=torch.zeros(1))

    want = np.stack([noise.normal(seed, 1, (3, 40)) for seed in (3, 5)])
    found = torch.func.vmap(draw)(torch.tensor([3, 5]))
    np.testing.assert_allclose(found.numpy(), want, atol=1e-6)
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    np.testing.assert_allclose(compiled(torch.tensor(5)).numpy(), want[1], atol=1e-6)


@pytest.mark.jax
def test_a_native_generator_takes_all_64_bits_of_a_seed() -> None:
    import jax.numpy as jnp
    import torch

    for like in (np.zeros(1), torch.zeros(1), jnp.zeros(1)):
        drawn = [np.asarray(noise.native(seed, like=like)(0, (5,))).tobytes() for seed in (7, 7 + 2**32, 2**63 + 7)]
        assert len(set(drawn)) == 3


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: noise.keys(-1, 2), ValueError, r"`seed` must be an int in \[0, 2\^64 - 1\], got -1"),
    (lambda: noise.keys(2**64, 2), ValueError, r"an int in \[0, 2\^64 - 1\], got 18446744073709551616"),
    (lambda: noise.keys(True, 2), TypeError, "`seed` must be an int.*, got True"),
    (lambda: noise.keys(np.bool_(1), 2), TypeError, "`seed` must be an int.*, got True"),
    (lambda: noise.keys([1, False], 2), TypeError, "`seed` must be an int.*, got False"),
    (lambda: noise.keys(1.0, 2), TypeError, "`seed` must be an int.*, got 1.0"),
    (lambda: noise.keys(np.float32(1), 2), TypeError, "`seed` must be an int.*, got 1.0"),
    (lambda: noise.keys("7", 2), TypeError, "`seed` must be an int.*, got '7'"),
    (lambda: noise.keys(None, 2), TypeError, "`seed` must be an int.*, got None"),
    (lambda: noise.keys(np.array([1.0, 2.0]), 2), TypeError, "`seed` must be an int.*, got 1.0"),
    (lambda: noise.keys(np.array([1, -2]), 2), ValueError, "`seed` must be an int.*, got -2"),
    (lambda: noise.keys(np.ones((2, 2)), 2), TypeError, "`seed` must be an int.*float64"),
    (lambda: noise.keys(np.array([[1, -2]]), 1), ValueError, r"`seed` must have words in \[0, 2\^32 - 1\], got -2"),
    (
        lambda: noise.keys(np.array([[1, 2**32]]), 1),
        ValueError,
        r"`seed` must have words in \[0, 2\^32 - 1\], got 4294967296",
    ),
    (lambda: noise.keys(np.ones((2, 3), int), 2), ValueError, r"words \(B, 2\), got .*shape \(2, 3\)"),
    (lambda: noise.keys(np.ones((2, 2, 2), int), 2), ValueError, r"words \(B, 2\), got .*shape \(2, 2, 2\)"),
    (lambda: noise.keys([1, 2, 3], 2), ValueError, r"one int, or have 2 entries, .*, got \[1, 2, 3\]"),
    (lambda: noise.keys(noise.keys(7, 3), 2), ValueError, r"one int, or have 2 entries, .* shape \(3, 2\)"),
    (lambda: noise.keys([1, 2], 2, first=1), ValueError, "`first` must be 0 where `seed` is keys, got 1"),
    (lambda: noise.keys(7, -1), ValueError, "`count` must be an int >= 0, got -1"),
    (lambda: noise.keys(7, True), TypeError, "`count` must be an int >= 0, got True"),
    (lambda: noise.keys(7, 2, first=-1), ValueError, r"`first` must be an int in \[0, "),
    (lambda: noise.keys(7, 2, first=2**30 - 1), ValueError, r"`first` must be an int in \[0, 1073741822\]"),
    (lambda: noise.keys(7, 2, first=1.5), TypeError, "`first` must be an int"),
    (lambda: noise.fold_in(7, -1, 1), ValueError, "`number` must be an int"),
    (lambda: noise.fold_in(7, 2**30, 1), ValueError, "`number` must be an int"),
    (lambda: noise.fold_in(7, True, 1), TypeError, "`number` must be an int"),
    (lambda: noise.native(-1), ValueError, "`seed` must be an int.*, got -1"),
    (lambda: noise.native(1.5), TypeError, "`seed` must be an int.*, got 1.5"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_seeds_say_what_to_give(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.torch
@pytest.mark.jax
@pytest.mark.parametrize("library", ["torch", "jax.numpy"])
def test_arrays_that_are_no_seeds_are_refused(library: str) -> None:
    import importlib

    xp = importlib.import_module(library)
    for bad in (xp.zeros(2), xp.ones(2) > 0, xp.asarray(1.5)):
        with pytest.raises(TypeError, match="`seed` must be an int"):
            noise.keys(bad, 2)
    with pytest.raises(ValueError, match=r"one int, or have 2 entries, .* shape \(3,\)"):
        noise.keys(xp.asarray([1, 2, 3]), 2)
    with pytest.raises(ValueError, match=r"words \(B, 2\)"):
        noise.keys(xp.asarray([[1, 2, 3]]), 1)
