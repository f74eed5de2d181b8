"""`samplers.trace`: loops written as their papers have them become plans that do the same, with the least memory."""

import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from named_cases import NAMED
from trace_cases import METHODS, OWN, Grid, Loop

import diffcore as dc
from diffcore.samplers._least import responses

CLEAN = [np.inf]
GRIDS = {
    "vp": Grid([*np.linspace(-6.0, 7.0, 11), *CLEAN]),
    "ve": Grid([*(-2.0 * np.log(np.geomspace(80.0, 0.02, 11))), *CLEAN], "ve"),
    "flow": Grid([*np.linspace(-5.0, 6.0, 11), *CLEAN], "flow"),
    "the whole range": Grid([*np.linspace(-20.0, 20.0, 41), *CLEAN]),
    "it ends noisy": Grid(np.linspace(-9.0, 3.0, 13)),
    "uneven": Grid([-10.0, -3.0, -2.9, -1.0, 0.0, 0.2, 2.0, 5.0, 5.5, 9.0, 12.0, *CLEAN]),
}
TOLERANCE = 1e-12


def denoiser(z: Any, log_snr: Any) -> Any:
    """A denoiser that is not linear, of data near -1 and 1."""
    level = dc.levels.level(np.asarray(log_snr, dtype=np.float64).reshape(-1)[0], "vp")
    return np.tanh(level.alpha * z / (level.sigma**2 + 0.25)) + 0.1 * np.sin(z)


def run(loop: Loop, z: Any, noise: Any, answer: Any = lambda _, z, log_snr: denoiser(z, log_snr)) -> Any:
    """What a loop returns, with the draw that follows call k taken from noise[k]."""
    calls = []

    def denoise(z: Any, log_snr: Any) -> Any:
        calls.append(log_snr)
        return answer(len(calls) - 1, z, log_snr)

    return loop(denoise, z, lambda: noise[len(calls) - 1])


def replay(plan: dc.Plan, z: Any, noise: Any, answer: Any = lambda _, z, log_snr: denoiser(z, log_snr)) -> Any:
    """What a plan does, by its definition."""
    arrays = [z, *(np.zeros_like(z) for _ in range(plan.memory))]
    for k, rows in enumerate(plan.update):
        inputs = [*arrays, noise[k], answer(k, arrays[0], plan.log_snr[k])]
        arrays = [sum(c * a for c, a in zip(row, inputs, strict=True)) for row in rows]
    return arrays[0]


