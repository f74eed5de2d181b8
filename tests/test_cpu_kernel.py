"""The compiled kernel of a CPU: noise to a few ulp, clips and terms as NumPy has them, and memory that it never leaves."""

from __future__ import annotations

import itertools
import math
import os
import shutil
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diffcore as dc
from diffcore import _philox
from diffcore.backends import cpu_threads, numpy_stage
from diffcore.plan import Form

kernel: Any = cpu_threads.kernel
needs_kernel = pytest.mark.skipif(kernel is None, reason="the kernel was not compiled")
KINDS = [np.dtype(np.float32), np.dtype(np.float64)]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, math.inf, -math.inf, math.nan, 1e-45, 3e38]


def test_the_kernel_is_there_where_a_compiler_is() -> None:
    """The build goes on without it, so that somebody has to look."""
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no C compiler")
    assert kernel is not None


@needs_kernel
@pytest.mark.parametrize("dtype", [*KINDS, np.dtype(np.uint32)], ids=str)
@pytest.mark.parametrize("size", [1, 3, 255, 256, 257, 513, 1023, 1024, 1025, 1300, 3000])
def test_noise_is_that_of_the_reference(dtype: Any, size: int) -> None:
    words, draw, stream = dc.noise.keys([5, 2**64 - 1, 2**32], 3), 2**32 - 1, 3
    found = np.full((3, size), 7, dtype)
    kernel.noise(found, words, draw, stream, None, size, 0, 3 * -(-size // 1024))
    if dtype == np.uint32:
        np.testing.assert_array_equal(found, _philox.bits(np, words, draw, found.shape, stream=stream))
        return
    exact = _philox.normal(np, words, draw, found.shape, dtype=np.float64, stream=stream)
    tolerance = 8 if dtype == np.float32 else 6
    error = np.abs(found - exact) / np.spacing(np.abs(exact).astype(dtype))
    small = np.abs(exact) < 1e-3  # near 0 the error is that of the radius, relative to what the angle leaves of it
    assert error[~small].max() <= tolerance
    assert np.abs(found - exact)[small].max(initial=0.0) <= 4 * np.finfo(dtype).eps


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("seed", "element", "word"),
    [
        (1636330, 158, 0),
        (940468, 214, 2),
        (1285398, 654, 4),
        (2313894, 553, 2**32 - 6),
        (45232, 759, 2**32 - 5),
        (3449120, 48, 2**32 - 4),
    ],
)
def test_both_ends_of_a_uniform_keep_their_digits(
    seed: int, element: int, word: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds that meet the outermost words: u = (word + 1/2) / 2^32 gives the largest and the smallest radii there are."""
    monkeypatch.setattr(cpu_threads, "kernel", kernel if compiled else None)
    assert int(dc.noise.bits([seed], 1, (1, 1024))[0, element]) == word
    drawn = dc.noise.normal([seed], 1, (1, 1024))[0].astype(np.float64)
    with mp.workdps(30):
        radius = mp.sqrt(-2 * mp.log((mp.mpf(word) + 0.5) / 2**32))
    assert math.hypot(drawn[element], drawn[element + 256]) == pytest.approx(float(radius), rel=4e-7)


def exact_pair(first: int, second: int) -> tuple[Any, Any]:
    """Return the two normals of two words, to 30 digits."""
    with mp.workdps(30):
        radius = mp.sqrt(-2 * mp.log((mp.mpf(first) + 0.5) / 2**32))
        half_turns = (mp.mpf(second) + 0.5) / 2**31
        return radius * mp.cospi(half_turns), radius * mp.sinpi(half_turns)


def worst_ulp(seed: int, blocks: range) -> float:
    """Return the largest error of a float64 normal from these blocks of a seed's first tile, in units in the last place."""
    words = dc.noise.bits([seed], 1, (1, 1024)).astype(np.int64).reshape(2, 2, 256)
    drawn = dc.noise.normal([seed], 1, (1, 1024), dtype=np.float64).reshape(2, 2, 256)
    return max(
        float(abs(found - exact) / math.ulp(exact))
        for (first, second), (x, y) in zip(words, drawn, strict=True)
        for block in blocks
        for found, exact in zip((x[block], y[block]), exact_pair(int(first[block]), int(second[block])), strict=True)
    )


@needs_kernel
@pytest.mark.parametrize(
    ("seed", "element", "word"),
    [
        (1636330, 158, 0),
        (6938999, 677, 1),
        (940468, 214, 2),
        (6344515, 544, 2**31 - 1),
        (3893055, 561, 2**31),
        (9273886, 514, 2**31 + 1),
        (15260611, 226, 2**32 - 2),
        (15054231, 71, 2**32 - 1),
        (2873635, 444, 0),
        (2412104, 959, 2**29 - 1),
        (3055018, 264, 2**29),
        (9437532, 315, 2**30 - 1),
        (8167526, 507, 2**30),
        (3305968, 432, 2**32 - 1),
    ],
)
def test_float64_is_right_at_the_ends_of_radii_and_of_octants(seed: int, element: int, word: int) -> None:
    """Seeds that meet these words: radii in lanes 0 and 2, angles in lanes 1 and 3."""
    assert int(dc.noise.bits([seed], 1, (1, 1024))[0, element]) == word
    block = element % 256
    assert worst_ulp(seed, range(block, block + 1)) <= 4.0


@needs_kernel
def test_float64_is_right_to_four_units_in_the_last_place() -> None:
    """Relative to the number itself, near 0 too."""
    assert max(worst_ulp(seed, range(256)) for seed in range(20)) <= 4.0


@needs_kernel
def test_the_radius_is_right_over_a_million_words() -> None:
    size = 1 << 20
    found = dc.noise.normal(11, 4, (1, size)).astype(np.float64)
    exact = dc.noise.normal(11, 4, (1, size), dtype=np.float64)
    radius = [np.hypot(*(a.reshape(-1, 2, 256)[:, i] for i in (0, 1))) for a in (found, exact)]
    np.testing.assert_allclose(radius[0], radius[1], rtol=4e-7, atol=0)
    assert radius[1].max() > 5.0
    assert radius[1].min() < 4e-3


def stage(dtype: Any, values: Any, row: Any, transform: Any, form: Form) -> tuple[Any, Any]:
    """Return what the kernel and the plain function make of a stage: z', the memory, x-hat."""
    z, y, other, eps, *memory = (np.array(v, dtype).reshape(1, -1) for v in values)
    stages = numpy_stage.Stages(form, np.array([row]), z, transform, lambda: np.full_like(z, 7.0))
    got = stages.after(0, z, tuple(memory), y, other, eps, None, None, 0, True)
    state = dc.State(z, tuple(memory), None, 0, 1, None)
    with np.errstate(all="ignore"):
        want = dc.stage.advance(form, state, y, list(row), eps, transform, other)
    return [got[0], *got[1], got[2]], [want.z, *want.memory, want.x]


numbers = st.one_of(st.sampled_from(SPECIAL), st.floats(-4.0, 4.0, width=32))


@needs_kernel
@settings(max_examples=100)
@given(data=st.data(), memory=st.integers(0, 8), clips=st.booleans(), length=st.integers(1, 130))
@pytest.mark.parametrize("second", [None, "unguided", "raw"])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_a_stage_is_the_plain_function_on_any_numbers(
    dtype: Any, second: Any, data: Any, memory: int, clips: bool, length: int
) -> None:
    """Infinite and not-a-number data too: a coefficient of 0 hides them, any other shows them, a clip keeps NaN."""
    shifted = data.draw(st.integers(0, max(memory - 1, 0)))
    form = Form(memory, shifted, memory > 0 and data.draw(st.booleans()), second)
    values = [data.draw(st.lists(numbers, min_size=3, max_size=3)) for _ in range(4 + memory)]
    values = [np.resize(v, length) for v in values]
    row = [data.draw(st.sampled_from([0.0, 1.0, -0.25, 1e-60, 3.0])) for _ in range(form.width)]
    bounds = sorted([data.draw(st.sampled_from([-1.0, -0.5, 0.0])), data.draw(st.sampled_from([0.25, 1.0]))])
    got, want = stage(dtype, values, row, dc.guidance.clip(*bounds) if clips else None, form)
    for found, wanted in zip(got, want, strict=True):
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(np.where(np.isnan(wanted), found, wanted)))


@needs_kernel
@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 0.0), (-0.0, 1.0)])
def test_a_clip_keeps_what_lies_on_its_bounds(dtype: Any, bounds: tuple[float, float]) -> None:
    """The sign of a zero too."""
    x = np.array([-0.0, 0.0, 1.0, -1.0, 2.0, -2.0, math.nan], dtype)
    values = [np.zeros_like(x), x, np.zeros_like(x), np.zeros_like(x)]
    (new, _), want = stage(dtype, values, [0.0, 1.0, 0.0, 0.0, 1.0], dc.guidance.clip(*bounds), Form())
    np.testing.assert_array_equal(new, want[0])
    assert new[0, :2].tobytes() == x[:2].tobytes()


