"""The loop over the stages of a plan on memory that NumPy sees, with everything that can be worked out before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from diffcore import _known, sampling
from diffcore._array import Array
from diffcore._threshold import Clip, DynamicThreshold
from diffcore.backends import cpu_threads, numpy_memory, numpy_noise, numpy_stage
from diffcore.backends.numpy_memory import Memory
from diffcore.sampling import State

if TYPE_CHECKING:
    from diffcore.backends.contract import Run

AHEAD = 1 << 14
"""Numbers of noise that NumPy's passes make ahead, since a pass over few costs as much as over many."""

Take = Callable[[Any], Any]
"""An array of the run's library -> the same memory as a NumPy array, or None where NumPy cannot see it."""


def run(backend: Any, run: Run, state: State, take: Take, give: Callable[[Any], Array]) -> State | None:
    """Return the state after all stages, or the state after the first stage that does not fit here, where the plain loop
    goes on; None where nothing fits. The bits are those of the plain loop.

    Args:
        backend: the one that runs this.
        run, state: as in `Backend.run`.
        take: see `Take`.
        give: the way back.
    """
    plan, first, source = run.plan, int(state.index), run.noise
    z, saved, words = take(state.z), take(state.saved), take(state.seeds)
    past = tuple(take(estimate) for estimate in state.estimates)
    held = [z, *past] if state.saved is None else [z, saved, *past]
    if (
        first >= len(plan)
        or len(past) > cpu_threads.HISTORY
        or not numpy_stage.serves(z, plan.lead)
        or not all(numpy_stage.fits(array, z) for array in held)
    ):
        return None
    if source is None and plan.stochastic and words is None:
        return None
    memory = Memory(z)
    try:
        return _stages(backend, run, state, (z, saved, past, words), take, give, memory)
    finally:
        memory.close()


def _stages(
    backend: Any,
    run: Run,
    state: State,
    arrays: tuple[Any, Any, tuple[Any, ...], Any],
    take: Take,
    give: Callable[[Any], Array],
    memory: Memory,
) -> State:
    """Return the state after the stages; `arrays` are the state's z, saved, estimates and seeds as NumPy sees them."""
    plan, first, source = run.plan, int(state.index), run.noise
    z, saved, past, words = arrays
    dtype, shape, keep = z.dtype, z.shape, bool(past)
    table, keys = numpy_stage.table(run.coefficients, dtype), None if words is None else numpy_noise.keys(words)
    noisy = (run.coefficients[..., sampling.NOISE_COLUMN] != 0.0).reshape(len(plan), -1).any(axis=1).tolist()
    levels = list(sampling.levels_for(plan, state.z))
    at, denoise, transform_x = getattr(run.denoise, "at", None), run.denoise, _on_host(run.transform_x, take, give)
    ahead = None
    if source is None and z.size < AHEAD and cpu_threads.kernel is None:
        ahead = _ahead(keys, [stage + 1 for stage in range(first, len(plan)) if noisy[stage]], shape, dtype)
    watched = run.callback is not None or run.held is not None
    over = z.nbytes >= numpy_memory.LARGE and cpu_threads.kernel is not None
    over = over and not watched and not isinstance(transform_x, _Transform)
    current: Any = state.z
    for stage in range(first, len(plan)):
        if at is not None:
            denoise = at(plan.log_snr[stage])
        y = denoise(current, levels[stage])
        host, eps, drawn = take(y), None, None
        fitting = type(host) is np.ndarray and host.dtype == dtype and host.shape == shape
        if fitting and not numpy_stage.fits(host, z):
            host = np.require(host, requirements=["C", "A"])
        if noisy[stage]:
            if ahead is not None:
                eps = drawn = next(ahead)
            elif source is not None:
                drawn = sampling.drawn_from(source, stage + 1, shape, current)
                eps = take(drawn)
                fitting = fitting and numpy_stage.fits(eps, z)
        made = None
        if isinstance(transform_x, _Transform):
            transform_x.last = None
        if fitting:
            its_keys = keys if noisy[stage] and eps is None else None
            if over:  # nothing below needs the state before, nor the oldest estimate
                z, saved, past = memory.last(z), memory.last(saved), (*past[:-1], *map(memory.last, past[-1:]))
                current = x = None
            inputs = numpy_stage.Stage(table, stage, z, saved, past, host, eps, its_keys, stage + 1)
            made = numpy_stage.after(inputs, transform_x, keep, memory.empty)
        if made is None or watched:
            saved_now = None if saved is None else give(saved)
            state = State(current, saved_now, tuple(map(give, past)), backend.index(stage), state.seeds)
        if made is None:
            sampling.check_prediction(y, current)
            if isinstance(transform_x, _Transform):
                run = replace(run, transform_x=transform_x.again())
            given = source if drawn is None else drawn if source is not None else give(drawn)
            finished: State = backend.finish(run, state, y, stage, given)
            return finished
        z, saved, x = made
        if keep:
            past = (x, *past)[: len(past)]
        current = give(z)
        if watched:
            saved_now = None if saved is None else give(saved)
            reached = State(current, saved_now, tuple(map(give, past)), backend.index(stage + 1), state.seeds)
            if run.held is not None:
                reached = _known.after(backend, run.held, state, reached, source)
                z = np.require(take(reached.z), requirements=["C", "A"])  # in the order of the mask, it may be
                current = give(z)
                reached = reached._replace(z=current)
            if run.callback is not None:
                run.callback(reached)
    saved_now = None if saved is None else give(saved)
    return State(current, saved_now, tuple(map(give, past)), backend.index(len(plan)), state.seeds)


