"""What the tests of the command line share: how a command is run, and what it is run on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffcore as dc

pytest.importorskip("typer")
pytest.importorskip("av")
pytest.importorskip("PIL")

from typer.testing import CliRunner, Result

from diffcore.cli import app as app_module
from diffcore.cli import files, writers

ROOT = Path(__file__).resolve().parent.parent
RUNNER = CliRunner()
QUICK = ("--backend", "numpy", "--steps", "2")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that is empty."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save a network that takes no time."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    dc.unet3d.save(dc.unet3d.build(dc.unet3d.preset("tiny")), path)
    return str(path)


def run(*arguments: object) -> Result:
    return RUNNER.invoke(app_module.app, [str(argument) for argument in arguments], prog_name="diffcore")


def done(*arguments: object) -> Result:
    found = run(*arguments)
    assert found.exit_code == 0, found.output
    return found


def refused(code: int, *arguments: object) -> str:
    """Return the one line on stderr of a command that ends with a code and writes no file."""
    before = sorted(os.listdir())
    found = run(*arguments)
    assert found.exit_code == code, found.output
    assert found.stdout == ""
    lines = [line for line in found.stderr.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, found.stderr
    assert lines[0].startswith("diffcore")
    assert "Traceback" not in lines[0]
    assert sorted(os.listdir()) == before
    return lines[0]


def clip(frames: int = 4, size: tuple[int, int] = (8, 8), channels: int = 1, count: int | None = None) -> Any:
    lead = (frames,) if count is None else (count, frames)
    return np.random.default_rng(0).uniform(-1.0, 1.0, (*lead, *size, channels)).astype(np.float32)


def coded(path: str, frames: int = 6, size: tuple[int, int] = (16, 16)) -> str:
    with writers.opened(Path(path), 5.0) as file:
        file.write(clip(frames, size, 3)[None])
    return path


def whole(path: str) -> Any:
    video = files.look(Path(path))
    return files.read(video, video.size, video.channels)
