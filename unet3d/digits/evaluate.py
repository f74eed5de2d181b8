r"""Evaluate a model of moving digits: `python -m diffcore.unet3d.digits.evaluate FILE --out FILE.json`.

*Loss.* The training loss, on training clips and on held-out ones, with the same times and noise for all: of the network, and of
the exact denoiser of the training clips of the same class (`exact.Empirical`), than which no network can have a lower
loss on average over the training clips. It knows them all by heart, so that on held-out clips it is worse.

*Frechet distance*, in the feature space of `unet3d.digits.features`, of samples to held-out real clips; beside it those of other
held-out clips and of training clips, as many of each.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import diffcore as dc
from diffcore import _arguments, _files, exact, losses, metrics, noise, process, times, weights
from diffcore.unet3d import digits, load
from diffcore.unet3d.digits.train import CLIPS, source
from diffcore.unet3d.half import InBfloat16

Float32 = npt.NDArray[np.float32]
SCHEDULE = dc.schedules.Cosine()
LEVELS = (-10.0, -5.0, -2.5, 0.0, 2.5, 5.0, 10.0)


def clips_of(split: Literal["train", "test"], count: int | None = None) -> tuple[Float32, npt.NDArray[np.int64]]:
    """Return clips in [-1, 1] and labels of the training set, or held-out ones."""
    found = source(split, count or CLIPS)
    assert found.labels is not None
    return found.clips.astype(np.float32) / np.float32(127.5) - np.float32(1.0), found.labels


class Network:
    """A model on torch, as a function of NumPy arrays; `half` draws in bfloat16 under autocast, as it was trained."""

    def __init__(self, model: Any, batch: int = 16, *, half: bool = False) -> None:
        self.model, self.batch = model.eval().requires_grad_(False), batch
        self.drawing = InBfloat16(self.model) if half else self.model

    def x(self, z: Float32, level: Any, labels: Any) -> Float32:
        """Return x-hat."""
        import torch

        parts = []
        for first in range(0, len(z), self.batch):
            some = slice(first, first + self.batch)
            at = dc.Level(*(torch.tensor(np.asarray(part[some], dtype=np.float32)) for part in level))
            noisy = torch.from_numpy(z[some])
            y = self.model(noisy, at.log_snr, torch.from_numpy(labels[some]))
            parts.append(dc.predictions.convert(y, noisy, at, source=self.model.prediction, target="x").numpy())
        return np.concatenate(parts)

    def draw(
        self, labels: Any, steps: int, guidance: float, seed: int, sampler: str = "dpm_solver_pp", **how: Any
    ) -> Float32:
        """Return a clip of each label."""
        import torch

        plan = dc.samplers.make(sampler, SCHEDULE, steps, **how)
        parts = []
        for first in range(0, len(labels), self.batch):
            some = torch.from_numpy(labels[first : first + self.batch])
            guided = dc.guidance.classifier_free(self.drawing, cond=some, null=self.model.null(some), weight=guidance)
            parts.append(
                dc.sample(
                    guided,
                    plan,
                    shape=(len(some), *self.model.config.shape),
                    like=torch.zeros(1),
                    seed=dc.noise.keys(seed, len(some), first=first),
                    prediction=self.model.prediction,
                    transform_x=dc.guidance.clip(),
                ).numpy()
            )
        return np.concatenate(parts)


class Exact:
    """The exact denoiser of the training clips of each class."""

    def __init__(self, clips: Float32, labels: Any) -> None:
        self.of = {int(label): exact.Empirical(clips[labels == label]) for label in np.unique(labels)}

    def x(self, z: Float32, level: Any, labels: Any) -> Float32:
        """Return x-hat."""
        out = np.empty_like(z)
        for label in np.unique(labels):
            own = labels == label
            out[own] = self.of[int(label)].with_scaling("vp")(z[own], np.asarray(level.log_snr[own], dtype=np.float32))
        return out


def loss(denoiser: Any, clips: Float32, labels: Any, t: Any) -> float:
    """Return the training loss of a denoiser at the times t (N,)."""
    level = SCHEDULE(t.astype(np.float64))
    eps = noise.normal(5, 0, clips.shape)
    x = denoiser.x(process.diffuse(clips, eps, level), level, labels)
    return float(np.mean(losses.denoising(x, clips, eps, level, prediction="x", weight=weights.V())))


def loss_table(network: Network, perfect: Exact, sets: dict[str, Any]) -> dict[str, Any]:
    """Return losses over all times, and at single levels, of network and exact denoiser."""
    table: dict[str, Any] = {}
    for name, (clips, labels) in sets.items():
        spread = times.stratified(0, 0, len(clips))
        rows = {"network": network, "exact_of_training_clips": perfect}
        table[name] = {who: loss(denoiser, clips, labels, spread) for who, denoiser in rows.items()}
        some = slice(0, 64)
        table[name]["at_log_snr"] = {
            str(level): {
                who: loss(denoiser, clips[some], labels[some], np.full(64, float(SCHEDULE.time(level))))
                for who, denoiser in rows.items()
            }
            for level in LEVELS
        }
    return table


def sample_table(network: Network, held: Float32, train: Float32, count: int, steps: int, sampler: str) -> Any:
    """Return Frechet distances to held-out clips, and what a classifier and the motion say, for each set of clips."""
    labels = np.arange(count) % 10
    sets = {"training clips": train[:count]}
    for guidance in (0.0, 1.0):
        sets[f"samples, guidance {guidance:g}"] = network.draw(labels, steps, guidance, 1000, sampler)
    reference = metrics.moments(digits.features(held[count:]))
    table = {}
    for name, clips in {"held-out clips": held[:count], **sets}.items():
        drawn = name.startswith("samples")
        seen = digits.legibility(clips, labels if drawn else None)
        table[name] = {
            "frechet_distance": metrics.frechet_distance(reference, metrics.moments(digits.features(clips))),
            "legibility": seen.probability,
            "accuracy": seen.accuracy if drawn else None,
            "identity_held": digits.identity_held(clips),
            "straightness": digits.straightness(clips),
            "speed": digits.speed(clips),
        }
    return table


def main(given: list[str] | None = None) -> None:
    """Evaluate a weights file and write what was found as JSON."""
    parser = argparse.ArgumentParser(prog="python -m diffcore.unet3d.digits.evaluate", description=__doc__)
    parser.add_argument("weights", type=_arguments.old_file)
    parser.add_argument("--out", type=_arguments.new_file, required=True)
    parser.add_argument("--count", type=_arguments.count(2), default=256, help="clips of each set (default: 256)")
    parser.add_argument("--sampler", default="ancestral", help="by name (default: ancestral)")
    parser.add_argument("--steps", type=_arguments.count(), default=24, help="of the sampler (default: 24)")
    parser.add_argument("--half", action="store_true", help="draw in bfloat16, as the model was trained")
    settings = parser.parse_args(given)
    try:
        dc.samplers.make(settings.sampler, SCHEDULE, settings.steps)
    except (ValueError, TypeError) as error:
        parser.error(f"--sampler: {error}")
    began = time.perf_counter()
    network = Network(load(settings.weights, "torch"), half=settings.half)
    train, labels = clips_of("train")
    held, held_labels = clips_of("test", 2048)
    few = slice(0, settings.count)
    sets = {"training clips": (train[few], labels[few]), "held-out clips": (held[few], held_labels[few])}
    found = {
        "clips": settings.count,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "loss": loss_table(network, Exact(train, labels), sets),
        "samples": sample_table(network, held, train, settings.count, settings.steps, settings.sampler),
        "seconds": round(time.perf_counter() - began),
    }
    _files.write(settings.out, json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
