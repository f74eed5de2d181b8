"""Several processes of PyTorch that train one network: FSDP2 over a device mesh, and its distributed checkpoints.

A mesh of one axis shards parameters, averages and the state of AdamW over its processes; one of two axes, (replicas,
shards), over the second alone, so that (N, 1) is plain data parallelism. The batch is dealt out over all of them.
"""

from __future__ import annotations

import functools
import os
import pickle
import warnings
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.distributed.checkpoint
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from diffcore import _check
from diffcore.unet3d.training.world import World

Found = TypeVar("Found")
FUNCTION = "training.train"
dcp: Any = torch.distributed.checkpoint
PrefixStore: Any = torch.distributed.PrefixStore  # type: ignore[attr-defined]
COMPILED: dict[str, Any] = {
    "fullgraph": True,
    "dynamic": False,
}  # sizes that vary from block to block are no sizes that vary
if "isolate_recompiles" in signature(torch.compile).parameters:  # blocks of one class share no limit of graphs
    COMPILED["isolate_recompiles"] = True


class Processes(World):
    """The processes of a mesh. What they tell each other goes through the host, apart from what a step does."""

    def __init__(self, mesh: DeviceMesh) -> None:
        ranks = mesh.mesh.flatten().tolist()
        self._group, self.saving = _groups(tuple(ranks), dist.group.WORLD)
        self._chief = ranks[0]
        self.count, self.number = len(ranks), ranks.index(dist.get_rank())
        self.first = self.number == 0
        self._asked: tuple[Any, torch.Tensor] | None = None

    def agree(self, work: Callable[[], Found]) -> Found:
        """See `World`."""
        told: list[Any] = [None]
        if self.first:
            try:
                told = [(True, work())]
            except Exception as error:
                told = [(False, _portable(error))]
        dist.broadcast_object_list(told, src=self._chief, group=self._group)
        well, found = told[0]
        if not well:
            raise found
        answer: Found = found
        return answer

    def any(self, flag: bool) -> bool:
        """See `World`."""
        before, said = self._asked, torch.tensor(int(flag))
        self._asked = dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self._group, async_op=True), said
        if before is None:
            return False
        before[0].wait()
        return bool(before[1])

    def mean(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """See `World`."""
        total = torch.from_numpy(numbers / self.count)
        dist.all_reduce(total, group=self._group)
        return total.numpy()

    def close(self) -> None:
        """See `World`."""
        if self._asked is not None:
            self._asked[0].wait()
            self._asked = None


@functools.lru_cache(maxsize=16)
def _groups(ranks: tuple[int, ...], everyone: Any) -> tuple[Any, Any]:  # noqa: ARG001
    """Return two groups over the host, for words and for checkpoints, which are written by another thread; runs share them,
    since their names depend on how many there are."""
    one, other = (dist.new_group(list(ranks), backend="gloo", use_local_synchronization=True) for _ in range(2))
    return one, other


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of an error of someone's own
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def whole(device: Any = None) -> DeviceMesh | None:
    """Return a mesh of one axis over all processes that torchrun started, or None where there is one alone."""
    if not dist.is_available() or "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    kind = "cuda" if device is None and torch.cuda.is_available() else torch.device(device or "cpu").type
    begin(kind)
    return init_device_mesh(kind, (int(os.environ["WORLD_SIZE"]),), mesh_dim_names=("shards",))


def begin(kind: str) -> None:
    """Let the processes that torchrun started meet, where they have not yet.

    The agent of torchrun keeps one store for all of its restarts, in which the addresses of the processes that are gone still
    stand (torch 2.13), so that each restart gets names of its own.
    """
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        store, rank, count = next(rendezvous("env://"))
        store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count)


def check(mesh: Any) -> None:
    """Raise for what is no mesh of one or two axes with this process in it."""
    _check.instance(FUNCTION, "mesh", mesh, DeviceMesh, "a DeviceMesh of torch.distributed, or None")
    if mesh.ndim > 2:
        must = "have one axis, of shards, or two, (replicas, shards)"
        raise _check.error(
            ValueError, FUNCTION, "mesh", must, tuple(mesh.mesh.shape), "take a part of it: mesh['data']"
        )
    if mesh.ndim == 2 and mesh.mesh_dim_names is None:
        raise ValueError(f"{FUNCTION}: `mesh` has two axes, which need names: mesh_dim_names=('replicas', 'shards')")
    if mesh.get_coordinate() is None:
        raise ValueError(
            f"{FUNCTION}: `mesh` must hold this process, of rank {dist.get_rank()}; train in the processes of the mesh alone"
        )


def device_of(mesh: DeviceMesh) -> torch.device:
    """Return the device of this process."""
    kind = mesh.device_type
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def shard(model: Any, mesh: DeviceMesh, *, compile: bool) -> None:
    """Spread the parameters of a network over a mesh, one group for each block and one for the rest."""
    warnings.filterwarnings(
        "ignore", r"FSDP2-wrapped module .* returned a view tensor", UserWarning
    )  # nothing writes to it
    for now in model.parameters():
        now.data = now.data.contiguous()  # channels_last is refused
    for part in model.parts:
        if compile:
            part.compile(**COMPILED)
        fully_shard(part, mesh=mesh)
    # where no backward pass follows, what was gathered last has to be given up too, or the average stays whole
    fully_shard(model, mesh=mesh, reshard_after_forward=None if model.training else True)


def fill(place: torch.Tensor, array: npt.NDArray[Any]) -> None:
    """Write a whole array into a tensor, of which this process may have a part."""
    value = torch.from_numpy(array.copy())
    if isinstance(place, DTensor):
        value = distribute_tensor(value.to(place.device), place.device_mesh, place.placements, src_data_rank=None)
    place.copy_(value)


def gathered(value: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor, of which this process may have a part."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: torch.Tensor) -> torch.Tensor:
    """Return what this process has of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def save(state: dict[str, torch.Tensor], path: Path, group: Any) -> Callable[[], Any]:
    """Write a state to a folder in another thread: what is returned waits for it."""
    writing: Any = dcp.async_save(dict(state), storage_writer=dcp.FileSystemWriter(path), process_group=group)
    return lambda: writing.result()


def load(state: dict[str, torch.Tensor], path: Path, group: Any) -> None:
    """Read a folder into the tensors of a state, however many processes wrote it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # where one process reads
        dcp.load(state, storage_reader=dcp.FileSystemReader(path), process_group=group, no_dist=group is None)


def held(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shapes and dtypes of what a folder holds."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, about in dcp.FileSystemReader(path).read_metadata().state_dict_metadata.items():
        if hasattr(about, "size"):
            found[name] = tuple(about.size), str(about.properties.dtype).removeprefix("torch.")
        else:
            found[name] = (), type(about).__name__
    return found
