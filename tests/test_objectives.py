"""Flow maps, consistency, learned variances and the rest: where the truth is known, no gradient moves away from it."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import diffcore as dc
from diffcore import exact, levels, losses, objectives, predictions, process, schedules

DATA = exact.Gaussian(np.array([0.5]), 0.3)
FLOW, INF = DATA.with_scaling("flow"), float("inf")
RNG = np.random.default_rng(0)
X, EPS = DATA.sample(1, 5), RNG.normal(size=(5, 1))
LIBRARIES = [pytest.param("torch", marks=pytest.mark.torch), pytest.param("jax", marks=pytest.mark.jax)]


def flow_level(sigma: Any) -> dc.Level:
    sigma = np.asarray(sigma)
    with np.errstate(divide="ignore"):
        return levels.level(2.0 * np.log((1.0 - sigma) / sigma), "flow")


T, S, MIDDLE = (
    flow_level([0.9, 0.7, 0.5, 0.4, 0.2]),
    flow_level([0.3, 0.2, 0.5, 0.1, 0.15]),
    flow_level([0.5, 0.3, 0.5, 0.3, 0.18]),
)


@pytest.mark.parametrize("huber", [1e-300, 1e-4, 0.3, 1.0, 1e4, 1e160, 1e300])
def test_the_huber_loss_is_finite_for_every_constant(huber: float) -> None:
    """sqrt(e^2 + c^2) - c = e^2 / (hypot(e, c) + c), which neither overflows nor cancels; e for c = 0."""
    net = lambda z, _: 0.3 * z  # noqa: E731
    how: dict[str, Any] = {"t": levels.level(0.0), "s": levels.level(2.0), "prediction": "x"}
    for scale in (0.0, 1e-6, 1.0, 1e6):
        square = objectives.consistency_pair(net, scale * X, scale * EPS, **how)
        weight = 1.0 / (1.0 - np.exp(-1.0))
        error = np.sqrt(square / weight)
        want = weight * error * (error / np.maximum(np.hypot(error, huber) + huber, 1e-300))
        found = objectives.consistency_pair(net, scale * X, scale * EPS, **how, huber=huber)
        np.testing.assert_allclose(found, want, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize(
    "covariance",
    [np.array([0.3, 1.2]), np.array([[1.0, 0.6], [0.6, 0.5]]), exact.LowRank(np.array([[0.8], [0.3]]), 0.1)],
    ids=["independent", "full", "low rank"],
)
def test_the_maps_of_a_gaussian_are_the_integral_of_its_ode(covariance: Any) -> None:
    """d(z / sigma) / d lambda = (1/2) e^{lambda/2} x-hat under every scaling."""
    data, z = exact.Gaussian(np.array([0.4, -0.7]), covariance), np.array([[0.8, -0.3]])
    for scaling in ("vp", "ve", "flow"):
        of = data.with_scaling(scaling)

        def slope(log_snr: float, w: Any, of: Any = of, scaling: str = scaling) -> Any:
            sigma = levels.level(log_snr, scaling).sigma
            return 0.5 * np.exp(0.5 * log_snr) * of(sigma * w[None], log_snr)[0]

        t, s = (levels.level(at, scaling) for at in (-2.0, 3.0))
        end = solve_ivp(slope, (-2.0, 3.0), z[0] / t.sigma, rtol=1e-10, atol=1e-12).y[:, -1] * s.sigma
        np.testing.assert_allclose(of.flow_map(z, -2.0, 3.0)[0], end, rtol=1e-7)
        np.testing.assert_allclose(of.flow_map(of.flow_map(z, -2.0, 3.0), 3.0, -2.0), z, rtol=1e-12)
        np.testing.assert_allclose(of.consistency(of.flow_map(z, -2.0, 3.0), 3.0), of.consistency(z, -2.0), rtol=1e-12)
    want = (z[0] - end) / (t.sigma - s.sigma)
    np.testing.assert_allclose(data.average_velocity(z, -2.0, 3.0)[0], want, rtol=1e-7)
    velocity = (z - of(z, -2.0)) / t.sigma  # and no cancellation as the two levels meet
    for near in (-2.0, -2.0 + 1e-12):
        np.testing.assert_allclose(data.average_velocity(z, -2.0, near), velocity, rtol=1e-9)


def test_a_run_of_the_average_velocity_is_exact_in_any_number_of_steps() -> None:
    schedule = schedules.LinearLogSNR(log_snr_min=-8.0, log_snr_max=8.0, scaling="flow")
    z = np.array([[0.3], [-1.2]])
    for steps in (1, 3):
        plan = dc.samplers.flow_map(schedule, steps)
        found = dc.sample(DATA.average_velocity, plan, z, prediction="flow")
        np.testing.assert_allclose(found, FLOW.consistency(z, -8.0), rtol=1e-12)
    with pytest.raises(ValueError, match=r"`scaling` must be 'flow' or None.*with_scaling\('flow'\)"):
        DATA.with_scaling("vp").average_velocity(z, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"`log_snr` must have one level for each sample"):
        exact.Gaussian(np.zeros((2, 1)), np.array([[1.0, 0.5], [0.5, 1.0]])).flow_map(
            np.ones((1, 2, 1)), np.zeros((1, 2)), 1.0
        )


class Library:
    """Arrays of torch or JAX in double precision, and a gradient."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.xp: Any = importlib.import_module("torch" if name == "torch" else "jax.numpy")

    def put(self, array: Any) -> Any:
        return self.xp.asarray(np.array(array))

    def level(self, level: dc.Level) -> dc.Level:
        return dc.Level(*(self.put(part) for part in level))

    def jacobian(self, function: Any) -> Any:
        """The derivative (K, P) of a function (theta, x, eps) -> (K,) in theta, (P,), as one function of NumPy arrays."""
        if self.name == "torch":
            import torch

            return lambda *given: torch.func.jacrev(function)(*map(self.put, given)).numpy()
        import jax

        compiled = jax.jit(jax.jacrev(function))
        return lambda *given: np.asarray(compiled(*map(self.put, given)))


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Any:
    if request.param == "jax":
        import jax

        with jax.enable_x64(True):
            yield Library("jax")
    else:
        yield Library("torch")


