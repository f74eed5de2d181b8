"""Soft masks: weights in [0, 1] are strengths of replacement, shares of projection, weights of guidance, precisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from libraries import every_framework, example, host, put
from sampler_cases import schedule_of

import diffcore as dc
from diffcore import levels
from diffcore.conditioning import downsample, moment_matching, projection, reconstruction, replacement
from diffcore.testing.affine import drawn_by

RNG = np.random.default_rng(2)
ROOT = RNG.normal(size=(6, 6))
COVARIANCE = ROOT @ ROOT.T / 6 + 0.1 * np.eye(6)
DATA = dc.exact.Gaussian(RNG.normal(size=6), COVARIANCE, scaling="vp")
MASK = np.array([1.0, 0.5, 0.25, 0.0, 0.75, 0.0])
GIVEN = np.where(MASK > 0, RNG.normal(size=6), np.nan)


@pytest.mark.parametrize("variant", ["marginal", "posterior"])
def test_a_strength_is_the_share_of_the_run_for_which_an_element_is_held(variant: str) -> None:
    """By algebra, where elements are independent: then the rest of the plan from q(z_k | x^a), k = m N."""
    plan, data = dc.samplers.ancestral(schedule_of("vp"), steps=8, gamma=0.3), dc.exact.Gaussian(np.zeros(6), 0.5)
    found = drawn_by(data, plan, (6,), constraint=replacement(GIVEN, MASK, variant=variant))
    for i, share in enumerate(MASK):
        k = int(8 * share)
        if k == 8:
            np.testing.assert_array_equal([found.mean[i], found.covariance[i, i]], [GIVEN[i], 0.0])
            continue
        level = levels.level(plan.log_snr[k])
        start = levels.Gaussian(level.alpha * GIVEN[i], level.sigma**2) if share else None
        want = dc.exact.moments(plan[k:], dc.exact.Gaussian(np.zeros(1), 0.5), start)
        np.testing.assert_allclose([found.mean[i], found.covariance[i, i]], [want.mean[0], want.covariance], atol=1e-12)


@every_framework
def test_where_a_soft_mask_is_0_or_1_it_is_a_hard_one_bit_for_bit(library: str) -> None:
    plan = dc.samplers.ancestral(schedule_of("vp"), steps=4, gamma=0.3)
    with example(library) as like:
        hard, soft = (
            host(
                dc.sample(lambda z, _: 0.5 * z, plan, shape=(2, 6), like=like, seed=1, prediction="v", constraint=held)
            )
            for held in (replacement(put(GIVEN, like), MASK == 1.0), replacement(put(GIVEN, like), put(MASK, like)))
        )
    sharp = (MASK == 1.0) | (MASK == 0.0)
    np.testing.assert_allclose(hard[:, sharp], soft[:, sharp], rtol=0.0, atol=1e-6 if library == "jax" else 0.0)
    assert np.isfinite(soft).all()


def test_a_weight_is_a_precision_for_moment_matching_and_a_factor_of_the_weight_of_guidance() -> None:
    z, deviation, seen = RNG.normal(size=(2, 6)), 0.4, MASK > 0
    x, covariance = DATA(z, 0.3), DATA.posterior_covariance(z, 0.3)[0]
    rows = np.eye(6)[seen]
    gain = covariance @ rows.T @ np.linalg.inv(rows @ covariance @ rows.T + np.diag(deviation**2 / MASK[seen]))
    want = x + (GIVEN - x)[:, seen] @ gain.T
    found = moment_matching(DATA, GIVEN, MASK, noise_std=deviation)(z, 0.3)
    np.testing.assert_allclose(found, want, atol=1e-9)
    half, whole = (
        reconstruction(DATA, np.nan_to_num(GIVEN), mask, weight=w)(z, 0.3)
        for mask, w in ((np.full(6, 0.5), 2.0), (None, 1.0))
    )
    np.testing.assert_allclose(half, whole, atol=1e-12)


def test_projection_goes_a_share_of_the_way() -> None:
    x, y, mask = (
        RNG.normal(size=(2, 1, 4, 4, 1)),
        RNG.normal(size=(2, 1, 2, 2, 1)),
        np.array([[0.0, 0.5], [1.0, 0.25]])[..., None],
    )
    down = downsample(2)
    moved = projection(y, mask, measure=down)(x)
    np.testing.assert_allclose(down(moved), down(x) + mask * (y - down(x)), atol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: replacement(np.zeros(6), np.full(6, 1.5)), r"weights in \[0, 1\].*mask / 255"),
        (lambda: replacement(np.zeros(6), np.full(6, np.nan)), r"weights in \[0, 1\]"),
        (lambda: replacement(np.full(6, np.nan), MASK), "4 known entries"),
        (lambda: moment_matching(DATA, GIVEN, MASK), r"weights between 0 and 1.*`noise_std` > 0"),
    ],
)
def test_bad_weights_say_what_to_do(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
