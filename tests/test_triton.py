"""The Triton kernel is the plain function: on the GPU where there is one, else interpreted, in a process of its own.

Triton decides when it is first imported whether it interprets, so that the cases below run in a second pytest.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import diffcore as dc
from diffcore import _philox, noise, stage
from diffcore.backends import ArrayAPIBackend, Run, torch_backend
from diffcore.backends.torch_backend import backend
from diffcore.plan import Form
from diffcore.testing.conformance import plans

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: diffcore[triton]", allow_module_level=True)
case = pytest.mark.skipif(False, reason="") if INTERPRETED else pytest.mark.gpu
CLIP = dc.guidance.clip(-0.8, 0.8)
ULPS = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
"""What one rounding to the dtype, and a few in float32, may differ by, relative to 1 + the largest number."""


@pytest.mark.skipif(INTERPRETED, reason="this is the second pytest")
def test_the_cases_interpreted() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


def kernel() -> Any:
    from diffcore.backends import torch_triton

    return torch_triton


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
    seconds = st.sampled_from([None, "unguided", "raw"])
    return st.tuples(shifted, st.booleans(), seconds).map(
        lambda made: Form(*made[0], made[1] and made[0][0] > 0, made[2])
    )


def table_of(form: Form, lead: tuple[int, ...], seed: int, scale: float = 1.0) -> Any:
    """Return random rows (*lead, 1 + M, columns) of a form, some of them 0."""
    random = np.random.default_rng(seed)
    shape = (*lead, 1 + form.memory, form.columns)
    rows = scale * random.normal(size=shape) * (random.random(shape) < 0.8)
    for row in range(1, 1 + form.memory):
        if row > form.computed:
            rows[..., row, :] = np.arange(form.columns) == row - 1
        elif row == form.computed and form.keeps_x:
            rows[..., row, :] = np.arange(form.columns) == form.x
    return rows


def plan_of(form: Form, stages: int = 3, seed: int = 0) -> dc.Plan:
    """Return a plan of a form with random numbers, which is no sampler."""
    update = np.stack([table_of(form, (), seed + k, 0.5) for k in range(stages)])
    made = dc.Plan("random", "vp", np.zeros(stages), np.zeros(stages), update, second=form.second)
    assert made.form == form
    return made


LARGEST = Form(4, 0, False, "unguided")


@case
@pytest.mark.parametrize("dtype", list(ULPS), ids=str)
@pytest.mark.parametrize("name", list(plans()))
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
    state = dc.State(z, tuple(memory), None, 0, draw, backend.seeds(noise.seed_words([seed, 2**64 - 1], 2), z))
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
@pytest.mark.parametrize("size", [1, 16, 255, 256, 257, 1008, 1024, 1025, 1040, 2500])
def test_the_noise_is_that_of_numpy(size: int) -> None:
    plan = dc.Plan(
        sampler="noise",
        scaling="vp",
        log_snr=np.zeros(2),
        next_log_snr=np.zeros(2),
        update=np.broadcast_to([0.0, 1.0, 0.0], (2, 1, 3)),
    )
    for (_, got, _), draw in zip(stages(plan, torch.float32, (2, size), [3, 2**63 + 5]), (1, 2), strict=True):
        want = noise.normal([3, 2**63 + 5], draw, (2, size))
        np.testing.assert_allclose(got.z.cpu().numpy(), want, rtol=2e-6, atol=1e-6)


@case
def test_the_words_are_those_of_numpy() -> None:
    import kernels_for_tests

    want = noise.bits([2**64 - 3], 2**32 - 2, (1, 1024), stream=0)
    got = kernels_for_tests.words(2**64 - 3, 2**32 - 2, DEVICE)
    np.testing.assert_array_equal(got, want.reshape(-1))


@case
def test_normals_are_right_at_both_ends_and_at_every_quadrant() -> None:
    import kernels_for_tests

    turns = [(turn << 30) + offset for turn in range(4) for offset in (-(1 << 29), -1, 0, 1, (1 << 29) - 1)]
    ends = [base + offset for base in (0, 1 << 31, 1 << 32) for offset in (-(1 << 20), -300, -2, -1, 0, 1, 300)]
    words = np.array([(end, turn) for end in ends for turn in turns]) % 2**32
    words = np.concatenate([words, np.random.default_rng(1).integers(0, 2**32, (2048 - len(words), 2))])
    for got, want in zip(
        kernels_for_tests.normals(words, DEVICE),
        _philox.pair(np, words[:, 0].astype(np.uint64), words[:, 1].astype(np.uint64), np.float64, np.int64),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=6e-7)  # a GPU's square root adds an ulp or two


@case
@pytest.mark.parametrize("lead", [(2,), (2, 3), (1,), (1, 3)])
def test_levels_per_sample_and_per_frame(lead: tuple[int, ...]) -> None:
    schedule = dc.schedules.Cosine(log_snr_min=-8.0, log_snr_max=8.0)
    start = np.linspace(1.0, 0.5, int(np.prod(lead))).reshape(lead)
    plan = dc.samplers.ancestral(schedule, grid=dc.grids.uniform(schedule, 3, start=start), gamma=0.1)
    for frame in (500, 496):  # element by element, and in vectors
        for _, got, want in stages(plan, torch.float32, (2, 3, frame)):
            agree(got, want)


RUNS = {
    **plans(),
    "memory": plan_of(Form(4)),
    "shifted": plan_of(Form(4, 2)),
    "raw": plan_of(Form(2, 0, True, "raw")),
}


@case
@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_the_kernel_is_the_plain_run(name: str, watched: bool) -> None:
    plan = RUNS[name]
    first = dc.start(plan, shape=(2, 40), like=torch.zeros(1, device=DEVICE), seed=1)
    later = dc.start(plan, first._replace(draw=torch.tensor(9)))  # another plan went before
    for state in (first, later):
        seen: tuple[list[dc.State], list[dc.State]] = ([], [])
        run = run_of(plan, lambda z, log_snr: -0.5 * z, transform_x=CLIP, callback=seen[0].append if watched else None)
        end = backend._run_kernel(run, state, kernel())
        want = dc.sample(
            run.denoise, plan, state, prediction="v", transform_x=CLIP, compile=False, callback=seen[1].append
        )
        torch.testing.assert_close(end.z, want, rtol=1e-4, atol=1e-4)
        assert (int(end.index), int(end.draw)) == (len(plan), int(state.draw) + len(plan))
        assert (end.x is not None) == (watched or plan.form.keeps_x)
        for got, plain in zip(seen[0], seen[1] if watched else [], strict=True):
            assert (int(got.index), int(got.draw)) == (int(plain.index), int(plain.draw))
            for a, b in [(got.z, plain.z), (got.x, plain.x), *zip(got.memory, plain.memory, strict=True)]:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@case
def test_what_is_served() -> None:
    plan = plans()["unipc"]
    state = dc.start(plan, shape=(2, 40), like=torch.zeros(1, device=DEVICE), seed=1)
    assert kernel().serves(plan.form, state, CLIP)
    assert not kernel().serves(plan.form, state, lambda x: x)
    assert not kernel().serves(plan.form, state._replace(z=state.z.double()), None)
    assert not kernel().serves(plan.form, state._replace(memory=state.memory[1:]), None)
    assert not kernel().serves(Form(5), state._replace(memory=(state.z,) * 5), None)


def calls_of(name: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows by what the kernel was called with, a dict for every stage."""
    calls: list[Any] = []
    called = getattr(kernel(), name)

    def taken(*args: Any, **settings: Any) -> Any:
        calls.append(settings)
        return called(*args, **settings)

    monkeypatch.setattr(kernel(), name, taken)
    return calls


