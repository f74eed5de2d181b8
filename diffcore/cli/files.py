"""Reading videos as blocks of frames (B, n, H, W, C) in [-1, 1], whatever file they are in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore.cli import sheets
from diffcore.cli.report import Failure, absent, note, usage

Float32 = npt.NDArray[np.float32]
Size = tuple[int, int]

BLOCK = 16
"""Frames that are decoded at once."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Of ITU-R BT.601: what a grey model sees of a colour."""
_SLACK = 1e-4
ZOOMED = "diffcore zoom={}"
"""The comment of a file whose pixels were written as squares of so many."""


class Video(NamedTuple):
    """A video file that was found sound as far as it was looked at.

    Fields:
        path: of the file.
        clips: how many it holds, side by side in time.
        frames: of each that are read, as far as the file says.
        size: (H, W) of a frame, upright and with square pixels, without the zoom that it was written with here.
        channels: 1 or 3, or what a .npy file has.
        fps: at how many a second they are read, or None.
        times: when the frames of the file show, for a coded one.
        evenly: whether frames are read at equal times, rather than each once.
        colours: how they are coded, in words.
        alpha: whether it has transparency.
        background: what lies under it, (red, green, blue) from 0 to 255.
    """

    path: Path
    clips: int
    frames: int
    size: Size
    channels: int
    fps: float | None
    times: Any = None
    evenly: bool = False
    colours: str = ""
    alpha: bool = False
    background: tuple[int, int, int] = (0, 0, 0)


def readable() -> frozenset[str]:
    """Return what the name of a video ends with."""
    from diffcore.unet3d.data._coded import SUFFIXES

    return SUFFIXES | {".npy", ".png"}


def look(path: Path, fps: float | None = None, background: str = "black", *, option: str = "--in-fps") -> Video:
    """Return the properties of a video file; refuse any other file.

    With `fps`, which `option` gave, or where its rate varies, frames are read at equal times; with a varying rate and without
    `fps`, as many a second as there are on average.
    """
    under = colour(background)
    if not path.exists():
        usage(absent(path))
    if path.is_dir():
        usage(f"{path} is a folder; give one video file")
    if not path.is_file():
        usage(f"{path} is a pipe or a device; give one video file")
    kind = path.suffix.lower()
    if kind not in readable():
        known = " ".join(sorted(readable()))
        usage(f"{path} must have the suffix of a video, one of {known}, got {kind or 'none'}")
    if path.stat().st_size == 0:
        raise Failure(f"{path} is empty, 0 bytes; make it again")
    if kind in {".npy", ".png"} and fps is not None:
        usage(
            f"{path} has no frame rate, so that no frames at {fps:g} a second can be taken from it; leave {option} out"
        )
    if kind == ".npy":
        clips = _array(path)
        return Video(path, clips.shape[0], clips.shape[1], (clips.shape[2], clips.shape[3]), clips.shape[4], None)
    if kind == ".png":
        found = sheets.read(path, under)
        (count, frames, height, width, channels), alpha = found.clips.shape, found.alpha
        return Video(path, count, frames, (height, width), channels, None, alpha=alpha, background=under)
    return _look_at_coded(path, fps, under)


def colour(text: str) -> tuple[int, int, int]:
    """Return the background that "white" or "255,128,0" says."""
    from diffcore.unet3d.data._coded import BACKGROUNDS, background_of

    parts = [part.strip() for part in text.split(",")]
    given: Any = [int(part) for part in parts] if all(part.isdecimal() for part in parts) else text
    try:
        return background_of("", given)
    except ValueError:
        usage(f"--background must be one of {', '.join(BACKGROUNDS)}, or red,green,blue such as 255,128,0, got {text}")


def say(video: Video, *, option: str | None = "--in-fps") -> None:
    """Say on stderr what is not read as it is in the file; `option` takes frames at equal times."""
    from diffcore.unet3d.data._times import rates_of

    if video.times is not None and video.times.rates is not None:
        note(
            f"note: {video.path} has a variable rate, {rates_of(video.times.rates)}; it is read at equal times, {video.fps:.4g} a "
            f"second{f' ({option} says otherwise)' if option else ''}"
        )
    name = {(0, 0, 0): "black", (255, 255, 255): "white"}.get(video.background, str(video.background))
    if video.alpha:
        note(f"note: {video.path} has transparency, which lies over {name} (--background says otherwise)")
    elif video.background != (0, 0, 0):
        note(f"note: {video.path} has no transparency, so that --background {name} does nothing")


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


def enlarged(have: Size, size: Size) -> bool:
    """Return whether frames have to become larger to cover a size."""
    return have[0] < size[0] or have[1] < size[1]


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
    way = "only 1 and 3 can be converted"
    if have > 4 and video.frames in (1, 3):
        way = "its channels must be last, and if they are before the frames: numpy.moveaxis(clips, -4, -1)"
    raise Failure(f"{video.path} has {have} channels, where {channels} can be used; {way}")


