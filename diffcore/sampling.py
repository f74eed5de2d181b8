r"""The one loop: start a state, take a step, or sample a whole run, from any `Plan` and any denoiser.

A state goes in and a state comes out; nothing else is kept anywhere. So two runs can be interleaved, a run can be
stopped, saved and resumed, and sample i of a batch does not know of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffcore import _array, noise, predictions
from diffcore._array import Array
from diffcore._stage import NOISE_COLUMN, State, advance, check_given, combine, estimate, update
from diffcore.plan import Plan

if TYPE_CHECKING:
    from diffcore.backends.contract import Draw
    from diffcore.conditioning import Replacement as Constraint

__all__ = ["NOISE_COLUMN", "State", "advance", "combine", "estimate", "sample", "start", "step", "update"]


def start(
    plan: Plan,
    z: Array | None = None,
    *,
    shape: Sequence[int] | None = None,
    like: Array | None = None,
    seed: Any = 0,
    noise: Draw | None = None,
    constraint: Constraint | None = None,
) -> State:
    r"""Return the state at the start of a run: from the given noisy data, or from pure noise z = sigma eps.

    Args:
        plan: the plan of the run.
        z: noisy data (B, ...) at the plan's first level; or give `shape`.
        shape: (B, ...) of a start from noise, draw 0 of the seeds.
        like: an array that gives the library, dtype and device of a start from noise; NumPy float32 without one.
        seed: one int in [0, 2^64), of which sample i gets its own key; or one int or key per sample: see `noise.keys`.
        noise: a source of noise (draw, shape) -> array of one's own instead of the seeds.
        constraint: what is known of x, from `conditioning.replacement`: the start is at its noised value there.

    Raises:
        ValueError: neither or both of z and shape; a bad seed; levels that do not align with the shape.
        TypeError: `z` is no floating array.

    >>> import diffcore as dc
    >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=4)
    >>> dc.start(plan, shape=(2, 3), seed=7).z.shape
    (2, 3)
    """
    from diffcore import _known, backends

    check_given("start", plan, noise=noise)
    if (z is None) == (shape is None):
        raise ValueError("start: takes either `z`, noisy data (B, ...), or `shape`, to start from pure noise")
    if z is None:
        assert shape is not None
        like = np.zeros((), dtype=np.float32) if like is None else like
        xp = _array.namespace("start", like=like)
        if _array.library(like) is None:
            raise TypeError(f"start: `like` is {like!r}, but takes an array, such as numpy.zeros(1) or torch.zeros(1)")
        _array.check_floating("start", like=like)
        dims = _check_shape(shape)
        backend = backends.of(like)
        words = None if noise is not None else backend.seeds(_seed_words(seed, dims[0]), like)
        if noise is not None:
            eps = drawn_from(noise, 0, dims, like)
        else:
            eps = backend.normal(words, 0, dims, dtype=like.dtype, device=_array.device(like))
        wide = _array.widen(xp, eps)
        sigma = _lead_coefficient(plan.start.sigma, wide)
        z = xp.astype(_array.along("start", "plan", sigma, wide, xp) * wide, like.dtype, copy=False)
    else:
        xp = _array.namespace("start", z=z)
        _array.check_floating("start", z=z)
        _check_shape(z.shape)
        backend = backends.of(z)
        words = None if noise is not None else backend.seeds(_seed_words(seed, z.shape[0]), z)
    _array.check_lead("start", "plan", plan.lead, tuple(z.shape))
    saved = xp.zeros_like(z) if plan.saves else None
    estimates = tuple(xp.zeros_like(z) for _ in range(plan.history))  # arrays of their own: aliases are another graph
    state = State(z, saved, estimates, backend.index(0), words)
    if constraint is None:
        return state
    return _known.begin(backend, _known.hold("start", constraint, plan, z), state, noise)


def step(
    plan: Plan,
    state: State,
    y: Array,
    *,
    prediction: predictions.Prediction,
    transform_x: Callable[[Array], Array] | None = None,
    noise: Draw | None = None,
    constraint: Constraint | None = None,
) -> State:
    r"""Return the state after one stage of a plan, given what the denoiser said at `plan.log_snr[state.index]`.

        z' = A_z z + A_saved saved + A_noise eps + B_0 x-hat + B_1 x-hat_{-1} + ...

    Args:
        plan: the plan of the run.
        state: from `start` or the step before.
        y: the prediction for state.z, of its shape and library.
        prediction: what `y` is: "x", "eps", "v", "score", "flow", "edm" or a row function.
        transform_x: applied to x-hat before everything else is computed from it, such as `guidance.clip(-1.0, 1.0)`.
        noise: a source of noise (draw, shape) -> array instead of the state's seeds; stage k draws number k + 1.
        constraint: what is known of x, from `conditioning.replacement`; the same in `start`.

    Returns:
        A new `State`; the old one stays as it is.

    Raises:
        ValueError: the run is over; the prediction has another shape; x does not follow from this kind of prediction at
            a level of the plan (eps at alpha = 0).

    >>> import diffcore as dc, numpy as np
    >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=4)
    >>> state = dc.start(plan, np.ones((1, 2)), seed=7)
    >>> for log_snr in plan.log_snr:
    ...     state = dc.step(plan, state, np.full((1, 2), 0.5), prediction="x")
    >>> state.z
    array([[0.5, 0.5]])
    """
    from diffcore import _known, backends

    if not isinstance(state, State):
        raise TypeError(f"step: `state` is {type(state).__name__}, but takes a diffcore.State, from diffcore.start")
    check_given("step", plan, noise=noise, transform_x=transform_x)
    backend = backends.of(state.z)
    check_prediction(y, state.z)
    table = plan.coefficients(prediction)
    row: Any
    if backend.traces(state.index):
        xp, where = _array.library(state.z), _array.device(state.z)
        index = xp.reshape(xp.asarray(state.index, device=where), (1,))
        row = xp.take(table_for(table, state.z), index, axis=0)[0, ...]  # stays on the device: no branch on the number
        stochastic = plan.stochastic
    else:
        stage = int(state.index)
        if stage >= len(plan):
            raise ValueError(f"step: the run is over, all {len(plan)} stages of {plan.sampler} are done; see `start`")
        row, stochastic = row_for(table[stage], state.z)
    after = backend.advance(state, y, row, noise, stochastic=stochastic, transform_x=transform_x)
    if constraint is None:
        return after
    return _known.after(backend, _known.hold("step", constraint, plan, state.z), state, after, noise)


def sample(
    denoise: Callable[[Array, Array], Array],
    plan: Plan,
    z: Array | State | None = None,
    *,
    prediction: predictions.Prediction | None = None,
    shape: Sequence[int] | None = None,
    like: Array | None = None,
    seed: Any = 0,
    noise: Draw | None = None,
    transform_x: Callable[[Array], Array] | None = None,
    constraint: Constraint | None = None,
    progress: bool = False,
    callback: Callable[[State], object] | None = None,
    compile: bool | None = None,
) -> Array:
    r"""Return what a plan draws with a denoiser: the end of the run, x-hat itself where the plan ends on clean data.

    Args:
        denoise: any callable (z, log_snr) -> prediction, z of shape (B, ...), log_snr of shape (B,), or of the leading
            shape of the plan's levels. It reads z, which is the state itself, and never writes into it.
        plan: from `diffcore.samplers`.
        z: noisy data (B, ...) at the plan's first level, or a `State` to resume; or give `shape`.
        prediction: what the denoiser returns: "x", "eps", "v", "score", "flow", "edm" or a row function. May be left
            out where the denoiser has an attribute `prediction` that says so.
        shape, like, seed, noise: see `start`. Equal seeds give equal noise on every backend, device and batch.
        transform_x: applied to x-hat before everything else is computed from it; see `guidance.clip`.
        constraint: what is known of x, from `conditioning.replacement(observed, mask)`: it comes back exactly, and the
            denoiser sees it noised at the level of each stage.
        progress: show a bar (needs tqdm: diffcore[progress]).
        callback: called with the `State` after every stage.
        compile: have the library's compiler fuse each stage. On torch None means the kernels of diffcore where they serve,
            Triton on CUDA and C on a CPU, and True torch.compile. On JAX a whole run is always one trace; True keeps the
            compiled run for the next call with the same denoiser, which must then be pure, as for jax.jit; the arrays
            of a denoiser that is a pytree, such as a flax module, are arguments and may have changed.

    Returns:
        An array of the shape, dtype, device and library of the start. On torch no gradients are recorded unless the
        start asks for them.

    Raises:
        ValueError: see `start` and `step`; a denoiser for another scaling than the plan's, or whose own `prediction`
            is another; a prediction of another shape.
        TypeError: `prediction` is missing and the denoiser does not say; mixed libraries.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 2.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros(2), 1.0)
    >>> plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=8)
    >>> dc.sample(data, plan, shape=(3, 2), seed=[7, 8, 9]).shape
    (3, 2)
    """
    from diffcore import _known, backends
    from diffcore.backends.contract import Run

    check_given("sample", plan, denoise=denoise, noise=noise, transform_x=transform_x, callback=callback)
    denoise = _for_scaling(denoise, plan)
    prediction = predictions.said("sample", denoise, prediction)
    state = z if isinstance(z, State) else start(plan, z, shape=shape, like=like, seed=seed, noise=noise)
    held = None if constraint is None else _known.hold("sample", constraint, plan, state.z)
    _check_resumed(plan, state, noise, held is not None)
    table = plan.coefficients(prediction)
    backend = backends.of(state.z)
    if held is not None and int(state.index) == 0:  # a state that was started without it; else this changes nothing
        state = _known.begin(backend, held, state, noise)
    run = Run(denoise, plan, table, transform_x, noise, callback, compile, held, owned=z is None)
    if not progress:
        return backend.run(run, state).z
    with _bar(len(plan), state) as bar:

        def advance_bar(reached: State) -> None:
            bar.update(1)
            if callback is not None:
                callback(reached)

        return backend.run(replace(run, callback=advance_bar), state).z


def draw_noise(backend: Any, state: State, source: Array | Draw | None) -> Array:
    """Return the fresh noise of a stage: from the caller's source, or from the seeds of the state; draw index + 1."""
    shape = tuple(state.z.shape)
    if source is None:
        if state.seeds is None:
            raise ValueError("step: the state has no seeds, so give `noise`, or start with `seed`")
        dtype, device = state.z.dtype, _array.device(state.z)
        return backend.normal(state.seeds, state.index + 1, shape, dtype=dtype, device=device)
    if not callable(source):
        return source
    return drawn_from(source, state.index + 1, shape, state.z)


