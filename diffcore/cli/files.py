"""Reading videos as blocks of frames (B, n, H, W, C) in [-1, 1], whatever file they are in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore.cli import sheets
from diffcore.cli.report import Failure, note, usage

Float32 = npt.NDArray[np.float32]
Size = tuple[int, int]

BLOCK = 16
"""Frames that are decoded at once."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Of ITU-R BT.601: what a grey model sees of a colour."""
_SLACK = 1e-4


class Video(NamedTuple):
    """A video file that was found sound as far as it was looked at.

    Fields:
        path: of the file.
        clips: how many it holds, side by side in time.
        frames: of each, as far as the file says.
        size: (H, W) of a frame, upright and with square pixels.
        channels: 1 or 3, or what a .npy file has.
        fps: frames per second, or None.
    """

    path: Path
    clips: int
    frames: int
    size: Size
    channels: int
    fps: float | None


def look(path: Path) -> Video:
    """Return the properties of a video file; refuse any other file."""
    from diffcore.unet3d.data.videos import SUFFIXES

    if not path.exists():
        usage(f"there is no file {path}")
    if path.is_dir():
        usage(f"{path} is a folder; give one video file")
    if not path.is_file():
        usage(f"{path} is a pipe or a device; give one video file")
    kind = path.suffix.lower()
    if kind not in SUFFIXES | {".npy", ".png"}:
        known = " ".join(sorted(SUFFIXES | {".npy", ".png"}))
        usage(f"{path} must have the suffix of a video, one of {known}, got {kind or 'none'}")
    if path.stat().st_size == 0:
        raise Failure(f"{path} is empty, 0 bytes; make it again")
    if kind == ".npy":
        clips = _array(path)
        return Video(path, clips.shape[0], clips.shape[1], (clips.shape[2], clips.shape[3]), clips.shape[4], None)
    if kind == ".png":
        count, frames, height, width, channels = sheets.read(path).shape
        return Video(path, count, frames, (height, width), channels, None)
    return _look_at_coded(path)


def fitted(video: Video, size: str | None, default: Size | None) -> Size:
    """Return (H, W) that frames are resized to: the option's, else `default`, else their own."""
    if size is None:
        return video.size if default is None else default
    if size == "keep":
        return video.size
    return parse_size(size)


