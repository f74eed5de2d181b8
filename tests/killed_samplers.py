"""Processes that share a list of clips are killed at random; the next run makes what is missing, and nothing else.

python tests/killed_samplers.py 100
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import diffcore as dc

CLIPS, PROCESSES = 12, 2
ROOT = Path(__file__).resolve().parent.parent


def begin(folder: Path, weights: Path, rank: int, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "diffcore", "sample", str(folder / "%02d.npy"), "--weights", str(weights)]
    command += ["--count", str(CLIPS), "--batch", "2", "--backend", "numpy", "--steps", "2"]
    env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def files(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What is there: the content of each clip, and which file it is, written when."""
    found = {}
    for path in folder.glob("*.npy"):
        found[path.name] = (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def main(kills: int, seed: int = 0) -> tuple[int, int]:
    """Kill processes so many times; return how many kills met a run that was not done, and how many runs were finished."""
    chance, met, finished = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as place:
        weights, whole, folder = (Path(place, name) for name in ("tiny.safetensors", "whole", "folder"))
        dc.unet3d.save(dc.unet3d.build(dc.unet3d.preset("tiny")), weights)
        whole.mkdir()
        folder.mkdir()
        begun = time.perf_counter()
        assert begin(whole, weights, 0, 1).wait() == 0
        takes, want = time.perf_counter() - begun, {name: found[0] for name, found in files(whole).items()}
        assert len(want) == CLIPS
        for kill in range(kills + 1):
            before = files(folder)
            running = [begin(folder, weights, rank, PROCESSES) for rank in range(PROCESSES)]
            if kill < kills:  # the last run is left alone
                time.sleep(chance.uniform(0.2, 1.0) * takes)
                lost = chance.choice(running)
                met += lost.poll() is None
                lost.kill()
            for one in running:
                one.wait()
            now = files(folder)
            assert all(now[name] == found for name, found in before.items()), "a clip was made twice"
            assert all(want[name] == found[0] for name, found in now.items()), "a clip differs"
            if len(now) == CLIPS:
                finished += 1
                if kill < kills:
                    for name in now:
                        (folder / name).unlink()
        assert set(os.listdir(folder)) == set(want), "a clip was lost, or part of one was left"
    return met, finished


if __name__ == "__main__":
    sys.stdout.write("kills of running processes: {}, runs finished: {}\n".format(*main(int(sys.argv[1]))))
