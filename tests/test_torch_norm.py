"""The Triton kernel of the U-Net's norm is group norm and SiLU in float64, of frames that may be shifted: on the GPU where there is
one, else interpreted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from triton_cases import DEVICE, INTERPRETED, case, launched
from unet3d_cases import BASE, model_of

from diffcore.unet3d import torch_kernels, torch_norm, torch_time
from diffcore.unet3d.config import groups

SIZES = [(2, 3, 5, 12), (1, 1, 1, 4), (1, 17, 16, 16), (1, 2, 2, 96)]
"""Of frames: a group may be no power of two wide, pixels may be more than a program holds, or no multiple of it."""
ROUNDING = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True, scope="module")
def _on_this_device() -> Any:
    """Take the kernel on a CPU too, and fail where it is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_kernels, "ON", DEVICE)
        patch.setattr(torch_kernels, "warn", lambda *_: pytest.fail("the kernel was left"))
        yield


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from diffcore.unet3d import torch_norm_kernel

    return launched(monkeypatch, torch_norm_kernel)


def drawn(size: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0, shifted: bool = False) -> list[Any]:
    """Return frames, a shift or None, a weight, a bias and a cotangent."""
    random = np.random.default_rng(size)
    h, of_out = mean + random.normal(size=size), random.normal(size=size)
    weight, bias = random.normal(size=(2, size[-1]))
    shift = random.normal(size=(size[0], size[-1]))
    kinds = (dtype, torch.float32, torch.float32, torch.float32, dtype)
    parts = zip((h, shift, weight, bias, of_out), kinds, strict=True)
    found: list[Any] = [torch.tensor(part, dtype=kind, device=DEVICE) for part, kind in parts]
    found[1] = found[1] if shifted else None
    return found


def way(function: Any, silu: bool) -> Any:
    """Return a norm as a function of (h, shift, weight, bias); the plain one knows no shift."""
    if function is torch_norm.norm:
        return lambda h, shift, weight, bias: function(h, weight, bias, silu, shift)
    return lambda h, shift, weight, bias: function(h if shift is None else h + shift[:, None, None], weight, bias, silu)


def slopes(function: Any, *tensors: Any, silu: bool) -> list[Any]:
    """Return the norm of h and its gradients, of (h, shift, weight, bias, cotangent), in float64."""
    *given, of_out = tensors
    given = [None if part is None else part.detach().requires_grad_() for part in given]
    out = way(function, silu)(*given)
    of = [part for part in given if part is not None]
    return [part.detach().double() for part in (out, *torch.autograd.grad(out, of, of_out))]


def wide(parts: list[Any]) -> list[Any]:
    return [None if part is None else part.double() for part in parts]


def close(found: Any, truth: Any, tolerance: float) -> None:
    for one, other in zip(found, truth, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()
        assert (one - other).abs().max() <= 4 * tolerance * max(1.0, float(other.abs().max()))


@case
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("number", range(len(SIZES)))
def test_the_norm_and_its_gradients_are_those_of_float64(number: int, dtype: torch.dtype, launches: list[str]) -> None:
    at = number + len(str(dtype))
    given: list[Any] = drawn(SIZES[number], dtype, shifted=at % 3 > 0)
    silu = at % 2 == 0
    if silu:  # what comes in may lie in any order
        given[0], given[4] = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in (given[0], given[4]))
    found = slopes(torch_norm.norm, *given, silu=silu)
    assert launches == ["forward", "backward"]
    truth = slopes(torch_norm.plain, *wide(given), silu=silu)
    if SIZES[number][1:3] == (1, 1) and given[1] is not None and groups(SIZES[number][3]) == SIZES[number][3]:
        truth[2] = truth[2] * 0  # a group of one number, which is normed away
    close(found, truth, ROUNDING[dtype])


@case
@pytest.mark.parametrize("shifted", [False, True])
def test_a_mean_far_from_zero_costs_no_digits(shifted: bool) -> None:
    given: list[Any] = drawn((1, 17, 16, 16), torch.float32, shifted=shifted)
    given[0] = given[0] + 4096.0  # of which a number keeps 11 bits after the point
    truth = slopes(torch_norm.plain, *wide(given), silu=True)
    found = slopes(torch_norm.norm, *given, silu=True)
    close(found, truth, 1e-5)
    if shifted:  # a shift far from zero is one as well
        given = drawn((1, 17, 16, 16), torch.float32, shifted=True)
        given[1] = given[1] + 4096.0
        close(slopes(torch_norm.norm, *given, silu=True), slopes(torch_norm.plain, *wide(given), silu=True), 1e-5)
    flat = torch.full_like(given[0], 3.0)
    assert torch.equal(torch_norm.norm(flat, *given[2:4]), given[3].expand_as(flat))


