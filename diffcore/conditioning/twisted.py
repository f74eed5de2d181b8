r"""The twisted diffusion sampler (TDS): particles that are guided towards an observation, and weighed for what that gets wrong.

With p~(y | z_t) = N(y; A x-hat, s^2 I + r_t^2 A A^T), which is p(y | x) at the end, a stage z_t -> z_s = N(mu + c_x x-hat, c_n^2)
is drawn around mu + c_x x~, x~ = x-hat + (sigma^2 / alpha) grad log p~(y | z_t), and a particle's weight is multiplied by

    p(z_s | z_t) / p~(z_s | z_t, y)  *  p~(y | z_s) / p~(y | z_t).

All products cancel but p(z) p(y | x), so the weighted particles are exact as their number grows, whatever the guidance misses, and
the mean weight is an unbiased estimate of p(y), for any number of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from diffcore import _array, _check, _fitting, _streams, noise, predictions
from diffcore._array import Array
from diffcore.conditioning._guided import Guided, Linear, linearise
from diffcore.conditioning._solve import covariance, posterior_variance, variance_of
from diffcore.conditioning._spectral import Spectrum, check_plan, measured
from diffcore.levels import Level
from diffcore.plan import Plan
from diffcore.predictions import Prediction

FUNCTION = "conditioning.twisted"


class Particles(NamedTuple):
    """What `twisted` returns.

    Fields:
        x: (B, K, ...), K particles for each sample.
        log_weights: (B, K), normalised: their exponentials add up to one.
        log_evidence: (B,), in nats: the log of an unbiased estimate of p(y) under what the plan draws.
        effective: (stages + 1, B), the effective number of particles before each resampling, in [1, K].
    """

    x: Array
    log_weights: Array
    log_evidence: Array
    effective: Array

    def draw(self, seed: Any = 0) -> Array:
        """Return one particle of each sample, (B, ...), by their weights."""
        xp, (count, many) = _array.library(self.x), tuple(self.log_weights.shape)
        uniform = _uniform(xp, noise.keys(seed, count), count, 0, self.log_weights)
        at = _ancestors(xp, xp.exp(self.log_weights), uniform, 1)[:, 0]
        at = at + many * xp.arange(count, dtype=xp.int32, device=_array.device(self.x))
        return xp.take(xp.reshape(self.x, (count * many, *self.x.shape[2:])), at, axis=0)


class _Denoiser(Guided):
    """The denoiser in the form that `linearise` takes; it is never called as one that guides."""

    function = FUNCTION

    def shift(self, at: Linear) -> Array:
        """Return no move of x-hat: the particles carry what was observed."""
        return 0.0 * at.x


def twisted(
    denoise: Callable[[Array, Array], Array],
    plan: Plan,
    observed: Any,
    mask: Any = None,
    *,
    shape: Sequence[int],
    particles: int,
    noise_std: float,
    measure: Any = None,
    data_variance: Any = 1.0,
    threshold: float = 0.5,
    like: Array | None = None,
    seed: Any = 0,
    prediction: Prediction | None = None,
) -> Particles:
    r"""Return weighted particles of x given y, by the twisted diffusion sampler: exact as their number grows.

    Args:
        denoise: (z, log_snr) -> prediction, differentiable; called with B K samples at once.
        plan: whose every stage but the last adds noise, without memory, such as `samplers.ancestral`.
        observed, mask, measure: as for `ddrm`; one for all samples of the batch, or B of them, but not one for each particle.
        shape: (B, ...) of what is asked for.
        particles: K >= 1 for each sample. Samples do not know of one another.
        noise_std: s > 0, the standard deviation of the noise in y.
        data_variance: c > 0 or a function of log_snr, for r^2 in p~, as for `pigdm`. It changes how well the particles are
            guided, and not what they tend to.
        threshold: in [0, 1]: particles of a sample are drawn anew, by systematic resampling, where their effective number is
            below this share of K; 1 does so at every stage.
        like, seed, prediction: as for `diffcore.sample`. Each particle has a key of its own: sample i with seed k is the same
            in every batch.

    Returns:
        `Particles`.

    Raises:
        ValueError: a plan with memory, levels per sample, or a stage without noise that is not the last; `noise_std` not
            above 0; as for `ddrm`. TypeError: no gradients on NumPy, unless the denoiser is one of `diffcore.exact`.

    Source: Wu et al. 2023 (arXiv 2306.17775), alg. 1.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros(2), np.array([[1.0, 0.8], [0.8, 1.0]]))
    >>> plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=32)
    >>> found = twisted(data, plan, np.array([1.0, 0.0]), np.array([1, 0]), shape=(1, 2), particles=256, noise_std=0.5, seed=7)
    >>> (np.exp(found.log_weights)[..., None] * found.x).sum(axis=1).round(1)      # the truth is 0.8, 0.64
    array([[0.8, 0.6]], dtype=float32)
    """
    sizes, many = _check.shape(FUNCTION, "shape", shape), _check.integer(FUNCTION, "particles", particles, 1)
    _check.number(FUNCTION, "threshold", threshold, 0, 1)
    deviation = _check.number(FUNCTION, "noise_std", noise_std, 0, open_low=True)
    variance, batch = variance_of(FUNCTION, data_variance), sizes[0]
    _check_plan(plan)
    what = measured(FUNCTION, observed, mask, measure, deviation)
    denoise = _fitting.fitting(FUNCTION, denoise, plan)
    guided = _Denoiser(denoise, (), predictions.kind_of(FUNCTION, denoise, prediction), plan.scaling)
    like = np.zeros((), dtype=np.float32) if like is None else like
    xp, keys = _array.namespace(FUNCTION, like=like), noise.keys(seed, batch)
    flat = (batch * many, *sizes[1:])

    def drawn(number: int) -> Array:
        """Return noise of each particle, (B K, ...): elements of one draw of its sample's key."""
        found = noise.normal(keys, number, (batch, many, *sizes[1:]), like=like, stream=_streams.TWISTED)
        return xp.reshape(_array.widen(xp, found), flat)

    z = float(plan.start.sigma) * drawn(0)
    first = xp.reshape(z, (batch, many, *sizes[1:]))[:, 0, ...]
    spectrum = _repeated(what.spectrum(FUNCTION, first), many)
    log_weights = xp.zeros((batch, many), dtype=z.dtype, device=_array.device(z))
    evidence, effective = log_weights[:, 0], []
    was, levels = log_weights, plan.levels_of(batch * many)
    for stage in range(len(plan)):
        given = xp.astype(z, like.dtype, copy=False)
        at = linearise(FUNCTION, guided, given, _array.table_for(levels[stage], given))
        now, slope = _twist(spectrum, at.x, posterior_variance(variance, level_of(plan, stage)))
        log_weights = log_weights + xp.reshape(now, (batch, many)) - was
        uniform = _uniform(xp, keys, batch, stage, z)
        anew, log_weights, evidence, size = _resampled(xp, log_weights, evidence, threshold, uniform)
        effective.append(size)
        # x-hat and its shift are functions of the particle alone, and go with it
        shift = covariance(FUNCTION, at)(slope)
        z, x, shift, now = (xp.take(part, anew, axis=0) for part in (z, at.x, shift, now))
        was = xp.reshape(now, (batch, many))
        c_z, c_n, c_x = (float(c) for c in plan.update[stage, 0])
        z = c_z * z + c_x * x
        if c_n != 0.0:
            eps, step = drawn(stage + 1), (c_x / c_n) * shift
            z = z + c_x * shift + c_n * eps
            ratio = -xp.sum(xp.reshape(step * eps + 0.5 * step**2, (batch * many, -1)), axis=1)
            log_weights = log_weights + xp.reshape(ratio, (batch, many))
    last = xp.reshape(_twist(spectrum, z, 0.0)[0], (batch, many))
    log_weights = log_weights + last - was
    total = _logsumexp(xp, log_weights)
    log_weights = log_weights - total[:, None]
    effective.append(xp.exp(-_logsumexp(xp, 2.0 * log_weights)))
    x = xp.reshape(xp.astype(z, like.dtype, copy=False), (batch, many, *sizes[1:]))
    return Particles(x, log_weights, evidence + total - math.log(many), xp.stack(effective))


