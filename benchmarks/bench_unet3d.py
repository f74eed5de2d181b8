"""The U-Net, forward and one training step, against lucidrains' video-diffusion-pytorch of the same number of parameters.

One clip of 16x64x64x3, in float32 on the CPU and in bfloat16 (autocast) on CUDA where there is one. Ours has base 64, multipliers
1, 2, 4, 8 and 49.1 million parameters; the peer, at the same multipliers, 44.6 million at dim=72 (9 % fewer) and 35.7 million at
dim=64. A step is forward, mean square and backward, without an optimiser, which is the same for all. `extra_info` has
parameters, frames per second, peak memory (on the CPU that of a process of its own, `python -m benchmarks.bench_unet3d
WHO WHAT`), and for ours the floating-point operations per second, a step counted as three forward passes.

The peer is not installed with the rest, since it asks for torchvision, of which its network needs nothing:

    .venv/bin/pip install --no-deps video-diffusion-pytorch==0.7.0 einops einops-exts rotary-embedding-torch
    make bench ARGS="-k unet3d"                                # or, all in turn, which a busy machine disturbs less:
    .venv/bin/python -m benchmarks.bench_unet3d benchmarks/results/unet3d-cpu.json
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

SHAPE = (1, 16, 64, 64, 3)
WHO = ("torch", "torch graph", "torch compiled", "jax", "peer", "peer compiled", "peer dim=64")
WHAT = ("forward", "step")
Case = tuple[Callable[[], Any], int]
"""A call to time, and the number of parameters."""


def config() -> Any:
    from diffcore import unet3d

    return unet3d.UNet3DConfig(frames=16, size=64, blocks=1, head_dim=32, embedding=256, mlp_layers=2)


def case(who: str, what: str, device: str = "cpu", batch: int = 1) -> Case:
    """Return what is timed; it has compiled once called."""
    if who == "jax":
        return _jax(what, device, batch)
    import torch

    if who == "torch graph" and (device == "cpu" or what == "step"):
        pytest.skip("a forward pass on CUDA is captured; a step is not")

    if who.startswith("peer"):
        model: Any = _peer(64 if "64" in who else 72)
        z = torch.randn(batch, SHAPE[4], *SHAPE[1:4])
    else:
        from diffcore import unet3d

        model, z = unet3d.build(config(), "torch"), torch.randn(batch, *SHAPE[1:])
    model, z, at = model.to(device), z.to(device), torch.zeros(batch, device=device)
    count = sum(p.numel() for p in model.parameters())
    compiled = torch.compile(model) if "compiled" in who else model

    def call() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            return compiled(z, at)

    def forward() -> None:
        with torch.no_grad():
            call()
        _wait(device)

    if who == "torch graph":
        from diffcore.backends.torch_graph import Graph

        captured = Graph(z.device)
        with torch.no_grad():
            captured.record(call)
        return lambda: (captured.replay(), _wait(device)), count

    def step() -> None:
        model.zero_grad(set_to_none=True)
        call().float().square().mean().backward()
        _wait(device)

    return (step if what == "step" else forward), count


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


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


def _jax(what: str, device: str, batch: int) -> Case:
    jax = pytest.importorskip("jax")
    nnx = pytest.importorskip("flax.nnx")
    from diffcore import unet3d

    if device == "cuda" and jax.default_backend() != "gpu":
        pytest.skip("JAX sees no GPU")
    model = unet3d.build(config(), "jax")
    model.compute_dtype = jax.numpy.dtype("bfloat16" if device == "cuda" else "float32")
    graph, weights = nnx.split(model)
    z, at = jax.random.normal(jax.random.key(0), (batch, *SHAPE[1:])), jax.numpy.zeros(batch)

    def predict(weights: Any, z: Any) -> Any:
        return nnx.merge(graph, weights)(z, at)

    forward = jax.jit(predict)
    step = jax.jit(jax.grad(lambda weights, z: (predict(weights, z) ** 2).mean()))
    call = step if what == "step" else forward
    return lambda: jax.block_until_ready(call(weights, z)), sum(leaf.size for leaf in jax.tree.leaves(weights))


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_unet3d(benchmark: Any, batch: int, device: str, what: str, who: str) -> None:
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if batch > 1 and device == "cpu":
        pytest.skip("one clip is enough for a CPU")
    call, count = case(who, what, device, batch)
    call()  # compiles
    clips = "" if batch == 1 else f"{batch} clips of "
    benchmark.group = f"unet3d, {what}, {clips}{SHAPE[1]}x{SHAPE[2]}x{SHAPE[3]}, {device}"
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    benchmark.pedantic(call, rounds=5 if device == "cpu" else 30, warmup_rounds=1)
    seconds = benchmark.stats.stats.min
    info: dict[str, Any] = {"who": who, "role": "peer" if who.startswith("peer") else "ours", "parameters": count}
    info["frames_per_second"] = round(batch * SHAPE[1] / seconds, 2)
    if not who.startswith("peer"):
        info["gflops"] = round(
            importlib.import_module("diffcore.unet3d").summarise(config()).total.flops
            * (3 if what == "step" else 1)
            * batch
            / seconds
            / 1e9
        )
    if device == "cuda" and who != "jax":
        info["peak_megabytes"] = torch.cuda.max_memory_allocated() // 2**20
    elif device == "cpu":
        info["peak_megabytes"] = _peak(who, what)
    benchmark.extra_info.update(info)


@pytest.mark.gpu
@pytest.mark.parametrize("who", ["kernel", "torch", "torch compiled"])
@pytest.mark.parametrize("size", [(16, 64, 64, 64), (128, 64, 64, 64), (128, 16, 16, 256)], ids=str)
@pytest.mark.parametrize("what", WHAT)
def test_norm(timed: Any, device: str, what: str, size: tuple[int, ...], who: str) -> None:
    """Group norm and SiLU of frames in bfloat16, forward, and with its gradients, ten of them in a captured graph."""
    if device != "cuda":
        pytest.skip("the kernel is CUDA's")
    torch = importlib.import_module("torch")
    from diffcore.backends.torch_graph import Graph
    from diffcore.unet3d import torch_norm

    h, of_out = torch.randn(2, *size, dtype=torch.bfloat16, device=device)
    weight, bias = torch.randn(2, size[-1], device=device)
    given = [part.requires_grad_(what == "step") for part in (h, weight, bias)]
    function: Any = torch_norm.norm if who == "kernel" else torch_norm.plain
    function = torch.compile(function, fullgraph=True, dynamic=False) if who == "torch compiled" else function

    def call() -> None:
        for _ in range(10):
            out = function(*given, True)
            if what == "step":
                torch.autograd.grad(out, given, of_out)

    captured = Graph(h.device)
    captured.record(call)
    group = f"group norm and SiLU, {what}, {size}, bfloat16, {device}"
    moved = (5 if what == "step" else 2) * h.numel() * h.element_size()
    timed(
        lambda: (captured.replay(), _wait(device)),
        group,
        who,
        "ours" if who == "kernel" else "peer",
        calls=10,
        bytes=moved,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("who", ["kernel", "torch", "torch compiled"])
@pytest.mark.parametrize("pixels", [(8, 1024, 4), (8, 256, 8), (8, 64, 16)], ids=str)
@pytest.mark.parametrize("what", WHAT)
def test_time(timed: Any, device: str, what: str, pixels: tuple[int, ...], who: str) -> None:
    """Attention over 16 frames of clips, pixels and heads of 32 in bfloat16, forward, and with its gradients, ten of them in a
    captured graph."""
    if device != "cuda":
        pytest.skip("the kernel is CUDA's")
    torch = importlib.import_module("torch")
    from diffcore.backends.torch_graph import Graph
    from diffcore.unet3d import torch_time

    batch, *rest = pixels
    qkv = torch.randn(batch, 16, rest[0], 3, rest[1], 32, dtype=torch.bfloat16, device=device)
    tables, of_out = torch.randn(2, 31, 32, device=device), torch.randn_like(qkv[:, :, :, 0])
    given = [part.requires_grad_(what == "step") for part in (qkv, *tables)]
    function: Any = torch_time.attend if who == "kernel" else torch_time.composed
    function = torch.compile(function, fullgraph=True, dynamic=False) if who == "torch compiled" else function

    def call() -> None:
        for _ in range(10):
            out = function(*given, 16, False)
            if what == "step":
                torch.autograd.grad(out, given, of_out)

    captured = Graph(qkv.device)
    captured.record(call)
    group = f"attention over 16 frames, {what}, {pixels}, bfloat16, {device}"
    moved = (11 if what == "step" else 4) * of_out.numel() * of_out.element_size()
    role = "ours" if who == "kernel" else "peer"
    timed(lambda: (captured.replay(), _wait(device)), group, who, role, calls=10, bytes=moved)


def _peak(who: str, what: str) -> int:
    """Return the peak memory in megabytes of a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.bench_unet3d", who, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    return int(done.stdout.splitlines()[-1])


