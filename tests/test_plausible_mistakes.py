"""What a newcomer may get wrong is told: which argument, what it got and what it takes; nothing is silently something else."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from libraries import every_framework, example

import diffcore as dc

SCHEDULE = dc.schedules.Cosine()
PLAN = dc.samplers.ancestral(SCHEDULE, 4)
X, LEVEL = np.ones((2, 3)), SCHEDULE(0.5)


def net(z: Any, log_snr: Any) -> Any:
    return 0.3 * z


def sample(denoise: Any = net, plan: Any = PLAN, **settings: Any) -> Any:
    return dc.sample(denoise, plan, **{"shape": (2, 3), "prediction": "v", **settings})


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a time for a level": (
        lambda: dc.process.diffuse(X, X, 0.5),
        TypeError,
        "`level` must be a diffcore.Level, such as .*, got 0.5",
    ),
    "log-SNRs for a level": (lambda: dc.process.marginal(X, np.ones(2)), TypeError, "`level` must .*ndarray"),
    "a level in front": (lambda: dc.process.diffuse(LEVEL, X, X), TypeError, "`level` must .*ndarray"),
    "a schedule for a level": (
        lambda: dc.losses.denoising(X, X, X, SCHEDULE, prediction="v"),
        TypeError,
        "losses.denoising: `level` must be .*, got an object of type Cosine",
    ),
    "times in the posterior": (
        lambda: dc.process.posterior(X, X, s=0.1, t=0.2),
        TypeError,
        "posterior: `s` must .*, got 0.1",
    ),
    "times in the variance": (lambda: dc.process.novelty(LEVEL, 0.2), TypeError, "novelty: `t` must .*, got 0.2"),
    "a time in convert": (
        lambda: dc.predictions.convert(X, X, 0.5, source="v", target="x"),
        TypeError,
        "predictions.convert: `level` must be .*, got 0.5",
    ),
    "a number for a weight's level": (
        lambda: dc.weights.MinSNR()(3.0),
        TypeError,
        "weights.MinSNR: `level` must .*, got 3.0",
    ),
    "shapes that differ in convert": (
        lambda: dc.predictions.convert(X, X[:, :1], LEVEL, source="v", target="x"),
        ValueError,
        r"`y` and `z` must have equal shapes, got \(2, 3\) and \(2, 1\)",
    ),
    "a class for a weight": (
        lambda: dc.losses.denoising(X, X, X, LEVEL, prediction="v", weight=dc.weights.MinSNR),
        TypeError,
        "`weight` must be a weight, .*, got the class MinSNR",
    ),
    "a prediction that the denoiser is not": (
        lambda: sample(dc.exact.Gaussian(np.zeros(3), 1.0), prediction="eps"),
        ValueError,
        "sample: `prediction` must be 'x', the attribute of the denoiser, .*, got 'eps'",
    ),
    "data for a denoiser": (lambda: sample(X), TypeError, "sample: `denoise` must be a function .*, got ndarray"),
    "exchanged arguments": (
        lambda: dc.sample(PLAN, net, shape=(2, 3)),
        TypeError,
        "sample: `plan` must be a diffcore.Plan.*, got an object of type function",
    ),
    "a schedule for a plan": (
        lambda: dc.step(SCHEDULE, dc.start(PLAN, X), X, prediction="v"),
        TypeError,
        "step: `plan`",
    ),
    "an array for a state": (
        lambda: dc.step(PLAN, X, X, prediction="v"),
        TypeError,
        "step: `state` must .*, got ndarray",
    ),
    "a size for a shape": (lambda: sample(shape=3), TypeError, "`shape` must be .*, got 3"),
    "like beside z": (
        lambda: dc.sample(net, PLAN, X, like=X, prediction="v"),
        ValueError,
        "`like` must be left out beside `z`, whose library, dtype and device a run has, got .*; convert z",
    ),
    "like beside a state": (
        lambda: dc.sample(net, PLAN, dc.start(PLAN, X), like=X, prediction="v"),
        ValueError,
        "sample: `like` must be left out beside `z`",
    ),
    "a seed beside noise": (
        lambda: dc.sample_parallel(net, PLAN, X, seed=3, noise=lambda draw, shape: X, prediction="v"),
        ValueError,
        r"`seed` must be left out beside `noise`, got 3; .*noise.native\(seed\)",
    ),
    "a number for like": (lambda: sample(like=0.0), TypeError, "`like` must be an array, .*, got 0.0"),
    "a dtype for like": (lambda: sample(like=np.float32), TypeError, "`like` takes an array .* not type"),
    "an array for noise": (lambda: sample(noise=X), TypeError, "sample: `noise` must be a function .*, got ndarray"),
    "bounds for a transform": (
        lambda: sample(transform_x=(-1, 1)),
        TypeError,
        r"`transform_x` must be a function .*, got \(-1, 1\)",
    ),
    "a denoiser without a return": (
        lambda: sample(lambda z, l: None),
        TypeError,
        "`y` must be an array .*, got None; it is what the denoiser",
    ),
    "a denoiser that returns a tuple": (
        lambda: sample(lambda z, l: (z,)),
        TypeError,
        "`y` must be an array .*the denoiser returned",
    ),
    "a denoiser that returns a number": (
        lambda: sample(lambda z, l: 0.5),
        TypeError,
        "`y` must be an array .*, got 0.5; it is what the denoiser",
    ),
    "betas for alphas_cumprod": (
        lambda: dc.schedules.from_alphas_cumprod(np.linspace(1e-4, 0.02, 10)),
        ValueError,
        "`alphas_cumprod` must strictly decrease, got .*; reverse it, to run from data to noise",
    ),
    "alphas_cumprod for betas": (
        lambda: dc.schedules.from_betas(np.cumprod(1.0 - np.linspace(1e-4, 0.02, 10))),
        ValueError,
        "`betas` must not decrease from 0.9999 to .*, as alphas do; use from_alphas_cumprod",
    ),
    "a float for a batch": (lambda: dc.times.stratified(7, 0, 4.0), TypeError, "`shape` must be B or .*4.0"),
    "a draw before the first": (lambda: dc.noise.bits(0, -1, (1, 2)), ValueError, "noise.bits: `draw` must .*, got -1"),
    "a draw between two": (lambda: dc.noise.normal(0, 1.5, (1, 2)), TypeError, "noise.normal: `draw` must .*, got 1.5"),
    "noise of no shape": (lambda: dc.noise.normal(0, 1, ()), ValueError, r"`shape` must be \(B, ...\), .*, got \(\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused(mistake: str) -> None:
    call, kind, message = MISTAKES[mistake]
    with pytest.raises(kind, match=message):
        call()


@every_framework
@pytest.mark.parametrize("plan", [PLAN, dc.samplers.unipc(SCHEDULE, 4)], ids=["ancestral", "unipc"])
def test_a_transform_of_x_that_returns_another_shape_does_not_broadcast(library: str, plan: dc.Plan) -> None:
    with (
        example(library) as like,
        pytest.raises(ValueError, match=r"`transform_x` must return an array of shape \(2, 3\), got .*\(1, 3\)"),
    ):
        sample(plan=plan, like=like, transform_x=lambda x: x[:1, ...])


@every_framework
def test_a_transform_of_x_that_returns_nothing_is_refused(library: str) -> None:
    """It may have worked in place; its x-hat was once left out of the sum, so that a run ended in zeros."""
    with example(library) as like, pytest.raises(TypeError, match="what transform_x returned` takes an array"):
        sample(like=like, transform_x=lambda x: None)


SIGMAS = [80.0, 2.5, 0.002, 0.0]


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpm_solver_pp", "unipc", "ancestral"])
@pytest.mark.parametrize(
    ("schedule", "grid"),
    [
        (dc.schedules.Karras(), SIGMAS),
        (dc.schedules.Karras(), np.stack([SIGMAS, SIGMAS], axis=-1)),
        (dc.schedules.Flow(), [1.0, 0.5, 0.0]),
        (SCHEDULE, np.linspace(0.999, 0.0, 11)),
        (SCHEDULE, [0.0, 0.5, 1.0]),
        (dc.schedules.from_betas(np.linspace(1e-4, 0.02, 1000)), np.arange(999, 0, -50)),
        (SCHEDULE, [1, 250, 500, 750]),
        (dc.schedules.Flow(), np.linspace(0.0, 999.0, 5)),
        (dc.schedules.Flow(), [700.0, 3.0, 0.002]),
    ],
    ids=[
        *("sigmas", "sigmas of two", "flow", "times", "times that rise", "timesteps"),
        *("timesteps that rise", "timesteps without an end", "sigmas without an end"),
    ],
)
def test_other_units_are_no_log_snrs(sampler: str, schedule: Any, grid: Any) -> None:
    """Most of them fall, and what falls leads from data to noise."""
    with pytest.raises(
        ValueError, match=rf"samplers.{sampler}: `grid` must be log-SNRs, .*from_times.*-2 log\(sigmas\)"
    ):
        getattr(dc.samplers, sampler)(schedule, grid=grid)


def test_runs_between_levels_of_the_schedule_are_no_other_units() -> None:
    for grid in (dc.grids.uniform(SCHEDULE, 8, start=0.0, end=0.5), [0.0, 1.0], [0.5, 0.0], [0.0, 0.5, 1.5]):
        assert len(dc.samplers.ddim(SCHEDULE, grid=grid)) == len(grid) - 1
    wide = dc.schedules.LinearLogSNR(log_snr_min=-300.0, log_snr_max=300.0)
    for schedule in (wide, *dc.schedules.named().values()):
        for start in (0.5, 0.01):
            clean, least = dc.grids.uniform(schedule, 4, start=start), 1e-3 * start
            for grid in (clean, dc.grids.uniform(schedule, 4, start=start, end=least), clean[:-1]):
                assert len(dc.samplers.dpm_solver_pp(schedule, grid=grid)) == len(grid) - 1  # without a warning


def test_a_grid_that_rises_like_sigmas_times_or_timesteps_is_said_to_be_one_of_little_noise() -> None:
    for schedule, grid in (
        *((SCHEDULE, grid) for grid in ([0.002, 2.5, 80.0], [0.1, 0.5, 0.9], [0, 20, 40, 60])),
        *((schedule, [0.002, 2.5, 80.0]) for schedule in (dc.schedules.Flow(), dc.schedules.Karras())),
    ):
        with pytest.warns(UserWarning, match=r"samplers.ddim: `grid` rises .*little noise.*from_times.*from_sigmas"):
            assert len(dc.samplers.ddim(schedule, grid=grid)) == len(grid) - 1


def test_a_grid_that_falls_like_sigmas_or_times_is_said_to_be_an_inversion() -> None:
    for grid in ([14.6, 3.0, 1.0, 0.0], [14.6, 3.0, 0.03], [0.99, 0.5, 0.2]):
        with pytest.warns(UserWarning, match=r"samplers.ddim: `grid` falls .*inversion.*from_times.*from_sigmas"):
            assert len(dc.samplers.ddim(SCHEDULE, grid=grid)) == len(grid) - 1
        with pytest.raises(ValueError, match=r"must rise .*from_sigmas"):
            dc.samplers.ancestral(SCHEDULE, grid=grid)
    for grid in ([20.0, 3.0, 1.0, 0.0], [14.6, 3.0, -1.0], [14.6, 3.0, 1.0]):  # filters make an error of a warning
        assert dc.samplers.ddim(SCHEDULE, grid=grid).log_snr[0] == grid[0]


SETTINGS: dict[str, Callable[[Any], Any]] = {
    "gamma": lambda value: dc.samplers.ancestral(SCHEDULE, 4, gamma=value),
    "delta": lambda value: dc.samplers.predictor_corrector(SCHEDULE, 4, delta=value),
    "eta": lambda value: dc.samplers.ddim(SCHEDULE, 4, eta=value),
    "order": lambda value: dc.samplers.unipc(SCHEDULE, 4, order=value),
    "churn": lambda value: dc.samplers.euler(SCHEDULE, 4, churn=value),
    "churn_range": lambda value: dc.samplers.heun(SCHEDULE, 4, churn=1.0, churn_range=value),
    "rescale": lambda value: dc.guidance.classifier_free(net, net, weight=1.0, rescale=value),
    "interval": lambda value: dc.guidance.classifier_free(net, net, weight=1.0, interval=value),
    "low": lambda value: dc.guidance.clip(value, 1.0),
    "percentile": lambda value: dc.guidance.dynamic_threshold(value),
    "rho": lambda value: dc.grids.karras(SCHEDULE, 4, rho=value),
    "bias": lambda value: dc.weights.Sigmoid(bias=value),
    "k": lambda value: dc.weights.P2(k=value),
    "std": lambda value: dc.times.LogitNormal(std=value),
    "sigma_data": lambda value: dc.predictions.edm(value),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("value", ["0.1", "01", None, True, np.ones(2) > 0], ids=repr)
def test_a_setting_that_is_not_a_number_is_refused(setting: str, value: Any) -> None:
    if setting == "interval" and value is None:
        return  # no interval
    with pytest.raises(
        (TypeError, ValueError),
        match=rf"`{setting}` (is .*, but takes|must be) (a (finite |positive )?number|one number|two (finite )?numbers|an int)",
    ):
        SETTINGS[setting](value)


def test_counts_may_be_numpy_integers() -> None:
    four = np.int64(4)
    np.testing.assert_array_equal(dc.times.stratified(7, 0, four), dc.times.stratified(7, 0, 4))
    bound = {"schedule": SCHEDULE, "prediction": "v"}
    for name, counts in (("diffusion_continuous", ("points",)), ("diffusion_discrete", ("steps", "intervals"))):
        of = [getattr(dc.likelihood, name)(net, X, **bound, **dict.fromkeys(counts, count)) for count in (four, 4)]
        np.testing.assert_array_equal(*of)


def test_a_conversion_that_overflows_does_not_blame_an_end() -> None:
    at = dc.levels.level(np.float32(-80.0), "ve")
    with pytest.raises(ValueError, match=r"beyond the range of the dtype, log_snr = -80.0, .*or float64"):
        dc.predictions.mixing(at, "score", "v")


SAMPLERS = {
    "ancestral": lambda schedule: dc.samplers.ancestral(schedule, 3),
    "ddim": lambda schedule: dc.samplers.ddim(schedule, 3),
    "euler": lambda schedule: dc.samplers.euler(schedule, 3, churn=2.0),
    "dpm_solver_pp": lambda schedule: dc.samplers.dpm_solver_pp(schedule, 3),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_exploding_process_does_not_start_without_signal(sampler: str) -> None:
    """Its sigma is infinite there; a run would end in NaN."""
    schedule = dc.schedules.Flow(scaling="ve")
    with pytest.raises(ValueError, match=r"not finite.* start from a finite log-SNR"):
        SAMPLERS[sampler](schedule)


def test_churn_without_signal_is_silent() -> None:
    with warnings.catch_warnings(), np.errstate(all="warn"):
        warnings.simplefilter("error")
        assert np.all(np.isfinite(sample(plan=SAMPLERS["euler"](dc.schedules.Flow()))))


@pytest.mark.torch
def test_the_number_of_a_stage_stays_on_the_host() -> None:
    """Whatever torch's default device is: on another one every stage would wait for it."""
    import torch

    like = torch.zeros(1)
    want = sample(like=like)
    torch.set_default_device("meta")
    try:
        state = dc.start(PLAN, shape=(2, 3), like=like)
        assert state.index.device.type == "cpu"
        assert torch.equal(sample(like=like), want)
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("method", ["log_snr", "slope", "__call__"])
@pytest.mark.parametrize("t", [999.0, -0.01, np.array([0.0, 1.0, 500.0]), np.array(1.5, np.float32)])
def test_a_timestep_is_no_time(t: Any, method: str) -> None:
    """Some schedules are periodic, so that what comes out looks right."""
    for schedule in (dc.schedules.Cosine(), dc.schedules.LinearLogSNR(log_snr_min=-9.0, log_snr_max=9.0)):
        with pytest.raises(ValueError, match=r"`t` must be in \[0, 1\], .*; timestep i of 0, ..., T - 1 is"):
            getattr(schedule, method)(t)


