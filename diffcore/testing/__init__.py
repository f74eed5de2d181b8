"""The identities of diffusion as functions to run on a schedule, a sampler, a denoiser or a backend of one's own.

* a schedule: `check_schedule`, `check_scaling`, `check_bound`
* the process: `check_chapman_kolmogorov`, `check_bayes`, `check_reverse_variance`
* its rounding, against sixty digits: `check_level_precision`, `check_posterior_precision`
* predictions, losses, guidance: `check_conversions`, `check_loss_invariance`, `check_guidance_invariance`
* a denoiser in closed form: `check_denoiser`, `check_conditional`
* a plan: `check_composes`, `check_keeps_marginals`, `check_same_plan`, `check_ddim_eta1_is_ancestral`,
  `check_dpm1_is_ddim`, `check_eta`, `check_moments`, `check_corrector_bias`; its order: `order_of_convergence`, `check_order`
* a loop against the plan's table: `check_run`
* runs, bit for bit: `check_last_step_returns_x`, `check_deterministic`, `check_batch_equals_singles`,
  `check_interleaved`, `check_resumed`
* noise, a backend: `check_noise`, `check_backend`

and `drawn_by`, the exact moments of what a run draws with any affine denoiser and any constraint; `drawn_from`, of anything that is
affine in its noise.

A check raises AssertionError with a message that says which identity, where, and by how much. It needs no test runner;
the Hypothesis strategies in `diffcore.testing.strategies`, which draw what to check it on, need diffcore[test].
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffcore import _explained
from diffcore.testing.affine import drawn_by, drawn_from
from diffcore.testing.conformance import check_backend
from diffcore.testing.convergence import Convergence, check_order, order_of_convergence
from diffcore.testing.estimates import (
    check_bound,
    check_conditional,
    check_conversions,
    check_denoiser,
    check_guidance_invariance,
    check_loss_invariance,
)
from diffcore.testing.identities import (
    check_bayes,
    check_chapman_kolmogorov,
    check_reverse_variance,
    check_scaling,
    check_schedule,
)
from diffcore.testing.noise import check_noise
from diffcore.testing.plans import (
    check_composes,
    check_corrector_bias,
    check_ddim_eta1_is_ancestral,
    check_dpm1_is_ddim,
    check_eta,
    check_keeps_marginals,
    check_moments,
    check_same_plan,
)
from diffcore.testing.precision import check_level_precision, check_posterior_precision
from diffcore.testing.runs import (
    check_batch_equals_singles,
    check_deterministic,
    check_interleaved,
    check_last_step_returns_x,
    check_resumed,
    check_run,
)

if TYPE_CHECKING:
    from diffcore.testing import conformance, convergence, estimates, identities, precision, runs, strategies

__all__ = [
    "Convergence",
    "check_backend",
    "check_batch_equals_singles",
    "check_bayes",
    "check_bound",
    "check_chapman_kolmogorov",
    "check_composes",
    "check_conditional",
    "check_conversions",
    "check_corrector_bias",
    "check_ddim_eta1_is_ancestral",
    "check_denoiser",
    "check_deterministic",
    "check_dpm1_is_ddim",
    "check_eta",
    "check_guidance_invariance",
    "check_interleaved",
    "check_keeps_marginals",
    "check_last_step_returns_x",
    "check_level_precision",
    "check_loss_invariance",
    "check_moments",
    "check_noise",
    "check_order",
    "check_posterior_precision",
    "check_resumed",
    "check_reverse_variance",
    "check_run",
    "check_same_plan",
    "check_scaling",
    "check_schedule",
    "conformance",
    "convergence",
    "drawn_by",
    "drawn_from",
    "estimates",
    "identities",
    "order_of_convergence",
    "precision",
    "runs",
    "strategies",
]


def __getattr__(name: str) -> Any:
    if name == "strategies":  # the only part that needs hypothesis
        return import_module("diffcore.testing.strategies")
    raise _explained.missing(__name__, name)


_explained.face(__name__)
