"""The bound on -log p(x), against Gaussian data, where every term and the answer have a closed form."""

import importlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from diffcore import exact, likelihood, noise, process, schedules, weights
from diffcore.levels import Gaussian, level

LIBRARIES = [
    "numpy",
    pytest.param("torch", marks=pytest.mark.torch),
    pytest.param("jax.numpy", marks=pytest.mark.jax),
]
MEAN, VARIANCE = 0.3, 0.25
NARROW = schedules.LinearLogSNR(log_snr_min=-4.0, log_snr_max=4.0)
WIDE = schedules.LinearLogSNR(log_snr_min=-14.0, log_snr_max=14.0)
X0 = np.array([[-0.4, 0.9]])
REPEATS = 400
MANY = np.broadcast_to(X0[:, None, :], (24, REPEATS, 2)).copy()
"""Many copies of one point in each of many samples, so that the noise averages out."""


def namespace(name: str) -> Any:
    return importlib.import_module(name)


@dataclass(frozen=True)
class ExactGaussian:
    """E[x | z] for independent elements N(MEAN, VARIANCE): m + alpha c / (alpha^2 c + sigma^2) (z - alpha m)."""

    scaling: str = "vp"
    prediction: str = "x"

    def __call__(self, z: Any, log_snr: Any) -> Any:
        at = level(log_snr, self.scaling)
        alpha, sigma = (part.reshape((-1,) + (1,) * (z.ndim - 1)) for part in (at.alpha, at.sigma))
        return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (z - alpha * MEAN)


def error(snr: Any, x: Any = X0) -> Any:
    """E ||x - x-hat||^2 over the noise, for one x: bias^2 + variance, in terms of the SNR alone."""
    snr = np.asarray(snr)[..., None]
    shrink = 1.0 + snr * VARIANCE
    return np.sum((x - MEAN) ** 2 / shrink**2 + snr * VARIANCE**2 / shrink**2, axis=-1)


def agrees(found: Any, truth: float, *, slack: float = 0.0) -> bool:
    """Whether the mean of estimates of one number is that number, within five standard errors of at most 1 %."""
    found = np.asarray(found) / REPEATS
    deviation = float(np.std(found, ddof=1) / np.sqrt(len(found)))
    return deviation < 0.01 * truth and abs(float(np.mean(found)) - truth) <= 5.0 * deviation + slack


def half_integral(low: float, high: float, x: Any = X0) -> Any:
    """(1/2) of the integral of `error` over the SNR from low to high: the continuous diffusion term."""
    spread = 1.0 - (x - MEAN) ** 2 / VARIANCE
    primitive = [np.log1p(snr * VARIANCE) + spread / (1.0 + snr * VARIANCE) for snr in (low, high)]
    return 0.5 * np.sum(primitive[1] - primitive[0], axis=-1)


def ends(schedule: Any) -> tuple[float, float]:
    return float(np.exp(schedule.log_snr(1.0))), float(np.exp(schedule.log_snr(0.0)))


@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
def test_the_continuous_term_is_its_closed_form(scaling: str) -> None:
    schedule = schedules.LinearLogSNR(log_snr_min=-4.0, log_snr_max=4.0, scaling=scaling)
    found = likelihood.diffusion_continuous(ExactGaussian(scaling), MANY, schedule, points=16)
    assert agrees(found, half_integral(*ends(schedule))[0])


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_the_discrete_term_is_its_closed_form(steps: int) -> None:
    """sum_i (1/2) (SNR_s - SNR_t) E ||x - x-hat(z_t)||^2."""
    assert agrees(likelihood.diffusion_discrete(ExactGaussian(), MANY, NARROW, steps=steps), discrete(steps))


def discrete(steps: int) -> float:
    snr = np.exp(NARROW.log_snr(np.linspace(0.0, 1.0, steps + 1)))
    return float(np.sum(0.5 * (snr[:-1] - snr[1:]) * error(snr[1:])))


