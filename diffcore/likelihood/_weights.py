"""The weights of ||x - x-hat||^2 in the bound on -log p(x): of one of T intervals, and per unit of log-SNR."""

from __future__ import annotations

from dataclasses import dataclass

from diffcore import _array, _check, levels, process
from diffcore._array import Array
from diffcore._weight import At, Split, Weight
from diffcore.levels import Level


@dataclass(frozen=True, eq=False)
class Interval(Weight):
    """(count / 2) (SNR_s - SNR_t) at the level t: w = (alpha_t / sigma_t)^2 (count / 2) expm1(lambda_s - lambda_t)."""

    gap: Array
    count: float

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        return Split(2.0, -2.0, 0.5 * self.count * at.xp.expm1(self.gap) * at.one)


@dataclass(frozen=True)
class PerLogSNR(Weight):
    """(width / 2) e^lambda: the continuous bound for lambda uniform on an interval of that width."""

    width: float

    def split(self, at: At) -> Split:
        """Return the exponents and the finite coefficient."""
        return Split(2.0, -2.0, 0.5 * self.width * at.one)


def discrete_weight(s: Level, t: Level, steps: int = 1) -> Array:
    r"""Return (T/2) (SNR_s - SNR_t), the weight of ||x - x-hat||^2 in the discrete bound where one of T intervals
    is drawn.

    Args:
        s, t: the two ends of the interval, lambda_s >= lambda_t, aligned by their leading axes.
        steps: T >= 1; 1 gives the term of the sum over all intervals.

    Returns:
        An array of the levels' shape, free of cancellation.

    Raises:
        TypeError: `s` or `t` is not a level, `steps` not an int.
        ValueError: steps < 1; levels that do not align, or, where they are numbers, levels out of order.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 13-14.

    >>> from diffcore.levels import level
    >>> discrete_weight(level(1.0), level(0.0)).round(6)
    np.float64(0.859141)
    """
    function = "likelihood.discrete_weight"
    steps = _check.integer(function, "steps", steps, 1)
    s, t = process.ordered(function, s, t)
    xp = _array.namespace(function, s=s.log_snr, t=t.log_snr)
    clean, noisy = (_array.level_array(function, "log_snr", part.log_snr)[1] for part in (s, t))
    gap = _array.as_array(xp, clean - noisy)
    return Interval(gap, float(steps))(levels.level(xp.broadcast_to(noisy, gap.shape)))
