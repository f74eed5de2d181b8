"""Train the shipped model: `python -m diffcore.unet3d.digits.train --out FOLDER` goes on where it was stopped."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Literal

from diffcore.unet3d import load, preset, save, training
from diffcore.unet3d.data import Arrays
from diffcore.unet3d.digits.data import moving_digits

CLIPS = 8192
"""Of the training set: a finite one, so that the exact denoiser of it is a bound on the loss."""


def source(split: Literal["train", "test"] = "train", count: int = CLIPS) -> Arrays:
    """Return the clips that the model is trained on, or held-out ones."""
    config = preset("moving_digits")
    return moving_digits(frames=config.frames, size=config.size, count=count, split=split)


def main(given: list[str] | None = None) -> None:
    """Train, and say where the weights are."""
    parser = argparse.ArgumentParser(prog="python -m diffcore.unet3d.digits.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder for log, samples, checkpoint and weights")
    parser.add_argument("--backend", choices=["torch", "jax"], default="torch")
    parser.add_argument("--steps", type=int, help=f"default: {training.PRESETS['moving_digits'].steps}")
    given_settings = parser.parse_args(given)
    settings = training.PRESETS["moving_digits"]
    if given_settings.steps is not None:
        settings = replace(settings, steps=given_settings.steps)
    if first := training.step_of(given_settings.out):
        print(f"going on from step {first}")  # noqa: T201
    path = training.train(
        preset("moving_digits"), settings, source(), given_settings.out, backend=given_settings.backend, progress=True
    )
    shipped = path.with_name("moving_digits.safetensors")
    save(load(path), shipped, dtype="float16", metadata={"settings": repr(settings)})
    print(f"{path}, and in half precision {shipped}")  # noqa: T201


if __name__ == "__main__":
    main()