def test_the_discrete_bound_falls_to_the_continuous_one() -> None:
    """VLB_T -> VLB_inf, from above, and the gap halves as T doubles."""
    gaps = np.array([discrete(steps) for steps in (4, 8, 16, 512, 1024)]) - half_integral(*ends(NARROW))[0]
    assert np.all(np.diff(gaps) < 0.0)
    assert gaps[-2] / gaps[-1] == pytest.approx(2.0, rel=0.01)
    exact = ExactGaussian()
    means = [np.mean(likelihood.diffusion_discrete(exact, MANY[:4], NARROW, steps=steps)) for steps in (4, 8, 16)]
    assert np.all(np.diff(means) < 0.0)


def test_the_bound_of_the_exact_denoiser_is_the_log_density() -> None:
    """prior + L_inf + E[-log N(x; z_0 / alpha_0, 1 / SNR_0)] = -log N(x; MEAN, VARIANCE), as the ends go to +-inf."""
    found = likelihood.diffusion_continuous(ExactGaussian(), MANY, WIDE, points=64)
    reconstruction = 2 * 0.5 * (np.log(2.0 * np.pi * np.e) - WIDE.log_snr(0.0))
    exact = 0.5 * np.sum((X0 - MEAN) ** 2 / VARIANCE + np.log(2.0 * np.pi * VARIANCE))
    assert agrees(found, exact - likelihood.prior_kl(X0, WIDE)[0] - reconstruction, slack=1e-4)


def test_a_wrong_denoiser_has_a_larger_bound() -> None:
    worse = likelihood.diffusion_continuous(lambda z, log_snr: 0.0 * z, MANY[:4], NARROW, prediction="x", points=16)
    assert np.mean(worse) / REPEATS > half_integral(*ends(NARROW))[0] + 1.0


def test_the_estimate_is_unbiased_at_any_number_of_points_and_its_order_is_two() -> None:
    """For an x-hat that ignores z the integral is (1/2) ||x||^2 (SNR_0 - SNR_1), without any noise."""
    truth = 0.5 * np.sum(X0**2) * (ends(NARROW)[1] - ends(NARROW)[0])
    zero: Any = lambda z, log_snr: 0.0 * z  # noqa: E731
    few = likelihood.diffusion_continuous(zero, np.repeat(X0, 400, axis=0), NARROW, prediction="x", points=2)
    assert abs(np.mean(few) - truth) <= 4.0 * np.std(few) / 20.0
    copies = np.repeat(X0, 16, axis=0)
    coarse, fine = (
        np.max(np.abs(likelihood.diffusion_continuous(zero, copies, NARROW, prediction="x", points=n) - truth))
        for n in (32, 64)
    )
    assert coarse / fine > 3.5


CURVES = [
    NARROW,
    schedules.Cosine(log_snr_min=-4.0, log_snr_max=4.0),
    schedules.Cosine(log_snr_min=-4.0, log_snr_max=4.0, scaling="flow"),
]


def test_the_bound_does_not_depend_on_the_schedule_between_its_ends() -> None:
    found = [likelihood.diffusion_continuous(ExactGaussian(s.scaling), MANY[:3], s, points=8) for s in CURVES]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-9)
    t = (np.arange(20000) + 0.5) / 20000
    for schedule in CURVES:  # and so does weights.VariationalBound, for uniform t
        at = schedule(t)
        mean = np.mean(weights.VariationalBound()(at, schedule.slope(t)) * error(np.exp(at.log_snr)))
        assert mean == pytest.approx(half_integral(*ends(NARROW))[0], rel=1e-6)


@pytest.mark.parametrize("prediction", ["x", "eps", "v", "score", "flow", "edm"])
def test_the_bound_is_equal_whatever_the_denoiser_predicts(prediction: str) -> None:
    from diffcore import predictions

    def denoise(z: Any, log_snr: Any) -> Any:
        return predictions.convert(ExactGaussian()(z, log_snr), z, level(log_snr), source="x", target=prediction)

    for found, truth in (
        (
            likelihood.diffusion_continuous(denoise, MANY[:2], NARROW, prediction=prediction, points=4),
            likelihood.diffusion_continuous(ExactGaussian(), MANY[:2], NARROW, points=4),
        ),
        (
            likelihood.diffusion_discrete(denoise, MANY[:2], NARROW, prediction=prediction, steps=4),
            likelihood.diffusion_discrete(ExactGaussian(), MANY[:2], NARROW, steps=4),
        ),
    ):
        np.testing.assert_allclose(found, truth, rtol=1e-8)


