"""The identities of samplers that are in their plans, checked by algebra on the coefficients.

A check raises AssertionError and says which identity, where, and by how much; it returns how much of its tolerance was
used up, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import diffcore as dc
from diffcore import exact, levels
from diffcore.plan import Plan
from diffcore.testing._arrays import Float64, compare, fail_unless
from diffcore.testing._naming import maker_of, plan_of

__all__ = [
    "check_composes",
    "check_corrector_bias",
    "check_ddim_eta1_is_ancestral",
    "check_dpm1_is_ddim",
    "check_eta",
    "check_keeps_marginals",
    "check_moments",
    "check_same_plan",
]

MakePlan = Callable[[Float64], Plan]
"""A sampler with its settings fixed: a grid of log-SNRs -> Plan."""


def _responses(plan: Plan) -> tuple[Float64, Float64, Float64]:
    """Return (from_z, from_x, variance) of the state after every stage, (stages,) each, for one x-hat in all stages."""
    if plan.lead:
        raise ValueError(f"testing: the levels of `plan` must have shape () for this check, got {plan.lead}")
    form = plan.form
    state = np.zeros((1 + form.memory, 2 + len(plan)))  # rows z and memory; columns z_0, x, and the noise of each stage
    state[0, 0] = 1.0
    out = []
    for k, rows in enumerate(plan.update):
        state = rows[:, : form.noise] @ state
        state[:, 1] += rows[:, form.x :].sum(axis=-1)
        state[:, 2 + k] += rows[:, form.noise]
        out.append((state[0, 0], state[0, 1], float(np.sum(state[0, 2:] ** 2))))
    columns = np.array(out).T
    return columns[0], columns[1], columns[2]


def check_same_plan(first: Plan, second: Plan, *, rtol: float = 1e-12) -> float:
    """Check that two samplers are one: that their plans have the same levels and the same coefficients.

    Args:
        first, second: plans.
        rtol: of the coefficients, relative to the largest of a stage.

    Raises:
        AssertionError: naming the stage.

    >>> schedule = dc.schedules.Cosine()
    >>> check_same_plan(dc.samplers.ddim(schedule, 8), dc.samplers.euler(schedule, 8)) <= 1.0
    True
    """
    for argument, plan in (("first", first), ("second", second)):
        plan_of("testing.check_same_plan", plan, argument)
    name = f"{first.sampler} = {second.sampler}"
    fail_unless(first.scaling == second.scaling, name, f"scalings {first.scaling!r} and {second.scaling!r}")
    shapes = f"tables of shape {first.update.shape} and {second.update.shape}"
    fail_unless(first.update.shape == second.update.shape, name, shapes)
    compare(f"{name}: levels", first.log_snr, second.log_snr, 1e-12 * (1.0 + np.abs(first.log_snr)))
    size = 1.0 + np.abs(second.update).max(axis=(-1, -2), keepdims=True)
    stages = np.arange(len(first)).reshape(-1, *(1,) * (first.update.ndim - 1))
    return compare(f"{name}: update", first.update, second.update, rtol * size, where={"stage": stages})


def check_ddim_eta1_is_ancestral(schedule: Any, grid: Float64) -> float:
    """Check that DDIM at eta = 1, DPM-Solver-1's SDE and the ancestral sampler at gamma = 0 are one.

    Args:
        schedule: gives the scaling.
        grid: increasing log-SNRs.

    Raises:
        AssertionError: naming the stage.

    Source: Song, Meng & Ermon 2021 (arXiv 2010.02502), sec. 4.1; Lu et al. 2022 (arXiv 2211.01095), sec. 5.

    >>> check_ddim_eta1_is_ancestral(dc.schedules.Cosine(), np.array([-9.0, 0.0, np.inf])) <= 1.0
    True
    """
    ancestral = dc.samplers.ancestral(schedule, grid=grid, gamma=0.0)
    used = check_same_plan(dc.samplers.ddim(schedule, grid=grid, eta=1.0), ancestral)
    return max(used, check_same_plan(dc.samplers.dpm_solver_pp(schedule, grid=grid, order=1, eta=1.0), ancestral))


def check_dpm1_is_ddim(schedule: Any, grid: Float64) -> float:
    """Check that DPM-Solver-1, Euler's method and DDIM at eta = 0 are one.

    Args:
        schedule: gives the scaling.
        grid: increasing log-SNRs.

    Raises:
        AssertionError: naming the stage.

    Source: Lu et al. 2022 (arXiv 2206.00927), sec. 4.1.

    >>> check_dpm1_is_ddim(dc.schedules.Cosine(), np.array([-9.0, 0.0, np.inf])) <= 1.0
    True
    """
    ddim = dc.samplers.ddim(schedule, grid=grid)
    used = check_same_plan(dc.samplers.dpm_solver_pp(schedule, grid=grid, order=1), ddim)
    return max(used, check_same_plan(dc.samplers.euler(schedule, grid=grid), ddim))


def check_composes(make_plan: MakePlan, grid: Float64, *, rtol: float = 1e-10) -> float:
    r"""Check that for a fixed x-hat the steps of a grid compose: t -> s -> u is t -> u, in distribution if it is noisy.

    Args:
        make_plan: the sampler, grid -> plan.
        grid: at least three increasing log-SNRs.
        rtol: of the coefficients of z and x-hat, and of the variance of the noise.

    Raises:
        AssertionError: naming the coefficient.

    Source: Song, Meng & Ermon 2021 (arXiv 2010.02502), eq. 13.

    >>> schedule = dc.schedules.Cosine()
    >>> check_composes(lambda grid: dc.samplers.ddim(schedule, grid=grid), np.array([-6.0, 1.0, 3.0])) <= 1.0
    True
    """
    maker_of("testing.check_composes", make_plan)
    plan = make_plan(grid)
    many, once = _responses(plan), _responses(make_plan(grid[[0, -1]]))
    used = 0.0
    for what, found, want in zip(("z", "x-hat", "the noise's variance"), many, once, strict=True):
        tolerance = rtol * (abs(want[-1]) + 1e-3)
        used = max(used, compare(f"{plan.sampler} composes: {what}", found[-1], want[-1], tolerance))
    return used


def check_keeps_marginals(plan: Plan, *, rtol: float = 1e-10) -> float:
    r"""Check that given x a run goes through the marginals: from q(z_t | x) every stage leads to q(z_s | x).

        A alpha_t + B = alpha_s,   A^2 sigma_t^2 + (variance of the noise) = sigma_s^2

    True of the deterministic samplers, of ancestral at gamma = 0, of DDIM at any eta; not of gamma > 0, of a corrector,
    or of churn with its noise scaled.

    Args:
        plan: with levels of shape ().
        rtol: of alpha and sigma^2.

    Raises:
        AssertionError: naming the stage.

    Source: Song, Meng & Ermon 2021 (arXiv 2010.02502), app. B, lemma 1.

    >>> check_keeps_marginals(dc.samplers.unipc(dc.schedules.Cosine(), 6)) <= 1.0
    True
    """
    plan_of("testing.check_keeps_marginals", plan)
    from_z, from_x, variance = _responses(plan)
    first, after = plan.start, levels.level(plan.next_log_snr, plan.scaling)
    where = {"stage": np.arange(len(plan))}
    mean, spread = from_z * first.alpha + from_x, from_z**2 * first.sigma**2 + variance
    tolerance = rtol * (after.alpha + 1e-6)
    used = compare(f"{plan.sampler} keeps the mean alpha x", mean, after.alpha, tolerance, where=where)
    tolerance = rtol * (after.sigma**2 + 1e-6 + variance)
    return max(used, compare(f"{plan.sampler} keeps the variance", spread, after.sigma**2, tolerance, where=where))


def check_eta(make_plan: Callable[[Float64, float], Plan], grid: Float64, *, rtol: float = 1e-10) -> float:
    r"""Check what eta means: the marginals are kept at every eta, and a step's noise has eta^2 of the posterior's variance.

        (variance of the noise) = eta^2 (1 - e^{lambda_t - lambda_s}) sigma_s^2,   eta = 0, 0.25, 0.5, 0.75, 1

    Args:
        make_plan: the sampler, (grid, eta) -> plan, of one stage a step.
        grid: increasing log-SNRs.
        rtol: of the variance.

    Raises:
        AssertionError: naming eta and the stage.

    Source: Song, Meng & Ermon 2021 (arXiv 2010.02502), eq. 16.

    >>> schedule = dc.schedules.Cosine()
    >>> check_eta(lambda grid, eta: dc.samplers.ddim(schedule, grid=grid, eta=eta), np.linspace(-6.0, 3.0, 5)) <= 1.0
    True
    """
    maker_of("testing.check_eta", make_plan, "grid, eta")
    used = 0.0
    for eta in (0.0, 0.25, 0.5, 0.75, 1.0):
        plan = make_plan(grid, eta)
        t, s = (levels.level(at, plan.scaling) for at in (plan.log_snr, plan.next_log_snr))
        variance = -np.expm1(t.log_snr - s.log_snr) * s.sigma**2
        identity, where = f"{plan.sampler}: eta^2 of the posterior's variance", {"stage": np.arange(len(plan))}
        found, want = plan.update[:, 0, plan.form.noise] ** 2, eta**2 * variance
        used = max(used, compare(identity, found, want, rtol * variance, where=where), check_keeps_marginals(plan))
    return used


def check_moments(plan: Plan, *, mean: float = 0.7, variance: float = 0.4, rtol: float = 1e-9) -> float:
    r"""Check `exact.moments` of a plan against the sampler itself, run on unit noises one by one.

    With a Gaussian's denoiser a run is an affine map of its noises, so the runs on (1, 0, ..., 0), (0, 1, ..., 0), ...
    and on 0 give its coefficients; the variance is the sum of their squares.

    Args:
        plan: with levels of shape ().
        mean, variance: of the data.
        rtol: relative to the mean and the variance.

    Raises:
        AssertionError: naming which of the two.

    >>> check_moments(dc.samplers.heun(dc.schedules.Cosine(), 4, churn=1.0)) <= 1.0
    True
    """
    plan_of("testing.check_moments", plan)
    count = len(plan) + 1

    def unit(draw: int, shape: tuple[int, ...]) -> Float64:
        return np.asarray(np.arange(shape[1]) == draw, dtype=np.float64)[None, :]

    def denoise(z: Float64, log_snr: Float64) -> Float64:
        at = levels.level(log_snr[:, None], plan.scaling)
        return np.asarray(mean + at.alpha * variance / (at.alpha**2 * variance + at.sigma**2) * (z - at.alpha * mean))

    start = np.zeros((1, count + 1))
    start[0, 0] = plan.start.sigma
    end = dc.sample(denoise, plan, start, noise=unit, prediction="x")[0]
    found_mean, found_variance = exact.moments(plan, exact.Gaussian(np.array([mean]), variance))
    offset, spread = end[-1], float(np.sum((end[:-1] - end[-1]) ** 2))
    used = compare(f"moments of {plan.sampler}: mean", found_mean, offset, rtol * (1.0 + abs(offset)))
    return max(used, compare(f"moments of {plan.sampler}: variance", found_variance, spread, rtol * (1.0 + spread)))


def check_corrector_bias(
    schedule: Any,
    *,
    delta: float = 0.1,
    variance: float = 0.4,
    rtol: float = 1e-10,
    make_plan: Callable[..., Plan] = dc.samplers.predictor_corrector,
) -> float:
    r"""Check that a Langevin corrector leaves the mean, and its stationary variance, which is not the true one.

        stationary variance = (alpha^2 c + sigma^2) / (1 - delta k / 4),   k = sigma^2 / (alpha^2 c + sigma^2)

    Args:
        schedule: gives the levels and the scaling.
        delta: the corrector's step.
        variance: c of the data.
        rtol: relative to the variance.
        make_plan: the sampler to check, called as `predictor_corrector` is: (schedule, steps=, gamma=, delta=) -> plan
            whose stages are by turns a step and a correction.

    Raises:
        AssertionError: naming the log-SNR.

    Source: math.md of diffcore, trap 7; it follows from z' = (1 - delta k / 2) z + sqrt(delta) sigma eps.

    >>> check_corrector_bias(dc.schedules.Cosine()) <= 1.0
    True
    """
    plan = make_plan(schedule, steps=12, gamma=0.0, delta=delta)
    correct, form = plan.update[1::2, 0], plan.form
    at = levels.level(plan.log_snr[1::2], plan.scaling)
    total = at.alpha**2 * variance + at.sigma**2
    moved = correct[:, 0] * at.alpha + correct[:, form.x]
    used = compare("mean under the corrector", moved, at.alpha, rtol * at.alpha, where={"log_snr": at.log_snr})
    gain = correct[:, 0] + correct[:, form.x] * at.alpha * variance / total
    stationary = correct[:, form.noise] ** 2 / (1.0 - gain**2)
    truth = total / (1.0 - 0.25 * delta * at.sigma**2 / total)
    size = rtol * truth / np.minimum(1.0, delta * at.sigma**2 / total)  # 1 - gain^2 cancels where the step is small
    name = "stationary variance of the corrector"
    return max(used, compare(name, stationary, truth, size, where={"log_snr": at.log_snr}))
