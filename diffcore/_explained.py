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
from collections.abc import Callable, Mapping
from types import FrameType, MappingProxyType, TracebackType
from typing import Any, ParamSpec, TypeVar

from diffcore import _check, _misfit, _synonyms

P = ParamSpec("P")
T = TypeVar("T")

OURS = re.compile(
    r"\w+\.[\w.]+(\(\))?: |(sample(_\w+)?|start|step|Plan|load_state|save_state|UNet3DConfig)\b.*: |.*`[\w.\[\]]+`"
)
"""How messages of ours begin, with the name of a function; or they name an argument."""

LIBRARIES = {"numpy", "torch", "jax", "jaxlib", "array_api_compat", "array_api_strict", "ml_dtypes", "scipy", "PIL"}
LIBRARIES |= {"safetensors", "skimage", "sklearn", "matplotlib", "av"}
"""What diffcore calls; an error from anything else, such as a denoiser, is its caller's and stays as it is."""

PLAIN = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError, RuntimeError, MemoryError)


def face(module: str, aliases: Callable[[], Mapping[str, str]] = lambda: MappingProxyType({})) -> None:
    """Explain the errors of all that a module offers, at its end: functions, and the methods of classes.

    What it offers is `__all__`, or else what it defines without an underscore. That is also what `dir` lists, and a
    name that is not there is answered with the one that may be meant; `aliases` has more such names.
    """
    names = vars(sys.modules[module])
    offered = _offered(module)

    def found(name: str) -> Any:
        raise missing(module, name, aliases)

    names["_elsewhere"] = aliases
    names.setdefault("__getattr__", found)
    names.setdefault("__dir__", lambda: sorted(offered))
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


def _offered(module: str) -> list[str]:
    names = vars(sys.modules[module])
    return names.get("__all__") or [
        name for name, value in list(names.items()) if name[:1] != "_" and getattr(value, "__module__", "") == module
    ]


def missing(
    module: str, name: str, aliases: Callable[[], Mapping[str, str]] = lambda: MappingProxyType({})
) -> AttributeError:
    """Return the error for a name that a module does not have, with the one that may be meant.

    >>> missing("diffcore.samplers", "DDIM")
    AttributeError("module 'diffcore.samplers' has no attribute 'DDIM'; did you mean `diffcore.samplers.ddim`?")
    """
    text = f"module {module!r} has no attribute {name!r}"
    if name[:1] == "_":
        return AttributeError(text, name=name, obj=sys.modules.get(module))
    loaded = [there for there, found in list(sys.modules.items()) if found is not None]  # another thread may import
    own = _offered(module) if module in loaded else []
    called = aliases()
    same = _synonyms.same(name, [*own, *called])
    known = called.get(same) or (f"{module}.{same}" if same else "") or _near(module, name, own, 0.85)
    known = known or _synonyms.elsewhere(name, _synonyms.FUNCTIONS, "diffcore.")
    scheduler = name.endswith("Scheduler")
    sampler = scheduler or name.startswith("sample_")
    public = (there for there in loaded if re.fullmatch(r"diffcore\.[a-z]\w*", there))
    for other in sorted(public, key=lambda there: (sampler and there != "diffcore.samplers", there)):
        called = vars(sys.modules[other]).get("_elsewhere", dict)()
        same = _synonyms.same(name, [*_offered(other), *called])
        known = known or called.get(same) or (f"{other}.{same}" if same else "")
    known = known or ("diffcore.interop.diffusers.plan(scheduler, steps)" if scheduler else "")
    known = known or _near(module, name, own, 0.6)
    return AttributeError(f"{text}; did you mean `{known}`?" if known else text)


def _near(module: str, name: str, names: list[str], cutoff: float) -> str:
    near = _synonyms.closest(name, names, cutoff)
    return f"{module}.{near}" if near else ""


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
            called, inside = _name(function, module, args), error.__traceback__ and error.__traceback__.tb_next
            if inside is None and not isinstance(error, TypeError):  # no room for the call: too deep
                raise
            if inside is None:  # the arguments do not fit
                raise _misfit.of_ours(called, function, args, error) from None
            if not _foreign(error, inside):
                with contextlib.suppress(Exception):  # the error counts, whatever its class and the values do
                    _say_where(called, error, inside)
                raise
            explanation = error
            with contextlib.suppress(Exception):
                explanation = _explanation(called, function, args, named, error)
                for note in getattr(error, "__notes__", ()):
                    explanation.add_note(note)
            if explanation is error:
                raise
            raise explanation from error

    call.__explained__ = True  # type: ignore[attr-defined]
    return call


