"""What follows a run on torch goes the plain way: gradients, tangents, tracing, transformations."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from stage_cases import denoise

import diffcore as dc
from diffcore import stage
from diffcore.backends import numpy_run
from diffcore.testing.conformance import plans


def test_a_tangent_is_carried_through_a_run() -> None:
    forward = torch.autograd.forward_ad
    plan = plans()["ddim"]
    z = torch.linspace(-1.0, 1.0, 6).reshape(2, 3)
    with forward.dual_level():
        clip = dc.sample(denoise, plan, forward.make_dual(z, torch.ones_like(z)), prediction="v")
        tangent = forward.unpack_dual(clip).tangent
    assert tangent is not None
    shifted = dc.sample(denoise, plan, z + 1.0, prediction="v") - dc.sample(denoise, plan, z, prediction="v")
    torch.testing.assert_close(tangent, shifted, atol=1e-5, rtol=1e-5)


def test_a_traced_run_is_no_constant() -> None:
    plan = plans()["ddim"]
    z = torch.linspace(-1.0, 1.0, 6).reshape(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer itself, and of its deprecation
        traced = torch.jit.trace(lambda z: dc.sample(denoise, plan, z, prediction="v"), z)
    assert torch.equal(traced(2.0 * z), dc.sample(denoise, plan, 2.0 * z, prediction="v"))


def test_a_torch_without_the_private_name_goes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plans()["ancestral"]
    want = dc.sample(denoise, plan, shape=(2, 5), like=torch.zeros(1), seed=1, prediction="v")
    monkeypatch.delattr(torch.autograd.forward_ad, "_current_level")
    monkeypatch.setattr(numpy_run, "_begin", lambda *_: pytest.fail("not the plain way"))
    assert torch.equal(dc.sample(denoise, plan, shape=(2, 5), like=torch.zeros(1), seed=1, prediction="v"), want)


@pytest.mark.parametrize("transformed", ["z", "denoiser"])
def test_a_run_inside_a_transformation(transformed: str) -> None:
    plan = plans()["ddim"]
    z, weight = torch.linspace(-1.0, 1.0, 6).reshape(2, 3).double(), torch.tensor([-0.5, 0.25]).double()

    def run(z: Any, weight: Any) -> Any:
        return dc.sample(lambda z, log_snr: weight * z, plan, z, prediction="v")

    if transformed == "z":
        function, argument = (lambda scale: run(scale * z, -0.5)), weight
    else:
        function, argument = (lambda weight: run(z, weight)), weight
    want = torch.stack([function(value) for value in argument])
    torch.testing.assert_close(torch.func.vmap(function)(argument), want)
    primal, tangent = torch.func.jvp(function, (argument[0],), (torch.ones_like(argument[0]),))
    torch.testing.assert_close(primal, want[0])
    slope = (function(argument[0] + 1e-6) - function(argument[0] - 1e-6)) / 2e-6
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-6)
    assert tangent.abs().max() > 0.0


def by_hand(plan: dc.Plan, state: dc.State, call: Any = denoise) -> torch.Tensor:
    for _ in range(len(plan)):
        state = dc.step(plan, state, call(state.z, plan.level_for(state)), prediction="v")
    return state.z


@pytest.mark.parametrize("name", ["ancestral", "dpm_solver_pp"])
@pytest.mark.parametrize("loop", ["sample", "step"])
def test_seeds_and_samples_are_mapped_over(loop: str, name: str) -> None:
    """The keys and the state are hidden inside the transformation, where noise is drawn by the plain function."""
    plan = plans()[name]

    def run(seed: Any, z: Any) -> Any:
        state = dc.start(plan, z, seed=seed)
        return by_hand(plan, state) if loop == "step" else dc.sample(denoise, plan, state, prediction="v")

    seeds, z = torch.tensor([3, 2**40]), torch.linspace(-1.0, 1.0, 12).reshape(2, 2, 3)
    keys = torch.stack([dc.noise.keys(seed, 2) for seed in seeds])
    want = torch.stack([run(int(seed), one) for seed, one in zip(seeds, z, strict=True)])
    assert (want - run(9, z[0])).abs().max() > 0.1
    for given in (seeds, keys):
        torch.testing.assert_close(torch.func.vmap(run)(given, z), want)
    torch.testing.assert_close(torch.func.vmap(run, in_dims=(0, None))(seeds, z[0])[0], want[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_loop_by_hand_records_gradients_as_a_run_does(dtype: Any) -> None:
    """Only where the start asks: not because a network is in training, and then through the prediction too."""
    plan, weight = plans()["dpm_solver_pp"], torch.tensor(0.5, requires_grad=True)

    def network(z: Any, log_snr: Any) -> Any:
        return weight.to(dtype) * z

    plain = by_hand(plan, dc.start(plan, torch.ones(2, 3, dtype=dtype), seed=1), network)
    assert not plain.requires_grad
    z = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    recorded = by_hand(plan, dc.start(plan, z, seed=1), network)
    torch.testing.assert_close(recorded.detach(), plain, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=0.0)
    recorded.float().sum().backward()
    for leaf in (z, weight):
        assert leaf.grad is not None
        assert leaf.grad.abs().min() > 0.0
    with torch.no_grad():
        assert not by_hand(plan, dc.start(plan, z, seed=1), network).requires_grad


def test_a_prediction_that_carries_a_gradient_is_served_where_none_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, weight = plans()["ancestral"], torch.tensor(-0.5, requires_grad=True)
    want = dc.sample(denoise, plan, torch.ones(2, 3), seed=1, prediction="v")
    monkeypatch.setattr(stage, "advance", lambda *_: pytest.fail("the plain way"))
    state = dc.start(plan, torch.ones(2, 3), seed=1)
    assert torch.equal(by_hand(plan, state, lambda z, log_snr: weight * z), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_gradient_goes_the_plain_way(dtype: Any) -> None:
    plan = plans()["ddim"]
    z = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    dc.sample(denoise, plan, z, prediction="v").float().sum().backward()
    assert z.grad is not None
    assert z.grad.abs().min() > 0.0
