r"""The one loop: start a state, take a step, or sample a whole run, from any `Plan` and any denoiser.

A state goes in and a state comes out; nothing else is kept anywhere. So two runs can be interleaved, a run can be
stopped, saved and resumed, and sample i of a batch does not know of the others.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from diffcore import _array, _check, _explained, _fitting, _memory, _unwritten, noise, predictions, stage
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore.denoiser import Constraint, Held
from diffcore.plan import Plan
from diffcore.stage import Draw, Run, Source
from diffcore.state import State

__all__ = ["sample", "start", "step"]

NO_LIKE = "sample: without `like` the start is a NumPy array; give like=torch.zeros(1) for torch, like=jax.numpy.zeros(1) for JAX"
"""What is added to an error inside a denoiser that may have met the wrong library."""


def start(
    plan: Plan,
    z: Array | State | None = None,
    *,
    shape: Sequence[int] | None = None,
    like: Array | None = None,
    seed: Any = None,
    noise: Draw | None = None,
    constraint: Constraint | None = None,
) -> State:
    r"""Return the state at the start of a run: from the given noisy data, or from pure noise z = sigma eps.

    Args:
        plan: the plan of the run.
        z: noisy data (B, ...) at the plan's first level; or the `State` in which another run ended, to go on from with its
            keys and without using a draw of noise twice; or give `shape`.
        shape: (B, ...) of a start from noise, draw 0 of the seeds.
        like: an array that gives the library, dtype and device of a start from noise; NumPy float32 without one. A torch DTensor,
            or a JAX array on several devices, also gives how the start is divided among them.
        seed: an int in [0, 2^64), of which each sample gets its own key; or one int or key per sample: see `noise.keys`. None
            is 0.
        noise: a source of noise of one's own instead of the seeds, (draw, shape) -> array. One that has parameters named
            `log_snr` and `next_log_snr` also gets the levels that a stage goes from and to, one that has `like` an array
            of the run, and one that has a `stream` the number of the stream; else draws for a constraint are numbered from
            2^30 on. `noise.brownian(seed)` is such a source, whose noise belongs to the levels.
        constraint: the known part of x, from `conditioning.replacement`: the start is at its noised value there.

    Raises:
        ValueError: neither or both of z and shape; a bad seed; levels that do not align with the shape.
        TypeError: `z` is not a floating array.

    >>> import diffcore as dc
    >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=4)
    >>> dc.start(plan, shape=(2, 3), seed=7).z.shape
    (2, 3)
    """
    source = _fitting.check_given("start", plan, noise=noise)
    state, backend = started(plan, z, shape, like, seed, source)
    state = state._replace(x=_blank(state.z))
    return (
        state if constraint is None else begin(backend, stage.hold("start", constraint, plan, state.z), state, source)
    )


def started(
    plan: Plan,
    z: Array | State | None,
    shape: Sequence[int] | None,
    like: Array | None,
    seed: Any,
    source: Source | None,
) -> tuple[State, Any]:
    """Return the state at the start of a run, without x-hat, and the backend that serves it."""
    if (z is None) == (shape is None):
        raise ValueError(
            "start: give exactly one of `z`, noisy data (B, ...) or a State, and `shape`, to start from pure noise"
        )
    _fitting.refuse_unread("start", z, like, seed, source)
    keys: Array | None = None
    draw: Any = 1
    if isinstance(z, State):
        keys, draw = z.keys, z.draw
        z = cast(Array, z.z)
        backend = backend_of(z)
    elif z is not None:
        _array.namespace("start", z=z)
        _array.check_floating("start", z=z)
        if not z.shape:
            raise _check.error(ValueError, "start", "z", "have at least the batch axis (B, ...)", z)
        backend = backend_of(z)
        keys = None if source is not None else backend.keys(_seed_words(seed, int(z.shape[0])), z)
    else:
        assert shape is not None
        like = np.zeros((), dtype=np.float32) if like is None else like
        xp = _array.namespace("start", like=like)
        if _array.library(like) is None:
            raise _check.error(
                TypeError, "start", "like", "be an array, such as numpy.zeros(1) or torch.zeros(1)", like
            )
        _array.check_floating("start", like=like)
        dims, backend = _check.shape("start", "shape", shape), backend_of(like)
        if _memory.here(like):
            size = like.dtype.itemsize * math.prod(dims) * (3 + plan.memory)
            hint = "sample in parts: seed=noise.keys(seed, n, first=k)"
            _memory.fits("start", "shape", dims, size, hint=hint, like=like)
        if source is not None:
            eps = source(0, dims, like)
        else:
            keys = backend.keys(_seed_words(seed, dims[0]), like)
            eps = backend.normal(keys, 0, dims, dtype=like.dtype, device=_array.place(like))
        wide = _array.widen(xp, eps)
        sigma = plan.start.sigma
        sigma = sigma if isinstance(sigma, float) else _array.table_for(np.asarray(sigma), wide)
        z = xp.astype(_array.along("start", "plan", sigma, wide, xp) * wide, like.dtype, copy=False)
    _array.check_lead("start", "plan", plan.lead, tuple(cast(Array, z).shape))
    memory = tuple(_blank(z) for _ in range(plan.memory))  # arrays of their own: aliases are another graph
    draw = backend.index(draw) if isinstance(draw, int) else draw
    return State(z, memory, None, backend.index(0), draw, keys, mark=backend.index(plan.marks[0])), backend


def _blank(z: Array) -> Array:
    """Return zeros like z; `numpy.zeros` allocates memory that is 0, where `zeros_like` would write it."""
    return np.zeros(z.shape, z.dtype) if type(z) is np.ndarray else _array.library(z).zeros_like(z)


def step(
    plan: Plan,
    state: State,
    y: Array,
    *,
    prediction: predictions.Prediction,
    transform_x: Callable[[Array], Array] | None = None,
    noise: Draw | None = None,
    constraint: Constraint | None = None,
    unguided: Array | None = None,
) -> State:
    r"""Return the state after one stage of a plan, given what the denoiser predicts at `plan.level_for(state)`.

        (z', m_1', ..., m_M') = update_k (z, m_1, ..., m_M, eps, x-hat)

    A stage is one call of the denoiser; a step of some samplers is more than one stage. x-hat is the new state's `x`.

    Args:
        plan: the plan of the run.
        state: from `start` or the step before.
        y: the prediction for state.z, of its shape and library.
        prediction: what `y` is: "x", "eps", "v", "score", "flow", "edm" or a row function.
        transform_x: applied to x-hat before everything else is computed from it, such as `guidance.clip(-1.0, 1.0)`.
        noise: a source of noise instead of the state's keys, as for `start`; a stage draws number `state.draw`.
        constraint: the known part of x, from `conditioning.replacement`; the same in `start`.

        unguided: the prediction without guidance, for plans that read it (`plan.second`).

    Returns:
        A new `State`; the old one stays as it is. On torch, as in `sample`, gradients are recorded only where `state.z`
        requires them, so that a loop by hand round a network in training keeps no graph.

    Raises:
        ValueError: the run is over; the prediction has another shape; x does not follow from this kind of prediction at
            a level of the plan (eps at alpha = 0).

    >>> import diffcore as dc, numpy as np
    >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=4)
    >>> state = dc.start(plan, np.ones((1, 2)), seed=7)
    >>> for _ in range(len(plan)):
    ...     log_snr = plan.level_for(state)  # (B,), for a network
    ...     state = dc.step(plan, state, np.full((1, 2), 0.5), prediction="x")
    >>> state.z, state.x
    (array([[0.5, 0.5]]), array([[0.5, 0.5]]))
    """
    _check.instance("step", "state", state, State, "a diffcore.State, from diffcore.start")
    source = _fitting.check_given("step", plan, noise=noise, transform_x=transform_x)
    backend, form = backend_of(state.z), plan.form
    stage.check_prediction(y, state.z)
    if (unguided is None) != (form.second != "unguided"):
        reads = "be given: {} reads" if unguided is None else "be None: {} does not read"
        must = f"{reads.format(plan.sampler)} the prediction without guidance"
        raise _check.error(ValueError, "step", "unguided", must, unguided)
    table, at = plan.coefficients(prediction), _array.known_int(state.index)
    between: Any = None
    if at is None:  # the row stays on the device: no branch on the number
        tables = (table, plan.log_snr, plan.next_log_snr)
        row, *levels = (_array.take_row(_array.table_for(each, state.z), state.index, state.z) for each in tables)
        noisy, between = plan.stochastic, (levels[0], levels[1])
    else:
        _fitting.check_place("step", plan, state, at)
        row, noisy = stage.row_of(table, at, state.z), plan.noisy[at]
        between = None if source is None else stage.levels_between(plan, at)
    settings: dict[str, Any] = {"transform_x": transform_x, "other": unguided, "between": between}
    after: State = backend.advance(form, state, y, row, source, stochastic=noisy, **settings)
    mark = _fitting.mark_after(plan, state) if at is None else backend.index(plan.marks[at + 1])
    after = State(*after[:6], after.carried, mark)
    if constraint is None:
        return after
    with _array.recording(state.z, False):
        held = stage.hold("step", constraint, plan, state.z)
        return stage.constrained(backend, held, state, after, source)


def sample(
    denoise: Callable[[Array, Array], Array],
    plan: Plan,
    z: Array | State | None = None,
    *,
    prediction: predictions.Prediction | None = None,
    shape: Sequence[int] | None = None,
    like: Array | None = None,
    seed: Any = None,
    noise: Draw | None = None,
    transform_x: Callable[[Array], Array] | None = None,
    constraint: Constraint | None = None,
    progress: bool = False,
    callback: Callable[[State], object] | None = None,
    compile: bool | None = None,
) -> Array:
    r"""Return the samples that a plan draws with a denoiser: the end of the run, x-hat itself where the plan ends on clean data.

    Args:
        denoise: any callable (z, log_snr) -> prediction, z of shape (B, ...), log_snr of shape (B,), or of the leading
            shape of the plan's levels. It reads z, which is the state itself, and must not write into it: on NumPy
            and torch that is refused.
        plan: from `diffcore.samplers`.
        z: noisy data (B, ...) at the plan's first level, or a `State` to resume; or give `shape`.
        prediction: what the denoiser returns: "x", "eps", "v", "score", "flow", "edm" or a row function. May be left
            out where the denoiser has an attribute `prediction`.
        shape, like, seed, noise: see `start`. Equal seeds give equal noise on every backend, device and batch. Without a seed it
            is 0: every call draws the same samples, until you give another seed.
        transform_x: applied to x-hat before everything else is computed from it; see `guidance.clip`.
        constraint: the known part of x, from `conditioning.replacement(observed, mask)`: it comes back exactly, and the
            denoiser sees it noised at the level of each stage.
        progress: show a bar (needs tqdm: diffcore[progress]).
        callback: called with the `State` after every stage, whose arrays it must not write to: on NumPy and torch that is refused.
        compile: keep or fuse more than is done without asking. On torch None means the kernels of diffcore where they serve,
            Triton on CUDA and C on a CPU. True captures the whole run on CUDA with its denoiser as one graph, at the second call
            of a kind, and replays it; on a CPU it fuses each stage by torch.compile. On JAX a whole run is always one trace;
            True keeps the compiled run for the next call with the same denoiser. What is kept needs a denoiser that is pure,
            as for jax.jit: weights are read as they are, anything else it does in Python is done once. See the page on backends.

    Returns:
        An array of the shape, dtype, device and library of the start. On torch no gradients are recorded unless the
        start asks for them.

    Raises:
        ValueError: see `start` and `step`; a denoiser for another scaling than the plan's, or whose own `prediction`
            is another; a prediction of another shape.
        TypeError: `prediction` is missing and the denoiser has no such attribute; mixed libraries.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 2.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros(2), 1.0)
    >>> plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=8)
    >>> dc.sample(data, plan, shape=(3, 2), seed=[7, 8, 9]).shape
    (3, 2)
    """
    source = _fitting.check_given(
        "sample", plan, denoise=denoise, noise=noise, transform_x=transform_x, callback=callback
    )
    denoise = _fitting.fitting("sample", denoise, plan)
    prediction = predictions.kind_of("sample", denoise, prediction)
    state, backend, held = opened("sample", plan, z, shape, like, seed, source, constraint)
    if hasattr(denoise, "carrying") and not hasattr(denoise, "begin"):
        must = "have a method begin(z), the arrays that it carries before the first stage, as it has `carrying`"
        raise _check.error(TypeError, "sample", "denoise", must, denoise)
    if hasattr(denoise, "carrying") and not state.carried:
        state = State(*state[:6], cast(Any, denoise).begin(state.z), state.mark)
    owned = z is None
    seen = None if callback is None else marking(backend, plan, callback)
    run = Run(denoise, plan, plan.coefficients(prediction), transform_x, source, seen, compile, held, owned)
    if not progress:
        unsaid = shape is not None and like is None and not _array.traced()
        with _explained.noting(NO_LIKE, _explained.of_libraries) if unsaid else contextlib.nullcontext():
            return backend.run(run, state).z
    with _bar(len(plan), state) as bar:

        def advance_bar(reached: State) -> None:
            bar.update(1)
            if seen is not None:
                seen(reached)

        return backend.run(replace(run, callback=advance_bar), state).z


def opened(
    function: str,
    plan: Plan,
    z: Array | State | None,
    shape: Sequence[int] | None,
    like: Array | None,
    seed: Any,
    source: Source | None,
    constraint: Constraint | None,
) -> tuple[State, Any, Held | None]:
    """Return the state that a run goes on from, new or given, the backend that serves it, and what a constraint holds."""
    if isinstance(z, State):
        _fitting.refuse_unread(function, z, like, seed, source)
        _fitting.check_resumed(plan, z, source, constraint is not None)
        state, backend = z, backend_of(z.z)
    else:
        state, backend = started(plan, z, shape, like, seed, source)
    held = None if constraint is None else stage.hold(function, constraint, plan, state.z)
    # A state that was started without it; else this changes nothing.
    if held is not None and _array.known_int(state.index) == 0:
        state = begin(backend, held, state, source)
    return state, backend, held


def marking(backend: Any, plan: Plan, callback: Callable[[State], object]) -> Callable[[State], object]:
    """Return a callback that sees states with the mark of the stages that they went through."""

    def see(state: State) -> object:
        at = _array.known_int(state.index)
        seen = State(*state[:6], state.carried, backend.index(-1 if at is None else plan.marks[at]))
        return _unwritten.watched(callback, seen)

    return see


def begin(backend: Any, held: Any, state: State, source: Source | None) -> State:
    """Return the state that a run starts from, as a constraint wants it: with the draw before the first stage's."""
    before = state._replace(draw=state.draw - 1)
    z = held.begin(before, stage.known_noise(backend, before, source))
    return state._replace(z=stage.check_held("start", "begin", z, state.z))


def _seed_words(seed: Any, batch: int) -> Array:
    return noise.keys(0 if seed is None else seed, batch)


def _bar(total: int, state: State) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("sample: `progress` needs tqdm; install diffcore[progress]") from error
    return tqdm(total=total, initial=int(state.index), unit="stage")


_explained.face(__name__)
