"""Coded videos, by PyAV: opened as files, decoded with their alpha, and each frame as a person sees it: upright, with square
pixels, in the colours that its tags say, over a background.

Colours are those of RGB. Which matrix and range a frame was coded with is read from its tags; without them it is taken for
BT.709 where it is wider than 1279 or higher than 576 pixels, as players do, else for BT.601, and for limited range.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _check, _files

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

SUFFIXES = frozenset(
    ".3gp .avi .flv .gif .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogg .ogv .ts .vob .webm .wmv .y4m".split()  # noqa: SIM905
)
"""What a video's name ends with, in capitals or not; other files of a folder are not looked at."""

FORMATS = "asf,avi,dv,flv,gif,h264,hevc,m4v,matroska,mov,mpeg,mpegts,mpegvideo,mxf,ogg,yuv4mpegpipe"
"""FFmpeg's names of the formats that are read: those whose frames are in the file itself."""

PIXELS = 2**26
"""Of the largest frame, which has square pixels and covers what it is cut to: 8K has half as many."""

PART = 2**16
"""Pixels that are mixed with a background at a time: they stay in the cache, and most parts are wholly opaque or transparent."""

BACKGROUNDS: dict[str, Colour] = {"black": (0, 0, 0), "white": (255, 255, 255), "grey": (128, 128, 128)}
"""What lies under transparent pixels, by name."""

MATRICES = {1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 9: "BT.2020", 10: "BT.2020"}
"""The names of ITU-T H.273's matrix coefficients that FFmpeg converts."""

_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read the alpha beside a stream, which FFmpeg's own leave out."""


def av_() -> Any:
    """Return PyAV."""
    try:
        import av
    except ImportError as error:
        raise ImportError("data.videos: reading videos needs PyAV; install diffcore[video]") from error
    return av


def opened(path: Path) -> Any:
    """Open a file; as an absolute path, since FFmpeg takes "10:30.mp4" for a URL, and none that only names other files, which
    FFmpeg would open, or draws text.

    Raises:
        ValueError: a file of none of `FORMATS`.
    """
    try:
        return av_().open(os.path.abspath(path), options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})
    except av_().error.ArgumentError:
        raise ValueError("it holds no video of a known format, such as mp4, webm or gif") from None


def broken() -> tuple[type[Exception], ...]:
    """Return what reading a broken file raises."""
    return (av_().FFmpegError, OSError, EOFError, ValueError, IndexError)


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


def beside(stream: Any) -> bool:
    """Return whether a stream has its alpha in a second one beside it, as in WebM."""
    return bool(stream.metadata.get("alpha_mode") == "1")


