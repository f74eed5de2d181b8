"""How many independent images to train on beside each video: Table 4 of the paper in small, under an equal budget.

    python -m benchmarks.images_per_video FOLDER --out FILE.json      # about an hour and a half on one core

The paper trains on 0, 4 or 8 images a video for as many steps; there the images are extra work. Here the budget is the
number of frames that the network sees, images included, so that all runs cost the same: `--same steps` gives the paper's
comparison instead. Digits of 16x16, one small network, everything else equal; the measure is the Frechet distance of
samples to held-out clips, in the feature space of `unet3d.digits.features`. A run that was stopped goes on from its
checkpoint.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import numpy as np

from diffcore import _arguments, _files, metrics
from diffcore.unet3d import build, data, digits, load, preset, training
from diffcore.unet3d.digits.evaluate import Network

FRAMES, SIZE = 16, 16
CONFIG = preset("moving_digits", size=SIZE, attention=(4, 8))
IMAGES = (0, 4, 8)


def settings(images: int, steps: int, same: str, seed: int) -> training.Settings:
    """Return the settings of a run: `steps` of the run without images, and as many frames in the others."""
    if same == "frames":
        steps = round(steps * FRAMES / (FRAMES + images))
    base = replace(training.PRESETS["moving_digits"], steps=steps, images=images, warm_up=100, cool_down=steps // 4)
    return replace(base, ema=0.995, checkpoint_every=200, sample_every=0, seed=seed)


def clips(split: Any, count: int) -> data.Arrays:
    return digits.moving_digits(frames=FRAMES, size=SIZE, count=count, split=split)


def as_floats(source: data.Arrays) -> Any:
    return source.clips.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def judge(model: Any, held: Any, count: int, steps: int) -> dict[str, Any]:
    """Return what samples of a model are worth, without guidance as in the paper's table, and with it."""
    network, labels = Network(model, batch=32, half=True), np.arange(count) % CONFIG.classes
    reference = metrics.moments(digits.features(held[count:]))
    found: dict[str, Any] = {}
    for guidance in (0.0, 1.0):
        made = network.draw(labels, steps, guidance, seed=1000)
        seen = digits.legibility(made, labels)
        found[f"guidance {guidance:g}"] = {
            "frechet_distance": metrics.frechet_distance(reference, metrics.moments(digits.features(made))),
            "accuracy": seen.accuracy,
            "legibility": seen.probability,
            "identity_held": digits.identity_held(made),
        }
    return found


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images_per_video", description=__doc__)
    parser.add_argument("folder", type=_arguments.folder, help="where the runs are kept")
    parser.add_argument("--out", type=_arguments.new_file, required=True)
    parser.add_argument("--images", type=_arguments.count(0), nargs="+", default=IMAGES)
    parser.add_argument(
        "--steps", type=_arguments.count(), default=2000, help="of the run without images (default: 2000)"
    )
    parser.add_argument("--same", choices=["frames", "steps"], default="frames")
    parser.add_argument("--seeds", type=_arguments.count(0), nargs="+", default=[0])
    parser.add_argument("--count", type=_arguments.count(2), default=512, help="clips that are drawn and compared")
    parser.add_argument("--sample-steps", type=_arguments.count(), default=16)
    wanted = parser.parse_args(given)
    source, held = clips("train", 8192), as_floats(clips("test", 2048 + wanted.count))
    real = metrics.moments(digits.features(held[: wanted.count]))
    result = json.loads(wanted.out.read_text()) if wanted.out.exists() else {"rows": []}
    result["config"], result["held-out clips"] = (
        CONFIG.to_dict(),
        metrics.frechet_distance(metrics.moments(digits.features(held[wanted.count :])), real),
    )
    for seed in wanted.seeds:
        for images in wanted.images:
            run = settings(images, wanted.steps, wanted.same, seed)
            folder = wanted.folder / f"images{images}-{wanted.same}-seed{seed}"
            path = training.train(CONFIG, run, source, folder)
            lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            row = {
                "images": images,
                "steps": run.steps,
                "same": wanted.same,
                "seed": seed,
                "frames": run.steps * run.batch * (FRAMES + images),
                "loss": float(np.mean([line["loss"] for line in lines[-10:]])),
                "seconds": lines[-1]["seconds"],
                **judge(load(path, "torch"), held, wanted.count, wanted.sample_steps),
            }
            key = ("images", "same", "seed")
            result["rows"] = [old for old in result["rows"] if any(old[part] != row[part] for part in key)] + [row]
            _files.write(wanted.out, json.dumps(result, indent=1) + "\n")
            print(json.dumps(row), flush=True)
    if "untrained" not in result:
        result["untrained"] = judge(build(CONFIG, "torch"), held, wanted.count, wanted.sample_steps)
        _files.write(wanted.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
