r"""What a run draws when every stage is affine, by algebra and without a random number: any denoiser, any constraint.

`exact.moments` follows a plan in the eigenbasis of the data; here the loop itself is taken apart. A stage maps the state
(z, m_1, ..., m_M) and its noises to a new state; if that map is affine it is known from its values at zero
and at the basis vectors, and mean and covariance follow from it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import diffcore as dc
from diffcore import _streams, _wrapping, predictions
from diffcore._array import Array
from diffcore.plan import Plan
from diffcore.predictions import Prediction
from diffcore.stage import Source
from diffcore.state import State
from diffcore.testing._arrays import Float64, fail_unless, host, put

__all__ = ["Drawn", "drawn_by", "drawn_from"]

ROUNDING = 1e-3
"""The error allowed beside a basis, relative to the sizes of the terms: of float32, and of half precision's loops."""


class Drawn(NamedTuple):
    """Mean (D,) and covariance (D, D) of what a run draws, on the host."""

    mean: Float64
    covariance: Float64


def drawn_by(
    denoise: Callable[[Array, Array], Array],
    plan: Plan,
    event: Sequence[int],
    *,
    prediction: Prediction | None = None,
    constraint: Any = None,
    like: Array | None = None,
) -> Drawn:
    """Return the exact moments of what `diffcore.sample` draws, if the denoiser is affine in z.

    Each stage is run once through `diffcore.step`, on a batch of basis vectors.

    Args:
        denoise: (z, log_snr) -> prediction, affine in z; a condition in it must fit any batch.
        plan: whose levels are shared by all samples.
        event: the shape of a sample, D elements.
        prediction: what the denoiser returns; may be left out where it says so.
        constraint: as for `diffcore.sample`.
        like: an array that gives the library and dtype to run in; NumPy float64 without one.

    Raises:
        AssertionError: a stage whose denoiser, or constraint, is not affine, by a point beside the basis.
        ValueError: levels per sample.
        TypeError: `prediction` is missing and the denoiser does not say.

    >>> from diffcore import exact, samplers, schedules
    >>> data, plan = exact.Gaussian(np.zeros(2), np.diag([1.0, 0.25])), samplers.ancestral(schedules.Cosine(), steps=16)
    >>> bool(np.allclose(drawn_by(data, plan, (2,)).covariance, exact.moments(plan, data).covariance))
    True
    """
    if plan.lead and plan.lead[0] != 1:
        raise ValueError(f"testing.drawn_by: the levels of `plan` must have shape () or (1, T), got {plan.lead}")
    if _wrapping.own_scaling(denoise) is None:
        denoise = _wrapping.scaled(denoise, plan.scaling, "testing.drawn_by")
    kind = predictions.kind_of("testing.drawn_by", denoise, prediction)
    like = np.zeros(()) if like is None else like
    size, parts = math.prod(event), 1 + plan.memory
    count = (parts + 2) * size  # the state, the noise of the stage, the noise of what is known
    basis = _basis(count)
    split = lambda column: put(basis[:, column * size : (column + 1) * size].reshape(-1, *event), like)  # noqa: E731
    noises = [split(parts), split(parts + 1)]

    def source(draw: int, shape: tuple[int, ...]) -> Array:  # noqa: ARG001
        return noises[int(draw) >= Source.OTHER]

    def flat(state: State) -> Float64:
        return np.concatenate([host(array).reshape(len(basis), size) for array in (state.z, *state.memory)], axis=1)

    begun = dc.start(plan, split(parts), noise=source, constraint=constraint)  # z = eps of the start
    given = dc.start(plan, split(0), noise=source, constraint=constraint)
    sigma = np.broadcast_to(host(plan.start.sigma).reshape(-1)[..., None], (max(plan.lead[-1:] or (1,)), 1))
    scale = np.repeat(sigma.ravel(), size // sigma.size)
    if constraint is None:
        mean, covariance = np.zeros(parts * size), np.zeros((parts * size,) * 2)
        covariance[:size, :size] = np.diag(scale**2)
    else:
        offset, response = _affine("drawn_by: the start", flat(begun), basis)
        response[parts * size : (parts + 1) * size] *= scale[:, None]
        mean, covariance = offset, response.T @ response
    state = given._replace(z=split(0), memory=tuple(split(1 + at) for at in range(plan.memory)))
    for stage, log_snr in enumerate(plan.log_snr):
        at = put(np.broadcast_to(log_snr, (len(basis), *plan.lead[1:])), like)
        y = denoise(state.z, at)
        rows = flat(
            dc.step(
                plan,
                state._replace(index=stage, draw=stage + 1, mark=plan.marks[stage]),
                y,
                prediction=kind,
                noise=source,
                constraint=constraint,
            )
        )
        offset, response = _affine(f"drawn_by: stage {stage}", rows, basis)
        own, noise = response[: parts * size], response[parts * size :]
        mean = offset + mean @ own
        covariance = own.T @ covariance @ own + noise.T @ noise
    return Drawn(mean[:size], covariance[:size, :size])


def _basis(count: int) -> Float64:
    """Return the points at which an affine map of so many numbers is known, (count + 2, count); the last one is for `_affine`."""
    beside = np.random.default_rng(0).uniform(-2.0, 2.0, size=(1, count))
    return np.concatenate([np.zeros((1, count)), np.eye(count), beside])


def _affine(what: str, rows: Float64, basis: Float64) -> tuple[Float64, Float64]:
    """Return offset (D,) and response (count, D) of a map from its values at a basis; raise AssertionError if it is not affine."""
    offset, response, beside = rows[0], (rows - rows[0])[1:-1], basis[-1]
    size = np.abs(offset) + np.abs(beside) @ (np.abs(response) + np.abs(offset))
    size = np.maximum(size, 1e-9 * size.max())  # what cancels in a denoiser leaves rounding
    off = np.abs(offset + beside @ response - rows[-1])
    fail_unless(
        np.all(off <= ROUNDING * size),
        f"testing.{what}",
        f"is not affine: off by {off.max():.2g} beside a basis of its values",
    )
    return offset, response


def drawn_from(run: Callable[[Callable[..., Float64], int], Array]) -> Drawn:
    """Return the exact moments of what anything draws that is affine in its noise, such as a stream of `diffcore.video`.

    Args:
        run: (noise, batch) -> samples (batch, ...), on NumPy. It takes all its noise from noise(number, draw, shape, stream),
            and asks for the same whatever it is given. It is called twice: for one sample, to see what it asks for, and for
            one of each entry of that noise and two more.

    Raises:
        AssertionError: it is not affine in its noise.

    >>> source = lambda noise, batch: 2.0 * noise(0, 0, (batch, 2)) + noise(0, 1, (batch, 1))
    >>> drawn_from(source).covariance
    array([[5., 1.],
           [1., 5.]])
    """
    places: dict[tuple[int, int, int], int] = {}
    size = 0

    def counted(number: int, draw: int, shape: tuple[int, ...], stream: int = _streams.SAMPLER) -> Float64:
        nonlocal size
        if (int(number), int(draw), stream) not in places:
            places[int(number), int(draw), stream] = size
            size += math.prod(shape[1:])
        return np.zeros(shape)

    def given(number: int, draw: int, shape: tuple[int, ...], stream: int = _streams.SAMPLER) -> Float64:
        first = places[int(number), int(draw), stream]
        return basis[:, first : first + math.prod(shape[1:])].reshape(shape)

    run(counted, 1)
    basis = _basis(size)
    offset, response = _affine("drawn_from", host(run(given, len(basis))).reshape(len(basis), -1), basis)
    return Drawn(offset, response.T @ response)
