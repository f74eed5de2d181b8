"""What long video is worth by each method, by algebra: Gaussian videos whose law is known, to the last frame.

    python -m benchmarks.seams                   # about two minutes; rewrites its table and picture in docs/long_video.md

A video of one pixel, smooth in time, is drawn by every method of `video.extend` with the exact denoiser of its windows. What comes
out is affine in the noises that go in, so that its covariance is known (`diffcore.testing.drawn_from`): KL(drawn || truth) in
nats, of the whole, and of the four frames around the last seam. All methods call the denoiser as often for a frame.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import diffcore as dc
from diffcore import _files
from diffcore.testing import drawn_from

Float64 = npt.NDArray[np.float64]

DOCS = Path(__file__).resolve().parent.parent / "docs"
FRAMES, WINDOW, OVERLAP = 24, 8, 4
STEPS = (16, 32, 64)
SCHEDULE = dc.schedules.Cosine()
METHODS: dict[str, dict[str, Any]] = {
    "blocks that know nothing": {"method": "replacement", "overlap": 0},
    "replacement": {"method": "replacement"},
    "reconstruction, w = 2": {"method": "reconstruction", "weight": 2.0},
    "moment matching": {"method": "moment_matching", "iterations": 10},
    "forcing": {"method": "forcing"},
    "forcing, history at log-SNR 5": {"method": "forcing", "history": 5.0},
    "rolling": {"method": "rolling"},
    "rolling, history at log-SNR 5": {"method": "rolling", "history": 5.0},
    "causal, four frames at a time": {"method": "forcing", "causal": True},
    "causal, rolling": {"method": "rolling", "causal": True},
    "causal, one frame at a time": {"method": "forcing", "causal": True, "overlap": WINDOW - 1},
}


def covariance(frames: int, length: float = 3.0) -> Float64:
    """Return that of a pixel that moves smoothly (Matern 3/2 in time) with a little that is new in each frame."""
    apart = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames))) / length
    return 0.25 * (0.98 * (1.0 + apart) * np.exp(-apart) + 0.02 * np.eye(frames))


class Exact:
    """The exact denoiser of clips of any length."""

    prediction, scaling = "x", "vp"

    def __init__(self) -> None:
        self.of: dict[int, Any] = {}

    def _of(self, frames: int) -> Any:
        if frames not in self.of:
            self.of[frames] = dc.exact.Gaussian(np.zeros((frames, 1, 1, 1)), covariance(frames), scaling="vp")
        return self.of[frames]

    def __call__(self, z: Any, log_snr: Any) -> Any:
        return self._of(z.shape[1])(z, log_snr)

    def posterior_covariance(self, z: Any, log_snr: Any) -> Any:
        return self._of(z.shape[1]).posterior_covariance(z, log_snr)


class Causal(Exact):
    """That of each frame given itself and those before it, as a causal network that is perfectly trained."""

    def __call__(self, z: Any, log_snr: Any, cond: Any = None, past: Any = None) -> Any:
        levels = np.broadcast_to(log_snr if np.ndim(log_snr) > 1 else np.reshape(log_snr, (-1, 1)), z.shape[:2])
        if past is not None:
            z, levels = (np.concatenate([kept, new], axis=1) for kept, new in zip(past, (z, levels), strict=True))
        known = 0 if past is None else past[0].shape[1]
        each = [super(Causal, self).__call__(z[:, :n], levels[:, :n])[:, -1:] for n in range(known + 1, z.shape[1] + 1)]
        return np.concatenate(each, axis=1)

    def past(self, z: Any, log_snr: Any, cond: Any = None) -> Any:
        return z, np.broadcast_to(np.float64(log_snr), z.shape[:2])


def plan_of(steps: int) -> dc.Plan:
    return dc.samplers.dpm_solver_pp(SCHEDULE, steps=steps, order=1, eta=1.0)


def streamed(how: dict[str, Any], steps: int) -> Float64:
    """Return the covariance of what a method of `video.extend` draws from nothing."""
    settings = {"window": WINDOW, "overlap": OVERLAP, **how}
    denoise = dc.video.reusing(Causal()) if settings.pop("causal", False) else Exact()

    def run(noise: Any, batch: int) -> Any:
        start = np.zeros((batch, 0, 1, 1, 1))
        return dc.video.extend(denoise, plan_of(steps), start, frames=FRAMES, noise=noise, **settings).all()

    return drawn_from(run).covariance


def windowed(steps: int) -> Float64:
    """Return that of context windows, denoised jointly."""
    denoise = dc.video.windowed(Exact(), WINDOW, stride=WINDOW - OVERLAP)

    def run(noise: Any, batch: int) -> Any:
        source = lambda draw, shape, stream: noise(0, draw, shape, stream)  # noqa: E731
        shape = (batch, FRAMES, 1, 1, 1)
        return dc.sample(denoise, plan_of(steps), shape=shape, like=np.zeros(1), noise=source)

    return drawn_from(run).covariance


def divergence(found: Float64, truth: Float64) -> float:
    ratio = np.linalg.solve(truth, found)
    return float(0.5 * (np.trace(ratio) - len(truth) - np.linalg.slogdet(ratio)[1]))


def seam_ratio(found: Float64, seam: int) -> float:
    """Return what `metrics.seams` tends to: the mean square of the change at the seam over that elsewhere."""
    change = np.diff(np.eye(FRAMES), axis=0)
    squares = np.diag(change @ found @ change.T)
    return float(squares[seam - 1] / np.mean(np.delete(squares, seam - 1)))


def measure() -> dict[str, list[dict[str, Any]]]:
    """Return, by method and steps, the divergences and the covariance."""
    truth, seam = covariance(FRAMES), WINDOW + 3 * (WINDOW - OVERLAP)
    around = slice(seam - 2, seam + 2)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in [*METHODS, "context windows", "one run of all frames"]:
        for steps in STEPS:
            if name in METHODS:
                drawn = streamed(METHODS[name], steps)
            elif name == "context windows":
                drawn = windowed(steps)
            else:
                drawn = dc.exact.moments(plan_of(steps), dc.exact.Gaussian(np.zeros(FRAMES), truth)).covariance
            at = WINDOW * 2 if name.startswith("blocks") else seam
            around = slice(at - 2, at + 2)
            row = {
                "all": divergence(drawn, truth),
                "seam": divergence(drawn[around, around], truth[around, around]),
                "ratio": seam_ratio(drawn, at),
                "by frame": [
                    divergence(drawn[k - 2 : k + 2, k - 2 : k + 2], truth[k - 2 : k + 2, k - 2 : k + 2])
                    for k in range(2, FRAMES - 1)
                ],
            }
            found.setdefault(name, []).append(row)
        print(name, [f"{row['all']:.3g}" for row in found[name]], flush=True)
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table in Markdown."""
    head = [f"{FRAMES} frames, {steps} steps" for steps in STEPS]
    text = [
        "| | " + " | ".join(head) + f" | around a seam, {STEPS[-1]} steps | change at it |",
        "|---|" + "---|" * (len(STEPS) + 2),
    ]
    for name, rows in found.items():
        cells = [f"{row['all']:.3g}" for row in rows] + [f"{rows[-1]['seam']:.2g}", f"{rows[-1]['ratio']:.2f}"]
        text.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw the divergence of four frames, along the video."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.subplots()
    shown = ["replacement", "reconstruction, w = 2", "forcing", "rolling", "context windows", "one run of all frames"]
    for name in shown:
        style = "k:" if name == shown[-1] else ".-"
        panel.plot(range(2, FRAMES - 1), found[name][-1]["by frame"], style, label=name)
    for seam in range(WINDOW, FRAMES, WINDOW - OVERLAP):
        panel.axvline(seam, color="0.85", zorder=0)
    panel.set(yscale="log", xlabel="frame (grey: where a block ends)", ylabel="KL of the four frames around, nats")
    panel.set_xticks(range(0, FRAMES, 4))
    ticks = [0.03, 0.05, 0.1, 0.2, 0.5, 1.0]
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    figure.legend(fontsize="small", ncols=3, loc="outside lower center")
    with _files.replacing(path) as part:
        figure.savefig(part, dpi=110, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="write nothing")
    wanted = parser.parse_args()
    found = measure()
    text = table(found)
    print(text)
    if not wanted.print:
        begin, end = "<!-- measured by benchmarks.seams -->\n", "<!-- to here -->"
        page = DOCS / "long_video.md"
        made = re.sub(
            re.escape(begin) + ".*?" + re.escape(end), lambda _: begin + text + end, page.read_text(), flags=re.DOTALL
        )
        _files.write(page, made)
        draw(found, DOCS / "images" / "rolling.png")


if __name__ == "__main__":
    main()
