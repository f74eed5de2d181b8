"""How a torch DTensor is divided among processes: which region of the whole array each of them holds.

Nothing here imports torch: an array is a DTensor if it has a `device_mesh`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffcore import _check

Array = Any
"""An array of any library; see `diffcore._array`, which stands on this module."""


def divided(array: Array) -> bool:
    """Return whether an array is a DTensor."""
    return hasattr(array, "device_mesh")


def region_of(mesh: Any, placements: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return (first index, size) along each axis of an array of this shape: the region that this process holds.

    As in torch.chunk, the first shards have ceil(n / k) of n elements, and the last may have fewer, or none.

    Raises:
        ValueError: a placement that does not fit the shape, or is neither Shard nor Replicate; a process outside the mesh.
    """
    at = mesh.get_coordinate()
    if at is None:
        raise ValueError(
            f"diffcore: this process is not part of the mesh of the DTensor, {_check.shown(mesh)}; call it in the processes of "
            f"the mesh alone"
        )
    found = [(0, int(size)) for size in shape]
    for axis, placement in enumerate(placements):
        if placement.is_replicate():
            continue
        if type(placement).__name__ != "Shard":
            raise ValueError(
                f"diffcore: a DTensor must be placed by Shard and Replicate, got {placement}; redistribute it first: "
                f"z.redistribute(placements=[Replicate()])"
            )
        dim = placement.dim + len(shape) * (placement.dim < 0)
        if not 0 <= dim < len(shape):
            raise ValueError(f"diffcore: a DTensor placed by {placement} must have that axis, got the shape {shape}")
        first, size = found[dim]
        chunk = -(-size // mesh.size(axis))
        begin = min(chunk * at[axis], size)
        found[dim] = (first + begin, min(chunk, size - begin))
    return tuple(found)


def beside(array: Array, like: Array, *, shape: tuple[int, ...] | None = None) -> Array:
    """Return a tensor that every process has whole, such as a table of levels, as a DTensor on the mesh of `like`.

    With the `shape` of the data, an array of that shape is divided as `like` is: each process keeps its region, and nothing
    is sent. What is a DTensor already, and where `like` is none, stays as it is.
    """
    if not divided(like) or divided(array):
        return array
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = like.device_mesh, tuple(Replicate() for _ in like.placements)
    how: dict[str, Any] = {"run_check": False}
    if shape is not None and tuple(array.shape) == shape:
        placements = tuple(like.placements)
        how |= {"shape": array.shape, "stride": strides(shape)}
        where = region_of(mesh, placements, shape)
        array = array[tuple([slice(first, first + size) for first, size in where])].contiguous()
    return DTensor.from_local(array, mesh, placements, **how)


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous array."""
    found = [1]
    for size in reversed(shape[1:]):
        found.insert(0, found[0] * max(size, 1))
    return tuple(found[: len(shape)])


def samples(array: Array) -> Array:
    """Return an array whose samples every process has whole: of a DTensor that is divided inside samples they are gathered."""
    if not divided(array) or not any(p.is_partial() or (p.is_shard() and p.dim != 0) for p in array.placements):
        return array
    from torch.distributed.tensor import Replicate

    return array.redistribute(placements=[p if p.is_shard(0) else Replicate() for p in array.placements])


def gathered(array: Array) -> Array:
    """Return the whole of a DTensor as a tensor, in every process."""
    return array.full_tensor() if divided(array) else array


def leading(array: Array, like: Array) -> Array:
    """Return what belongs to the leading axes of the data, a DTensor or a tensor that every process has whole, divided as those
    axes are: nothing is sent, while an operation on both may send the data instead."""
    if not divided(like):
        return array
    from torch.distributed.tensor import Replicate

    shape, of = tuple(array.shape), tuple(like.shape)
    fits = [p.is_shard() and p.dim < len(shape) and shape[p.dim] == of[p.dim] for p in like.placements]
    placements = tuple([p if fit else Replicate() for p, fit in zip(like.placements, fits, strict=True)])
    array = beside(array, like)
    return array if array.placements == placements else array.redistribute(placements=placements)


def mapped(function: Callable[[Array], Array], array: Array) -> Array:
    """Return function(array), of the same shape, for a function that leaves samples apart: of a DTensor whose samples every
    process has whole, by what it has."""
    if not divided(array):
        return function(array)
    from torch.distributed.tensor import DTensor

    how: dict[str, Any] = {"run_check": False, "shape": array.shape, "stride": array.stride()}
    return DTensor.from_local(function(array.to_local()), array.device_mesh, array.placements, **how)


def samples_divided(array: Array) -> bool:
    """Return whether samples of a DTensor lie in different processes."""
    return divided(array) and any(p.is_shard(0) for p in array.placements)


def alike(array: Array, like: Array) -> Array:
    """Return a DTensor divided as another one is."""
    return array.redistribute(placements=like.placements) if divided(array) and divided(like) else array


def once(like: Array, action: Callable[[], None]) -> None:
    """Do something in the first process of the mesh of a DTensor; all its processes return when it is done."""
    from torch.distributed import barrier

    mesh = like.device_mesh
    try:
        if not any(mesh.get_coordinate()):
            action()
    finally:
        for axis in range(mesh.ndim):
            barrier(mesh.get_group(axis))