def together(path: Path, rounds: int = 3) -> None:
    """Time all in turn, round after round, so that other work on the machine falls on all alike; write JSON as it goes."""
    from diffcore import _files

    rows: list[dict[str, Any]] = []
    for what in WHAT:
        cases = {who: case(who, what) for who in WHO if who != "torch graph"}
        seconds: dict[str, float] = {}
        for number in range(rounds + 1):
            for who, (call, _) in cases.items():
                began = time.perf_counter()
                call()
                taken = time.perf_counter() - began
                if number:  # the first one compiles
                    seconds[who] = min(taken, seconds.get(who, taken))
        for who, (_, count) in cases.items():
            row = {"what": what, "who": who, "seconds": round(seconds[who], 3), "parameters": count}
            row["frames_per_second"] = round(SHAPE[1] / seconds[who], 2)
            if "compiled" not in who:  # whose compiler would be measured
                row["peak_megabytes"] = _peak(who, what)
            rows.append(row)
            print(row, flush=True)
            versions = {name: metadata.version(name) for name in ("torch", "jax", "flax", "video-diffusion-pytorch")}
            found = {"clip": SHAPE, "cores": os.cpu_count(), "versions": versions, "rows": rows}
            _files.write(path, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    from diffcore import _arguments

    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_unet3d", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "who", metavar="FILE|WHO", help=f"where the result goes; or, with WHAT, one of {', '.join(WHO)}"
    )
    parser.add_argument("what", metavar="WHAT", nargs="?", choices=WHAT, help="print the peak memory of this alone")
    given = parser.parse_args()
    if given.what is None and given.who in WHO:
        parser.error(f"{given.who} goes with WHAT, one of {', '.join(WHAT)}; a file for the result has another name")
    elif given.what is None:
        together(_arguments.new_file(given.who))
    elif given.who not in WHO:
        parser.error(f"WHO must be one of {', '.join(WHO)}, got {given.who}")
    else:
        call, _ = case(given.who, given.what)
        for _ in range(3):
            call()
        status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage counts what the parent had
        print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
