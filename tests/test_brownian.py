"""Brownian noise is one path for every grid: its law by algebra, steps that compose, one limit, and a pure function."""

from __future__ import annotations

import itertools
from typing import Any

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import diffcore as dc
from diffcore import _brownian

WIDE = np.zeros(1)
LEVELS = st.lists(st.floats(-64.0, 64.0), min_size=2, max_size=6, unique_by=lambda level: round(level * 1024.0))
RATES = st.floats(1e-2, 10.0)


def covariance(eta: float, levels: Any) -> np.ndarray[Any, Any]:
    """That of the path at levels, from the weights of its independent nodes."""
    nodes, weights = _brownian.path(np, np.asarray(levels), eta)
    found, at = np.unique(nodes, return_inverse=True)
    table = np.zeros((len(nodes), len(found)))
    np.add.at(table, (np.arange(len(nodes))[:, None], at.reshape(nodes.shape)), weights)
    return np.asarray(table @ table.T)


@given(RATES, LEVELS)
def test_the_law_is_that_of_the_process(eta: float, levels: list[float]) -> None:
    """Cov[Y(a), Y(b)] = e^{-eta |a - b| / 2}, exactly, for levels of different cells."""
    cells = {np.floor(min(level, 64.0 - 1e-9) * 1024.0) for level in levels}
    want = np.exp(-0.5 * eta * np.abs(np.subtract.outer(levels, levels)))
    found = covariance(eta, levels)
    assert np.diag(found) == pytest.approx(1.0, abs=1e-13)
    if len(cells) == len(levels):
        assert found == pytest.approx(want, abs=1e-13)


@given(RATES, st.floats(-64.0, 64.0), st.floats(0.0, 30.0))
def test_noise_has_variance_one(eta: float, first: float, step: float) -> None:
    last = min(first + step, 64.0)
    if last > first:
        nodes, weights = _brownian.increment(np, np.float64(first), np.float64(last), eta)
        counted = weights[weights != 0.0]
        assert (counted**2).sum() == pytest.approx(1.0, abs=1e-12)
        assert len(set(nodes[weights != 0.0])) == len(counted)


@pytest.mark.parametrize("like", [WIDE, torch.zeros(1, dtype=torch.float64), array_api_strict.zeros(1)])
def test_increments_add_up(like: Any) -> None:
    """W(a, c) = W(a, b) + W(b, c) in the clock e^{eta lambda}, from pure noise and to clean data too."""
    for eta, ends in ((1.0, (-3.0, 0.2, 2.0)), (0.3, (-np.inf, -1.0, 12.5)), (2.0, (-9.0, 1.0, 7.0))):
        source, clock = dc.noise.brownian(7, eta=eta), np.exp(eta * np.array(ends))
        apart = [(0, 1), (1, 2), (0, 2)]
        drawn = [np.asarray(source(1, (2, 5), ends[a], ends[b], like=like)) for a, b in apart]
        first, second, whole = (eps * np.sqrt(clock[b] - clock[a]) for eps, (a, b) in zip(drawn, apart, strict=True))
        assert first + second == pytest.approx(whole, abs=1e-12 * clock[2])
    clean = np.asarray(source(1, (2, 5), 1.0, np.inf, like=like))
    assert np.all(np.isfinite(clean))


COMPOSING = {
    "ancestral": ({}, 1.0),
    "ddim": ({"eta": 1.0}, 1.0),
    "euler_ancestral": ({}, 1.0),
    "er_sde": ({"noise": "sde"}, 1.0),
    "dpm_solver_pp": ({"order": 3, "eta": 0.5}, 0.5),
    "seeds": ({"order": 3, "eta": 0.7}, 0.7),
    "sa_solver": ({"tau": 0.8}, 0.64),
}


@pytest.mark.parametrize("name", COMPOSING)
def test_two_steps_have_the_noise_of_one(name: str) -> None:
    """For a fixed x-hat a sampler with the noise of an SDE arrives at one state whatever its grid is."""
    settings, eta = COMPOSING[name]
    schedule = dc.schedules.LinearLogSNR(log_snr_min=-9.0, log_snr_max=9.0)
    fine = np.array([-8.0, -6.3, -4.0, -1.7, 0.4, 2.0, 5.5])
    ends = []
    for grid in (fine, fine[::2], fine[[0, -1]]):
        plan = dc.samplers.make(name, schedule, grid=grid, **settings)
        start = np.full((3, 4), 0.3)
        ends.append(
            dc.sample(lambda z, _: 0.0 * z + 0.7, plan, start, prediction="x", noise=dc.noise.brownian(5, eta=eta))
        )
    assert ends[1] == pytest.approx(ends[0], abs=1e-10)
    assert ends[2] == pytest.approx(ends[0], abs=1e-10)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("ancestral", {}), ("dpm_solver_pp", {"order": 2, "eta": 1.0}), ("er_sde", {}), ("euler", {"churn": 4.0})],
)
def test_one_seed_is_one_picture(name: str, settings: dict[str, Any]) -> None:
    """20, 40, 80 and 160 steps converge strongly at order 1: the noise is additive in lambda, so no half order is lost."""
    schedule = dc.schedules.LinearLogSNR(log_snr_min=-9.0, log_snr_max=9.0)
    data = dc.exact.Gaussian(np.array([0.3, -0.2]), 0.25)
    grids = [dc.grids.uniform_log_snr(schedule, steps) for steps in (20, 40, 80, 160)]
    plans = [dc.samplers.make(name, schedule, grid=grid, **settings) for grid in grids]
    drawn = [dc.sample(data, plan, shape=(200, 2), like=WIDE, noise=dc.noise.brownian(7)) for plan in plans]
    apart = [float(np.sqrt(np.mean((a - b) ** 2))) for a, b in itertools.pairwise(drawn)]
    assert apart[0] < 0.25
    assert np.log2(apart[0] / apart[2]) / 2.0 == pytest.approx(1.0, abs=0.2)


