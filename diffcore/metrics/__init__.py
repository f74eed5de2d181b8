"""How good generated clips are: the Frechet distance of two sets of features, and PSNR and SSIM against known clips."""

from diffcore.metrics.frechet import (
    Moments,
    SmallSample,
    frechet_distance,
    frechet_distance_unbiased,
    frechet_gaussians,
    moments,
)
from diffcore.metrics.pictures import psnr, ssim

__all__ = [
    "Moments",
    "SmallSample",
    "frechet_distance",
    "frechet_distance_unbiased",
    "frechet_gaussians",
    "moments",
    "psnr",
    "ssim",
]
