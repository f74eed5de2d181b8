r"""A window that moves by one frame: each of its frames is a few stages behind the one before, and leaves it clean.

Of a plan of N stages and R moving frames, every turn takes m = N / R: frame j has m (R - 1 - j) stages behind it at the start of
a turn, so that the first is clean at its end and is handed out, and a new one of pure noise comes in. The first R - 1 turns
hand out nothing: frame j begins in turn j. Clean frames before the moving ones wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from diffcore import _array, _check, _fitting, _streams, _unwritten, conditioning, stage
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore.plan import Plan
from diffcore.predictions import kind_of
from diffcore.stage import Run, Source
from diffcore.state import State
from diffcore.video._block import Sampler
from diffcore.video._stream import Progress, last, own


def check_moving(function: str, plan: Plan, moving: int) -> None:
    """Raise unless the stages can be shared out among the moving frames."""
    if plan.lead:
        raise _check.error(ValueError, function, "plan", "have levels of shape ()", plan.lead)
    if len(plan) % moving:
        must = f"have a multiple of {moving} stages, one or more for each frame beside the overlap"
        raise _check.error(ValueError, function, "plan", must, len(plan))


def turn_of(plan: Plan, known: int, moving: int, turn: int, history: float | None = None) -> tuple[Plan, list[int]]:
    """Return the stages of a turn, and how many stages each frame has behind it."""
    each = len(plan) // moving
    begun = np.concatenate([np.full(known, len(plan)), each * np.maximum(turn - np.arange(moving), 0)])
    stages = np.where(np.arange(-known, moving) <= turn, begun + np.arange(each)[:, None], -1)
    stages[:, :known] = -1
    return plan.per_frame(stages, begun=begun, history=history), begun.tolist()


def rolling(
    sampler: Sampler, total: int | None, window: int, like: Array, state: Progress
) -> Iterator[tuple[Array, Progress]]:
    """Yield one frame after another, after as many clean frames as the window keeps (`state.context`)."""
    read, made, _, context, going = state
    assert context is not None
    xp, plan, known = _array.library(like), sampler.plan, context.shape[1]
    moving, frame = window - known, (like.shape[0], 1, *like.shape[2:])

    def fresh(number: int) -> Array:
        """Return a frame of pure noise."""
        eps = _array.widen(xp, sampler.noise_of(sampler.words(number, frame[0]), 0, frame, like, _streams.SAMPLER))
        return xp.astype(float(plan.start.sigma) * eps, like.dtype, copy=False)

    if going is None:
        z, first = xp.concat([context, *(fresh(made + j) for j in range(moving))], axis=1), 0
        memory = tuple(xp.zeros_like(z) for _ in range(plan.memory))
    else:
        (z, *rest), first = going, moving - 1
        memory = tuple(rest)
    take: Callable[..., Any] | None = None
    turn = first
    while total is None or made < total:
        if take is None or turn < moving:
            take = _taking(sampler, known, moving, turn, like)
        words = tuple(sampler.words(max(0, made + j), frame[0]) for j in range(-known, moving))
        z, memory = take(z, memory, words)
        turn += 1
        if turn < moving:
            continue
        new = z[:, known : known + 1, ...]
        context, made = last(xp.concat([context, new], axis=1), known), made + 1
        z = xp.concat([z[:, 1:, ...], fresh(made + moving - 1)], axis=1)
        memory = tuple(xp.concat([part[:, 1:, ...], xp.zeros_like(part[:, :1, ...])], axis=1) for part in memory)
        yield own(new), Progress(read, made, None, context, (z, *memory))


def _taking(
    sampler: Sampler, known: int, moving: int, turn: int, like: Array, *, traced: bool = True
) -> Callable[..., Any]:
    """Return what takes the stages of a turn, (z, memory, key words of each frame) -> (z, memory)."""
    if sampler.reuses and known:
        return _after(sampler, known, moving, turn, like)
    xp, backend = _array.library(like), backend_of(like)
    part, begun = turn_of(sampler.plan, known, moving, turn, sampler.history)
    denoise: Any = _fitting.fitting(sampler.function, sampler.denoise, part)
    coefficients = part.coefficients(kind_of(sampler.function, denoise, sampler.prediction))
    clean = (np.arange(known + moving) < known).reshape(-1, *(1,) * (like.ndim - 2))

    def take(z: Array, memory: tuple[Array, ...], words: tuple[Any, ...]) -> tuple[Array, tuple[Array, ...]]:
        frame = (z.shape[0], 1, *z.shape[2:])

        def drawn(draw: Any, shape: tuple[int, ...], stream: int = _streams.SAMPLER) -> Array:  # noqa: ARG001
            # each frame counts its own stages, so that its noise is a function of its number alone
            pairs = zip(words, begun, strict=True)
            return xp.concat([sampler.noise_of(word, at + draw, frame, like, stream) for word, at in pairs], axis=1)

        source, held = Source(drawn), None
        carried = denoise.begin(z) if hasattr(denoise, "carrying") else ()
        start = State(z, memory, None, backend.index(0), backend.index(1), None, carried)
        if sampler.history is not None and known:
            held = stage.hold(sampler.function, conditioning.replacement(z, clean, variant="posterior"), part, z)
            before = start._replace(draw=start.draw - 1)
            start = start._replace(z=held.begin(before, stage.known_noise(backend, before, source)))
        seen = None if sampler.callback is None else partial(_unwritten.watched, sampler.callback)
        how = (sampler.transform_x, source, seen, sampler.compile, held)
        end = backend.run(Run(denoise, part, coefficients, *how), start)
        return end.z, end.memory

    return backend.trace(take) if traced and sampler.source is None else take


def _after(sampler: Sampler, known: int, moving: int, turn: int, like: Array) -> Callable[..., Any]:
    """Return what takes the stages of a turn with the clean frames computed once: as `_taking`, with the moving ones alone."""
    xp, backend, steps = _array.library(like), backend_of(like), len(sampler.plan)

    def take(z: Array, memory: tuple[Array, ...], words: tuple[Any, ...]) -> tuple[Array, tuple[Array, ...]]:
        clean, frame = z[:, :known, ...], (z.shape[0], 1, *z.shape[2:])

        def eps() -> Array:
            parts = [sampler.noise_of(word, steps, frame, like, _streams.KNOWN) for word in words[:known]]
            return xp.concat(parts, axis=1)

        alone = replace(sampler, denoise=sampler.past(clean, eps), history=None)
        part = tuple(each[:, known:, ...] for each in memory)
        new, kept = _taking(alone, 0, moving, turn, like, traced=False)(z[:, known:, ...], part, words[known:])
        whole = zip(memory, kept, strict=True)
        return xp.concat([clean, new], axis=1), tuple(
            xp.concat([old[:, :known, ...], each], axis=1) for old, each in whole
        )

    return backend.trace(take) if sampler.source is None else take
