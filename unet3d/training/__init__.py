"""Training of the network in torch and in JAX, from one config and one set of settings.

`train` is the run; `Settings` says how; `PRESETS` are the paper's.
"""

from diffcore.unet3d.training.loop import train
from diffcore.unet3d.training.settings import PRESETS, Settings

__all__ = ["PRESETS", "Settings", "train"]
