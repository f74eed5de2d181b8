"""A folder of video files as a source: windows of frames at random times, cut at random places.

A file is opened anew for each window, searched for the key frame before it, and decoded from there, so a long file is
never read whole. What is drawn is three numbers: when, and where the frame is cut. Times come from the header of a file,
or, where it is short or says nothing, from the times of all its packets; which frames those times meet is settled
by decoding, so a header that lies costs evenness and no correctness.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _check, _files
from diffcore.unet3d.data.source import Float32, Source

SUFFIXES = frozenset(
    ".3gp .avi .flv .gif .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogg .ogv .ts .vob .webm .wmv .y4m".split()  # noqa: SIM905
)
"""What a video's name ends with, in capitals or not; other files of a folder are not looked at."""

PIXELS = 2**26
"""Of the largest frame, which has square pixels and covers what it is cut to: 8K has half as many."""

_BACK = (0.0, 2.0, 16.0, 128.0)  # seconds before a frame where its key frame is looked for, before all of the file is

_FEW = 250  # frames: up to so many, times are not taken from the header, which may leave out the last ones


class _File(NamedTuple):
    """A video and what its frames' times are: `times` of each, or evenly spaced, or (step 0) none at all."""

    path: Path
    length: int
    start: float
    step: float
    times: npt.NDArray[np.float64] | None

    def time(self, number: int) -> float:
        """Return a time at which frame `number` shows, in units of the stream; the number itself without times."""
        if self.times is not None:
            return float(self.times[number])
        return self.start + (number + 0.5) * self.step if self.step else float(number)


def videos(
    folder: str | os.PathLike[str],
    *,
    frames: int,
    size: tuple[int, int],
    every: int = 2,
    report: Callable[[str], Any] = print,
) -> Videos:
    """Return a source over all video files in a folder and the folders in it.

    A clip is `frames` frames, each `every`-th of a run of consecutive ones that starts anywhere in the video. They are
    turned upright, scaled to just cover `size` with the aspect ratio kept, and cut to it at a random place.

    A file that cannot be read, is no video or is too short is reported and left out. One that breaks later is
    reported, and the next file in order takes its place, so that a run does not end by it and its repetition gives
    the same.

    Args:
        folder: is searched for files with one of `SUFFIXES`, in the order of their names.
        frames: T >= 1.
        size: (H, W) in pixels.
        every: keeps one frame of as many, >= 1.
        report: is given a line of text about each file that is left out.

    Returns:
        A source of clips (T, H, W, 3), RGB, without labels; its length is the number of videos.

    Raises:
        ImportError: PyAV is missing; install diffcore[video].
        FileNotFoundError: there is no such folder.
        ValueError: an argument out of its range; not one video that can be read and is long enough.
        TypeError: an argument of another type.

    >>> videos("no such folder", frames=16, size=(64, 64))
    Traceback (most recent call last):
    FileNotFoundError: data.videos: `folder` is 'no such folder', and there is no such folder
    """
    return Videos(folder, frames=frames, size=size, every=every, report=report)


