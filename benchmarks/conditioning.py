"""How far conditioning is from the truth: Gaussian videos whose conditional distribution is known.

    python -m benchmarks.conditioning            # about a minute; rewrites the table and figure of docs/conditioning.md
    python -m benchmarks.conditioning --steps 64 # a part, printed only

The divergence is KL(drawn || q(x^b given x^a)) in nats, of the unknown elements, averaged over x^a from the data. No
random number is drawn: with a Gaussian's denoiser every stage is affine, in z, in x^a and in its noises, so mean and
covariance follow from `diffcore.testing.affine.drawn_by`, and the mean's response to x^a from one run on basis vectors.
All in float64.
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
from diffcore import _arguments, _files, conditioning
from diffcore.testing.affine import drawn_by

Float64 = npt.NDArray[np.float64]
Make = Callable[[Any, Any, Any], Any]

DOCS = Path(__file__).resolve().parent.parent / "docs"
SHAPE = (8, 2, 2, 1)  # frames, height, width, channels
WEIGHTS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 9.0, 15.0, 25.0, 50.0)
STEPS = (16, 32, 64, 128, 256)
SCHEDULE = dc.schedules.Cosine()


class Problem(NamedTuple):
    """A Gaussian video, and which of it is known."""

    data: dc.exact.Gaussian
    covariance: Float64
    mask: npt.NDArray[np.bool_]


def problem(known: Any, *, correlation: float = 0.9, length: float = 1.5, nugget: float = 0.05) -> Problem:
    """Return a video that is AR(1) in time and smooth in space, of standard deviation 1/2."""
    count, height, width, _ = SHAPE
    time = correlation ** np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    place = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).reshape(-1, 2)
    apart = np.sum((place[:, None] - place[None]) ** 2, axis=-1)
    space = (np.exp(-apart / (2.0 * length**2)) + nugget * np.eye(len(place))) / (1.0 + nugget)
    covariance = 0.25 * np.kron(time, space)
    mask = np.broadcast_to(conditioning.frames(known, of=count), SHAPE)
    return Problem(dc.exact.Gaussian(np.zeros(SHAPE), covariance), covariance, mask)


def problems() -> dict[str, Problem]:
    """Return extension (the first two frames are known) and interpolation (every other one is)."""
    return {"extension": problem([0, 1]), "interpolation": problem(range(0, SHAPE[0], 2))}


def divergence(case: Problem, plan: dc.Plan, make: Make, variant: str | None = "marginal") -> float:
    """Return the mean over x^a of KL(drawn || true) in nats, for the denoiser make(data, observed, mask)."""
    like = _like()
    data = case.data.to(like)
    known = case.mask.ravel()
    count = int(known.sum())
    within, across = case.covariance[np.ix_(known, known)], case.covariance[np.ix_(~known, known)]
    gain = np.linalg.solve(within, across.T).T
    truth = case.covariance[np.ix_(~known, ~known)] - gain @ across.T

    def held(observed: Any) -> Any:
        return None if variant is None else conditioning.replacement(observed, case.mask, variant=variant)

    zero = np.zeros(SHAPE)
    drawn = drawn_by(make(data, zero, case.mask), plan, SHAPE, prediction="x", constraint=held(zero), like=like)
    observed = np.zeros((count + 1, known.size))
    observed[1:, known] = np.eye(count)
    observed = observed.reshape(-1, *SHAPE)
    quiet = lambda draw, shape: _zeros(shape)  # noqa: E731
    ends = dc.sample(
        make(data, observed, case.mask),
        plan,
        _zeros(observed.shape),
        noise=quiet,
        prediction="x",
        constraint=held(observed),
    )
    mean = np.asarray(ends).reshape(count + 1, -1)[:, ~known]
    error = (mean[1:] - mean[0]).T - gain
    ratio = np.linalg.solve(truth, drawn.covariance[np.ix_(~known, ~known)])
    spread = 0.5 * (np.trace(ratio) - len(truth) - np.linalg.slogdet(ratio)[1])
    return float(spread + 0.5 * np.trace(np.linalg.solve(truth, error @ within @ error.T)))


def unconditioned(data: Any, observed: Any, mask: Any) -> Any:
    return data


def guided(weight: float) -> Make:
    return lambda data, observed, mask: conditioning.reconstruction(
        data, observed, mask, weight=weight, schedule=SCHEDULE
    )


def matched(data: Any, observed: Any, mask: Any) -> Any:
    return conditioning.moment_matching(data, observed, mask, iterations=int(mask.sum()) + 4, schedule=SCHEDULE)


class Conditional(NamedTuple):
    """The exact conditional denoiser: what is left is what the steps of the sampler cost."""

    data: Any
    observed: Any
    mask: Any

    def __call__(self, z: Any, log_snr: Any) -> Any:
        return self.data.with_scaling("vp").conditional_denoise(z, log_snr, self.observed, self.mask)


def measure(case: Problem, plan: dc.Plan, weights: tuple[float, ...] = WEIGHTS) -> dict[str, float]:
    """Return the divergence of every method under a plan."""
    found = {
        "none": divergence(case, plan, unconditioned, None),
        "replacement": divergence(case, plan, unconditioned),
        "replacement, posterior": divergence(case, plan, unconditioned, "posterior"),
    }
    for weight in weights:
        found[f"reconstruction, w = {weight:g}"] = divergence(case, plan, guided(weight))
    found["moment matching"] = divergence(case, plan, matched)
    found["exact conditional denoiser"] = divergence(case, plan, Conditional, None)
    return found


def best(found: dict[str, float]) -> str:
    """Return the weight of reconstruction guidance that comes closest."""
    return min((name for name in found if name.startswith("reconstruction")), key=found.__getitem__)


def plans(steps: int) -> dict[str, dc.Plan]:
    """Return the samplers of the second table, at about the same number of calls."""
    return {
        f"ancestral, gamma 0, {steps} steps": dc.samplers.ancestral(SCHEDULE, steps, gamma=0.0),
        f"ancestral, gamma 0.1, {steps} steps": dc.samplers.ancestral(SCHEDULE, steps, gamma=0.1),
        f"with a Langevin corrector, {steps // 2} steps": dc.samplers.predictor_corrector(SCHEDULE, steps // 2),
        f"DDIM, {steps} steps": dc.samplers.ddim(SCHEDULE, steps),
        f"Heun, {steps // 2} steps": dc.samplers.heun(SCHEDULE, steps // 2),
        f"DPM-Solver++ 2M SDE, {steps} steps": dc.samplers.dpm_solver_pp(SCHEDULE, steps, order=2, eta=1.0),
    }


def tables(by_steps: dict[str, dict[int, dict[str, float]]], by_plan: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return both tables in Markdown."""
    text = []
    for name, found in by_steps.items():
        steps = list(found)
        rows = [row for row in found[steps[-1]] if not row.startswith("reconstruction")]
        shown = ["reconstruction, w = 1", "reconstruction, w = 9", "reconstruction, w = 50"]
        rows[3:3] = [row for row in shown if row in found[steps[-1]]]
        text += [f"**{name.capitalize()}**, KL in nats by steps of the ancestral sampler (gamma = 0)\n"]
        text += ["| | " + " | ".join(map(str, steps)) + " |", "|---|" + "---|" * len(steps)]
        for row in rows:
            text.append(f"| {row} | " + " | ".join(f"{found[n][row]:.3g}" for n in steps) + " |")
            if row == rows[-3]:
                cells = (f"{found[n][best(found[n])]:.3g} (w = {best(found[n]).split()[-1]})" for n in steps)
                text.append("| reconstruction, best w | " + " | ".join(cells) + " |")
        last = found[steps[-1]]
        closest = min(last["replacement"], last["replacement, posterior"])
        text.append(
            f"\nAt {steps[-1]} steps reconstruction guidance at its best weight is {closest / last[best(last)]:.1f} times "
            f"closer than the better replacement, moment matching {closest / last['moment matching']:.1f} times.\n"
        )
    for name, plans_found in by_plan.items():
        text += [f"**{name.capitalize()}**, KL in nats by sampler\n"]
        text += [
            "| | none | replacement, marginal | reconstruction, best w | moment matching | exact conditional |",
            "|---|---|---|---|---|---|",
        ]
        for plan, found in plans_found.items():
            cells = [found["none"], found["replacement"], found[best(found)], found["moment matching"]]
            numbers = [f"{value:.3g}" for value in (*cells, found["exact conditional denoiser"])]
            numbers[2] += f" (w = {best(found).split()[-1]})"
            text.append(f"| {plan} | " + " | ".join(numbers) + " |")
        text.append("")
    return "\n".join(text).strip() + "\n"


