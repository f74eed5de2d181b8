"""Many devices of JAX, in one process or in several, that train one network: shards by `NamedSharding`, orbax beyond one process.

A mesh of one axis shards parameters, averages and the state of AdamW over it; one of two axes, (replicas, shards), over
the second alone. The batch is dealt out over all devices. A step gathers the weights inside `shard_map`, whose gradient is
the sum scattered over the shards; so what is sent does not depend on what a compiler makes of it.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffcore import _check
from diffcore.unet3d.training.world import World

Found = TypeVar("Found")
Arrays = dict[str, Any]
FUNCTION = "training.train"


class Processes(World):
    """The processes that `jax.distributed` knows."""

    def __init__(self, layout: Layout) -> None:
        self.count, self.first = jax.process_count(), jax.process_index() == 0
        self._asked: jax.Array | None = None
        place = NamedSharding(layout.mesh, P(layout.axes))
        self._place = lambda flag: jax.make_array_from_callback(
            (layout.mesh.size,), place, lambda _: np.full(1, flag, np.int32)
        )
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(layout.mesh, P()))

    def agree(self, work: Callable[[], Found]) -> Found:
        """See `World`."""
        from jax.experimental.multihost_utils import broadcast_one_to_all

        told = b""
        if self.first:
            try:
                told = pickle.dumps((True, work()))
            except Exception as error:
                told = _portable(error)
        size = int(broadcast_one_to_all(np.int32(len(told))))
        text = np.frombuffer(told, np.uint8) if self.first else np.zeros(size, np.uint8)
        well, found = pickle.loads(np.asarray(broadcast_one_to_all(text), np.uint8).tobytes())
        if not well:
            raise found
        answer: Found = found
        return answer

    def any(self, flag: bool) -> bool:
        """See `World`."""
        before, self._asked = self._asked, self._any(self._place(flag))
        return before is not None and bool(before)

    def mean(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """See `World`."""
        from jax.experimental.multihost_utils import process_allgather

        words = np.ascontiguousarray(numbers).view(np.uint32)  # JAX has no float64 here
        every: npt.NDArray[np.float64] = np.asarray(process_allgather(words)).view(np.float64)
        return every.mean(axis=0)


def _portable(error: Exception) -> bytes:
    try:
        told = pickle.dumps((False, error))
        pickle.loads(told)
    except Exception:  # of an error of someone's own
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return told


class Layout:
    """Where arrays lie on a mesh.

    Fields:
        mesh, axes: the mesh and the names of its axes.
        batch, rows: samples of a step, and (first, count) of those that this process has.
    """

    def __init__(self, mesh: Any, batch: int) -> None:
        _check.instance(FUNCTION, "mesh", mesh, Mesh, "a jax.sharding.Mesh, or None")
        if mesh.devices.ndim > 2:
            must = "have one axis, of shards, or two, (replicas, shards)"
            raise _check.error(ValueError, FUNCTION, "mesh", must, mesh.devices.shape)
        self.mesh, self.axes = (
            Mesh(mesh.devices, mesh.axis_names),
            tuple(mesh.axis_names),
        )  # whose axes are all automatic
        here = [device.process_index == jax.process_index() for device in mesh.devices.flatten()]
        first, count, each = here.index(True) if any(here) else 0, sum(here), batch // mesh.size
        if not count or not all(here[first : first + count]):
            raise ValueError(
                f"{FUNCTION}: `mesh` must hold the devices of each process in a row, those of process {jax.process_index()} "
                f"among them; jax.make_mesh makes one"
            )
        self.batch, self.rows = batch, (first * each, count * each)

    def spec(self, shape: tuple[int, ...]) -> P:
        """Return how a parameter is cut: along its longest axis that the shards divide, or not at all."""
        size = self.mesh.shape[self.axes[-1]]
        fit = [(extent, axis) for axis, extent in enumerate(shape) if extent % size == 0 and extent]
        if not fit or size == 1:
            return P()
        axis = max(fit)[1]
        return P(*[self.axes[-1] if place == axis else None for place in range(len(shape))])

    def put(self, array: Any, spec: P) -> jax.Array:
        """Return a whole array of the host, of which each device gets its part."""
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, NamedSharding(self.mesh, spec), lambda index: array[index])

    def deal(self, rows: Any) -> Any:
        """Return the rows of this process, in a tree, as parts of the batch of all."""
        place, first = NamedSharding(self.mesh, P(self.axes)), self.rows[0]

        def one(array: Any) -> jax.Array:
            of = lambda index: slice(*(place - first for place in index[0].indices(self.batch)[:2]))  # noqa: E731
            return jax.make_array_from_callback((self.batch, *array.shape[1:]), place, lambda index: array[of(index)])

        return jax.tree.map(one, rows)

    def gradient(self, one: Callable[..., tuple[jax.Array, Arrays]]) -> Callable[..., tuple[jax.Array, Arrays]]:
        """Return the loss and gradient of all devices; `one` gives those of the rows of one, of a function that turns the
        parts of the weights into the weights, these parts, and the rest."""

        def run(model: Arrays, *given: Any) -> tuple[jax.Array, Arrays]:
            specs = {name: self.spec(array.shape) for name, array in model.items()}
            inner = partial(self._one, one, specs)
            inside = (specs, *(P(self.axes) for _ in given[:-1]), P())
            mapped = jax.shard_map(inner, mesh=self.mesh, in_specs=inside, out_specs=(P(), specs), check_vma=False)
            found: tuple[jax.Array, Arrays] = mapped(model, *given)
            return found

        return run

    def _one(self, one: Any, specs: dict[str, P], shards: Arrays, *given: Any) -> tuple[jax.Array, Arrays]:
        gather = lambda parts: {name: self._gathered(part, specs[name]) for name, part in parts.items()}  # noqa: E731
        value, found = one(gather, shards, *given)
        summed = {
            name: jax.lax.psum(part, self.axes if specs[name] == P() else self.axes[:-1])
            for name, part in found.items()
        }
        return jax.lax.pmean(value, self.axes), {name: part / self.mesh.size for name, part in summed.items()}

    def _gathered(self, part: jax.Array, spec: P) -> jax.Array:
        if spec == P():
            return part
        return jax.lax.all_gather(part, self.axes[-1], axis=list(spec).index(self.axes[-1]), tiled=True)

    def shardings(self, tree: Any) -> Any:
        """Return the sharding of each array of a state."""
        return jax.tree.map(lambda array: NamedSharding(self.mesh, self.spec(np.shape(array))), tree)

    def replicated(self) -> NamedSharding:
        """Return the sharding of what every device has."""
        return NamedSharding(self.mesh, P())


def everywhere() -> Mesh | None:
    """Return a mesh of one axis over all devices of several processes, or None where there is one process."""
    return None if jax.process_count() == 1 else Mesh(np.array(jax.devices()), ("shard",))


def gathered(arrays: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return arrays on the host of every process."""
    apart = {name: a for name, a in arrays.items() if isinstance(a, jax.Array) and not a.is_fully_addressable}
    if apart:
        place: Any = next(iter(apart.values())).sharding
        whole = jax.jit(lambda same: same, out_shardings=NamedSharding(place.mesh, P()))(apart)  # one program for all
        arrays = {**arrays, **whole}
    return {name: np.array(array) for name, array in arrays.items()}


def _orbax() -> Any:
    return importlib.import_module("orbax.checkpoint")


def save(state: Arrays, path: Path) -> Callable[[], Any]:
    """Write a state to a folder in another thread: what is returned waits for it."""
    ocp = _orbax()
    writer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
    writer.save(path.absolute(), args=ocp.args.StandardSave(state))

    def end() -> None:
        writer.wait_until_finished()
        writer.close()

    return end


def load(like: Mapping[str, Any], path: Path) -> Arrays:
    """Return the arrays of a folder, laid out as those of `like` are, however many processes wrote it."""
    ocp = _orbax()
    wanted = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in like.items()}
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        found: Arrays = reader.restore(path.absolute(), args=ocp.args.StandardRestore(wanted))
    return found


def held(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shapes and dtypes of what a folder holds."""
    ocp = _orbax()
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        found = reader.metadata(path.absolute()).item_metadata
    return {name: (tuple(about.shape), str(np.dtype(about.dtype))) for name, about in found.items()}
