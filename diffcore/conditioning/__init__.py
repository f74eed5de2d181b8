r"""Conditional sampling without a conditional model: part of x is known, or something measured of it.

| what | how it is used | gradients | on Gaussian data |
|---|---|---|---|
| `replacement(observed, mask)` | `dc.sample(..., constraint=...)` | none | biased: the rest does not see what is known |
| `projection(observed, ...)` | `dc.sample(..., transform_x=...)` | none | the same, for averages over pixels or frames |
| `reconstruction(denoise, ...)` | in place of `denoise`, beside replacement | one pullback a call | close at its best weight |
| `moment_matching(denoise, ...)` | in place of `denoise` | one pullback an iteration | exact for any linear measurement |
| `observations(posteriors, prior)` | in place of a denoiser | none, or D pullbacks a call | exact, for independent observations |

`frames` makes masks of whole frames; `downsample` and `frame_average` are measurements, and so is any differentiable
function x -> array. See docs/conditioning.md for how far each is from the truth.

Source: Ho et al. 2022 (arXiv 2204.03458), sec. 3.1; Finzi et al. 2023 (arXiv 2306.07261); Boys et al. 2023 (arXiv
2310.06721); Rozet et al. 2024 (arXiv 2405.13712).
"""

from diffcore.conditioning.measurements import Downsample, FrameAverage, downsample, frame_average, frames
from diffcore.conditioning.moment_matching import MomentMatching, moment_matching
from diffcore.conditioning.products import Product, change_of_prior, observations, product
from diffcore.conditioning.projection import Projection, projection
from diffcore.conditioning.reconstruction import Reconstruction, reconstruction
from diffcore.conditioning.replacement import Replacement, replacement

__all__ = [
    "Downsample",
    "FrameAverage",
    "MomentMatching",
    "Product",
    "Projection",
    "Reconstruction",
    "Replacement",
    "change_of_prior",
    "downsample",
    "frame_average",
    "frames",
    "moment_matching",
    "observations",
    "product",
    "projection",
    "reconstruction",
    "replacement",
]
