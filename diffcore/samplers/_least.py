r"""The least memory that a sampler can do with, and a table that has it.

A run is linear in its start z_0 and in the inputs u_k of its stages (eps, x-hat, perhaps a second estimate), so each state is a
*response*, a row of numbers over (z_0, u_0, u_1, ...):

    z_k = response_k (z_0, u_0, ..., u_{k-1})

Every state from z_k on depends on the inputs before u_k through the memory before stage k and z_k alone. So the rows k, k + 1,
... of the responses, cut off at u_k, span the smallest possible state, and their rank beyond z_k itself is the memory of that
stage: the Hankel rank of a linear system. `realise` finds these spans from the last stage backwards, then walks forward and picks
arrays that span them: past estimates where possible, since copies cost no arithmetic, else copies of other arrays, else new ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

EXACT = 1e-13
"""How far a response may be off, relative to the largest in its row and in its column, besides one rounding for each stage."""

LOST = 1e-15
"""Noise of which no state has more, relative to its row's largest number, is rounding."""

GROWTH = 30.0
"""How much larger the terms of a sum may be for the sake of copies: where they cancel, it costs digits in float32."""

TOLERANCES = tuple(10.0**-n for n in range(9, 17))
"""Ranks are counted above the first of these that gives a table which is exact."""


def responses(update: Float64) -> Float64:
    """Return the responses (stages + 1, *lead, 1 + inputs * stages) of a table (stages, *lead, 1 + M, 1 + M + inputs).

    >>> responses(np.array([[[0.5, 0.0, 2.0]], [[0.5, 0.0, 3.0]]]))  # columns z, eps, x-hat, eps', x-hat'
    array([[1.  , 0.  , 0.  , 0.  , 0.  ],
           [0.5 , 0.  , 2.  , 0.  , 0.  ],
           [0.25, 0.  , 1.  , 0.  , 3.  ]])
    """
    stages, lead, size = len(update), update.shape[1:-2], update.shape[-2]
    inputs = update.shape[-1] - size
    state = np.zeros((*lead, size, 1 + inputs * stages))
    state[..., 0, 0] = 1.0
    found = [state[..., 0, :]]
    for k, row in enumerate(update):
        first = 1 + inputs * k
        state = row[..., :size] @ state
        state[..., first : first + inputs] = row[..., size:]
        found.append(state[..., 0, :])
    return np.stack(found)


def realise(response: Float64, inputs: int, heads: Sequence[Float64] = ()) -> Float64:
    """Return the table (stages, P, 1 + M, 1 + M + inputs) of least memory that has the given responses.

    Args:
        response: (stages + 1, P, 1 + inputs * stages), as `responses` returns them, of P systems that share one M.
        inputs: how many inputs a stage has, eps first.
        heads: first rows that a chain of memory may have besides an estimate itself: (stages, P, 1 + inputs) each, rows over (z,
            inputs), such as eps-hat. A chain is a row m_1' = head, then copies m_2' = m_1, ..., the last rows of the table.

    Raises:
        ArithmeticError: no table in float64 is exact.
    """
    system = _System.of(response, inputs)
    exact = EXACT + system.stages * np.finfo(np.float64).eps
    copies = [np.broadcast_to(np.eye(1 + inputs)[1 + i], (system.stages, 1, 1 + inputs)) for i in range(1, inputs)]
    for tolerance in TOLERANCES:
        spans = _spans(system, tolerance)
        memory = max(_rank(_off(span, system.states(k)), tolerance) for k, span in enumerate(spans))
        plain = _build(system, spans, tolerance, memory, 0, None)
        if plain.error > exact:
            continue
        for head, length in _chains(system, spans, tolerance, memory, [*copies, *heads]):
            found = _build(system, spans, tolerance, memory, length, head)
            if found.error <= exact and found.growth <= GROWTH * plain.growth:
                return found.table
        return plain.table
    raise ArithmeticError("no table in float64 has these responses")


