"""What goes in and out: a video as an array or as blocks of frames, and an iterator of blocks that can be stopped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from diffcore import _array, _check
from diffcore._array import Array


class Progress(NamedTuple):
    """Where a stream is between two blocks; give it as `resume` to go on.

    Fields:
        read: how many frames of the given video were read.
        made: how many frames were handed out.
        given: frames (B, n, ...) that were read and are needed further, or None.
        context: the last frames that were handed out (B, n, ...), as many as the next block knows, or None.
        going: of a rolling window, its frames and the plan's memory of them, at their levels; else None.

    A tuple of numbers and arrays: save it with `numpy.savez`, `torch.save` or any checkpointer.
    """

    read: int = 0
    made: int = 0
    given: Array | None = None
    context: Array | None = None
    going: tuple[Array, ...] | None = None


class Stream(Iterator[Array]):
    """An iterator of blocks of frames, (B, n, H, W, C) with n >= 1, each made when it is asked for.

    `state` is where the stream is after the last block that it handed out.
    """

    def __init__(self, blocks: Iterator[tuple[Array, Progress]], state: Progress) -> None:
        self._blocks, self.state = blocks, state

    def __next__(self) -> Array:
        frames, self.state = next(self._blocks)
        return frames

    def all(self) -> Array:
        """Return all blocks that are left as one video (B, T, H, W, C).

        Raises:
            ValueError: there are none.
        """
        blocks = list(self)
        if not blocks:
            raise ValueError("video.Stream.all: there are no frames left")
        return joined(blocks)


def blocks_of(function: str, video: Any) -> Iterator[Array]:
    """Yield a video as blocks (B, n, H, W, C), each checked; one of many in memory of its own, so that the next may lie in its
    place.

    Raises:
        TypeError: no floating array, nor an iterable of them; blocks of more than one library.
        ValueError: another number of axes; blocks that do not fit together.
    """
    whole = hasattr(video, "ndim")
    if not whole and not isinstance(video, Iterable):
        raise TypeError(
            f"{function}: the video is {type(video).__name__}, but takes an array (B, T, H, W, C), or an iterable of them"
        )
    first: Array = None
    for block in (video,) if whole else video:
        _array.namespace(function, **{"the video": block} | ({} if first is None else {"its first block": first}))
        _array.check_floating(function, **{"the video": block})
        if block.ndim != 5:
            raise ValueError(
                f"{function}: the video has shape {tuple(block.shape)}, but takes (B, T, H, W, C); one clip (T, H, W, C) "
                f"needs an axis more, clip[None]"
            )
        first = block if first is None else first
        if _but_frames(block) != _but_frames(first) or block.dtype != first.dtype:
            raise ValueError(
                f"{function}: a block has shape {tuple(block.shape)} and dtype {block.dtype}, but the first one has "
                f"{tuple(first.shape)} and {first.dtype}; they may differ in the number of frames alone"
            )
        yield block if whole else own(block)


def _but_frames(block: Array) -> tuple[int, ...]:
    return (block.shape[0], *block.shape[2:])


def joined(blocks: list[Array]) -> Array:
    """Return blocks as one, along the frames."""
    return blocks[0] if len(blocks) == 1 else _array.library(blocks[0]).concat(blocks, axis=1)


def filled(given: Array | None, blocks: Iterator[Array], count: int) -> tuple[Array | None, int]:
    """Return frames and those of further blocks, until there are `count` or no more; and how many were read."""
    read = 0
    while (given is None or given.shape[1] < count) and (block := next(blocks, None)) is not None:
        read += block.shape[1]
        if block.shape[1]:
            given = block if given is None else joined([given, block])
    return given, read


def own(frames: Array) -> Array:
    """Return frames in memory of their own."""
    return _array.library(frames).asarray(frames, copy=True)


def last(frames: Array, count: int) -> Array:
    """Return the last frames, as many as there are up to a count, in memory of their own."""
    return own(frames[:, max(0, frames.shape[1] - count) :, ...])


def resumed(function: str, resume: Any) -> Progress:
    """Return the state that a stream begins from."""
    if resume is None:
        return Progress()
    if not isinstance(resume, tuple) or len(resume) not in (4, 5):
        raise _check.error(TypeError, function, "resume", "be the `state` of a video.Stream", resume)
    return Progress(*resume)


def overlap_of(function: str, overlap: Any, window: int, *, all_but_one: bool = False) -> int:
    """Return how many frames a block knows of the ones before: if none is given, a quarter of the window or all but one."""
    default = window - 1 if all_but_one else window // 4
    number = default if overlap is None else _check.integer(function, "overlap", overlap)
    if number >= window:
        must = f"be less than the window, {window} frames"
        raise _check.error(ValueError, function, "overlap", must, number, "a block would make no new frame")
    return number