def frames_of(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the frames of an open stream, with the alpha that WebM keeps beside it."""
    av, name = av_(), _ALPHA.get(stream.codec_context.name, "")
    if not beside(stream) or name not in av.codecs_available:
        yield from container.decode(stream)
        return
    decoder = av.CodecContext.create(name, "r")
    decoder.extradata, decoder.options = stream.codec_context.extradata, stream.codec_context.options
    for packet in container.demux(stream):
        yield from decoder.decode(packet if packet.size else None)


def check_pixels(height: int, width: int) -> None:
    """Raise ValueError for frames that no file is meant to have, upright and with square pixels, or scaled to cover others."""
    if height * width > PIXELS:
        raise ValueError(f"its frames would have {height}x{width} pixels, over {PIXELS}; cut them to another shape")


def background_of(function: str, background: str | Sequence[int]) -> Colour:
    """Return red, green and blue, 0 to 255, of a background.

    >>> background_of("data.videos", "white"), background_of("data.videos", (0, 128, 255))
    ((255, 255, 255), (0, 128, 255))
    """
    if isinstance(background, str):
        _check.choice(function, "background", background, BACKGROUNDS, hint="or give (red, green, blue), 0 to 255")
        return BACKGROUNDS[background]
    must = f"be one of {sorted(BACKGROUNDS)}, or (red, green, blue), ints from 0 to 255"
    if not isinstance(background, Sequence):
        raise _check.error(TypeError, function, "background", must, background)
    whole = [part for part in background if isinstance(part, int | np.integer) and not isinstance(part, bool)]
    if len(background) != 3 or len(whole) != 3 or not all(0 <= part <= 255 for part in whole):
        raise _check.error(ValueError, function, "background", must, background)
    return int(whole[0]), int(whole[1]), int(whole[2])


# How a frame is seen


def alpha_of(frame: Any) -> bool:
    """Return whether a frame has transparency."""
    return bool(frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components))


def colours(frame: Any) -> str:
    """Return how the colours of a frame are coded, in words: "BT.709, limited range"."""
    if frame.format.is_rgb or frame.format.has_palette:
        return "RGB"
    if len(frame.format.components) < 3:
        return "grey"
    matrix, full = MATRICES.get(int(frame.colorspace)), _full(frame)
    tagged = matrix or f"no tag, read as {'BT.709' if _large(frame) else 'BT.601'}"
    return f"{tagged}, {'full' if full else 'limited'} range"


def hdr(frame: Any) -> bool:
    """Return whether a frame's brightness goes beyond what RGB has (PQ or HLG), which is shown as it is coded."""
    return int(frame.color_trc) in (16, 18)


def _full(frame: Any) -> bool:
    return int(frame.color_range) == 2 or frame.format.name.startswith("yuvj")


def _large(frame: Any) -> bool:
    return bool(frame.width >= 1280 or frame.height > 576)


def _turned(frame: Any) -> tuple[bool, bool, bool]:
    """Return whether rows become columns, and then whether up becomes down, and left right: a frame's display matrix."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].astype(np.int64).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):  # x' = a x + c y, y' = b x + d y
        return False, d < 0, a < 0
    return True, b < 0, c < 0


def sides(frame: Any, aspect: float) -> tuple[int, int]:
    """Return (H, W) of a frame as it is seen: upright, with square pixels."""
    height, width = frame.height, max(1, round(frame.width * aspect))
    return (width, height) if _turned(frame)[0] else (height, width)


def upright(
    frame: Any, aspect: float, size: tuple[int, int], where: Sequence[float], background: Colour = BACKGROUNDS["black"]
) -> Pixels:
    """Return a frame as it is seen, over a background, scaled to cover `size`, and cut to it at `where`, two fractions:
    (H, W, 3)."""
    turned, over, mirrored = _turned(frame)
    shape = np.array([frame.height, frame.width * aspect])
    shape = shape[::-1] if turned else shape
    scale = max(np.array(size) / shape)
    covering = np.maximum(np.rint(shape * scale).astype(int), size)
    check_pixels(*covering.tolist())
    height, width = (int(side) for side in (covering[::-1] if turned else covering))
    how = {"src_colorspace": "ITU709"} if int(frame.colorspace) == 2 and _large(frame) else {}
    if alpha_of(frame):
        frame, how = _composed(frame, background, how), {}
    way = "AREA" if scale < 1.0 else "BICUBIC"
    pixels = frame.to_ndarray(width=width, height=height, format="rgb24", interpolation=way, **how)
    pixels = np.swapaxes(pixels, 0, 1) if turned else pixels
    pixels = pixels[:: -1 if over else 1, :: -1 if mirrored else 1]
    top, left = (int(part * (side - cut + 1)) for part, side, cut in zip(where, covering, size, strict=True))
    cut: Pixels = pixels[top : top + size[0], left : left + size[1]]
    return cut


def _composed(frame: Any, background: Colour, how: dict[str, Any]) -> Any:
    """Return a frame over a background; before it is scaled, since hidden colours would mix with those that are seen."""
    return av_().VideoFrame.from_ndarray(over_background(frame.to_ndarray(format="rgba", **how), background), "rgb24")


def over_background(rgba: Pixels, background: Colour) -> Pixels:
    """Return pixels (..., 4) over a background, (..., 3): alpha c + (1 - alpha) b, in the coded values, as players do.

    >>> over_background(np.array([[200, 60, 30, 255], [9, 9, 9, 0], [200, 0, 0, 51]], np.uint8), (0, 0, 100)).tolist()
    [[200, 60, 30], [0, 0, 100], [40, 0, 80]]
    """
    mixed = np.empty((*rgba.shape[:-1], 3), dtype=np.uint8)
    seen, out, under = rgba.reshape(-1, 4), mixed.reshape(-1, 3), np.array(background, dtype=np.uint8)
    for first in range(0, len(seen), PART):
        part = seen[first : first + PART]
        if (opaque := int(part[:, 3].min())) == 255 or int(part[:, 3].max()) == 0:
            out[first : first + PART] = part[:, :3] if opaque else under
            continue
        alpha = part[:, 3:].astype(np.float32) / np.float32(255.0)
        out[first : first + PART] = np.rint(alpha * part[:, :3] + (1.0 - alpha) * under.astype(np.float32))
    return mixed
