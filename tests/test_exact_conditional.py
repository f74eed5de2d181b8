"""Exact distributions given some of their elements, against block formulas with inverses."""

import importlib
import math
from typing import Any

import numpy as np
import pytest
from exact_cases import RNG, SCALINGS, SPATIAL, dense_components, every_library, spatial
from scipy.special import logsumexp

from diffcore import exact, levels


def brute_conditional(data: Any, observed: Any, known: Any) -> list[tuple[float, Any, Any]]:
    """Weight, mean, covariance of each component given the known elements, by the block formula, with inverses."""
    found = []
    a, b = np.flatnonzero(known), np.flatnonzero(~known)
    for weight, mean, covariance in dense_components(data):
        inverse = np.linalg.inv(covariance[np.ix_(a, a)])
        apart = observed[a] - mean[a]
        log_fit = -0.5 * (apart @ inverse @ apart + np.linalg.slogdet(covariance[np.ix_(a, a)]).logabsdet)
        moved, spread = observed.copy(), np.zeros_like(covariance)
        moved[b] = mean[b] + covariance[np.ix_(b, a)] @ inverse @ apart
        schur = covariance[np.ix_(b, b)] - covariance[np.ix_(b, a)] @ inverse @ covariance[np.ix_(a, b)]
        spread[np.ix_(b, b)] = schur
        found.append((math.log(weight) + log_fit, moved, spread))
    total = logsumexp([log for log, _, _ in found])
    return [(math.exp(log - total), mean, spread) for log, mean, spread in found]


KNOWN = np.array([[True, False], [False, False], [True, True]])


@pytest.mark.parametrize("kind", SPATIAL[:-1])
def test_conditional_is_the_block_formula(kind: str) -> None:
    data, observed = spatial(kind, "vp"), RNG.normal(size=(3, 2))
    given_x = data.conditional(np.where(KNOWN, observed, np.nan), KNOWN)
    assert type(given_x) is type(data)
    want = brute_conditional(data, np.where(KNOWN, observed, 0.0).ravel(), KNOWN.ravel())
    for (w, m, c), (weight, mean, covariance) in zip(dense_components(given_x), want, strict=True):
        np.testing.assert_allclose(w, weight, rtol=1e-9)
        np.testing.assert_allclose(m, mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(c, covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", SPATIAL)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_conditional_denoise(kind: str, scaling: str) -> None:
    """E[x | z, x^a] is the conditional distribution's own denoiser, keeps x^a, and does not look at z^a."""
    data, log_snr = spatial(kind, scaling), np.array([-1.0, 2.5])
    z, other = RNG.normal(size=(2, 2, 3, 2))
    observed = data.points[1] if kind == "empirical" else RNG.normal(size=(3, 2))
    found = data.conditional_denoise(z, log_snr, observed, KNOWN)
    want = data.conditional(observed, KNOWN)(z, log_snr)
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(found[:, KNOWN], np.broadcast_to(observed[KNOWN], (2, 3)))
    apart = np.where(KNOWN, other, z)
    again = data.conditional_denoise(apart, log_snr, observed, KNOWN.astype(float))
    np.testing.assert_allclose(again, found, rtol=1e-13)
    np.testing.assert_allclose(data.conditional(observed, KNOWN)(apart, log_snr), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["full", "low rank", "mixture"])
def test_conditioning_in_two_steps_is_conditioning_once(kind: str) -> None:
    data, observed = spatial(kind, "vp"), RNG.normal(size=(3, 2))
    first, second = KNOWN.copy(), KNOWN.copy()
    first[2], second[0] = False, False
    twice, once = data.conditional(observed, first).conditional(observed, second), data.conditional(observed, KNOWN)
    z = RNG.normal(size=(2, 3, 2))
    np.testing.assert_allclose(twice(z, 0.5), once(z, 0.5), rtol=1e-8, atol=1e-10)


@every_library
def test_conditional_denoise_with_one_observation_a_sample(library: str) -> None:
    xp = importlib.import_module(library)
    data, z, observed = spatial("full", "vp"), RNG.normal(size=(2, 3, 2)), RNG.normal(size=(2, 3, 2))
    want = [data.conditional(observed[b], KNOWN)(z[b : b + 1], 1.0)[0] for b in range(2)]
    moved = [xp.asarray(part.astype(np.float32)) for part in (z, observed)]
    found = data.conditional_denoise(moved[0], 1.0, moved[1], xp.asarray(KNOWN))
    np.testing.assert_allclose(np.asarray(found), np.stack(want), rtol=1e-3, atol=1e-4)


def test_reconstruction_identity() -> None:
    """E[x^b | z, x^a] = E[x^b | z] + (sigma^2 / alpha) grad_{z^b} log q(x^a | z)."""
    data, z, observed = spatial("full", "vp"), RNG.normal(size=(1, 3, 2)), RNG.normal(size=(3, 2))
    alpha, sigma, _ = levels.level(0.4)
    a = KNOWN.ravel()

    def log_q_known(flat: Any) -> Any:
        here = flat.reshape(1, 3, 2)
        mean, spread = data(here, 0.4).reshape(6)[a], data.posterior_covariance(here, 0.4)[0][np.ix_(a, a)]
        apart = observed.ravel()[a] - mean
        return -0.5 * apart @ np.linalg.solve(spread, apart)

    step, flat = 1e-5, z.ravel()
    gradient = np.array([(log_q_known(flat + e) - log_q_known(flat - e)) / (2 * step) for e in step * np.eye(6)])
    found = data.conditional_denoise(z, 0.4, observed, KNOWN).ravel()
    np.testing.assert_allclose(found[~a], (data(z, 0.4).ravel() + sigma**2 / alpha * gradient)[~a], rtol=1e-7)


def test_empirical_conditional() -> None:
    points = np.array([[0.0, 1.0], [0.0, 3.0], [1.0, 5.0]])
    data, known = exact.Empirical(points, weights=np.array([1.0, 3.0, 1.0])), np.array([True, False])
    np.testing.assert_array_equal(data.conditional(np.zeros(2), known).points, points[:2])
    np.testing.assert_allclose(data.conditional(np.zeros(2), known).weights, [0.25, 0.75], rtol=1e-15)
    noisy = data.conditional(np.array([0.4, 0.0]), known, noise_std=0.5).weights
    want = np.array([1.0, 3.0, 1.0]) * np.exp(-0.5 * np.array([0.4, 0.4, 0.6]) ** 2 / 0.25)
    np.testing.assert_allclose(noisy, want / want.sum(), rtol=1e-12)
    with pytest.raises(ValueError, match=r"must equal a point.*0.1 away.*noise_std"):
        data.conditional(np.array([0.1, 0.0]), known)
