"""(c) Whole runs: what `diffcore.sample` adds to the denoiser, a free one and a real one, how often it is traced, and the U-Net's.

`extra_info` has the seconds of the first call, which traces and compiles, and the overhead of a step: the run less the denoiser's
own time. The real
denoiser is a dense layer.
"""

from __future__ import annotations

import importlib
from time import perf_counter
from typing import Any

import pytest

import diffcore as dc
from benchmarks import arrays

STEPS = 100
SHAPES = {"4 numbers": (4, 1), "clip 2x8x32x32x3": (2, 8, 32, 32, 3)}


def chosen(quick: bool, device: str) -> dict[str, list[Any]]:
    """Return the rows of this call."""
    who = [("numpy", None), ("torch", False), ("torch", True), ("jax", True)]
    who = [case for case in who if device == "cpu" or case[0] != "numpy"]
    return {"library,fuse": who, "shape": list(SHAPES), "kind": ["free", "dense"]}


def test_run(timed: Any, benchmark: Any, device: str, library: str, fuse: bool | None, shape: str, kind: str) -> None:
    dims = SHAPES[shape]
    z = arrays.array(library, dims, "float32", device)
    width = dims[-1]
    weight = arrays.array(library, (width, width), "float32", device, 1) / width
    calls: list[int] = []

    def denoise(z: Any, log_snr: Any) -> Any:
        calls.append(1)
        return z if kind == "free" else z @ weight

    plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=STEPS)

    def run() -> Any:
        return arrays.ready(dc.sample(denoise, plan, z, prediction="v", seed=7, compile=fuse))

    start = perf_counter()
    run()
    first, traces = perf_counter() - start, len(calls)
    alone = importlib.import_module("jax").jit(denoise) if library == "jax" else denoise
    arrays.ready(alone(z, None))
    its_own = float("inf")
    for _ in range(5):
        start = perf_counter()
        for _ in range(20):
            result = alone(z, None)
        arrays.ready(result)
        its_own = min(its_own, (perf_counter() - start) / 20)
    who = f"{library}{' fused' if fuse and library == 'torch' else ''}"
    timed(
        run,
        f"run, {kind} denoiser, {shape}, {device}",
        who,
        "ours",
        calls=STEPS,
        first_call=first,
        denoiser_calls=traces,
    )
    benchmark.extra_info["denoiser"] = its_own
    benchmark.extra_info["overhead"] = benchmark.stats.stats.min / STEPS - its_own


@pytest.mark.gpu
@pytest.mark.parametrize("who", ["torch kernel", "torch captured", "jax"])
def test_network(timed: Any, device: str, who: str) -> None:
    """A guided run of 16 stages with the U-Net, a clip of one, in bfloat16; captured it is to be three times as fast."""
    if device != "cuda":
        pytest.skip("on a CPU the network is all there is; see bench_unet3d.py")
    from benchmarks import bench_unet3d
    from diffcore import unet3d

    library = who.partition(" ")[0]
    z = arrays.array(library, bench_unet3d.SHAPE, "float32", device)
    model = unet3d.build(bench_unet3d.config(), library)
    plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=16)
    if library == "jax":
        model.compute_dtype = importlib.import_module("jax").numpy.dtype("bfloat16")
    else:
        torch = importlib.import_module("torch")
        model = model.to(device)

    def predict(z: Any, log_snr: Any) -> Any:
        if library == "jax":
            return model(z, log_snr)
        with torch.autocast(device, dtype=torch.bfloat16):
            return model(z, log_snr)

    guided = dc.guidance.classifier_free(predict, predict, weight=2.0)
    how = None if who == "torch kernel" else True
    run = lambda: arrays.ready(dc.sample(guided, plan, z, prediction="v", seed=7, compile=how))  # noqa: E731
    if who == "torch captured":
        run()  # the second call captures
    timed(run, f"run of 16 guided stages, U-Net, {device}", who, "ours", calls=len(plan))


@pytest.mark.gpu
@pytest.mark.parametrize("who", ["denoiser", "run"])
def test_graph(timed: Any, device: str, who: str) -> None:
    """A run of 256 stages replayed as one CUDA graph, and the denoiser alone as often."""
    torch = pytest.importorskip("torch")
    if device != "cuda" or not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=256)
    z = torch.randn(2, 16, 64, 64, 3, device="cuda")
    state = dc.start(plan, z, seed=7)
    weight = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)

    def denoise(z: Any, log_snr: Any) -> Any:
        heavy = weight @ weight  # about a millisecond: an H100 multiplies 4096^3 in 0.2 ms
        for _ in range(4):
            heavy = weight @ heavy
        return -0.5 * z + 0.0 * heavy[0, 0].float()

    def alone() -> None:
        for _ in plan.log_snr:
            denoise(z, None)

    def whole() -> Any:
        return dc.sample(denoise, plan, state, prediction="v")

    for _ in range(3):
        whole()
    call = alone if who == "denoiser" else whole
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    timed(replay, "one graph of 256 stages", who, "ceiling" if who == "denoiser" else "ours", calls=256)
