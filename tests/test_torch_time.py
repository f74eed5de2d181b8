"""The Triton kernel of the U-Net's attention over frames is the sum over keys in float64: on the GPU where there is one, else
interpreted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from triton_cases import DEVICE, case, launched
from unet3d_cases import BASE, model_of

from diffcore.unet3d import torch_kernels, torch_time

ROUNDING = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
pytestmark = pytest.mark.torch


class Size(NamedTuple):
    """Of what is attended to, and the frames of the tables of positions."""

    batch: int
    frames: int
    pixels: int
    heads: int
    size: int
    table: int
    video: int
    causal: bool = False


SIZES = [
    Size(2, 5, 3, 2, 6, table=5, video=5),  # no power of two, and rows that fill no program
    Size(1, 6, 2, 1, 8, table=4, video=6),  # more frames than the tables have: the farthest share a position
    Size(1, 7, 3, 2, 4, table=7, video=4),  # three independent images
    Size(1, 4, 2, 2, 8, table=4, video=0),  # images alone
    Size(2, 6, 2, 2, 8, table=4, video=6, causal=True),
    Size(1, 5, 3, 1, 8, table=5, video=3, causal=True),
    Size(1, 1, 1, 1, 4, table=1, video=1),
    Size(2, 16, 3, 3, 32, table=16, video=16),  # as in the network of the paper
]


@pytest.fixture(autouse=True, scope="module")
def _on_this_device() -> Any:
    """Take the kernels on a CPU too, with several rows to a program, and fail where one is left."""
    from diffcore.unet3d import torch_time_kernel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_time_kernel, "PROGRAMS", 5)
        patch.setattr(torch_kernels, "ON", DEVICE)
        patch.setattr(torch_kernels, "warn", lambda *_: pytest.fail("the kernel was left"))
        yield


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from diffcore.unet3d import torch_time_kernel

    return launched(monkeypatch, torch_time_kernel)


def drawn(at: Size, dtype: torch.dtype, scale: float = 1.0) -> list[Any]:
    """Return queries, keys and values together, the positions of both, and a cotangent."""
    random = np.random.default_rng(at)
    qkv = scale * random.normal(size=(at.batch, at.frames, at.pixels, 3, at.heads, at.size))
    tables = random.normal(size=(2, 2 * at.table - 1, at.size))
    parts = zip((qkv, *tables, random.normal(size=qkv[:, :, :, 0].shape)), (dtype, None, None, dtype), strict=True)
    return [torch.tensor(part, dtype=kind or torch.float32, device=DEVICE) for part, kind in parts]


def summed(qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, at: Size) -> torch.Tensor:
    """Attention written query by query: the mean of the values seen, weighted by the exponentials of the products."""
    q, k, v = qkv.unbind(3)
    far, outs = at.table - 1, []
    for i in range(at.frames):
        seen = [j for j in range(at.video) if not at.causal or i - far <= j <= i] if i < at.video else [i]
        rows = [min(max(j - i, -far), far) + far for j in seen]
        of_keys = torch.stack([k[:, j] + keys[row] for j, row in zip(seen, rows, strict=True)])
        of_values = torch.stack([v[:, j] + values[row] for j, row in zip(seen, rows, strict=True)])
        weights = ((q[:, i] * of_keys).sum(dim=-1, keepdim=True) / at.size**0.5).exp()
        outs.append((weights * of_values).sum(dim=0) / weights.sum(dim=0))
    return torch.stack(outs, dim=1)


def slopes(function: Any, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return what a function makes and its gradients, of what it is given and a cotangent, in float64."""
    *parts, of_out = (part.detach() for part in given)
    parts = [part.requires_grad_() for part in parts]
    out = function(*parts)
    found = torch.autograd.grad(out, parts, of_out, allow_unused=True, materialize_grads=True)  # images need no keys
    return [part.detach().double() for part in (out, *found)]


def close(found: Any, truth: Any, tolerance: float) -> None:
    for one, other in zip(found, truth, strict=True):
        assert (one - other).norm() <= tolerance * other.norm() + 1e-12
        assert (one - other).abs().max() <= 4 * tolerance * max(1.0, float(other.abs().max()))


CASES = [(number, torch.float32) for number in range(len(SIZES))]
CASES += [(0, torch.float16), (5, torch.float16), (3, torch.bfloat16), (4, torch.bfloat16), (7, torch.bfloat16)]


