"""What the arrays of a plan have to be."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import _check


def arrays(plan: Any) -> None:
    """Raise ValueError where the arrays of a plan do not fit one another, or hold what leads to NaN."""
    shape, update = plan.log_snr.shape, plan.update.shape
    if plan.log_snr.ndim not in (1, 2, 3) or shape[0] < 1:
        raise ValueError(f"Plan: `log_snr` must have the shape (stages, *lead), lead (), (B,) or (B, T), got {shape}")
    if plan.next_log_snr.shape != shape:
        raise ValueError(
            f"Plan: `next_log_snr` must have the shape of `log_snr`, {shape}, got {plan.next_log_snr.shape}"
        )
    more = 2 + (plan.second is not None)
    if update[:-2] != shape or len(update) != len(shape) + 2 or update[-1] != update[-2] + more or update[-2] < 1:
        raise ValueError(
            f"Plan: `update` must have the shape ({', '.join(map(str, shape))}, 1 + M, M + {1 + more}) for M arrays of memory, "
            f"got {update}"
        )
    if not np.all(np.isfinite(plan.update)):
        stage = int(np.argwhere(~np.isfinite(plan.update))[0][0])
        raise ValueError(
            f"Plan: stage {stage} of {plan.sampler} has a coefficient that is not finite, at log_snr "
            f"{plan.log_snr[stage]} -> {plan.next_log_snr[stage]}; start from a finite log-SNR"
        )
    end, start = plan.next_log_snr[:-1], plan.log_snr[1:]
    if not np.all(np.isclose(end, start, rtol=1e-6, atol=1e-6) | np.isnan(end) | np.isnan(start)):
        stage = int(np.argwhere(~np.isclose(end, start, rtol=1e-6, atol=1e-6))[0][0])
        raise ValueError(
            f"Plan: stage {stage} of {plan.sampler} leads to `next_log_snr` {_check.shown(end[stage])}, but stage {stage + 1} "
            f"calls the denoiser at `log_snr` {_check.shown(start[stage])}; the level of a state is that of the next call"
        )
    if np.any(np.isnan(plan.next_log_snr)):
        raise ValueError(
            f"Plan: `next_log_snr` of {plan.sampler} is NaN at stage {int(np.argwhere(np.isnan(plan.next_log_snr))[0][0])}"
        )
    if not np.all(np.isfinite(plan.levels.sigma)):
        raise ValueError(
            f"Plan: {plan.sampler} calls the denoiser at a log_snr of -inf or NaN, where sigma is not finite under scaling "
            f"{plan.scaling!r}; start from a finite log-SNR, for example with schedules.truncate"
        )
