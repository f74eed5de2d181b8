r"""CFG++: go to the guided estimate, but along the noise that the model sees without guidance; and Euler's method on a flow map.

With x the guided estimate, u that without, and eps_u = (z_t - alpha_t u) / sigma_t. The plans have `second="unguided"`, so that
their denoiser must be `guidance.classifier_free(...)`, or have `with_unguided`. Where u = x, they are samplers of the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffcore import levels
from diffcore.plan import Float64, Form, Plan
from diffcore.samplers._build import steps_of
from diffcore.samplers._written import refuse_pure_noise, split_clean
from diffcore.samplers.euler import euler
from diffcore.schedules import Schedule


def _plan(name: str, schedule: Schedule, at: Float64, to: Float64, update: Float64) -> Plan:
    return Plan(f"{name}()", schedule.scaling, at, to, update, settings={"sampler": name}, second="unguided")


def _table(stages: int, lead: tuple[int, ...], memory: int) -> tuple[Form, Float64]:
    form = Form(memory, second="unguided")
    return form, np.zeros((stages, *lead, 1 + memory, form.columns))


def euler_cfg_pp(schedule: Schedule, steps: int | None = None, *, grid: Any = None) -> Plan:
    r"""Return the plan of Euler's method with CFG++, DDIM with CFG++.

        z_s = alpha_s x + sigma_s eps_u

    Args:
        schedule: gives the levels and the scaling.
        steps: how many steps, at least 1, uniform in time from 1 to clean data; or give `grid`.
        grid: strictly monotone log-SNRs (N + 1, *lead) instead of `steps`.

    Raises:
        ValueError: a bad grid, or neither or both of steps and grid.

    Source: Chung et al. 2024 (arXiv 2406.08070), alg. 2.

    >>> import diffcore as dc
    >>> dc.samplers.euler_cfg_pp(dc.schedules.Cosine(), 4).second
    'unguided'
    """
    pairs = steps_of("samplers.euler_cfg_pp", schedule, steps, grid, both_ways=True)
    form, update = _table(len(pairs), pairs.lead, 0)
    ratio = pairs.s.sigma / pairs.t.sigma
    update[..., 0, 0], update[..., 0, form.x] = ratio, pairs.s.alpha
    update[..., 0, form.x + 1] = -ratio * pairs.t.alpha
    return _plan("euler_cfg_pp", schedule, pairs.t.log_snr, pairs.s.log_snr, update)


def dpm_solver_pp_2m_cfg_pp(schedule: Schedule, steps: int | None = None, *, grid: Any = None) -> Plan:
    r"""Return the plan of DPM-Solver++ 2M with CFG++.

        z_s = alpha_s x + sigma_s eps_u + alpha_s (1 - e^{-h}) (x - u_1) h / (2 h_1)

    with h the step in log(alpha / sigma), and u_1 and h_1 those of the last step. The first step and the one to clean data are
    Euler's.

    Args, raises: as for `euler_cfg_pp`.

    Source: Chung et al. 2024 (arXiv 2406.08070), app. B; ComfyUI, sample_dpmpp_2m_cfg_pp.

    >>> import diffcore as dc
    >>> dc.samplers.dpm_solver_pp_2m_cfg_pp(dc.schedules.Cosine(), 4).memory
    1
    """
    pairs = steps_of("samplers.dpm_solver_pp_2m_cfg_pp", schedule, steps, grid, both_ways=True)
    form, update = _table(len(pairs), pairs.lead, int(len(pairs) > 1))
    ratio = pairs.s.sigma / pairs.t.sigma
    update[..., 0, 0], update[..., 0, form.x] = ratio, pairs.s.alpha
    update[..., 0, form.x + 1] = -ratio * pairs.t.alpha
    if form.memory:
        update[..., 1, form.x + 1] = 1.0
        share = np.where(pairs.clean[1:], 0.0, -np.expm1(-pairs.half[1:]) * pairs.half[1:] / (2.0 * pairs.half[:-1]))
        added = pairs.s.alpha[1:] * np.where(pairs.clean[1:], 0.0, share)
        update[1:, ..., 0, form.x] += added
        update[1:, ..., 0, 1] = -added
    return _plan("dpm_solver_pp_2m_cfg_pp", schedule, pairs.t.log_snr, pairs.s.log_snr, update)


def dpm_solver_pp_2s_cfg_pp(schedule: Schedule, steps: int | None = None, *, grid: Any = None) -> Plan:
    r"""Return the plan of DPM-Solver++ 2S with CFG++.

        w = z_t + alpha_t (x - u)
        z_m = (sigma_m / sigma_t) w + alpha_m (1 - e^{-h/2}) x,    h the step in log(alpha / sigma), m half-way
        z_s = (sigma_s / sigma_t) w + alpha_s (1 - e^{-h}) x_m

    The step to clean data is x.

    Args, raises: as for `euler_cfg_pp`, and ValueError for pure noise. N steps to clean data take 2 N - 1 calls.

    Source: Chung et al. 2024 (arXiv 2406.08070), app. B; ComfyUI, sample_dpmpp_2s_ancestral_cfg_pp with eta = 0.

    >>> import diffcore as dc
    >>> len(dc.samplers.dpm_solver_pp_2s_cfg_pp(dc.schedules.Cosine(), 4))
    7
    """
    name = "dpm_solver_pp_2s_cfg_pp"
    pairs, last = split_clean(name, steps_of(f"samplers.{name}", schedule, steps, grid, both_ways=True))
    t, s, half, count = pairs.t, pairs.s, pairs.half, 2 * len(pairs)
    form, update = _table(count + len(last.at), pairs.lead, int(count > 0))
    at, to = np.empty(update.shape[:-2]), np.empty(update.shape[:-2])
    m = levels.level(0.5 * (t.log_snr + s.log_snr), schedule.scaling)
    if not np.all(np.isfinite(m.log_snr)):
        refuse_pure_noise(name, pairs)
    first, second = update[:count:2], update[1:count:2]
    for row, end in enumerate((m, s)[: 1 + form.memory] if count else ()):
        ratio = end.sigma / t.sigma
        first[..., row, 0], first[..., row, form.x] = ratio, ratio * t.alpha
        first[..., row, form.x + 1] = -ratio * t.alpha
    if count:
        first[..., 0, form.x] -= m.alpha * np.expm1(-0.5 * half)
        second[..., 0, 1], second[..., 0, form.x] = 1.0, -s.alpha * np.expm1(-half)
    at[:count:2], at[1:count:2], to[:count:2], to[1:count:2] = t.log_snr, m.log_snr, m.log_snr, s.log_snr
    at[count:], to[count:] = last.at, last.to
    update[count:, ..., 0, form.x] = 1.0
    return _plan(name, schedule, at, to, update)


def flow_map(schedule: Schedule, steps: int | None = None, *, grid: Any = None) -> Plan:
    r"""Return the plan of Euler's method on a flow map, whose velocity is the average over the step.

        z_s / norm_s = z_t / norm_t + (rho_s - rho_t) (z_t / norm_t - x-hat(z_t, t, s)) / rho_t

    with rho = sigma and norm = 1 under "flow", else rho = sigma / alpha and norm = alpha: `euler`, but the denoiser is also given
    the level that the step leads to, (z, log_snr, next_log_snr).

    Args, raises: as for `euler`, without churn.

    Source: Geng et al. 2025 (arXiv 2505.13447), alg. 2; Boffi et al. 2024 (arXiv 2406.07507).

    >>> import diffcore as dc
    >>> dc.samplers.flow_map(dc.schedules.Flow(), 4).ahead
    True
    """
    plan = euler(schedule, steps, grid=grid)
    arrays = (plan.log_snr, plan.next_log_snr, plan.update)
    return Plan("flow_map()", plan.scaling, *arrays, settings={"sampler": "flow_map"}, ahead=True)
