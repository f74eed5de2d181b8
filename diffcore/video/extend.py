"""A longer video: blocks after the frames that are there, each of which knows the last frames before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from diffcore import _check, _streams
from diffcore._array import Array
from diffcore.plan import Plan
from diffcore.predictions import Prediction
from diffcore.state import State
from diffcore.video._block import METHODS, Sampler
from diffcore.video._rolling import check_moving, rolling
from diffcore.video._stream import Progress, Stream, blocks_of, joined, last, overlap_of, own, resumed
from diffcore.video.reuse import Reusing

FUNCTION = "video.extend"


def extend(
    denoise: Callable[[Array, Array], Array],
    plan: Plan,
    video: Array | Iterable[Array],
    *,
    frames: int | None,
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
    history: float | None = None,
    noise: Callable[..., Array] | None = None,
    resume: Progress | None = None,
) -> Stream:
    r"""Return a video, made longer block by block: the frames given, as they are, then new ones.

        x^(k+1) ~ p(x | its first `overlap` frames = the last ones of x^(k))

    Args:
        denoise: a denoiser of clips of `window` frames, (z, log_snr) -> prediction. On JAX the blocks of a stream share
            a trace, so that it must be pure, as for jax.jit.
        plan: from `diffcore.samplers`.
        video: (B, T, H, W, C), T >= 0, or an iterable of such blocks. None at all, T = 0, starts from noise alone.
        frames: how many in total; None never ends.
        window: frames of a block, known ones included: what the denoiser was trained on.
        overlap: how many of the last frames a block knows, in [0, window). If not given a quarter of the window, but for
            `reusing` with "forcing" or "rolling" all but one of it.
        method: "reconstruction" or "moment_matching", which need gradients, or "replacement": see `conditioning`. Or, for a
            denoiser that takes a level for each frame: "forcing", whose known frames are clean to it; or "rolling", whose
            window of `overlap` clean frames, and others each a little noisier than the one before, moves by one frame
            at a time. It takes a plan with a multiple of window - overlap stages. With these two a causal network computes known
            frames once: see `reusing`.
        weight: of reconstruction guidance.
        iterations: of moment matching.
        seed: one int, of which each sample gets its own key, or one int or key per sample: see `noise.keys`.
        prediction: what the denoiser returns; may be left out where it says so.
        transform_x, compile, callback: as in `diffcore.sample`, for each block.
        history: with "forcing" and "rolling", the log-SNR at which the denoiser sees known frames, such as 4: a small noise
            hides the small errors of frames that it drew itself. None shows them clean, at log-SNR inf.
        noise: a source of noise of one's own, (number, draw, shape, stream) -> array: of the block, or with "rolling" the
            frame, by the number of its first frame in the video.
        resume: the state of a stream that was stopped, to go on after it; `video` then holds the frames from
            `resume.read` on.

    Returns:
        A `Stream` of blocks (B, n, H, W, C). Nothing is computed before the first is asked for.

    Raises:
        ValueError, TypeError: an argument out of its range; blocks that do not fit together; no gradients on NumPy.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 3.1; Chen et al. 2024 (arXiv 2407.01392) for forcing and `history`; Ruhe et al.
    2024 (arXiv 2402.09470) and Kim et al. 2024 (arXiv 2405.11473) for rolling windows.

    >>> import diffcore as dc, numpy as np
    >>> data = dc.exact.Gaussian(np.zeros((4, 2, 2, 1)), 0.25)
    >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=4)
    >>> clip = np.zeros((1, 4, 2, 2, 1), dtype=np.float32)
    >>> [block.shape[1] for block in extend(data, plan, clip, frames=9, window=4, overlap=1, seed=7)]
    [4, 3, 2]
    """
    wide = _check.count(FUNCTION, "window", window, 1)
    keeps = isinstance(denoise, Reusing) and method in ("forcing", "rolling")
    known = overlap_of(FUNCTION, overlap, wide, all_but_one=keeps)
    total = None if frames is None else _check.integer(FUNCTION, "frames", frames, 0)
    rolls = method == "rolling"
    sampler = Sampler(
        function=FUNCTION,
        stream=_streams.EXTEND,
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
        history=history,
        source=noise,
        methods=(*METHODS, "rolling"),
    )
    if history is not None and method not in ("forcing", "rolling"):
        must = "be None for this method"
        raise _check.error(ValueError, FUNCTION, "history", must, history, 'it is for "forcing" and "rolling"')
    if noise is not None:
        _check.callable_(FUNCTION, "noise", noise, "a function of (number, draw, shape, stream)")
    if rolls:
        check_moving(FUNCTION, plan, wide - known)
    state = resumed(FUNCTION, resume)
    return Stream(_blocks(sampler, video, total, wide, known, state), state)


def _blocks(
    sampler: Sampler, video: Any, total: int | None, window: int, overlap: int, state: Progress
) -> Iterator[tuple[Array, Progress]]:
    read, made, _, context, going = state
    rolls = sampler.method == "rolling"
    if rolls:
        sampler = replace(sampler, method="forcing")  # for a first block, where there are too few frames
    like = context
    for block in blocks_of(FUNCTION, video):
        like = block if like is None else like
        given = block if total is None else block[:, : max(0, total - made), ...]
        if given.shape[1]:
            if made > read:
                raise ValueError(
                    f"{FUNCTION}: `video` must hold the frames from `resume.read` on, and none after frames were drawn, got "
                    f"{block.shape[1]}; give video[:, {read}:]"
                )
            read, made = read + given.shape[1], made + given.shape[1]
            context = last(given if context is None else joined([context, given]), overlap)
            yield own(given), Progress(read, made, None, context)
        if total is not None and made >= total:
            return
    if like is None:
        raise ValueError(
            f"{FUNCTION}: the video has no block at all, so that its size is not known; takes an array (B, T, H, W, C), "
            f"where T may be 0"
        )
    while total is None or made < total:
        there = 0 if context is None else context.shape[1]
        if rolls and there == overlap:
            context = like[:, :0, ...] if context is None else context
            yield from rolling(sampler, total, window, like, Progress(read, made, None, context, going))
            return
        long = min(window, there + window - overlap) if sampler.reuses else window
        shape = (like.shape[0], long, *like.shape[2:])
        block = sampler.draw(made, shape, [] if not there else [(0, context)], like)
        new = block[:, there:, ...] if total is None else block[:, there : there + total - made, ...]
        made += new.shape[1]
        context = last(block[:, : there + new.shape[1], ...], overlap)
        yield own(new), Progress(read, made, None, context)
