"""PyTorch: tensors on any device; a stage compiled to one graph, and the place of the CUDA kernel."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from types import FunctionType
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import numpy.typing as npt
import torch
from torch.autograd import forward_ad

from diffcore import _array, _rescale, stage
from diffcore._array import Array
from diffcore._threshold import Clip, DynamicThreshold
from diffcore._unwritten import called, counted
from diffcore.backends import torch_graph, torch_noise
from diffcore.backends.generic import ArrayAPIBackend
from diffcore.backends.numpy_run import HostBackend
from diffcore.backends.torch_compiling import is_compiler_error, warn
from diffcore.plan import Form
from diffcore.stage import Run
from diffcore.state import State

FUSED = 1 << 12
"""Elements from which a compiled stage pays on a CPU; below, guards cost more than the stage."""


class TorchBackend(HostBackend):
    """The contract on torch tensors."""

    def __init__(self, xp: Any) -> None:
        super().__init__(xp)
        self.graphs = torch_graph.Graphs()

    def keys(self, words: npt.NDArray[np.uint32], like: torch.Tensor) -> torch.Tensor:
        if isinstance(words, torch.Tensor):
            return words.to(like.device, torch.int64)
        return torch.as_tensor(np.asarray(words).astype(np.int64), device=like.device)

    normal = staticmethod(torch_noise.normal)
    bits = staticmethod(torch_noise.bits)
    called = staticmethod(counted)

    def take(self, tensor: Any) -> Any:
        """Return a tensor's memory as a NumPy array, bfloat16 by its bits; None where NumPy cannot see it, or where it would hide a
        gradient that is recorded."""
        if type(tensor) is not torch.Tensor:
            return None
        if tensor.requires_grad:  # seen as integers, bfloat16 would hide that it does
            if torch.is_grad_enabled():
                return None
            tensor = tensor.detach()
        try:
            return (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
        except (RuntimeError, TypeError):  # a gradient, a transformation, another device
            return None

    def give(self, array: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if array.dtype.char == "H" else tensor

    def index(self, value: int) -> Any:
        # a run inside a graph: its stages are known while it is traced
        return value if torch.compiler.is_compiling() else self.number(value)

    def number(self, value: int) -> Any:
        # on the host, whatever the default device is; an int would be a new graph for every stage of a compiled step
        return torch.from_numpy(np.array(value))

    def run(self, run: Run, state: State) -> State:
        with torch.set_grad_enabled(torch.is_grad_enabled() and state.z.requires_grad):
            if run.compile and state.z.is_cuda and not _is_traced():
                return self.graphs.run(self.run, run, state)
            if _is_traced() or hasattr(run.denoise, "carrying"):
                return ArrayAPIBackend.run(self, run, state)
            fuse = state.z.is_cuda if run.compile is None else run.compile
            if fuse and state.z.numel() >= (1 if state.z.is_cuda else FUSED):
                takes = state.z.is_cuda and run.compile is None
                kernel = _kernel() if takes and not torch.is_grad_enabled() else None
                if kernel is not None and kernel.serves(run.form, state):
                    return self._run_kernel(run, state, kernel)
                return self._run_fused(run, state)
            return (ArrayAPIBackend if torch.is_grad_enabled() else HostBackend).run(self, run, state)

    def advance(self, *given: Any, **how: Any) -> State:
        return (ArrayAPIBackend if _is_traced() else HostBackend).advance(self, *given, **how)

    def _run_kernel(self, run: Run, state: State, kernel: Any) -> State:
        """Run with the Triton kernel; nothing is copied from the host but what `kernel` keeps from an earlier run."""
        form, watched = run.form, run.callback is not None
        first, stages = int(state.index), len(run.plan)
        counter = state.draw if _on_device(state.draw) else None  # a graph's, which is read when it is replayed
        draw = 0 if counter is not None else int(state.draw)
        levels = stage.levels_of(run, state.z, _table)
        table = _table(run.coefficients, state.z)
        transform = run.transform_x
        direct = transform is None or isinstance(transform, Clip | DynamicThreshold)
        advance = kernel.stages(form, state, run.plan.lead, transform if direct else kernel.GIVEN)
        held = None if run.noise is not None else kernel.overwriting(run.held, state.z)
        extra = not direct or isinstance(transform, DynamicThreshold) or run.noise is not None or held is not None
        with torch.cuda.device_of(state.z):  # where Triton launches
            for at, denoise, level, noisy in stage.turns(run, first, levels):
                number = draw + at - first
                y, other, weight, phi = _apart(form, denoise, state.z, level)
                before = self._at(state, at, number, counter) if extra or run.held is not None else state
                if kernel.takes(y, before.z) and (other is None or kernel.takes(other, before.z)):
                    y, other = y.contiguous(), None if other is None else other.contiguous()
                    stands = state, y, table, at, kernel.signed(number), counter
                    try:
                        factor = kernel.factors(y, other, weight, phi, advance.computed) if phi else None
                        given: tuple[Any, ...] = (*stands, noisy, other, weight, factor, watched)
                        if extra:
                            more = before, at, noisy, y, other, weight, factor, table, held
                            given = (*given, kernel.beside(self, run, advance, *more))
                        state = advance(*given)
                    except Exception as error:
                        if not is_compiler_error(error):
                            raise
                        warn("the Triton kernel", error, "each stage runs compiled by torch.compile")
                        return self._run_fused(run, self._at(state, at, number, counter))
                    done = held is not None
                else:
                    if weight is not None and other is not None:
                        c, y = y, y + weight * (y - other)
                        if phi:
                            c, y = _array.widen(self.xp, c), _array.widen(self.xp, y)
                            y = y * _rescale.factor(self.xp, y, c, phi)
                    settings: dict[str, Any] = {"transform_x": run.transform_x, "stochastic": noisy}
                    settings["other"] = other if form.second == "unguided" else None
                    settings["between"] = stage.levels_between(run.plan, at)
                    before, done = self._at(state, at, number, counter), False
                    state = ArrayAPIBackend.advance(self, form, before, y, table[at], run.noise, **settings)
                if not done:
                    state = stage.constrained(self, run.held, before, state, run.noise)
                if watched or at + 1 == stages:
                    state = self._at(state, at + 1, number + 1, counter)
                if run.callback is not None:
                    run.callback(state)
        return state

    def _run_fused(self, run: Run, state: State, *, holds: bool = True) -> State:
        """Run with each stage as one compiled graph; everything that differs between stages is a tensor. What a constraint holds
        is in the graph, unless its noise is a caller's or, without `holds`, it cannot be traced."""
        plan, form, where = run.plan, run.form, state.z.device
        first, counter = int(state.index), state.draw if _on_device(state.draw) else None
        draw = 0 if counter is not None else int(state.draw)
        rows = _table(run.coefficients, state.z).unbind(0)
        indices = torch.arange(len(plan), device=where).unbind(0)
        numbers = torch.arange(draw, draw + len(plan) - first, device=where)
        draws = (numbers if counter is None else numbers + counter).unbind(0)
        settings: dict[str, Any] = {"transform_x": run.transform_x, "wants_x": run.callback is not None}
        settings["held"] = held = run.held if holds and run.noise is None else None
        for at, denoise, levels, noisy in stage.turns(run, first, stage.levels_of(run, state.z, _table)):
            now = at - first
            y, other = stage.ask(form, denoise, state.z, levels)
            eps = None
            if plan.stochastic and run.noise is not None:  # one graph serves stages without noise too
                zero, between = torch.zeros_like(state.z), stage.levels_between(plan, at)
                eps = stage.drawn(self, state, run.noise, between) if noisy else zero
            before = State(state.z, state.memory, None, indices[at], draws[now], state.keys)
            arrays = (before, y, other, rows[at], eps)
            try:
                fused = _fused(held is not None, *_kind(run, held, arrays))
                z, made, x = fused(*arrays, form=form, stochastic=plan.stochastic, **settings)
            except Exception as error:
                if at > first or not is_compiler_error(error):
                    raise
                if held is not None:
                    return self._run_fused(run, state, holds=False)
                warn("torch.compile", error, "each stage runs uncompiled, which is slower but equal")
                return ArrayAPIBackend.run(self, run, state)
            memory = stage.remembered(form, made, state.memory)
            x = made[-1] if form.keeps_x else x
            after = self._at(State(z, memory, x, None, None, state.keys), at + 1, draw + now + 1, counter)
            state = after if held is not None else stage.constrained(self, run.held, state, after, run.noise)
            if run.callback is not None:
                run.callback(state)
        return state

    def _at(self, state: State, stage: int, draw: int, counter: torch.Tensor | None = None) -> State:
        number = self.index(draw) if counter is None else counter + draw
        return state._replace(index=self.index(stage), draw=number)

    def cond(
        self, predicate: Array, true: Callable[..., Array], false: Callable[..., Array], *operands: Array
    ) -> Array:
        return torch.where(predicate, true(*operands), false(*operands))

    def gradient(
        self, function: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        def watched(z: torch.Tensor) -> torch.Tensor:
            value = function(z)
            if not torch.compiler.is_compiling() and not value.requires_grad:
                warnings.warn(
                    "diffcore: a gradient is needed, but what the function returns carries none, so it counts as 0; is "
                    "there a torch.no_grad, a detach or a constant in the denoiser or the measurement?",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return value

        if (
            not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
        ):  # nothing is recorded until torch 2.13
            with torch.inference_mode(False):
                return self.gradient(function, z.clone())
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            value, pullback = torch.func.vjp(watched, z)[:2]
        return value if recorded else value.detach(), lambda cotangent: pullback(cotangent)[0]

    def jvp(
        self, function: Callable[..., torch.Tensor], primals: tuple[Array, ...], tangents: tuple[Array, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.func.jvp(function, primals, tangents)[:2]

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(function, fullgraph=True)
        return compiled


def _apart(
    form: Form, denoise: Any, z: torch.Tensor, levels: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor | None, float | None, float]:
    """Return what the denoiser predicts, the prediction without guidance, and where guidance is left to a kernel its weight and by
    how much it is rescaled."""
    pair = called(denoise.apart, z, *levels) if hasattr(denoise, "apart") else None
    if pair is None:
        return *stage.ask(form, denoise, z, levels), None, 0.0
    for prediction in pair[:2]:
        stage.check_prediction(prediction, z)
    guided: tuple[torch.Tensor, torch.Tensor, float, float] = pair if len(pair) == 4 else (*pair, 0.0)
    return guided


def _stage(
    state: State,
    y: torch.Tensor,
    other: torch.Tensor | None,
    row: torch.Tensor,
    eps: torch.Tensor | None,
    *,
    form: Form,
    stochastic: bool,
    transform_x: Callable[[Array], Array] | None,
    held: Any,
    wants_x: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor | None]:
    """One stage as a graph: z, the rows of memory that are worked out, and x-hat where the memory does not keep it."""
    settings: dict[str, Any] = {"stochastic": stochastic, "transform_x": transform_x, "other": other}
    after = backend.advance(form, state, y, row, eps, **settings)
    after = stage.constrained(backend, held, state, after, None)
    return after.z, after.memory[: form.computed], after.x if wants_x and not form.keeps_x else None


@cache
def _kernel() -> Any:
    """Return the module of the Triton kernel, or None where Triton is not installed."""
    try:
        from diffcore.backends import torch_triton
    except ImportError:
        return None
    return torch_triton


@lru_cache(maxsize=64)
def _fused(holds: bool, *signature: Any) -> Callable[..., Any]:
    """Return the compiled stage for arrays of one kind, shape, dtype, device and which there are, and one threshold.

    The compiler counts recompilations of a code object and gives up at eight, and sizes that vary make it write loops for
    sizes that vary, which are many times slower: so each kind has a code object of its own. Only what a constraint `holds`
    may vary in size, with the number of stages.
    """
    own = FunctionType(_stage.__code__.replace(), _stage.__globals__)
    compiled: Callable[..., Any] = torch.compile(own, fullgraph=True, dynamic=None if holds else False)
    return compiled


def _kind(run: Run, held: Any, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what `_fused` tells apart."""
    threshold = run.transform_x if isinstance(run.transform_x, Clip | DynamicThreshold) else None
    state, *rest = arrays
    kinds = tuple(
        None if array is None else (tuple(array.shape), array.dtype, array.device)
        for array in (state.z, state.keys, *rest)
    )
    return run.form, run.plan.stochastic, run.callback is not None, threshold, type(held), kinds


def _table(table: npt.NDArray[np.float64], like: torch.Tensor) -> torch.Tensor:
    """Return a table of the host as stages read it; on CUDA one that is kept there, so that a captured run copies nothing."""
    if not like.is_cuda:
        found: torch.Tensor = _array.table_for(table, like)
        return found
    dtype = torch.float32 if _array.is_half(like.dtype) else like.dtype
    return torch_graph.constant(table, like.device, dtype)


def _on_device(number: Any) -> bool:
    """Return whether a number is held by a device, which the host does not wait for."""
    return isinstance(number, torch.Tensor) and number.is_cuda


def _is_traced() -> bool:
    """Return whether a compiler or forward-mode differentiation follows what happens to tensors; inside a transformation of
    torch.func, tensors say so themselves, since they have no memory.

    Only a private name tells of forward mode without a cost; on a torch without it the plain way is always right.
    """
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return tracing or getattr(forward_ad, "_current_level", 0) >= 0


backend = TorchBackend(xp)
