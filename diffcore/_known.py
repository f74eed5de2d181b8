r"""Known elements of a state, and how a run holds them: after every stage they are overwritten.

    z^a <- c_z z^a + c_x x^a + c_eps eps

where z^a on the right is the state before the stage and eps is noise of its own. So what holds them is, like a sampler,
a table: three numbers a stage, worked out on the host in float64. Its first row is for the state that a run starts from.

| variant | after a stage t -> s | c_z | c_x | c_eps |
|---|---|---|---|---|
| marginal | q(z_s^a given x^a) | 0 | alpha_s | sigma_s |
| posterior | q(z_s^a given x^a, z_t^a), s cleaner | see `process.posterior_coefficients` | | |
| | q(z_s^a given z_t^a), s noisier | see `process.transition` | 0 | |
| | s = t, as in a Langevin corrector | 1 | 0 | 0 |
| both | the end of the run | 0 | 1 | 0 |

The last row makes known elements come back exactly, also from a plan that ends before clean data. A plan whose last
stage goes towards more noise ends on noise, and keeps the row of its variant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _array, _streams, levels, process, sampling
from diffcore._array import Array

if TYPE_CHECKING:
    from diffcore.backends.contract import Draw
    from diffcore.plan import Plan
    from diffcore.sampling import State

Float64 = npt.NDArray[np.float64]

BEFORE, CLEAN, NOISE = 0, 1, 2
"""Columns of the table."""


class Held(NamedTuple):
    """What a run holds: x^a (0 elsewhere) of at least float32, booleans, both of the state's shape; and the table."""

    x: Array
    known: Array
    rows: Float64


def table(plan: Plan) -> dict[str, Float64]:
    """Return, variant -> (1 + stages, *lead, 3): the coefficients for the start, then those after each stage."""
    at, to = levels.level(plan.log_snr, plan.scaling), levels.level(plan.next_log_snr, plan.scaling)
    marginal, posterior = np.zeros((2, len(plan) + 1, *plan.lead, 3))
    for rows in (marginal, posterior):
        rows[0, ..., CLEAN], rows[0, ..., NOISE] = at.alpha[0], at.sigma[0]
    marginal[1:, ..., CLEAN], marginal[1:, ..., NOISE] = to.alpha, to.sigma
    with np.errstate(all="ignore"):
        a, b, variance = process.posterior_coefficients(to, at)
        added = np.sqrt(process.novelty(at, to)) * to.sigma
        same, cleaner = plan.next_log_snr == plan.log_snr, plan.next_log_snr > plan.log_snr
        posterior[1:, ..., BEFORE] = np.where(same, 1.0, np.where(cleaner, a, to.alpha / at.alpha))
        posterior[1:, ..., CLEAN] = np.where(cleaner, b, 0.0)
        posterior[1:, ..., NOISE] = np.where(cleaner, np.sqrt(variance), np.where(same, 0.0, added))
    ends = np.asarray(plan.next_log_snr[-1] >= plan.log_snr[-1])
    for rows in (marginal, posterior):
        rows[-1] = np.where(ends[..., None], [0.0, 1.0, 0.0], rows[-1])
        rows.setflags(write=False)
    return {"marginal": marginal, "posterior": posterior}


def hold(function: str, constraint: Any, plan: Plan, z: Array) -> Held:
    """Return what a constraint holds in a run whose states are like z."""
    if not hasattr(constraint, "hold"):
        raise TypeError(
            f"{function}: `constraint` is {type(constraint).__name__}, but takes what "
            f"diffcore.conditioning.replacement(observed, mask) returns"
        )
    held: Held = constraint.hold(plan, z)
    return held


def begin(backend: Any, held: Held, state: State, source: Draw | None) -> State:
    """Return the state that a run starts from with its known elements at the level of the start."""
    row = _row(held.rows[0], state.z)
    eps = draw(backend, state, source, 0, len(held.rows) - 1)
    return state._replace(z=overwrite(state.z, state.z, held.x, held.known, row, eps))


def after(backend: Any, held: Held, before: State, state: State, source: Draw | None) -> State:
    """Return the state after a stage with its known elements set; the index may be traced."""
    stages = len(held.rows) - 1
    row: Any
    if backend.traces(before.index):
        xp = _array.library(state.z)
        index = xp.reshape(xp.asarray(before.index, device=_array.device(state.z)), (1,))
        row = xp.take(sampling.table_for(held.rows[1:], state.z), index, axis=0)[0, ...]
    else:
        row = _row(held.rows[int(before.index) + 1], state.z)
    noisy = not isinstance(row, list) or row[NOISE] != 0.0
    eps = draw(backend, before, source, before.index + 1, stages) if noisy else None
    z = overwrite(state.z, before.z, held.x, held.known, row, eps)
    return sampling.State(z, *state[1:])  # torch before 2.13 does not trace `_replace` of what a trace made


def draw(backend: Any, state: State, source: Draw | None, number: Any, stages: int) -> Array:
    """Return noise for known elements: draw `number` of their stream; of a source of one's own, the draws that follow
    those of the plan, 0 to `stages`.
    """
    shape = tuple(state.z.shape)
    if source is not None:
        return sampling.drawn_from(source, stages + 1 + number, shape, state.z)
    if state.seeds is None:
        raise ValueError("step: the state has no seeds, so give `noise`, or start with `seed`")
    like = {"dtype": state.z.dtype, "device": _array.device(state.z)}
    return backend.normal(state.seeds, number, shape, **like, stream=_streams.KNOWN)


def overwrite(z: Array, before: Array, x: Array, known: Array, row: Any, eps: Array | None) -> Array:
    """Return z with its known elements at c_z before + c_x x + c_eps eps; a row is floats, or an array (*lead, 3)."""
    xp = _array.namespace("step", z=z, before=before, observed=x)
    at = row if isinstance(row, list) else [row[..., column] for column in range(3)]
    wide = _array.widen(xp, before)
    noise = None if eps is None else _array.widen(xp, eps)
    value = sampling.combine(xp, wide, [(at[BEFORE], wide), (at[CLEAN], x), (at[NOISE], noise)])
    return xp.where(known, xp.astype(value, z.dtype, copy=False), z)


def _row(row: Float64, like: Array) -> Any:
    return row.tolist() if row.ndim == 1 else sampling.table_for(row, like)
