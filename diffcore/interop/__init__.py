"""Other libraries' samplers as plans, and their networks as denoisers; neither library is imported or needed to load this.

* `diffusers`: a scheduler, its noise levels and its network
* `k_diffusion`: a function `sample_*(model, x, sigmas, ...)` and its model, as in k-diffusion and ComfyUI

Both compute with PyTorch, which is imported when a plan is read.
"""

from diffcore.interop import diffusers, k_diffusion

__all__ = ["diffusers", "k_diffusion"]
