"""Which backend serves an array: by the root module of its type, through the entry-point group `diffcore.backends`."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module, metadata
from typing import cast

import numpy as np

from diffcore import _array
from diffcore._array import Array
from diffcore.backends.contract import Backend
from diffcore.backends.generic import ArrayAPIBackend

GROUP = "diffcore.backends"

_OWN = {
    "numpy": "diffcore.backends.numpy_backend",
    "torch": "diffcore.backends.torch_backend",
    "jax": "diffcore.backends.jax_backend",
}  # so that a checkout that is not installed finds them too


def of(array: Array) -> Backend:
    """Return the backend that serves an array, or NumPy's for a number.

    Raises:
        TypeError: `array` is no array.

    >>> import numpy as np
    >>> of(np.zeros(3)).name
    'numpy'
    """
    if isinstance(array, (*_array.NUMBERS, np.ndarray)):
        return _served("numpy")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        if torch.compiler.is_compiling():  # a look-up in a cache does not trace
            from diffcore.backends.torch_backend import backend

            return backend
        return _served("torch")
    _array.namespace("backends.of", array=array)
    root = type(array).__module__.split(".")[0]
    return _load("jax" if root == "jaxlib" else root) or ArrayAPIBackend(_array.library(array))


def _served(root: str) -> Backend:
    found = _load(root)
    assert found is not None, root
    return found


@cache
def _load(root: str) -> Backend | None:
    for entry in metadata.entry_points(group=GROUP, name=root):
        found = entry.load()
        if not isinstance(found, Backend):
            raise TypeError(
                f"backends: entry point {entry.name!r} = {entry.value!r} holds a {type(found).__name__} that does not "
                f"fulfil diffcore.backends.Backend; derive it from diffcore.backends.ArrayAPIBackend"
            )
        return found
    if root in _OWN:
        return cast(Backend, import_module(_OWN[root]).backend)
    return None


def available() -> dict[str, str]:
    """Return the backends that entry points declare, name -> module:attribute, without importing any.

    >>> "numpy" in available()
    True
    """
    found = {root: f"{module}:backend" for root, module in _OWN.items()}
    found.update({entry.name: entry.value for entry in metadata.entry_points(group=GROUP)})
    return dict(sorted(found.items()))
