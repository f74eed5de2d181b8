"""Captions of clips: a source whose labels say which caption a clip has."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffcore import _check, _files
from diffcore.unet3d.data.source import Float32, Source

FUNCTION = "data.captioned"
FILE, TEXT = ("file_name", "file"), ("text", "caption")
"""What a line of a file of captions calls its parts; the first ones are those of Hugging Face's metadata.jsonl."""


class Captioned(Source):
    """A source with captions: what `captioned` returns, which documents the arguments.

    `captions` are the different ones there are, and a clip's label is the number of its own; so the tokens of these captions are
    `tokens` of `training.train`.
    """

    def __init__(self, source: Source, captions: Sequence[str], known: Sequence[str] = ()) -> None:
        self.source = source
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(known))}
        self._labels = [numbers.setdefault(caption, len(numbers)) for caption in captions]
        self.captions = list(numbers)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of a clip."""
        return self.source.shape

    @property
    def fps(self) -> float | None:
        """How many frames of a clip are a second, where the source says."""
        return getattr(self.source, "fps", None)

    @property
    def classes(self) -> int:
        """How many different captions there are."""
        return len(self.captions)

    def __len__(self) -> int:
        return len(self.source)

    def clip(self, index: int, rng: np.random.Generator) -> Float32:
        """Return a clip of the source."""
        return self.source.clip(index, rng)

    def frame(self, index: int, rng: np.random.Generator) -> Float32:
        """Return a frame of the source."""
        return self.source.frame(index, rng)

    def label(self, index: int) -> int:
        """Return the number of the caption of clip `index`."""
        return self._labels[index]


def captioned(
    source: Source, captions: str | os.PathLike[str] | Sequence[str], *, known: Sequence[str] = ()
) -> Captioned:
    r"""Return a source whose labels are the numbers of its clips' captions, for networks with the condition "tokens".

    Args:
        source: of `unet3d.data`.
        captions: one text for each clip, in their order. Or, for a folder of videos, a file of JSON lines beside them,

                {"file_name": "walks/dog.mp4", "text": "a dog walks along a beach"}

            with paths from the folder of that file. Lines about other files are left out.
        known: captions that come first in `captions` of what is returned, so that one table of tokens serves several sources:
            those of the clips that are trained on, for clips to validate on.

    Returns:
        A `Captioned`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another number of captions than clips; a line that is no such object; a video without a caption.
        TypeError: a file for a source that has none, or captions that are no strings.

    >>> from diffcore.unet3d import data
    >>> clips = data.Arrays(np.zeros((3, 4, 8, 8, 1), np.uint8), frames=4)
    >>> found = captioned(clips, ["a dog", "a cat", "a dog"])
    >>> found.captions, [found.label(i) for i in range(3)]
    (['a dog', 'a cat'], [0, 1, 0])
    >>> captioned(clips, ["a cat", "a bird", "a cat"], known=found.captions).captions
    ['a dog', 'a cat', 'a bird']
    """
    _check.instance(FUNCTION, "source", source, Source, "a Source, such as data.videos(...)")
    if isinstance(known, str) or not all(isinstance(caption, str) for caption in known):
        raise _check.error(TypeError, FUNCTION, "known", "be strings, such as the captions of another source", known)
    if isinstance(captions, str | os.PathLike):
        return Captioned(source, _of_files(source, Path(captions)), known)
    if not all(isinstance(caption, str) for caption in captions):
        raise _check.error(TypeError, FUNCTION, "captions", "be strings, one for each clip, or a file", captions)
    if len(captions) != len(source):
        raise ValueError(f"{FUNCTION}: there are {len(captions)} captions for {len(source)} clips; give one for each")
    return Captioned(source, captions, known)


def _of_files(source: Any, path: Path) -> list[str]:
    paths = getattr(source, "paths", None)
    if paths is None:
        must = "be a list of texts for a source that is not of files"
        raise _check.error(TypeError, FUNCTION, "captions", must, str(path))
    known: dict[str, str] = {}
    for number, line in enumerate(_files.read(FUNCTION, path).decode("utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = (next((row[key] for key in keys if key in row), None) for keys in (FILE, TEXT))
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError
        except (ValueError, TypeError):
            raise ValueError(
                f'{FUNCTION}: line {number} of {path.name} is not like {{"file_name": "a.mp4", "text": "a dog walks"}}: '
                f"{_check.cut(line)}"
            ) from None
        known[os.path.abspath(path.parent / name)] = text
    found = [known.get(os.path.abspath(video)) for video in paths]
    missing = [Path(video).name for video, text in zip(paths, found, strict=True) if text is None]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{FUNCTION}: {path.name} has no caption of {', '.join(missing[:3])}{more}; each video needs a line"
        )
    return [text for text in found if text is not None]