def _check_plan(plan: Any) -> None:
    check_plan(FUNCTION, plan)
    if plan.memory or plan.second is not None or plan.ahead:
        raise _check.error(ValueError, FUNCTION, "plan", "have no memory", plan, "such as samplers.ancestral")
    if not all(plan.noisy[:-1]):
        must, hint = "add noise at every stage but the last", "such as samplers.ancestral, or samplers.ddim(eta=1.0)"
        raise _check.error(ValueError, FUNCTION, "plan", must, plan, hint)


def level_of(plan: Plan, stage: int) -> Level:
    """Return the level of a stage as floats."""
    return Level(*(float(part[stage]) for part in plan.levels))


def _repeated(spectrum: Spectrum, many: int) -> Spectrum:
    """Return it for each of the particles of a sample."""

    def each(part: Array) -> Array:
        xp, shape = _array.library(part), tuple(part.shape)
        return xp.reshape(xp.broadcast_to(part[:, None, ...], (shape[0], many, *shape[1:])), (-1, *shape[1:]))

    return replace(spectrum, **{name: each(getattr(spectrum, name)) for name in Spectrum.parts})


def _twist(spectrum: Spectrum, x: Array, variance: float) -> tuple[Array, Array]:
    """Return log p~(y | x-hat), (B K,), and its gradient by x-hat."""
    xp = _array.library(x)
    zero = xp.zeros_like(spectrum.x)
    apart = xp.where(spectrum.known, spectrum.x - spectrum.into(x), zero)
    total = spectrum.deviation**2 + variance
    total = xp.where(spectrum.known, total, xp.ones_like(total))
    logs = -0.5 * apart**2 / total - 0.5 * xp.log(2.0 * math.pi * total) - xp.log(spectrum.values)
    logs = xp.where(spectrum.known, logs, zero)
    return xp.sum(xp.reshape(logs, (logs.shape[0], -1)), axis=1), spectrum.out(apart / total)


