"""A model, a denoiser and a plan from the options of the command line."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import diffcore as dc
from diffcore import _array, _check
from diffcore.cli import saved
from diffcore.cli.report import Failure, no_such, note, usage

BACKENDS = {"torch": ("torch",), "jax": ("jax", "flax"), "numpy": ()}
"""By preference: what each takes."""


class Model(NamedTuple):
    """A network on a library and a device.

    Fields:
        net: (z, log_snr, cond) -> prediction.
        config: of the network.
        backend: "numpy", "torch" or "jax".
        device: its name.
        like: an array of the library, dtype and device of what is drawn.
    """

    net: Any
    config: Any
    backend: str
    device: str
    like: Any

    def put(self, values: npt.NDArray[Any]) -> Any:
        """Return values from the host as an array of the model's library and device; floats in the dtype of `like`."""
        kind = self.like.dtype if np.issubdtype(values.dtype, np.floating) else None
        return _array.library(self.like).asarray(values.copy(), dtype=kind, device=_array.device(self.like))


def sound(block: Any) -> npt.NDArray[np.float32]:
    """Return frames that a model drew, on the host; refuse NaN."""
    frames = _array.to_host(block, np.float32)
    if not np.all(np.isfinite(frames)):
        raise Failure(
            "the model drew numbers that are not finite; try more --steps, another --sampler, or --dtype float32"
        )
    return frames


def samplers() -> list[str]:
    """Return the names of the samplers."""
    return list(dc.samplers.table())


def grids() -> list[str]:
    """Return the names of the grids."""
    return list(dc.grids.table())


def installed() -> list[str]:
    """Return the backends whose libraries are here, the preferred one first."""
    return [name for name, needs in BACKENDS.items() if all(importlib.util.find_spec(need) for need in needs)]


def dtype_of(backend: str, dtype: str) -> str:
    """Return the dtype of the weights for a dtype to compute in; refuse what the backend cannot."""
    if dtype == "bfloat16" and backend == "numpy":
        usage("--dtype bfloat16 needs --backend torch or jax; NumPy has float32 and float64")
    return "float32" if dtype == "bfloat16" else dtype


@contextlib.contextmanager
def opened(weights: str, backend: str | None, device: str | None, dtype: str = "float32") -> Iterator[Model]:
    """Load a model for as long as it is used."""
    path = saved.weights_file(weights)
    backend = installed()[0] if backend is None else backend
    kind = dtype_of(backend, dtype)
    with _wide() if backend == "jax" and kind == "float64" else contextlib.nullcontext():
        place, name, like = placed(backend, device, kind)
        yield _model(weights, path, backend, place, name, like, dtype)


def _model(weights: str, path: Path | None, backend: str, place: Any, name: str, like: Any, dtype: str) -> Model:
    from diffcore.unet3d.half import InBfloat16

    how: dict[str, Any] = {"dtype": dtype_of(backend, dtype), "device": place}
    net = dc.unet3d.pretrained(weights, backend, **how) if path is None else dc.unet3d.load(path, backend, **how)
    if backend == "torch":
        net = net.eval().requires_grad_(False)
    config = net.config
    if dtype == "bfloat16":
        net = InBfloat16(net)
    return Model(net, config, backend, name, like)


def say_size(size: int, side: tuple[int, int]) -> None:
    """Say where a model works at another size than it was trained at."""
    if side != (size, size):
        note(f"note: the model was trained at {size}x{size} and works at {side[0]}x{side[1]} here")


def say_levels(weights: str, asked: str) -> None:
    """Say where a model was trained with one noise level for all frames of a clip, and is asked to take several."""
    if saved.knows_levels(weights) is False:
        note(
            f"note: {weights} was trained with one noise level for all frames of a clip, and {asked} gives each frame its own, "
            f"which it has not seen; `train --frame-times independent` makes a model for it"
        )


def frame_by_frame(weights: str, model: Model) -> bool:
    """Return whether clips are drawn one frame after another: by a causal network that was trained for it."""
    return bool(model.config.causal and hasattr(model.net, "past") and saved.knows_levels(weights))


