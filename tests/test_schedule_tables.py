"""Tables of other libraries as schedules, and the learned schedule."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import diffcore as dc
from diffcore import levels
from diffcore.schedules import (
    LinearLogSNR,
    Monotone,
    Table,
    from_alphas_cumprod,
    from_betas,
    from_sigmas,
    shift,
    truncate,
)

BETAS = np.linspace(1e-4, 0.02, 1000)  # DDPM's
LIBRARIES = ["numpy", pytest.param("torch", marks=pytest.mark.torch), pytest.param("jax.numpy", marks=pytest.mark.jax)]


@pytest.mark.parametrize("scaled", [False, True])
def test_levels_at_the_timesteps_are_the_tables_own(scaled: bool) -> None:
    """alpha^2 at t = i / (T - 1) is the running product of 1 - beta, DDPM's and the scaled linear one."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2 if scaled else BETAS
    alphas_cumprod = np.cumprod(1.0 - betas)
    timesteps = np.arange(1000) / 999
    for schedule in (
        from_betas(betas),
        from_alphas_cumprod(alphas_cumprod),
        from_alphas_cumprod(alphas_cumprod.tolist()),
    ):
        level = schedule(timesteps)
        np.testing.assert_allclose(level.alpha**2, alphas_cumprod, rtol=1e-12)
        np.testing.assert_allclose(level.sigma**2, 1.0 - alphas_cumprod, rtol=1e-11)  # the right side has lost some
        np.testing.assert_allclose(schedule.time(level.log_snr) * 999, np.arange(1000), atol=1e-9)


def test_betas_keep_the_digits_that_alphas_cumprod_have_lost() -> None:
    tiny = from_betas(np.array([1e-12, 1e-3]))
    assert tiny.log_snrs[0] == pytest.approx(-math.log(1e-12), rel=1e-14)
    assert from_alphas_cumprod(np.cumprod(1.0 - np.array([1e-12, 1e-3]))).log_snrs[0] != pytest.approx(
        -math.log(1e-12), rel=1e-7
    )


@pytest.mark.parametrize("sigmas", [[0.01, 0.5, 80.0], [80.0, 0.5, 0.01], [80.0, 0.5, 0.01, 0.0], [0, 0.01, 0.5, 80]])
def test_sigmas_in_either_order_with_a_clean_end_or_without(sigmas: list[float]) -> None:
    schedule = from_sigmas(sigmas)
    assert schedule.scaling == "ve"
    np.testing.assert_allclose(schedule(np.array([0.0, 0.5, 1.0])).sigma, [0.01, 0.5, 80.0], rtol=1e-14)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_table_may_come_from_any_library(library: str) -> None:
    xp = importlib.import_module(library)
    assert from_sigmas(xp.asarray([4.0, 2.0, 1.0])) == from_sigmas([4.0, 2.0, 1.0])