@pytest.mark.parametrize("intervals", [1, 3, 8])
def test_some_intervals_estimate_the_sum_over_all(intervals: int) -> None:
    x = np.concatenate([MANY, MANY, MANY]) if intervals < 8 else MANY
    found = likelihood.diffusion_discrete(ExactGaussian(), x, NARROW, steps=8, intervals=intervals) / REPEATS
    assert abs(np.mean(found) - discrete(8)) <= 5.0 * np.std(found, ddof=1) / np.sqrt(len(found))


def test_a_grid_of_ones_own_may_cover_a_part() -> None:
    zero: Any = lambda z, log_snr: 0.0 * z  # noqa: E731
    parts = [
        likelihood.diffusion_discrete(zero, X0, NARROW, prediction="x", steps=grid)
        for grid in ([0.0, 0.2, 0.5], [0.5, 1.0], [0.0, 0.2, 0.5, 1.0])
    ]
    np.testing.assert_allclose(parts[0] + parts[1], parts[2], rtol=1e-12)


def test_the_discrete_weight_is_free_of_cancellation() -> None:
    """(T/2) (SNR_s - SNR_t) at T = 1e6, where the plain difference of float32 SNRs has lost all digits but one."""
    gap = 8.0 / 1e6
    t = np.float32(3.0)
    s = np.float32(t + np.float32(gap))
    truth = 0.5e6 * np.exp(np.float64(t)) * np.expm1(np.float64(s) - np.float64(t))
    np.testing.assert_allclose(likelihood.discrete_weight(level(s), level(t), 10**6), truth, rtol=1e-6)


@pytest.mark.torch
def test_a_learned_log_snr_gets_the_gradient_of_the_discrete_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """d/ds (T/2) (e^s - e^t) = (T/2) e^s, also where torch.asarray cuts a tensor off its gradient, as it did until 2.13."""
    import torch

    asarray = torch.asarray
    monkeypatch.setattr(torch, "asarray", lambda obj, **kw: asarray(obj, **kw).detach_())
    s = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    likelihood.discrete_weight(level(s), level(torch.zeros_like(s)), 5).sum().backward()
    assert s.grad is not None
    np.testing.assert_allclose(s.grad.numpy(), 2.5 * np.exp([1.0, 2.0]), rtol=1e-12)


def test_the_prior_term_is_the_kl_and_needs_no_scaling() -> None:
    for scaling in ("vp", "ve", "flow"):
        schedule = schedules.LinearLogSNR(log_snr_min=-3.0, log_snr_max=9.0, scaling=scaling)
        at = schedule(1.0)
        prior = Gaussian(np.zeros_like(X0), np.full((1, 1), float(at.sigma) ** 2))
        truth = process.kl(process.marginal(X0, at), prior)
        np.testing.assert_allclose(likelihood.prior_kl(X0, schedule), truth, rtol=1e-12)
        np.testing.assert_allclose(truth, 0.5 * np.exp(-3.0) * np.sum(X0**2), rtol=1e-12)
    standard = Gaussian(np.zeros_like(X0), np.ones((1, 1)))
    truth = process.kl(process.marginal(X0, NARROW(1.0)), standard)
    np.testing.assert_allclose(likelihood.prior_kl(X0, NARROW, variance=1.0), truth, rtol=1e-12)


def test_the_bound_of_a_density_is_the_log_density() -> None:
    total = likelihood.bound(ExactGaussian(), MANY, WIDE, points=64, decoder=likelihood.Density()).total
    exact = 0.5 * np.sum((X0 - MEAN) ** 2 / VARIANCE + np.log(2.0 * np.pi * VARIANCE))
    assert abs(np.mean(total) / REPEATS - exact) < 0.02  # of 2 nats; the diffusion term alone is 17


def test_two_levels_out_of_order_have_no_weight() -> None:
    with pytest.raises(ValueError, match=r"likelihood\.discrete_weight: `s` must have a log-SNR >= 1.*exchange them"):
        likelihood.discrete_weight(level(0.0), level(1.0))
    with pytest.raises(ValueError, match=r"`steps` must be an int >= 1, got 0"):
        likelihood.discrete_weight(level(1.0), level(0.0), 0)


