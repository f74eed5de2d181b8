"""(h) Several devices: a stage on a DTensor beside its local tensor, and a step of training on every mesh.

The rows run `benchmarks.mesh` and `benchmarks.training_bytes` on all GPUs of the machine, in processes of their own. A CPU is one
device, and so is a single GPU; there the two commands measure by hand what several processes cost.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
WHERE = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


def devices(device: str) -> int:
    """Return how many devices there are, or skip where it is one."""
    torch = pytest.importorskip("torch")
    count = torch.cuda.device_count() if device == "cuda" else 1
    if count < 2:
        by_hand = "torchrun --nproc-per-node 2 -m benchmarks.mesh, python -m benchmarks.training_bytes"
        pytest.skip(f"{count} device of {device}, and these rows take two; on the processes of a CPU: {by_hand}")
    return int(count)


@cache
def found(*command: str) -> list[dict[str, Any]]:
    """Return the rows that a command prints as JSON."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, timeout=900)
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def keep(benchmark: Any, group: str, who: str, role: str, seconds: float, **info: Any) -> None:
    """Keep what was measured elsewhere."""
    benchmark.group = group
    benchmark.extra_info.update(who=who, role=role, seconds=seconds, **info)
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.parametrize("who", ["ours", "local tensor"])
@pytest.mark.parametrize("plan", ["ddim", "ancestral", "unipc"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("device", WHERE)
def test_stage_on_a_mesh(benchmark: Any, device: str, axis: int, plan: str, who: str) -> None:
    count = devices(device)
    rows = found("torch.distributed.run", "--nproc-per-node", f"{count}", "-m", "benchmarks.mesh", "--device", device)
    (row,) = (row for row in rows if (row["axis"], row.get("plan")) == (axis, plan))
    seconds = 1e-6 * row["dtensor_us" if who == "ours" else "local_us"]
    role = "ours" if who == "ours" else "ceiling"
    keep(benchmark, f"mesh of {count}, {plan}, axis {axis} divided, {device}", who, role, seconds)


@pytest.mark.parametrize("mesh", ["shards", "both", "replicas"])
@pytest.mark.parametrize("device", WHERE)
def test_training_on_a_mesh(benchmark: Any, device: str, mesh: str) -> None:
    count = devices(device)
    size = ("--preset", "bair", "--batch", f"{4 * count}")
    rows = found("benchmarks.training_bytes", "--device", device, "--processes", f"{count}", *size)
    shape = {"shards": [count], "both": [2, count // 2], "replicas": [count, 1]}[mesh]
    row = next((row for row in rows if row["mesh"] == shape), None)
    if row is None:
        pytest.skip(f"{count} devices make no mesh of 2 x {count // 2}")
    info = {"received_bytes": row["in_all"], "arithmetic": row["arithmetic"]}
    keep(benchmark, f"training on {count}, bair, {device}", mesh, "ours", row["seconds"], **info)
