"""Schedules by name: betas, zero terminal SNR, resolutions, sub-VP, against diffusers and closed forms."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.integrate

from diffcore import schedules
from diffcore.schedules import (
    Cosine,
    Flow,
    LinearLogSNR,
    SubVP,
    Table,
    betas,
    from_betas,
    interpolate,
    simple_diffusion,
    zero_terminal_snr,
)

KINDS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp")


@pytest.mark.parametrize("kind", KINDS)
def test_betas_are_those_of_diffusers(kind: str) -> None:
    """In its float32, and to 1e-12 where it works in float64."""
    peer = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    if kind == "exp":
        theirs = peer.betas_for_alpha_bar(1000, alpha_transform_type="exp")
    else:
        ends = {"beta_start": 0.00085, "beta_end": 0.012} if kind == "scaled_linear" else {}
        theirs = peer.DDPMScheduler(beta_schedule=kind, **ends).betas
    np.testing.assert_allclose(betas(kind), np.asarray(theirs), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("steps", [2, 1000])
def test_betas_are_their_formulas(steps: int) -> None:
    i = np.arange(steps)
    np.testing.assert_allclose(betas("linear", steps), np.linspace(1e-4, 0.02, steps), rtol=1e-12)
    root = np.linspace(0.00085**0.5, 0.012**0.5, steps)
    np.testing.assert_allclose(betas("scaled_linear", steps), root**2, rtol=1e-12)
    s = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, steps)))
    found = betas("sigmoid", steps, beta_start=1e-7, beta_end=2e-3)
    np.testing.assert_allclose(found, 1e-7 + (2e-3 - 1e-7) * s, rtol=1e-12)

    def bar(t: Any) -> Any:
        return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2

    cosine = np.minimum(1.0 - bar((i + 1) / steps) / bar(i / steps), 0.999)
    np.testing.assert_allclose(betas("squaredcos_cap_v2", steps), cosine, rtol=1e-9)  # 1 - ratio has lost some digits
    np.testing.assert_allclose(np.cumprod(1.0 - betas("exp", steps)), np.exp(-12.0 * (i + 1) / steps), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_terminal_snr_is_algorithm_1_in_full_precision(kind: str) -> None:
    """Truth: rescale_zero_terminal_snr of diffusers, given float64, where it keeps the digits; and its float32 near by."""
    table = from_betas(betas(kind))
    found = zero_terminal_snr(table)
    assert found.log_snrs[0] == table.log_snrs[0]
    assert found.log_snrs[-1] == -math.inf
    assert zero_terminal_snr(found) == found
    alpha = np.sqrt(np.cumprod(1.0 - betas(kind)))
    rescaled = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    np.testing.assert_allclose(found(np.arange(1000) / 999).alpha, rescaled, rtol=1e-9, atol=1e-14)
    torch = pytest.importorskip("torch")
    rescale = pytest.importorskip("diffusers.schedulers.scheduling_ddim").rescale_zero_terminal_snr
    theirs = np.cumprod(1.0 - np.asarray(rescale(torch.asarray(betas(kind)))))
    np.testing.assert_allclose(np.asarray(found(np.arange(1000) / 999).alpha) ** 2, theirs, rtol=0, atol=1e-12)
    narrow = np.cumprod(1.0 - np.asarray(rescale(torch.asarray(betas(kind), dtype=torch.float32))))
    np.testing.assert_allclose(theirs, narrow, rtol=0, atol=1e-4)


def test_zero_terminal_snr_keeps_the_ratio_of_alphas_below_the_first_and_the_scaling() -> None:
    """Affine in alpha: differences keep their ratios. Truth by 60 digits where alpha is next to its end."""
    import mpmath

    table = Table(log_snrs=(9.0, 2.0, -3.0, -3.0 - 1e-9, -3.0 - 2e-9), scaling="ve")
    found = zero_terminal_snr(table)
    assert found.scaling == "ve"
    with mpmath.workdps(60):
        alpha = [mpmath.sqrt(1 / (1 + mpmath.exp(-mpmath.mpf(x)))) for x in table.log_snrs]
        new = [alpha[0] * (a - alpha[-1]) / (alpha[0] - alpha[-1]) for a in alpha[:-1]]
        truth = [float(mpmath.log(a**2 / (1 - a**2))) for a in new]
    np.testing.assert_allclose(found.log_snrs[:-1], truth, rtol=1e-14)


@pytest.mark.parametrize(("low", "high"), [(32.0, 256.0), (64.0, 64.0)])
def test_simple_diffusion_is_the_formulas_of_its_appendix(low: float, high: float) -> None:
    t = np.linspace(0.0, 1.0, 33)
    first, last = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
    cosine = -2.0 * np.log(np.tan(first + t * (last - first)))
    shifted = cosine + 2.0 * math.log(low / 128.0)
    np.testing.assert_allclose(simple_diffusion(128, low=low).log_snr(t), shifted, rtol=1e-9, atol=1e-9)
    both = t * shifted + (1.0 - t) * (cosine + 2.0 * math.log(high / 128.0))
    np.testing.assert_allclose(simple_diffusion(128, low=low, high=high).log_snr(t), both, rtol=1e-9, atol=1e-9)


def test_a_sub_vp_state_is_gain_times_a_vp_state() -> None:
    """alpha and sigma of the sub-VP SDE by integrating its moments: dm/dt = -beta m / 2, dv/dt = beta (1 - e^{-2 B} - v)."""
    schedule = SubVP()

    def moments(t: float, state: Any) -> Any:
        rate, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t * t / 2.0
        return -0.5 * rate * state[0], rate * (1.0 - math.exp(-2.0 * integral) - state[1])

    times = np.array([0.05, 0.3, 0.7, 1.0])
    alpha, variance = scipy.integrate.solve_ivp(moments, (0.0, 1.0), (1.0, 0.0), t_eval=times, rtol=1e-11, atol=1e-14).y
    level, gain = schedule(times), schedule.gain(schedule.log_snr(times))
    np.testing.assert_allclose(gain * level.alpha, alpha, rtol=1e-7)
    np.testing.assert_allclose(gain * level.sigma, np.sqrt(variance), rtol=1e-7)
    assert 0.86 < schedule.gain(-2.0 * math.log(0.5 / math.sqrt(0.5))) < 0.8661  # e^{-B} = 1/2 is the least
    assert schedule.gain(np.float32(0.0)).dtype == np.float32


@pytest.mark.parametrize("name", schedules.named())
def test_a_named_schedule_is_a_schedule_that_files_can_hold(name: str) -> None:
    schedule, t = schedules.by_name(name), np.linspace(0.0, 1.0, 101)
    assert schedule == schedules.named()[name]
    assert schedules.from_dict(json.loads(json.dumps(schedules.to_dict(schedule)))) == schedule
    found = schedule.log_snr(t)
    assert np.all(np.diff(found) < 0.0)
    inner = t if np.isfinite(found).all() else t[1:-1]
    np.testing.assert_allclose(schedule.time(schedule.log_snr(inner)), inner, rtol=1e-9, atol=1e-12)


def test_a_schedule_by_name_has_the_fields_that_it_gets() -> None:
    assert schedules.by_name("edm", sigma_max=40.0) == schedules.Karras(sigma_max=40.0)
    assert schedules.by_name("Karras", sigma_max=40.0) == schedules.Karras(sigma_max=40.0)
    shifted = schedules.by_name("Shifted", schedule=Cosine(), delta=1.0)
    assert shifted == schedules.Shifted(schedule=Cosine(), delta=1.0)


def test_named_schedules_have_the_alphas_of_their_papers() -> None:
    named, t = schedules.named(), np.linspace(0.05, 0.95, 19)
    angle = 0.5 * np.pi * t
    np.testing.assert_allclose(named["trigflow"](t).alpha, np.cos(angle), rtol=1e-12)
    np.testing.assert_allclose(named["tangent"](t).sigma, np.tan(angle), rtol=1e-12)
    np.testing.assert_allclose(named["exponential"](t).alpha ** 2, np.exp(-12.0 * t), rtol=1e-12)
    np.testing.assert_allclose(named["linear_vp"](t).alpha, 1.0 - t, rtol=1e-12)
    np.testing.assert_allclose(named["sd3"](t).sigma, 3.0 * t / (1.0 + 2.0 * t), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: schedules.by_name("emd"), ValueError, r"schedules\.by_name: `name` must be .*; did you mean 'edm'\?"),
        (lambda: schedules.by_name(Cosine), TypeError, r"`name` must be .*, got the class Cosine"),  # type: ignore[arg-type]
        (
            lambda: schedules.by_name("edm", lag=1),
            ValueError,
            r"`settings` must be fields of Karras, \['sigma_min', .*'lag'",
        ),
        (
            lambda: schedules.by_name("edm", sigma_max="x"),
            TypeError,
            r"`sigma_max` must be a finite number > 0, got 'x'",
        ),
        (lambda: schedules.by_name("Shifted"), ValueError, r"of Shifted, .* it needs \['delta', 'schedule'\]"),
        (lambda: betas("cosine"), ValueError, r"schedules\.betas: `kind` must be 'linear', .*, got 'cosine'"),
        (lambda: betas("linear", 1), ValueError, r"`steps` must be an int >= 2, got 1"),
        (lambda: betas("exp", beta_start=0.1), ValueError, r"`beta_start` must be None for 'exp', .*, got 0\.1"),
        (lambda: betas("linear", beta_start=0.5), ValueError, r"`beta_end` must be a number in \[0\.5, 1\), got 0\.02"),
        (lambda: zero_terminal_snr(Cosine()), TypeError, r"`table` must be a Table, such as schedules\.from_betas"),  # type: ignore[arg-type]
        (lambda: simple_diffusion(0), ValueError, r"schedules\.simple_diffusion: `side` must be .* > 0, got 0"),
        (lambda: simple_diffusion(64, high=32), ValueError, r"`high` must be .* >= 64, got 32"),
        (
            lambda: interpolate(Flow(), Flow(), None),
            ValueError,
            r"schedules\.interpolate: `a` and `b` must have finite ends where `weight` is None",
        ),
        (
            lambda: interpolate(LinearLogSNR(), LinearLogSNR(log_snr_min=30.0, log_snr_max=90.0), None),
            ValueError,
            r"where `weight` is None, `a` must lie above `b`.*exchange them",
        ),
        (lambda: schedules.PolynomialVP(power=0.0), ValueError, r"schedules\.PolynomialVP: `power` must be .* > 0"),
        (lambda: SubVP(beta_min=3, beta_max=2), ValueError, r"schedules\.SubVP: `beta_min` must be at most `beta_max`"),
        (lambda: SubVP().gain(np.arange(3)), TypeError, r"schedules\.SubVP\.gain: `log_snr` has dtype int64"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()
