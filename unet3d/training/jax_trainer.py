"""A training step in JAX, on one device or on many: one compiled function of the state, whose buffers it reuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from flax import nnx

from diffcore.unet3d import weights as files
from diffcore.unet3d.build import initial
from diffcore.unet3d.config import UNet3DConfig
from diffcore.unet3d.jax_unet import UNet3D
from diffcore.unet3d.training import jax_mesh
from diffcore.unet3d.training.objective import Drawn, loss
from diffcore.unet3d.training.settings import Settings
from diffcore.unet3d.training.world import World, check_batch

Arrays = dict[str, Any]
"""By canonical name: of JAX, or on their way there."""


class State(NamedTuple):
    """What a step changes: the weights, their average, the moments of AdamW, and how many steps were taken."""

    model: Arrays
    averaged: Arrays
    mu: Arrays
    nu: Arrays
    count: Any


class Trainer:
    """The state of a run and its step: the weights, their average, and AdamW.

    Args:
        config, settings: what is trained, and how.
        device: a JAX device or sharding, or a platform such as "cpu".
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
        start: weights to start from, by canonical name; None draws them from the seed.
        mesh: a `jax.sharding.Mesh` of one axis, or of two, (replicas, shards); None takes the devices of all processes
            where there are several, else `device`.
    """

    library = "jax"

    def __init__(
        self,
        config: UNet3DConfig,
        settings: Settings,
        *,
        device: Any = None,
        checkpointing: bool = False,
        mesh: Any = None,
        start: Any = None,
    ) -> None:
        self.config, self.settings = config, settings
        self.device = jax.devices(device)[0] if isinstance(device, str) else device
        mesh = jax_mesh.everywhere() if mesh is None else mesh
        check_batch(settings.batch, settings.accumulate, 1 if mesh is None else mesh.size, even=True)
        self._layout = layout = None if mesh is None else jax_mesh.Layout(mesh, settings.batch)
        self.rows = (0, settings.batch) if layout is None else layout.rows
        self.parts = settings.accumulate * (1 if layout is None else len(layout.mesh.local_devices))
        self.sharded = jax.process_count() > 1
        self.world = jax_mesh.Processes(layout) if layout is not None and self.sharded else World()
        if layout is not None:
            self.device = layout.mesh.local_devices[0]
        first = initial(config, settings.seed) if start is None else start
        settings.frozen_of(first)  # raises where a pattern fits none
        half = settings.precision if settings.precision != "float32" else None
        model = UNet3D(config, first, device=self.device, checkpointing=checkpointing, compute_dtype=half)
        zeros = {name: np.zeros_like(array) for name, array in first.items()}
        self._place(State(first, first, zeros, zeros, np.int32(0)))
        graph = nnx.graphdef(model)
        of_mesh = () if layout is None else (layout, layout.shardings(State(first, first, zeros, zeros, np.int32(0))))
        self._advance = compiled(graph, config, settings, *of_mesh)

    def _place(self, state: State) -> None:
        # JAX may share a host array instead of copying it, and what is donated must be shared by nothing
        layout = self._layout
        if layout is None:
            put = lambda array: jax.device_put(array, self.device)  # noqa: E731
        else:
            put = lambda array: layout.put(array, layout.spec(np.shape(array)))  # noqa: E731
        self._state = jax.tree.map(lambda array: jnp.array(put(array), copy=True), state)

    def step(self, number: int, drawn: Drawn) -> tuple[Any, Any]:
        """Take step `number`, and return the loss and the norm of the gradient, which may still be on the device."""
        settings, given = self.settings, (drawn.x, drawn.t, drawn.cond, drawn.keys)
        given = jax.device_put(given, self.device) if self._layout is None else self._layout.deal(given)
        scalars = np.uint32(number), np.float32(settings.rate(number)), np.float32(1.0 - settings.decay(number))
        self._state, value, norm = self._advance(self._state, *given, *scalars)
        return value, norm

    @property
    def averaged(self) -> UNet3D:
        """A model with the averaged weights, in float32."""
        averaged = self._state.averaged if self._layout is None else self.weights()
        return UNet3D(self.config, averaged, device=self.device)

    def like(self) -> jax.Array:
        """Return an array of the library and device of this run."""
        return jax.device_put(jnp.zeros(1), self.device)

    def _arrays(self) -> Arrays:
        """Return all that a run needs to go on, by name."""
        found = {"count": self._state.count}
        for kind, arrays in self._state._asdict().items():
            if kind != "count":
                found |= {f"{kind}/{name}": array for name, array in arrays.items()}
        return found

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that a run needs to go on, as arrays on the host."""
        return jax_mesh.gathered(self._arrays())

    def form(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays of `state`."""
        return {name: tuple(array.shape) for name, array in self._arrays().items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take up the state that `state` returned."""
        self._place(self._named(state))

    def _named(self, state: Mapping[str, Any]) -> State:
        of = lambda kind: {name: state[f"{kind}/{name}"] for name in self._state.model}  # noqa: E731
        return State(of("model"), of("averaged"), of("mu"), of("nu"), state["count"])

    def save(self, path: Path) -> Callable[[], Any]:
        """Write the state to a folder, each process its part, in another thread; what is returned waits for it.

        Raises:
            ValueError: NaN or infinity in what this process has.
        """
        found = self._arrays()
        parts = ((name, shard) for name, array in found.items() for shard in array.addressable_shards)
        files.check_finite("training.train", {f"{name}{shard.index}": np.asarray(shard.data) for name, shard in parts})
        return jax_mesh.save(found, path)

    def load(self, path: Path) -> None:
        """Take up the state that any number of processes wrote."""
        self._state = self._named(jax_mesh.load(self._arrays(), path))

    held = staticmethod(jax_mesh.held)

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the averaged weights by canonical name."""
        return jax_mesh.gathered(self._state.averaged)


def compiled(graph: Any, config: UNet3DConfig, settings: Settings, layout: Any = None, places: Any = None) -> Any:
    """Return the step of a network as a compiled function that reuses the buffers of the state it is given."""
    gradient = partial(_gradient, graph, config, settings)
    if layout is None:
        return jax.jit(partial(_advance, settings, partial(gradient, lambda same: same)), donate_argnums=0)
    out = (places, layout.replicated(), layout.replicated())
    return jax.jit(partial(_advance, settings, layout.gradient(gradient)), donate_argnums=0, out_shardings=out)


def _gradient(
    graph: Any,
    config: UNet3DConfig,
    settings: Settings,
    whole: Callable[[Arrays], Arrays],
    model: Arrays,
    x: jax.Array,
    t: jax.Array,
    cond: Any,
    keys: jax.Array,
    number: jax.Array,
) -> tuple[jax.Array, Arrays]:
    """Return the mean loss of some rows and its gradient by the arrays that `whole` turns into the weights."""

    def objective(weights: Arrays, drawn: Drawn) -> jax.Array:
        flat: Any = {tuple(name.split(".")): nnx.Param(array) for name, array in whole(weights).items()}
        words = jax.random.wrap_key_data(drawn.keys, impl="threefry2x32")  # a key for each sample
        rngs = jax.vmap(jax.random.fold_in, (0, None))(words, number) if config.dropout else None
        predict = partial(nnx.merge(graph, nnx.from_flat_state(flat)), rngs=rngs)
        value: jax.Array = loss(predict, settings, config, drawn, number)
        return value

    take = jax.value_and_grad(objective)
    if settings.accumulate == 1:
        found: tuple[jax.Array, Arrays] = take(model, Drawn(x, t, cond, settings.images, keys))
        return found

    def add(total: Any, rows: Any) -> Any:
        x, t, cond, keys = rows
        part = take(model, Drawn(x, t, cond, settings.images, keys))
        return jax.tree.map(jnp.add, total, part), None

    count = settings.accumulate
    rows = jax.tree.map(lambda array: array.reshape(count, -1, *array.shape[1:]), (x, t, cond, keys))
    total, _ = jax.lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, model)), rows)
    mean: tuple[jax.Array, Arrays] = jax.tree.map(lambda summed: summed / count, total)
    return mean


def _advance(
    settings: Settings,
    gradient_of: Callable[..., tuple[jax.Array, Arrays]],
    state: State,
    x: jax.Array,
    t: jax.Array,
    cond: Any,
    keys: jax.Array,
    number: jax.Array,
    rate: jax.Array,
    new: jax.Array,
) -> tuple[State, jax.Array, jax.Array]:
    """Return the next state, the loss and the norm of the gradient; `new` is the share of the average that is new."""
    value, gradient = gradient_of(state.model, x, t, cond, keys, number)
    frozen = settings.frozen_of(state.model)
    gradient = {name: jnp.zeros_like(part) if name in frozen else part for name, part in gradient.items()}
    norm = jnp.sqrt(sum(jnp.sum(part**2) for part in gradient.values()))
    shrink = jnp.minimum(1.0, settings.clip_norm / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_ has it
    gradient = jax.tree.map(lambda part: part * shrink, gradient)
    adamw = optax.chain(
        optax.scale_by_adam(settings.beta1, settings.beta2, eps=1e-8),
        optax.add_decayed_weights(settings.weight_decay),
    )
    moments = (optax.ScaleByAdamState(state.count, state.mu, state.nu), optax.EmptyState())
    update, (adam, _) = adamw.update(gradient, moments, state.model)
    model = {name: now if name in frozen else now - rate * update[name] for name, now in state.model.items()}
    averaged = jax.tree.map(lambda mean, now: mean + new * (now - mean), state.averaged, model)
    return State(model, averaged, adam.mu, adam.nu, adam.count), value, norm
