"""Exact moments of what samplers draw: against unrolled runs of 40 digits, closed forms, and samples."""

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest

import diffcore as dc
from diffcore import exact, levels
from diffcore.plan import Plan

INF = math.inf
SCALINGS = ("vp", "ve", "flow")
SAMPLERS: dict[str, Callable[..., Plan]] = {
    "ancestral": lambda s, **k: dc.samplers.ancestral(s, gamma=0.3, **k),
    "predictor_corrector": lambda s, **k: dc.samplers.predictor_corrector(s, gamma=0.1, delta=0.1, **k),
    "ddim": lambda s, **k: dc.samplers.ddim(s, eta=0.5, **k),
    "heun": lambda s, **k: dc.samplers.heun(s, churn=2.0, **k),
    "dpm++3m sde": lambda s, **k: dc.samplers.dpm_solver_pp(s, order=3, eta=1.0, **k),
    "unipc": lambda s, **k: dc.samplers.unipc(s, order=2, **k),
}
every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
every_scaling = pytest.mark.parametrize("scaling", SCALINGS)
FACTOR = np.array([[0.9, 0.1], [-0.5, 0.8], [0.4, 0.3]])
ROOT = np.array([[1.0, 0.2, 0.0], [0.3, 0.7, -0.4], [0.0, 0.5, 0.2]])
FULL = ROOT @ ROOT.T
MEAN = np.array([0.5, -1.0, 2.0])


def schedule_of(scaling: str) -> Any:
    return dc.schedules.LinearLogSNR(log_snr_min=-8.0, log_snr_max=8.0, scaling=scaling)


def ragged(plan: Plan, seed: int = 0) -> Plan:
    """A plan with nothing special about its numbers: every column of every row used."""
    update = plan.update + 0.1 * np.random.default_rng(seed).normal(size=plan.update.shape)
    return Plan("ragged", plan.scaling, plan.log_snr, plan.next_log_snr, update)


def unrolled(plan: Plan, c: float, m: float, lead: tuple[int, ...] = ()) -> tuple[Any, Any]:
    """Mean and variance of one direction in 40 digits: every quantity as its coefficients of 1, z_0 and each noise."""
    stages = len(plan)
    with mp.workdps(40):
        zero = [mp.mpf(0)] * (2 + stages)
        z, memory = list(zero), [list(zero) for _ in range(plan.memory)]
        z[1] = exact_level(plan.log_snr[(0, *lead)], plan.scaling)[1]
        for stage in range(stages):
            alpha, sigma = exact_level(plan.log_snr[(stage, *lead)], plan.scaling)
            gain = alpha * mp.mpf(c) / (alpha**2 * mp.mpf(c) + sigma**2)
            x = [gain * value for value in z]
            x[0] += mp.mpf(m) * (1 - alpha * gain)
            eps = list(zero)
            eps[2 + stage] = mp.mpf(1)
            rows = plan.update[(stage, *lead)].tolist()
            reads = [z, *memory, eps, x]
            z, *memory = (
                [mp.fsum(mp.mpf(k) * read[i] for k, read in zip(row, reads, strict=True)) for i in range(len(zero))]
                for row in rows
            )
        return float(z[0]), float(mp.fsum(value**2 for value in z[1:]))


def exact_level(log_snr: float, scaling: str) -> tuple[Any, Any]:
    ratio = mp.e ** (mp.mpf(float(log_snr)) / 2)
    if scaling == "vp":
        return ratio / mp.sqrt(1 + ratio**2), 1 / mp.sqrt(1 + ratio**2)
    return (mp.mpf(1), 1 / ratio) if scaling == "ve" else (ratio / (1 + ratio), 1 / (1 + ratio))


@every_scaling
@every_sampler
@pytest.mark.parametrize("rough", [False, True], ids=["as it is", "with all columns"])
def test_unrolled_in_forty_digits(make: Any, scaling: str, rough: bool) -> None:
    plan = make(schedule_of(scaling), steps=6)
    plan = ragged(plan) if rough else plan
    variances = np.array([0.0, 0.04, 1.0, 9.0])
    mean, variance = exact.moments(plan, exact.Gaussian(np.full(4, 1.5), variances))
    want = np.array([unrolled(plan, c, 1.5) for c in variances])
    np.testing.assert_allclose(mean, want[:, 0], rtol=1e-12)
    np.testing.assert_allclose(variance, want[:, 1], rtol=1e-12, atol=1e-15)


