"""The libraries that a battery runs over: an example array of each, in each dtype, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

JAX = pytest.param("jax", marks=pytest.mark.jax)
TORCH = pytest.param("torch", marks=pytest.mark.torch)
EVERY = ["numpy", "array_api_strict", TORCH, JAX]
FRAMEWORKS = ["numpy", TORCH, JAX]

every_library = pytest.mark.parametrize("library", EVERY)
every_framework = pytest.mark.parametrize("library", FRAMEWORKS)
every_scaling = pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def namespace(library: str) -> Any:
    return importlib.import_module("jax.numpy" if library == "jax" else library)


@contextlib.contextmanager
def example(library: str, dtype: str = "float32") -> Iterator[Any]:
    """Give one number of a library and dtype; JAX holds float64 for no longer than this."""
    xp = namespace(library)
    with _wide() if library == "jax" and dtype == "float64" else contextlib.nullcontext():
        yield xp.ones(1, dtype=getattr(xp, dtype))


def _wide() -> Any:
    import jax

    return jax.enable_x64(True)


@functools.cache
def quick() -> dict[str, Any]:
    """Return the options with which this release of JAX compiles networks much faster, to run slower."""
    import jax

    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,  # in 0.10, no longer in 0.12
    }
    known = {}
    for name, value in options.items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda: 0, compiler_options={name: value})()
            known[name] = value
    return known


def host(array: Any) -> Any:
    """Return an array of any library on the host, in float64."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().double()
    return np.asarray(np.asarray(array), dtype=np.float64)


def put(values: Any, like: Any) -> Any:
    """Return values as an array of the library, dtype and device of `like`."""
    from diffcore.testing._arrays import put as put_there

    return put_there(values, like)
