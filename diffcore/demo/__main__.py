"""What `make demo` runs; `python -m diffcore.demo --help` lists its settings."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import diffcore as dc
from diffcore.demo import clips as real
from diffcore.demo import fit, pictures

Float32 = npt.NDArray[np.float32]


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Return the settings of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcore.demo", description=importlib.import_module("diffcore.demo").__doc__
    )
    parser.add_argument(
        "--clips", type=Path, default=Path(".cache/clips"), help="a folder of videos (default: .cache/clips)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="where pictures go (default: demo-output)"
    )
    parser.add_argument("--seed", type=int, default=7, help="sample i has seed + i (default: 7)")
    parser.add_argument("--samples", type=int, default=5, help="clips a sampler draws (default: 5)")
    parser.add_argument("--frames", type=int, default=12, help="frames a clip (default: 12)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(36, 64), metavar=("HEIGHT", "WIDTH"), help="default: 36 64"
    )
    parser.add_argument("--components", type=int, default=12, help="components of the mixture (default: 12)")
    parser.add_argument("--rank", type=int, default=8, help="factors a component (default: 8)")
    parser.add_argument("--quick", action="store_true", help="small and short, for a test")
    settings = parser.parse_args(given)
    if settings.quick:
        settings.frames, settings.size, settings.components, settings.rank = 4, (12, 16), 3, 3
        settings.samples = min(settings.samples, 2)
    for name in ("samples", "frames", "components", "rank"):
        if getattr(settings, name) < 1:
            parser.error(f"--{name} is {getattr(settings, name)}, but takes an int >= 1")
    return settings


def load(settings: argparse.Namespace) -> dict[str, Float32]:
    """Return windows of real clips by the name of their source."""
    height, width = settings.size
    try:
        found = real.from_folder(settings.clips, settings.frames, height, width, say)
    except ImportError as error:
        say(f"  {error}")
        found = {}
    if found:
        return found
    say(f"  no video in {settings.clips}: scikit-learn's digits set in motion instead")
    try:
        return {"digits": real.moving_digits(settings.frames, height, width, seed=settings.seed)}
    except ImportError:
        sys.exit("demo: there is no video and no scikit-learn; give a folder of videos with --clips DIR")


def plans(quick: bool) -> dict[str, dc.Plan]:
    """Return the samplers that are shown."""
    schedule = dc.schedules.Cosine(log_snr_min=-20.0, log_snr_max=20.0)
    many, few = (12, 6) if quick else (48, 16)
    grid = dc.grids.uniform_log_snr(dc.schedules.LinearLogSNR(log_snr_min=-12.0, log_snr_max=10.0), few)
    return {
        "ancestral(gamma=0.1)": dc.samplers.ancestral(schedule, many, gamma=0.1),
        "predictor_corrector": dc.samplers.predictor_corrector(schedule, many // 2),
        "dpm_solver_pp(order=3)": dc.samplers.dpm_solver_pp(schedule, grid=grid, order=3),
    }


def backends() -> dict[str, Any]:
    """Return an array of each library that is installed, NumPy first."""
    found: dict[str, Any] = {"numpy": np.zeros(1, dtype=np.float32)}
    for name, module, function in (("torch", "torch", "zeros"), ("jax", "jax.numpy", "zeros")):
        try:
            found[name] = getattr(importlib.import_module(module), function)(1)
        except ImportError:
            continue
    return found


def main(given: list[str] | None = None) -> int:
    """Read, fit, sample, draw, and say what was done and how long it took."""
    began = time.perf_counter()
    settings = arguments(given)
    say("1. real clips")
    sources = load(settings)
    clips = np.concatenate(list(sources.values()))
    for name, some in sources.items():
        say(f"  {name}: {len(some)} clips of {some.shape[1]} frames, {some.shape[2]}x{some.shape[3]}")
    say(f"  {time.perf_counter() - began:.1f} s")

    start = time.perf_counter()
    data = fit.fit_mixture(clips, settings.components, settings.rank, seed=settings.seed)
    say(
        f"2. an exact mixture of {len(data.weights)} Gaussians of rank <= {settings.rank} in {clips[0].size} dimensions"
    )
    say(f"  its denoiser E[x | z] is in closed form: no network; {time.perf_counter() - start:.1f} s")

    say("3. new clips")
    shape = (settings.samples, *clips.shape[1:])
    rows: pictures.Rows = [("real", clips[np.linspace(0, len(clips) - 1, settings.samples).astype(int)])]
    path: list[Float32] = []
    for label, plan in plans(settings.quick).items():
        drawn: dict[str, Float32] = {}
        installed = backends() if label.startswith("dpm") else {"numpy": np.zeros(1, dtype=np.float32)}
        for library, like in installed.items():
            start = time.perf_counter()
            denoise = data.to(like)

            def watched(
                z: Any, log_snr: Any, denoise: Any = denoise, watch: bool = library == "numpy" and not path
            ) -> Any:
                x = denoise(z, log_snr)
                if watch:
                    path.append(np.array(x[0]))
                return x

            clip = dc.sample(watched, plan, shape=shape, like=like, seed=settings.seed, prediction="x")
            drawn[library] = np.asarray(clip)
            seconds = time.perf_counter() - start
            apart = float(np.abs(drawn[library] - drawn["numpy"]).max())
            say(f"  {label}, {library}: {len(plan)} calls, {seconds:.1f} s, {apart:.1e} from numpy's")
        rows.append((f"{label}, {len(plan)} calls", drawn["numpy"]))
    near = fit.distance_to_nearest(np.concatenate([row for _, row in rows[1:]]), clips)
    step = fit.distance_to_nearest(clips[1:20:2], clips[0:20:2])
    say(
        f"  distance to the nearest real clip {near.mean():.3f} a pixel; neighbouring real clips are {step.mean():.3f} apart"
    )

    settings.out.mkdir(parents=True, exist_ok=True)
    times = np.linspace(0, clips.shape[1] - 1, min(8, clips.shape[1])).astype(int)
    stages = np.linspace(0, len(path) - 1, len(times)).astype(int)
    sheet: pictures.Rows = [(label, some[0][times]) for label, some in rows]
    sheet += [(f"{label}, another seed", some[1][times]) for label, some in rows[1:] if len(some) > 1]
    sheet.append(("ancestral, x-hat from pure noise to the clip", np.stack([path[k][len(times) // 2] for k in stages])))
    zoom = max(1, 160 // settings.size[1])
    pictures.write_gif(settings.out / "clips.gif", rows, zoom=zoom)
    pictures.write_sheet(settings.out / "sheet.png", sheet, zoom=zoom)
    say(f"4. {settings.out / 'clips.gif'} (moving) and {settings.out / 'sheet.png'} (frames)")
    say(f"done in {time.perf_counter() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
