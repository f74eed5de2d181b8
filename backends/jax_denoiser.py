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

PLAIN = (bool, int, float, str)
"""Settings that are equal where their values are; anything else is equal to itself alone, whatever its own equality is."""


class Key:
    """A leaf that is no array, as a key."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.plain = isinstance(value, PLAIN)

    def __hash__(self) -> int:
        return hash(self.value) if self.plain else id(self.value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return False
        return self.value is other.value or (
            self.plain and type(self.value) is type(other.value) and self.value == other.value
        )


@dataclass(frozen=True)
class Rest:
    """A pytree without its arrays: its structure, and its other leaves."""

    tree: Any
    leaves: tuple[Key | None, ...]

    @property
    def lasting(self) -> bool:
        """Whether it is equal to that of another pytree of the same settings, so that what is kept for it serves again."""
        return all(leaf is None or leaf.plain for leaf in self.leaves)

    def join(self, arrays: Iterable[Any]) -> Any:
        """Return the pytree with these arrays."""
        left = iter(arrays)
        return jax.tree.unflatten(self.tree, [next(left) if leaf is None else leaf.value for leaf in self.leaves])


def split(given: Any) -> tuple[list[Any], Rest]:
    """Return the arrays of what is given, and the rest of it."""
    leaves, tree = jax.tree.flatten(given)
    while new := {type(leaf) for leaf in leaves if _has_parts(type(leaf))}:
        for kind in new:
            _register(kind)
        leaves, tree = jax.tree.flatten(given)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array | np.ndarray)]
    rest = tuple(None if isinstance(leaf, jax.Array | np.ndarray) else Key(leaf) for leaf in leaves)
    return arrays, Rest(tree, rest)


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
        kept = tuple(_setting(getattr(whole, name)) for name in settings)
        return tuple(getattr(whole, name) for name in parts), kept

    def unflatten(kept: tuple[Any, ...], given: Iterable[Any]) -> Any:
        whole, values = object.__new__(kind), (value.value if isinstance(value, Key) else value for value in kept)
        for name, value in (*zip(settings, values, strict=True), *zip(parts, given, strict=True)):
            object.__setattr__(whole, name, value)
        return whole

    with suppress(ValueError):  # another thread was first
        jax.tree_util.register_pytree_node(kind, flatten, unflatten)


def _setting(value: Any) -> Any:
    """Return a setting as a part of a key: one that has no hash, such as a dict or an array, is equal to itself alone."""
    try:
        hash(value)
    except TypeError:
        return Key(value)
    return value
