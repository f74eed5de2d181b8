"""An example from data to figures: clips of handwritten digits that glide and bounce, and the included model of them.

* `moving_digits`: a source of clips for training, made in a second; `moving_digits_truth`: where each digit is;
  `captions`: what a clip shows in words.
* `features`: the space in which clips are compared; `legibility`, `identity_held`, `speed`, `straightness`,
  `directions`: figures.
* `python -m diffcore.unet3d.digits.train` trains the included model, `python -m diffcore.unet3d.digits.evaluate` evaluates it, and
  `unet3d.pretrained("moving_digits")` returns it; docs/moving_digits.md is its card.
"""

from diffcore import _explained
from diffcore.unet3d.digits.captions import captions
from diffcore.unet3d.digits.data import MovingDigits, moving_digits, moving_digits_truth
from diffcore.unet3d.digits.features import (
    Legibility,
    directions,
    features,
    identity_held,
    legibility,
    speed,
    straightness,
)

__all__ = [
    "MovingDigits",
    "moving_digits",
    "moving_digits_truth",
    "captions",
    "Legibility",
    "directions",
    "features",
    "identity_held",
    "legibility",
    "speed",
    "straightness",
]

_explained.face(__name__)
