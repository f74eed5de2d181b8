"""Runs of training in JAX over eight devices of one process, or over two processes of two devices each:
`python tests/devices_that_train.py FOLDER [PROCESS PORT]`."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

PROCESS = sys.argv[2:]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={2 if PROCESS else 8}"

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh  # noqa: E402
from training_cases import CONFIG, SETTINGS  # noqa: E402

from diffcore.unet3d import data  # noqa: E402
from diffcore.unet3d.training import jax_trainer, train  # noqa: E402


def go(folder: Path, mesh: Any, steps: int = 4, **changes: Any) -> None:
    """Train, or go on."""
    settings = replace(SETTINGS, batch=8, steps=steps, checkpoint_every=2, log_every=1, **changes)
    source = data.Arrays(np.random.default_rng(0).random((9, 4, 8, 8, 1)), np.arange(9) + 1, frames=2)
    train(CONFIG, settings, source, folder, backend="jax", mesh=mesh)


def mesh(*shape: int) -> Mesh:
    """Return a mesh of the first devices."""
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), ("replicas", "shards")[-len(shape) :])


if __name__ == "__main__":
    out = Path(sys.argv[1])
    jax.config.update("jax_disable_most_optimizations", True)
    if PROCESS:
        jax.distributed.initialize(f"localhost:{PROCESS[1]}", 2, int(PROCESS[0]))
        go(out / "across", None, 2)  # a mesh of all devices
        try:
            go(out / "across", None, 4, seed=1)
        except ValueError as error:
            (out / f"said-{PROCESS[0]}.txt").write_text(str(error))
    else:
        make = jax_trainer.compiled
        once = functools.cache(make)
        jax_trainer.compiled = lambda *given: once(*given) if len(given) == 3 else make(*given)
        go(out / "one", None)
        go(out / "across", None)  # which two processes began
        go(out / "down", mesh(8), 2)
        go(out / "down", mesh(2), 4, accumulate=2)
