r"""Noise that belongs to the levels, not to the grid: increments of one Brownian path, as a pure function of key and levels.

The SDE with eta times its noise moves z / sigma as an Ornstein-Uhlenbeck process does, plus what x-hat adds: from lambda_t to
lambda_s

    z_s / sigma_s = e^{-eta (lambda_s - lambda_t) / 2} z_t / sigma_t + ... + Y_s - e^{-eta (lambda_s - lambda_t) / 2} Y_t

with Y stationary, of variance 1 and covariance e^{-eta |lambda - lambda'| / 2}: e^{eta lambda / 2} Y is a Brownian motion in the
clock e^{eta lambda}, which is 1 / r^2, r = sigma / alpha, for eta = 1. Y is built by Levy's midpoints, from two ends at
lambda = -64 and 64 down to cells of width 2^-10: given Y at both ends of an interval of width d,

    Y_middle = (Y_left + Y_right) / (2 cosh(eta d / 4)) + sqrt(tanh(eta d / 4)) N,    N that of the node

and inside a cell, a share f from its left, with theta = eta d / 2 and one N for all of the cell,

    Y = [sinh(theta (1 - f)) Y_left + sinh(theta f) Y_right + sqrt(2 sinh(theta f) sinh(theta (1 - f)) sinh(theta)) N] / sinh(theta)

which is the exact law of any levels of which no two are in one cell. So Y at a level is a sum of 20 normals with weights that
only depend on the level, and noise between two levels is one such sum. The weight of a node is its sqrt(tanh) at the middle of its
interval and falls to 0 at the ends as sinh(eta s / 2) of the distance s from the nearer one: Schauder's functions for this process.

Source: Levy 1948, sec. 1, for the midpoints; Li et al. 2020 (arXiv 2001.01328), sec. 4, for Brownian trees whose nodes are a
function of a key; Doob 1942 (Ann. Math. 43), for the clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diffcore import _array, _check, _keys, _streams
from diffcore._array import Array
from diffcore._dispatch import backend_of

END = 64.0
"""The tree covers log-SNRs from -END to END."""

DEPTH = 17
"""How often an interval is halved."""

CELLS = 1 << DEPTH
"""Nodes are numbered as in a heap, from 1; then come the cells, then the two ends."""


def path(xp: Any, log_snr: Array, eta: float) -> tuple[Array, Array]:
    """Return the numbers of the nodes that Y at some levels (n,) depends on, and their weights, (n, DEPTH + 3) each.

    >>> nodes, weights = path(np, np.array([0.0, 1.5]), 1.0)
    >>> bool(np.allclose((weights**2).sum(axis=1), 1.0))
    True
    """
    place = xp.clip(log_snr, -END, END) * (CELLS / (2.0 * END))  # exact: a power of two
    whole = xp.clip(xp.floor(place), -CELLS / 2.0, CELLS / 2.0 - 1.0)
    share = place - whole
    cell = xp.astype(whole, xp.int32) + CELLS // 2
    cells = place + CELLS / 2.0  # how many lie to the left
    span = 2.0 * eta * END  # of the whole
    widths = [1 << (DEPTH - depth) for depth in range(DEPTH)]
    how = {"device": _array.device(log_snr)}
    parts = xp.asarray(widths, dtype=xp.int32, **how)[None, :]
    width = xp.asarray([float(one) for one in widths], dtype=log_snr.dtype, **how)[None, :]
    behind = cell[:, None] % parts  # cells from the left end of each interval to this one
    into = xp.astype(behind, log_snr.dtype) + share[:, None]
    theta = 0.5 * span / CELLS
    size = xp.asarray([math.sqrt(math.tanh(0.5 * theta * one)) for one in widths], dtype=log_snr.dtype, **how)[None, :]
    hats = size * _sinhs(xp, theta * xp.minimum(into, width - into), 0.5 * theta * width)
    full = 0.0 * cells + 0.5 * span
    left, right = _sinhs(xp, theta * (CELLS - cells), full), _sinhs(xp, theta * cells, full)
    unit = 0.0 * share + theta
    fresh = xp.sqrt(2.0 * math.sinh(theta) * _sinhs(xp, theta * share, unit) * _sinhs(xp, theta * (1.0 - share), unit))
    ends = [left + math.exp(-0.5 * span) * right, math.sqrt(-math.expm1(-span)) * right]
    weights = xp.concat([xp.stack(ends, axis=1), hats, fresh[:, None]], axis=1)
    first = [0 * cell + 2 * CELLS, 0 * cell + 2 * CELLS + 1]
    inner = xp.asarray([1 << depth for depth in range(DEPTH)], dtype=xp.int32, **how)[None, :] + (
        cell[:, None] // parts
    )
    return xp.concat([xp.stack(first, axis=1), inner, (CELLS + cell)[:, None]], axis=1), weights


def _sinhs(xp: Any, x: Array, y: Array) -> Array:
    """Return sinh(x) / sinh(y) for 0 <= x <= y, y > 0, of any size."""
    return xp.exp(x - y) * (xp.expm1(-2.0 * x) / xp.expm1(-2.0 * y))


def increment(xp: Any, t: Array, s: Array, eta: float) -> tuple[Array, Array]:
    """Return the nodes and the weights, (2 DEPTH + 6,) each, of the unit noise from a level to a cleaner one."""
    nodes, weights = path(xp, xp.stack([t, s]), eta)
    finite = t > -math.inf
    step = xp.where(finite & (s > t), s - xp.where(finite, t, s - 1.0), 1.0)
    kept = xp.where(finite, xp.exp(-0.5 * eta * step), 0.0)
    before, after = -kept * weights[0, :], weights[1, :]
    same = nodes[0, :] == nodes[1, :]
    after = after + xp.where(same, before, 0.0)
    both = xp.concat([after, xp.where(same, 0.0, before)])
    size = xp.sqrt(xp.sum(both * both))
    # of a step that is lost in rounding: that of its cell
    own = [float(place == DEPTH + 2) for place in range(2 * DEPTH + 6)]
    alone = xp.asarray(own, dtype=both.dtype, device=_array.device(both))
    found = xp.where(size > 0.0, both / xp.where(size > 0.0, size, 1.0), alone)
    return xp.concat([nodes[1, :], nodes[0, :]]), found


@dataclass(frozen=True, eq=False)
class Brownian:
    """A source of noise for `diffcore.sample`; see `brownian`."""

    parts: ClassVar = ("seed",)
    seed: Any
    eta: float

    def __call__(
        self,
        draw: Any,
        shape: tuple[int, ...],
        log_snr: Any = None,
        next_log_snr: Any = None,
        like: Any = None,
        stream: int = _streams.SAMPLER,
    ) -> Array:
        """Return the noise from one level to the next; that of the draw where there is none, or where it goes back."""
        like = np.zeros((), np.float32) if like is None else like
        xp, backend, where = _array.namespace("noise.brownian", like=like), backend_of(like), _array.device(like)
        shape = _check.shape("noise.brownian", "shape", shape)
        words = backend.keys(_keys.keys(self.seed, shape[0]), like)
        dtype = xp.float32 if _array.is_half(like.dtype) else like.dtype

        def normal(number: Any, region: Any, stream: int = _streams.BROWNIAN) -> Array:
            rows = words if region is None else words[region[0][0] : region[0][0] + region[0][1], ...]
            how = {"dtype": dtype, "device": where, "stream": stream, "region": region}
            if not getattr(number, "ndim", 0):
                return backend.normal(rows, number, shape, **how)
            count = rows.shape[0]
            numbers = xp.repeat(number, count)
            if region is not None:
                how["region"] = ((0, count * number.shape[0]), *region[1:])
            many = backend.normal(xp.tile(rows, (number.shape[0], 1)), numbers, (numbers.shape[0], *shape[1:]), **how)
            return xp.reshape(many, (number.shape[0], count, *many.shape[1:]))

        lead = tuple(getattr(log_snr, "shape", ()))
        if log_snr is None:
            eps = normal(draw, None, stream)
        elif not lead:
            eps = _noise(xp, backend, self.eta, draw, log_snr, next_log_snr, normal, None)
        else:
            _array.check_lead("noise.brownian", "log_snr", lead, shape)

            def block(*index: int) -> Array:
                if len(index) < len(lead):
                    parts = [block(*index, at) for at in range(lead[len(index)])]
                    return xp.concat(parts, axis=len(index)) if len(parts) > 1 else parts[0]
                inside = [(at, 1) if of > 1 else (0, size) for at, of, size in zip(index, lead, shape, strict=False)]
                region = (*inside, *((0, size) for size in shape[len(lead) :]))
                return _noise(xp, backend, self.eta, draw, log_snr[index], next_log_snr[index], normal, region)

            eps = block()
        return xp.astype(eps, like.dtype, copy=False)


def _noise(
    xp: Any, backend: Any, eta: float, draw: Any, t: Any, s: Any, normal: Callable[..., Array], region: Any
) -> Array:
    """Return the noise of a block of one pair of levels: by the nodes that count where those are known, else by all of them."""
    if isinstance(t, float) and isinstance(s, float) and not _array.traced():
        if not s > t:
            return normal(draw, region, _streams.SAMPLER)
        for level in (t, s):
            if math.isfinite(level) and abs(level) > END:
                must = f"be in [{-END:g}, {END:g}], or infinite"
                raise _check.error(ValueError, "noise.brownian", "log_snr", must, level)
        nodes, weights = increment(np, np.float64(t), np.float64(s), eta)
        total: Any = None
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            if weight:
                term = weight * normal(node, region)
                total = term if total is None else total + term
        return total
    some = normal(draw, region, _streams.SAMPLER)
    t, s = (xp.asarray(level, dtype=some.dtype, device=_array.device(some)) for level in (t, s))
    nodes, weights = increment(xp, t, s, eta)
    # every operation of a loop is one of the graph: all draws at once, whose sum a compiler fuses with them
    if _array.traced():
        total = xp.tensordot(weights, normal(nodes, region), axes=1)
        return xp.where(s > t, total, some)

    def add(carry: tuple[Any, Array]) -> tuple[Any, Array]:
        at, total = carry
        return at + 1, total + _array.take_row(weights, at, some) * normal(_array.take_row(nodes, at, some), region)

    first = weights[0] * normal(nodes[0], region)
    total = backend.repeat(2 * DEPTH + 5, add, (1, first))[1]
    return xp.where(s > t, total, some)


def brownian(seed: _keys.Seed, *, eta: float = 1.0) -> Brownian:
    r"""Return a source of noise that depends on levels, not on the grid, for `diffcore.sample(..., noise=brownian(7))`.

        eps = (B(e^{eta lambda_s}) - B(e^{eta lambda_t})) / sqrt(e^{eta lambda_s} - e^{eta lambda_t})

    from level t to s, with one Brownian motion B for each element of each sample. So a stochastic sampler converges to one
    picture as its steps get shorter, and a seed gives nearly the same one with 20 steps and with 40. Where a sampler's noise is
    that of the SDE with this eta, the noise of two steps t -> u -> s is exactly that of one step t -> s: `ancestral()`,
    `ddim(eta=1)` and `er_sde(noise="sde")` with eta = 1, `dpm_solver_pp(eta=eta)` and `seeds(eta=eta)` of every order,
    `sa_solver` with eta = tau^2. Others, such as `er_sde()` or `euler` with churn, have noise that grows at another rate, and
    converge as well. `lcm`, `tcd` and `cps` do not, since they have no limit.

    Args:
        seed: one seed or the keys, as for `keys`. A run starts from the same noise as with `seed=`.
        eta: a number > 0, that of the SDE.

    Returns:
        A function (draw, shape, log_snr, next_log_snr) -> noise, pure. A stage takes as long as about 40 draws. One that does
        not go to a higher log-SNR, such as a Langevin step or a way back to more noise, has the noise of its draw, as has the
        start.

    Raises:
        TypeError, ValueError: as `keys`; eta out of range; on being called, a finite log-SNR outside [-64, 64].

    Steps shorter than 2^-10 in log-SNR have noise of variance 1, but not independent of their neighbours'. A plan that goes
    through the same levels again, after going back, meets the same noise there. On JAX levels have the dtype of the data, so
    that in float32 noise agrees with other libraries' to about 1e-4.

    Source: Li et al. 2020 (arXiv 2001.01328), sec. 4; see `diffcore._brownian` for the tree.

    >>> import diffcore as dc
    >>> data = dc.exact.Gaussian(np.zeros(2), 0.25)
    >>> draw = lambda steps: dc.sample(
    ...     data, dc.samplers.ancestral(dc.schedules.Cosine(), steps), shape=(9, 2), noise=dc.noise.brownian(7)
    ... )
    >>> bool(abs(draw(400) - draw(200)).max() < 0.05)
    True
    """
    _check.number("noise.brownian", "eta", eta, 0.0, open_low=True)
    return Brownian(seed, float(eta))
