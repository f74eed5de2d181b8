"""What torch.compile makes of a stage, of a step of one's own and of a whole run: one graph, equal to what is not compiled."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from sampler_cases import SAMPLERS, schedule_of
from test_sampling import denoise, host, start_of

import diffcore as dc
from diffcore.backends import torch_backend


def test_one_graph_serves_every_stage_and_plan_that_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch_backend, "FUSED", 0)
    torch._dynamo.reset()
    counters.clear()
    z = start_of(torch.from_numpy)
    for name in (
        "ancestral",
        "ddim eta=1.0",
        "predictor_corrector",
        "dpm_solver_pp order=1 eta=1.0",
        "ancestral gamma=1.0",
    ):
        plan = SAMPLERS[name](schedule_of("vp"), steps=5)
        fused = dc.sample(denoise, plan, z, seed=9, prediction="v", compile=True)
        plain = dc.sample(denoise, plan, z, seed=9, prediction="v")
        np.testing.assert_allclose(host(fused), host(plain), atol=2e-6)
    assert counters["stats"]["unique_graphs"] == 1
    for name in ("dpm_solver_pp order=3", "unipc", "heun"):
        plan = SAMPLERS[name](schedule_of("vp"), steps=5)
        fused = dc.sample(denoise, plan, z, seed=9, prediction="v", compile=True)
        plain = dc.sample(denoise, plan, z, seed=9, prediction="v")
        np.testing.assert_allclose(host(fused), host(plain), atol=2e-4)
    assert counters["stats"]["unique_graphs"] == 4


@pytest.mark.usefixtures("without_code")
def test_ten_sizes_are_ten_graphs_and_none_falls_back() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=2)
    for size in range(4096, 4106):  # the compiler alone would give up at eight, with a warning, which is an error here
        dc.sample(denoise, plan, torch.ones(1, size), prediction="v", compile=True)
    assert counters["stats"]["unique_graphs"] == 10


def test_each_clip_is_a_graph_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: set[Any] = set()

    def fused(*kind: Any) -> Any:
        kinds.add(kind)
        return torch_backend._stage

    monkeypatch.setattr(torch_backend, "_fused", fused)
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=2)
    for bound in (0.5, 1.0, 1.0, 1.5):  # in one code object the compiler would give up at eight, and run uncompiled
        clip = dc.guidance.clip(-bound, bound)
        dc.sample(denoise, plan, torch.ones(1, 4096), prediction="v", compile=True, transform_x=clip)
    assert len(kinds) == 3


def test_a_tangent_is_carried_through_a_run_that_would_be_compiled() -> None:
    forward = torch.autograd.forward_ad
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=2)
    z = torch.linspace(-1.0, 1.0, 4096).reshape(1, -1)
    with forward.dual_level():
        dual = forward.make_dual(z, torch.ones_like(z))
        ends = [dc.sample(denoise, plan, dual, prediction="v", compile=fuse) for fuse in (True, False)]
        tangents = [forward.unpack_dual(end).tangent for end in ends]
    assert tangents[0] is not None
    torch.testing.assert_close(tangents[0], tangents[1])


def test_a_small_run_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "_fused", lambda *_: pytest.fail("compiled"))
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=3)
    z = start_of(torch.from_numpy)
    plain = dc.sample(denoise, plan, z, prediction="v")
    assert torch.equal(dc.sample(denoise, plan, z, prediction="v", compile=True), plain)
    with pytest.raises(pytest.fail.Exception):
        dc.sample(denoise, plan, torch.zeros(2, torch_backend.FUSED), prediction="v", compile=True)


def test_a_step_of_ones_own_compiles_to_one_graph() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    plan = SAMPLERS["ancestral gamma=0.3"](schedule_of("vp"), steps=5)
    compiled = torch.compile(lambda state, y: dc.step(plan, state, y, prediction="eps"), fullgraph=True)
    state = want = dc.start(plan, start_of(torch.from_numpy), seed=5)
    for _log_snr in plan.log_snr:
        state = compiled(state, 0.9 * state.z)
        want = dc.step(plan, want, 0.9 * want.z, prediction="eps")
    np.testing.assert_allclose(host(state.z), host(want.z), rtol=1e-5, atol=1e-5)
    assert int(state.mark) == int(want.mark) == plan.marks[-1]
    assert counters["stats"]["unique_graphs"] == 1


class Half(torch.nn.Module):
    """A network: it reads the level."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(-0.6))

    def forward(self, z: Any, log_snr: Any) -> Any:
        return self.weight * z + 0.01 * log_snr[:, None, None]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("ancestral gamma=0.3", "shape"),
        ("ancestral gamma=0.3", "by hand"),
        ("ancestral gamma=0.3", "constraint"),
        ("dpm_solver_pp", "shape"),
        ("unipc", "by hand"),
        ("unipc", "z"),
    ],
)
def test_a_whole_run_is_one_graph(name: str, how: str) -> None:
    plan, network = SAMPLERS[name](schedule_of("vp"), steps=3), Half()

    def by_hand(z: Any) -> Any:
        state = dc.start(plan, z, seed=5)
        for _ in range(len(plan)):
            state = dc.step(plan, state, network(state.z, plan.level_for(state)), prediction="v")
        return state.z

    def run(z: Any) -> Any:
        if how == "by hand":
            return by_hand(z)
        if how == "z":
            return dc.sample(denoise, plan, z, seed=[5, 2**63], prediction="v")
        if how == "constraint":
            known = dc.conditioning.replacement(torch.ones(2, 5, 3), torch.ones(2, 5, 3), variant="posterior")
            return dc.sample(network, plan, z, seed=5, prediction="v", constraint=known)
        return dc.sample(network, plan, shape=(2, 5, 3), like=z, seed=5, prediction="v")

    torch._dynamo.reset()
    z = start_of(torch.from_numpy)
    want = run(z)
    got = torch.compile(run, fullgraph=True, backend="eager")(z)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert not got.requires_grad


