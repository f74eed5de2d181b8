"""What a weight of guidance does to the samples: Table 5 of the paper in small.

    python -m benchmarks.guidance_weights FOLDER --out FILE.json      # a quarter of an hour on one core

The included model draws, in bfloat16 as it was trained, the digits asked for at each weight, with the same noise. The
measures: the Frechet distance to held-out clips in the space of `unet3d.digits.features`; how sure a classifier is and
how often it finds the digit; how long a clip keeps it; and the spread, the deviation of the features of a digit's clips
over that of real ones, which is 1 where nothing is lost. Clips are drawn a few at a time and kept in FOLDER: a run that
was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import diffcore as dc
from diffcore import _arguments, _files, metrics
from diffcore.unet3d import digits, pretrained
from diffcore.unet3d.digits.evaluate import SCHEDULE, clips_of
from diffcore.unet3d.half import InBfloat16

TOGETHER = 20
ROWS: dict[str, dict[str, Any]] = {
    "weight 0": {"weight": 0.0},
    "weight 1": {"weight": 1.0},
    "weight 2": {"weight": 2.0},
    "weight 5": {"weight": 5.0},
    "weight 5, projected": {"weight": 5.0, "rule": dc.guidance.projected()},
}


def draw(model: Any, row: str, number: int, steps: int, path: Path) -> None:
    """Draw `TOGETHER` clips, two of each digit."""
    import torch

    labels = torch.arange(TOGETHER) % 10
    kind = {"prediction": model.prediction} if "rule" in ROWS[row] else {}
    guided = dc.guidance.classifier_free(model, cond=labels, null=model.null(labels), **ROWS[row], **kind)
    made = dc.sample(
        guided,
        dc.samplers.dpm_solver_pp(SCHEDULE, steps=steps),
        shape=(TOGETHER, *model.config.shape),
        like=torch.zeros(1),
        seed=dc.noise.keys(1000, TOGETHER, first=number * TOGETHER),
        prediction=model.prediction,
        transform_x=dc.guidance.clip(),
    )
    with _files.replacing(path) as part, part.open("wb") as file:
        np.save(file, made.numpy())
    print(path.name, flush=True)


def spread(features: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """Return the deviation of the features of a digit's clips, over all digits."""
    return float(np.sqrt(np.mean([features[labels == digit].var(axis=0, ddof=1).sum() for digit in range(10)])))


def judge(clips: Any, labels: Any, reference: metrics.Moments, real: float) -> dict[str, float]:
    """Return what clips are worth."""
    features, seen = digits.features(clips), digits.legibility(clips, labels)
    return {
        "frechet_distance": metrics.frechet_distance(reference, metrics.moments(features)),
        "legibility": seen.probability,
        "accuracy": seen.accuracy,
        "identity_held": digits.identity_held(clips),
        "straightness": digits.straightness(clips),
        "spread": spread(features, labels) / real,
    }


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance_weights", description=__doc__)
    parser.add_argument("folder", type=_arguments.folder, help="where clips are kept")
    parser.add_argument("--out", type=_arguments.new_file, required=True)
    parser.add_argument(
        "--count", type=_arguments.count(TOGETHER), default=100, help=f"clips, {TOGETHER} at a time (default: 100)"
    )
    parser.add_argument("--steps", type=_arguments.count(), default=8, help="of DPM-Solver++ 2M (default: 8)")
    wanted = parser.parse_args(given)
    wanted.folder.mkdir(parents=True, exist_ok=True)
    model = InBfloat16(pretrained("moving_digits", "torch").eval().requires_grad_(False))
    numbers = range(wanted.count // TOGETHER)
    labels = np.arange(len(numbers) * TOGETHER) % 10
    paths = {
        row: [
            wanted.folder / f"{row.replace(',', '').replace(' ', '-')}-{wanted.steps}-{number:03}.npy"
            for number in numbers
        ]
        for row in ROWS
    }
    for number in numbers:
        for row in ROWS:
            if not paths[row][number].exists():
                draw(model, row, number, wanted.steps, paths[row][number])
    held, held_labels = clips_of("test", 2048)
    features = digits.features(held)
    own = slice(0, len(labels))
    reference, real = metrics.moments(features[len(labels) :]), spread(features, held_labels)
    found: dict[str, Any] = {"clips": len(labels), "plan": f"DPM-Solver++ 2M, {wanted.steps} steps", "rows": {}}
    found["rows"]["held-out clips"] = judge(held[own], held_labels[own], reference, real)
    for row in ROWS:
        found["rows"][row] = judge(np.concatenate([np.load(path) for path in paths[row]]), labels, reference, real)
    _files.write(wanted.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
