r"""Conditioning on known elements, on the host: x given x^a.

    mean_b = m_b + C_ba C_aa^{-1} (x^a - m_a),    covariance_bb = C_bb - C_ba C_aa^{-1} C_ab

Source: Bishop 2006, Pattern Recognition and Machine Learning, eq. 2.81-2.82.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array
from diffcore.exact._parts import Covariance, Float64, LowRank, dense

Mask = npt.NDArray[np.bool_]


def check_observation(function: str, observed: Any, mask: Any, event: tuple[int, ...]) -> tuple[Float64, Mask]:
    """Return (observed, known) of the event's shape on the host; observed is 0 where it is unknown.

    Raises:
        ValueError: either does not broadcast to the event, or a known element is not finite.
    """
    found = []
    for argument, value in (("observed", observed), ("mask", mask)):
        array = _array.to_host(value, function=function, argument=argument)
        try:
            found.append(np.broadcast_to(array, event))
        except ValueError:
            raise ValueError(
                f"{function}: `{argument}` must broadcast to the event, {event}, got shape {array.shape}"
            ) from None
    known = found[1].astype(np.bool_)
    given: Float64 = np.where(known, found[0], 0.0).astype(np.float64)
    if not np.all(np.isfinite(given)):
        raise ValueError(f"{function}: `observed` must be finite under the mask, got NaN or infinity there")
    return given, known


def condition(
    function: str, mean: Float64, covariance: Covariance, observed: Float64, known: Mask
) -> tuple[Float64, Covariance]:
    """Return mean (D,) and covariance of x given its known elements, all laid flat; what is known has no variance."""
    if isinstance(covariance, LowRank):
        return _low_rank(function, mean, covariance, observed, known)
    if np.ndim(covariance) < 2:
        return np.where(known, observed, mean), np.where(known, 0.0, covariance)
    matrix = dense(covariance, mean.size)
    gain = matrix[:, known] @ np.linalg.pinv(matrix[np.ix_(known, known)], hermitian=True)
    moved = mean + gain @ (observed - mean)[known]
    left = matrix - gain @ matrix[known, :]
    left[known, :] = left[:, known] = 0.0
    return np.where(known, observed, moved), 0.5 * (left + left.T)


def _low_rank(
    function: str, mean: Float64, covariance: LowRank, observed: Float64, known: Mask
) -> tuple[Float64, LowRank]:
    """The latent y of x = m + F y + noise has the posterior N(G^{-1} F_a^T (x^a - m_a) / v, G^{-1}),
    G = I + F_a^T F_a / v, so x^b | x^a is low rank again, with the factor F_b G^{-1/2}.
    """
    factor, variance = covariance.factor, np.broadcast_to(covariance.variance, mean.shape)
    seen = known & np.any(factor != 0.0, axis=1)
    if np.any(variance[seen] == 0.0):
        raise ValueError(
            f"{function}: the variance of a LowRank covariance must be > 0 to condition on it, got 0; give it a small "
            f"variance, or give the covariance as a matrix"
        )
    scaled = factor[seen] / variance[seen][:, None]
    values, basis = np.linalg.eigh(np.eye(factor.shape[1]) + factor[seen].T @ scaled)
    latent = basis @ ((basis.T @ (scaled.T @ (observed - mean)[seen])) / values)
    left = np.where(known[:, None], 0.0, factor @ (basis / np.sqrt(values)))
    return np.where(known, observed, mean + factor @ latent), LowRank(left, np.where(known, 0.0, variance))
