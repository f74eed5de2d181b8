"""What tests against other libraries share: levels, a denoiser that is not linear, and noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import diffcore as dc

torch = pytest.importorskip("torch")

SIGMAS = [*np.geomspace(14.0, 0.03, 9).tolist(), 0.0]
VE = dc.schedules.LinearLogSNR(log_snr_min=-8.0, log_snr_max=20.0, scaling="ve")
VP = dc.schedules.LinearLogSNR(log_snr_min=-20.0, log_snr_max=20.0)
START = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 5)))


def estimate(u: Any, sigma: Any) -> Any:
    """A denoiser of data near -1 and 1, in z / alpha and sigma / alpha."""
    return torch.tanh(u / (0.3 + sigma**2)) * (1.0 - 0.1 * torch.cos(u))


def denoise(z: Any, log_snr: Any, scaling: str = "ve") -> Any:
    level = dc.levels.level(log_snr, scaling)
    alpha, sigma = (part.reshape(-1, 1) for part in level[:2])
    return estimate(z / alpha, sigma / alpha)


class Noise:
    """The same numbers, in order, for both."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(1)

    def __call__(self, *_: Any) -> Any:
        return torch.from_numpy(self.random.normal(size=tuple(START.shape)))


def ours(plan: dc.Plan, z: Any = None) -> Any:
    z = START * float(plan.start.sigma) if z is None else z
    return dc.sample(lambda z, log_snr: denoise(z, log_snr, plan.scaling), plan, z, prediction="x", noise=Noise())
