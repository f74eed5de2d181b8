"""Times: uniforms that are even and never at an end, and densities that integrate to what they should."""

import importlib
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from diffcore import noise, schedules, times
from diffcore._quantile import normal_quantile
from diffcore.times import uniforms

LIBRARIES = [
    "numpy",
    "array_api_strict",
    pytest.param("torch", marks=pytest.mark.torch),
    pytest.param("jax.numpy", marks=pytest.mark.jax),
]
SOURCES = [times.independent, times.stratified, times.antithetic]
DENSITIES = {
    **times.table(),
    "part": times.Uniform(0.1, 0.7),
    "logit normal, off centre": times.LogitNormal(mean=-0.8, std=0.6),
    "mode, light": times.Mode(-0.9),
    "beta, ends": times.Beta(0.6, 0.6),
    "beta, middle": times.Beta(30.0, 4.0),
    "shifted": times.Shifted(times.Uniform(), 0.3),
    "lognormal, cut": times.LogNormal(schedules.LinearLogSNR(log_snr_min=-2.0, log_snr_max=5.0), mean=-0.5, std=1.5),
}


def namespace(name: str) -> Any:
    return importlib.import_module(name)


def support(density: times.Density) -> tuple[float, float]:
    return (density.low, density.high) if isinstance(density, times.Uniform) else (0.0, 1.0)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("shape", [5, (1,), (2, 3), (0,), (4, 0)])
@pytest.mark.parametrize("library", LIBRARIES)
def test_uniforms_are_equal_on_every_library(source: Any, shape: Any, library: str) -> None:
    like = namespace(library).asarray(np.zeros(1, dtype=np.float32))
    found, truth = source(7, 3, shape, like=like), source(7, 3, shape)
    assert type(found) is type(like)
    assert truth.dtype == np.float32
    assert tuple(found.shape) == ((shape,) if isinstance(shape, int) else shape)
    np.testing.assert_array_equal(np.asarray(found), truth)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniforms_are_uniform_and_never_at_an_end(source: Any, dtype: str) -> None:
    u = np.concatenate([source(7, draw, 64, like=np.zeros(1, dtype=dtype)) for draw in range(32)])
    assert u.dtype == dtype
    assert np.all((u > 0.0) & (u < 1.0))
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_extreme_words_stay_inside_and_mirror_each_other(dtype: str) -> None:
    xp, words = namespace("array_api_compat.numpy"), np.array([0, 2**32 - 1, 2**31 - 1, 2**31], dtype=np.uint32)
    u = uniforms._uniforms(xp, words, np.zeros((), dtype=dtype))
    assert u.dtype == dtype
    assert 0.0 < u[0] < u[2] < 0.5 < u[3] < u[1] < 1.0
    assert u[0] == 1.0 - u[1]
    assert u[2] == 1.0 - u[3]


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_stratified_uniforms_put_one_in_every_part_of_the_batch(batch: int) -> None:
    for draw in range(5):
        u = times.stratified(7, draw, batch, like=np.zeros(1, dtype=np.float64))
        gaps = np.diff(np.concatenate([np.sort(u), [np.min(u) + 1.0]]))
        np.testing.assert_allclose(gaps, 1.0 / batch, atol=1e-9)


def test_every_row_of_a_stratified_batch_is_uniform_over_draws() -> None:
    u = np.stack([times.stratified(7, draw, 4) for draw in range(400)])
    for row in range(4):
        assert scipy.stats.kstest(u[:, row], "uniform").pvalue > 1e-3


def test_frames_of_a_stratified_batch_are_even_and_independent() -> None:
    u = times.stratified(7, 0, (8, 3))
    np.testing.assert_allclose(np.diff(np.sort(u, axis=0), axis=0), 0.125, atol=1e-6)
    assert len({round(float(low), 6) for low in np.min(u, axis=0)}) == 3


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_antithetic_pairs_sum_to_one(batch: int) -> None:
    u = times.antithetic(7, 0, batch)
    pairs = batch // 2
    np.testing.assert_array_equal(u[:pairs] + u[::-1][:pairs], np.ones(pairs))


def test_independent_rows_do_not_know_their_batch() -> None:
    keys = noise.keys(7, 2, first=1)
    np.testing.assert_array_equal(times.independent(7, 2, 4)[1:3], times.independent(keys, 2, 2))


