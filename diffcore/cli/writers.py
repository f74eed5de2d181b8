"""Writing videos block by block; a file gets its name once it is complete."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from diffcore import _check, _files, _memory
from diffcore._pictures import zoom_for
from diffcore.cli import interrupts, sheets
from diffcore.cli.files import ZOOMED, Float32, _av
from diffcore.cli.report import Failure, note, usage

PIXELS = 2**26
"""Of the largest frame that is read back."""
FPS = 10.0
"""Frames per second where nothing says how many."""


class Writer(Protocol):
    """What blocks of a video are given to."""

    def write(self, block: Float32) -> None:
        """Take the next frames, (B, n, H, W, C) in [-1, 1]."""

    def close(self) -> None:
        """Write what is left."""


def check(path: Path, force: bool) -> None:
    """Refuse a name that cannot be written to."""
    if path.suffix.lower() not in _KINDS:
        usage(f"the suffix of {path} must be one of {' '.join(_KINDS)}, got {path.suffix or 'none'}")
    check_place(path, force)


def check_place(path: Path, force: bool) -> None:
    """Refuse a name in no folder, of a folder, or of a file that may not be overwritten."""
    if not path.parent.is_dir():
        usage(f"there is no folder {path.parent} for {path.name}; make it first: mkdir -p {path.parent}")
    if path.is_dir():
        usage(f"{path} is a folder; give the name of a file")
    if path.exists() and not force:
        usage(f"{path} exists already; --force overwrites it")
    if not os.access(path.parent, os.W_OK):
        usage(f"the folder {path.parent} cannot be written to; take another one")


def check_frames(path: Path, shape: tuple[int, ...], zoom: int | None) -> None:
    """Refuse, before they are drawn, clips (B, T, H, W, C) that the form of a file cannot hold, or that do not fit in memory."""
    zoom = zoom_for(*shape[2:4]) if zoom is None else zoom
    _KINDS[path.suffix.lower()].check(path, shape, zoom)


@contextlib.contextmanager
def opened(path: Path, fps: float, zoom: int | None = None) -> Iterator[Writer]:
    """Open a file to write a video to: it appears, complete, when the context ends without an error."""
    with _files.replacing(path) as temporary:
        writer = _KINDS[path.suffix.lower()](temporary, fps, zoom)
        try:
            with interrupts.heard(temporary):
                yield writer
        except BaseException:
            with contextlib.suppress(Exception):
                writer.abandon()
            raise
        writer.close()


def _pixels(block: Float32, zoom: int) -> npt.NDArray[np.uint8]:
    """Return frames (n, H, W, C), the clips side by side."""
    row = np.concatenate(list(block), axis=2)
    pixels = np.clip((row + 1.0) * 127.5, 0.0, 255.0).round().astype(np.uint8)
    return np.repeat(np.repeat(pixels, zoom, axis=1), zoom, axis=2)


class _Coded:
    """A file that PyAV writes, frame by frame, so that memory does not grow with its length."""

    def __init__(self, path: Path, fps: float, zoom: int | None) -> None:
        if fps > self.fastest:
            note(
                f"note: {self.form} takes at most {self.fastest:g} frames a second; it is played at that, not at {fps:g}"
            )
        self.path, self.asked, self.zoom, self.count = path, zoom, zoom or 1, 0
        self.rate = Fraction(min(fps, self.fastest)).limit_denominator(1001)
        self.container = _av().open(os.path.abspath(path), "w", format=self.form)
        self.stream: Any = None

    form, fastest, even, longest = "mp4", math.inf, True, 16384

    @classmethod
    def check(cls, path: Path, shape: tuple[int, ...], zoom: int) -> None:
        """Refuse frames that are larger than the form takes, or than are read back."""
        count, _, height, width, _ = shape
        high, wide = height * zoom, count * width * zoom
        if max(high, wide) > cls.longest or high * wide > PIXELS:
            beside = f"{_check.counted(count, 'clip')} side by side, " if count > 1 else ""
            each = ", or a number in the name, such as %04d, for a file of each clip" if count > 1 else ""
            usage(
                f"{path}: {beside}zoomed {zoom} times, make frames of {high}x{wide} pixels, and {cls.form} takes sides up to "
                f"{cls.longest} and {PIXELS} pixels; give --zoom 1 or fewer pixels{each}"
            )

    def write(self, block: Float32) -> None:
        if self.stream is None and self.asked is None:
            height, width = block.shape[2:4]
            self.zoom = zoom_for(height, width)
            self.zoom += self.zoom > 1 and self.even and self.zoom % 2 and (height % 2 or width % 2)
        for pixels in _pixels(block, self.zoom):
            frame = self.frame(
                pixels if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1), pixels.shape[-1] == 1
            )
            frame.pts, frame.time_base = self.count, 1 / self.rate
            self.count += 1
            self.container.mux(self.stream.encode(frame))

    def frame(self, pixels: npt.NDArray[np.uint8], grey: bool) -> Any:
        del grey
        height, width = pixels.shape[:2]
        if height % 2 or width % 2:
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.stream is None:
            if height % 2 or width % 2:
                note(f"note: mp4 takes even sides; {height}x{width} becomes {pixels.shape[0]}x{pixels.shape[1]}, the last "
                     f"row or column twice")  # fmt: skip
            elif self.zoom > 1:
                self.container.metadata["comment"] = ZOOMED.format(self.zoom)
            self.begin("libx264", "yuv420p", pixels.shape, {"crf": "10"})
            self.tag()
        frame = _av().VideoFrame.from_ndarray(pixels, format="rgb24")
        return frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")

    def tag(self) -> None:
        """Say in the file that colours are those of BT.709, in the limited range."""
        codec = self.stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = codec.color_range = 1

    def begin(self, codec: str, pixel: str, shape: tuple[int, ...], options: dict[str, str]) -> None:
        self.stream = self.container.add_stream(codec, rate=self.rate, options=options)
        self.stream.height, self.stream.width, self.stream.pix_fmt = shape[0], shape[1], pixel

    def close(self) -> None:
        if self.stream is None:
            raise Failure("there is no frame to write")
        self.container.mux(self.stream.encode(None))
        self.container.close()

    def abandon(self) -> None:
        self.container.close()


class _Gif(_Coded):
    form, fastest, even, longest = (
        "gif",
        50.0,
        False,
        65535,
    )  # it counts hundredths of a second, and of fewer than two viewers make ten

    def close(self) -> None:
        super().close()
        if self.zoom > 1:  # as a comment, which the muxer does not write
            content, text = self.path.read_bytes(), ZOOMED.format(self.zoom).encode()
            first = 13 + (3 << (content[10] & 7) + 1 if content[10] & 128 else 0)  # after the header and its palette
            self.path.write_bytes(content[:first] + b"\x21\xfe" + bytes([len(text)]) + text + b"\0" + content[first:])

    def frame(self, pixels: npt.NDArray[np.uint8], grey: bool) -> Any:
        from PIL import Image

        if self.stream is None:
            self.begin("gif", "gray" if grey else "pal8", pixels.shape, {})
        if grey:
            return _av().VideoFrame.from_ndarray(np.ascontiguousarray(pixels[..., 0]), format="gray")
        picture = Image.fromarray(pixels).quantize(256)
        colours = np.array(picture.getpalette(), dtype=np.uint8).reshape(-1, 3)
        palette = np.full((256, 4), 255, dtype=np.uint8)  # alpha, red, green, blue
        palette[: len(colours), 1:] = colours
        return _av().VideoFrame.from_ndarray((np.array(picture), palette), format="pal8")


class _Gathered:
    """A file that is written at the end, from all blocks."""

    def __init__(self, path: Path, fps: float, zoom: int | None) -> None:
        del fps
        self.path, self.zoom, self.blocks = path, zoom, list[Float32]()

    @classmethod
    def check(cls, path: Path, shape: tuple[int, ...], zoom: int) -> None:
        """Refuse what does not fit in memory, in which all of it is gathered."""
        size = 8 * math.prod(shape) + cls.drawn(shape, zoom)
        hint = f"{path.suffix} is gathered in memory and written at the end; an .mp4 is written frame by frame"
        _memory.fits(str(path), "frames", shape[1], size, hint=hint)

    @staticmethod
    def drawn(shape: tuple[int, ...], zoom: int) -> int:
        """Return the bytes that it takes beside the clips and a copy of them."""
        del shape, zoom
        return 0

    def write(self, block: Float32) -> None:
        self.blocks.append(np.array(block))

    def close(self) -> None:
        if not self.blocks:
            raise Failure("there is no frame to write")
        self.put(np.concatenate(self.blocks, axis=1))

    def put(self, clips: Float32) -> None:
        with self.path.open("wb") as file:
            np.save(file, clips.astype(np.float32, copy=False))

    def abandon(self) -> None:
        self.blocks = []


class _Sheet(_Gathered):
    @staticmethod
    def drawn(shape: tuple[int, ...], zoom: int) -> int:
        count, frames, height, width, _ = shape
        columns = min(frames, sheets.COLUMNS)
        return 3 * count * -(-frames // columns) * columns * height * width * zoom**2

    def put(self, clips: Float32) -> None:
        sheets.write(self.path, clips, self.zoom)


_KINDS: dict[str, Any] = {".mp4": _Coded, ".gif": _Gif, ".png": _Sheet, ".npy": _Gathered}
