"""The U-Net, forward and one training step, against lucidrains' video-diffusion-pytorch of the same number of parameters.

One clip of 16x64x64x3 in float32. Ours has base 64, multipliers 1, 2, 4, 8 and 49.1 million parameters; the peer, at the same
multipliers, reaches 45.2 million at dim=72 (8 % fewer), and has 35.7 million at dim=64. A step is forward, mean square and
backward, without an optimiser, which is the same for all. `extra_info` has parameters, frames per second, and the peak
memory of a process of its own that does nothing else (`python -m benchmarks.bench_unet3d WHO WHAT`).

The peer is not installed with the rest, since it asks for torchvision, of which its network needs nothing:

    .venv/bin/pip install --no-deps video-diffusion-pytorch==0.7.0 einops einops-exts rotary-embedding-torch
    make bench ARGS="-k unet3d"
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import resource
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

SHAPE = (1, 16, 64, 64, 3)
WHO = ("torch", "torch compiled", "jax", "peer", "peer compiled", "peer dim=64")
WHAT = ("forward", "step")
Case = tuple[Callable[[], Any], int]
"""A call to time, and the number of parameters."""


def config() -> Any:
    from diffcore import unet3d

    return unet3d.UNet3DConfig(frames=16, size=64, blocks=1, head_dim=32, embedding=256, mlp_layers=2)


def case(who: str, what: str) -> Case:
    """Return what is timed; it has compiled once called."""
    if who == "jax":
        return _jax(what)
    import torch

    if who.startswith("peer"):
        model: Any = _peer(64 if "64" in who else 72)
        z = torch.randn(SHAPE[0], SHAPE[4], *SHAPE[1:4])
    else:
        from diffcore import unet3d

        model, z = unet3d.build(config(), "torch"), torch.randn(SHAPE)
    count = sum(p.numel() for p in model.parameters())
    at = torch.zeros(1)
    call = torch.compile(model) if "compiled" in who else model

    def forward() -> Any:
        with torch.no_grad():
            return call(z, at)

    def step() -> Any:
        model.zero_grad(set_to_none=True)
        call(z, at).square().mean().backward()

    return (step if what == "step" else forward), count


def _peer(dim: int) -> Any:
    if importlib.util.find_spec("video_diffusion_pytorch") is None:
        pytest.skip("the peer is not installed; the head of this file says how")
    if (
        "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None
    ):  # a stand-in for what only the peer's trainer uses
        vision = types.ModuleType("torchvision")
        vision.transforms = types.SimpleNamespace(ToTensor=lambda: None, ToPILImage=lambda: None)  # type: ignore[attr-defined]
        vision.utils = None  # type: ignore[attr-defined]
        sys.modules["torchvision"] = vision
    return importlib.import_module("video_diffusion_pytorch.video_diffusion_pytorch").Unet3D(dim=dim)


def _jax(what: str) -> Case:
    jax = pytest.importorskip("jax")
    nnx = pytest.importorskip("flax.nnx")
    from diffcore import unet3d

    graph, weights = nnx.split(unet3d.build(config(), "jax"))
    z, at = jax.random.normal(jax.random.key(0), SHAPE), jax.numpy.zeros(1)

    def predict(weights: Any, z: Any) -> Any:
        return nnx.merge(graph, weights)(z, at)

    forward = jax.jit(predict)
    step = jax.jit(jax.grad(lambda weights, z: (predict(weights, z) ** 2).mean()))
    call = step if what == "step" else forward
    return lambda: jax.block_until_ready(call(weights, z)), sum(leaf.size for leaf in jax.tree.leaves(weights))


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("what", WHAT)
def test_unet3d(benchmark: Any, what: str, who: str) -> None:
    if not who.startswith("jax"):
        pytest.importorskip("torch")
    call, count = case(who, what)
    call()  # compiles
    benchmark.group = f"unet3d, {what}, 16x64x64x3"
    benchmark.pedantic(call, rounds=5, warmup_rounds=1)
    benchmark.extra_info["parameters"] = count
    benchmark.extra_info["frames_per_second"] = round(SHAPE[1] / benchmark.stats.stats.min, 2)
    command = [sys.executable, "-m", "benchmarks.bench_unet3d", who, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    benchmark.extra_info["peak_megabytes"] = json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    call, _ = case(sys.argv[1], sys.argv[2])
    for _ in range(3):
        call()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
