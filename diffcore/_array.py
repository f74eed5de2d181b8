"""The first step of every function: find the library of its arrays, and line levels up with data.

Two rules of the whole package are stated here, once.

* *Levels lead.* A coefficient of shape (), (B,) or (B, T) aligns with the **leading** axes of the data.
* *Coefficients meet data as Python floats, or cast to the data's dtype.* Half precision data is computed in float32
  and rounded once, at the end.
"""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
import sys
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from diffcore import _check, _layout

Array = Any
"""An array of any library that follows the array API standard."""

NUMBERS = (bool, int, float, np.number, np.bool_)
"""The types that count as numbers."""

INTEGERS = (int, np.integer)


def library(array: Array) -> Any:
    """Return the array API namespace of one array, or None for a number."""
    if isinstance(array, NUMBERS):
        return None
    if isinstance(array, np.ndarray):
        return np
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        import array_api_compat.torch as array_api_torch  # the generic look-up does not trace under torch.compile

        return array_api_torch
    if isinstance(array, type) or not array_api_compat.is_array_api_obj(array):
        raise TypeError(f"takes an array (NumPy, torch, JAX, ...) or a number, not {type(array).__name__}")
    return array_api_compat.array_namespace(array)


def name(xp: Any) -> str:
    """Return the plain name of a namespace, for messages: "numpy", "torch", "jax"."""
    return str(xp.__name__).removeprefix("array_api_compat.").split(".")[0]


def namespace(function: str, /, **arrays: Array) -> Any:
    """Return the one array API namespace that the named arguments share; numbers fit every library.

    Raises TypeError where two libraries are mixed, or where an argument is no array at all.
    """
    found: Any = None
    first = ""
    for argument, array in arrays.items():
        try:
            xp = library(array)
        except TypeError as error:
            hint = "; it says the library, dtype and device, as torch.zeros(1, device='cuda') does" * (
                argument == "like"
            )
            raise TypeError(f"{function}: `{argument}` {error}{hint}") from None
        if xp is None:
            continue
        if found is None:
            found, first = xp, argument
        elif xp is not found:
            raise TypeError(
                f"{function}: `{argument}` is a {name(xp)} array but `{first}` is a {name(found)} array; "
                f"convert one of them, arrays of two libraries do not mix"
            )
    return np if found is None else found


def check_floating(function: str, /, **arrays: Array) -> None:
    """Raise TypeError for an integer, boolean or complex array, naming the argument and its dtype."""
    for argument, array in arrays.items():
        xp = library(array)
        if xp is not None and not is_floating(array):
            raise TypeError(
                f"{function}: `{argument}` has dtype {array.dtype}, but takes a real floating dtype; "
                f"cast it first, for example to float32"
            )


def is_floating(array: Array) -> bool:
    """Return whether an array's dtype is real and floating; quickly where a library says so itself."""
    dtype = array.dtype
    if getattr(dtype, "kind", "") == "f" or getattr(dtype, "is_floating_point", False):
        return True
    return bool(library(array).isdtype(dtype, "real floating")) or str(dtype) in {"bfloat16", "float16"}


def is_half(dtype: Any) -> bool:
    """Return whether a floating dtype has fewer than 32 bits."""
    return str(dtype).removeprefix("torch.") in {"float16", "bfloat16"}


def widen(xp: Any, array: Array) -> Array:
    """Return the array in the dtype it is computed in: float32 for half precision, else as it is."""
    return xp.astype(array, xp.float32) if is_half(array.dtype) else array


@functools.cache
def _register(kind: type) -> None:
    with contextlib.suppress(ValueError):  # a caller has done it
        sys.modules["jax"].tree_util.register_static(kind)


def setting(kind: type) -> None:
    """Tell JAX, where it is loaded, that objects of a class are settings, so that they may be arguments of `jax.jit`."""
    if not traced() and hasattr(sys.modules.get("jax"), "tree_util"):
        _register(kind)


