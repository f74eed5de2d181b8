"""What XLA hands to the CPU's kernel: arrays that do not fit are refused, and structures are those of jaxlib's own header."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcore as dc
from diffcore.backends import cpu_threads, jax_kernel

jax.config.update("jax_platforms", "cpu")
pytestmark = pytest.mark.jax

needs_kernel = pytest.mark.skipif(cpu_threads.kernel is None, reason="the kernel was not compiled")


def arguments(memory: int = 2, numbers: tuple[int, ...] = (3, 2, 1, 0, 1)) -> list[Any]:
    """Return what the kernel is given for a stage of two samples, all there: the unguided prediction, keys, and a ring of slots."""
    z = jnp.arange(2 * 3000.0).reshape(2, 3000) / 3000
    past = [z * (3.0 + back) for back in range(memory)]
    row = jnp.linspace(-0.9, 0.8, 2 + (1 + memory) * (4 + memory))
    none, keys, bounds = jnp.zeros(0), jnp.uint32([[1, 2], [3, 4]]), jnp.float32([-1, 1])
    return [z, z * 2.0, none, z * 0.5, none, keys, row, bounds, jnp.uint32(numbers), *past]


def called(args: list[Any], rets: list[Any], name: str = jax_kernel.STAGE, over: dict[int, int] | None = None) -> Any:
    assert jax_kernel.works()
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in rets]
    return jax.jit(jax.ffi.ffi_call(name, shapes, vmap_method="sequential", input_output_aliases=over))(*args)


@needs_kernel
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: jnp.zeros((2, 3000), jnp.int32)}, "takes float32"),
        ({0: jnp.zeros((0, 3000))}, "not nothing"),
        ({1: jnp.zeros((2, 2999))}, "several sizes or dtypes"),
        ({3: jnp.zeros((2, 3000), jnp.float16)}, "several sizes or dtypes"),
        ({10: jnp.zeros((2, 1))}, "several sizes or dtypes"),
        ({1: jnp.zeros(0)}, "a prediction that it reads"),
        ({3: jnp.zeros(0)}, "a prediction that it reads"),
        ({1: jnp.zeros(0), 2: jnp.zeros((2, 3000)), 3: jnp.zeros(0), 8: jnp.uint32([3, 2, 1, 0, 2])}, "a prediction"),
        ({5: jnp.zeros((3, 2), jnp.uint32)}, "for other arrays"),
        ({5: jnp.zeros((2, 2))}, "for other arrays"),
        ({6: jnp.zeros(19)}, "for other arrays"),
        ({6: jnp.zeros((3, 20))}, "for other arrays"),
        ({6: jnp.zeros((2, 7, 20))}, "for other arrays"),
        ({6: jnp.zeros(20, jnp.float16)}, "for other arrays"),
        ({7: jnp.zeros(3)}, "for other arrays"),
        ({8: jnp.int32([3, 2, 1, 0, 1])}, "five numbers, in uint32"),
        ({8: jnp.uint32([3, 2, 1, 0])}, "five numbers, in uint32"),
        ({8: jnp.uint32([3, 2, 2, 0, 1])}, "another form"),
        ({8: jnp.uint32([3, 2, 1, 2, 1])}, "another form"),
        ({8: jnp.uint32([3, 2, 1, 0, 3])}, "another form"),
    ],
)
def test_arrays_that_do_not_fit_end_the_run_in_words(change: dict[int, Any], words: str) -> None:
    args = arguments()
    z, none, over = args[0], jnp.zeros(0), {9: 2, 10: 3}
    assert all(np.isfinite(array).all() for array in called(args, [z, none, z, z], over=over))
    for at, array in change.items():
        args[at] = array
    with pytest.raises(Exception, match=f"diffcore_stage: .*{words}"):
        called(args, [args[0], none, z])


@needs_kernel
def test_so_does_another_number_of_them() -> None:
    args, none = arguments(), jnp.zeros(0)
    z = args[0]
    for given, rets in ((args, [z]), (args[:8], [z, none, z]), ([*args, *args[-1:] * 7], [z, none, z])):
        with pytest.raises(Exception, match="diffcore_stage: another number of arrays"):
            called(given, rets)
    with pytest.raises(Exception, match="diffcore_stage: another form"):
        called(args, [z, none, z, z, z])
    with pytest.raises(Exception, match="diffcore_stage: slots that do not lie over the memory"):
        called(args, [z, none, z, z])


WORDS = jnp.zeros((3, 2), jnp.uint32)


@needs_kernel
@pytest.mark.parametrize(
    ("args", "to", "words"),
    [
        ([WORDS[:2], WORDS[0]], jnp.zeros((2, 3)), "takes three arrays"),
        ([WORDS, WORDS[0], WORDS[:0]], jnp.zeros((2, 3)), "another number of seeds"),
        ([WORDS[:2], WORDS, WORDS[:0]], jnp.zeros((2, 3)), "another number of seeds"),
        ([WORDS[:2], WORDS[0], WORDS[:2]], jnp.zeros((2, 3)), "or of elements than runs"),
        ([jnp.zeros((2, 2)), WORDS[0], WORDS[:0]], jnp.zeros((2, 3)), "seeds, source and starts are uint32"),
        ([WORDS[:2], WORDS[0], jnp.zeros((1, 2))], jnp.zeros((2, 3)), "seeds, source and starts are uint32"),
        ([WORDS[:2], WORDS[0], WORDS[:0]], jnp.zeros((2, 3), jnp.float16), "noise is float32"),
    ],
)
def test_noise_that_does_not_fit_ends_the_run_in_words(args: list[Any], to: Any, words: str) -> None:
    with pytest.raises(Exception, match=f"diffcore_noise: .*{words}"):
        called(args, [to], jax_kernel.NOISE)


STRUCTURES = {
    ("XlaVersion", "XLA_FFI_Api_Version"): "struct_size major_version minor_version",
    ("XlaExtension", "XLA_FFI_InternalExtension"): "struct_size type next",
    ("XlaMetadata", "XLA_FFI_Metadata"): "struct_size api_version",
    ("XlaMetadataExtension", "XLA_FFI_Metadata_Extension"): "extension_base metadata",
    ("XlaBuffer", "XLA_FFI_Buffer"): "struct_size dtype data rank dims",
    ("XlaBuffers", "XLA_FFI_Args"): "struct_size size types buffers=args",
    ("XlaBuffers", "XLA_FFI_Rets"): "struct_size size types buffers=rets",
    ("XlaErrorCreateArgs", "XLA_FFI_Error_Create_Args"): "struct_size message errc",
    ("XlaErrorDestroyArgs", "XLA_FFI_Error_Destroy_Args"): "struct_size error",
    ("XlaScheduleArgs", "XLA_FFI_ThreadPool_Schedule_Args"): "struct_size ctx task data",
    ("XlaNumThreadsArgs", "XLA_FFI_ThreadPool_NumThreads_Args"): "struct_size ctx num_threads",
    ("XlaApi", "XLA_FFI_Api"): (
        "struct_size api_version error_create=XLA_FFI_Error_Create error_destroy=XLA_FFI_Error_Destroy "
        "thread_pool_schedule=XLA_FFI_ThreadPool_Schedule thread_pool_num_threads=XLA_FFI_ThreadPool_NumThreads"
    ),
    ("XlaFrame", "XLA_FFI_CallFrame"): "struct_size extension_start api ctx stage args rets",
}
NUMBERS = {
    "XLA_METADATA": "XLA_FFI_Extension_Metadata",
    "XLA_EXECUTE": "XLA_FFI_ExecutionStage_EXECUTE",
    "XLA_INVALID_ARGUMENT": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    **{f"XLA_{name}": f"XLA_FFI_DataType_{name}" for name in ("U32", "F16", "F32", "F64", "BF16")},
}


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_structures_are_those_of_jaxlibs_header(tmp_path: Path) -> None:
    lines = ["XLA_FFI_API_MAJOR == 0"]
    for (ours, theirs), fields in STRUCTURES.items():
        for field in fields.split():
            here, _, there = field.partition("=")
            lines.append(f"offsetof({ours}, {here}) == offsetof(struct {theirs}, {there or here})")
    lines += [f"(int){ours} == (int){theirs}" for ours, theirs in NUMBERS.items()]
    sources = Path(dc.backends.__file__).resolve().parent
    text = "".join(f'_Static_assert({line}, "{line}");\n' for line in lines)
    checked = tmp_path / "checked.c"
    checked.write_text(f'#include "{sources / "cpu_kernel.c"}"\n#include "xla/ffi/api/c_api.h"\n{text}')
    header = Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h").read_text()
    if "XLA_FFI_InternalExtension" not in header:  # its name before jax 0.12
        checked.write_text(checked.read_text().replace("XLA_FFI_InternalExtension", "XLA_FFI_Extension_Base"))
    include = [f"-I{path}" for path in (jax.ffi.include_dir(), sysconfig.get_path("include"))]
    subprocess.run(["cc", "-fsyntax-only", *include, checked], check=True, timeout=120)
    checked.write_text(checked.read_text().replace("offsetof(XlaFrame, stage)", "offsetof(XlaFrame, ctx)"))
    assert subprocess.run(["cc", "-fsyntax-only", *include, checked], capture_output=True, timeout=120).returncode != 0
