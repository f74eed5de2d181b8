"""Stages on memory that NumPy sees have the bits of the plain function: compiled or not, on threads, on NumPy and torch."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import diffcore as dc
from diffcore import backends, conditioning
from diffcore.backends import ArrayAPIBackend, Run, cpu_threads, numpy_memory, numpy_noise
from diffcore.testing.conformance import plans

LIKE = {
    "numpy": np.zeros(1, np.float32),
    "numpy64": np.zeros(1),
    "torch": torch.zeros(1),
    "torch64": torch.zeros(1, dtype=torch.float64),
    "numpy16": np.zeros(1, np.float16),
    "torch16": torch.zeros(1, dtype=torch.float16),
    "brain": torch.zeros(1, dtype=torch.bfloat16),
}
every_library = pytest.mark.parametrize("like", list(LIKE.values()), ids=list(LIKE))
every_plan = pytest.mark.parametrize("plan", list(plans().values()), ids=list(plans()))

TRANSFORMS: dict[str, Any] = {
    "none": None,
    "clip": dc.guidance.clip(-0.7, 0.7),
    "dynamic": dc.guidance.dynamic_threshold(0.9),
    "wider": lambda x: np.asarray(x, dtype=np.float64) if isinstance(x, np.ndarray) else x.double(),
}


class Plain(ArrayAPIBackend):
    """Whatever a backend does, with the plain loop and the plain stage."""

    def __init__(self, served: Any) -> None:
        super().__init__(served.xp)
        vars(self).update(normal=served.normal, seeds=served.seeds, index=served.index)


def denoise(z: Any, log_snr: Any) -> Any:
    return -0.5 * z


def both(
    plan: dc.Plan, state: dc.State, call: Callable[..., Any] = denoise, **settings: Any
) -> tuple[list[dc.State], list[dc.State]]:
    """Return the states after every stage, of the backend and of the plain loop."""
    served = backends.of(state.z)
    seen: tuple[list[dc.State], list[dc.State]] = ([], [])
    for backend, states in zip((served, Plain(served)), seen, strict=True):
        with torch.no_grad():
            backend.run(Run(call, plan, plan.coefficients("v"), callback=states.append, **settings), state)
    return seen


def raw(array: Any) -> bytes:
    """Return the bytes of an array, of bfloat16 too."""
    return np.asarray(array.view(torch.int16) if getattr(array, "dtype", None) == torch.bfloat16 else array).tobytes()


def same(left: list[dc.State], right: list[dc.State]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert int(a.index) == int(b.index)
        assert (a.saved is None) == (b.saved is None)
        pairs = [
            (a.z, b.z),
            *zip(a.estimates, b.estimates, strict=True),
            *([] if a.saved is None else [(a.saved, b.saved)]),
        ]
        for got, want in pairs:
            assert got.dtype == want.dtype
            assert raw(got) == raw(want)


@pytest.fixture(params=["compiled", "sums"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernel, and as where it could not be compiled."""
    if request.param == "sums":
        monkeypatch.setattr(cpu_threads, "kernel", None)
    return str(request.param)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small arrays large: several programs and passes a sample, on three threads, in memory that is used again."""
    monkeypatch.setattr(cpu_threads, "ELEMENTS", 1)
    monkeypatch.setattr(cpu_threads, "count", lambda: 3)
    monkeypatch.setattr(numpy_noise, "CHUNK", 256)
    monkeypatch.setattr(numpy_memory, "LARGE", 1)


@every_library
@every_plan
@pytest.mark.parametrize("transform", list(TRANSFORMS))
@pytest.mark.usefixtures("way")
def test_a_small_run_is_the_plain_loop_bit_for_bit(plan: dc.Plan, transform: str, like: Any) -> None:
    state = dc.start(plan, shape=(3, 5), like=like, seed=7)
    same(*both(plan, state, transform_x=TRANSFORMS[transform]))


@pytest.mark.parametrize("like", [LIKE[name] for name in ("numpy", "torch", "brain")], ids=["numpy", "torch", "brain"])
@every_plan
@pytest.mark.parametrize("transform", list(TRANSFORMS))
@pytest.mark.usefixtures("way", "many")
def test_a_large_run_is_the_plain_loop_bit_for_bit(plan: dc.Plan, transform: str, like: Any) -> None:
    state = dc.start(plan, shape=(2, 3, 1000), like=like, seed=[5, 2**64 - 1])
    same(*both(plan, state, transform_x=TRANSFORMS[transform]))


@given(batch=st.integers(1, 5), size=st.integers(0, 2500), draws=st.integers(1, 4), seed=st.integers(0, 2**64 - 9))
def test_many_draws_at_once_are_the_draws(batch: int, size: int, draws: int, seed: int) -> None:
    words = dc.noise.seed_words(seed, batch)
    numbers = np.arange(3, 3 + draws, dtype=np.uint64)
    with mock.patch.object(cpu_threads, "kernel", None):
        together = numpy_noise.normals(words, numbers, (batch, size), dtype=np.float32)
        for draw, drawn in zip(numbers, together, strict=True):
            np.testing.assert_array_equal(drawn, dc.noise.normal(words, int(draw), (batch, size)))


@every_library
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", [(2, 7), (2, 3, 1000)])
def test_a_step_by_hand_and_a_resumed_run_are_the_run(
    like: Any, shape: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    if shape[-1] == 1000:
        request.getfixturevalue("many")
    for plan in plans().values():
        states: list[dc.State] = []
        clip = dc.sample(denoise, plan, shape=shape, like=like, seed=3, prediction="v", callback=states.append)
        state = dc.start(plan, shape=shape, like=like, seed=3)
        for log_snr in plan.log_snr:
            state = dc.step(plan, state, denoise(state.z, log_snr), prediction="v")
        assert raw(state.z) == raw(clip)
        again = dc.sample(denoise, plan, states[1], prediction="v")
        assert raw(again) == raw(clip)


@every_library
def test_a_prediction_of_another_dtype_goes_the_plain_way_and_is_asked_once(like: Any) -> None:
    calls: list[int] = []

    def wide(z: Any, log_snr: Any) -> Any:
        calls.append(1)
        return (
            -0.5 * z
            if len(calls) != 2
            else (-0.5 * z.astype(np.float64) if isinstance(z, np.ndarray) else -0.5 * z.double())
        )

    plan = plans()["unipc"]
    state = dc.start(plan, shape=(2, 5), like=like, seed=3)
    left, _ = both(plan, state, wide)
    assert len(calls) == 2 * len(plan)
    calls.clear()
    right = both(plan, state, wide)[0]
    same(left, right)


@every_library
@pytest.mark.usefixtures("way", "many")
def test_ones_own_noise_and_known_elements(like: Any) -> None:
    plan = plans()["ancestral"]
    shape = (2, 3, 400)
    asked: list[int] = []

    def mine(draw: Any, shape: tuple[int, ...]) -> Any:
        asked.append(int(draw))
        return dc.noise.normal(9, draw, shape, like=like)

    state = dc.start(plan, shape=shape, like=like, noise=mine)
    same(*both(plan, state, noise=mine))
    observed = 0.25 + 0.0 * state.z
    mask: Any = np.zeros(shape, bool)
    mask[:, 0] = True
    if isinstance(state.z, torch.Tensor):
        mask = torch.from_numpy(mask)
    constraint = conditioning.replacement(observed, mask)
    state = dc.start(plan, shape=shape, like=like, seed=4, constraint=constraint)
    same(*both(plan, state, held=constraint.hold(plan, state.z)))


@every_library
@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("held", ["states", "views", "inputs"])
def test_what_somebody_holds_is_not_written_over(like: Any, held: str) -> None:
    """Memory comes back to a run only when nobody has an array, or a view of it, any more."""
    plan = plans()["dpm3_sde"]
    kept: list[tuple[Any, bytes]] = []

    def keep(array: Any) -> None:
        kept.append((array, raw(array)))

    def call(z: Any, log_snr: Any) -> Any:
        if held == "inputs":
            keep(z)
        if held == "views":
            keep(z[1:, 2:])
        return -0.5 * z

    def callback(state: dc.State) -> None:
        if held == "states":
            for array in (state.z, *state.estimates):
                keep(array)

    clip = dc.sample(call, plan, shape=(2, 400), like=like, seed=1, prediction="v", callback=callback)
    keep(clip)
    dc.sample(denoise, plan, shape=(2, 400), like=like, seed=2, prediction="v")
    assert len(kept) > len(plan)
    assert [raw(array) for array, _ in kept] == [copy for _, copy in kept]


def test_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_memory, "LARGE", 1)
    memory = numpy_memory.Memory(np.zeros((3, 4), np.float32))
    first, second = memory.empty(), memory.empty()
    assert not np.may_share_memory(first, second)
    address, view = first.ctypes.data, first[1:]
    del first
    assert memory.empty().ctypes.data != address
    del view
    third = memory.empty()
    assert third.ctypes.data == address
    assert (third.shape, third.dtype) == ((3, 4), np.float32)
    memory.close()
    third[...] = 1.0
    del third, second
    assert memory.empty().shape == (3, 4)


@pytest.mark.usefixtures("way", "many")
def test_a_start_may_lie_anywhere_in_memory_of_ones_own() -> None:
    """Memory of a caller looks much like memory that a run lends."""
    values = np.linspace(-2.0, 2.0, 1000, dtype=np.float32)
    z = np.frombuffer(memoryview(bytearray(values.tobytes())), np.float32)[100:900].reshape(2, 400)
    for plan in plans().values():
        clip = dc.sample(denoise, plan, z, seed=1, prediction="v")
        assert raw(clip) == raw(dc.sample(denoise, plan, z.copy(), seed=1, prediction="v"))
    assert raw(z) == values[100:900].tobytes()


def test_memory_may_come_back_from_another_thread_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_memory, "LARGE", 1)
    memory = numpy_memory.Memory(np.zeros(3, np.float32))
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    held = [memory.empty() for _ in range(60)]

    def drop() -> None:
        while waiting.get() is not None:
            pass

    thread, interval = threading.Thread(target=drop), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(5000):
            held.append(memory.empty())
            waiting.put(held.pop(0))
            last = memory.last(held[-1])
            assert last is not None
            assert last.ctypes.data == held[-1].ctypes.data
    finally:
        sys.setswitchinterval(interval)
        waiting.put(None)
        thread.join()


@pytest.mark.skipif(cpu_threads.kernel is None, reason="the kernel was not compiled")
@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("like", [LIKE[name] for name in ("numpy", "torch", "brain")], ids=["numpy", "torch", "brain"])
def test_a_run_stays_in_its_own_memory(like: Any) -> None:
    """A state is written over the one before, and an estimate over the oldest, unless somebody holds them."""
    for name, plan in plans().items():
        seen: list[int] = []

        def call(z: Any, log_snr: Any, seen: list[int] = seen) -> Any:
            seen.append(z.data_ptr() if hasattr(z, "data_ptr") else z.ctypes.data)
            return -0.5 * z

        state = dc.start(plan, shape=(2, 400), like=like, seed=1)
        dc.sample(call, plan, state, prediction="v")
        arrays = 1 + plan.saves + plan.history
        assert len(set(seen[1:])) <= arrays, name
        assert seen[0] not in seen[1:]  # the caller's


@pytest.mark.usefixtures("way", "many")
@every_library
def test_a_prediction_may_be_the_state_itself(like: Any) -> None:
    for plan in plans().values():
        state = dc.start(plan, shape=(2, 400), like=like, seed=1)
        copied = dc.sample(lambda z, _: z + 0.0, plan, state, prediction="v")
        for call in (lambda z, _: z, lambda z, _: z[...]):
            assert raw(dc.sample(call, plan, state, prediction="v")) == raw(copied)


@every_library
def test_a_prediction_that_is_no_array_is_refused_in_words(like: Any) -> None:
    for plan in (plans()["ddim"], plans()["ancestral"]):
        with pytest.raises(TypeError, match="step: the denoiser returned list"):
            dc.sample(lambda z, log_snr: [1.0], plan, shape=(2, 5), like=like, prediction="v")


def test_the_fast_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArrayAPIBackend, "finish", lambda *_: pytest.fail("the plain loop ran"))
    for like in LIKE.values():
        for plan in plans().values():
            dc.sample(denoise, plan, shape=(2, 5), like=like, seed=1, prediction="v", transform_x=TRANSFORMS["clip"])


LEVELS = {
    "samples": np.array([0.0, 0.5]),
    "one": np.zeros(1),
    "frames": np.array([[0.0, 0.25, 1.0]]),
    "both": np.array([[0.0, 0.25, 1.0], [0.5, 0.0, 2.0]]),
    "samples of frames": np.array([[0.0], [1.0]]),
}
SAMPLERS: dict[str, Callable[..., dc.Plan]] = {
    "ancestral": lambda grid: dc.samplers.ancestral(dc.schedules.Cosine(), grid=grid, gamma=0.3),
    "dpm3_sde": lambda grid: dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), grid=grid, order=3, eta=1.0),
    "heun": lambda grid: dc.samplers.heun(dc.schedules.Cosine(), grid=grid),
}


@pytest.mark.parametrize(
    "like", [LIKE[name] for name in ("numpy", "torch64", "brain")], ids=["numpy", "torch64", "brain"]
)
@pytest.mark.parametrize("levels", list(LEVELS))
@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("width", [5, 700])
@pytest.mark.usefixtures("way", "many")
def test_levels_of_samples_and_frames_are_the_plain_loop_bit_for_bit(
    sampler: str, levels: str, width: int, like: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile of 1,024 elements holds several frames here, and parts of them."""
    grid = np.linspace(-6.0, 6.0, 5).reshape(-1, *np.ones_like(LEVELS[levels].shape)) + LEVELS[levels]
    plan = SAMPLERS[sampler](grid)
    assert plan.lead == LEVELS[levels].shape
    state = dc.start(plan, shape=(2, 3, width), like=like, seed=3)
    transform = TRANSFORMS["clip"]
    same(*both(plan, state, transform_x=transform))
    if way == "compiled" and width > 64:
        monkeypatch.setattr(ArrayAPIBackend, "finish", lambda *_: pytest.fail("the plain loop ran"))
        clip = dc.sample(denoise, plan, state, prediction="v", transform_x=transform)
        for log_snr in plan.log_snr:
            state = dc.step(plan, state, denoise(state.z, log_snr), prediction="v", transform_x=transform)
        assert raw(state.z) == raw(clip)