def test_the_quantile_is_scipys() -> None:
    p = np.concatenate([np.logspace(-300, -1, 500), np.linspace(1e-6, 1.0 - 1e-6, 1001)])
    np.testing.assert_allclose(normal_quantile(np, p), scipy.special.ndtri(p), rtol=2e-15, atol=1e-16)
    np.testing.assert_array_equal(normal_quantile(np, np.array([0.0, 1.0])), [-np.inf, np.inf])


@pytest.mark.parametrize("name", DENSITIES)
def test_a_density_integrates_to_one_and_is_that_of_its_times(name: str) -> None:
    """integral of p from the lowest time to t(u) is u."""
    density = DENSITIES[name]
    low, high = support(density)

    def integral(end: float) -> float:
        return float(scipy.integrate.quad(lambda t: float(density.density(t)), low, end, limit=400)[0])

    assert integral(high) == pytest.approx(1.0, abs=1e-7)
    for u in (0.03, 0.25, 0.5, 0.8, 0.99):
        assert integral(float(density(u))) == pytest.approx(u, abs=1e-7)


@pytest.mark.parametrize("name", DENSITIES)
def test_dividing_by_the_density_gives_the_plain_integral(name: str) -> None:
    """E_{t ~ p}[f(t) / p(t)] = integral of f, here over the part of [0, 1] that holds nearly all of p."""
    density = DENSITIES[name]
    low, high = (float(density(u)) for u in (0.05, 0.95))
    u = 0.05 + 0.9 * (np.arange(20000) + 0.5) / 20000
    t = density(u)
    found = 0.9 * np.mean(np.cos(3.0 * t) / density.density(t))
    assert found == pytest.approx((np.sin(3.0 * high) - np.sin(3.0 * low)) / 3.0, rel=1e-6)


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_densities_agree_on_every_library(name: str, library: str) -> None:
    xp, density = namespace(library), DENSITIES[name]
    u = times.stratified(7, 0, (2, 4))
    t = density(xp.asarray(u))
    assert "float32" in str(t.dtype)
    np.testing.assert_allclose(np.asarray(t), density(u.astype(np.float64)), rtol=2e-5, atol=1e-6)
    found, truth = density.log_density(xp.asarray(np.asarray(t))), density.log_density(np.asarray(t, dtype=np.float64))
    np.testing.assert_allclose(np.asarray(found), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DENSITIES)
def test_outside_the_support_the_density_is_zero(name: str) -> None:
    density = DENSITIES[name]
    np.testing.assert_array_equal(density.density(np.array([-0.1, 1.1])), [0.0, 0.0])
    assert not np.any(np.isnan(density.log_density(np.array([0.0, 1.0]))))


def sd3(u: Any) -> dict[str, Any]:
    """As Esser et al. 2024 have them, with 1 - u for u where theirs fall."""
    falling = 1.0 - u
    return {
        "Mode": 1.0 - falling - 1.29 * (np.cos(0.5 * np.pi * falling) ** 2 - 1.0 + falling),
        "CosMap": 1.0 - 1.0 / (np.tan(0.5 * np.pi * u) + 1.0),
        "LogitNormal": scipy.special.expit(scipy.stats.norm.ppf(u)),
        "Shifted": 3.0 / (2.0 + np.exp(-scipy.stats.norm.ppf(u)) + 1.0),
    }


@pytest.mark.parametrize("name", ["Mode", "CosMap", "LogitNormal", "Shifted"])
def test_times_are_quantiles_in_closed_form(name: str) -> None:
    u = np.concatenate([[1e-9, 1e-4], np.linspace(0.01, 0.99, 99), [1.0 - 1e-4, 1.0 - 1e-9]])
    np.testing.assert_allclose(DENSITIES[name](u), sd3(u)[name], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("a", "b"), [(0.05, 0.05), (0.6, 0.6), (1.0, 2.0), (1.5, 1.0), (7.0, 0.3), (300.0, 2000.0), (1e4, 1e4)]
)
def test_beta_is_scipys_quantile_at_any_parameters(a: float, b: float) -> None:
    """And its slope is 1 / p, to the fourth power of the distance of the knots."""
    tails = np.logspace(-12, -2, 41)
    u = np.concatenate([tails, np.linspace(0.01, 0.99, 301), 1.0 - tails])
    t, truth = times.Beta(a, b)(u), scipy.stats.beta.ppf(u, a, b)
    np.testing.assert_allclose(t, truth, rtol=1e-8 if min(a, b) < 0.3 else 1e-9, atol=1e-300)
    inside = truth[(truth > 1e-6) & (truth < 1.0 - 1e-6)]
    np.testing.assert_allclose(times.Beta(a, b).density(inside), scipy.stats.beta.pdf(inside, a, b), rtol=1e-9)
    ends = times.Beta(a, b)(np.array([0.0, 1.0, np.nan]))
    assert 0.0 <= ends[0] <= t[0]
    assert t[-1] <= ends[1] <= 1.0
    assert np.isnan(ends[2])


