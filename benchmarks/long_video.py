"""Digits from 16 to 64 frames by replacement and by reconstruction guidance: Table 6 of the paper in small.

    python -m benchmarks.long_video FOLDER --out benchmarks/results/long-video.json      # three hours on one core

The included model draws clips, in bfloat16 as it was trained, and `video.extend` makes them longer by each method, from
the same 16 frames and with the same noise. Each window of 16 frames is compared to held-out clips by the Frechet
distance in the space of `unet3d.digits.features`; beside it whether the digit is still the one asked for, whether it is
held, and how evenly it moves across a seam. Clips are drawn a few at a time and kept in FOLDER: a run that was stopped
goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import diffcore as dc
from diffcore import _arguments, _files, metrics
from diffcore.unet3d import digits, pretrained
from diffcore.unet3d.digits.evaluate import clips_of
from diffcore.unet3d.half import InBfloat16

TOGETHER, FRAMES, WINDOW, OVERLAP, STEPS, GUIDANCE = 8, 64, 16, 4, 16, 1.0
METHODS: dict[str, dict[str, Any]] = {
    "replacement": {"method": "replacement"},
    "reconstruction": {"method": "reconstruction", "weight": 5.0},
}
SEAMS = range(WINDOW, FRAMES, WINDOW - OVERLAP)


def draw(number: int, folder: Path) -> None:
    """Draw `TOGETHER` clips and extend them by each method, where a file of them is not there yet."""
    import torch

    model = InBfloat16(pretrained("moving_digits", "torch").eval().requires_grad_(False))
    labels = torch.arange(number * TOGETHER, (number + 1) * TOGETHER) % 10
    guided = dc.guidance.classifier_free(model, cond=labels, null=model.null(labels), weight=GUIDANCE)
    schedule, clip = dc.schedules.Cosine(), dc.guidance.clip()
    common: dict[str, Any] = {
        "prediction": "v",
        "transform_x": clip,
        "seed": dc.noise.keys(1000, TOGETHER, first=number * TOGETHER),
    }
    plan = dc.samplers.dpm_solver_pp(schedule, steps=STEPS)
    first: Any = None
    for method, how in METHODS.items():
        path = folder / f"{method}-{number:03}.npy"
        if path.exists():
            continue
        if first is None:
            shape = (TOGETHER, *model.config.shape)
            first = dc.sample(guided, plan, shape=shape, like=torch.zeros(1), **common)
        plan_on = dc.samplers.dpm_solver_pp(schedule, steps=STEPS, eta=1.0)
        made = dc.video.extend(guided, plan_on, first, frames=FRAMES, window=WINDOW, overlap=OVERLAP, **how, **common)
        with _files.replacing(path) as part, part.open("wb") as file:
            np.save(file, made.all().numpy())
        print(path.name, flush=True)


def judge(clips: Any, labels: Any, reference: metrics.Moments, whole: metrics.Moments) -> dict[str, Any]:
    """Return what the windows of long clips are worth, and the clips as a whole."""
    windows = [clips[:, first : first + WINDOW] for first in range(0, FRAMES, WINDOW)]
    seams = [clips[:, seam - 3 : seam + 3] for seam in SEAMS]
    return {
        "frechet_distance": [
            metrics.frechet_distance(reference, metrics.moments(digits.features(window))) for window in windows
        ],
        "frechet_distance_of_all": metrics.frechet_distance(whole, metrics.moments(digits.features(clips))),
        "accuracy": [digits.legibility(window, labels).accuracy for window in windows],
        "legibility": [digits.legibility(window).probability for window in windows],
        "speed": [digits.speed(window) for window in windows],
        "straightness": [digits.straightness(window) for window in windows],
        "identity_held": digits.identity_held(clips),
        "straightness_at_seams": float(np.mean([digits.straightness(seam) for seam in seams])),
        "step_at_seams": float(np.mean([digits.speed(clips[:, seam - 1 : seam + 1]) for seam in SEAMS])),
    }


def picture(path: Path, of_methods: list[Any], clip: int = 6) -> None:
    """Draw the frames around the first seam of a clip, a row for each method and a line at the seam."""
    from PIL import Image

    frames = [np.concatenate(list(clips[clip, WINDOW - 7 : WINDOW + 7, ..., 0]), axis=1) for clips in of_methods]
    pixels = np.uint8(np.clip(127.5 * np.concatenate(frames) + 127.5, 0, 255)).repeat(2, axis=0).repeat(2, axis=1)
    pixels[:, pixels.shape[1] // 2] = 160
    Image.fromarray(pixels).save(path)


def real() -> dc.unet3d.data.Arrays:
    return digits.moving_digits(frames=FRAMES, size=32, count=1024, split="test", seed=1)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_video", description=__doc__)
    parser.add_argument("folder", type=_arguments.folder, help="where clips are kept")
    parser.add_argument(
        "--count", type=_arguments.count(TOGETHER), default=128, help=f"clips, {TOGETHER} at a time (default: 128)"
    )
    parser.add_argument("--first", type=_arguments.count(0), default=0, help="the first one that is drawn")
    parser.add_argument(
        "--out", type=_arguments.new_file, help="where the result goes; without it clips are drawn and nothing more"
    )
    parser.add_argument("--picture", type=_arguments.new_file, help="where a picture of a seam goes, beside `--out`")
    wanted = parser.parse_args(given)
    wanted.folder.mkdir(parents=True, exist_ok=True)
    for number in range(wanted.first // TOGETHER, wanted.count // TOGETHER):
        draw(number, wanted.folder)
    if wanted.out is None:
        return
    held, _ = clips_of("test", 2048)
    reference = metrics.moments(digits.features(held))
    numbers = range(wanted.count // TOGETHER)
    labels = np.arange(wanted.count // TOGETHER * TOGETHER) % 10
    found: dict[str, Any] = {
        "clips": len(labels),
        "frames": FRAMES,
        "window": WINDOW,
        "overlap": OVERLAP,
        "plan": f"DPM-Solver++ 2M SDE, {STEPS} steps",
        "guidance": GUIDANCE,
        "methods": METHODS,
    }
    long = real().clips.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    whole = metrics.moments(digits.features(long[len(labels) :]))
    found["real"] = judge(long[: len(labels)], None, reference, whole)
    drawn = {
        method: np.concatenate([np.load(wanted.folder / f"{method}-{at:03}.npy") for at in numbers])
        for method in METHODS
    }
    for method, clips in drawn.items():
        found[method] = judge(clips, labels, reference, whole)
    if wanted.picture is not None:
        picture(wanted.picture, list(drawn.values()))
    _files.write(wanted.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
