"""Every check sees what it is there to see: the mistakes that implementations make, one at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import diffcore as dc
from diffcore import losses, predictions, process, testing
from diffcore.levels import Gaussian, Level, level

S, GUIDED = dc.schedules, dc.guidance.classifier_free
GRID = np.linspace(-6.0, 6.0, 6)
NOISE, X = dc.plan.Form().noise, dc.plan.Form().x
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


class _RightOnNodes(S.LinearLogSNR):
    """An inverse that is right at t = k / 64 and near both ends."""

    def _time(self, xp: Any, log_snr: Any, /) -> Any:
        t, rest = super()._time(xp, log_snr)
        return t + 1e-9 * np.sin(64.0 * np.pi * t) ** 2 * ((t > 0.01) & (t < 0.99)), rest


class _SteepEnd(S.Cosine):
    def _slope(self, xp: Any, t: Any, rest: Any, /) -> Any:
        return super()._slope(xp, t, rest) * np.where(t == self.end, 1.01, 1.0)

    end = 0.0


class _SteepStart(_SteepEnd):
    end = 1.0


def _another_eta(grid: Any, eta: float) -> dc.Plan:
    """A sampler that keeps the marginals and is right at both ends of eta."""
    return ddim(grid, eta=eta**2)


def _ratio_of_one(grid: Any) -> dc.Plan:
    """DPM-Solver++ 2M that takes all gaps for equal."""
    plan = dc.samplers.dpm_solver_pp(S.Cosine(), grid=grid, order=2)
    update = plan.update.copy()
    last, x = 1, plan.form.x
    total = update[1:, 0, x] + update[1:, 0, last]
    update[1:, 0, x], update[1:, 0, last] = 1.5 * total, -0.5 * total
    return dataclasses.replace(plan, update=update)


def _corrector(noise: float = 1.0, mean: float = 1.0) -> Callable[..., dc.Plan]:
    def make_plan(schedule: Any, **settings: Any) -> dc.Plan:
        plan = dc.samplers.predictor_corrector(schedule, **settings)
        update = plan.update.copy()
        update[1::2, 0, plan.form.noise] *= noise
        update[1::2, 0, plan.form.x] *= mean
        return dataclasses.replace(plan, update=update)

    return make_plan


def _loop(noise: Any = None, clip: bool = True, dtype: Any = np.float64, level: int = 0) -> Callable[..., Any]:
    """A loop of one's own, by the public steps, with a mistake."""

    def run(denoise: Any, plan: dc.Plan, z: Any, *, seed: Any, prediction: Any, transform_x: Any) -> Any:
        def drawn(draw: int, shape: Any) -> Any:
            return dc.noise.normal(seed, draw, shape, dtype=z.dtype)

        def source(draw: int, shape: Any) -> Any:
            return drawn(draw, shape) if noise is None else noise(drawn, int(draw), shape)

        state = dc.start(plan, z, noise=source)
        for k in range(len(plan)):
            at = np.broadcast_to(plan.log_snr[min(k + level, len(plan) - 1)], z.shape[:1])
            y = denoise(state.z, at).astype(dtype).astype(z.dtype)
            given = transform_x if clip else None
            state = dc.step(plan, state, y, prediction=prediction, noise=source, transform_x=given)
        return state.z

    return run


def check_run(**mistake: Any) -> float:
    plan = dc.samplers.dpm_solver_pp(S.Cosine(), 4, order=2, eta=1.0)
    return testing.check_run(plan, _loop(**mistake), transform_x=dc.guidance.clip(-0.5, 0.5))


def test_a_loop_without_a_mistake_is_no_mistake() -> None:
    assert check_run() <= 1.0


class _Forgetful(dc.exact.Gaussian):
    def denoise(self, z: Any, log_snr: Any) -> Any:
        return 1.001 * super().denoise(z, log_snr)


