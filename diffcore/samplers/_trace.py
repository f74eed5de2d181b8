r"""Read a sampler that is written as a loop: run on unit vectors, it computes its own coefficients."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from diffcore import _array, _check, levels
from diffcore._array import Array
from diffcore.plan import Float64, Plan
from diffcore.plan.form import Second
from diffcore.samplers._recorded import place, plan_of

SIZES = (1.0, -1.0, 1e-3, -1e-3, 30.0, -30.0, 1e4, -1e4)
"""Sizes of the random numbers on which a loop must agree with its coefficients: clipping and branches show at the large ones."""

RUNS: tuple[Float64, ...] = (np.array(SIZES), *(size * np.ones(len(SIZES)) for size in (1.0, -1.0, 1e-6)))
"""Of the random runs: in one the sizes are mixed; two are each other's negative, and one is small throughout, so that a branch on
a mean, a norm or a largest value turns elsewhere in one of them than in another."""

LINEAR = 1e-9
"""The error allowed, relative to the sum of the sizes of the terms; rounding to float32 exceeds it."""

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

    `denoise(z, log_snr)` returns x-hat, `draw()` fresh standard normal noise of the shape of z. The loop must be linear in them,
    and the same for every sample and element; step sizes may depend on the grid, not on the data. It is run on float64 arrays: on
    unit vectors (1, D), D up to twice the number of calls, which yield its coefficients, and on a few random numbers, (1, 8) and
    (2, 4), which test whether it is linear. Noise that is drawn between two calls belongs to the stage of the first. A loop
    in JAX may use `lax.scan` and the like: it is then run without `jax.jit`.

    Args:
        loop: the sampler; it gets z at the level of its first call. Where it calls `denoise(z, log_snr, next_log_snr)`, the
            denoiser of the plan gets the next level too.
        scaling: "vp", "ve" or "flow": how z is scaled.
        like: an array of the library, and on the device, that the loop computes with; NumPy without one.
        end: the log-SNR of the result; without it that counts as clean data, which is right where the last step leads to x-hat
            (not checked).
        second: "unguided" or "raw" where `denoise` returns two estimates, x-hat and the second one of `Plan`.
        name: of the plan; the name of the loop without one.

    Raises:
        ValueError: a loop that is not linear, with the first call where that shows, or that mixes samples; one that never calls
            `denoise`, or first at another state than z; levels that depend on the data or differ between elements; noise
            before the first call, or two draws in a stage that are not always used in one proportion.
        TypeError: `like` is not an array; `denoise` or `draw` called with other arguments, or inside `jax.vmap` and the like.

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
    return read("samplers.trace", loop, scaling, like, end=end, second=second, name=name)


def read(
    function: str,
    loop: Loop,
    scaling: str,
    like: Array | None,
    *,
    end: float = math.inf,
    second: Second = None,
    name: str | None = None,
    several: bool = True,
) -> Plan:
    """Return what `trace` does, with errors that begin with the name of another function; unless the loop is one for `several`
    samples, it is run on one alone."""
    levels.check_scaling(function, scaling)
    like = np.zeros(1) if like is None else like
    if _array.library(like) is None:
        raise _check.error(TypeError, function, "like", "be an array, such as numpy.zeros(1) or torch.zeros(1)", like)
    _check.choice(function, "second", second, ("unguided", "raw", None))
    with _float64(like):
        try:
            found = _read(function, loop, like, second, several)
        except _TracedError:
            if not (plainly := _plainly(like)):
                raise
            with plainly:
                found = _read(function, loop, like, second, several)
    at = np.array([level for level, _ in found.levels]) + 0.0  # not -0
    ahead = [to for _, to in found.levels]
    if given := [to for to in ahead if to is not None]:
        for k, to in enumerate(ahead):
            if to is None or (k + 1 < len(at) and not math.isclose(to, at[k + 1], rel_tol=LINEAR)):
                raise ValueError(
                    f"{function}: call {k} must give `denoise` the level of the next call as its next level, got {to!r}; give "
                    f"one in every call or in none"
                )
        end = given[-1]
    if len(at) > 1 and at[-1] < at[0] and at.min() >= 0.0 and end == math.inf:  # as sigmas and times are
        warnings.warn(
            f"{function}: the levels fall from {at[0]:g} to {at[-1]:g}, but the end is clean data; `denoise` takes log-SNRs, which "
            f"are -2 log(sigma / alpha), not sigmas or times; a loop towards noise has an `end`",
            stacklevel=4,
        )
    return plan_of(
        np.stack(found.rows),
        found.drawn,
        at,
        scaling=scaling,
        end=end,
        second=second,
        ahead=bool(given),
        name=name or str(getattr(loop, "__name__", "loop")),
        function=function,
    )


def _read(function: str, loop: Loop, like: Array, second: Second, several: bool) -> _Run:
    """Return the run of a loop on unit vectors; raise where it differs on random numbers."""
    probes = [_Run(function, like, second, _random(sizes)) for sizes in RUNS]
    if several:
        probes.append(_Run(function, like, second, _random(RUNS[0]), samples=2))
    for probe in probes:
        probe.go(loop)
    if not probe.levels:
        raise ValueError(f"{function}: the loop never calls `denoise`, so that it has no stage")
    order = {
        label: at for at, label in enumerate(sorted({label for probe in probes for label in probe.given}))
    }  # z, estimates, second estimates, draws
    units = np.eye(len(order))
    found = _Run(function, like, second, lambda label: units[order[label]] if label in order else np.zeros(len(order)))
    found.go(loop)
    for probe in probes:
        _check_same(function, probe, found, list(order))
    return found


def _random(sizes: Float64) -> Callable[[Label], Float64]:
    """Return random numbers for each label, the same in all runs but for their sizes; those of a pair differ in size alone."""

    def numbers(label: Label) -> Float64:
        drawn = np.repeat(np.random.default_rng(label).normal(size=len(sizes) // 2), 2)
        return drawn * sizes

    return numbers


Label = tuple[int, int]
"""An input of a loop: (0, 0) is z, (1, k) and (2, k) are the estimates of call k, (3, n) is draw n."""


class _TracedError(TypeError):
    """A loop called `denoise` while a library traced it, so that no values are known."""


class _Run:
    """One run of a loop on given numbers, a row of them for each label, and a record of its calls and draws."""

    def __init__(
        self, function: str, like: Array, second: Second, numbers: Callable[[Label], Float64], samples: int = 1
    ) -> None:
        self.function, self.like, self.second, self.numbers, self.samples = function, like, second, numbers, samples
        self.given: dict[Label, Float64] = {}
        self.rows: list[Float64] = []
        self.levels: list[tuple[float, float | None]] = []
        self.drawn: list[int] = []

    def go(self, loop: Loop) -> None:
        self._keep(loop(self._denoise, self._give((0, 0)), self._draw), "the loop must return")

    def _denoise(self, z: Array, log_snr: Any = None, next_log_snr: Any = None, *more: Any, **named: Any) -> Any:
        call = len(self.levels)
        if log_snr is None or more or named:
            hint = "a log-SNR is -2 log(sigma / alpha)"
            hint = hint if log_snr is None else "other inputs of a network belong in the denoiser"
            must = "be called as denoise(z, log_snr), or with the next log-SNR as well"
            got = (z, *(part for part in (log_snr, next_log_snr, *more, *named) if part is not None))
            raise _check.error(TypeError, self.function, "denoise", must, got, hint)
        self._keep(z, f"call {call} must give `denoise`")
        self.levels.append((self._level(log_snr), None if next_log_snr is None else self._level(next_log_snr)))
        x = self._give((1, call))
        return x if self.second is None else (x, self._give((2, call)))

    def _draw(self, *given: Any, **named: Any) -> Array:
        if given or named:
            must = "be called as draw(), which returns noise of the shape of z"
            raise _check.error(TypeError, self.function, "draw", must, (*given, *named))
        self.drawn.append(len(self.levels))
        return self._give((3, len(self.drawn)))

    def _give(self, label: Label) -> Array:
        self.given[label] = self.numbers(label)
        xp = _array.library(self.like)
        values = self.given[label].reshape(self.samples, -1).copy()
        return xp.asarray(values, dtype=xp.float64, device=_array.device(self.like))

    def _keep(self, z: Array, who: str) -> None:
        shape = (self.samples, self.given[0, 0].size // self.samples)
        library = _array.library(self.like)
        if not hasattr(z, "shape") or _array.library(z) is not library or tuple(z.shape) != shape:
            got = f"a {type(z).__name__}" + (f" of shape {tuple(z.shape)}" if hasattr(z, "shape") else "")
            hint = (
                "; leave guidance to the denoiser" if tuple(getattr(z, "shape", ())) == (2 * shape[0], shape[1]) else ""
            )
            raise ValueError(
                f"{self.function}: {who} a {_array.name(library)} array of the shape of z, {shape}, got {got}{hint}"
            )
        self.rows.append(self._values(z, who, "an array").reshape(-1).copy())

    def _values(self, array: Any, who: str, what: str) -> Float64:
        try:
            return _array.to_host(array, np.float64, function=self.function, argument="log_snr")
        except TypeError as error:
            if not hasattr(array, "dtype"):
                raise
            raise _TracedError(
                f"{self.function}: {who} {what} whose values are known, got one that is being traced, as in jax.vmap, jax.grad or "
                f"torch.func.vmap; a loop is read as plain code"
            ) from error

    def _level(self, log_snr: Any) -> float:
        found = self._values(log_snr, f"call {len(self.levels)} must give `denoise`", "a log-SNR").reshape(-1)
        if found.size == 0 or np.any(found != found[0]):
            raise ValueError(
                f"{self.function}: call {len(self.levels)} must give `denoise` one log-SNR for all elements, got "
                f"{found[:4].tolist()}; trace the loop of one sample"
            )
        return float(found[0])


def _check_same(function: str, probe: _Run, found: _Run, labels: list[Label]) -> None:
    """Raise ValueError unless a run on random numbers agrees with the coefficients from the run on unit vectors."""
    numbers = np.stack([probe.given.get(label, np.zeros(len(SIZES))) for label in labels])
    calls = min(len(probe.levels), len(found.levels))
    for k, (random, units) in enumerate(zip(probe.rows, found.rows, strict=False)):
        off, bound = np.abs(units @ numbers - random), LINEAR * (np.abs(units) @ np.abs(numbers))
        if not np.all(off <= bound):  # NaN is not
            if probe.samples > 1:  # which is run last
                raise ValueError(
                    f"{function}: {place(k, calls)} depends on the other samples of its batch, as z - z.mean(axis=0) does; a "
                    f"plan does the same to every sample and element"
                )
            raise ValueError(
                f"{function}: {place(k, calls)} is not linear in z, the answers of `denoise` and the noise of `draw`, in float64: "
                f"on random numbers it is off by {off.max():.2g}. Leave clipping to `transform_x` and noise to `draw`; "
                f"norms, constants, branches on values and casts to float32 cannot be in a plan"
            )
        if k < calls and not _same_level(probe.levels[k], found.levels[k]):
            raise ValueError(
                f"{function}: the log-SNR of call {k} depends on the data, {probe.levels[k][0]:g} in one run and "
                f"{found.levels[k][0]:g} in another; where step sizes adapt, drive plans of one stage"
            )
    if len(probe.rows) != len(found.rows) or probe.drawn != found.drawn:
        raise ValueError(
            f"{function}: how often the loop calls `denoise` and `draw` depends on the data, {len(probe.levels)} and "
            f"{len(probe.drawn)} times in one run, {len(found.levels)} and {len(found.drawn)} times in another"
        )


def _same_level(one: tuple[float, float | None], other: tuple[float, float | None]) -> bool:
    pair = np.array([one, other], dtype=np.float64)  # None is NaN
    return bool(np.allclose(pair[0], pair[1], rtol=1e-12, atol=0.0, equal_nan=True))


def _plainly(like: Array) -> contextlib.AbstractContextManager[Any] | None:
    """Return a context in which the loops of a library run as plain code, None where it has none."""
    jax = sys.modules.get("jax") if _array.name(_array.library(like)) == "jax" else None
    return None if jax is None else cast("contextlib.AbstractContextManager[Any]", jax.disable_jit())


def _float64(like: Array) -> contextlib.AbstractContextManager[Any]:
    """Let JAX compute in float64, as every other library does."""
    if _array.name(_array.library(like)) != "jax":
        return contextlib.nullcontext()
    return cast("contextlib.AbstractContextManager[Any]", sys.modules["jax"].enable_x64(True))