@needs_kernel
@pytest.mark.parametrize("dtype", [*KINDS, np.dtype(np.float16), np.dtype(np.uint16)], ids=str)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("second", [1, 2])
def test_results_may_lie_over_any_of_what_is_read(dtype: Any, given: bool, second: int) -> None:
    """In every order: all that a stage reads is read before it writes."""
    size = 1300
    values = np.random.default_rng(5).standard_normal((7, 2, size)).astype(np.float16 if dtype.itemsize == 2 else dtype)
    values = (values if dtype != np.uint16 else values.astype(np.float32).view(np.uint32) >> 16).astype(dtype)
    row = np.linspace(-0.9, 0.8, 2 + 3 * 6)[None]

    def run(places: tuple[int, ...]) -> list[Any]:
        arrays = [*values.copy(), *np.zeros((4, 2, size), dtype)]
        z, y, other, eps, x, *memory = arrays[:7]
        to_z, to_x, *to_memory = (arrays[place] for place in places)
        inputs = z, y, other, eps, x if given else None, tuple(memory), row, 0, 0, 0, None, 1, second
        kernel.stage(to_z, to_x, tuple(to_memory), *inputs, -0.5, 0.5, size, 0, 4)
        return [to_z, to_x, *to_memory]

    apart = run((7, 8, 9, 10))
    for places in itertools.permutations(range(7), 4):
        for found, want in zip(run(places), apart, strict=True):
            np.testing.assert_array_equal(found, want)
    assert len({array.tobytes() for array in apart}) == 4
    if given:
        np.testing.assert_array_equal(apart[1], values[4])


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_read_and_rounded_as_torch_does(dtype: Any) -> None:
    """Every number of 16 bits, and sums that round to even, to a subnormal, to infinity."""
    values = torch.from_numpy(np.arange(2**16, dtype=np.uint16)).view(dtype).reshape(4, -1)
    plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=3)
    state, backend = dc.start(plan, values, seed=1), dc.backends.of(values)
    for scale in (1.0, 3.0, 0.3, 1e-4, 2.0**-20):
        row = [0.125, 1.0, 0.0, 0.0, scale]
        for y in (values, values.flip(-1)):
            got = backend.advance(plan.form, state, y, row, None, stochastic=False, transform_x=None).z
            want = dc.stage.advance(plan.form, state, y, row, None, None).z
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
            finite = want.isfinite() & values.isfinite() & y.isfinite()
            assert finite.sum() > 10_000
            if scale == 3.0:
                assert (want.isinf() & values.isfinite() & y.isfinite()).any()
            if scale < 1e-3 and dtype == torch.float16:
                assert ((want != 0.0) & (want.abs() < torch.finfo(dtype).tiny)).any()


