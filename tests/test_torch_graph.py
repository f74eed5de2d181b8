"""A run on CUDA that is captured once and replayed, with a tape in the place of CUDA's graph where there is no device.

The tape keeps every operation of a run with its tensors, and does them again on the same memory: so, as in a graph, what was a
number on the host while it was recorded stays that number, and a weight that lies elsewhere is not seen.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import array_api_compat.torch as xp
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import diffcore as dc
from diffcore import _philox, stage, unet3d
from diffcore.backends import ArrayAPIBackend, Run, torch_graph, torch_noise
from diffcore.backends.torch_backend import backend
from diffcore.testing.conformance import plans


class Tape(TorchDispatchMode):
    """In the place of `torch_graph.Graph`."""

    recorded = 0

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.waited = False

    def __torch_dispatch__(self, call: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if call is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("called a synchronizing CUDA operation")
        made = call(*given, **(named or {}))
        self.calls.append((call, given, named or {}, made))
        return made

    def record(self, function: Callable[[], Any]) -> Any:
        Tape.recorded += 1
        with self:
            return function()

    def begin(self) -> None:
        self.waited = True

    def replay(self) -> None:
        assert self.waited
        for call, given, named, made in self.calls:
            for to, new in zip(tree_leaves(made), tree_leaves(call(*given, **named)), strict=True):
                if isinstance(to, torch.Tensor) and to.data_ptr() != new.data_ptr():
                    to.copy_(new)

    def end(self) -> None:
        self.waited = False

    def wait(self) -> None:
        assert not self.waited


class Plain(ArrayAPIBackend):
    """Every stage as torch's operations, which a tape sees."""

    def normal(
        self, words: Any, draw: Any, shape: Any, *, dtype: Any, device: Any = None, stream: int = 0, region: Any = None
    ) -> Any:
        finish = partial(_philox.normals, xp, dtype=dtype, small=torch.int32)
        return torch_noise._made(words, draw, shape, device, stream, region, finish)


PLAIN = Plain(xp)
PLANS = {name: plans()[name] for name in ("ancestral", "dpm_solver_pp", "ddim")}


@pytest.fixture
def graphs() -> Iterator[torch_graph.Graphs]:
    Tape.recorded = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield torch_graph.Graphs(Tape, kept=2)


def sampled(graphs: Any, denoise: Any, plan: dc.Plan, state: dc.State, **settings: Any) -> dc.State:
    """Return a run by the graphs, after comparing it with the usual one bit for bit."""
    if "constraint" in settings:
        held = stage.hold("sample", settings.pop("constraint"), plan, state.z)
        settings["held"], state = held, state._replace(z=held.begin(state, lambda: torch.ones_like(state.z)))
    run = Run(denoise, plan, plan.coefficients("v"), compile=True, **settings)
    with torch.no_grad():
        want = PLAIN.run(replace(run, compile=None), state)
        got: dc.State = graphs.run(PLAIN.run, run, state)
    for a, b in zip((got.z, *got.memory), (want.z, *want.memory), strict=True):
        assert torch.equal(a, b)
    assert (int(got.index), int(got.draw)) == (int(want.index), int(want.draw))
    return got


def start(plan: dc.Plan, seed: Any = 1, shape: tuple[int, ...] = (2, 5), **settings: Any) -> dc.State:
    return dc.start(plan, shape=shape, like=torch.zeros(1, **settings), seed=seed)._replace(x=None)


def times(count: int, call: Callable[..., Any], *given: Any, **settings: Any) -> None:
    for _ in range(count):
        call(*given, **settings)


