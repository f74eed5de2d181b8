"""The Triton kernel on the GPU where there is one, else interpreted: what its tests share.

Triton decides when it is first imported whether it interprets, so that the cases run in a second pytest,
which `test_interpreted.py` starts.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest

import diffcore as dc
from diffcore.plan import Form

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: diffcore[triton]", allow_module_level=True)
case = pytest.mark.skipif(False, reason="") if INTERPRETED else pytest.mark.gpu
CLIP = dc.guidance.clip(-0.8, 0.8)


def kernel() -> Any:
    from diffcore.backends import torch_triton

    return torch_triton


def table_of(form: Form, lead: tuple[int, ...], seed: int, scale: float = 1.0) -> Any:
    """Return random rows (*lead, 1 + M, columns) of a form, some of them 0."""
    random = np.random.default_rng(seed)
    shape = (*lead, 1 + form.memory, form.columns)
    rows = scale * random.normal(size=shape) * (random.random(shape) < 0.8)
    for row in range(1, 1 + form.memory):
        if row > form.computed:
            rows[..., row, :] = np.arange(form.columns) == row - 1
        elif row == form.computed and form.keeps_x:
            rows[..., row, :] = np.arange(form.columns) == form.x
    return rows


def plan_of(form: Form, stages: int = 3, seed: int = 0) -> dc.Plan:
    """Return a plan of a form with random numbers, which is no sampler."""
    update = np.stack([table_of(form, (), seed + k, 0.5) for k in range(stages)])
    made = dc.Plan("random", "vp", np.zeros(stages), np.zeros(stages), update, second=form.second)
    assert made.form == form
    return made


def launched(patch: pytest.MonkeyPatch, module: Any) -> list[str]:
    """Return a list that grows by "forward" or "backward" as a module's function of this name is called."""
    found: list[str] = []
    for name in ("forward", "backward"):
        real = getattr(module, name)

        def spy(*given: Any, name: str = name, real: Any = real) -> Any:
            found.append(name)
            return real(*given)

        patch.setattr(module, name, spy)
    return found