@pytest.mark.torch
def test_a_table_may_be_bfloat16_and_want_gradients() -> None:
    import torch

    assert from_sigmas(torch.tensor([4.0, 2.0, 1.0], dtype=torch.bfloat16, requires_grad=True)) == from_sigmas(
        [4, 2, 1]
    )


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        # The last entry of a schedule rescaled to zero terminal SNR, replaced by 2^-24: sigma is then 4096 after 15406.
        (
            lambda: from_sigmas([0.03, 1.0, 7668.0, 15406.0, 4096.0]),
            ValueError,
            r"schedules\.from_sigmas: `sigmas` must strictly increase, got 15406\.0 and 4096\.0 at \[3\] and \[4\]; drop",
        ),
        (
            lambda: from_sigmas([4096.0, 15406.0, 7668.0, 1.0, 0.03, 0.0]),
            ValueError,
            r"must strictly decrease, got 4096\.0 and 15406\.0 at \[0\] and \[1\]; drop replaced",
        ),
        (lambda: from_sigmas([1.0, 2.0, 2.0]), ValueError, r"got 2\.0 and 2\.0 at \[1\] and \[2\]"),
        (lambda: from_sigmas([0.0, 1.0, 3.0, 2.0]), ValueError, r"got 3\.0 and 2\.0 at \[2\] and \[3\]"),
        (
            lambda: from_sigmas([0.0, 1.0, -3.0, 2.0]),
            ValueError,
            r"`sigmas\[2\]` must be a positive finite number, got -3\.0",
        ),
        (
            lambda: from_sigmas([1.0, 0.0]),
            ValueError,
            r"must have at least 2 entries besides the 0 of its clean end, got 1",
        ),
        (lambda: from_sigmas([1.0]), ValueError, r"`sigmas` must have at least 2 entries, got 1, a single level; use"),
        (lambda: from_betas([0.02]), ValueError, r"schedules\.from_betas: `betas` must have at least 2 entries, got 1"),
        (
            lambda: from_betas([0.1, 1.2]),
            ValueError,
            r"`betas\[1\]` must be a number in .*, got 1\.2; clip it to 0\.999",
        ),
        (lambda: from_sigmas(np.ones((2, 2))), ValueError, r"`sigmas` must have one axis .*, got shape \(2, 2\)"),
        (lambda: from_sigmas([1.0, math.nan, 3.0]), ValueError, r"`sigmas\[1\]` must be .*, got nan"),
        (lambda: from_sigmas("karras"), TypeError, r"`sigmas` must be numbers, .*, got 'karras'"),
        (
            lambda: from_betas([0.1, 1.0, 0.2]),
            ValueError,
            r"schedules\.from_betas: `betas\[1\]` must be .*or 1 for the last, got 1\.0",
        ),
        (lambda: from_betas([0.1, 0.0]), ValueError, r"`betas\[1\]` must be a number in \(0, 1\), .*, got 0\.0"),
        (lambda: from_betas([0.1, math.nan]), ValueError, r"`betas\[1\]` must be .*, got nan"),
        (
            lambda: from_betas([0.1, 1e-20]),
            ValueError,
            r"`betas\[1\]` must be a number large enough .*, got 1e-20",
        ),
        (
            lambda: from_alphas_cumprod([1.0, 0.5, 0.0]),
            ValueError,
            r"`alphas_cumprod\[0\]` must be .*, got 1\.0; drop a 1",
        ),
        (
            lambda: from_alphas_cumprod([0.9, 0.0, 0.0]),
            ValueError,
            r"`alphas_cumprod\[1\]` must be .*0 for the last, got 0\.0",
        ),
        (
            lambda: from_alphas_cumprod([0.5, 0.0]),
            ValueError,
            r"`log_snrs\[1\]` must be .* after two others, got -inf",
        ),
        (
            lambda: from_alphas_cumprod([0.9, 0.5, 0.6]),
            ValueError,
            r"must strictly decrease, got 0\.5 and 0\.6 at \[1\] and \[2\]; drop",
        ),
        (lambda: from_alphas_cumprod([0.5, 0.9]), ValueError, r"got 0\.5 and 0\.9 at \[0\] and \[1\]; reverse it"),
        (
            lambda: Table(log_snrs=(1.0, math.inf)),
            ValueError,
            r"schedules\.Table: `log_snrs\[1\]` must be a finite number, .*, got inf",
        ),
        (lambda: Table(log_snrs=(1.0, 1.0)), ValueError, r"`log_snrs` must strictly decrease"),
        (lambda: from_betas(BETAS, scaling="vq"), ValueError, r"`scaling` must be 'flow', .*, got 'vq'"),
        (
            lambda: Monotone(increments=[1.0]),
            TypeError,
            r"schedules\.Monotone: `increments` takes an array .* not list",
        ),
        (
            lambda: Monotone(increments=1.0),
            TypeError,
            r"`increments` must be a floating array of shape \(K,\), got 1\.0",
        ),
        (lambda: Monotone(increments=np.arange(3)), TypeError, r"`increments` has dtype int64"),
        (lambda: Monotone(increments=np.zeros((2, 2))), ValueError, r"must have shape \(K,\), K >= 1, got \(2, 2\)"),
        (
            lambda: Monotone(increments=np.zeros(2), log_snr_min=10),
            ValueError,
            r"`log_snr_min` must be less than .*, got 10\.0 and 10\.0; exchange",
        ),
        (
            lambda: Monotone(increments=np.zeros(2), log_snr_max=np.ones(1)),
            TypeError,
            r"`log_snr_max` must be a number or a 0-d array, got .* \(1,\)",
        ),
    ],
)
def test_a_bad_table_is_refused_with_its_first_bad_place(
    make: Callable[[], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        make()


@hypothesis.given(st.lists(st.floats(1e-3, 0.9), min_size=2, max_size=12), st.floats(0.0, 1.0))
def test_between_the_knots_log_snr_is_linear_and_time_its_inverse(parts: list[float], t: float) -> None:
    knots = 9.0 - 20.0 * np.cumsum(parts)
    schedule = Table(log_snrs=tuple(knots))
    log_snr = schedule.log_snr(t)
    np.testing.assert_allclose(log_snr, np.interp(t, np.linspace(0.0, 1.0, len(knots)), knots), rtol=1e-12, atol=1e-12)
    assert abs(schedule.time(log_snr) - t) <= 1e-12 * max(1.0, 100.0 / abs(schedule.slope(t)))
    assert schedule.slope(t) in np.diff(knots) * (len(knots) - 1)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_table_of_zero_terminal_snr_ends_in_pure_noise(library: str, dtype: str) -> None:
    """Every entry at its own time, also where that is rounded; past the last line the nearer of the two entries."""
    xp = importlib.import_module(library)
    root = np.sqrt(np.cumprod(1.0 - BETAS))
    alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2  # Lin et al. 2023, alg. 1
    schedule = from_alphas_cumprod(alphas_cumprod)
    betas = 1.0 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])
    np.testing.assert_allclose(from_betas(betas).log_snrs, schedule.log_snrs, rtol=1e-9)
    t = xp.asarray((np.arange(1000) / 999).astype(dtype))
    dtype = str(t.dtype).removeprefix("torch.")  # JAX may not have 64 bits
    eps, log_snr = np.finfo(dtype).eps, np.asarray(schedule.log_snr(t))
    near = 2000.0 * eps  # the last line has the slope -1400
    np.testing.assert_allclose(log_snr, schedule.log_snrs, rtol=0, atol=near)
    np.testing.assert_allclose(np.asarray(schedule.time(schedule.log_snr(t))), np.asarray(t), rtol=0, atol=2 * eps)
    ends = xp.asarray(np.array([998.4, 998.6], dtype) / 999)
    np.testing.assert_allclose(np.asarray(schedule.log_snr(ends)), schedule.log_snrs[-2:], rtol=0, atol=near)
    beyond = xp.asarray(np.array([-1e9, -np.inf, np.nan], dtype))
    np.testing.assert_allclose(np.asarray(schedule.time(beyond)), [998 / 999, 1.0, np.nan], rtol=2 * eps)
    slope = np.asarray(schedule.slope(ends))
    assert np.isneginf(slope[1])
    assert slope[0] == pytest.approx(999 * (schedule.log_snrs[-2] - schedule.log_snrs[-3]), rel=1e-5)


