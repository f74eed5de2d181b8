r"""Objectives beyond denoising: flow maps, consistency models, learned variances, couplings, a learned schedule.

| function | trains | needs |
|---|---|---|
| `meanflow` | the average velocity between two levels | one product with the Jacobian |
| `split_meanflow`, `shortcut` | the same, by two shorter steps | three calls |
| `lagrangian` | the same, by the velocity at the end (LSD) | one product with the Jacobian, two calls |
| `consistency` | a consistency model in continuous time (sCM): x-hat along a trajectory | one product with the Jacobian |
| `consistency_pair` | the same at two levels (consistency training and distillation, ECT) | two calls |
| `hybrid`, `variance_bound` | a denoiser that predicts its own variance; `sample_learned_variance` | one call |
| `contrastive` | a denoiser, away from the targets of other samples | one call |
| `optimal_transport` | noise coupled with data, for straighter paths | SciPy, on the host |
| `schedule_variance` | the schedule, to the least variance of a bound | the errors of a batch |

Networks take (z, log_snr), flow maps (z, log_snr, next_log_snr), as `diffcore.sample` calls them. Each returns one number for each
sample, (B,), a mean over its elements, that carries gradients. Targets carry none. The truth for Gaussian data is in
`diffcore.exact.Gaussian`: `average_velocity`, `flow_map`, `consistency`.
"""

from diffcore import _explained
from diffcore.objectives.consistency import consistency, consistency_pair
from diffcore.objectives.contrastive import contrastive
from diffcore.objectives.coupling import optimal_transport
from diffcore.objectives.flow_maps import lagrangian, meanflow, shortcut, split_meanflow
from diffcore.objectives.schedule import schedule_variance
from diffcore.objectives.variance import hybrid, sample_learned_variance, variance_bound

__all__ = [
    "consistency",
    "consistency_pair",
    "contrastive",
    "hybrid",
    "lagrangian",
    "meanflow",
    "optimal_transport",
    "sample_learned_variance",
    "schedule_variance",
    "shortcut",
    "split_meanflow",
    "variance_bound",
]

_explained.face(__name__)