def advance(
    backend: Any,
    state: State,
    y: Array,
    row: Any,
    noise: Any,
    transform_x: Callable[[Array], Array] | None,
    take: Take,
    give: Callable[[Any], Array],
) -> State | None:
    """Return the state after one stage, or None where the plain function has to; `noise` is False where there is none."""
    if not (transform_x is None or isinstance(transform_x, (Clip, DynamicThreshold))):
        return None  # its result may not fit here, and it is called once
    z, host, saved = take(state.z), take(y), take(state.saved)
    past = tuple(take(estimate) for estimate in state.estimates)
    held = [z, host, *past] if state.saved is None else [z, host, *past, saved]
    its_row = np.array(row) if isinstance(row, (list, tuple)) else take(row)
    if (
        its_row is None
        or len(past) > cpu_threads.HISTORY
        or not numpy_stage.serves(z, its_row.shape[:-1])
        or not all(numpy_stage.fits(array, z) for array in held)
    ):
        return None
    keys, eps, drawn = None, None, None
    if noise is None:
        words = take(state.seeds)
        if words is None:
            return None
        keys = numpy_noise.keys(words)
    elif noise is not False:
        drawn = sampling.draw_noise(backend, state, noise)
        eps = take(drawn)
    table = numpy_stage.table(its_row[None], z.dtype)
    made = None
    if drawn is None or numpy_stage.fits(eps, z):
        stage = numpy_stage.Stage(table, 0, z, saved, past, host, eps, keys, int(state.index) + 1)
        made = numpy_stage.after(stage, _on_host(transform_x, take, give), bool(past), partial(np.empty_like, z))
    if made is None:
        return None if drawn is None else sampling.advance(state, y, row, drawn, transform_x)
    z, saved, x = made
    saved_now = None if saved is None else give(saved)
    estimates = (give(x), *state.estimates[:-1]) if past else ()
    return State(give(z), saved_now, estimates, state.index + 1, state.seeds)


class _Transform:
    """A transform of x-hat as NumPy sees it; what it returned last is kept, for when that does not fit here."""

    def __init__(self, transform_x: Callable[[Array], Array], take: Take, give: Callable[[Any], Array]) -> None:
        self._transform_x, self._take, self._give = transform_x, take, give
        self.last: Array | None = None

    def __call__(self, x: Any) -> Any:
        self.last = self._transform_x(self._give(x))
        return self._take(self.last)

    def again(self) -> Callable[[Array], Array]:
        """Return the transform for the plain function, which is not called twice for one x-hat."""
        there = [] if self.last is None else [self.last]
        return lambda x: there.pop() if there else self._transform_x(x)


def _on_host(transform_x: Any, take: Take, give: Callable[[Any], Array]) -> Any:
    return transform_x if transform_x is None or type(transform_x) is Clip else _Transform(transform_x, take, give)


def _ahead(keys: Any, draws: list[int], shape: tuple[int, ...], dtype: Any) -> Iterator[Any]:
    """Yield the noise of the draws in turn, made many at once."""
    size = max(1, int(np.prod(shape)))
    together = max(1, AHEAD // size)
    for first in range(0, len(draws), together):
        some = np.array(draws[first : first + together], dtype=np.uint64)
        yield from numpy_noise.normals(keys, some, shape, dtype=dtype)
