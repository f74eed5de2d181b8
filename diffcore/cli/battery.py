"""The table of identities that `diffcore verify` goes through: a name, and what to run on an array of a library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import diffcore as dc
from diffcore import _array

LAMBDAS = np.linspace(-6.0, 6.0, 7)
CLEAN = np.array([-9.0, -4.0, -1.0, 0.5, 4.0, np.inf])


class Check(NamedTuple):
    """An identity.

    Fields:
        name: what the table calls it.
        run: takes an array of the library, dtype and device; raises AssertionError where the identity does not hold.
        host: whether it is about numbers on the host alone, so that once is enough.
        slow: whether --quick leaves it out.
    """

    name: str
    run: Callable[[Any], object]
    host: bool = False
    slow: bool = False


def checks() -> list[Check]:
    """Return the identities of `diffcore.testing`, on schedules, samplers and denoisers of every kind."""
    return [
        Check("schedules are decreasing maps with inverses", _schedules),
        Check("alpha and sigma keep their scaling", lambda like: _each(like, dc.testing.check_scaling, named=True)),
        Check("levels within 4 ulp of 60 digits", lambda like: _precise(dc.testing.check_level_precision, like), slow=True),
        Check("posterior within 16 ulp of 60 digits", lambda like: _precise(dc.testing.check_posterior_precision, like),
              slow=True),
        Check("Chapman-Kolmogorov", lambda like: _ordered(like, dc.testing.check_chapman_kolmogorov, 3)),
        Check("Bayes: posterior from transition and marginal", lambda like: _ordered(like, dc.testing.check_bayes, 2)),
        Check("reverse variance between its bounds", lambda like: _ordered(like, dc.testing.check_reverse_variance, 2)),
        Check("predictions convert into one another", lambda like: _each(like, dc.testing.check_conversions)),
        Check("loss the same for all predictions", lambda like: _each(like, dc.testing.check_loss_invariance)),
        Check("guidance the same for all predictions", lambda like: _each(like, dc.testing.check_guidance_invariance)),
        Check("noise: Philox4x32-10 and Box-Muller", dc.testing.check_noise),
        Check("last step returns the estimate", lambda like: _plans(dc.testing.check_last_step_returns_x, like)),
        Check("runs repeat, bit for bit", lambda like: _runs(dc.testing.check_deterministic, like)),
        Check("a batch is its samples, bit for bit", lambda like: _runs(dc.testing.check_batch_equals_singles, like)),
        Check("a stopped run goes on, bit for bit", lambda like: _runs(dc.testing.check_resumed, like, stages=(0, 2))),
        Check("interleaved runs do not meet", _interleaved),
        Check("contract of the backend, all plans and dtypes", lambda like: dc.testing.check_backend(like=like), slow=True),
        Check("bound depends on the ends alone", _bounds, host=True),
        Check("DDIM with eta = 1 is ancestral", lambda _: _grids(dc.testing.check_ddim_eta1_is_ancestral), host=True),
        Check("DPM-Solver++ 1 is DDIM", lambda _: _grids(dc.testing.check_dpm1_is_ddim), host=True),
        Check("steps compose for a fixed estimate", _compose, host=True),
        Check("runs go through the marginals", _marginals, host=True),
        Check("exact moments of every sampler", lambda _: _plans(dc.testing.check_moments), host=True),
        Check("the corrector's bias", lambda _: dc.testing.check_corrector_bias(dc.schedules.Cosine()), host=True),
        Check("exact denoisers agree with their likelihood", _denoisers, host=True),
        Check("what replacement misses is a gradient", _conditionals, host=True),
        Check("orders of convergence", _orders, host=True, slow=True),
    ]  # fmt: skip


def _level(values: Any, scaling: str, like: Any) -> Any:
    xp = _array.library(like)
    return dc.levels.level(xp.asarray(values.copy(), dtype=like.dtype, device=_array.device(like)), scaling)


def _schedules(like: Any) -> None:
    for schedule in dc.schedules.table().values():
        dc.testing.check_schedule(schedule, like=like)


def _each(like: Any, check: Callable[..., object], *, named: bool = False) -> None:
    for scaling in dc.levels.scalings():
        level = _level(LAMBDAS, scaling, like)
        check(level, scaling) if named else check(level)


def _ordered(like: Any, check: Callable[..., object], count: int) -> None:
    for scaling in dc.levels.scalings():
        check(*(_level(LAMBDAS[count - 1 - k : len(LAMBDAS) - k], scaling, like) for k in range(count)))


def _precise(check: Callable[..., object], like: Any) -> None:
    for scaling in dc.levels.scalings():
        check(like, scaling)


def _plans(check: Callable[..., object], like: Any = None) -> None:
    for plan in dc.testing.conformance.plans().values():
        check(plan) if like is None else check(plan, like=like)


def _bounded(z: Any, log_snr: Any) -> Any:
    """Predict v, linear in z, so that no library rounds it another way."""
    del log_snr
    return -0.5 * z


def _runs(check: Callable[..., object], like: Any, **how: Any) -> None:
    for name in ("ancestral", "unipc"):
        check(_bounded, dc.testing.conformance.plans()[name], like, prediction="v", **how)


def _interleaved(like: Any) -> None:
    dc.testing.check_interleaved(_bounded, list(dc.testing.conformance.plans().values())[:2], like, prediction="v")


def _bounds(_: Any) -> None:
    for schedule in (dc.schedules.Cosine(), dc.schedules.LinearLogSNR(log_snr_min=-9.0, log_snr_max=7.0)):
        dc.testing.check_bound(schedule)


def _grids(check: Callable[..., object]) -> None:
    for scaling in dc.levels.scalings():
        check(dc.schedules.Cosine(scaling=scaling), CLEAN)


def _makers(promise: str) -> Iterator[Callable[[Any], Any]]:
    """Yield the samplers whose first variant makes a promise, under each scaling, as functions of a grid."""
    for scaling in dc.levels.scalings():
        for row in dc.samplers.table().values():
            if row.variants[0].marginal and getattr(row.variants[0], promise):
                yield partial(_on_grid, row.make, dc.schedules.Cosine(scaling=scaling))


def _on_grid(make: Callable[..., Any], schedule: Any, grid: Any) -> Any:
    return make(schedule, grid=grid)


def _compose(_: Any) -> None:
    for make in _makers("composes"):
        dc.testing.check_composes(make, LAMBDAS)


def _marginals(_: Any) -> None:
    for make in _makers("marginal"):
        dc.testing.check_keeps_marginals(make(CLEAN))


def _gaussian() -> Any:
    return dc.exact.Gaussian(np.array([0.1, 0.2, 0.3]), np.array([[1.0, 0.5, 0.2], [0.5, 2.0, 0.3], [0.2, 0.3, 0.4]]))


def _denoisers(_: Any) -> None:
    points = np.random.default_rng(0).normal(size=(5, 3))
    for data in (
        _gaussian(),
        dc.exact.Mixture([0.3, 0.7], points[:2], [np.eye(3), 0.3 * np.eye(3)]),
        dc.exact.Empirical(points),
    ):
        for log_snr in (-5.0, 0.0, 4.0):
            dc.testing.check_denoiser(data, log_snr, points[:2])


def _conditionals(_: Any) -> None:
    for log_snr in (-5.0, 0.0, 3.0):
        dc.testing.check_conditional(_gaussian(), np.array([True, False, False]), log_snr)


def _orders(_: Any) -> None:
    for name in ("ddim", "heun", "dpm_solver_pp"):
        row = dc.samplers.table()[name]
        dc.testing.check_order(partial(_on_grid, row.make, dc.schedules.Cosine()), row.variants[0].order or 0)
