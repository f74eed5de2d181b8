"""A process that runs for weeks: nothing of a run is kept, and threads do not meet."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from libraries import every_framework, example, host

import diffcore as dc

PLAN = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), 3, order=2, eta=0.5)


def run(way: str, like: Any, held: Any, seed: int) -> Any:
    """Make a run in which everything is new: denoiser, transform, constraint and plan."""
    share = float(held[0])

    def denoise(z: Any, log_snr: Any) -> Any:
        return share * z + 0.0 * float(held[1])

    def transform(x: Any) -> Any:
        return x * (1.0 + 0.0 * float(held[2]))

    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), 3, order=2, eta=0.5)
    if way == "step":
        state = dc.start(plan, shape=(2, 3), like=like, seed=seed)
        for _ in range(len(plan)):
            y = denoise(state.z, plan.level_for(state))
            state = dc.step(plan, state, y, prediction="v", transform_x=transform)
        return state.z
    given: dict[str, Any] = {"shape": (2, 3), "like": like, "seed": seed, "prediction": "v", "transform_x": transform}
    if way == "projection":

        def measure(x: Any) -> Any:
            return x * (1.0 + 0.0 * float(held[3]))

        measure.spread = lambda y: y  # type: ignore[attr-defined]
        observed = 0.0 * like + np.float32(0.5)
        given["transform_x"] = dc.conditioning.projection(observed, measure=measure, after=transform)
    return dc.sample(denoise, plan, **given)


@every_framework
def test_what_is_passed_fresh_is_let_go(library: str) -> None:
    """JAX keeps the programs of eight runs; nothing else keeps anything."""
    alive: dict[str, list[weakref.ref[Any]]] = {"sample": [], "step": [], "projection": []}
    with example(library) as like:
        for way, references in alive.items():
            for number in range(11 if library == "jax" else 4):
                held = np.full(1000, 0.3)
                references.append(weakref.ref(held))
                run(way, like, held, number)
                del held
    gc.collect()
    for way, references in alive.items():
        kept = [number for number, reference in enumerate(references) if reference() is not None]
        assert len(kept) <= (9 if library == "jax" else 0), (way, kept)
        assert 0 not in kept, way


@pytest.mark.parametrize("library", ["numpy", pytest.param("torch", marks=pytest.mark.torch)])
def test_memory_stays_flat(library: str) -> None:
    held = np.full(1000, 0.3)
    with example(library) as like:
        tracemalloc.start()
        try:
            for number in range(40):
                run("sample", like, held, number)
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            for number in range(40):
                run("sample", like, held, number)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert grown < 40 * 1000, grown  # a plan, or a few arrays, a run


@every_framework
def test_threads_do_not_meet(library: str) -> None:
    held = np.full(1000, 0.3)
    with example(library) as like:
        alone = [host(run("step", like, held, seed)) for seed in range(4)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda seed: host(run("step", like, held, seed % 4)), range(12)))
    for number, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[number % 4])
