"""What the machine has room for: a count with too many zeros is refused before anything is made."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from diffcore import _array, _check

SMALL = 2**28
"""Bytes that are never looked at."""


def fits(function: str, argument: str, value: object, size: int, *, hint: str = "", like: Any = None) -> None:
    """Raise MemoryError where what an argument asks for takes more bytes than are free; beside an array of JAX only where it is
    made, and not in code that is traced.

    >>> fits("noise.keys", "count", 10**15, 32 * 10**15)
    Traceback (most recent call last):
    MemoryError: noise.keys: `count` must fit in the memory that is free, ... GB, got 1000000000000000, which takes 32,000,000 GB
    """
    if size > SMALL and not _array.traced() and size > (free := room()) and not _jax_traces(like):
        takes = f"{size / 1e9:,.0f} GB" if size < 10**21 else "more than any machine has"
        got = f"got {_check.shown(value)}, which takes {takes}{'; ' + hint if hint else ''}"
        raise MemoryError(f"{function}: `{argument}` must fit in the memory that is free, {free / 1e9:.3g} GB, {got}")


def here(like: Any) -> bool:
    """Return whether what is made beside an array is known to lie in this machine's memory: no device's, and nothing traced."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if isinstance(like, np.ndarray) or _array.traced():
        return isinstance(like, np.ndarray)
    if jax is not None and _array.is_jax(like):
        known = not isinstance(like, jax.core.Tracer) and like.is_fully_addressable
        return known and {each.platform for each in like.devices()} == {"cpu"}
    return torch is not None and type(like) is torch.Tensor and str(like.device.type) == "cpu"


def _jax_traces(like: Any) -> bool:
    """Return whether JAX traces what is made beside an array: the array may come from outside, and be no tracer itself."""
    jax = sys.modules.get("jax")
    return jax is not None and _array.is_jax(like) and isinstance(jax.numpy.zeros(()), jax.core.Tracer)


def room() -> float:
    """Return how many bytes are free, or what the process or its container may have, if that is less."""
    found = float("inf")
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no such call
        found = float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError):  # only Linux has the file
        free = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        found = min(found, 1024.0 * int(free[1])) if free else found
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no container; "max"
            found = min(found, float(Path(name).read_text(encoding="ascii")))
    with contextlib.suppress(ImportError):  # Windows
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        found = found if soft == resource.RLIM_INFINITY else min(found, float(soft))
    return found
