r"""Loss weights: every w(lambda) multiplies ||x - x-hat||^2, whatever the network predicts.

With l = lambda, A = alpha^2 = sigmoid(l) and S = sigma^2 = sigmoid(-l), so that e^l = A / S and A + S = 1:

| class | w(lambda) | = alpha^i sigma^j coefficient: i, j | coefficient | source |
|---|---|---|---|---|
| `X` | 1 | 0, 0 | 1 | Ho et al. 2020 |
| `Eps` | e^l | 2, -2 | 1 | Ho et al. 2020, eq. 14 |
| `V` | 1 + e^l | 0, -2 | 1 | Salimans & Ho 2022, sec. 4 |
| `Flow` | (1 + e^{l/2})^2 | 0, -2 | 1 + 2 sqrt(A S) | Lipman et al. 2023, eq. 23 |
| `Truncated` | max(1, e^l) | 0, -2 | max(A, S) | Salimans & Ho 2022, sec. 4 |
| `MinSNR` | min(e^l, g) | 2, 0 | g / max(g S, A) | Hang et al. 2023, sec. 3.4 |
| `SoftMinSNR` | g e^l / (g + e^l) | 2, 0 | g / (g S + A) | Crowson et al. 2024 |
| `P2` | e^l / (k + e^l)^g | 2, 2g - 2 | (k S + A)^-g | Choi et al. 2022, eq. 8 |
| `Sigmoid` | e^b sigmoid(l - b) (-dl/dt) | 2, 0 | e^b (-dl/dt) / (e^b S + A) | Hoogeboom et al. 2024 |
| `EDM` | (s^2 + sd^2) / (s sd)^2, s = e^{-l/2} | 0, -2 | S / sd^2 + A | Karras et al. 2022, table 1 |
| `VariationalBound` | -(1/2) d(e^l)/dt | 2, -2 | (1/2) (-dl/dt) | Kingma et al. 2021, eq. 17 |

The exponents are why a loss can be finite at both ends: `coefficient` is finite and not zero there, so all that vanishes or
diverges is in two exponents, which `losses` adds to those of the prediction before a single number is computed. Plain
noise prediction under `Eps` has the factor 1 at lambda = +-inf, where e^l is 0 or inf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffcore import _array, _check, _explained
from diffcore._array import Array
from diffcore._weight import At, Split, Weight, raised
from diffcore.predictions import check_sigma_data

__all__ = [
    "At",
    "EDM",
    "Eps",
    "Flow",
    "MinSNR",
    "P2",
    "Sigmoid",
    "SoftMinSNR",
    "Split",
    "Truncated",
    "V",
    "VariationalBound",
    "Weight",
    "X",
    "table",
]


def table() -> dict[str, type[Weight]]:
    """Return the table of weights: name -> class.

    >>> sorted(table())
    ['bound', 'edm', 'eps', 'flow', 'min_snr', 'p2', 'sigmoid', 'soft_min_snr', 'truncated', 'v', 'x']
    """
    return {
        "x": X,
        "eps": Eps,
        "v": V,
        "flow": Flow,
        "truncated": Truncated,
        "min_snr": MinSNR,
        "soft_min_snr": SoftMinSNR,
        "p2": P2,
        "sigmoid": Sigmoid,
        "edm": EDM,
        "bound": VariationalBound,
    }


@dataclass(frozen=True)
class X(Weight):
    """w = 1: the plain error of x-hat. Source: Ho et al. 2020 (arXiv 2006.11239), sec. 3.2.

    >>> from diffcore.levels import level
    >>> X()(level(3.0))
    np.float64(1.0)
    """

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        return Split(0.0, 0.0, at.one)


@dataclass(frozen=True)
class Eps(Weight):
    """w = e^lambda: the plain error of the noise, the loss of Ho et al. 2020 (arXiv 2006.11239), eq. 14.

    >>> from diffcore.levels import level
    >>> Eps()(level(0.0)).round(12)
    np.float64(1.0)
    """

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        return Split(2.0, -2.0, at.one)


@dataclass(frozen=True)
class V(Weight):
    """w = 1 + e^lambda, "SNR + 1": the plain error of v. Source: Salimans & Ho 2022 (arXiv 2202.00512), sec. 4.

    >>> from diffcore.levels import level
    >>> V()(level(0.0)).round(12)
    np.float64(2.0)
    """

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        return Split(0.0, -2.0, at.one)


@dataclass(frozen=True)
class Flow(Weight):
    """w = (1 + e^{lambda/2})^2: the plain error of the velocity eps - x. Source: Lipman et al. 2023 (arXiv 2210.02747), eq. 23.

    >>> from diffcore.levels import level
    >>> Flow()(level(0.0)).round(12)
    np.float64(4.0)
    """

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        return Split(0.0, -2.0, 1.0 + 2.0 * at.xp.sqrt(at.alpha2 * at.sigma2))


@dataclass(frozen=True)
class Truncated(Weight):
    """w = max(1, e^lambda), "truncated SNR". Source: Salimans & Ho 2022 (arXiv 2202.00512), sec. 4.

    >>> from diffcore.levels import level
    >>> Truncated()(level(-3.0)).round(12)
    np.float64(1.0)
    """

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        return Split(0.0, -2.0, at.xp.maximum(at.alpha2, at.sigma2))


@dataclass(frozen=True)
class MinSNR(Weight):
    """w = min(e^lambda, gamma): finite at both ends for every prediction. Source: Hang et al. 2023 (arXiv 2303.09556).

    Args:
        gamma: where the weight stops growing, positive and finite.

    Raises:
        ValueError: `gamma` is out of range.

    >>> from diffcore.levels import level
    >>> MinSNR(5.0)(level(20.0)).round(12)
    np.float64(5.0)
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _check.number("weights.MinSNR", "gamma", self.gamma, 0, open_low=True)

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        return Split(2.0, 0.0, self.gamma / at.xp.maximum(self.gamma * at.sigma2, at.alpha2))


