"""A moving picture and a contact sheet, by Pillow; each file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _files

Rows = list[tuple[str, npt.NDArray[np.float32]]]
"""A label, and frames (columns, H, W, C) or clips (columns, T, H, W, C) in [-1, 1], of 1 or 3 channels."""

LABEL, GAP = 14, 4
LEAST = 96
"""The pixels of a frame's longer side in a sheet, at least, where no zoom is asked for."""


def _pixels(frame: npt.NDArray[np.float32], zoom: int) -> npt.NDArray[np.uint8]:
    values = np.clip((np.nan_to_num(frame) + 1.0) * 127.5, 0.0, 255.0).round().astype(np.uint8)
    if values.shape[-1] == 1:
        values = np.repeat(values, 3, axis=-1)
    return np.repeat(np.repeat(values, zoom, axis=0), zoom, axis=1)


def zoom_for(height: int, width: int) -> int:
    """Return how many pixels a side of a pixel is wide, so that a frame can be seen: the longer side has at least `LEAST`.

    >>> zoom_for(16, 16), zoom_for(16, 64), zoom_for(128, 72)
    (6, 2, 1)
    """
    return max(1, -(-LEAST // max(height, width, 1)))


def page(rows: Rows, zoom: int) -> Any:
    """Return a picture of rows of frames: (label, (columns, H, W, C))."""
    from PIL import Image, ImageDraw

    columns = max(frames.shape[0] for _, frames in rows)
    height, width = rows[0][1].shape[1] * zoom, rows[0][1].shape[2] * zoom
    page = Image.new("RGB", (columns * (width + GAP) + GAP, len(rows) * (height + LABEL + GAP) + GAP), (18, 18, 22))
    pen = ImageDraw.Draw(page)
    for line, (label, frames) in enumerate(rows):
        top = GAP + line * (height + LABEL + GAP)
        pen.text((GAP, top), label, fill=(230, 230, 230))
        for column, frame in enumerate(frames):
            page.paste(Image.fromarray(_pixels(frame, zoom)), (GAP + column * (width + GAP), top + LABEL))
    return page


def write_gif(path: Path, rows: Rows, *, zoom: int = 2, milliseconds: int = 80) -> None:
    """Write rows of clips, (label, (columns, T, H, W, C)), as one moving picture, forwards and back."""
    length = rows[0][1].shape[1]
    pages = [page([(label, clips[:, frame]) for label, clips in rows], zoom) for frame in range(length)]
    order = [*range(length), *range(length - 2, 0, -1)]
    still = [pages[frame].quantize(128) for frame in order]
    moving: dict[str, Any] = {"append_images": still[1:], "duration": milliseconds, "loop": 0, "disposal": 1}
    with _files.replacing(path) as part:
        still[0].save(part, format="GIF", save_all=True, **moving)


def write_sheet(path: Path, rows: Rows, *, zoom: int | None = None) -> None:
    """Write rows of frames, (label, (columns, H, W, C)), as a contact sheet, by default as large as `zoom_for` says."""
    sheet = page(rows, zoom_for(*rows[0][1].shape[1:3]) if zoom is None else zoom)
    with _files.replacing(path) as part:
        sheet.save(part, format="PNG")
