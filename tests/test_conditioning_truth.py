"""Conditioning against the truth: what is drawn, by algebra, next to the true conditional distribution."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from libraries import host
from sampler_cases import RUNS, SAMPLERS, schedule_of

import diffcore as dc
from diffcore.conditioning import moment_matching, reconstruction, replacement
from diffcore.exact import moments
from diffcore.testing.affine import drawn_by

torch.set_num_threads(1)

EVENT = (3, 2)
TIME = 0.8 ** np.abs(np.subtract.outer(np.arange(3), np.arange(3)))
COVARIANCE = np.kron(TIME, np.array([[1.0, 0.4], [0.4, 0.7]]))
DATA = dc.exact.Gaussian(np.linspace(-0.5, 0.5, 6).reshape(EVENT), COVARIANCE)
MASK = np.array([[True], [False], [False]])
KNOWN = np.broadcast_to(MASK, EVENT).ravel()
GIVEN = np.array([[1.5, -0.5], [np.nan, np.nan], [np.nan, np.nan]])
LIKE = torch.zeros((), dtype=torch.float64)
some_samplers = pytest.mark.parametrize(
    "name",
    ["ancestral gamma=0.3", "ddim", "heun churn=4.0 noise_scale=1.003", "dpm_solver_pp order=3 eta=1.0", "unipc"],
)


@pytest.mark.parametrize("name", RUNS)
def test_runs_by_algebra_are_the_moments_of_the_plan(name: str) -> None:
    """Two ways to the same numbers: in the eigenbasis of the data, and from the steps of the loop."""
    plan = SAMPLERS[name](schedule_of("vp"), steps=6)
    found, want = drawn_by(DATA, plan, EVENT), moments(plan, DATA)
    np.testing.assert_allclose(found.mean.reshape(EVENT), want.mean, atol=1e-9)
    np.testing.assert_allclose(found.covariance, want.covariance, atol=1e-9)


def test_runs_by_algebra_with_levels_per_frame() -> None:
    low = np.array([[-4.0, -3.0, -2.0]])
    plan = SAMPLERS["dpm_solver_pp order=2 eta=1.0"](
        schedule_of("ve"), grid=np.stack([low + 2.0 * k for k in range(5)])
    )
    found, want = drawn_by(DATA, plan, EVENT), moments(plan, DATA)
    np.testing.assert_allclose(found.mean.reshape(EVENT), want.mean[0], atol=1e-9)
    np.testing.assert_allclose(found.covariance, want.covariance[0], atol=1e-9)


@some_samplers
@pytest.mark.parametrize("held", [None, "marginal", "posterior"])
def test_moment_matching_draws_what_the_exact_conditional_denoiser_draws(name: str, held: str | None) -> None:
    """With and without replacement: the conditional expectation does not depend on z^a."""
    plan = SAMPLERS[name](schedule_of("vp"), steps=6)
    constraint = None if held is None else replacement(GIVEN, MASK, variant=held)
    guided = moment_matching(DATA.to(LIKE), GIVEN, MASK)
    found = drawn_by(guided, plan, EVENT, constraint=constraint, like=LIKE)
    want = moments(plan, DATA.conditional(GIVEN, MASK))
    np.testing.assert_allclose(found.mean[~KNOWN], want.mean.ravel()[~KNOWN], atol=1e-6)
    np.testing.assert_allclose(
        found.covariance[np.ix_(~KNOWN, ~KNOWN)], want.covariance[np.ix_(~KNOWN, ~KNOWN)], atol=1e-6
    )
    np.testing.assert_allclose(found.mean[KNOWN], GIVEN.ravel()[KNOWN], atol=0.0 if held else 1e-6)
    np.testing.assert_allclose(found.covariance[KNOWN], 0.0, atol=0.0 if held else 1e-6)


@pytest.mark.parametrize("variant", ["marginal", "posterior"])
def test_samples_have_the_moments_of_the_algebra(variant: str) -> None:
    """So the seeds make the noise that the algebra assumes, of z^a and z^b, all of it independent."""
    count = 4000
    plan = SAMPLERS["predictor_corrector"](schedule_of("vp"), steps=4)
    guided = reconstruction(DATA.to(LIKE), GIVEN, MASK, weight=1.5)
    held = replacement(GIVEN, MASK, variant=variant)
    want = drawn_by(guided, plan, EVENT, constraint=held, like=LIKE)
    clips = host(dc.sample(guided, plan, shape=(count, *EVENT), like=LIKE, seed=5, constraint=held)).reshape(count, 6)
    root = np.linalg.cholesky(want.covariance[np.ix_(~KNOWN, ~KNOWN)])
    white = np.linalg.solve(root, (clips - want.mean)[:, ~KNOWN].T)
    np.testing.assert_allclose(white.mean(axis=1), 0.0, atol=5.0 / count**0.5)
    np.testing.assert_allclose(np.cov(white), np.eye(4), atol=7.0 / count**0.5)


@pytest.fixture(scope="module")
def benchmark_module() -> Any:
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "conditioning.py"
    spec = importlib.util.spec_from_file_location("conditioning_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["extension", "interpolation"])
def test_guidance_is_twice_and_moment_matching_ten_times_closer_than_replacement(
    name: str, benchmark_module: Any
) -> None:
    case = benchmark_module.problems()[name]
    plan = dc.samplers.dpm_solver_pp(benchmark_module.SCHEDULE, steps=96, order=2, eta=1.0)
    found = benchmark_module.measure(case, plan, weights=(2.5,))
    replaced = min(found["replacement"], found["replacement, posterior"])
    assert found["none"] > 2.0 * replaced
    assert replaced > 2.0 * found["reconstruction, w = 2.5"]
    assert replaced > 10.0 * found["moment matching"]
    np.testing.assert_allclose(found["moment matching"], found["exact conditional denoiser"], rtol=1e-5)


def test_the_divergence_is_zero_for_the_truth_and_right_for_another(benchmark_module: Any) -> None:
    """Drawing the data without regard to x^a: KL = (mean square distance + trace - log det) / 2, in closed form."""
    case = benchmark_module.problems()["extension"]
    plan = dc.samplers.heun(benchmark_module.SCHEDULE, steps=300)  # enough that its own error does not show
    assert benchmark_module.divergence(case, plan, benchmark_module.Conditional, None) < 3e-3
    a = case.mask.ravel()
    within, across, own = (case.covariance[np.ix_(i, j)] for i, j in ((a, a), (~a, a), (~a, ~a)))
    explained = across @ np.linalg.solve(within, across.T)
    truth = own - explained
    want = 0.5 * (np.trace(np.linalg.solve(truth, own + explained)) - len(own))
    want += 0.5 * (np.linalg.slogdet(truth)[1] - np.linalg.slogdet(own)[1])
    found = benchmark_module.divergence(case, plan, benchmark_module.unconditioned, None)
    np.testing.assert_allclose(found, want, rtol=0.01)


def test_levels_per_sample_are_refused() -> None:
    plan = SAMPLERS["ddim"](schedule_of("vp"), grid=np.linspace([-2.0] * 2, [2.0] * 2, 4))
    with pytest.raises(ValueError, match=r"\(2,\)"):
        drawn_by(DATA, plan, EVENT)
