"""PyTorch: tensors on any device; a stage compiled to one graph, and the place of the CUDA kernel."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from subprocess import CalledProcessError
from types import FunctionType
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import numpy.typing as npt
import torch
from torch.autograd import forward_ad

from diffcore import _known, _streams, sampling
from diffcore._array import Array
from diffcore._philox import Region
from diffcore._threshold import Clip, DynamicThreshold
from diffcore.backends import numpy_run, torch_noise
from diffcore.backends.contract import Draw, Run
from diffcore.backends.generic import ArrayAPIBackend
from diffcore.guidance import ClassifierFree
from diffcore.sampling import State

FUSED = 1 << 12
"""Elements from which a compiled stage pays on a CPU; below, guards cost more than the stage."""


class TorchBackend(ArrayAPIBackend):
    """The contract on torch tensors."""

    def seeds(self, words: npt.NDArray[np.uint32], like: torch.Tensor) -> torch.Tensor:
        if isinstance(words, torch.Tensor):
            return words.to(like.device, torch.int64)
        return torch.as_tensor(np.asarray(words).astype(np.int64), device=like.device)

    def normal(
        self,
        words: Array,
        draw: Any,
        shape: tuple[int, ...],
        *,
        dtype: Any,
        device: Any = None,
        stream: int = _streams.SAMPLER,
        region: Region | None = None,
    ) -> torch.Tensor:
        return torch_noise.normal(words, draw, shape, dtype=dtype, device=device, stream=stream, region=region)

    def bits(
        self,
        words: Array,
        draw: Any,
        shape: tuple[int, ...],
        *,
        device: Any = None,
        stream: int = _streams.SAMPLER,
        region: Region | None = None,
    ) -> torch.Tensor:
        return torch_noise.bits(words, draw, shape, device=device, stream=stream, region=region)

    def index(self, value: int) -> torch.Tensor:
        # on the host, whatever the default device is; an int would be a new graph for every stage under torch.compile
        return torch.tensor(value, device="cpu")

    def traces(self, index: Any) -> bool:
        return torch.compiler.is_compiling()

    def run(self, run: Run, state: State) -> State:
        with torch.set_grad_enabled(torch.is_grad_enabled() and state.z.requires_grad):
            if _is_traced():
                return super().run(run, state)
            fuse = state.z.is_cuda if run.compile is None else run.compile
            if fuse and state.z.numel() >= (1 if state.z.is_cuda else FUSED):
                takes = state.z.is_cuda and run.compile is None and run.noise is None and run.held is None
                kernel = _kernel() if takes and not torch.is_grad_enabled() else None
                if kernel is not None and kernel.serves(state, run.transform_x):
                    return self._run_kernel(run, state, kernel)
                return self._run_fused(run, state)
            reached = None
            if not torch.is_grad_enabled():
                reached = numpy_run.run(self, run, state, _shared, _tensor)
            return super().run(run, state if reached is None else reached)

    def advance(
        self,
        state: State,
        y: torch.Tensor,
        row: Any,
        noise: torch.Tensor | Draw | None,
        *,
        stochastic: bool,
        transform_x: Callable[[Array], Array] | None,
    ) -> State:
        if not _is_traced():
            given = noise if stochastic else False
            found = numpy_run.advance(self, state, y, row, given, transform_x, _shared, _tensor)
            if found is not None:
                return found
        return super().advance(state, y, row, noise, stochastic=stochastic, transform_x=transform_x)

    def _run_kernel(self, run: Run, state: State, kernel: Any) -> State:
        """Run with the Triton kernel; nothing is copied from the host but what `kernel` keeps from an earlier run."""
        plan, where, watched = run.plan, state.z.device, run.callback is not None
        at = kernel.constant(sampling.host_levels(plan, state.z.shape[0]), where).unbind(0)
        table, numbers = kernel.constant(run.coefficients, where), kernel.numbers(len(plan), where)
        noisy = (run.coefficients[..., sampling.NOISE_COLUMN] != 0.0).reshape(len(plan), -1).any(axis=-1).tolist()
        first = int(state.index)
        for stage in range(first, len(plan)):
            denoise = run.denoise.at(plan.log_snr[stage]) if hasattr(run.denoise, "at") else run.denoise
            pair = denoise.apart(state.z, at[stage]) if isinstance(denoise, ClassifierFree) else None
            y, other, weight = (denoise(state.z, at[stage]), None, 0.0) if pair is None else pair
            for prediction in (y,) if other is None else (y, other):
                sampling.check_prediction(prediction, state.z)
            settings = {"stochastic": noisy[stage], "transform_x": run.transform_x}
            if not (kernel.takes(y, where) and (other is None or kernel.takes(other, where))):
                y = y if other is None else y + weight * (y - other)
                state = super().advance(state._replace(index=stage), y, table[stage], None, **settings)
            else:
                guidance = {} if other is None else {"other": other.contiguous(), "weight": weight}
                try:
                    state = kernel.stage(
                        state, y.contiguous(), table, numbers[stage], plan.lead, **settings, **guidance
                    )
                except Exception as error:
                    if not _is_compiler_error(error):
                        raise
                    _warn("the Triton kernel", error, "compiled by torch.compile")
                    return self._run_fused(run, state._replace(index=self.index(stage)))
            if watched or stage + 1 == len(plan):
                state = state._replace(index=self.index(stage + 1))
            if run.callback is not None:
                run.callback(state)
        return state

    def _run_fused(self, run: Run, state: State) -> State:
        """Run with each stage as one compiled graph; everything that differs between stages is a tensor."""
        plan = run.plan
        at = sampling.levels_for(plan, state.z).unbind(0)
        rows = sampling.table_for(run.coefficients, state.z).unbind(0)
        draws = torch.arange(1, len(plan) + 1, device=state.z.device).unbind(0)
        known = () if run.held is None else sampling.table_for(run.held.rows, state.z).unbind(0)
        first = int(state.index)
        for stage in range(first, len(plan)):
            denoise = run.denoise.at(plan.log_snr[stage]) if hasattr(run.denoise, "at") else run.denoise
            y = denoise(state.z, at[stage])
            sampling.check_prediction(y, state.z)
            eps = None
            if plan.stochastic and run.noise is not None:
                eps = sampling.draw_noise(self, state._replace(index=stage), run.noise)
            words = state.seeds if plan.stochastic and run.noise is None else None
            held = None
            if run.held is not None:
                drawn = None
                if run.noise is not None:
                    drawn = _known.draw(self, state, run.noise, stage + 1, len(plan))
                held = (run.held.x, run.held.known, known[stage + 1], drawn, None if run.noise else state.seeds)
            arrays = (state.z, state.saved, state.estimates, y, rows[stage], eps, words, draws[stage], held)
            try:
                fused = _fused(
                    run.transform_x if isinstance(run.transform_x, Clip | DynamicThreshold) else None, *_kind(arrays)
                )
                z, saved, estimates = fused(*arrays, transform_x=run.transform_x)
            except Exception as error:
                if stage > first or not _is_compiler_error(error):
                    raise
                _warn("torch.compile", error, "uncompiled, which is slower but equal")
                return super().run(run, state)
            state = State(z, saved, estimates, self.index(stage + 1), state.seeds)
            if run.callback is not None:
                run.callback(state)
        return state

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
        with torch.enable_grad():
            value, pullback = torch.func.vjp(watched, z)[:2]
        return value.detach(), lambda cotangent: pullback(cotangent)[0]

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(function, fullgraph=True)
        return compiled


def _stage(
    z: torch.Tensor,
    saved: torch.Tensor | None,
    estimates: tuple[torch.Tensor, ...],
    y: torch.Tensor,
    row: torch.Tensor,
    eps: torch.Tensor | None,
    words: torch.Tensor | None,
    draw: torch.Tensor,
    held: tuple[Any, ...] | None,
    *,
    transform_x: Callable[[Array], Array] | None,
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]:
    """One stage, then what is known: `held` is x, which elements, their row, and their noise or the seeds of it."""
    like: dict[str, Any] = {"dtype": z.dtype, "device": z.device}
    if words is not None:
        eps = torch_noise.normal(words, draw, tuple(z.shape), **like)
    after = sampling.advance(State(z, saved, estimates, 0, None), y, row, eps, transform_x)
    if held is None:
        return after.z, after.saved, after.estimates
    x, known, known_row, known_eps, known_words = held
    if known_words is not None:
        known_eps = torch_noise.normal(known_words, draw, tuple(z.shape), **like, stream=_streams.KNOWN)
    return _known.overwrite(after.z, z, x, known, known_row, known_eps), after.saved, after.estimates


@cache
def _kernel() -> Any:
    """Return the module of the Triton kernel, or None where Triton is not installed."""
    try:
        from diffcore.backends import torch_triton
    except ImportError:
        return None
    return torch_triton


@lru_cache(maxsize=64)
def _fused(*signature: Any) -> Callable[..., Any]:
    """Return the compiled stage for arrays of one kind, shape, dtype, device and which there are, and one threshold.

    The compiler counts recompilations of a code object and gives up at eight, and sizes that vary make it write loops for
    sizes that vary, which are many times slower: so each kind has a code object of its own.
    """
    own = FunctionType(_stage.__code__.replace(), _stage.__globals__)
    compiled: Callable[..., Any] = torch.compile(own, fullgraph=True, dynamic=False)
    return compiled


def _kind(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what `_fused` tells apart."""
    z, saved, estimates, y, _, eps, words, _, held = arrays
    there = tuple(array is not None for array in (saved, eps, words, held))
    return tuple(z.shape), z.dtype, y.dtype, z.device, len(estimates), there


