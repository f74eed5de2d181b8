"""Stages and runs on memory that NumPy sees: the backend whose arrays the compiled kernel may read and write."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from diffcore import _array, stage
from diffcore._array import Array
from diffcore._threshold import Clip
from diffcore._unwritten import called
from diffcore.backends import cpu_threads, numpy_memory, numpy_noise
from diffcore.backends.generic import ArrayAPIBackend
from diffcore.backends.numpy_stage import HALVES, SECOND, Stages, fitted, serves
from diffcore.plan import Form
from diffcore.stage import Float64, Run, Source
from diffcore.state import State

Transform = Callable[[Array], Array] | None


class HostBackend(ArrayAPIBackend):
    """The contract by the compiled kernel where it serves, and by the plain functions elsewhere, with equal bits."""

    def take(self, array: Any) -> Any:
        """Return the memory of an array as a NumPy array, or None where NumPy cannot see it."""
        return array

    def give(self, array: Any) -> Array:
        """Return a NumPy array as one of this library on the same memory."""
        return array

    def number(self, value: int) -> Any:
        """Return what `index` does where nothing is traced."""
        return value

    called = staticmethod(called)
    """`diffcore._unwritten.called`, or what it comes to for the arrays of this library."""

    def run(self, run: Run, state: State) -> State:
        plan, source, held, callback = run.plan, run.noise, run.held, run.callback
        if int(state.index) >= len(plan):
            return state
        carries = hasattr(run.denoise, "carrying")
        walk = None if carries else _begin(self, run.form, run.coefficients, state, run.transform_x)
        if walk is None or (plan.stochastic and source is None and walk.keys is None):
            return super().run(run, state)
        watched, guided = callback is not None or held is not None, run.form.second == "unguided"
        before: Any = None
        call, other = self.called, None
        try:
            for at, denoise, levels, noisy in stage.turns(run, walk.index, stage.levels_of(run, state.z)):
                if guided:
                    y, other = stage.ask(run.form, denoise, walk.current, levels)
                else:  # and `go` checks it
                    y = call(denoise, walk.current, *levels)
                drawn = None
                if noisy and source is not None:
                    drawn = source(walk.draw, walk.z.shape, walk.current, stage.levels_between(plan, at))
                if held is not None:
                    before = walk.state()
                after = walk.go(at, y, other, drawn, noisy, watched)
                if after is None and not watched:
                    continue
                fitting, after = after is None, walk.state() if after is None else after
                after = stage.constrained(self, held, before, after, source)
                if callback is not None:
                    callback(after)
                if not fitting or not walk.moved(after.z):
                    return super().run(run, after)
                del after  # nobody holds it now but whom the callback gave it to
            return walk.state()
        finally:
            walk.room.close()

    def advance(
        self,
        form: Form,
        state: State,
        y: Array,
        row: Any,
        noise: Array | Source | None,
        *,
        stochastic: bool,
        transform_x: Transform,
        other: Array | None = None,
        between: tuple[Any, Any] | None = None,
    ) -> State:
        if type(row) is list and (transform_x is None or type(transform_x) is Clip) and not isinstance(noise, Source):
            found = _small(self, form, state, y, row, noise, stochastic, transform_x, other)
            if found is not None:
                return found
        with _array.recording(state.z, False):
            eps = stage.drawn(self, state, noise, between) if isinstance(noise, Source) and stochastic else noise
            table = np.array(row) if isinstance(row, (list, tuple)) else self.take(row)
            walk = None if table is None else _begin(self, form, table[None], state, transform_x, row)
            if walk is None or (stochastic and eps is None and walk.keys is None):
                settings: dict[str, Any] = {"transform_x": transform_x, "other": other, "between": between}
                return super().advance(form, state, y, row, eps, stochastic=stochastic, **settings)
            after = walk.go(0, y, other, eps if stochastic else None, stochastic, True)
            return walk.state() if after is None else after


def _small(
    backend: HostBackend,
    form: Form,
    state: State,
    y: Array,
    row: list[float],
    noise: Any,
    stochastic: bool,
    clip: Clip | None,
    other: Array | None,
) -> State | None:
    """Return what `advance` does for a few numbers, where a walk would take longer to set up than the stage takes."""
    take, give = backend.take, backend.give
    z: Any = take(state.z)
    if not serves(z, form, ()) or z.size > cpu_threads.ELEMENTS or len(state.memory) != form.memory:
        return None
    z, host = fitted(z, z), fitted(take(y), z)
    host_other = None if other is None else fitted(take(other), z)
    fitting = host is not None and (host_other is None) == (other is None)
    eps = keys = None
    if stochastic and noise is not None:
        eps = fitted(take(noise), z)
        fitting = fitting and eps is not None
    elif stochastic:
        words = None if state.keys is None else take(state.keys)
        keys = None if words is None else numpy_noise.keys(words)
        fitting = fitting and keys is not None
    memory: Any = ()
    for array in state.memory:
        memory += (fitted(take(array), z),)
        fitting = fitting and memory[-1] is not None
    if not fitting:
        return None
    made = form.computed - form.keeps_x
    to_z, to_x, draw = np.empty(z.shape, z.dtype), np.empty(z.shape, z.dtype), int(state.draw)
    to_memory = tuple([np.empty(z.shape, z.dtype) for _ in range(made)]) if made else ()
    low, high = (-math.inf, math.inf) if clip is None else (clip.low, clip.high)
    size = z.size // len(z)
    # fmt: off
    cpu_threads.kernel.stage(  # type: ignore[union-attr]
        to_z, to_x, to_memory, z, host, host_other, eps, None, memory, np.array(row, ndmin=2), 0, 0, 0, keys, draw,
        SECOND.index(form.second), low, high, size, 0, cpu_threads.number((len(z), size)),
    )
    # fmt: on
    x, kept = give(to_x), ()
    if form.memory:
        kept = (*map(give, to_memory), *((x,) if form.keeps_x else ()), *state.memory[form.computed - 1 : -1])
    return State(give(to_z), kept, x, backend.number(int(state.index) + 1), backend.number(draw + 1), state.keys)


def _begin(
    backend: HostBackend, form: Form, coefficients: Float64, state: State, transform_x: Transform, row: Any = None
) -> _Walk | None:
    """Return the walk from a state through stages with these coefficients, or None where the kernel does not serve; `row` are
    the coefficients of the only stage in the run's library."""
    z = backend.take(state.z)
    if not serves(z, form, coefficients.shape[1:-1]) or len(state.memory) != form.memory:
        return None
    z, *memory = [fitted(backend.take(array), z) for array in (state.z, *state.memory)]
    if any(array is None for array in memory):
        return None
    return _Walk(backend, form, coefficients, state, z, tuple(memory), transform_x, row)


