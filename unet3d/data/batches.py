"""Batches as a pure function of (seed, step): there is nothing to save, and a run that was killed goes on bit for bit.

Clips are numbered through the whole training, n = step B + i. Number n is at place n mod N of epoch n div N, and the order
of an epoch is a permutation drawn from (seed, epoch). How clip n is cut is drawn from (seed, n), and its image j from
(seed, n, j). So a batch of 8 is two batches of 4, and nothing depends on which steps were made before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _check, _streams
from diffcore.unet3d.data.source import Float32, Source, generator, seed_of


class Batch(NamedTuple):
    """What `batch` returns: `x` (B, T + images, H, W, C) float32, and `labels` (B,) or (B, T + images) int64, or None."""

    x: Float32
    labels: npt.NDArray[np.int64] | None


def batch(
    source: Source,
    size: int,
    *,
    step: int,
    seed: int = 0,
    images: int = 0,
    flip: bool = False,
    rows: tuple[int, int] | None = None,
) -> Batch:
    r"""Return the batch of one training step: clips, and after each `images` independent frames of random videos.

        x_i = (clip of video pi_e(n mod N), frame of a random video, frame of a random video, ...),   n = step B + i

    with pi_e the random order of epoch e = n div N, so that every video is met once an epoch. The videos of the
    appended frames are drawn with replacement, each on its own. All draws come from counter-based generators,
    `np.random.Philox` with key (seed, what for) and a counter of (n, which image): no state is kept.

    Args:
        source: of this module, or a `Source` of one's own.
        size: B >= 1.
        step: which one, >= 0.
        seed: in [0, 2^64).
        images: how many independent frames are appended to each clip, >= 0.
        flip: mirrors half of the clips left to right, all frames of one alike, and half of the appended frames.
        rows: (first, count) reads these clips of the batch alone, as each of several processes does: the bits are those
            of the same rows of the whole batch.

    Returns:
        A `Batch`, of all clips or of those of `rows`. `labels` is None where the source has none; (B,) without images;
        and (B, T + images) with them: the clip's label for each of its T frames, then the label of each image.

    Raises:
        TypeError: a source, size, step, seed or images of another type.
        ValueError: size < 1, step < 0, images < 0, a seed out of range, rows beyond the batch; a clip of another shape than
            `source.shape`.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 3 and fig. 2, for the appended frames.

    >>> import numpy as np
    >>> from diffcore.unet3d import data
    >>> source = data.Arrays(np.zeros((10, 6, 8, 8, 3), dtype=np.uint8), labels=np.arange(10), frames=4)
    >>> x, labels = data.batch(source, 2, step=0, images=3)
    >>> x.shape, x.dtype, labels.shape
    ((2, 7, 8, 8, 3), dtype('float32'), (2, 7))
    >>> bool((data.batch(source, 2, step=0, images=3, rows=(1, 1)).x == x[1:]).all())
    True
    """
    function = "data.batch"
    what = "a Source, such as data.Arrays(...)"
    _check.instance(function, "source", source, Source, what)
    size = _check.integer(function, "size", size, 1)
    step, images = _check.integer(function, "step", step, 0), _check.integer(function, "images", images, 0)
    seed = seed_of(function, seed)
    offset, count = _check_rows(function, rows, size)
    first, size = step * size + offset, count
    frames, *picture = source.shape
    x = np.empty((size, frames + images, *picture), dtype=np.float32)
    indices = np.empty((size, 1 + images), dtype=np.int64)
    indices[:, 0] = _in_order(len(source), seed, first, size)
    for i in range(size):
        number = first + i
        rng = generator(seed, _streams.GENERATOR_CLIP, number)
        mirrored = flip & (rng.random() < 0.5)  # drawn in any case, so that `flip` changes nothing else
        _put(x[i, :frames], source.clip(int(indices[i, 0]), rng), mirrored)
        for j in range(images):
            rng = generator(seed, _streams.GENERATOR_IMAGE, number, j)
            mirrored = flip & (rng.random() < 0.5)
            indices[i, 1 + j] = rng.integers(len(source))
            _put(x[i, frames + j], source.frame(int(indices[i, 1 + j]), rng), mirrored)
    if source.classes is None:
        return Batch(x, None)
    labels = np.array([[source.label(int(index)) for index in row] for row in indices], dtype=np.int64)
    if images == 0:
        return Batch(x, labels[:, 0])
    return Batch(x, np.concatenate([np.repeat(labels[:, :1], frames, axis=1), labels[:, 1:]], axis=1))


def _check_rows(function: str, rows: Any, size: int) -> tuple[int, int]:
    if rows is None:
        return 0, size
    first = _check.integer(function, "rows", rows[0], 0, size - 1, hint=f"a batch of {size} has rows 0 to {size - 1}")
    return first, _check.integer(function, "rows", rows[1], 1, size - first, hint="it is (first, count)")


def _in_order(count: int, seed: int, first: int, size: int) -> npt.NDArray[np.int64]:
    """Return the indices of clips number first, ..., first + size - 1."""
    epochs = range(first // count, (first + size - 1) // count + 1)
    orders = np.concatenate([generator(seed, _streams.GENERATOR_EPOCH, epoch).permutation(count) for epoch in epochs])
    start = first - epochs[0] * count
    return orders[start : start + size]


def _put(place: Float32, pixels: Float32, mirrored: bool) -> None:
    if pixels.shape != place.shape:
        raise ValueError(
            f"data.batch: the source gave an array of shape {pixels.shape}, but its `shape` says {place.shape}"
        )
    place[...] = pixels[..., ::-1, :] if mirrored else pixels