def near_truth(library: Any, truth: Any, theta: Any) -> Any:
    """A network that is the truth at theta = 0, and moves away from it in z and in both levels."""

    def network(z: Any, *log_snr: Any) -> Any:
        last = log_snr[-1][:, None]
        return truth(z, *log_snr) + theta[0] * library.xp.cos(z) + theta[1] * log_snr[0][:, None] + theta[2] * z * last

    return network


def v_of_consistency(z: Any, log_snr: Any) -> Any:
    """The v-prediction whose x-hat is the consistency function."""
    at = levels.level(log_snr[:, None])
    return (at.alpha * z - DATA.with_scaling("vp").consistency(z, log_snr)) / at.sigma


def velocity(z: Any, log_snr: Any) -> Any:
    return DATA.average_velocity(z, log_snr, log_snr)


def v_of_teacher(z: Any, log_snr: Any) -> Any:
    return predictions.convert(DATA(z, log_snr), z, levels.level(log_snr), source="x", target="v")


def losses_of(library: Any, x: Any, eps: Any) -> dict[str, Any]:
    """The losses of a network near the truth, as functions of theta."""
    t, s, middle = map(library.level, (T, S, MIDDLE))
    before = flow_level(0.05 + np.asarray(S.sigma) / 2)
    vp = library.level(levels.level(T.log_snr))
    vp_s = library.level(levels.level(before.log_snr))
    z_s = DATA.with_scaling("vp").flow_map(process.diffuse(x, eps, vp), vp.log_snr, vp_s.log_snr)
    u = lambda theta: near_truth(library, DATA.average_velocity, theta)  # noqa: E731
    f = lambda theta: near_truth(library, v_of_consistency, theta)  # noqa: E731
    x_hat = lambda theta: near_truth(library, DATA.with_scaling("vp").consistency, theta)  # noqa: E731
    later = library.level(flow_level([0.3, 0.2, 0.45, 0.1, 0.15]))
    return {
        "meanflow": lambda theta: objectives.meanflow(u(theta), x, eps, t=t, s=s, velocity=velocity),
        "meanflow, power": lambda theta: objectives.meanflow(u(theta), x, eps, t=t, s=s, velocity=velocity, power=1.0),
        "split": lambda theta: objectives.split_meanflow(u(theta), x, eps, t=t, s=later, middle=middle),
        "shortcut": lambda theta: objectives.shortcut(u(theta), x, eps, t=t, s=later),
        "lagrangian": lambda theta: objectives.lagrangian(u(theta), x, eps, t=t, s=s),
        "consistency": lambda theta: objectives.consistency(f(theta), x, eps, level=vp, velocity=v_of_teacher),
        "pair": lambda theta: objectives.consistency_pair(
            x_hat(theta), x, eps, t=vp, s=vp_s, prediction="x", z_s=z_s, huber=0.1
        ),
        "meanflow, data": lambda theta: objectives.meanflow(u(theta), x, eps, t=t, s=s),
        "consistency, data": lambda theta: objectives.consistency(f(theta), x, eps, level=vp, normalise=None),
    }


