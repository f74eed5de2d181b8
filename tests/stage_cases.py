"""Runs beside the plain loop, bit for bit: what the tests of stages and of their memory share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import diffcore as dc
from diffcore import backends
from diffcore.backends import ArrayAPIBackend, Run
from diffcore.testing.conformance import plans

LIKE = {
    "numpy": np.zeros(1, np.float32),
    "numpy64": np.zeros(1),
    "torch": torch.zeros(1),
    "torch64": torch.zeros(1, dtype=torch.float64),
    "numpy16": np.zeros(1, np.float16),
    "torch16": torch.zeros(1, dtype=torch.float16),
    "brain": torch.zeros(1, dtype=torch.bfloat16),
}


every_library = pytest.mark.parametrize("like", list(LIKE.values()), ids=list(LIKE))


every_plan = pytest.mark.parametrize("plan", list(plans().values()), ids=list(plans()))


TRANSFORMS: dict[str, Any] = {
    "none": None,
    "clip": dc.guidance.clip(-0.7, 0.7),
    "dynamic": dc.guidance.dynamic_threshold(0.9),
    "wider": lambda x: np.asarray(x, dtype=np.float64) if isinstance(x, np.ndarray) else x.double(),
}


class Plain(ArrayAPIBackend):
    """Whatever a backend does, with the plain loop and the plain stage."""

    def __init__(self, served: Any) -> None:
        super().__init__(served.xp)
        vars(self).update(normal=served.normal, seeds=served.seeds, index=served.index)


def denoise(z: Any, log_snr: Any) -> Any:
    return -0.5 * z


def both(
    plan: dc.Plan, state: dc.State, call: Callable[..., Any] = denoise, **settings: Any
) -> tuple[list[dc.State], list[dc.State]]:
    """Return the states after every stage, of the backend and of the plain loop."""
    served = backends.of(state.z)
    seen: tuple[list[dc.State], list[dc.State]] = ([], [])
    for backend, states in zip((served, Plain(served)), seen, strict=True):
        with torch.no_grad():
            backend.run(Run(call, plan, plan.coefficients("v"), callback=states.append, **settings), state)
    return seen


def raw(array: Any) -> bytes:
    """Return the bytes of an array, of bfloat16 too."""
    return np.asarray(array.view(torch.int16) if getattr(array, "dtype", None) == torch.bfloat16 else array).tobytes()


def same(left: list[dc.State], right: list[dc.State]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert int(a.index) == int(b.index)
        assert int(a.draw) == int(b.draw)
        for got, want in [(a.z, b.z), (a.x, b.x), *zip(a.memory, b.memory, strict=True)]:
            assert got.dtype == want.dtype
            assert raw(got) == raw(want)
