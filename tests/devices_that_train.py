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
from flax import nnx  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402
from libraries import quick  # noqa: E402
from training_cases import CONFIG, SETTINGS, compiled_quickly  # noqa: E402

from diffcore import noise  # noqa: E402
from diffcore.cli import meshes  # noqa: E402
from diffcore.unet3d import build, data  # noqa: E402
from diffcore.unet3d.training import jax_trainer, train  # noqa: E402


def source(count: int = 9) -> data.Arrays:
    return data.Arrays(np.random.default_rng(0).random((count, 4, 8, 8, 1)), np.arange(count) + 10 - count, frames=2)


def go(folder: Path, mesh: Any, steps: int = 4, validation: Any = None, **changes: Any) -> None:
    """Train from the weights of a file, or go on."""
    settings = replace(SETTINGS, batch=8, steps=steps, checkpoint_every=2, log_every=1, **changes)
    how = {"start": folder.parent / "start.safetensors", "validation": validation}
    train(CONFIG, settings, source(), folder, backend="jax", mesh=mesh, **how)


def mesh(*shape: int) -> Mesh:
    """Return a mesh of the first devices."""
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), ("replicas", "shards")[-len(shape) :])


def check_network() -> None:
    """The network on a video whose frames and rows are divided: XLA sends what convolutions and attention need."""
    config = replace(CONFIG, dropout=0.0, attention=(8,))
    graph, parts = nnx.split(build(config, "jax", seed=3))
    z, level, cond = noise.normal(1, 0, (2, 2, 8, 8, 1)), np.zeros(2, np.float32), np.arange(2)
    call = jax.jit(lambda z: nnx.merge(graph, parts)(z, level, cond), compiler_options=quick())
    whole = Mesh(np.array(jax.devices()).reshape(2, 4), ("frames", "rows"))
    divided = jax.device_put(z, NamedSharding(whole, PartitionSpec(None, "frames", "rows")))
    np.testing.assert_allclose(call(divided), build(config, "numpy", seed=3)(z, level, cond), atol=1e-5)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    make = compiled_quickly(jax_trainer.compiled)
    once = functools.cache(make)
    jax_trainer.compiled = lambda *given: once(*given) if len(given) == 3 else make(*given)
    if PROCESS:
        os.environ |= {"RANK": PROCESS[0], "WORLD_SIZE": "2", "MASTER_PORT": str(int(PROCESS[1]) - 1)}
        over = meshes.of("jax", None, "cpu")  # as `torchrun -m diffcore train` does: a mesh of all devices
        assert (over.devices, over.first) == (4, PROCESS[0] == "0")
        go(out / "across", over.mesh, 2, validation=source(8))
        try:
            go(out / "across", None, 4, seed=1)
        except ValueError as error:
            (out / f"said-{PROCESS[0]}.txt").write_text(str(error))
    else:
        go(out / "one", None, validation=source(8))
        go(out / "across", None, validation=source(8))  # which two processes began
        go(out / "down", meshes.of("jax", "8", None).mesh, 2)
        go(out / "down", mesh(2), 4, accumulate=2)
        check_network()
