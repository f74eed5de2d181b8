"""Denoisers in a compiled run that is kept: their arrays are its arguments, so that it reads what they hold now.

A denoiser may be a pytree, such as a flax module. The wrappers of diffcore become pytrees here: what they wrap, what they are
conditioned on and what is observed are their parts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np

from diffcore._pair import One, Two
from diffcore.conditioning import MomentMatching, Reconstruction
from diffcore.conditioning._guided import Term
from diffcore.guidance import ClassifierFree

PARTS: dict[type[Any], tuple[str, ...]] = {
    Two: ("conditional", "unconditional"),
    One: ("denoise", "cond", "null"),
    Reconstruction: ("denoise", "terms"),
    MomentMatching: ("denoise", "terms"),
    Term: ("observed", "mask"),
}

for kind, parts in PARTS.items():
    settings = [field.name for field in fields(kind) if field.name not in parts]
    jax.tree_util.register_dataclass(kind, list(parts), settings)


def _guided_parts(guided: ClassifierFree) -> tuple[tuple[Any, Any], tuple[Any, ...]]:
    """Return what is a part of guidance, with a weight that is an array, and what is a setting."""
    setting = isinstance(guided.weight, float) or callable(guided.weight)
    weight, fixed = (None, guided.weight) if setting else (guided.weight, None)
    return (guided.source, weight), (fixed, guided.rescale, guided.interval)


def _guided_of(settings: tuple[Any, ...], parts: tuple[Any, Any]) -> ClassifierFree:
    source, weight = parts
    fixed, *rest = settings
    return ClassifierFree(source, weight if fixed is None else fixed, *rest)


jax.tree_util.register_pytree_node(ClassifierFree, _guided_parts, _guided_of)


class Same:
    """A value as a key: equal only to itself, whatever its own equality says."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value


@dataclass(frozen=True)
class Rest:
    """A denoiser without its arrays, by which a compiled run is found again: its structure, and its other leaves."""

    tree: Any
    leaves: tuple[Same | None, ...]

    def join(self, arrays: list[jax.Array]) -> Any:
        """Return the denoiser with these arrays."""
        left = iter(arrays)
        return jax.tree.unflatten(self.tree, [next(left) if leaf is None else leaf.value for leaf in self.leaves])


def split(denoise: Any) -> tuple[list[Any], Rest]:
    """Return the arrays of a denoiser, and the rest of it."""
    leaves, tree = jax.tree.flatten(denoise)
    try:
        hash(tree)
    except TypeError:  # settings that cannot be a key: the denoiser is one, as a whole
        leaves, tree = [denoise], jax.tree.structure(0)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array | np.ndarray)]
    rest = tuple(None if isinstance(leaf, jax.Array | np.ndarray) else Same(leaf) for leaf in leaves)
    return arrays, Rest(tree, rest)
