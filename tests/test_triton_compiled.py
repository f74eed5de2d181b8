"""The Triton kernel compiles for GPUs that are not here, and what it compiles to is as lean as it was made to be.

Triton's compiler needs no GPU: a driver that only names one stands in, and a launch ends where the code would be sent there. So
what is compiled is what `torch_triton.stage` launches. The interpreter accepts more than the compiler does.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import diffcore as dc
from diffcore import _philox
from diffcore.plan import Form

triton = pytest.importorskip("triton")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
if os.environ.get("TRITON_INTERPRET") == "1" or not all(
    (TOOLS / tool).exists() for tool in ("ptxas", "nvdisasm", "cuobjdump")
):
    pytest.skip("Triton is interpreted here, or has no assembler for NVIDIA", allow_module_level=True)

REGISTERS = {torch.float32: 72, torch.bfloat16: 128, torch.float16: 128}
"""Of a thread: 28 warps of a multiprocessor's 64 fit in float32, 16 in half precision, which have twice the numbers each. The
largest form, which reads 7 arrays and writes 5, takes a third more."""

NO_MEMORY = Form()

KINDS: dict[str, dict[str, Any]] = {
    "ancestral": {},
    "ddim": {"stochastic": False},
    "2M": {"stochastic": False, "form": Form(1, 0, True)},
    "3M": {"form": Form(2, 1, True)},
    "heun": {"form": Form(1)},
    "everything": {"form": Form(4, 0, False, "unguided"), "guided": True},
    "before the clip": {"form": Form(1, 0, True, "raw")},
    "per sample": {"lead": (2,)},
    "per frame": {"lead": (2, 4)},
}
CASES = [("ancestral", 80, torch.float32), ("ancestral", 80, torch.bfloat16), ("ancestral", 90, torch.float16)]
CASES += [(kind, 90, dtype) for kind in KINDS for dtype in (torch.float32, torch.bfloat16)]


class Target(NamedTuple):
    """What Triton asks of a driver before a launch; the architecture stands for the number of the device."""

    arch: int

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return triton.backends.compiler.GPUTarget("cuda", self.arch, 32)


class Code(NamedTuple):
    """The instructions of a kernel, and what a thread takes."""

    instructions: list[str]
    usage: dict[str, int]
    warps: int


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    from diffcore.backends import torch_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = torch_triton._stage
    monkeypatch.setattr(found, "device_caches", type(found.device_caches)(found.create_binder))
    run = type(found).run
    monkeypatch.setattr(type(found), "run", lambda *given, **settings: run(*given, **{**settings, "warmup": True}))
    return torch_triton


def compiled(
    kernel: Any,
    monkeypatch: pytest.MonkeyPatch,
    arch: int = 90,
    dtype: torch.dtype = torch.float32,
    *,
    shape: tuple[int, ...] = (2, 4096),
    form: Form = NO_MEMORY,
    stochastic: bool = True,
    guided: bool = False,
    lead: tuple[int, ...] = (),
    number: int = 0,
) -> list[Any]:
    """Return the kernels that are compiled for an architecture after the launch of a stage."""
    monkeypatch.setattr(triton.runtime.driver, "_active", Target(arch))
    z, y, other, *memory = (torch.zeros(shape, dtype=dtype) for _ in range(3 + form.memory))
    state = dc.State(z, tuple(memory), None, 0, 1, torch.zeros(shape[0], 2, dtype=torch.int64))
    kernel.stage(
        form,
        state,
        y,
        torch.zeros(5, *lead, form.width)[number],
        [1, 16, 2**31, 2**32 - 1, 2**32][number],
        stochastic=stochastic,
        transform_x=dc.guidance.clip(),
        other=other if guided or form.second == "unguided" else None,
        weight=1.5 if guided else None,
        wants_x=False,
    )
    return list(kernel._stage.device_caches[arch][0].values())


def assembled(found: Any, path: Path) -> Code:
    path.write_bytes(found.asm["cubin"])
    said = [
        subprocess.run([TOOLS / tool, option, path], capture_output=True, text=True, check=True).stdout
        for tool, option in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
    ]
    instructions = re.findall(r"^\s*/\*[0-9a-f]{4}\*/\s+(?:@!?U?P\d\s+)?([A-Z][\w.]*)", said[0], re.MULTILINE)
    usage = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", said[1])}
    return Code([name for name in instructions if name != "NOP"], usage, found.metadata.num_warps)


@pytest.mark.parametrize(("kind", "arch", "dtype"), CASES, ids=str)
def test_the_kernel_compiles_to_wide_accesses_and_registers(
    kind: str, arch: int, dtype: torch.dtype, kernel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = KINDS[kind]
    (found,) = compiled(kernel, monkeypatch, arch, dtype, **settings)
    code = assembled(found, tmp_path / "cubin")
    assert {name: code.usage[name] for name in ("STACK", "SHARED", "LOCAL")} == {"STACK": 0, "SHARED": 0, "LOCAL": 0}
    assert code.usage["REG"] <= REGISTERS[dtype] * (4 if kind == "everything" else 3) // 3
    many = Counter(name for name in code.instructions if re.fullmatch(r"(LDG|STG)\.E\.128.*", name))
    form = settings.get("form", NO_MEMORY)
    reads, writes = 2 + form.memory + (form.second == "unguided"), 1 + form.computed
    assert many == {"LDG.E.128": 4 * reads, "STG.E.128": 4 * writes}  # a lane of the tile each
    if kind == "ancestral":
        a_number = len(code.instructions) * 32 * code.warps / (4 * _philox.TILE)
        assert a_number <= 56  # 48 to 50, most of them for the noise; a library's logarithm alone takes 20


@pytest.mark.parametrize("shape", [(2, 4002), (2, 1), (5,)])
def test_sizes_that_do_not_divide_compile_as_well(
    shape: tuple[int, ...], kernel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = compiled(kernel, monkeypatch, shape=shape)
    usage = assembled(found, tmp_path / "cubin").usage
    assert (usage["STACK"], usage["SHARED"], usage["LOCAL"]) == (0, 0, 0)


def test_another_stage_or_batch_compiles_nothing_anew(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, shape in enumerate([(2, 4096), (1, 4096), (3, 16), (16, 16384), (5, 1040)]):
        found = compiled(kernel, monkeypatch, shape=shape, number=number, lead=(shape[0],))
    assert len(found) == 1
