"""Sampling on several devices: torch processes that share a DTensor, devices of JAX, and processes that share a list of clips."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.torch
@pytest.mark.slow
def test_four_processes_draw_the_bits_of_one(tmp_path: Path) -> None:
    """Five samplers on ten layouts, what reads whole samples, states in files, and refusals; see mesh_cases.py."""
    import mesh_cases
    import torch.multiprocessing

    torch.multiprocessing.spawn(  # type: ignore[attr-defined]
        mesh_cases.work, args=(str(tmp_path),), nprocs=4
    )


@pytest.mark.jax
@pytest.mark.slow
def test_eight_devices_of_jax_draw_what_one_does() -> None:
    """Under jit, on explicit meshes, in a shard_map, with the kernel and without; nothing is sent; see devices_that_sample.py."""
    here = Path(__file__).parent
    subprocess.run(
        [sys.executable, here / "devices_that_sample.py"],
        check=True,
        timeout=300,
        cwd=here.parent,
        env={**os.environ, "PYTHONPATH": str(here.parent)},
    )
