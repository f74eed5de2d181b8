"""The devices of a command that runs on several: those of torchrun, or those of JAX."""

from __future__ import annotations

import math
import os
import re
from typing import Any, NamedTuple

from diffcore.cli import numbered
from diffcore.cli.report import usage


class Over(NamedTuple):
    """What a command runs over.

    Fields:
        mesh: of the library, or None for one device.
        device: of this process.
        first: whether this process is the one that says what happens.
        processes, devices: how many there are.
    """

    mesh: Any
    device: str | None
    first: bool
    processes: int
    devices: int


def of(backend: str, mesh: str | None, device: str | None) -> Over:
    """Return what a command runs over: all processes that torchrun started, or `mesh`, such as "8" or "2x4"."""
    shape = _shape(mesh)
    rank, world = numbered.process()
    if backend == "torch":
        return _of_torch(shape, device, rank, world)
    import jax

    if world > 1:
        host, port = os.environ.get("MASTER_ADDR", "localhost"), int(os.environ.get("MASTER_PORT", "29500")) + 1
        here = os.environ.get("LOCAL_RANK", "0") if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1 else None
        of_this_process = (
            None if here is None else [int(here)]
        )  # a GPU, as in torch; the only process of a machine has all
        jax.distributed.initialize(f"{host}:{port}", world, rank, local_device_ids=of_this_process)
    platform = {"cuda": "gpu"}.get(device or "", device)
    there = jax.devices(platform.partition(":")[0] if platform else None)
    shape = shape or ((len(there),) if world > 1 else ())
    size = math.prod(shape)
    if size > len(there) or (world > 1 and size != len(there)):
        usage(f"--mesh {mesh} is for {size} devices, but JAX finds {len(there)}")
    if not shape:
        return Over(None, device, rank == 0, 1, 1)
    import numpy as np

    names = ("replicas", "shards")[-len(shape) :]
    return Over(jax.sharding.Mesh(np.array(there[:size]).reshape(shape), names), device, rank == 0, world, size)


def _of_torch(shape: tuple[int, ...], device: str | None, rank: int, world: int) -> Over:
    size = math.prod(shape)
    if shape and size != world:
        usage(
            f"--mesh is for {size} processes, but there are {world}; start them with torchrun --nproc-per-node {size} -m "
            f"diffcore train ..."
        )
    if world == 1:
        return Over(None, device, True, 1, 1)
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    from diffcore.unet3d.training import torch_mesh

    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    here = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if kind == "cuda" else kind
    torch_mesh.begin(kind)
    shape = shape or (world,)
    found = init_device_mesh(kind, shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
    return Over(found, here, rank == 0, world, world)


def _shape(mesh: str | None) -> tuple[int, ...]:
    if mesh is None:
        return ()
    if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})?", mesh):
        usage(f"--mesh must be a number of devices, such as 8, or replicas x shards, such as 2x4, got {mesh}")
    return tuple(map(int, mesh.split("x")))
