"""Networks that predict variances beside what they are named for: twice the channels, the second half rho or the variance.

    "learned_range": log variance = (1 - f) log beta-tilde + f log beta,    f = (rho + 1) / 2
    "learned": the variance itself

The deviation multiplies the noise of a step, so a step stays a sum of arrays; but it is no number of a plan. Multistep solvers of
diffusers leave the second half unused.

Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 15; https://github.com/huggingface/diffusers, `DDPMScheduler`.
"""

from __future__ import annotations

import copy
import math
from typing import Any

LEARNED = ("learned", "learned_range")


def kind(scheduler: Any, unused: bool = False) -> str | None:
    """Return how a scheduler takes its network's variances: "learned", "learned_range", "unused"; None where there are none."""
    found = scheduler.config.get("variance_type")
    if found not in LEARNED:
        return None
    return "unused" if unused or not hasattr(scheduler, "_get_variance") else str(found)


def fixed(scheduler: Any) -> Any:
    """Return a copy of a scheduler whose network predicts no variances."""
    found = copy.copy(scheduler)
    value = "fixed_small_log" if hasattr(found, "_get_variance") else None
    found.register_to_config(variance_type=value)
    if "variance_type" in vars(found):
        found.variance_type = value
    return found


def check_shape(function: str, output: Any, sample: Any) -> None:
    """Raise ValueError for a prediction of another shape than the sample's."""
    if output.shape != sample.shape:
        raise ValueError(
            f"{function}: `model_output` must have the shape of `sample`, {tuple(sample.shape)}, got {tuple(output.shape)}; a "
            f"network that also predicts variances needs a config that says so, such as "
            f"DDPMScheduler(variance_type='learned_range'), else split them off"
        )


def split(function: str, how: str, output: Any, sample: Any) -> tuple[Any, Any]:
    """Return the prediction and the other half of a network's output; None for it where it is unused.

    Raises:
        ValueError: an output without variances, where they are used.
    """
    channels, shape = sample.shape[1], tuple(output.shape)
    twice = (shape[0], 2 * channels, *shape[2:])
    if how == "unused":
        return output[:, :channels], None
    if shape != twice or twice[2:] != tuple(sample.shape[2:]):
        raise ValueError(
            f"{function}: `model_output` must have twice the channels of `sample`, {twice}, got {shape}; for a network that "
            f"predicts no variances use the config with variance_type='fixed_small'"
        )
    return output[:, :channels], output[:, channels:]


def deviation(how: str, ends: tuple[float, float], variances: Any) -> Any:
    """Return by what unit noise is multiplied, given the deviations at -1 and 1."""
    if how == "learned":
        return ends[1] * variances**0.5
    low, high = math.log(ends[0]), math.log(ends[1])
    return (variances * (0.5 * (high - low)) + 0.5 * (high + low)).exp()