def test_at_the_truth_no_gradient_is_left(library: Any) -> None:
    """With a teacher's velocity sample by sample; with that of the data in the mean over x given z, for which two points with its
    moments stand, since these gradients are linear in eps - x."""
    names: list[str] = []

    def each(theta: Any, x: Any, eps: Any) -> Any:
        found = losses_of(library, x, eps)
        names[:] = found
        return library.xp.stack([loss(theta).sum() for loss in found.values()])

    jacobian, origin = library.jacobian(each), np.zeros(3)
    at_truth, away = jacobian(origin, X, EPS), jacobian(origin + 0.1, X, EPS)
    of_data = np.array(["data" in name for name in names])
    assert np.abs(at_truth[~of_data]).max() < 1e-11
    assert np.abs(away[~of_data]).min() > 1e-4  # all three directions are seen
    for name, level in (("meanflow, data", T), ("consistency, data", levels.level(T.log_snr))):
        scaling = "flow" if "mean" in name else "vp"
        alpha, sigma = (np.asarray(part)[:, None] for part in level[:2])
        z, data = alpha * X + sigma * EPS, DATA.with_scaling(scaling)
        centre, spread = data(z, T.log_snr), data.posterior_variance(z, T.log_snr) ** 0.5
        points = [(centre + sign * spread, (z - alpha * (centre + sign * spread)) / sigma) for sign in (1.0, -1.0)]
        one, other = (jacobian(origin, *point)[names.index(name)] for point in points)
        assert np.abs(one).max() > 0.1
        np.testing.assert_allclose(one + other, 0.0, atol=1e-10)


