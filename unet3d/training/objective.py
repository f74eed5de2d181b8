r"""What a step minimises, for arrays of any library.

    L = mean over clips, frames and pixels of  w(lambda_t) |x - x-hat(z_t, lambda_t)|^2,   z_t = alpha_t x + sigma_t eps

Times, noise and dropped conditions are pure functions of (seed, step). A clip has one time for all its frames, and each
independent image one of its own.

Source: Ho et al. 2022 (arXiv 2204.03458), sec. 2, eq. 5, and sec. 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffcore import _streams, losses, noise, process, times
from diffcore.unet3d import _inputs
from diffcore.unet3d.config import UNet3DConfig
from diffcore.unet3d.data import Source, batch
from diffcore.unet3d.data.source import generator
from diffcore.unet3d.training.settings import Settings


class Drawn(NamedTuple):
    """What a step trains on: clips and images x (B, T + images, H, W, C), times (B, T + images), condition."""

    x: Any
    t: Any
    cond: Any
    images: int


def draw(config: UNet3DConfig, settings: Settings, source: Source, tokens: Any, step: int) -> Drawn:
    """Return what step `step` trains on, on the host: a pure function of its arguments."""
    some = batch(source, settings.batch, step=step, seed=settings.seed, images=settings.images, flip=settings.flip)
    frames = some.x.shape[1] - settings.images
    t = times.stratified(settings.seed, step, (settings.batch, 1 + settings.images))
    t = np.concatenate([np.repeat(t[:, :1], frames, axis=1), t[:, 1:]], axis=1)
    return Drawn(some.x, t, _condition(config, settings, some.labels, tokens, step), settings.images)


def _condition(config: UNet3DConfig, settings: Settings, labels: Any, tokens: Any, step: int) -> Any:
    if config.condition == "none":
        return None
    rng = generator(settings.seed, _streams.GENERATOR_CONDITION, step)
    kept = rng.random(labels.shape) >= settings.condition_dropout
    if settings.images:  # one draw for all frames of a clip
        frames = labels.shape[1] - settings.images
        kept[:, :frames] = kept[:, :1]
    cond = labels if config.condition == "class" else tuple(np.asarray(part)[labels] for part in tokens)
    nothing = _inputs.null(config, cond, np)
    if config.condition == "class":
        return np.where(kept, cond, nothing)
    return cond[0], np.where(kept[..., None], cond[1], nothing[1])


def loss(predict: Callable[..., Any], settings: Settings, config: UNet3DConfig, drawn: Drawn, step: Any) -> Any:
    """Return the loss of a step; `step` may be traced."""
    x = drawn.x
    level = settings.schedule(drawn.t)
    eps = noise.normal(settings.seed, step, x.shape, like=x, stream=_streams.TRAINING)
    y = predict(process.diffuse(x, eps, level), level.log_snr, drawn.cond, drawn.images)
    weight, slope = settings.weight_for(config.prediction), settings.schedule.slope(drawn.t)
    each = losses.denoising(y, x, eps, level, prediction=config.prediction, weight=weight, slope=slope)
    return each.mean()