@dataclass(frozen=True)
class SoftMinSNR(Weight):
    """w = gamma e^lambda / (gamma + e^lambda): MinSNR without its corner.

    Source: Crowson et al. 2024 (arXiv 2401.11605).

    Args:
        gamma: the weight of clean data, positive and finite.

    Raises:
        ValueError: `gamma` is out of range.

    >>> from diffcore.levels import level
    >>> SoftMinSNR(1.0)(level(0.0)).round(12)
    np.float64(0.5)
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _check.number("weights.SoftMinSNR", "gamma", self.gamma, 0, open_low=True)

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        return Split(2.0, 0.0, self.gamma / (self.gamma * at.sigma2 + at.alpha2))


@dataclass(frozen=True)
class P2(Weight):
    """w = e^lambda / (k + e^lambda)^gamma. Source: Choi et al. 2022 (arXiv 2204.00227), eq. 8 (there on the noise).

    Args:
        k: positive and finite.
        gamma: non-negative; 0 is `Eps`, from 1 on the weight stays bounded.

    Raises:
        ValueError: `k` or `gamma` is out of range.

    >>> from diffcore.levels import level
    >>> P2()(level(0.0)).round(12)
    np.float64(0.5)
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _check.number("weights.P2", "k", self.k, 0, open_low=True)
        _check.number("weights.P2", "gamma", self.gamma, 0)

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        return Split(2.0, 2.0 * self.gamma - 2.0, raised(at.one, self.k * at.sigma2 + at.alpha2, -self.gamma))


@dataclass(frozen=True)
class Sigmoid(Weight):
    r"""w = e^b sigmoid(lambda - b) (-d lambda/dt). Source: Hoogeboom et al. 2024 (arXiv 2410.19324), sigmoid loss.

    Kingma & Gao 2023 (arXiv 2303.00848) write it on the noise, as (1/2) sigmoid(b - lambda) (-d lambda/dt); since
    e^lambda sigmoid(b - lambda) = e^b sigmoid(lambda - b), that is this weight on x, times 1/2. The slope undoes the
    density of t, so the loss depends on the schedule through its ends alone; for t of another density than uniform,
    divide by it (`times`).

    Args:
        bias: b, the log-SNR where the weight stops growing; finite. The larger the picture, the smaller (the noisier).

    Raises:
        ValueError: `bias` is out of range.

    >>> from diffcore.levels import level
    >>> Sigmoid(bias=0.0)(level(0.0), slope=-4.0).round(12)
    np.float64(2.0)
    """

    bias: float

    def __post_init__(self) -> None:
        _check.number("weights.Sigmoid", "bias", self.bias, -80, 80, hint="it is a log-SNR")

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        gamma = math.exp(self.bias)
        return Split(2.0, 0.0, gamma * _descent("Sigmoid", at) / (gamma * at.sigma2 + at.alpha2))


@dataclass(frozen=True)
class EDM(Weight):
    r"""w = (s^2 + s_data^2) / (s s_data)^2 with s = e^{-lambda/2}: the plain error of EDM's F.

    Source: Karras et al. 2022 (arXiv 2206.00364), table 1, where t has the density `times.LogNormal`.

    Args:
        sigma_data: the standard deviation of the data, positive and finite; that of the network, where it predicts
            `predictions.edm(sigma_data)`.

    Raises:
        ValueError: `sigma_data` is out of range. (`losses` raise where it is not the network's.)

    >>> from diffcore.levels import level
    >>> EDM(1.0)(level(0.0)).round(12)
    np.float64(2.0)
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_sigma_data("weights.EDM", self.sigma_data)

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        return Split(0.0, -2.0, at.sigma2 / self.sigma_data**2 + at.alpha2)


@dataclass(frozen=True)
class VariationalBound(Weight):
    r"""w = -(1/2) d(SNR)/dt = (1/2) e^lambda (-d lambda/dt): the continuous bound, in nats, for t ~ U[0, 1].

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 17. The discrete bound is `likelihood.discrete_weight`.

    >>> from diffcore.levels import level
    >>> VariationalBound()(level(0.0), slope=-4.0).round(12)
    np.float64(2.0)
    """

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        return Split(2.0, -2.0, 0.5 * _descent("VariationalBound", at))


def _descent(name: str, at: At) -> Array:
    """Return -d lambda/dt as an array, or raise with where to get it."""
    function, slope = f"weights.{name}", at.slope
    if slope is None:
        must = "be d lambda / dt of the schedule"
        raise _check.error(ValueError, function, "slope", must, slope, "pass slope=schedule.slope(t)")
    if isinstance(slope, (*_array.NUMBERS, np.ndarray)) and np.any(np.asarray(slope) > 0):
        hint = "the log-SNR falls as t rises"
        raise _check.error(ValueError, function, "slope", "be d lambda / dt <= 0", slope, hint)
    _array.namespace(function, level=at.one, slope=slope)
    return -float(slope) * at.one if _array.library(slope) is None else -_array.widen(at.xp, slope)


_explained.face(__name__)
