"""What a normal drawn by counter costs, next to each library's own generator: 2**20 float32 numbers on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import diffcore as dc

SHAPE = (1, 2**20)
Call = Callable[[], Any]


def _numpy() -> tuple[Call, Call]:
    like = np.zeros(1, dtype=np.float32)
    generator = np.random.default_rng(7)
    return lambda: dc.noise.normal(7, 0, SHAPE, like=like), lambda: generator.standard_normal(SHAPE, dtype=np.float32)


def _torch() -> tuple[Call, Call]:
    torch = importlib.import_module("torch")
    like = torch.zeros(1)
    compiled = torch.compile(lambda draw: dc.noise.normal(7, draw, SHAPE, like=like), fullgraph=True)
    draw = torch.tensor(0)
    return lambda: compiled(draw), lambda: torch.randn(SHAPE)


def _jax() -> tuple[Call, Call]:
    jax = importlib.import_module("jax")
    like = jax.numpy.zeros(1)
    jitted = jax.jit(lambda draw: dc.noise.normal(7, draw, SHAPE, like=like))
    own = jax.jit(lambda key: jax.random.normal(key, SHAPE))
    key, draw = jax.random.key(7), jax.numpy.uint32(0)
    return lambda: jitted(draw).block_until_ready(), lambda: own(key).block_until_ready()


MAKERS = {"numpy": _numpy, "torch": _torch, "jax": _jax}


@pytest.mark.parametrize("whose", ["diffcore", "own"])
@pytest.mark.parametrize("library", MAKERS)
def test_normal(benchmark: Any, library: str, whose: str) -> None:
    pytest.importorskip(library)
    ours, own = MAKERS[library]()
    call = ours if whose == "diffcore" else own
    call()  # compiles
    benchmark.group = f"normal, {library}"
    benchmark(call)
