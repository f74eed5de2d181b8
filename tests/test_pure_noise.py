"""Plans that start without any signal, lambda = -inf: the limit of plans that start ever noisier."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from sampler_cases import SAMPLERS as ALL
from sampler_cases import VARIANTS

import diffcore as dc

FLOW = dc.schedules.Flow()
SAMPLERS = {name: make for name, make in ALL.items() if VARIANTS[name].pure_noise}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def make(sampler: str, grid: Any) -> dc.Plan:
    with warnings.catch_warnings(), np.errstate(divide="warn", invalid="warn", over="warn"):
        warnings.simplefilter("error")
        return ALL[sampler](FLOW, grid=grid)


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
def test_a_start_from_pure_noise_is_the_limit_of_noisier_starts(sampler: str, steps: int) -> None:
    grid = dc.grids.uniform(FLOW, steps)
    near = grid.copy()
    near[0] = -1e10
    np.testing.assert_allclose(make(sampler, grid).update, make(sampler, near).update, rtol=0, atol=1e-9)


@every_sampler
def test_samples_that_start_from_pure_noise_and_others_share_a_plan(sampler: str) -> None:
    grids = [dc.grids.uniform(FLOW, 6), np.array([-9.0, -5.0, -1.0, 0.0, 2.0, 5.0, math.inf])]
    both = make(sampler, np.stack(grids, axis=-1))
    for sample, grid in enumerate(grids):
        np.testing.assert_allclose(both.update[:, sample], make(sampler, grid).update, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("sampler", "order"), [("unipc", 2.0), ("heun", 2.0), ("dpm_solver_pp", 2.0), ("ddim", 1.0)])
def test_the_variance_drawn_from_pure_noise_converges(sampler: str, order: float) -> None:
    data = dc.exact.Gaussian(np.zeros(1), np.array([0.3]), scaling="flow")
    errors = [
        abs(dc.exact.moments(make(sampler, dc.grids.uniform(FLOW, steps)), data).covariance[0] - 0.3)
        for steps in (64, 256)
    ]
    assert math.log(errors[0] / errors[1], 4.0) > order - 0.25


WITHOUT_SIGNAL = dc.schedules.Cosine(log_snr_min=-math.inf)


def test_heun_in_sigma_over_alpha_from_pure_noise_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"samplers.heun: `grid` must .*, got -inf; .* use unipc or dpm_solver_pp"):
        dc.samplers.heun(WITHOUT_SIGNAL, grid=dc.grids.uniform(WITHOUT_SIGNAL, 4))
    assert len(dc.samplers.heun(WITHOUT_SIGNAL, grid=dc.grids.uniform(WITHOUT_SIGNAL, 1))) == 1


@pytest.mark.parametrize("sampler", [name for name in ALL if not VARIANTS[name].pure_noise and "churn" not in name])
def test_a_sampler_that_cannot_start_from_pure_noise_refuses_with_the_way_out(sampler: str) -> None:
    with pytest.raises(ValueError, match=r"`grid` must start at a finite log-SNR, got -inf; see schedules\.truncate"):
        make(sampler, dc.grids.uniform(FLOW, 4))
    assert len(make(sampler, dc.grids.uniform(FLOW, 1))) == 1  # one step to clean data is x-hat
