"""Functions of NumPy arrays that XLA calls on a CPU, on its own memory and without a copy.

`jax.pure_callback` copies what goes in and what comes out, which takes longer than a stage. XLA's foreign function interface does
not. Its handlers are C functions of one argument, a call frame, which ctypes can be and can read: the structures below are the
parts of xla/ffi/api/c_api.h that a handler of arrays needs, as they are in all versions from 0.1 (jaxlib 0.5.0) to 0.5 (0.12.0).
Within a major version they only grow at their ends.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import re
from _thread import interrupt_main
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import jax
import numpy as np

from diffcore._array import Array
from diffcore.backends import cpu_threads

Function = Callable[[list[Array], list[Array]], None]
"""Fills arrays from arrays; bfloat16 is there as uint16."""

METADATA, EXECUTE, INTERNAL = 1, 3, 13
"""A kind of extension, a stage of execution, and an error's code."""

DTYPES = {8: np.uint32, 10: np.float16, 11: np.float32, 12: np.float64, 16: np.uint16}
"""XLA's numbers of data types."""


class Head(ctypes.Structure):
    """What most structures begin with."""

    _fields_ = [("struct_size", ctypes.c_size_t), ("extension_start", ctypes.c_void_p)]


class ApiVersion(Head):
    """XLA_FFI_Api_Version."""

    _fields_ = [("major_version", ctypes.c_int), ("minor_version", ctypes.c_int)]


class Extension(ctypes.Structure):
    """XLA_FFI_Extension_Base."""

    _fields_ = [("struct_size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p)]


class Metadata(ctypes.Structure):
    """XLA_FFI_Metadata."""

    _fields_ = [("struct_size", ctypes.c_size_t), ("api_version", ApiVersion)]


class MetadataExtension(ctypes.Structure):
    """XLA_FFI_Metadata_Extension."""

    _fields_ = [("extension_base", Extension), ("metadata", ctypes.POINTER(Metadata))]


class ErrorCreateArgs(Head):
    """XLA_FFI_Error_Create_Args."""

    _fields_ = [("message", ctypes.c_char_p), ("errc", ctypes.c_int)]


class Api(Head):
    """XLA_FFI_Api."""

    _fields_ = [
        ("api_version", ApiVersion),
        ("internal_api", ctypes.c_void_p),
        ("XLA_FFI_Error_Create", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(ErrorCreateArgs))),
    ]


class Buffer(Head):
    """XLA_FFI_Buffer."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    ]


class Buffers(Head):
    """XLA_FFI_Args, and XLA_FFI_Rets."""

    _fields_ = [
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(ctypes.POINTER(Buffer))),
    ]


class CallFrame(Head):
    """XLA_FFI_CallFrame."""

    _fields_ = [
        ("api", ctypes.POINTER(Api)),
        ("ctx", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("args", Buffers),
        ("rets", Buffers),
    ]


Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_handlers: dict[str, Any] = {}  # C functions live as long as the objects that made them
_lock = Lock()


def register(name: str, function: Function) -> None:
    """Let `jax.ffi.ffi_call(name, ...)` call a function of NumPy arrays on a CPU; a name keeps its first function.

    Args:
        name: how compiled programs call it.
        function: takes the arguments and the results to fill, which are views of XLA's memory, valid for the call alone. What it
            raises ends the run with an error that says so.
    """
    version = _version()

    def handle(frame: int) -> int | None:
        call = CallFrame.from_address(frame)
        try:
            if _tells_version(call, version) or call.stage != EXECUTE:
                return None
            function(_arrays(call.args), _arrays(call.rets))
        except BaseException as error:  # it must not pass through C
            if isinstance(error, KeyboardInterrupt):
                interrupt_main()  # again, where it is heard
            message = f"{name}: {type(error).__name__}: {error}".encode()
            found = ErrorCreateArgs(ctypes.sizeof(ErrorCreateArgs), None, message, INTERNAL)
            created: int = call.api.contents.XLA_FFI_Error_Create(ctypes.byref(found))
            return created
        return None

    with _lock:
        if name not in _handlers:
            guarded = None if cpu_threads.kernel is None else cpu_threads.kernel.guarded
            handler = Handler(handle if guarded is None else partial(guarded, handle))
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(ctypes.cast(handler, ctypes.c_void_p).value))
            _handlers[name] = handler
            _waiting(os.getpid())


def finish(array: jax.Array) -> jax.Array:
    """Return an array, computed before the interpreter ends, even if nobody holds it until then.

    JAX shuts XLA down with Python's lock held, for which a function that XLA calls would wait for ever.
    """
    if not isinstance(array, jax.core.Tracer) and not array.is_ready():
        with suppress(RuntimeError):  # while the interpreter shuts down
            _waiting(os.getpid()).submit(array.block_until_ready)
    return array


@lru_cache(maxsize=1)
def _waiting(process: int) -> ThreadPoolExecutor:
    """Return a thread of this process, which the interpreter joins at its end, before it shuts down anything."""
    atexit.register(_finish_all)
    return ThreadPoolExecutor(1, thread_name_prefix="diffcore")


def _finish_all() -> None:
    """Wait for what programs of a user's own compute, as far as it is held."""
    for array in jax.live_arrays("cpu"):
        with suppress(Exception):  # which is told to whoever reads it
            array.block_until_ready()


def _tells_version(call: CallFrame, version: tuple[int, int]) -> bool:
    """Return whether XLA asks what the handler was written for, and tell it."""
    if not call.extension_start or Extension.from_address(call.extension_start).type != METADATA:
        return False
    told = MetadataExtension.from_address(call.extension_start).metadata.contents.api_version
    told.major_version, told.minor_version = version
    return True


def _version() -> tuple[int, int]:
    """Return the version that a handler compiled against this jaxlib would have."""
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text(encoding="utf-8")
    found = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header))
    if int(found["MAJOR"]) != 0:
        raise ValueError(f"jax: version {found['MAJOR']} of XLA's foreign function interface, but 0 is known")
    return 0, int(found["MINOR"])


def _arrays(buffers: Buffers) -> list[Array]:
    found = []
    for at in range(buffers.size):
        buffer = buffers.buffers[at].contents
        shape, dtype = buffer.dims[: buffer.rank], np.dtype(DTYPES[buffer.dtype])
        if 0 in shape:  # which may lie nowhere
            found.append(np.empty(shape, dtype))
        else:
            memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(buffer.data)
            found.append(np.frombuffer(memory, dtype).reshape(shape))
    return found