def test_a_whole_run_is_compiled_for_the_machine() -> None:
    torch._dynamo.reset()
    plan, z = SAMPLERS["dpm_solver_pp"](schedule_of("vp"), steps=3), start_of(torch.from_numpy)
    compiled = torch.compile(lambda z: dc.sample(denoise, plan, z, prediction="v"), fullgraph=True)
    torch.testing.assert_close(compiled(z), dc.sample(denoise, plan, z, prediction="v"), rtol=1e-5, atol=1e-5)


def test_a_graph_may_be_the_first_that_is_seen_of_a_backend() -> None:
    """A backend is imported when its first array comes, also where that is traced."""
    code = """
import sys, torch, diffcore as dc
plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=2)
run = torch.compile(lambda z: dc.sample(lambda z, l: -z, plan, z, prediction="v"), fullgraph=True, backend="eager")
assert "diffcore.backends.torch_backend" not in sys.modules
print(run(torch.ones(1, 2)).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "torch.Size([1, 2])\n", done.stderr[-2000:]


@pytest.mark.parametrize("variant", ["marginal", "posterior"])
def test_what_a_constraint_holds_is_in_the_graph(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch_backend, "FUSED", 0)
    torch._dynamo.reset()
    counters.clear()
    for seed, steps in ((1, 3), (2, 3)):
        plan = SAMPLERS["dpm_solver_pp order=2 eta=1.0"](schedule_of("vp"), steps=steps)
        z, mask = start_of(torch.from_numpy), torch.arange(15).reshape(1, 5, 3) % 2 == seed % 2
        settings: dict[str, Any] = {
            "seed": seed,
            "prediction": "v",
            "constraint": dc.conditioning.replacement(0.1 * seed * z, mask, variant=variant),
        }
        seen: tuple[list[dc.State], list[dc.State]] = ([], [])
        dc.sample(denoise, plan, z, compile=True, callback=seen[0].append, **settings)
        with monkeypatch.context() as patch:
            patch.setattr(torch_backend.TorchBackend, "_run_fused", None)
            dc.sample(denoise, plan, z, callback=seen[1].append, **settings)
        for got, want in zip(*seen, strict=True):
            pairs = [(got.z, want.z), (got.x, want.x), *zip(got.memory, want.memory, strict=True)]
            for a, b in pairs:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            assert (int(got.index), int(got.draw)) == (int(want.index), int(want.draw))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("source", [False, True])
def test_a_constraint_that_is_not_traced_acts_beside_the_graph(source: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Kept:
        """Writes each state down, which no graph does, and draws noise of its own where it may."""

        def __init__(self) -> None:
            self.seen: list[Any] = []

        def hold(self, plan: dc.Plan, z: Any) -> Any:
            return self

        def begin(self, state: dc.State, noise: Any) -> Any:
            return state.z

        def after(self, before: dc.State, state: dc.State, noise: Any) -> Any:
            self.seen.append((int(before.index), before.z.tolist()))
            return 0.9 * state.z + 0.1 * noise()

    monkeypatch.setattr(torch_backend, "FUSED", 0)
    plan = SAMPLERS["ancestral"](schedule_of("vp"), steps=3)
    held, ends = [Kept(), Kept()], []
    asked: list[Any] = []

    def mine(draw: Any, shape: Any, stream: int) -> Any:
        asked.append((int(draw), stream))
        return torch.from_numpy(dc.noise.normal(3, int(draw), shape, stream=stream))

    settings: dict[str, Any] = {"noise": mine} if source else {"seed": 3}
    for constraint, fuse in zip(held, (True, False), strict=True):
        z = start_of(torch.from_numpy)
        ends.append(dc.sample(denoise, plan, z, compile=fuse, prediction="v", constraint=constraint, **settings))
    np.testing.assert_allclose(host(ends[0]), host(ends[1]), rtol=1e-5, atol=1e-5)
    assert [index for index, _ in held[0].seen] == [0, 1, 2]
    np.testing.assert_allclose([z for _, z in held[0].seen], [z for _, z in held[1].seen], rtol=1e-5, atol=1e-5)
    assert asked[: len(asked) // 2] == asked[len(asked) // 2 :]


@pytest.mark.parametrize("second", ["unguided", "raw"])
def test_a_second_estimate_is_in_the_graph(second: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "FUSED", 0)
    update = np.random.default_rng(1).normal(0.0, 0.5, (3, 3, 6))
    plan = dc.Plan("random", "vp", np.zeros(3), np.zeros(3), update, second=second)
    guided = dc.guidance.classifier_free(denoise, lambda z, log_snr: 0.25 * z.sin(), weight=2.0)
    settings: dict[str, Any] = {"seed": 3, "prediction": "v", "transform_x": dc.guidance.clip(-0.5, 0.5)}
    z = start_of(torch.from_numpy)
    fused, plain = (dc.sample(guided, plan, z, compile=fuse, **settings) for fuse in (True, False))
    np.testing.assert_allclose(host(fused), host(plain), rtol=1e-5, atol=1e-5)
    without = {**settings, "transform_x": None}
    assert np.abs(host(plain) - host(dc.sample(guided, plan, z, **without))).max() > 0.01


def test_gradients_are_recorded_only_when_the_start_asks() -> None:
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=3)
    weight = torch.tensor(-0.6, requires_grad=True)
    assert not dc.sample(lambda z, l: weight * z, plan, start_of(torch.from_numpy), prediction="v").requires_grad
    z = start_of(torch.from_numpy).requires_grad_()
    (slope,) = torch.autograd.grad(dc.sample(lambda z, l: weight * z, plan, z, prediction="v").sum(), z)
    assert torch.isfinite(slope).all()
    assert slope.abs().max() > 0
