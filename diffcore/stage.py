"""One stage of a plan: the plain function that every kernel is held to, and the parts that all loops over stages share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check, _layout, _streams
from diffcore._array import Array
from diffcore._unwritten import called
from diffcore.denoiser import Held, Noise
from diffcore.plan import Form, Plan
from diffcore.state import State

Float64 = npt.NDArray[np.float64]

Draw = Callable[..., Array]
"""A source of noise: (draw number, shape) -> standard normal array."""


@dataclass(frozen=True, eq=False)
class Run:
    """All that a loop needs; `diffcore.sample` checks it and passes it to `Backend.run`.

    `coefficients` is (stages, *lead, form.width) in float64 on the host: the two coefficients of x-hat in the state and the
    prediction, then the rows of `Plan.update`. `noise` is None where the keys of the state make the noise. `held` acts
    for a constraint after every stage. `owned` means that the arrays of the state were made for this run alone, so
    that it may write over them.
    """

    denoise: Callable[..., Array]
    plan: Plan
    coefficients: Float64
    transform_x: Callable[[Array], Array] | None = None
    noise: Source | None = None
    callback: Callable[[State], object] | None = None
    compile: bool | None = None
    held: Held | None = None
    owned: bool = False

    @property
    def form(self) -> Form:
        """The form of the plan."""
        return self.plan.form


Turn = tuple[int, Callable[..., Array], tuple[Array, ...], bool]
"""One stage of a run, as `turns` yields it: its number, the denoiser for it, its levels, and whether it adds noise."""


def turns(run: Run, first: int, levels: Sequence[tuple[Array, ...]]) -> Iterator[Turn]:
    """Return the stages of a run from `first` on, one after another; the denoiser may be another one at each level (`at`)."""
    at, noisy = getattr(run.denoise, "at", None), run.plan.noisy[first:]
    stages = range(first, first + len(noisy))
    denoisers = [run.denoise] * len(noisy) if at is None else (at(run.plan.log_snr[k]) for k in stages)
    return zip(stages, denoisers, levels[first:], noisy, strict=True)


def levels_of(run: Run, like: Array, convert: Callable[[Float64, Array], Array] = _array.table_for) -> Any:
    """Return the levels that the denoiser gets at each stage, (level,) or (level, next level), for `turns`."""
    tables = [run.plan.levels_of(like.shape[0])]
    if run.plan.ahead:
        tables.append(run.plan.next_levels_of(like.shape[0]))
    return list(zip(*(_rows(convert(table, like)) for table in tables), strict=True))


def _rows(table: Array) -> list[Array]:
    """Return the rows of an array, of a library too whose arrays are no iterables."""
    try:
        return list(table)
    except TypeError:
        return [table[row, ...] for row in range(table.shape[0])]


def ask(form: Form, denoise: Any, z: Array, levels: tuple[Array, ...]) -> tuple[Array, Array | None]:
    """Return the prediction at z, checked, and the one without guidance where the plan reads it."""
    if form.second == "unguided":
        y, other = (
            _several("with_unguided", 2, called(denoise.with_unguided, z, *levels))
            if hasattr(denoise, "with_unguided")
            else 2 * (called(denoise, z, *levels),)
        )
        check_prediction(other, z)
    else:
        y, other = called(denoise, z, *levels), None
    check_prediction(y, z)
    return y, other


def ask_carrying(
    form: Form, denoise: Any, z: Array, levels: tuple[Array, ...], carried: tuple[Array, ...]
) -> tuple[Array, Array | None, tuple[Array, ...]]:
    """Return what `ask` does, and what the denoiser carries to the next stage: what it got, if it carries nothing."""
    if not hasattr(denoise, "carrying"):
        return *ask(form, denoise, z, levels), carried
    y, other, carried = _several("carrying", 3, called(denoise.carrying, z, *levels, carried))
    check_prediction(y, z)
    check_prediction(other, z)
    return y, other if form.second == "unguided" else None, carried


def _several(method: str, count: int, found: Any) -> Any:
    """Return what a method of a denoiser returned, if it is so many things; an array of as many samples is not."""
    if isinstance(found, tuple | list) and len(found) == count:
        return found
    what = "(prediction, prediction without guidance" + (", what the next stage gets)" if count == 3 else ")")
    raise _check.error(TypeError, "sample", f"denoise.{method}", f"return {what}", found)


def check_prediction(y: Array, z: Array) -> None:
    """Raise where a prediction does not fit the state that it is for."""
    if type(y) is type(z) and y.dtype == z.dtype and y.shape == z.shape and _array.is_floating(z):
        return
    if not hasattr(y, "dtype"):
        hint = "it is what the denoiser returned"
        if hasattr(y, "sample"):
            hint += "; take its `.sample`, or wrap the network: interop.diffusers.denoiser(model, scheduler)"
        elif isinstance(y, tuple | list) and any(map(_check.is_array, y)):
            hint += "; return one of its entries, the prediction"
        elif isinstance(y, Mapping):
            hint += f"; return one of its entries {_check.shown(list(y))}, the prediction"
        raise _check.error(TypeError, "step", "y", "be an array of the shape of `z`", y, hint)
    _array.namespace("step", z=z, y=y)
    _array.check_floating("step", y=y)
    _check.equal_shapes("step", "`y` is what the denoiser returned", y=y, z=z)


class Source:
    """A caller's source of noise, (draw, shape) -> eps, called in one way: with the levels, the stream and an
    example array `like`, each if it has a parameter of that name.

    A source that does not take the stream gets the draws of other streams than the sampler's from `OTHER` on.
    """

    OTHER = 1 << 30

    def __init__(self, function: Callable[..., Array]) -> None:
        self.function = function
        try:
            names = set(inspect.signature(function).parameters)
        except (TypeError, ValueError):  # a function that is not written in Python
            names = set()
        self.takes_levels = {"log_snr", "next_log_snr"} <= names
        self.takes_stream, self.takes_like = "stream" in names, "like" in names

    def __call__(
        self,
        draw: Any,
        shape: tuple[int, ...],
        like: Array,
        between: tuple[Any, Any] | None = None,
        stream: int = _streams.SAMPLER,
    ) -> Array:
        """Return draw number `draw` in the library of `like`; `between` are the levels that a stage goes from and to."""
        number = _array.known_int(draw)
        draw = draw if number is None else number
        named: dict[str, Any] = {"stream": stream} if self.takes_stream else {}
        named |= {"like": like} if self.takes_like else {}
        if self.takes_levels:
            named["log_snr"], named["next_log_snr"] = between if between is not None else (None, None)
        elif stream and not self.takes_stream:
            draw = draw + self.OTHER
        eps = self.function(draw, shape, **named)
        _array.namespace("noise", like=like, noise=eps)
        if tuple(eps.shape) != shape:
            raise _check.error(ValueError, "sample", "noise", f"return an array of shape {shape}", eps)
        return _layout.beside(eps, like, shape=shape)


def levels_between(plan: Plan, stage: int) -> tuple[Any, Any]:
    """Return the levels of a stage as a source of noise gets them: floats, or arrays where they have axes."""
    return _array.scalar(plan.log_snr[stage]), _array.scalar(plan.next_log_snr[stage])


def drawn(
    backend: Any,
    state: State,
    source: Source | None,
    between: tuple[Any, Any] | None = None,
    stream: int = _streams.SAMPLER,
) -> Array:
    """Return fresh noise for a stage: from the caller's source, or from the keys of the state."""
    z, shape = state.z, tuple(state.z.shape)
    if source is not None:
        return source(state.draw, shape, z, between, stream)
    if state.keys is None:
        raise _check.error(ValueError, "step", "state", "have keys", None, "give `noise`, or start with `seed`")
    return backend.normal(state.keys, state.draw, shape, dtype=z.dtype, device=_array.device(z), stream=stream)


