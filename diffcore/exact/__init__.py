"""Exact truth: distributions of data whose denoisers are in closed form, and the moments of what a sampler draws.

A distribution is called as a denoiser, `data(z, log_snr)` -> E[x | z_t], on arrays of any library; its score,
likelihood, posterior covariance and conditional distributions are methods. See docs/exact.md.
"""

from diffcore import _explained
from diffcore.exact._parts import LowRank
from diffcore.exact.empirical import Empirical
from diffcore.exact.gaussian import Gaussian
from diffcore.exact.mixture import Mixture
from diffcore.exact.moments import Moments, moments

__all__ = ["Empirical", "Gaussian", "LowRank", "Mixture", "Moments", "moments"]

_explained.face(__name__)