def test_bits_of_a_uniform_density_and_of_its_bins_agree() -> None:
    """256 bins over [-1, 1]: 8 bits, from the density 1/2 and from the probability 1/256."""
    dims = 12
    assert likelihood.bits_per_dim(dims * np.log(2.0), dims, bin_width=2 / 256) == pytest.approx(8.0)
    assert likelihood.bits_per_dim(dims * np.log(256.0), dims, bin_width=1.0) == pytest.approx(8.0)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("steps", [None, 4])
def test_the_bound_agrees_on_every_library_and_dtype(library: str, steps: int | None) -> None:
    xp = namespace(library)
    x = np.random.default_rng(0).choice(np.linspace(-1.0, 1.0, 256), size=(3, 2))
    schedule = schedules.Cosine(log_snr_min=-12.0, log_snr_max=12.0)
    settings: Any = {"steps": steps, "points": 4, "seed": [7, 8, 9]}
    truth = likelihood.bound(ExactGaussian(), x, schedule, **settings)
    found = likelihood.bound(ExactGaussian(), xp.asarray(x.astype(np.float32)), schedule, **settings)
    for name, one, other in zip(truth._fields, truth, found, strict=True):
        assert "float32" in str(other.dtype)
        np.testing.assert_allclose(np.asarray(other), one, rtol=2e-3, atol=2e-3, err_msg=name)
    np.testing.assert_allclose(np.asarray(found.total), sum(np.asarray(part) for part in found), rtol=1e-6)


def test_the_bound_on_samples_of_an_equal_seed_is_the_truth() -> None:
    """The noise of the bound is none that the data are made of: x - x-hat = (x - s sigma eps / alpha) / (1 + s) for s = c e^lambda,
    so that the expected square is (x^2 + c s) / (1 + s)^2."""
    size, c, schedule = 1 << 16, 0.04, schedules.LinearLogSNR(log_snr_min=-4.0, log_snr_max=20.0)
    data = exact.Gaussian(np.zeros(size), c)
    x = np.round((data.sample(0, 3) + 1.0) * 127.5) / 127.5 - 1.0
    assert np.abs(x).max() < 1.0
    found = likelihood.bound(data, x, schedule, steps=2, prediction="x", seed=0)
    truth = np.asarray(likelihood.prior_kl(x, schedule))
    for cleaner, noisier in ((20.0, 8.0), (8.0, -4.0)):
        s = c * np.exp(noisier)
        error = np.sum(x**2 + c * s, axis=1) / (1.0 + s) ** 2
        truth = truth + 0.5 * (np.exp(cleaner) - np.exp(noisier)) * error
    np.testing.assert_allclose(found.total, truth, rtol=0.02)