@case
@pytest.mark.parametrize(("number", "dtype"), CASES, ids=str)
def test_attention_and_its_gradients_are_those_of_float64(number: int, dtype: torch.dtype, launches: list[str]) -> None:
    at = SIZES[number]
    given = drawn(at, dtype)
    if number % 2:  # what comes in may lie in any order
        given[0], given[3] = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in (given[0], given[3]))
        given[1], given[2] = (part.T.contiguous().T for part in given[1:3])
    found = slopes(partial(torch_time.attend, video=at.video, causal=at.causal), given)
    assert launches == ["forward", "backward"]
    wide = [part.double() for part in given]
    truth = slopes(partial(summed, at=at), wide)
    close(found, truth, ROUNDING[dtype])
    if dtype == torch.float32:
        close(slopes(partial(torch_time.composed, video=at.video, causal=at.causal), wide), truth, 1e-12)


@case
def test_large_products_do_not_overflow() -> None:
    at = Size(1, 5, 2, 1, 8, table=5, video=5)
    given = drawn(at, torch.float32, scale=60.0)  # of products by the thousand, whose exponentials float32 has not
    found = slopes(partial(torch_time.attend, video=at.video, causal=at.causal), given)
    close(found, slopes(partial(torch_time.composed, video=5, causal=False), [part.double() for part in given]), 1e-4)


@case
def test_the_operation_keeps_torchs_rules() -> None:
    qkv, keys, values, _ = drawn(SIZES[4], torch.bfloat16)
    given = [part.requires_grad_() for part in (qkv, keys, values)]
    torch.library.opcheck(torch_time.attended, (*given, 6, True))
    qkv, keys, values, of_out = drawn(SIZES[4], torch.bfloat16)
    torch.library.opcheck(torch_time.gradient, (of_out, qkv, keys, values, 6, True))


@case
def test_gradients_have_gradients() -> None:
    at, found = SIZES[5], []
    for function in (torch_time.attend, torch_time.composed):
        *given, of_out = (part.detach().requires_grad_() for part in drawn(at, torch.float32))
        first = torch.autograd.grad(
            partial(function, video=at.video, causal=at.causal)(*given), given, of_out, create_graph=True
        )
        found.append(torch.autograd.grad([part.square().sum() for part in first], (*given, of_out)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def network(causal: bool) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Return a small network, frames and levels."""
    config = replace(BASE, base_channels=8, multipliers=(1,), attention=(8,), frames=3, causal=causal)
    model = model_of(config, "torch", "float32").to(DEVICE)
    return model, torch.randn(1, 4, 1, 2, 2, device=DEVICE), torch.zeros(1, device=DEVICE)


@case
def test_the_network_is_the_same_by_either_way(launches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, z, log_snr = network(causal=False)

    def run() -> list[Any]:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            y = model(z, log_snr, images=1)
        return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y.square().sum(), model.parameters()))]

    found = run()
    layers = sum(type(part).__name__ == "TimeAttention" for part in model.modules())
    assert launches.count("forward") == launches.count("backward") == layers > 0
    monkeypatch.setattr(torch_kernels, "ON", "meta")
    truth = run()
    whole = [torch.cat([part.flatten() for part in parts]) for parts in (found[1:], truth[1:])]
    close([found[0], whole[0]], [truth[0], whole[1]], 3e-2)


@case
def test_what_the_kernel_does_not_take_goes_the_plain_way(launches: list[str]) -> None:
    model, z, log_snr = network(causal=True)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        whole = model(z, log_snr)
        assert set(launches) == {"forward"}
        launches.clear()
        past = model.past(z[:, :2], log_snr)
        torch.testing.assert_close(model(z[:, 2:], log_snr, past=past), whole[:, 2:], rtol=0.05, atol=0.05)
        torch.func.jvp(lambda z: model(z, log_snr), (z,), (z,))
    torch.testing.assert_close(model(z, log_snr), whole, rtol=0.05, atol=0.05)
    assert launches == []
    h = torch.zeros(1, 1, 1, 8, device=DEVICE, dtype=torch.float16)
    fits = [(32, 64), (33, 64), (32, 65), (16, 128), (1, 256)]
    found = [torch_time.serves(h, torch.zeros(9, size, device=DEVICE), frames) for frames, size in fits]
    assert found == [True, False, False, True, False]
