"""Windows of frames of a video file: which one a number is, and where decoding enters the file for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _check
from diffcore.unet3d.data import _coded, _times

_BACK = (0.0, 2.0, 16.0, 128.0)  # seconds before a frame where its key frame is looked for, before all of the file is

_FEW = 250  # frames: up to so many, times are not taken from the header, which may leave out the last ones


class File(NamedTuple):
    """A video and what its frames' times are: `times` of each, or evenly spaced, or (step 0) none at all; at how many of its
    frames a clip may start; its mean rate and, where it varies, the slowest and the fastest; and (H, W) of a frame, upright."""

    path: Path
    length: int
    start: float
    step: float
    times: npt.NDArray[np.float64] | None
    starts: int = 1
    fps: float | None = None
    rates: tuple[float, float] | None = None
    side: tuple[int, int] = (0, 0)

    def time(self, number: int) -> float:
        """Return a time at which frame `number` shows, in units of the stream; the number itself without times."""
        if self.times is not None:
            return float(self.times[number])
        return self.start + (number + 0.5) * self.step if self.step else float(number)


def probe(path: Path, span: int, frames: int = 1, fps: float | None = None) -> File:
    """Return what is known of the times of a video, after one frame of it was decoded; raise if it is too short."""
    if path.stat().st_size == 0:
        raise ValueError("it is empty")
    with _coded.opened(path) as container:
        stream = _coded.stream_of(container, path)
        first = next(container.decode(stream), None)
        if first is None:
            raise ValueError("it holds no frame")
        duration = float(stream.duration or 0)
        if not duration and container.duration:
            duration = float(container.duration / _coded.av_().time_base / stream.time_base)
        count = int(stream.frames or duration * float(stream.time_base * (stream.average_rate or 0)))
        unit, nominal = float(stream.time_base or 0), float(stream.average_rate or 0) or None
        side = _coded.sides(first, float(stream.sample_aspect_ratio or 1))
    rate = count / (duration * unit) if duration and unit else 0.0
    if fps is not None:
        span = int((frames - 1) * rate / fps) + 2
    if count > max(4 * span, _FEW) and duration and first.pts is not None:
        seen = _times.glimpsed(path)
        varied = None if seen is None else seen.rates
        return File(path, count, float(first.pts), duration / count, None, count - span, nominal or rate, varied, side)
    with _coded.opened(path) as container:  # short, or a header that does not say: all packets, which are not decoded
        times = [packet.pts for packet in _times.packets_of(container, _coded.stream_of(container, path))]
    if fps is None and len(times) < span:
        raise ValueError(f"it has {_check.counted(len(times), 'frame')}, but {span} are needed")
    if None in times or first.pts is None:
        if fps is not None:
            raise ValueError("its frames have no times, which fps= needs")
        return File(path, len(times), 0.0, 0.0, None, len(times) - span + 1, nominal, None, side)
    at = np.sort(np.array(times, dtype=np.float64))
    own = (
        _times.timed(at * unit, 0.0, nominal) if len(at) > 1 and at[-1] > at[0] else _times.Times(len(at), nominal, 0.0)
    )
    starts = len(times) - span + 1
    if fps is not None:
        end = at[-1] * unit + 1.0 / (own.fps or fps) - (frames - 1) / fps - _times.slack_of(fps, own.fps)
        starts = int(np.searchsorted(at * unit, end))
        if not starts:
            raise ValueError(f"it lasts {own.seconds:.3g} seconds, but {(frames - 1) / fps:.3g} are needed")
    return File(path, len(times), float(first.pts), 0.0, at, starts, own.fps, own.rates, side)


def read(file: File, number: int, span: int, fps: float | None = None) -> tuple[list[Any], float]:
    """Return `span` frames from the one that shows at the time of `number`, consecutive or, with `fps`, at equal times, or the
    last there are; and the aspect ratio of a pixel."""
    av = _coded.av_()
    time = file.time(number)
    timed = bool(file.step) or file.times is not None
    for back in (*_BACK, None) if timed else (None,):
        with _coded.opened(file.path) as container:
            stream = _coded.stream_of(container, file.path)
            if back is not None:
                target = int(time - back / stream.time_base)
                if target <= file.start:
                    continue
                try:
                    container.seek(target, stream=stream)
                except av.FFmpegError:
                    continue  # a format that cannot be searched
            frames = _coded.frames_of(container, stream)
            if fps is None:
                run = window(frames, time, span, timed=timed, sought=back is not None)
            else:
                shown = _shown(frames, time, float(stream.time_base), sought=back is not None)
                run = list(islice(_times.evenly(shown, fps, file.fps), span))
            if run is not None and len(run) == span:
                return run, float(stream.sample_aspect_ratio or 1)
    if fps is not None and number > 0:  # a header that speaks of more than there is
        return read(file, number // 2, span, fps)
    raise ValueError(f"it ends before {span} frames could be read")


def _shown(frames: Iterator[Any], time: float, unit: float, *, sought: bool) -> Iterator[tuple[float, Any]]:
    """Yield the times, in seconds, and frames from the last that begins at `time` or before; none where decoding began too late."""
    before: tuple[float, Any] | None = None
    begun = False
    for frame in frames:
        if frame.pts is None or (sought and before is None and not frame.key_frame):
            continue  # it may refer to frames before the place that was sought
        at = float(frame.pts)
        if at > time:
            if before is None and not begun and sought:
                return
            if before is not None and not begun:
                yield before
            begun = True
            yield at * unit, frame
        else:
            before = at * unit, frame
    if before is not None and not begun:
        yield before


def window(frames: Iterator[Any], time: float, span: int, *, timed: bool, sought: bool) -> list[Any] | None:
    """Return `span` frames from the last that begins at `time` or before; at the end of the file the last `span`; or
    None where decoding began too late for that."""
    run: deque[tuple[float, Any]] = deque(maxlen=span + 1)
    for number, frame in enumerate(frames):
        if sought and not run and not frame.key_frame:
            continue  # it may refer to frames before the place that was sought
        if timed and frame.pts is None:
            at = run[-1][0] if run else time
        else:
            at = float(frame.pts if timed else number)
        if sought and not run and at > time:
            return None
        run.append((at, frame))
        if len(run) > span and run[1][0] > time:
            return [kept for _, kept in run][:span]
    return [kept for _, kept in run][-span:] if len(run) >= span else None
