r"""Read a sampler that is written as a loop: run it once on unit vectors, and its coefficients stand in what it computes."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffcore import _array, levels
from diffcore._array import Array
from diffcore.plan import Float64, Plan
from diffcore.plan.form import Second
from diffcore.samplers._least import realise

SIZES = (1.0, 1e-3, 30.0, 1e4)
"""Standard deviations of the random numbers on which a loop must do what it did on unit vectors: limits show at the large ones."""

LINEAR = 1e-9
"""How far it may be off, relative to the sum of the sizes of the terms; what rounds to float32 is further off."""

Loop = Callable[[Callable[..., Any], Array, Callable[[], Array]], Array]
"""A sampler as a loop: (denoise, z, draw) -> z."""


def trace(
    loop: Loop,
    scaling: str = "vp",
    like: Array | None = None,
    *,
    end: float = math.inf,
    second: Second = None,
    name: str | None = None,
) -> Plan:
    r"""Return the plan of a sampler that is written as a loop, with the least memory it can do with.

        loop(denoise, z, draw) -> z

    `denoise(z, log_snr)` returns x-hat, `draw()` fresh standard normal noise of the shape of z. What the loop makes of these
    must be linear and the same for every element; step sizes may depend on the grid, not on the data. It is run twice, on
    float64 arrays (1, D) of a few numbers: on unit vectors, which shows its coefficients, and on random ones, which shows
    whether it is linear. The noise that is drawn between two calls belongs to the stage of the first.

    Args:
        loop: the sampler. z is at the level of its first call.
        scaling: "vp", "ve" or "flow": how z is scaled.
        like: an array of the library that the loop computes with (and on its device); NumPy without one.
        end: the log-SNR of what the loop returns, where that is not the last x-hat itself.
        second: "unguided" or "raw" where `denoise` returns two estimates, x-hat and what `Plan` calls the second; None for one.
        name: what the plan is called; the name of the loop without one.

    Where the loop calls `denoise(z, log_snr, next_log_snr)`, the plan's denoiser gets the next level too.

    Raises:
        ValueError: a loop that is not linear, naming the first call where that shows; one that calls `denoise` never; levels that
            depend on the data or differ between elements; noise before the first call, or in one stage two that are not
            always used in the same proportion.
        TypeError: `like` is no array.

    >>> import diffcore as dc, numpy as np
    >>> def euler(denoise, z, draw):
    ...     sigmas = [80.0, 10.0, 1.0, 0.0]
    ...     for sigma, next_sigma in zip(sigmas, sigmas[1:]):
    ...         slope = (z - denoise(z, -2.0 * np.log(sigma))) / sigma
    ...         z = z + (next_sigma - sigma) * slope
    ...     return z
    >>> print(dc.samplers.trace(euler, scaling="ve"))
    euler, ve, 3 stages
    stage  log_snr    next      z      x
        0   -8.764  -4.605  0.125  0.875
        1   -4.605       0    0.1    0.9
        2        0     inf      0      1
    """
    function = "samplers.trace"
    levels.check_scaling(function, scaling)
    like = np.zeros(1) if like is None else like
    if _array.library(like) is None:
        raise TypeError(f"{function}: `like` must be an array, such as numpy.zeros(1) or torch.zeros(1), got {like!r}")
    with _wide(_array.library(like)):
        random = np.random.default_rng(0)
        probe = _Run(function, like, second, lambda _: random.normal(size=len(SIZES)) * SIZES)
        probe.go(loop)
        if not probe.levels:
            raise ValueError(f"{function}: the loop never calls `denoise`, so that it has no stage")
        inputs = [label for label, _ in probe.given]
        order = sorted(range(len(inputs)), key=lambda at: inputs[at])  # z, estimates, second estimates, draws
        units = np.eye(len(inputs))[np.argsort(order)]
        found = _Run(function, like, second, lambda at: units[at] if at < len(units) else np.zeros(len(units)))
        found.go(loop)
    _check_same(function, probe, found, order)
    ahead = [to is not None for _, to in found.levels]
    at = np.array([level for level, _ in found.levels]) + 0.0  # not -0
    if any(ahead):
        wrong = [
            k
            for k, (_, to) in enumerate(found.levels[:-1])
            if to is None or not math.isclose(to, at[k + 1], rel_tol=1e-9)
        ]
        if wrong or not ahead[-1]:
            raise ValueError(
                f"{function}: the next level that call {(wrong or [len(at) - 1])[0]} gives `denoise` must be that of the next call; "
                f"give it in every call or in none"
            )
        end = found.levels[-1][1]
    return plan_of(
        np.stack(found.rows),
        found.drawn,
        at,
        scaling=scaling,
        end=end,
        second=second,
        ahead=any(ahead),
        name=name or getattr(loop, "__name__", "loop"),
    )


def plan_of(
    rows: Float64,
    drawn: Sequence[int],
    log_snr: Float64,
    *,
    scaling: str,
    end: float = math.inf,
    second: Second = None,
    ahead: bool = False,
    name: str = "loop",
) -> Plan:
    """Return the plan of least memory of a run that is known by its responses.

    Args:
        rows: (N + 1, columns): z at each of N calls of the denoiser and at the end, as combinations of z at the start, the N
            estimates, N second estimates where there are such, and the draws of noise.
        drawn: how many calls there were before each draw.
        log_snr: (N,), the levels of the calls.
        scaling, end, second, ahead, name: as for `trace`.

    Raises:
        ValueError: shapes that do not fit; a first row that is not z; a row that depends on a later call; draws that no stage
            can have, as for `trace`.

    >>> import numpy as np
    >>> plan_of(np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 2], [0, 0, 1, 0]]), [1], np.array([-2, 0]), scaling="ve").update.tolist()
    [[[0.5, 2.0, 0.5]], [[0.0, 0.0, 1.0]]]
    """
    function = "samplers.trace"
    rows, log_snr = np.array(rows, dtype=np.float64), np.asarray(log_snr, dtype=np.float64)
    stages, kinds = len(rows) - 1, 1 if second is None else 2
    first = 1 + kinds * stages
    if stages < 1 or rows.shape != (stages + 1, first + len(drawn)) or log_snr.shape != (stages,):
        raise ValueError(
            f"{function}: {len(log_snr)} calls and {len(drawn)} draws make rows of the shape "
            f"{(len(log_snr) + 1, 1 + kinds * len(log_snr) + len(drawn))}, got {rows.shape}"
        )
    if not np.all(np.isfinite(rows)):
        raise ValueError(f"{function}: {_where(int(np.argwhere(~np.isfinite(rows))[0][0]), stages)} is not finite")
    if not np.allclose(rows[0], np.arange(rows.shape[1]) == 0, rtol=0.0, atol=1e-12):
        raise ValueError(
            f"{function}: the first call must be at z itself, got {rows[0, 0]!r} z"
            + (" and noise" if np.any(rows[0, 1:]) else "")
            + "; let what comes before it be the caller's, so that z is at the level of the first call"
        )
    response = np.zeros((stages + 1, 1 + stages * (1 + kinds)))
    response[:, 0] = rows[:, 0]
    for kind in range(kinds):
        response[:, 2 + kind :: 1 + kinds] = rows[:, 1 + kind * stages : 1 + (kind + 1) * stages]
    size = np.abs(rows).max(axis=1)
    for stage in range(-1, stages):
        columns = [first + at for at, calls in enumerate(drawn) if calls == stage + 1]
        made = _merged(function, rows[:, columns] / np.where(size > 0.0, size, 1.0)[:, None], stage)
        if stage >= 0:
            response[:, 1 + stage * (1 + kinds)] = made * size
    late = np.triu(np.ones((stages + 1, stages)))[:, np.arange(stages).repeat(1 + kinds)] * np.abs(response[:, 1:])
    if np.any(late):
        raise ValueError(f"{function}: {_where(int(np.argwhere(late)[0][0]), stages)} depends on a later call")
    table = realise(response[:, None], 1 + kinds, _slopes(scaling, log_snr, kinds))[:, 0]
    only_x = np.arange(table.shape[-1]) == table.shape[-2] + 1
    if np.allclose(table[-1, 0], only_x, rtol=0.0, atol=1e-12):
        table[-1, 0], end = only_x, math.inf
    return Plan(name, scaling, log_snr, np.append(log_snr[1:], end), table, second=second, ahead=ahead)


def _slopes(scaling: str, log_snr: Float64, kinds: int) -> list[Float64]:
    """Return eps-hat of every stage and estimate as rows over (z, inputs), and under "flow" the velocity, which multistep methods keep."""
    level = levels.level(log_snr, scaling)
    sigma = np.where(level.sigma > 0.0, level.sigma, 1.0)
    found = []
    for kind in range(kinds):
        row = np.zeros((len(log_snr), 1, 2 + kinds))
        row[:, 0, 0], row[:, 0, 2 + kind] = 1.0 / sigma, -level.alpha / sigma
        found.append(row)
        if scaling == "flow":
            found.append(row - (np.arange(2 + kinds) == 2 + kind))
    return found


def _merged(function: str, columns: Float64, stage: int) -> Float64:
    """Return the one column of noise (N + 1,) that has the law of the draws of a stage, (N + 1, draws)."""
    columns = columns[:, np.any(columns != 0.0, axis=0)]
    if not columns.shape[1]:
        return np.zeros(len(columns))
    if stage < 0:
        raise ValueError(
            f"{function}: noise is drawn before the first call of `denoise`; add it to z before the loop, which then starts there"
        )
    if columns.shape[1] == 1:
        return columns[:, 0]
    found, size, _ = np.linalg.svd(columns, full_matrices=False)
    if size[1] > 1e-12 * size[0]:
        raise ValueError(
            f"{function}: {columns.shape[1]} draws of noise after call {stage}, used in different proportions, cannot be one; draw "
            f"between two calls once, and let what needs another draw follow a later call"
        )
    largest = np.argmax(np.abs(found[:, 0]))
    return np.asarray(found[:, 0] * size[0] * np.sign(found[largest, 0]))


def _where(row: int, stages: int) -> str:
    return f"the z of call {row}" if row < stages else "what the loop returns"


class _Run:
    """One run of a loop on given numbers, which keeps what it did."""

    def __init__(self, function: str, like: Array, second: Second, numbers: Callable[[int], Float64]) -> None:
        self.function, self.like, self.second, self.numbers = function, like, second, numbers
        self.rows: list[Float64] = []
        self.levels: list[tuple[float, float | None]] = []
        self.drawn: list[int] = []
        self.given: list[tuple[tuple[int, int], Float64]] = []  # ((kind, number), values): z is of kind 0

    def go(self, loop: Loop) -> None:
        z = self._give(0, 0)
        self.shape = tuple(z.shape)
        self._keep(loop(self.denoise, z, self.draw))

    def denoise(self, z: Array, log_snr: Any, next_log_snr: Any = None) -> Any:
        self._keep(z)
        call = len(self.levels)
        self.levels.append((self._level(log_snr), None if next_log_snr is None else self._level(next_log_snr)))
        x = self._give(1, call)
        return x if self.second is None else (x, self._give(2, call))

    def draw(self) -> Array:
        self.drawn.append(len(self.levels))
        return self._give(3, len(self.drawn) - 1)

    def _give(self, kind: int, number: int) -> Array:
        values = self.numbers(len(self.given))
        self.given.append(((kind, number), values))
        xp = _array.library(self.like)
        return xp.asarray(values[None].copy(), dtype=xp.float64, device=_array.device(self.like))

    def _keep(self, z: Array) -> None:
        where = f"{self.function}: the z of call {len(self.levels)}, or what the loop returns,"
        if _array.library(z) is not _array.library(self.like):
            raise ValueError(f"{where} must be an array of the library of `like`, got {type(z).__name__}")
        if tuple(z.shape) != self.shape:
            raise ValueError(f"{where} must have the shape of z, {self.shape}, got {tuple(z.shape)}")
        self.rows.append(_host(z)[0].copy())

    def _level(self, log_snr: Any) -> float:
        found = _host(log_snr)
        if found.size == 0 or np.any(found != found.flat[0]):
            raise ValueError(
                f"{self.function}: call {len(self.levels)} must have one log-SNR for all elements, got {found.tolist()}; trace the loop "
                f"of one sample"
            )
        return float(found.flat[0])


def _check_same(function: str, probe: _Run, found: _Run, order: list[int]) -> None:
    """Raise ValueError unless the random run did what the coefficients of the other say."""
    numbers = np.stack([probe.given[at][1] for at in order])
    for k, (random, units) in enumerate(zip(probe.rows, found.rows, strict=False)):
        where = _where(k, min(len(probe.levels), len(found.levels)))
        bound = LINEAR * (np.abs(units) @ np.abs(numbers))
        off = np.abs(units @ numbers - random)
        if np.any(~(off <= bound)):
            raise ValueError(
                f"{function}: {where} is not linear in z, the answers of `denoise` and the noise of `draw`, in float64: a run on "
                f"other numbers is off by {off.max():.2g}. Leave clipping and thresholding to `transform_x`, and noise to `draw`; norms, "
                f"constants, branches on values and casts to float32 cannot be in a plan"
            )
        if k < min(len(probe.levels), len(found.levels)) and not _equal(probe.levels[k], found.levels[k]):
            raise ValueError(
                f"{function}: the log-SNR of call {k} depends on the data, {probe.levels[k][0]!r} in one run and "
                f"{found.levels[k][0]!r} in another; drive one-stage plans where step sizes adapt"
            )
    if len(probe.rows) != len(found.rows) or probe.drawn != found.drawn:
        raise ValueError(
            f"{function}: how often the loop calls `denoise` and `draw` depends on the data, {len(probe.levels)} and "
            f"{len(probe.drawn)} times in one run and {len(found.levels)} and {len(found.drawn)} in another"
        )


def _equal(a: tuple[float, float | None], b: tuple[float, float | None]) -> bool:
    return all(
        x == y or (x is not None and y is not None and math.isclose(x, y, rel_tol=1e-12))
        for x, y in zip(a, b, strict=True)
    )


def _host(array: Any) -> Float64:
    """Return an array of any library, or a number, as float64 on the host."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.asarray(array, dtype=np.float64)


def _wide(xp: Any) -> contextlib.AbstractContextManager[Any]:
    """Let JAX compute in float64, as all other libraries do."""
    if _array.name(xp) != "jax":
        return contextlib.nullcontext()
    jax = sys.modules["jax"]
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    import jax.experimental

    return jax.experimental.enable_x64()