@pytest.mark.torch
def test_a_meanflow_network_reaches_the_average_velocity() -> None:
    """Affine in z, its two coefficients polynomials of both times; trained on data and noise alone."""
    import torch

    powers = torch.tensor([(i, j) for i in range(5) for j in range(5 - i)])
    weight = torch.zeros(2, len(powers), requires_grad=True)

    def network(z: Any, log_snr: Any, after: Any) -> Any:
        t, s = (2.0 * torch.sigmoid(-0.5 * at)[:, None] - 1.0 for at in (log_snr, after))
        offset, slope = (weight @ (t ** powers[:, 0] * s ** powers[:, 1]).T)[:, :, None]
        return offset + slope * z

    schedule, count, batch = schedules.Flow(), 400, 2048
    optimizer = torch.optim.Adam([weight], lr=0.1)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        x, eps = torch.randn(2, batch, 1, generator=generator)
        x = 0.5 + 0.3**0.5 * x
        ends = 0.02 + 0.96 * torch.rand(batch, 2, generator=generator)
        t, s = ends.amax(1), ends.amin(1)
        s = torch.where(torch.arange(batch) % 2 == 0, t, s)
        loss = objectives.meanflow(network, x, eps, t=schedule(t), s=schedule(s)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    z = torch.linspace(-1.5, 2.0, 5)[:, None]
    for times in ((0.95, 0.05), (0.8, 0.5), (0.5, 0.5), (0.6, 0.1)):
        at = [schedule(torch.full((5,), value)).log_snr for value in times]
        truth = DATA.average_velocity(z, *at)
        assert float((network(z, *at) - truth).detach().abs().max()) < 0.1 * float(truth.abs().max()), times


def test_a_pair_with_clean_data_is_denoising() -> None:
    """ECT begins there: |x-hat - x|^2 alpha / sigma, whatever the network says of clean data."""
    t, net = (
        levels.level(np.linspace(-2.0, 2.0, 5)),
        lambda z, log_snr: np.where(np.isinf(log_snr)[:, None], 7.0, 0.3 * z),
    )
    found = objectives.consistency_pair(net, X, EPS, t=t, s=levels.level(INF), prediction="v")
    z = process.diffuse(X, EPS, t)
    want = losses.denoising(0.3 * z, X, EPS, t, prediction="v", weight=dc.weights.X()) * t.alpha / t.sigma
    np.testing.assert_allclose(found, want, rtol=1e-12)


@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
def test_the_term_of_a_learned_variance_is_a_kl(scaling: str) -> None:
    t, s = levels.level(np.linspace(-3.0, 1.0, 5), scaling), levels.level(np.linspace(-2.0, 3.0, 5), scaling)
    z, x_hat, rho = process.diffuse(X, EPS, t), np.tanh(X + EPS), RNG.uniform(-1.0, 1.0, (5, 1))
    truth = process.posterior(z, X, s=s, t=t)
    gamma = 0.5 * (rho + 1.0)
    n, after, before = (np.asarray(part)[:, None] for part in (process.novelty(s, t), s.sigma, t.sigma))
    model = process.posterior(z, x_hat, s=s, t=t)._replace(
        variance=n * after ** (2 - 2 * gamma) * before ** (2 * gamma)
    )
    found = objectives.variance_bound(x_hat, rho, X, EPS, s=s, t=t, prediction="x")
    np.testing.assert_allclose(found, process.kl(truth, model), rtol=1e-9)
    both = objectives.hybrid(x_hat, rho, X, EPS, s=s, t=t, prediction="x", steps=50)
    plain = losses.denoising(x_hat, X, EPS, t, prediction="x", weight=dc.weights.Eps())
    np.testing.assert_allclose(both, plain + 0.05 * found, rtol=1e-12)


def best_rho(log_snr: Any, after: Any, c: float) -> Any:
    """The rho of the true reverse variance of N(m, c): n sigma_s^2 + (n alpha_s)^2 Var[x | z]."""
    s, t = levels.level(after), levels.level(log_snr)
    n = process.novelty(s, t)
    left = c * t.sigma**2 / (t.alpha**2 * c + t.sigma**2)
    excess = np.log1p(n * s.alpha**2 / s.sigma**2 * left)
    return excess / np.log(t.sigma / s.sigma) - 1.0


@pytest.mark.torch
def test_the_best_learned_variance_is_that_of_the_reverse_process() -> None:
    """There its gradient vanishes in the mean over x given z, and three steps draw the right variance, as with no fixed gamma."""
    import torch

    c, grid = 0.3, np.array([-9.0, -2.0, 1.0, 6.0])
    data = exact.Gaussian(np.zeros(1), c, scaling="vp")
    for at, to in itertools.pairwise(grid):
        rho = torch.tensor([[float(best_rho(at, to, c))]], dtype=torch.float64, requires_grad=True)
        t, s = levels.level(at), levels.level(to)
        z = np.array([[0.7]])
        centre, spread = data(z, at), data.posterior_variance(z, at) ** 0.5
        total: Any = 0.0
        for x in (centre + spread, centre - spread):
            x, y, eps = (torch.asarray(part) for part in (x, centre, (z - t.alpha * x) / t.sigma))
            total = total + objectives.variance_bound(y, rho, x, eps, s=s, t=t, prediction="x").sum()
        total.backward()
        assert rho.grad is not None
        assert abs(float(rho.grad)) < 1e-12

    def network(z: Any, log_snr: Any) -> Any:
        stage = int(np.argmin(np.abs(grid - float(log_snr[0]))))
        return data(z, log_snr), np.full_like(z, best_rho(grid[stage], grid[stage + 1], c))

    schedule = schedules.LinearLogSNR(log_snr_min=-10.0, log_snr_max=10.0)
    count = 40000
    settings: Any = {"shape": (count, 1), "like": np.zeros(1), "seed": 3}
    drawn = objectives.sample_learned_variance(network, schedule, grid=grid, prediction="x", **settings)
    end = levels.level(6.0)
    truth = float(end.alpha**2 * c + end.sigma**2)
    assert np.var(drawn) == pytest.approx(truth, rel=5.0 * (2.0 / count) ** 0.5)
    for gamma in (0.0, 1.0):
        fixed = exact.moments(dc.samplers.ancestral(schedule, grid=grid, gamma=gamma), data).covariance
        assert abs(float(fixed) - truth) > 0.1 * truth
        same = lambda z, log_snr, rho=2.0 * gamma - 1.0: (data(z, log_snr), np.full_like(z, rho))  # noqa: E731
        found = objectives.sample_learned_variance(same, schedule, grid=grid, prediction="x", **settings)
        plan = dc.samplers.ancestral(schedule, grid=grid, gamma=gamma)
        np.testing.assert_allclose(found, dc.sample(data, plan, **settings), rtol=1e-9)


@pytest.mark.torch
def test_a_contrastive_loss_has_its_least_value_in_closed_form() -> None:
    """(target - share target') / (1 - share), under any prediction."""
    import torch

    x, eps, at = torch.asarray(X), torch.asarray(EPS), levels.level(torch.linspace(-2.0, 2.0, 5, dtype=torch.float64))
    for prediction, share in (("flow", 0.05), ("v", 0.4)):
        own = losses.target(x, eps, at, prediction=prediction)
        others = losses.target(x.roll(1, 0), eps.roll(1, 0), at, prediction=prediction)
        y = ((own - share * others) / (1.0 - share)).requires_grad_()
        objectives.contrastive(y, x, eps, at, prediction=prediction, share=share).sum().backward()
        assert y.grad is not None
        assert float(y.grad.abs().max()) < 1e-12
    with np.errstate(over="ignore"):
        huge = objectives.contrastive(1e200 * X, X, EPS, levels.level(0.0, "flow"), prediction="flow")
    assert np.all(huge == np.inf)


def test_the_coupling_of_least_cost() -> None:
    x, eps = RNG.normal(size=(6, 2, 2)), RNG.normal(size=(6, 2, 2))
    found = objectives.optimal_transport(x, eps)
    least = min(np.sum((x - eps[list(order)]) ** 2) for order in itertools.permutations(range(6)))
    assert np.sum((x - found) ** 2) == pytest.approx(least, rel=1e-12)
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(eps, axis=0))
    line, noise = RNG.normal(size=(9, 1)), RNG.normal(size=(9, 1))  # on a line: in order
    np.testing.assert_array_equal(np.argsort(objectives.optimal_transport(line, noise)[:, 0]), np.argsort(line[:, 0]))


