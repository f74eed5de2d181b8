"""Which backend serves an array: by the root module of its type, through the entry-point group `diffcore.backends`.

Backends are loaded by name, when the first array of their library comes; nothing here imports one.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from diffcore import _array, _layout
from diffcore._array import Array

GROUP = "diffcore.backends"

OWN = {
    "numpy": "diffcore.backends.numpy_backend:backend",
    "torch": "diffcore.backends.torch_backend:backend",
    "jax": "diffcore.backends.jax_backend:backend",
}  # so that a checkout that is not installed finds them too

HOST = (np.ndarray, *_array.NUMBERS)
"""What NumPy's backend serves."""

ANY = "diffcore.backends.generic:ArrayAPIBackend"


def backend_of(array: Array) -> Any:
    """Return the `diffcore.backends.Backend` that serves an array, or NumPy's for a number.

    Raises:
        TypeError: `array` is no array.

    >>> import numpy as np
    >>> backend_of(np.zeros(3)).name
    'numpy'
    """
    if isinstance(array, HOST):
        return _load("numpy")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        # a compiler follows no cache and no import; attributes of a module it reads afresh
        if torch.compiler.is_compiling():
            _ready("torch")
            return sys.modules["diffcore"].backends.torch_backend.backend
        if type(array) is not torch.Tensor and _layout.divided(array):
            return _named("diffcore.backends.torch_mesh:of")(array.device_mesh, tuple(array.placements))
        return _load("torch")
    _array.namespace("backends.of", array=array)
    root = type(array).__module__.split(".")[0]
    return _load("jax" if root == "jaxlib" else root) or _named(ANY)(_array.library(array))


@cache
def _load(root: str) -> Any:
    from importlib import metadata  # which loads much, and is asked for once

    for entry in metadata.entry_points(group=GROUP, name=root):
        found = entry.load()
        if not isinstance(found, _named("diffcore.backends.contract:Backend")):
            raise TypeError(
                f"backends: entry point {entry.name!r} = {entry.value!r} holds a {type(found).__name__} that does not "
                f"fulfil diffcore.backends.Backend; derive it from diffcore.backends.ArrayAPIBackend"
            )
        return found
    return _named(OWN[root]) if root in OWN else None


def _ready(root: str) -> str:
    """Import the module of a backend of our own, while torch traces too, and return its name."""
    return import_module(OWN[root].split(":")[0]).__name__


_ready._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler.assume_constant_result, without torch


def _named(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)


def available() -> dict[str, str]:
    """Return the backends that entry points declare, name -> module:attribute, without importing any.

    >>> "numpy" in available()
    True
    """
    from importlib import metadata

    found = OWN | {entry.name: entry.value for entry in metadata.entry_points(group=GROUP)}
    return dict(sorted(found.items()))