S_T = level(np.array([3.0, 0.1])), level(np.array([-1.0, 0.0]))
TABLE = "a run of .* is what its table says at element"
SEEN: dict[str, tuple[Callable[[], Any], str]] = {
    "a log-SNR that rises": (lambda: testing.check_schedule(_Rising()), "lambda.t. falls: not between"),
    "an inverse off by 1e-9": (lambda: testing.check_schedule(_WrongTime()), r"time.lambda.t.. = t at t = "),
    "half the slope": (lambda: testing.check_schedule(_WrongSlope()), "slope = d lambda / dt at t = "),
    "an inverse that is right on the nodes of a table": (
        lambda: testing.check_schedule(_RightOnNodes()),
        r"time.lambda.t.. = t at t = ",
    ),
    "a slope off at t = 0": (lambda: testing.check_schedule(_SteepEnd()), "slope = d lambda / dt at its end at t = 0"),
    "a slope off at t = 1": (
        lambda: testing.check_schedule(_SteepStart()),
        "slope = d lambda / dt at its end at t = 1",
    ),
    "another eta between 0 and 1": (
        lambda: testing.check_eta(_another_eta, GRID),
        r"eta\^2 of the posterior's variance at stage = 0",
    ),
    "gaps taken for equal": (
        lambda: testing.check_order(_ratio_of_one, 2),
        r"0\.\d\d, but should be 2 .* with gaps as \(1.0, 2.0,",
    ),
    "a corrector with too much noise": (
        lambda: testing.check_corrector_bias(S.Cosine(), make_plan=_corrector(noise=2.0**0.5)),
        "stationary variance of the corrector",
    ),
    "a corrector that moves the mean": (
        lambda: testing.check_corrector_bias(S.Cosine(), make_plan=_corrector(mean=2.0)),
        "mean under the corrector",
    ),
    "one noise for all stages": (lambda: check_run(noise=lambda drawn, draw, shape: drawn(1, shape)), TABLE),
    "one noise for all samples": (
        lambda: check_run(noise=lambda drawn, draw, shape: np.repeat(drawn(draw, shape)[:1], shape[0], axis=0)),
        TABLE,
    ),
    "noise in another order of frames": (
        lambda: check_run(noise=lambda drawn, draw, shape: drawn(draw, shape)[:, ::-1]),
        TABLE,
    ),
    "noise that starts with another draw": (
        lambda: check_run(noise=lambda drawn, draw, shape: drawn(draw + 1, shape)),
        TABLE,
    ),
    "a threshold that is forgotten": (lambda: check_run(clip=False), TABLE),
    "the level after this one": (lambda: check_run(level=1), TABLE),
    "float32 on the way": (lambda: check_run(dtype=np.float32), TABLE),
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
    "guidance with a rescaling, which depends on the prediction": (
        lambda: testing.check_guidance_invariance(S_T[0], classifier_free=partial(GUIDED, rescale=0.5)),
        "guidance on",
    ),
    "guidance that is not finite": (
        lambda: testing.check_guidance_invariance(S_T[0], classifier_free=partial(_scale_for_weight, by=np.nan)),
        "guidance on 'x': is not finite",
    ),
    "a denoiser off by 0.1%": (
        lambda: testing.check_denoiser(_Forgetful(np.zeros(2), 1.0), 0.5, np.ones((1, 2))),
        "score = grad log q|Tweedie|Cov",
    ),
    "eta for eta^2": (
        lambda: testing.check_keeps_marginals(_plan_with(_scale(0, NOISE, 1.001))),
        "keeps the variance at stage = 3",
    ),
    "x-hat off by 0.1%": (lambda: testing.check_keeps_marginals(_plan_with(_scale(0, X, 1.001))), "keeps the mean"),
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


def _scale_for_weight(cond: Any, uncond: Any, *, weight: float, by: float = 1.0) -> Any:
    return lambda z, l: by * (1.0 + weight) * cond(z, l) - (weight + 1.0) * uncond(z, l)


def _noise_at_the_end(update: Any, plan: dc.Plan) -> None:
    update[-1, 0, NOISE] = 1e-6


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