def to_host(
    array: Any, dtype: Any = None, *, function: str = "", argument: str = "array", finite: bool = False
) -> npt.NDArray[Any]:
    """Return an array of any library and device, a number or a sequence of numbers as a NumPy array, gradients left behind.

    It may share memory with the original. Dtypes that NumPy lacks, bfloat16 and smaller, become float32, which is exact.

    Raises:
        TypeError: an array that is being traced, whose values are not known yet; an object without numbers.
        ValueError: NaN or infinity where all must be `finite`.

    >>> to_host([1, 2], np.float32)
    array([1., 2.], dtype=float32)
    """
    try:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(array, torch.Tensor):
            array = array.detach()
            array = (array.full_tensor() if hasattr(array, "full_tensor") else array).cpu()
            wide = array.dtype.is_floating_point and array.dtype not in (torch.float16, torch.float32, torch.float64)
            array = (array.float() if wide else array).numpy()
        elif array_api_compat.is_cupy_array(array):
            array = array.get()
        found = np.asarray(array)
        if found.dtype.isbuiltin == 2:  # of the package ml_dtypes
            found = found.astype(np.float32)
        if found.dtype == np.object_ and not all(isinstance(entry, numbers.Real) for entry in found.flat):
            raise TypeError("NumPy takes None for NaN")
        found = found if dtype is None else found.astype(dtype, copy=False)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        must = "be numbers, as a sequence or an array whose values are known, none that is being traced"
        raise _check.error(TypeError, function, argument, must, array) from error
    if finite and not np.all(good := np.isfinite(found)):
        raise ValueError(
            f"{function}: `{argument}` must be finite, got NaN or infinity in {found.size - int(np.sum(good))} of "
            f"{found.size} entries"
        )
    return found


def level_array(function: str, argument: str, value: Array) -> tuple[Any, Array]:
    """Return (xp, array) for a time, a log-SNR or another level: numbers become float64, halves float32."""
    xp = namespace(function, **{argument: value})
    if library(value) is None:
        single = isinstance(value, np.floating) and value.dtype.itemsize <= 4
        return xp, np.asarray(value, dtype=np.float32 if single else np.float64)
    check_floating(function, **{argument: value})
    return xp, widen(xp, value)


def as_array(xp: Any, value: Array) -> Array:
    """Return a number as an array of a library, and an array as it is: `torch.asarray` cut it off its gradient until 2.13."""
    return xp.asarray(value) if library(value) is None else value


def table_for(table: npt.NDArray[np.float64], like: Array) -> Array:
    """Return host coefficients as an array of the data's library and device, in the dtype they are computed in."""
    xp = library(like)
    dtype = xp.float32 if is_half(like.dtype) else like.dtype
    return _layout.beside(xp.asarray(table, dtype=dtype, device=device(like)), like)


def traced() -> bool:
    """Return whether torch traces this code, NumPy's with it, so that the numbers in an array are not known."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())


def known_int(value: Any) -> int | None:
    """Return an int, or a 0-d integer array, as an int; None where code is traced and its value is not known yet."""
    if isinstance(value, INTEGERS):
        return int(value)
    if traced():
        return None
    try:
        return int(value)
    except (TypeError, RuntimeError):  # a tracer of JAX; a tensor inside a transformation of torch
        return None


def take_row(rows: Array, index: Any, like: Array) -> Array:
    """Return rows[index] for an index that is traced, without a branch on it and without waiting for a device."""
    xp = library(rows)
    return xp.take(rows, xp.reshape(xp.asarray(index, device=device(like)), (1,)), axis=0)[0, ...]


def scalar(array: Array) -> Array:
    """Return a NumPy 0-d array as the NumPy scalar that NumPy's own functions would return."""
    return array[()] if isinstance(array, np.ndarray) and array.ndim == 0 else array


def along(function: str, argument: str, coefficient: Array, data: Array, xp: Any) -> Array:
    """Return a coefficient ready to meet `data`: a Python float, or cast and aligned with the leading axes.

    Raises ValueError where the shape of the coefficient does not match the leading axes.
    """
    if isinstance(coefficient, NUMBERS):
        return float(coefficient)
    lead, shape = tuple(coefficient.shape), tuple(data.shape)
    check_lead(function, argument, lead, shape)
    coefficient = _layout.leading(xp.astype(coefficient, data.dtype, copy=False), data)
    return xp.reshape(coefficient, lead + (1,) * (len(shape) - len(lead)))


