"""Every identity over every schedule, sampler, denoiser and weight; and every check sees what it is there to see."""

from __future__ import annotations

import importlib
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import every_framework, every_scaling, example
from sampler_cases import SAMPLERS, VARIANTS

import diffcore as dc
from diffcore import testing, weights
from diffcore.levels import level
from diffcore.testing import strategies

S = dc.schedules
SCHEDULES: dict[str, dc.schedules.Schedule] = {
    **S.table(),
    "Cosine whole": S.Cosine(log_snr_min=-math.inf, log_snr_max=math.inf),
    "Table": S.from_betas(np.linspace(1e-4, 0.02, 1000)),
}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)

KEEPS = [name for name, variant in VARIANTS.items() if variant.marginal]
GRID = np.linspace(-6.0, 6.0, 6)
CLEAN = np.array([-9.0, -4.0, -1.0, 0.5, 4.0, np.inf])

MATRIX = np.array([[1.0, 0.5, 0.2], [0.5, 2.0, 0.3], [0.2, 0.3, 0.4]])
POINTS = np.random.default_rng(0).normal(size=(5, 3))
DENOISERS: dict[str, Any] = {
    "Gaussian": dc.exact.Gaussian(np.array([0.1, 0.2, 0.3]), MATRIX),
    "Gaussian diagonal": dc.exact.Gaussian(np.array([0.1, 0.2, 0.3]), np.array([0.4, 1.0, 2.0])),
    "Mixture": dc.exact.Mixture([0.3, 0.7], POINTS[:2], [MATRIX, 0.3 * MATRIX]),
    "Empirical": dc.exact.Empirical(POINTS),
}


def cosine(scaling: str) -> dc.schedules.Schedule:
    return S.Cosine(scaling=scaling)


# Schedules


@pytest.mark.parametrize(
    ("library", "name", "dtype"),
    [
        pytest.param(library, name, dtype, marks=getattr(pytest.mark, library) if library != "numpy" else ())
        for library in ("numpy", "torch", "jax")
        for at, name in enumerate(SCHEDULES)
        for dtype in (("float32", "float64") if library == "numpy" else (("float32", "float64")[at % 2],))
    ],
)
def test_a_schedule_is_one(name: str, library: str, dtype: str) -> None:
    with example(library, dtype) as like:
        testing.check_schedule(SCHEDULES[name], like=like)


@every_schedule
def test_the_bound_depends_on_the_ends_of_a_schedule_alone(name: str) -> None:
    corners = name in ("Table", "Monotone")
    testing.check_bound(SCHEDULES[name], rtol=5e-3 if corners else 1e-6)


def test_two_schedules_with_the_same_ends_have_the_same_bound() -> None:
    """With the same quadrature of their own each, `check_bound` compares both with a form that knows only the ends."""
    for schedule in (S.Cosine(log_snr_min=-9.0, log_snr_max=7.0), S.LinearLogSNR(log_snr_min=-9.0, log_snr_max=7.0)):
        testing.check_bound(schedule, variance=1.3)


# Losses


@every_scaling
@pytest.mark.parametrize("name", weights.table())
def test_the_loss_does_not_depend_on_what_is_predicted(name: str, scaling: str) -> None:
    weight = weights.Sigmoid(bias=-1.0) if name == "sigmoid" else weights.table()[name]()
    testing.check_loss_invariance(level(np.linspace(-8.0, 8.0, 7), scaling), weight)


# Exact denoisers