def drawn_from(source: Draw, draw: Any, shape: tuple[int, ...], like: Array) -> Array:
    """Return a draw of a caller's source of noise, checked."""
    eps = source(draw, shape)
    _check_noise(eps, shape, like)
    return eps


def table_for(table: npt.NDArray[np.float64], like: Array) -> Array:
    """Return host coefficients as an array of the data's library and device, in the dtype they are computed in."""
    xp = _array.library(like)
    dtype = xp.float32 if _array.is_half(like.dtype) else like.dtype
    return xp.asarray(table, dtype=dtype, device=_array.device(like))


def row_for(row: npt.NDArray[np.float64], like: Array) -> tuple[Any, bool]:
    """Return a stage's coefficients as `Backend.advance` takes them, and whether it adds noise."""
    if row.ndim > 1:
        return table_for(row, like), bool(np.any(row[..., NOISE_COLUMN]))
    numbers = row.tolist()
    return numbers, numbers[NOISE_COLUMN] != 0.0


def levels_for(plan: Plan, like: Array) -> Array:
    """Return the log-SNRs of all stages as the denoiser gets them: (stages, B), or (stages, *lead)."""
    return table_for(host_levels(plan, like.shape[0]), like)


def host_levels(plan: Plan, batch: int) -> npt.NDArray[np.float64]:
    """Return the same on the host."""
    levels = plan.log_snr
    if not plan.lead or plan.lead[0] == 1:
        levels = np.broadcast_to(levels.reshape(len(plan), *(plan.lead or (1,))), (len(plan), batch, *plan.lead[1:]))
    return np.array(levels)  # a copy: torch warns of read-only arrays


