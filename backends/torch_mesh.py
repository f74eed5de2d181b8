"""PyTorch's DTensors: every process runs the stages on what it holds, and draws the noise of its region alone.

The denoiser, and functions of a caller's own, get DTensors and return DTensors; between their calls nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import array_api_compat.torch as xp
import torch
from torch.distributed.tensor import DTensor, Replicate

from diffcore import _check, _layout, _philox, _streams, stage
from diffcore._array import Array
from diffcore._threshold import Clip, DynamicThreshold
from diffcore.backends import torch_backend, torch_noise
from diffcore.plan import Form
from diffcore.stage import Run, Source
from diffcore.state import State

LOCAL = torch_backend.backend


class MeshBackend(torch_backend.TorchBackend):
    """The contract on DTensors of one mesh and one layout.

    Args:
        mesh: the `torch.distributed.device_mesh.DeviceMesh`.
        placements: a Shard or a Replicate for each axis of the mesh.
    """

    def __init__(self, mesh: Any, placements: tuple[Any, ...]) -> None:
        super().__init__(xp)
        self.mesh, self.placements = mesh, placements
        self.whole = all(mesh.size(at) == 1 or p.is_replicate() or p.is_shard(0) for at, p in enumerate(placements))
        """Whether the samples that a process holds are whole."""
        self.region = lru_cache(maxsize=16)(lambda shape: _layout.region_of(mesh, placements, shape))
        self._spec = lru_cache(maxsize=16)(self._new_spec)

    def normal(self, words: Array, draw: Any, shape: tuple[int, ...], **how: Any) -> DTensor:
        """Return normals of the shape, or of the sizes of a region, divided as `placements` say."""
        return self.wrap(
            self.part(torch_noise.normal, words, draw, shape, **how), _philox.sizes(shape, how.get("region"))
        )

    def bits(self, words: Array, draw: Any, shape: tuple[int, ...], **how: Any) -> DTensor:
        return self.wrap(
            self.part(torch_noise.bits, words, draw, shape, **how), _philox.sizes(shape, how.get("region"))
        )

    def part(
        self, function: Any, words: Array, draw: Any, shape: tuple[int, ...], region: Any = None, **how: Any
    ) -> torch.Tensor:
        """Return what this process has of noise."""
        place = self.region(_philox.sizes(shape, region))
        within = [(0, 0)] * len(shape) if region is None else region
        here = [(first + begin, size) for (first, _), (begin, size) in zip(within, place, strict=True)]
        begin, count = place[0]
        dims, inside = shape, here if here[1:] != [(0, size) for size in shape[1:]] else None
        if inside is None:  # whole samples, which their keys are enough for
            dims = (count, *shape[1:])
        found: torch.Tensor = function(words[begin : begin + count], draw, dims, region=inside, **how)
        return found

    def advance(
        self,
        form: Form,
        state: State,
        y: DTensor,
        row: Any,
        noise: Array | Source | None,
        *,
        stochastic: bool,
        transform_x: Callable[[Array], Array] | None,
        other: DTensor | None = None,
        between: tuple[Any, Any] | None = None,
    ) -> State:
        inside = Inside(self, state)
        if _layout.divided(row):
            row = inside.rows(row.to_local()[None], tuple(row.shape[:-1]))[0]
        source = inside.source(noise if isinstance(noise, Source) or noise is None else None, between)
        eps: Any = source if noise is None or isinstance(noise, Source) else self.local(noise, "noise")
        after = LOCAL.advance(
            form,
            inside.state,
            self.local(y, "y"),
            row,
            eps,
            stochastic=stochastic,
            transform_x=inside.transform(transform_x),
            other=None if other is None else self.local(other, "unguided"),
        )
        return inside.seen(after)

    def run(self, run: Run, state: State) -> State:
        inside = Inside(self, state, run.plan.lead)
        transform, held = inside.transform(run.transform_x), run.held
        callback = run.callback
        local = replace(
            run,
            denoise=Asked(run.denoise, inside),
            coefficients=inside.rows(run.coefficients, run.plan.lead),
            transform_x=transform,
            noise=inside.source(run.noise),
            callback=None if callback is None else lambda reached: callback(inside.seen(reached)),
            held=None if held is None else HeldInside(held, inside, run.noise),
            # a compiler cannot see into what is given DTensors
            compile=run.compile if transform is run.transform_x and held is None else False,
        )
        return inside.seen(LOCAL.run(local, inside.state))

    def gradient(self, function: Callable[[Any], Any], z: Any) -> tuple[Any, Callable[[Any], Any]]:
        """By autograd itself: inside torch.func.vjp an array is no DTensor, and a network of ordinary tensors gets nothing."""
        recorded = torch.is_grad_enabled()
        at = z.view_as(z) if recorded and z.requires_grad else z.detach().requires_grad_()
        with torch.enable_grad():
            value = function(at)

        def pull(cotangent: Any) -> Any:
            if not value.requires_grad:
                return torch.zeros_like(z)
            how = {"retain_graph": True, "create_graph": torch.is_grad_enabled(), "materialize_grads": True}
            return torch.autograd.grad(value, at, cotangent, **how)[0]

        return value if recorded else value.detach(), pull

    def local(self, array: Any, what: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """Return what this process holds of a DTensor, divided as this backend's are; or of a tensor of the whole `shape`."""
        if not isinstance(array, DTensor):
            if shape is not None and tuple(array.shape) == shape:
                part: torch.Tensor = array[tuple([slice(first, first + size) for first, size in self.region(shape)])]
                return part
            must, hint = "be a DTensor, as the state is", "round a denoiser of ordinary tensors use diffcore.mesh.local"
            raise _check.error(TypeError, "sample", what, must, array, hint)
        if array.placements != self.placements or array.device_mesh != self.mesh:
            array = array.redistribute(self.mesh, self.placements)
        local: Any = array.to_local()
        found: torch.Tensor = local.wait() if hasattr(local, "wait") else local  # it may still be on its way
        return found

    def wrap(self, local: torch.Tensor, shape: tuple[int, ...]) -> DTensor:
        """Return what this process holds as the DTensor of the whole shape."""
        return _wrapped(local, self._spec(shape, local.dtype))

    def _new_spec(self, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        sizes = [size for _, size in self.region(shape)]
        return _spec_of(
            torch.empty(sizes, dtype=dtype, device=self.mesh.device_type), self.mesh, self.placements, shape
        )


def _spec_of(local: torch.Tensor, mesh: Any, placements: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
    """Return how a DTensor of this shape lies, which others share; see `_wrapped`."""
    how: dict[str, Any] = {"run_check": False, "shape": torch.Size(shape), "stride": _layout.strides(shape)}
    return DTensor.from_local(local, mesh, placements, **how)


def _wrapped(local: torch.Tensor, model: DTensor) -> DTensor:
    """Return a DTensor that lies as `model` does; without a gradient to record, by the constructor that torch's own operations
    use, since `from_local` takes ten times as long."""
    local = local.contiguous()
    spec = getattr(model, "_spec", None)
    if spec is None or (torch.is_grad_enabled() and local.requires_grad):
        shape, stride = model.shape, model.stride()
        return DTensor.from_local(
            local, model.device_mesh, model.placements, run_check=False, shape=shape, stride=stride
        )
    return DTensor(local, spec, requires_grad=local.requires_grad)


class Inside:
    """A state of DTensors as this process has it: `state`, of ordinary tensors; and ways in and out."""

    def __init__(self, backend: MeshBackend, state: State, lead: tuple[int, ...] = ()) -> None:
        self.backend, self.keys, self.shape = backend, state.keys, tuple(state.z.shape)
        self.lead, self.place = lead, backend.region(self.shape)
        sizes = tuple([size for _, size in self.place])
        z, *memory = [backend.local(array, "state") for array in (state.z, *state.memory)]
        if tuple(z.shape) != sizes:
            must = f"have {sizes} in this process, as torch.distributed.tensor.distribute_tensor divides the shape {self.shape}"
            raise _check.error(ValueError, "sample", "z", must, tuple(z.shape))
        x = None if state.x is None else backend.local(state.x, "state")
        first, count = self.place[0]
        words = state.keys[first : first + count] if state.keys is not None and backend.whole else None
        self.state = State(z, tuple(memory), x, state.index, state.draw, words, state.carried)
        kinds = (*lead, *(self.shape[:1] if not lead else ()))
        self.levels_shape = (self.shape[0], *kinds[1:])
        self.levels_of = tuple(
            p if p.is_shard() and self._divides(p.dim, self.levels_shape) else Replicate() for p in backend.placements
        )
        self._models: dict[torch.dtype, DTensor] = {}

    def _divides(self, axis: int, lead: tuple[int, ...]) -> bool:
        return axis < len(lead) and lead[axis] == self.shape[axis] and (axis == 0 or lead[axis] > 1)

    def rows(self, table: Any, lead: tuple[int, ...]) -> Any:
        """Return a table (stages, *lead, n) for the levels of this region."""
        for axis, size in enumerate(lead):
            if size > 1 and size == self.shape[axis]:
                first, count = self.place[axis]
                table = table[(slice(None),) * (1 + axis) + (slice(first, first + count),)]
        return table

    def level(self, level: torch.Tensor) -> DTensor:
        """Return the levels of a stage, divided as the axes of the data are that they belong to."""
        ready = {0} if len(self.lead) == 0 or self.lead[0] == 1 else set()  # the run has them for its own samples
        for axis in range(level.ndim):
            if axis not in ready and self._divides(axis, self.levels_shape):
                first, count = self.place[axis]
                level = level.narrow(axis, first, count)
        if level.dtype not in self._models:
            how = self.backend.mesh, self.levels_of, self.levels_shape
            self._models[level.dtype] = _spec_of(level.contiguous(), *how)
        return _wrapped(level, self._models[level.dtype])

    def wrap(self, local: torch.Tensor) -> DTensor:
        return self.backend.wrap(local, self.shape)

    def seen(self, state: State) -> State:
        """Return a state of this process as a state of DTensors."""
        x = None if state.x is None else self.wrap(state.x)
        memory = tuple([self.wrap(array) for array in state.memory])
        return State(self.wrap(state.z), memory, x, state.index, state.draw, self.keys, state.carried)

    def transform(self, function: Any) -> Any:
        """Return a `transform_x` on what this process holds: itself, where it reads no element but its own, or no other sample."""
        if function is None or type(function) is Clip or (self.backend.whole and type(function) is DynamicThreshold):
            return function
        return lambda x: self.backend.local(function(self.wrap(x)), "what transform_x returned")

    def source(self, given: Source | None, between: tuple[Any, Any] | None = None) -> Source | None:
        """Return the source of this region's noise, or None where the keys of its samples are enough."""
        if given is None and (self.backend.whole or self.keys is None):
            return None
        return Here(self, given, between)


class Here(Source):
    """The noise of a region: of the keys, or of a caller's source, which is asked for the whole."""

    def __init__(self, inside: Inside, given: Source | None, between: tuple[Any, Any] | None = None) -> None:
        super().__init__(lambda draw, shape: None)
        self.inside, self.given, self.between = inside, given, between
        self.takes_levels = given is not None and given.takes_levels

    def __call__(
        self,
        draw: Any,
        shape: tuple[int, ...],
        like: Array,
        between: tuple[Any, Any] | None = None,
        stream: int = _streams.SAMPLER,
    ) -> torch.Tensor:
        """Return draw number `draw`, of this region."""
        inside, backend = self.inside, self.inside.backend
        if self.given is None:
            how = {"dtype": like.dtype, "stream": stream, "device": like.device}
            return backend.part(torch_noise.normal, inside.keys, draw, inside.shape, **how)
        eps = self.given(draw, inside.shape, inside.wrap(like), between or self.between, stream)
        return backend.local(eps, "noise", inside.shape)


class Asked:
    """A denoiser of DTensors as a run on ordinary tensors asks it; it has the methods that the denoiser has."""

    def __init__(self, denoise: Any, inside: Inside) -> None:
        self.denoise, self.inside = denoise, inside

    def __call__(self, z: torch.Tensor, *levels: torch.Tensor) -> torch.Tensor:
        return self._back(self.denoise(*self._in(z, levels)))

    def _in(self, z: torch.Tensor, levels: tuple[torch.Tensor, ...]) -> tuple[DTensor, ...]:
        return self.inside.wrap(z), *map(self.inside.level, levels)

    def _back(self, y: Any) -> torch.Tensor:
        if isinstance(y, DTensor) and tuple(y.shape) != self.inside.shape:
            _check.equal_shapes(
                "step", "`y` is what the denoiser returned", y=y, z=self.inside.wrap(self.inside.state.z)
            )
        return self.inside.backend.local(y, "y, what the denoiser returned,")

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.__dict__["denoise"], name)
        if name == "at":
            return lambda log_snr: Asked(method(log_snr), self.inside)
        if name == "apart" and not getattr(self.__dict__["denoise"], "rescale", 0.0):  # which reads whole samples
            return lambda z, *levels: self._apart(method(*self._in(z, levels)))
        if name == "with_unguided":
            return lambda z, *levels: tuple([self._back(y) for y in method(*self._in(z, levels))])
        if name == "carrying":
            return lambda z, *rest: self._carried(method(*self._in(z, rest[:-1]), rest[-1]))
        raise AttributeError(f"{type(self.denoise).__name__!r} object has no attribute {name!r} in a run on a mesh")

    def _apart(self, found: Any) -> Any:
        return None if found is None else (self._back(found[0]), self._back(found[1]), *found[2:])

    def _carried(self, found: Any) -> Any:
        y, other, carried = found
        return self._back(y), self._back(other), carried


class HeldInside:
    """What a constraint holds, as a run on ordinary tensors asks it; it has begun."""

    def __init__(self, held: Any, inside: Inside, source: Source | None) -> None:
        self.held, self.inside, self.source = held, inside, source

    def begin(self, state: State, noise: Any) -> Any:
        """Return z of a start."""
        return self.held.begin(state, noise)

    def after(self, before: State, state: State, noise: Any) -> torch.Tensor:
        """Return z after a stage."""
        inside, backend = self.inside, self.inside.backend
        seen = inside.seen(before)
        z = self.held.after(seen, inside.seen(state), stage.known_noise(backend, seen, self.source))
        return backend.local(z, "what the constraint returned")


@lru_cache(maxsize=32)
def of(mesh: Any, placements: tuple[Any, ...]) -> MeshBackend:
    """Return the backend of DTensors of a mesh and a layout."""
    return MeshBackend(mesh, placements)
