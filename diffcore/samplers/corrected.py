r"""Multistep predictors with a corrector that costs no call: UniPC for the ODE, SA-Solver for the SDE, too.

The call at level i, made at the predicted state, first corrects the step that led there, then predicts the next:

    z_i^c     = a_i z_{i-1}^c + alpha_i sum_j w_j x-hat_{i-j} + b_i eps_i,             j = 0 .. q-1    (corrector)
    z_{i+1}   = a_{i+1} z_i^c + alpha_{i+1} sum_j w'_j x-hat_{i-j} + b_{i+1} eps_{i+1},  j = 0 .. p-1  (predictor)

with the weights of `exponential`, and the same noise in both.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from diffcore import _check
from diffcore.plan import Float64, Form, Plan
from diffcore.samplers._build import Steps, empty, finish, steps_of
from diffcore.samplers._written import refuse_pure_noise
from diffcore.samplers.exponential import check_order, interpolation_weights, nodes_of
from diffcore.schedules import Schedule


def unipc(
    schedule: Schedule,
    steps: int | None = None,
    *,
    order: int = 2,
    variant: str | None = None,
    lower_order_final: bool = False,
    grid: Any = None,
) -> Plan:
    r"""Return the plan of UniPC: a multistep predictor, corrected at no cost by the call that the next step makes.

    The call at level i, made at the predicted state, first corrects the step that led there, then predicts the next:

        z_i^c     = (sigma_i / sigma_{i-1}) z_{i-1}^c + alpha_i sum_j w_j x-hat_{i-j},   j = 0 .. p    (corrector)
        z_{i+1}   = (sigma_{i+1} / sigma_i) z_i^c + alpha_{i+1} sum_j w'_j x-hat_{i-j},  j = 0 .. p-1  (predictor)

    The weights integrate the interpolating polynomials exactly; the published B(h) cancels from the full systems, and
    the published short cut 1/2 for systems of one equation is not taken but with a `variant`. The memory holds what the next
    correction needs.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        order: p = 1, 2 or 3, the order of the predictor; the corrector raises the method's by one.
        variant: "bh1" or "bh2" as published, where predictors of order 2 and correctors of order 1 take B(h) / 2 for the weight of
            the one difference, B(h) = h or 1 - e^{-h}. The others are exact, and B(h) is not in them.
        lower_order_final: whether the last step has order 1 and the last but one at most 2, steadier where steps are few.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: an order out of range, a bad grid, or neither or both of steps and grid.

    Source: Zhao et al. 2023 (arXiv 2302.04867), alg. 5-8 (data prediction).

    >>> import diffcore as dc
    >>> plan = dc.samplers.unipc(dc.schedules.Cosine(), steps=10)
    >>> len(plan), plan.memory
    (10, 2)
    """
    function = "samplers.unipc"
    check_order(function, order)
    _check.choice(function, "variant", variant, (None, "bh1", "bh2"))
    _check.flag(function, "lower_order_final", lower_order_final)
    pairs = steps_of(function, schedule, steps, grid, both_ways=True)
    more: dict[str, object] = {"variant": variant} if variant else {}
    more |= {"lower_order_final": True} if lower_order_final else {}
    built = _Corrected("unipc", pairs, order, order + 1, np.zeros_like(pairs.half), 1.0, variant, lower_order_final)
    at, to, update = built.table()
    return finish("unipc", schedule, at, to, update, order=order, **more)


def sa_solver(
    schedule: Schedule,
    steps: int | None = None,
    *,
    order: int = 2,
    corrector_order: int = 2,
    tau: float = 1.0,
    tau_range: tuple[float, float] = (0.0, math.inf),
    mode: str = "pec",
    variant: str | None = "bh1",
    lower_order_final: bool = False,
    noise_scale: float = 1.0,
    grid: Any = None,
) -> Plan:
    r"""Return the plan of SA-Solver, stochastic Adams: a multistep predictor and corrector of the SDE with tau^2 times its noise.

        z_s = (sigma_s / sigma_t) e^{-tau^2 h} z_t + alpha_s sum_j w_j x-hat_j + sigma_s sqrt(1 - e^{-2 tau^2 h}) noise_scale eps

    with h the step in log(alpha / sigma) and weights w_j that integrate the polynomial through the estimates for H = (1 + tau^2) h,
    as in `dpm_solver_pp`, that of the new level among them in the corrector. The step to clean data is x-hat.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps N, at least 1, uniform in time from 1 to clean data; or give `grid`.
        order: how many estimates the predictor uses, 1, 2 or 3.
        corrector_order: how many the corrector uses with the new one, 2 to 4, or 1 for that alone.
        tau: at least 0; 0 is the ODE, 1 the SDE.
        tau_range: the range of sigma / alpha at a step's start where tau acts; it is 0 elsewhere.
        mode: "pec", where the estimate at the predicted state is kept, N calls, or "pece", where that at the corrected state is,
            2 N - 1 calls.
        variant: "bh1" as published, where two estimates have the weight H / 2 for their difference; "bh2", as for `unipc`, or None
            for exact weights.
        lower_order_final: whether the last step has order 1 and the last but one at most 2.
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`; decreasing only with tau = 0.

    Raises:
        ValueError: a setting out of range; pure noise, with "bh1"; a bad grid, or neither or both of steps and grid.

    Source: Xue et al. 2023 (arXiv 2309.05019), alg. 1 and app. D.

    >>> import diffcore as dc
    >>> plan = dc.samplers.sa_solver(dc.schedules.Karras(), 10)
    >>> len(plan), plan.memory
    (10, 2)
    """
    function = "samplers.sa_solver"
    check_order(function, order)
    _check.integer(function, "corrector_order", corrector_order, 1, 4)
    _check.number(function, "tau", tau, 0.0)
    low, high = _check.interval(function, "tau_range", tau_range, 0.0, equal=True, finite=False)
    _check.choice(function, "mode", mode, ("pec", "pece"))
    _check.choice(function, "variant", variant, (None, "bh1", "bh2"))
    _check.flag(function, "lower_order_final", lower_order_final)
    _check.number(function, "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of(function, schedule, steps, grid, both_ways=tau == 0.0)
    with np.errstate(over="ignore"):
        ratio = np.exp(-0.5 * pairs.t.log_snr)
    eta = np.where((ratio >= low) & (ratio <= high), tau**2, 0.0)
    built = _Corrected(
        "sa_solver", pairs, order, corrector_order, eta, noise_scale, variant, lower_order_final, mode == "pece"
    )
    settings: dict[str, object] = {
        "order": order,
        "corrector_order": corrector_order,
        "tau": tau,
        "tau_range": tau_range,
        "mode": mode,
    }
    settings |= {"variant": variant, "lower_order_final": lower_order_final, "noise_scale": noise_scale}
    at, to, update = built.table()
    return finish("sa_solver", schedule, at, to, update, **settings)


class _Corrected(NamedTuple):
    """A predictor of p and a corrector of q estimates."""

    name: str
    pairs: Steps
    p: int
    q: int
    eta: Float64
    noise_scale: float
    variant: str | None
    lower: bool
    again: bool = False
    """Whether the denoiser is called at the corrected state, too."""

    def table(self) -> tuple[Float64, Float64, Float64]:
        """Return the levels before and after every stage, and the table.

        Raises:
            ValueError: a method that has no value from pure noise, where a run starts there.
        """
        with np.errstate(all="ignore"):
            at, to, update = self._table()
        if not np.all(np.isfinite(update)):
            refuse_pure_noise(self.name, self.pairs)
        return at, to, update

    def _table(self) -> tuple[Float64, Float64, Float64]:
        """Return the same, finite or not.

        The memory holds the next correction but for its newest estimate, then the past estimates, newest first.
        """
        pairs, count = self.pairs, len(self.pairs)
        per, past = 1 + self.again, max(min(self.p, count) - 1, min(self.q, count) - 2, 0)
        form = Form(memory=int(count > 1) * (1 + past))
        update = empty(per * (count - 1) + 1, pairs.lead, form.memory)
        at = np.concatenate([pairs.t.log_snr[:1], np.repeat(pairs.t.log_snr[1:], per, axis=0)])
        to = np.concatenate([at[1:], pairs.s.log_snr[-1:]])
        unit = np.eye(form.columns)
        corrected = np.broadcast_to(
            unit[0], (*pairs.lead, form.columns)
        ).copy()  # z^c of a stage, as a row over the columns
        for k in range(count):
            row = update[per * k]
            row[..., 0, :] = self._moved(k, corrected, form, k, min(self.p, k + 1, count - k if self.lower else self.p))
            for memory in range(2, form.memory + 1):
                row[..., memory, :] = unit[form.x if memory == 2 else memory - 1]
            if k < count - 1:
                use = min(self.q, k + 2, count - k + 1 if self.lower else self.q)
                correction = self._moved(k, corrected, form, k + 1, use)
                row[..., 1, :] = correction
                newest = self._weights(k, k + 1, use)[..., 0] * pairs.s.alpha[k]
                corrected = np.broadcast_to(unit[1], corrected.shape) + newest[..., None] * unit[form.x]
                if self.again:
                    update[per * k + 1, ..., 0, :] = corrected
                    update[per * k + 1, ..., 2:, 2 : form.memory + 1] = np.eye(form.memory - 1)
                    corrected = np.broadcast_to(unit[0], corrected.shape)
        return at, to, update

    def _moved(self, k: int, start: Float64, form: Form, newest: int, use: int) -> Float64:
        """Return step k from a start, as a row: with estimates from number `newest` on, but not those of the next stage."""
        t, s, half, eta = self.pairs.t, self.pairs.s, self.pairs.half[k], self.eta[k]
        kept = s.sigma[k] / t.sigma[k] * np.where(eta > 0.0, np.exp(-eta * half), 1.0)
        noise = self.noise_scale * s.sigma[k] * np.sqrt(-np.expm1(-2.0 * np.where(eta > 0.0, eta * half, 0.0)))
        row = np.asarray(kept[..., None] * start)
        row[..., form.noise] += noise
        weights = s.alpha[k][..., None] * self._weights(k, newest, use)
        columns = [form.x, *range(2, form.memory + 1)]
        known = weights[..., newest - k :]
        row[..., columns[: known.shape[-1]]] += known
        return row

    def _weights(self, k: int, newest: int, use: int) -> Float64:
        """Return the weights of step k of the estimates at `newest` and before."""
        points, clean = np.concatenate([self.pairs.t.log_snr, self.pairs.s.log_snr[-1:]]), self.pairs.clean[k]
        points[k + 1] = np.where(clean, points[k] + 1.0, points[k + 1])
        width = (1.0 + self.eta[k]) * np.where(clean, 1.0, self.pairs.half[k])
        weights = _weights(width, nodes_of(points, k, k + 1, newest, use), self.variant)
        return np.asarray(np.where(clean[..., None], np.arange(use) == 0, weights), dtype=np.float64)


def _weights(width: Float64, nodes: Float64, variant: str | None) -> Float64:
    """Return the weights at the nodes, with the short cut of a variant where there are two, of which one is 0."""
    if variant is None or nodes.shape[-1] != 2:
        return interpolation_weights(width, nodes)
    total = -np.expm1(-width)
    other = np.where(nodes == 0.0, np.inf, nodes)
    short = 0.5 * (width if variant == "bh1" else total)[..., None] / other
    return np.where(nodes == 0.0, total[..., None] - short.sum(axis=-1, keepdims=True), short)
