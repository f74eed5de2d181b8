"""Errors for arguments that a function does not take: one of ours that was called, or one of a caller's that we call."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from diffcore import _check, _synonyms

TAKES = {
    **dict.fromkeys(("denoise", "models", "network", "teacher"), "(z, log_snr)"),
    **dict.fromkeys(("Together.denoise", "Under.denoise"), "(z, log_snr, cond)"),
    **dict.fromkeys(("prediction", "source", "target"), "(xp, level)"),
    "callback": "(state)",
    "loop": "(denoise, z, draw)",
    "noise": "(draw, shape)",
    "rule": "(at)",
    "transform_x": "(x)",
    "weight": "(log_snr)",
    "losses.weight": "(level, slope)",
}
"""What functions of the caller's take, by the argument that they are given as, of a module or an object where that matters."""


def of_ours(called: str, function: Callable[..., Any], args: tuple[Any, ...], error: Exception) -> Exception:
    """Return the error for arguments that a function does not take, or lacks: with the likely one, and all that it takes."""
    said = re.sub(r"^[\w.<>]+\(\) ", "", str(error)).split(". Did you")[0]
    parts = list(inspect.signature(function).parameters.values())
    method = parts[0].name in ("self", "cls") if parts else False
    parts = parts[method:]
    if " were given" in said or " was given" in said:
        count = len(args) - method
        said = f"got {count} positional argument{'s' * (count != 1)}, which {'are' if count != 1 else 'is'} too many"
    if wrong := re.search(r"unexpected keyword argument '(\w+)'", said):
        names = [part.name for part in parts]
        arguments = {here: there for here, there in _synonyms.ARGUMENTS.items() if here in names}
        known = _synonyms.elsewhere(wrong[1], arguments)
        near = known or _synonyms.closest(wrong[1], names)
        said += f"; did you mean `{near}`?" if near else ""
    if method and args and not hasattr(args[0], function.__name__):
        said += "; it is a method of an object, not of a class"
    bare = [part.replace(annotation=part.empty, default=_plain(part.default)) for part in parts]
    takes = str(inspect.Signature(bare)).replace("=Ellipsis", "=...")
    takes = takes if len(takes) < 240 else re.sub(r"=[^,()]*(\([^()]*\))?", "", takes)
    return TypeError(_check.cut(f"{called}: {said}{'' if said[-1] == '?' else ';'} it takes {takes}", _check.LONGEST))


def _plain(default: object) -> object:
    """Return a default as a signature shows it: what is no number, word or tuple by three dots."""
    plain = default is inspect.Parameter.empty or default is None or isinstance(default, (int, float, str, tuple))
    return default if plain else ...


def of_theirs(called: str, given: Mapping[str, Any], said: str) -> Exception | None:
    """Return the error for a function among the arguments, or in the object whose method was called, that takes something else
    than it is called with; None where there is none."""
    if not (named := re.match(r"([\w.<>]+)\(\) (takes|missing|got)", said)):
        return None
    for owner, argument, value in _functions(called.partition(".")[0], given):
        takes = TAKES.get(f"{owner}.{argument}", TAKES.get(argument, ""))
        if not takes or getattr(value, "__qualname__", "") != named[1]:
            continue
        parameters = inspect.signature(value)
        try:
            parameters.bind(*takes.split(","))
        except TypeError:
            names = _check.cut(", ".join(parameters.parameters))
            argument = "denoise" if argument == "models" else argument
            return TypeError(f"{called}: `{argument}` must be a function of {takes}, got one of ({names})")
    return None


def _functions(owner: str, given: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (whose, argument, function) for the functions, and the methods that calls of objects end in, among the arguments and
    what wrappers of ours hold."""
    for argument, value in given.items():
        for each in value if isinstance(value, tuple) else (value,):
            kind = type(each)
            if hasattr(each, "__qualname__"):
                yield owner, argument, each
            else:
                methods = (getattr(each, name, None) for name in ("__call__", "forward"))
                yield from ((owner, argument, method) for method in methods if inspect.ismethod(method))
            if is_dataclass(each) and kind.__module__.startswith("diffcore."):
                yield from _functions(kind.__name__ if argument != "self" else owner, vars(each))