def test_samplers_start_from_the_pure_noise_of_a_table() -> None:
    schedule = from_alphas_cumprod([0.9, 0.5, 0.0])
    assert schedule.log_snr(1.0) == -math.inf
    plan = dc.samplers.ddim(schedule, steps=2)
    np.testing.assert_array_equal(plan.log_snr, [-math.inf, 0.0])
    clip = dc.sample(lambda z, _: 0.0 * z, plan, np.ones((1, 2)), prediction="v")
    np.testing.assert_allclose(clip, 0.5, rtol=1e-12)  # v = 0: x-hat = alpha z, which is 0, then 1/2


def learned(library: str, ends: bool = False) -> Monotone:
    xp = importlib.import_module(library)
    raw = xp.asarray(np.array([0.3, -1.2, 2.0, 0.0, 0.7], dtype=np.float32))
    if not ends:
        return Monotone(increments=raw)
    low, high = (xp.asarray(np.array(end, dtype=np.float32)) for end in (-9.0, 12.0))
    return Monotone(increments=raw, log_snr_min=low, log_snr_max=high)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_learned_schedule_is_its_table_and_answers_numbers_on_the_host(library: str, ends: bool) -> None:
    schedule = learned(library, ends)
    table, t = schedule.table(), np.linspace(0.0, 1.0, 41)
    assert (table.log_snrs[0], table.log_snrs[-1]) == ((12.0, -9.0) if ends else (10.0, -10.0))
    for found, expected in (
        (schedule.log_snr, table.log_snr),
        (schedule.slope, table.slope),
        (schedule.time, table.time),
    ):
        np.testing.assert_allclose(found(t), expected(t), rtol=1e-14, atol=1e-14)
        assert found(0.25) == expected(0.25)
    on_device = importlib.import_module(library).asarray(t.astype(np.float32))
    np.testing.assert_allclose(np.asarray(schedule.log_snr(on_device)), table.log_snr(t), rtol=2e-6, atol=1e-5)
    np.testing.assert_allclose(np.asarray(schedule.time(schedule.log_snr(on_device))), t, atol=2e-6)
    np.testing.assert_allclose(truncate(shift(schedule, 1.0), -2.0, 2.0).log_snr(1.0), -2.0)


