r"""Any plan in parallel over its stages: Picard's iteration, one call of the denoiser for a window of stages at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffcore import _array, _check, _explained, levels, predictions, stage
from diffcore._array import Array
from diffcore._fitting import check_given, memoryless, seen
from diffcore.denoiser import Constraint
from diffcore.plan import Plan
from diffcore.sampling import marking, opened
from diffcore.stage import Draw
from diffcore.state import State


def sample_parallel(
    denoise: Callable[[Array, Array], Array],
    plan: Plan,
    z: Array | State | None = None,
    *,
    prediction: predictions.Prediction | None = None,
    window: int | None = None,
    tolerance: float = 1e-3,
    shape: Sequence[int] | None = None,
    like: Array | None = None,
    seed: Any = None,
    noise: Draw | None = None,
    transform_x: Callable[[Array], Array] | None = None,
    constraint: Constraint | None = None,
    callback: Callable[[State], object] | None = None,
) -> Array:
    r"""Return what `diffcore.sample` draws, with stages computed at once: fewer calls of the denoiser, of larger batches.

        x-hat_k <- denoise(z_k) for all stages k of a window, in one call
        z_{k+1} = update_k(z_k, ..., eps_k, x-hat_k) in order, which costs no call: a plan is linear in x-hat

    A sweep makes at least one more stage final, and every further one whose state moved by at most the tolerance,

        rms(z_k - z_k of the last sweep) <= tolerance sqrt(alpha_k^2 + sigma_k^2)    for every sample,

    and the window slides on by as many. Stages that are new to it begin with the last x-hat. So a run takes at most as many sweeps
    as the plan has stages, and mostly far fewer, for plans of any memory, and with noise, which is a function of its number. The
    tolerance is checked on the host after every sweep, so that a run cannot be traced.

    Args:
        denoise: as for `diffcore.sample`; called with the states of w stages, one after another, as one batch (w B, ...), and
            their levels (w B,). A condition with a row for each sample must follow: repeat it, or draw one sample at a time.
        plan, z, prediction, shape, like, seed, noise, transform_x, constraint: as for `diffcore.sample`.
        window: how many stages to compute at once, at least 1; all of them without it.
        tolerance: a number >= 0. With 0 the result is that of `sample` to rounding, in up to as many sweeps as there are stages.
        callback: called after every sweep with the `State` after the last final stage.

    Returns:
        As `diffcore.sample`.

    Raises:
        ValueError, TypeError: as `diffcore.sample`; a window or tolerance out of range; a call that is traced, as by `jax.jit`.

    Source: Shih et al. 2023 (arXiv 2305.16317), alg. 1, with x-hat instead of the drift held fixed.

    >>> import diffcore as dc
    >>> data = dc.exact.Mixture([0.5, 0.5], [[-1.0, 1.0], [1.0, -0.5]], 0.05)
    >>> plan, sweeps = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), 50, eta=1.0), []
    >>> found = sample_parallel(data, plan, shape=(4, 2), seed=7, callback=sweeps.append)
    >>> bool(abs(found - dc.sample(data, plan, shape=(4, 2), seed=7)).max() < 0.01), len(sweeps) < 25
    (True, True)
    """
    function = "sample_parallel"
    window = len(plan) if window is None else _check.integer(function, "window", window, 1)
    _check.number(function, "tolerance", tolerance, 0.0)
    source = check_given(function, plan, denoise=denoise, noise=noise, transform_x=transform_x, callback=callback)
    denoise = memoryless(function, denoise, plan)
    prediction = predictions.kind_of(function, denoise, prediction)
    state, backend, held = opened(function, plan, z, shape, like, seed, source, constraint)
    callback = None if callback is None else marking(backend, plan, callback)
    form, xp, batch = plan.form, _array.library(state.z), int(state.z.shape[0])
    tables = [plan.levels_of(batch), *([plan.next_levels_of(batch)] if plan.ahead else [])]
    own, fixed = (stage.rows_of(plan.coefficients(kind), state.z) for kind in (prediction, "x"))
    level = levels.level(plan.log_snr, plan.scaling)
    size = np.sqrt(np.asarray(level.alpha**2 + level.sigma**2).reshape(len(plan), -1).max(axis=1))

    def advance(state: State, at: int, given: list[Any], row: Any) -> State:
        y, other = given
        settings: dict[str, Any] = {"stochastic": plan.noisy[at], "transform_x": transform_x, "other": other}
        after = backend.advance(form, state, y, row, source, between=stage.levels_between(plan, at), **settings)
        return stage.constrained(backend, held, state, after, source)

    def sweep(first: int, guess: list[State]) -> tuple[list[State], list[Any]]:
        """Return the states before and after each stage of the window, and what the last stage's estimates were."""
        here = slice(first, first + len(guess))
        known = [_array.table_for(table[here].reshape(-1, *table.shape[2:]), state.z) for table in tables]
        y, other = stage.ask(form, denoise, xp.concat([each.z for each in guess], axis=0), tuple(known))
        after, estimates = [guess[0]], [None, None]
        for k, each in enumerate(guess):
            part = slice(k * batch, (k + 1) * batch)
            given = [None if array is None else array[part, ...] for array in (y, other)]
            estimates = [_estimate(each.z, array, own[first + k]) for array in given]
            if k == 0:  # its state is final
                after.append(advance(guess[0], first, given, own[first]))
            else:
                after.append(advance(after[k], first + k, estimates, fixed[first + k]))
        return after, estimates

    with _array.recording(state.z, False):
        known = _array.known_int(state.index)
        first = int(seen(function, None)) if known is None else known
        guess, last = [state], [None, None]
        while first < len(plan):
            after, last = sweep(first, guess)
            moved = [_moved(xp, a.z, b.z) for a, b in zip(after[1:], guess[1:], strict=False)]
            errors = np.zeros((0, batch))
            if moved:
                errors = seen(function, xp.stack(moved))
            right = errors.max(axis=1, initial=0.0) <= tolerance * size[first + 1 : first + 1 + len(errors)]
            final = 1 + (len(right) if np.all(right) else int(np.argmin(right)))
            first, guess = first + final, after[final:]
            if callback is not None:
                callback(guess[0])
            while len(guess) < min(window, len(plan) - first):
                at = first + len(guess) - 1
                guess.append(advance(guess[-1], at, last, fixed[at]))
            guess = guess if first == len(plan) else guess[: min(window, len(plan) - first)]
        return guess[0].z


def _estimate(z: Array, y: Array | None, row: Any) -> Array | None:
    """Return x-hat of a prediction, in the dtype of z."""
    return None if y is None else _array.library(z).astype(stage.estimate(z, y, row), z.dtype, copy=False)


def _moved(xp: Any, one: Array, other: Array) -> Array:
    """Return the root mean square of a difference, of each sample, in the dtype it is computed in."""
    difference = _array.flat(_array.widen(xp, one) - _array.widen(xp, other))
    return xp.sqrt(xp.mean(difference * difference, axis=1))


_explained.face(__name__)