def test_shifted_times_are_those_of_a_shifted_flow() -> None:
    """t' on the flow has the log-SNR of t on the shifted flow; and the logit normal's mean moves by log s."""
    flow, u = schedules.Flow(), np.linspace(0.01, 0.99, 33)
    for s in (0.3, 3.0):
        shifted = times.Shifted(times.LogitNormal(0.4, 1.2), s)
        moved = schedules.shift(flow, -2.0 * np.log(s))
        np.testing.assert_allclose(
            flow.log_snr(shifted(u)), moved.log_snr(times.LogitNormal(0.4, 1.2)(u)), rtol=1e-12, atol=1e-12
        )
        other = times.LogitNormal(0.4 + np.log(s), 1.2)
        np.testing.assert_allclose(shifted(u), other(u), rtol=1e-12)
        np.testing.assert_allclose(shifted.log_density(u), other.log_density(u), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
def test_monotone_frames_are_the_same_uniforms_in_order(library: str) -> None:
    u = times.independent(7, 0, (6, 5))
    found = np.asarray(times.monotone(namespace(library).asarray(u)))
    np.testing.assert_array_equal(found, np.sort(u, axis=1))
    many = times.monotone(times.independent(7, 1, (2000, 4), like=np.zeros(1)))
    for k in range(4):
        assert scipy.stats.kstest(many[:, k], scipy.stats.beta(k + 1, 4 - k).cdf).pvalue > 1e-3


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("lag", [0.0, 0.25, 1.0, 1.5])
def test_a_pyramid_of_times_is_its_shares(library: str, lag: float) -> None:
    """Even u: the share of clean and of noisy levels of each frame, and frames a lag apart wherever neither waits."""
    u, frames, whole = (np.arange(4000) + 0.5) / 4000, 4, 1.0 + 3.0 * lag
    found = np.asarray(times.pyramid(namespace(library).asarray(u.astype(np.float32)), frames, lag=lag))
    assert found.shape == (4000, frames)
    step = np.diff(found, axis=1)
    assert np.all(step >= 0.0)
    both = (found[:, :-1] > 0.0) & (found[:, 1:] < 1.0)
    np.testing.assert_allclose(step[both], lag, atol=1e-6)
    for k in range(frames):
        assert np.mean(found[:, k] == 0.0) == pytest.approx((3 - k) * lag / whole, abs=1e-3)
        assert np.mean(found[:, k] == 1.0) == pytest.approx(k * lag / whole, abs=1e-3)
        inner = np.sort(found[(found[:, k] > 0.0) & (found[:, k] < 1.0), k])
        np.testing.assert_allclose(np.diff(inner), whole / 4000, atol=1e-5)


def test_lognormal_is_the_truncated_normal_of_the_log_ratio() -> None:
    schedule = schedules.LinearLogSNR(log_snr_min=-2.0, log_snr_max=5.0)
    u = np.linspace(0.01, 0.99, 50)
    log_ratio = -0.5 * schedule.log_snr(times.LogNormal(schedule, mean=-0.5, std=1.5)(u))
    low, high = ((end / -2.0 + 0.5) / 1.5 for end in (5.0, -2.0))
    truth = scipy.stats.truncnorm.ppf(u, low, high, loc=-0.5, scale=1.5)
    np.testing.assert_allclose(log_ratio, truth, rtol=1e-9, atol=1e-9)


def test_edms_median_noise_level() -> None:
    schedule = schedules.Karras()
    np.testing.assert_allclose(schedule(times.LogNormal(schedule)(0.5)).sigma, np.exp(-1.2), rtol=1e-3)


@pytest.mark.jax
def test_times_under_jit_vmap_and_grad_on_jax() -> None:
    import jax
    import jax.numpy as jnp

    density, u = DENSITIES["LogNormal"], jnp.linspace(0.1, 0.9, 5)
    np.testing.assert_allclose(jax.jit(density)(u), density(u), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(density)(u), density(u), rtol=1e-5)
    t, slope = density(u), jax.vmap(jax.grad(density))(u)  # dt/du = 1 / p(t)
    np.testing.assert_allclose(slope * density.density(t), 1.0, rtol=1e-3)


@pytest.mark.torch
def test_a_learned_schedule_gets_the_gradient_of_the_density(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch.asarray cuts a tensor off its gradient, as it did until 2.13; truth is a finite difference."""
    import torch

    t = torch.tensor([0.2, 0.6], dtype=torch.float64)
    increments = torch.tensor([0.1, -0.3, 0.2], dtype=torch.float64)

    def total(increments: Any) -> Any:
        return times.LogNormal(schedules.Monotone(increments=increments), mean=-1.0, std=1.5).log_density(t).sum()

    steps = 1e-6 * torch.eye(3, dtype=torch.float64)
    truth = [float(total(increments + step) - total(increments - step)) / 2e-6 for step in steps]
    asarray = torch.asarray
    monkeypatch.setattr(torch, "asarray", lambda obj, **kw: asarray(obj, **kw).detach_())
    increments.requires_grad_()
    total(increments).backward()
    assert increments.grad is not None
    np.testing.assert_allclose(increments.grad.numpy(), truth, rtol=1e-6)


@pytest.mark.torch
def test_one_graph_on_torch() -> None:
    import torch

    for density in (DENSITIES["LogNormal"], DENSITIES["LogitNormal"], DENSITIES["part"]):

        def both(u: Any, density: Any = density) -> Any:
            t = density(u)
            return t, density.log_density(t)

        u = torch.linspace(0.1, 0.9, 5)
        torch.testing.assert_close(torch.compile(both, fullgraph=True, backend="aot_eager")(u), both(u))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: times.Uniform(0.5, 0.5), r"times\.Uniform: `high` must be a number in \(0\.5, 1\], got 0\.5"),
        (lambda: times.LogitNormal(std=0.0), r"times\.LogitNormal: `std` must be a finite number > 0, got 0\.0"),
        (lambda: times.Mode(2.0), r"times\.Mode: `scale` must be a number in \[-1, 1\.75"),
        (lambda: times.Beta(0.01, 1.0), r"times\.Beta: `a` must be a number in \[0\.05, 10000\], got 0\.01"),
        (lambda: times.Shifted(times.Uniform(), 0.0), r"times\.Shifted: `shift` must be .* > 0, got 0"),
        (lambda: times.monotone(np.zeros(3)), r"times\.monotone: `u` must be \(B, T, \.\.\.\), .*, got shape \(3,\)"),
        (
            lambda: times.pyramid(np.zeros((2, 3)), 3, lag=0.5),
            r"times\.pyramid: `u` must be \(B,\), .*, got shape \(2, 3\)",
        ),
        (lambda: times.pyramid(np.zeros(2), 3, lag=-0.5), r"`lag` must be a finite number >= 0, got -0\.5"),
        (lambda: times.LogNormal(schedules.Cosine(), mean=float("nan")), r"times\.LogNormal: `mean`"),
        (
            lambda: times.LogNormal(schedules.Cosine(), mean=1e3),
            r"`mean` must make the noise levels of the schedule.*likely",
        ),
        (lambda: times.stratified([1, 2, 3], 0, 2), "`seed` must be one int, or have 2 entries"),
        (lambda: times.independent(1, 0, ()), r"`shape` must be B or \(B, \.\.\.\), ints >= 0, got \(\)"),
        (lambda: times.independent(1, 0, -1), r"`shape` must be B or .*, got \(-1,\)"),
    ],
)
def test_bad_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_schedule_is_asked_for_by_name() -> None:
    with pytest.raises(TypeError, match=r"`schedule` must be a schedule, such as diffcore\.schedules.*, got 3\.0"):
        times.LogNormal(3.0)
    with pytest.raises(TypeError, match=r"`base` must be a density of diffcore\.times, .*, got 3\.0"):
        times.Shifted(3.0, 2.0)
