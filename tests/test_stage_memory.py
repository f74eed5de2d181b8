"""The memory of a run: used again once nobody holds it, and taken wherever a caller has it."""

from __future__ import annotations

import queue
import sys
import threading
from typing import Any

import numpy as np
import pytest
from stage_cases import LIKE, denoise, every_library, raw

import diffcore as dc
from diffcore.backends import cpu_threads, numpy_memory
from diffcore.testing.conformance import plans


@every_library
@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("held", ["states", "views", "inputs"])
def test_what_somebody_holds_is_not_written_over(like: Any, held: str) -> None:
    """Memory comes back to a run only when nobody has an array, or a view of it, any more."""
    plan = plans()["dpm_solver_pp"]
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
            for array in (state.z, *state.memory, state.x):
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


@pytest.mark.usefixtures("many")
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
        assert len(set(seen[1:])) <= 1 + plan.memory, name
        assert seen[0] not in seen[1:]  # the caller's


@pytest.mark.usefixtures("many")
@every_library
def test_a_prediction_may_be_the_state_itself(like: Any) -> None:
    for plan in plans().values():
        state = dc.start(plan, shape=(2, 400), like=like, seed=1)
        copied = dc.sample(lambda z, _: z + 0.0, plan, state, prediction="v")
        for call in (lambda z, _: z, lambda z, _: z[...]):
            assert raw(dc.sample(call, plan, state, prediction="v")) == raw(copied)


def off(array: Any) -> Any:
    """Return an array where no processor would put it: one byte further."""
    room = np.zeros(array.nbytes + 1, np.uint8)
    moved = room[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_memory_that_is_not_aligned_is_taken(dtype: Any) -> None:
    plan = plans()["dpm_solver_pp"]
    z = np.linspace(-1.0, 1.0, 24, dtype=dtype).reshape(2, 12)
    want = dc.sample(denoise, plan, z, seed=2, prediction="v")
    for start, call, transform in [
        (off(z), denoise, None),
        (z, lambda z, log_snr: off(denoise(z, log_snr)), None),
        (z, denoise, lambda x: off(x) if x.dtype == dtype else x),
    ]:
        assert raw(dc.sample(call, plan, start, seed=2, prediction="v", transform_x=transform)) == raw(want)
    mine = lambda draw, shape: off(dc.noise.normal(2, draw, shape, dtype=dtype))  # noqa: E731
    assert raw(dc.sample(denoise, plan, z, noise=mine, prediction="v")) == raw(want)
