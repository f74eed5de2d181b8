"""Moment matching: the exact conditional expectation on Gaussian data, and a solver that does no harm elsewhere."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from libraries import host
from test_conditioning_guided import (
    DATA,
    EVENT,
    GIVEN,
    MASK,
    RNG,
    SIZE,
    X,
    Z,
    every_kind,
    every_scaling,
    saying,
    schedule,
    squares,
    to_x,
)

import diffcore as dc
from diffcore.conditioning import downsample, frame_average, moment_matching


@every_kind
@every_scaling
@pytest.mark.parametrize("lead", [(2,), (2, 3)])
def test_moment_matching_is_exact_on_gaussian_data(kind: str, scaling: str, lead: tuple[int, ...]) -> None:
    """E[x | z_t, x^a], at any levels, whatever z^a is."""
    for log_snr in (RNG.normal(size=lead), np.full(lead, -8.0), np.full(lead, 8.0)):
        guided = moment_matching(saying(kind, scaling), GIVEN, MASK, prediction=kind, schedule=schedule(scaling))
        z, at = torch.from_numpy(Z), torch.from_numpy(log_snr)
        want = DATA.with_scaling(scaling).conditional_denoise(Z, log_snr, X, MASK)
        np.testing.assert_allclose(to_x(guided(z, at), z, at, kind, scaling), want, atol=1e-6)


def test_moment_matching_is_exact_for_any_linear_measurement_and_for_several() -> None:
    """Against x-hat + K (y - A x-hat) by dense algebra, with and without noise in what was observed."""
    log_snr = np.array([0.7, -2.0])
    z, at = torch.from_numpy(Z), torch.from_numpy(log_snr)
    down, average = downsample(2), frame_average(3)
    unit = np.eye(SIZE).reshape(SIZE, *EVENT)
    rows = {
        "mask": (np.eye(SIZE)[MASK.ravel()], GIVEN[:, MASK], lambda d, s: moment_matching(d, GIVEN, MASK, noise_std=s)),
        "down": (
            down(unit).reshape(SIZE, -1).T,
            down(X).reshape(2, -1),
            lambda d, s: moment_matching(d, down(X), measure=down, noise_std=s),
        ),
        "average": (
            average(unit).reshape(SIZE, -1).T,
            average(X).reshape(2, -1),
            lambda d, s: moment_matching(d, average(X), measure=average, noise_std=s),
        ),
    }
    x, covariance = DATA(Z, log_snr).reshape(2, SIZE), DATA.posterior_covariance(Z, log_snr)
    for names in (("mask",), ("down",), ("average",), ("mask", "average"), ("down", "mask")):
        for noise in (0.3, 0.0):
            a = np.concatenate([rows[name][0] for name in names])
            y = np.concatenate([rows[name][1] for name in names], axis=1)
            guided: Any = DATA
            for name in names:
                guided = rows[name][2](guided, noise)
            guided = guided.with_scaling("vp")
            gain = covariance @ a.T @ np.linalg.pinv(a @ covariance @ a.T + noise**2 * np.eye(len(a)), rcond=1e-12)
            want = x + (gain @ (y - x @ a.T)[..., None])[..., 0]
            np.testing.assert_allclose(
                host(guided(z, at)).reshape(2, SIZE), want, atol=1e-6, err_msg=f"{names} {noise}"
            )


def test_a_measurement_that_is_not_linear_is_taken_by_its_derivative() -> None:
    z, log_snr, y = torch.from_numpy(Z), np.array([1.0, 0.0]), RNG.normal(size=(2, 2, 2, 1))
    found = host(moment_matching(DATA, y, measure=squares, schedule=schedule())(z, torch.from_numpy(log_snr)))
    x, covariance = DATA(Z, log_snr), DATA.posterior_covariance(Z, log_snr)
    a = host(torch.func.vmap(torch.func.jacrev(lambda x: squares(x[None])[0]))(torch.from_numpy(x))).reshape(2, 4, SIZE)
    seen = covariance @ a.transpose(0, 2, 1)
    left = (y - squares(x)).reshape(2, 4, 1)
    want = x + (seen @ np.linalg.solve(a @ seen, left)).reshape(x.shape)
    np.testing.assert_allclose(found, want, atol=1e-7)


def test_where_the_jacobian_is_lost_to_rounding_moment_matching_does_no_harm() -> None:
    """eps in float32 at log-SNR -20: never farther from the truth than without it, by more than rounding."""
    log_snr = np.full(2, -20.0)
    z = torch.from_numpy(Z).float()
    guided = moment_matching(saying("eps"), GIVEN, MASK, prediction="eps", schedule=schedule())
    found = to_x(guided(z, torch.from_numpy(log_snr).float()), z, log_snr, "eps", "vp")
    truth, alone = DATA.conditional_denoise(Z, log_snr, X, MASK), DATA(Z, log_snr)
    assert np.linalg.norm((found - truth)[:, ~MASK]) < 2.0 * np.linalg.norm((alone - truth)[:, ~MASK])
    kept = moment_matching(saying("v"), GIVEN, MASK, prediction="v", schedule=schedule())
    found = to_x(kept(z, torch.from_numpy(log_snr).float()), z, log_snr, "v", "vp")
    np.testing.assert_allclose(found[:, ~MASK], truth[:, ~MASK], atol=1e-3)


def test_data_without_variance_in_some_direction() -> None:
    data = dc.exact.Gaussian(np.zeros(3), np.outer([1.0, 2.0, -1.0], [1.0, 2.0, -1.0]))
    guided = moment_matching(data, np.array([0.5, 1.0, np.nan]), np.array([1, 1, 0]), schedule=schedule())
    found = host(guided(torch.zeros(1, 3, dtype=torch.float64), 0.3))
    np.testing.assert_allclose(found, [[0.5, 1.0, -0.5]], atol=1e-6)
    guided = moment_matching(data, np.array([0.5, 0.9, np.nan]), np.array([1, 1, 0]), schedule=schedule())
    found = host(
        guided(torch.zeros(1, 3, dtype=torch.float64), 0.3)
    )  # what the data cannot be: the nearest that it can
    np.testing.assert_allclose(found, np.array([[1.0, 2.0, -1.0]]) * (0.5 + 2.0 * 0.9) / 5.0, atol=1e-6)


def test_conjugate_residuals_solve_and_never_grow() -> None:
    solve = sys.modules["diffcore.conditioning._solve"].conjugate_residuals
    backend = dc.backends.of(np.zeros(1))
    right = RNG.normal(size=(5, 6))
    wild = RNG.normal(size=(5, 6, 6))  # neither symmetric nor positive
    good = wild @ wild.transpose(0, 2, 1) + 0.1 * np.eye(6)
    for matrix in (good, wild):
        product = lambda parts, m=matrix: ((m @ parts[0][..., None])[..., 0],)  # noqa: E731
        left = [np.linalg.norm(right - product(solve(backend, product, (right,), n))[0], axis=1) for n in range(1, 12)]
        assert (np.diff([np.linalg.norm(right, axis=1), *left], axis=0) <= 1e-12).all()
    solved = solve(backend, lambda parts: ((good @ parts[0][..., None])[..., 0],), (right,), 12)[0]
    np.testing.assert_allclose(solved, np.linalg.solve(good, right[..., None])[..., 0], atol=1e-6)
    huge = solve(backend, lambda parts: ((good @ parts[0][..., None])[..., 0],), (1e300 * right,), 12)[0]
    np.testing.assert_allclose(1e-300 * huge, solved, atol=1e-6)
    assert not np.any(solve(backend, lambda p: (0.0 * p[0],), (right,), 3)[0])
