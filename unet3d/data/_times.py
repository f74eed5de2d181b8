"""When the frames of a video show, and frames at equal times, whatever the rate of the file.

A frame shows from its time until that of the next. Frame k at a rate of f is the one that shows at k / f after the first one,
and a third of an interval later: so much may a time be off, which formats round to milliseconds, before the frame changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from diffcore.unet3d.data import _coded

T = TypeVar("T")
Float64 = npt.NDArray[np.float64]

LARGE = 2**28
"""Bytes of a file from which on an mp4's index is asked whether its rate varies, and all its packets are read only if it does."""

FIRST = 256
"""Packets that tell whether the rate of a long file without an index varies, where not all of it is read."""


class Times(NamedTuple):
    """When the frames of a video show.

    Fields:
        frames: how many there are, as far as packets or the header say.
        fps: their mean rate, (frames - 1) / (last - first); None where it is not known.
        seconds: from the first to the end of the last, or 0.0.
        rates: the slowest and the fastest between two frames where the rate varies, so that frame k is more than half an
            interval away from k / fps; else None.
    """

    frames: int
    fps: float | None
    seconds: float
    rates: tuple[float, float] | None = None


def times_of(path: Path) -> Times:
    """Return when the frames of a file show; see `_coded.broken` for what is raised."""
    with _coded.opened(path) as container:
        stream = _coded.stream_of(container, path)
        nominal = float(stream.average_rate) if stream.average_rate else None
        at = indexed(container, stream) if path.stat().st_size > LARGE else None
        base = float(stream.time_base or 0)
        if at is not None and (found := timed(at, 0.0, nominal)).rates is None:
            return found
        packets = [(packet.pts, packet.duration or 0) for packet in packets_of(container, stream)]
    shown = sorted((pts * base, length * base) for pts, length in packets if pts is not None)
    if len(shown) < len(packets) or len(shown) < 2 or shown[-1][0] <= shown[0][0]:
        return Times(len(packets), nominal, len(packets) / nominal if nominal else 0.0)
    return timed(np.array([at for at, _ in shown]), shown[-1][1], nominal)


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of an open file whose frames show, which those before a cut do not."""
    return (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)


def indexed(container: Any, stream: Any) -> Float64 | None:
    """Return when the frames of an open mp4 or mov are decoded, in seconds: as far apart as they show, but for the first few. Its
    header says it, so that a film takes no longer than a clip. None for other files, and for those in fragments."""
    if "mp4" not in container.format.name or not stream.frames:
        return None
    entries = list(stream.index_entries)
    cut = sum(entry.is_discard for entry in entries)
    at = np.sort([entry.timestamp for entry in entries])[cut:] * float(stream.time_base)
    return at if len(at) > 1 and at[-1] > at[0] else None


def glimpsed(path: Path) -> Times | None:
    """Return when the frames of a long file show: as its index says, or as far as its first packets do; None for neither."""
    with _coded.opened(path) as container:
        stream = _coded.stream_of(container, path)
        at = indexed(container, stream)
        if at is None:
            some = [packet.pts for packet in islice(packets_of(container, stream), FIRST)]
            known = [] if None in some else sorted(some)[: -FIRST // 8]  # the last ones may lack some between them
            at = np.array(known, dtype=np.float64) * float(stream.time_base or 0)
        return timed(at) if len(at) > 1 and at[-1] > at[0] else None


def timed(at: Float64, last: float = 0.0, nominal: float | None = None) -> Times:
    """Return what follows from the times of frames, at least two, how long the last one shows (0: not known), and a header's rate.

    >>> timed(np.arange(8.0), nominal=30.0)
    Times(frames=8, fps=1.0, seconds=8.0, rates=None)
    >>> timed(np.array([0.0, 0.1, 0.2, 5.0, 5.1]), last=0.1).rates is not None
    True
    """
    fps = (len(at) - 1) / float(at[-1] - at[0])
    even = np.abs((at - at[0]) * fps - np.arange(len(at))).max() <= 0.5
    if even:
        fps = nominal if nominal and abs(nominal - fps) * (len(at) - 1) <= 0.5 * fps else fps
        return Times(len(at), fps, len(at) / fps)
    steps = np.maximum(np.diff(at), 1e-6)
    return Times(
        len(at), fps, float(at[-1] - at[0]) + (last or 1.0 / fps), (1.0 / float(steps.max()), 1.0 / float(steps.min()))
    )


def evenly(shown: Iterable[tuple[float, T]], fps: float, own: float | None, lasts: float = 0.0) -> Iterator[T]:
    """Yield what shows at the times k / fps after the first, k = 0, 1, ..., until the last one ends.

    Args:
        shown: (time in seconds, frame), in the order of their times.
        fps: how many a second are wanted.
        own: the mean rate of the file, if it is known.
        lasts: how many seconds the last one shows; 0 is an interval of the file's.

    >>> shown = [(0.0, "a"), (0.1, "b"), (0.2, "c"), (0.5, "d")]
    >>> "".join(evenly(shown, 10.0, 10.0)), "".join(evenly(shown[:3], 5.0, 10.0)), "".join(evenly(shown[:3], 20.0, 10.0))
    ('abcccd', 'ac', 'aabbcc')
    """
    held: list[T] = []
    slack, made, start, at = slack_of(fps, own), 0, 0.0, 0.0
    for at, frame in shown:
        start = start if held else at
        while held and made / fps + slack < at - start:
            yield held[0]
            made += 1
        held = [frame]
    end = at - start + (lasts or 1.0 / (own or fps))
    while held and (made == 0 or made / fps + slack < end):
        yield held[0]
        made += 1


def counted(seconds: float, fps: float, own: float | None) -> int:
    """Return how many frames `evenly` yields of so many seconds.

    >>> counted(0.3, 5.0, 10.0), counted(0.3, 20.0, 10.0), counted(0.3, 10.0, 10.0)
    (2, 6, 3)
    """
    return max(1, math.ceil((seconds - slack_of(fps, own)) * fps))


def rates_of(rates: tuple[float, float]) -> str:
    """Return rates in words.

    >>> rates_of((0.21, 29.97)), rates_of((24.0, 60.0))
    ('0.21 to 30 frames a second', '24 to 60 frames a second')
    """
    low, high = (f"{rate:.2g}" if rate < 10 else f"{rate:.0f}" for rate in rates)
    return f"{low} to {high} frames a second"


def slack_of(fps: float, own: float | None) -> float:
    """Return how much too late a frame may come: a third of the shorter interval, of the rates asked for and of the file."""
    return 1.0 / (3.0 * max(fps, own or fps))