@pytest.mark.torch
@pytest.mark.parametrize("method", ["log_snr", "slope", "__call__"])
def test_on_torch_a_timestep_is_no_time_where_nothing_waits_for_a_device(method: str) -> None:
    import torch

    for schedule in (dc.schedules.Cosine(), dc.schedules.LinearLogSNR(log_snr_min=-9.0, log_snr_max=9.0)):
        call: Any = getattr(schedule, method)
        for t in (torch.tensor([0.0, 500.0]), torch.tensor(-0.1, requires_grad=True), torch.tensor([1.5]).bfloat16()):
            with pytest.raises(ValueError, match=r"`t` must be in \[0, 1\]"):
                call(t)
        assert call(torch.ones(3, device="meta")) is not None
        seen = torch.func.vmap(lambda t, schedule=schedule: schedule.log_snr(t))(torch.tensor([0.5, 1.5]))
        assert torch.isnan(seen).tolist() == [False, True]
        graph = torch.compile(schedule.log_snr, fullgraph=True, backend="eager")
        assert torch.isnan(graph(torch.tensor([0.5, 1.5]))).tolist() == [False, True]


@pytest.mark.jax
@pytest.mark.parametrize("method", ["log_snr", "slope"])
def test_on_jax_a_timestep_is_no_time_and_traced_it_has_no_level(method: str) -> None:
    import jax
    import jax.numpy as jnp

    for schedule in (dc.schedules.Cosine(), dc.schedules.LinearLogSNR(log_snr_min=-9.0, log_snr_max=9.0)):
        call: Any = getattr(schedule, method)
        t = jnp.asarray([0.0, 1.0, 1.0 + 2.0**-23, jnp.nan, -0.1, 500.0])
        with pytest.raises(ValueError, match=r"`t` must be in \[0, 1\], .* got -0\.1"):
            call(t)
        for found, wrong in ((call(t[:4]), 1), (jax.jit(call)(t), 3)):
            assert np.isnan(found).tolist() == [False] * 3 + [True] * wrong
            np.testing.assert_array_equal(found[1], found[2])


def test_times_that_were_rounded_past_an_end_are_the_end() -> None:
    schedule = dc.schedules.Cosine()
    assert schedule.log_snr(1.0 + 2.0**-52) == schedule.log_snr(1.0)
    assert schedule.log_snr(-(2.0**-53)) == schedule.log_snr(0.0)
    assert np.isnan(schedule.log_snr(math.nan))
