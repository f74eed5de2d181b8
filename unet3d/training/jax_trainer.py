"""A training step in JAX: one compiled function of the state, whose buffers it reuses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from flax import nnx

from diffcore import noise
from diffcore.unet3d.build import initial
from diffcore.unet3d.config import UNet3DConfig
from diffcore.unet3d.jax_unet import UNet3D
from diffcore.unet3d.training.objective import Drawn, loss
from diffcore.unet3d.training.settings import Settings

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
    """

    library = "jax"

    def __init__(
        self, config: UNet3DConfig, settings: Settings, *, device: Any = None, checkpointing: bool = False
    ) -> None:
        self.config, self.settings = config, settings
        self.device = jax.devices(device)[0] if isinstance(device, str) else device
        first = initial(config, settings.seed)
        half = settings.precision if settings.precision != "float32" else None
        model = UNet3D(config, first, device=self.device, checkpointing=checkpointing, compute_dtype=half)
        zeros = {name: np.zeros_like(array) for name, array in first.items()}
        self._place(State(first, first, zeros, zeros, np.int32(0)))
        self._advance = compiled(nnx.graphdef(model), config, settings)

    def _place(self, state: State) -> None:
        # JAX may share a host array instead of copying it, and what is donated must be shared by nothing
        self._state = jax.tree.map(lambda array: jnp.array(jax.device_put(array, self.device), copy=True), state)

    def step(self, number: int, drawn: Drawn) -> tuple[Any, Any]:
        """Take step `number`, and return the loss and the norm of the gradient, which may still be on the device."""
        settings, given = self.settings, jax.device_put(drawn[:3], self.device)
        scalars = np.uint32(number), np.float32(settings.rate(number)), np.float32(1.0 - settings.decay(number))
        self._state, value, norm = self._advance(self._state, *given, *scalars)
        return value, norm

    @property
    def averaged(self) -> UNet3D:
        """A model with the averaged weights, in float32."""
        return UNet3D(self.config, self._state.averaged, device=self.device)

    def like(self) -> jax.Array:
        """Return an array of the library and device of this run."""
        return jax.device_put(jnp.zeros(1), self.device)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that a run needs to go on, as arrays on the host."""
        found = {"count": np.array(self._state.count)}
        for kind, arrays in self._state._asdict().items():
            if kind != "count":
                found |= {f"{kind}/{name}": np.array(array) for name, array in arrays.items()}
        return found

    def form(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays of `state`."""
        kinds = [kind for kind in State._fields if kind != "count"]
        shapes = {name: tuple(array.shape) for name, array in self._state.model.items()}
        return {"count": ()} | {f"{kind}/{name}": shape for name, shape in shapes.items() for kind in kinds}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take up the state that `state` returned."""
        of = lambda kind: {name: state[f"{kind}/{name}"] for name in self._state.model}  # noqa: E731
        self._place(State(of("model"), of("averaged"), of("mu"), of("nu"), state["count"]))

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the averaged weights by canonical name."""
        return {name: np.array(array) for name, array in self._state.averaged.items()}


def compiled(graph: Any, config: UNet3DConfig, settings: Settings) -> Any:
    """Return the step of a network as a compiled function that reuses the buffers of the state it is given."""
    return jax.jit(partial(_advance, graph, config, settings), donate_argnums=0)


def _advance(
    graph: Any,
    config: UNet3DConfig,
    settings: Settings,
    state: State,
    x: jax.Array,
    t: jax.Array,
    cond: Any,
    number: jax.Array,
    rate: jax.Array,
    new: jax.Array,
) -> tuple[State, jax.Array, jax.Array]:
    """Return the next state, the loss and the norm of the gradient; `new` is the share of the average that is new."""
    key = jax.random.wrap_key_data(jnp.asarray(noise.keys(settings.seed, 1)[0]), impl="threefry2x32")
    key = jax.random.fold_in(key, number)

    def objective(weights: Arrays) -> jax.Array:
        flat: Any = {tuple(name.split(".")): nnx.Param(array) for name, array in weights.items()}
        predict = partial(nnx.merge(graph, nnx.from_flat_state(flat)), rngs=key)
        value: jax.Array = loss(predict, settings, config, Drawn(x, t, cond, settings.images), number)
        return value

    value, gradient = jax.value_and_grad(objective)(state.model)
    norm = jnp.sqrt(sum(jnp.sum(part**2) for part in gradient.values()))
    shrink = jnp.minimum(1.0, settings.clip_norm / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_ has it
    gradient = jax.tree.map(lambda part: part * shrink, gradient)
    adamw = optax.chain(
        optax.scale_by_adam(settings.beta1, settings.beta2, eps=1e-8),
        optax.add_decayed_weights(settings.weight_decay),
    )
    moments = (optax.ScaleByAdamState(state.count, state.mu, state.nu), optax.EmptyState())
    update, (adam, _) = adamw.update(gradient, moments, state.model)
    model = jax.tree.map(lambda now, part: now - rate * part, state.model, update)
    averaged = jax.tree.map(lambda mean, now: mean + new * (now - mean), state.averaged, model)
    return State(model, averaged, adam.mu, adam.nu, adam.count), value, norm
