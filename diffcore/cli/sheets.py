"""Contact sheets: pictures of all frames, with a note inside that says where each is, so that they can be read back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _check, _files
from diffcore._pictures import GAP, LABEL, page, zoom_for
from diffcore.cli.report import Failure

COLUMNS = 16
KEY = "diffcore sheet"


def write(path: Path, clips: npt.NDArray[np.float32], zoom: int | None) -> None:
    """Write clips (B, T, H, W, C) as a PNG, at most 16 frames a row; without a zoom so large that frames can be seen."""
    from PIL.PngImagePlugin import PngInfo

    count, frames, height, width, channels = clips.shape
    zoom = zoom_for(height, width) if zoom is None else zoom
    rows = [
        (f"clip {clip}, frame {first}" if count > 1 else f"frame {first}", clips[clip, first : first + COLUMNS])
        for clip in range(count)
        for first in range(0, frames, COLUMNS)
    ]
    layout = {"clips": count, "frames": frames, "height": height, "width": width, "channels": channels, "zoom": zoom}
    about = PngInfo()
    about.add_text(KEY, json.dumps(layout))
    page(rows, zoom).save(path, format="PNG", pnginfo=about)


class Read(NamedTuple):
    """The clips (B, T, H, W, C) of a picture, and whether it had transparency."""

    clips: npt.NDArray[np.uint8]
    alpha: bool


def read(path: Path, background: tuple[int, int, int] = (0, 0, 0)) -> Read:
    """Return the clips (B, T, H, W, C) of a sheet that `write` wrote; of another picture one clip of one frame, turned as its
    EXIF data says, its transparency over a background."""
    from PIL import Image, ImageOps

    from diffcore.unet3d.data._coded import over_background

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of many pixels; below, of too many
            picture = Image.open(path)
        with picture:
            if 3 * picture.width * picture.height > _files.room(path):
                raise ValueError(
                    f"its {picture.height}x{picture.width} pixels take over 100 times its {path.stat().st_size} bytes"
                )
            text = getattr(picture, "text", {}).get(KEY)
            deep = picture.mode.startswith("I")  # 16 bits, which `convert` would cut off at 255
            alpha = picture.has_transparency_data and not deep
            shown = picture if text is not None else ImageOps.exif_transpose(picture)
            pixels = np.asarray(shown if deep else shown.convert("RGBA" if alpha else "RGB"))
            pixels = over_background(pixels, background) if alpha else pixels
    except Exception as error:  # Pillow raises many kinds for a damaged one
        raise Failure(f"{path} cannot be read as a picture: {_check.cut(str(error))}") from error
    if deep:
        pixels = np.repeat((pixels.astype(np.uint32) // 257).astype(np.uint8)[..., None], 3, axis=-1)
    if text is None:
        return Read(pixels[None, None], alpha)
    try:
        return Read(_cut(pixels, json.loads(text)), alpha)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Failure(
            f"{path} has a note on its frames that does not fit the picture ({_check.cut(str(error))}); write it anew"
        ) from error


def _cut(pixels: npt.NDArray[np.uint8], at: dict[str, Any]) -> npt.NDArray[np.uint8]:
    names = ("clips", "frames", "height", "width", "zoom")
    count, frames, height, width, zoom = (_check.integer("note", name, at[name], 1) for name in names)
    channels = _check.choice("note", "channels", at["channels"], (1, 3))
    lines = -(-frames // COLUMNS)
    down, right = height * zoom + LABEL + GAP, width * zoom + GAP
    takes = GAP + count * lines * down, GAP + min(frames, COLUMNS) * right
    if takes[0] > pixels.shape[0] or takes[1] > pixels.shape[1]:
        raise ValueError("it has more frames than there are pixels")
    clips = np.empty((count, frames, height, width, channels), dtype=np.uint8)
    for clip, frame in np.ndindex(count, frames):
        line, column = divmod(frame, COLUMNS)
        top, left = GAP + (clip * lines + line) * down + LABEL, GAP + column * right
        clips[clip, frame] = pixels[top : top + height * zoom : zoom, left : left + width * zoom : zoom, :channels]
    return clips
