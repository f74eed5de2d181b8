"""The state of a run between two stages."""

from __future__ import annotations

from typing import Any, NamedTuple

from diffcore._array import Array


class State(NamedTuple):
    """A run between two stages.

    Fields:
        z: the noisy data, (B, ...).
        memory: what the plan remembers beside it, M arrays of the shape of z.
        x: x-hat of the last stage; 0 before the first, None inside a run that nobody watches.
        index: the number of the next stage.
        draw: the number of the next draw of noise, which goes on when another plan follows; see `start`.
        keys: the key words of the samples, (B, 2), or None where the caller gives the noise.

    A tuple of arrays, and a pytree on JAX. `save_state` writes it to a file.
    """

    z: Array
    memory: tuple[Array, ...]
    x: Array | None
    index: Any
    draw: Any
    keys: Array | None
