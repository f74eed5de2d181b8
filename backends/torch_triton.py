"""CUDA: one Triton kernel for a stage, which reads and writes every array once and makes its noise in registers.

A program is one tile of `diffcore._philox`: T blocks of four words, which are 4 T elements in a row, so that no word is made
twice and every access is contiguous, 16 bytes a thread. Memory is the limit in float32; in half precision so is the arithmetic,
some 48 instructions a number, most of them for the noise. So none is spent on what noise does not need: a division, a library
function, a way through shared memory. Coefficients and keys come from device memory, and nothing waits for it: a whole run can
be captured in a CUDA graph and replayed. `diffcore.stage.advance` is what it is held to, and what runs where it does not serve.

Nothing here is imported before the first run on CUDA. With TRITON_INTERPRET=1 the kernel runs on a CPU, slowly, for tests.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, cast

import torch
import triton
import triton.language as tl

from diffcore import _philox
from diffcore._threshold import Clip
from diffcore.backends.torch_triton_noise import TILE, _pair, _words, signed
from diffcore.plan import Form
from diffcore.stage import remembered
from diffcore.state import State

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_empty = torch.empty_like
MEMORY = 4
"""How many arrays of memory the kernel takes; more are better served by a graph of their own."""


@triton.jit
def _coefficient(row, which, mask, LEAD: tl.constexpr):
    if LEAD == 2:  # a frame is a run of elements, so that these are few lines of the cache
        return tl.load(row + which, mask=mask)
    return tl.load(row + which)


@triton.jit
def _sum(row, first, z, past, eps, x, second, mask, LEAD: tl.constexpr, NOISY: tl.constexpr, SECOND: tl.constexpr):
    """One row of the update, whose coefficients are those from `first` on."""
    total = _coefficient(row, first, mask, LEAD) * z
    for at in tl.static_range(len(past)):
        total += _coefficient(row, first + 1 + at, mask, LEAD) * past[at]
    if NOISY:
        total += _coefficient(row, first + 1 + len(past), mask, LEAD) * eps
    total += _coefficient(row, first + 2 + len(past), mask, LEAD) * x
    if SECOND:
        total += _coefficient(row, first + 3 + len(past), mask, LEAD) * second
    return total


# fmt: off
@triton.jit(do_not_specialize=["row_p", "keys_p", "counter_p", "draw", "tiles", "stride", "frame_size"])
def _stage(
    z_p, y_p, other_p, memory_p, to_z, to_memory, to_x, row_p, keys_p, counter_p, draw,
    size, tiles, stride, frame_size, weight, low, high,
    COLUMNS: tl.constexpr, LEAD: tl.constexpr, NOISY: tl.constexpr, COUNTED: tl.constexpr, CLIPS: tl.constexpr,
    GUIDED: tl.constexpr, SECOND: tl.constexpr, WRITES_X: tl.constexpr, WIDTH: tl.constexpr,
):
    """One tile of one sample: `diffcore.stage.advance`. `row_p` are the coefficients of the stage, `stride` is how many rows of
    them a sample has; the draw is number `draw`, counted from what `counter_p` holds. A tensor is (WIDTH, TILE / WIDTH), so that
    a thread makes the noise of the WIDTH neighbours it reads.
    """
    program = tl.program_id(0).to(tl.int64)
    sample, tile = program // tiles, program % tiles
    count: tl.constexpr = 2 + (1 + len(memory_p)) * COLUMNS
    table = row_p + sample * stride * count
    neighbours = WIDTH * tl.arange(0, TILE // WIDTH)[None, :]
    each = tl.arange(0, WIDTH)[:, None]
    e0, e1, e2, e3 = 0.0, 0.0, 0.0, 0.0
    if NOISY:
        k0, k1 = tl.load(keys_p + 2 * sample).to(tl.uint32), tl.load(keys_p + 2 * sample + 1).to(tl.uint32)
        block = tile * TILE + neighbours + each
        if COUNTED:
            draw += tl.load(counter_p)
        zero = tl.zeros((WIDTH, TILE // WIDTH), tl.uint32)
        w0, w1, w2, w3 = _words(block.to(tl.uint32), (block >> 32).to(tl.uint32), zero + draw.to(tl.uint32), zero, k0, k1)
        e0, e1 = _pair(w0, w1)
        e2, e3 = _pair(w2, w3)
    for lane in tl.static_range(4):
        begin = (4 * tile + lane) * TILE + neighbours
        mask = begin < size  # neighbours are all inside, or all outside, and what is outside is never stored
        at = sample * size + begin + each
        row = table
        if LEAD == 2:
            row = table + (begin // frame_size) * count
        z = tl.load(z_p + at, mask=mask).to(tl.float32)
        y = tl.load(y_p + at, mask=mask).to(tl.float32)
        of_z, of_y = _coefficient(row, 0, mask, LEAD), _coefficient(row, 1, mask, LEAD)
        second = 0.0
        if GUIDED or SECOND == "unguided":
            other = tl.load(other_p + at, mask=mask).to(tl.float32)
            if GUIDED:
                y += weight * (y - other)
            if SECOND == "unguided":
                second = of_z * z + of_y * other
        x = of_z * z + of_y * y
        if SECOND == "raw":
            second = x
        if CLIPS:
            x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
            x = tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)
        past = ()
        for number in tl.static_range(len(memory_p)):
            past += (tl.load(memory_p[number] + at, mask=mask).to(tl.float32),)  # type: ignore[assignment]
        eps = e0 if lane == 0 else e1 if lane == 1 else e2 if lane == 2 else e3
        new = _sum(row, 2, z, past, eps, x, second, mask, LEAD, NOISY, SECOND is not None)
        tl.store(to_z + at, new.to(to_z.dtype.element_ty), mask=mask)
        for number in tl.static_range(len(to_memory)):
            new = _sum(row, 2 + (1 + number) * COLUMNS, z, past, eps, x, second, mask, LEAD, NOISY, SECOND is not None)
            tl.store(to_memory[number] + at, new.to(to_z.dtype.element_ty), mask=mask)
        if WRITES_X:
            tl.store(to_x + at, x.to(to_z.dtype.element_ty), mask=mask)
# fmt: on


class Stages:
    """The stages of runs on arrays of one kind: what all their launches share is worked out once.

    Triton's launcher looks at every argument anew, to compile a kernel for its kind. Here that is known: after the first launch
    the compiled kernel itself is called, as in Triton's tutorials, with addresses as arguments.
    """

    def __init__(
        self, form: Form, shape: tuple[int, ...], dtype: torch.dtype, lead: tuple[int, ...], transform_x: Clip | None
    ) -> None:
        size = math.prod(shape[1:])
        frames = lead[1] if len(lead) > 1 else 1
        frame_size = max(size // frames, 1)
        tiles = -(-size // (4 * _philox.TILE))
        self.form, self.dtype = form, dtype
        self.grid = (shape[0] * tiles, 1, 1)
        self.rows = 1 + form.computed - form.keeps_x
        self.row_bytes = 4 * math.prod(lead) * form.width
        clip = (0.0, 0.0) if transform_x is None else (transform_x.low, transform_x.high)
        self.clip = tuple(map(float, clip))
        self.numbers = (size, tiles, 0 if not lead or lead[0] == 1 else frames, frame_size)
        self.shared: dict[str, Any] = {
            "COLUMNS": form.columns,
            "LEAD": 2 if frames > 1 else 1,
            "CLIPS": transform_x is not None,
        }
        self.shared |= {"SECOND": form.second, "WIDTH": 16 // dtype.itemsize if frame_size % 16 == 0 else 1}
        self.ready: dict[tuple[bool, ...], tuple[Any, tuple[Any, ...]]] = {}
        """Which there are -> the launch of the compiled kernel, and the constants that it was compiled with."""
        self.direct = True

    def __call__(
        self,
        state: State,
        y: torch.Tensor,
        table: torch.Tensor,
        at: int,
        draw: int,
        counter: torch.Tensor | None,
        stochastic: bool,
        other: torch.Tensor | None = None,
        weight: float | None = None,
        wants_x: bool = True,
    ) -> State:
        """Return the state after stage number `at` of a table of coefficients, see `stage`, on the current device.

        `draw` is a number below 2^31, see `signed`, counted from what `counter` holds where there is one.
        """
        form, (z, memory, _, index, drawn, keys, *_) = self.form, cast(tuple[Any, ...], state)
        to_z, *to_memory = [_empty(z) for _ in range(self.rows)]
        to_x = _empty(z) if wants_x or form.keeps_x else None
        kind = (stochastic, counter is not None, weight is not None, to_x is not None)
        scale = 0.0 if weight is None else float(weight)  # of an int, Triton would make a kernel of its own
        scale = 0.0 if weight is None else float(weight)  # of an int, Triton would make a kernel of its own
        arguments = lambda: (  # noqa: E731
            z, y, z if other is None else other, memory, to_z, tuple(to_memory), z if to_x is None else to_x, table[at],
            keys if stochastic else table, table if counter is None else counter, draw, *self.numbers, scale, *self.clip,
        )  # fmt: skip
        z_at, y_at = z.data_ptr(), y.data_ptr()
        other_at = z_at if other is None else other.data_ptr()
        places, past = z_at | y_at | other_at, []
        for array in memory:
            past.append(place := array.data_ptr())
            places |= place
        alike = y.dtype is self.dtype and (other is None or other.dtype is self.dtype)
        whole = alike and not places & 15  # as the kernels are compiled that read 16 bytes at once
        ready = self.ready.get(kind) if whole else None
        if ready is None:
            self._launch(kind, whole, arguments())
        else:
            launch, constants = ready
            base = table.data_ptr()
            try:
                launch(
                    z_at, y_at, other_at, tuple(past), to_z.data_ptr(), tuple([array.data_ptr() for array in to_memory]),
                    z_at if to_x is None else to_x.data_ptr(), base + at * self.row_bytes,
                    keys.data_ptr() if stochastic else base, base if counter is None else counter.data_ptr(),
                    draw, *self.numbers, scale, *self.clip, *constants,
                )  # fmt: skip
            except (TypeError, ValueError):  # a Triton that takes them in another form, and has launched nothing
                self.direct = False
                self.ready.clear()
                self._launch(kind, whole, arguments())
        if form.memory:
            memory = remembered(form, [*to_memory, to_x] if form.keeps_x else to_memory, memory)
        return State(to_z, memory, to_x, index, drawn, keys)

    def _launch(self, kind: tuple[bool, ...], whole: bool, arguments: tuple[Any, ...]) -> None:
        """Launch a stage by Triton's own launcher, and keep how to launch the next one of the kind."""
        constants = self.shared | dict(zip(("NOISY", "COUNTED", "GUIDED", "WRITES_X"), kind, strict=True))
        warps = 2 if self.dtype.itemsize == 4 else 1  # TILE elements are WIDTH for each thread
        found = _stage[self.grid](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)
        if whole and self.direct and found is not None:  # None where it is interpreted
            self.ready[kind] = found[self.grid], tuple(constants[name] for name in _stage.arg_names[len(arguments) :])


