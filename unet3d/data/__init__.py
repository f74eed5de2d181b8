"""Training data: clips (B, T, H, W, C) in [-1, 1], drawn as a pure function of (seed, step).

* `Arrays`, `array_file`: clips in memory, or in a .npy file that is read as it is needed.
* `videos`: a folder of video files of any length.
* `captioned`: a source with captions, of videos in a file beside them.
* `batch`: what a step trains on, with the independent frames that are appended for joint training.

`Source` is what they have in common, and what data of one's own has to offer.
"""

from diffcore import _explained
from diffcore.unet3d.data.arrays import Arrays, array_file
from diffcore.unet3d.data.batches import Batch, batch
from diffcore.unet3d.data.captions import Captioned, captioned
from diffcore.unet3d.data.source import Source
from diffcore.unet3d.data.videos import Videos, videos

__all__ = [
    "Source",
    "Arrays",
    "array_file",
    "Videos",
    "videos",
    "Captioned",
    "captioned",
    "Batch",
    "batch",
]

_explained.face(__name__)