def placed(backend: str, device: str | None, kind: str) -> tuple[Any, str, Any]:
    """Return a device in the form that a model takes, its name, and an array that is there."""
    if backend == "numpy":
        if device not in {None, "cpu"}:
            usage(f"--device is {device}, but NumPy runs on the cpu; use --backend torch or jax")
        return None, "cpu", np.zeros(1, dtype=kind)
    if importlib.util.find_spec(backend) is None:
        raise Failure(f"--backend {backend}: {backend} is not installed; install diffcore[{backend}]")
    return _torch_device(device, kind) if backend == "torch" else _jax_device(device, kind)


def _torch_device(device: str | None, kind: str) -> tuple[Any, str, Any]:
    import torch

    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if place.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("this torch finds no CUDA device")
        like = torch.zeros(1, dtype=getattr(torch, kind), device=place)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        usage(f"--device {device}: {reason}; `diffcore info` lists the devices that are here")
    return place, str(place), like


def _jax_device(device: str | None, kind: str) -> tuple[Any, str, Any]:
    import jax
    import jax.numpy as jnp

    platform, _, number = (device or "").partition(":")
    try:
        there = jax.devices("gpu" if platform == "cuda" else platform or None)
        if number and number not in map(str, range(len(there))):
            raise ValueError(f"JAX finds {len(there)} of these, counted from 0")
        place = there[int(number or 0)]
    except (RuntimeError, ValueError) as error:
        usage(f"--device {device}: {str(error).splitlines()[0]}; `diffcore info` lists the devices that are here")
    return place, f"{place.platform}:{place.id}", jnp.zeros(1, dtype=kind, device=place)


def _wide() -> Any:
    """Let JAX compute in float64."""
    import jax

    return jax.enable_x64(True)


def labels_for(weights: str, config: Any, given: list[str] | None, count: int | None) -> tuple[list[int] | None, int]:
    """Return a label for each clip, by number or by the name of its class, or None; and how many clips there are."""
    if not given:
        return None, 1 if count is None else count
    if config.condition != "class":
        usage(f"--label is given, but this model has the condition {config.condition!r}; leave it out")
    names = json.loads(saved.notes(weights).get("classes", "[]"))
    numbers = {str(number): number for number in range(config.classes + 1)} | {
        name: number for number, name in enumerate(names)
    }
    if bad := [label for label in given if label not in numbers]:
        called = f", by name {_check.cut(', '.join(names))}" if names else ""
        parts = re.split("[, ]+", bad[0])
        way = f"; give each by itself: {' '.join(f'-l {part}' for part in parts)}" if set(parts) <= set(numbers) else ""
        usage(f"--label {bad[0]}: the model knows 0 to {config.classes - 1}, and {config.classes} for any{called}{way}")
    labels, count = [numbers[label] for label in given], len(given) if count is None else count
    if len(labels) not in {1, count}:
        usage(f"--label is given {len(labels)} times for {count} clips; give one for each, or one for all")
    return (labels * count if len(labels) == 1 else labels), count


def condition_on(model: Model, condition: Any) -> Any:
    """Return a condition from the host, labels or a pair of tokens and mask, as a model takes it."""
    if isinstance(condition, tuple):
        return tuple(map(model.put, condition))
    return model.put(condition.astype(np.int32 if model.backend == "jax" else np.int64))


def denoiser(model: Model, condition: Any, guidance: float | None, *, reuses: bool = False) -> Any:
    """Return (z, log_snr) -> prediction under a condition, with guidance; `reuses` says to keep known frames of causal networks."""
    reuses = reuses and model.config.causal and hasattr(model.net, "past")
    if condition is None:
        if guidance:
            usage(f"--guidance {guidance:g} needs --label or --prompt: without one there is nothing to be guided to")
        if model.config.condition != "none":
            note(f"note: this model has the condition {model.config.condition!r}; without it a clip may show anything")
        return dc.video.reusing(model.net) if reuses else model.net
    cond = condition_on(model, condition)
    null, weight = model.net.null(cond), 1.0 if guidance is None else guidance
    if reuses:
        return (
            dc.video.reusing(model.net, cond, null=null, weight=weight) if weight else dc.video.reusing(model.net, cond)
        )
    return dc.guidance.classifier_free(model.net, cond=cond, null=null, weight=weight)