def check_lead(function: str, argument: str, lead: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a level's shape aligns with the leading axes of the data's."""
    if len(lead) > len(shape) or any(n not in (1, m) for n, m in zip(lead, shape, strict=False)):
        raise ValueError(
            f"{function}: `{argument}` has shape {lead}, which does not align with the leading axes of data of shape "
            f"{shape}; a level has shape (), (B,) or (B, T)"
        )


def check_trailing(function: str, argument: str, shape: tuple[int, ...], of: tuple[int, ...]) -> None:
    """Raise ValueError unless a mask's shape, or that of something observed, broadcasts to the data's by its last axes.

    Of one or two axes, it could be one value for each sample or frame, as of levels; where the sizes do not tell the two
    apart, that is refused too. A last axis of size 1 says which are meant.
    """
    rest = (1,) * (len(of) - len(shape))
    leads = len(shape) <= len(of) and all(n in (1, m) for n, m in zip(shape, of, strict=False))
    if len(shape) > len(of) or any(n not in (1, m) for n, m in zip(rest + shape, of, strict=True)):
        way_out = (
            f"reshape it to {shape + rest} for one of each sample or frame"
            if leads
            else "a mask of T frames takes trailing axes, (T, 1, 1, 1): see diffcore.conditioning.frames"
        )
        raise ValueError(
            f"{function}: `{argument}` must broadcast to data of shape {of} by its last axes, got shape {shape}; {way_out}"
        )
    if 0 < len(shape) < min(3, len(of)) and shape[-1] > 1 and leads:
        raise ValueError(
            f"{function}: `{argument}` must fit the last axes alone, got shape {shape}, which fits both the first and the last "
            f"axes of data of shape {of}; reshape it to {shape + rest} for one of each sample or frame, or to {rest + shape} "
            f"for the last axes"
        )


def line_up(function: str, /, **arrays: Array) -> tuple[Array, ...]:
    """Return arrays of levels that broadcast by their leading axes: beside (B, T), one of (B,) becomes (B, 1).

    Raises ValueError where two of them do not align. An array of no axes, and a number, is left as it is.
    """
    shapes = {argument: tuple(getattr(array, "shape", ())) for argument, array in arrays.items()}
    for argument, shape in shapes.items():
        for other, against in shapes.items():
            if any(1 not in (n, m) and n != m for n, m in zip(shape, against, strict=False)):
                raise ValueError(
                    f"{function}: `{argument}` has shape {shape} and `{other}` has {against}, which do not align by their "
                    f"leading axes; levels have shape (), (B,) or (B, T)"
                )
    rank = max(len(shape) for shape in shapes.values())
    return tuple(
        library(array).reshape(array, shape + (1,) * (rank - len(shape))) if 0 < len(shape) < rank else array
        for array, shape in zip(arrays.values(), shapes.values(), strict=True)
    )


def known(value: Any) -> Any:
    """Return a value on the host, or None where looking at it would wait for a device, or it is traced."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if torch.compiler.is_compiling() or value.device.type != "cpu":
            return None
        value = value.detach()
        value = value.float() if value.dtype == torch.bfloat16 else value
    try:
        array = np.asarray(value)
        return array if array.dtype == np.bool_ else array.astype(np.float64)
    except Exception:  # a tracer, or a tensor hidden in a transformation: each library raises its own
        return None


def recording(array: Array, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which torch records gradients only where they are wanted, or the array asks for them."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor) and not (wanted or array.requires_grad):
        return torch.no_grad()  # type: ignore[no-any-return]
    return contextlib.nullcontext()


def device(array: Array) -> Any:
    """Return the device of an array, also under jit, where `array.device` fails; None where JAX says how it is divided among
    devices, which holds for that array alone."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return array.device
    found = array_api_compat.device(array)
    return None if hasattr(found, "device_set") else found


def is_jax(array: Any) -> bool:
    """Return whether an array is one of JAX."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and isinstance(array, torch.Tensor):  # of which torch.compile answers no other question
        return False
    return jax is not None and isinstance(array, jax.Array)


def place(array: Array) -> Any:
    """Return the device of an array, or how a JAX array is divided among several."""
    found = device(array)
    if found is not None or not is_jax(array) or isinstance(array, sys.modules["jax"].core.Tracer):
        return found
    return array_api_compat.device(array)


def placed_as(array: Array, like: Array) -> Array:
    """Return an array of JAX where another one is, if it is elsewhere; others as they are."""
    if not is_jax(array) or not is_jax(like):
        return array
    there = place(like)
    return array if there is None or place(array) == there else sys.modules["jax"].device_put(array, there)


def check_data(function: str, /, **arrays: Array) -> Any:
    """Return the namespace of floating arrays of data, (B, ...), or raise TypeError."""
    xp = namespace(function, **arrays)
    for argument, array in arrays.items():
        if library(array) is None or not array.shape:
            raise _check.error(TypeError, function, argument, "be an array (B, ...)", array)
    check_floating(function, **arrays)
    return xp


def flat(array: Array, lead: int = 1) -> Array:
    """Return an array whose axes after the first `lead` are one; of a DTensor every process gets whole samples."""
    array = _layout.samples(array)
    return library(array).reshape(array, (*array.shape[:lead], math.prod(array.shape[lead:])))


def quiet(xp: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which NumPy stays silent about infinities that are meant (log 0 at a clean end)."""
    if xp is np and not traced():  # which cannot trace a NumPy context
        return np.errstate(all="ignore")
    return contextlib.nullcontext()