@needs_kernel
def test_arrays_that_do_not_fit_are_refused() -> None:
    z = np.zeros((2, 8), np.float32)
    table, words = np.zeros((3, 10)), np.zeros((2, 2), np.uint32)
    off = np.zeros(z.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(z.shape)
    outputs = [np.zeros_like(z), None, (np.zeros_like(z),)]
    good = [*outputs, z, z, None, None, None, (z,), table, 0, 0, 0, words, 1, 0, -1.0, 1.0, 8, 0, 2]
    kernel.stage(*good)
    kernel.stage(None, None, (None,), *good[3:])
    bad: list[tuple[int, Any, type[Exception]]] = [
        (0, np.zeros((2, 7), np.float32), ValueError),
        (0, z[:, ::2], ValueError),
        (0, off, ValueError),
        (1, np.zeros((2, 7), np.float32), ValueError),
        (1, 3, TypeError),
        (2, (np.zeros((2, 7), np.float32),), ValueError),
        (2, (None, None), ValueError),
        (2, None, ValueError),
        (2, [z], ValueError),
        (3, z.astype(np.int32), ValueError),
        (3, z.astype(np.float16), ValueError),
        (3, off, ValueError),
        (3, None, TypeError),
        (4, z.astype(np.float64), ValueError),
        (4, np.zeros((1, 8), np.float32), ValueError),
        (4, off, ValueError),
        (4, None, ValueError),
        (5, z[:1], ValueError),
        (6, z[:1], ValueError),
        (7, z[:1], ValueError),
        (8, (), ValueError),
        (8, (None,), ValueError),
        (8, (z, z), ValueError),
        (8, (z,) * 5, ValueError),
        (8, (z[:1],), ValueError),
        (8, [z], ValueError),
        (9, table.astype(np.float32), ValueError),
        (9, table.ravel(), ValueError),
        (9, None, ValueError),
        (10, 3, ValueError),
        (10, -1, ValueError),
        (11, -1, ValueError),
        (11, 3, ValueError),
        (11, 4, ValueError),
        (12, 1, ValueError),
        (12, -1, ValueError),
        (13, words[:1], ValueError),
        (13, words.astype(np.int64), ValueError),
        (14, "1", TypeError),
        (15, 1, ValueError),
        (15, 3, ValueError),
        (15, -1, ValueError),
        (16, None, TypeError),
        (18, 0, ValueError),
        (18, 5, ValueError),
        (19, -1, ValueError),
        (20, 3, ValueError),
    ]
    for place, value, error in bad:
        with pytest.raises(error):
            kernel.stage(*(value if place == i else argument for i, argument in enumerate(good)))
    wide = np.zeros((3, 12))
    cases: list[tuple[int, dict[int, Any]]] = [(1, {}), (2, {4: None, 7: z}), (2, {4: None})]
    for second, inputs in cases:  # a second estimate of what is not there
        wanted = {9: wide, 15: second, **inputs}
        with pytest.raises(ValueError, match="a stage needs"):
            kernel.stage(*(wanted.get(i, argument) for i, argument in enumerate(good)))
    for samples, frames, rows in [
        (2, 0, 1),
        (2, 3, 6),
        (1, 4, 3),
        (3, 2, 6),
        (1, 0, 0),
    ]:  # rows that are too few; frames, samples that are not there
        with pytest.raises(ValueError, match="cpu_kernel"):
            kernel.stage(*good[:9], np.zeros((rows, 10)), 0, samples, frames, *good[13:])
    with pytest.raises(ValueError, match="takes 21"):
        kernel.stage(*good[:-1])
    read_only = np.zeros_like(z)
    read_only.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        kernel.stage(read_only, *good[1:])
    with pytest.raises(ValueError, match="cpu_kernel"):
        kernel.stage(*good[:3], np.zeros(3, "V0"), *good[4:])
    for arguments in [
        (np.zeros((0, 8), np.float32), words[:0], 0, 0, None, 2**63 - 1, 0, 0),
        (np.zeros((2, 8), np.float16), words, 0, 0, None, 8, 0, 2),
        (np.zeros((2, 8), np.float32), words, 0, 0, None, 8, 0, 3),
        (np.zeros((2, 8), np.float32), words[:1], 0, 0, None, 8, 0, 2),
        (np.zeros((2, 8), np.float32), words, 0, 0, None, 8),
        (np.zeros((2, 8), np.float32), words, 0, 0, np.zeros((3, 2), np.uint32), 4, 0, 4),
        (np.zeros((2, 8), np.float32), words, 0, 0, np.zeros((2, 2), np.uint32), 3, 0, 4),
        (np.zeros((2, 8), np.float32), words, 0, 0, np.zeros((2, 2), np.uint32), 4, 0, 9),
        (np.zeros((2, 8), np.float32), words, 0, 0, np.zeros(3, np.uint32), 4, 0, 4),
        (np.zeros((2, 8), np.float32), words, 0, 0, np.zeros((2, 2), np.float32), 4, 0, 4),
        (np.zeros((2, 8), np.float32), words, 0, 0, np.zeros((0, 2), np.uint32), 8, 0, 2),
    ]:
        with pytest.raises(ValueError, match="cpu_kernel"):
            kernel.noise(*arguments)


@needs_kernel
@pytest.mark.parametrize("size", [1, 255, 257, 1025])
def test_nothing_is_written_outside_the_programs_asked_for(size: int) -> None:
    tiles = -(-size // 1024)
    words = dc.noise.keys(3, 3)
    table = np.array([[0.5, 0.5, 0.25, 1.0, 0.5]])
    whole, z = np.full((5, size), 7.0, np.float32), np.ones((3, size), np.float32)
    inputs = z, z, None, None, None, (), table, 0, 0, 0, words, 1, 0, -1.0, 1.0, size
    kernel.stage(whole[1:4], None, (), *inputs, tiles, 2 * tiles)
    assert (whole[[0, 1, 3, 4]] == 7.0).all()
    assert (whole[2] != 7.0).all()
