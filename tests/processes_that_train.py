"""Runs of training on four, two and one processes, in one launch: `python tests/processes_that_train.py FOLDER`.

The processes are forked by the agent of torchrun from one that has loaded everything, which saves their start.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._dynamo.backends.debugging import aot_eager
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from training_cases import CONFIG
from training_cases import SETTINGS as BASE

from diffcore.cli import meshes
from diffcore.unet3d import build, data, save, training

SETTINGS = replace(BASE, batch=6, steps=6, checkpoint_every=2)
START = "start.safetensors"


def source(count: int = 9) -> data.Arrays:
    return data.Arrays(np.random.default_rng(0).random((count, 4, 8, 8, 1)), np.arange(count) + 10 - count, frames=2)


def train(settings: Any, clips: data.Arrays, folder: Path, **options: Any) -> None:
    """Train from the weights of a file, in some folders with clips that are held out."""
    held_out = source(6) if folder.name in ("four", "replicated", "one") else None
    training.train(CONFIG, settings, clips, folder, start=folder.parent / START, validation=held_out, **options)


class Interrupting(data.Arrays):
    """Clips of which number 7, the second of step 1, comes with a Ctrl-C."""

    armed = True

    def clip(self, index: int, rng: np.random.Generator) -> Any:
        if self.armed and rng.bit_generator.state["state"]["counter"][3] == SETTINGS.batch + 1:
            signal.raise_signal(signal.SIGINT)
        return super().clip(index, rng)


def alone(folder: Path, steps: int, **options: Any) -> None:
    """Train in this process, as if it had been started by itself."""
    saved = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE")}
    train(replace(SETTINGS, steps=steps), source(), folder, **options)
    os.environ.update(saved)


def on(mesh: Any, folder: Path, *, steps: int = SETTINGS.steps, **options: Any) -> None:
    """Train on a mesh."""
    settings = replace(SETTINGS, steps=steps, accumulate=options.pop("accumulate", 1))
    train(settings, source(), folder, mesh=mesh, **options)


def of_sizes(graph: Any, inputs: Any) -> Any:
    """Compile a graph without a compiler of C++, and refuse one for sizes that vary, which inductor cannot always compile."""
    assert not any(isinstance(value, torch.SymInt) for value in inputs)
    return aot_eager(graph, inputs)


def work(out: Path) -> None:
    """What each process does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    square = meshes.of("torch", "2x2", "cpu").mesh  # as `diffcore train --mesh 2x2` does
    rank, said = dist.get_rank(), dict[str, str]()
    pair = square["shards"]  # processes 0 and 1, and 2 and 3
    doubled = init_device_mesh("cpu", (2, 2, 1), mesh_dim_names=("pairs", "replicas", "shards"))["replicas", "shards"]
    train(SETTINGS, source(), out / "four")  # a mesh of all
    train(replace(SETTINGS, steps=2), source(), out / "down")
    if rank == 0:
        alone(out / "up", 2)
    dist.barrier()
    if rank < 2:
        eager, torch.compile = torch.compile, functools.partial(torch.compile, backend=of_sizes)
        on(pair, out / "down", steps=4, accumulate=2, compile=True)
        torch.compile = eager
        on(pair, out / "up", steps=4, checkpointing=True)
    else:
        on(doubled, out / "replicated", accumulate=2, workers=2)
    dist.barrier()
    on(square, out / "up")
    if rank == 0:
        alone(out / "down", 6)
    elif rank == 3:
        alone(out / "one", 6)
    clips = Interrupting(np.random.default_rng(0).random((9, 4, 8, 8, 1)), np.arange(9) + 1, frames=2)
    with contextlib.suppress(KeyboardInterrupt):
        train(SETTINGS, clips, out / "interrupted")
        said["interrupted"] = "not at all"
    Interrupting.armed = False
    said["stopped at"] = str(sorted(path.name for path in (out / "interrupted").glob("checkpoint*")))
    dist.barrier()
    train(SETTINGS, clips, out / "interrupted")
    for name, settings in (("another run", replace(SETTINGS, seed=1)), ("too small", replace(SETTINGS, batch=3))):
        try:
            train(settings, source(), out / "four")
        except ValueError as error:
            said[name] = str(error)
    (out / f"said-{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


if __name__ == "__main__":
    how = {"min_nodes": 1, "max_nodes": 1, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test"}
    save(build(CONFIG, seed=5), Path(sys.argv[1], START))
    config = LaunchConfig(nproc_per_node=4, start_method="fork", max_restarts=0, **how)
    elastic_launch(config, work)(Path(sys.argv[1]))
