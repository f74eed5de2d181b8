"""What a step of training sends between processes: `python -m benchmarks.training_bytes`.

Counts the bytes of the collectives of one step on a CPU, for meshes of four processes, and sets them beside the arithmetic:
with P bytes of parameters, S shards and R replicas, gathering twice and scattering the gradient once is 3 P (S - 1) / S that each
process receives, and adding up the gradient of the shards over the replicas 2 (P / S) (R - 1) / R.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from diffcore.unet3d import data, preset
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


def work() -> None:
    """What each process does."""
    torch_mesh.begin("cpu")
    config, settings = preset("tiny"), Settings(steps=2, batch=4)
    source = data.Arrays(np.zeros((8, config.frames, *config.shape[1:]), np.float32), frames=config.frames)
    for shape in ((4,), (2, 2), (4, 1)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
        trainer = Trainer(config, settings, mesh=mesh)
        trainer.step(0, objective.draw(config, settings, source, None, 0, trainer.rows))
        seen: dict[str, float] = {}
        saved = {name: getattr(dist, name) for name in SHARE}
        counted(seen)
        trainer.step(1, objective.draw(config, settings, source, None, 1, trainer.rows))
        for name, inner in saved.items():
            setattr(dist, name, inner)
        size, shards, replicas = (
            4 * sum(value.numel() for value in trainer.model.parameters()),
            shape[-1],
            4 // shape[-1],
        )
        sums = 3 * size * (shards - 1) / shards + 2 * size / shards * (replicas - 1) / replicas
        if dist.get_rank() == 0:
            row = {"mesh": shape, "parameters_bytes": size, "received": {k: round(v) for k, v in seen.items()}}
            sys.stdout.write(json.dumps({**row, "in_all": round(sum(seen.values())), "arithmetic": round(sums)}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "bytes"}
    how = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=4, start_method="fork", max_restarts=0, **meeting)
    elastic_launch(how, work)()
