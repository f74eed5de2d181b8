"""Hypothesis strategies for the things of diffusion: schedules, log-SNRs, levels, grids, plans, shapes, batches.

They draw the awkward cases on purpose: infinite log-SNRs, gaps of one unit in the last place, a batch of one, an empty
frame axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from diffcore import _array, _check, levels, samplers
from diffcore import schedules as kinds
from diffcore._array import Array
from diffcore.levels import Level
from diffcore.plan import Plan
from diffcore.schedules import Schedule
from diffcore.testing._arrays import Float64, put
from diffcore.testing.precision import log_snr_range, wide

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("diffcore.testing.strategies needs hypothesis; install diffcore[test]") from error

__all__ = [
    "batches",
    "dtypes",
    "grids",
    "leads",
    "log_snrs",
    "ordered_levels",
    "plans",
    "scalings",
    "schedules",
    "shapes",
]


def scalings() -> st.SearchStrategy[str]:
    """Draw the name of a scaling: "vp", "ve" or "flow"."""
    return st.sampled_from(sorted(levels.scalings()))


def _between(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


def _ends(low: float = -20.0, high: float = 20.0) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(_between(low, high - 1.0), _between(0.5, high - low)).map(lambda p: (p[0], min(p[0] + p[1], high)))


def _named(make: Callable[..., Schedule], first: str, second: str) -> Callable[[tuple[float, float]], Schedule]:
    return lambda pair: make(**{first: pair[0], second: pair[1]})


def _tables() -> st.SearchStrategy[Schedule]:
    betas = st.lists(_between(1e-4, 0.3), min_size=2, max_size=12).map(kinds.from_betas)
    sigmas = st.lists(_between(0.02, 1.5), min_size=2, max_size=8).map(
        lambda steps: kinds.from_sigmas(np.exp(np.cumsum(steps) - 4.0).tolist())
    )
    return betas | sigmas


def _simple() -> st.SearchStrategy[Schedule]:
    cosine = _ends().map(_named(kinds.Cosine, "log_snr_min", "log_snr_max"))
    log_linear = _ends().map(_named(kinds.LinearLogSNR, "log_snr_min", "log_snr_max"))
    betas = st.tuples(_between(0.01, 1.0), _between(2.0, 30.0)).map(_named(kinds.LinearBeta, "beta_min", "beta_max"))
    sigmas = st.tuples(_between(1e-3, 0.5), _between(1.0, 100.0))
    geometric = sigmas.map(_named(kinds.Geometric, "sigma_min", "sigma_max"))
    karras = st.tuples(sigmas, _between(1.0, 9.0)).map(
        lambda drawn: kinds.Karras(sigma_min=drawn[0][0], sigma_max=drawn[0][1], rho=drawn[1])
    )
    sigmoid = st.tuples(_between(-5.0, 0.0), _between(1.0, 5.0)).map(
        lambda drawn: kinds.Sigmoid(start=drawn[0], end=drawn[0] + drawn[1])
    )
    laplace = st.tuples(_between(-3.0, 3.0), _between(0.2, 2.0)).map(_named(kinds.Laplace, "mu", "b"))
    cauchy = st.tuples(_between(-3.0, 3.0), _between(0.2, 2.0)).map(_named(kinds.Cauchy, "mu", "gamma"))
    sub_vp = st.tuples(_between(0.01, 1.0), _between(2.0, 30.0)).map(_named(kinds.SubVP, "beta_min", "beta_max"))
    polynomial = st.tuples(st.sampled_from([kinds.Polynomial, kinds.PolynomialVP]), _between(0.5, 4.0)).map(
        lambda drawn: drawn[0](power=drawn[1])
    )
    learned = st.lists(_between(-3.0, 3.0), min_size=1, max_size=6).map(
        lambda increments: kinds.Monotone(increments=np.array(increments)).table()
    )
    untruncated = st.sampled_from(
        [kinds.Flow(), kinds.InverseCosine(), kinds.Cosine(log_snr_min=-math.inf, log_snr_max=math.inf)]
    )
    smooth = cosine | log_linear | betas | geometric | karras | sigmoid | laplace | cauchy | sub_vp | polynomial
    return smooth | learned | untruncated | _tables()


def _scaled(schedule: Schedule, scaling: str) -> Schedule:
    made = {field.name: field for field in fields(schedule)}  # type: ignore[arg-type]
    if made["scaling"].init:
        return replace(schedule, scaling=scaling)  # type: ignore[type-var]
    parts = {name: _scaled(getattr(schedule, name), scaling) for name in ("schedule", "a", "b") if name in made}
    return replace(schedule, **parts)  # type: ignore[type-var]


def schedules(scaling: str | None = None) -> st.SearchStrategy[Schedule]:
    """Draw a schedule: any of `diffcore.schedules` with random parameters, tables, and what the combinators make of them.

    Args:
        scaling: "vp", "ve" or "flow"; None draws it too.
    """
    if scaling is not None:
        levels.check_scaling("testing.strategies.schedules", scaling)
    simple = _simple()
    shifted = st.tuples(simple, _between(-4.0, 4.0)).map(lambda drawn: kinds.shift(*drawn))
    truncated = st.tuples(simple, _between(0.05, 0.45), _between(0.55, 0.95)).map(_truncated)
    mixed = st.tuples(simple, simple, _between(0.0, 1.0)).map(
        lambda drawn: kinds.interpolate(_scaled(drawn[0], "vp"), _scaled(drawn[1], "vp"), drawn[2])
    )
    each = simple | shifted | truncated | mixed
    given = scalings() if scaling is None else st.just(scaling)
    return st.tuples(each, given).map(lambda drawn: _scaled(*drawn))


def _truncated(drawn: tuple[Schedule, float, float]) -> Schedule:
    schedule, first, last = drawn
    return kinds.truncate(schedule, float(schedule.log_snr(last)), float(schedule.log_snr(first)))


def log_snrs(dtype: Any = "float64", *, ends: bool = True, reach: float | None = None) -> st.SearchStrategy[float]:
    """Draw a log-SNR that a dtype holds exactly: moderate, tiny, +-20, far out, and, with `ends`, both infinities.

    None is below the normal numbers, which some libraries take for 0.

    Args:
        dtype: "float32" or "float64".
        ends: also -inf and inf.
        reach: how far from 0; None is as far as squares of alpha and sigma neither under- nor overflow (80 or 700).
    """
    wide("testing.strategies.log_snrs", "dtype", dtype)
    far = log_snr_range(dtype) if reach is None else _positive("log_snrs", "reach", reach)
    special = [0.0, min(20.0, far), max(-20.0, -far), far, -far] + ([math.inf, -math.inf] if ends else [])
    near = min(far, 20.0)
    least = min(far, 1e-6)
    drawn = _between(-near, near) | _between(-far, far) | _between(-least, least) | st.sampled_from(special)
    normal = float(np.finfo(dtype).smallest_normal)
    return drawn.map(lambda value: float(np.asarray(value if abs(value) >= normal else 0.0, dtype=dtype)))


def _positive(strategy: str, argument: str, value: object) -> float:
    return _check.number(f"testing.strategies.{strategy}", argument, value, 0, open_low=True)


@st.composite
def ordered_levels(
    draw: st.DrawFn,
    scaling: str = "vp",
    dtype: Any = None,
    *,
    count: int = 2,
    like: Array | None = None,
    size: int = 8,
    ends: bool = True,
    reach: float | None = None,
    min_gap: float = 0.0,
) -> tuple[Level, ...]:
    """Draw levels of shape (size,), from data to noise, the log-SNR of each greater everywhere than that of the next: (s, t), or
    with `count=3` (r, s, t), and so on.

    Some are one unit in the last place apart; from 0 the next is the smallest normal number. A variance between two so close may
    be 0 in numbers of the dtype: a check of one's own that divides by it needs a `min_gap`.

    Args:
        scaling: "vp", "ve" or "flow".
        dtype: "float32" or "float64"; without it that of `like`, and float64 without either.
        count: how many levels, >= 1.
        like: an array of the library for the levels; NumPy without one.
        size: entries of each.
        ends: also lambda = inf for the first and -inf for the last.
        reach: as for `log_snrs`.
        min_gap: the least difference of a lambda and the next; 0 is one unit in the last place.

    Raises:
        ValueError: `like` of another dtype, in which levels so close would be equal; another dtype than those; `count` < 1.
    """
    function = "testing.strategies.ordered_levels"
    _check.integer(function, "count", count, 1)
    _check.integer(function, "size", size, 0)
    _check.number(function, "min_gap", min_gap, 0)
    levels.check_scaling(function, scaling)
    held = None if like is None else str(like.dtype).split(".")[-1]
    dtype = wide(function, "dtype", held or "float64" if dtype is None else dtype)
    if held not in {None, dtype}:
        must = f"have the dtype of the levels, {dtype}"
        raise _check.error(ValueError, function, "like", must, held)
    first = draw(st.lists(log_snrs(dtype, ends=False, reach=reach), min_size=size, max_size=size))
    number, up = np.dtype(dtype).type, np.array(np.inf, dtype=dtype)
    least, top = np.finfo(dtype).smallest_normal, number(log_snr_range(dtype) if reach is None else reach)
    tops = [top + number(place * min_gap) for place in range(count)]  # room for those above, one unit each
    for place in range(count):
        for _ in range(count - 1 - place):
            tops[place] = np.nextafter(tops[place], -up)
    rows = [np.minimum(np.array(first, dtype=dtype), tops[0])]
    gaps = st.lists(st.just(0.0) | _between(1e-9, 1e-3) | _between(1e-3, 40.0), min_size=size, max_size=size)
    for highest in tops[1:]:
        below = rows[-1]
        row = np.minimum((below + np.maximum(draw(gaps), min_gap)).astype(dtype), highest)
        row = np.where(row > below, row, np.nextafter(below, up))
        row = np.where(below == 0.0, np.maximum(row, least), row).astype(dtype)
        rows.append(np.where(np.abs(row) < least, 0.0, row).astype(dtype))  # next to the smallest below 0
    for end, place in ((np.inf, -1), (-np.inf, 0)) if ends else ():
        kept = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        rows[place] = np.where(kept, rows[place], end).astype(dtype)
    into = np.zeros((), dtype=dtype) if like is None else like
    return tuple(levels.level(put(row, into), scaling) for row in reversed(rows))


def grids(*, clean: bool | None = None, max_steps: int = 8, reach: float = 12.0) -> st.SearchStrategy[Float64]:
    """Draw an increasing grid of log-SNRs (N + 1,), N >= 1, for a sampler.

    Args:
        clean: whether it ends on lambda = inf; None draws it too.
        max_steps: the largest N.
        reach: the largest |lambda| but for a clean end.
    """
    _check.integer("testing.strategies.grids", "max_steps", max_steps, 1)
    reach = _positive("grids", "reach", reach)
    inner = st.lists(_between(0.05, 3.0), min_size=1, max_size=max_steps)

    def build(drawn: tuple[list[float], float, bool]) -> Float64:
        gaps, share, ends_clean = drawn
        width = min(sum(gaps), 2.0 * reach)
        points = -reach + share * (2.0 * reach - width) + np.concatenate([[0.0], np.cumsum(gaps)]) * (width / sum(gaps))
        return np.concatenate([points[:-1], [np.inf]]) if ends_clean else points

    return st.tuples(inner, _between(0.0, 1.0), st.booleans() if clean is None else st.just(clean)).map(build)


@st.composite
def plans(draw: st.DrawFn, scaling: str | None = None, *, clean: bool | None = None) -> Plan:
    """Draw a plan: any sampler, settings and grid.

    Args:
        scaling: "vp", "ve" or "flow"; None draws it too.
        clean: whether it ends on clean data; None draws it too.
    """
    if scaling is not None:
        levels.check_scaling("testing.strategies.plans", scaling)
    schedule = kinds.Cosine(scaling=draw(scalings()) if scaling is None else scaling)
    row = draw(st.sampled_from(list(samplers.table().values())))
    settings = {
        name: draw(_between(*values) if isinstance(values[0], float) else st.sampled_from(values))
        for name, values in row.ranges.items()
    }
    plan: Plan = row.make(schedule, grid=draw(grids(clean=clean)), **settings)
    return plan


def shapes(*, min_axes: int = 1, max_axes: int = 5) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw a shape (B, T, ...): a batch of one or a few, odd sizes, now and then an empty frame axis."""
    sizes = st.lists(st.sampled_from([1, 2, 3, 5]), min_size=max(min_axes - 1, 0), max_size=max_axes - 1)
    batch = st.sampled_from([1, 2, 3])
    shape = st.tuples(batch, sizes).map(lambda drawn: (drawn[0], *drawn[1]))
    empty = st.tuples(batch, st.just(0), st.sampled_from([1, 3]))
    return shape | empty if min_axes <= 3 <= max_axes else shape


