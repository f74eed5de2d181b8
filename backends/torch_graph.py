"""CUDA: a whole run with its denoiser as one graph, captured once and replayed: `diffcore.sample(..., compile=True)`.

A graph does again what the host once asked of the device, on the same memory: so what a caller gives is copied in, what comes
out is copied out, and weights are read where they lie. `diffcore.backends.torch_reach` says what makes two runs the same.
"""

from __future__ import annotations

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from functools import cache, lru_cache
from threading import RLock
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from diffcore.backends.torch_reach import Memory, Reach, address, joined
from diffcore.stage import Run
from diffcore.state import State

Made = TypeVar("Made")
KEPT = 8
"""How many runs are kept; each holds the memory of its stages."""


class Graph:
    """A CUDA graph: what a function did on a device, to do again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graph = torch.cuda.CUDAGraph()
        self.done = torch.cuda.Event()

    def record(self, function: Callable[[], Made]) -> Made:
        """Return what a function makes in memory of the graph's own; raise what it raises, and where it waits for the device.

        It is run once before, on another stream, since compilers and libraries may not be loaded during a capture.
        """
        with torch.cuda.device(self.device):
            side, here = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(here)
            with torch.cuda.stream(side):
                function()
            here.wait_stream(side)
            found: list[Made] = []
            problem: Exception | None = None
            before = torch.cuda.get_sync_debug_mode()
            torch.clear_autocast_cache()  # what was cast outside is freed when the caller's autocast ends
            try:
                with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
                    try:
                        _refuse_waiting("error")  # before CUDA does, which would leave the capture invalid
                        found.append(function())
                    except Exception as error:
                        problem = error
                    finally:
                        _refuse_waiting(before)
            except Exception as error:
                problem = problem or error
            finally:
                torch.clear_autocast_cache()
        if problem is not None:
            raise problem
        return found[0]

    def begin(self) -> None:
        """Wait, on the device, for the replay before, which may be on another stream."""
        torch.cuda.current_stream(self.device).wait_event(self.done)

    def replay(self) -> None:
        """Do it again, on the current stream."""
        with torch.cuda.device(self.device):
            self.graph.replay()

    def end(self) -> None:
        """Mark the end of all that reads the memory of the graph."""
        self.done.record(torch.cuda.current_stream(self.device))

    def wait(self) -> None:
        """Wait, on the host, for the last replay: then its memory may go."""
        self.done.synchronize()


def _refuse_waiting(mode: Any) -> None:
    with warnings.catch_warnings():  # torch calls it a prototype
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


class Entry:
    """A run that was seen: what it read where it lies, and the graph once there is one."""

    def __init__(self, key: Any, reach: Reach, forget: Callable[[Any], None]) -> None:
        self.lock = RLock()
        self.memory: list[Memory] = []
        self.graph: Graph | None = None
        self.failed: str | None = None
        self.inputs: list[torch.Tensor] = []
        self.tables: list[torch.Tensor] = []
        self.end: State | None = None
        self.alive, self.strong = [], []
        for leaf in reach.leaves:
            try:
                self.alive.append(weakref.finalize(leaf, forget, key))
                self.alive[-1].atexit = False
            except TypeError:  # it has no weak references: while it is held, nothing else has its identity
                self.strong.append(leaf)

    def release(self) -> None:
        """Let go of the graph and its memory."""
        for end in self.alive:
            end.detach()
        if self.graph is not None:
            self.graph.wait()
        self.graph, self.end, self.inputs, self.tables = None, None, [], []


class Graphs:
    """The captured runs of this process, the least recently used forgotten first, and those whose denoiser is gone."""

    def __init__(self, graph: Callable[[torch.device], Any] = Graph, kept: int = KEPT) -> None:
        self.make, self.kept = graph, kept
        self.lock = RLock()
        self.entries: OrderedDict[Any, Entry] = OrderedDict()
        self.said: set[str] = set()

    def run(self, usual: Callable[[Run, State], State], run: Run, state: State) -> State:
        """Return what `usual` does: the first call of a kind is `usual` itself, the second one captures it, later ones replay."""
        plain = replace(run, compile=None)
        reason = _why_not(run)
        if reason is not None:
            self._say(reason)
        plainly = type(state.z) is torch.Tensor and address(state.z) and not _captures(state.z.device)
        if reason is not None or int(state.index) >= len(run.plan) or not plainly:
            return usual(plain, state)
        reach = Reach()
        key = _key(run, state, reach)
        entry = self._entry(key, reach)
        with entry.lock:
            if entry.memory == reach.memory:
                if self._is_captured(entry, usual, plain, state, reach):
                    return self._replayed(entry, run, state, reach)
            elif entry.graph is not None:  # what it reads lies elsewhere now
                entry.graph.wait()
                entry.graph = entry.end = None
        if entry.failed is not None:
            self._say(entry.failed)
        end = usual(plain, state)
        entry.memory = reach.memory
        return end

    def clear(self) -> None:
        """Forget all runs, and release their memory."""
        for key in list(self.entries):
            self._forget(key)

    def _entry(self, key: Any, reach: Reach) -> Entry:
        with self.lock:
            entry = self.entries.get(key)
            if entry is None:
                entry = self.entries[key] = Entry(key, reach, self._forget)
                entry.memory = [("not seen yet",)]
            self.entries.move_to_end(key)
            while len(self.entries) > self.kept:
                self.entries.popitem(last=False)[1].release()
        return entry

    def _forget(self, key: Any) -> None:
        entry = self.entries.pop(key, None)
        if entry is not None:
            entry.release()

    def _is_captured(self, entry: Entry, usual: Any, plain: Run, state: State, reach: Reach) -> bool:
        """Capture a run where it is not yet; return False where it cannot be."""
        if entry.graph is not None or entry.failed is not None:
            return entry.failed is None
        with torch.inference_mode(False), torch.no_grad():  # whose tensors could not be written to later
            entry.inputs = [torch.empty_like(given) for given in _inputs(state, reach)]
            counter = torch.zeros((), dtype=torch.int64, device=state.z.device)
            entry.inputs.append(counter)
            _copy(entry.inputs, state, reach)
            given = iter(entry.inputs)
            z, *memory = (next(given) for _ in range(1 + len(state.memory)))
            keys = None if state.keys is None else next(given)
            start = State(z, tuple(memory), None, int(state.index), counter, keys)
            parts = joined((plain.denoise, plain.transform_x, plain.held), given)
            inner = replace(plain, denoise=parts[0], transform_x=parts[1], held=parts[2], owned=False)
            token = HOLDING.set(entry.tables)
            try:
                graph = self.make(state.z.device)
                entry.end = graph.record(lambda: usual(inner, start))
                entry.graph = graph
            except Exception as error:
                said = (str(error).splitlines() or [""])[0]
                entry.failed = f"its capture raised {type(error).__name__}: {said}"
                entry.inputs, entry.tables = [], []
            finally:
                HOLDING.reset(token)
        return entry.failed is None

    def _replayed(self, entry: Entry, run: Run, state: State, reach: Reach) -> State:
        graph, end, stages = entry.graph, entry.end, len(run.plan)
        assert graph is not None
        assert end is not None
        graph.begin()
        with torch.inference_mode(False), torch.no_grad():
            _copy(entry.inputs, state, reach)
            graph.replay()
        z, memory = end.z.clone(), tuple(array.clone() for array in end.memory)
        graph.end()
        index = torch.from_numpy(np.array(stages))
        return State(z, memory, None, index, state.draw + (stages - int(state.index)), state.keys)

    def _say(self, reason: str) -> None:
        if reason not in self.said:
            self.said.add(reason)
            said = f"diffcore: sample: this run is not captured as a CUDA graph, since {reason}; it runs stage by stage"
            warnings.warn(said, RuntimeWarning, stacklevel=6)  # who called `sample`


def _why_not(run: Run) -> str | None:
    """Return what keeps a run from being captured."""
    if run.callback is not None:
        return "a callback, or a progress bar, acts on the host after every stage"
    if run.noise is not None:
        return "a `noise` of your own is called on the host"
    if hasattr(run.denoise, "carrying"):
        return "its denoiser carries arrays from stage to stage"
    if torch.is_grad_enabled():
        return "it records gradients"
    return None


def _key(run: Run, state: State, reach: Reach) -> Any:
    """Return what two runs share that one graph serves."""
    plan = run.plan
    tables = (run.coefficients, plan.log_snr, plan.next_log_snr)
    given = reach.given((run.denoise, run.transform_x, run.held))
    device = state.z.device.type
    modes: list[Any] = [torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)]
    modes += [_precisions(), torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()]
    kinds = tuple(reach.kind(array) for array in _inputs(state, Reach()))
    read = tuple((table.shape, table.tobytes()) for table in tables)
    return int(state.index), plan.form, plan.ahead, tuple(plan.noisy), read, given, kinds, tuple(modes)


def _precisions() -> tuple[Any, ...]:
    """Return how float32 is computed, whether in TF32; the names of before torch 2.9 raise where these are set."""
    backends: Any = torch.backends
    return tuple(part.fp32_precision for part in (backends, backends.cudnn.conv, backends.cuda.matmul))


def _inputs(state: State, reach: Reach) -> list[torch.Tensor]:
    return [state.z, *state.memory, *([] if state.keys is None else [state.keys]), *reach.inputs]


def _copy(inputs: list[torch.Tensor], state: State, reach: Reach) -> None:
    """Copy what a caller gives to where the graph reads it; the number of the draw, which the host knows, without waiting."""
    *arrays, counter = inputs
    for to, array in zip(arrays, _inputs(state, reach), strict=True):
        to.copy_(array)
    draw = state.draw
    if isinstance(draw, torch.Tensor) and draw.device == counter.device:
        counter.copy_(draw)
    else:
        counter.fill_(int(draw))


def _captures(device: torch.device) -> bool:
    """Return whether a caller captures a graph of their own."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


HOLDING: ContextVar[list[torch.Tensor] | None] = ContextVar("HOLDING", default=None)
"""What the tables that a capture reads are kept in."""


def constant(table: npt.NDArray[np.float64], device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a table of the host on a device. It is kept, since a capture forbids copies from the host: for as long as the graph
    of a run, and for good where a caller captures one."""
    holding = HOLDING.get()
    if holding is None and _captures(device):
        return _captured(table.tobytes(), table.shape, device, dtype)
    found = _kept(table.tobytes(), table.shape, device, dtype)
    if holding is not None:
        holding.append(found)
    return found


@cache
def _captured(data: bytes, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return _kept(data, shape, device, dtype)


@lru_cache(maxsize=64)
def _kept(data: bytes, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(np.frombuffer(data).reshape(shape), dtype=dtype, device=device)
