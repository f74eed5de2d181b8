"""Plans in JSON files, exactly: numbers are read back bit for bit."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from diffcore import _check, _files

T = TypeVar("T")

FORMAT = 2
LARGEST = 2**28
"""Bytes of a file that may hold a plan; one of 100,000 stages with three arrays of memory has 50 million."""
ARRAYS = ("log_snr", "next_log_snr", "update")


def save(path: str | os.PathLike[str], **fields: Any) -> None:
    """Write the fields of a plan; see `Plan.save`."""
    import json  # which files alone need

    document = {name: value for name, value in fields.items() if name not in ARRAYS}
    document |= {"format": FORMAT, "shape": list(fields["update"].shape)}
    document |= {name: [repr(float(value)) for value in fields[name].ravel()] for name in ARRAYS}
    _files.write(path, json.dumps(document, indent=1))


def load(path: str | os.PathLike[str], make: Callable[..., T]) -> T:
    """Read a plan; see `Plan.load`."""
    size = _files.regular("Plan.load", path).stat().st_size
    try:
        if size > LARGEST:
            raise ValueError(f"it has {size} bytes, and a plan at most {LARGEST}")
        text = _files.read("Plan.load", path)
        document = _document(text)
        shape = _field(document, "shape", lambda sizes: tuple(int(size) for size in sizes))
        if len(shape) < 3 or min(shape) < 1 or math.prod(shape) > len(text):
            raise ValueError(f"its `shape` is {_check.shown(document['shape'])}")
        shapes = {"log_snr": shape[:-2], "next_log_snr": shape[:-2], "update": shape}
        arrays: dict[str, Any] = {
            name: _field(document, name, partial(_numbers, shape=shapes[name])) for name in ARRAYS
        }
        named = {name: _field(document, name) for name in ("sampler", "scaling", "settings", "second", "ahead")}
        if not isinstance(named["settings"], dict):
            raise ValueError(f"its `settings` are {_check.shown(named['settings'])}, no dict")
        named["settings"] = {name: settled(value) for name, value in named["settings"].items()}
        return make(**named, **arrays)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"Plan.load: {_check.shown(Path(path).name)} holds no plan: {_check.cut(str(error))}"
        ) from error


def _document(text: str | bytes) -> dict[str, Any]:
    """Return the fields of a file, of the format that this version reads."""
    import json

    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no whole JSON document: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"its JSON is {_check.shown(document)}, no dict of the fields of a plan")
    found = _field(document, "format")
    if found != FORMAT:
        raise ValueError(f"it has `format` {_check.shown(found)}, but this version reads format {FORMAT}")
    return document


def _field(document: dict[str, Any], name: str, read: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return a field of a file as `read` reads it; raise ValueError with its name where it is missing or cannot be read."""
    if name not in document:
        raise ValueError(f"it has no field `{name}`")
    try:
        return read(document[name])
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"its field `{name}` cannot be read: {error}") from error


def _numbers(values: Any, shape: tuple[int, ...]) -> Any:
    if not isinstance(values, list):
        raise TypeError(f"it is {_check.shown(values)}, no list of numbers")
    return np.array([float(value) for value in values]).reshape(shape)


def settled(value: Any) -> Any:
    """Return a setting of a sampler in plain numbers, with tuples for lists, so that plans of equal settings have equal names,
    also those made from the settings of a file: JSON has lists alone.

    >>> settled([np.float32(0.5), np.array([1, 2])])
    (0.5, (1, 2))
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    return tuple(settled(item) for item in value) if isinstance(value, (list, tuple)) else value