@pytest.mark.torch
def test_the_variance_of_a_schedule_falls_to_that_of_the_best() -> None:
    """The bound of N(m, c) integrates (1/2) c e^l / (1 + c e^l); at dl/dt in proportion to its inverse it does not vary."""
    import torch

    increments = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    t = (torch.arange(240, dtype=torch.float64) + 0.5) / 240

    def each() -> Any:
        schedule = schedules.Monotone(increments=increments, log_snr_min=-3.0, log_snr_max=4.0)
        return -0.5 * schedule.slope(t) * torch.sigmoid(schedule.log_snr(t) + np.log(0.3))

    first, optimizer = each().detach(), torch.optim.Adam([increments], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        objectives.schedule_variance(each()).mean().backward()
        optimizer.step()
    last = each().detach()
    assert float(last.var()) < 0.02 * float(first.var())
    assert float(last.mean()) == pytest.approx(float(first.mean()), rel=0.01)  # only the ends decide


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: objectives.meanflow(None, X, EPS, t=T, s=S), TypeError, r"`network` must be a function"),
        (lambda: objectives.meanflow(lambda z, *_: z, X, EPS, t=T, s=S), TypeError, r"numpy arrays carry no gradients"),
        (lambda: objectives.meanflow(len, X, EPS, t=S, s=T), ValueError, r"`s` must have a log-SNR >= .*exchange them"),
        (lambda: objectives.meanflow(len, X, EPS[:2], t=T, s=S), ValueError, r"`x` and `eps` must have equal shapes"),
        (
            lambda: objectives.meanflow(len, X, EPS, t=levels.level(0.0), s=S),
            ValueError,
            r"`t` must have alpha \+ sigma = 1.*'flow'",
        ),
        (
            lambda: objectives.consistency(len, X, EPS, level=T),
            ValueError,
            r"`level` must have alpha\^2 \+ sigma\^2 = 1",
        ),
        (lambda: objectives.consistency(len, X, EPS, level=0.5), TypeError, r"`level` must be a diffcore\.Level"),
        (lambda: objectives.consistency(len, X, EPS, level=T, warmup=2.0), ValueError, r"sigma\^2 = 1"),
        (
            lambda: objectives.variance_bound(X, X, X, EPS, s=levels.level(INF), t=levels.level(0.0), prediction="x"),
            ValueError,
            r"`s` must be finite.*likelihood\.reconstruction",
        ),
        (
            lambda: objectives.contrastive(X[:1], X[:1], EPS[:1], T, prediction="v"),
            ValueError,
            r"align|at least two samples",
        ),
        (lambda: objectives.optimal_transport(X, EPS * np.nan), ValueError, r"`eps` must be finite"),
        (lambda: objectives.schedule_variance(X), ValueError, r"`each` must be one estimate for each of at least two"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
