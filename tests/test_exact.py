"""Exact distributions against quadrature, dense algebra, autodiff, samples and each other."""

import math
from typing import Any

import numpy as np
import pytest
from exact_cases import (
    EVERY,
    FULL,
    INF,
    MEANS,
    RNG,
    SPATIAL,
    WEIGHTS,
    Z,
    dense_components,
    every_data,
    every_density,
    every_scaling,
    joint_truth,
    spatial,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

import diffcore as dc
from diffcore import exact, levels


@every_scaling
@every_density
@pytest.mark.parametrize("log_snr", [-3.0, 1.0, 3.0])
def test_quadrature_of_bayes_rule(make: Any, scaling: str, log_snr: float) -> None:
    """q(z) = int N(z; alpha x, sigma^2) p(x) dx on a grid, with p(x) from scipy-free formulas of the densities."""
    data = make(scaling=scaling)
    axis = np.linspace(-13.0, 13.0, 421)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    prior = np.zeros(len(x))
    for weight, mean, covariance in dense_components(data):
        inverse = np.linalg.inv(covariance)
        quadratic = np.einsum("nd,de,ne->n", x - mean, inverse, x - mean)
        prior += weight * np.exp(-0.5 * quadratic) / (2 * math.pi * math.sqrt(np.linalg.det(covariance)))
    alpha, sigma, _ = levels.level(log_snr, scaling)
    z = Z[:2]
    likelihood = np.exp(-0.5 * np.sum((z[:, None] - alpha * x) ** 2, axis=-1) / sigma**2) / (2 * math.pi * sigma**2)
    cell = (axis[1] - axis[0]) ** 2
    evidence = likelihood @ prior * cell
    posterior = likelihood * prior * cell / evidence[:, None]
    centre = posterior @ x
    second = np.einsum("bn,nd,ne->bde", posterior, x, x)
    np.testing.assert_allclose(data.log_likelihood(z, log_snr), np.log(evidence), atol=1e-9)
    np.testing.assert_allclose(data(z, log_snr), centre, atol=1e-9)
    covariance = data.posterior_covariance(z, log_snr)
    np.testing.assert_allclose(covariance, second - centre[:, :, None] * centre[:, None, :], atol=1e-9)


@every_scaling
@every_data
@pytest.mark.parametrize("shape", ["()", "(B,)"])
def test_dense_algebra(make: Any, scaling: str, shape: str) -> None:
    data = make(scaling=scaling)
    log_snr = np.array([-4.0, 0.3, 2.0, 5.0]) if shape == "(B,)" else np.float64(1.5)
    alpha, sigma, _ = levels.level(np.broadcast_to(log_snr, 4), scaling)
    want = [joint_truth(data, z, a, s) for z, a, s in zip(Z, alpha, sigma, strict=True)]
    found = [
        data.log_likelihood(Z, log_snr),
        data.denoise(Z, log_snr),
        data.posterior_covariance(Z, log_snr),
        data.score(Z, log_snr),
    ]
    for got, truth in zip(found, zip(*want, strict=True), strict=True):
        np.testing.assert_allclose(got, np.stack(truth), rtol=1e-8, atol=1e-10)


@every_scaling
@pytest.mark.parametrize("kind", SPATIAL)
def test_levels_per_frame(kind: str, scaling: str) -> None:
    """z_t with a level for each frame is the Gaussian A x + S eps: E[x | z] = m + C A (A C A + S^2)^{-1} (z - A m)."""
    data = spatial(kind, scaling)
    z = RNG.normal(size=(2, 3, 2))
    log_snr = np.array([[-2.0, 0.5, 4.0], [3.0, 3.0, -5.0]])
    alpha, sigma, _ = levels.level(np.repeat(log_snr, 2, axis=1), scaling)
    want = [joint_truth(data, z[b].ravel(), alpha[b], sigma[b]) for b in range(2)]
    found = [
        data.log_likelihood(z, log_snr),
        data(z, log_snr).reshape(2, 6),
        data.posterior_covariance(z, log_snr),
        data.score(z, log_snr).reshape(2, 6),
    ]
    for got, truth in zip(found, zip(*want, strict=True), strict=True):
        np.testing.assert_allclose(got, np.stack(truth), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", SPATIAL)
@pytest.mark.parametrize(
    "log_snr", [np.float64(0.5), np.array([[-2.0, 0.5, 4.0], [3.0, 3.0, -5.0]])], ids=["()", "(B, T)"]
)
def test_posterior_variance_is_the_diagonal(kind: str, log_snr: Any) -> None:
    data, z = spatial(kind, "flow"), RNG.normal(size=(2, 3, 2))
    found = data.posterior_variance(z, log_snr)
    assert found.shape == z.shape
    want = np.diagonal(data.posterior_covariance(z, log_snr), axis1=1, axis2=2)
    np.testing.assert_allclose(found.reshape(2, 6), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in SPATIAL if "mixture" in kind])
def test_a_mixture_is_its_components(kind: str) -> None:
    """q = sum_k w_k q_k, with each component as a Gaussian of its own."""
    data, z = spatial(kind, "ve"), RNG.normal(size=(2, 3, 2))
    each = np.stack([part.log_likelihood(z, 0.5) for part in data.components])
    np.testing.assert_allclose(data.log_likelihood(z, 0.5), logsumexp(each, axis=0, b=WEIGHTS[:, None]), rtol=1e-12)
    again = exact.Mixture(WEIGHTS, data.means, [part.covariance for part in data.components], scaling="ve")
    np.testing.assert_allclose(data(z, 0.5), again(z, 0.5), rtol=1e-12)
    assert "Gaussian" in repr(data.components[0])


@every_data
@every_scaling
def test_tweedie(make: Any, scaling: str) -> None:
    """score = (alpha x-hat - z) / sigma^2."""
    data, log_snr = make(scaling=scaling), np.array([-3.0, 0.0, 1.0, 4.0])
    alpha, sigma, _ = (part[:, None] for part in levels.level(log_snr, scaling))
    np.testing.assert_allclose(data.score(Z, log_snr), (alpha * data(Z, log_snr) - Z) / sigma**2, rtol=1e-9, atol=1e-10)


@pytest.mark.torch
@every_data
def test_score_and_covariance_are_derivatives_in_torch(make: Any) -> None:
    """score = grad log q, and Cov[x | z] = (sigma^2 / alpha) d x-hat / dz."""
    import torch

    data, z, log_snr = make(), torch.asarray(Z), torch.asarray(0.7, dtype=torch.float64)
    score = torch.func.grad(lambda z: data.log_likelihood(z, log_snr).sum())(z)
    np.testing.assert_allclose(data.score(z, log_snr), score, rtol=1e-9, atol=1e-11)
    jacobian = torch.func.jacrev(lambda z: data(z[None], log_snr)[0])
    alpha, sigma, _ = levels.level(0.7)
    covariance = np.stack([sigma**2 / alpha * np.asarray(jacobian(one)) for one in z])
    found = np.asarray(data.posterior_covariance(z, log_snr))
    np.testing.assert_allclose(found, covariance, rtol=1e-9, atol=1e-11)


@pytest.mark.jax
@pytest.mark.parametrize("make", [EVERY[kind] for kind in ("gaussian, full", "mixture, low rank", "empirical")])
def test_score_and_covariance_are_derivatives_under_jit_in_jax(make: Any) -> None:
    import jax

    with jax.enable_x64(True):
        data, z, log_snr = make(), jax.numpy.asarray(Z), jax.numpy.asarray(0.7)
        score = jax.jit(jax.grad(lambda z: data.log_likelihood(z, log_snr).sum()))(z)
        own, found = jax.jit(lambda z: (data.score(z, log_snr), data.posterior_covariance(z, log_snr)))(z)
        np.testing.assert_allclose(own, score, rtol=1e-9, atol=1e-11)
        jacobian = jax.jit(jax.vmap(jax.jacobian(lambda z: data(z[None], log_snr)[0])))(z)
        alpha, sigma, _ = levels.level(0.7)
        np.testing.assert_allclose(found, sigma**2 / alpha * jacobian, rtol=1e-9, atol=1e-11)


def test_likelihood_of_clean_data_is_its_density() -> None:
    data = exact.Gaussian(MEANS[0], FULL)
    apart = Z - MEANS[0]
    quadratic = np.einsum("bd,de,be->b", apart, np.linalg.inv(FULL), apart)
    want = -0.5 * (quadratic + math.log(np.linalg.det(2 * math.pi * FULL)))
    np.testing.assert_allclose(data.log_likelihood(Z, INF), want, rtol=1e-12)


@given(
    event=st.lists(st.integers(1, 3), min_size=0, max_size=3).map(tuple),
    batch=st.integers(1, 3),
    log_snr=st.floats(-30, 30),
    seed=st.integers(0, 2**32),
)
def test_four_forms_of_one_covariance_agree(event: Any, batch: int, log_snr: float, seed: int) -> None:
    """A number, its diagonal, its matrix, its low rank, and a mixture of equal components are one distribution."""
    rng = np.random.default_rng(seed)
    size, c = math.prod(event), float(rng.uniform(0.1, 2.0))
    mean, z = rng.normal(size=event), rng.normal(size=(batch, *event))
    forms: list[Any] = [c, np.full(event, c), c * np.eye(size), exact.LowRank(np.zeros((size, 1)), c)]
    if size > 1:
        forms.append(exact.LowRank(math.sqrt(0.5 * c) * np.eye(size), 0.5 * c))
    each: list[Any] = [exact.Gaussian(mean, form) for form in forms]
    each += [exact.Mixture([1.0], mean[None], [form]) for form in forms]
    each.append(exact.Mixture([1.0, 3.0], np.stack([mean, mean]), c))
    lead = [log_snr, np.full(batch, log_snr)] + ([np.full((batch, event[0]), log_snr)] if event else [])
    for data in each:
        assert data.event == tuple(event)
        for at in lead:
            np.testing.assert_allclose(data(z, at), each[0](z, log_snr), rtol=1e-6, atol=1e-7)
            want = each[0].log_likelihood(z, log_snr)
            np.testing.assert_allclose(data.log_likelihood(z, at), want, rtol=1e-6, atol=1e-6)


def test_empirical_is_the_limit_of_narrow_mixtures() -> None:
    points = exact.Empirical(MEANS, weights=WEIGHTS)
    narrow = exact.Mixture(WEIGHTS, MEANS, 1e-12)
    for log_snr in (-5.0, 0.0, 5.0):
        np.testing.assert_allclose(points(Z, log_snr), narrow(Z, log_snr), rtol=1e-8)
        np.testing.assert_allclose(points.log_likelihood(Z, log_snr), narrow.log_likelihood(Z, log_snr), rtol=1e-8)
        np.testing.assert_allclose(points.responsibilities(Z, log_snr).sum(axis=1), 1.0, rtol=1e-14)


@every_data
def test_samples_have_the_distribution(make: Any) -> None:
    """Mean and covariance of 20,000 samples within five standard errors; sample i is the same whatever the number."""
    data = make()
    drawn = data.sample(5, 20_000)
    np.testing.assert_array_equal(data.sample(5, 3), drawn[:3])
    mean = sum(w * m for w, m, _ in dense_components(data))
    second = sum(w * (c + np.outer(m, m)) for w, m, c in dense_components(data))
    spread = second - np.outer(mean, mean)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=5 * math.sqrt(spread.max() / 20_000))
    np.testing.assert_allclose(np.cov(drawn.T), spread, atol=10 * spread.max() / math.sqrt(20_000))
    assert data.sample(5, 2, like=np.zeros(1, dtype=np.float32)).dtype == np.float32


@every_data
def test_sampling_with_an_exact_denoiser_draws_the_data(make: Any) -> None:
    """A long run of a deterministic sampler ends in the data's distribution: mean and covariance by 4,000 samples."""
    data = make()
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=60, order=2)
    drawn = dc.sample(data, plan, shape=(4000, 2), like=np.zeros(1), seed=3)
    mean = sum(w * m for w, m, _ in dense_components(data))
    second = sum(w * (c + np.outer(m, m)) for w, m, c in dense_components(data))
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.08)
    np.testing.assert_allclose(drawn.T @ drawn / len(drawn), second, atol=0.15)
