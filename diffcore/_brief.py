"""Objects that hold arrays, printed in one line."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from diffcore import _check


def fields(value: Any) -> str:
    """Return a dataclass as `repr` has it, but arrays by dtype and shape, functions and networks by their names.

    It serves as the `__repr__` of what wraps a denoiser, beside clips as large as they may be. Fields that have their default
    value are left out.

    >>> @dataclasses.dataclass
    ... class Wrapper:
    ...     denoise: object
    ...     cond: object
    ...     weight: object = 0.0
    ...     __repr__ = fields
    >>> Wrapper(np.hypot, np.zeros((2, 3)))
    Wrapper(denoise=hypot, cond=<float64 (2, 3)>)
    """
    given = [
        f"{field.name}={_part(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if field.repr and not _is_default(field, getattr(value, field.name))
    ]
    return f"{type(value).__name__}({', '.join(given)})"


def _is_default(field: Any, found: Any) -> bool:
    return found is field.default or (
        isinstance(found, bool | int | float | str) and type(found) is type(field.default) and found == field.default
    )


def _part(value: Any) -> str:
    if isinstance(value, np.generic):
        return str(value)
    if _check.is_array(value):
        return f"<{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}>"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name!r}: {_part(part)}' for name, part in value.items())}}}"
    if isinstance(value, tuple | list):
        if hasattr(value, "_fields"):
            parts = [f"{name}={_part(part)}" for name, part in zip(value._fields, value, strict=True)]
            return f"{type(value).__name__}({', '.join(parts)})"
        parts = [_part(part) for part in value[:5]] + ["..."] * (len(value) > 5)
        return f"({', '.join(parts)}{',' * (len(parts) == 1)})" if isinstance(value, tuple) else f"[{', '.join(parts)}]"
    if isinstance(value, functools.partial):
        return f"partial({_part(value.func)})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields(value) if any(map(_check.is_array, vars(value).values())) else repr(value)
    return str(getattr(value, "__qualname__", "")).replace(".<locals>", "") or (
        f"<{type(value).__name__}>" if callable(value) else _check.shown(value)
    )
