"""What a step of training sends between processes, and how long it takes.

    python -m benchmarks.training_bytes
    python -m benchmarks.training_bytes --device cuda --processes 8 --preset bair --batch 32

Counts the bytes of the collectives of one step, for meshes of so many processes, and sets them beside the arithmetic:
with P bytes of parameters, S shards, R replicas and a batch in k parts (--accumulate), gathering twice for each part and scattering
the gradient once is (2 k + 1) P (S - 1) / S that each process receives, and adding up the gradient of the shards over the
replicas 2 (P / S) (R - 1) / R.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from diffcore import _arguments
from diffcore.unet3d import PRESETS, data, preset
from diffcore.unet3d.training import Settings, objective, torch_mesh
from diffcore.unet3d.training.torch_trainer import Trainer

SHARE = {"all_gather_single": 1.0, "reduce_scatter_single": 1.0, "all_reduce": 2.0}
"""Of the whole array times (n - 1) / n: what each of n processes receives in a ring."""


def counted(seen: dict[str, float]) -> None:
    """Count what goes through the collectives from here on."""

    def wrap(name: str) -> None:
        inner = getattr(dist, name)

        def outer(*given: Any, **named: Any) -> Any:
            tensors = [value for value in (*given, *named.values()) if isinstance(value, torch.Tensor)]
            whole, n = max(tensors, key=torch.numel), dist.get_world_size(named.get("group"))
            if whole.numel() > 64:  # not the norm, nor words
                seen[name] = seen.get(name, 0.0) + SHARE[name] * whole.numel() * whole.element_size() * (n - 1) / n
            return inner(*given, **named)

        setattr(dist, name, outer)

    for name in SHARE:
        wrap(name)


def work(device: str, name: str, batch: int, steps: int, accumulate: int) -> None:
    """What each process does."""
    torch_mesh.begin(device)
    count = dist.get_world_size()
    config = replace(preset(name), condition="none", classes=0, token_width=0)
    half = "bfloat16" if device == "cuda" else "float32"
    settings = Settings(steps=steps + 2, batch=batch, accumulate=accumulate, precision=half)
    source = data.Arrays(np.zeros((8, config.frames, *config.shape[1:]), np.float32), frames=config.frames)
    shapes = ((count,), (2, count // 2), (count, 1)) if count % 2 == 0 else ((count,), (count, 1))
    for shape in shapes:
        mesh = init_device_mesh(device, shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
        trainer = Trainer(config, settings, mesh=mesh)
        trainer.step(0, objective.draw(config, settings, source, None, 0, trainer.rows))
        taken = []
        for step in range(2, steps + 2):
            drawn = objective.draw(config, settings, source, None, step, trainer.rows)
            begun = time.perf_counter()
            float(trainer.step(step, drawn)[0])  # waits for the device
            taken.append(time.perf_counter() - begun)
        seen: dict[str, float] = {}
        saved = {name: getattr(dist, name) for name in SHARE}
        counted(seen)
        trainer.step(1, objective.draw(config, settings, source, None, 1, trainer.rows))
        for name, inner in saved.items():
            setattr(dist, name, inner)
        size, shards, replicas = (
            4 * sum(value.numel() for value in trainer.model.parameters()),
            shape[-1],
            count // shape[-1],
        )
        sums = (2 * accumulate + 1) * size * (shards - 1) / shards + 2 * size / shards * (replicas - 1) / replicas
        if dist.get_rank() == 0:
            row = {"mesh": shape, "parameters_bytes": size, "received": {k: round(v) for k, v in seen.items()}}
            row |= {"batch": batch, "accumulate": accumulate, "seconds": min(taken, default=None)}
            sys.stdout.write(json.dumps({**row, "in_all": round(sum(seen.values())), "arithmetic": round(sums)}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_bytes", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--processes", type=_arguments.count(), default=4)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--batch", type=_arguments.count(), default=4)
    parser.add_argument("--steps", type=_arguments.count(), default=3, help="that are timed")
    parser.add_argument("--accumulate", type=_arguments.count(), default=1)
    given = parser.parse_args()
    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "bytes"}
    how = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=given.processes, start_method="fork", max_restarts=0, **meeting
    )
    elastic_launch(how, work)(given.device, given.preset, given.batch, given.steps, given.accumulate)