@every_sampler
def test_four_forms_of_a_covariance_give_one_answer(make: Any) -> None:
    plan = ragged(make(schedule_of("vp"), steps=5))
    number = exact.moments(plan, exact.Gaussian(MEAN, 0.7))
    diagonal = exact.moments(plan, exact.Gaussian(MEAN, np.full(3, 0.7)))
    full = exact.moments(plan, exact.Gaussian(MEAN, 0.7 * np.eye(3)))
    low = exact.moments(plan, exact.Gaussian(MEAN, exact.LowRank(np.zeros((3, 1)), 0.7)))
    assert isinstance(number.covariance, float)
    assert diagonal.covariance.shape == (3,)
    assert full.covariance.shape == (3, 3)
    assert isinstance(low.covariance, exact.LowRank)
    for other in (diagonal, full, low):
        np.testing.assert_allclose(other.mean, number.mean, rtol=1e-12)
    np.testing.assert_allclose(diagonal.covariance, number.covariance, rtol=1e-12)
    np.testing.assert_allclose(full.covariance, number.covariance * np.eye(3), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(low.covariance.variance, number.covariance, rtol=1e-12)


def by_matrices(plan: Plan, mean: Any, covariance: Any, mean0: Any, spread0: Any, lead: tuple[int, ...] = ()) -> Any:
    """Mean and covariance by whole matrices: every quantity as (constant, matrix on z_0, a matrix for each noise)."""
    size, stages = mean.size, len(plan)
    zero = np.zeros((size, 1 + size * (1 + stages)))
    z, memory = zero.copy(), [zero.copy() for _ in range(plan.memory)]
    z[:, 1 : 1 + size] = np.eye(size)
    for stage in range(stages):
        here = plan.log_snr[(stage, *lead)]
        repeat = size // max(1, np.size(here))
        alpha, sigma, _ = levels.level(np.repeat(here, repeat), plan.scaling)
        alpha, sigma = (np.diag(np.broadcast_to(part, size)) for part in (alpha, sigma))
        gain = covariance @ alpha @ np.linalg.inv(alpha @ covariance @ alpha + sigma @ sigma)
        x = gain @ z
        x[:, 0] += mean - gain @ alpha @ mean
        eps = zero.copy()
        eps[:, 1 + size * (1 + stage) : 1 + size * (2 + stage)] = np.eye(size)
        rows = np.broadcast_to(
            np.repeat(plan.update[(stage, *lead)], repeat, axis=0) if np.ndim(here) else plan.update[(stage, *lead)],
            (size, *plan.update.shape[-2:]),
        )
        reads = np.stack([z, *memory, eps, x])
        z, *memory = (np.einsum("dc,cdn->dn", rows[:, row], reads) for row in range(1 + plan.memory))
    start = z[:, 1 : 1 + size]
    noises = z[:, 1 + size :]
    return z[:, 0] + start @ mean0, start @ spread0 @ start.T + noises @ noises.T


COVARIANCES: dict[str, Any] = {
    "number": 0.6,
    "diagonal": np.array([0.2, 1.0, 0.0]),
    "full": FULL,
    "low rank": exact.LowRank(FACTOR, 0.1),
    "low rank, one direction": exact.LowRank(FACTOR[:, :1], 0.1),
}


def matrix_of(covariance: Any, size: int = 3) -> Any:
    if isinstance(covariance, exact.LowRank):
        return covariance.factor @ covariance.factor.T + np.diag(np.broadcast_to(covariance.variance, size))
    covariance = np.asarray(covariance)
    return covariance if covariance.ndim == 2 else np.diag(np.broadcast_to(covariance.ravel(), size))


@every_scaling
@every_sampler
@pytest.mark.parametrize("covariance", COVARIANCES.values(), ids=COVARIANCES.keys())
@pytest.mark.parametrize("start", [None, "number", "elements"])
def test_whole_matrices(make: Any, covariance: Any, scaling: str, start: Any) -> None:
    plan = make(schedule_of(scaling), steps=5)
    data = exact.Gaussian(MEAN, covariance)
    given = {
        None: None,
        "number": dc.Gaussian(0.3, 2.0),
        "elements": dc.Gaussian(np.array([1.0, 0.0, -2.0]), np.array([0.5, 0.0, 3.0])),
    }[start]
    mean, spread = exact.moments(plan, data, given)
    if given is None:
        mean0, spread0 = np.zeros(3), float(plan.start.sigma) ** 2 * np.eye(3)
    else:
        mean0, spread0 = np.broadcast_to(given.mean, 3), np.diag(np.broadcast_to(given.variance, 3))
    want = by_matrices(plan, MEAN, matrix_of(covariance), mean0, spread0)
    np.testing.assert_allclose(mean, want[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(matrix_of(spread), want[1], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("covariance", COVARIANCES.values(), ids=COVARIANCES.keys())
@every_sampler
def test_levels_per_sample(make: Any, covariance: Any) -> None:
    """A batch of levels is one plan for each sample."""
    schedule = schedule_of("vp")
    grid = np.stack([np.linspace(-6.0, 5.0, 5), np.linspace(-3.0, 4.0, 5)], axis=1)
    data = exact.Gaussian(MEAN, covariance)
    mean, spread = exact.moments(make(schedule, grid=grid), data)
    assert mean.shape == (2, 3)
    for b in range(2):
        one = exact.moments(make(schedule, grid=grid[:, b]), data)
        np.testing.assert_allclose(mean[b], one.mean, rtol=1e-11)
        if isinstance(spread, exact.LowRank):
            part = exact.LowRank(spread.factor[b], spread.variance[b])
            np.testing.assert_allclose(matrix_of(part), matrix_of(one.covariance), rtol=1e-9, atol=1e-12)
        else:
            np.testing.assert_allclose(spread[b], one.covariance, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("covariance", COVARIANCES.values(), ids=COVARIANCES.keys())
@every_sampler
def test_levels_per_frame(make: Any, covariance: Any) -> None:
    """With levels that differ between frames the eigen-directions mix; the whole matrices tell."""
    schedule = schedule_of("vp")
    ends = np.array([[[-6.0, 5.0], [-3.0, 4.0], [-1.0, 6.0]], [[-4.0, 3.0], [-5.0, 1.0], [-2.0, 2.0]]])
    grid = np.linspace(ends[..., 0], ends[..., 1], 5)
    plan = make(schedule, grid=grid)
    mean, spread = exact.moments(plan, exact.Gaussian(MEAN, covariance))
    assert mean.shape == (2, 3)
    for b in range(2):
        sigma = levels.level(plan.log_snr[0, b], "vp").sigma
        want = by_matrices(plan, MEAN, matrix_of(covariance), np.zeros(3), np.diag(sigma**2), (b,))
        np.testing.assert_allclose(mean[b], want[0], rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(matrix_of(spread[b]), want[1], rtol=1e-9, atol=1e-11)


def test_events_with_several_axes() -> None:
    """(T, H): the frame axis is the first; the result has the event's shape."""
    plan = dc.samplers.ddim(schedule_of("vp"), grid=np.linspace([[-6.0, -3.0]], [[5.0, 4.0]], 5))
    mean, spread = exact.moments(plan, exact.Gaussian(np.arange(6.0).reshape(2, 3), 0.5))
    assert mean.shape == spread.shape == (1, 2, 3)
    for frame, ends in enumerate([(-6.0, 5.0), (-3.0, 4.0)]):
        one = exact.moments(
            dc.samplers.ddim(schedule_of("vp"), grid=np.linspace(*ends, 5)),
            exact.Gaussian(np.arange(6.0).reshape(2, 3)[frame], 0.5),
        )
        np.testing.assert_allclose(mean[0, frame], one.mean, rtol=1e-12)
        np.testing.assert_allclose(spread[0, frame], one.covariance, rtol=1e-12)


@every_scaling
def test_one_step_of_ddim_to_clean_data_is_the_denoiser(scaling: str) -> None:
    """z_end = x-hat(z_start), so mean m (1 - alpha g) and variance g^2 sigma^2."""
    plan = dc.samplers.ddim(schedule_of(scaling), steps=1)
    alpha, sigma, _ = (float(part) for part in plan.start)
    gain = alpha * 0.7 / (alpha**2 * 0.7 + sigma**2)
    mean, variance = exact.moments(plan, exact.Gaussian(MEAN, 0.7))
    np.testing.assert_allclose(mean, MEAN * (1.0 - alpha * gain), rtol=1e-13)
    np.testing.assert_allclose(variance, (gain * sigma) ** 2, rtol=1e-13)


@every_scaling
def test_ddim_converges_to_the_probability_flow(scaling: str) -> None:
    """The ODE scales a direction by sqrt((alpha_s^2 c + sigma_s^2) / (alpha_t^2 c + sigma_t^2)), at order 1."""
    schedule, c = schedule_of(scaling), 0.3
    grid = (-7.0, 7.0)
    start, end = (levels.level(g, scaling) for g in grid)
    marginal = [level.alpha**2 * c + level.sigma**2 for level in (start, end)]
    errors = []
    for steps in (200, 400):
        plan = dc.samplers.ddim(schedule, grid=np.linspace(*grid, steps + 1))
        given = dc.Gaussian(0.5 * float(start.alpha), float(marginal[0]))
        mean, variance = exact.moments(plan, exact.Gaussian(np.array([0.5]), c), given)
        errors.append(abs(variance / marginal[1] - 1.0))
        np.testing.assert_allclose(mean, 0.5 * end.alpha, rtol=1e-12)  # the mean is on the ODE at every step
    assert errors[0] < 0.03
    assert 1.8 < errors[0] / errors[1] < 2.2


@every_scaling
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_many_ancestral_steps_draw_the_data(scaling: str, gamma: float) -> None:
    schedule = dc.schedules.LinearLogSNR(log_snr_min=-18.0, log_snr_max=12.0, scaling=scaling)
    errors = []
    for steps in (1000, 2000):
        mean, spread = exact.moments(
            dc.samplers.ancestral(schedule, steps=steps, gamma=gamma), exact.Gaussian(MEAN, FULL)
        )
        np.testing.assert_allclose(mean, MEAN, rtol=1e-3, atol=1e-3)
        errors.append(float(np.abs(spread - FULL).max()))
    assert errors[1] < 0.6 * errors[0] < 0.03


def test_langevin_alone_has_the_stationary_variance_of_its_bias() -> None:
    """z <- (1 - delta/2) z + (delta/2) alpha x-hat + sqrt(delta) sigma eps settles at true / (1 - delta k / 4)."""
    delta, c = 0.1, 0.5
    alpha, sigma, _ = (float(part) for part in levels.level(0.3))
    update = np.array([[[1.0 - 0.5 * delta, math.sqrt(delta) * sigma, 0.5 * delta * alpha]]] * 3000)
    plan = Plan("langevin", "vp", np.full(3000, 0.3), np.full(3000, 0.3), update)
    mean, variance = exact.moments(plan, exact.Gaussian(np.array([2.0]), c))
    true = alpha**2 * c + sigma**2
    np.testing.assert_allclose(variance, true / (1.0 - delta * sigma**2 / true / 4.0), rtol=1e-12)
    np.testing.assert_allclose(mean, 2.0 * alpha, rtol=1e-12)


@every_sampler
def test_samples_agree(make: Any) -> None:
    """20,000 samples of the loop itself, within five standard errors."""
    count = 20_000
    data, plan = exact.Gaussian(MEAN, FULL), make(schedule_of("vp"), steps=5)
    rng = np.random.default_rng(4)
    z = float(plan.start.sigma) * rng.normal(size=(count, 3))
    drawn = dc.sample(data, plan, z, noise=lambda draw, shape: rng.normal(size=shape))
    mean, spread = exact.moments(plan, data)
    assert np.all(np.abs(drawn.mean(axis=0) - mean) < 5.0 * np.sqrt(np.diag(spread) / count))
    variances = np.diag(spread)
    error = np.sqrt((np.outer(variances, variances) + spread**2) / count)
    assert np.all(np.abs(np.cov(drawn.T) - spread) < 5.0 * error)


def test_a_video_with_a_low_rank_covariance_stays_low_rank() -> None:
    """100,000 elements: nothing of D x D is made, and the directions are those of the data."""
    rng = np.random.default_rng(5)
    basis, _ = np.linalg.qr(rng.normal(size=(100_000, 3)))
    data = exact.Gaussian(np.zeros(100_000), exact.LowRank(basis * [3.0, 2.0, 1.0], 0.01))
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=50, order=2)
    mean, spread = exact.moments(plan, data)
    each = exact.moments(plan, exact.Gaussian(np.zeros(4), np.array([9.01, 4.01, 1.01, 0.01]))).covariance
    assert isinstance(spread, exact.LowRank)
    assert not np.any(mean)
    np.testing.assert_allclose(np.sum(spread.factor**2, axis=0) + spread.variance, each[:3], rtol=1e-10)
    np.testing.assert_allclose(spread.variance, each[3], rtol=1e-10)


def test_refuses_what_is_not_affine_or_does_not_fit() -> None:
    plan = dc.samplers.ddim(schedule_of("vp"), steps=3)
    with pytest.raises(TypeError, match=r"must be an exact\.Gaussian, .*, got .*Mixture"):
        exact.moments(plan, exact.Mixture(None, np.zeros((2, 1)), 1.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must have the plan's scaling.*with_scaling"):
        exact.moments(plan, exact.Gaussian(MEAN, 1.0, scaling="ve"))
    with pytest.raises(ValueError, match=r"`start.mean` must broadcast .*, got shape \(2,\)"):
        exact.moments(plan, exact.Gaussian(MEAN, 1.0), dc.Gaussian(np.zeros(2), 1.0))
    frames = dc.samplers.ddim(schedule_of("vp"), grid=np.linspace([[-6.0, -3.0]], [[5.0, 4.0]], 5))
    with pytest.raises(ValueError, match=r"events \(3,\), got 2 frames"):
        exact.moments(frames, exact.Gaussian(MEAN, 1.0))
    large = exact.Gaussian(np.zeros(5000), exact.LowRank(np.ones((5000, 1)), 1.0))
    with pytest.raises(ValueError, match="5000 elements"):
        exact.moments(plan, large, dc.Gaussian(0.0, np.linspace(1.0, 2.0, 5000)))