def draw(by_steps: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Draw the divergence by weight, and by steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row")
    lines = {
        "none": "0.5",
        "replacement": "C3",
        "replacement, posterior": "C1",
        "moment matching": "C2",
        "exact conditional denoiser": "k",
    }
    for (left, right), (name, found) in zip(panels, by_steps.items(), strict=True):
        last = found[max(found)]
        points = {float(row.split()[-1]): value for row, value in last.items() if row.startswith("reconstruction")}
        left.plot(list(points), list(points.values()), "o-", color="C0", label="reconstruction guidance")
        right.plot(list(found), [f[best(f)] for f in found.values()], "o-", color="C0", label="at its best weight")
        for row, colour in lines.items():
            dash = ":" if row.startswith("exact") else "-"
            left.axhline(last[row], color=colour, linestyle=dash, label=row)
            right.plot(list(found), [f[row] for f in found.values()], dash, marker=".", color=colour)
        left.set(xscale="log", yscale="log", xlabel=f"weight ({max(found)} steps)", ylabel="KL to the truth, nats")
        right.set(xscale="log", yscale="log", xlabel="steps, ancestral sampler")
        left.set_title(name)
        right.set_title(name)
    for panel in panels.ravel():
        ticks = (1, 2, 5, 10, 20, 50) if "weight" in panel.get_xlabel() else STEPS
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    with _files.replacing(path) as part:
        figure.savefig(part, dpi=110, format="png")


def _like() -> Any:
    import torch

    return torch.zeros((), dtype=torch.float64)


def _zeros(shape: tuple[int, ...]) -> Any:
    import torch

    return torch.zeros(shape, dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=_arguments.count(), nargs="+", help="only these, printed and not written")
    chosen = parser.parse_args().steps
    by_steps = {
        name: {n: measure(case, dc.samplers.ancestral(SCHEDULE, n)) for n in chosen or STEPS}
        for name, case in problems().items()
    }
    by_plan = {}
    if not chosen:
        by_plan = {
            name: {of: measure(case, plan) for of, plan in plans(max(STEPS)).items()}
            for name, case in problems().items()
        }
    text = tables(by_steps, by_plan)
    print(text)
    if not chosen:
        page = DOCS / "conditioning.md"
        begin, end = "<!-- measured by benchmarks.conditioning -->\n", "<!-- to here -->"
        found = re.sub(
            re.escape(begin) + ".*?" + re.escape(end), lambda _: begin + text + end, page.read_text(), flags=re.DOTALL
        )
        _files.write(page, found)
        draw(by_steps, DOCS / "images" / "conditioning.png")


if __name__ == "__main__":
    main()
