"""What a stage costs on a DTensor, beyond what it costs on the part that a process holds, and what is sent in it.

    torchrun --nproc-per-node 1 -m benchmarks.mesh
    torchrun --nproc-per-node 8 -m benchmarks.mesh --device cuda --size 2 16 64 64 4

A row a case, as JSON: microseconds a stage on the local tensor and on the DTensor, on a CPU of processor time, the least of several
runs side by side, with a denoiser that returns what is there; and the collectives of a stage, with the bytes that a process gets
from others in them, beside those of a prediction.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import diffcore as dc
from diffcore import _arguments

STAGES, RUNS = 200, 15
SCHEDULE = dc.schedules.Cosine()


class Received(TorchDispatchMode):
    """Counts collectives, and the bytes that a process gets from others in them, each a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives, self.size = 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # what it does comes by again
        found = func(*args, **(kwargs or {}))
        if func.namespace == "_c10d_functional" and not func.__name__.startswith(("wait", "_wrap")):
            count = torch.distributed.get_world_size()
            passes = 2.0 if "all_reduce" in func.__name__ else 1.0
            self.collectives += 1
            self.size += passes * max(args[0].nbytes, found.nbytes) * (count - 1) / count
        return found


def once(plan: dc.Plan, z: Any, device: str) -> float:
    """Return microseconds a stage, with a denoiser that returns what is there."""
    still = torch.zeros_like(z)
    wait, clock = (torch.cuda.synchronize, time.perf_counter) if device == "cuda" else (lambda: None, time.process_time)
    wait()
    begun = clock()
    dc.sample(lambda *_: still, plan, z, seed=3, prediction="x")
    wait()
    return 1e6 * (clock() - begun) / STAGES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mesh")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--size", type=_arguments.count(), nargs="+", default=[2, 8, 8, 8, 3], help="of the whole: B T H W C"
    )
    given = parser.parse_args()
    if "WORLD_SIZE" not in os.environ:
        parser.error("start it with torchrun: torchrun --nproc-per-node 1 -m benchmarks.mesh")
    torch.set_num_threads(1)
    if given.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    count = int(os.environ["WORLD_SIZE"])
    mesh, whole = init_device_mesh(given.device, (count,)), torch.randn(given.size, device=given.device)
    for axis in (0, 1):
        z = distribute_tensor(whole, mesh, [Shard(axis)])
        local = z.to_local().clone()
        for name in ("ddim", "ancestral", "unipc"):
            plan = getattr(dc.samplers, name)(SCHEDULE, STAGES)
            times = [
                (
                    once(plan, local, given.device),
                    once(plan, z, given.device),
                )
                for _ in range(RUNS)
            ]
            on_local, on_mesh = (min(column) for column in zip(*times, strict=True))
            row = {"processes": count, "axis": axis, "plan": name, "local_us": on_local, "dtensor_us": on_mesh}
            if torch.distributed.get_rank() == 0:
                print(json.dumps({key: round(v, 1) if isinstance(v, float) else v for key, v in row.items()}))
        plan, pair = dc.samplers.ancestral(SCHEDULE, 4), (lambda z, _: z, lambda z, _: 0.5 * z)
        guide, rule = dc.guidance.classifier_free, dc.guidance.projected(momentum=-0.5)
        cases: dict[str, tuple[Any, Any]] = {
            "stages": (pair[0], None),
            "guidance": (guide(*pair, weight=2.0), None),
            "rescaled": (guide(*pair, weight=2.0, rescale=0.7), None),
            "projected": (guide(*pair, weight=2.0, rule=rule, prediction="v", schedule=SCHEDULE), None),
            "dynamic threshold": (pair[0], dc.guidance.dynamic_threshold()),
        }
        for case, (denoise, transform) in cases.items():
            with Received() as sent:
                dc.sample(denoise, plan, z, seed=3, prediction="v", transform_x=transform)
            row = {"processes": count, "axis": axis, "case": case, "collectives_a_stage": sent.collectives / 4}
            row |= {"received_a_stage": round(sent.size / 4), "bytes_of_a_prediction": whole.nbytes}
            if torch.distributed.get_rank() == 0:
                print(json.dumps(row))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
