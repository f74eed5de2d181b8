"""Clips from nothing, as a model draws them: at once, frame by frame, or block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffcore as dc
from diffcore.cli import files, models


def drawn(
    model: models.Model,
    denoise: Any,
    plan: dc.Plan,
    shape: tuple[int, ...],
    *,
    seed: Any,
    callback: Callable[[Any], object],
    alone: bool,
) -> Iterator[files.Float32]:
    """Yield the frames of some clips on the host, block by block; `alone`: one after another, as `models.frame_by_frame` says."""
    config = model.config
    how: dict[str, Any] = {"seed": seed, "prediction": config.prediction, "transform_x": dc.guidance.clip()}
    how["callback"] = callback
    if shape[1] <= config.frames and not alone:
        yield models.sound(dc.sample(denoise, plan, shape=shape, like=model.like, **how))
        return
    method = "forcing" if alone else models.method_for(model, "auto")
    how |= {"window": config.frames, "method": method, "frames": shape[1]}
    how["history"] = models.history_for(config.schedule, method, None)
    for block in dc.video.extend(denoise, plan, model.put(files.nothing(shape)), **how):
        yield models.sound(block)