# Coded videos, by PyAV


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise Failure("reading and writing videos needs PyAV; install diffcore[cli]") from error
    return av


def _look_at_coded(path: Path, fps: float | None, background: tuple[int, int, int]) -> Video:
    from diffcore.unet3d.data import _coded, _times

    _av()
    try:
        times = _times.times_of(path)
        with _coded.opened(path) as container:
            stream = _coded.stream_of(container, path)
            first = next(_coded.frames_of(container, stream), None)
            if first is None:
                raise Failure(f"{path} holds no frame")
            size = _coded.sides(first, float(stream.sample_aspect_ratio or 1))
            _coded.check_pixels(*size)
            zoom = writers_zoom(container.metadata.get("comment", ""), size)
            colours, alpha = _coded.colours(first), _coded.alpha_of(first)
            if _coded.beside(stream) and not alpha:
                note(f"note: {path} has transparency that this PyAV cannot decode; its frames are taken as opaque")
            if _coded.hdr(first):
                colours += ", HDR, shown without tone mapping"
    except _coded.broken() as error:
        raise Failure(f"{path} cannot be read as a video: {_reason(error)}; it is damaged or not a video") from error
    if fps is not None and not times.seconds:
        raise Failure(
            f"{path} does not say when its frames show, so that none at {fps:g} a second can be taken from it"
        )
    evenly = times.rates is not None or fps is not None
    rate = times.fps if fps is None else fps
    count = _times.counted(times.seconds, rate or 1.0, times.fps) if evenly else times.frames
    size = size[0] // zoom, size[1] // zoom
    return Video(path, 1, count, size, 3, rate, times, evenly, colours, alpha, background)


def writers_zoom(comment: str, size: Size) -> int:
    """Return the zoom that the comment of a file says it was written with, 1 for any other file."""
    found = re.fullmatch(ZOOMED.format(r"(\d{1,2})"), comment)
    zoom = int(found[1]) if found else 1
    return zoom if zoom > 1 and size[0] % zoom == size[1] % zoom == 0 else 1


def _decoded(video: Video, size: Size) -> Iterator[Float32]:
    from diffcore.unet3d.data import _coded, _times

    taken, read, last, pixels = [], 0, None, None
    try:
        with _coded.opened(video.path) as container:
            stream = _coded.stream_of(container, video.path)
            aspect = float(stream.sample_aspect_ratio or 1)
            frames = _coded.frames_of(container, stream)
            if video.evenly:
                own, unit = video.times.fps, float(stream.time_base)
                shown = ((frame.pts * unit, frame) for frame in frames if frame.pts is not None)
                lasts = video.times.seconds - (video.times.frames - 1) / own
                frames = _times.evenly(shown, video.fps or own, own, lasts)
            for frame in frames:
                if pixels is None or frame is not last:
                    pixels = _coded.upright(frame, aspect, size, (0.5, 0.5), video.background)
                taken.append(pixels)
                last, read = frame, read + 1
                if len(taken) == BLOCK:
                    yield _scaled(np.stack(taken)[None])
                    taken = []
    except _coded.broken() as error:
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
    if found.shape[-1] > 4 and found.shape[-3] in (1, 3):  # frames of one or three rows are none
        raise Failure(
            f"{path} must have shape (T, H, W, C) or (B, T, H, W, C), got {found.shape}, whose channels are before its rows; "
            f"put them last: numpy.moveaxis(clips, -3, -1)"
        )
    clips = found[None] if found.ndim == 4 else found
    if 0 in clips.shape:
        raise Failure(f"{path} must have at least one frame, got shape {found.shape}")
    if clips.dtype != np.uint8 and not np.issubdtype(clips.dtype, np.floating):
        raise Failure(f"{path} must hold uint8 from 0 to 255, or floats in [-1, 1], got {clips.dtype}")
    return clips


def _slices(video: Video, size: Size) -> Iterator[Float32]:
    clips = (
        _array(video.path) if video.path.suffix.lower() == ".npy" else sheets.read(video.path, video.background).clips
    )
    for first in range(0, clips.shape[1], BLOCK):
        piece = np.asarray(clips[:, first : first + BLOCK])
        if piece.dtype != np.uint8:
            low, high = float(piece.min()), float(piece.max())
            if not (low >= -1.0 - _SLACK and high <= 1.0 + _SLACK):  # written so that NaN is outside
                raise Failure(
                    f"{video.path} must hold floats in [-1, 1], got values from {low:g} to {high:g} in frames {first} to "
                    f"{first + piece.shape[1] - 1}; scale them, x * 2 - 1 from [0, 1], or give uint8"
                )
            if first == 0 and 0.0 <= low < high:
                note(
                    f"note: {video.path} is read as floats in [-1, 1], and its first ones are from {low:.3g} to {high:.3g}, all "
                    f"light; if black is 0 there, give x * 2 - 1"
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

    from diffcore.unet3d.data._coded import PIXELS

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
