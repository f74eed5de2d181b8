"""The order at which every sampler converges, measured on Gaussian data against the closed form."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from sampler_cases import SAMPLERS, VARIANTS

import diffcore as dc
from diffcore.testing import check_order, order_of_convergence

each = pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])


def schedule_of(scaling: str) -> Any:
    return dc.schedules.LinearLogSNR(scaling=scaling)


@each
@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.order is not None])
def test_a_deterministic_sampler_has_its_order(name: str, scaling: str) -> None:
    make, order = SAMPLERS[name], VARIANTS[name].order
    assert order is not None
    few: Any = {"steps": (64, 128, 256)} if order <= 2 else {}  # a high order is reached later, or ends in rounding
    check_order(lambda grid: make(schedule_of(scaling), grid=grid), order, within=0.15, **few)


@each
@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.weak is not None])
def test_a_noisy_sampler_has_its_weak_order(name: str, scaling: str) -> None:
    make, order = SAMPLERS[name], VARIANTS[name].weak
    assert order is not None
    few: Any = {"steps": (64, 128, 256)} if order < 2 else {}
    check_order(lambda grid: make(schedule_of(scaling), grid=grid), order, within=0.3, **few)


def test_every_sampler_is_in_the_table_under_its_name() -> None:
    for name, row in dc.samplers.table().items():
        assert inspect.unwrap(row.make) is inspect.unwrap(getattr(dc.samplers, name))
        for steps in (1, 2, 5):
            assert len(row.make(schedule_of("vp"), steps)) == row.calls(steps)


def test_a_first_order_start_amid_signal_costs_3m_an_order() -> None:
    """The first step of a multistep method has order 1: an error of h^2, whatever comes after it."""
    make = SAMPLERS["dpm_solver_pp order=3"]
    found = order_of_convergence(lambda grid: make(schedule_of("vp"), grid=grid), log_snrs=(-4.0, 6.0))
    assert found.order == pytest.approx(2.0, abs=0.1)


def test_a_corrector_does_not_converge_to_the_truth_but_to_its_bias() -> None:
    """math.md, trap 7: at lambda = 0 its stationary variance is too large by 1 / (1 - delta k / 4), however many steps."""
    schedule, steps = schedule_of("vp"), (512, 1024, 2048)
    found = order_of_convergence(
        lambda grid: dc.samplers.predictor_corrector(schedule, grid=grid, delta=0.1),
        log_snrs=(-6.0, 0.0),
        variances=(1.0,),
        steps=steps,
    )
    k = 0.5
    assert found.errors[-1] == pytest.approx(1.0 / (1.0 - 0.1 * k / 4.0) - 1.0, rel=0.15)
    assert found.errors[-1] > 0.8 * found.errors[-2]


def test_the_ode_scales_a_direction_by_its_standard_deviation() -> None:
    """What the orders are measured against, by a solver of another kind: a Runge-Kutta of order 8 from SciPy."""
    from scipy.integrate import solve_ivp

    c, grid = 1.7, (-6.0, 6.0)

    def slope(l: float, z: Any) -> Any:
        at = dc.levels.level(l)
        x = at.alpha * c / (at.alpha**2 * c + at.sigma**2) * z
        eps = (z - at.alpha * x) / at.sigma
        return 0.5 * at.alpha * at.sigma * (at.sigma * x - at.alpha * eps)  # d alpha/dl x + d sigma/dl eps

    solved = solve_ivp(slope, grid, [1.0], method="DOP853", rtol=1e-12, atol=1e-14).y[0, -1]
    first, last = (dc.levels.level(l) for l in grid)
    truth = np.sqrt((last.alpha**2 * c + last.sigma**2) / (first.alpha**2 * c + first.sigma**2))
    assert solved == pytest.approx(float(truth), rel=1e-10)


def test_a_wrong_order_is_said_with_the_errors() -> None:
    with pytest.raises(AssertionError, match=r"order of convergence of ddim\(eta=0.0\): 1\.\d\d|0\.9.*should be 2"):
        check_order(lambda grid: dc.samplers.ddim(schedule_of("vp"), grid=grid), 2.0)
    with pytest.raises(ValueError, match="take fewer"):
        order_of_convergence(lambda grid: dc.samplers.ddim(schedule_of("vp"), grid=grid), floor=1.0)
