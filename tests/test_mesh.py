"""Sampling on several devices: torch processes that share a DTensor, devices of JAX, and processes that share a list of clips."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(script: str, *given: object) -> None:
    """Run a script in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, HERE / script, *map(str, given)]
    subprocess.run(command, check=True, timeout=300, cwd=HERE.parent, env=environment)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_four_processes_draw_the_bits_of_one(tmp_path: Path) -> None:
    """Five samplers on ten layouts, what reads whole samples, objectives, states in files, and refusals; see mesh_cases.py."""
    run("mesh_cases.py", tmp_path)


@pytest.mark.jax
@pytest.mark.slow
def test_eight_devices_of_jax_draw_what_one_does() -> None:
    """Under jit, on explicit meshes, in a shard_map, with the kernel and without; nothing is sent; see devices_that_sample.py."""
    run("devices_that_sample.py")
