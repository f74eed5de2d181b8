"""(b) What a normal drawn by counter costs, next to each library's own generator; half precision rounds the same draw.

Are its bits those of NumPy? `extra_info` has how many words were compared, and how many differ.
"""

from __future__ import annotations

import importlib
from pathlib import Path
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
    cases = [case for case in CASES if device == "cpu" or case[0] != "numpy"]
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


@pytest.mark.parametrize("who", ["torch", "jax", "triton"])
def test_bits(timed: Any, device: str, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """Words of the device against NumPy's; those of the Triton kernel are shown by a kernel of the tests."""
    seed, number, shape = 2**64 - 3, 2**32 - 2, (1, 1024 if who == "triton" else 2**20)
    if who == "triton":
        if device != "cuda":
            pytest.skip("the Triton kernel runs on CUDA")
        arrays.array("torch", (1,), "float32", device)  # or skip
        monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "tests"))
        words = importlib.import_module("kernels_for_tests").words
        draw = lambda: words(seed, number, device)  # noqa: E731
    else:
        like = arrays.array(who, (1,), "float32", device)
        draw = lambda: arrays.ready(dc.noise.bits([seed], number, shape, like=like))  # noqa: E731
    found = draw()
    found = np.asarray(found.cpu() if hasattr(found, "cpu") else found).astype(np.uint64).ravel()
    differ = int((found != dc.noise.bits([seed], number, shape).ravel()).sum())
    timed(draw, f"bits of the noise, {device}", who, "ours", words=found.size, differ=differ)
