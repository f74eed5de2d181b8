"""CUDA: the stages of a run, each one launch of the kernel in `torch_triton_kernel`.

What is not the kernel's goes beside it: a caller's noise is read as an array, a constraint that overwrites elements and a dynamic
threshold are parts of the stage, and any other transform acts between two launches, of which the first writes x-hat alone.
Coefficients and keys come from device memory, and nothing waits for it: a whole run can be captured in a CUDA graph and
replayed. `diffcore.stage.advance` is what it is held to, and what runs where it does not serve.

Nothing here is imported before the first run on CUDA. With TRITON_INTERPRET=1 the kernel runs on a CPU, slowly, for tests.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
import triton.language as tl

from diffcore import _philox
from diffcore._threshold import Clip, DynamicThreshold
from diffcore.backends.torch_triton_kernel import _stage
from diffcore.backends.torch_triton_noise import signed
from diffcore.backends.torch_triton_rescale import factors as factors
from diffcore.plan import Form
from diffcore.stage import Run, drawn, levels_between, remembered, transformed
from diffcore.state import State

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What is computed in float32; float64 is computed in float64."""
GIVEN = "given"
"""The transform of x-hat of stages that get x-hat transformed."""
_empty = torch.empty_like
MEMORY = 4
"""How many arrays of memory the kernel takes; more are better served by a graph of their own."""


class Extra(NamedTuple):
    """What only some stages read; None is what they do without."""

    eps: torch.Tensor | None = None
    """Fresh noise, in place of that of the keys."""
    x: torch.Tensor | None = None
    """x-hat transformed, where the stages are for `GIVEN`; for a dynamic threshold its limits, (B,)."""
    held: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    """What a constraint overwrites: observed, which elements are known, and the row of the stage; see `overwriting`."""
    until: int = 1
    """From which value of `known` on an element is known."""


NOTHING = Extra()


