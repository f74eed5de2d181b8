"""The models that are included in the library, trained by it; they lie with their example, `unet3d.digits`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import Any

from diffcore import _check
from diffcore.unet3d import weights

MODELS = ("moving_digits", "moving_digits_causal")


def shipped(name: str) -> AbstractContextManager[Path]:
    """Return a context that gives the path of the weights file of an included model."""
    return resources.as_file(resources.files("diffcore.unet3d") / "digits" / f"{name}.safetensors")


def pretrained(
    name: str, backend: str = "numpy", *, dtype: Any = "float32", device: Any = None, checkpointing: bool = False
) -> Any:
    """Return an included model.

    Args:
        name: "moving_digits": clips of 16 frames of 32x32, one handwritten digit that glides and bounces; the
            condition is its class, an int in [0, 10), or 10 for any. "moving_digits_causal": the same for endless video,
            with a level for each frame and causal attention, for `video.extend(video.reusing(model, ...), method="forcing")`.
        backend, dtype, device, checkpointing: as in `unet3d.build`.

    Raises:
        ValueError: an unknown name.
        ImportError: a library is missing; the message says which extra to install.

    >>> import numpy as np
    >>> model = pretrained("moving_digits")
    >>> model(np.zeros((1, 2, 32, 32, 1), dtype=np.float32), 0.0, np.array([3])).shape
    (1, 2, 32, 32, 1)
    """
    _check.choice("unet3d.pretrained", "name", name, MODELS)
    with shipped(name) as path:
        return weights.load(path, backend, dtype=dtype, device=device, checkpointing=checkpointing)
