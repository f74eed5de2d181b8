r"""Steps as long as a tolerance allows: an embedded pair of single-step plans, and a controller of their length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check, _explained, _layout, levels, predictions, samplers, stage
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore._fitting import check_given, memoryless, seen
from diffcore._unwritten import called
from diffcore.plan import Plan
from diffcore.sampling import started, step
from diffcore.schedules import Schedule
from diffcore.schedules._base import checked
from diffcore.stage import Draw
from diffcore.state import State

Float64 = npt.NDArray[np.float64]

DONE = 2e-5
"""The distance in log-SNR at which a sample counts as arrived."""


class Adapted(NamedTuple):
    """What `sample_adaptive` returns.

    Fields:
        z: the samples, (B, ...).
        calls: how often the denoiser was called, with the full batch.
        accepted: (B,) ints, how many steps each sample took.
        rejected: (B,) ints, how many it tried in vain.
    """

    z: Array
    calls: int
    accepted: npt.NDArray[np.int64]
    rejected: npt.NDArray[np.int64]


@dataclass
class _Controller:
    """The length of the next step of each sample, by the errors of the last three."""

    step: Float64
    powers: tuple[float, float, float]
    safety: float
    errors: Float64 | None = field(default=None)
    """(3, B), inverse errors: that of this trial, and of the last two steps that were accepted."""

    def accepts(self, error: Float64) -> npt.NDArray[np.bool_]:
        """Set the length of the next trial, and return whether this one is accepted."""
        inverse = 1.0 / (error + 1e-8)
        if self.errors is None:
            self.errors = np.stack([inverse] * 3)
        self.errors[0] = inverse
        factor = 1.0 + np.arctan(np.prod(self.errors ** np.array(self.powers)[:, None], axis=0) - 1.0)
        accepted = factor >= self.safety
        self.errors[1:] = np.where(accepted, self.errors[:2], self.errors[1:])
        self.step = self.step * factor
        return np.asarray(accepted)


def sample_adaptive(
    denoise: Callable[[Array, Array], Array],
    schedule: Schedule,
    z: Array | None = None,
    *,
    prediction: predictions.Prediction | None = None,
    shape: Sequence[int] | None = None,
    like: Array | None = None,
    seed: Any = None,
    noise: Draw | None = None,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    ends: tuple[float, float] | None = None,
    clean: bool = True,
    first_step: float = 0.1,
    gains: tuple[float, float, float] = (0.0, 1.0, 0.0),
    safety: float = 0.81,
    eta: float = 0.0,
    noise_scale: float = 1.0,
    transform_x: Callable[[Array], Array] | None = None,
    limit: int = 1000,
) -> Adapted:
    r"""Return samples drawn with steps of adaptive length, DPM-Solver-12 or -23 with a PID controller.

    A trial from level t makes two results from the same calls, of order p - 1 and p, whose difference is the error,

        error = rms((high - low) / max(atol, rtol max(|low|, |low of the step before|))) of each sample, all of them over alpha
        factor = 1 + atan(e_0^{b_0} e_1^{b_1} e_2^{b_2} - 1),    e_i = 1 / error of this trial and the two steps accepted last
        b = (P + I + D, -(P + 2 D), D) / p

    and high is accepted where factor >= safety; the next trial is factor times as long. With noise, the step goes to a level below
    s and noise is added up to s, as in `samplers.euler_ancestral`, and p is 1.5 in b.

    Every sample has steps of its own, so that it does not depend on its batch; the batch is called until all have arrived. The
    error is read on the host after every trial, so that a run cannot be traced.

    Args:
        denoise, z, prediction, shape, like, seed, noise, transform_x: as for `diffcore.sample`. Trial k uses draw k + 1 if it is
            accepted, else none does.
        schedule: gives the levels and the scaling.
        order: p, 2 (DPM-Solver-12) or 3 (-23): how many calls a trial makes.
        rtol, atol: the tolerances, numbers > 0 and >= 0, relative to and in units of z / alpha.
        ends: the log-SNRs from and to which to go, finite; those of the schedule at times 1 and 0 without it. To go towards
            noise is possible where eta is 0 and `clean` False.
        clean: whether to call the denoiser once more at the end and return x-hat.
        first_step: the length of the first trial in log-SNR, a number > 0.
        gains: the controller's (P, I, D).
        safety: the least factor that is accepted, in (0, 1).
        eta: in [0, 1], how much noise; 0 is the ODE.
        noise_scale: a factor > 0 of the noise.
        limit: how many trials to make at most.

    Returns:
        `Adapted`: the samples, the number of calls, and the steps of each sample.

    Raises:
        TypeError: it is traced, as by `jax.jit`.
        ValueError: a setting out of range; ends that are not finite; a denoiser that returns NaN; `limit` reached; as for
            `sample`.

    Source: Lu et al. 2022 (arXiv 2206.00927), app. C; Crowson 2022 (k-diffusion, sample_dpm_adaptive), whose steps a batch of
    one has.

    >>> import diffcore as dc
    >>> data = dc.exact.Gaussian(np.zeros(2), 0.25)
    >>> found = dc.sample_adaptive(data, dc.schedules.Karras(), shape=(3, 2), seed=7)
    >>> found.z.shape, found.calls < 60
    ((3, 2), True)
    """
    function = "sample_adaptive"
    checked(function, "schedule", schedule)
    _check.choice(function, "order", order, (2, 3))
    for name, value in {"rtol": rtol, "first_step": first_step, "noise_scale": noise_scale}.items():
        _check.number(function, name, value, 0.0, open_low=True)
    _check.number(function, "atol", atol, 0.0)
    _check.number(function, "safety", safety, 0.0, 1.0, open_low=True, open_high=True)
    _check.number(function, "eta", eta, 0.0, 1.0, hint="0 is deterministic")
    _check.integer(function, "limit", limit, 1)
    start, end = (float(schedule.log_snr(t)) for t in (1.0, 0.0)) if ends is None else ends
    if not (math.isfinite(start) and math.isfinite(end) and start != end):
        hint = "give log-SNRs, such as ends=(-8.0, 12.0)"
        raise _check.error(ValueError, function, "ends", "be two finite log-SNRs", (start, end), hint)
    sign = math.copysign(1.0, end - start)
    if sign < 0.0 and (eta or clean):
        raise _check.error(ValueError, function, "ends", "rise, unless eta is 0 and clean False", (start, end))
    whole = samplers.ddim(schedule, grid=[start, end])
    source = check_given(function, whole, denoise=denoise, noise=noise, transform_x=transform_x)
    denoise = memoryless(function, denoise, whole)
    prediction = predictions.kind_of(function, denoise, prediction)
    state, backend = started(whole, z, shape, like, seed, source)
    z = state.z
    xp, batch = _array.library(z), int(z.shape[0])
    along = lambda values: _array.along(function, "schedule", _array.table_for(values, z), z, xp)  # noqa: E731
    alpha = lambda log_snr: levels.level(log_snr, schedule.scaling).alpha  # noqa: E731
    p, i, d = (gain / (1.5 if eta else order) for gain in gains)
    control = _Controller(np.full(batch, sign * first_step), (p + i + d, -(p + 2.0 * d), d), safety)
    at, accepted, rejected = np.full(batch, start), np.zeros(batch, np.int64), np.zeros(batch, np.int64)
    calls, last = 0, z / float(alpha(start))
    with _array.recording(z, False):
        for trial in range(limit + 1):
            going = sign * (end - at) > DONE
            if not np.any(going):
                break
            if trial == limit:
                hint = "a larger `rtol` or `atol` takes fewer steps"
                raise _check.error(ValueError, function, "limit", "be enough trials to arrive", limit, hint)
            to = np.where(going, sign * np.minimum(sign * (at + control.step), sign * end), at + sign * first_step)
            below, noisy = _below(at, to, np.where(going, end, math.inf), eta)
            plans = _pair(schedule, np.stack([at, below]), order)
            low, high = _follow(denoise, plans, z, prediction, transform_x)
            calls += order
            scale = along(1.0 / alpha(below))
            low, high = low * scale, high * scale
            size = xp.maximum(xp.abs(low), xp.abs(last)) * rtol
            share = _array.flat((high - low) / xp.maximum(size, xp.full_like(size, atol)))
            error = np.sqrt(seen(function, xp.mean(share * share, axis=1)))
            if not np.all(np.isfinite(error[going])):
                raise _check.error(
                    ValueError, function, "denoise", "return finite numbers", "an error that is not finite"
                )
            taken = control.accepts(np.where(going, error, 1.0)) & going
            accepted, rejected = accepted + taken, rejected + (going & ~taken)
            if not np.any(taken):
                continue
            here = xp.asarray(taken.reshape((batch,) + (1,) * (z.ndim - 1)), device=_array.device(z))
            here = _layout.beside(here, z)
            if np.any(noisy > 0.0):
                now = state._replace(z=z, draw=backend.index(trial + 1))
                high = high + along(noise_scale * noisy) * stage.drawn(backend, now, source, (at, to))
            z = xp.where(here, xp.astype(high * along(alpha(to)), z.dtype, copy=False), z)
            last = xp.where(here, low, last)
            at = np.where(taken, to, at)
        if clean:
            final = [samplers.ddim(schedule, grid=[end, math.inf])]
            z, calls = _follow(denoise, final, z, prediction, transform_x)[0], calls + 1
    return Adapted(z, calls, accepted, rejected)


def _pair(schedule: Schedule, grid: Float64, order: int) -> list[Plan]:
    """Return the plans of a step of order p - 1 and of order p, whose first calls are the same."""
    high = samplers.dpm_solver(schedule, grid=grid, order=order)
    if order == 2:
        return [samplers.ddim(schedule, grid=grid), high]
    return [samplers.dpm_solver(schedule, grid=grid, order=2, middle=1.0 / 3.0), high]


def _follow(denoise: Any, plans: list[Plan], z: Array, prediction: Any, transform_x: Any) -> list[Array]:
    """Return where plans lead that make the same calls, of which the last plan makes all."""
    blank, backend = _array.library(z).zeros_like(z), backend_of(z)
    states = [State(z, (blank,) * plan.memory, None, backend.index(0), backend.index(1), None) for plan in plans]
    for call in range(len(plans[-1])):
        y = called(denoise, states[-1].z, plans[-1].level_for(states[-1]), function="sample_adaptive")
        for at, plan in enumerate(plans):
            if call < len(plan):
                states[at] = step(plan, states[at], y, prediction=prediction, transform_x=transform_x)
    return [state.z for state in states]


def _below(at: Float64, to: Float64, end: Float64, eta: float) -> tuple[Float64, Float64]:
    """Return the log-SNRs that steps go to, and the noise from there up to their ends, relative to alpha."""
    if not eta:
        return to, np.zeros_like(to)
    below = np.minimum(end, to - np.log((1.0 - eta**2) + eta**2 * np.exp(at - to)))
    return below, np.exp(-0.5 * to) * np.sqrt(-np.expm1(to - below))


_explained.face(__name__)
