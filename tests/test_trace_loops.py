"""`samplers.trace`: what a loop may do, and what is refused with the call where it shows."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from trace_cases import METHODS, Grid, Loop

import diffcore as dc
from diffcore.samplers._least import responses
from diffcore.samplers._recorded import plan_of

LEVELS = [-3.0, -1.0, 0.5, 2.0]


def euler(change: Any = lambda k, z: z, level: Any = lambda k, z: LEVELS[k]) -> Loop:
    """Four steps, with something done to the state before each call."""

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(LEVELS)):
            z = change(k, z) if k else z
            z = 0.5 * z + 0.5 * denoise(z, level(k, z))
        return z

    return loop


def at(call: int, change: Any) -> Loop:
    return euler(lambda k, z: change(z) if k == call else z)


NOT_LINEAR = {
    "clipping": lambda z: z.clip(-2.0, 2.0),
    "far limits": lambda z: z.clip(-1000.0, 1000.0),
    "a norm": lambda z: z / np.linalg.norm(z),
    "a mean over elements": lambda z: z - z.mean(),
    "a constant": lambda z: z + 0.25,
    "a square": lambda z: z**2,
    "float32": lambda z: (z / 3.0).astype(np.float32).astype(np.float64),
    "another order of elements": lambda z: z[:, ::-1],
    "a branch": lambda z: 0.5 * z if z.max() > 1.5 else z,
    "not a number": lambda z: z / 0.0,
}


@pytest.mark.filterwarnings("ignore:(divide|invalid)")
@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("change", NOT_LINEAR)
def test_what_is_not_linear_is_refused_and_the_first_call_where_it_shows_is_named(change: str, call: int) -> None:
    with pytest.raises(ValueError, match=f"trace: the z of call {call} is not linear in z"):
        dc.samplers.trace(at(call, NOT_LINEAR[change]))


BRANCHES: dict[str, Any] = {
    "the sign of a mean": lambda z, step: z + step if step.mean() > 0 else z,
    "a small step": lambda z, step: z + (0.5 if abs(step).max() > 1e-3 else 1.0) * step,
    "a large one": lambda z, step: z + (0.5 if abs(step).max() < 300.0 else 1.0) * step,
}


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_on_all_elements_together_is_seen(branch: str) -> None:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(3):
            z = BRANCHES[branch](z, 0.5 * (denoise(z, LEVELS[k]) - z))
        return z

    with pytest.raises(ValueError, match=r"the z of call [12] is not linear"):
        dc.samplers.trace(loop)


def test_sigmas_for_log_snrs_are_said_to_be_an_inversion() -> None:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for sigma, to in ((14.6, 3.0), (3.0, 1.0), (1.0, 0.0)):
            z = z + (to - sigma) * (z - denoise(z, sigma)) / sigma
        return z

    with pytest.warns(
        UserWarning, match=r"levels fall from 14.6 to 1, but the end is clean data; .* -2 log\(sigma / alpha\)"
    ):
        dc.samplers.trace(loop, "ve")
    dc.samplers.trace(loop, "ve", end=0.0)  # an inversion that says so


def test_noise_of_its_own_is_refused() -> None:
    random = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"the z of call 2 is not linear.*noise to `draw`"):
        dc.samplers.trace(at(2, lambda z: z + random.normal(size=z.shape)))


def test_what_is_done_after_the_last_call_is_seen() -> None:
    with pytest.raises(ValueError, match="trace: what the loop returns is not linear"):
        dc.samplers.trace(lambda denoise, z, draw: denoise(z, 0.0).clip(-1.0, 1.0))


def test_what_is_linear_passes_in_any_form() -> None:
    plain = dc.samplers.trace(euler())

    def in_place(denoise: Any, z: Any, draw: Any) -> Any:
        for log_snr in LEVELS:
            x = denoise(z, log_snr)
            x += z
            z *= 0.0
            z += 0.5 * x
        return z

    assert np.array_equal(dc.samplers.trace(in_place).update, plain.update)
    for level in (np.float32, np.array, lambda value: np.full(1, value), lambda value: np.full((3,), value)):
        found = dc.samplers.trace(euler(level=lambda k, z, level=level: level(LEVELS[k])))
        assert np.array_equal(found.log_snr, plain.log_snr)
        assert np.array_equal(found.update, plain.update)


def test_levels_that_differ_between_elements_are_refused() -> None:
    with pytest.raises(ValueError, match=r"call 2 must give `denoise` one log-SNR for all elements, got \[0.5, 1.5\]"):
        dc.samplers.trace(euler(level=lambda k, z: np.array([LEVELS[k], LEVELS[k] + (k == 2)])))


def test_levels_that_depend_on_the_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the log-SNR of call 1 depends on the data.*plans of one stage"):
        dc.samplers.trace(euler(level=lambda k, z: LEVELS[k] if k != 1 else float(z.max())))


def test_a_number_of_calls_that_depends_on_the_data_is_refused() -> None:
    sizes = itertools.cycle([3, 4])

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(next(sizes)):
            z = denoise(z, float(k))
        return z

    with pytest.raises(
        ValueError, match=r"how often the loop calls .* depends on the data, ([34]) and 0 .* (?!\1)[34] and 0"
    ):
        dc.samplers.trace(loop)


def test_a_loop_without_a_call_is_refused() -> None:
    with pytest.raises(ValueError, match="never calls `denoise`"):
        dc.samplers.trace(lambda denoise, z, draw: z)


def test_a_first_call_at_another_state_than_z_is_refused() -> None:
    with pytest.raises(ValueError, match="the first call must be at z itself, got 2 z; "):
        dc.samplers.trace(lambda denoise, z, draw: denoise(2.0 * z, 0.0))
    with pytest.raises(ValueError, match="noise is drawn before the first call"):
        dc.samplers.trace(lambda denoise, z, draw: denoise(z + draw(), 0.0))


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"the loop must return a numpy array of the shape of z, \(1, 8\), got a ndarray of shape \(8,\)",
    ):
        dc.samplers.trace(lambda denoise, z, draw: denoise(z, 0.0)[0])
    with pytest.raises(ValueError, match=r"the loop must return a numpy array of the shape of z, .*, got a float"):
        dc.samplers.trace(lambda denoise, z, draw: float(denoise(z, 0.0)[0, 0]))
    with pytest.raises(TypeError, match="`like` must be an array"):
        dc.samplers.trace(euler(), like=1.0)
    with pytest.raises(ValueError, match=r"samplers\.trace: `scaling`"):
        dc.samplers.trace(euler(), "edm")


def test_draws_of_a_stage_that_are_used_in_one_proportion_are_one() -> None:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for log_snr in LEVELS:
            z = 0.5 * z + denoise(z, log_snr)
            unused = draw()
            z = z + 3.0 * draw() - 4.0 * draw() + 0.0 * unused
        return z

    plan = dc.samplers.trace(loop)
    assert plan.memory == 0
    assert np.allclose(np.abs(plan.update[:, 0, 1]), 5.0, rtol=1e-15)


def test_draws_of_a_stage_that_are_used_apart_are_refused() -> None:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        x = denoise(z, 0.0)
        first, second = draw(), draw()
        return denoise(z + first + second + x, 1.0) + first

    with pytest.raises(ValueError, match="2 draws of noise after call 0, used in different proportions, cannot be one"):
        dc.samplers.trace(loop)


def test_noise_belongs_to_the_stage_that_first_uses_it() -> None:
    """As where a loop draws all its noise up front."""

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        first, second = draw(), draw()
        z = 0.5 * z + denoise(z, 0.0) + 3.0 * second
        return denoise(z, 1.0) + 2.0 * first

    plan = dc.samplers.trace(loop)
    assert plan.memory == 0
    assert plan.update[:, 0, 1].tolist() == [3.0, 2.0]


def test_noise_that_is_used_twice_is_remembered() -> None:
    """A two-stage step whose end keeps the noise of its middle, as stochastic Runge-Kutta methods have it."""

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(4):
            x, noise = denoise(z, 2.0 * k), draw()
            y = denoise(0.7 * z + 0.3 * x + 0.2 * noise, 2.0 * k + 1.0)
            z = 0.5 * z + 0.1 * x + 0.4 * y + 0.1 * noise + 0.3 * draw()
        return z

    plan = dc.samplers.trace(loop)
    assert plan.memory == 1
    assert np.any(plan.update[:, 1, plan.form.noise])
    estimates, noise = np.random.default_rng(0).normal(size=(2, len(plan), 5))
    z = start = np.ones(5)
    for k in range(4):
        z = 0.5 * z + 0.1 * estimates[2 * k] + 0.4 * estimates[2 * k + 1] + 0.1 * noise[2 * k] + 0.3 * noise[2 * k + 1]
    inputs = np.concatenate([start[None], np.stack([noise, estimates], axis=1).reshape(-1, 5)])
    assert np.allclose(responses(plan.update)[-1] @ inputs, z, rtol=0.0, atol=1e-14)


def test_the_end_of_a_run_is_clean_where_it_is_x_hat_and_else_what_the_caller_says() -> None:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for sigma, after in ((5.1, 0.7), (0.7, 0.0)):
            z = z + (after - sigma) * (z - denoise(z, -2.0 * math.log(sigma))) / sigma
        return 1.1 * z / 1.1  # x-hat but for rounding

    plan = dc.samplers.trace(loop, end=7.0)
    assert plan.next_log_snr[-1] == np.inf
    assert plan.update[-1, 0].tolist() == [0.0, 0.0, 1.0]
    assert dc.samplers.trace(euler()).next_log_snr[-1] == np.inf
    assert dc.samplers.trace(euler(), end=7.0).next_log_snr[-1] == 7.0


def test_a_plan_is_called_as_its_loop_is() -> None:
    assert dc.samplers.trace(euler()).sampler == "loop"
    assert dc.samplers.trace(euler(), name="mine").sampler == "mine"


@pytest.mark.parametrize("second", ["unguided", "raw"])
def test_a_second_estimate_has_a_column_and_may_be_remembered(second: Any) -> None:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        old = 0.0
        for k, log_snr in enumerate(LEVELS):
            x, other = denoise(z, log_snr)
            z = 0.5 * x + 0.25 * (z - other) + (0.125 * old if k else 0.0)
            old = other
        return z

    plan = dc.samplers.trace(loop, second=second)
    assert (plan.second, plan.memory) == (second, 1)
    assert np.allclose(plan.update[1:, 0], [0.25, 0.125, 0.0, 0.5, -0.25], rtol=1e-12)
    assert plan.update[:, 1].tolist() == [[0.0, 0.0, 0.0, 0.0, 1.0]] * 4


def test_a_loop_may_give_the_denoiser_the_next_level_too() -> None:
    ends = [*LEVELS[1:], 9.0]

    def loop(denoise: Any, z: Any, draw: Any, ends: Any = ends) -> Any:
        for log_snr, end in zip(LEVELS, ends, strict=True):
            z = 0.5 * z + denoise(z, log_snr, *([] if end is None else [end]))
        return z

    plan = dc.samplers.trace(loop)
    assert plan.ahead
    assert plan.next_log_snr.tolist() == ends
    assert not dc.samplers.trace(euler()).ahead
    for wrong, call in (([*LEVELS[1:3], 5.0, 9.0], 2), ([LEVELS[1], None, *ends[2:]], 1), ([*LEVELS[1:], None], 3)):
        with pytest.raises(ValueError, match=f"call {call} must give `denoise` the level of the next call"):
            dc.samplers.trace(lambda denoise, z, draw, wrong=wrong: loop(denoise, z, draw, wrong))


@pytest.mark.parametrize(
    "library", [pytest.param("torch", marks=pytest.mark.torch), pytest.param("jax", marks=pytest.mark.jax)]
)
def test_a_loop_may_compute_with_the_arrays_of_another_library(library: str) -> None:
    xp = pytest.importorskip({"torch": "torch", "jax": "jax.numpy"}[library])
    like = xp.zeros(1)
    levels = xp.asarray(LEVELS)

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for k in range(len(LEVELS)):
            x = denoise(z, levels[k] * xp.ones(z.shape[0]))
            z = xp.where(levels[k] < 2.0, 0.1 * z + 0.9 * x + 0.3 * draw(), x)
        return z

    plan = dc.samplers.trace(loop, like=like)
    assert np.allclose(plan.update[:, 0], [[0.1, 0.3, 0.9]] * 3 + [[0.0, 0.0, 1.0]], rtol=1e-15)
    assert plan.log_snr.tolist() == LEVELS
    assert xp.zeros(1).dtype == like.dtype
    with pytest.raises(ValueError, match="the z of call 1 is not linear"):
        dc.samplers.trace(lambda denoise, z, draw: denoise(xp.clip(denoise(z, 0.0), -1.0, 1.0), 1.0), like=like)
    with pytest.raises(ValueError, match=f"the loop must return a {library} array"):
        dc.samplers.trace(lambda denoise, z, draw: np.asarray(denoise(z, 0.0)), like=like)


@pytest.mark.torch
def test_a_loop_with_parameters_records_no_gradients() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    plan = dc.samplers.trace(
        lambda denoise, z, draw: weight * z + weight * denoise(z, 0.0), like=torch.zeros(1), end=2.0
    )
    assert plan.update.tolist() == [[[0.5, 0.0, 0.5]]]


def test_recorded_responses_make_a_plan() -> None:
    g = Grid(np.linspace(-6.0, 6.0, 9))
    plan = dc.samplers.trace(METHODS["3m sde"][0](g), end=6.0, name="a")
    found = responses(plan.update)
    rows = np.concatenate([found[:, :1], found[:, 2::2], found[:, 1::2]], axis=1)
    again = plan_of(rows, range(1, 9), plan.log_snr, scaling="vp", end=6.0, name="a")
    assert (again.memory, again.form) == (plan.memory, plan.form)
    assert np.allclose(again.update, plan.update, rtol=0.0, atol=1e-12)


def test_recorded_responses_are_checked() -> None:
    rows, levels = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), np.array([0.0, 1.0])
    assert plan_of(rows, [], levels, scaling="vp").update.tolist() == [[[0.5, 0.0, 0.5]], [[0.0, 0.0, 1.0]]]
    with pytest.raises(ValueError, match=r"rows of 2 calls and 1 draws have the shape \(3, 4\), got \(3, 3\)"):
        plan_of(rows, [1], levels, scaling="vp")
    early = rows.copy()
    early[1, 2] = 0.1
    with pytest.raises(ValueError, match="the z of call 1 depends on a later call"):
        plan_of(early, [], levels, scaling="vp")
    early = rows.copy()
    early[2, 0] = np.nan
    with pytest.raises(ValueError, match="what the loop returns is not finite"):
        plan_of(early, [], levels, scaling="vp")


def test_a_wait_is_a_stage_that_changes_nothing() -> None:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        for log_snr in (0.0, 0.0, 2.0):
            x = denoise(z, log_snr)
            z = z if log_snr == 0.0 else 0.5 * (z + x)
        return z

    plan = dc.samplers.trace(loop, end=4.0)
    assert plan.update[:, 0].tolist() == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.5]]


def test_a_call_at_zero_remembers_what_comes_after_it() -> None:
    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        x = denoise(z, 0.0)
        return 0.5 * x + 0.25 * z + denoise(0.0 * z, 1.0)

    plan = dc.samplers.trace(loop, end=2.0)
    assert plan.memory == 1
    assert np.allclose(responses(plan.update)[-1], [0.25, 0.0, 0.5, 0.0, 1.0], rtol=1e-14)


def test_a_thousand_calls_keep_their_rank() -> None:
    g = Grid([*np.linspace(-20.0, 20.0, 1000), math.inf])
    plan = dc.samplers.trace(METHODS["lms"][0](g))
    assert (plan.memory, plan.form.shifted) == (2, 1)
