r"""What a sampler draws, by algebra: with a Gaussian's denoiser a whole run is an affine map of its noises.

In each eigen-direction x-hat = m + g (z - alpha m), so a stage maps the vector (z, saved, x-hat_{-1}, x-hat_{-2}, ...)
by a small matrix, adds a constant, and adds noise to z. Mean and covariance of that vector follow stage by stage; no
sample is drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import levels
from diffcore.exact._spectrum import Float64
from diffcore.exact.gaussian import Gaussian
from diffcore.levels import Gaussian as Moments
from diffcore.plan import NOISE, SAVED, Plan, X, Z


def moments(plan: Plan, exact: Gaussian, start: Moments | None = None) -> tuple[Float64, Float64]:
    r"""Return the mean and the covariance of what a plan draws with the denoiser of Gaussian data, exactly.

    Args:
        plan: any plan; its scaling is used.
        exact: the data, whose scaling is None or the plan's.
        start: mean and variance (numbers or (*event,) arrays; a variance that differs between elements needs a diagonal
            covariance) of the state at the start; None is the start of `diffcore.sample`, N(0, sigma^2) at the plan's
            first level.

    Returns:
        (mean, covariance) in float64: the mean of the event's shape; the covariance of the event's shape where `exact`
        has a number or a diagonal, else (D, D). Levels per sample add a first axis to both.

    Raises:
        ValueError: another scaling than the plan's; levels per frame with a covariance that is not diagonal.
        TypeError: `exact` is no `exact.Gaussian`.

    >>> import diffcore as dc
    >>> plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=1000)
    >>> mean, variance = moments(plan, dc.exact.Gaussian(np.array([0.5]), 0.25))
    >>> mean.round(2), variance.round(2)
    (array([0.5]), array([0.25]))
    """
    function = "exact.moments"
    if not isinstance(exact, Gaussian):
        raise TypeError(f"{function}: `exact` is {type(exact).__name__}, but takes exact.Gaussian")
    if exact.scaling not in (None, plan.scaling):
        raise ValueError(
            f"{function}: `exact` is for scaling {exact.scaling!r}, but `plan` is for {plan.scaling!r}; "
            f"use exact.with_scaling({plan.scaling!r})"
        )
    if not plan.lead:
        return _one(plan.log_snr, plan.update, plan.scaling, exact, start)
    if len(plan.lead) == 1:
        each = [_one(plan.log_snr[:, b], plan.update[:, b], plan.scaling, exact, start) for b in range(plan.lead[0])]
        return np.stack([mean for mean, _ in each]), np.stack([covariance for _, covariance in each])
    return _per_frame(plan, exact, start)


def _per_frame(plan: Plan, exact: Gaussian, start: Moments | None) -> tuple[Float64, Float64]:
    if exact.spectrum.basis is not None:
        raise ValueError("exact.moments: levels per frame need a number or a diagonal as covariance")
    if plan.lead[1] not in (1, exact.event[0]):
        raise ValueError(
            f"exact.moments: `plan` has levels for {plan.lead[1]} frames, but an event has {exact.event[0]}"
        )
    values = np.asarray(exact.spectrum.values)
    means, variances = np.empty((plan.lead[0], *exact.event)), np.empty((plan.lead[0], *exact.event))
    for b in range(plan.lead[0]):
        for frame in range(exact.event[0]):
            at = frame if plan.lead[1] > 1 else 0
            one = Gaussian(np.atleast_1d(exact.mean[frame]), np.atleast_1d(values[frame]))
            part = None if start is None else Moments(*(_frame(p, exact.event, frame) for p in start))
            mean, variance = _one(plan.log_snr[:, b, at], plan.update[:, b, at], plan.scaling, one, part)
            means[b, frame], variances[b, frame] = mean.reshape(exact.event[1:]), variance.reshape(exact.event[1:])
    return means, variances


def _frame(part: Any, event: tuple[int, ...], frame: int) -> Float64:
    return np.atleast_1d(np.broadcast_to(np.asarray(part, dtype=np.float64), event)[frame])


def _one(
    log_snr: Float64, update: Float64, scaling: str, exact: Gaussian, start: Moments | None
) -> tuple[Float64, Float64]:
    """Follow the directions of one run, then turn them back into the event's elements."""
    spectrum, event = exact.spectrum, exact.event
    values = np.asarray(spectrum.values, dtype=np.float64)
    basis = None if spectrum.basis is None else np.asarray(spectrum.basis, dtype=np.float64)
    level = levels.level(log_snr, scaling)
    start = Moments(0.0, float(level.sigma[0]) ** 2) if start is None else start
    first_mean, first_variance = (np.broadcast_to(np.asarray(p, dtype=np.float64), event).ravel() for p in start)
    if basis is None:
        mean, variance = follow(level, update, values.ravel(), exact.mean.ravel(), first_mean, first_variance)
        return mean.reshape(event), variance.reshape(event)
    if np.any(first_variance != first_variance[0]):
        raise ValueError("exact.moments: a start whose variance differs between elements needs a diagonal covariance")
    if spectrum.rest is not None:
        exact._check_dense("moments")
        full, _ = np.linalg.qr(basis, mode="complete")  # the directions outside the basis, all of variance `rest`
        values = np.concatenate([values, np.full(spectrum.size - values.size, spectrum.rest)])
        basis = np.concatenate([basis, full[:, basis.shape[1] :]], axis=1)
    spread = np.full(values.size, first_variance[0])
    mean, variance = follow(level, update, values, basis.T @ exact.mean.ravel(), basis.T @ first_mean, spread)
    return (basis @ mean).reshape(event), (basis * variance) @ basis.T


def follow(
    level: levels.Level, update: Float64, values: Float64, data_mean: Float64, mean0: Float64, variance0: Float64
) -> tuple[Float64, Float64]:
    """Return mean and variance of z after all stages, for directions (R,) of variance `values` and mean `data_mean`."""
    back = update.shape[-1] - X - 1
    size = 2 + back  # z, saved, past estimates
    mean = np.zeros((values.size, size))
    covariance = np.zeros((values.size, size, size))
    mean[:, 0], covariance[:, 0, 0] = mean0, variance0
    for stage in range(update.shape[0]):
        alpha, sigma = float(level.alpha[stage]), float(level.sigma[stage])
        total = alpha**2 * values + sigma**2
        gain = np.where(values > 0.0, alpha * values / np.where(total > 0.0, total, 1.0), 0.0)
        # rows: z, saved, noise, x-hat, past estimates, as affine functions of the vector
        reads = np.zeros((values.size, update.shape[-1], size))
        reads[:, Z, 0] = reads[:, SAVED, 1] = 1.0
        reads[:, X, 0] = gain
        for k in range(back):
            reads[:, X + 1 + k, 2 + k] = 1.0
        constant = data_mean * (1.0 - gain * alpha)
        matrix = np.concatenate([update[stage] @ reads, reads[:, X : X + back]], axis=1)
        offset = np.concatenate([update[stage][:, X], np.eye(back)[0] if back else np.zeros(0)])
        mean = np.einsum("rij,rj->ri", matrix, mean) + constant[:, None] * offset
        covariance = matrix @ covariance @ np.swapaxes(matrix, 1, 2)
        covariance[:, 0, 0] += update[stage, 0, NOISE] ** 2
    return mean[:, 0], covariance[:, 0, 0]
