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
from diffcore import _streams, predictions
from diffcore._array import Array
from diffcore.plan import Plan
from diffcore.predictions import Prediction
from diffcore.stage import Source
from diffcore.state import State
from diffcore.testing._arrays import Float64, host, put

__all__ = ["Drawn", "drawn_by", "drawn_from"]


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
        ValueError: levels per sample.
        TypeError: `prediction` is missing and the denoiser does not say.

    >>> from diffcore import exact, samplers, schedules
    >>> data, plan = exact.Gaussian(np.zeros(2), np.diag([1.0, 0.25])), samplers.ancestral(schedules.Cosine(), steps=16)
    >>> bool(np.allclose(drawn_by(data, plan, (2,)).covariance, exact.moments(plan, data).covariance))
    True
    """
    if plan.lead and plan.lead[0] != 1:
        raise ValueError(f"testing.drawn_by: the levels of `plan` must have shape () or (1, T), got {plan.lead}")
    if hasattr(denoise, "with_scaling") and getattr(denoise, "scaling", None) is None:
        denoise = denoise.with_scaling(plan.scaling)
    kind = predictions.kind_of("testing.drawn_by", denoise, prediction)
    like = np.zeros(()) if like is None else like
    size, parts = math.prod(event), 1 + plan.memory
    count = (parts + 2) * size  # the state, the noise of the stage, the noise of what is known
    basis = np.concatenate([np.zeros((1, count)), np.eye(count)])
    split = lambda column: put(basis[:, column * size : (column + 1) * size].reshape(-1, *event), like)  # noqa: E731
    noises = [split(parts), split(parts + 1)]

    def source(draw: int, shape: tuple[int, ...]) -> Array:  # noqa: ARG001
        return noises[int(draw) >= Source.OTHER]

    def flat(state: State) -> Float64:
        return np.concatenate([host(array).reshape(count + 1, size) for array in (state.z, *state.memory)], axis=1)

    begun = dc.start(plan, split(parts), noise=source, constraint=constraint)  # z = eps of the start
    given = dc.start(plan, split(0), noise=source, constraint=constraint)
    sigma = np.broadcast_to(host(plan.start.sigma).reshape(-1)[..., None], (max(plan.lead[-1:] or (1,)), 1))
    scale = np.repeat(sigma.ravel(), size // sigma.size)
    if constraint is None:
        mean, covariance = np.zeros(parts * size), np.zeros((parts * size,) * 2)
        covariance[:size, :size] = np.diag(scale**2)
    else:
        rows = flat(begun)
        offset, response = rows[0], (rows - rows[0])[1:]
        response[parts * size : (parts + 1) * size] *= scale[:, None]
        mean, covariance = offset, response.T @ response
    state = given._replace(z=split(0), memory=tuple(split(1 + at) for at in range(plan.memory)))
    for stage, log_snr in enumerate(plan.log_snr):
        at = put(np.broadcast_to(log_snr, (count + 1, *plan.lead[1:])), like)
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
        response = (rows - rows[0])[1:]
        own, noise = response[: parts * size], response[parts * size :]
        mean = rows[0] + mean @ own
        covariance = own.T @ covariance @ own + noise.T @ noise
    return Drawn(mean[:size], covariance[:size, :size])


def drawn_from(run: Callable[[Callable[..., Float64], int], Array]) -> Drawn:
    """Return the exact moments of what anything draws that is affine in its noise, such as a stream of `diffcore.video`.

    Args:
        run: (noise, batch) -> samples (batch, ...), on NumPy. It takes all its noise from noise(number, draw, shape, stream),
            and asks for the same whatever it is given. It is called twice: for one sample, to see what it asks for, and for
            one of each entry of that noise.

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

    def basis(number: int, draw: int, shape: tuple[int, ...], stream: int = _streams.SAMPLER) -> Float64:
        found = np.zeros((shape[0], math.prod(shape[1:])))
        entries = np.arange(found.shape[1])
        found[1 + places[int(number), int(draw), stream] + entries, entries] = 1.0
        return found.reshape(shape)

    run(counted, 1)
    rows = host(run(basis, 1 + size)).reshape(1 + size, -1)
    response = rows[1:] - rows[0]
    return Drawn(rows[0], response.T @ response)
