"""Every check sees what it is there to see: the mistakes that implementations make, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import diffcore as dc
from diffcore import losses, predictions, process, testing
from diffcore.levels import Gaussian, Level, level

S = dc.schedules
GRID = np.linspace(-6.0, 6.0, 6)
CLEAN = np.array([-9.0, -4.0, -1.0, 0.5, 4.0, np.inf])


def ancestral(grid: Any = GRID) -> dc.Plan:
    return dc.samplers.ancestral(S.Cosine(), grid=grid)


def ddim(grid: Any = GRID, eta: float = 0.0) -> dc.Plan:
    return dc.samplers.ddim(S.Cosine(), grid=grid, eta=eta)


def _posterior(a_power: float = 2.0, noise: str = "s") -> Callable[..., Gaussian]:
    def posterior(z_t: Any, x: Any, *, s: Level, t: Level) -> Gaussian:
        new = -np.expm1(t.log_snr - s.log_snr)
        mean = (t.alpha / s.alpha) * (s.sigma / t.sigma) ** a_power * z_t + new * s.alpha * x
        return Gaussian(mean, new * (s if noise == "s" else t).sigma ** 2)

    return posterior


def _plan_with(change: Callable[[Any, dc.Plan], None], grid: Any = GRID) -> dc.Plan:
    plan = ancestral(grid)
    update = plan.update.copy()
    change(update, plan)
    return dc.Plan("broken", plan.scaling, plan.log_snr, plan.next_log_snr, update)


def _scale(row: int, column: int, factor: float) -> Callable[[Any, dc.Plan], None]:
    def change(update: Any, plan: dc.Plan) -> None:
        update[-2, row, column] *= factor

    return change


class _Rising(S.LinearLogSNR):
    def _log_snr(self, xp: Any, t: Any, rest: Any, /) -> Any:
        return super()._log_snr(xp, rest, t)


class _WrongTime(S.LinearLogSNR):
    def _time(self, xp: Any, log_snr: Any, /) -> Any:
        t, rest = super()._time(xp, log_snr)
        return t + 1e-9, rest


class _WrongSlope(S.Cosine):
    def _slope(self, xp: Any, t: Any, rest: Any, /) -> Any:
        return 0.5 * super()._slope(xp, t, rest)


class _Forgetful(dc.exact.Gaussian):
    def denoise(self, z: Any, log_snr: Any) -> Any:
        return 1.001 * super().denoise(z, log_snr)


S_T = level(np.array([3.0, 0.1])), level(np.array([-1.0, 0.0]))
SEEN: dict[str, tuple[Callable[[], Any], str]] = {
    "a log-SNR that rises": (lambda: testing.check_schedule(_Rising()), "lambda.t. falls: not between"),
    "an inverse off by 1e-9": (lambda: testing.check_schedule(_WrongTime()), r"time.lambda.t.. = t at t = "),
    "half the slope": (lambda: testing.check_schedule(_WrongSlope()), "slope = d lambda / dt at t = "),
    "half the slope, in the bound": (lambda: testing.check_bound(_WrongSlope()), "L_inf from its ends"),
    "sigma by a difference": (
        lambda: testing.check_level_precision(
            np.zeros(1, np.float32), level=lambda l, _: Level(level(l).alpha, np.sqrt(1 - level(l).alpha ** 2), l)
        ),
        "level precision: sigma under 'vp' at log_snr = ",
    ),
    "a level of another scaling": (lambda: testing.check_scaling(level(np.ones(1), "ve"), "vp"), "its condition"),
    "sigma_s for sigma_t in the transition": (
        lambda: testing.check_chapman_kolmogorov(
            level(np.array([4.0, 1.0])),
            *S_T,
            transition=lambda z, s, t: Gaussian(t.alpha / s.alpha * z, process.novelty(s, t) * s.sigma**2),
        ),
        "Chapman-Kolmogorov: variance",
    ),
    "sigma once in the posterior's mean": (
        lambda: testing.check_bayes(*S_T, posterior=_posterior(1.0)),
        r"posterior \* marginal",
    ),
    "sigma_t in the posterior's variance": (
        lambda: testing.check_bayes(*S_T, posterior=_posterior(noise="t")),
        r"posterior \* marginal",
    ),
    "a posterior in sigma^2 - sigma^2": (
        lambda: testing.check_posterior_precision(posterior=_subtracting),
        "posterior precision",
    ),
    "gamma as a factor": (
        lambda: testing.check_reverse_variance(*S_T, reverse_variance=_linear),
        "reverse variance at gamma = 0.1",
    ),
    "v = alpha eps + sigma x": (
        lambda: testing.check_conversions(S_T[0], convert=_v_with_a_plus),
        "conversion 'v' -> ",
    ),
    "a loss weighted in the space of the prediction": (
        lambda: testing.check_loss_invariance(S_T[0], denoising=_plain_error),
        "loss of 'eps'",
    ),
    "guidance whose weights do not sum to one": (
        lambda: testing.check_guidance_invariance(S_T[0], classifier_free=_scale_for_weight),
        "guidance on",
    ),
    "a denoiser off by 0.1%": (
        lambda: testing.check_denoiser(_Forgetful(np.zeros(2), 1.0), 0.5, np.ones((1, 2))),
        "score = grad log q|Tweedie|Cov",
    ),
    "eta for eta^2": (
        lambda: testing.check_keeps_marginals(_plan_with(_scale(0, 2, 1.001))),
        "keeps the variance at stage = 3",
    ),
    "x-hat off by 0.1%": (lambda: testing.check_keeps_marginals(_plan_with(_scale(0, 3, 1.001))), "keeps the mean"),
    "a step that does not compose": (
        lambda: testing.check_composes(lambda grid: ddim(grid, eta=0.5), GRID),
        "composes: ",
    ),
    "another coefficient": (
        lambda: testing.check_same_plan(_plan_with(_scale(0, 0, 1.0 + 1e-9)), ancestral()),
        "update at stage = 3",
    ),
    "noise in the last step": (
        lambda: testing.check_last_step_returns_x(_plan_with(_noise_at_the_end, grid=CLEAN)),
        "the last step returns x-hat",
    ),
    "an end that is not clean": (
        lambda: testing.check_last_step_returns_x(ddim()),
        "ends at log_snr = 6",
    ),
    "a denoiser with a memory": (
        lambda: testing.check_interleaved(_Counting(), [ddim()] * 2),
        "interleaved and in sequence",
    ),
    "a denoiser that looks at its batch": (
        lambda: testing.check_batch_equals_singles(lambda z, l: z - z.mean(), ddim(), prediction="v"),
        "sample 0 alone and in a batch of 3",
    ),
    "a denoiser that draws": (
        lambda: testing.check_deterministic(_Counting(), ddim()),
        "a run is a function of its seed",
    ),
    "a run resumed with a denoiser that counts": (
        lambda: testing.check_resumed(_Counting(), ddim()),
        "resumed after stage 0 and straight",
    ),
}


class _Counting:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, z: Any, log_snr: Any) -> Any:
        self.calls += 1
        return z / self.calls


def _subtracting(z_t: Any, x: Any, *, s: Level, t: Level) -> Gaussian:
    """The posterior as many write it, from sigma_{t|s}^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2."""
    with np.errstate(all="ignore"):
        new = t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2
        mean = (t.alpha / s.alpha) * (s.sigma / t.sigma) ** 2 * z_t + s.alpha * new / t.sigma**2 * x
        return Gaussian(mean, new * s.sigma**2 / t.sigma**2)


def _linear(s: Level, t: Level, gamma: float) -> Any:
    new = process.novelty(s, t)
    return (1.0 - gamma) * new * s.sigma**2 + gamma * new * t.sigma**2


def _v_with_a_plus(y: Any, z: Any, at: Level, *, source: Any, target: Any) -> Any:
    wrong = lambda xp, l: predictions.Row(l.sigma, l.alpha, xp.ones_like(l.alpha))  # noqa: E731
    is_v = predictions.table()["v"]
    return predictions.convert(y, z, at, source=wrong if source is is_v else source, target=target)


def _plain_error(y: Any, x: Any, eps: Any, at: Level, *, prediction: str, weight: Any, slope: Any) -> Any:
    error = (y - losses.target(x, eps, at, prediction=prediction)) ** 2
    return np.reshape(weight(at, slope), (-1, 1, 1)).ravel() * error.mean(axis=(1, 2))


def _scale_for_weight(cond: Any, uncond: Any, *, weight: float) -> Any:
    return lambda z, l: (1.0 + weight) * cond(z, l) - (weight + 1.0) * uncond(z, l)


def _noise_at_the_end(update: Any, plan: dc.Plan) -> None:
    update[-1, 0, 2] = 1e-6


@pytest.mark.parametrize("mistake", SEEN)
def test_a_check_sees(mistake: str) -> None:
    call, message = SEEN[mistake]
    with pytest.raises(AssertionError, match=message):
        call()


def test_a_message_says_which_identity_where_and_by_how_much() -> None:
    with pytest.raises(AssertionError) as caught:
        testing.check_bayes(*S_T, posterior=_posterior(1.0))
    text = str(caught.value)
    assert "at log_snr_s = " in text
    assert "should be 0.0 within" in text
    assert "off by" in text
