r"""The known elements of a run, overwritten after every stage.

    z^a <- c_z z^a + c_x x^a + c_eps eps

where z^a on the right is the state before the stage and eps is independent noise. So this is a table, like a
sampler: three numbers a stage, computed on the host in float64. Its first row is for the start of a run.

| variant | after a stage t -> s | c_z | c_x | c_eps |
|---|---|---|---|---|
| marginal | q(z_s^a given x^a) | 0 | alpha_s | sigma_s |
| posterior | q(z_s^a given x^a, z_t^a), s cleaner | see `process.posterior_coefficients` | | |
| | q(z_s^a given z_t^a), s noisier | see `process.transition` | 0 | |
| | s = t, as in a Langevin corrector | 1 | 0 | 0 |
| both | the end of the run | 0 | 1 | 0 |

The last row returns known elements exactly, even from a plan that ends before clean data. A plan whose last
stage goes towards more noise ends on noise, and keeps the row of its variant.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffcore import levels, process

Float64 = npt.NDArray[np.float64]

BEFORE, CLEAN, NOISE = 0, 1, 2
"""Columns of the table."""


def table(scaling: str, log_snr: Float64, next_log_snr: Float64) -> dict[str, Float64]:
    """Return, variant -> (1 + stages, *lead, 3): the coefficients for the start, then those after each stage."""
    at, to = levels.level(log_snr, scaling), levels.level(next_log_snr, scaling)
    marginal, posterior = np.zeros((2, len(log_snr) + 1, *log_snr.shape[1:], 3))
    for rows in (marginal, posterior):
        rows[0, ..., CLEAN], rows[0, ..., NOISE] = at.alpha[0], at.sigma[0]
    marginal[1:, ..., CLEAN], marginal[1:, ..., NOISE] = to.alpha, to.sigma
    with np.errstate(all="ignore"):
        a, b, variance = process.posterior_coefficients(to, at)
        added = np.sqrt(process.novelty(at, to)) * to.sigma
        same, cleaner = next_log_snr == log_snr, next_log_snr > log_snr
        posterior[1:, ..., BEFORE] = np.where(same, 1.0, np.where(cleaner, a, to.alpha / at.alpha))
        posterior[1:, ..., CLEAN] = np.where(cleaner, b, 0.0)
        posterior[1:, ..., NOISE] = np.where(cleaner, np.sqrt(variance), np.where(same, 0.0, added))
    ends = np.asarray(next_log_snr[-1] >= log_snr[-1])
    for rows in (marginal, posterior):
        rows[-1] = np.where(ends[..., None], [0.0, 1.0, 0.0], rows[-1])
        rows.setflags(write=False)
    return {"marginal": marginal, "posterior": posterior}
