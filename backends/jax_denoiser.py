"""What a caller hands to a run, as a pytree: its arrays are arguments of a compiled run, and the rest finds the run again.

A denoiser may be a pytree, such as a flax module. A wrapper, a constraint or a transform becomes one here by its `parts`, see
`diffcore.denoiser`: nothing is known of any class.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import jax
import numpy as np


class Same:
    """A value as a key: equal only to itself, whatever its own equality is."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value


@dataclass(frozen=True)
class Rest:
    """A pytree without its arrays: its structure, and its other leaves."""

    tree: Any
    leaves: tuple[Any, ...]
    """None for an array, a number or a text itself, `Same` of anything else."""

    @property
    def lasting(self) -> bool:
        """Whether it is equal to any other one of the same settings, so that what is kept for it serves again."""
        return not any(isinstance(leaf, Same) for leaf in self.leaves)

    def join(self, arrays: Iterable[Any]) -> Any:
        """Return the pytree with these arrays."""
        left = iter(arrays)
        values = [next(left) if leaf is None else leaf.value if isinstance(leaf, Same) else leaf for leaf in self.leaves]
        return jax.tree.unflatten(self.tree, values)


def split(given: Any) -> tuple[list[Any], Rest]:
    """Return the arrays of what is given, and the rest of it."""
    leaves, tree = jax.tree.flatten(given)
    while new := {type(leaf) for leaf in leaves if _has_parts(type(leaf))}:
        for kind in new:
            _register(kind)
        leaves, tree = jax.tree.flatten(given)
    try:
        hash(tree)
    except TypeError:  # settings that cannot be a key: what is given is one, as a whole
        leaves, tree = [given], jax.tree.structure(0)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array | np.ndarray)]
    return arrays, Rest(tree, tuple(map(_rest, leaves)))


def _rest(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | np.ndarray):
        return None
    return leaf if isinstance(leaf, bool | int | float | str) else Same(leaf)


def _has_parts(kind: type[Any]) -> bool:
    return is_dataclass(kind) and isinstance(getattr(kind, "parts", None), tuple)


def _register(kind: type[Any]) -> None:
    """Make a class with `parts` a pytree; an instance is put together without its `__init__`, which may check its arrays."""
    names = [field.name for field in fields(kind)]
    parts: tuple[str, ...] = kind.parts
    if not set(parts) <= set(names):
        raise TypeError(f"sample: `parts` of {kind.__name__} must name fields of it, {names}, got {parts}")
    settings = [name for name in names if name not in parts]

    def flatten(whole: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(whole, name) for name in parts), tuple(getattr(whole, name) for name in settings)

    def unflatten(kept: tuple[Any, ...], given: Iterable[Any]) -> Any:
        whole = object.__new__(kind)
        for name, value in (*zip(settings, kept, strict=True), *zip(parts, given, strict=True)):
            object.__setattr__(whole, name, value)
        return whole

    with suppress(ValueError):  # another thread was first
        jax.tree_util.register_pytree_node(kind, flatten, unflatten)
