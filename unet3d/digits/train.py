"""Train the included model: `python -m diffcore.unet3d.digits.train --out FOLDER` goes on where it was stopped.

With `--from FILE` it goes on from trained weights, with more weight on levels where the frames of a clip come to agree
(`REFINING`); the included model was made by the two, one after the other.

With `--causal --frame-times independent` it trains one for endless video, which `python -m diffcore.unet3d.digits.long` evaluates.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Literal

from diffcore import _arguments, weights
from diffcore.unet3d import UNet3DConfig, load, preset, save, training
from diffcore.unet3d.data import Arrays
from diffcore.unet3d.digits.data import moving_digits
from diffcore.unet3d.training.settings import FRAME_TIMES

CLIPS = 8192
"""Of the training set: a finite one, so that the exact denoiser of it is a bound on the loss."""


REFINING = replace(
    training.PRESETS["moving_digits"], steps=1300, cool_down=850, weight=weights.Sigmoid(bias=1.0), seed=1
)
r"""Of a run that starts from trained weights. On the plain error of v, w = e^{-b} Sigmoid(b) is
sigmoid(b - lambda) e^{lambda/2} / pi over the density of uniform t; at b = 1 that is near the inverse of the loss a
trained network has at each log-SNR, so that noisy levels, where most of the loss cannot be removed, do not drown the rest."""


def source(split: Literal["train", "test"] = "train", count: int = CLIPS, config: UNet3DConfig | None = None) -> Arrays:
    """Return the clips that the model is trained on, or held-out ones."""
    config = config or preset("moving_digits")
    return moving_digits(frames=config.frames, size=config.size, count=count, split=split)


def main(given: list[str] | None = None) -> None:
    """Train, and say where the weights are."""
    parser = argparse.ArgumentParser(prog="python -m diffcore.unet3d.digits.train", description=__doc__)
    parser.add_argument(
        "--out", type=_arguments.folder, required=True, help="a folder for log, samples, checkpoint and weights"
    )
    parser.add_argument("--backend", choices=["torch", "jax"], default="torch")
    parser.add_argument("--steps", type=_arguments.count(), help=f"default: {training.PRESETS['moving_digits'].steps}")
    parser.add_argument("--frames", type=_arguments.count(), help="of a clip; default: 16")
    parser.add_argument("--causal", action="store_true", help="temporal attention that sees no later frame")
    parser.add_argument(
        "--from", dest="start", type=_arguments.old_file, metavar="FILE", help="weights to go on from, by `REFINING`"
    )
    times = "how noisy the frames of a clip are: all alike, each by itself, rising, or as in a rolling window"
    parser.add_argument("--frame-times", choices=FRAME_TIMES, default="shared", help=f"{times}; default: shared")
    parser.add_argument("--lag", type=float, help="of a pyramid: how far, in time, a frame is behind the next one")
    given_settings = parser.parse_args(given)
    config = preset("moving_digits")
    config = replace(config, frames=given_settings.frames or config.frames, causal=given_settings.causal)
    settings = REFINING if given_settings.start else training.PRESETS["moving_digits"]
    settings = replace(settings, frame_times=given_settings.frame_times, lag=given_settings.lag)
    if given_settings.steps is not None:
        settings = replace(
            settings, steps=given_settings.steps, cool_down=min(settings.cool_down, given_settings.steps)
        )
    if first := training.step_of(given_settings.out):
        print(f"going on from step {first}")  # noqa: T201
    path = training.train(
        config,
        settings,
        source(config=config),
        given_settings.out,
        backend=given_settings.backend,
        start=given_settings.start,
        progress=True,
    )
    shipped = path.with_name(f"moving_digits{'_causal' if config.causal else ''}.safetensors")
    save(load(path), shipped, dtype="float16", metadata={"settings": repr(settings)})
    print(f"{path}, and in half precision {shipped}")  # noqa: T201


if __name__ == "__main__":
    main()
