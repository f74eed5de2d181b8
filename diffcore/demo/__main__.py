"""What `make demo` runs; `python -m diffcore.demo --help` lists its settings."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import diffcore as dc
from diffcore import _arguments, _array
from diffcore import _pictures as pictures

Float32 = npt.NDArray[np.float32]

FACTOR = 4
"""By how much a clip is made small, and then large again."""

WAYS = {
    "numpy": "by replacement on numpy",
    "torch": "by reconstruction guidance on torch",
    "jax": "by reconstruction guidance on jax",
}


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Return the settings of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcore.demo", description=importlib.import_module("diffcore.demo").__doc__
    )
    parser.add_argument(
        "--digits",
        type=int,
        choices=range(10),
        metavar="DIGIT",
        nargs="+",
        default=[2, 3, 5, 7],
        help="default: 2 3 5 7",
    )
    parser.add_argument(
        "--out", type=_arguments.folder, default=Path("demo-output"), help="where pictures go (default: demo-output)"
    )
    parser.add_argument("--seed", type=int, default=7, help="of all clips (default: 7)")
    parser.add_argument("--steps", type=int, default=16, help="calls of the network, times two (default: 16)")
    parser.add_argument("--guidance", type=float, default=1.0, help="(1 + w) c - w u; 0 is off (default: 1)")
    parser.add_argument(
        "--weights", type=_arguments.old_file, help="a weights file of one's own instead of the included model"
    )
    parser.add_argument("--backends", nargs="+", choices=["numpy", "torch", "jax"], help="default: all that are there")
    settings = parser.parse_args(given)
    if settings.steps < 1:
        parser.error(f"--steps must be an int >= 1, got {settings.steps}")
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


class Ready(NamedTuple):
    """A guided denoiser of some digits on a library, and what runs of it share."""

    denoise: Any
    like: Any
    shape: tuple[int, ...]
    prediction: str


def ready(backend: str, settings: argparse.Namespace, digits: list[int]) -> Ready:
    """Return the model on a library, with guidance towards the digits."""
    unet3d, numbers = dc.unet3d, np.array(digits)
    if settings.weights is not None:
        model = unet3d.load(settings.weights, backend)
    else:
        model = unet3d.pretrained("moving_digits", backend)
    like: Any = np.zeros(1, dtype=np.float32)
    labels: Any = numbers
    if backend == "torch":
        import torch

        place = "cuda" if torch.cuda.is_available() else "cpu"
        model = model.to(place).eval().requires_grad_(False)
        like, labels = torch.zeros(1, device=place), torch.tensor(numbers, device=place)
    elif backend == "jax":
        import jax.numpy as jnp

        like, labels = jnp.zeros(1), jnp.asarray(numbers)
    guided = model
    if model.config.condition == "class":
        guided = dc.guidance.classifier_free(model, cond=labels, null=model.null(labels), weight=settings.guidance)
    return Ready(guided, like, model.config.shape, model.prediction)


def draw(backend: str, settings: argparse.Namespace, plan: dc.Plan, path: list[Float32] | None = None) -> Float32:
    """Return clips (B, T, H, W, C), one for each digit, drawn on a library; x-hat of each stage goes to `path`."""
    model, clip = ready(backend, settings, settings.digits), dc.guidance.clip(-1.0, 1.0)

    def watched(x: Any) -> Any:
        x = clip(x)
        if path is not None:
            path.append(_array.to_host(x[0]).copy())
        return x

    clips = dc.sample(
        model.denoise,
        plan,
        shape=(len(settings.digits), *model.shape),
        like=model.like,
        seed=settings.seed,
        prediction=model.prediction,
        transform_x=watched,
    )
    return _array.to_host(clips)


def go_on(backend: str, settings: argparse.Namespace, plan: dc.Plan, clip: Float32) -> tuple[Float32, Float32, Float32]:
    """Return the first clip made longer; a small version of the longer one's end; and that, made large again.

    By guidance through the network where the library has gradients, else by replacement.
    """
    model = ready(backend, settings, settings.digits[:1])
    start = _array.library(model.like).asarray(clip, device=_array.device(model.like))
    window = clip.shape[1]
    common: dict[str, Any] = {
        "window": window,
        "overlap": window // 4,
        "method": "replacement" if backend == "numpy" else "reconstruction",
        "seed": settings.seed,
        "prediction": model.prediction,
        "transform_x": dc.guidance.clip(-1.0, 1.0),
    }
    more = window + window - window // 4
    longer = dc.video.extend(model.denoise, plan, start, frames=more, **common).all()
    down = dc.conditioning.downsample(math.gcd(FACTOR, *clip.shape[2:4]))
    small = down(longer[:, -window:])
    large = dc.video.upscale(model.denoise, plan, small, down.factor, **common).all()
    return _array.to_host(longer), _array.to_host(down.spread(small)), _array.to_host(large)


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
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=settings.steps, eta=1.0)

    say(
        f"2. new clips of the digits {settings.digits}: DPM-Solver++ 2M SDE, {len(plan)} steps, guidance {settings.guidance}"
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
    rows: pictures.Rows = [(f"digit {digit}", clips[i]) for i, digit in enumerate(settings.digits)]
    if path:
        stages = np.linspace(0, len(path) - 1, clips.shape[1]).astype(int)
        middle = clips.shape[1] // 2
        rows.append(
            ("x-hat of the first clip's middle frame, from noise to clip", np.stack([path[k][middle] for k in stages]))
        )
    start, last = time.perf_counter(), next((name for name in ("torch", "jax") if name in names), names[0])
    longer, small, large = go_on(last, settings, plan, clips[:1])
    frames = clips.shape[1]
    for first in range(0, longer.shape[1], frames):
        rows.append((f"the first clip made longer, from frame {first}", longer[0, first : first + frames]))
    rows += [("its end, averaged over squares of pixels", small[0]), ("and made large again", large[0])]
    say(
        f"3. the first clip made longer, and its end small and large again, {WAYS[last]}: {time.perf_counter() - start:.1f} s"
    )

    zoom = pictures.zoom_for(*clips.shape[2:4])
    moving: pictures.Rows = [("one seed, one clip, on every library", clips)]
    pictures.write_gif(settings.out / "clips.gif", moving, zoom=2 * zoom, milliseconds=100)
    pictures.write_gif(settings.out / "longer.gif", [("", longer)], zoom=2 * zoom, milliseconds=100)
    pictures.write_sheet(settings.out / "sheet.png", rows, zoom=zoom)
    say(f"4. in {settings.out}: clips.gif and longer.gif (moving), and sheet.png (frames)")
    say(f"done in {time.perf_counter() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