def off(array: Any) -> Any:
    """Return an array where no processor would put it: one byte further."""
    room = np.zeros(array.nbytes + 1, np.uint8)
    moved = room[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_memory_that_is_not_aligned_is_taken(dtype: Any) -> None:
    plan = plans()["dpm3_sde"]
    z = np.linspace(-1.0, 1.0, 24, dtype=dtype).reshape(2, 12)
    want = dc.sample(denoise, plan, z, seed=2, prediction="v")
    for start, call, transform in [
        (off(z), denoise, None),
        (z, lambda z, log_snr: off(denoise(z, log_snr)), None),
        (z, denoise, lambda x: off(x) if x.dtype == dtype else x),
    ]:
        assert raw(dc.sample(call, plan, start, seed=2, prediction="v", transform_x=transform)) == raw(want)
    mine = lambda draw, shape: off(dc.noise.normal([2, 3], draw, shape, dtype=dtype))  # noqa: E731
    assert raw(dc.sample(denoise, plan, z, noise=mine, prediction="v")) == raw(want)


@every_library
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("wide", [True, False])
def test_a_transform_is_called_once_a_stage(like: Any, wide: bool) -> None:
    """Whether its result fits or not; so it may count, or draw numbers."""
    plan, calls = plans()["dpm3_sde"], []

    def transform(x: Any) -> Any:
        calls.append(1)
        return TRANSFORMS["wider"](x) if wide else 0.5 * x

    dc.sample(denoise, plan, shape=(2, 5), like=like, seed=3, prediction="v", transform_x=transform)
    assert len(calls) == len(plan)
    state = dc.start(plan, shape=(2, 5), like=like, seed=3)
    dc.step(plan, state, denoise(state.z, None), prediction="v", transform_x=transform)
    assert len(calls) == len(plan) + 1


@pytest.mark.usefixtures("way")
def test_levels_that_do_not_align_are_refused_in_every_way() -> None:
    plan = dc.samplers.ddim(dc.schedules.Cosine(), grid=np.linspace(np.full((1, 4), -2.0), np.full((1, 4), 2.0), 4))
    state = dc.start(plan, shape=(2, 4, 100), seed=1)
    for shape in [(2, 8, 50), (2, 2, 200), (800,)]:
        other = state._replace(z=np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match="does not align"):
            dc.step(plan, other, other.z, prediction="v")
        with pytest.raises(ValueError, match="does not align"):
            dc.sample(denoise, plan, other, prediction="v")


@pytest.mark.usefixtures("way")
def test_a_row_may_be_a_tuple() -> None:
    state = dc.start(plans()["ddim"], np.ones((2, 3), np.float32), seed=1)
    row = plans()["ddim"].coefficients("v")[0].tolist()
    settings: dict[str, Any] = {"stochastic": False, "transform_x": None}
    found, want = (
        backends.of(state.z).advance(state, state.z, kind(row), None, **settings).z for kind in (tuple, list)
    )
    assert raw(found) == raw(want)


@pytest.mark.usefixtures("way")
def test_what_is_known_may_lie_in_another_order() -> None:
    plan = plans()["ancestral"]
    observed = np.linspace(-1.0, 1.0, 24, dtype=np.float32).reshape(2, 3, 4)
    mask = np.zeros((2, 3, 4), bool)
    mask[:, 0] = True
    clips = [
        dc.sample(
            denoise, plan, shape=(2, 3, 4), seed=5, prediction="v",
            constraint=conditioning.replacement(order(observed), order(mask)),
        )
        for order in (np.ascontiguousarray, np.asfortranarray)
    ]  # fmt: skip
    assert np.array_equal(*clips)
    assert np.array_equal(clips[0][:, 0], observed[:, 0])
