"""Seeds of all kinds as the two words of 32 bits that key Philox; `diffcore.noise.keys` documents the kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffcore import _array, _check
from diffcore._array import Array
from diffcore._philox import MASK


def words_of(seed: Any) -> tuple[Array, bool]:
    """Return the words (n, 2) of seeds, and whether one seed serves a full batch."""
    if isinstance(seed, int | np.integer):
        return _from_host([seed]), True
    if isinstance(seed, list | tuple | range):
        return _from_host(seed), False
    if isinstance(seed, np.ndarray) and _array.traced():
        seed = in_torch(seed)
    kind = str(getattr(seed, "dtype", ""))
    if kind.startswith("key<"):
        import jax

        data = jax.random.key_data(seed)
        if data.shape[-1] != 2 or data.ndim > 2:
            must = "be JAX keys of two words, of shape () or (B,)"
            raise _check.error(TypeError, "noise", "seed", must, seed, "see jax.random.key")
        return data.reshape(-1, 2), data.ndim == 1
    shape = tuple(getattr(seed, "shape", ()))
    if isinstance(seed, np.ndarray) and len(shape) < 2:
        return _from_host(seed.reshape(-1).tolist()), not shape
    if "int" not in kind:
        own = type(seed).__name__ in ("Generator", "RandomState")
        hint = "give what a generator of your own draws as `noise=`, a function (draw, shape) -> array" if own else ""
        raise _check.error(TypeError, "noise", "seed", "be an int, ints or words (B, 2)", seed, hint)
    if shape == (2,) and kind == "uint32" and _array.name(_array.library(seed)) == "jax":
        must = "not be two words of uint32, which may be two seeds or one old key of `jax.random.PRNGKey`"
        way = "jax.random.key is a key; words.reshape(1, 2) is one key; of two seeds take int32"
        raise _check.error(TypeError, "noise", "seed", must, seed, way)
    if len(shape) < 2:
        return _split(_array.library(seed), seed), not shape
    if len(shape) > 2 or shape[1] != 2:
        raise _check.error(ValueError, "noise", "seed", "be one int, one int per sample, or words (B, 2)", seed)
    if not isinstance(seed, np.ndarray):
        return seed, False
    if seed.size and not (seed.min() >= 0 and seed.max() <= MASK):
        wrong = seed[(seed < 0) | (seed > MASK)].flat[0]
        raise _check.error(ValueError, "noise", "seed", "have words in [0, 2^32 - 1]", wrong)
    return seed.astype(np.uint32, copy=False), False


def _from_host(values: Sequence[Any]) -> Array:
    found = [_check.integer("noise", "seed", value, 0, 2**64 - 1) for value in values]
    words = [(value & MASK, value >> 32) for value in found]
    if _array.traced():  # torch traces NumPy too, but neither its unsigned integers nor our kernel
        import torch

        return torch.tensor(words, dtype=torch.int64).reshape(-1, 2)
    return np.array(words, dtype=np.uint32).reshape(-1, 2)


def in_torch(seed: Array) -> Array:
    """Return an array of NumPy, whose dtype torch does not trace, as the int64 that torch has for words and seeds."""
    import torch

    found = torch.as_tensor(seed)
    if found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool:
        return found  # which is refused by its dtype
    return found.to(torch.int64)


def _split(xp: Any, seed: Array) -> Array:
    """Return the words of integers of any size; JAX has 64 bits only where they are enabled."""
    if _array.name(xp) != "jax" or xp.iinfo(seed.dtype).bits == 64:
        wide = xp.astype(seed, xp.int64)
        low, high = wide & MASK, (wide >> 32) & MASK
    else:
        low = xp.astype(seed, xp.uint32)
        high = (
            xp.zeros_like(low) if "uint" in str(seed.dtype) else xp.astype(xp.astype(seed, xp.int32) >> 31, xp.uint32)
        )
    return xp.reshape(xp.stack([low, high], axis=-1), (-1, 2))
