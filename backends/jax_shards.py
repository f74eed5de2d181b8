"""The CPU's kernel on several devices: each makes the part of the arrays that lies on it.

XLA divides its own operations among devices, but knows nothing of a call. Under `jax.jit` it asks `custom_partitioning` for the
program of a part, on a mesh with explicit axes `jax.shard_map` runs it, and inside a `shard_map` of the caller's the part is all
that there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Call = Callable[[Any, Any, Any], Any]
"""(part, arrays that are divided, arrays that are not) -> arrays of the shape of the divided ones, or without elements."""


def varying(arrays: Any) -> frozenset[Any]:
    """Return the axes of a `shard_map` over which arrays vary, as their types have it."""
    axes: list[frozenset[Any]] = []
    for array in jax.tree.leaves(arrays):
        kind = getattr(array, "aval", array)
        said = getattr(kind, "mat", None) or getattr(
            kind, "manual_axis_type", None
        )  # before jax 0.10 the type has `vma` itself
        axes.append(getattr(said, "varying", None) or getattr(kind, "vma", None) or frozenset())
    return frozenset[Any]().union(*axes)


def vary(array: Any, axes: frozenset[Any]) -> Any:
    """Return an array whose type varies over these axes too."""
    more = tuple(axes - varying(array))
    return jax.lax.pcast(jnp.asarray(array), more, to="varying") if more else array


def spec_of(array: Any) -> tuple[Any, ...]:
    """Return how an array lies on a mesh with explicit axes, axis by axis, as its type has it."""
    spec = getattr(getattr(getattr(array, "aval", None), "sharding", None), "spec", ())
    return () if all(axis is None for axis in spec) else tuple(spec)


def divides(*arrays: Any) -> bool:
    """Return whether a call can be divided where arrays lie: not on a mesh whose axes are partly manual or explicit, partly
    not, nor by the partitioner that Shardy replaced."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes:
        return set(mesh.manual_axes) == set(mesh.axis_names)
    if jax.device_count() > 1 and not getattr(jax.config, "jax_use_shardy_partitioner", True):
        return False
    return not mesh.explicit_axes or not mesh.auto_axes or not any(map(spec_of, arrays))


def most(shape: tuple[int, ...]) -> int:
    """Return how many axes may be divided: only the batch's where a sample has more elements than a part can count."""
    return len(shape) if math.prod(shape[1:]) <= 1 << 32 else 1


class Part(NamedTuple):
    """A part of an array: the shape of all of it, where the part begins, its shape, and which axes are divided."""

    whole: tuple[int, ...]
    starts: Any
    shape: tuple[int, ...]
    divided: tuple[bool, ...]

    def region(self) -> list[tuple[Any, int]]:
        """Return (first index, size) along each axis."""
        return [(self.starts[axis] if cut else 0, self.shape[axis]) for axis, cut in enumerate(self.divided)]

    def of(self, array: jax.Array, axes: int) -> jax.Array:
        """Return what belongs to the part of an array whose first axes are those of the whole, or 1."""
        for axis in range(axes):
            if self.divided[axis] and array.shape[axis] > 1:
                array = jax.lax.dynamic_slice_in_dim(array, self.starts[axis], self.shape[axis], axis)
        return array


def everywhere(call: Call, shape: tuple[int, ...], divided: Any, whole: Any, axes: int, like: jax.Array) -> Any:
    """Return call(None, divided, whole), however arrays of this shape lie on devices.

    Args:
        call: the arrays that it returns are of the shape of the divided ones, or without elements.
        shape: of the divided arrays.
        divided, whole: arrays that a device has a part of, and all of.
        axes: how many, of the first, may be divided.
        like: what on a mesh with explicit axes lies along the first `axes` axes as the divided arrays do.
    """
    whole = jax.tree.map(jnp.asarray, whole)
    if jax.sharding.get_abstract_mesh().manual_axes:
        over = varying((divided, whole))
        divided, whole = jax.tree.map(lambda array: vary(array, over), (divided, whole))
        return jax.tree.map(lambda array: vary(array, over), call(None, divided, whole))
    spec = spec_of(like)[:axes]
    if any(axis is not None for axis in spec):
        return _on_mesh(call, shape, divided, whole, spec, like.aval.sharding.mesh)
    return _shared(call, shape, divided, whole, axes) if jax.device_count() > 1 else call(None, divided, whole)


