"""Errors from deep inside, said in terms of the public function that was called.

Checks come first and are in each function. What they do not foresee ends in another library, whose message knows no argument
of ours: there the function, what it was given, and the cause are said together, in the form of `_check`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from diffcore import _check

P = ParamSpec("P")
T = TypeVar("T")

OURS = re.compile(
    r"\w+\.[\w.]+(\(\))?: |(sample|start|step|Plan|load_state|save_state|UNet3DConfig)\b.*: |.*`[\w.\[\]]+`"
)
"""How messages of ours begin, with the name of a function; or they name an argument."""

LIBRARIES = {
    "numpy",
    "torch",
    "jax",
    "jaxlib",
    "array_api_compat",
    "array_api_strict",
    "ml_dtypes",
    "scipy",
    "PIL",
    "safetensors",
    "skimage",
    "sklearn",
    "matplotlib",
    "av",
}
"""What diffcore calls; an error from anything else, such as a denoiser, is its caller's and stays as it is."""

PLAIN = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError, RuntimeError, MemoryError)


def face(module: str) -> None:
    """Explain the errors of all that a module offers, at its end: functions, and the methods of classes.

    What it offers is `__all__`, or else what it defines without an underscore.
    """
    names = vars(sys.modules[module])
    offered = names.get("__all__") or [
        name for name, value in names.items() if name[:1] != "_" and getattr(value, "__module__", "") == module
    ]
    for name in offered:
        value = names.get(name)
        if inspect.isfunction(value):
            names[name] = explained(value, module)
        elif (
            inspect.isclass(value)
            and not issubclass(value, (tuple, Warning))
            and not getattr(value, "_is_protocol", False)
        ):
            for base in value.__mro__:
                if base.__module__.startswith("diffcore."):
                    _explain_methods(base, module)


def _explain_methods(of: type, module: str) -> None:
    for name, method in list(vars(of).items()):
        if name[:1] != "_" or name in ("__call__", "__init__", "__next__"):
            if (
                inspect.isfunction(method)
                and "<locals>" not in method.__qualname__
                and method.__module__[:8] == "diffcore"
            ):
                setattr(of, name, explained(method, module))
            elif isinstance(method, classmethod):
                setattr(of, name, classmethod(explained(method.__func__, module)))


def explained(function: Callable[P, T], module: str = "") -> Callable[P, T]:
    """Return a function that a module offers, whose errors name it and its arguments, also where another library raised them.

    >>> @explained
    ... def halved(x):
    ...     return x / 2.0
    >>> halved("some")
    Traceback (most recent call last):
    TypeError: halved: cannot work with `x` 'some': unsupported operand type(s) for /: 'str' and 'float'
    """
    if hasattr(function, "__explained__"):
        return function

    @functools.wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> T:
        torch = sys.modules.get("torch")
        if torch is not None and torch.compiler.is_compiling():
            return function(*args, **named)
        try:
            return function(*args, **named)
        except Exception as error:
            if not isinstance(error, PLAIN) and not _of_explicit_axes(error):
                raise
            inside = error.__traceback__ and error.__traceback__.tb_next  # not where an argument is missing, say
            if inside is None or not _foreign(error, inside):
                raise
            raise _explanation(_name(function, module, args), function, args, named, error) from error

    call.__explained__ = True  # type: ignore[attr-defined]
    return call


@contextlib.contextmanager
def noting(text: str) -> Iterator[None]:
    """Add a note to an error about a value of the wrong kind, which is not ours to reword.

    >>> with noting("is it an array?"):
    ...     None.shape
    Traceback (most recent call last):
    AttributeError: 'NoneType' object has no attribute 'shape'
    is it an array?
    """
    try:
        yield
    except (TypeError, AttributeError) as error:
        error.add_note(text)
        raise


def _of_explicit_axes(error: Exception) -> bool:
    return type(error).__name__ == "ShardingTypeError"  # of JAX, which is not imported here


def _name(function: Callable[..., Any], module: str, args: tuple[Any, ...]) -> str:
    """Return what messages call a function: "process.diffuse", "sample", "exact.Gaussian.score", "data.batch"."""
    _, *parts = module.split(".")
    package = parts[0] if parts else ""
    if package == "interop":
        package = ".".join(parts[:2])
    elif parts[1:2] in (["data"], ["training"], ["digits"]):
        package = parts[1]
    called = function.__name__
    if "." in function.__qualname__ and args:
        owner = args[0] if isinstance(args[0], type) else type(args[0])
        called = owner.__name__ if called[:2] == "__" else f"{owner.__name__}.{called}"
    return called if package in ("", "sampling", "state", "plan") else f"{package}.{called}"


def _foreign(error: Exception, frames: TracebackType | None) -> bool:
    """Return whether an error says nothing of ours and comes from no function of the caller's."""
    singular = type(error).__name__ == "_LinAlgError"  # torch's, which names a function as ours do
    kept = type(error).__module__.partition(".")[0] in ("jax", "torch")  # of a tracer, of a device
    if kept and not singular and not _of_explicit_axes(error):
        return False
    root = ""
    while frames is not None:
        root = str(frames.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if root != "diffcore" and root not in LIBRARIES and root not in sys.stdlib_module_names:
            return False
        frames = frames.tb_next
    return (
        root != "diffcore"
        or singular
        or not OURS.match(str(error))
        or not isinstance(error, (TypeError, ValueError, RuntimeError, MemoryError))
    )


def _explanation(
    called: str, function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], error: Exception
) -> Exception:
    try:
        given = inspect.signature(function).bind_partial(*args, **named).arguments
    except TypeError:
        given = named
    shown = [
        f"`{name}` {_check.cut(_check.shown(value), 60)}"
        for name, value in given.items()
        if name not in ("self", "cls")
    ]
    kind: type[Exception] = TypeError if isinstance(error, (TypeError, AttributeError)) else ValueError
    kind = MemoryError if isinstance(error, MemoryError) else kind
    cause = _check.cut(" ".join((str(error) or type(error).__name__).split()), 160)
    if "torch.Tensor and DTensor" in cause:
        cause = (
            "it makes ordinary tensors beside the DTensors of a mesh; a denoiser of these goes into diffcore.mesh.local"
        )
    if _of_explicit_axes(error):
        cause = "explicit axes of a mesh leave open how this is divided; take a mesh whose axes are jax.sharding.AxisType.Auto"
    with_what = _check.cut(", ".join(shown), 260)
    return kind(f"{called}: cannot work with {with_what}: {cause}" if shown else f"{called}: {cause}")