def test_a_batch_is_its_samples_and_a_run_can_be_resumed() -> None:
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), 6, eta=1.0)
    net = lambda z, _: 0.5 * z  # noqa: E731
    whole = dc.sample(net, plan, shape=(3, 7), noise=dc.noise.brownian(7), prediction="v")
    last = dc.noise.brownian(dc.noise.keys(7, 1, first=2))
    assert np.array_equal(dc.sample(net, plan, shape=(1, 7), noise=last, prediction="v")[0], whole[2])
    state = dc.start(plan, shape=(3, 7), noise=dc.noise.brownian(7))
    assert np.array_equal(state.z, dc.start(plan, shape=(3, 7), seed=7).z)
    for _ in range(3):
        state = dc.step(plan, state, net(state.z, None), prediction="v", noise=dc.noise.brownian(7))
    assert np.array_equal(dc.sample(net, plan, state, noise=dc.noise.brownian(7), prediction="v"), whole)


def test_levels_have_axes_and_some_stages_no_path() -> None:
    """Per sample and frame, each as if it were alone; a stage that waits or goes back has the noise of its draw."""
    source, shape = dc.noise.brownian(3), (2, 3, 4)
    found = source(5, shape, np.array([[-3.0, 1.0, 0.2]]), np.array([[-1.0, 1.5, 0.2]]), like=WIDE)
    assert np.array_equal(found[:, 0], source(5, shape, -3.0, -1.0, like=WIDE)[:, 0])
    assert np.array_equal(found[:, 2], dc.noise.normal(3, 5, shape, like=WIDE)[:, 2])
    rows = source(5, shape, np.array([-3.0, 1.0]), np.array([-1.0, -2.0]), like=WIDE)
    assert np.array_equal(rows[0], source(5, shape, -3.0, -1.0, like=WIDE)[0])
    assert np.array_equal(rows[1], dc.noise.normal(3, 5, shape, like=WIDE)[1])


@pytest.mark.jax
def test_jax_traces_it() -> None:
    """The levels are traced in a run, and the number of the stage by hand; float64 has the bits of the path to rounding."""
    plan = dc.samplers.predictor_corrector(dc.schedules.Cosine(), 2, gamma=0.3)
    with jax.enable_x64(True):
        like, source = jnp.zeros(1), dc.noise.brownian(7)
        want = dc.sample(lambda z, _: 0.5 * z, plan, shape=(2, 3), like=WIDE, noise=source, prediction="v")
        state = dc.start(plan, shape=(2, 3), like=like, noise=source)
        found = dc.sample(lambda z, _: 0.5 * z, plan, state, noise=source, prediction="v")
        assert np.asarray(found) == pytest.approx(want, abs=1e-12)
        step = jax.jit(lambda state: dc.step(plan, state, 0.5 * state.z, prediction="v", noise=source))
        begun = dc.start(plan, shape=(2, 3), like=WIDE, noise=source)
        after = dc.step(plan, begun, 0.5 * begun.z, prediction="v", noise=source)
        assert np.asarray(step(state).z) == pytest.approx(after.z, abs=1e-12)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="`eta` must be a finite number > 0, got 0"):
        dc.noise.brownian(7, eta=0)
    with pytest.raises(ValueError, match=r"`log_snr` must be in \[-64, 64\], or infinite, got 70"):
        dc.noise.brownian(7)(1, (2, 3), 0.0, 70.0)
    with pytest.raises(TypeError, match="`seed`"):
        dc.noise.brownian(0.5)(1, (2, 3), 0.0, 1.0)


@pytest.mark.torch
def test_a_compiled_run_draws_all_nodes_at_once() -> None:
    """The same noise, in a graph of 1,100 operations with the start, where one draw for each node makes thousands."""
    plan, sizes = dc.samplers.ancestral(dc.schedules.Cosine(), grid=[-2.0, 2.0]), []

    def run(z: Any) -> Any:
        return dc.sample(lambda z, _: 0.5 * torch.tanh(z), plan, z, noise=dc.noise.brownian(7), prediction="x")

    def counted(graph: Any, _: Any) -> Any:
        sizes.append(len(graph.graph.nodes))
        return graph

    z = torch.ones(2, 3)
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend=counted)(z), run(z))
    assert sizes
    assert sizes[0] < 1500
