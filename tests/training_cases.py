"""A network, settings and data that train in no time, and what the tests of training share.

The configuration has dropout, labels, independent images and flips, so that a run that goes on bit for bit does so with
all that is drawn.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import libraries
import numpy as np
import pytest
from libraries import JAX, TORCH

from diffcore.unet3d import UNet3DConfig, data
from diffcore.unet3d.digits import moving_digits
from diffcore.unet3d.training import Settings, objective

CONFIG = UNet3DConfig(
    frames=2,
    size=8,
    channels=1,
    base_channels=8,
    multipliers=(1,),
    blocks=1,
    attention=(),
    head_dim=4,
    embedding=8,
    mlp_layers=2,
    dropout=0.2,
    condition="class",
    classes=10,
)
SETTINGS = Settings(
    steps=7,
    batch=2,
    images=1,
    flip=True,
    learning_rate=1e-2,
    warm_up=2,
    beta1=0.8,
    beta2=0.95,
    weight_decay=0.1,
    clip_norm=0.5,
    ema=0.9,
    log_every=2,
    checkpoint_every=3,
)
STILL = replace(CONFIG, dropout=0.0)
TOKENS = replace(STILL, condition="tokens", classes=0, token_width=3)
CAUSAL = replace(STILL, causal=True)
every_backend = pytest.mark.parametrize("backend", [TORCH, JAX])
both = [pytest.mark.torch, pytest.mark.jax]


class Stopped(Exception):
    """What stops a run."""


def compiled_quickly(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that makes compiled functions of JAX, without optimisation."""
    import jax

    def made(*given: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=libraries.quick()))
            return make(*given)

    return made


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Compile a step of JAX once for all settings that share it, and without optimisation."""
    try:
        from diffcore.unet3d.training import jax_trainer
    except ImportError:
        yield
        return
    inside = (
        "images",
        "accumulate",
        "beta1",
        "beta2",
        "weight_decay",
        "clip_norm",
        "schedule",
        "weight",
        "precision",
        "seed",
        "frame_times",
        "lag",
        "frozen",
    )
    once = functools.cache(compiled_quickly(jax_trainer.compiled))

    def compiled(graph: Any, config: Any, settings: Settings) -> Any:
        return once(graph, config, Settings(steps=1, **{name: getattr(settings, name) for name in inside}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax_trainer, "compiled", compiled)
        yield


@functools.cache
def digits(count: int = 24) -> data.Arrays:
    return moving_digits(frames=CONFIG.frames, size=CONFIG.size, count=count, digit_size=8)


def tokens() -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    return rng.normal(size=(10, 4, 3)).astype(np.float32), np.arange(4) <= np.arange(10)[:, None] % 4


def module_of(backend: str) -> Any:
    return importlib.import_module(f"diffcore.unet3d.training.{backend}_trainer")


def advance(backend: str, config: Any, settings: Settings, steps: int = 3, **options: Any) -> tuple[Any, list[Any]]:
    """Return a trainer after some steps, and the (loss, norm) of each."""
    trainer = module_of(backend).Trainer(config, settings, **options)
    of_labels = tokens() if config.condition == "tokens" else None
    drawn = [objective.draw(config, settings, digits(), of_labels, step) for step in range(steps)]
    return trainer, [tuple(map(float, trainer.step(step, some))) for step, some in enumerate(drawn)]


def part(trainer: Any, kind: str) -> dict[str, Any]:
    """Return the arrays of one kind in a trainer's state, float64."""
    kind = {"mu": "exp_avg", "nu": "exp_avg_sq"}.get(kind, kind) if trainer.library == "torch" else kind
    start = f"{kind}/"
    return {
        name.removeprefix(start): array.astype(np.float64)
        for name, array in trainer.state().items()
        if name.startswith(start)
    }


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the log of a run without its times."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def left(folder: Path) -> dict[str, Any]:
    """Return all that a run left behind, to be compared."""
    return {
        path.name: rows(folder) if path.name == "log.jsonl" else path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name != ".lock"
    }


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def stop(patch: pytest.MonkeyPatch, target: Any, name: str, when: Callable[..., bool], after: bool = False) -> None:
    """Let a function raise where `when` says so of its arguments: before it does anything, or once it is done."""
    inner = getattr(target, name)

    @functools.wraps(inner)
    def wrapped(*given: Any, **named: Any) -> Any:
        due = when(*given)
        if due and not after:
            raise Stopped
        found = inner(*given, **named)
        if due:
            raise Stopped
        return found

    patch.setattr(target, name, wrapped)