class _System(NamedTuple):
    """Responses (P, stages + 1, columns), columns divided by `scale` (P, columns); their rows have `size` (P, stages + 1)."""

    values: Float64
    scale: Float64
    size: Float64
    inputs: int

    @classmethod
    def of(cls, response: Float64, inputs: int) -> _System:
        values = np.moveaxis(np.array(response, dtype=np.float64), 0, 1)
        noise, largest = values[..., 1::inputs], np.abs(values).max(axis=2, keepdims=True)
        lost = np.all(np.abs(noise) <= LOST * largest, axis=1, keepdims=True)
        values[..., 1::inputs] = np.where(lost, 0.0, noise)  # else a stage would draw it for nothing
        size, scale = np.ones(values.shape[:2]), np.ones(values.shape[::2])
        for _ in range(8):  # each brings the largest entry of every row and column nearer to 1
            scaled = np.abs(values) / size[..., None] / scale[:, None, :]
            row, column = scaled.max(axis=2), scaled.max(axis=1)
            size *= np.sqrt(np.where(row > 0.0, row, 1.0))
            scale *= np.sqrt(np.where(column > 0.0, column, 1.0))
        return cls(values / scale[:, None, :], scale, size, inputs)

    @property
    def stages(self) -> int:
        return int(self.values.shape[1]) - 1

    def width(self, k: int) -> int:
        """Return how many columns there are before stage k."""
        return 1 + self.inputs * k

    def states(self, k: int) -> Float64:
        """Return the state before stage k as (P, 1, columns before stage k)."""
        return self.values[:, k : k + 1, : self.width(k)]

    def step(self, rows: Float64, state: Float64, k: int) -> Float64:
        """Apply rows (P, R, len(state) + inputs) of stage k to the arrays before it (P, ., columns)."""
        first = self.width(k)
        units = np.eye(self.inputs) / self.scale[:, None, first : first + self.inputs]
        kept = state.shape[1]
        return np.concatenate([rows[..., :kept] @ state, rows[..., kept:] @ units], axis=2)

    def chain(self, head: Float64 | None, length: int, k: int) -> Float64:
        """Return the arrays kept by the last `length` stages before stage k, newest first: (P, length, columns before stage k)."""
        found = np.zeros((len(self.values), length, self.width(k)))
        for back in range(min(length, k)):
            stage = k - 1 - back
            made = self.step(np.asarray(head)[stage][:, None], self.states(stage), stage)
            found[:, back, : self.width(k - back)] = made[:, 0]
        return found