def test_a_batch_is_its_samples_one_by_one() -> None:
    x = np.random.default_rng(0).choice(np.linspace(-1.0, 1.0, 256), size=(3, 2))
    together = likelihood.bound(ExactGaussian(), x, NARROW, points=3, seed=7).total
    keys = [noise.keys(7, 1, first=i) for i in range(3)]
    alone = [likelihood.bound(ExactGaussian(), x[i : i + 1], NARROW, points=3, seed=keys[i]).total[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.jax
def test_the_bound_under_jit_and_grad_on_jax() -> None:
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(X0, dtype=jnp.float32)

    def total(x: Any) -> Any:
        return jnp.sum(likelihood.bound(ExactGaussian(), x, NARROW, points=2, decoder=likelihood.Density()).total)

    value, slope = jax.jit(jax.value_and_grad(total))(x)
    truth = likelihood.bound(ExactGaussian(), X0, NARROW, points=2, decoder=likelihood.Density()).total
    np.testing.assert_allclose(value, np.sum(truth), rtol=1e-4)
    assert np.all(np.isfinite(slope))


@pytest.mark.torch
def test_the_bound_in_half_precision_is_float32_and_carries_gradients() -> None:
    import torch

    gain = torch.tensor(0.5, requires_grad=True)
    x = torch.asarray(X0).to(torch.bfloat16)
    denoise: Any = lambda z, log_snr: (gain * z.float()).to(z.dtype)  # noqa: E731
    terms = likelihood.bound(denoise, x, NARROW, prediction="v", points=2, decoder=None, gradients=True)
    assert {part.dtype for part in terms} == {torch.float32}
    terms.total.sum().backward()
    assert gain.grad is not None
    assert torch.isfinite(gain.grad)


@pytest.mark.torch
def test_gradients_are_recorded_only_where_they_are_wanted() -> None:
    import torch

    gain = torch.tensor(0.5, requires_grad=True)
    denoise: Any = lambda z, log_snr: gain * z  # noqa: E731
    x, decoder = torch.asarray(X0), likelihood.Density()
    for settings in ({"points": 2}, {"steps": 2}):
        call: Any = partial(likelihood.bound, denoise, schedule=NARROW, prediction="v", decoder=decoder, **settings)
        assert not call(x).total.requires_grad
        assert call(x, gradients=True).total.requires_grad
        assert call(x.clone().requires_grad_()).total.requires_grad
        slope = torch.func.grad(lambda x, call=call: call(x).total.sum())(x)
        assert torch.all(torch.isfinite(slope))
        assert torch.any(slope != torch.asarray(X0) * np.exp(-4.0))  # more than the prior's


ENDLESS, EXACT = schedules.Flow(), ExactGaussian()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: likelihood.diffusion_discrete(EXACT, X0, NARROW, steps=0),
            ValueError,
            r"`steps` must be an int >= 1, got 0; or",
        ),
        (
            lambda: likelihood.diffusion_discrete(EXACT, X0, NARROW, steps=[0.5, 0.5]),
            ValueError,
            r"two times, .*, got \[0\.5, 0\.5\]",
        ),
        (
            lambda: likelihood.diffusion_continuous(EXACT, X0, NARROW, points=0),
            ValueError,
            r"`points` must be an int >= 1",
        ),
        (
            lambda: likelihood.diffusion_continuous(lambda z, l: z, X0, NARROW),
            TypeError,
            r"`prediction` must be .*, got None",
        ),
        (lambda: likelihood.diffusion_continuous(EXACT, X0, ENDLESS), ValueError, r"use a schedule with finite ends"),
        (lambda: likelihood.prior_kl(1.0, NARROW), TypeError, r"`x` must be an array"),
        (lambda: likelihood.prior_kl(X0.astype(int), NARROW), TypeError, r"`x` has dtype int64"),
        (lambda: likelihood.prior_kl(X0, NARROW, variance=0.0), ValueError, r"`variance` must be .* > 0, got 0\.0"),
        (lambda: likelihood.Bins(1), ValueError, r"`count` must be an int >= 2, got 1"),
        (lambda: likelihood.Bins(2, 1.0, -1.0), ValueError, r"`high` must be a finite number > 1, got -1\.0"),
        (lambda: likelihood.reconstruction(X0, NARROW, decoder=256), TypeError, r"`decoder` must be .*, got 256"),
        (lambda: likelihood.reconstruction(X0, 0.5), TypeError, r"`schedule` must be a schedule, .*, got 0\.5"),
        (lambda: likelihood.prior_kl(X0, None), TypeError, r"`schedule` must be a schedule, .*, got None"),
        (
            lambda: likelihood.diffusion_discrete(EXACT, X0, 1.0, steps=1),
            TypeError,
            r"`schedule` must be a schedule, .*, got 1\.0",
        ),
        (
            lambda: likelihood.diffusion_continuous(None, X0, NARROW),
            TypeError,
            r"`denoise` must be a function .*, got None",
        ),
        (
            lambda: likelihood.discrete_weight(1.0, level(0.0)),
            TypeError,
            r"`s` must be a diffcore\.Level, .*, got 1\.0",
        ),
        (lambda: likelihood.bits_per_dim(1.0, "2", bin_width=1.0), TypeError, r"`dims` must be a number >= 1, got '2'"),
        (lambda: likelihood.bits_per_dim(1.0, 0, bin_width=1.0), ValueError, r"`dims` must be a number >= 1, got 0"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
