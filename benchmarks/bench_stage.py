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

ON_CUDA = {"torch kernel": ("torch", None), "torch graph": ("torch", None), **OURS}
"""The same on CUDA: with the Triton kernel, and all stages replayed as one graph."""

CLIP = dc.guidance.clip()
HALF = ("bfloat16", "float16")
LARGEST = 10**8
"""Where only the first two samplers are timed: each row takes minutes."""


def chosen(quick: bool, device: str) -> dict[str, list[Any]]:
    """Return the rows of this call."""
    goal, few = int(np.prod(arrays.GOAL)), ["ancestral", "ddim"]
    sizes = [4, goal] if quick else [4, 2**14, 2**20, goal, LARGEST]
    ours = OURS if device == "cpu" else {who: how for who, how in ON_CUDA.items() if who != "numpy"}
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
    return {"size,sampler,dtype,who": rows if quick and device == "cpu" else rows + others}


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
    call = _replayed(ours) if who == "torch graph" else lambda: arrays.ready(ours())
    timed(call, group, who, "ours", calls=len(plan), bytes=moved * z.nbytes)


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
