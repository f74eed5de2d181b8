"""Is a Langevin corrector worth its calls? Predictor-corrector and ancestral sampling at equal evaluations of the network.

    python -m benchmarks.corrector                                     # a Gaussian video, by algebra, in seconds
    python -m benchmarks.corrector --weights FILE --out FILE.json      # and digits drawn by a network

On a Gaussian video the divergence KL(drawn || data), in nats, is exact: mean and covariance of what is drawn follow from
the plan (`exact.moments`). On digits it is the Frechet distance to held-out clips in the space of
`unet3d.digits.features`. A run of N evaluations is N ancestral steps, or (N + 1) / 2 of them with a correction after each
but the last.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import diffcore as dc
from benchmarks.conditioning import problem
from diffcore import _arguments, _files, metrics

SCHEDULE = dc.schedules.Cosine()
EVALUATIONS = (15, 31, 63, 127, 255, 511)
ON_DIGITS = (31, 63)
DRAWN = ("ancestral, gamma = 0", "ancestral, gamma = 0.3", "predictor-corrector, gamma = 0, delta = 0.1")
DELTAS = (0.03, 0.1, 0.3)


def plans(evaluations: int) -> dict[str, dc.Plan]:
    """Return the plans of that many calls of the network."""
    found = {
        f"ancestral, gamma = {gamma:g}": dc.samplers.ancestral(SCHEDULE, steps=evaluations, gamma=gamma)
        for gamma in (0.0, 0.1, 0.3)
    }
    for gamma, deltas in ((0.0, DELTAS), (0.1, (0.1,))):
        for delta in deltas:
            name = f"predictor-corrector, gamma = {gamma:g}, delta = {delta:g}"
            half = (evaluations + 1) // 2
            found[name] = dc.samplers.predictor_corrector(SCHEDULE, steps=half, gamma=gamma, delta=delta)
    assert all(len(plan) == evaluations for plan in found.values())
    return found


def divergence(plan: dc.Plan) -> float:
    """Return KL(drawn || data) of the Gaussian video of `benchmarks.conditioning`, in nats."""
    case = problem([0])
    drawn = dc.exact.moments(plan, case.data.with_scaling(plan.scaling))
    size = len(case.covariance)
    ratio = np.linalg.solve(case.covariance, np.asarray(drawn.covariance).reshape(size, size))
    mean = np.asarray(drawn.mean).reshape(size)
    return float(
        0.5 * (np.trace(ratio) - size - np.linalg.slogdet(ratio)[1] + mean @ np.linalg.solve(case.covariance, mean))
    )


def on_digits(path: Path, count: int) -> dict[str, Any]:
    """Return the Frechet distance, and what a classifier says, of digits that a network draws."""
    import torch

    from diffcore.unet3d import digits, load
    from diffcore.unet3d.half import InBfloat16

    model = InBfloat16(load(path, "torch").eval().requires_grad_(False))  # as it was trained
    config, labels = model.config, torch.arange(count) % 10
    held = digits.moving_digits(frames=config.frames, size=config.size, count=2048, split="test").clips
    reference = metrics.moments(digits.features(held.astype(np.float32) / np.float32(127.5) - np.float32(1.0)))
    found: dict[str, Any] = {}
    for evaluations in ON_DIGITS:
        for name in DRAWN:
            plan, parts = plans(evaluations)[name], []
            for first in range(0, count, 16):
                some = labels[first : first + 16]
                made = dc.sample(
                    lambda z, log_snr, some=some: model(z, log_snr, some),
                    plan,
                    shape=(len(some), *config.shape),
                    like=torch.zeros(1),
                    seed=dc.noise.keys(1000, len(some), first=first),
                    prediction=model.prediction,
                    transform_x=dc.guidance.clip(-1.0, 1.0),
                )
                parts.append(made.numpy())
            clips = np.concatenate(parts)
            seen = digits.legibility(clips, labels.numpy())
            found.setdefault(name, {})[str(evaluations)] = {
                "frechet_distance": metrics.frechet_distance(reference, metrics.moments(digits.features(clips))),
                "accuracy": seen.accuracy,
                "identity_held": digits.identity_held(clips),
                "straightness": digits.straightness(clips),
            }
            print(evaluations, name, found[name][str(evaluations)], flush=True)
    return found


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corrector", description=__doc__)
    parser.add_argument("--weights", type=_arguments.old_file, help="a network of digits to draw with, too")
    parser.add_argument("--count", type=_arguments.count(2), default=256)
    parser.add_argument("--out", type=_arguments.new_file)
    wanted = parser.parse_args(given)
    table: dict[str, dict[str, float]] = {}
    for evaluations in EVALUATIONS:
        for name, plan in plans(evaluations).items():
            table.setdefault(name, {})[str(evaluations)] = divergence(plan)
    print("| | " + " | ".join(map(str, EVALUATIONS)) + " |")
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(f"{value:.3g}" for value in row.values()) + " |", flush=True)
    result: dict[str, Any] = {"gaussian": table}
    if wanted.weights is not None:
        result["digits"] = {"clips": wanted.count, "rows": on_digits(wanted.weights, wanted.count)}
    if wanted.out is not None:
        _files.write(wanted.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