def _on_mesh(call: Call, shape: tuple[int, ...], divided: Any, whole: Any, spec: tuple[Any, ...], mesh: Any) -> Any:
    """Return the same on a mesh with explicit axes."""
    names: list[tuple[str, ...]] = [
        () if name is None else name if isinstance(name, tuple) else (name,) for name in spec
    ]
    names += [()] * (len(shape) - len(names))
    size = tuple(n // math.prod(mesh.shape[name] for name in each) for n, each in zip(shape, names, strict=True))
    cut = tuple(n != m for n, m in zip(size, shape, strict=True))

    def local(divided: Any, whole: Any) -> Any:
        starts = [jax.lax.axis_index(each) * n if each else 0 for each, n in zip(names, size, strict=True)]
        here = jnp.stack([jnp.asarray(start, jnp.uint32) for start in starts])
        return call(Part(shape, here, size, cut), divided, whole)

    everywhere, lies = PartitionSpec(), PartitionSpec(*spec)
    whole = jax.tree.map(lambda array: jax.sharding.reshard(array, NamedSharding(mesh, everywhere)), whole)
    bare = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), (divided, whole))
    ways = jax.tree.map(
        lambda array: lies if array.shape == shape else everywhere, jax.eval_shape(partial(call, None), *bare)
    )
    return jax.shard_map(local, mesh=mesh, in_specs=(lies, everywhere), out_specs=ways, check_vma=False)(divided, whole)


def _shared(call: Call, shape: tuple[int, ...], divided: Any, whole: Any, axes: int) -> Any:
    """Return call(None, divided, whole), of which every device makes its part where XLA divides the arrays evenly."""
    function = custom_partitioning(lambda divided, whole: call(None, divided, whole))

    def parted(array: Any) -> Any:
        """Return how an array is divided, or None where it is not, or not evenly, or along other axes."""
        sharding = array.sharding
        if sharding is None or array.shape != shape or sharding.is_fully_replicated:
            return None
        try:
            part = sharding.shard_shape(shape)
        except ValueError:
            return None
        return sharding if part[axes:] == shape[axes:] else None

    def partition(mesh: Any, given: Any, found: Any) -> Any:
        results = jax.tree.leaves(found)
        sharding = next((way for way in map(parted, results) if way is not None), None)
        everywhere = sharding if sharding is not None else results[0].sharding
        even = (len(everywhere.device_set),) * results[0].ndim  # which any sharding divides
        places = everywhere.devices_indices_map(even if sharding is None else shape)
        mesh = Mesh(np.array(list(places)), ("device",))
        alike = NamedSharding(mesh, PartitionSpec())
        ways = jax.tree.map(lambda array: sharding if sharding is not None and array.shape == shape else alike, found)
        given = (jax.tree.map(lambda _: sharding or alike, given[0]), jax.tree.map(lambda _: alike, given[1]))
        if sharding is None:
            return mesh, lambda divided, whole: call(None, divided, whole), ways, given
        size = sharding.shard_shape(shape)
        cut = tuple(n != m for n, m in zip(size, shape, strict=True))
        starts = np.array([[at.start or 0 for at in place] for place in places.values()], np.uint32)

        def lower(divided: Any, whole: Any) -> Any:
            here = jnp.asarray(starts)[jax.lax.axis_index("device")]
            return call(Part(shape, here, size, cut), divided, whole)

        return mesh, lower, ways, given

    factors = [f"axis{axis}" for axis in range(len(shape))]
    names = count()

    def own(array: Any) -> list[str]:
        return [f"own{next(names)}" for _ in range(array.ndim)]

    results = jax.tree.leaves(jax.eval_shape(partial(call, None), divided, whole))
    takes = [*(factors for _ in jax.tree.leaves(divided)), *map(own, jax.tree.leaves(whole))]
    gives = [factors if array.shape == shape else own(array) for array in results]
    met = dict.fromkeys(name for each in (*takes, *gives) for name in each)
    alike = tuple(name for name in met if name not in factors[:axes])  # in the order in which they are met
    operands, made = (tuple(ArrayMapping(*each) for each in side) for side in (takes, gives))
    rule = SdyShardingRule(operands, made, need_replication_factors=alike)
    function.def_partition(partition, sharding_rule=rule)
    return jax.custom_batching.sequential_vmap(lambda divided, whole: function(divided, whole))(divided, whole)
