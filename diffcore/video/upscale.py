"""A larger video: blocks whose average over pixels is known, and the last large frames before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from diffcore import _check, _streams, conditioning
from diffcore._array import Array
from diffcore.plan import Plan
from diffcore.predictions import Prediction
from diffcore.state import State
from diffcore.video._block import Sampler
from diffcore.video._stream import Progress, Stream, blocks_of, filled, last, overlap_of, own, resumed

FUNCTION = "video.upscale"


def upscale(
    denoise: Callable[[Array, Array], Array],
    plan: Plan,
    video: Array | Iterable[Array],
    factor: int | tuple[int, int],
    *,
    window: int,
    overlap: int | None = None,
    method: str = "reconstruction",
    weight: float | Callable[[Array], Array] = 2.0,
    iterations: int = 10,
    seed: Any = 0,
    prediction: Prediction | None = None,
    transform_x: Callable[[Array], Array] | None = None,
    compile: bool | None = None,
    callback: Callable[[State], object] | None = None,
    resume: Progress | None = None,
) -> Stream:
    r"""Return a video with larger frames, whose averages over f x g pixels are the frames given.

        x ~ p(x | Down(x) = the frames given, the first `overlap` frames = the last ones of the block before)

    Args:
        denoise: a denoiser of clips (B, window, f H, g W, C); where fewer frames are left, those beyond are dropped.
        plan: from `diffcore.samplers`.
        video: (B, T, H, W, C), T >= 0, or an iterable of such blocks.
        factor: f >= 1, or one for the height and one for the width.
        window: frames of a block, what the denoiser was trained on.
        overlap: how many of the last large frames a block knows, in [0, window); a quarter of the window if not given.
        method: "reconstruction" or "moment_matching", which need gradients; or "replacement", which sets the averages of
            x-hat (`conditioning.projection`) and the known frames of the state.
        weight: of reconstruction guidance by one pixel; the average of f g of them has f g times the weight, since it is
            so many times as certain. 1 to 2 is best on Gaussian video, 2 on digits, and 5 diverges (docs/long_video.md).
        iterations, seed, prediction, transform_x, compile, callback, resume: as in `extend`.

    Returns:
        A `Stream` of blocks (B, n, f H, g W, C).

    Raises:
        ValueError, TypeError: as `extend`.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 3.1, spatial super-resolution.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros((1, 4, 4, 1)), 0.25)
    >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=4)
    >>> small = np.full((1, 3, 2, 2, 1), 0.5)
    >>> large = upscale(data, plan, small, 2, window=1, method="replacement", seed=7).all()
    >>> large.shape, bool(np.allclose(dc.conditioning.downsample(2)(large), small))
    ((1, 3, 4, 4, 1), True)
    """
    wide = _check.count(FUNCTION, "window", window, 1)
    known = overlap_of(FUNCTION, overlap, wide)
    measure = conditioning.downsample(factor)
    sampler = Sampler(
        function=FUNCTION,
        stream=_streams.UPSCALE,
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
    return Stream(_blocks(sampler, video, measure, wide, known, state), state)


def _blocks(
    sampler: Sampler, video: Any, measure: conditioning.Downsample, window: int, overlap: int, state: Progress
) -> Iterator[tuple[Array, Progress]]:
    """Yield blocks. `given` begins with the frames that `context` has large."""
    read, made, given, context, _ = state
    blocks = blocks_of(FUNCTION, video)
    while True:
        there = 0 if context is None else context.shape[1]
        given, more = filled(given, blocks, window)
        read += more
        if given is None or min(window, given.shape[1]) <= there:
            return
        count = min(window, given.shape[1])
        batch, _, height, width, channels = given.shape
        shape = (batch, window, height * measure.factor[0], width * measure.factor[1], channels)
        known = [] if context is None else [(0, context)]
        block = sampler.draw(made, shape, known, given, given[:, :count, ...], measure)[:, :count, ...]
        new = block[:, there:, ...]
        made += new.shape[1]
        context = last(block, overlap) if overlap else None
        given = given[:, count - min(overlap, count) :, ...]
        yield own(new), Progress(read, made, given, context)
