"""A folder of video files as a source: windows of frames at random times, cut at random places.

A file is opened anew for each window, searched for the key frame before it, and decoded from there, so a long file is
never read whole. What is drawn is three numbers: when, and where the frame is cut. Times come from the header of a file,
or, where it is short or says nothing, from the times of all its packets; which frames those times meet is settled
by decoding, so a header that lies costs evenness and no correctness.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffcore import _check
from diffcore.unet3d.data import _coded, _times, _windows
from diffcore.unet3d.data._coded import SUFFIXES
from diffcore.unet3d.data.source import Float32, Source

FOLDERS = "folders"
"""What `labels` is where the sub-folder of a video is its class."""


def videos(
    folder: str | os.PathLike[str],
    *,
    frames: int,
    size: tuple[int, int],
    every: int | None = None,
    fps: float | None = None,
    labels: str | Sequence[str] | None = None,
    background: str | Sequence[int] = "black",
    report: Callable[[str], Any] = print,
) -> Videos:
    """Return a source over all video files in a folder and the folders in it.

    A clip is `frames` frames of a run that starts anywhere in the video: each `every`-th, or, with `fps`, those that show at
    equal times, so that what moves equally fast does so in clips of files of any rate, a variable one included. They are
    turned upright, scaled to just cover `size` with the aspect ratio kept, and cut to it at a random place. Colours are
    converted as the tags of a file say, and transparent pixels lie over a background.

    A file that cannot be read, is no video or is too short is reported and left out. One that breaks later is
    reported, and the next file in order takes its place, so that a run does not end by it and its repetition gives
    the same. Without `fps` it is reported where rates differ.

    Args:
        folder: is searched for files whose name ends as that of a video, in the order of their names.
        frames: T >= 1.
        size: (H, W) in pixels.
        every: keeps one frame of as many, >= 1; 2 without it and without `fps`.
        fps: frames a second, > 0, at equal times: the one that shows then, so that some are left out, or repeated.
        labels: "folders", so that the sub-folder of `folder` which a file is in, however deep, is its class, in the order of
            their names; or the names of those that are taken, in the order of their labels; or None.
        background: of transparent pixels: "black", "white", "grey", or (red, green, blue) from 0 to 255.
        report: is given a line of text about each file that is left out, and where rates differ.

    Returns:
        A source of clips (T, H, W, 3), RGB; its length is the number of videos.

    Raises:
        ImportError: PyAV is missing; install diffcore[video].
        FileNotFoundError: there is no such folder.
        ValueError: an argument out of its range, `every` beside `fps`; not one video that can be read and is long enough.
        TypeError: an argument of another type.

    >>> videos("no such folder", frames=16, size=(64, 64))
    Traceback (most recent call last):
    FileNotFoundError: data.videos: `folder` is 'no such folder', and there is no such folder
    """
    return Videos(
        folder,
        frames=frames,
        size=size,
        every=every,
        fps=fps,
        labels=labels,
        background=background,
        report=report,
    )


class Videos(Source):
    """What `videos` returns, which documents the arguments. `paths` are the files in the order of their indices, `names` those
    of the classes in the order of their labels."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        frames: int,
        size: tuple[int, int],
        every: int | None = None,
        fps: float | None = None,
        labels: str | Sequence[str] | None = None,
        background: str | Sequence[int] = "black",
        report: Callable[[str], Any] = print,
    ) -> None:
        function = "data.videos"
        self._frames = _check.count(function, "frames", frames, 1)
        if every is not None and fps is not None:
            raise ValueError(
                f"{function}: give `every` or `fps`, not both: one frame of every so many, or so many a second at equal times"
            )
        self._every = _check.count(function, "every", 2 if every is None else every, 1)
        self._fps = None if fps is None else _check.number(function, "fps", fps, 0, open_low=True)
        self._background = _coded.background_of(function, background)
        wanted = _names(function, labels)
        height, width = _check.shape(function, "size", size, "(height, width)", least=1)
        self._size = height, width
        if not isinstance(folder, (str, os.PathLike)):
            raise _check.error(
                TypeError, function, "folder", "be the path of one folder, read with its sub-folders", folder
            )
        self._folder, self._report = Path(folder), report
        self._reported: set[str] = set()  # so that a broken file is not told of in each epoch
        if not self._folder.is_dir():
            raise FileNotFoundError(f"{function}: `folder` is {str(folder)!r}, and there is no such folder")
        _coded.av_()
        found = [path for path in self._folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
        files = []
        for path in sorted(found, key=lambda path: path.relative_to(self._folder).as_posix()):
            try:
                if wanted is not None:
                    self._class_of(path, wanted)
                files.append(_windows.probe(path, self._span, self._frames, self._fps))
            except _coded.broken() as error:
                self._tell("skipped", path, error)
        if not files:
            length = f"{self._span} frames" if self._fps is None else f"{(frames - 1) / self._fps:.3g} seconds"
            taken = f"one of {self._every}" if self._fps is None else f"{self._fps:g} a second"
            raise ValueError(
                f"{function}: `folder` {str(folder)!r} has no video of {length} or more that can be read; "
                f"{len(found)} files were looked at, {frames} frames are taken, {taken}"
            )
        self._files = files
        self.names: tuple[str, ...] | None = None
        if wanted is not None:
            self.names = wanted or tuple(sorted({self._class_of(file.path, wanted) for file in files}))
        self._compare_rates()

    @property
    def paths(self) -> list[Path]:
        """The files, in the order of their indices."""
        return [file.path for file in self._files]

    @property
    def sides(self) -> list[tuple[int, int]]:
        """(H, W) of the files' frames, upright and with square pixels, before they are scaled and cut."""
        return [file.side for file in self._files]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3) of a clip."""
        return (self._frames, *self._size, 3)

    @property
    def classes(self) -> int | None:
        """How many classes there are, or None without labels."""
        return None if self.names is None else len(self.names)

    @property
    def fps(self) -> float | None:
        """How many frames of a clip are a second; None where the videos differ or do not say."""
        if self._fps is not None:
            return self._fps
        rates = [file.fps if file.rates is None else None for file in self._files]
        known = [rate for rate in rates if rate]
        return known[0] / self._every if len(known) == len(rates) and max(known) <= 1.01 * min(known) else None

    @property
    def every(self) -> int | None:
        """One frame of how many is taken; None where they are taken at equal times."""
        return self._every if self._fps is None else None

    @property
    def _span(self) -> int:
        return (self._frames - 1) * self._every + 1

    def __len__(self) -> int:
        return len(self._files)

    def clip(self, index: int, rng: np.random.Generator) -> Float32:
        """Return T frames of video `index` or of the next that can be read, (T, H, W, 3); every start is as likely."""
        return self._cut(index, rng, whole=True)

    def frame(self, index: int, rng: np.random.Generator) -> Float32:
        """Return one frame of video `index` or of the next that can be read, (H, W, 3)."""
        image: Float32 = self._cut(index, rng, whole=False)[0]
        return image

    def label(self, index: int) -> int | None:
        """Return the class of video `index`, or None."""
        return None if self.names is None else self.names.index(self._class_of(self._files[index].path, self.names))

    def _class_of(self, path: Path, wanted: tuple[str, ...]) -> str:
        """Return the sub-folder that a file is in."""
        name, *rest = path.relative_to(self._folder).parts
        if not rest:
            raise ValueError("it lies in no sub-folder, which would be its class")
        if wanted and name not in wanted:
            raise ValueError(f"its class {name} is none of `labels`")
        return name

    def _cut(self, index: int, rng: np.random.Generator, *, whole: bool) -> Float32:
        when, *where = rng.random(3)  # all of it before a file is opened: what comes next does not depend on its state
        own = self._files[index].path
        for other in range(len(self._files)):
            file = self._files[(index + other) % len(self._files)]
            if self.names is not None and self._class_of(file.path, ()) != self._class_of(own, ()):
                continue
            try:
                if whole and self._fps is not None:
                    run, aspect = _windows.read(file, int(when * file.starts), self._frames, self._fps)
                else:
                    span = self._span if whole else 1
                    run, aspect = _windows.read(file, int(when * (file.length - span + 1)), span)
                    run = run[:: self._every]
                pixels = np.stack([_coded.upright(frame, aspect, self._size, where, self._background) for frame in run])
            except _coded.broken() as error:
                self._tell("took the next video for", file.path, error)
                continue
            scaled: Float32 = pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
            return scaled
        of = "" if self.names is None else f" of the class {self._class_of(own, ())!r}"
        raise ValueError(
            f"data.videos: none of the {len(self._files)} videos in {str(self._folder)!r}{of} can be read any more"
        )

    def _compare_rates(self) -> None:
        """Report where frames that follow each other are not equally far apart."""
        varied = [file for file in self._files if file.rates is not None]
        rates = [file.fps for file in self._files if file.fps]
        if self._fps is None:
            way = "give fps= for frames at equal times"
            if rates and max(rates) > 1.01 * min(rates):
                common = Counter(f"{rate:.4g}" for rate in rates).most_common(3)
                self._say(
                    f"the {len(self._files)} videos have {_times.rates_of((min(rates), max(rates)))} "
                    f"(most often {', '.join(rate for rate, _ in common)}), so one motion has several speeds; {way}"
                )
            for file in varied[:3]:
                assert file.rates is not None
                self._say(f"{self._named(file.path)} has a variable rate, {_times.rates_of(file.rates)}; {way}")
        elif slow := [file for file in self._files if file.fps and file.fps < 0.99 * self._fps]:
            count, of = len(slow), len(self._files)
            self._say(
                f"frames of {count} of {of} {'video' if of == 1 else 'videos'} are repeated, for example of "
                f"{self._named(slow[0].path)} with {slow[0].fps:.4g} a second, since fps is {self._fps:g}"
            )

    def _named(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _tell(self, done: str, path: Path, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        self._say(f"{done} {self._named(path)}: {' '.join(reason.split())}")

    def _say(self, text: str) -> None:
        line = f"data.videos: {text}"
        if line not in self._reported:
            self._reported.add(line)
            self._report(line)


def _names(function: str, labels: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the names of classes, none yet where they are to be found, or None without labels."""
    if labels is None or labels == FOLDERS:
        return None if labels is None else ()
    names = () if isinstance(labels, str) or not isinstance(labels, Sequence) else tuple(labels)
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        must = f'be "{FOLDERS}", the names of sub-folders, each once, or None'
        raise _check.error(
            TypeError if not isinstance(labels, str | Sequence) else ValueError, function, "labels", must, labels
        )
    return names