class noting:
    """Add a note to an error about a value of the wrong kind, which is not ours to reword.

    >>> with noting("is it an array?"):
    ...     None.shape
    Traceback (most recent call last):
    AttributeError: 'NoneType' object has no attribute 'shape'
    is it an array?
    """

    def __init__(self, text: str, where: Callable[[Exception], bool] = lambda _: True) -> None:
        self.text, self.where = text, where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, frames: object) -> None:
        if isinstance(error, (TypeError, AttributeError)):
            with contextlib.suppress(Exception):  # an error that cannot be changed
                if self.where(error):
                    error.add_note(self.text)


def of_libraries(error: Exception) -> bool:
    """Return whether an error may come from an array of NumPy where one of torch or JAX was meant: it names arrays of libraries, or
    misses what theirs have."""
    text = str(error)
    if missed := re.search(r"ndarray' object has no attribute '(\w+)'", text):
        torch = sys.modules.get("torch")
        return missed[1] == "at" or (torch is not None and hasattr(torch.Tensor, missed[1]))
    # z.size(0), z.mean(dim=1)
    methods = ("'int' object is not callable", "keyword argument 'dim'", "keyword argument 'keepdim'")
    return re.search(r"numpy|[Tt]ensor\b|torch|jax", text) is not None or any(part in text for part in methods)


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
        name = owner.__name__ if hasattr(owner, called) else function.__qualname__.split(".")[0]
        called = name if called[:2] == "__" else f"{name}.{called}"
    return called if package in ("", "sampling", "adaptive", "parallel", "state", "plan") else f"{package}.{called}"


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


def _theirs(frame: FrameType) -> bool:
    """Return whether a frame is of the caller's code, of neither diffcore nor what it calls."""
    root = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return root != "diffcore" and root not in LIBRARIES and root not in sys.stdlib_module_names


def _say_where(called: str, error: Exception, frames: TracebackType | None) -> None:
    """Note what the arguments of a function of the caller's were where it failed: z and log_snr of a denoiser, say. They may be
    others than it was called with, where it assigned to them."""
    while frames is not None and not _theirs(frames.tb_frame):
        frames = frames.tb_next
    if frames is None or any("where it failed" in note for note in getattr(error, "__notes__", ())):
        return
    code, values = frames.tb_frame.f_code, frames.tb_frame.f_locals
    given = [name for name in code.co_varnames[: code.co_argcount] if name in values and name != "self"]
    if given:
        shown = ", ".join(f"{name}: {_check.cut(_check.shown(values[name]), 70)}" for name in given)
        error.add_note(f"{called}: `{code.co_name}` had {_check.cut(shown, 240)} where it failed")


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
    if isinstance(error, TypeError) and (unfit := _misfit.of_theirs(called, given, str(error))):
        return unfit
    kind: type[Exception] = TypeError if isinstance(error, (TypeError, AttributeError)) else ValueError
    kind = MemoryError if isinstance(error, MemoryError) else kind
    cause = _check.cut(" ".join((str(error) or type(error).__name__).split()), 160)
    if "torch.Tensor and DTensor" in cause:
        cause = (
            "it makes ordinary tensors beside the DTensors of a mesh; a denoiser of these goes into diffcore.mesh.local"
        )
    if _of_explicit_axes(error):
        cause = "explicit axes of a mesh leave open how this is divided; take a mesh whose axes are jax.sharding.AxisType.Auto"
    for name, value in given.items():
        if name not in ("self", "cls", "dtype") and _makes(value):
            cause += f"; is `{name}` meant to be what {value.__name__}(...) returns?"
    with_what = _check.cut(", ".join(shown), 260)
    return kind(f"{called}: cannot work with {with_what}: {cause}" if shown else f"{called}: {cause}")


def _makes(value: object) -> bool:
    """Return whether a value is a class or function whose result may be meant: a module of torch, or something of ours."""
    if not isinstance(value, type):
        return inspect.isfunction(value) and hasattr(value, "__explained__")
    of_torch = sys.modules.get("torch.nn")
    return value.__module__.partition(".")[0] == "diffcore" or (
        of_torch is not None and issubclass(value, of_torch.Module)
    )