def known_noise(backend: Any, before: State, source: Source | None) -> Noise:
    """Return the noise of a constraint at a stage: the draw of the stage, in a stream of its own."""
    return lambda: drawn(backend, before, source, stream=_streams.KNOWN)


def hold(function: str, constraint: Any, plan: Plan, z: Array) -> Held:
    """Return the `Held` of a constraint for a run whose states are like z."""
    if not hasattr(constraint, "hold"):
        must = "be conditioning.replacement(observed, mask), or another diffcore.denoiser.Constraint"
        hint = "what guides a denoiser goes in its place, as sample(guided, plan, ...)" if callable(constraint) else ""
        raise _check.error(TypeError, function, "constraint", must, constraint, hint)
    held: Held = constraint.hold(plan, z)
    if not (hasattr(held, "begin") and hasattr(held, "after")):
        must = "return an object with begin(state, noise) and after(before, state, noise)"
        raise _check.error(TypeError, function, "constraint.hold", must, held)
    return held


def check_held(function: str, method: str, z: Array, like: Array) -> Array:
    """Return what a method of a constraint returned; raise where it is no array like z, which later stages would take as it is."""
    same = hasattr(z, "shape") and getattr(z, "dtype", "") == like.dtype  # None would be float64 to NumPy
    same = same and (type(z) is type(like) or _array.library(z) is _array.library(like))
    if same and z.shape == like.shape:
        return z
    must = f"return an array like z of its state, {_check.shown(like)}"
    hint = "it returned a whole State; take its `.z`" if isinstance(z, State) else ""
    raise _check.error(ValueError if same else TypeError, function, f"constraint.{method}", must, z, hint)


