"""Objectives on DTensors, and compiled stages over a mesh: what one process computes. Part of mesh_cases.py."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor, distribute_tensor

import diffcore as dc
from diffcore.backends import torch_backend

FLOW, VP = dc.schedules.Flow(), dc.schedules.Cosine()
NOISY, MIDDLE, CLEAN = (torch.tensor(times) for times in ([0.9, 0.7, 0.5], [0.5, 0.4, 0.3], [0.3, 0.2, 0.1]))
PAIR: dict[str, Any] = {"t": VP(NOISY), "s": VP(CLEAN), "prediction": "v"}
MAP: dict[str, Any] = {"t": FLOW(NOISY), "s": FLOW(CLEAN)}
SCALE = torch.tensor([0.5, 1.5], requires_grad=True)

Loss = Callable[[Any, Any, Any], Any]
DERIVED: dict[str, Loss] = {
    "meanflow": lambda net, x, eps: dc.objectives.meanflow(net, x, eps, **MAP, power=0.5),
    "lagrangian": lambda net, x, eps: dc.objectives.lagrangian(net, x, eps, **MAP),
    "consistency": lambda net, x, eps: dc.objectives.consistency(net, x, eps, level=VP(NOISY)),
}
"""Those with a derivative forwards, of samples that are whole."""

ANY: dict[str, Loss] = {
    "split_meanflow": lambda net, x, eps: dc.objectives.split_meanflow(net, x, eps, **MAP, middle=FLOW(MIDDLE)),
    "shortcut": lambda net, x, eps: dc.objectives.shortcut(net, x, eps, **MAP),
    "consistency_pair": lambda net, x, eps: dc.objectives.consistency_pair(net, x, eps, **PAIR, huber=0.1),
    "hybrid": lambda net, x, eps: dc.objectives.hybrid(0.5 * x, 0.3 * eps, x, eps, **PAIR, steps=4),
    "contrastive": lambda net, x, eps: dc.objectives.contrastive(x - eps, x, eps, FLOW(NOISY), prediction="flow"),
    "optimal_transport": lambda net, x, eps: dc.objectives.optimal_transport(x, eps),
}


def network(z: torch.Tensor, *levels: torch.Tensor) -> torch.Tensor:
    """A flow map or a denoiser with weights of its own, of ordinary tensors."""
    assert type(z) is not DTensor
    y = torch.tanh(SCALE[0] * z)
    for level in levels:
        y = y + SCALE[1] * torch.sigmoid(level).reshape(-1, *[1] * (z.ndim - 1)) * z
    return y


def check_objectives(x: torch.Tensor, by_samples: Any, within: Any) -> None:
    """Each objective of DTensors has the bits of one process, and the weights get the gradient of it to rounding."""
    eps, net = torch.sin(3.0 * x), dc.mesh.local(network, within=True)
    for name, loss in (DERIVED | ANY).items():
        want = loss(network, x, eps)
        for layout in (by_samples, within):
            arrays = [distribute_tensor(array, *layout, src_data_rank=None) for array in (x, eps)]
            if layout is within and name in DERIVED:
                with pytest.raises(ValueError, match=r"`x` must be divided by samples alone.*`split_meanflow`"):
                    loss(net, *arrays)
                continue
            found = loss(net, *arrays)
            assert torch.equal(found.full_tensor(), want), f"{name} on {layout}"
        if want.requires_grad:
            (wanted,) = torch.autograd.grad(want.sum(), SCALE)
            found = loss(net, *[distribute_tensor(array, *by_samples, src_data_rank=None) for array in (x, eps)])
            (mine,) = torch.autograd.grad(found.to_local().sum(), SCALE)
            torch.distributed.all_reduce(mine)
            torch.testing.assert_close(mine, wanted)


def check_compiled(net: Any, plan: dc.Plan, start: torch.Tensor, layout: Any, backend: str) -> None:
    """A compiled stage takes what this process holds, in one graph for all stages, and makes what it makes uncompiled."""
    want = dc.sample(net, plan, start, seed=7, prediction="v")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="error", category=RuntimeWarning):
        patch.setattr(torch_backend, "FUSED", 0)
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
        counters.clear()
        z = distribute_tensor(start, *layout, src_data_rank=None)
        found = dc.sample(net, plan, z, seed=7, prediction="v", compile=True)
        assert counters["stats"]["unique_graphs"] == 1
        torch.testing.assert_close(found.full_tensor(), want)
