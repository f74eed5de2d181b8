"""Contact sheets: pictures of all frames, with a note inside that says where each is, so that they can be read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore._pictures import GAP, LABEL, page
from diffcore.cli.report import Failure

COLUMNS = 16
KEY = "diffcore sheet"


def write(path: Path, clips: npt.NDArray[np.float32], zoom: int) -> None:
    """Write clips (B, T, H, W, C) as a PNG, at most 16 frames a row."""
    from PIL.PngImagePlugin import PngInfo

    count, frames, height, width, channels = clips.shape
    rows = [
        (f"clip {clip + 1}, frame {first}" if count > 1 else f"frame {first}", clips[clip, first : first + COLUMNS])
        for clip in range(count)
        for first in range(0, frames, COLUMNS)
    ]
    layout = {"clips": count, "frames": frames, "height": height, "width": width, "channels": channels, "zoom": zoom}
    about = PngInfo()
    about.add_text(KEY, json.dumps(layout))
    page(rows, zoom).save(path, format="PNG", pnginfo=about)


def read(path: Path) -> npt.NDArray[np.uint8]:
    """Return the clips (B, T, H, W, C) of a sheet that `write` wrote; of another picture one clip of one frame."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            text = getattr(picture, "text", {}).get(KEY)
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise Failure(f"{path} cannot be read as a picture: {error}") from error
    if text is None:
        return pixels[None, None]
    try:
        return _cut(pixels, json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(
            f"{path} has a note on its frames that does not fit the picture ({error}); write it anew"
        ) from error


def _cut(pixels: npt.NDArray[np.uint8], at: dict[str, Any]) -> npt.NDArray[np.uint8]:
    zoom, height, width = at["zoom"], at["height"], at["width"]
    clips = np.empty((at["clips"], at["frames"], height, width, at["channels"]), dtype=np.uint8)
    lines = -(-at["frames"] // COLUMNS)
    for clip, frame in np.ndindex(at["clips"], at["frames"]):
        line, column = divmod(frame, COLUMNS)
        top = GAP + (clip * lines + line) * (height * zoom + LABEL + GAP) + LABEL
        left = GAP + column * (width * zoom + GAP)
        cell = pixels[top : top + height * zoom : zoom, left : left + width * zoom : zoom, : at["channels"]]
        clips[clip, frame] = cell
    return clips