def test_equal_increments_are_the_linear_schedule() -> None:
    t = np.linspace(0.0, 1.0, 33)
    np.testing.assert_allclose(Monotone(increments=np.full(7, 0.3)).log_snr(t), LinearLogSNR().log_snr(t), atol=1e-14)


@hypothesis.given(st.lists(st.floats(-8.0, 8.0), min_size=1, max_size=8))
def test_whatever_its_parameters_it_decreases_between_its_ends(raw: list[float]) -> None:
    log_snr = Monotone(increments=np.array(raw)).log_snr(np.linspace(0.0, 1.0, 8 * len(raw) + 1))
    assert (log_snr[0], log_snr[-1]) == (10.0, -10.0)
    assert np.all(np.diff(log_snr) < 0.0)


def analytic(raw: Any, t: float, low: float, high: float) -> Any:
    """Return d lambda(t) / d raw: with p the softmax and c(t) how much of each piece is done, -(high - low) p (c - c.p)."""
    done = np.clip(t * len(raw) - np.arange(len(raw)), 0.0, 1.0)
    share = np.exp(raw - raw.max())
    share = share / share.sum()
    return -(high - low) * share * (done - done @ share)


@pytest.mark.torch
def test_on_torch_gradients_reach_the_parameters_the_ends_and_through_the_inverse() -> None:
    import torch

    raw = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64, requires_grad=True)
    low, high = (torch.tensor(end, dtype=torch.float64, requires_grad=True) for end in (-9.0, 12.0))
    schedule = Monotone(increments=raw, log_snr_min=low, log_snr_max=high)
    t = torch.tensor(0.55, dtype=torch.float64)
    by_raw, by_low, by_high = torch.autograd.grad(schedule.log_snr(t), (raw, low, high))
    np.testing.assert_allclose(by_raw, analytic(raw.detach().numpy(), 0.55, -9.0, 12.0), rtol=1e-12)
    torch.testing.assert_close(by_low + by_high, torch.ones_like(by_low))
    # lambda(time(l; p); p) = l for every p, so d time / dp = -(d lambda / dp) / slope
    (through,) = torch.autograd.grad(schedule.time(schedule.log_snr(t).detach()), raw)
    torch.testing.assert_close(through, -by_raw / schedule.slope(t).detach(), rtol=1e-9, atol=0.0)

    def loss(raw: Any, t: Any) -> Any:
        return (Monotone(increments=raw)(t).alpha ** 2).sum()

    times = torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(raw, times)
    assert torch.autograd.gradcheck(loss, (raw, times))
    torch.testing.assert_close(torch.autograd.grad(compiled, raw), torch.autograd.grad(loss(raw, times), raw))
    with pytest.raises(TypeError, match=r"schedules\.Monotone: `t` is a torch array but `increments` is a numpy array"):
        Monotone(increments=np.zeros(2)).log_snr(times)


@pytest.mark.jax
def test_on_jax_it_is_an_argument_of_jit_and_its_gradient_is_one_too() -> None:
    import jax
    import jax.numpy as jnp

    schedule = learned("jax.numpy")

    @jax.jit
    def loss(schedule: Monotone, t: Any) -> Any:
        return jnp.sum(schedule.log_snr(t)) + 0.0 * jnp.sum(schedule.time(t))

    t = jnp.asarray([0.15, 0.5, 0.93])
    gradient = jax.grad(loss)(schedule, t)
    assert isinstance(gradient, Monotone)
    raw = np.asarray(schedule.increments, dtype=np.float64)
    expected = sum(analytic(raw, float(at), -10.0, 10.0) for at in t)
    np.testing.assert_allclose(gradient.increments, expected, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(gradient.log_snr_min + gradient.log_snr_max, 3.0, rtol=1e-6)
    moved = jax.tree_util.tree_map(lambda p, g: p - 0.1 * g, schedule, gradient)
    assert float(loss(moved, t)) < float(loss(schedule, t))
    np.testing.assert_allclose(jax.vmap(schedule.log_snr)(t), schedule.log_snr(t), rtol=1e-6)
    with pytest.raises(
        TypeError, match=r"`increments` must be numbers, .* none that is being traced, got .*Tracer of shape"
    ):
        jax.jit(lambda schedule: schedule.log_snr(0.5))(schedule)


def test_a_level_of_a_learned_schedule_is_in_its_scaling() -> None:
    t = np.array([0.2, 0.9])
    schedule = Monotone(increments=np.zeros(3), scaling="flow")
    np.testing.assert_array_equal(schedule(t).sigma, levels.level(schedule.log_snr(t), "flow").sigma)
