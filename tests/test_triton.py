"""The Triton kernel is the plain function: on the GPU where there is one, else interpreted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stage_cases import FEW
from triton_cases import CLIP, DEVICE, case, kernel, table_of

import diffcore as dc
from diffcore import noise, stage
from diffcore.backends import torch_graph
from diffcore.backends.torch_backend import backend
from diffcore.plan import Form
from diffcore.testing.conformance import plans

ULPS = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
"""What one rounding to the dtype, and a few in float32, may differ by, relative to 1 + the largest number."""


def stages(
    plan: dc.Plan, dtype: torch.dtype, shape: tuple[int, ...], seed: Any = 7, **settings: Any
) -> list[tuple[dc.State, dc.State, dc.State]]:
    """Return (before, by the kernel, by the plain function) for every stage of a plan."""
    state = dc.start(plan, shape=shape, like=torch.zeros(1, dtype=dtype, device=DEVICE), seed=seed)
    table = torch.tensor(plan.coefficients("v"), dtype=torch.float32, device=DEVICE)
    found = []
    for k in range(len(plan)):
        y = (-0.5 * state.z.float()).to(dtype)
        got = kernel().stage(plan.form, state, y, table[k], k + 1, stochastic=plan.stochastic, **settings)
        drawn = stage.drawn(backend, state, None) if plan.stochastic else None
        want = stage.advance(plan.form, state, y, table[k], drawn, settings.get("transform_x"))
        found.append((state, got, want))
        state = want
    return found


def agree(got: dc.State, want: dc.State) -> None:
    assert len(got.memory) == len(want.memory)
    for a, b in [(got.z, want.z), (got.x, want.x), *zip(got.memory, want.memory, strict=True)]:
        assert a.dtype == b.dtype
        allowed = ULPS[a.dtype] * (1.0 + float(b.float().abs().max()))
        torch.testing.assert_close(a.float(), b.float(), rtol=0.0, atol=allowed)


def forms() -> st.SearchStrategy[Form]:
    """Every form that the kernel takes."""
    shifted = st.integers(0, 4).flatmap(lambda memory: st.tuples(st.just(memory), st.integers(0, max(memory - 1, 0))))
    seconds: st.SearchStrategy[Any] = st.sampled_from([None, "unguided", "raw"])
    return st.tuples(shifted, st.booleans(), seconds).map(
        lambda made: Form(*made[0], made[1] and made[0][0] > 0, made[2])
    )


@case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FEW)
def test_a_stage_is_the_plain_function(name: str, dtype: torch.dtype) -> None:
    for transform_x, size in ((None, 411), (CLIP, 416)):  # element by element, and in vectors
        for _, got, want in stages(plans()[name], dtype, (2, 3, size), [5, 2**64 - 1], transform_x=transform_x):
            agree(got, want)


@case
@given(
    form=forms(),
    dtype=st.sampled_from(list(ULPS)),
    lead=st.sampled_from([(), (2,), (1,), (2, 3), (1, 3)]),
    size=st.sampled_from([16, 5, 352, 411]),
    draw=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**32 - 1),
    settings=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_a_stage_of_any_form_is_the_plain_function(
    form: Form, dtype: Any, lead: Any, size: int, draw: int, seed: int, settings: Any
) -> None:
    stochastic, clips, guided = settings
    torch.manual_seed(seed)
    z, y, other, *memory = (torch.randn(2, 3, size, device=DEVICE).to(dtype) for _ in range(3 + form.memory))
    state = dc.State(z, tuple(memory), None, 0, draw, backend.keys(noise.keys([seed, 2**64 - 1], 2), z))
    rows = table_of(form, lead, seed)
    mixing = np.random.default_rng(seed).normal(size=(*lead, 2))
    row = torch.tensor(np.concatenate([mixing, rows.reshape(*lead, -1)], axis=-1), dtype=torch.float32, device=DEVICE)
    given_other = other if guided or form.second == "unguided" else None
    got = kernel().stage(
        form,
        state,
        y,
        row,
        draw,
        stochastic=stochastic,
        transform_x=CLIP if clips else None,
        other=given_other,
        weight=1.5 if guided else None,
    )
    eps = stage.drawn(backend, state, None) if stochastic else None
    mixed = y.float() + 1.5 * (y.float() - other.float()) if guided else y
    want = stage.advance(form, state, mixed, row, eps, CLIP if clips else None, given_other)
    agree(got, want)
    assert [a is b for a in got.memory for b in state.memory].count(True) == form.shifted
    assert (got.x is got.memory[form.computed - 1]) if form.keeps_x else all(got.x is not a for a in got.memory)


@case
def test_x_hat_is_written_out_only_where_it_is_wanted_or_kept() -> None:
    for plan, kept in ((plans()["heun"], False), (plans()["dpm_solver_pp"], True)):
        for state, got, _ in stages(plan, torch.float32, (1, 16), wants_x=False)[:1]:
            assert (got.x is None) != kept
            assert all(array is not state.z for array in got.memory)


@case
@pytest.mark.parametrize("lead", [(2,), (2, 3), (1,), (1, 3)])
def test_levels_per_sample_and_per_frame(lead: tuple[int, ...]) -> None:
    schedule = dc.schedules.Cosine(log_snr_min=-8.0, log_snr_max=8.0)
    start = np.linspace(1.0, 0.5, int(np.prod(lead))).reshape(lead)
    plan = dc.samplers.ancestral(schedule, grid=dc.grids.uniform(schedule, 3, start=start), gamma=0.1)
    for frame in (500, 496):  # element by element, and in vectors
        for _, got, want in stages(plan, torch.float32, (2, 3, frame)):
            agree(got, want)


@case
def test_what_is_served() -> None:
    plan = plans()["unipc"]
    state = dc.start(plan, shape=(2, 40), like=torch.zeros(1, device=DEVICE), seed=1)
    assert kernel().serves(plan.form, state)
    assert not kernel().serves(plan.form, state._replace(z=state.z.double()))  # and its memory is float32
    assert not kernel().serves(plan.form, state._replace(memory=state.memory[1:]))
    assert not kernel().serves(Form(5), state._replace(memory=(state.z,) * 5))
    assert kernel().takes(state.z.half(), state.z)
    assert not kernel().takes(state.z.double(), state.z)


@case
def test_nan_stays_nan_through_the_clip() -> None:
    plan = plans()["dpm_solver_pp"]
    state = dc.start(plan, shape=(1, 8), like=torch.zeros(1, device=DEVICE), seed=1)
    state.z[0, 3] = float("nan")
    row = torch.tensor(plan.coefficients("v")[0], dtype=torch.float32, device=DEVICE)
    got = kernel().stage(plan.form, state, 0.0 * state.z, row, 1, stochastic=True, transform_x=CLIP)
    for array in (got.z, got.memory[0]):
        assert torch.isnan(array[0]).tolist() == [False] * 3 + [True] + [False] * 4


@case
def test_states_that_lie_otherwise_are_not_served() -> None:
    plan = plans()["ancestral"]
    state = dc.start(plan, shape=(4, 6), like=torch.zeros(1, device=DEVICE), seed=1)
    keys, serves = state.keys, kernel().serves
    assert keys is not None
    assert serves(plan.form, state)
    for other in (
        state._replace(z=state.z[::2], keys=keys[::2]),
        state._replace(z=state.z[:2], keys=keys[::2]),
        state._replace(keys=keys.cpu().numpy()),
        state._replace(z=state.z.t()),
        state._replace(z=state.z[:0]),
    ):
        assert not serves(plan.form, other)
    torch.func.vmap(lambda z: [pytest.fail("served")] if serves(plan.form, state._replace(z=z)) else z)(state.z)


@case
def test_the_kernel_is_launched_where_the_tensors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[torch.device] = []
    guard = torch.cuda.device_of

    def device_of(array: torch.Tensor) -> Any:
        where.append(array.device)
        return guard(array)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    stages(plans()["ddim"], torch.float32, (1, 4))
    assert {device.type for device in where} == {DEVICE}


@case
def test_what_a_graph_reads_is_kept_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    device, table = torch.device(DEVICE), np.full((2, 8), 0.125)
    constant = torch_graph.constant
    first = constant(table, device)
    monkeypatch.setattr(torch_graph, "_captures", lambda device: True)
    assert constant(table, device) is first
    monkeypatch.setattr(torch_graph, "_captures", lambda device: False)
    for number in range(100):
        constant(table + number, device)
    monkeypatch.setattr(torch_graph, "_captures", lambda device: True)
    assert constant(table, device) is first
