"""(e) Peak memory of a run, and (f) the time of an import, each in a process of its own; (g) a matrix product."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import arrays, peers

MEMORY = """
import importlib, json, sys
import numpy as np
import diffcore as dc
from benchmarks import arrays
library, fuse = sys.argv[1], sys.argv[2] == "fused"
z = arrays.array("torch" if library == "diffusers" else library, arrays.GOAL, "float32", "cpu")
plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=8)
denoise = lambda z, log_snr: z
small = z[:1, :1]
def run(z):
    if library != "diffusers":
        return arrays.ready(dc.sample(denoise, plan, z, prediction="v", seed=7, compile=fuse, transform_x=dc.guidance.clip()))
    from benchmarks import peers
    return peers.diffusers("ancestral", z, z, 8)()
run(small)
def held(what):  # getrusage counts what the parent had
    return int(open("/proc/self/status").read().split(what + ":")[1].split()[0])
before = held("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # forget the peak until now
run(z)
print(json.dumps([(held("VmHWM") - before) * 1024 / z.nbytes]))
"""

IMPORT = "import time, numpy; t = time.process_time(); import {name}; print(time.process_time() - t)"


@pytest.mark.parametrize("library", ["numpy", "torch", "jax", "diffusers"])
def test_memory(benchmark: Any, library: str) -> None:
    """How many arrays of the state's size a run adds to the start; two of them are a state and its successor."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed; {peers.HOW}")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux, which says how much memory a process had at most")
    found: list[float] = []

    def measure() -> None:
        command = [sys.executable, "-c", MEMORY, library, "plain"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        found.append(json.loads(done.stdout)[0])

    benchmark.group = "peak memory of a run of 8 stages, cpu"
    benchmark.pedantic(measure, rounds=1)
    role = "peer" if library == "diffusers" else "ours"
    benchmark.extra_info.update(who=library, role=role, arrays=round(min(found), 2))


@pytest.mark.parametrize(
    ("name", "role"), [("diffcore", "ours"), ("diffusers", "peer"), ("k_diffusion", "peer"), ("azula", "peer")]
)
def test_import(benchmark: Any, name: str, role: str) -> None:
    """CPU time of an import after that of NumPy."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; {peers.HOW}")
    command = [sys.executable, "-W", "ignore", "-c", IMPORT.format(name=name)]
    first = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if first.returncode:
        pytest.skip(f"{name} does not import here: {first.stderr.strip().splitlines()[-1]}")
    found: list[float] = []

    def measure() -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        found.append(float(done.stdout.splitlines()[-1]))

    benchmark.group = "import, after numpy"
    benchmark.pedantic(measure, rounds=5)
    benchmark.extra_info.update(who=name, role=role, seconds=min(found))


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_product(timed: Any, device: str, library: str) -> None:
    size = 1024 if device == "cpu" else 8192
    if library == "numpy" and device != "cpu":
        pytest.skip("NumPy runs on the CPU")
    a = arrays.array(library, (size, size), "float32" if device == "cpu" else "bfloat16", device)
    timed(lambda: arrays.ready(a @ a), f"matrix product of {size}^2, {device}", library, "ceiling", flops=2 * size**3)
