"""Every check on what the strategies draw: the library passes, both ends included, and without a warning."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libraries import both_dtypes, every_framework, example, host, put

import diffcore as dc
from diffcore import process, testing, weights
from diffcore.levels import Gaussian, Level, level
from diffcore.testing import strategies
from diffcore.testing._arrays import compare, epsilon, smallest, where_at

EXAMPLES = {"numpy": 12, "torch": 6, "jax": 2}
SCHEDULE = {scaling: dc.schedules.Cosine(scaling=scaling) for scaling in ("vp", "ve", "flow")}
DATA = dc.exact.Gaussian(np.zeros(2), np.array([[1.0, 0.8], [0.8, 1.0]]))
TINY = 5e-324
PLAN = dc.samplers.ddim(SCHEDULE["vp"], steps=4)


class Draws:
    """What a check asks for, of one library, dtype and scaling."""

    def __init__(self, data: st.DataObject, like: Any, dtype: str, ends: bool) -> None:
        self.draw, self.like, self.dtype, self.ends = data.draw, like, dtype, ends
        self.scaling: str = data.draw(strategies.scalings())

    def log_snrs(self) -> list[float]:
        one = strategies.log_snrs(self.dtype, ends=self.ends)
        return self.draw(st.lists(one, min_size=4, max_size=4))

    def level(self) -> Level:
        return level(put(self.log_snrs(), self.like), self.scaling)

    def ordered(self, count: int = 2) -> tuple[Level, ...]:
        how: dict[str, Any] = {"count": count, "like": self.like, "size": 4, "ends": self.ends}
        return self.draw(strategies.ordered_levels(self.scaling, self.dtype, **how))


def check_posterior_composes(r: Level, s: Level, t: Level) -> None:
    """q(z_r | z_t, x) = integral of q(z_r | z_s, x) q(z_s | z_t, x) dz_s: all three terms of its coefficients are positive."""
    (a, b, v), (c, d, w), (direct, from_x, variance) = (
        [host(part) for part in process.posterior_coefficients(*ends)] for ends in ((s, t), (r, s), (r, t))
    )
    where = where_at(r=r, s=s, t=t)
    for found, truth in ((c * a, direct), (c * b + d, from_x), (c**2 * v + w, variance)):
        tolerance = 64.0 * epsilon(r.alpha) * truth + 4.0 * smallest(r.alpha)
        compare("posterior of the posterior", found, truth, tolerance, where=where)


LEVELS: dict[str, Callable[[Draws], Any]] = {
    "scaling": lambda draws: testing.check_scaling(draws.level(), draws.scaling),
    "chapman_kolmogorov": lambda draws: testing.check_chapman_kolmogorov(*draws.ordered(3)),
    "posterior_composes": lambda draws: check_posterior_composes(*draws.ordered(3)),
    "bayes": lambda draws: testing.check_bayes(*draws.ordered()),
    "reverse_variance": lambda draws: testing.check_reverse_variance(*draws.ordered()),
    "level_precision": lambda draws: testing.check_level_precision(
        draws.like, draws.scaling, log_snr=np.array(draws.log_snrs())
    ),
    "posterior_precision": lambda draws: testing.check_posterior_precision(
        draws.like, draws.scaling, pairs=tuple(host(at.log_snr) for at in draws.ordered())
    ),
    "conversions": lambda draws: testing.check_conversions(draws.level()),
    "loss_invariance": lambda draws: testing.check_loss_invariance(draws.level()),
    "guidance_invariance": lambda draws: testing.check_guidance_invariance(draws.level()),
}


@both_dtypes
@every_framework
@pytest.mark.parametrize("name", LEVELS)
def test_a_check_of_levels_passes_on_all_that_is_drawn(name: str, library: str, dtype: str) -> None:
    @settings(max_examples=EXAMPLES[library], suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def passes(data: st.DataObject) -> None:
        for ends in (True, False):
            LEVELS[name](Draws(data, like, dtype, ends))

    with example(library, dtype) as like, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        passes()


def bend(z: Any, log_snr: Any) -> Any:
    return z / (1.0 + z * z)


def ddim(scaling: str, eta: float = 0.0) -> Callable[[Any], dc.Plan]:
    return lambda grid: dc.samplers.ddim(SCHEDULE[scaling], grid=grid, eta=eta)


OTHERS: dict[str, Callable[[Any, str], Any]] = {
    "bound": lambda draw, scaling: testing.check_bound(draw(strategies.schedules(scaling)), rtol=1e-3),
    "denoiser": lambda draw, scaling: testing.check_denoiser(
        DATA,
        draw(strategies.log_snrs(ends=False, reach=8.0)),
        draw(strategies.batches(shape=(2, 2))),
        scaling=scaling,
    ),
    "conditional": lambda draw, scaling: testing.check_conditional(
        DATA, [True, False], draw(strategies.log_snrs(ends=False, reach=8.0)), scaling=scaling
    ),
    "composes": lambda draw, scaling: testing.check_composes(
        ddim(scaling, draw(st.sampled_from([0.0, 1.0]))), draw(strategies.grids().filter(lambda grid: len(grid) > 2))
    ),
    "keeps_marginals": lambda draw, scaling: testing.check_keeps_marginals(
        ddim(scaling, draw(st.floats(0.0, 1.0)))(draw(strategies.grids()))
    ),
    "eta": lambda draw, scaling: testing.check_eta(
        lambda grid, eta: ddim(scaling, eta)(grid), draw(strategies.grids())
    ),
    "same_plan": lambda draw, scaling: testing.check_same_plan(*[draw(strategies.plans(scaling))] * 2),
}


@pytest.mark.parametrize("name", OTHERS)
@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_another_check_passes_on_all_that_is_drawn(name: str, data: st.DataObject) -> None:
    OTHERS[name](data.draw, data.draw(strategies.scalings()))


def _plan(draw: Any) -> dc.Plan:
    return draw(strategies.plans().filter(lambda plan: not plan.second))


RUNS: dict[str, Callable[[Any, Any], Any]] = {
    "schedule": lambda draw, like: testing.check_schedule(draw(strategies.schedules()), like=like),
    "run": lambda draw, like: testing.check_run(_plan(draw), like=like),
    "last_step_returns_x": lambda draw, like: testing.check_last_step_returns_x(
        draw(strategies.plans(clean=True)), like=like
    ),
    "deterministic": lambda draw, like: testing.check_deterministic(bend, _plan(draw), like, prediction="v"),
    "resumed": lambda draw, like: testing.check_resumed(bend, _plan(draw), like, prediction="v"),
    "interleaved": lambda draw, like: testing.check_interleaved(bend, [_plan(draw), _plan(draw)], like, prediction="v"),
}


ON_JAX = ("schedule", "run")
"""The others compile each plan; test_identities and test_conformance run them on a few."""


@both_dtypes
@pytest.mark.parametrize(
    ("name", "library"),
    [
        pytest.param(name, library, marks=() if library == "numpy" else getattr(pytest.mark, library))
        for name in RUNS
        for library in ("numpy", "torch", "jax")
        if library != "jax" or name in ON_JAX
    ],
)
def test_a_check_of_runs_passes_in_every_library(name: str, library: str, dtype: str) -> None:
    @settings(max_examples={"numpy": 8, "torch": 4, "jax": 1}[library], suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def passes(data: st.DataObject) -> None:
        RUNS[name](data.draw, like)

    with example(library, dtype) as like:
        passes()


# Each sees at the ends what is wrong there


def _changed(function: Callable[..., Any], mean: float = 1.0, variance: float = 1.0) -> Callable[..., Any]:
    def changed(*args: Any, **named: Any) -> Gaussian:
        found = function(*args, **named)
        return Gaussian(found.mean * mean, found.variance * variance)

    return changed


def _noisier_posterior(z_t: Any, x: Any, *, s: Level, t: Level) -> Gaussian:
    found = process.posterior(z_t, x, s=s, t=t)
    return Gaussian(found.mean, found.variance + 1e-3)


ENDS = {
    "clean": (np.inf, 1.0),
    "pure": (1.0, -np.inf),
    "both": (np.inf, -np.inf),
    "equal": (1.0, 1.0),
    "tiny gap": (TINY, 0.0),
}


@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
@pytest.mark.parametrize("at", ENDS)
def test_bayes_sees_at_the_ends_what_is_wrong(at: str, scaling: str) -> None:
    s, t = (level(value, scaling) for value in ENDS[at])
    assert testing.check_bayes(s, t) <= 1.0
    for wrong in (_changed(process.posterior, mean=1.001), _noisier_posterior):
        with pytest.raises(AssertionError, match=r"at log_snr_s = .*, log_snr_t = "):
            testing.check_bayes(s, t, posterior=wrong)
    for name in ("transition", "marginal"):
        if at in ("equal", "tiny gap") or (scaling == "ve" and at in ("pure", "both")):
            continue  # a variance of 0 or infinity is no other when it is larger
        with pytest.raises(AssertionError):
            testing.check_bayes(s, t, **{name: _changed(getattr(process, name), variance=1.01)})


def test_the_other_checks_see_far_out_what_is_wrong() -> None:
    far = level(np.array([-18.0, 18.0, np.inf, -np.inf]))

    def convert(y: Any, z: Any, at: Level, **kinds: Any) -> Any:
        return dc.predictions.convert(y, z, at, **kinds) * 1.001

    with pytest.raises(AssertionError, match="conversion"):
        testing.check_conversions(far, convert=convert)
    with pytest.raises(AssertionError, match="loss of 'x'"):
        testing.check_loss_invariance(far, denoising=lambda *args, **named: 1.001 * dc.losses.denoising(*args, **named))
    with pytest.raises(AssertionError, match="guidance on 'eps'"):
        testing.check_guidance_invariance(
            far, classifier_free=lambda cond, uncond, weight: lambda z, at: 1.001 * cond(z, at)
        )
    clean, pure = level(np.array([np.inf]), "ve"), level(np.array([-np.inf]), "ve")
    for gamma in (0.0, 0.3):
        with pytest.raises(AssertionError, match=f"gamma = {gamma}"):
            testing.check_reverse_variance(
                clean if not gamma else level(np.array([3.0]), "ve"),
                pure if not gamma else level(np.array([1.0]), "ve"),
                reverse_variance=lambda s, t, at, gamma=gamma: (
                    process.reverse_variance(s, t, at) + 1e-3 * (at == gamma)
                ),
            )


def test_a_weight_that_is_not_finite_at_an_end_leaves_it_out() -> None:
    assert testing.check_loss_invariance(level(np.array([-np.inf, 0.0, np.inf])), weights.VariationalBound()) <= 1.0


# What is given


@every_framework
def test_levels_of_no_axes_and_of_two_are_taken(library: str) -> None:
    with example(library) as like:
        one, other = (level(put(at, like), "flow") for at in (1.0, -2.0))
        assert testing.check_bayes(one, other) <= 1.0
        if library == "jax":  # it compiles for each shape
            return
        grid = level(put([[3.0, 2.0], [2.5, 1.5]], like), "flow")
        for s in (one, grid):
            assert testing.check_bayes(s, other) <= 1.0
            assert testing.check_chapman_kolmogorov(s, s, other) <= 1.0
            assert testing.check_reverse_variance(s, other) <= 1.0
            for check in (testing.check_conversions, testing.check_loss_invariance, testing.check_guidance_invariance):
                assert check(s) <= 1.0
    assert testing.check_bayes(Level(1.0, 0.5, 2.0 * np.log(2.0)), level(0.0, "ve")) <= 1.0


@every_framework
def test_levels_out_of_order_or_range_are_named_with_their_values(library: str) -> None:
    with example(library) as like:
        s, t = (level(put(values, like)) for values in ([3.0, 0.5], [1.0, 0.25]))
        for check in (testing.check_bayes, testing.check_reverse_variance):
            with pytest.raises(
                ValueError, match=rf"testing.{check.__name__}: `s` must .* `t`, .* 1.0 and 3.0 at \[0\]; exchange them"
            ):
                check(t, s)
        with pytest.raises(ValueError, match=r"`r` must have a log-SNR >= that of `s`, .* 0.25 and 0.5 at \[1\]"):
            testing.check_chapman_kolmogorov(level(put([9.0, 0.25], like)), s, t)
        far = level(put([1.0, 88.0], like))
        for one in (testing.check_conversions, testing.check_loss_invariance, testing.check_guidance_invariance):
            with pytest.raises(ValueError, match=r"in \[-87.3, 87.3\], or infinite, in float32, got 88.0 at \[1\]"):
                one(far)
            assert one(level(put([-87.0, -86.0], like), "ve")) <= 1.0  # a score there is below the normal numbers
        beyond = level(put([-175.0, 175.0, np.inf], like), "ve")
        assert testing.check_scaling(beyond, "ve") <= 1.0
        with pytest.raises(AssertionError, match=r"at log_snr = 20\.0"):
            testing.check_scaling(Level(beyond.alpha, beyond.sigma, put([-175.0, 20.0, np.inf], like)), "ve")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda at: testing.check_bayes(at, 3.0), TypeError, r"testing.check_bayes: `t` must be a diffcore.Level.* got 3\.0"),
        (lambda at: testing.check_scaling(at, "vpp"), ValueError, r"testing.check_scaling: `scaling` must be .* did you mean 'vp'"),
        (lambda at: testing.check_loss_invariance(at, 3.0), TypeError, r"testing.check_loss_invariance: `weight` must be a weight"),
        (lambda at: testing.check_loss_invariance(at, weights.V), TypeError, r"call it: V\(\)"),
        (lambda at: testing.check_conversions(level(np.nan)), ValueError, r"`level` must have a log-SNR in .* got nan"),
        (lambda at: testing.check_order(PLAN, 1), TypeError, r"`make_plan` must be a function of \(grid\) that returns"),
        (lambda at: testing.check_eta(PLAN, at.log_snr), TypeError, r"check_eta: `make_plan` must be a function of \(grid, eta\)"),
        (lambda at: testing.check_moments(dc.samplers.ddim), TypeError, r"`plan` must be a Plan, .*; call it: ddim\(...\)"),
        (lambda at: testing.check_interleaved(bend, list[Any]([PLAN, 3])), TypeError, r"`plans` must be a Plan, .* got 3"),
        (lambda at: testing.check_schedule(dc.schedules.Cosine), TypeError, r"`schedule` must have log_snr, .*; give an instance"),
        (lambda at: testing.check_bound(3), TypeError, r"check_bound: `schedule` must have .*, got 3; it lacks log_snr, time"),
        (lambda at: testing.check_run(PLAN, lambda d, p, z: z), TypeError, r"`run` must take .*; got an unexpected keyword .*seed"),
        (lambda at: testing.check_noise(like=3), TypeError, r"testing: `like` must be an array of the library"),
        (lambda at: testing.check_backend(like=np.zeros(1, int)), TypeError, r"testing.check_backend: `like` has dtype int64"),
        (lambda at: strategies.grids(max_steps=0), ValueError, r"strategies.grids: `max_steps` must be an int >= 1, got 0"),
        (lambda at: strategies.log_snrs(reach=-1), ValueError, r"strategies.log_snrs: `reach` must be a finite number > 0"),
        (lambda at: strategies.schedules("sub-vp"), ValueError, r"strategies.schedules: `scaling` must be"),
        (lambda at: strategies.dtypes("numpy"), TypeError, r"strategies.dtypes: `xp` must be an array API namespace"),
    ],
)  # fmt: skip
def test_what_is_no_level_scaling_weight_plan_or_schedule_is_named(
    call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(level(np.array([3.0])))


class _Rising(dc.schedules.LinearLogSNR):
    def _log_snr(self, xp: Any, t: Any, rest: Any, /) -> Any:
        return super()._log_snr(xp, rest, t)


class _Missing(dc.schedules.LinearLogSNR):
    def _log_snr(self, xp: Any, t: Any, rest: Any, /) -> Any:
        return xp.where(t > 0.5, math.nan, super()._log_snr(xp, t, rest))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            _Rising(),
            r"falls: not between t = 0\.0 and 1e-06, where lambda is -10\.0 and -9\.9.*, in \d+ of \d+ intervals$",
        ),
        (_Missing(), r"lambda\(t\): NaN at t = 0\.5\d*, in \d+ of \d+ times$"),
    ],
)
def test_what_is_no_schedule_is_answered_in_one_line(schedule: Any, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AssertionError, match=message) as caught:
            testing.check_schedule(schedule)
    assert len(str(caught.value)) < 300


@settings(max_examples=50)
@given(data=st.data(), dtype=st.sampled_from(["float32", "float64"]))
def test_levels_that_are_drawn_are_in_order_and_none_is_below_the_normal_numbers(
    data: st.DataObject, dtype: str
) -> None:
    gap = data.draw(st.sampled_from([0.0, 0.5]))
    how: dict[str, Any] = {"count": data.draw(st.integers(1, 4)), "size": 3, "min_gap": gap}
    levels = data.draw(strategies.ordered_levels(data.draw(strategies.scalings()), dtype, **how))
    rows = np.array([at.log_snr for at in levels])
    for value in (data.draw(strategies.log_snrs(dtype)), *rows.ravel().tolist()):
        assert value == 0.0 or abs(value) >= np.finfo(dtype).smallest_normal
    assert rows.shape == (how["count"], 3)
    assert np.all(rows[:-1] > rows[1:])
    assert np.all(rows[:-1] - rows[1:] >= 0.999 * gap)
    assert {part.dtype for at in levels for part in at} == {np.dtype(dtype)}


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_levels_of_half_precision_are_those_of_single(dtype: str) -> None:
    import torch

    like, must = (
        torch.zeros(1, dtype=getattr(torch, dtype)),
        rf"dtype 'float32' or 'float64', got '{dtype}'; levels of float16",
    )
    for check in (testing.check_level_precision, testing.check_posterior_precision):
        with pytest.raises(ValueError, match=rf"testing.{check.__name__}: `like` must have {must}"):
            check(like)
    with pytest.raises(ValueError, match=r"testing.strategies.log_snrs: `dtype` must be 'float32' or 'float64'"):
        strategies.log_snrs(dtype)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_levels_of_another_library_have_its_dtype(library: str) -> None:
    with example(library, "float32") as like:

        @settings(max_examples=10, deadline=None, database=None)
        @given(levels=strategies.ordered_levels("vp", like=like))
        def apart(levels: Any) -> None:
            assert np.all(host(levels[0].log_snr) > host(levels[1].log_snr))
            testing.check_bayes(*levels)

        @settings(max_examples=1, database=None)
        @given(levels=strategies.ordered_levels("vp", "float64", like=like))
        def refused(levels: Any) -> None:
            pytest.fail(f"drew {levels}")

        apart()
        with pytest.raises(ValueError, match=r"`like` must have the dtype of the levels, float64, got 'float32'"):
            refused()


@pytest.mark.parametrize("network", [np.tanh, np.square, abs], ids=["tanh", "square", "abs"])
def test_moments_of_what_is_not_affine_are_refused(network: Any) -> None:
    plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=3)
    with pytest.raises(AssertionError, match="drawn_by: stage 0: is not affine"):
        testing.drawn_by(lambda z, _: network(z), plan, (2,), prediction="v")
    with pytest.raises(AssertionError, match="drawn_from: is not affine"):
        testing.drawn_from(lambda noise, batch: network(noise(0, 0, (batch, 2))))
