"""What the sampler costs around the denoiser: 100 steps of DDIM on a batch of 4 numbers, and on a small clip.

Divide by 100 for the cost of a step. The denoiser is one multiplication, so that what is left is the loop; `by hand` is
the same update with coefficients worked out beforehand and nothing checked: the least that the library's calls allow.
"""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest

import diffcore as dc

STEPS = 100
SHAPES = {"4 numbers": (4, 1), "clip 2x8x32x32x3": (2, 8, 32, 32, 3)}


def _like(library: str) -> Any:
    pytest.importorskip(library)
    if library == "numpy":
        return np.zeros(1, dtype=np.float32)
    if library == "torch":
        return importlib.import_module("torch").zeros(1)
    return importlib.import_module("jax.numpy").zeros(1)


def _ready(array: Any) -> Any:
    return array.block_until_ready() if hasattr(array, "block_until_ready") else array


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_sample(benchmark: Any, library: str, shape: str) -> None:
    like = _like(library)
    plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=STEPS)
    benchmark.group = shape

    def run() -> Any:
        return _ready(
            dc.sample(lambda z, log_snr: 0.5 * z, plan, shape=SHAPES[shape], like=like, seed=7, prediction="x")
        )

    run()  # compiles
    benchmark(run)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_by_hand(benchmark: Any, library: str, shape: str) -> None:
    z = dc.noise.normal(7, 0, SHAPES[shape], like=_like(library))
    schedule = dc.schedules.Cosine()
    levels = [schedule(float(t)) for t in np.linspace(1.0, 0.0, STEPS + 1)]
    rows = [
        (float(s.sigma / t.sigma), float(s.alpha - s.sigma / t.sigma * t.alpha)) for t, s in itertools.pairwise(levels)
    ]
    benchmark.group = shape

    def run() -> Any:
        state = z
        for keep, move in rows:
            state = keep * state + move * (0.5 * state)
        return state

    benchmark(run)
