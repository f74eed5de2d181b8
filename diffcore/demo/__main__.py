"""What `make demo` runs; `python -m diffcore.demo --help` lists its settings."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import diffcore as dc
from diffcore import _pictures as pictures

Float32 = npt.NDArray[np.float32]


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Return the settings of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcore.demo", description=importlib.import_module("diffcore.demo").__doc__
    )
    parser.add_argument("--digits", type=int, nargs="+", default=[2, 3, 5, 7], help="default: 2 3 5 7")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="where pictures go (default: demo-output)"
    )
    parser.add_argument("--seed", type=int, default=7, help="clip i has seed + i (default: 7)")
    parser.add_argument("--steps", type=int, default=16, help="calls of the network, times two (default: 16)")
    parser.add_argument("--guidance", type=float, default=1.0, help="(1 + w) c - w u; 0 is off (default: 1)")
    parser.add_argument("--weights", type=Path, help="a weights file of one's own instead of the shipped model")
    parser.add_argument("--backends", nargs="+", choices=["numpy", "torch", "jax"], help="default: all that are there")
    settings = parser.parse_args(given)
    if settings.steps < 1:
        parser.error(f"--steps is {settings.steps}, but takes an int >= 1")
    return settings


def installed(wanted: list[str] | None) -> list[str]:
    """Return the libraries to run on, NumPy first, and say which are not there."""
    found = []
    for name, modules in (("numpy", ()), ("torch", ("torch",)), ("jax", ("jax", "flax"))):
        if wanted is not None and name not in wanted:
            continue
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            say(f"  {name}: not here; pip install diffcore[{name}]")
        else:
            found.append(name)
    return found


def draw(backend: str, settings: argparse.Namespace, plan: dc.Plan, path: list[Float32] | None = None) -> Float32:
    """Return clips (B, T, H, W, C), one for each digit, drawn on a library; x-hat of each stage goes to `path`."""
    unet3d, digits = dc.unet3d, np.array(settings.digits)
    if settings.weights is not None:
        model = unet3d.load(settings.weights, backend)
    else:
        model = unet3d.pretrained("moving_digits", backend)
    like: Any = np.zeros(1, dtype=np.float32)
    labels: Any = digits
    if backend == "torch":
        import torch

        place = "cuda" if torch.cuda.is_available() else "cpu"
        model, like, labels = model.to(place).eval(), torch.zeros(1, device=place), torch.tensor(digits, device=place)
    elif backend == "jax":
        import jax.numpy as jnp

        like, labels = jnp.zeros(1), jnp.asarray(digits)
    if model.config.condition == "class":
        guided = dc.guidance.classifier_free(model, cond=labels, null=model.null(labels), weight=settings.guidance)
    else:
        guided = model
    clip = dc.guidance.clip(-1.0, 1.0)

    def watched(x: Any) -> Any:
        x = clip(x)
        if path is not None:
            path.append(np.array(x[0]))
        return x

    clips = dc.sample(
        guided,
        plan,
        shape=(len(digits), *model.config.shape),
        like=like,
        seed=settings.seed,
        prediction=model.prediction,
        transform_x=watched,
    )
    return np.asarray(clips.cpu() if backend == "torch" else clips)


def main(given: list[str] | None = None) -> int:
    """Load, sample, draw, and say what was done and how long it took."""
    began = time.perf_counter()
    settings = arguments(given)
    content = "its own" if settings.weights is None else str(settings.weights)
    say(f"1. a space-time U-Net with {content} weights, trained on moving handwritten digits")
    names = installed(settings.backends)
    if not names:
        say("demo: none of these libraries is here")
        return 1
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=settings.steps)

    say(
        f"2. new clips of the digits {settings.digits}: DPM-Solver++ 2M, {len(plan)} steps, guidance {settings.guidance}"
    )
    drawn: dict[str, Float32] = {}
    path: list[Float32] = []
    for name in names:
        start = time.perf_counter()
        drawn[name] = draw(name, settings, plan, path if not drawn and name != "jax" else None)
        apart = float(np.abs(drawn[name] - drawn[names[0]]).max())
        say(
            f"  {name}: {time.perf_counter() - start:.1f} s"
            + (f", {apart:.1e} from {names[0]}'s" if len(drawn) > 1 else "")
        )
    clips = drawn[names[0]]

    settings.out.mkdir(parents=True, exist_ok=True)
    rows: pictures.Rows = [
        (f"digit {digit}, seed {settings.seed + i}", clips[i]) for i, digit in enumerate(settings.digits)
    ]
    if path:
        stages = np.linspace(0, len(path) - 1, clips.shape[1]).astype(int)
        middle = clips.shape[1] // 2
        rows.append(
            ("x-hat of the first clip's middle frame, from noise to clip", np.stack([path[k][middle] for k in stages]))
        )
    zoom = max(1, 96 // clips.shape[3])
    moving: pictures.Rows = [("one seed, one clip, on every library", clips)]
    pictures.write_gif(settings.out / "clips.gif", moving, zoom=2 * zoom, milliseconds=100)
    pictures.write_sheet(settings.out / "sheet.png", rows, zoom=zoom)
    say(f"3. {settings.out / 'clips.gif'} (moving) and {settings.out / 'sheet.png'} (frames)")
    say(f"done in {time.perf_counter() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
