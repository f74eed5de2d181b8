"""What several processes check together: DTensors of any layout give the bits of one process. `python tests/mesh_cases.py FOLDER`.

The processes are forked from one that has loaded everything, which saves their start.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mesh_objectives
import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import diffcore as dc

SHAPE = (3, 5, 4, 3, 2)
SCHEDULE = dc.schedules.Cosine()
ANCESTRAL = dc.samplers.ancestral(SCHEDULE, 3, gamma=0.3)
UNIPC = dc.samplers.unipc(SCHEDULE, 4)
PLANS = (
    ANCESTRAL,
    UNIPC,
    dc.samplers.ddim(SCHEDULE, 3),
    dc.samplers.dpm_solver_pp(SCHEDULE, 4, order=3, eta=1.0),
    dc.samplers.heun(SCHEDULE, 2),
)
START = torch.from_numpy(dc.noise.normal(1, 0, SHAPE))
WEIGHTS = torch.tensor([0.5, 1.5])
OBSERVED, MASK = dc.noise.normal(2, 0, SHAPE), dc.noise.normal(3, 0, SHAPE) > 0.5
KNOWN = dc.conditioning.replacement(OBSERVED, MASK)

Layout = tuple[Any, list[Any]]


def along(level: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return level.reshape(tuple(level.shape) + (1,) * (z.ndim - level.ndim))


def net(z: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
    return torch.tanh(z) * along(torch.sigmoid(log_snr), z)


def other(z: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
    return torch.sin(3.0 * z)


def divided(array: torch.Tensor, layout: Layout) -> DTensor:
    """Return a tensor that every process has as a DTensor: each keeps its part."""
    return distribute_tensor(array, *layout, src_data_rank=None)


def draw(denoise: Any = net, plan: dc.Plan = ANCESTRAL, **how: Any) -> Callable[[Any], Any]:
    settings = {"prediction": "v"} | ({"seed": 7} if "noise" not in how else {}) | how
    return lambda z: dc.sample(denoise, plan, z, **settings)


def stepped(z: Any) -> Any:
    """A run by hand, with a constraint, a threshold and levels that the plan gives."""
    state = dc.start(UNIPC, z, seed=7, constraint=KNOWN)
    for _ in range(len(UNIPC)):
        y = net(state.z, UNIPC.level_for(state))
        how: dict[str, Any] = {"transform_x": dc.guidance.clip(-0.5, 0.5), "constraint": KNOWN}
        state = dc.step(UNIPC, state, y, prediction="v", **how)
    return state.z


def differentiated(z: Any) -> Any:
    z = z.detach().clone().requires_grad_()
    draw()(z).sum().backward()
    return z.grad


def own_noise(number: Any, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(dc.noise.normal(11, number, shape))


def in_bfloat16(z: Any) -> Any:
    return draw(transform_x=dc.guidance.clip())(z.to(torch.bfloat16))


def conditional(z: torch.Tensor, log_snr: torch.Tensor, cond: Any) -> torch.Tensor:
    assert type(z) is torch.Tensor
    assert len(z) == len(log_snr) == len(cond["label"]), "more than this process has"
    return torch.tanh(z) * along(cond["label"], z)


def ordinary(z: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
    return net(z * WEIGHTS, log_snr)  # ordinary tensors, which do not mix with DTensors


def ode(z: Any) -> Any:
    plan = dc.samplers.unipc(SCHEDULE, grid=np.linspace(9.0, -9.0, 4))
    return dc.likelihood.ode(dc.mesh.local(ordinary, within=True), z, plan, prediction="v", probes=1).log_prob


def bound(z: Any) -> Any:
    how: dict[str, Any] = {"prediction": "v", "points": 2}
    parts = [
        dc.likelihood.bound(net, z, dc.schedules.LinearLogSNR(), decoder=dc.likelihood.Density(), **how),
        dc.likelihood.bound(net, 0.0 * z + 1.0, dc.schedules.LinearLogSNR(), **how),
    ]
    return torch.stack([part.total for part in parts], dim=1)


def recorded(z: Any) -> Any:
    seen = [dc.start(ANCESTRAL, z, seed=7)]
    dc.sample(net, ANCESTRAL, seen[0], prediction="v", callback=seen.append)
    return dc.likelihood.trajectory(net, ANCESTRAL, seen, prediction="v")


def extended(z: Any) -> Any:
    how: dict[str, Any] = {"frames": 7, "window": 5, "method": "reconstruction", "prediction": "v"}
    return dc.video.extend(dc.mesh.local(ordinary, within=True), ANCESTRAL, z, seed=7, **how).all()


def guided(**how: Any) -> Any:
    return dc.guidance.classifier_free(net, other, weight=2.0, **how)


def ruled(rule: Any, **how: Any) -> Any:
    return guided(rule=rule, prediction="v", schedule=SCHEDULE, **how)


LOCAL = dc.guidance.classifier_free(
    dc.mesh.local(conditional, within=True),
    cond={"label": torch.tensor([0.5, 1.0, 2.0])},
    null={"label": torch.zeros(1)},
    weight=2.0,
)
WAITING = ANCESTRAL.per_frame(np.array([[0, -1, 0, -1, 0], [1, 0, -1, 0, 1], [2, 1, 1, 1, 2], [-1, 2, 2, 2, -1]]))
CASES: dict[str, Callable[[Any], Any]] = {
    "a run by hand": stepped,
    "gradients": differentiated,
    "bfloat16": in_bfloat16,
    "a function of x-hat": draw(transform_x=torch.tanh),
    "dynamic threshold": draw(transform_x=dc.guidance.dynamic_threshold(0.9)),
    "replacement": draw(constraint=KNOWN),
    "levels of frames": draw(plan=WAITING),
    "a Brownian motion": draw(noise=dc.noise.brownian(3)),
    "noise of one's own": draw(noise=own_noise),
    "reconstruction": draw(
        dc.conditioning.reconstruction(net, OBSERVED, MASK, weight=2.0, prediction="v", schedule=SCHEDULE)
    ),
    "guidance": draw(guided(interval=(-5.0, 5.0))),
    "weights of samples": draw(dc.guidance.classifier_free(net, other, weight=np.array([1.0, 2.0, 3.0]))),
    "CFG++": draw(guided(), plan=dc.samplers.euler_cfg_pp(SCHEDULE, 3)),
    "a network of ordinary tensors": draw(LOCAL),
    "rescaled guidance": draw(guided(rescale=0.7)),
    "CFGNorm": draw(ruled(dc.guidance.renormed())),
    "APG": draw(ruled(dc.guidance.projected(norm=2.0, momentum=-0.5))),
    "bands": draw(ruled(dc.guidance.bands())),
}
SENDING: dict[str, Callable[[Any], Any]] = {
    "a log-density": ode,
    "a bound": bound,
    "a recorded run": recorded,
    "stages at once": lambda z: dc.sample_parallel(net, ANCESTRAL, z, prediction="v", seed=7),
    "steps as long as a tolerance allows": lambda z: (
        dc.sample_adaptive(net, dc.schedules.LinearLogSNR(), z, prediction="v", seed=7, order=2, eta=0.5, rtol=0.5).z
    ),
    "more frames": extended,
    "shuffled noise": lambda z: draw(noise=dc.video.shuffled_noise(3, 4, like=z))(z),
}
"""What may send something wherever data is divided."""

SENDS = ("dynamic threshold", "rescaled guidance", "CFGNorm", "APG", "bands")
"""Those that read whole samples, and send something where samples are divided."""


def layouts() -> Iterator[tuple[str, Layout]]:
    """Meshes of 4, 2 x 2, 2 and 1 processes; no axis of the data divides evenly among four, and one is shorter than that."""
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    for axis in range(5):
        yield f"axis {axis} among 4", (line, [Shard(axis)])
    yield "samples and frames", (square, [Shard(0), Shard(1)])
    yield "height twice", (square, [Shard(2), Shard(2)])
    yield "copies", (square, [Replicate(), Shard(1)])
    yield "frames among 2", (DeviceMesh("cpu", [1, 3]), [Shard(1)])
    yield "frames of 1", (DeviceMesh("cpu", [2]), [Shard(1)])


def same(found: DTensor, want: torch.Tensor, place: str) -> None:
    """Check that what this process holds is its part of the whole, bit for bit, without asking the others."""
    region = dc.mesh.region(found)
    part = want[tuple([slice(first, first + size) for first, size in region])]
    assert torch.equal(found.to_local(), part), f"{place}: other bits in process {torch.distributed.get_rank()}"


def check_samplers(name: str, layout: Layout) -> None:
    like = divided(torch.zeros(SHAPE), layout)
    for plan in PLANS:
        want = dc.sample(net, plan, shape=SHAPE, like=START, seed=7, prediction="v")
        with CommDebugMode() as sent:
            found = dc.sample(net, plan, shape=SHAPE, like=like, seed=7, prediction="v")
        assert sent.get_total_counts() == 0, f"{plan} on {name} sends {sent.get_comm_counts()}"
        assert found.placements == like.placements
        same(found, want, f"{plan} on {name}")


def check_cases(name: str, layout: Layout, wanted: dict[str, torch.Tensor]) -> None:
    z, whole = divided(START, layout), all(p in (Shard(0), Replicate()) for p in layout[1])
    for case, call in CASES.items():
        with CommDebugMode() as sent:
            found = call(z)
        same(found, wanted[case], f"{case} on {name}")
        assert (sent.get_total_counts() > 0) == (case in SENDS and not whole and layout[0].size() > 1), (case, name)


def check_noise(name: str, layout: Layout) -> None:
    like, region = divided(torch.zeros(SHAPE), layout), ((1, 2), (2, 3), (0, 4), (1, 2), (0, 2))
    for where in (None, region):
        want = torch.from_numpy(dc.noise.normal(5, 2, SHAPE, region=where))
        same(dc.noise.normal(5, 2, SHAPE, like=like, region=where), want, name)
    words = torch.from_numpy(dc.noise.bits(5, 2, SHAPE).astype(np.int64))
    same(dc.noise.bits(5, 2, SHAPE, like=like), words, name)


def check_files(folder: Path, layout: Layout, then: Layout) -> None:
    """A run stopped on one layout goes on with another, and in one process."""
    seen: list[dc.State] = []
    want = draw(plan=UNIPC)(START)
    draw(plan=UNIPC, callback=seen.append)(divided(START, layout))
    dc.save_state(folder / "state.npz", seen[1])
    state = dc.load_state(folder / "state.npz", like=divided(START, then))
    assert len(state.memory) == len(seen[1].memory)
    assert state.memory[0].placements == tuple(then[1])
    same(dc.sample(net, UNIPC, state, prediction="v"), want, "a file")
    alone = dc.load_state(folder / "state.npz", like=START)
    assert torch.equal(dc.sample(net, UNIPC, alone, prediction="v"), want)


def refused(match: str, kind: type[Exception], call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=match):
        call()


def check_refusals(layout: Layout) -> None:
    """All before anything is sent, so that no process waits for another."""
    z, mesh = divided(START, layout), layout[0]
    partial = DTensor.from_local(START, mesh, [Partial()], run_check=False)
    refused("redistribute it first", ValueError, lambda: draw()(partial))
    refused("must have that axis", ValueError, lambda: dc.sample(net, UNIPC, shape=(3,), like=z, prediction="v"))
    refused(r"diffcore\.mesh\.local", TypeError, lambda: draw(lambda z, _: z.to_local())(z))
    refused(r"diffcore\.mesh\.local", TypeError, lambda: draw(lambda z, _: START)(z))
    refused("y` is what the denoiser returned", ValueError, lambda: draw(lambda z, _: z[:, :2])(z))
    refused("divided by samples alone", ValueError, lambda: draw(dc.mesh.local(net))(z))
    sizes = [1, 1, 2, 1]
    uneven = START[:, : sizes[torch.distributed.get_rank()]]
    odd = DTensor.from_local(uneven, mesh, [Shard(1)], run_check=False, shape=z.shape, stride=z.stride())
    refused("distribute_tensor divides", ValueError, lambda: draw()(odd))


def check_split(layout: Layout) -> None:
    """Conditions among processes, of a tensor that all have and of a DTensor that lies along the other axis."""
    mesh, seen = layout[0], list[float]()

    def one(z: Any, log_snr: Any, cond: Any) -> Any:
        seen.append(float(cond[0]))
        return torch.tanh(z) * float(cond[0]) + 0.0 * along(log_snr, z)

    conds = {"cond": torch.ones(1), "null": torch.full((1,), 3.0), "weight": 2.0}
    how: dict[str, Any] = {"rule": dc.guidance.projected(), "prediction": "v", "schedule": SCHEDULE}
    apart = [lambda z, log_snr, cond=cond: one(z, log_snr, [cond]) for cond in (1.0, 3.0)]
    want = draw(dc.guidance.classifier_free(*apart, weight=2.0, **how))(START)
    seen.clear()
    guided = dc.guidance.classifier_free(dc.guidance.split(one, mesh, "a"), **conds, **how)
    assert torch.equal(draw(guided)(START), want)
    same(draw(guided)(divided(START, layout)), want, "split")
    assert set(seen) == {(1.0, 3.0)[mesh.get_local_rank("a")]}, "a process called for a condition of another"
    three = dc.guidance.composed(
        dc.guidance.split(one, mesh, "a"), conds=[torch.ones(1)] * 2, null=torch.ones(1), scales=[1.0, 1.0]
    )
    refused("divides the number of conditions, 3", ValueError, lambda: draw(three)(START))
    along_it = divided(START, (mesh, [Shard(1), Replicate()]))
    refused("be the same in all processes along 'a'", ValueError, lambda: draw(guided)(along_it))
    refused("must be one of 'a', 'b'|`axis`", ValueError, lambda: dc.guidance.split(one, mesh, "c"))


def check_page() -> None:
    """The first two programs of docs/many_devices.md, those of torch, on a CPU."""
    page = (Path(__file__).parents[1] / "docs" / "many_devices.md").read_text(encoding="utf-8")

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)
            torch.nn.init.eye_(self.layer.weight)

        def forward(self, z: Any, log_snr: Any, cond: Any) -> Any:
            return torch.tanh(self.layer(z)) * along(cond + torch.sigmoid(log_snr), z)

    names: dict[str, Any] = {
        "denoise": net,
        "network": Network(),
        "labels": torch.arange(64.0) / 64,
        "nothing": torch.zeros(64),
    }
    for block in re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[:2]:
        code = block.replace('"cuda"', '"cpu"').replace("16, 64, 64, 3", "4, 4, 4, 3")
        exec(code, names)
    assert names["clip"].to_local().shape == (2, 1, 4, 4, 3)
    assert names["clips"].to_local().shape == (16, 4, 4, 4, 3)


def work(rank: int, folder: str) -> None:
    """Check everything, as process `rank` of four."""
    torch.set_num_threads(1)
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    places = dict(layouts())
    wanted = {case: call(START) for case, call in (CASES | SENDING).items()}
    for at, (name, layout) in enumerate(places.items()):
        if layout[0].get_coordinate() is None:
            refused("not part of the mesh", ValueError, lambda there=layout: draw()(divided(START, there)))  # type: ignore[misc]
            continue
        check_samplers(name, layout)
        check_noise(name, layout)
        if at in (0, 1, 5, 9):
            check_cases(name, layout, wanted)
    for case, call in SENDING.items():
        same(call(divided(START, places["samples and frames"])), wanted[case], case)
    square, line = places["samples and frames"], places["axis 1 among 4"]
    mesh_objectives.check_objectives(START, places["axis 0 among 4"], square)
    mesh_objectives.check_compiled(net, ANCESTRAL, START, line, "aot_eager")
    check_files(Path(folder), line, square)
    check_split(places["copies"])
    check_page()
    check_refusals(line)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined]
        work, args=(sys.argv[1],), nprocs=4, start_method="fork"
    )
