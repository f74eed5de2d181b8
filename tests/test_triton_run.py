"""A run with the Triton kernel is the plain run: on the GPU where there is one, else interpreted."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from stage_cases import FEW
from triton_cases import CLIP, DEVICE, INTERPRETED, case, kernel, plan_of

import diffcore as dc
from diffcore.backends import ArrayAPIBackend, Run, torch_backend
from diffcore.backends.torch_backend import backend
from diffcore.plan import Form
from diffcore.testing.conformance import plans

LARGEST = Form(4, 0, False, "unguided")

RUNS = {
    **{name: plans()[name] for name in FEW},
    "memory": plan_of(Form(4)),
    "shifted": plan_of(Form(4, 2)),
    "raw": plan_of(Form(2, 0, True, "raw")),
}


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return a list that grows by what the kernel was called with, for every stage."""
    calls: list[dict[str, Any]] = []
    called = kernel().Stages.__call__

    def taken(*given: Any) -> Any:
        calls.append(inspect.signature(called).bind(*given).arguments)
        return called(*given)

    monkeypatch.setattr(kernel().Stages, "__call__", taken)
    return calls


def run_of(plan: dc.Plan, denoise: Any, **settings: Any) -> Run:
    return Run(denoise, plan, plan.coefficients("v"), **settings)


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
@pytest.mark.parametrize("form", ["two", "one"])
@pytest.mark.parametrize(
    "plan",
    [plans()["ancestral"], plans()["dpm_solver_pp"], plan_of(LARGEST)],
    ids=["ancestral", "dpm_solver_pp", "largest"],
)
def test_guidance_in_a_run_is_combined_by_the_kernel(plan: dc.Plan, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = dc.start(plan, shape=(2, 41), like=torch.zeros(1, device=DEVICE), seed=1)
    calls = calls_of(monkeypatch)
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
@pytest.mark.parametrize("how", ["interval", "function", "off", "double", "rescaled double"])
def test_guidance_that_is_more_than_a_weight_is_not_taken_apart(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plans()["ancestral"]
    state = dc.start(plan, shape=(2, 41), like=torch.zeros(1, device=DEVICE), seed=1)
    calls = calls_of(monkeypatch)
    settings: dict[str, Any] = {"weight": 0.0 if how == "off" else 1.5}
    if how == "function":
        settings["weight"] = lambda log_snr: 0.0 * log_snr + 1.5
    elif how == "interval":
        settings[how] = (-4.0, 4.0)
    elif how == "rescaled double":
        settings["rescale"] = 0.7
    wide = torch.Tensor.double if "double" in how else torch.Tensor.float
    guided = dc.guidance.classifier_free(lambda z, at: -0.5 * z, lambda z, at: wide(0.25 * z.sin()), **settings)
    end = backend._run_kernel(run_of(plan, guided), state, kernel())
    torch.testing.assert_close(
        end.z, dc.sample(guided, plan, state, prediction="v", compile=False), rtol=1e-4, atol=1e-4
    )
    inside = sum(-4.0 <= at <= 4.0 for at in plan.log_snr)
    assert 0 < inside < len(plan)
    assert len([call for call in calls if call["weight"] is not None]) == (inside if how == "interval" else 0)


@case
@pytest.mark.parametrize(
    ("name", "size", "dtype", "settings"),
    [
        ("ddim", 5001, torch.float32, {}),
        ("ancestral", 48, torch.bfloat16, {}),
        ("largest", 41, torch.float64, {}),  # which reads the unguided prediction too, which is not rescaled
        ("raw", 41, torch.float32, {"transform_x": dc.guidance.dynamic_threshold(0.8, bound=0.5)}),
    ],
)
def test_rescaled_guidance_is_the_kernels_too(
    name: str, size: int, dtype: torch.dtype, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample of usual numbers, one whose mean is large beside its deviation, one of very large numbers, one without deviation."""
    plan = plan_of(LARGEST) if name == "largest" else RUNS[name]
    state = dc.start(plan, shape=(4, size), like=torch.zeros(1, device=DEVICE, dtype=dtype), seed=1)
    numbers = torch.arange(size, device=DEVICE)
    mean = 100.0 if dtype == torch.bfloat16 else 1000.0

    def predicted(z: Any, own: bool) -> Any:
        y = 0.25 * z.sin() if own else 0.1 * z
        y[1:] = (1.3 * numbers).cos() if own else (1.7 * numbers).sin()
        y[1:] *= torch.tensor([[1.0], [1e25], [0.0]], device=DEVICE)
        y[1] += mean
        y[3] += 0.1
        return y

    calls, phi = calls_of(monkeypatch), 0.7
    pair = (lambda z, at: predicted(z, True)), (lambda z, at: predicted(z, False))
    run = run_of(plan, dc.guidance.classifier_free(*pair, weight=1.7, rescale=phi), **settings)
    with monkeypatch.context() as patch:
        patch.setattr(ArrayAPIBackend, "advance", lambda *given, **how: pytest.fail("the plain way"))
        end = backend._run_kernel(run, state, kernel())
    want = ArrayAPIBackend.run(backend, run, state)
    wide = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 3e-2}[dtype]
    for got, plain in zip(end.z, want.z, strict=True):
        torch.testing.assert_close(got, plain, rtol=0.0, atol=wide * float(plain.abs().max()))
    c, u = (part(state.z, None).double().cpu().numpy() for part in pair)
    ratio = c[:3].std(1) / (c + 1.7 * (c - u))[:3].std(1)  # Lin et al. 2023, eq. 15-16
    factor = np.append(phi * ratio + 1.0 - phi, 1.0)
    exact = 1e-12 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(calls[0]["factor"].cpu().numpy(), factor, rtol=exact)
    assert len(calls) == len(plan)


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
    works, seen = kernel().Stages.__call__, list[int]()

    def fails(*args: Any, **settings: Any) -> Any:
        if len(seen) == at:
            exec(statement, {"__name__": module})
        return works(*args, **settings)

    monkeypatch.setattr(kernel().Stages, "__call__", fails)
    monkeypatch.setattr(torch_backend, "_fused", lambda *_: torch_backend._stage)
    run = run_of(plan, lambda z, at: -0.5 * z, callback=lambda reached: seen.append(int(reached.index)))
    with pytest.warns(RuntimeWarning, match=f"the Triton kernel does not work here .*{said}"):
        end = backend._run_kernel(run, state, kernel())
    assert seen == list(range(1, len(plan) + 1))
    want = dc.sample(run.denoise, plan, state, prediction="v", compile=False)
    torch.testing.assert_close(end.z, want, rtol=1e-4, atol=1e-4)


@case
@pytest.mark.parametrize("wide", [torch.Tensor.float, torch.Tensor.double], ids=["float32", "float64"])
def test_a_draw_that_the_device_holds_is_read_there(wide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a captured run, where it is another number at every replay; a prediction in float64 takes the plain way."""
    plan = plans()["ancestral"]
    state = dc.start(plan, shape=(2, 40), like=torch.zeros(1, device=DEVICE), seed=1)
    run = run_of(plan, dc.guidance.classifier_free(lambda z, at: -0.5 * z, lambda z, at: wide(z), weight=1.5))
    for draw in (3, 2**31 + 5):
        want = backend._run_kernel(run, state._replace(draw=torch.tensor(draw)), kernel())
        with monkeypatch.context() as patched:
            patched.setattr(torch_backend, "_on_device", lambda number: isinstance(number, torch.Tensor))
            held = torch.tensor(draw, device=DEVICE)
            got = backend._run_kernel(run, state._replace(draw=held), kernel())
        assert torch.equal(got.z, want.z)
        assert int(got.draw) == draw + len(plan)
        assert int(held) == draw


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="a graph needs a device")
def test_a_run_replays_as_one_graph() -> None:
    plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=32)
    state = dc.start(plan, shape=(2, 5000), like=torch.zeros(1, device="cuda"), seed=1)

    def run() -> Any:
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


def beside(how: str, z: Any) -> dict[str, Any]:
    """Return the settings of a run that reads more than the state and a prediction."""
    measured = torch.linspace(-0.5, 0.5, 10, device=z.device, dtype=z.dtype)
    mask = (torch.arange(40, device=z.device) % 3 == 0).reshape(1, *z.shape[1:])
    observed = torch.linspace(-1.0, 1.0, 40, device=z.device, dtype=z.dtype).reshape(1, *z.shape[1:])
    marginal = dc.conditioning.replacement(observed, mask)
    found: dict[str, dict[str, Any]] = {
        "source": {
            "noise": lambda draw, shape: torch.cos(torch.arange(80.0, device=z.device) * (1.0 + draw)).reshape(shape)
        },
        "marginal": {"constraint": marginal},
        "posterior": {"constraint": dc.conditioning.replacement(observed, mask, variant="posterior")},
        "soft": {"constraint": dc.conditioning.replacement(observed, mask * 0.5)},
        "source and constraint": {"constraint": marginal, "noise": lambda draw, shape, like: torch.cos(like + draw)},
        "projection": {"transform_x": dc.conditioning.projection(measured, measure=Pairs())},
        "dynamic": {"transform_x": dc.guidance.dynamic_threshold(0.8, bound=0.5)},
        "all of it": {"constraint": marginal, "transform_x": dc.guidance.dynamic_threshold(0.9, bound=0.5)},
        "float64": {"transform_x": CLIP, "constraint": marginal},
    }
    return found[how]


class Pairs:
    """Means of four neighbours, with the pseudo-inverse."""

    def __call__(self, x: Any) -> Any:
        return x.reshape(2, 10, 4).mean(-1)

    def spread(self, y: Any) -> Any:
        return y[..., None].expand(2, 10, 4).reshape(2, 40)


@case
@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("source", "raw"),
        ("marginal", "dpm_solver_pp"),
        ("marginal", "frames"),
        ("posterior", "ancestral"),
        ("soft", "largest"),
        ("source and constraint", "ancestral"),
        ("projection", "raw"),
        ("projection", "largest"),
        ("dynamic", "raw"),
        ("all of it", "dpm_solver_pp"),
        ("float64", "largest"),
    ],
)
def test_what_a_run_reads_beside_the_state_is_taken_by_the_kernel(
    how: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(LARGEST) if name == "largest" else RUNS.get(name)
    if plan is None:  # levels of each frame
        schedule = dc.schedules.Cosine(log_snr_min=-8.0, log_snr_max=8.0)
        start = np.linspace(1.0, 0.5, 8).reshape(2, 4)
        plan = dc.samplers.ancestral(schedule, grid=dc.grids.uniform(schedule, 3, start=start), gamma=0.1)
    wide = torch.float64 if how == "float64" else torch.float32
    shape = (2, 4, 10) if name == "frames" else (2, 40)
    state = dc.start(plan, shape=shape, like=torch.zeros(1, device=DEVICE, dtype=wide), seed=1)
    settings = beside(how, state.z)
    guided = dc.guidance.classifier_free(lambda z, at: -0.5 * z, lambda z, at: 0.25 * z.sin(), weight=1.7)
    seen: tuple[list[dc.State], list[dc.State]] = ([], [])
    with monkeypatch.context() as patch:
        patch.setattr(ArrayAPIBackend, "advance", lambda *given, **how: pytest.fail("the plain way"))
        patch.setattr(backend, "run", lambda run, state: backend._run_kernel(run, state, kernel()))
        dc.sample(guided, plan, state, prediction="v", callback=seen[0].append, **settings)
    dc.sample(guided, plan, state, prediction="v", callback=seen[1].append, compile=False, **settings)
    assert len(seen[0]) == len(plan)
    tolerance = 1e-9 if how == "float64" else 2e-5
    for got, want in zip(*seen, strict=True):
        for a, b in [(got.z, want.z), (got.x, want.x), *zip(got.memory, want.memory, strict=True)]:
            assert a.dtype == wide
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_a_denoiser_may_leave_out_by_how_much_guidance_is_rescaled() -> None:
    class Guided:
        def __init__(self, *rest: float) -> None:
            self.rest = rest

        def apart(self, z: Any, log_snr: Any) -> Any:
            return (z, -z, *self.rest)

    z = torch.ones(2, 3)
    for given, want in (((1.5,), (1.5, 0.0)), ((1.5, 0.7), (1.5, 0.7))):
        assert torch_backend._apart(plans()["ancestral"].form, Guided(*given), z, (torch.zeros(2),))[2:] == want
