"""Training of the network in torch and in JAX, from one config and one set of settings.

`train` is the run; `step_of` a folder says where the next one goes on; `Settings` says how; `PRESETS` are the paper's.
"""

from diffcore import _explained
from diffcore.unet3d.training.loop import step_of, train
from diffcore.unet3d.training.settings import PRESETS, Settings

__all__ = ["PRESETS", "Settings", "step_of", "train"]

_explained.face(__name__)
