"""NumPy: noise and stages by the compiled kernel; everything else is the plain array API code."""

from __future__ import annotations

import numpy as np

from diffcore._unwritten import viewed
from diffcore.backends import numpy_noise
from diffcore.backends.numpy_run import HostBackend


class NumPyBackend(HostBackend):
    """The contract on NumPy arrays."""

    normal = staticmethod(numpy_noise.normal)
    bits = staticmethod(numpy_noise.bits)
    called = staticmethod(viewed)


backend = NumPyBackend(np)
