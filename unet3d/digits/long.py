r"""Evaluate a model over long clips: `python -m diffcore.unet3d.digits.long FILE --frames 128 --out FILE.json`.

Clips are drawn by `video.extend` from nothing. Each window of as many frames as the model was trained on is compared to held-out
clips by the Frechet distance in the space of `unet3d.digits.features`: what it grows by along the video is drift. Beside it how
often the digit is the one asked for, how fast and evenly it moves, and `metrics.seams` where blocks meet. The row "real" is of
held-out clips.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import numpy as np

import diffcore as dc
from diffcore import _arguments, _files, metrics
from diffcore.unet3d import digits, load
from diffcore.unet3d.half import InBfloat16
from diffcore.video._block import METHODS

TOGETHER = 32
"""Clips that are drawn at once: of a causal network a frame each."""


def draw(
    model: Any, count: int, frames: int, plan: dc.Plan, *, seed: int = 0, guidance: float = 1.0, **how: Any
) -> Any:
    """Return long clips (N, frames, H, W, 1) of a model on torch, the digits 0 to 9 in turn; `how` is for `video.extend`."""
    import torch

    config, parts = model.config, []
    for first in range(0, count, TOGETHER):
        batch = min(TOGETHER, count - first)
        labels, guided = None, {}
        if config.condition == "class":
            labels = torch.arange(first, first + batch) % config.classes
            guided = {"null": model.null(labels), "weight": guidance} if guidance else {}
        denoise: Any = lambda z, log_snr, cond=labels: model(z, log_snr, cond)  # noqa: E731
        if config.causal:
            denoise = dc.video.reusing(model, labels, **guided)
        elif guided:
            denoise = dc.guidance.classifier_free(model, cond=labels, **guided)
        nothing = torch.zeros(batch, 0, *config.shape[1:])
        keys = dc.noise.keys(seed, batch, first=first)
        made = dc.video.extend(
            denoise,
            plan,
            nothing,
            frames=frames,
            window=config.frames,
            seed=keys,
            prediction=config.prediction,
            transform_x=dc.guidance.clip(),
            **how,
        )
        parts.append(made.all().numpy())
    return np.concatenate(parts)


def judge(clips: Any, labels: Any, window: int, seams: list[int], reference: metrics.Moments) -> dict[str, Any]:
    """Return what each window of long clips is worth, and the clips as a whole."""
    windows = [clips[:, first : first + window] for first in range(0, clips.shape[1] - window + 1, window)]
    found: dict[str, Any] = {
        "frechet_distance": [
            metrics.frechet_distance(reference, metrics.moments(digits.features(some))) for some in windows
        ],
        "digit_as_asked": [digits.legibility(some, labels).accuracy for some in windows],
        "speed": [digits.speed(some) for some in windows],
        "straightness": [digits.straightness(some) for some in windows],
        "digit_held": digits.identity_held(clips),
    }
    distances = found["frechet_distance"]
    found["drift"] = distances[-1] - distances[0]
    if seams:
        found["change_at_seams"] = metrics.seams(clips, seams).ratio
    return found


def clean_level(schedule: Any) -> float | None:
    """Return the log-SNR of the cleanest frames that a model was trained on; None where it is infinite.

    >>> clean_level(dc.schedules.Cosine()), clean_level(dc.schedules.Flow())
    (20.0, None)
    """
    level = float(schedule.log_snr(0.0))
    return round(level, 9) if math.isfinite(level) else None


def main(given: list[str] | None = None) -> None:
    """Draw and judge long clips and write what was found as JSON."""
    parser = argparse.ArgumentParser(prog="python -m diffcore.unet3d.digits.long", description=__doc__)
    parser.add_argument("weights", type=_arguments.old_file)
    parser.add_argument("--out", type=_arguments.new_file, required=True)
    parser.add_argument("--frames", type=_arguments.count(), default=128, help="of each clip (default: 128)")
    parser.add_argument("--count", type=int, default=256, help="clips (default: 256)")
    parser.add_argument(
        "--method", choices=(*METHODS, "rolling"), default="forcing", help="of video.extend (default: forcing)"
    )
    knows = "frames that a block knows (default: half of the model's, but of a causal one all but one)"
    parser.add_argument("--overlap", type=_arguments.count(0), help=knows)
    parser.add_argument("--steps", type=_arguments.count(), default=16, help="of DPM-Solver++ 2M SDE (default: 16)")
    parser.add_argument("--guidance", type=float, default=1.0, help="weight of guidance to the digit (default: 1)")
    history = "log-SNR at which known frames are shown (default: as clean as in training)"
    parser.add_argument("--history", type=float, help=history)
    parser.add_argument("--half", action="store_true", help="the network computes in bfloat16")
    wanted = parser.parse_args(given)
    if wanted.count < 2:
        parser.error(
            "--count must be at least 2, and better several times the 146 features: a distance takes a covariance"
        )
    if wanted.history is not None and wanted.method not in ("forcing", "rolling"):
        parser.error(f"--history is for --method forcing and rolling, not for {wanted.method}")
    began = time.perf_counter()
    model = load(wanted.weights, "torch").requires_grad_(False)
    config = model.config
    schedule, window = config.schedule or dc.schedules.Cosine(), config.frames
    default = window - 1 if config.causal else window // 2
    overlap = default if wanted.overlap is None else wanted.overlap
    how: dict[str, Any] = {"method": wanted.method, "overlap": overlap}
    if wanted.method in ("forcing", "rolling"):
        how["history"] = clean_level(schedule) if wanted.history is None else wanted.history
    plan = dc.samplers.dpm_solver_pp(schedule, steps=wanted.steps, eta=1.0)
    clips = draw(
        InBfloat16(model) if wanted.half else model, wanted.count, wanted.frames, plan, guidance=wanted.guidance, **how
    )
    real = digits.moving_digits(frames=wanted.frames, size=config.size, count=wanted.count, split="test", seed=1)
    held = digits.moving_digits(frames=window, size=config.size, count=2048, split="test")
    reference = metrics.moments(digits.features(held.clips / np.float32(127.5) - np.float32(1.0)))
    asked = np.arange(wanted.count) % config.classes if config.condition == "class" else None
    seams = list(range(window, wanted.frames, 1 if wanted.method == "rolling" else window - overlap))
    seams = seams if len(seams) < wanted.frames - window else []  # a rolling window has none, or all
    found = {
        "clips": wanted.count,
        "frames": wanted.frames,
        "window": window,
        "plan": f"DPM-Solver++ 2M SDE, {wanted.steps} steps",
        **how,
        "drawn": judge(clips, asked, window, seams, reference),
        "real": judge(real.clips / np.float32(127.5) - np.float32(1.0), real.labels, window, seams, reference),
        "seconds": round(time.perf_counter() - began),
    }
    _files.write(wanted.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
