r"""The exact moments of what a sampler draws: with the denoiser of Gaussian data a run is an affine map of its noises.

In the eigen-direction of an eigenvalue c, x-hat = m + g (z - alpha m) with g = alpha c / (alpha^2 c + sigma^2). So a
stage of a plan maps the vector (z, m_1, ..., m_M) of state and memory by a small matrix, adds a multiple of m, and adds
noise. Every run is then

    z_end = phi m + psi z_start + noise of variance n,

and (phi, psi, n), functions of c alone, follow stage by stage in float64; no random number is drawn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from diffcore import _check, levels
from diffcore.exact._parts import Diagonal, Float64, LowRank, Spectral, dense
from diffcore.exact.gaussian import Gaussian
from diffcore.levels import Level
from diffcore.plan import Plan

DENSE = 4096
"""Elements of an event up to which a result that needs it is written out as a matrix."""


class Moments(NamedTuple):
    """The mean and the covariance of what a plan draws; the covariance in the form that the data's was given in."""

    mean: Any
    covariance: Any


class Response(NamedTuple):
    """z_end = phi m + psi z_start + noise of variance `noise`, for each level and direction, (L, n)."""

    phi: Float64
    psi: Float64
    noise: Float64


def moments(plan: Plan, exact: Gaussian, start: levels.Gaussian | None = None) -> Moments:
    r"""Return the mean and the covariance of what a plan draws with the denoiser of Gaussian data, exactly.

    Args:
        plan: any plan; its scaling is used.
        exact: the data, an `exact.Gaussian` whose scaling is None or the plan's.
        start: mean and variance of the state at the start, independent between elements, numbers or arrays that
            broadcast to the event; None is the start of `diffcore.sample`, N(0, sigma^2) at the plan's first level.

    Returns:
        (mean, covariance) in float64 on the host: the mean of the event's shape; the covariance a number for a number,
        of the event's shape for a diagonal, (D, D) for a matrix, `LowRank` for `LowRank`. Levels per sample, (B,), put
        an axis B in front of each. Levels per frame, (B, T), make a number a diagonal and a low rank a matrix, and so
        does a start whose variance differs between elements.

    Raises:
        TypeError: `exact` is no `exact.Gaussian`: only its denoiser is affine.
        ValueError: another scaling than the plan's; levels or a start that do not fit the event; a matrix too large.

    >>> import diffcore as dc
    >>> plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=1000)
    >>> mean, variance = moments(plan, Gaussian(np.array([0.5]), 0.25))
    >>> mean.round(2), round(variance, 2)
    (array([0.5]), 0.25)
    """
    function = "exact.moments"
    if not isinstance(exact, Gaussian):
        hint = "draw samples of others"
        raise _check.error(TypeError, function, "exact", "be an exact.Gaussian, whose denoiser is affine", exact, hint)
    if exact.scaling not in (None, plan.scaling):
        raise ValueError(
            f"{function}: `exact` must have the plan's scaling, {plan.scaling!r}, got {exact.scaling!r}; use "
            f"exact.with_scaling({plan.scaling!r})"
        )
    lead = tuple(plan.log_snr.shape[1:])
    level, update = _flat(function, plan, lead, exact.event)
    first = levels.Gaussian(0.0, level.sigma[0] ** 2) if start is None else _start(function, start, exact.event)
    parts = exact.model.parts
    if isinstance(parts, Diagonal):
        mean, covariance = _independent(parts, level, update, first)
    else:
        assert isinstance(parts, Spectral)
        if len(lead) > 1:
            mean, covariance = _as_matrices(parts, level, update, first)
        else:
            mean, covariance = _in_basis(parts, level, update, first)
    return _shaped(mean, covariance, lead, exact)


def respond(level: Level, update: Float64, values: Float64) -> Response:
    """Return how z_end responds, for eigenvalues (n,) and levels (stages, L, 1 or n).

    Args:
        level: alpha, sigma, log_snr of each call of the denoiser.
        update: (stages, L, 1 or n, 2, columns), the plan's coefficients.
        values: (n,) eigenvalues of the data's covariance.
    """
    shape, size = np.broadcast_shapes(level.alpha.shape[1:], values.shape), update.shape[-2]
    phi, psi, covariance = np.zeros((*shape, size)), np.zeros((*shape, size)), np.zeros((*shape, size, size))
    psi[..., 0] = 1.0
    for alpha, sigma, rows in zip(level.alpha, level.sigma, update, strict=True):
        carried, noise, estimate = _split(rows)
        gain, constant = _gain(alpha, sigma, values)
        matrix = np.array(np.broadcast_to(carried, (*shape, size, size)))
        matrix[..., 0] += estimate * gain[..., None]
        phi = np.einsum("...ij,...j->...i", matrix, phi) + estimate * constant[..., None]
        psi = np.einsum("...ij,...j->...i", matrix, psi)
        covariance = matrix @ covariance @ np.swapaxes(matrix, -1, -2) + noise[..., :, None] * noise[..., None, :]
    return Response(phi[..., 0], psi[..., 0], covariance[..., 0, 0])


