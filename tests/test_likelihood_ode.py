"""log q(z) by the probability-flow ODE, against Gaussians and mixtures, whose densities are in closed form or integrals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffcore import exact, levels, likelihood, predictions, samplers, schedules

VALUES = np.array([1.5, 0.5, 0.1])
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
DATA = exact.Gaussian(np.zeros(3), BASIS @ np.diag(VALUES) @ BASIS.T)
X = DATA.sample(1, 4)
LIBRARIES = [pytest.param("torch", marks=pytest.mark.torch), pytest.param("jax", marks=pytest.mark.jax)]


def schedule(scaling: str = "vp") -> schedules.Schedule:
    return schedules.LinearLogSNR(log_snr_min=-30.0, log_snr_max=20.0, scaling=scaling)


def plan(stages: int, scaling: str = "vp", sampler: Any = samplers.unipc, end: float = 18.0, **settings: Any) -> Any:
    settings = settings or ({"order": 3} if sampler is samplers.unipc else {})
    return sampler(schedule(scaling), grid=np.linspace(end, -end, stages + 1), **settings)


def test_of_a_gaussian_the_error_falls_at_the_order_of_the_plan() -> None:
    truth = DATA.log_likelihood(X, 18.0)
    off = [np.abs(likelihood.ode(DATA, X, plan(n)).log_prob - truth).max() for n in (200, 400)]
    assert off[1] < 3e-6
    assert off[0] / off[1] > 2**3.8  # UniPC-3: order 4
    for scaling in ("ve", "flow"):
        data = DATA.with_scaling(scaling)
        found = likelihood.ode(data, X, plan(200, scaling)).log_prob
        np.testing.assert_allclose(found, data.log_likelihood(X, 18.0), rtol=0.0, atol=1.01 * off[0])


@pytest.mark.parametrize(
    ("sampler", "settings", "order"),
    [
        (samplers.ddim, {}, 1),
        (samplers.heun, {}, 2),
        (samplers.dpm_solver, {"order": 3}, 3),
        (samplers.lms, {"order": 2}, 2),
    ],
)
def test_every_deterministic_plan_takes_the_density_along(sampler: Any, settings: Any, order: int) -> None:
    """Single-step, multistep and Runge-Kutta plans, from 6 to -6, beyond which the density is that of the ends."""
    off = []
    for n in (64, 128):
        found = likelihood.ode(DATA, X, plan(n, sampler=sampler, end=6.0, **settings))
        # the truth for the model whose density at -6 is N(0, I): the exact ODE scales each eigen-direction
        at, to = levels.level(6.0), levels.level(-6.0)
        gain = np.sqrt((to.alpha**2 * VALUES + to.sigma**2) / (at.alpha**2 * VALUES + at.sigma**2))
        end = (X @ BASIS) * gain
        truth = -0.5 * np.sum((end / to.sigma) ** 2, axis=1) - 1.5 * np.log(2.0 * np.pi * to.sigma**2)
        off.append(np.abs(found.log_prob - truth - np.sum(np.log(gain))).max())
        np.testing.assert_allclose(found.z @ BASIS, end, atol=0.1)
    assert off[0] / off[1] > 2 ** (order - 0.3)


def test_of_a_mixture_it_is_the_integral_of_its_density() -> None:
    """q(z) = integral of p(x) N(z; alpha x, sigma^2) dx, by the trapezoidal rule."""
    weights, means, variances = np.array([0.3, 0.7]), np.array([-1.0, 0.8]), np.array([0.04, 0.2])
    data = exact.Mixture(weights, means[:, None], variances)
    z = np.array([[-1.1], [-0.2], [0.9], [2.0]])
    at = levels.level(3.0)
    x = np.linspace(-6.0, 6.0, 4001)
    prior = np.sum(
        weights / np.sqrt(2 * np.pi * variances) * np.exp(-0.5 * (x[:, None] - means) ** 2 / variances), axis=1
    )
    noise = np.exp(-0.5 * ((z - at.alpha * x) / at.sigma) ** 2) / np.sqrt(2 * np.pi * at.sigma**2)
    truth = np.log(np.trapezoid(prior * noise, x, axis=1))
    end = samplers.unipc(schedule(), grid=np.linspace(3.0, -25.0, 401), order=3)
    np.testing.assert_allclose(likelihood.ode(data, z, end).log_prob, truth, atol=1e-4)


def test_levels_may_differ_between_samples_and_frames() -> None:
    """Independent frames: the density is the product of theirs, each from its own level, whoever waits."""
    data = exact.Gaussian(np.zeros((2, 3)), np.linspace(0.2, 1.2, 6).reshape(2, 3))
    x = data.sample(0, 2)
    waits = plan(120).per_frame(
        [[k, -1] for k in range(10)] + [[k, k - 10] for k in range(10, 120)] + [[-1, k] for k in range(110, 120)]
    )
    np.testing.assert_allclose(likelihood.ode(data, x, waits).log_prob, data.log_likelihood(x, 18.0), atol=1e-3)
    rows = np.linspace(np.array([18.0, 5.0]), np.array([-18.0, -18.0]), 121)
    each = samplers.unipc(schedule(), grid=rows, order=3)
    np.testing.assert_allclose(likelihood.ode(data, x, each).log_prob, data.log_likelihood(x, rows[0]), atol=1e-3)


class Net:
    """A network: the exact x-hat as any prediction, which only gradients tell more of."""

    def __init__(self, prediction: str, scaling: str) -> None:
        self.prediction, self.scaling, self.data = prediction, scaling, DATA.with_scaling(scaling)
        self.calls = 0

    def __call__(self, z: Any, log_snr: Any) -> Any:
        self.calls += 1
        at = levels.level(log_snr, self.scaling)
        return predictions.convert(self.data(z, log_snr), z, at, source="x", target=self.prediction)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("prediction", "scaling"),
    [("x", "vp"), ("eps", "ve"), ("v", "vp"), ("score", "flow"), ("flow", "flow"), ("edm", "ve")],
)
def test_of_a_network_the_trace_is_exact_under_every_prediction(prediction: str, scaling: str) -> None:
    import torch

    used = plan(24, scaling, end=9.0)
    truth = likelihood.ode(DATA, X, used)
    found = likelihood.ode(Net(prediction, scaling), torch.asarray(X), used)
    np.testing.assert_allclose(found.log_prob, truth.log_prob, rtol=1e-9)
    np.testing.assert_allclose(found.z, truth.z, rtol=1e-9)


@pytest.mark.torch
def test_hutchinson_is_unbiased_and_its_errors_average_out_over_the_stages() -> None:
    import torch

    repeats, net = 600, Net("eps", "vp")
    many = torch.asarray(X[:1]).repeat(repeats, 1)
    spread = []
    for stages in (40, 160):
        truth = likelihood.ode(net, torch.asarray(X[:1]), plan(stages, sampler=samplers.ddim)).log_prob
        found = likelihood.ode(net, many, plan(stages, sampler=samplers.ddim), probes=1, seed=3).log_prob - truth
        deviation = float(found.std())
        assert abs(float(found.mean())) < 4.0 * deviation / repeats**0.5
        spread.append(deviation)
    assert 0.0 < spread[1] < 0.6 * spread[0]  # half, with signs of their own in every stage
    few = likelihood.ode(net, many[:2], plan(16), probes=2, seed=3).log_prob
    assert not torch.equal(few[0], few[1])
    torch.testing.assert_close(likelihood.ode(net, many[:1], plan(16), probes=2, seed=3).log_prob, few[:1])


@pytest.mark.jax
@pytest.mark.torch
def test_on_jax_it_is_one_trace_with_the_probes_and_gradients_of_torch() -> None:
    import jax
    import torch

    used = plan(6, end=9.0)

    def torch_total(gain: Any, **how: Any) -> Any:
        return likelihood.ode(lambda z, l: gain * z, torch.asarray(X), used, prediction="v", **how).log_prob.sum()

    gain = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    want = torch_total(gain, probes=1, gradients=True)
    want.backward()
    near = [float(torch_total(torch.tensor(-0.3 + d, dtype=torch.float64), probes=1)) for d in (1e-5, -1e-5)]
    assert gain.grad is not None
    assert float(gain.grad) == pytest.approx((near[0] - near[1]) / 2e-5, rel=1e-6)
    assert not torch_total(gain).requires_grad
    calls = []
    with jax.enable_x64(True):

        def total(gain: Any) -> Any:
            def net(z: Any, log_snr: Any) -> Any:
                calls.append(1)
                return gain * z

            return likelihood.ode(net, jax.numpy.asarray(X), used, prediction="v", probes=1).log_prob.sum()

        value, slope = jax.jit(jax.value_and_grad(total))(-0.3)
        np.testing.assert_allclose([value, slope], [float(want.detach()), float(gain.grad)], rtol=1e-9)
        assert len(calls) <= 2  # not 6: the loop is traced, not unrolled
        found = jax.jit(lambda x: likelihood.ode(DATA, x, plan(64)).log_prob)(jax.numpy.asarray(X))
        np.testing.assert_allclose(found, likelihood.ode(DATA, X, plan(64)).log_prob, rtol=1e-9)


@pytest.mark.torch
def test_half_precision_is_carried_in_float32() -> None:
    import torch

    x, seen = torch.asarray(X).to(torch.bfloat16), set()

    def net(z: Any, log_snr: Any) -> Any:
        seen.add(z.dtype)
        return -0.3 * z

    used = plan(16, end=6.0)
    found = likelihood.ode(net, x, used, prediction="v")
    assert (found.log_prob.dtype, found.z.dtype, seen) == (torch.float32, torch.bfloat16, {torch.bfloat16})
    truth = likelihood.ode(lambda z, l: -0.3 * z, x.double(), used, prediction="v").log_prob
    np.testing.assert_allclose(found.log_prob, truth, rtol=0.02)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"plan": plan(4, sampler=samplers.ddim).log_snr}, TypeError, r"`plan` must be a diffcore\.Plan"),
        ({"plan": samplers.ancestral(schedule(), 4)}, ValueError, r"`plan` must be deterministic.*samplers\.unipc"),
        ({"plan": samplers.ddim(schedule(), 4)}, ValueError, r"`plan` must have finite log-SNRs"),
        ({"plan": samplers.ddim(schedule(), grid=[-3.0, 3.0])}, ValueError, r"`plan` must lead from data to noise"),
        ({"plan": plan(4, "ve")}, ValueError, r"`denoise` must have the scaling of `plan`, 've', got 'vp'"),
        ({"probes": 0}, ValueError, r"`probes` must be an int >= 1, got 0; or None"),
        ({"x": X.astype(int)}, TypeError, r"`x` has dtype int64"),
        ({"denoise": None}, TypeError, r"`denoise` must be a function"),
        ({"denoise": lambda z, l: z}, TypeError, r"`prediction` must be what the denoiser returns"),
        ({"denoise": Net("v", "vp")}, TypeError, r"numpy arrays carry no gradients"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(change: Any, kind: type[Exception], message: str) -> None:
    given = {"denoise": DATA.with_scaling("vp"), "x": X, "plan": plan(4), "probes": None} | change
    with pytest.raises(kind, match=message):
        likelihood.ode(**given)
