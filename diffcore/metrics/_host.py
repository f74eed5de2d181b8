"""What every metric does first: bring its arrays to the host."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffcore import _array
from diffcore._array import Array

Float64 = npt.NDArray[np.float64]


def host(function: str, argument: str, array: Array) -> Float64:
    """Return an array of any library on the host in float64; refuse what is not finite."""
    _array.namespace(function, **{argument: array})
    if hasattr(array, "detach"):
        array = array.detach().cpu().double()
    host = np.asarray(np.asarray(array), dtype=np.float64)
    if not np.all(np.isfinite(host)):
        raise ValueError(f"{function}: `{argument}` has {np.sum(~np.isfinite(host))} entries that are not finite")
    return host