def _split(rows: Float64) -> tuple[Float64, Float64, Float64]:
    """Return what rows make of state and memory, of noise, and of x-hat, which without guidance a second estimate equals."""
    size = rows.shape[-2]
    return rows[..., :size], rows[..., size], rows[..., size + 1 :].sum(axis=-1)


def _gain(alpha: Float64, sigma: Float64, values: Float64) -> tuple[Float64, Float64]:
    """Return (g, 1 - alpha g) of x-hat = g z + (1 - alpha g) m."""
    total = alpha**2 * values + sigma**2
    gain = np.where(values > 0.0, alpha * values / np.where(total > 0.0, total, 1.0), 0.0)
    return gain, 1.0 - alpha * gain


def _flat(function: str, plan: Plan, lead: tuple[int, ...], event: tuple[int, ...]) -> tuple[Level, Float64]:
    """Return levels (stages, L, 1 or D) and coefficients beside them."""
    level = levels.level(plan.log_snr, plan.scaling)
    if len(lead) < 2:
        count = lead[0] if lead else 1
        shape = (plan.log_snr.shape[0], count, 1)
        return Level(*(part.reshape(shape) for part in level)), plan.update.reshape(*shape, *plan.update.shape[-2:])
    if not event or lead[1] not in (1, event[0]):
        raise ValueError(f"{function}: `plan` must have levels for the frames of events {event}, got {lead[1]} frames")
    repeat = int(np.prod(event)) // lead[1]
    return Level(*(np.repeat(part, repeat, axis=2) for part in level)), np.repeat(plan.update, repeat, axis=2)


def _start(function: str, start: levels.Gaussian, event: tuple[int, ...]) -> levels.Gaussian:
    found = []
    for argument, value in zip(("mean", "variance"), start, strict=True):
        array = np.asarray(value, dtype=np.float64)
        try:
            np.broadcast_to(array, event)
        except ValueError:
            raise ValueError(
                f"{function}: `start.{argument}` must broadcast to the event, {event}, got shape {array.shape}"
            ) from None
        if not np.all(np.isfinite(array)) or (argument == "variance" and np.any(array < 0.0)):
            must = "be finite numbers" + (" >= 0" if argument == "variance" else "")
            raise _check.error(ValueError, function, f"start.{argument}", must, array)
        found.append(array if array.ndim == 0 else np.broadcast_to(array, event).reshape(1, -1))
    return levels.Gaussian(*found)


def _independent(parts: Diagonal, level: Level, update: Float64, start: levels.Gaussian) -> tuple[Any, Any]:
    found = respond(level, update, parts.variance[0])
    mean = found.phi * parts.mean[0] + found.psi * start.mean
    return mean, found.noise + found.psi**2 * start.variance


def _in_basis(parts: Spectral, level: Level, update: Float64, start: levels.Gaussian) -> tuple[Any, Any]:
    basis, size = parts.basis[0], parts.mean.shape[1]
    inside = respond(level, update, parts.values[0])
    around = plain = None
    if parts.rest is not None and parts.plain is not None:
        around, plain = respond(level, update, parts.rest[0]), respond(level, update, parts.plain[0])

    def apply(name: str, vectors: Any) -> Any:
        """Apply a function of C to vectors (L or 1, D)."""
        values, found = getattr(inside, name), np.zeros(())
        if around is not None and plain is not None:
            values, found = values - getattr(plain, name), getattr(around, name) * vectors
        return found + (values * (vectors @ basis)) @ basis.T

    mean = apply("phi", parts.mean) + apply("psi", np.broadcast_to(start.mean, (1, size)))
    if np.ndim(start.variance) == 2 and start.variance.shape[1] == size > 1:
        if size > DENSE:
            raise ValueError(
                f"exact.moments: `start.variance` must be one number for more than {DENSE} elements, got {size} elements"
            )
        identity = np.eye(size)
        psi = np.stack([apply("psi", identity[i : i + 1]) for i in range(size)], axis=-1)
        noise = np.stack([apply("noise", identity[i : i + 1]) for i in range(size)], axis=-1)
        return mean, noise + (psi * start.variance[:, None, :]) @ np.swapaxes(psi, 1, 2)
    values = inside.noise + inside.psi**2 * start.variance
    if around is None or plain is None:
        return mean, np.stack([(basis * row) @ basis.T for row in np.broadcast_to(values, inside.phi.shape)])
    rest = around.noise + around.psi**2 * start.variance
    excess = values - (plain.noise + plain.psi**2 * start.variance)
    excess = np.where(np.any(basis != 0.0, axis=0), excess, 0.0)
    if np.all(excess >= 0.0):
        return mean, LowRank(basis * np.sqrt(excess)[:, None, :], rest if rest.shape[1] > 1 else rest[:, 0])
    if size > DENSE:
        raise ValueError(
            f"exact.moments: this plan gives a direction of the factor less variance than the remaining ones, which LowRank "
            f"cannot represent, and {size} elements are too many for a matrix"
        )
    return mean, np.stack([(basis * e) @ basis.T + dense(r, size) for e, r in zip(excess, rest, strict=True)])


