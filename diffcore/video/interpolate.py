"""A smoother video: frames between those that are there, in blocks that know every k-th frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from diffcore import _check, _streams
from diffcore._array import Array
from diffcore.plan import Plan
from diffcore.predictions import Prediction
from diffcore.state import State
from diffcore.video._block import Sampler
from diffcore.video._stream import Progress, Stream, blocks_of, filled, last, overlap_of, own, resumed

FUNCTION = "video.interpolate"


def interpolate(
    denoise: Callable[[Array, Array], Array],
    plan: Plan,
    video: Array | Iterable[Array],
    factor: int,
    *,
    window: int,
    overlap: int | None = None,
    method: str = "reconstruction",
    weight: float | Callable[[Array], Array] = 5.0,
    iterations: int = 10,
    seed: Any = 0,
    prediction: Prediction | None = None,
    transform_x: Callable[[Array], Array] | None = None,
    compile: bool | None = None,
    callback: Callable[[State], object] | None = None,
    resume: Progress | None = None,
) -> Stream:
    r"""Return a video with factor - 1 new frames between every two of those given, which stay as they are.

        T frames -> (T - 1) k + 1,   frame i of those given -> frame k i

    A block makes as many whole gaps as fit into the window, and knows the frames at both ends of each. What is left of the
    window is drawn too, and dropped, so that the denoiser gets clips of one length alone.

    Args:
        denoise: a denoiser of clips of `window` frames at the higher frame rate.
        plan: from `diffcore.samplers`.
        video: (B, T, H, W, C), T >= 0, or an iterable of such blocks.
        factor: k >= 1.
        window: frames of a block, what the denoiser was trained on. A factor of more takes blocks of factor + 1 frames,
            since no shorter one has two of the given frames; two smaller factors in turn may be better.
        overlap: how many of the last frames a block knows besides, rounded down to whole gaps; a quarter of the window,
            and at least a gap where two fit, if not given.
        method, weight, iterations, seed, prediction, transform_x, compile, callback, resume: as in `extend`.

    Returns:
        A `Stream` of blocks (B, n, H, W, C).

    Raises:
        ValueError, TypeError: as `extend`.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 3.1 and 4.3.3 (frame skips).

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros((5, 2, 2, 1)), 0.25)
    >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=4)
    >>> clip = np.arange(4.0).reshape(1, 4, 1, 1, 1) * np.ones((1, 1, 2, 2, 1))
    >>> smooth = interpolate(data, plan, clip, 2, window=5, method="replacement", seed=7).all()
    >>> smooth[0, ::2, 0, 0, 0]
    array([0., 1., 2., 3.])
    """
    times = _check.integer(FUNCTION, "factor", factor, 1)
    wide = max(_check.count(FUNCTION, "window", window, 1), times + 1)
    gaps = (wide - 1) // times
    kept = min(overlap_of(FUNCTION, overlap, wide) // times, gaps - 1)
    if overlap is None:
        kept = max(kept, min(1, gaps - 1))
    sampler = Sampler(
        function=FUNCTION,
        stream=_streams.INTERPOLATE,
        denoise=denoise,
        plan=plan,
        method=method,
        weight=weight,
        iterations=iterations,
        seed=seed,
        prediction=prediction,
        transform_x=transform_x,
        compile=compile,
        callback=callback,
    )
    state = resumed(FUNCTION, resume)
    return Stream(_blocks(sampler, video, times, wide, kept, state), state)


def _blocks(
    sampler: Sampler, video: Any, factor: int, window: int, kept: int, state: Progress
) -> Iterator[tuple[Array, Progress]]:
    """Yield blocks. `given` begins with the frame at which the next block begins, and so does `context`, which has the
    frames of its first `done` gaps."""
    read, made, given, context, _ = state
    gaps = (window - 1) // factor
    blocks = blocks_of(FUNCTION, video)
    while True:
        done = 0 if context is None else (context.shape[1] - 1) // factor
        given, more = filled(given, blocks, gaps + 1)
        read += more
        if given is None:
            return
        if made == 0 and given.shape[1] == 1:
            first = given[:, :1, ...]
            made, context = 1, last(first, 1)
            yield own(first), Progress(read, made, given, context)
            continue
        now = min(gaps, given.shape[1] - 1)
        if now <= done:
            return
        if factor == 1:
            block = given[:, : now + 1, ...]
        else:
            known = [(factor * k, given[:, k : k + 1, ...]) for k in range(now + 1)]
            known += [] if context is None else [(0, context)]
            shape = (given.shape[0], window, *given.shape[2:])
            block = sampler.draw(made, shape, known, given)[:, : factor * now + 1, ...]
        new = block[:, 0 if context is None else factor * done + 1 :, ...]
        made += new.shape[1]
        again = min(kept, now)
        context, given = last(block, factor * again + 1), given[:, now - again :, ...]
        yield own(new), Progress(read, made, given, context)