class Videos(Source):
    """What `videos` returns, which documents the arguments. `paths` are the files in the order of their indices."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        frames: int,
        size: tuple[int, int],
        every: int,
        report: Callable[[str], Any],
    ) -> None:
        function = "data.videos"
        self._frames, self._every = (
            _check.count(function, "frames", frames, 1),
            _check.count(function, "every", every, 1),
        )
        height, width = _check.shape(function, "size", size, "(height, width)", least=1)
        self._size = height, width
        self._folder, self._report = Path(folder), report
        self._reported: set[str] = set()  # so that a broken file is not told of in each epoch
        if not self._folder.is_dir():
            raise FileNotFoundError(f"{function}: `folder` is {str(folder)!r}, and there is no such folder")
        _av()
        found = [path for path in self._folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
        files = []
        for path in sorted(found, key=lambda path: path.relative_to(self._folder).as_posix()):
            try:
                files.append(_probe(path, self._span))
            except _broken() as error:
                self._tell("skipped", path, error)
        if not files:
            raise ValueError(
                f"{function}: `folder` {str(folder)!r} has no video of {self._span} frames or more that can be read; "
                f"{len(found)} files were looked at, {frames} frames are taken, one of {every}"
            )
        self._files = files

    @property
    def paths(self) -> list[Path]:
        """The files, in the order of their indices."""
        return [file.path for file in self._files]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3) of a clip."""
        return (self._frames, *self._size, 3)

    @property
    def classes(self) -> int | None:
        """None: videos have no labels."""
        return None

    @property
    def _span(self) -> int:
        return (self._frames - 1) * self._every + 1

    def __len__(self) -> int:
        return len(self._files)

    def clip(self, index: int, rng: np.random.Generator) -> Float32:
        """Return T frames of video `index` or of the next that can be read, (T, H, W, 3); every start is as likely."""
        return self._cut(index, rng, self._span)

    def frame(self, index: int, rng: np.random.Generator) -> Float32:
        """Return one frame of video `index` or of the next that can be read, (H, W, 3)."""
        image: Float32 = self._cut(index, rng, 1)[0]
        return image

    def label(self, index: int) -> int | None:  # noqa: ARG002
        """Return None: videos have no labels."""
        return None

    def _cut(self, index: int, rng: np.random.Generator, span: int) -> Float32:
        when, *where = rng.random(3)  # all of it before a file is opened: what comes next does not depend on its state
        for other in range(len(self._files)):
            file = self._files[(index + other) % len(self._files)]
            try:
                run, aspect = _read(file, int(when * (file.length - span + 1)), span)
                pixels = np.stack([upright(frame, aspect, self._size, where) for frame in run[:: self._every]])
            except _broken() as error:
                self._tell("took the next video for", file.path, error)
                continue
            scaled: Float32 = pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
            return scaled
        raise ValueError(
            f"data.videos: none of the {len(self._files)} videos in {str(self._folder)!r} can be read any more"
        )

    def _tell(self, done: str, path: Path, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        line = f"data.videos: {done} {path.relative_to(self._folder).as_posix()}: {' '.join(reason.split())}"
        if line not in self._reported:
            self._reported.add(line)
            self._report(line)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("data.videos: reading videos needs PyAV; install diffcore[video]") from error
    return av


def _open(path: Path) -> Any:
    """Open a file; as an absolute path, since FFmpeg takes "10:30.mp4" for a URL."""
    return _av().open(os.path.abspath(path))


def _broken() -> tuple[type[Exception], ...]:
    """Return what reading a broken file raises."""
    return (_av().FFmpegError, OSError, EOFError, ValueError, IndexError)


def stream_of(container: Any, path: Path) -> Any:
    """Return the stream of pictures of an open file, whose frames may take no more than `room` for the file.

    Raises:
        ValueError: it holds no video, or larger frames.
    """
    if not container.streams.video:
        raise ValueError("it holds no video")
    stream, most = container.streams.video[0], _files.room(path) // 3
    if stream.codec_context is None:
        raise ValueError("its codec is unknown")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > most:
        raise ValueError(f"its frames of {height}x{width} pixels take over 100 times its {path.stat().st_size} bytes")
    stream.codec_context.options = {"max_pixels": str(min(most, 2**31 - 1))}  # those that come later may be larger
    return stream


def check_pixels(height: int, width: int) -> None:
    """Raise ValueError for frames that no file is meant to have, upright and with square pixels, or scaled to cover others."""
    if height * width > PIXELS:
        raise ValueError(f"its frames would have {height}x{width} pixels, over {PIXELS}; cut them to another shape")


def _probe(path: Path, span: int) -> _File:
    """Return what is known of the times of a video, after one frame of it was decoded; raise if it is too short."""
    if path.stat().st_size == 0:
        raise ValueError("it is empty")
    with _open(path) as container:
        stream = stream_of(container, path)
        first = next(container.decode(stream), None)
        if first is None:
            raise ValueError("it holds no frame")
        duration = float(stream.duration or 0)
        if not duration and container.duration:
            duration = float(container.duration / _av().time_base / stream.time_base)
        count = int(stream.frames or duration * float(stream.time_base * (stream.average_rate or 0)))
    if count > max(4 * span, _FEW) and duration and first.pts is not None:
        return _File(path, count, float(first.pts), duration / count, None)
    with _open(path) as container:  # short, or a header that does not say: all packets, which are not decoded
        times = [packet.pts for packet in container.demux(stream_of(container, path)) if packet.size]
    if len(times) < span:
        raise ValueError(f"it has {len(times)} frames, but {span} are needed")
    if None in times or first.pts is None:
        return _File(path, len(times), 0.0, 0.0, None)
    return _File(path, len(times), float(first.pts), 0.0, np.sort(np.array(times, dtype=np.float64)))


def _read(file: _File, number: int, span: int) -> tuple[list[Any], float]:
    """Return `span` consecutive frames from the one that shows at the time of `number`, or the last there are; and
    the aspect ratio of a pixel."""
    av = _av()
    time = file.time(number)
    timed = bool(file.step) or file.times is not None
    for back in (*_BACK, None) if timed else (None,):
        with _open(file.path) as container:
            stream = stream_of(container, file.path)
            if back is not None:
                target = int(time - back / stream.time_base)
                if target <= file.start:
                    continue
                try:
                    container.seek(target, stream=stream)
                except av.FFmpegError:
                    continue  # a format that cannot be searched
            frames = container.decode(stream)
            run = _window(frames, time, span, timed=timed, sought=back is not None)
            if run is not None:
                return run, float(stream.sample_aspect_ratio or 1)
    raise ValueError(f"it ends before {span} frames could be read")


def _window(frames: Iterator[Any], time: float, span: int, *, timed: bool, sought: bool) -> list[Any] | None:
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


def upright(frame: Any, aspect: float, size: tuple[int, int], where: list[float]) -> npt.NDArray[np.uint8]:
    """Return a frame upright, scaled to cover `size`, and cut to it at `where`, two fractions: (H, W, 3)."""
    turns = round(frame.rotation / 90) % 4
    shape = np.array([frame.height, frame.width * aspect])
    shape = shape[::-1] if turns % 2 else shape
    scale = max(np.array(size) / shape)
    covering = np.maximum(np.rint(shape * scale).astype(int), size)
    check_pixels(*covering.tolist())
    height, width = (int(side) for side in (covering[::-1] if turns % 2 else covering))
    way = "AREA" if scale < 1.0 else "BICUBIC"
    pixels = np.rot90(frame.to_ndarray(width=width, height=height, format="rgb24", interpolation=way), turns)
    top, left = (int(part * (side - cut + 1)) for part, side, cut in zip(where, covering, size, strict=True))
    cut: npt.NDArray[np.uint8] = pixels[top : top + size[0], left : left + size[1]]
    return cut