def _logsumexp(xp: Any, logs: Array) -> Array:
    most = xp.max(logs, axis=1, keepdims=True)
    return xp.log(xp.sum(xp.exp(logs - most), axis=1)) + most[:, 0]


def _uniform(xp: Any, keys: Any, batch: int, stage: int, like: Array) -> Array:
    """Return a number in [0, 1] for each sample, (B, 1)."""
    words = noise.bits(keys, stage, (batch, 1), like=like, stream=_streams.CHOICES)
    return (xp.astype(words, like.dtype) + 0.5) / 2.0**32


def _ancestors(xp: Any, weights: Array, uniform: Array, count: int) -> Array:
    """Return which particles systematic resampling takes, (B, count)."""
    many, place = weights.shape[1], _array.device(weights)
    below = xp.matmul(weights, xp.triu(xp.ones((many, many), dtype=weights.dtype, device=place)))
    points = (uniform + xp.arange(count, dtype=weights.dtype, device=place)[None, :]) / count
    passed = xp.astype(below[:, None, : many - 1] < points[:, :, None], xp.int32)
    return xp.sum(passed, axis=-1, dtype=xp.int32)


def _resampled(
    xp: Any, logs: Array, evidence: Array, threshold: float, uniform: Array
) -> tuple[Array, Array, Array, Array]:
    """Return which particles go on, (B K,) into all of them, their log-weights, the evidence so far, and how many counted."""
    (batch, many), place = tuple(logs.shape), _array.device(logs)
    total = _logsumexp(xp, logs)
    weights = xp.exp(logs - total[:, None])
    size = 1.0 / xp.sum(weights**2, axis=1)
    few = size < threshold * many
    stay = xp.arange(many, dtype=xp.int32, device=place)[None, :]
    anew = xp.where(few[:, None], _ancestors(xp, weights, uniform, many), stay)
    anew = anew + many * xp.arange(batch, dtype=xp.int32, device=place)[:, None]
    logs = xp.where(few[:, None], xp.zeros_like(logs), logs)
    evidence = evidence + xp.where(few, total - math.log(many), xp.zeros_like(total))
    return xp.reshape(anew, (-1,)), logs, evidence, size
