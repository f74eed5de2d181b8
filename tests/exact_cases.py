"""Exact distributions of every form, and their truth by dense algebra: what the tests of `diffcore.exact` share."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from diffcore import exact

INF = math.inf


SCALINGS = ("vp", "ve", "flow")


LIBRARIES = [
    "array_api_strict",
    pytest.param("torch", marks=pytest.mark.torch),
    pytest.param("jax.numpy", marks=pytest.mark.jax),
]


RNG = np.random.default_rng(0)


FACTOR = np.array([[0.7], [-0.4]])


FULL = FACTOR @ FACTOR.T + 0.3 * np.eye(2)


MEANS = np.array([[-1.0, 0.2], [0.8, 1.1], [0.3, -1.4]])


WEIGHTS = np.array([0.5, 0.2, 0.3])


DIAGONALS = np.array([[0.3, 0.5], [0.4, 0.2], [0.6, 0.9]])


FULLS = np.stack([FULL, FULL[::-1, ::-1] + 0.1 * np.eye(2), 0.5 * np.eye(2)])


FACTORS = np.stack([FACTOR, 0.5 * FACTOR[::-1], -2.0 * FACTOR])


DATA: dict[str, Callable[..., Any]] = {
    "gaussian, number": lambda **k: exact.Gaussian(MEANS[0], 0.5, **k),
    "gaussian, diagonal": lambda **k: exact.Gaussian(MEANS[0], DIAGONALS[0], **k),
    "gaussian, full": lambda **k: exact.Gaussian(MEANS[0], FULL, **k),
    "gaussian, low rank": lambda **k: exact.Gaussian(MEANS[0], exact.LowRank(FACTOR, 0.3), **k),
    "mixture, number": lambda **k: exact.Mixture(WEIGHTS, MEANS, 0.4, **k),
    "mixture, numbers": lambda **k: exact.Mixture(WEIGHTS, MEANS, np.array([0.3, 0.5, 0.8]), **k),
    "mixture, diagonal": lambda **k: exact.Mixture(WEIGHTS, MEANS, DIAGONALS, **k),
    "mixture, full": lambda **k: exact.Mixture(WEIGHTS, MEANS, FULLS, **k),
    "mixture, low rank": lambda **k: exact.Mixture(WEIGHTS, MEANS, exact.LowRank(FACTORS, 0.3), **k),
    "mixture, list": lambda **k: exact.Mixture(WEIGHTS, MEANS, [0.4, DIAGONALS[1], exact.LowRank(FACTOR, 0.3)], **k),
    "mixture, list with full": lambda **k: exact.Mixture(WEIGHTS, MEANS, [0.4, DIAGONALS[1], FULL], **k),
}


EVERY = {**DATA, "empirical": lambda **k: exact.Empirical(MEANS, weights=WEIGHTS, **k)}


every_density = pytest.mark.parametrize("make", DATA.values(), ids=DATA.keys())


every_data = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())


every_scaling = pytest.mark.parametrize("scaling", SCALINGS)


every_library = pytest.mark.parametrize("library", LIBRARIES)


Z = RNG.normal(size=(4, 2))


def dense_components(data: Any) -> list[tuple[float, Any, Any]]:
    """Weight, mean and covariance matrix of each component, from what the user gave."""
    if isinstance(data, exact.Gaussian):
        return [(1.0, data.mean.ravel(), matrix_of(data.covariance, data.mean.size))]
    if isinstance(data, exact.Empirical):
        size = data.points[0].size
        return [(w, p.ravel(), np.zeros((size, size))) for w, p in zip(data.weights, data.points, strict=True)]
    parts = zip(data.weights, data.means, data.covariances, strict=True)
    return [(w, m.ravel(), matrix_of(c, m.size)) for w, m, c in parts]


def matrix_of(covariance: Any, size: int) -> Any:
    if isinstance(covariance, exact.LowRank):
        return covariance.factor @ covariance.factor.T + np.diag(np.broadcast_to(covariance.variance, size))
    covariance = np.asarray(covariance)
    if covariance.ndim == 2 and covariance.shape == (size, size):
        return covariance
    return np.diag(np.broadcast_to(covariance.ravel() if covariance.ndim else covariance, size))


def joint_truth(data: Any, z: Any, alpha: Any, sigma: Any) -> tuple[float, Any, Any, Any]:
    """log q, E[x|z], Cov[x|z] and the score of one flat z with a level for each element, by dense algebra."""
    logs, centres, spreads, pulls = [], [], [], []
    a, s = np.diag(np.broadcast_to(alpha, z.shape)), np.diag(np.broadcast_to(sigma, z.shape) ** 2)
    for weight, mean, covariance in dense_components(data):
        total = a @ covariance @ a + s
        inverse = np.linalg.inv(total)
        apart = z - a @ mean
        logs.append(
            math.log(weight) - 0.5 * (apart @ inverse @ apart + np.linalg.slogdet(2 * math.pi * total).logabsdet)
        )
        centres.append(mean + covariance @ a @ inverse @ apart)
        spreads.append(covariance - covariance @ a @ inverse @ a @ covariance)
        pulls.append(-inverse @ apart)
    rho = np.exp(np.array(logs) - logsumexp(logs))
    centre = np.einsum("k,kd->d", rho, centres)
    second = sum(r * (v + np.outer(c, c)) for r, v, c in zip(rho, spreads, centres, strict=True))
    return float(logsumexp(logs)), centre, second - np.outer(centre, centre), np.einsum("k,kd->d", rho, pulls)


def spatial(kind: str, scaling: str) -> Any:
    """Events of 3 frames of 2 elements."""
    rng = np.random.default_rng(1)
    means, root = rng.normal(size=(3, 3, 2)), rng.normal(size=(3, 6, 6))
    full = root @ np.swapaxes(root, 1, 2) / 6 + 0.1 * np.eye(6)
    made: dict[str, Callable[[], Any]] = {
        "number": lambda: exact.Gaussian(means[0], 0.7, scaling=scaling),
        "diagonal": lambda: exact.Gaussian(means[0], np.abs(means[1]) + 0.1, scaling=scaling),
        "full": lambda: exact.Gaussian(means[0], full[0], scaling=scaling),
        "low rank": lambda: exact.Gaussian(means[0], exact.LowRank(root[0, :, :2], 0.2), scaling=scaling),
        "mixture": lambda: exact.Mixture(WEIGHTS, means, [0.2, 0.5, 0.7], scaling=scaling),
        "mixture diagonal": lambda: exact.Mixture(WEIGHTS, means, np.abs(means) + 0.2, scaling=scaling),
        "mixture full": lambda: exact.Mixture(WEIGHTS, means, full, scaling=scaling),
        "mixture low rank": lambda: exact.Mixture(WEIGHTS, means, exact.LowRank(root[..., :2], 0.2), scaling=scaling),
        "empirical": lambda: exact.Empirical(means, weights=WEIGHTS, scaling=scaling),
    }
    return made[kind]()


SPATIAL = ["number", "diagonal", "full", "low rank", "mixture", "mixture diagonal", "mixture full", "mixture low rank"]


SPATIAL.append("empirical")