class Stages:
    """The stages of runs on arrays of one kind: what all their launches share is worked out once.

    Triton's launcher looks at every argument anew, to compile a kernel for its kind. Here that is known: after the first launch
    the compiled kernel itself is called, as in Triton's tutorials, with addresses as arguments.
    """

    def __init__(
        self,
        form: Form,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        lead: tuple[int, ...],
        transform_x: Clip | DynamicThreshold | str | None,
    ) -> None:
        size = math.prod(shape[1:])
        frames = lead[1] if len(lead) > 1 else 1
        frame_size = max(size // frames, 1)
        tiles = -(-size // (4 * _philox.TILE))
        self.form, self.dtype, self.computed = form, dtype, torch.float64 if dtype == torch.float64 else torch.float32
        self.grid = (shape[0] * tiles, 1, 1)
        self.rows = 1 + form.computed - form.keeps_x
        self.row_bytes = self.computed.itemsize * math.prod(lead) * form.width
        clips, self.clip = transform_x if transform_x == GIVEN else None, (0.0, 0.0)
        if isinstance(transform_x, Clip):
            clips, self.clip = "numbers", (float(transform_x.low), float(transform_x.high))
        elif isinstance(transform_x, DynamicThreshold):
            clips, self.clip = "limits", (0.0, float(transform_x.bound))
        self.numbers = (size, tiles, 0 if not lead or lead[0] == 1 else frames, frame_size)
        self.shared: dict[str, Any] = {"COLUMNS": form.columns, "LEAD": 2 if frames > 1 else 1, "CLIPS": clips}
        self.shared |= {"SECOND": form.second, "WIDTH": 16 // dtype.itemsize if frame_size % 16 == 0 else 1}
        self.shared["TYPE"] = tl.float64 if dtype == torch.float64 else tl.float32
        self.ready: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
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
        factor: torch.Tensor | None = None,
        wants_x: bool = True,
        extra: Extra = NOTHING,
    ) -> State:
        """Return the state after stage number `at` of a table of coefficients, see `stage`, on the current device.

        `draw` is a number below 2^31, see `signed`, counted from what `counter` holds where there is one; `factor`, (B,), is
        what guidance by the weight is multiplied by, see `torch_triton_rescale`.
        """
        form, (z, memory, _, index, drawn, keys, *_) = self.form, cast(tuple[Any, ...], state)
        to_z, *to_memory = [_empty(z) for _ in range(self.rows)]
        to_x = _empty(z) if wants_x or form.keeps_x else None
        noise = None if not stochastic else "keys" if extra.eps is None else "given"
        kind = (noise, counter is not None, _guided(weight, factor), to_x is not None, extra.held is not None, False)
        numbers = table, at, draw, counter, keys, weight, factor
        self._send(kind, z, y, other, memory, to_z, to_memory, to_x, *numbers, extra)
        if form.memory:
            memory = remembered(form, [*to_memory, to_x] if form.keeps_x else to_memory, memory)
        return State(to_z, memory, to_x, index, drawn, keys)

    def estimate(
        self,
        state: State,
        y: torch.Tensor,
        table: torch.Tensor,
        at: int,
        other: torch.Tensor | None = None,
        weight: float | None = None,
        factor: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return x-hat of a stage before it is transformed, in the dtype that the stage is computed in."""
        x = torch.empty(state.z.shape, dtype=self.computed, device=state.z.device)
        kind = (None, False, _guided(weight, factor), False, False, True)
        numbers = table, at, 0, None, state.keys, weight, factor
        self._send(kind, state.z, y, other, state.memory, state.z, [], x, *numbers, NOTHING)
        return x

    def _send(
        self,
        kind: tuple[Any, ...],
        z: Any,
        y: Any,
        other: Any,
        memory: tuple[Any, ...],
        to_z: Any,
        to_memory: list[Any],
        to_x: Any,
        table: Any,
        at: int,
        draw: int,
        counter: Any,
        keys: Any,
        weight: float | None,
        factor: Any,
        extra: Extra,
    ) -> None:
        """Launch a stage: by the compiled kernel itself where it is known."""
        scale = 0.0 if weight is None else float(weight)  # of an int, Triton would make a kernel of its own
        if self.computed is torch.float64:
            kind = (*kind, scale)
        keys = table if keys is None else keys
        arguments = lambda: (  # noqa: E731
            z, y, z if other is None else other, memory, to_z, tuple(to_memory), z if to_x is None else to_x, table[at],
            table if factor is None else factor, keys, table if counter is None else counter, *_or(extra, z, table),
            draw, extra.until, *self.numbers, scale, *self.clip,
        )  # fmt: skip
        z_at, y_at = z.data_ptr(), y.data_ptr()
        other_at = z_at if other is None else other.data_ptr()
        places, past = z_at | y_at | other_at, []
        for array in memory:
            past.append(place := array.data_ptr())
            places |= place
        alike = y.dtype is self.dtype and (other is None or other.dtype is self.dtype)
        whole = alike and not places & 15  # as the kernels are compiled that read 16 bytes at once
        ready = self.ready.get(kind) if whole and extra is NOTHING else None
        if ready is None:
            self._launch(kind, whole and extra is NOTHING, scale, arguments())
            return
        launch, constants = ready
        base = table.data_ptr()
        try:
            launch(
                z_at, y_at, other_at, tuple(past), to_z.data_ptr(), tuple([array.data_ptr() for array in to_memory]),
                z_at if to_x is None else to_x.data_ptr(), base + at * self.row_bytes,
                base if factor is None else factor.data_ptr(), keys.data_ptr(),
                base if counter is None else counter.data_ptr(), z_at, z_at, z_at, z_at, base,
                draw, 1, *self.numbers, scale, *self.clip, *constants,
            )  # fmt: skip
        except (TypeError, ValueError):  # a Triton that takes them in another form, and has launched nothing
            self.direct = False
            self.ready.clear()
            self._launch(kind, whole, scale, arguments())

    def _launch(self, kind: tuple[Any, ...], whole: bool, scale: float, arguments: tuple[Any, ...]) -> None:
        """Launch a stage by Triton's own launcher, and keep how to launch the next one of the kind."""
        names = ("NOISY", "COUNTED", "GUIDED", "WRITES_X", "HOLDS", "ALONE")
        constants = self.shared | dict(zip(names, kind, strict=False))
        constants["EXACT"] = (scale, *self.clip) if self.computed is torch.float64 else None
        warps = {2: 1, 4: 2, 8: 4}[self.dtype.itemsize]  # TILE elements are WIDTH for each thread
        found = _stage[self.grid](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)
        if whole and self.direct and found is not None:  # None where it is interpreted
            self.ready[kind] = found[self.grid], tuple(constants[name] for name in _stage.arg_names[len(arguments) :])


def _guided(weight: float | None, factor: torch.Tensor | None) -> int:
    """Return 2 where guidance by the weight is rescaled, 1 where it is not, 0 where there is none."""
    return (weight is not None) + (factor is not None)


def _or(extra: Extra, z: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the tensors of an `Extra`, with others in place of those that are not read."""
    held = (z, z, table) if extra.held is None else extra.held
    return z if extra.eps is None else extra.eps, z if extra.x is None else extra.x, *held


def beside(
    backend: Any,
    run: Run,
    advance: Stages,
    state: State,
    at: int,
    noisy: bool,
    y: torch.Tensor,
    other: torch.Tensor | None,
    weight: float | None,
    factor: torch.Tensor | None,
    table: torch.Tensor,
    held: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
) -> Extra:
    """Return what a stage reads beside the state and the predictions; what is not the kernel's is done here."""
    eps = x = None
    if run.transform_x is not None and not isinstance(run.transform_x, Clip):
        raw = advance.estimate(state, y, table, at, other, weight, factor)
        if isinstance(run.transform_x, DynamicThreshold):
            x = run.transform_x.limits(raw).contiguous()
        else:
            x = transformed(raw, state.z, run.transform_x).to(raw.dtype).contiguous()
    if noisy and run.noise is not None:
        eps = drawn(backend, state, run.noise, levels_between(run.plan, at))
        eps = eps.to(state.z.device, state.z.dtype).contiguous()
    if held is None:
        return Extra(eps, x)
    observed, known, rows = held
    until = 1 if known.dtype == torch.uint8 else at + 1
    return Extra(eps, x, (observed, known, rows[at + 1]), until)


@lru_cache(maxsize=64)
def _stages(*kind: Any) -> Stages:
    return Stages(*kind[:5])


def stages(
    form: Form, state: State, lead: tuple[int, ...], transform_x: Clip | DynamicThreshold | str | None
) -> Stages:
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
            the plan reads it; `weight`, see y; `factor`, (B,), what guidance by the weight is multiplied by;
            `wants_x`, whether x-hat is written out though the memory does not keep it
            (True unless given).
    """
    with torch.cuda.device_of(state.z):  # Triton launches where the process is, not where the tensors are
        advance = stages(form, state, tuple(row.shape[:-1]), transform_x)
        return advance(state, y, row[None], 0, signed(draw), None, **settings)


def serves(form: Form, state: State) -> bool:
    """Return whether the kernel takes this: float64, float32 or half precision in one piece each."""
    arrays = [state.z, *state.memory]
    keys = [] if state.keys is None else [state.keys]
    return (
        state.z.numel() > 0
        and len(state.memory) == form.memory <= MEMORY
        and all(array.dtype == state.z.dtype and takes(array, state.z) for array in arrays)
        and all(isinstance(array, torch.Tensor) and array.device == state.z.device for array in keys)
        and all(array.is_contiguous() for array in [*arrays, *keys])
    )


def takes(array: torch.Tensor, z: torch.Tensor) -> bool:
    """Return whether the kernel reads a tensor beside a state: of its dtypes, on its device, and with a memory of its own,
    which one inside a transformation such as vmap has not."""
    try:
        dtype = array.dtype in DTYPES or (array.dtype == z.dtype == torch.float64)
        return dtype and array.device == z.device and array.data_ptr() != 0
    except RuntimeError:
        return False


def overwriting(held: Any, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Return (observed, known, table) of a constraint that overwrites elements by a table, as the kernel reads them, or None."""
    found = getattr(held, "overwrites", None)
    if found is None or not takes(found[0], z) or any(array.shape != z.shape for array in found[:2]):
        return None
    observed, known, table = (array.contiguous() for array in found)
    return observed, known.view(torch.uint8) if known.dtype == torch.bool else known, table
