"""Kill training again and again: `python -m benchmarks.kill_training --kills 100 --processes 2`.

Runs of several processes on a CPU, under the agent of torchrun, which starts all of them again when one dies. At random moments
one of them, at random, gets SIGKILL. Each run has to end with the weights of one that was left alone, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from diffcore import _arguments
from diffcore.unet3d import UNet3DConfig, data, weights
from diffcore.unet3d.training import Settings, train

CONFIG = UNet3DConfig(
    frames=2, size=8, channels=1, base_channels=8, multipliers=(1,), blocks=1, attention=(), head_dim=4, embedding=8,
    mlp_layers=2, dropout=0.2, condition="class", classes=10,
)  # fmt: skip
SETTINGS = Settings(
    steps=40, batch=4, images=1, flip=True, learning_rate=1e-2, warm_up=2, ema=0.9, log_every=5, checkpoint_every=4
)


def work(folder: Path, steps: int) -> None:
    """What each process does."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    clips = np.random.default_rng(0).random((9, 4, 8, 8, 1))
    train(CONFIG, replace(SETTINGS, steps=steps), data.Arrays(clips, np.arange(9) + 1, frames=2), folder)
    dist.destroy_process_group()


def launch(folder: Path, steps: int, processes: int, restarts: int) -> None:
    """Run all processes, which are forked from this one, to the end of the training."""
    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": folder.name}
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, start_method="fork", max_restarts=restarts, **meeting
    )
    elastic_launch(config, work)(folder, steps)


def kill(rng: random.Random, longest: float, most: int, over: threading.Event, killed: list[float]) -> None:
    """Kill one of the processes now and then, until there were so many or the run is over."""
    began = time.monotonic()
    while len(killed) < most and not over.wait(rng.uniform(0.0, longest)):
        running = multiprocessing.active_children()
        if running:
            os.kill(rng.choice(running).pid or 0, signal.SIGKILL)
            killed.append(time.monotonic() - began)


def main(given: list[str] | None = None) -> int:
    """Kill and compare; 0 where every run ended with the same weights."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill_training", description=__doc__)
    parser.add_argument("--kills", type=_arguments.count(), default=100)
    parser.add_argument("--each", type=_arguments.count(), default=5, help="kills of one run")
    parser.add_argument("--steps", type=_arguments.count(), default=SETTINGS.steps, help="of one run")
    parser.add_argument("--processes", type=_arguments.count(), default=2)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    asked = parser.parse_args(given)
    rng, kills, runs = random.Random(asked.seed), 0, 0
    with tempfile.TemporaryDirectory() as place:
        alone = Path(place, "alone")
        began = time.monotonic()
        launch(alone, asked.steps, asked.processes, 0)
        whole = time.monotonic() - began
        wanted = weights.read(alone / "model.safetensors").arrays
        while kills < asked.kills:
            folder, over, killed = Path(place, str(runs)), threading.Event(), list[float]()
            most = min(asked.each, asked.kills - kills)
            killer = threading.Thread(target=kill, args=(rng, 0.4 * whole, most, over, killed))
            killer.start()
            try:
                launch(folder, asked.steps, asked.processes, asked.each + 1)
            finally:
                over.set()
                killer.join()
            found = weights.read(folder / "model.safetensors").arrays
            same = all(np.array_equal(found[name], array) for name, array in wanted.items())
            runs, kills = runs + 1, kills + len(killed)
            row = {"run": runs, "kills": len(killed), "at": [round(at, 2) for at in killed], "same": same}
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            if not same:
                sys.stdout.write(f"the weights differ; --seed {asked.seed}\n")
                return 1
    sys.stdout.write(json.dumps({"kills": kills, "runs": runs, "seconds_alone": round(whole, 2)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
