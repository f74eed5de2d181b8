"""The atlas: what each sampler does to Gaussian data, by algebra, and what it costs; ours, diffusers', k-diffusion's, azula's.

    python -m benchmarks.atlas                   # some minutes; rewrites the tables and the figure of docs/atlas.md
    python -m benchmarks.atlas --only heun       # those whose names contain it, printed only

Every sampler becomes a plan, the peers' by reading their loops, and is asked the same:

- its order, on grids even in log-SNR and uneven: strong of a deterministic plan, weak (mean and variance) of a noisy one;
- the mean and the deviation that it draws of N(1, 1/4) in 20 calls;
- KL(drawn || data) in nats per dimension, of images of 16 x 16 with a power spectrum of 1 / f^2, at 5, 10, 20 and 50 calls;
- arrays of memory beside z, and microseconds a stage of `diffcore.sample` on four numbers in NumPy.

Nothing is drawn at random. A sampler that calls twice a step takes half the steps.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import diffcore as dc
from benchmarks import atlas_peers
from benchmarks.atlas_peers import Make, claim, named
from diffcore import _files, testing

Float64 = npt.NDArray[np.float64]

ROOT = Path(__file__).resolve().parent
DOCS = ROOT.parent / "docs"
SCHEDULE = dc.schedules.LinearLogSNR(log_snr_min=-20.0, log_snr_max=20.0)
ORDERS: dict[str, Any] = {"steps": (24, 48, 96, 192), "log_snrs": (-12.0, 4.0)}  # from noise, where no start errs
UNEVEN = (1.0, 2.0, 1.5, 0.75)
CALLS = (5, 10, 20, 50)
SIGMAS = (80.0, 0.02)  # of the grids of the last two questions
ROUNDED = 1e-5  # errors below it are of tables in float32


class Row(NamedTuple):
    """What is known of a sampler; NaN where it has no answer."""

    library: str
    sampler: str
    stochastic: bool
    memory: int
    even: float
    uneven: float
    mean: float
    deviation: float
    kl: tuple[float, ...]
    microseconds: float


def ours() -> Iterator[tuple[str, str, Make]]:
    """Yield (library, sampler, grid -> plan) for every variant in the table of samplers."""
    for name, row in dc.samplers.table().items():
        for variant in row.variants:

            def make(
                grid: Float64, make: Callable[..., dc.Plan] = row.make, settings: Any = variant.settings
            ) -> dc.Plan:
                return make(SCHEDULE, grid=grid, **settings)

            yield "diffcore", named(name, dict(variant.settings)), make


def run_grid(steps: int) -> Float64:
    """Return the grid of a run to clean data: sigma / alpha with equal steps in its seventh root, as in EDM."""
    first, last = (sigma ** (1.0 / 7.0) for sigma in SIGMAS)
    sigmas = (first + np.linspace(0.0, 1.0, max(steps, 2)) * (last - first)) ** 7.0
    grid = -2.0 * np.log(sigmas[:steps])
    return np.append(grid, math.inf)


def within(make: Make, calls: int) -> dc.Plan | None:
    """Return the plan with the most steps that makes at most so many calls; None where not even one step does."""
    try:
        return _within(make, calls)
    except ValueError:  # some of the peers' cannot be made of so few steps
        return None


def _within(make: Make, calls: int) -> dc.Plan | None:
    steps, plan = calls, make(run_grid(calls))
    while len(plan) > calls:
        if steps == 1:
            return None
        steps = max(min(steps * calls // len(plan), steps - 1), 1)
        plan = make(run_grid(steps))
    more = make(run_grid(steps + 1))
    return more if len(more) <= calls else plan


def spectrum(size: int = 16, variance: float = 0.25) -> tuple[Float64, Float64]:
    """Return the variances of the frequencies of an image with a power spectrum of 1 / f^2, and their shares."""
    f = np.fft.fftfreq(size)
    squares = (f[:, None] ** 2 + f[None] ** 2).ravel()
    squares[0] = squares[squares > 0.0].min()
    values, counts = np.unique((1.0 / squares).round(9), return_counts=True)
    return values * variance / np.average(values, weights=counts), counts / counts.sum()


def divergence(plan: dc.Plan) -> float:
    """Return KL(drawn || data) in nats per dimension on the natural spectrum, started from noise."""
    c, share = spectrum()
    data = dc.exact.Gaussian(np.zeros(c.size), c)
    _, drawn = dc.exact.moments(plan, data)
    ratio = np.maximum(np.asarray(drawn), 1e-300) / c
    return float(np.sum(share * 0.5 * (ratio - 1.0 - np.log(ratio))))


def order(make: Make, gaps: tuple[float, ...], floor: float) -> float:
    """Return the order of convergence, NaN where it cannot be measured."""
    try:
        return testing.order_of_convergence(make, gaps=gaps, floor=floor, **ORDERS).order
    except ValueError:
        return math.nan


def microseconds(plan: dc.Plan, repeats: int = 30) -> float:
    """Return the time of a stage: the best of runs on four numbers with a denoiser that costs nothing."""
    z = np.ones((1, 4))
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        dc.sample(lambda z, log_snr: z, plan, z, seed=7, prediction="x")
        best = min(best, time.perf_counter() - start)
    return 1e6 * best / len(plan)


def measure(library: str, sampler: str, make: Make) -> Row:
    """Return the row of a sampler."""
    floor = ROUNDED if library == "diffusers" else 1e-12
    plans = [within(make, calls) for calls in CALLS]
    twenty = plans[CALLS.index(20)]
    if twenty is None:
        raise ValueError(f"{sampler} has no run of 20 calls")
    mean, variance = dc.exact.moments(twenty, dc.exact.Gaussian(np.ones(1), np.array([0.25])))
    return Row(
        library,
        sampler,
        twenty.stochastic,
        twenty.memory,
        order(make, (1.0,), floor),
        order(make, UNEVEN, floor),
        float(np.asarray(mean).ravel()[0]),
        math.sqrt(max(float(np.asarray(variance).ravel()[0]), 0.0)),
        tuple(math.nan if plan is None else divergence(plan) for plan in plans),
        microseconds(twenty),
    )


def table(rows: list[Row]) -> str:
    """Return the tables in Markdown, one for each library."""
    text = []
    for library in dict.fromkeys(row.library for row in rows):
        head = [
            "sampler",
            "order, even",
            "uneven",
            "mean",
            "deviation",
            *(f"KL, {calls}" for calls in CALLS),
            "memory",
            "us a stage",
        ]
        text += [f"### {library}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for row in rows:
            if row.library != library:
                continue
            kind = "weak " if row.stochastic else ""
            orders = [f"{kind}{one:.1f}" if math.isfinite(one) else "-" for one in (row.even, row.uneven)]
            numbers = [
                f"{row.mean:.4f}",
                f"{row.deviation:.4f}",
                *(f"{one:.2g}" if math.isfinite(one) else "-" for one in row.kl),
            ]
            text.append(
                f"| `{row.sampler}` | {' | '.join([*orders, *numbers, str(row.memory), f'{row.microseconds:.1f}'])} |"
            )
        text.append("")
    return "\n".join(text)


def exceptions(rows: list[Row]) -> str:
    """Return the table of those that converge at another order than their name or paper says, by more than 0.35."""
    head = ["library", "sampler", "order by name or paper", "even", "uneven"]
    text = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        if "churn" in row.sampler:  # its noise is another at every number of steps
            continue
        claimed, found = claim(row.sampler), [one for one in (row.even, row.uneven) if math.isfinite(one)]
        if claimed is not None and found and min(found) < claimed - 0.35:
            orders = " | ".join(f"{one:.1f}" if math.isfinite(one) else "-" for one in (row.even, row.uneven))
            text.append(f"| {row.library} | `{row.sampler}` | {claimed} | {orders} |")
    return "\n".join(text) + "\n"


def draw(rows: list[Row], path: Path, named_lines: int = 7) -> None:
    """Draw KL over calls, without and with noise side by side; the closest at 20 calls have names, all others are grey."""
    from matplotlib.figure import Figure

    libraries = list(dict.fromkeys(row.library for row in rows))
    figure = Figure(figsize=(11, 3.6 * len(libraries)), layout="constrained")
    panels = figure.subplots(len(libraries), 2, sharex=True, sharey=True, squeeze=False)
    for line, library in zip(panels, libraries, strict=True):
        for axes, noisy in zip(line, (False, True), strict=True):
            shown = [row for row in rows if row.library == library and row.stochastic == noisy]
            closest = sorted(shown, key=lambda row: row.kl[CALLS.index(20)])[:named_lines]
            for row in shown:
                if row not in closest:
                    axes.loglog(CALLS, row.kl, color="0.8", linewidth=0.8)
            for row in closest:
                axes.loglog(CALLS, row.kl, marker=".", linewidth=1.2, label=row.sampler)
            axes.set(title=f"{library}, {'with' if noisy else 'without'} noise", ylim=(1e-7, 3.0))
            axes.set_xticks(CALLS, [str(calls) for calls in CALLS])
            axes.minorticks_off()
            axes.legend(fontsize=7, loc="lower left")
        line[0].set_ylabel("KL in nats a dimension")
    for axes in panels[-1]:
        axes.set_xlabel("calls of the denoiser")
    figure.savefig(path, dpi=90)


def main() -> None:
    """Measure, and rewrite the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.atlas", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="measure those whose names contain this, and print the tables only")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of the peers
    rows = []
    for library, sampler, make in [*ours(), *atlas_peers.makers()]:
        if options.only not in sampler:
            continue
        try:
            rows.append(measure(library, sampler, make))
        except Exception as error:
            print(f"{library} {sampler}: {type(error).__name__}: {str(error)[:200]}")
    if options.only and not rows:
        parser.exit(
            2, f"python -m benchmarks.atlas: no sampler that could be measured has {options.only!r} in its name\n"
        )
    text = table(rows)
    if options.only:
        print(text)
        return
    page = DOCS / "atlas.md"
    whole = page.read_text(encoding="utf-8")
    for mark, part in (("atlas", text), ("orders", exceptions(rows))):
        before, _, rest = whole.partition(f"<!-- {mark} -->\n")
        after = rest.partition("<!-- end -->")[2]
        whole = f"{before}<!-- {mark} -->\n\n{part}\n<!-- end -->{after}"
    _files.write(page, whole)
    draw(rows, DOCS / "images" / "atlas.png")
    _files.write(ROOT / "results" / "atlas.json", json.dumps([row._asdict() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
