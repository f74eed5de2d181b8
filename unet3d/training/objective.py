r"""What a step minimises, for arrays of any library.

    L = mean over clips, frames and pixels of  w(lambda_t) |x - x-hat(z_t, lambda_t)|^2,   z_t = alpha_t x + sigma_t eps

Times, noise and dropped conditions are pure functions of (seed, step, number of the sample in its batch), whichever process
draws them. A clip has one time for all its frames, or one for each (`Settings.frame_times`), and each independent image one of
its own. Frames of a pyramid that wait at t = 0 or 1 are left out of the mean.

Source: Ho et al. 2022 (arXiv 2204.03458), sec. 2, eq. 5, and sec. 3; Chen et al. 2024 (arXiv 2407.01392), sec. 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from diffcore import _array, _streams, losses, noise, process, times
from diffcore.unet3d import _inputs
from diffcore.unet3d.config import UNet3DConfig
from diffcore.unet3d.data import Source, batch
from diffcore.unet3d.data.source import generator
from diffcore.unet3d.training.settings import Settings
from diffcore.unet3d.training.world import part_of


class Drawn(NamedTuple):
    """What a step trains on: clips and images x (B, T + images, H, W, C), times (B, T + images), condition, and the keys
    (B, 2) of the samples, from which noise and dropout are drawn."""

    x: Any
    t: Any
    cond: Any
    images: int
    keys: Any


def draw(
    config: UNet3DConfig,
    settings: Settings,
    source: Source,
    tokens: Any,
    step: int,
    rows: tuple[int, int] | None = None,
) -> Drawn:
    """Return what step `step` trains on, on the host: a pure function of its arguments.

    `rows`, (first, count), gives these rows of the batch, bit for bit, and reads no other clip.
    """
    first, count = rows or (0, settings.batch)
    how: dict[str, Any] = {"step": step, "seed": settings.seed, "images": settings.images, "flip": settings.flip}
    some = batch(source, settings.batch, rows=(first, count), **how)
    frames = some.x.shape[1] - settings.images
    t = times_of(settings, step, frames)[first : first + count]
    cond = _condition(config, settings, some.labels, tokens, step, first)
    return Drawn(some.x, t, cond, settings.images, noise.keys(settings.seed, count, first))


def parts(drawn: Drawn, count: int) -> list[Drawn]:
    """Return the rows of a draw in so many parts, as equal as they can be."""
    if count == 1:
        return [drawn]
    found = []
    for number in range(count):
        first, size = part_of(len(drawn.x), number, count)
        cut = lambda array, first=first, size=size: array[first : first + size]  # noqa: E731
        cond = tuple(map(cut, drawn.cond)) if isinstance(drawn.cond, tuple) else drawn.cond
        cond = cut(cond) if cond is not None and not isinstance(cond, tuple) else cond
        found.append(Drawn(cut(drawn.x), cut(drawn.t), cond, drawn.images, cut(drawn.keys)))
    return found


def times_of(settings: Settings, step: int, frames: int) -> Any:
    """Return the times of a step, (B, frames + images), on the host."""
    own = settings.frame_times in ("independent", "monotone")
    shape = (settings.batch, (frames if own else 1) + settings.images)
    u = (times.independent if own else times.stratified)(settings.seed, step, shape)
    count = shape[1] - settings.images
    video, images = u[:, :count], u[:, count:]
    if settings.frame_times == "shared":
        video = np.repeat(video, frames, axis=1)
    elif settings.frame_times == "monotone":
        video = times.monotone(video)
    elif settings.frame_times == "pyramid":
        video = times.pyramid(video[:, 0], frames, lag=1.0 / frames if settings.lag is None else settings.lag)
    return np.concatenate([video, images], axis=1)


def _condition(config: UNet3DConfig, settings: Settings, labels: Any, tokens: Any, step: int, first: int) -> Any:
    if config.condition == "none":
        return None
    rng = generator(settings.seed, _streams.GENERATOR_CONDITION, step)
    kept = rng.random((settings.batch, *labels.shape[1:]))[first : first + len(labels)] >= settings.condition_dropout
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
    eps = noise.normal(drawn.keys, step, x.shape, like=x, stream=_streams.TRAINING)
    y = predict(process.diffuse(x, eps, level), level.log_snr, drawn.cond, drawn.images)
    weight, t, mask = settings.weight_for(config.prediction), drawn.t, None
    if settings.frame_times == "pyramid":
        xp = _array.library(t)
        counts = (t > 0) & (t < 1)
        t = xp.where(counts, t, xp.full_like(t, 0.5))  # finite, where nothing counts
        level, mask = settings.schedule(t), counts[:, :, None, None, None]
    slope = settings.schedule.slope(t)
    each = losses.denoising(y, x, eps, level, prediction=config.prediction, weight=weight, slope=slope, mask=mask)
    return each.mean()


@cache
def _jitted() -> Any:
    """Return the call of a model of JAX, compiled once."""
    from flax import nnx

    return nnx.jit(lambda model, *given: model(*given), static_argnums=4)


BATCHES = 16
"""Of validation, at most."""


def validation_loss(trainer: Any, config: UNet3DConfig, settings: Settings, source: Source, tokens: Any) -> float:
    """Return the loss of the averaged weights on clips that are not trained on: the same ones, times and noise each time.

    Of several processes each takes its rows, in parts as large as those that one of its devices trains on.
    """
    like = trainer.like()
    library, device = _array.library(like), _array.device(like)
    put = lambda array: None if array is None else library.asarray(array, device=device)  # noqa: E731
    predict = trainer.averaged
    if trainer.library == "jax":
        predict = partial(_jitted(), predict)
    count = min(BATCHES, -(-len(source) // settings.batch))
    total = 0.0
    for step in range(count):
        for drawn in parts(draw(config, settings, source, tokens, step, trainer.rows), trainer.parts):
            cond = tuple(map(put, drawn.cond)) if isinstance(drawn.cond, tuple) else put(drawn.cond)
            given = drawn._replace(x=put(drawn.x), t=put(drawn.t), cond=cond)
            total += float(loss(predict, settings, config, given, step)) * len(drawn.x)
    world = trainer.world
    return float(world.mean(np.array([total]))[0]) * world.count / (count * settings.batch)
