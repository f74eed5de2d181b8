"""Exact truth: distributions whose denoisers are in closed form, and the exact moments of what a sampler draws from
them.

Each distribution is called as a denoiser, `data(z, log_snr)` -> E[x | z_t], on arrays of any library.
"""

from diffcore.exact._spectrum import LowRank
from diffcore.exact.empirical import Empirical
from diffcore.exact.gaussian import Gaussian
from diffcore.exact.mixture import Mixture
from diffcore.exact.moments import moments

__all__ = ["Empirical", "Gaussian", "LowRank", "Mixture", "moments"]