def parse_size(text: str) -> Size:
    """Return (H, W) of "64" or "48x64"."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        usage(f"--size must be a side such as 64, or height x width such as 48x64, got {text}")
    return int(parts[0]), int(parts[-1])


def blocks(video: Video, size: Size, channels: int) -> Iterator[Float32]:
    """Yield the video in blocks (B, n, H, W, C), scaled to cover `size`, cut to it in the middle, in so many channels.

    Raises:
        Failure: the file breaks off, or holds numbers that are no pixels.
    """
    kind = video.path.suffix.lower()
    read = 0
    if kind in {".npy", ".png"}:
        pieces = _slices(video, size)
    else:
        pieces = _decoded(video, size)
    for piece in pieces:
        read += piece.shape[1]
        yield _coloured(video, piece, channels)
    if read < video.frames:
        note(f"note: {video.path} says it has {video.frames} frames, and {read} could be read")


def nothing(shape: tuple[int, ...]) -> Float32:
    """Return no frame of clips of a shape (B, T, H, W, C)."""
    return np.zeros((shape[0], 0, *shape[2:]), dtype=np.float32)


def read(video: Video, size: Size, channels: int) -> Float32:
    """Return a video as one array (B, T, H, W, C)."""
    found: Float32 = np.concatenate(list(blocks(video, size, channels)), axis=1)
    return found


def _coloured(video: Video, piece: Float32, channels: int) -> Float32:
    have = piece.shape[-1]
    if have == channels:
        return piece
    if (have, channels) == (3, 1):
        grey: Float32 = (piece @ LUMA)[..., None]
        return grey
    if have == 1:
        return np.repeat(piece, channels, axis=-1)
    raise Failure(f"{video.path} has {have} channels, and the model takes {channels}; only 1 and 3 can be converted")


# Coded videos, by PyAV


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise Failure("reading and writing videos needs PyAV; install diffcore[cli]") from error
    return av


def _look_at_coded(path: Path) -> Video:
    from diffcore.unet3d.data.videos import check_pixels, stream_of

    av = _av()
    try:
        with av.open(os.path.abspath(path)) as container:  # else FFmpeg takes "10:30.mp4" for a URL
            stream = stream_of(container, path)
            rate = stream.average_rate
            count = int(stream.frames)
            first = next(container.decode(stream), None)
            if first is None:
                raise Failure(f"{path} holds no frame")
            aspect = float(stream.sample_aspect_ratio or 1)
            size = (first.height, max(1, round(first.width * aspect)))
            check_pixels(*size)
            size = size[::-1] if round(first.rotation / 90) % 2 else size
        if not count:
            with av.open(os.path.abspath(path)) as container:
                count = sum(packet.size > 0 for packet in container.demux(stream_of(container, path)))
    except (av.FFmpegError, OSError, EOFError, ValueError, IndexError) as error:
        raise Failure(f"{path} cannot be read as a video: {_reason(error)}; it is damaged or not a video") from error
    return Video(path, 1, count, size, 3, float(rate) if rate else None)


def _decoded(video: Video, size: Size) -> Iterator[Float32]:
    from diffcore.unet3d.data.videos import stream_of, upright

    av, taken, read = _av(), [], 0
    try:
        with av.open(os.path.abspath(video.path)) as container:
            stream = stream_of(container, video.path)
            aspect = float(stream.sample_aspect_ratio or 1)
            for frame in container.decode(stream):
                taken.append(upright(frame, aspect, size, [0.5, 0.5]))
                read += 1
                if len(taken) == BLOCK:
                    yield _scaled(np.stack(taken)[None])
                    taken = []
    except (av.FFmpegError, OSError, EOFError, ValueError, IndexError) as error:
        raise Failure(
            f"{video.path} breaks off after {read} frames: {_reason(error)}; repair it or make it anew"
        ) from error
    if taken:
        yield _scaled(np.stack(taken)[None])


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip().rstrip(".")


# Arrays


def _array(path: Path) -> npt.NDArray[Any]:
    """Return a .npy file as clips (B, T, H, W, C), of which nothing is read yet."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds for a file of another format
        reason = "it holds objects or is not a .npy file" if "bject" in str(error) else _reason(error)
        raise Failure(f"{path} cannot be read as numbers: {reason}; write it again with numpy.save") from error
    if not isinstance(found, np.ndarray) or found.ndim not in (4, 5):
        shape = getattr(found, "shape", type(found).__name__)
        grey = "; give a grey clip a last axis of one channel" if getattr(found, "ndim", 0) == 3 else ""
        raise Failure(f"{path} must have shape (T, H, W, C) or (B, T, H, W, C), got {shape}{grey}")
    clips = found[None] if found.ndim == 4 else found
    if 0 in clips.shape:
        raise Failure(f"{path} must have at least one frame, got shape {found.shape}")
    if clips.dtype != np.uint8 and not np.issubdtype(clips.dtype, np.floating):
        raise Failure(f"{path} must hold uint8 from 0 to 255, or floats in [-1, 1], got {clips.dtype}")
    return clips


def _slices(video: Video, size: Size) -> Iterator[Float32]:
    clips = _array(video.path) if video.path.suffix.lower() == ".npy" else sheets.read(video.path)
    for first in range(0, clips.shape[1], BLOCK):
        piece = np.asarray(clips[:, first : first + BLOCK])
        if piece.dtype != np.uint8:
            low, high = float(piece.min()), float(piece.max())
            if not (low >= -1.0 - _SLACK and high <= 1.0 + _SLACK):  # written so that NaN is outside
                raise Failure(
                    f"{video.path} must hold floats in [-1, 1], got values from {low:g} to {high:g} in frames {first} to "
                    f"{first + piece.shape[1] - 1}; scale them, x * 2 - 1 from [0, 1], or give uint8"
                )
        yield _resized(_scaled(piece), size)


def _scaled(pixels: npt.NDArray[Any]) -> Float32:
    if pixels.dtype != np.uint8:
        return pixels.astype(np.float32)
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def _resized(clips: Float32, size: Size) -> Float32:
    """Return frames scaled to cover `size` and cut to it in the middle."""
    height, width = clips.shape[2:4]
    if (height, width) == size:
        return clips
    from PIL import Image

    from diffcore.unet3d.data.videos import PIXELS

    scale = max(size[0] / height, size[1] / width)
    high, wide = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    if high * wide > PIXELS:
        raise Failure(
            f"frames of {height}x{width} are too narrow to cover {size[0]}x{size[1]}; cut them to another shape"
        )
    top, left = (high - size[0]) // 2, (wide - size[1]) // 2
    out = np.empty((*clips.shape[:2], *size, clips.shape[4]), dtype=np.float32)
    for place in np.ndindex(*clips.shape[:2], clips.shape[4]):
        picture = Image.fromarray(clips[place[0], place[1], ..., place[2]]).resize(
            (wide, high), Image.Resampling.BICUBIC
        )
        out[place[0], place[1], ..., place[2]] = np.asarray(picture)[top : top + size[0], left : left + size[1]]
    return np.clip(out, -1.0, 1.0)
