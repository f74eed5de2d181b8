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
from typing import Any, ClassVar, NamedTuple

import pytest
import torch

import diffcore as dc
from diffcore import _philox
from diffcore.plan import Form
from diffcore.unet3d.config import groups

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


class Sent:
    """Where a launch ends: what would be sent to the device is kept in a list."""

    launches: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *given: Any) -> None:
        self.launches.append(given)

    def load_binary(self, *given: Any) -> tuple[Any, ...]:
        return (None, 0, 0, 0, 1024)  # of no module, which would be unloaded at the end

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 1 << 20}


class Target(NamedTuple):
    """What Triton asks of a driver; the architecture stands for the number of the device."""

    arch: int
    launcher_cls: Any = Sent
    utils: Any = Sent(None, None)

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
    from diffcore.backends import torch_triton, torch_triton_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = torch_triton_kernel._stage
    monkeypatch.setattr(found, "device_caches", type(found.device_caches)(found.create_binder))
    torch_triton._stages.cache_clear()
    monkeypatch.setattr(Sent, "launches", [])
    yield torch_triton
    torch_triton._stages.cache_clear()


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
        assert a_number <= (
            56 if dtype == torch.float32 else 42
        )  # most for the noise; a library's logarithm alone takes 20


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


def test_a_prepared_launch_sends_what_tritons_own_does(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses instead of tensors, and nothing else differs; what is not aligned has a kernel of its own."""
    monkeypatch.setattr(triton.runtime.driver, "_active", Target(90))
    form = Form(1)
    advance = kernel.stages(form, state := given(form), (), dc.guidance.clip())
    calls = (7, 0, None, False, None), (8, 1, torch.zeros(1, dtype=torch.int64), True, 2)
    table, y, other = torch.zeros(3, form.width), torch.zeros_like(state.z), torch.ones_like(state.z)
    for draw, at, counter, noisy, weight in calls * 2:
        advance(state, y, table, at, draw, counter, noisy, other, weight)
    outputs = [4, 5, 6]  # z, a row of memory and x-hat, made anew by each stage
    for own, prepared in zip(Sent.launches[:2], Sent.launches[2:], strict=True):
        assert own[:6] == prepared[:6]
        both = zip(flat(own[9:]), flat(prepared[9:]), strict=True)  # after the grid, the kernel and Triton's hooks
        differ = [k for k, (a, b) in enumerate(both) if a != b]
        assert differ == outputs
    advance(state, torch.zeros(y.numel() + 1)[1:].view(y.shape), table, 0, 7, None, False)
    assert len(kernel._stage.device_caches[90][0]) == 3


def test_a_prepared_launch_that_triton_refuses_is_left_to_tritons_own(
    kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", Target(90))
    advance, table = kernel.stages(Form(), state := given(Form()), (), None), torch.zeros(1, Form().width)
    runs: list[int] = []

    class Refusing:
        def __getitem__(self, grid: Any) -> Any:
            def launch(*given: Any) -> None:
                runs.append(1)
                raise TypeError("function takes exactly 10 arguments (36 given)")

            return launch

    launcher = type(kernel._stage).run
    monkeypatch.setattr(type(kernel._stage), "run", lambda *a, **b: (launcher(*a, **b), Refusing())[1])
    for draw in range(4):
        advance(state, torch.zeros_like(state.z), table, 0, draw, None, False)
    assert len(runs) == 1
    assert len(Sent.launches) == 4


def given(form: Form) -> dc.State:
    z, *memory = (torch.zeros(2, 4096) for _ in range(1 + form.memory))
    return dc.State(z, tuple(memory), None, 0, 1, torch.zeros(2, 2, dtype=torch.int64))


def flat(launch: tuple[Any, ...]) -> list[Any]:
    """Return what was sent, tensors by their addresses."""
    parts: list[Any] = []
    for part in launch:
        parts += flat(part) if isinstance(part, tuple) else [part]
    return [part.data_ptr() if isinstance(part, torch.Tensor) else part for part in parts]


@pytest.mark.parametrize(
    ("what", "dtype"),
    [("held", torch.bfloat16), ("limits", torch.float32), ("given", torch.float64), ("estimate", torch.bfloat16)],
    ids=str,
)
def test_what_goes_beside_a_stage_compiles_to_registers(
    what: str, dtype: torch.dtype, kernel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", Target(90))
    form = Form(1, 0, False, "raw")
    z, memory, y = (torch.zeros(2, 4096, dtype=dtype) for _ in range(3))
    state = dc.State(z, (memory,), None, 0, 1, torch.zeros(2, 2, dtype=torch.int64))
    transform: Any = {"limits": dc.guidance.dynamic_threshold(), "given": kernel.GIVEN}.get(what)
    advance = kernel.stages(form, state, (), transform)
    table = torch.zeros(1, form.width, dtype=advance.computed)
    extra = {
        "held": kernel.Extra(held=(z.float(), torch.zeros(2, 4096, dtype=torch.uint8), torch.zeros(3))),
        "limits": kernel.Extra(x=torch.ones(2)),
        "given": kernel.Extra(eps=z, x=z),
    }
    if what == "estimate":
        advance.estimate(state, y, table, 0, y, 1.5)
    else:
        advance(state, y, table, 0, 7, None, True, y, 1.5, None, True, extra[what])
    (found,) = kernel._stage.device_caches[90][0].values()
    code = assembled(found, tmp_path / "cubin")
    assert (code.usage["STACK"], code.usage["SHARED"], code.usage["LOCAL"]) == (0, 0, 0)
    assert {name for name in code.instructions if name.startswith("STG")} == {"STG.E.128"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_noise_alone_compiles_to_wide_stores(
    dtype: torch.dtype, kernel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffcore.backends import torch_triton_noise

    monkeypatch.setattr(triton.runtime.driver, "_active", Target(90))
    arguments = torch.zeros(2, 2, dtype=torch.int64), torch.tensor(5), 7, 3
    for found, whole, axes in (
        (torch_triton_noise._whole, True, ([], [])),
        (torch_triton_noise._part, False, ([64, 64], [1, 99])),
    ):
        found.device_caches.clear()
        torch_triton_noise.drawn(*arguments, 4096, *axes, dtype)
        code = assembled(next(iter(found.device_caches[90][0].values())), tmp_path / "cubin")
        assert (code.usage["SHARED"], code.usage["LOCAL"]) == (0, 0)
        wide = {"STG.E.128"} if whole else {"STG.E.128", "STG.E.64"}
        assert {name for name in code.instructions if name.startswith("STG")} <= wide
        a_number = len(code.instructions) * 32 * code.warps / (1024 if whole else 512)
        if dtype in (torch.float32, torch.bfloat16):
            assert a_number <= (40 if whole else 150)
    (found_again,) = torch_triton_noise._whole.device_caches[90][0].values()
    torch_triton_noise.drawn(arguments[0][:1], torch.tensor(2**32 - 1), 0, 2**31, 1 << 16, [], [], dtype)
    assert list(torch_triton_noise._whole.device_caches[90][0].values()) == [found_again]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_rescaled_guidance_compiles_to_wide_reads(
    dtype: torch.dtype, kernel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums of a sample, and the stage that reads its factor; another batch or size compiles nothing anew."""
    from diffcore.backends import torch_triton_rescale

    monkeypatch.setattr(triton.runtime.driver, "_active", Target(90))
    both = torch_triton_rescale._sums, torch_triton_rescale._factors
    for one in both:
        one.device_caches.clear()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for shape in ((2, 16384), (5, 1 << 16)):
        y = torch.zeros(shape, dtype=dtype)
        factor = torch_triton_rescale.factors(y, y, 1.5, 0.7, wide)
    for one in both:
        (found,) = one.device_caches[90][0].values()
        code = assembled(found, tmp_path / "cubin")
        assert (code.usage["STACK"], code.usage["LOCAL"]) == (0, 0)
        if one is both[0]:
            assert code.usage["REG"] <= 64  # four programs of 256 threads in a multiprocessor
            reads = "LDG.E.64" if dtype == torch.bfloat16 else "LDG.E.128"  # four numbers of a thread
            assert code.instructions.count(reads) == 2 * max(1, dtype.itemsize // 4)
    advance = kernel.stages(Form(), state := given(Form()), (), None)
    for _ in range(2):  # the second one is a prepared launch
        advance(
            state,
            torch.zeros_like(state.z),
            torch.zeros(1, 5),
            0,
            7,
            None,
            True,
            torch.zeros_like(state.z),
            1.5,
            factor,
        )
    launches = [flat(launch[9:]) for launch in Sent.launches[-2:]]
    assert sum(factor.data_ptr() in launch for launch in launches) == 2


@pytest.mark.parametrize("shifted", [False, True])
def test_the_norm_of_the_network_compiles_to_wide_accesses(
    shifted: bool, kernel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four channels of a group are eight bytes in half precision, and a tile is 16 numbers for each thread."""
    from diffcore.unet3d import torch_norm_kernel

    monkeypatch.setattr(triton.runtime.driver, "_active", Target(90))
    both = torch_norm_kernel._forward, torch_norm_kernel._backward
    for found in both:
        found.device_caches.clear()
    weight, bias = torch.zeros(2, 64)
    for side in (16, 3):  # another size compiles nothing anew
        h = torch.zeros(2, side, side, 64, dtype=torch.bfloat16)
        shift = torch.zeros(2, 64) if shifted else None
        _, mean, scale = torch_norm_kernel.forward(h, shift, weight, bias, groups(64), 1e-5, True)
        torch_norm_kernel.backward(h, h, shift, weight, bias, mean, scale, True)
    for found, loads in zip(both, (2 * 4, 4 * 4), strict=True):
        (one,) = found.device_caches[90][0].values()
        code = assembled(one, tmp_path / "cubin")
        assert (code.usage["STACK"], code.usage["LOCAL"]) == (0, 0)
        assert code.usage["REG"] <= (104 if shifted else 80)  # two or three programs of 256 threads in a multiprocessor
        assert (code.instructions.count("LDG.E.64"), code.instructions.count("STG.E.64")) == (loads, 4)


@pytest.mark.parametrize(("frames", "size"), [(16, 32), (32, 64)])
def test_attention_over_frames_compiles_to_products_of_matrices_without_spills(
    frames: int, size: int, kernel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffcore.unet3d import torch_time_kernel

    monkeypatch.setattr(triton.runtime.driver, "_active", Target(90))
    both = torch_time_kernel._forward, torch_time_kernel._backward
    for found in both:
        found.device_caches.clear()
    keys, values = torch.zeros(2, 2 * frames - 1, size)
    for batch, pixels, images in ((2, 9, 0), (1, 16, 1)):  # other sizes compile nothing anew
        qkv = torch.zeros(batch, frames, pixels, 3, 4, size, dtype=torch.bfloat16)
        out = torch_time_kernel.forward(qkv, keys, values, frames - images, False)
        torch_time_kernel.backward(out, qkv, keys, values, frames - images, False)
    for found, parts in zip(both, (3, 4), strict=True):
        (one,) = found.device_caches[90][0].values()
        code = assembled(one, tmp_path / "cubin")
        assert (code.usage["STACK"], code.usage["LOCAL"]) == (0, 0)
        of_rows = [name for name in code.instructions if re.match(r"(LDG|LDGSTS)\.E\..*128", name)]
        assert len(of_rows) >= parts  # queries, keys, values, and what comes back, 16 bytes a thread
        assert sum(name.startswith("HMMA.16816.F32.BF16") for name in code.instructions) > 0
