"""The space-time 3D U-Net of Ho et al. 2022: one config, one weights file, an implementation each for NumPy, PyTorch and JAX.

`preset("tiny")` or `UNet3DConfig(...)` says what the network is, `build(config, backend="torch")` makes it, and
`model(z, log_snr, cond=None, images=0)` is its prediction for z (B, T, H, W, C). `save` and `load` keep it in a file that
all three read; `training.train` trains it; `text` makes captions its condition; `pretrained("moving_digits")` is one that is
trained; `digits` is how, an example.
"""

if __name__ != "diffcore.unet3d":
    raise ImportError(
        f"this folder is the package diffcore.unet3d and was imported as {__name__!r}; "
        "run `pip install -e .` and use `import diffcore.unet3d`"
    )

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffcore import _explained
from diffcore.unet3d.build import build
from diffcore.unet3d.config import PRESETS, UNet3DConfig, preset
from diffcore.unet3d.pretrained import MODELS, pretrained
from diffcore.unet3d.summary import summarise
from diffcore.unet3d.weights import load, save

if TYPE_CHECKING:
    from diffcore.unet3d import data, digits, text, training

__all__ = [
    "MODELS",
    "PRESETS",
    "UNet3DConfig",
    "build",
    "data",
    "digits",
    "load",
    "preset",
    "pretrained",
    "save",
    "summarise",
    "text",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in {"data", "digits", "text", "training"}:
        return import_module(f"diffcore.unet3d.{name}")
    raise _explained.missing("diffcore.unet3d", name)


_explained.face(__name__)