def _warn(what: str, error: Exception, instead: str) -> None:
    warnings.warn(
        f"diffcore: {what} does not work here ({type(error).__name__}: {str(error).splitlines()[0]}); "
        f"each stage runs {instead}",
        RuntimeWarning,
        stacklevel=4,
    )


def _is_traced() -> bool:
    """Return whether a compiler or forward-mode differentiation follows what happens to tensors; inside a transformation of
    torch.func, tensors say so themselves, since they have no memory.

    Only a private name tells of forward mode without a cost; on a torch without it the plain way is always right.
    """
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return tracing or getattr(forward_ad, "_current_level", 0) >= 0


def _shared(tensor: Any) -> Any:
    """Return a tensor's memory as a NumPy array, bfloat16 by its bits; None where NumPy cannot see it, or where it would hide a
    gradient."""
    if type(tensor) is not torch.Tensor or tensor.requires_grad:  # seen as integers, bfloat16 would hide that it does
        return None
    try:
        return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    except (RuntimeError, TypeError):  # a gradient, a transformation, another device
        return None


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return the way back."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def _is_compiler_error(error: Exception) -> bool:
    """Return whether an error says that code was not compiled: by its type, or raised inside Triton, whose errors without a C
    compiler or libcuda are of Python."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = "" if last is None else str(last.tb_frame.f_globals.get("__name__"))
    ours = type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))
    return ours or where.startswith("triton.") or isinstance(error, CalledProcessError) or "C compiler" in str(error)


backend = TorchBackend(xp)
