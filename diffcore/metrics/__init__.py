"""How good generated clips are: the Frechet distance of two sets of features, which `features` has some of, PSNR and SSIM, and
changes at seams."""

from diffcore import _explained
from diffcore.metrics import features
from diffcore.metrics.frechet import (
    Moments,
    SmallSample,
    frechet_distance,
    frechet_distance_unbiased,
    frechet_gaussians,
    moments,
)
from diffcore.metrics.pictures import psnr, ssim
from diffcore.metrics.seams import Seams, seams

__all__ = [
    "Moments",
    "Seams",
    "SmallSample",
    "features",
    "frechet_distance",
    "frechet_distance_unbiased",
    "frechet_gaussians",
    "moments",
    "psnr",
    "seams",
    "ssim",
]

_explained.face(__name__)
