r"""The ancestral sampler, and the predictor-corrector sampler that adds a Langevin step after each of its steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffcore import _check, process
from diffcore.plan import Float64, Plan
from diffcore.samplers._build import NOISE, Steps, X, Z, empty, finish, scaled, steps_of
from diffcore.schedules import Schedule


def _fill_ancestral(update: Float64, steps: Steps, gamma: float, noise_scale: float) -> None:
    a, b, _ = process.posterior_coefficients(steps.s, steps.t)
    variance = process.reverse_variance(steps.s, steps.t, gamma)
    update[..., 0, Z] = a
    update[..., 0, X] = b
    update[..., 0, NOISE] = np.where(
        steps.clean, 0.0, noise_scale * np.sqrt(variance)
    )  # the last step returns x-hat, at gamma = 1 too


def ancestral(
    schedule: Schedule, steps: int | None = None, *, gamma: float = 0.0, noise_scale: float = 1.0, grid: Any = None
) -> Plan:
    r"""Return the plan of the ancestral sampler of DDPM, with the reverse variance interpolated by gamma.

        z_s = e^{lambda_t - lambda_s} (alpha_s / alpha_t) z_t + (1 - e^{lambda_t - lambda_s}) alpha_s x-hat
              + sqrt(v^{1 - gamma} w^gamma) eps,   v of the posterior, w of the transition

    The step that ends on clean data returns x-hat: no noise, no mixing.

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        gamma: in [0, 1]; 0 and 1 are the lower and upper bound of the reverse process's entropy. The paper uses 0.1
            and 0.3.
        noise_scale: a factor > 0 of the noise.
        grid: increasing log-SNRs (N + 1, *lead) instead of `steps`; see `diffcore.grids`.

    Raises:
        ValueError: gamma outside [0, 1], a grid that is not strictly increasing, or neither or both of steps and grid.

    Source: Ho et al. 2022 (arXiv 2204.03458), eq. 4 and below.

    >>> import diffcore as dc
    >>> dc.samplers.ancestral(dc.schedules.Cosine(), steps=256, gamma=0.1).sampler
    'ancestral(gamma=0.1)'
    """
    process.check_gamma("samplers.ancestral", gamma)
    _check.number("samplers.ancestral", "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of("samplers.ancestral", schedule, steps, grid)
    update = empty(len(pairs), pairs.lead)
    _fill_ancestral(update, pairs, gamma, noise_scale)
    more = scaled(noise_scale)
    return finish("ancestral", schedule, pairs.t.log_snr, pairs.s.log_snr, update, gamma=gamma, **more)


def predictor_corrector(
    schedule: Schedule,
    steps: int | None = None,
    *,
    gamma: float = 0.0,
    delta: float = 0.1,
    noise_scale: float = 1.0,
    grid: Any = None,
) -> Plan:
    r"""Return the plan of the predictor-corrector sampler: ancestral steps, a Langevin step after each but the last.

        z_s <- z_s - (1/2) delta sigma_s eps-hat(z_s) + sqrt(delta) sigma_s eps
             = (1 - delta/2) z_s + (delta/2) alpha_s x-hat(z_s) + sqrt(delta) sigma_s eps

    The correction is biased: on Gaussian data of variance c its stationary variance is the true one divided by
    1 - delta k / 4, k = sigma^2 / (alpha^2 c + sigma^2).

    Args:
        schedule, gamma, grid: as for `ancestral`.
        noise_scale: a factor > 0 of all noise, that of the Langevin steps, too.
        steps: how many ancestral steps N; the denoiser is called 2 N - 1 times.
        delta: the size of the Langevin step, in [0, 2]; 0 leaves the ancestral sampler with idle calls.

    Raises:
        ValueError: delta outside [0, 2], and as for `ancestral`.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 2, after Song et al. 2021 (arXiv 2011.13456), alg. 4.

    >>> import diffcore as dc
    >>> len(dc.samplers.predictor_corrector(dc.schedules.Cosine(), steps=128, gamma=0.0, delta=0.1))
    255
    """
    function = "samplers.predictor_corrector"
    process.check_gamma(function, gamma)
    _check.number(function, "delta", delta, 0, 2, hint="the paper uses 0.1")
    _check.number(function, "noise_scale", noise_scale, 0.0, open_low=True)
    pairs = steps_of(function, schedule, steps, grid)
    stages = 2 * len(pairs) - 1
    update = empty(stages, pairs.lead)
    _fill_ancestral(update[0::2], pairs, gamma, noise_scale)
    corrected = update[1::2]
    corrected[..., 0, Z] = 1.0 - 0.5 * delta
    corrected[..., 0, X] = 0.5 * delta * pairs.s.alpha[:-1]
    corrected[..., 0, NOISE] = noise_scale * math.sqrt(delta) * pairs.s.sigma[:-1]
    at = np.repeat(pairs.t.log_snr, 2, axis=0)[1:]
    at[0::2], at[1::2] = pairs.t.log_snr, pairs.s.log_snr[:-1]
    to = np.repeat(pairs.s.log_snr, 2, axis=0)[:-1]
    return finish("predictor_corrector", schedule, at, to, update, gamma=gamma, delta=delta, **scaled(noise_scale))
