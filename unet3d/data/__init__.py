"""Training data: clips (B, T, H, W, C) in [-1, 1], drawn as a pure function of (seed, step).

* `moving_digits`: real handwritten digits that glide and bounce, made in a second; `moving_digits_truth` says where
  each of them is.
* `Arrays`, `array_file`: clips in memory, or in a .npy file that is read as it is needed.
* `videos`: a folder of video files of any length.
* `batch`: what a step trains on, with the independent frames that are appended for joint training.

`Source` is what they have in common, and what data of one's own has to offer.
"""

from diffcore.unet3d.data.arrays import Arrays, array_file
from diffcore.unet3d.data.batches import Batch, batch
from diffcore.unet3d.data.digits import MovingDigits, moving_digits, moving_digits_truth
from diffcore.unet3d.data.source import Source
from diffcore.unet3d.data.videos import Videos, videos

__all__ = [
    "Source",
    "Arrays",
    "array_file",
    "MovingDigits",
    "moving_digits",
    "moving_digits_truth",
    "Videos",
    "videos",
    "Batch",
    "batch",
]
