"""How a network is trained, and the settings of the paper's six models."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from diffcore import _check, schedules, weights
from diffcore.schedules._base import Schedule

NAME = "training.Settings"
PRECISIONS = ("float32", "bfloat16")
FRAME_TIMES = ("shared", "independent", "monotone", "pyramid")
LATER: dict[str, Any] = {"frame_times": "shared", "lag": None, "frozen": (), "ema_warm_up": True}
"""Fields that were added later, and what runs that do not know them did."""

PLAIN: dict[str, weights.Weight] = {
    "x": weights.X(),
    "eps": weights.Eps(),
    "score": weights.Eps(),
    "v": weights.V(),
    "flow": weights.Flow(),
    "edm": weights.EDM(),
}
"""Prediction -> the weight under which a loss is the plain squared error of it (of the score, times sigma)."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    r"""All that a training run does, but for the network and the data.

        minimise  mean over t ~ U[0, 1], x, eps  of  w(lambda_t) |x - x-hat(alpha_t x + sigma_t eps, lambda_t)|^2

    by AdamW, with averaged weights  theta-bar <- d theta-bar + (1 - d) theta,  d = min(ema, (1 + step) / (10 + step)).

    Args:
        steps: how many.
        batch: clips a step, on all devices together.
        accumulate: parts of a batch, taken one after another, whose gradients are added up: less memory, the same step but
            for rounding.
        images: independent frames appended to each clip.
        flip: mirror clips left to right, half of the time.
        learning_rate: after the warm-up.
        warm_up: steps over which it rises linearly from 0.
        cool_down: steps at the end over which it falls linearly to 0; none keeps it constant, as the paper does.
        beta1, beta2, weight_decay: of AdamW.
        clip_norm: the norm of the gradient is clipped to it; inf clips nothing.
        ema: d, in [0, 1).
        frame_times: of the frames of a clip: "shared", one for all, as in the paper; "independent", one of its own for each
            frame (diffusion forcing), for `video.extend` by "forcing" or "rolling"; "monotone", those sorted, so that no
            frame is less noisy than the one before it; "pyramid", each frame behind the next by `lag`, as in a rolling
            window. Frames of a pyramid that wait, clean or as noise, are shown but do not count in the loss.
        lag: of a pyramid, in time, >= 0; None is 1 / frames.
        condition_dropout: how often a condition is replaced by the null condition, for guidance, in [0, 1].
        schedule: of `diffcore.schedules`.
        weight: of `diffcore.weights`; on x, so the loss is the same number whatever the network predicts. None is the
            plain squared error of the prediction: `weights.V()` for "v", `weights.Eps()` for "eps", ...; see `PLAIN`.
        precision: "float32", or "bfloat16" for convolutions and matrix products.
        seed: of weights, batches, times, noise and dropout.
        log_every, checkpoint_every, sample_every: in steps; 0 leaves samples out. All three are also due at the end.
        checkpoints: how many of the last ones are kept, so that a run goes on where the newest is damaged.
        sample_steps: calls of the network for a sample.
        frozen: patterns, as of `fnmatch`, of names of weights that stay as they are: "embed.*", "*.space.*"; each has to fit one.
        ema_warm_up: whether d rises as above, so that an average forgets the random weights it starts from; without it
            d = ema from the first step on, for a run that starts from trained weights.
        validate_every: steps between validations, where there is data for them; 0 validates with each checkpoint.

    Raises:
        ValueError, TypeError: a field out of its range; the message names it.

    Source: Ho et al. 2022 (arXiv 2204.03458), app. A; Loshchilov & Hutter 2019 (arXiv 1711.05101); Chen et al. 2024 (arXiv
    2407.01392), Sun et al. 2025 (arXiv 2503.07418) and Ruhe et al. 2024 (arXiv 2402.09470) for times of each frame.

    >>> settings = Settings(steps=100, warm_up=10, cool_down=20, learning_rate=1e-3)
    >>> [round(settings.rate(step), 6) for step in (0, 9, 50, 99)]
    [0.0001, 0.001, 0.001, 5e-05]
    """

    steps: int
    batch: int = 8
    accumulate: int = 1
    images: int = 0
    flip: bool = False
    learning_rate: float = 3e-4
    warm_up: int = 1000
    cool_down: int = 0
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema: float = 0.9999
    frame_times: str = "shared"
    lag: float | None = None
    condition_dropout: float = 0.1
    schedule: Schedule = field(default_factory=schedules.Cosine)
    weight: Any = None
    precision: str = "float32"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 1000
    checkpoints: int = 3
    sample_every: int = 0
    sample_steps: int = 32
    frozen: tuple[str, ...] = ()
    ema_warm_up: bool = True
    validate_every: int = 0

    def __post_init__(self) -> None:
        counts = {"steps": 1, "batch": 1, "accumulate": 1, "images": 0, "warm_up": 0, "cool_down": 0, "log_every": 1}
        for name, least in {
            **counts,
            "checkpoint_every": 1,
            "checkpoints": 1,
            "sample_every": 0,
            "sample_steps": 1,
            "validate_every": 0,
        }.items():
            self._set(name, _check.integer(NAME, name, getattr(self, name), least))
        self._set("seed", _check.integer(NAME, "seed", self.seed, 0, 2**64 - 1))
        for name in ("beta1", "beta2", "ema"):
            self._set(name, _check.number(NAME, name, getattr(self, name), 0, 1, open_high=True))
        for name in ("learning_rate", "weight_decay"):
            self._set(name, _check.number(NAME, name, getattr(self, name), 0))
        clip = _check.number(
            NAME, "clip_norm", self.clip_norm, 0, open_low=True, finite=False, hint="inf clips nothing"
        )
        self._set("clip_norm", clip)
        self._set("condition_dropout", _check.number(NAME, "condition_dropout", self.condition_dropout, 0, 1))
        self._set("flip", _check.flag(NAME, "flip", self.flip))
        self._set("ema_warm_up", _check.flag(NAME, "ema_warm_up", self.ema_warm_up))
        if isinstance(self.frozen, str) or not all(isinstance(pattern, str) for pattern in self.frozen):
            must = 'be patterns of names of weights, such as ("embed.*", "*.space.*")'
            raise _check.error(TypeError, NAME, "frozen", must, self.frozen)
        self._set("frozen", tuple(self.frozen))
        _check.choice(NAME, "precision", self.precision, PRECISIONS)
        _check.choice(NAME, "frame_times", self.frame_times, FRAME_TIMES)
        if self.lag is not None:
            self._set("lag", _check.number(NAME, "lag", self.lag, 0))
            if self.frame_times != "pyramid":
                raise _check.error(ValueError, NAME, "lag", 'be None without frame_times="pyramid"', self.lag)
        what = "a schedule, such as schedules.Cosine()"
        _check.instance(NAME, "schedule", self.schedule, Schedule, what)
        if self.weight is not None and not callable(self.weight):
            raise _check.error(TypeError, NAME, "weight", "be a weight, such as weights.V(), or None", self.weight)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def weight_for(self, prediction: str) -> Any:
        """Return the weight of the loss of a network with this prediction.

        >>> Settings(steps=1).weight_for("eps")
        Eps()
        """
        return PLAIN[prediction] if self.weight is None else self.weight

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        fall = min(1.0, (self.steps - step) / self.cool_down) if self.cool_down else 1.0
        return self.learning_rate * min(rise, fall)

    def decay(self, step: int) -> float:
        """Return how much of the averaged weights a step keeps."""
        return min(self.ema, (1 + step) / (10 + step)) if self.ema_warm_up else self.ema

    def frozen_of(self, names: Iterable[str]) -> frozenset[str]:
        """Return the names of weights that stay as they are.

        Raises:
            ValueError: a pattern that fits none, or patterns that fit all.

        >>> sorted(Settings(steps=1, frozen=("in*",)).frozen_of(["input.weight", "output.weight"]))
        ['input.weight']
        """
        names = list(names)
        for pattern in self.frozen:
            if not fnmatch.filter(names, pattern):
                near = ", ".join(sorted({name.split(".")[0] for name in names}))
                raise ValueError(
                    f"{NAME}: `frozen` has the pattern {_check.shown(pattern)}, which fits no weight; their names begin with "
                    f"{near}, as in {near.split(', ')[0]}.*"
                )
        found = frozenset(name for pattern in self.frozen for name in fnmatch.filter(names, pattern))
        if len(found) == len(names):
            raise ValueError(f"{NAME}: `frozen` fits every weight, so that nothing would be trained; leave some out")
        return found


_PAPER = Settings(steps=60_000, batch=128, images=8, flip=True, learning_rate=3e-4)

PRESETS: dict[str, Settings] = {
    "ucf101": _PAPER,
    "bair": replace(_PAPER, steps=660_000, learning_rate=2e-4, beta2=0.999, ema=0.999, weight_decay=0.01),
    "kinetics600": replace(_PAPER, steps=220_000, batch=256, learning_rate=2e-4),
    "text_small": replace(_PAPER, steps=200_000),
    "text_large_16x64x64": replace(_PAPER, steps=700_000),
    "text_large_9x128x128": replace(_PAPER, steps=800_000, images=7, learning_rate=2e-4),
    "moving_digits": Settings(
        steps=3000,
        batch=8,
        learning_rate=1e-3,
        warm_up=100,
        cool_down=750,
        ema=0.998,
        precision="bfloat16",
        log_every=20,
        checkpoint_every=250,
        sample_every=250,
    ),
}
"""The settings of Ho et al. 2022, app. A, and of the included model, by the names of `unet3d.PRESETS`."""
