r"""Inverse problems without a conditional model: part of x is known, or something measured of it.

With y = A x + noise of deviation s, what every method does is one line, with its own guess of the covariance of x given z_t,
C = (sigma^2 / alpha) J, J = d x-hat / dz:

| in place of `denoise` | x~ - x-hat | gradients | exact on Gaussian data |
|---|---|---|---|
| `reconstruction` | w alpha J^T A^T (y - A x-hat) | one pullback | for one weight a level, one number |
| `dps` | w J^T A^T (y - A x-hat) / norm, or C A^T (y - A x-hat) / s^2 | one pullback | no |
| `pigdm` | C A^T (r^2 A A^T + s^2)^{-1} (y - A x-hat) | one pullback | of independent elements |
| `tmpd` | C A^T diag(A C A^T 1 + s^2)^{-1} (y - A x-hat) | two pullbacks | where measured numbers are independent |
| `moment_matching` | C A^T (A C A^T + s^2)^{-1} (y - A x-hat) | one pullback an iteration | yes |
| `diffpir` | r^2 A^T (r^2 A A^T + s^2)^{-1} (y - A x-hat) | none | of independent elements |

| as `constraint=` (`projection`: `transform_x=`) | what is set | gradients |
|---|---|---|
| `replacement`, with `repaint(plan)` | known elements, to their noised observation | none |
| `ilvr`, `ddrm` | measured directions of the state, without and with noise of the measurement | none |
| `daps` | the whole state, anew from x given z_t and y | none |
| `projection` | A x-hat | none |

`twisted` is none of these: particles with weights, exact as their number grows. `observations`, `product` and
`change_of_prior` compose the posteriors of independent observations, each given by a denoiser.

`frames` makes masks of whole frames; `downsample`, `frame_average` and `linear` are measurements, and so is any differentiable
function x -> array; `LinearMeasurement` says what one of your own may have. See docs/conditioning.md for how far each is from
the truth.

Source: Daras et al. 2024 (arXiv 2410.00083) for a survey; each file names its own.
"""

from diffcore import _explained
from diffcore.conditioning.daps import daps
from diffcore.conditioning.ddrm import ddrm, ilvr
from diffcore.conditioning.diffpir import DiffPIR, diffpir
from diffcore.conditioning.dps import DPS, dps, dps_plan
from diffcore.conditioning.linear import Linear, linear
from diffcore.conditioning.measurements import (
    Downsample,
    FrameAverage,
    LinearMeasurement,
    Svd,
    downsample,
    frame_average,
    frames,
)
from diffcore.conditioning.moment_matching import MomentMatching, moment_matching
from diffcore.conditioning.pigdm import PiGDM, pigdm
from diffcore.conditioning.products import Product, change_of_prior, observations, product
from diffcore.conditioning.projection import Projection, projection
from diffcore.conditioning.reconstruction import Reconstruction, reconstruction
from diffcore.conditioning.repaint import repaint
from diffcore.conditioning.replacement import Replacement, replacement
from diffcore.conditioning.tmpd import TMPD, tmpd
from diffcore.conditioning.twisted import Particles, twisted

__all__ = [
    "DPS",
    "TMPD",
    "DiffPIR",
    "Downsample",
    "FrameAverage",
    "Linear",
    "LinearMeasurement",
    "MomentMatching",
    "Particles",
    "PiGDM",
    "Product",
    "Projection",
    "Reconstruction",
    "Replacement",
    "Svd",
    "change_of_prior",
    "daps",
    "ddrm",
    "diffpir",
    "downsample",
    "dps",
    "dps_plan",
    "frame_average",
    "frames",
    "ilvr",
    "linear",
    "moment_matching",
    "observations",
    "pigdm",
    "product",
    "projection",
    "reconstruction",
    "repaint",
    "replacement",
    "tmpd",
    "twisted",
]

_explained.face(__name__)
