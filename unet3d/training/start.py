"""What a run starts from: the weights of a file, fitted to another config where the network allows it; and clips that fit."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _check
from diffcore.unet3d import structure, weights
from diffcore.unet3d.build import initial
from diffcore.unet3d.config import UNet3DConfig
from diffcore.unet3d.data import Source

POSITIONS = ("key_positions", "value_positions")


class Start(NamedTuple):
    """Weights by canonical name, the digest of the file they are from, and the names of those that start anew."""

    arrays: dict[str, npt.NDArray[np.float32]]
    digest: str
    anew: tuple[str, ...]


def started(function: str, config: UNet3DConfig, path: str | Path, seed: int = 0) -> Start:
    """Return the weights of a file for a network of a config.

    What may differ: frames, whose positions are cut, or go on as at the ends; the size of a frame, where the same levels
    attend; channels, 1 for 3 or 3 for 1; the condition and its classes, whose weights are drawn from `seed`, but for a
    table of classes of the same size.

    Raises:
        ValueError: another network, another prediction; what `unet3d.load` raises.
    """
    content = weights.read(path)
    own, wanted, fresh = content.config, structure.arrays(config), initial(config, seed)
    name_of = Path(path).name
    if own.prediction != config.prediction:
        raise ValueError(
            f"{function}: `start` {name_of!r} predicts {own.prediction!r}, but `config` {config.prediction!r}; make them equal: "
            f"dataclasses.replace(config, prediction={own.prediction!r})"
        )
    arrays, anew = {}, []
    for name, array in wanted.items():
        fitted = _fitted(name, content.arrays.get(name), array.shape)
        if fitted is None and not name.startswith("condition."):
            raise _other(function, path, own, config)
        anew += [name] if fitted is None else []
        arrays[name] = np.ascontiguousarray(fresh[name] if fitted is None else fitted, dtype=np.float32)
    if any(name not in wanted and not name.startswith("condition.") for name in content.arrays):
        raise _other(function, path, own, config)
    digest = hashlib.sha256()
    for name in sorted(content.arrays):
        digest.update(name.encode() + content.arrays[name].tobytes())
    return Start(arrays, f"sha256:{digest.hexdigest()}", tuple(anew))


def _other(function: str, path: str | Path, own: UNet3DConfig, config: UNet3DConfig) -> ValueError:
    may = {
        "frames",
        "size",
        "channels",
        "dropout",
        "schedule",
        "condition",
        "classes",
        "token_width",
        "token_heads",
        "encoder",
    }
    names = [field.name for field in fields(config) if field.name not in may or field.name == "channels"]
    pairs = [
        f"{name} {getattr(own, name)} for {getattr(config, name)}"
        for name in names
        if getattr(own, name) != getattr(config, name)
    ]
    return ValueError(
        f"{function}: `start` {Path(path).name!r} is another network, with {', '.join(pairs)}; only frames, size, "
        f"channels (1 or 3) and the condition may differ"
    )


def _fitted(name: str, found: Any, shape: tuple[int, ...]) -> Any:
    """Return an array in another shape, or None where it cannot have it."""
    if found is None or found.shape == shape:
        return found
    if name.endswith(POSITIONS) and found.shape[1:] == shape[1:]:
        old, new = found.shape[0] // 2, shape[0] // 2  # the distances are -old, ..., old
        return found[np.clip(np.arange(-new, new + 1), -old, old) + old]
    if name == "input.weight" and {found.shape[2], shape[2]} == {1, 3} and found.shape[3:] == shape[3:]:
        return np.repeat(found / 3.0, 3, axis=2) if shape[2] == 3 else found.sum(axis=2, keepdims=True)
    if (
        name in ("output.weight", "output.bias")
        and {found.shape[-1], shape[-1]} == {1, 3}
        and found.shape[:-1] == shape[:-1]
    ):
        return np.repeat(found, 3, axis=-1) if shape[-1] == 3 else found.mean(axis=-1, keepdims=True)
    return None


def check_source(function: str, config: UNet3DConfig, source: Source, tokens: Any, name: str = "source") -> None:
    """Raise TypeError for what is no source of clips, ValueError where they do not fit a network."""
    hint = "see unet3d.data: videos(folder, ...), array_file(path, ...), Arrays(clips, ...)"
    _check.instance(function, name, source, Source, "a source of clips", hint=hint)
    frames, _, _, channels = source.shape
    if (frames, channels) != (config.frames, config.channels):
        raise ValueError(
            f"{function}: `{name}` has clips of {frames} frames and {channels} channels, but `config` takes "
            f"{config.frames} and {config.channels}"
        )
    if config.condition != "none" and source.classes is None:
        raise ValueError(f"{function}: `config` has the condition {config.condition!r}, but `{name}` has no labels")
    if config.condition == "class" and source.classes != config.classes:
        raise ValueError(
            f"{function}: `{name}` has {source.classes} classes, but `config` takes {config.classes}; make them equal"
        )
    if (config.condition == "tokens") != (tokens is not None):
        raise ValueError(
            f"{function}: `tokens` is {'missing' if tokens is None else 'given'}, but the condition is "
            f'{config.condition!r}; tokens come with condition="tokens" and only with it'
        )
    if tokens is not None and any(len(part) < (source.classes or 0) for part in tokens):
        raise ValueError(
            f"{function}: `tokens` has {[len(part) for part in tokens]} rows, but takes one for each of the "
            f"{source.classes} labels of `{name}`"
        )
