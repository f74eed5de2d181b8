"""The cases of the Triton kernels without a GPU: a second pytest, in which Triton interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = [path for path in sorted(HERE.glob("test_*.py")) if "\nfrom triton_cases import" in path.read_text()]


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the second pytest")
def test_the_cases_of_triton_pass_interpreted() -> None:
    pytest.importorskip("triton")
    assert len(FILES) == 5
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", *map(str, FILES), "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