def test_a_denoiser_that_lacks_a_method_raises_or_returns_another_shape_is_named() -> None:
    class Own(dc.exact.Gaussian):
        def score(self, z: Any, log_snr: Any) -> Any:
            return super().score(z, log_snr)[0]

        def log_likelihood(self, z: Any, log_snr: Any) -> Any:
            return super().log_likelihood(z, log_snr) if z.ndim == 2 else [][0]

    own = Own(np.zeros(2), 1.0)
    with pytest.raises(
        AssertionError, match=r"Own.score of z of shape \(1, 2\) returned shape \(2,\), but should return \(1, 2\)"
    ):
        testing.check_denoiser(own, 1.0, np.ones((1, 2)))
    with pytest.raises(
        AssertionError, match=r"Own.log_likelihood of z of .* raised IndexError: .* an array of shape \(1,\)"
    ):
        testing.check_denoiser(own, 1.0, np.ones((1, 2, 1)))
    for check, lacks in (
        (testing.check_denoiser, "denoise, score, log_likelihood"),
        (testing.check_conditional, "denoise, cond"),
    ):
        with pytest.raises(TypeError, match=rf"testing.{check.__name__}: `data` must have .* it lacks {lacks}"):
            check(np.tanh, np.ones((1, 2)), 1.0)


@every_scaling
@pytest.mark.parametrize("name", DENOISERS)
def test_an_exact_denoiser_agrees_with_its_likelihood(name: str, scaling: str) -> None:
    z = np.random.default_rng(1).normal(size=(2, 3))
    for log_snr in (-6.0, -1.0, 0.0, 2.0, 5.0):
        testing.check_denoiser(DENOISERS[name], log_snr, z, scaling=scaling)


@every_scaling
@pytest.mark.parametrize("mask", [[True, False, False], [False, True, True]])
def test_what_replacement_misses_is_a_gradient(mask: list[bool], scaling: str) -> None:
    for log_snr in (-5.0, 0.0, 3.0):
        testing.check_conditional(DENOISERS["Gaussian"], np.array(mask), log_snr, scaling=scaling)


# Plans, by algebra


@every_scaling
def test_samplers_that_are_one_have_one_plan(scaling: str) -> None:
    for grid in (GRID, CLEAN):
        testing.check_ddim_eta1_is_ancestral(cosine(scaling), grid)
        testing.check_dpm1_is_ddim(cosine(scaling), grid)


@every_scaling
@given(grid=strategies.grids())
def test_samplers_that_are_one_have_one_plan_on_any_grid(scaling: str, grid: Any) -> None:
    testing.check_ddim_eta1_is_ancestral(cosine(scaling), grid)
    testing.check_dpm1_is_ddim(cosine(scaling), grid)


@every_scaling
@pytest.mark.parametrize("sampler", [name for name in KEEPS if VARIANTS[name].composes])
def test_for_a_fixed_estimate_steps_compose(sampler: str, scaling: str) -> None:
    testing.check_composes(lambda grid: SAMPLERS[sampler](cosine(scaling), grid=grid), GRID)


@every_scaling
@pytest.mark.parametrize("sampler", KEEPS)
def test_given_x_a_run_goes_through_the_marginals(sampler: str, scaling: str) -> None:
    for grid in (GRID, CLEAN):
        testing.check_keeps_marginals(SAMPLERS[sampler](cosine(scaling), grid=grid))


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in KEEPS and "churn" not in name])
def test_more_noise_than_the_lower_bound_is_seen(sampler: str) -> None:
    with pytest.raises(AssertionError, match="keeps the variance at stage"):
        testing.check_keeps_marginals(SAMPLERS[sampler](cosine("vp"), grid=GRID))


@every_scaling
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exact_moments_are_those_of_the_sampler(sampler: str, scaling: str) -> None:
    for grid in (GRID, CLEAN):
        testing.check_moments(SAMPLERS[sampler](cosine(scaling), grid=grid), rtol=1e-10)


@given(plan=strategies.plans())
def test_exact_moments_are_those_of_any_sampler(plan: dc.Plan) -> None:
    testing.check_moments(plan, rtol=1e-8)


@every_scaling
@pytest.mark.parametrize("delta", [0.01, 0.1, 1.0])
def test_the_corrector_has_the_bias_that_math_gives_it(delta: float, scaling: str) -> None:
    testing.check_corrector_bias(cosine(scaling), delta=delta)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_step_returns_the_estimate(sampler: str) -> None:
    testing.check_last_step_returns_x(SAMPLERS[sampler](cosine("vp"), grid=CLEAN))


