"""Products of densities, against linear Gaussian models, whose posteriors are in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import diffcore as dc
from diffcore import conditioning, exact, levels, predictions

RNG = np.random.default_rng(0)
PRIOR = exact.Gaussian(np.array([0.2, -0.4]), np.array([[1.0, 0.6], [0.6, 0.8]]))
MODELS = [(RNG.normal(size=(2, 2)), variance, RNG.normal(size=2)) for variance in (0.3, 0.5, 1.0)]
"""Of each observation the matrix A, the variance of its noise, and y = A x + noise."""
Z = RNG.normal(size=(3, 2))


def posterior(models: Any, prior: Any = PRIOR) -> exact.Gaussian:
    """N(m, C) given observations: C^{-1} = C_0^{-1} + sum A^T A / v, C^{-1} m = C_0^{-1} m_0 + sum A^T y / v."""
    precision = np.linalg.inv(prior.covariance)
    pulled = precision @ prior.mean
    for a, variance, y in models:
        precision, pulled = precision + a.T @ a / variance, pulled + a.T @ y / variance
    covariance = np.linalg.inv(precision)
    return exact.Gaussian(covariance @ pulled, 0.5 * (covariance + covariance.T))


EACH = [posterior([model]) for model in MODELS]
WHOLE = posterior(MODELS)
NOT_CALLABLE: Any = [1.0]


@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
@pytest.mark.parametrize("way", ["closed form", "of the data"])
def test_of_independent_observations_it_is_the_posterior_at_every_level(scaling: str, way: str) -> None:
    covariances = None if way == "closed form" else [part.covariance for part in (*EACH, PRIOR)]
    found = conditioning.observations(EACH, PRIOR, covariances=covariances).with_scaling(scaling)
    truth = WHOLE.with_scaling(scaling)
    of_elements = np.array([[-2.0, 1.0], [0.0, 3.0], [2.0, 2.0]])
    mixed, of_elements[2, 1] = np.array([-2.0, np.inf, 3.0]), 90.0
    for log_snr in (-30.0, -3.0, 0.0, 4.0, 25.0, 1e15, np.inf, np.array([-2.0, 0.0, 3.0]), mixed, of_elements):
        np.testing.assert_allclose(found(Z, log_snr), truth(Z, log_snr), rtol=1e-9, atol=1e-11)
        want = truth.posterior_covariance(Z, log_snr) * np.ones((3, 1, 1))
        np.testing.assert_allclose(found.posterior_covariance(Z, log_snr), want, rtol=1e-8, atol=1e-14)


@pytest.mark.torch
def test_pullbacks_give_covariances_up_to_clean_data_and_none_at_pure_noise() -> None:
    import torch

    z = torch.tensor(Z, dtype=torch.float32)
    found = conditioning.product([lambda z, at: EACH[0](z, at)], [1.0], prediction="x", scaling="vp")
    for log_snr in (0.0, 70.0, 1e15, np.inf):
        torch.testing.assert_close(found(z, torch.tensor(log_snr)), EACH[0](z, torch.tensor(log_snr)))
    for log_snr in (-1e15, -np.inf):
        with pytest.raises(ValueError, match="`log_snr` must be finite"):
            found(z, torch.tensor(log_snr))
    without = conditioning.product([PRIOR] * 2, [2.0, -1.0], covariances=[np.eye(2), np.diag([0.0, 0.5])])
    with pytest.raises(ValueError, match=r"conditioning\.Product: cannot work with `z` .*singular"):
        without(z, torch.tensor(0.0))


def test_another_prior_and_guidance_are_products_too() -> None:
    """Guidance is the product of c and u with the powers 1 + w and -w; products nest."""
    new = exact.Gaussian(np.array([1.0, 1.0]), np.array([[0.5, 0.1], [0.1, 0.3]]))
    found = conditioning.change_of_prior(conditioning.observations(EACH, PRIOR), PRIOR, new)
    np.testing.assert_allclose(found(Z, 0.5), posterior(MODELS, new)(Z, 0.5), rtol=1e-10)
    tilted = conditioning.product([EACH[0], PRIOR], [3.0, -2.0])
    np.testing.assert_allclose(tilted(Z, 0.5), posterior([MODELS[0]] * 3)(Z, 0.5), rtol=1e-10)


def test_variances_of_elements_need_no_matrix_and_levels_may_differ() -> None:
    prior, one = exact.Gaussian(np.zeros((2, 3)), 1.0), exact.Gaussian(np.full((2, 3), 0.5), 0.5)
    z, log_snr = RNG.normal(size=(2, 2, 3)), np.array([[-1.0, 2.0], [0.0, 5.0]])
    truth = exact.Gaussian(np.full((2, 3), 0.75), 0.25)
    found = conditioning.observations([one] * 3, prior, covariances=[0.5, np.full((2, 3), 0.5), 0.5, 1.0])
    np.testing.assert_allclose(found(z, log_snr), truth(z, log_snr), rtol=1e-12)
    np.testing.assert_allclose(conditioning.observations([one] * 3, prior)(z, log_snr), truth(z, log_snr), rtol=1e-12)


def test_the_sum_of_scores_is_right_at_the_clean_end_only() -> None:
    found = conditioning.observations(EACH, PRIOR, covariances="equal").with_scaling("vp")
    scores = sum(part.score(Z, 1.0) for part in EACH) - 2.0 * PRIOR.score(Z, 1.0)
    at = levels.level(1.0)
    np.testing.assert_allclose((at.alpha * found(Z, 1.0) - Z) / at.sigma**2, scores, rtol=1e-10)
    off = [np.abs(found(Z, log_snr) - WHOLE(Z, log_snr)).max() for log_snr in (0.0, 16.0)]
    assert off[0] > 0.1
    assert off[1] < 1e-5


def test_a_run_draws_the_posterior() -> None:
    plan = dc.samplers.unipc(dc.schedules.Cosine(), steps=40)
    drawn = dc.sample(conditioning.observations(EACH, PRIOR), plan, Z, seed=1)
    np.testing.assert_allclose(drawn, dc.sample(WHOLE, plan, Z, seed=1), rtol=1e-8)


@pytest.mark.parametrize(
    "library", [pytest.param("torch", marks=pytest.mark.torch), pytest.param("jax", marks=pytest.mark.jax)]
)
def test_of_networks_the_covariance_comes_from_their_gradients(library: str) -> None:
    import importlib

    def net(data: Any) -> Any:
        def denoise(z: Any, log_snr: Any) -> Any:
            at = levels.level(log_snr)
            return predictions.convert(data(z, log_snr), z, at, source="x", target="v")

        return denoise

    xp: Any = importlib.import_module("torch" if library == "torch" else "jax.numpy")
    found = conditioning.observations([net(part) for part in EACH], net(PRIOR), prediction="v", scaling="vp")
    z, log_snr = (xp.asarray(part.astype(np.float32)) for part in (Z, np.array([-2.0, 0.0, 3.0])))
    call = importlib.import_module("jax").jit(found) if library == "jax" else found
    np.testing.assert_allclose(call(z, log_snr), WHOLE(Z, np.array([-2.0, 0.0, 3.0])), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: conditioning.product([PRIOR], [2.0]),
            ValueError,
            r"`powers` must sum to 1, got \(2\.0,\); n posteriors",
        ),
        (
            lambda: conditioning.product([PRIOR], [1.0, 0.0]),
            ValueError,
            r"`powers` must be one number for each of the 1",
        ),
        (lambda: conditioning.product(NOT_CALLABLE, [1.0]), TypeError, r"`denoisers\[0\]` must be a function"),
        (lambda: conditioning.product([lambda z, l: z], [1.0]), TypeError, r"`prediction` must be what the denoiser"),
        (lambda: conditioning.product([PRIOR], [1.0], covariances="same"), ValueError, r"must be 'equal', got 'same'"),
        (lambda: conditioning.product([PRIOR], [1.0], covariances=[1.0, 2.0]), ValueError, r"one for each of the 1"),
        (
            lambda: conditioning.product([PRIOR], [1.0], covariances=[np.ones(3)])(Z, 0.0),
            ValueError,
            r"a number, \(2,\)",
        ),
        (lambda: conditioning.observations([], PRIOR), ValueError, r"`posteriors` must be at least one denoiser"),
        (
            lambda: conditioning.product([PRIOR.with_scaling("ve"), PRIOR.with_scaling("vp")], [1.0, 0.0]),
            ValueError,
            r"`denoisers` must have one scaling",
        ),
    ],
)
def test_bad_input_is_refused_with_the_way_out(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