@case
@pytest.mark.parametrize("shifted", [False, True])
def test_the_operation_keeps_torchs_rules(shifted: bool) -> None:
    *given, _ = drawn((2, 2, 3, 8), torch.bfloat16, shifted=shifted)
    asked = [None if part is None else part.requires_grad_() for part in given]
    torch.library.opcheck(torch_norm.normed, (*asked, groups(8), True))
    h, shift, weight, bias = (None if part is None else part.detach() for part in given)
    _, *statistics = torch_norm.normed(h, shift, weight, bias, groups(8), True)
    torch.library.opcheck(torch_norm.gradient, (h, h, shift, weight, bias, *statistics, True))


@case
@pytest.mark.parametrize(("dtype", "checkpointing"), [(None, False), (torch.bfloat16, True)], ids=str)
def test_the_network_is_the_same_by_either_way(
    dtype: torch.dtype | None, checkpointing: bool, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(BASE, base_channels=8, multipliers=(1,), attention=(8,), frames=2)
    model = model_of(config, "torch", "float32").to(DEVICE)
    model.checkpointing = checkpointing
    z, log_snr = torch.randn(1, 1, 2, 2, 2, device=DEVICE), torch.zeros(1, device=DEVICE)

    def run(model: Any = model) -> list[Any]:
        with torch.autocast(DEVICE, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            y = model(z, log_snr)
        return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y.square().sum(), model.parameters()))]

    found = run()
    norms = sum(isinstance(part, torch.nn.Module) and type(part).__name__ == "Norm" for part in model.modules())
    assert launches.count("backward") == norms
    assert launches.count("forward") == norms or checkpointing
    monkeypatch.setattr(torch_kernels, "ON", "meta")
    truth = run()
    whole = [torch.cat([part.flatten() for part in parts]) for parts in (found[1:], truth[1:])]
    tolerance = 1e-5 if dtype is None else 3e-2
    close([found[0], whole[0]], [truth[0], whole[1]], tolerance)


@case
def test_what_the_kernel_has_no_rule_for_goes_the_plain_way(launches: list[str]) -> None:
    h, shift, weight, bias, of_out = drawn((2, 2, 3, 8), torch.float32, shifted=True)
    run = lambda h: torch_norm.norm(h, weight, bias, True, shift)  # noqa: E731
    found, change = torch.func.jvp(run, (h,), (of_out,))
    step = 1e-3 * of_out.double()
    moved = h + shift[:, None, None]
    around = [torch_norm.plain(moved + way * step, weight.double(), bias.double(), True) for way in (0, 1, -1)]
    torch.testing.assert_close(found.double(), around[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(change.double(), (around[1] - around[2]) / 2e-3, rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()
    compiled = torch.compile(lambda: torch.func.jvp(run, (h,), (of_out,)), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(), (found, change))
    torch.testing.assert_close(torch.func.vmap(run)(h[None]), found[None])
    assert torch_norm.norm(h.double(), weight.double(), bias.double()).dtype == torch.float64
    of_shifts = torch.func.vmap(lambda shift: torch_norm.norm(h, weight, bias, True, shift))(shift[None])
    torch.testing.assert_close(of_shifts, found[None])
    assert launches == []


@case
@pytest.mark.parametrize("shifted", [False, True])
def test_gradients_have_gradients(shifted: bool) -> None:
    found = []
    for function in (torch_norm.norm, torch_norm.plain):
        drawn_now = drawn((2, 2, 3, 8), torch.float32, shifted=shifted)
        *given, of_out = [None if part is None else part.requires_grad_() for part in drawn_now]
        of = [part for part in given if part is not None]
        first = torch.autograd.grad(way(function, True)(*given), of, of_out, create_graph=True)
        found.append(torch.autograd.grad([part.square().sum() for part in first], (*of, of_out)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_kernel_that_does_not_compile_is_left_once(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        pytest.skip("the first pytest has it")
    told: list[Any] = []
    monkeypatch.setattr(torch_kernels, "ON", "cpu")
    monkeypatch.setattr(torch_kernels, "_left", set())
    monkeypatch.setattr(torch_kernels, "warn", lambda *given: told.append(given))

    def failing(*given: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch_norm, "normed", failing)
    monkeypatch.setattr(torch_time, "attended", failing)
    model = model_of(replace(BASE, frames=2), "torch", "float32")
    z = torch.randn(1, 2, 4, 4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [model(z, 0.0) for _ in "12"]
        assert sorted(what.split("kernel of ")[1] for what, *_ in told) == ["attention over frames", "the norm"]
        monkeypatch.setattr(torch_kernels, "ON", "cuda")
        for one in found:
            torch.testing.assert_close(one, model(z, 0.0))