class _Walk:
    """A state on memory that NumPy sees, which goes from stage to stage. `current` is its z in the run's library."""

    def __init__(
        self,
        backend: HostBackend,
        form: Form,
        coefficients: Float64,
        state: State,
        z: Array,
        memory: tuple[Array, ...],
        transform_x: Transform,
        row: Any,
    ) -> None:
        self.backend, self.form, self.coefficients, self.row = backend, form, coefficients, row
        self.transform_x, self.take, self.give = transform_x, backend.take, backend.give
        self.z, self.current, self.words = z, state.z, state.keys
        self.memory: Any = memory
        self.x: Any = None  # that of the first stage here
        self.index, self.draw = int(state.index), int(state.draw)
        words = None if state.keys is None else self.take(state.keys)
        self.keys = None if words is None else numpy_noise.keys(words)
        clip = transform_x if type(transform_x) is Clip else None
        self.function = transform_x if clip is None else None
        self.brain = z.dtype == np.uint16
        self.large, self.room = z.nbytes >= numpy_memory.LARGE, numpy_memory.Memory(z)
        empty = self.room.empty if self.large else partial(np.empty, z.shape, z.dtype)
        self.stages = Stages(form, coefficients, z, clip, empty)

    def state(self) -> State:
        """Return the state in the run's library."""
        number = self.backend.number
        return State(*self.arrays(), number(self.index), number(self.draw), self.words)

    def arrays(self) -> tuple[Array, tuple[Array, ...], Array | None]:
        """Return z, the memory and x-hat in the run's library."""
        return self.current, tuple(map(self.give, self.memory)), None if self.x is None else self.give(self.x)

    def go(
        self, at: int, y: Array, other: Array | None, drawn: Array | None, noisy: bool, wants_x: bool
    ) -> State | None:
        """Take a stage of the table; or, where something does not fit here, return the state after it by the plain function,
        which raises where the prediction fits nowhere."""
        z, take = self.z, self.take
        if self.brain:  # any 16 bits would fit
            stage.check_prediction(y, self.current)
        host = fitted(take(y), z)
        host_other = None if other is None else fitted(take(other), z)
        eps = None if drawn is None else fitted(take(drawn), z)
        fitting = host is not None and (host_other is None) == (other is None) and (eps is None) == (drawn is None)
        x, transform_x = None, self.transform_x
        if self.function is not None:
            fitting = fitting and z.dtype not in HALVES  # there it expects x-hat in float32
            if fitting:
                estimate = self.give(self.stages.estimate(at, z, host))
                moved = stage.transformed(estimate, self.current, self.function)
                x, transform_x = fitted(take(moved), z), lambda _: moved
                fitting = x is not None
        if not fitting:
            return self._plainly(at, y, other, drawn, noisy, transform_x)
        memory, keys = self.memory, self.keys if noisy and eps is None else None
        if self.large:  # nothing below needs what is read here a last time
            last, stays = self.room.last, self.form.computed - 1
            z, memory = last(z), (*map(last, memory[:stays]), *memory[stays:-1], *map(last, memory[-1:]))
            self.z = self.memory = self.current = self.x = None
        self.z, self.memory, self.x = self.stages.after(
            at, z, memory, host, host_other, eps, x, keys, self.draw, wants_x
        )
        self.current = self.give(self.z)
        self.index += 1
        self.draw += 1
        return None

    def _plainly(
        self, at: int, y: Array, other: Array | None, drawn: Array | None, noisy: bool, transform_x: Transform
    ) -> State:
        stage.check_prediction(y, self.current)
        state = self.state()
        row = stage.row_of(self.coefficients, at, state.z) if self.row is None else self.row
        if noisy and drawn is None:
            drawn = stage.drawn(self.backend, state, None)
        return stage.advance(self.form, state, y, row, drawn, transform_x, other)

    def moved(self, z: Array) -> bool:
        """Go on from another z, which a constraint may have made; return whether it fits here."""
        if z is self.current:
            return True
        self.z = fitted(self.take(z), self.z)
        self.current = z if self.z is None else self.give(self.z)
        return self.z is not None