def run_of(plan: dc.Plan, denoise: Any, **settings: Any) -> Run:
    return Run(denoise, plan, plan.coefficients("v"), **settings)


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
@pytest.mark.parametrize("form", ["two", "one"])
@pytest.mark.parametrize(
    "plan",
    [plans()["ancestral"], plans()["dpm_solver_pp"], plan_of(LARGEST)],
    ids=["ancestral", "dpm_solver_pp", "largest"],
)
def test_guidance_in_a_run_is_combined_by_the_kernel(plan: dc.Plan, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = dc.start(plan, shape=(2, 41), like=torch.zeros(1, device=DEVICE), seed=1)
    calls = calls_of("stage", monkeypatch)
    if form == "two":
        guided = dc.guidance.classifier_free(lambda z, at: -0.5 * z, lambda z, at: 0.25 * z.sin(), weight=1.5)
    else:
        ones = torch.ones(1, 1, device=DEVICE)
        guided = dc.guidance.classifier_free(lambda z, at, c: c * z.sin(), cond=-0.5 * ones, null=ones, weight=1.5)
    end = backend._run_kernel(run_of(plan, guided, transform_x=CLIP), state, kernel())
    want = dc.sample(guided, plan, state, prediction="v", transform_x=CLIP, compile=False)
    torch.testing.assert_close(end.z, want, rtol=1e-4, atol=1e-4)
    assert [call["weight"] for call in calls] == [1.5] * len(plan)


@case
@pytest.mark.parametrize("how", ["rescale", "interval", "function", "off", "double"])
def test_guidance_that_is_more_than_a_weight_is_not_taken_apart(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plans()["ancestral"]
    state = dc.start(plan, shape=(2, 41), like=torch.zeros(1, device=DEVICE), seed=1)
    calls = calls_of("stage", monkeypatch)
    settings: dict[str, Any] = {"weight": 0.0 if how == "off" else 1.5}
    if how == "function":
        settings["weight"] = lambda log_snr: 0.0 * log_snr + 1.5
    elif how in ("rescale", "interval"):
        settings[how] = 0.7 if how == "rescale" else (-4.0, 4.0)
    wide = torch.Tensor.double if how == "double" else torch.Tensor.float
    guided = dc.guidance.classifier_free(lambda z, at: -0.5 * z, lambda z, at: wide(0.25 * z.sin()), **settings)
    end = backend._run_kernel(run_of(plan, guided), state, kernel())
    torch.testing.assert_close(
        end.z, dc.sample(guided, plan, state, prediction="v", compile=False), rtol=1e-4, atol=1e-4
    )
    inside = sum(-4.0 <= at <= 4.0 for at in plan.log_snr)
    assert 0 < inside < len(plan)
    assert len([call for call in calls if call["weight"] is not None]) == (inside if how == "interval" else 0)


@case
def test_an_unguided_prediction_may_come_without_a_weight() -> None:
    class Sharpened:
        def with_unguided(self, z: Any, log_snr: Any) -> Any:
            return -0.5 * z, 0.25 * z.sin()

    plan = plan_of(LARGEST)
    state = dc.start(plan, shape=(2, 41), like=torch.zeros(1, device=DEVICE), seed=1)
    run = run_of(plan, Sharpened(), transform_x=CLIP)
    want = ArrayAPIBackend.run(backend, run, state).z
    torch.testing.assert_close(backend._run_kernel(run, state, kernel()).z, want, rtol=1e-4, atol=1e-4)


@case
def test_states_that_lie_otherwise_are_not_served() -> None:
    plan = plans()["ancestral"]
    state = dc.start(plan, shape=(4, 6), like=torch.zeros(1, device=DEVICE), seed=1)
    keys, serves = state.keys, kernel().serves
    assert keys is not None
    assert serves(plan.form, state, None)
    for other in (
        state._replace(z=state.z[::2], keys=keys[::2]),
        state._replace(z=state.z[:2], keys=keys[::2]),
        state._replace(keys=keys.cpu().numpy()),
        state._replace(z=state.z.t()),
        state._replace(z=state.z[:0]),
    ):
        assert not serves(plan.form, other, None)
    torch.func.vmap(lambda z: [pytest.fail("served")] if serves(plan.form, state._replace(z=z), None) else z)(state.z)


NO_COMPILER = 'raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")'
NO_DRIVER = 'assert False, "libcuda.so cannot found!"'
"""What Triton says where it finds no C compiler, and no libcuda; the second is known only by where it comes from."""


@case
@pytest.mark.parametrize(
    ("at", "module", "statement", "said"),
    [
        (0, "triton.runtime.build", NO_COMPILER, "C compiler"),
        (2, "triton.backends.nvidia.driver", NO_DRIVER, "libcuda"),
    ],
)
def test_a_kernel_that_is_not_compiled_hands_over_to_the_graph(
    at: int, module: str, statement: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plans()["ancestral"]
    state = dc.start(plan, shape=(2, 40), like=torch.zeros(1, device=DEVICE), seed=1)
    works, seen = kernel().stage, list[int]()

    def fails(*args: Any, **settings: Any) -> Any:
        if len(seen) == at:
            exec(statement, {"__name__": module})
        return works(*args, **settings)

    monkeypatch.setattr(kernel(), "stage", fails)
    monkeypatch.setattr(torch_backend, "_fused", lambda *_: torch_backend._stage)
    run = run_of(plan, lambda z, at: -0.5 * z, callback=lambda reached: seen.append(int(reached.index)))
    with pytest.warns(RuntimeWarning, match=f"the Triton kernel does not work here .*{said}"):
        end = backend._run_kernel(run, state, kernel())
    assert seen == list(range(1, len(plan) + 1))
    want = dc.sample(run.denoise, plan, state, prediction="v", compile=False)
    torch.testing.assert_close(end.z, want, rtol=1e-4, atol=1e-4)


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
    first = kernel().constant(table, device)
    monkeypatch.setattr(kernel(), "_captures", lambda device: True)
    assert kernel().constant(table, device) is first
    monkeypatch.setattr(kernel(), "_captures", lambda device: False)
    for number in range(100):
        kernel().constant(table + number, device)
    monkeypatch.setattr(kernel(), "_captures", lambda device: True)
    assert kernel().constant(table, device) is first


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="a graph needs a device")
def test_a_run_replays_as_one_graph() -> None:
    plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=32)
    state = dc.start(plan, shape=(2, 5000), like=torch.zeros(1, device="cuda"), seed=1)

    def run() -> torch.Tensor:
        return dc.sample(lambda z, log_snr: -0.5 * z, plan, state, prediction="v", transform_x=CLIP)

    want = run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    got.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, want)
    other = dc.start(plan, shape=(2, 5000), like=torch.zeros(1, device="cuda"), seed=9)
    assert state.keys is not None
    assert other.keys is not None
    state.z.copy_(other.z)
    state.keys.copy_(other.keys)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, run())
