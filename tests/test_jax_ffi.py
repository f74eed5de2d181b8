"""NumPy functions that XLA calls: what they see, what they raise, and structures that are those of jaxlib's own header."""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcore.backends import cpu_threads, jax_ffi

jax.config.update("jax_platforms", "cpu")
pytestmark = pytest.mark.jax


def call(name: str, function: Any, *args: Any, shape: tuple[int, ...] = (3,)) -> Any:
    jax_ffi.register(name, function)
    made = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential")
    return np.asarray(jax.jit(made)(*args))


def test_a_function_sees_xlas_memory_in_every_dtype_and_of_no_elements() -> None:
    seen: list[Any] = []

    def function(args: list[Any], rets: list[Any]) -> None:
        seen.extend((array.dtype.name, array.shape, array.tolist()) for array in args)
        rets[0][:] = args[0] * 2.0

    whole = jnp.float32([1.0, 2.0, 3.0])
    others = [whole.astype(dtype)[None] for dtype in ("float16", "bfloat16", "uint32")]
    found = call("test_sees", function, whole, *others, jnp.zeros((0, 2)), jnp.uint32(7))
    np.testing.assert_array_equal(found, [2.0, 4.0, 6.0])
    assert seen == [
        ("float32", (3,), [1.0, 2.0, 3.0]),
        ("float16", (1, 3), [[1.0, 2.0, 3.0]]),
        ("uint16", (1, 3), [[0x3F80, 0x4000, 0x4040]]),
        ("uint32", (1, 3), [[1, 2, 3]]),
        ("float32", (0, 2), []),
        ("uint32", (), 7),
    ]


def test_what_a_function_raises_ends_the_run_in_words() -> None:
    def function(args: list[Any], rets: list[Any]) -> None:
        raise ArithmeticError("seven is missing")

    for _ in range(2):
        with pytest.raises(Exception, match="test_raises: ArithmeticError: seven is missing"):
            call("test_raises", function, jnp.zeros(3))
    with pytest.raises(Exception, match="test_refuses: KeyError"):  # a dtype that no function of ours is given
        call("test_refuses", lambda args, rets: None, jnp.zeros(3, jnp.int8))


@pytest.mark.skipif(cpu_threads.kernel is None, reason="the kernel was not compiled")
def test_what_is_raised_before_a_handler_can_catch_it_is_an_error_too() -> None:
    """Ctrl-C may be, where XLA calls on the main thread."""
    guarded, told = cpu_threads.kernel.guarded, []
    frame, api = jax_ffi.CallFrame(), jax_ffi.Api()

    def create(args: Any) -> int:
        found = args.contents
        told.append((found.struct_size, found.message, found.errc))
        return 1234

    api.XLA_FFI_Error_Create = type(api.XLA_FFI_Error_Create)(create)
    frame.api = ctypes.pointer(api)

    def interrupted(frame: int) -> int:
        raise KeyboardInterrupt

    def broken(frame: int) -> int:
        raise MemoryError

    assert guarded(lambda frame: frame + 1, 6) == 7
    assert guarded(broken, ctypes.addressof(frame)) == 1234
    with pytest.raises(KeyboardInterrupt):
        assert guarded(interrupted, ctypes.addressof(frame)) == 1234
    size = ctypes.sizeof(jax_ffi.ErrorCreateArgs)
    assert told == [(size, b"diffcore: interrupted", jax_ffi.INTERNAL)] * 2


@pytest.mark.skipif(cpu_threads.kernel is None, reason="the kernel was not compiled")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_ctrl_c_at_any_time_is_heard_and_breaks_nothing() -> None:
    program = """
import random, signal, time
import jax, jax.numpy as jnp, numpy as np, diffcore as dc
jax.config.update("jax_platforms", "cpu")
plan, z = dc.samplers.ancestral(dc.schedules.Cosine(), steps=3), jnp.ones((2, 1500))
state = dc.start(plan, z, seed=3)
step = jax.jit(lambda: dc.step(plan, state, z, prediction="v").z)
want, heard, ends = np.asarray(step()), 0, time.monotonic() + 1.5
for number in (signal.SIGALRM, signal.SIGINT):
    signal.signal(number, signal.default_int_handler)
while time.monotonic() < ends:
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-4 * random.random() + 1e-6)
            for _ in range(20):
                found = np.asarray(step())
                assert np.array_equal(found, want)
            time.sleep(1e-3)
        except ValueError as error:
            assert "interrupt" in str(error).lower(), error
            time.sleep(1.0)
            raise SystemExit("Ctrl-C was lost")
    except KeyboardInterrupt:
        heard += 1
assert heard > 100, heard
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.skipif(cpu_threads.kernel is None, reason="the kernel was not compiled")
@pytest.mark.parametrize(
    "last",
    ["dc.sample(call, plan, z, prediction='v')", "held = jax.jit(run)(z)", "dc.noise.normal(0, 0, z.shape, like=z)"],
)
def test_a_program_may_end_while_xla_computes(last: str) -> None:
    """JAX waits for XLA's threads with Python's lock held, for which the handlers wait."""
    program = f"""
