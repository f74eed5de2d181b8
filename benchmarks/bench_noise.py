"""(b) What a normal drawn by counter costs, next to each library's own generator; half precision rounds the same draw.

Are its bits those of NumPy? `extra_info` has how many words were compared, and how many differ.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import diffcore as dc
from benchmarks import arrays
from diffcore import backends

CASES = [("numpy", "float32"), ("torch", "float32"), ("torch", "bfloat16"), ("jax", "float32"), ("jax", "bfloat16")]


def chosen(quick: bool, device: str) -> dict[str, list[Any]]:
    """Return the rows of this call."""
    sizes = [2**20] if quick else [4, 2**20, int(np.prod(arrays.GOAL))]
    cases = CASES
    if device == "cuda":  # also where memory is the limit; float64 is drawn in float64
        sizes, cases = [*sizes, 10**8], [*(case for case in CASES if case[0] != "numpy"), ("torch", "float64")]
    return {"size": sizes, "library,dtype": cases, "whose": ["diffcore", "diffcore compiled", "native"]}


def test_noise(timed: Any, device: str, size: int, library: str, dtype: str, whose: str) -> None:
    shape = arrays.shape_of(size)
    like = arrays.array(library, (1,), dtype, device)
    draw: Any = 3
    words = backends.of(like).keys(dc.noise.keys(7, shape[0]), like)  # once a run, as `dc.sample` does

    def ours(draw: Any, shape: tuple[int, ...]) -> Any:
        return dc.noise.normal(words, draw, shape, like=like)

    call = dc.noise.native(7, like=like) if whose == "native" else ours
    if library == "jax" and whose != "diffcore":
        call = importlib.import_module("jax").jit(call, static_argnums=1)
    elif whose == "diffcore compiled":
        if library == "numpy":
            pytest.skip("NumPy has no compiler")
        torch = importlib.import_module("torch")
        call, draw = torch.compile(ours, fullgraph=True, dynamic=False), torch.tensor(3)
    group = f"noise, {library}, {size} numbers, {dtype}, {device}"
    timed(lambda: arrays.ready(call(draw, shape)), group, whose, "peer" if whose == "native" else "ours")


@pytest.mark.parametrize("who", ["torch", "jax"])
def test_bits(timed: Any, device: str, who: str) -> None:
    """Words of the device against NumPy's; on CUDA torch's are those of the Triton kernel."""
    seed, number, shape = 2**64 - 3, 2**32 - 2, (1, 2**20)
    like = arrays.array(who, (1,), "float32", device)
    draw = lambda: arrays.ready(dc.noise.bits([seed], number, shape, like=like))  # noqa: E731
    found = draw()
    found = np.asarray(found.cpu() if hasattr(found, "cpu") else found).astype(np.uint64).ravel()
    differ = int((found != dc.noise.bits([seed], number, shape).ravel()).sum())
    timed(draw, f"bits of the noise, {device}", who, "ours", words=found.size, differ=differ)


def test_noise_region(timed: Any, device: str) -> None:
    """The middle frames of each clip alone, where each element makes its own block of words."""
    like = arrays.array("torch", (1,), "float32", device)
    batch, frames, *rest = arrays.GOAL
    region = ((0, batch), (frames // 4, frames // 2), *((0, size) for size in rest))
    words = backends.of(like).keys(dc.noise.keys(7, batch), like)
    draw = lambda: arrays.ready(dc.noise.normal(words, 3, arrays.GOAL, like=like, region=region))  # noqa: E731
    timed(draw, f"noise, torch, half the frames of {arrays.GOAL}, float32, {device}", "diffcore", "ours")
