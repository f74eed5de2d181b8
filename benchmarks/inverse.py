"""Every method for inverse problems against the truth, at equal numbers of calls: Gaussian videos, and a mixture.

    python -m benchmarks.inverse                 # some minutes; rewrites its tables in docs/conditioning.md

A call of the denoiser costs 1, a pullback through it 2. On Gaussian videos KL(drawn || p(x | y)) in nats, averaged over y, is by
algebra: every stage is affine in z, in y and in its noises (`diffcore.testing.drawn_by`). What is not, DPS with its norm and
weighted particles, is measured on the mixture, by samples, beside all others: the energy distance to samples of the true
posterior.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import diffcore as dc
from benchmarks.conditioning import SHAPE, problem
from diffcore import _files, conditioning
from diffcore.testing.affine import drawn_by

Float64 = npt.NDArray[np.float64]

DOCS = Path(__file__).resolve().parent.parent / "docs"
CALLS = (64, 256, 1024)
SCHEDULE = dc.schedules.Cosine()
VARIANCE = 0.25
COUNT = 4000


class Problem(NamedTuple):
    """Data, the matrix of what is measured of it, the deviation of its noise, and the arguments that say so."""

    data: Any
    rows: Float64
    noise: float
    how: dict[str, Any]


class Method(NamedTuple):
    """How a method is run: its costs a stage, and (problem, y, steps) -> denoiser, plan, constraint."""

    cost: float
    make: Callable[[Problem, Any, int], tuple[Any, dc.Plan, Any]]


def plan_of(steps: int) -> dc.Plan:
    return dc.samplers.ancestral(SCHEDULE, max(1, steps))


def wrapped(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    def make(case: Problem, y: Any, steps: int) -> tuple[Any, dc.Plan, Any]:
        given = {"noise_std": case.noise} if function is not conditioning.reconstruction else {}
        return function(case.data, y, schedule=SCHEDULE, **case.how, **given, **settings), plan_of(steps), None

    return make


def held(
    function: Callable[..., Any], noisy: bool = True, eta: float | None = None, **settings: Any
) -> Callable[..., Any]:
    def make(case: Problem, y: Any, steps: int) -> tuple[Any, dc.Plan, Any]:
        given = {"noise_std": case.noise} if noisy else {}
        plan = plan_of(steps) if eta is None else dc.samplers.ddim(SCHEDULE, max(1, steps), eta=eta)
        return case.data, plan, function(y, **case.how, **given, **settings)

    return make


def repainted(times: int) -> Callable[..., Any]:
    def make(case: Problem, y: Any, steps: int) -> tuple[Any, dc.Plan, Any]:
        plan = conditioning.repaint(plan_of(steps), jump=max(1, steps // 16), times=times)
        return case.data, plan, conditioning.ilvr(y, **case.how)

    return make


def methods(measured: int) -> dict[str, Method]:
    """Return every method whose stages are affine, for a number of measured elements."""
    found = {
        "none": Method(1, lambda case, y, steps: (case.data, plan_of(steps), None)),
        "replacement (ILVR)": Method(1, held(conditioning.ilvr, noisy=False)),
        "RePaint, 4 times": Method(4, repainted(4)),
        "RePaint, 16 times": Method(16, repainted(16)),
        "DDRM": Method(1, held(conditioning.ddrm, eta=0.85)),
        "DiffPIR": Method(1, wrapped(conditioning.diffpir)),
        "DiffPIR, r^2 of the data": Method(1, wrapped(conditioning.diffpir, data_variance=VARIANCE)),
        "DAPS": Method(1, held(conditioning.daps, data_variance=VARIANCE)),
        "reconstruction, w = 2": Method(3, wrapped(conditioning.reconstruction, weight=2.0)),
        "PiGDM": Method(3, wrapped(conditioning.pigdm, data_variance=VARIANCE)),
        "TMPD": Method(5, wrapped(conditioning.tmpd)),
    }
    for iterations in (2, 5, measured + 4):
        make = wrapped(conditioning.moment_matching, iterations=iterations)
        found[f"moment matching, {iterations} iterations"] = Method(1 + 2 * iterations, make)
    return found


def gaussian_problems() -> dict[str, Problem]:
    """Return extension without noise, and a small clip with noise."""
    known = problem([0, 1])
    mask = np.broadcast_to(conditioning.frames([0, 1], of=SHAPE[0]), SHAPE)
    small = conditioning.downsample(2)
    rows = small(np.eye(32).reshape(32, *SHAPE)).reshape(32, -1).T
    return {
        "extension, two of eight frames known": Problem(known.data, np.eye(32)[mask.ravel()], 0.0, {"mask": mask}),
        "super-resolution, noise of deviation 0.1": Problem(known.data, rows, 0.1, {"measure": small}),
    }


def divergence(case: Problem, method: Method, calls: int) -> float:
    """Return the mean over y of KL(drawn || p(x | y)), of the elements that y leaves open."""
    covariance, rows, noise = np.asarray(problem([0, 1]).covariance), case.rows, case.noise
    seen = rows @ covariance @ rows.T + noise**2 * np.eye(len(rows))
    gain = np.linalg.solve(seen, rows @ covariance).T
    truth = covariance - gain @ rows @ covariance
    free = ~np.any(rows != 0.0, axis=0) if noise == 0.0 else np.ones(len(covariance), dtype=bool)
    steps = int(calls / method.cost)
    if steps < 1:
        return np.nan
    shape = SHAPE if "mask" in case.how else (SHAPE[0], 1, 1, 1)

    def shaped(y: Any) -> Any:
        if "mask" not in case.how:
            return np.reshape(y, (-1, *shape))
        found = np.zeros((len(y), 32))
        found[:, np.any(rows != 0.0, axis=0)] = y
        return found.reshape(-1, *shape)

    denoise, plan, constraint = method.make(case, shaped(np.zeros((1, len(rows))))[0], steps)
    drawn = drawn_by(denoise, plan, SHAPE, prediction="x", constraint=constraint)
    basis = np.concatenate([np.zeros((1, len(rows))), np.eye(len(rows))])
    denoise, plan, constraint = method.make(case, shaped(basis), steps)
    quiet = lambda draw, shape: np.zeros(shape)  # noqa: E731
    ends = dc.sample(
        denoise, plan, np.zeros((len(basis), *SHAPE)), noise=quiet, prediction="x", constraint=constraint
    ).reshape(len(basis), -1)
    error = ((ends[1:] - ends[0]).T - gain)[free]
    truth, spread = truth[np.ix_(free, free)], drawn.covariance[np.ix_(free, free)]
    if not np.all(np.isfinite(spread)) or np.abs(spread).max() > 1e12:
        return np.inf
    ratio = np.linalg.solve(truth, spread)
    sign, log = np.linalg.slogdet(ratio)
    found = 0.5 * (np.trace(ratio) - len(truth) - log + np.trace(np.linalg.solve(truth, error @ seen @ error.T)))
    return float(found) if sign > 0 else np.inf


def mixture() -> tuple[Problem, Any, Any]:
    """Return what goes up or down: eight frames of one pixel, of which the first two are seen with noise; y; and p(x | y)."""
    count = 8
    time = 0.02 * 0.8 ** np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    path = np.stack([np.linspace(0.0, 0.9, count), np.linspace(0.0, -0.9, count)])
    data = dc.exact.Mixture(np.array([0.5, 0.5]), path, np.stack([time, time]))
    mask = np.arange(count) < 2
    rows, noise, y = np.eye(count)[mask], 0.1, np.array([0.05, 0.15])
    weights, means, spreads = [], [], []
    for mean in path:
        seen = rows @ time @ rows.T + noise**2 * np.eye(2)
        gain = np.linalg.solve(seen, rows @ time).T
        apart = y - rows @ mean
        weights.append(np.exp(-0.5 * apart @ np.linalg.solve(seen, apart)))
        means.append(mean + gain @ apart)
        spreads.append(time - gain @ rows @ time)
    truth = dc.exact.Mixture(np.array(weights) / np.sum(weights), np.stack(means), np.stack(spreads))
    return (
        Problem(data, rows, noise, {"mask": mask[None]}),
        np.where(mask, np.append(y, np.zeros(count - 2)), 0.0)[None],
        truth,
    )


def energy(a: Float64, b: Float64) -> float:
    """Return the energy distance 2 E|a - b| - E|a - a'| - E|b - b'|, unbiased."""

    def mean(x: Float64, y: Float64, same: bool) -> float:
        square = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1) - 2.0 * x @ y.T
        total = float(np.sum(np.sqrt(np.maximum(square, 0.0))))
        return total / (len(x) * (len(x) - 1) if same else len(x) * len(y))

    return 2.0 * mean(a, b, False) - mean(a, a, True) - mean(b, b, True)


def on_the_mixture(calls: int) -> dict[str, tuple[float, float]]:
    """Return, for each method, the energy distance to the truth and the share of samples that go up."""
    case, y, truth = mixture()
    want = truth.sample(1, COUNT)
    found: dict[str, tuple[float, float]] = {}

    def judge(name: str, x: Any) -> None:
        found[name] = (
            1e3 * energy(np.asarray(x).reshape(len(x), -1), want),
            float(np.mean(np.asarray(x)[:, -1] > 0.0)),
        )

    judge("the truth", truth.sample(2, COUNT))
    table = methods(2)
    dps = lambda case, y, steps: (  # noqa: E731
        conditioning.dps(case.data, y, weight=0.3, schedule=SCHEDULE, **case.how),
        conditioning.dps_plan(plan_of(steps)),
        None,
    )
    table["DPS, w = 0.3"] = Method(3, dps)
    for name, method in table.items():
        denoise, plan, constraint = method.make(case, y, int(calls / method.cost))
        x = dc.sample(denoise, plan, shape=(COUNT, 8), like=np.zeros(1), seed=7, prediction="x", constraint=constraint)
        judge(name, x)
    for particles in (4, 16):
        steps = int(calls / (3 * particles))
        if steps < 4:
            found[f"twisted, {particles} particles"] = (np.nan, np.nan)
            continue
        given: dict[str, Any] = {"noise_std": case.noise, "data_variance": VARIANCE, "seed": 7, "like": np.zeros(1)}
        drawn = conditioning.twisted(
            case.data, plan_of(steps), y, **case.how, shape=(COUNT, 8), particles=particles, **given
        )
        judge(f"twisted, {particles} particles", drawn.draw(seed=3))
    return found


def tables() -> str:
    """Return the tables in Markdown."""
    text = []
    for name, case in gaussian_problems().items():
        text += [f"**{name.capitalize()}**, KL in nats by calls\n", "| | cost | " + " | ".join(map(str, CALLS)) + " |"]
        text.append("|---|---|" + "---|" * len(CALLS))
        for row, method in methods(len(case.rows)).items():
            if case.noise and row.startswith(("replacement", "RePaint")):  # they end on A x = y, which has no density
                continue
            values = [divergence(case, method, calls) for calls in CALLS]
            cells = ["-" if np.isnan(v) else "diverges" if v > 1e6 else f"{v:.3g}" for v in values]
            text.append(f"| {row} | {method.cost} | " + " | ".join(cells) + " |")
            print(text[-1], flush=True)
        text.append("")
    columns = {calls: on_the_mixture(calls) for calls in CALLS}
    text += [
        "**A mixture**, energy distance to the true posterior times 1,000, and the share of samples that go up, by calls\n"
    ]
    text += ["| | " + " | ".join(map(str, CALLS)) + " |", "|---|" + "---|" * len(CALLS)]
    for row in columns[CALLS[0]]:
        pairs = [columns[calls][row] for calls in CALLS]
        cells = ("-" if np.isnan(off) else f"{off:.3g} ({100 * up:.0f}%)" for off, up in pairs)
        text.append(f"| {row} | " + " | ".join(cells) + " |")
    text[-1] += "\n"
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="write nothing")
    wanted = parser.parse_args()
    text = tables()
    print(text)
    if not wanted.print:
        begin, end = "<!-- measured by benchmarks.inverse -->\n", "<!-- to there -->"
        page = DOCS / "conditioning.md"
        found = re.sub(
            re.escape(begin) + ".*?" + re.escape(end), lambda _: begin + text + end, page.read_text(), flags=re.DOTALL
        )
        _files.write(page, found)


if __name__ == "__main__":
    main()