def half(z: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
    return -0.5 * z


@pytest.mark.parametrize("name", PLANS)
def test_a_captured_run_is_the_run_of_any_start_seed_and_draw(name: str, graphs: Any) -> None:
    plan = PLANS[name]
    for seed in (1, 1, [3, 2**64 - 1], 4):
        sampled(graphs, half, plan, start(plan, seed))
    later = start(plan)._replace(draw=torch.tensor(11))
    kept = sampled(graphs, half, plan, later).z
    held = kept.clone()
    sampled(graphs, half, plan, start(plan, 9)._replace(z=torch.ones(2, 5), draw=3))
    assert torch.equal(kept, held)  # what a replay returned is not written over
    assert Tape.recorded == 1
    assert len(graphs.entries) == 1


def test_another_shape_dtype_plan_stage_or_clip_is_another_run(graphs: Any) -> None:
    plan = PLANS["ddim"]
    graphs.kept = 8
    cases: list[tuple[dc.Plan, dc.State, dict[str, Any]]] = [
        (plan, start(plan), {}),
        (plan, start(plan, shape=(2, 6)), {}),
        (plan, start(plan, dtype=torch.float64), {}),
        (plan, start(plan)._replace(index=1), {}),
        (plan, start(plan), {"transform_x": dc.guidance.clip(-0.5, 0.5)}),
        (plan, start(plan), {"transform_x": dc.guidance.clip(-0.25, 0.5)}),
        (PLANS["ancestral"], start(PLANS["ancestral"]), {}),
    ]
    for _ in range(3):
        for plan, state, settings in cases:
            sampled(graphs, half, plan, state, **settings)
    assert Tape.recorded == len(cases)


def test_weights_are_read_as_they_are_now(graphs: Any) -> None:
    plan, net, scale = PLANS["ancestral"], torch.nn.Linear(5, 5), torch.tensor(0.5)
    wrapped = torch.nn.Sequential(net, torch.nn.Dropout(0.0))
    denoise = lambda z, log_snr: wrapped(z) * scale  # noqa: E731

    def calls(expected: int, times: int = 3) -> None:
        for seed in range(times):
            sampled(graphs, denoise, plan, start(plan, seed))
        assert Tape.recorded == expected

    calls(1)
    with torch.no_grad():
        net.weight.mul_(0.5)  # in place, as an optimiser does
        scale.fill_(0.25)
    calls(1)
    net.weight = torch.nn.Parameter(torch.ones(5, 5))  # it lies elsewhere
    calls(2)
    net.bias.data = torch.ones(5)
    calls(3)
    wrapped.eval()
    calls(4)
    assert len(graphs.entries) == 2  # training or not


WEIGHT = torch.nn.Parameter(torch.tensor(0.25))


class Scaled:
    """A denoiser that is no function: its settings count by value."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, z: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        return self.scale * z * WEIGHT


def test_what_a_denoiser_reaches_is_noticed(graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, scaled = PLANS["ddim"], Scaled(0.5)
    for scale, expected in ((0.5, 1), (0.75, 2)):
        scaled.scale = scale
        for seed in range(3):
            sampled(graphs, scaled, plan, start(plan, seed))
        assert Tape.recorded == expected
    monkeypatch.setitem(globals(), "WEIGHT", torch.nn.Parameter(torch.tensor(0.5)))
    for call in (scaled, scaled, partial(Scaled.__call__, scaled), partial(Scaled.__call__, scaled)):
        sampled(graphs, call, plan, start(plan))
    assert Tape.recorded == 4
    for factor in (0.5, 0.5, 0.75, 0.75, 0.75):  # a new function every time: the same code, the same numbers
        sampled(graphs, lambda z, log_snr, factor=factor: factor * z, plan, start(plan))
    assert Tape.recorded == 6


def test_another_precision_or_autocast_is_another_run(graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PLANS["ddim"]
    times(2, sampled, graphs, half, plan, start(plan))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        times(2, sampled, graphs, half, plan, start(plan))
    assert Tape.recorded == 2
    monkeypatch.setattr(torch.backends, "fp32_precision", "ieee")
    times(2, sampled, graphs, half, plan, start(plan))
    assert Tape.recorded == 3


@pytest.mark.parametrize("kind", ["one", "two", "constraint"])
def test_conditions_weights_and_observations_are_inputs(kind: str, graphs: Any) -> None:
    plan, net = PLANS["ddim"], torch.nn.Linear(5, 5)
    for value in (0.1, 0.2, 0.3):
        cond, settings = torch.full((2, 1), value), dict[str, Any]()
        if kind == "one":
            denoise: Any = dc.guidance.classifier_free(
                lambda z, at, c: net(z) + c, cond=cond, null=0.0 * cond, weight=torch.tensor(1.0 + value)
            )
        elif kind == "two":
            denoise = dc.guidance.classifier_free(lambda z, at: net(z), half, weight=1.5)
        else:
            denoise, observed = half, torch.full((2, 5), value)
            settings["constraint"] = dc.conditioning.replacement(observed, torch.arange(5) < 2)
            plan = PLANS["ancestral"]
        sampled(graphs, denoise, plan, start(plan), **settings)
    assert Tape.recorded == 1


def test_the_network_waits_for_nothing_so_that_it_is_captured(graphs: Any) -> None:
    """The shipped U-Net, guided; its tokens are inputs."""
    model = unet3d.build(unet3d.preset("tiny", condition="tokens", token_width=4), "torch")
    with torch.no_grad():
        for weight in model.parameters():  # those that start at zero hide the others
            weight.add_(0.05)
    config, plan = model.config, PLANS["ancestral"]
    shape = (1, config.frames, config.size, config.size, config.channels)
    for seed in range(3):
        cond = torch.full((1, 2, 4), float(seed)), torch.ones(1, 2, dtype=torch.bool)
        guided = dc.guidance.classifier_free(model, cond=cond, null=model.null(cond), weight=2.0)
        sampled(graphs, guided, plan, start(plan, seed, shape))
    assert Tape.recorded == 1


def test_what_cannot_be_captured_says_why_once_and_runs(graphs: Any) -> None:
    plan = PLANS["ancestral"]
    waits = lambda z, log_snr: z * float(z.abs().max() > 1e9)  # noqa: E731
    with pytest.warns(RuntimeWarning, match="not captured .*RuntimeError: called a synchronizing") as said:
        times(4, sampled, graphs, waits, plan, start(plan))
    assert len(said) == 1
    assert Tape.recorded == 1
    seen: list[Any] = []
    with pytest.warns(RuntimeWarning, match="a callback, or a progress bar") as said:
        times(3, sampled, graphs, half, plan, start(plan), callback=seen.append)
    assert len(said) == 1
    assert len(seen) == 6 * len(plan)
    noise = stage.Source(lambda draw, shape: torch.full(shape, float(draw)))
    with pytest.warns(RuntimeWarning, match="a `noise` of your own"):
        sampled(graphs, half, plan, start(plan), noise=noise)


def test_an_error_of_the_denoiser_is_raised_as_it_is(graphs: Any) -> None:
    def broken(z: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        raise KeyError("of the denoiser")

    run = Run(broken, PLANS["ddim"], PLANS["ddim"].coefficients("v"), compile=True)
    for _ in range(2):
        with torch.no_grad(), pytest.raises(KeyError, match="of the denoiser"):
            graphs.run(PLAIN.run, run, start(PLANS["ddim"]))


def test_a_run_is_forgotten_with_its_denoiser_and_where_there_are_too_many(graphs: Any) -> None:
    plan = PLANS["ddim"]

    def gone(net: torch.nn.Module) -> Any:
        times(2, sampled, graphs, lambda z, at: net(z), plan, start(plan))
        (entry,) = graphs.entries.values()
        return weakref.ref(entry.graph)

    tape = gone(torch.nn.Linear(5, 5))
    gc.collect()
    assert tape() is None
    assert not graphs.entries
    for size in (3, 4, 5):
        for _ in range(2):
            sampled(graphs, half, plan, start(plan, shape=(1, size)))
    assert len(graphs.entries) == 2
    assert Tape.recorded == 4
    tapes = [weakref.ref(entry.graph) for entry in graphs.entries.values()]
    graphs.clear()
    gc.collect()
    assert [tape() for tape in tapes] == [None, None]


def test_a_run_under_inference_mode_is_captured_too(graphs: Any) -> None:
    plan = PLANS["ancestral"]
    run = Run(half, plan, plan.coefficients("v"), compile=True)
    with torch.no_grad():
        want = PLAIN.run(run, start(plan)).z
    for inference in (True, True, False, True):
        with torch.inference_mode(inference), torch.no_grad():
            state = start(plan)
            assert torch.equal(graphs.run(PLAIN.run, run, state).z, want)
    assert Tape.recorded == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_on_a_device_a_captured_run_is_the_usual_one_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    plan, net = PLANS[name], torch.nn.Linear(40, 40, device="cuda", dtype=dtype)
    phi = 0.7 if name == "ancestral" else 0.0
    guided = dc.guidance.classifier_free(lambda z, at: net(z), lambda z, at: 0.5 * z, weight=1.5, rescale=phi)
    like = torch.zeros(1, device="cuda", dtype=dtype)

    def both(seed: int) -> None:
        state = dc.start(plan, shape=(2, 40), like=like, seed=seed)
        found = [dc.sample(guided, plan, state, prediction="v", compile=how) for how in (None, True)]
        assert torch.equal(*found)

    backend.graphs.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(4):
            both(seed)
        with torch.no_grad():
            net.weight.mul_(0.5)
        both(4)
        net.weight = torch.nn.Parameter(torch.zeros_like(net.weight))
        for seed in range(3):
            both(seed)
    (entry,) = backend.graphs.entries.values()
    assert entry.graph is not None


@pytest.mark.gpu
def test_on_a_device_what_waits_for_the_host_runs_the_usual_way() -> None:
    plan = PLANS["ancestral"]
    state = dc.start(plan, shape=(2, 40), like=torch.zeros(1, device="cuda"), seed=1)
    waits = lambda z, at: z * float(z.abs().max() > 1e9)  # noqa: E731
    want, found = dc.sample(waits, plan, state, prediction="v"), list[torch.Tensor]()
    backend.graphs.clear()
    with pytest.warns(RuntimeWarning, match="is not captured as a CUDA graph") as said:
        times(3, lambda: found.append(dc.sample(waits, plan, state, prediction="v", compile=True)))
    assert all(torch.equal(one, want) for one in found)
    (told,) = [one for one in said if "captured" in str(one.message)]
    assert told.filename == __file__
    for _ in range(3):  # and the next one is captured all the same
        assert torch.equal(
            dc.sample(half, plan, state, prediction="v", compile=True), dc.sample(half, plan, state, prediction="v")
        )
