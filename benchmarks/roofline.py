"""What the U-Net moves and multiplies on a card in bfloat16, and how much of the card's rate that leaves: no card is needed.

    python -m benchmarks.roofline                   # one batch of eight clips of 16x64x64x3, the network of bench_unet3d
    python -m benchmarks.roofline --batch 1 --step

Each operation of PyTorch that is not a view reads what it is given and writes what it makes, at the rate of the card's memory,
and multiplies at the rate of its tensor cores; it takes the longer of the two. So the sum is what no run can beat whose
operations are these, in a captured graph: what a card really takes is more. The network's own norm reads twice, as its kernel is
written; what programs of one kernel leave to each other is not counted; attention over pixels is one kernel that keeps no logits.
An H200's numbers are the default.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import bench_unet3d
from diffcore import unet3d
from diffcore.unet3d import torch_kernels, torch_unet

FREE = {
    "aten.detach",
    "aten.lift_fresh",
    "aten._unsafe_view",
    "aten.alias",
    "aten.empty",
    "aten.empty_like",
    "aten.new_empty",
}
"""What neither reads nor writes, beside views."""


class Row(NamedTuple):
    """What all calls of an operation come to, in bytes, floating-point operations and seconds."""

    calls: int = 0
    bytes: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0


class Count(TorchDispatchMode):
    """Counts what runs under it, by the operation."""

    def __init__(self, bandwidth: float, rate: float) -> None:
        super().__init__()
        self.bandwidth, self.rate = bandwidth, rate
        self.rows: dict[str, Row] = defaultdict(Row)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = str(function).rpartition(".")[0]
        if function.is_view or name in FREE or name.startswith("prim"):
            return out
        moved = float(sum(map(_stored, pytree.tree_leaves((args, kwargs, out)))))
        flops = 0.0
        if function._overloadpacket in flop_registry:
            flops = flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=out)
        moved, flops = _own(name, args, out, moved, flops)
        row = self.rows[name]
        seconds = max(moved / self.bandwidth, flops / self.rate)
        self.rows[name] = Row(row.calls + 1, row.bytes + moved, row.flops + flops, row.seconds + seconds)
        return out


def _stored(leaf: Any) -> int:
    """Return the bytes that a tensor has in memory, each once."""
    if not isinstance(leaf, torch.Tensor):
        return 0
    sizes = [size for size, stride in zip(leaf.shape, leaf.stride(), strict=True) if stride]
    return int(torch.Size(sizes).numel()) * leaf.element_size()


def _own(name: str, args: Any, out: Any, moved: float, flops: float) -> tuple[float, float]:
    """Return what is moved and multiplied, where it is not what an operation is given and makes, once each."""
    again = {"diffcore.normed": args[:1], "diffcore.normed_gradient": args[:2]}.get(name, ())  # statistics come first
    moved += sum(map(_stored, again))
    if name == "aten.convolution" and args[2] is not None:  # cuDNN's bias is an addition after it
        moved += 2 * _stored(out)
    if name in ("diffcore.attended", "diffcore.attended_gradient"):
        batch, frames, pixels, _, heads, size = args[name.endswith("gradient")].shape
        products = 6 if name == "diffcore.attended" else 15  # of frames by frames, those with positions twice
        flops = 2.0 * batch * pixels * heads * frames * frames * size * products
    if name.startswith("roofline."):
        n, heads, tokens, size = args[0].shape
        flops = 2.0 * n * heads * tokens * tokens * size * (2 if name.endswith("attention") else 5)
    return moved, flops


@torch.library.custom_op("roofline::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Stand for a fused attention over pixels."""
    return torch.empty_like(q)


@torch.library.custom_op("roofline::attention_gradient", mutates_args=())
def attention_gradient(of: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    """Stand for its gradient."""
    return [torch.empty_like(part) for part in (q, k, v)]


attention.register_fake(lambda q, k, v: torch.empty_like(q))
attention_gradient.register_fake(lambda of, q, k, v: [torch.empty_like(part) for part in (q, k, v)])
attention.register_autograd(
    lambda ctx, of: tuple(attention_gradient(of, *ctx.saved_tensors)),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def count(batch: int, step: bool, bandwidth: float, rate: float) -> dict[str, Row]:
    """Return what each operation of a forward pass, or of a training step, comes to."""
    model = unet3d.build(bench_unet3d.config(), "torch")
    kept = torch_kernels.ON, torch_kernels.TRITON, torch_kernels.transformed, torch_unet.F.scaled_dot_product_attention
    torch_kernels.ON, torch_kernels.TRITON = "cpu", True  # what CUDA would run, on tensors that are only shapes
    torch_kernels.transformed = torch_unet.transformed = lambda *_: False
    torch_unet.F.scaled_dot_product_attention = attention
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            z, at = torch.randn(batch, *bench_unet3d.SHAPE[1:]), torch.zeros(batch)
            arrays = dict(model.named_parameters()) | dict(model.named_buffers())
            given = {name: fake.from_tensor(value.detach()).requires_grad_(step) for name, value in arrays.items()}
            counted = Count(bandwidth, rate)
            with counted, torch.set_grad_enabled(step), torch.autocast("cpu", dtype=torch.bfloat16):
                y = functional_call(model, given, (z, at))
                if step:
                    y.float().square().mean().backward()
    finally:
        torch_kernels.ON, torch_kernels.TRITON, torch_kernels.transformed, torch_unet.F.scaled_dot_product_attention = (
            kept
        )
        torch_unet.transformed = torch_kernels.transformed
    return dict(counted.rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8, help="clips; 8 without it")
    parser.add_argument("--step", action="store_true", help="a training step without its optimiser, not a forward pass")
    parser.add_argument("--bandwidth", type=float, default=4.2, help="terabytes a second; 4.2 without it")
    parser.add_argument("--rate", type=float, default=790.0, help="teraflops a second in bfloat16; 790 without it")
    given = parser.parse_args()
    rows = count(given.batch, given.step, given.bandwidth * 1e12, given.rate * 1e12)
    for name, row in sorted(rows.items(), key=lambda item: -item[1].seconds)[:20]:
        print(
            f"{name:36} {row.calls:5} calls {row.bytes / 1e9:8.2f} GB {row.flops / 1e9:9.0f} GFLOP {row.seconds * 1e3:7.3f} ms"
        )
    calls, moved, flops, seconds = (sum(part) for part in zip(*rows.values(), strict=True))
    share, least = flops / (given.rate * 1e12) / seconds, seconds * 1e3
    print(f"all {calls} operations: {moved / 1e9:.1f} GB, {flops / 1e12:.2f} TFLOP")
    print(f"at least {least:.2f} ms, so at most {share:.0%} of the rate")


if __name__ == "__main__":
    main()
