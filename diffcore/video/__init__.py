r"""Long, smooth and large video from a denoiser of short, small clips: block after block, each conditioned on what is there.

| function | makes | each block knows |
|---|---|---|
| `extend` | more frames after those given | the last frames before it |
| `interpolate` | frames between those given | every k-th frame, and the last frames before it |
| `upscale` | larger frames | all frames averaged over pixels, and the last large frames before it |

Each takes a video, an array (B, T, H, W, C) or an iterator of such blocks, and returns a `Stream`, an iterator of blocks. So they
nest, and memory does not grow with the length of the video:

    long = dc.video.extend(base, plan, clip, frames=640, window=16, seed=7)
    smooth = dc.video.interpolate(between, plan, long, factor=4, window=16, seed=7)
    large = dc.video.upscale(detail, plan, smooth, factor=2, window=16, seed=7)
    for block in large:
        file.write(block)

A block's noise is a function of the seed and of the number of its first new frame in the video: the same call gives the same video,
and one that was stopped between two blocks goes on from `Stream.state`.

Source: Ho et al. 2022 (arXiv 2204.03458), sec. 3.1 and 4.3.3.
"""

from diffcore import _explained
from diffcore.video import orders
from diffcore.video._stream import Progress, Stream
from diffcore.video.extend import extend
from diffcore.video.interpolate import interpolate
from diffcore.video.reuse import Reusing, reusing
from diffcore.video.upscale import upscale
from diffcore.video.windows import Windowed, shuffled_noise, windowed

__all__ = [
    "Progress",
    "Reusing",
    "Stream",
    "Windowed",
    "extend",
    "interpolate",
    "orders",
    "reusing",
    "shuffled_noise",
    "upscale",
    "windowed",
]

_explained.face(__name__)
