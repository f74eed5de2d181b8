"""log p(z' | z) of stages and runs, against the plan's Gaussians, changes of variables, and gradients of expected rewards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import diffcore as dc
from diffcore import exact, levels, likelihood, process, samplers, schedules

SCHEDULE = schedules.LinearLogSNR(log_snr_min=-6.0, log_snr_max=6.0)
GRID = np.linspace(-4.0, 4.0, 7)
STOCHASTIC: dict[str, Any] = {
    "ancestral": (samplers.ancestral, {"gamma": 0.3}),
    "ddim": (samplers.ddim, {"eta": 0.7}),
    "predictor_corrector": (samplers.predictor_corrector, {}),
    "dpm_solver_pp": (samplers.dpm_solver_pp, {"order": 2, "eta": 1.0}),
    "sa_solver": (samplers.sa_solver, {}),
    "seeds": (samplers.seeds, {}),
    "flow_grpo": (samplers.flow_grpo, {}),
}


def plan(name: str, scaling: str = "vp") -> Any:
    make, settings = STOCHASTIC[name]
    flow = schedules.LinearLogSNR(log_snr_min=-6.0, log_snr_max=6.0, scaling="flow")
    return make(flow if name == "flow_grpo" else SCHEDULE, grid=GRID, **settings)


def net(z: Any, log_snr: Any, gain: Any = -0.4) -> Any:
    return gain * z + 0.2


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_a_stage_of_ancestral_is_the_gaussian_of_the_process(gamma: float) -> None:
    """N(posterior mean at x-hat, posterior_variance^(1 - gamma) transition_variance^gamma)."""
    used = samplers.ancestral(SCHEDULE, grid=GRID, gamma=gamma)
    before = dc.start(used, shape=(3, 2, 2), like=np.zeros(1), seed=1)
    x_hat = np.tanh(before.z)
    after = dc.step(used, before, x_hat, prediction="x")
    t, s = (levels.level(float(at)) for at in GRID[:2])
    truth = process.posterior(before.z, x_hat, s=s, t=t)._replace(
        variance=np.asarray(process.reverse_variance(s, t, gamma))
    )
    found = likelihood.transition(used, before, after, x_hat, prediction="x")
    np.testing.assert_allclose(found, process.log_density(after.z, truth), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_transitions_integrate_to_one(name: str) -> None:
    """Over z' on a line, by the trapezoidal rule, which is exact for a Gaussian to rounding; at a stage that reads memory."""
    used = plan(name)
    state = dc.start(used, np.array([[0.7]]), seed=1)
    z = np.linspace(-30.0, 30.0, 20001)[:, None]
    seen = 0
    for k in range(len(used)):
        y = net(state.z, None)
        if used.noisy[k]:
            many = state._replace(
                z=np.repeat(state.z, len(z), 0), memory=tuple(np.repeat(m, len(z), 0) for m in state.memory)
            )
            density = np.exp(likelihood.transition(used, many, z, np.repeat(y, len(z), 0), prediction="v"))
            assert np.trapezoid(density, z[:, 0]) == pytest.approx(1.0, abs=1e-12)
            seen += 1
        state = dc.step(used, state, y, prediction="v")
    assert seen >= 5


def recorded(used: Any, seed: int = 3, x: Any = None) -> tuple[list[Any], list[Any]]:
    drawn: list[Any] = []

    def noise(draw: Any, shape: Any) -> Any:
        drawn.append(np.random.default_rng([seed, int(draw)]).normal(size=shape))
        return drawn[-1]

    states = [dc.start(used, np.full((2, 3), 0.5), noise=noise)]
    for _ in range(len(used)):
        states.append(dc.step(used, states[-1], net(states[-1].z, None), prediction="v", noise=noise))
    return states, drawn


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_run_has_the_density_of_its_noises_by_change_of_variables(name: str) -> None:
    """z' = mean + s eps: log p = log N(eps; 0, I) - D log s, stage by stage."""
    used = plan(name)
    states, drawn = recorded(used)
    s = used.update[np.array(used.noisy), 0, used.form.noise]
    truth = [
        np.sum(-0.5 * eps**2 - 0.5 * np.log(2 * np.pi) - np.log(abs(each)), axis=1)
        for eps, each in zip(drawn, s, strict=True)
    ]
    found = likelihood.trajectory(net, used, states, prediction="v")
    np.testing.assert_allclose(found, truth, rtol=1e-9)
    stage = next(k for k in range(len(used)) if used.noisy[k])
    one = likelihood.transition(used, states[stage], states[stage + 1], net(states[stage].z, None), prediction="v")
    np.testing.assert_allclose(one, truth[0], rtol=1e-9)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["ancestral", "dpm_solver_pp", "seeds"])
def test_the_gradient_of_a_run_goes_through_its_memory(name: str) -> None:
    import torch

    used = plan(name)
    states, _ = recorded(used)
    z = [torch.asarray(state.z) for state in states]

    def total(gain: Any) -> Any:
        return likelihood.trajectory(lambda z, l: net(z, l, gain), used, z, prediction="v").sum()

    found = torch.func.grad(total)(torch.tensor(-0.4, dtype=torch.float64))
    near = [float(total(torch.tensor(-0.4 + d, dtype=torch.float64))) for d in (1e-5, -1e-5)]
    assert float(found) == pytest.approx((near[0] - near[1]) / 2e-5, rel=1e-6)


