r"""The variational bound on -log p(x), term by term, in nats per sample.

    -log p(x) <= KL(q(z_1 | x) || p(z_1))  +  L  +  E[-log p(x | z_0)]
                 prior                        diffusion  reconstruction

    L_T   = sum_i (1/2) (SNR(s_i) - SNR(t_i)) ||x - x-hat(z_{t_i})||^2            (discrete: T intervals)
    L_inf = (1/2) integral of e^lambda ||x - x-hat(z_lambda)||^2 d lambda         (continuous)

each in expectation over the noise in z. L_inf is written, and estimated, in lambda: only the two ends of the
schedule matter. The prior is N(0, sigma_1^2 I), what `diffcore.start` draws.

Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 11-18 and app. A-B. The schedule must end at finite log-SNRs: the bound
is infinite where the data has no noise at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffcore import _array, _check, _streams, levels, losses, predictions, process, times
from diffcore._array import Array
from diffcore._weight import Weight
from diffcore.levels import Gaussian
from diffcore.likelihood._decoder import Bins, Density, check_finite, normal, reconstruction, total
from diffcore.likelihood._weights import Interval, PerLogSNR
from diffcore.predictions import Prediction
from diffcore.schedules._base import scaling_of


class Bound(NamedTuple):
    """The three terms of the bound on -log p(x), in nats, each of shape (B,).

    >>> Bound(prior=1.0, diffusion=2.0, reconstruction=0.5).total
    3.5
    """

    prior: Array
    diffusion: Array
    reconstruction: Array

    @property
    def total(self) -> Array:
        """The bound: the sum of the three terms."""
        return self.prior + self.diffusion + self.reconstruction


def prior_kl(x: Array, schedule: Any, *, variance: float | None = None) -> Array:
    r"""Return KL(q(z_1 | x) || N(0, variance I)): what is left of x in the noisiest state, in nats.

    Args:
        x: clean data, a floating array (B, ...).
        schedule: a schedule of `diffcore.schedules`: log_snr(t) and scaling.
        variance: of the prior. None is sigma_1^2, from which `diffcore.start` draws: then the term is
            (1/2) e^{lambda_1} ||x||^2 under every scaling. 1.0 is the prior of Kingma et al. for "vp".

    Returns:
        An array of shape (B,), at least float32.

    Raises:
        ValueError: the variance is not positive and finite.
        TypeError: `x` is not a floating array, or `schedule` not a schedule.

    Source: Kingma et al. 2021, eq. 11.

    >>> import diffcore as dc, numpy as np
    >>> schedule = dc.schedules.LinearLogSNR(log_snr_min=0.0, log_snr_max=9.0)
    >>> prior_kl(np.ones((1, 4)), schedule).round(6)
    array([2.])
    """
    function = "likelihood.prior_kl"
    if variance is not None:
        _check.number(function, "variance", variance, 0, open_low=True)
    scaling_of(function, "schedule", schedule)
    xp = _array.check_data(function, x=x)
    wide = _array.widen(xp, x)
    if variance is None:
        snr = math.exp(float(schedule.log_snr(1.0)))
        return 0.5 * snr * total(xp, wide**2)
    end = levels.level(float(schedule.log_snr(1.0)), schedule.scaling)
    unit = _array.table_for(np.ones((1,) * wide.ndim), x)
    return process.kl(process.marginal(wide, end), Gaussian(xp.zeros_like(wide), variance * unit))


def diffusion_discrete(
    denoise: Callable[[Array, Array], Array],
    x: Array,
    schedule: Any,
    *,
    steps: int | Sequence[float],
    prediction: Prediction | None = None,
    seed: Any = 0,
    intervals: int | None = None,
    gradients: bool = False,
) -> Array:
    r"""Return an unbiased estimate of L_T = sum_i (1/2) (SNR(s_i) - SNR(t_i)) ||x - x-hat(z_{t_i})||^2, in nats.

    Args:
        denoise: any callable (z, log_snr) -> prediction, log_snr of shape (B,).
        x: clean data, a floating array (B, ...).
        schedule: a schedule of `diffcore.schedules`, with finite ends.
        steps: T, for T equal intervals of t; or the times themselves, 0 <= t_0 < ... < t_T <= 1.
        prediction: what the denoiser returns; may be left out where it has an attribute `prediction`.
        seed: one int, of which each sample gets its own key, or one int or key per sample: see `noise.keys`.
        intervals: None sums all T, in T calls; K draws K of them for each sample, spread evenly, in K calls.
        gradients: whether torch records gradients, to the denoiser's parameters or a learned schedule, in the memory of
            all calls. They are recorded in any case where `x` requires them; JAX does not need it.

    Returns:
        An array of shape (B,), at least float32.

    Raises:
        ValueError: steps out of order or range; a level that is not finite.
        TypeError: `x` is not a floating array, `schedule` not a schedule, `denoise` not callable; `prediction` is missing.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 13-14. L_T falls towards L_inf as T grows, for a good denoiser.

    >>> import diffcore as dc, numpy as np
    >>> schedule = dc.schedules.LinearLogSNR(log_snr_min=-2.0, log_snr_max=2.0)
    >>> x = np.ones((1, 2))
    >>> diffusion_discrete(lambda z, log_snr: 0.0 * z, x, schedule, steps=4, prediction="x").round(4)
    array([7.2537])
    """
    function = "likelihood.diffusion_discrete"
    _check_estimate(function, denoise, x, schedule)
    times = _check_times(function, steps)
    log_snr = np.asarray(schedule.log_snr(times), dtype=np.float64)
    check_finite(function, log_snr)
    count = len(times) - 1
    batch = x.shape[0]
    if intervals is None:
        which = np.broadcast_to(np.arange(count)[:, None], (count, batch))
        share = 1.0
    else:
        intervals = _check.count(function, "intervals", intervals, 1)
        u = _spread(seed, intervals, batch)
        which = np.minimum((u * count).astype(np.int64), count - 1)
        share = count / intervals
    nats = _array.table_for(np.zeros(batch), x)
    with _array.recording(x, gradients):
        for draw, index in enumerate(which):
            at = _array.table_for(log_snr[index + 1], x)
            weight = Interval(_array.table_for(log_snr[index] - log_snr[index + 1], x), share)
            nats = nats + _error(
                function, denoise, x, at, schedule, weight, prediction=prediction, seed=seed, draw=draw
            )
    return nats


def diffusion_continuous(
    denoise: Callable[[Array, Array], Array],
    x: Array,
    schedule: Any,
    *,
    points: int = 64,
    prediction: Prediction | None = None,
    seed: Any = 0,
    gradients: bool = False,
) -> Array:
    r"""Return an unbiased estimate of L_inf = (1/2) integral of e^lambda ||x - x-hat||^2 d lambda, in nats.

    The integral runs between the schedule's ends, over `points` log-SNRs per sample, one in each of as many equal parts,
    at an offset drawn from the sample's seed. Only the ends of the schedule matter.

    Args:
        denoise, x, schedule, prediction, seed, gradients: as for `diffusion_discrete`.
        points: log-SNRs per sample, which is also the number of calls of the denoiser.

    Returns:
        An array of shape (B,), at least float32.

    Raises:
        ValueError: `points` is less than 1; an end that is not finite.
        TypeError: as `diffusion_discrete`.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 18.

    >>> import diffcore as dc, numpy as np
    >>> schedule = dc.schedules.LinearLogSNR(log_snr_min=-2.0, log_snr_max=2.0)
    >>> x = np.ones((1, 2))
    >>> diffusion_continuous(lambda z, log_snr: 0.0 * z, x, schedule, points=512, prediction="x").round(2)
    array([7.25])
    """
    function = "likelihood.diffusion_continuous"
    _check_estimate(function, denoise, x, schedule)
    points = _check.count(function, "points", points, 1)
    noisy, clean = float(schedule.log_snr(1.0)), float(schedule.log_snr(0.0))
    check_finite(function, np.array([noisy, clean]))
    nats = _array.table_for(np.zeros(x.shape[0]), x)
    weight = PerLogSNR(clean - noisy)
    with _array.recording(x, gradients):
        for draw, u in enumerate(_spread(seed, points, x.shape[0])):
            at = _array.table_for(noisy + (clean - noisy) * u, x)
            nats = nats + _error(
                function, denoise, x, at, schedule, weight, prediction=prediction, seed=seed, draw=draw
            )
    return nats / points


def bound(
    denoise: Callable[[Array, Array], Array],
    x: Array,
    schedule: Any,
    *,
    prediction: Prediction | None = None,
    steps: int | None = None,
    points: int = 64,
    decoder: Bins | Density | None = Bins(),  # noqa: B008
    seed: Any = 0,
    gradients: bool = False,
) -> Bound:
    r"""Return the three terms of the bound on -log p(x), in nats.

    Args:
        denoise, x, schedule, prediction, seed, gradients: as for `diffusion_discrete`.
        steps: T of the discrete bound, equal intervals of t; None is the continuous bound.
        points: as for `diffusion_continuous`.
        decoder: as for `reconstruction`: `Bins(256, -1.0, 1.0)` for data of 256 values, `Density()` for continuous data.

    Returns:
        `Bound`; `bits_per_dim` turns its total into bits, with bin_width=1.0 under `Bins`, which are probabilities, and the
        width of a bin under `Density`.

    Raises:
        ValueError, TypeError: as the three terms do.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 11.

    >>> import diffcore as dc, numpy as np
    >>> schedule = dc.schedules.LinearLogSNR(log_snr_min=-12.0, log_snr_max=12.0)
    >>> terms = bound(lambda z, log_snr: 0.0 * z, np.ones((1, 2)), schedule, prediction="x", points=4)
    >>> terms.total.shape
    (1,)
    """
    # first: it checks the data without calling the denoiser
    last = reconstruction(x, schedule, decoder=decoder, seed=seed)
    settings: dict[str, Any] = {"prediction": prediction, "seed": seed, "gradients": gradients}
    if steps is None:
        diffusion = diffusion_continuous(denoise, x, schedule, points=points, **settings)
    else:
        diffusion = diffusion_discrete(denoise, x, schedule, steps=steps, **settings)
    return Bound(prior_kl(x, schedule), diffusion, last)


def bits_per_dim(nats: Array, dims: int, *, bin_width: float) -> Array:
    r"""Return nats per sample as bits per element.

        nats / (dims log 2) - log2(bin_width)

    Args:
        nats: -log p(x), or a bound on it, of any shape.
        dims: elements per sample, such as T * H * W * C.
        bin_width: what the probability is of. 1.0 where `nats` already are of a bin's probability, as those of `bound`.
            For a density (an ODE's likelihood), the width of a bin in the units of x: 2 / 255 for 256 values from -1 to
            1. About 7 bits lie between the two readings.

    Returns:
        An array of the shape of `nats`.

    Raises:
        ValueError: `dims` or `bin_width` is not positive.

    Source: Theis et al. 2016 (arXiv 1511.01844), sec. 3.1.

    >>> bits_per_dim(2.0 * math.log(2.0), 2, bin_width=1.0), bits_per_dim(0.0, 2, bin_width=2 / 256)
    (1.0, 7.0)
    """
    _check.number("likelihood.bits_per_dim", "dims", dims, 1, finite=False)
    _check.number("likelihood.bits_per_dim", "bin_width", bin_width, 0, open_low=True)
    return nats / (dims * math.log(2.0)) - math.log2(bin_width)


def _check_estimate(function: str, denoise: Any, x: Array, schedule: Any) -> None:
    """Raise TypeError for an argument of another kind."""
    _check.callable_(function, "denoise", denoise, "a function of (z, log_snr)")
    scaling_of(function, "schedule", schedule)
    _array.check_data(function, x=x)


def _error(
    function: str,
    denoise: Callable[[Array, Array], Array],
    x: Array,
    log_snr: Array,
    schedule: Any,
    weight: Weight,
    *,
    prediction: Prediction | None,
    seed: Any,
    draw: int,
) -> Array:
    """Return weight * ||x - x-hat(z)||^2, summed over a sample, at one log-SNR per sample."""
    prediction = predictions.kind_of(function, denoise, prediction)
    eps = normal(x, seed, draw=draw, stream=_streams.LIKELIHOOD)
    level = levels.level(log_snr, schedule.scaling)
    y = denoise(process.diffuse(x, eps, level), log_snr)
    mean = losses.denoising(y, x, eps, level, prediction=prediction, weight=weight)
    return mean * math.prod(x.shape[1:])


def _spread(seed: Any, count: int, batch: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return (count, batch) numbers in [0, 1), one in each of `count` equal parts, at a seed's offset.

    The offset runs forwards in one part and backwards in the next, so that its first-order error cancels.
    """
    offset = times.independent(seed, 0, batch, like=np.zeros((), dtype=np.float64))[None, :]
    part = np.arange(count)[:, None]
    return np.asarray((part + np.where(part % 2 == 0, offset, 1.0 - offset)) / count)


def _check_times(function: str, steps: int | Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    if isinstance(steps, int | np.integer):
        count = _check.count(function, "steps", steps, 1, hint="or give times in rising order")
        return np.linspace(0.0, 1.0, count + 1)
    times = _array.to_host(steps, np.float64, function=function, argument="steps")
    if times.ndim != 1 or len(times) < 2 or not np.all(np.diff(times) > 0) or times[0] < 0.0 or times[-1] > 1.0:
        must = "be an int >= 1, or at least two times, 0 <= t_0 < ... < t_T <= 1"
        raise _check.error(ValueError, function, "steps", must, steps)
    return times
