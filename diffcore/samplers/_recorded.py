r"""The plan of a run from its responses: z at every call, as a combination of the inputs of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from diffcore import _check, levels
from diffcore.plan import Float64, Plan
from diffcore.plan.form import Second
from diffcore.samplers._least import realise

ROUNDING = 1e-12
"""The rounding allowed, relative to coefficients of size 1."""


def plan_of(
    rows: npt.ArrayLike,
    drawn: Sequence[int],
    log_snr: npt.ArrayLike,
    *,
    scaling: str,
    end: float = math.inf,
    second: Second = None,
    ahead: bool = False,
    name: str = "loop",
    function: str = "samplers.trace",
) -> Plan:
    """Return the plan, of least memory, of a run that is known by its responses.

    Args:
        rows: (N + 1, columns): z at each of N calls of the denoiser, and at the end, as combinations of z at the start, of
            the N estimates, of N second estimates where there are such, and of the draws of noise, in this order.
        drawn: how many calls there were before each draw. The noise belongs to the stage whose result first has it, or to that
            of the last of these calls where none does.
        log_snr: (N,), the levels of the calls.
        scaling: "vp", "ve" or "flow".
        end: the log-SNR at the end, where that is not the last x-hat itself.
        second, ahead: as for `Plan`.
        name: of the plan.
        function: what messages begin with.

    Raises:
        ValueError: shapes that do not fit; a first call at another state than z; a call that depends on a later one; noise before
            the first call; draws of one stage that are used in different proportions.

    >>> plan_of([[1, 0, 0, 0], [0.5, 0.5, 0, 2], [0, 0, 1, 0]], [1], [-2, 0], scaling="ve").update.tolist()
    [[[0.5, 2.0, 0.5]], [[0.0, 0.0, 1.0]]]
    """
    rows, log_snr = np.array(rows, dtype=np.float64), np.array(log_snr, dtype=np.float64)
    end = _check.number(function, "end", end, finite=False)
    stages, kinds = log_snr.size, 1 if second is None else 2
    shape = (stages + 1, 1 + kinds * stages + len(drawn))
    if stages < 1 or rows.shape != shape:
        raise ValueError(
            f"{function}: rows of {stages} calls and {len(drawn)} draws have the shape {shape}, got {rows.shape}"
        )
    if not np.all(np.isfinite(rows)):
        raise ValueError(f"{function}: {place(int(np.argwhere(~np.isfinite(rows))[0, 0]), stages)} is not finite")
    used = rows[:, shape[1] - len(drawn) :] != 0.0
    drawn = [int(np.argmax(has)) if np.any(has) else calls for has, calls in zip(used.T, drawn, strict=True)]
    noise = {
        k: rows[:, [shape[1] - len(drawn) + at for at, calls in enumerate(drawn) if calls == k]] for k in {0, *drawn}
    }
    if np.any(noise[0]):
        raise ValueError(
            f"{function}: noise is drawn before the first call of `denoise`; add it to z before the loop, which then starts there"
        )
    if not np.allclose(rows[0], np.arange(shape[1]) == 0, rtol=0.0, atol=ROUNDING):
        raise ValueError(
            f"{function}: the first call must be at z itself, got {rows[0, 0]:g} z; what comes before it belongs before the loop: "
            f"its z is at the level of the first call"
        )
    inputs = 1 + kinds
    response = np.zeros((stages + 1, 1 + stages * inputs))
    response[:, 0] = rows[:, 0]
    for kind in range(kinds):
        response[:, 2 + kind :: inputs] = rows[:, 1 + kind * stages : 1 + (kind + 1) * stages]
    size = np.abs(rows).max(axis=1)
    size = np.where(size > 0.0, size, 1.0)
    for calls in noise.keys() - {0}:
        response[:, 1 + (calls - 1) * inputs] = _merged(function, noise[calls], size, calls - 1)
    early = np.arange(stages + 1)[:, None] <= np.arange(stages).repeat(inputs)
    if np.any(early & (response[:, 1:] != 0.0)):
        call = int(np.argwhere(early & (response[:, 1:] != 0.0))[0, 0])
        raise ValueError(f"{function}: {place(call, stages)} depends on a later call")
    table = realise(response[:, None], inputs, slopes(scaling, log_snr[:, None], kinds))[:, 0]
    x = np.arange(table.shape[-1]) == table.shape[-2] + 1
    if np.allclose(table[-1, 0], x, rtol=0.0, atol=ROUNDING):
        table[-1, 0], end = x, math.inf
    return Plan(name, scaling, log_snr, np.append(log_snr[1:], end), table, second=second, ahead=ahead)


def place(row: int, stages: int) -> str:
    """Return the name of a row of responses, for messages."""
    return f"the z of call {row}" if row < stages else "what the loop returns"


def _merged(function: str, columns: Float64, size: Float64, call: int) -> Float64:
    """Return the one column of noise (N + 1,) with the law of all that is drawn after a call, (N + 1, draws), in rows of a size."""
    columns = columns[:, np.any(columns != 0.0, axis=0)]
    if columns.shape[1] < 2:
        return np.asarray(columns.sum(axis=1))
    shape, strength, _ = np.linalg.svd(columns / size[:, None], full_matrices=False)
    if strength[1] > ROUNDING * strength[0]:
        raise ValueError(
            f"{function}: {columns.shape[1]} draws of noise after call {call}, used in different proportions, cannot be one; draw "
            f"once between two calls, and let what needs another draw follow a later call"
        )
    one = size * strength[0] * shape[:, 0] * np.sign(shape[np.argmax(np.abs(shape[:, 0])), 0])
    return np.where(np.any(columns != 0.0, axis=1), one, 0.0)  # exactly 0 before it is drawn


def slopes(scaling: str, log_snr: Float64, kinds: int) -> list[Float64]:
    """Return the slopes that multistep methods keep, as rows (stages, P, ...) over (z, inputs) at levels (stages, P): eps-hat, and
    under "flow" the velocity eps-hat - x-hat."""
    level = levels.level(log_snr, scaling)
    sigma = np.where(level.sigma > 0.0, level.sigma, 1.0)
    found = []
    for column in range(2, 2 + kinds):
        row = np.zeros((*log_snr.shape, 2 + kinds))
        row[..., 0], row[..., column] = 1.0 / sigma, -level.alpha / sigma
        found.append(row)
        if scaling == "flow":
            found.append(row - (np.arange(2 + kinds) == column))
    return found