def check_prediction(y: Array, z: Array) -> None:
    """Raise where a prediction does not fit the state that it is for."""
    if type(y) is type(z) and y.dtype == z.dtype and y.shape == z.shape and _array.is_floating(z):
        return
    if not hasattr(y, "dtype"):
        raise TypeError(f"step: the denoiser returned {type(y).__name__}, but must return an array of the shape of z")
    _array.namespace("step", z=z, y=y)
    _array.check_floating("step", y=y)
    if tuple(y.shape) != tuple(z.shape):
        raise ValueError(
            f"step: the denoiser returned shape {tuple(y.shape)} for z of shape {tuple(z.shape)}; they must be equal"
        )


def _lead_coefficient(value: Any, like: Array) -> Any:
    return float(value) if np.ndim(value) == 0 else table_for(np.asarray(value), like)


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    dims = tuple(shape) if hasattr(shape, "__iter__") else ()
    if not dims or any(isinstance(n, bool) or not hasattr(n, "__index__") or int(n) < 0 for n in dims):
        raise ValueError(f"start: the shape is {dims or shape}, but takes (B, ...), at least one axis, of sizes >= 0")
    return tuple(int(n) for n in dims)


def _check_noise(eps: Array, shape: tuple[int, ...], like: Array) -> None:
    _array.namespace("noise", like=like, noise=eps)
    if tuple(eps.shape) != shape:
        raise ValueError(f"sample: `noise` returned shape {tuple(eps.shape)}, but was asked for {shape}")


def _check_resumed(plan: Plan, state: State, source: object, held: bool) -> None:
    _array.check_floating("sample", state=state.z)
    if (state.saved is not None) != plan.saves or len(state.estimates) != plan.history:
        raise ValueError(
            f"sample: the state to resume does not belong to {plan.sampler}; start one with `start(plan, ...)`"
        )
    if state.seeds is None and source is None and (plan.stochastic or held):
        raise ValueError("sample: the state to resume has no seeds, so give `noise`, or start with `seed`")


def _for_scaling(denoise: Any, plan: Plan) -> Any:
    if not hasattr(denoise, "with_scaling"):
        return denoise
    if denoise.scaling is None:
        return denoise.with_scaling(plan.scaling)
    if denoise.scaling != plan.scaling:
        raise ValueError(
            f"sample: `denoise` is for scaling {denoise.scaling!r}, but `plan` is for {plan.scaling!r}; "
            f"use denoise.with_scaling({plan.scaling!r})"
        )
    return denoise


def _seed_words(seed: Any, batch: int) -> Array:
    return noise.keys(seed, batch)


def _bar(total: int, state: State) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("sample: `progress` needs tqdm; install diffcore[progress]") from error
    return tqdm(total=total, initial=int(state.index), unit="stage")
