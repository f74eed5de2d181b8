"""In which order frames take the stages of a plan: arrays of stage numbers for `Plan.per_frame`, -1 where a frame waits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffcore import _check

Order = npt.NDArray[np.int64]


def together(steps: int, frames: int) -> Order:
    """Return the order of full sequences, (steps, frames): all frames at one level, as without it.

    >>> together(2, 3).tolist()
    [[0, 0, 0], [1, 1, 1]]
    """
    return pyramid(steps, frames, lag=0)


def autoregressive(steps: int, frames: int, *, block: int = 1) -> Order:
    """Return the order of one block of frames after another: each waits as noise, goes, and waits clean while others go.

    Args:
        steps: how many stages the plan has, at least 1.
        frames: how many frames, at least 1.
        block: how many go together, at least 1; the last may be fewer.

    >>> autoregressive(2, 3, block=2).tolist()
    [[0, 0, -1], [1, 1, -1], [-1, -1, 0], [-1, -1, 1]]
    """
    _check.integer("video.orders.autoregressive", "block", block, 1)
    return _lagging("video.orders.autoregressive", steps, frames, steps, block)


def pyramid(steps: int, frames: int, *, lag: int = 1) -> Order:
    """Return the order in which each frame is `lag` stages behind the one before.

    Args:
        steps, frames: as for `autoregressive`.
        lag: at least 0, where all go together; `steps` makes one frame after another.

    Source: Chen et al. 2024 (arXiv 2407.01392), sec. 3.3.

    >>> pyramid(2, 3).tolist()
    [[0, -1, -1], [1, 0, -1], [-1, 1, 0], [-1, -1, 1]]
    """
    _check.integer("video.orders.pyramid", "lag", lag, 0)
    return _lagging("video.orders.pyramid", steps, frames, lag, 1)


def _lagging(function: str, steps: int, frames: int, lag: int, block: int) -> Order:
    _check.integer(function, "steps", steps, 1)
    _check.integer(function, "frames", frames, 1)
    late = lag * (np.arange(frames) // block)
    stages = np.arange(steps + int(late[-1]))[:, None] - late
    return np.where((stages >= 0) & (stages < steps), stages, -1)
