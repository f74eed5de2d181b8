"""One stage of a plan, the plain function that every fused kernel is held to, and the state that it goes on from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from diffcore import _array
from diffcore._array import Array
from diffcore.plan import NOISE, SAVED, Plan, X, Z

NOISE_COLUMN = 2 + NOISE
"""Where a stage's coefficients (x-hat from z, x-hat from y, state row, saved row) hold that of the noise."""


class State(NamedTuple):
    """A run between two stages.

    Fields:
        z: the noisy data, (B, ...).
        saved: the saved state of plans that keep one (`Plan.saves`), else None.
        estimates: the last estimates of x, newest first, as many as the plan reads (`Plan.history`).
        index: the number of the next stage.
        seeds: the seed words of the samples, (B, 2) (low, high), or None where the caller gives the noise.

    A tuple of arrays: save it with `numpy.savez`, `torch.save` or any checkpointer, and go on from it later.
    """

    z: Array
    saved: Array | None
    estimates: tuple[Array, ...]
    index: Any
    seeds: Array | None


def check_given(function: str, plan: object, **given: object) -> None:
    """Raise TypeError unless the plan is one, and all that is given besides can be called."""
    if not isinstance(plan, Plan):
        raise TypeError(
            f"{function}: `plan` is {type(plan).__name__}, but takes a diffcore.Plan; see diffcore.samplers"
        )
    takes = {
        "denoise": "(z, log_snr) -> y",
        "noise": "(draw, shape) -> eps",
        "transform_x": "x -> x",
        "callback": "(state)",
    }
    for argument, value in given.items():
        if not callable(value) and (value is not None or argument == "denoise"):
            got = type(value).__name__
            raise TypeError(f"{function}: `{argument}` is {got}, but takes a function {takes[argument]}")


def advance(state: State, y: Array, row: Any, eps: Array | None, transform_x: Callable[[Array], Array] | None) -> State:
    """Return the state after a stage: the plain function that every fused kernel is held to.

    Args:
        state: the state before.
        y: the prediction.
        row: the stage's coefficients, a sequence of Python floats, or an array (*lead, n) of the data's library.
        eps: fresh noise of the shape of z, or None where the stage adds none.
        transform_x: applied to x-hat, or None.

    Half precision is computed in float32 and rounded once. A Python coefficient of 0 costs nothing, and one of 1 keeps
    every bit.
    """
    _array.namespace("step", z=state.z, y=y, noise=eps if eps is not None else state.z)
    return update(state, estimate(state.z, y, row, transform_x), row, eps)


def estimate(z: Array, y: Array, row: Any, transform_x: Callable[[Array], Array] | None) -> Array:
    """Return x-hat of a stage, in the dtype that a stage is computed in: the first half of `advance`."""
    xp = _array.library(z)
    of_z, of_y = _columns(row)[:2]
    wide = _array.widen(xp, z)
    x = combine(xp, wide, [(of_z, wide), (of_y, _array.widen(xp, y))])
    if x is y:  # the denoiser's own memory, which it may write to again
        x = xp.astype(x, x.dtype)
    if transform_x is None:
        return x
    moved = transform_x(x)
    _array.namespace("step", **{"z": z, "what transform_x returned": moved})
    if tuple(getattr(moved, "shape", ())) != tuple(z.shape):  # else it would broadcast
        raise ValueError(
            f"step: `transform_x` returned shape {tuple(getattr(moved, 'shape', ()))} for x of shape {tuple(z.shape)}; they "
            f"must be equal"
        )
    return moved


def update(state: State, x: Array, row: Any, eps: Array | None) -> State:
    """Return the state after a stage whose x-hat is x: the second half of `advance`."""
    xp = _array.library(state.z)
    dtype = state.z.dtype
    at = _columns(row)[2:]
    count = len(at) // 2
    z, saved, noisy = (None if part is None else _array.widen(xp, part) for part in (state.z, state.saved, eps))
    past = tuple(_array.widen(xp, earlier) for earlier in state.estimates)
    terms: dict[int, Array | None] = {Z: z, SAVED: saved, NOISE: noisy, X: x}
    terms.update({X + 1 + back: earlier for back, earlier in enumerate(past)})
    new_z = combine(xp, z, [(at[column], terms[column]) for column in range(count)])
    new_saved = None
    if state.saved is not None:
        new_saved = combine(xp, z, [(at[count + column], terms[column]) for column in range(count)])
    kept = (x, *past)[: len(past)]
    finish = lambda array: xp.astype(array, dtype, copy=False)  # noqa: E731
    return State(
        finish(new_z),
        None if new_saved is None else finish(new_saved),
        tuple(finish(earlier) for earlier in kept),
        state.index + 1,
        state.seeds,
    )


def _columns(row: Any) -> list[Any]:
    return list(row) if isinstance(row, (list, tuple)) else [row[..., column] for column in range(row.shape[-1])]


def combine(xp: Any, like: Array, terms: list[tuple[Any, Array | None]]) -> Array:
    """Return the sum of coefficients times arrays; a Python coefficient of 0 costs nothing, one of 1 keeps every bit."""
    total = None
    for coefficient, array in terms:
        if array is None or (isinstance(coefficient, float) and coefficient == 0.0):
            continue
        if isinstance(coefficient, float):
            term = array if coefficient == 1.0 else coefficient * array
        else:
            term = _array.along("step", "plan", coefficient, array, xp) * array
        total = term if total is None else total + term
    return xp.zeros_like(like) if total is None else total