def leads(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw the shape of a level for data of a shape: (), (B,), or (B, T) where it has a second axis."""
    return st.sampled_from([(), shape[:1], shape[:2]] if len(shape) > 1 else [(), shape[:1]])


def dtypes(xp: Any, *, half: bool = True) -> st.SearchStrategy[Any]:
    """Draw a floating dtype of a library: float32, float64 and, with `half`, bfloat16 and float16 where it has them.

    Args:
        xp: an array API namespace, such as `numpy`, `torch` or `jax.numpy`.
        half: also those of sixteen bits.
    """
    if not hasattr(xp, "float32"):
        must = "be an array API namespace, such as the module numpy, torch or jax.numpy"
        raise _check.error(TypeError, "testing.strategies.dtypes", "xp", must, xp)
    names = ["float32", "float64", *(["bfloat16", "float16"] if half else [])]
    if _array.name(xp) == "jax" and str(xp.asarray(0.0).dtype) != "float64":  # off unless it is switched on
        names.remove("float64")
    return st.sampled_from([getattr(xp, name) for name in names if hasattr(xp, name)])


@st.composite
def batches(
    draw: st.DrawFn,
    like: Array | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    low: float = -1.0,
    high: float = 1.0,
) -> Array:
    """Draw a batch of data (B, ...), uniform between two numbers.

    Args:
        like: an array of the library, dtype and device; NumPy float64 without one.
        shape: of the batch; None draws it.
        low, high: the range of the values.
    """
    dims = draw(shapes()) if shape is None else shape
    seed = draw(st.integers(0, 2**32 - 1))
    return put(np.random.default_rng(seed).uniform(low, high, dims), like)
