"""Runs beside the plain loop, bit for bit: what the tests of stages and of their memory share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

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


FEW = ("ancestral", "ddim", "heun", "dpm_solver_pp", "unipc")  # `any_plan` draws all forms
every_plan = pytest.mark.parametrize("plan", [plans()[name] for name in FEW], ids=FEW)


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
        vars(self).update(normal=served.normal, keys=served.keys, index=served.index)


class Guided:
    """A denoiser that also says what it predicts without its guidance."""

    def __call__(self, z: Any, log_snr: Any) -> Any:
        return -0.5 * z

    def with_unguided(self, z: Any, log_snr: Any) -> Any:
        return -0.5 * z, 0.75 * z


denoise = Guided()


def both(
    plan: dc.Plan, state: dc.State, call: Callable[..., Any] = denoise, prediction: str = "v", **settings: Any
) -> tuple[list[dc.State], list[dc.State]]:
    """Return the states after every stage, of the backend and of the plain loop."""
    served = backends.of(state.z)
    seen: tuple[list[dc.State], list[dc.State]] = ([], [])
    for backend, states in zip((served, Plain(served)), seen, strict=True):
        with torch.no_grad():
            backend.run(Run(call, plan, plan.coefficients(prediction), callback=states.append, **settings), state)
    return seen


LEADS = [(), (1,), (2,), (1, 3), (2, 3), (2, 1)]
"""Leading shapes of levels, for data (2, 3, ...)."""


@st.composite
def any_plan(draw: st.DrawFn, leads: list[tuple[int, ...]] = LEADS, most: int = 9) -> dc.Plan:
    """Draw a plan of three stages of any form: rows that only move up, a row that is x-hat, rows of 0, noise in any row."""
    memory, lead = draw(st.integers(0, most)), draw(st.sampled_from(leads))
    second: Any = draw(st.sampled_from([None, "unguided", "raw"]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns = memory + 3 + (second is not None)
    shape = (3, *lead, 1 + memory, columns)
    update = np.where(random.random(shape) < 0.4, 0.0, random.choice([1.0, -1.0, 0.5, -0.3, 0.7, 1e-60], shape))
    update[random.random(shape[:-1]) < 0.2] = 0.0
    if draw(st.booleans()):
        update[..., memory + 1] = 0.0
    shifted = draw(st.integers(0, max(memory - 1, 0)))
    for row in range(memory - shifted + 1, memory + 1):
        update[..., row, :] = np.arange(columns) == row - 1
    if memory and draw(st.booleans()):
        update[..., memory - shifted, :] = np.arange(columns) == memory + 2
    levels = np.linspace(-2.0, 4.0, 4).reshape(4, *(1 for _ in lead)) + np.zeros(lead)
    plan = dc.Plan("any", "vp", levels[:-1], levels[1:], update, second=second)
    assert plan.form.shifted >= shifted
    return plan


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
