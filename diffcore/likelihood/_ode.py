r"""The density that the probability-flow ODE gives to its end points, on a fixed deterministic plan.

Under every scaling the ODE is, with w = z / sigma,

    d w / d lambda = (1/2) e^{lambda/2} x-hat,    d log q(w) / d lambda = -(1/2) alpha tr(d x-hat / d z)

the second along the first, by the instantaneous change of variables. So the log-density is one more coordinate of the same
ODE: a number zeta beside z, whose "x-hat" is -sigma tr(d x-hat / d z), and zeta / sigma is what the log-density has gained. A
plan is a linear rule for equations of this form, and takes zeta through its table as it takes z: one more state, the
same coefficients, the same order. Nothing of the plan is differentiated, and no step has to be inverted.

For data N(0, I) the gain is known: alpha tr = D sigmoid(lambda), whose integral is D softplus(lambda). Only the difference to it
is carried, zeta's "x-hat" being -sigma tr(d x-hat / d z) + D e^{-lambda/2} sigmoid(lambda): it vanishes at both ends, where
the first steps of multistep plans, of lower order, would otherwise leave an error of their own.

(The alternative, the log-determinant of the discrete map of each stage, does not add up over the stages of a multistep plan,
whose map is one of state and memory, and has no estimate by products with the Jacobian alone.)

Source: Chen et al. 2018 (arXiv 1806.07366), theorem 1; Song et al. 2021 (arXiv 2011.13456), app. D.2; Grathwohl et al. 2019
(arXiv 1810.01367), sec. 3.1, for the trace estimated by products with random vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffcore import _array, _check, _fitting, _layout, _streams, levels, predictions, stage
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore._unwritten import called
from diffcore.likelihood._decoder import normal, total
from diffcore.plan import Plan
from diffcore.predictions import Prediction
from diffcore.state import State


class LogProb(NamedTuple):
    """What `ode` returns: log q of the given data in nats, (B,), and the state at the end of the plan, of its shape."""

    log_prob: Array
    z: Array


def ode(
    denoise: Callable[[Array, Array], Array],
    x: Array,
    plan: Plan,
    *,
    prediction: Prediction | None = None,
    probes: int | None = None,
    seed: Any = 0,
    gradients: bool = False,
) -> LogProb:
    r"""Return log q(x) by the probability-flow ODE, from the level of x to that of noise, and the noise that it leads to.

        log q(x) = log N(z_N / sigma_N; 0, I) - D log sigma_0 + (1/2) integral of alpha tr(d x-hat / d z) d lambda, noise to data

    for D elements a sample. The integral is taken by the plan's own rule and has its order.

    Args:
        denoise: any callable (z, log_snr) -> prediction.
        x: data (B, ...) at the plan's first level: the density is that of q(z) there. At a log-SNR of 18, where a
            "vp" alpha is 1 - 8e-9 and sigma 1e-4, it may be clean data itself.
        plan: a deterministic plan towards noise between finite levels, such as
            `samplers.unipc(schedule, grid=numpy.linspace(18.0, -18.0, 101), order=3)`. At its end the density is taken to be
            N(0, sigma^2 I), which `start` draws: off by about e^{lambda/2} |x| there.
        prediction: what the denoiser returns; may be left out where it has an attribute `prediction`.
        probes: None for the exact trace: by `posterior_variance` or `posterior_covariance` of a denoiser that has one, as
            those of `diffcore.exact` on every library, else by D pullbacks a stage. An int n is Hutchinson's estimate, n
            pullbacks a stage with random signs, fresh in every stage: unbiased in log q, and errors of the stages average out.
        seed: of the probes: one int, of which each sample gets its own key, or one int or key per sample: see `noise.keys`.
        gradients: whether torch records gradients, to the denoiser's parameters, in the memory of all calls. They are
            recorded in any case where `x` requires them; JAX does not need it.

    Returns:
        `LogProb(log_prob, z)`: (B,), at least float32, and an array like `x`. -log_prob is nats of a density: see
        `bits_per_dim`. On JAX the run is one trace.

    Raises:
        TypeError: `x` is not a floating array, `plan` not a plan, `denoise` not callable; `prediction` is missing; a library
            without gradients, unless the denoiser knows its posterior covariance.
        ValueError: a plan that is stochastic, leads to data, or has an infinite level; `probes` < 1; levels that do not align
            with `x`.

    Source: Song et al. 2021 (arXiv 2011.13456), app. D.2, eq. 39; the module for the form.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros(2), 0.25)
    >>> plan = dc.samplers.unipc(dc.schedules.Cosine(), grid=np.linspace(18.0, -18.0, 65), order=3)
    >>> x = np.array([[0.3, -0.7]])
    >>> bool(abs(dc.likelihood.ode(data, x, plan).log_prob - data.log_likelihood(x, 18.0)) < 1e-2)
    True
    """
    function = "likelihood.ode"
    _fitting.check_given(function, plan, denoise=denoise)
    xp = _array.check_data(function, x=x)
    _check_plan(function, plan)
    if probes is not None:
        _check.count(function, "probes", probes, hint="or None for the exact trace")
    _array.check_lead(function, "plan", plan.lead, tuple(x.shape))
    denoise = _fitting.fitting(function, denoise, plan)
    prediction = predictions.kind_of(function, denoise, prediction)
    wide, backend, form = _array.widen(xp, x), backend_of(x), plan.form
    lead = max(1, len(plan.lead))
    size = math.prod(x.shape[lead:])
    rows = _Rows(plan, prediction, wide)
    gained = _array.table_for(np.zeros(x.shape[:lead]), x)

    def body(carry: Any) -> Any:
        (z, memory), (zeta, traces), k = carry
        row, log_snr, sigma, base = rows.at(k)
        call, known = rows.denoiser(denoise, k), _array.known_int(k)

        def predicted(z: Array) -> Array:
            found = called(call, xp.astype(z, x.dtype, copy=False), log_snr, function=function)
            stage.check_prediction(found, xp.astype(z, x.dtype, copy=False))
            return _array.widen(xp, found)

        variance = None if probes else _posterior_variance(call, z, log_snr)
        if variance is not None:  # d x-hat / d z = (alpha / sigma^2) Cov
            x_hat = stage.estimate(z, predicted(z), row)
            scale = levels.level(rows.log_snr(k), "ve").sigma  # sigma / alpha
            slope = total(xp, variance, lead) / _array.along(function, "plan", scale, gained, xp)
        else:
            y, pull = backend.gradient(predicted, z)
            x_hat = stage.estimate(z, y, row)
            diagonal = _diagonal(backend, pull, z, probes, seed, k if known is None else known)
            of_z, of_y = (_array.along(function, "plan", part, gained, xp) for part in stage.columns_of(row)[:2])
            slope = _array.along(function, "plan", sigma, gained, xp) * (of_z * size + of_y * total(xp, diagonal, lead))
        beyond = size * _array.along(function, "plan", base, gained, xp) - slope
        after = stage.update(form, State(z, memory, None, 0, 0, None), x_hat, row, None)
        beside = stage.update(form, State(zeta, traces, None, 0, 0, None), beyond, row, None)
        return (after.z, after.memory), (beside.z, beside.memory), k + 1

    with _array.recording(x, gradients):
        blank = tuple(xp.zeros_like(wide) for _ in range(plan.memory))
        none = tuple(xp.zeros_like(gained) for _ in range(plan.memory))
        (z, _), (zeta, _), _ = backend.repeat(len(plan), body, ((wide, blank), (gained, none), 0))
        last = _array.table_for(np.asarray(plan.end.sigma), wide)
        unit = 0.5 * (np.logaddexp(0.0, plan.start.log_snr) - np.logaddexp(0.0, plan.end.log_snr))
        known = _array.table_for(np.log(plan.start.sigma) + unit, wide)
        end = z / _array.along(function, "plan", last, z, xp)
        each = -0.5 * total(xp, end**2, lead) - zeta / _array.along(function, "plan", last, zeta, xp)
        each = each - size * (0.5 * math.log(2.0 * math.pi) + _array.along(function, "plan", known, zeta, xp))
        return LogProb(total(xp, each, 1), xp.astype(z, x.dtype, copy=False))


class _Rows:
    """What stage k reads of a plan, on the device of the data; k is an int, or traced."""

    def __init__(self, plan: Plan, prediction: Prediction, like: Array) -> None:
        self.plan, self.like = plan, like
        coefficients, unit = plan.coefficients(prediction), levels.level(plan.log_snr, "vp")
        self.host = stage.rows_of(coefficients, like)
        given = plan.levels_of(like.shape[0]), plan.log_snr, plan.levels.sigma, unit.alpha * unit.sigma, coefficients
        self.levels, self.log_snrs, self.sigmas, self.bases, self.rows = (
            _array.table_for(np.array(table), like)
            for table in given  # copies: torch warns of what is read-only
        )

    def at(self, k: Any) -> tuple[Any, Array, Array, Array]:
        """Return the coefficients, the log-SNR that the denoiser gets, sigma, and the slope of unit Gaussian data."""
        known = _array.known_int(k)
        row = self._take(self.rows, k) if known is None else self.host[known]
        return row, self._take(self.levels, k), self._take(self.sigmas, k), self._take(self.bases, k)

    def log_snr(self, k: Any) -> Array:
        """Return the log-SNR of the plan, of its leading shape."""
        return self._take(self.log_snrs, k)

    def denoiser(self, denoise: Any, k: Any) -> Any:
        """Return the denoiser of a stage, where it has one for each level."""
        known = _array.known_int(k)
        return denoise if known is None or not hasattr(denoise, "at") else denoise.at(self.plan.log_snr[known])

    def _take(self, table: Array, k: Any) -> Array:
        known = _array.known_int(k)
        return _array.take_row(table, k, self.like) if known is None else table[known, ...]


def _posterior_variance(denoise: Any, z: Array, log_snr: Array) -> Array | None:
    """Return the diagonal of Cov[x | z], of the shape of z, of a denoiser that knows it."""
    if hasattr(denoise, "posterior_variance"):
        return denoise.posterior_variance(z, log_snr)
    if hasattr(denoise, "posterior_covariance"):
        xp = _array.library(z)
        return xp.reshape(xp.linalg.diagonal(denoise.posterior_covariance(z, log_snr)), z.shape)
    return None


def _diagonal(backend: Any, pull: Callable[[Array], Array], z: Array, probes: int | None, seed: Any, k: Any) -> Array:
    """Return what sums up to the trace of a Jacobian, of the shape of z: its diagonal, or an estimate of it."""
    xp = _array.library(z)
    size = math.prod(z.shape[1:])
    number = _layout.beside(xp.reshape(xp.arange(size, device=_array.device(z)), z.shape[1:]), z)

    def column(carry: Any) -> Any:
        total, i = carry
        unit = xp.broadcast_to(xp.astype(number == i, z.dtype), z.shape)
        return total + unit * pull(unit), i + 1

    def probe(carry: Any) -> Any:
        total, i = carry
        eps = normal(z, seed, draw=k * probes + i, stream=_streams.PROBES)
        signs = xp.where(eps < 0.0, -xp.ones_like(z), xp.ones_like(z))
        return total + signs * pull(signs) / probes, i + 1

    found: Array = backend.repeat(*((size, column) if probes is None else (probes, probe)), (xp.zeros_like(z), 0))[0]
    return found


def _check_plan(function: str, plan: Plan) -> None:
    """Raise unless a plan can carry a density from data to noise."""
    way_out = "such as samplers.unipc(schedule, grid=numpy.linspace(18.0, -18.0, 101), order=3)"
    if plan.stochastic:
        must = "be deterministic, a solver of the probability-flow ODE"
        raise _check.error(ValueError, function, "plan", must, plan, way_out)
    if plan.second is not None or plan.ahead:
        must = "read the estimate of one level alone"
        raise _check.error(ValueError, function, "plan", must, plan, way_out)
    if not (np.all(np.isfinite(plan.log_snr)) and np.all(np.isfinite(plan.next_log_snr))):
        must = "have finite log-SNRs, since clean data has no density in the ODE and pure noise no end"
        raise _check.error(ValueError, function, "plan", must, plan, way_out)
    if not np.all(plan.next_log_snr[-1] < plan.log_snr[0]):
        must = "lead from data to noise, on a grid of falling log-SNRs"
        raise _check.error(ValueError, function, "plan", must, plan, way_out)
