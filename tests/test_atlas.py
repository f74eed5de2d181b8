"""The atlas asks what can be known by algebra, and gets the known answers where there are any."""

from __future__ import annotations

import math

import numpy as np
import pytest

import diffcore as dc
from benchmarks import atlas, atlas_peers


def euler(grid: np.ndarray) -> dc.Plan:
    return dc.samplers.ddim(atlas.SCHEDULE, grid=grid)


def heun(grid: np.ndarray) -> dc.Plan:
    return dc.samplers.heun(atlas.SCHEDULE, grid=grid)


def test_a_row_holds_the_known_order_and_the_exact_moments() -> None:
    row = atlas.measure("diffcore", "heun", heun)
    assert abs(row.even - 2.0) < 0.1
    assert abs(row.uneven - 2.0) < 0.1
    assert (row.memory, row.stochastic) == (1, False)
    mean, variance = dc.exact.moments(heun(atlas.run_grid(10)), dc.exact.Gaussian(np.ones(1), np.array([0.25])))
    assert len(heun(atlas.run_grid(10))) == 19  # the most steps in 20 calls
    np.testing.assert_allclose((row.mean, row.deviation**2), (mean[0], variance[0]), rtol=1e-12)
    assert list(row.kl) == sorted(row.kl, reverse=True)


def test_the_divergence_of_a_run_is_that_of_gaussians_on_the_spectrum() -> None:
    c, share = atlas.spectrum()
    assert np.isclose(np.average(c, weights=share), 0.25)
    plan = dc.samplers.ddim(atlas.SCHEDULE, grid=atlas.run_grid(12))
    ratios = [dc.exact.moments(plan, dc.exact.Gaussian(np.zeros(1), np.array([one])))[1].item() / one for one in c]
    want = sum(part * 0.5 * (ratio - 1.0 - math.log(ratio)) for part, ratio in zip(share, ratios, strict=True))
    assert math.isclose(atlas.divergence(plan), want, rel_tol=1e-9)


@pytest.mark.parametrize("calls", [1, 5, 20])
def test_a_run_makes_no_more_calls_than_it_may(calls: int) -> None:
    for make in (euler, heun):
        plan = atlas.within(make, calls)
        assert plan is not None
        assert calls - 2 < len(plan) <= calls


def test_claims_are_read_from_names_and_settings() -> None:
    names = {"unipc(order=2)": 3, "DEISMultistepScheduler(solver_order=3)": 3, "sample_lms": 4, "ancestral": None}
    names["sa_solver(order=3, corrector_order=4)"] = 3
    assert {name: atlas_peers.claim(name) for name in names} == names


def test_a_sampler_that_misses_its_order_is_listed() -> None:
    row = atlas.Row("mine", "heun(order=3)", False, 0, 2.0, 2.0, 1.0, 0.5, (0.1,) * 4, 1.0)
    assert "| mine | `heun(order=3)` | 3 | 2.0 | 2.0 |" in atlas.exceptions([row])
    assert "heun" not in atlas.exceptions([row._replace(sampler="heun(order=2)")])