def _as_matrices(parts: Spectral, level: Level, update: Float64, start: levels.Gaussian) -> tuple[Any, Any]:
    """Follow full matrices, where levels that differ between elements mix the eigen-directions."""
    size = parts.mean.shape[1]
    if size > DENSE:
        raise ValueError(
            f"exact.moments: levels per frame with this covariance need a matrix, and {size} elements are more "
            f"than {DENSE}"
        )
    covariance = (parts.basis[0] * parts.values[0]) @ parts.basis[0].T
    if parts.rest is not None and parts.plain is not None:
        covariance += dense(np.broadcast_to(parts.rest[0], (size,)), size)
        covariance -= parts.plain[0] * parts.basis[0] @ parts.basis[0].T
    means, covariances = [], []
    for lead in range(level.alpha.shape[1]):
        one = Level(*(part[:, lead] for part in level))
        variance = start.variance[lead] if np.ndim(start.variance) == 2 and len(start.variance) > 1 else start.variance
        mean, spread = _one_by_matrices(parts.mean[0], covariance, one, update[:, lead], start.mean, variance)
        means.append(mean)
        covariances.append(spread)
    return np.stack(means), np.stack(covariances)


def _one_by_matrices(
    data_mean: Float64, data_covariance: Float64, level: Level, update: Float64, mean0: Any, variance0: Any
) -> tuple[Float64, Float64]:
    size, parts = data_mean.size, update.shape[-2]
    mean, spread = np.zeros((parts, size)), np.zeros((parts, size, parts, size))
    mean[0], spread[0, :, 0, :] = mean0, np.diag(np.broadcast_to(np.ravel(variance0), (size,)))
    each = np.arange(size)
    for alpha, sigma, rows in zip(level.alpha, level.sigma, update, strict=True):
        carried, noise, estimate = _split(rows)
        gain = _gain_matrix(alpha, sigma, data_covariance)
        matrix = np.zeros((parts, size, parts, size))
        matrix[:, each, :, each] = carried
        matrix[:, :, 0, :] += estimate.T[:, :, None] * gain
        offset = estimate.T * (data_mean - gain @ (alpha * data_mean))
        flat = matrix.reshape(parts * size, parts * size)
        mean = (flat @ mean.ravel()).reshape(parts, size) + offset
        spread = (flat @ spread.reshape(flat.shape) @ flat.T).reshape(spread.shape)
        spread[:, each, :, each] += noise[:, :, None] * noise[:, None, :]
    return mean[0], spread[0, :, 0, :]


def _gain_matrix(alpha: Float64, sigma: Float64, covariance: Float64) -> Float64:
    """Return G of x-hat = m + G (z - alpha m): C alpha (alpha C alpha + sigma^2)^{-1}, also where some frames are clean."""
    system = alpha[:, None] * covariance * alpha + np.diag(sigma**2)
    try:
        return np.asarray(np.linalg.solve(system, alpha[:, None] * covariance).T)
    except np.linalg.LinAlgError:  # clean directions in which the data do not vary
        return np.asarray(covariance * alpha @ np.linalg.pinv(system, hermitian=True))


def _shaped(mean: Any, covariance: Any, lead: tuple[int, ...], exact: Gaussian) -> Moments:
    """Return them with the event's axes, and without the axis of levels where there is one level."""
    count = lead[0] if lead else 1
    mean = np.broadcast_to(mean, (count, int(np.prod(exact.event)))).reshape(count, *exact.event)
    if isinstance(covariance, LowRank):
        single = LowRank(covariance.factor[0], covariance.variance[0])
        return Moments(mean, covariance) if lead else Moments(mean[0], single)
    if covariance.ndim == 2:
        covariance = np.broadcast_to(covariance, (count, covariance.shape[1]))
        number = covariance.shape[1] == 1 and len(lead) < 2 and np.ndim(exact.covariance) == 0
        covariance = covariance[:, 0] if number else covariance.reshape(count, *exact.event)
    if lead:
        return Moments(mean, covariance)
    return Moments(mean[0], float(covariance[0]) if np.ndim(covariance[0]) == 0 else covariance[0])
