"""(a) One step of a sampler, from 4 numbers to 1e8, with x-hat clipped, against diffusers, k-diffusion and azula; (g) a copy.

Every call is a run of 10 stages (200 of small arrays) in the middle of a schedule, with a denoiser that always says the same,
so that what is timed is the step: for us all that `diffcore.sample` does, for diffusers `Scheduler.step`, for the others their
loop. k-diffusion and azula do not clip, and UniPC and DPM-Solver++ of diffusers neither. The copy is of one array.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import diffcore as dc
from benchmarks import arrays, peers

SCHEDULE = dc.schedules.Cosine()
SAMPLERS = {
    "ancestral": lambda grid: dc.samplers.ancestral(SCHEDULE, grid=grid, gamma=0.0),
    "ddim": lambda grid: dc.samplers.ddim(SCHEDULE, grid=grid),
    "dpm++2m": lambda grid: dc.samplers.dpm_solver_pp(SCHEDULE, grid=grid, order=2),
    "unipc": lambda grid: dc.samplers.unipc(SCHEDULE, grid=grid, order=2),
}
MORE = {
    "heun": lambda grid: dc.samplers.heun(SCHEDULE, grid=grid),
    "dpm++3m sde": lambda grid: dc.samplers.dpm_solver_pp(SCHEDULE, grid=grid, order=3, eta=1.0),
    "unipc3": lambda grid: dc.samplers.unipc(SCHEDULE, grid=grid, order=3),
}
"""What reads the most: timed on a few numbers, where every operation weighs, for the goal that holds for any sampler."""

OURS = {"numpy": ("numpy", None), "torch": ("torch", False), "torch fused": ("torch", True), "jax": ("jax", True)}
"""Row -> library, and what `compile` is."""

ON_CUDA = {"torch kernel": ("torch", None), "torch graph": ("torch", None), "torch captured": ("torch", True), **OURS}
ON_CUDA["jax program"] = ("jax", None)
"""The same on CUDA: with the Triton kernel, and all stages replayed as one graph, by hand and by `compile=True`; and inside a
program of the caller's, where nothing is left to the host, so that what JAX takes for the call and for its stages come apart."""

CLIP = dc.guidance.clip()
HALF = ("bfloat16", "float16")
LARGEST = 10**8
"""Where only the first two samplers are timed: each row takes minutes."""


def chosen(quick: bool, device: str) -> dict[str, list[Any]]:
    """Return the rows of this call."""
    goal, few = int(np.prod(arrays.GOAL)), ["ancestral", "ddim"]
    sizes = [4, goal] if quick else [4, 2**14, 2**20, goal, LARGEST]
    ours = (
        OURS if device == "cpu" else {who: how for who, how in ON_CUDA.items() if who not in ("numpy", "torch fused")}
    )
    whos = [*ours, *peers.PEERS, "copy"]
    rows = [
        (size, sampler, "float32", who)
        for size in sizes
        for sampler in (few if quick or size == LARGEST else SAMPLERS)
        for who in whos
    ]
    rows += [(4, sampler, "float32", who) for sampler in MORE for who in ours if who != "torch fused"]
    others = [
        (goal, sampler, dtype, who)
        for sampler in few
        for dtype in (*HALF, *(["float64"] if device == "cpu" else []))
        for who in (*ours, "diffusers", "copy")
        if who != "numpy" or dtype != "bfloat16"
    ]
    if device == "cuda":  # the goal's arrays fit into an H100's cache of 50 MB, all of them in half precision
        wide = ["bfloat16", *(["float32"] if quick else [])]
        whos = ["torch kernel", "torch graph", "copy"]
        others += [(LARGEST, sampler, dtype, who) for sampler in few for dtype in wide for who in whos]
    more = {"kind": [*KINDS], "how": [None, True]}
    return {"size,sampler,dtype,who": rows if quick and device == "cpu" else rows + others, **more}