def assert_same_responses(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Every state owes the same to z, to every estimate and to every draw, relative to the largest of what it owes."""
    found, expected = responses(found), responses(expected)
    assert found.shape == expected.shape
    assert np.all(np.abs(found - expected) <= tolerance * np.abs(expected).max(axis=-1, keepdims=True))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_loop_becomes_a_plan_that_does_the_same_with_the_least_memory(name: str, grid: str) -> None:
    method, memory = METHODS[name]
    g = GRIDS[grid]
    plan = dc.samplers.trace(method(g), g.scaling, end=g.log_snr[-1])
    assert plan.memory == memory
    assert plan.log_snr[0] == pytest.approx(g.log_snr[0], abs=TOLERANCE)
    assert np.array_equal(plan.next_log_snr, [*plan.log_snr[1:], g.log_snr[-1]])
    random = np.random.default_rng(7)
    z, noise = random.normal(size=(3, 5)) * plan.start.sigma, random.normal(size=(len(plan), 3, 5))
    expected = run(method(g), z, noise)
    bound = TOLERANCE * max(np.abs(expected).max(), np.abs(z).max())
    assert np.abs(replay(plan, z, noise) - expected).max() <= bound
    sampled = dc.sample(denoiser, plan, z, prediction="x", noise=lambda draw, shape: noise[draw - 1])
    assert np.abs(sampled - expected).max() <= bound


@given(
    name=st.sampled_from(sorted(METHODS)),
    scaling=st.sampled_from(["vp", "ve", "flow"]),
    start=st.floats(-20.0, 0.0),
    widths=st.lists(st.floats(0.05, 8.0), min_size=1, max_size=12),
    clean=st.booleans(),
    seed=st.integers(0, 99),
)
def test_on_any_grid_a_plan_does_what_its_loop_does(
    name: str, scaling: str, start: float, widths: list[float], clean: bool, seed: int
) -> None:
    points = start + np.cumsum([0.0, *widths])
    assume(points[-1] <= 20.0)
    g = Grid([*points, *CLEAN] if clean else points, scaling)
    method, memory = METHODS[name]
    plan = dc.samplers.trace(method(g), scaling, end=g.log_snr[-1])
    assert plan.memory <= memory
    random = np.random.default_rng(seed)
    given = random.normal(size=(3, len(plan), 4))
    z = random.normal(size=4) * plan.start.sigma

    def answer(k: int, z: Any, log_snr: Any) -> Any:
        return given[0, k]

    size = np.abs(responses(plan.update)).max() * max(np.abs(given).max(), np.abs(z).max())
    assert np.abs(replay(plan, z, given[1], answer) - run(method(g), z, given[1], answer)).max() <= TOLERANCE * size


@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
@pytest.mark.parametrize(
    ("name", "at"), [(name, at) for name, row in dc.samplers.table().items() for at in range(len(row.variants))]
)
def test_the_plan_of_every_sampler_is_that_of_its_paper_and_has_the_least_memory(
    name: str, at: int, scaling: str
) -> None:
    schedule = {"vp": dc.schedules.Cosine(), "ve": dc.schedules.Karras(), "flow": dc.schedules.Flow()}[scaling]
    row, g = dc.samplers.table()[name], GRIDS[scaling]
    settings = dict(row.variants[at].settings)
    own = row.make(schedule, grid=g.log_snr, **settings)
    traced = dc.samplers.trace((OWN | NAMED)[name](g, **settings), scaling)
    assert traced.log_snr == pytest.approx(own.log_snr, abs=TOLERANCE)
    assert traced.next_log_snr == pytest.approx(own.next_log_snr, abs=TOLERANCE)
    assert_same_responses(traced.update, own.update)
    assert traced.memory == own.memory
    assert dc.samplers.least(own) is own


def test_past_estimates_are_copies_in_a_chain_where_they_do() -> None:
    g = GRIDS["vp"]
    for name, keeps_x, shifted in [
        ("heun", True, 0),
        ("2m", True, 0),
        ("3m sde", True, 1),
        ("unipc 2", True, 1),
        ("unipc 3", True, 2),
    ]:
        form = dc.samplers.trace(METHODS[name][0](g)).form
        assert (form.keeps_x, form.shifted) == (keeps_x, shifted), name


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("grid", ["vp", "ve", "the whole range"])
def test_past_slopes_are_a_chain_behind_eps_hat(grid: str, order: int) -> None:
    g = GRIDS[grid]
    plan = dc.samplers.trace(METHODS[f"adams-bashforth {order}"][0](g), g.scaling)
    level = plan.levels
    assert plan.form.shifted == order - 2
    assert np.allclose(plan.update[:, 1, 0], 1.0 / level.sigma, rtol=TOLERANCE)
    assert np.allclose(plan.update[:, 1, -1], -level.alpha / level.sigma, rtol=TOLERANCE)
    assert not np.any(plan.update[:, 1, 1:-1])


def test_a_flow_keeps_its_velocities() -> None:
    times = np.linspace(0.95, 0.0, 12)

    def loop(denoise: Any, z: Any, draw: Any) -> Any:
        past: list[Any] = []
        for t, s in pairwise(times):
            past = [(z - denoise(z, 2.0 * math.log((1.0 - t) / t))) / t, *past][:3]
            weights = [[1.0], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12]][len(past) - 1]
            z = z + (s - t) * sum(w * v for w, v in zip(weights, past, strict=True))
        return z

    plan = dc.samplers.trace(loop, "flow")
    assert (plan.memory, plan.form.shifted) == (2, 1)
    assert np.allclose(plan.update[:, 1, 0], 1.0 / times[:-1])
    assert np.allclose(plan.update[:, 1, -1], -1.0 / times[:-1])


def planted(seed: int, stages: int, memory: int, inputs: int, lead: tuple[int, ...] = ()) -> Any:
    """A random table (stages, *lead, 1 + memory, 1 + memory + inputs) whose arrays neither grow nor fade."""
    random = np.random.default_rng(seed)
    turns = np.linalg.qr(random.normal(size=(stages, *lead, 1 + memory, 1 + memory)))[0]
    return np.concatenate([turns, random.uniform(0.5, 1.5, size=(*turns.shape[:-1], inputs))], axis=-1)


def inflated(table: Any, seed: int, more: int) -> Any:
    """The same responses with `more` arrays of no use, one never read and others always 0, all mixed and of any size."""
    random = np.random.default_rng(seed)
    size = table.shape[-2]
    wide = np.insert(np.insert(table, [size] * more, 0.0, axis=-1), [size] * more, 0.0, axis=-2)
    wide[..., size, :] = 0.2 * random.normal(size=wide.shape[-1])
    wide[..., :size, size + 1 : size + more] = random.normal(size=(size, more - 1))
    size += more
    mixing = np.eye(size)
    mixing[1:, 1:] = np.linalg.qr(random.normal(size=(size - 1,) * 2))[0]
    scale = 10.0 ** random.uniform(-4.0, 4.0, size=(*table.shape[:-2], size))
    scale[..., 0] = 1.0
    before = np.concatenate([np.ones_like(scale[:1]), scale[:-1]])
    kept = mixing @ wide[..., :size] @ mixing.T / before[..., None, :]
    return np.concatenate([kept, mixing @ wide[..., size:]], axis=-1) * scale[..., None]


def least(table: Any) -> Any:
    """The table of the plan that does the same with the least memory."""
    stages, *lead = table.shape[:-2]
    log_snr = np.linspace(np.full(lead, -5.0), np.full(lead, 5.0), stages + 1)
    second: Any = "unguided" if table.shape[-1] - table.shape[-2] == 3 else None
    return dc.samplers.least(dc.Plan("any", "vp", log_snr[:-1], log_snr[1:], table, second=second)).update


@given(
    seed=st.integers(0, 10**6),
    memory=st.integers(0, 4),
    more=st.integers(1, 3),
    stages=st.integers(7, 14),
    inputs=st.integers(2, 3),
    lead=st.sampled_from([(), (2,), (2, 3)]),
)
def test_the_rank_that_was_planted_is_found(
    seed: int, memory: int, more: int, stages: int, inputs: int, lead: tuple[int, ...]
) -> None:
    table = planted(seed, stages, memory, inputs, lead)
    wide = inflated(table, seed + 1, more)
    assert wide.shape[-2] == 1 + memory + more
    found = least(wide)
    assert found.shape == table.shape
    assert_same_responses(found, wide, 1e-11)


@given(seed=st.integers(0, 10**6), memory=st.integers(0, 4), stages=st.integers(7, 14))
def test_noise_that_no_state_contains_is_drawn_by_no_stage(seed: int, memory: int, stages: int) -> None:
    table = planted(seed, stages, memory, 2)
    table[..., -2] = 0.0
    assert not np.any(least(inflated(table, seed + 1, 2))[..., -2])


def test_systems_that_are_traced_together_share_the_memory_of_the_neediest() -> None:
    few, many = planted(0, 8, 1, 2), planted(1, 8, 3, 2)
    both = np.stack([inflated(few, 2, 3), inflated(many, 3, 1)], axis=1)
    found = least(both)
    assert found.shape == (8, 2, 4, 6)
    assert np.count_nonzero(np.any(found[3, 0, 1:] != 0.0, axis=-1)) == 1  # arrays that only the other needs stay 0
    assert_same_responses(found, both, 1e-11)


@pytest.mark.parametrize(("weight", "memory"), [(1e-5, 1), (1e-9, 1), (1e-11, 1), (1e-16, 0), (0.0, 0)])
def test_memory_that_hardly_matters_is_kept_until_it_is_lost_in_rounding(weight: float, memory: int) -> None:
    table = np.zeros((6, 2, 4))
    table[:, 0] = [0.5, weight, 0.0, 1.0]
    table[:, 1, 3] = 1.0
    found = least(table)
    assert found.shape[-2] - 1 == memory
    assert_same_responses(found, table, 1e-15)


def test_a_second_estimate_that_is_never_read_goes_too() -> None:
    schedule = dc.schedules.Cosine()
    plan = dc.samplers.ddim(schedule, grid=[-9.0, 0.0, 2.0]) + dc.samplers.heun(schedule, grid=[2.0, 4.0, np.inf])
    wide = dataclasses.replace(plan, update=np.insert(plan.update, plan.update.shape[-1], 0.0, axis=-1), second="raw")
    found = dc.samplers.least(wide)
    assert found == plan
    cfg_pp = dc.samplers.euler_cfg_pp(schedule, 4)
    assert dc.samplers.least(cfg_pp) is cfg_pp
    with pytest.raises(TypeError, match=r"samplers\.least: `plan` must be a diffcore\.Plan"):
        dc.samplers.least(plan.update)