def _unit(rows: Float64) -> Float64:
    """Return rows of length 1, zeros where they are."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0.0, length, 1.0)


def _off(rows: Float64, chosen: Float64) -> Float64:
    """Return the parts of `rows` (P, R, columns) that are orthogonal to those chosen; nearly dependent ones do not count twice."""
    _, size, axes = np.linalg.svd(_unit(chosen), full_matrices=False)
    axes = axes * (size > 1e-7)[..., None]
    for _ in range(2):  # the second time for the rounding of the first
        rows = rows - (rows @ axes.mT) @ axes
    return rows


def _rank(rows: Float64, tolerance: float) -> int:
    """Return the largest rank of P sets of rows."""
    return int((np.linalg.svd(rows, compute_uv=False) > tolerance).sum(axis=-1).max())


def _spans(system: _System, tolerance: float) -> list[Float64]:
    """Return, for every stage and the end, few rows with the squares of all that the states from there on owe to earlier inputs."""
    rows = system.values / system.size[..., None]
    found = [rows[:, -1:]]
    for k in reversed(range(system.stages)):
        width = system.width(k)
        both = np.concatenate([rows[:, k : k + 1, :width], found[-1][..., :width]], axis=1)
        _, size, axes = np.linalg.svd(both, full_matrices=False)
        kept = max(int((size > tolerance).sum(axis=-1).max()), 1)
        found.append((size[..., None] * axes)[:, :kept])
    return found[::-1]


def _chains(
    system: _System, spans: list[Float64], tolerance: float, memory: int, heads: Sequence[Float64]
) -> Iterator[tuple[Float64, int]]:
    """Yield heads and lengths of chains that leave the memory at its least, those with most copies first."""

    def copies(case: tuple[Float64, int]) -> int:
        return case[1] - int(np.count_nonzero(case[0][-1, 0]) > 1)

    cases = [(head, length) for head in heads for length in range(memory, 0, -1)]
    for head, length in sorted(cases, key=copies, reverse=True):
        if all(
            _rank(_off(span, np.concatenate([system.states(k), system.chain(head, length, k)], axis=1)), tolerance)
            <= memory - length
            for k, span in enumerate(spans)
        ):
            yield head, length


class _Built(NamedTuple):
    table: Float64
    error: float
    """The largest error of a response, relative to its row and column."""
    growth: float
    """The largest sum of the sizes of the terms of a row, relative to the size of their sum."""


def _build(
    system: _System, spans: list[Float64], tolerance: float, memory: int, length: int, head: Float64 | None
) -> _Built:
    """Walk forward and choose the arrays to keep: a chain of the given length, and as many others as are needed."""
    many, size, others = len(system.values), 1 + memory, memory - length
    table = np.zeros((system.stages, many, size, size + system.inputs))
    state = np.concatenate([system.states(0), np.zeros((many, memory, 1))], axis=1)
    error = growth = 0.0
    for k in range(system.stages):
        row = table[k]
        row[:, 0] = _express(system, system.values[:, k + 1], state, k)
        if length:
            row[:, size - length, [0, *range(size, size + system.inputs)]] = np.asarray(head)[k]
        for j in range(size - length + 1, size):
            row[:, j, j - 1] = 1.0
        kept = [0, *range(size - length, size)]
        needs = _off(spans[k + 1], system.step(row[:, kept], state, k))
        free = list(range(1, 1 + others))
        for source in [*free, *range(1 + others, size), 0]:  # a copy of an array of before, in its own place first
            slot = source if source in free else next(iter(free), 0)
            rank = _rank(needs, tolerance)
            if not rank or not slot:
                break
            copy = np.zeros((many, 1, size + system.inputs))
            copy[..., source] = 1.0
            kept_copy = _off(_unit(system.step(copy, state, k)), system.step(row[:, kept], state, k))
            fewer = _off(needs, kept_copy)
            apart = np.linalg.norm(kept_copy, axis=-1).min() > 1.0 / GROWTH
            if apart and _rank(fewer, tolerance) < rank:
                row[:, slot], needs = copy[:, 0], fewer
                free.remove(slot)
                kept.append(slot)
        for slot in free[: _rank(needs, tolerance)]:
            _, strength, axes = np.linalg.svd(needs, full_matrices=False)
            new = np.where(strength[:, :1] > tolerance, axes[:, 0], 0.0)  # a system that needs no more keeps 0
            row[:, slot] = _express(system, new * system.size[:, k + 1, None], state, k)  # about as large as z
            needs = _off(needs, system.step(row[:, [slot]], state, k))
        made = system.step(row, state, k)
        off = np.abs(made[:, 0] - system.states(k + 1)[:, 0]).max(axis=-1) / system.size[:, k + 1]
        error = max(error, float(off.max()))
        terms = np.abs(row[..., :size]) @ np.linalg.norm(state, axis=-1)[..., None]
        growth = max(growth, float((terms[:, 0, 0] / system.size[:, k + 1]).max()))
        state = made
    return _Built(table, error, growth)


def _express(system: _System, target: Float64, state: Float64, k: int) -> Float64:
    """Return the row (P, size + inputs) of stage k that makes `target` (P, columns) from the arrays before it, of as few as do."""
    many, size, first = len(target), state.shape[1], system.width(k)
    target = target[:, : system.width(k + 1)]
    length = np.linalg.norm(target, axis=-1, keepdims=True)
    length = np.where(length > 0.0, length, 1.0)
    row = np.zeros((many, size + system.inputs))
    ever = np.any(system.values[:, :, first : first + system.inputs] != 0.0, axis=1)
    fresh = np.where(ever & (np.abs(target[:, first:]) > 1e-15 * length), target[:, first:], 0.0)
    row[:, size:] = fresh * system.scale[:, first : first + system.inputs]
    norms = np.linalg.norm(state, axis=-1)
    columns = np.concatenate([_unit(state), (target[:, :first] / length)[:, None]], axis=1).mT
    small = np.asarray(np.linalg.qr(columns, mode="r"))
    a, b = small[..., :size], small[..., size:]

    def solve(used: list[int]) -> tuple[Float64, Float64]:
        inverse = np.linalg.pinv(a[..., used], rcond=1e-13)
        x = inverse @ b
        x = x + inverse @ (b - a[..., used] @ x)
        return x[..., 0], np.linalg.norm(b - a[..., used] @ x, axis=1)

    used = list(range(size))
    x, full = solve(used)
    for i in reversed(range(size)):
        fewer = [j for j in used if j != i]
        if not fewer:
            continue
        y, rest = solve(fewer)
        if np.all(rest <= 1.5 * full + 2e-16):
            used, x = fewer, y
    row[:, used] = x * length / np.where(norms > 0.0, norms, 1.0)[:, used]
    return row
