r"""How likely data is, and how likely a sampler is to draw what it drew, in nats per sample.

| function | returns |
|---|---|
| `ode` | log q(z) by the probability-flow ODE, with the state that it ends in |
| `bound` | the variational bound on -log p(x); `prior_kl`, `diffusion_continuous`, `reconstruction`, ...: its terms |
| `transition`, `trajectory` | log p of what a stochastic stage draws, and a whole run |
| `bits_per_dim` | nats as bits per element, for an explicit width of a bin |

See docs/likelihood.md.
"""

from diffcore import _explained
from diffcore.likelihood._bound import (
    Bound,
    bits_per_dim,
    bound,
    diffusion_continuous,
    diffusion_discrete,
    prior_kl,
)
from diffcore.likelihood._decoder import Bins, Density, reconstruction
from diffcore.likelihood._ode import LogProb, ode
from diffcore.likelihood._transition import trajectory, transition
from diffcore.likelihood._weights import discrete_weight

__all__ = [
    "Bins",
    "Bound",
    "Density",
    "LogProb",
    "bits_per_dim",
    "bound",
    "diffusion_continuous",
    "diffusion_discrete",
    "discrete_weight",
    "ode",
    "prior_kl",
    "reconstruction",
    "trajectory",
    "transition",
]

_explained.face(__name__)
