"""Schedules by the names that papers and other libraries give them, and the tables of betas that these consist of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from typing import Any

import numpy as np

from diffcore import _check
from diffcore.schedules._base import Schedule
from diffcore.schedules._table import table
from diffcore.schedules.combinators import shift
from diffcore.schedules.cosine import Cosine, InverseCosine
from diffcore.schedules.exploding import Flow, Geometric, Karras
from diffcore.schedules.interpolated import interpolate
from diffcore.schedules.polynomial import PolynomialVP
from diffcore.schedules.sigmoid import Sigmoid
from diffcore.schedules.tables import Float64, Table, from_betas
from diffcore.schedules.variance_preserving import LinearBeta, SubVP


def betas(
    kind: str = "linear", steps: int = 1000, *, beta_start: float | None = None, beta_end: float | None = None
) -> Float64:
    r"""Return a table of betas by its name in diffusers, for `from_betas`, in float64.

        "linear":             beta_i = start + (end - start) i / (T - 1), of DDPM: 1e-4, 0.02
        "scaled_linear":      sqrt(beta_i) linear from sqrt(start) to sqrt(end), of Stable Diffusion: 0.00085, 0.012
        "squaredcos_cap_v2":  beta_i = min(1 - f((i + 1) / T) / f(i / T), 0.999),  f(t) = cos^2(pi / 2 (t + 0.008) / 1.008): iDDPM
        "sigmoid":            beta_i = start + (end - start) s(-6 + 12 i / (T - 1)),  s the logistic function: GeoDiff
        "exp":                beta_i = 1 - e^{-12 / T}

    The "laplace" of diffusers is not among them: its alpha^2 is the root of what it should be. `Laplace` is right.

    Args:
        kind: as above.
        steps: T, an int >= 2.
        beta_start, beta_end: in (0, 1), in order, for the kinds that have them; None is the value above, for "sigmoid" DDPM's.

    Returns:
        A float64 array (T,).

    Raises:
        ValueError: an unknown kind, T < 2, or ends that are out of range, out of order or given to a kind without ends.

    Sources: Ho et al. 2020 (arXiv 2006.11239), sec. 4; Rombach et al. 2022 (arXiv 2112.10752); Nichol & Dhariwal 2021
    (arXiv 2102.09672), eq. 17; Xu et al. 2022 (arXiv 2203.02923).

    >>> betas("linear", 3).round(5)
    array([0.0001 , 0.01005, 0.02   ])
    """
    function = "schedules.betas"
    ends = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "sigmoid": (1e-4, 0.02)}
    kind = _check.choice(function, "kind", kind, (*ends, "squaredcos_cap_v2", "exp"))
    count = _check.count(function, "steps", steps, 2)
    if kind not in ends:
        for argument, value in (("beta_start", beta_start), ("beta_end", beta_end)):
            if value is not None:
                raise _check.error(ValueError, function, argument, f"be None for {kind!r}, which has no ends", value)
        if kind == "exp":
            return np.full(count, -math.expm1(-12.0 / count))
        angles = 0.5 * np.pi * (np.arange(count + 1.0) / count + 0.008) / 1.008
        kept = np.cos(angles) ** 2
        # cos^2 a - cos^2 b = sin(b - a) sin(b + a): no cancellation
        lost = np.sin(np.diff(angles)) * np.sin(angles[1:] + angles[:-1])
        return np.asarray(np.minimum(lost / kept[:-1], 0.999))
    first, last = (
        default if value is None else value for value, default in zip((beta_start, beta_end), ends[kind], strict=True)
    )
    first = _check.number(function, "beta_start", first, 0, 1, open_low=True, open_high=True)
    last = _check.number(function, "beta_end", last, first, 1, open_high=True)
    part = np.arange(float(count)) / (count - 1)
    if kind == "scaled_linear":
        return np.asarray((math.sqrt(first) * (1.0 - part) + math.sqrt(last) * part) ** 2)
    if kind == "sigmoid":
        part = 1.0 / (1.0 + np.exp(6.0 - 12.0 * part))
    return np.asarray(first * (1.0 - part) + last * part)


def zero_terminal_snr(table: Table) -> Table:
    r"""Return a table rescaled so that it ends in pure noise, lambda = -inf, and begins as before.

        alpha_i' = alpha_0 (alpha_i - alpha_{T-1}) / (alpha_0 - alpha_{T-1})

    with the alphas of the "vp" scaling, whichever the table has. Predict v, x or the flow velocity on it: at its last entry
    eps and the score hold no information about x. The function of the same purpose in diffusers, `rescale_zero_terminal_snr`,
    computes in the dtype of its betas, usually float32, of which alpha' near T keeps few digits; and some of its schedulers
    replace the last alpha^2 by 2^-24, more than the entry before, so that the noise no longer rises. Here it stays 0.

    Args:
        table: as made by `from_betas` and similar; one that ends in pure noise already is returned as it is.

    Returns:
        `Table` of the same scaling.

    Raises:
        TypeError: `table` is not a `Table`.

    Source: Lin et al. 2023 (arXiv 2305.08891), algorithm 1.

    >>> table = zero_terminal_snr(from_betas(betas("scaled_linear")))
    >>> table.log_snrs[0] == from_betas(betas("scaled_linear")).log_snrs[0], table.log_snrs[-1]
    (True, -inf)
    """
    _check.instance(
        "schedules.zero_terminal_snr", "table", table, Table, "a Table, such as schedules.from_betas(betas)"
    )
    log_snrs = np.asarray(table.log_snrs)
    if np.isneginf(log_snrs[-1]):
        return table
    log_alpha = -0.5 * np.logaddexp(0.0, -log_snrs)
    # log alpha - log alpha_k = log(1 + (1 - alpha^2) (e^{lambda - lambda_k} - 1)) / 2: no difference of near numbers but lambda's
    noise = np.exp(-np.logaddexp(0.0, log_snrs))
    to_last, to_first = (0.5 * np.log1p(noise * np.expm1(log_snrs - log_snrs[k])) for k in (-1, 0))
    from_last, from_first = np.exp(log_alpha[-1]) * np.expm1(to_last), -np.exp(log_alpha[0]) * np.expm1(to_first)
    share = np.exp(log_alpha[0]) / from_last[0]
    alpha, lost = share * from_last, share * from_first - np.expm1(log_alpha[0])  # alpha' and 1 - alpha'
    with np.errstate(divide="ignore"):
        found = 2.0 * np.log(alpha) - np.log(lost) - np.log1p(alpha)
    found[0] = log_snrs[0]
    return Table(log_snrs=tuple(found.tolist()), scaling=table.scaling)


def simple_diffusion(
    side: float,
    *,
    low: float = 64.0,
    high: float | None = None,
    log_snr_min: float = -15.0,
    log_snr_max: float = 15.0,
    scaling: str = "vp",
) -> Schedule:
    r"""Return the cosine schedule of simple diffusion, shifted for images of a side; or interpolated between two shifts.

        shifted:       lambda(t) = lambda_cosine(t) + 2 log(low / d)
        interpolated:  lambda(t) = lambda_cosine(t) + 2 (1 - t) log(high / d) + 2 t log(low / d)

    Args:
        side: d, the images' side in pixels, positive.
        low: the side at which coarse structure is to be as noisy as on the plain schedule, positive.
        high: the same for details, >= low; None is the shifted schedule.
        log_snr_min, log_snr_max: the ends of the cosine, before the shift.
        scaling: "vp", "ve" or "flow".

    Returns:
        A schedule; its ends move with the shift.

    Raises:
        ValueError: a side that is not positive, `high` below `low`, or ends out of order.

    Source: Hoogeboom et al. 2023 (arXiv 2301.11093), sec. 3.1; "noise_d_low" and "noise_d_high" of its appendix.

    >>> simple_diffusion(128).log_snr(0.5).round(6), simple_diffusion(128, low=32, high=256).log_snr(0.0).round(6)
    (np.float64(-1.386294), np.float64(16.386294))
    """
    function = "schedules.simple_diffusion"
    side = _check.number(function, "side", side, 0, open_low=True)
    low = _check.number(function, "low", low, 0, open_low=True)
    cosine = Cosine(log_snr_min=log_snr_min, log_snr_max=log_snr_max, scaling=scaling)
    coarse = shift(cosine, 2.0 * math.log(low / side))
    if high is None:
        return coarse
    high = _check.number(function, "high", high, low)
    return interpolate(shift(cosine, 2.0 * math.log(high / side)), coarse, None)


_NAMED: dict[str, Callable[[], Schedule]] = {
    "cosine": Cosine,
    "ddpm": lambda: from_betas(betas("linear")),
    "edm": Karras,
    "exponential": lambda: LinearBeta(beta_min=12.0, beta_max=12.0),
    "geodiff": lambda: from_betas(betas("sigmoid")),
    "iddpm": lambda: from_betas(betas("squaredcos_cap_v2")),
    "inverse_cosine": InverseCosine,
    "linear_vp": PolynomialVP,
    "rectified_flow": Flow,
    "sd3": lambda: shift(Flow(), -2.0 * math.log(3.0)),
    "sigmoid": Sigmoid,
    "simple_diffusion": lambda: simple_diffusion(512.0, low=32.0, high=256.0),
    "stable_diffusion": lambda: from_betas(betas("scaled_linear")),
    "stable_diffusion_zero_snr": lambda: zero_terminal_snr(from_betas(betas("scaled_linear"))),
    "sub_vp_sde": SubVP,
    "tangent": lambda: Cosine(log_snr_min=-math.inf, log_snr_max=math.inf, scaling="ve"),
    "trigflow": lambda: Cosine(log_snr_min=-math.inf, log_snr_max=math.inf),
    "ve_sde": Geometric,
    "vp_sde": LinearBeta,
}


def by_name(name: str, **settings: Any) -> Schedule:
    """Return a schedule by a name of `named`, or by that of its class, with some of its fields set.

    Raises:
        ValueError: an unknown name; a field that the schedule does not have, or one that it needs; what the schedule refuses.

    >>> by_name("edm", sigma_max=40.0), by_name("Karras").sigma_max
    (Karras(sigma_min=0.002, sigma_max=40.0, rho=7.0, scaling='ve'), 80.0)
    """
    function, kinds = "schedules.by_name", table()
    name = _check.choice(function, "name", name, [*kinds, *_NAMED], hint="see schedules.named()")
    schedule = _NAMED[name]() if name in _NAMED else kinds[name]
    takes = [field for field in fields(schedule) if field.init]  # type: ignore[arg-type]
    needs = {field.name for field in takes if field.default is MISSING and name in kinds}
    if not needs <= set(settings) <= {field.name for field in takes}:
        must = f"be fields of {type(schedule).__name__}, {[field.name for field in takes]}"
        hint = f"it needs {sorted(needs)}" if needs else ""
        raise _check.error(ValueError, function, "settings", must, sorted(settings), hint)
    return replace(schedule, **settings) if name in _NAMED else type(schedule)(**settings)  # type: ignore[type-var]


def named() -> dict[str, Schedule]:
    """Return all schedules of `by_name`, by their names.

    >>> named()["linear_vp"], named()["stable_diffusion"].log_snr(1.0).round(3)
    (PolynomialVP(power=1.0, scaling='vp'), np.float64(-5.364))
    """
    return {name: make() for name, make in _NAMED.items()}