@pytest.mark.torch
def test_the_policy_gradient_is_that_of_the_expected_reward() -> None:
    """A denoiser of N(m, c) draws N(phi m, v), so that E[reward] = -(phi m - 1)^2 - v has the gradient -2 phi (phi m - 1) in m."""
    import torch

    used = samplers.ancestral(SCHEDULE, grid=np.linspace(-4.0, 4.0, 5), gamma=0.5)  # noise in every stage
    mean, batch = 0.3, 20000
    slope, covariance = exact.moments(used, exact.Gaussian(np.ones(1), 0.25))
    phi = float(slope[0])

    def denoise(z: Any, log_snr: Any, mean: Any) -> Any:
        at = levels.level(log_snr)
        alpha, sigma = (part.reshape(-1, 1) for part in (at.alpha, at.sigma))
        return mean + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (z - alpha * mean)

    states = [dc.start(used, shape=(batch, 1), like=torch.zeros(1, dtype=torch.float64), seed=5)]
    for _ in range(len(used)):
        y = denoise(states[-1].z, used.level_for(states[-1]), mean)
        states.append(dc.step(used, states[-1], y, prediction="x"))
    reward = -((states[-1].z[:, 0] - 1.0) ** 2)
    advantage = reward - reward.mean()
    of_mean = torch.full((batch,), mean, dtype=torch.float64, requires_grad=True)  # one parameter for each sample
    runs = likelihood.trajectory(lambda z, l: denoise(z, l, of_mean[:, None]), used, states, prediction="x")
    (score,) = torch.autograd.grad(runs.sum(), of_mean)
    assert abs(float(score.mean())) < 4.0 * float(score.std()) / batch**0.5  # E[grad log p] = 0
    each = advantage * score
    truth = -2.0 * phi * (phi * mean - 1.0)
    assert abs(float(each.mean()) - truth) < 4.0 * float(each.std()) / batch**0.5
    assert float(each.std()) / batch**0.5 < 0.05 * truth
    assert float(states[-1].z.var()) == pytest.approx(float(covariance), rel=0.05)


@pytest.mark.jax
def test_a_transition_inside_a_traced_loop_of_jax() -> None:
    import jax
    import jax.numpy as jnp

    used = plan("ddim")
    state = dc.start(used, jnp.full((2, 3), 0.5), seed=1)
    y = net(state.z, None)
    after = dc.step(used, state, y, prediction="v")
    found = jax.jit(lambda index: likelihood.transition(used, state._replace(index=index), after, y, prediction="v"))(0)
    np.testing.assert_allclose(found, likelihood.transition(used, state, after, y, prediction="v"), rtol=1e-5)


def test_frames_that_wait_count_nothing() -> None:
    base = samplers.ancestral(SCHEDULE, grid=GRID)
    used = base.per_frame([[0, -1], [1, 0]])
    before = dc.start(used, np.ones((1, 2, 3)), seed=1)
    y = 0.3 * before.z
    after = dc.step(used, before, y, prediction="v")
    first = dc.start(base, np.ones((1, 3)), seed=1)
    want = likelihood.transition(base, first, after.z[:, 0], y[:, 0], prediction="v")
    np.testing.assert_allclose(likelihood.transition(used, before, after, y, prediction="v"), want, rtol=1e-12)


def test_mistakes_are_refused_with_the_way_out() -> None:
    used = samplers.ancestral(SCHEDULE, 2)
    states = [dc.start(used, np.ones((1, 2)), seed=1)]
    for _ in range(2):
        states.append(dc.step(used, states[-1], states[-1].z, prediction="v"))
    y = states[1].z
    with pytest.raises(
        ValueError, match=r"stage 1 of ancestral.* is deterministic, and z' has no density.*leave it out"
    ):
        likelihood.transition(used, states[1], states[2], y, prediction="v")
    with pytest.raises(ValueError, match=r"`before` and `after` must have equal shapes"):
        likelihood.transition(used, states[0], y[:, :1], y, prediction="v")
    with pytest.raises(TypeError, match=r"`before` must be a diffcore\.State"):
        likelihood.transition(used, y, y, y, prediction="v")
    with pytest.raises(ValueError, match=r"`plan` must add noise in a stage that is recorded.*samplers\.ancestral"):
        likelihood.trajectory(net, samplers.ddim(SCHEDULE, 2), states, prediction="v")
    with pytest.raises(ValueError, match=r"`states` must be the states of at least one of the 2 stages"):
        likelihood.trajectory(net, used, states[:1], prediction="v")
    with pytest.raises(
        ValueError, match=r"`states\[0\]` must be at stage 0 of the run, got 1; they begin with the start"
    ):
        likelihood.trajectory(net, used, states[1:], prediction="v")
    with pytest.raises(ValueError, match=r"`states\[1\]` went through other stages than those of ancestral"):
        likelihood.trajectory(net, samplers.ancestral(SCHEDULE, 3), states, prediction="v")
    with pytest.raises(ValueError, match=r"the run is over"):
        likelihood.transition(used, states[2], states[2], y, prediction="v")