@lru_cache(maxsize=64)
def _stages(*kind: Any) -> Stages:
    return Stages(*kind[:5])


def stages(form: Form, state: State, lead: tuple[int, ...], transform_x: Clip | None) -> Stages:
    """Return the stages of a run from a state, with coefficients of a leading shape."""
    z, keys = state.z, state.keys
    return _stages(form, tuple(z.shape), z.dtype, lead, transform_x, z.device, None if keys is None else keys.dtype)


def stage(
    form: Form,
    state: State,
    y: torch.Tensor,
    row: torch.Tensor,
    draw: int,
    *,
    transform_x: Clip | None = None,
    **settings: Any,
) -> State:
    """Return the state after a stage; index and draw stay as they are.

    Args:
        form: of the plan.
        state: z and memory of one dtype, in one piece; see `serves`.
        y: the prediction, or the conditional one where there is a weight: then y + weight (y - other) is used.
        row: the coefficients of the stage, (*lead, form.width) in float32, in one piece.
        draw: the number of the draw of its noise.
        transform_x: a clip of x-hat.
        settings: `stochastic`, whether the stage may add noise; `other`, the unguided prediction, where there is a weight or
            the plan reads it; `weight`, see y; `wants_x`, whether x-hat is written out though the memory does not keep it
            (True unless given).
    """
    with torch.cuda.device_of(state.z):  # Triton launches where the process is, not where the tensors are
        advance = stages(form, state, tuple(row.shape[:-1]), transform_x)
        return advance(state, y, row[None], 0, signed(draw), None, **settings)


def serves(form: Form, state: State, transform_x: Any) -> bool:
    """Return whether the kernel takes this: float32 or half precision in one piece each, no transform but a clip."""
    arrays = [state.z, *state.memory]
    keys = [] if state.keys is None else [state.keys]
    return (
        (transform_x is None or isinstance(transform_x, Clip))
        and state.z.numel() > 0
        and len(state.memory) == form.memory <= MEMORY
        and all(array.dtype == state.z.dtype and takes(array, state.z.device) for array in arrays)
        and all(isinstance(array, torch.Tensor) and array.device == state.z.device for array in keys)
        and all(array.is_contiguous() for array in [*arrays, *keys])
    )


def takes(array: torch.Tensor, device: torch.device) -> bool:
    """Return whether the kernel reads a tensor: of its dtypes, on its device, and with a memory of its own, which one
    inside a transformation such as vmap has not."""
    try:
        return array.dtype in DTYPES and array.device == device and array.data_ptr() != 0
    except RuntimeError:
        return False