def history_for(schedule: Any, method: str, given: float | None) -> float | None:
    """Return the log-SNR at which known frames are shown: the greatest that a model was trained on, None where that is infinite."""
    if method not in {"forcing", "rolling"}:
        if given is not None:
            usage(f"--history {given:g} is for --method forcing and rolling, and not for {method}")
        return None
    if given is not None:
        return given
    most = float((schedule or dc.schedules.Cosine()).log_snr(0.0))
    return most if np.isfinite(most) else None


def plan(
    sampler: str,
    steps: int,
    settings: list[str] | None = None,
    schedule: Any = None,
    grid: str | None = None,
    option: str = "--sampler",
) -> Any:
    """Return the plan of a sampler by its name, here or elsewhere, on the schedule that a model was trained on, or the paper's."""
    sampler, known = dc.samplers.aliases().get(sampler, (sampler, {}))
    if sampler not in samplers():
        others = dc.samplers.aliases()
        no_such(option, sampler, samplers(), others=others, more=", or a name of samplers.aliases()")
    make = dc.samplers.table()[sampler].make
    takes = [name for name, given in inspect.signature(make).parameters.items() if given.kind is given.KEYWORD_ONLY]
    takes = [name for name in takes if name not in {"grid", "churn_range"}]
    given: dict[str, Any] = dict(known)
    for text in settings or []:
        name, _, value = text.partition("=")
        if name not in takes:
            usage(
                f"--set {text}: {sampler} has the settings {', '.join(takes) or 'none'}, as in --set {(takes or ['x'])[0]}=1"
            )
        try:
            given[name] = int(value) if name == "order" else float(value)
        except ValueError:
            usage(f"--set {text}: {value!r} is not a number, as in --set {name}=1")
    schedule = schedule or dc.schedules.Cosine()
    try:
        points = {"steps": steps} if grid is None else {"grid": _grid(grid, schedule, steps)}
        return make(schedule, **points, **given)
    except (ValueError, TypeError) as error:
        usage(str(error))


def is_sigmas(text: str | None) -> bool:
    """Return whether a grid is a list of sigmas rather than a name."""
    return text is not None and text not in dc.grids.table() and any(character.isdigit() for character in text)


def _grid(text: str, schedule: Any, steps: int) -> Any:
    """Return a grid by its name, or of a list of sigmas."""
    if text in dc.grids.table():
        return dc.grids.by_name(text, schedule, steps)
    if not is_sigmas(text):
        no_such("--grid", text, grids(), more=", or sigmas such as '14.6, 6.4, 1, 0'")
    sigmas = re.findall(r"[^\s,;()\[\]]+", text)
    with contextlib.suppress(ValueError):  # of what is no number, which is refused below
        if float(sigmas[0]) < float(sigmas[-1]):
            way = _check.cut(", ".join(reversed(sigmas)), 80)
            usage(f"--grid must fall, from noise to data, but its sigmas rise; turn them round: --grid '{way}'")
    found = dc.grids.from_sigmas(text, scaling="flow" if schedule.scaling == "flow" else "ve")
    if found.note:
        note(f"note: {found.note}")
    if found.grid[-1] < -4.0:  # three of four parts of the variance of even large features are noise
        usage(f"--grid ends in noise, at sigma {sigmas[-1]}; sigmas fall to 0, and timesteps are none")
    return found.grid


def method_for(model: Model, method: str) -> str:
    """Return how known frames are used; refuse what the backend cannot."""
    if method == "auto":
        return "replacement" if model.backend == "numpy" else "reconstruction"
    if method in {"reconstruction", "moment_matching"} and model.backend == "numpy":
        usage(
            f"--method {method} needs gradients, which NumPy has not; use --method replacement, or --backend torch or jax"
        )
    return method