import jax, jax.numpy as jnp, diffcore as dc
jax.config.update("jax_platforms", "cpu")
plan, z = dc.samplers.ancestral(dc.schedules.Cosine(), steps=30), jnp.ones((4, 300_000))
call = lambda z, log_snr: -0.5 * z
run = lambda z: dc.sample(call, plan, z, prediction="v")
{last}
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


OFFSETS = {
    "XLA_FFI_Api_Version": (jax_ffi.ApiVersion, {"major_version": "", "minor_version": ""}),
    "XLA_FFI_Metadata": (jax_ffi.Metadata, {"api_version": ""}),
    "XLA_FFI_Error_Create_Args": (jax_ffi.ErrorCreateArgs, {"message": "", "errc": ""}),
    "XLA_FFI_Api": (jax_ffi.Api, {"api_version": "", "XLA_FFI_Error_Create": ""}),
    "XLA_FFI_Buffer": (jax_ffi.Buffer, {"dtype": "", "data": "", "rank": "", "dims": ""}),
    "XLA_FFI_Args": (jax_ffi.Buffers, {"size": "", "types": "", "buffers": "args"}),
    "XLA_FFI_Rets": (jax_ffi.Buffers, {"size": "", "types": "", "buffers": "rets"}),
    "XLA_FFI_CallFrame": (
        jax_ffi.CallFrame,
        {"extension_start": "", "api": "", "ctx": "", "stage": "", "args": "", "rets": ""},
    ),
    "XLA_FFI_Metadata_Extension": (jax_ffi.MetadataExtension, {"metadata": ""}),
}


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_structures_are_those_of_jaxlibs_header(tmp_path: Path) -> None:
    wanted, lines = [], []
    for name, (structure, fields) in OFFSETS.items():
        for ours, theirs in fields.items():
            wanted.append(getattr(structure, ours).offset)
            lines.append(f"offsetof(struct {name}, {theirs or ours})")
    for name, value in (("XLA_FFI_ExecutionStage_EXECUTE", jax_ffi.EXECUTE), ("XLA_FFI_Error_Code_INTERNAL", 13)):
        wanted.append(value)
        lines.append(name)
    for number, dtype in jax_ffi.DTYPES.items():
        short = {np.uint32: "U32", np.float16: "F16", np.float32: "F32", np.float64: "F64", np.uint16: "BF16"}[dtype]
        wanted.append(number)
        lines.append(f"XLA_FFI_DataType_{short}")
    wanted += [jax_ffi.METADATA, *jax_ffi._version(), ctypes.sizeof(jax_ffi.Buffers)]
    lines += ["XLA_FFI_Extension_Metadata", "XLA_FFI_API_MAJOR", "XLA_FFI_API_MINOR", "sizeof(struct XLA_FFI_Args)"]
    source = tmp_path / "offsets.c"
    prints = "".join(f'printf("%zu\\n", (size_t)({line}));\n' for line in lines)
    source.write_text(f'#include <stdio.h>\n#include "xla/ffi/api/c_api.h"\nint main(void) {{ {prints} }}\n')
    program = tmp_path / "offsets"
    subprocess.run(["cc", f"-I{jax.ffi.include_dir()}", "-o", program, source], check=True, timeout=60)
    printed = subprocess.run([program], check=True, capture_output=True, text=True, timeout=60).stdout
    assert dict(zip(lines, map(int, printed.split()), strict=True)) == dict(zip(lines, wanted, strict=True))
