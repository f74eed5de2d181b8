"""Arrays, and waiting for them, on the library, dtype and device of a row; a library that is missing is a row that says so."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
import pytest

GOAL = (8, 16, 128, 128, 3)
"""The size of the goals: eight clips of 16 frames."""


def shape_of(size: int) -> tuple[int, ...]:
    """Return a batch of about `size` numbers, of up to 8 samples."""
    return (1, size) if size <= 8 else (8, size // 8)


def ready(array: Any) -> Any:
    """Return the array once it is computed."""
    if hasattr(array, "block_until_ready"):
        return array.block_until_ready()
    if getattr(array, "is_cuda", False):
        importlib.import_module("torch").cuda.synchronize()
    return array


def array(library: str, shape: tuple[int, ...], dtype: str, device: str, seed: int = 0) -> Any:
    """Return normals of a library, or skip where it, its device or the memory for the row is missing."""
    pytest.importorskip(library)
    if device == "cpu" and 4 * int(np.prod(shape)) * 12 > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        pytest.skip(f"{shape} takes more memory than this machine has")
    numbers = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if library == "numpy":
        return numbers.astype(dtype)
    if library == "torch":
        torch = importlib.import_module("torch")
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        return torch.from_numpy(numbers).to(device, getattr(torch, dtype))
    jax = importlib.import_module("jax")
    if (jax.default_backend() == "gpu") != (device == "cuda"):
        pytest.skip(f"JAX runs on {jax.default_backend()}, not on {device}")
    if dtype == "float64" and not jax.config.jax_enable_x64:
        pytest.skip("JAX has float64 where JAX_ENABLE_X64 is set")
    return jax.numpy.asarray(numbers, dtype=dtype)


def like(values: Any, other: Any) -> Any:
    """Return values of the host in the library and on the device of another array."""
    if isinstance(other, np.ndarray):
        return values
    return importlib.import_module("torch").as_tensor(values, device=other.device)