def test_stage(timed: Any, device: str, size: int, sampler: str, dtype: str, who: str) -> None:
    shape = arrays.GOAL if size == int(np.prod(arrays.GOAL)) else arrays.shape_of(size)
    group = f"step, {sampler}, {size} numbers, {dtype}, {device}"
    library, fuse = ON_CUDA.get(who, ("torch", None))
    if who == "copy" and device == "cpu":
        library = "numpy"
        dtype = "float16" if dtype == "bfloat16" else dtype
    steps = peers.MANY if size < 2**12 else peers.STEPS
    z, y = (arrays.array(library, shape, dtype, device, seed) for seed in (0, 1))
    if who == "copy":  # of one array; a step reads two or more and writes one or more
        to = z.copy() if library == "numpy" else z.clone()
        copy = (lambda: np.copyto(to, z)) if library == "numpy" else (lambda: to.copy_(z))
        if device == "cuda":  # as many in a graph as a run has stages, so that neither waits for the host between two
            timed(
                _replayed(lambda: [copy() for _ in range(steps)]),
                group,
                who,
                "ceiling",
                calls=steps,
                bytes=2 * z.nbytes,
            )
        else:
            timed(copy, group, who, "ceiling", bytes=2 * z.nbytes)
        return
    if who in peers.PEERS:
        run = peers.PEERS[who](sampler, z, y, steps)
        timed(lambda: arrays.ready(run()), group, who, "peer", calls=steps)
        return
    plan = (SAMPLERS | MORE)[sampler](np.linspace(-6.0, 4.0, steps + 1))

    def denoise(z: Any, log_snr: Any) -> Any:
        return y

    def ours() -> Any:
        return dc.sample(denoise, plan, start, prediction="eps", transform_x=CLIP, compile=fuse)

    start = dc.start(plan, z, seed=7)
    moved = (
        3 + plan.memory + plan.form.computed
    )  # arrays: read z, y and the memory, write z and the rows that are worked out
    if who == "torch captured":
        ours()  # the second call captures
    call = _replayed(ours) if who == "torch graph" else lambda: arrays.ready(ours())
    if who == "jax program":
        program = importlib.import_module("jax").jit(
            lambda z, y: dc.sample(lambda z, _: y, plan, start._replace(z=z), prediction="eps", transform_x=CLIP)
        )
        call = lambda: arrays.ready(program(z, y))  # noqa: E731
    timed(call, group, who, "ours", calls=len(plan), bytes=moved * z.nbytes)


def _constraint(z: Any) -> dict[str, Any]:
    mask = np.arange(z.shape[-1]) < 1
    return {"constraint": dc.conditioning.replacement(z, arrays.like(mask, z))}


def _source(z: Any) -> dict[str, Any]:
    return {"noise": lambda draw, shape: z}


KINDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "plain": lambda z: {"transform_x": CLIP},
    "constraint": _constraint,
    "source of noise": _source,
    "dynamic threshold": lambda z: {"transform_x": dc.guidance.dynamic_threshold(0.995)},
    "rescaled guidance": lambda z: {"rescale": 0.7},
    "float64": lambda z: {"transform_x": CLIP},
}
"""An ancestral step with more to do than the kernel did at first; "plain" is the kernel's own."""


@pytest.mark.gpu
def test_more(timed: Any, device: str, kind: str, how: bool | None) -> None:
    """What else a step may have to do, as it runs by itself and captured; at most twice the plain step is wanted."""
    if device != "cuda":
        pytest.skip("what the kernel of a GPU takes; on a CPU the bench_run rows say what a run costs")
    if how and kind == "source of noise":
        pytest.skip("a source of noise of the caller's own cannot be captured")
    z, y = (
        arrays.array("torch", arrays.GOAL, "float64" if kind == "float64" else "float32", device, k) for k in (0, 1)
    )
    plan = SAMPLERS["ancestral"](np.linspace(-6.0, 4.0, peers.STEPS + 1))
    settings = KINDS[kind](z)
    denoise: Any = lambda z, log_snr: y  # noqa: E731
    if "rescale" in settings:
        denoise = dc.guidance.classifier_free(denoise, lambda z, log_snr: -y, weight=2.0, **settings)
        settings = {}
    start = dc.start(plan, z, seed=7)
    run = lambda: arrays.ready(dc.sample(denoise, plan, start, prediction="eps", compile=how, **settings))  # noqa: E731
    if how:
        run()  # the second call captures
    group = f"step with more, ancestral, {z.numel()} numbers, {device}"
    timed(run, group, f"{kind}{', captured' if how else ''}", "ours", calls=len(plan))


@pytest.mark.gpu
def test_copy(timed: Any, device: str) -> None:
    """The ceiling of the memory: a copy of an array that no cache holds, on a GPU of 4 GiB."""
    if device != "cuda":
        pytest.skip("on a CPU the copies of the steps are the ceiling")
    torch = pytest.importorskip("torch")
    z = torch.ones(2**20 if not torch.cuda.is_available() else 2**30, device=device)
    to = torch.empty_like(z)
    call = _replayed(lambda: [to.copy_(z) for _ in range(peers.STEPS)])
    timed(
        call, f"copy, {z.numel()} numbers, float32, {device}", "copy", "ceiling", calls=peers.STEPS, bytes=2 * z.nbytes
    )


def _replayed(run: Callable[[], object]) -> Callable[[], None]:
    """Return the replay of a run that was captured in a CUDA graph."""
    torch = importlib.import_module("torch")
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay
