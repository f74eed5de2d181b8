"""How long a run takes and how much memory it needs, said before it begins where it is long."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from diffcore.cli import report
from diffcore.cli.models import Model

LONG = 1000
"""Calls of the network, of the size that it was trained at, from which on a run is long: minutes on a CPU."""


class Work(NamedTuple):
    """Calls of the network, `clips` at once, each of `frames` of `size`; with gradients, what a call keeps and does grows."""

    calls: int
    clips: int
    frames: int
    size: tuple[int, int]
    gradients: bool


def say(model: Model, work: Work) -> None:
    """Say what a long run takes, by the time of one call of the network on a clip of its own size."""
    from diffcore.unet3d import summary

    config = model.config
    own = summary.summarise(config).total
    call = summary.total(summary.costs_of(config, work.frames, work.size))
    share = work.clips * call.flops / own.flops * (3 if work.gradients else 1)  # a backward pass takes two forward ones
    if share * work.calls < LONG:
        return
    seconds = _seconds(model) * share * work.calls
    report.note(
        f"note: this takes about {duration(seconds)} here: {work.calls:,} calls of the network with {work.clips} x {work.frames} "
        f"frames of {work.size[0]}x{work.size[1]}, each up to {4 * work.clips * call.activations / 2**30:.2g} GiB of memory"
    )


def _seconds(model: Model) -> float:
    """Return the time of a call for one clip; the first one, which may compile, does not count."""
    clip = model.put(np.zeros((1, *model.config.shape), dtype=np.float32))
    level = model.put(np.zeros(1, dtype=np.float32))
    taken = 0.0
    for _ in range(2):
        began = time.perf_counter()
        float(model.net(clip, level)[0, 0, 0, 0, 0])  # waits for a GPU
        taken = time.perf_counter() - began
    return taken


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which it has one and a half.

    >>> duration(80.0), duration(95.0), duration(7200.0), duration(3e6)
    ('80 seconds', '2 minutes', '2 hours', '35 days')
    """
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