def constrained(backend: Any, held: Held | None, before: State, state: State, source: Source | None) -> State:
    """Return the state after a stage as a constraint wants it."""
    if held is None:
        return state
    z = held.after(before, state, known_noise(backend, before, source))
    check_held("step", "after", z, state.z)
    return State(z, *state[1:])  # torch before 2.13 does not trace `_replace` of a traced state


def rows_of(coefficients: Float64, like: Array) -> Any:
    """Return the coefficients of each stage as `Backend.advance` takes them: Python floats, or an array (*lead, n)."""
    if coefficients.ndim == 2 and not _array.traced():
        return coefficients.tolist()
    table = _array.table_for(coefficients, like)
    return [table[stage, ...] for stage in range(table.shape[0])]


def row_of(coefficients: Float64, stage: int, like: Array) -> Any:
    """Return those of one stage."""
    row = coefficients[stage]
    return row.tolist() if row.ndim == 1 and not _array.traced() else _array.table_for(row, like)


def advance(
    form: Form,
    state: State,
    y: Array,
    row: Any,
    eps: Array | None,
    transform_x: Callable[[Array], Array] | None,
    other: Array | None = None,
) -> State:
    """Return the state after a stage: the plain function that every kernel is held to.

    Args:
        form: of the plan.
        state: the state before.
        y: the prediction.
        row: the stage's coefficients, a sequence of Python floats, or an array (*lead, n) of the data's library.
        eps: fresh noise of the shape of z, or None where the stage adds none.
        transform_x: applied to x-hat, or None.
        other: the unguided prediction, for plans that read it.

    Half precision is computed in float32 and rounded once. A Python coefficient of 0 costs nothing, and one of 1 keeps
    every bit.
    """
    _array.namespace("step", z=state.z, y=y, noise=eps if eps is not None else state.z)
    raw = estimate(state.z, y, row)
    kept = form.second == "raw" and transform_x is not None  # which may work in place
    x = transformed(_array.library(raw).astype(raw, raw.dtype) if kept else raw, state.z, transform_x)
    second = {None: None, "raw": raw, "unguided": other}[form.second]
    if form.second == "unguided":
        second = estimate(state.z, other, row)
    return update(form, state, x, row, eps, second)


def estimate(z: Array, y: Array, row: Any) -> Array:
    """Return x-hat of a stage before it is transformed, in the dtype that a stage is computed in."""
    xp = _array.library(z)
    of_z, of_y = columns_of(row)[:2]
    wide = _array.widen(xp, z)
    x = combine(xp, wide, [(of_z, wide), (of_y, _array.widen(xp, y))])
    return xp.astype(x, x.dtype) if x is y else x  # the denoiser's own memory, which it may write to again


def transformed(x: Array, z: Array, transform_x: Callable[[Array], Array] | None) -> Array:
    """Return x-hat after the caller's `transform_x`, checked."""
    if transform_x is None:
        return x
    moved = transform_x(x)
    _array.namespace("step", **{"z": z, "what transform_x returned": moved})
    if tuple(getattr(moved, "shape", ())) != tuple(z.shape):  # else it would broadcast
        raise _check.error(ValueError, "step", "transform_x", f"return an array of shape {tuple(z.shape)}", moved)
    return moved


def update(form: Form, state: State, x: Array, row: Any, eps: Array | None, second: Array | None = None) -> State:
    """Return the state after a stage whose x-hat is x: the linear part of `advance`."""
    xp, dtype = _array.library(state.z), state.z.dtype
    at = columns_of(row)[2:]
    given = [state.z, *state.memory, eps, x, second][: form.columns]
    terms = [None if part is None else _array.widen(xp, part) for part in given]
    columns, rows = form.columns, 1 + form.computed - form.keeps_x
    made = [
        xp.astype(combine(xp, terms[0], list(zip(at[first : first + columns], terms, strict=True))), dtype, copy=False)
        for first in range(0, rows * columns, columns)
    ]
    found = xp.astype(x, dtype, copy=False)
    made = [*made, found] if form.keeps_x else made
    return State(made[0], remembered(form, made[1:], state.memory), found, state.index + 1, state.draw + 1, state.keys)


def remembered(form: Form, made: Sequence[Array], memory: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return the memory after a stage, the rows that were computed and those that only move up, given the memory before."""
    return (*made, *memory[form.computed - 1 : form.memory - 1]) if form.memory else ()


def columns_of(row: Any) -> list[Any]:
    """Return the coefficients of a stage one by one."""
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