@given(plan=strategies.plans(clean=True))
def test_the_last_step_returns_the_estimate_whatever_the_plan(plan: dc.Plan) -> None:
    testing.check_last_step_returns_x(plan)


# Runs, with a denoiser that is not linear


def bend(z: Any, log_snr: Any) -> Any:
    """A bounded prediction in elementary arithmetic, so that every library gives the same bits at every batch size."""
    return z / (1.0 + z * z)


@every_framework
@pytest.mark.parametrize(
    "sampler",
    [
        "ancestral gamma=0.3",
        "predictor_corrector",
        "heun churn=4.0 noise_scale=1.003",
        "dpm_solver_pp order=3 eta=1.0",
        "unipc order=3",
    ],
)
def test_runs_are_functions_of_their_seeds(sampler: str, library: str) -> None:
    plan = SAMPLERS[sampler](cosine("vp"), grid=CLEAN[1:])
    with example(library) as like:
        testing.check_deterministic(bend, plan, like, prediction="v")
        if library != "jax":  # there it is checked with the linear denoiser, in test_conformance: compiling is slow
            testing.check_batch_equals_singles(bend, plan, like, prediction="v")
            testing.check_resumed(bend, plan, like, prediction="v")
            others = [plan, SAMPLERS["ddim"](cosine("flow"), grid=CLEAN[2:])]
            testing.check_interleaved(bend, others, like, prediction="v")


@given(plan=strategies.plans(), shape=strategies.shapes(min_axes=2))
def test_any_run_on_any_shape_is_its_samples(plan: dc.Plan, shape: tuple[int, ...]) -> None:
    testing.check_batch_equals_singles(bend, plan, shape=shape, prediction="v")


# Strategies


@given(schedule=strategies.schedules("flow"), grid=strategies.grids(clean=False), data=st.data())
def test_what_is_drawn_fits_together(schedule: dc.schedules.Schedule, grid: Any, data: st.DataObject) -> None:
    assert schedule.scaling == "flow"
    assert np.all(np.diff(grid) > 0.0)
    assert np.abs(grid).max() <= 12.0 + 1e-9
    batch = data.draw(strategies.batches(np.zeros(1, np.float32)))
    assert batch.dtype == np.float32
    lead = data.draw(strategies.leads(batch.shape))
    assert lead == batch.shape[: len(lead)]
    assert len(lead) <= 2


def test_only_the_strategies_need_hypothesis() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import diffcore as dc, numpy as np\n"
        "dc.testing.check_bound(dc.schedules.Cosine())\n"
        "try: dc.testing.strategies\n"
        "except ImportError as error: assert 'install diffcore[test]' in str(error), error\n"
        "else: raise SystemExit('no error')\n"
        "assert not {'torch', 'jax'} & set(sys.modules), 'a framework was imported'"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_every_public_check_is_documented_and_listed() -> None:
    for module in ("identities", "estimates", "plans", "runs", "noise", "precision", "convergence"):
        for name in importlib.import_module(f"diffcore.testing.{module}").__all__:
            if name.startswith("check_"):
                check = getattr(testing, name)
                assert ">>>" in check.__doc__, name
                assert name in (testing.__doc__ or ""), name


def test_the_page_has_every_public_name_in_its_table_and_every_strategy_in_its_example() -> None:
    page = (Path(__file__).parent.parent / "docs" / "testing.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`(\w+)`", table))
    assert named == {name for name in testing.__all__ if callable(getattr(testing, name))}
    assert set(re.findall(r"strategies\.(\w+)\(", page)) == set(strategies.__all__)
    assert {"ends=", "reach=", "min_gap="} <= set(re.findall(r"`(?:\w+, )?(\w+=)\w*`", page))
