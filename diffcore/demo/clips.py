"""Real clips: windows of frames out of video files, or, without any, real handwritten digits set in motion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".gif"}


def read_video(path: Path, height: int, width: int, *, every: int = 2, limit: int = 480) -> Float32:
    """Return the frames of a video file, (N, height, width, 3) in [-1, 1].

    Args:
        path: any file that PyAV decodes.
        height, width: the size that frames are scaled to.
        every: keeps each such frame.
        limit: stops after as many frames of the file.

    Raises:
        ImportError: PyAV is missing; install diffcore[video].
        ValueError: the file holds no frame, or cannot be decoded.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("demo: reading videos needs PyAV; install diffcore[video]") from error
    frames = []
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number >= limit:
                    break
                if number % every == 0:
                    frames.append(frame.to_ndarray(width=width, height=height, format="rgb24", interpolation="AREA"))
    except (av.FFmpegError, OSError, IndexError, EOFError) as error:
        raise ValueError(f"{path.name} cannot be decoded ({error})") from None
    if not frames:
        raise ValueError(f"{path.name} holds no frame")
    return (np.stack(frames).astype(np.float32) / 127.5 - 1.0).astype(np.float32)


def windows(frames: Float32, length: int) -> Float32:
    """Return every run of `length` consecutive frames, (N - length + 1, length, ...)."""
    if frames.shape[0] < length:
        return np.zeros((0, length, *frames.shape[1:]), dtype=np.float32)
    return np.stack([frames[first : first + length] for first in range(frames.shape[0] - length + 1)])


def from_folder(folder: Path, length: int, height: int, width: int, say: Callable[[str], Any]) -> dict[str, Float32]:
    """Return the windows of each video in a folder, by name; a file that cannot be read is reported and skipped."""
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() not in SUFFIXES:
            continue
        try:
            clips = windows(read_video(path, height, width), length)
        except ValueError as error:
            say(f"  skipped {error}")
            continue
        if clips.shape[0]:
            found[path.stem] = clips
        else:
            say(f"  skipped {path.name}: fewer than {length} frames")
    return found


def moving_digits(length: int, height: int, width: int, *, count: int = 400, seed: int = 0) -> Float32:
    """Return scikit-learn's handwritten digits drifting across a dark frame, (count, length, height, width, 3).

    Raises:
        ImportError: scikit-learn is missing.
    """
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.float32) / 8.0 - 1.0
    scale = max(1, min(height, width) // 16)
    rng = np.random.default_rng(seed)
    clips = np.full((count, length, height, width, 3), -1.0, dtype=np.float32)
    size = 8 * scale
    for clip in clips:
        image = np.kron(images[rng.integers(len(images))], np.ones((scale, scale), dtype=np.float32))
        start = rng.uniform(0, [height - size, width - size])
        end = rng.uniform(0, [height - size, width - size])
        for number, part in enumerate(np.linspace(0.0, 1.0, length)):
            top, left = (start * (1.0 - part) + end * part).round().astype(int)
            clip[number, top : top + size, left : left + size] = image[..., None]
    return clips
