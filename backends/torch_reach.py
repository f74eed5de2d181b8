"""What a run on torch is made of: which tensors are handed over and which are read where they lie, and what else tells two apart.

The tensors of a wrapper's `parts` (conditions, observations, weights of guidance) are inputs of a captured run, and may be others
every time. Those of modules, and what functions close over, are read where they lie: updates in place are seen, and a tensor that
lies elsewhere is noticed. Numbers and strings count by value, objects by identity, functions by their code and what they reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from diffcore._wrapping import has_parts

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
LIBRARIES = ("torch", "numpy", "diffcore", "triton", "array_api_compat")
"""Whose functions reach no weights by global names."""
WALKED = ("torch", "numpy", "triton")
"""Whose objects are known by identity alone."""
MOST = 4096
"""How many objects are looked into."""
Memory = tuple[Any, ...]
"""Where a tensor lies, and how."""


class Reach:
    """Collects, while it makes a key, the `inputs`, the `memory` that is read where it lies, and the `leaves` known by identity."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []
        self.memory: list[Memory] = []
        self.leaves: list[Any] = []
        self.met: dict[int, tuple[int, Any]] = {}

    def given(self, value: Any) -> Any:
        """Return the key of what a caller hands over, whose tensors are inputs."""
        if isinstance(value, torch.Tensor):
            self.inputs.append(value)
            return self.kind(value)
        if has_parts(value):
            names, parts = [field.name for field in fields(value)], type(value).parts
            take = lambda name: self.given if name in parts else self.reached  # noqa: E731
            called = map(self.reached, _called(value))
            return (type(value), *called, *(take(name)(getattr(value, name)) for name in names))
        if isinstance(value, (tuple, list)):
            return (type(value), *map(self.given, value))
        if type(value) is dict:
            return (dict, tuple(value), *map(self.given, value.values()))
        return self.reached(value)

    def reached(self, value: Any) -> Any:
        """Return the key of what is read where it lies."""
        if isinstance(value, PLAIN):
            return type(value), value
        if isinstance(value, torch.Tensor):
            self.memory.append(_lies(value))
            return torch.Tensor
        if isinstance(value, (ModuleType, type, BuiltinFunctionType)):
            return id(value)
        if id(value) in self.met:
            return "met", self.met[id(value)][0]
        self.met[id(value)] = len(self.met), value  # which also keeps what is made while looking
        if len(self.met) > MOST:
            return self._leaf(value)
        within = [self.reached(part) for part in _inside(value)]
        if isinstance(value, FunctionType):
            return (value.__code__, *within)
        if isinstance(value, (MethodType, partial, tuple, list, dict, set, frozenset)) or _is_frozen(value):
            return (type(value), *within)
        return (self._leaf(value), *within)

    def _leaf(self, value: Any) -> Any:
        self.leaves.append(value)
        return type(value), id(value)

    def kind(self, array: torch.Tensor) -> Memory:
        """Return what an input is, whatever it holds."""
        return tuple(array.shape), array.stride(), array.dtype, array.device


def address(array: torch.Tensor) -> int | None:
    """Return where a tensor lies; None inside a transformation such as vmap, where it has no memory of its own."""
    try:
        return array.data_ptr()
    except RuntimeError:
        return None


def _lies(array: torch.Tensor) -> Memory:
    return address(array) or -id(array), tuple(array.shape), array.stride(), array.dtype, array.device


def _inside(value: Any) -> Iterator[Any]:
    """Yield what may be read by what is called."""
    if isinstance(value, nn.Module):
        for module in value.modules():
            yield module.training
            yield from (part for part in vars(module).values() if isinstance(part, torch.Tensor))
        yield from value.parameters()
        yield from value.buffers()
    elif isinstance(value, FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
        yield from (value.__defaults__, value.__kwdefaults__)
        if _root(value) not in LIBRARIES:
            names = dict.fromkeys(_names(value.__code__))
            yield from (value.__globals__[name] for name in names if name in value.__globals__)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, dict):
        yield from (part for item in value.items() for part in item)
    elif isinstance(value, (tuple, list, set, frozenset)):
        yield from value
    elif _root(type(value)) not in WALKED:
        if is_dataclass(value):
            yield from (getattr(value, field.name) for field in fields(value))
        else:
            yield from getattr(value, "__dict__", {}).values()
        yield from _called(value)


def _called(value: Any) -> Iterator[Any]:
    """Yield the functions that run where an object is called."""
    yield from (vars(kind)["__call__"] for kind in type(value).__mro__ if "__call__" in vars(kind))


def _root(value: Any) -> str:
    return str(getattr(value, "__module__", None)).split(".", maxsplit=1)[0]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # it is empty
        return False


def _is_frozen(value: Any) -> bool:
    settings: Any = getattr(type(value), "__dataclass_params__", None)
    return settings is not None and bool(settings.frozen)


def joined(value: Any, arrays: Iterator[torch.Tensor]) -> Any:
    """Return what `Reach.given` went through, with other tensors as its inputs, in the same order."""
    if isinstance(value, torch.Tensor):
        return next(arrays)
    if has_parts(value):
        whole, parts = object.__new__(type(value)), type(value).parts
        for field in fields(value):  # without its __init__, which may check its arrays
            part = getattr(value, field.name)
            object.__setattr__(whole, field.name, joined(part, arrays) if field.name in parts else part)
        return whole
    if isinstance(value, (tuple, list)):
        made = [joined(part, arrays) for part in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    if type(value) is dict:
        return {name: joined(part, arrays) for name, part in value.items()}
    return value
