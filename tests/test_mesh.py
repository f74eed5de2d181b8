"""Sampling on several devices: torch processes that share a DTensor."""

from __future__ import annotations

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
