"""What `Scheduler.step` computes: the update of a stage as sums of arrays, with the prediction instead of x-hat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffcore import levels, predictions
from diffcore.interop._alone import Alone
from diffcore.interop._reading import Draw, Read
from diffcore.plan import Plan
from diffcore.plan.form import needed

Terms = tuple[tuple[int, float], ...]
"""A sum of arrays of a list: (place, coefficient), ..."""

Z, Y, X, NOISE = range(4)
"""Places of the state, the prediction, x-hat clipped and noise in that list; memory follows."""


UNREAD: Terms = ((Z, 1.0),)
"""A row of memory that no later stage reads."""

ROUNDING = 4e-15
"""What is rounding in a coefficient where two cancel."""


class Stage(NamedTuple):
    """A stage.

    Fields:
        rows: of the update, z' first.
        x: x-hat, before it is clipped.
        clips: whether it is.
        keeps_x: whether a row of memory is x-hat; then it is the object `x`.
        second: what is returned beside z', where that is not x-hat.
        draws: of noise.
        log_snr: of the call.
        ends: the deviations of the noise where a network predicts variances of -1 and 1; None where it predicts none.
    """

    rows: tuple[Terms, ...]
    x: Terms
    clips: bool
    keeps_x: bool
    second: Terms | None
    draws: tuple[Draw, ...]
    log_snr: float
    ends: tuple[float, float] | None = None


class Stages(NamedTuple):
    """The stages of a run, and what `step` has to know of it.

    Fields:
        output: the class of what steps return; None for ours.
        length: how many tensors they return as a tuple.
    """

    rows: tuple[Stage, ...]
    output: Any
    length: int


def stages(function: str, read: Read, prediction: predictions.Prediction) -> Stages:
    """Return the stages of what was read, for a network that predicts one kind."""
    plan = read.plan
    kind = predictions.row_function(function, "prediction", prediction)
    with np.errstate(all="ignore"):
        mixing = predictions.solve(np, plan.levels, kind, predictions.table()["x"])
    predictions.check_solvable(function, prediction, "x", plan.levels, mixing)
    first, read_later = 1 + plan.memory, needed(plan.update)
    found = []
    for k, update in enumerate(plan.update):
        of_z, of_x = read.clips[k] or (0.0, 1.0)
        fold = _Fold(float(mixing.from_z[k]), float(mixing.from_y[k]), read.clips[k] is not None)
        x = fold(of_z, 0.0, 0.0, of_x)
        rows = []
        for at, one in enumerate(update):
            raw = one[plan.form.x + 1] if plan.second else 0.0
            held = one[1:first] if k else ()  # there is no memory before the first stage
            row = fold(one[0], one[plan.form.noise], one[plan.form.x], raw, held)
            unread = at > 0 and not read_later[k + 1, at - 1]
            rows.append(UNREAD if unread else x if row == x and not fold.clips else row)
        given = read.second[k]
        second = None if given is None else fold(*given)
        keeps_x, log_snr = not fold.clips and x in rows[1:], float(plan.log_snr[k])
        found.append(Stage(tuple(rows), x, fold.clips, keeps_x, second, read.draws[k], log_snr))
    return Stages(_ahead(found), read.output, read.length)


def _ahead(found: list[Stage]) -> tuple[Stage, ...]:
    """Return the stages, where z' alone reads the memory with that part of z' worked out a stage before, if that is less work.

    The second stage of Heun's method then adds its slope to what the first has left, a z + b m, and multiplies nothing.
    """
    for k in range(len(found) - 1):
        here, after = found[k : k + 2]
        reads = dict(after.rows[0])
        if max(reads, default=Z) <= NOISE or any(place > NOISE for row in after.rows[1:] for place, _ in row):
            continue
        parts = [(here.rows[0], reads.pop(Z, 0.0))]
        parts += [(here.rows[place - NOISE], reads.pop(place)) for place in sorted(reads) if place > NOISE]
        sums: dict[int, list[float]] = {}
        for row, factor in parts:
            for place, value in row:
                sums.setdefault(place, []).append(factor * value)
        kept, new = _terms({place: _sum(values) for place, values in sums.items()}), _terms({**reads, NOISE + 1: 1.0})
        rows = sum(_work(row) for row in here.rows[1:] if not (here.keeps_x and row is here.x))
        if _work(kept) + _work(new) < rows + _work(after.rows[0]):
            found[k] = here._replace(rows=(here.rows[0], kept), keeps_x=False)
            found[k + 1] = after._replace(rows=(new, *after.rows[1:]))
    return tuple(found)


def _sum(values: Sequence[float]) -> float:
    """Return a sum, 0 or 1 where it is that but for the rounding of its parts."""
    found, rounding = math.fsum(values), ROUNDING * sum(map(abs, values))
    return next((near for near in (0.0, 1.0) if abs(found - near) < rounding), found)


def _work(row: Terms) -> float:
    """Return how long a sum takes, in additions: a product with a number takes about two."""
    return len(row) - 1.0 if row and row[0][1] == 1.0 else len(row) + 1.0


class _Fold(NamedTuple):
    """From coefficients of (z, noise, x-hat, x-hat before it is clipped, memory) to terms, with x-hat = p z + q y."""

    p: float
    q: float
    clips: bool

    def __call__(self, z: Any, noise: Any, x: Any, raw: Any, memory: Any = ()) -> Terms:
        x, raw = (x, raw) if self.clips else (0.0, x + raw)
        found = {
            Z: _sum([z, raw * self.p]),
            Y: raw * self.q,
            X: x,
            NOISE: noise,
            **{4 + m: value for m, value in enumerate(memory)},
        }
        return _terms(found)


def _terms(found: Mapping[int, Any]) -> Terms:
    """Return a sum of arrays, with one whose coefficient is 1 first."""
    left = [(place, float(value)) for place, value in found.items() if value != 0.0]
    return tuple(sorted(left, key=lambda term: term[1] != 1.0))


def single(
    function: str, read: Alone, prediction: predictions.Prediction, scaling: str, low: Alone | None = None
) -> Stages:
    """Return a step that was read alone; with a network that predicts variances, at 1, and at -1 as `low`."""
    with np.errstate(all="ignore"):
        level = levels.level(np.float64(read.log_snr), scaling)
        row = predictions.row_function(function, "prediction", prediction)
        mixing = predictions.solve(np, level, row, predictions.table()["x"])
        x = np.array([*mixing, 0.0, 0.0])  # not used where not finite
    x, second = x if read.clipped is None else read.clipped, read.second
    rows = [
        None if one is None else tuple((k, float(c)) for k, c in enumerate(one) if c) for one in (read.after, x, second)
    ]
    after, estimate, returned = rows
    assert after is not None
    assert estimate is not None
    ends = None
    if low is not None and read.draws:
        ends = float(low.after[NOISE]), float(read.after[NOISE])
        after = tuple((place, 1.0 if place == NOISE else value) for place, value in after)
    stage = Stage((after,), estimate, read.clipped is not None, False, returned, read.draws, read.log_snr, ends)
    return Stages((stage,), read.output, read.length)


def made(plan: Plan, clips: bool) -> Read:
    """Return a plan of ours as what was read."""
    draws = tuple((Draw(1.0, None, ()),) if noisy else () for noisy in plan.noisy)
    clipped = ((0.0, 1.0) if clips else None,) * len(plan)
    return Read(plan, clipped, draws, (None,) * len(plan), None, 2)


def total(terms: Terms, arrays: Sequence[Any]) -> Any:
    """Return the sum of tensors; one that stands alone with the coefficient 1 is returned itself."""
    found: Any = None
    for place, value in terms:
        if found is not None:
            found = found.add(arrays[place], alpha=value)
        else:
            found = arrays[place] if value == 1.0 else arrays[place] * value
    return arrays[Z] * 0.0 if found is None else found
