"""Several devices: what a denoiser sees of a state that is divided among them. See docs/many_devices.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from diffcore import _brief, _check, _explained, _layout
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore._wrapping import Forwarding, Staged
from diffcore.guidance._sources import Denoiser

__all__ = ["Local", "local", "region"]

WHOLE = "be divided by samples alone, Shard(0) or Replicate()"


@dataclass(frozen=True)
class Local(Staged, Forwarding):
    """A denoiser of ordinary tensors that gets those which this process holds: what `local` returns."""

    parts: ClassVar = ("denoise",)
    denoise: Any
    within: bool = False
    __repr__ = _brief.fields

    def __call__(self, z: Array, log_snr: Array, *more: Any) -> Array:
        """Return the prediction for the samples of this process, as a DTensor like z; for an ordinary array the denoiser's own."""
        if not _layout.divided(z):
            return self.denoise(z, log_snr, *more)
        backend, shape = backend_of(z), tuple(z.shape)
        if not (backend.whole or self.within):
            hint = "a denoiser that acts element by element, or sends by itself what it needs, may have within=True"
            raise _check.error(ValueError, "mesh.local", "z", WHOLE, z.placements, hint)
        cut = [_cut(part, backend.region(shape), shape) for part in (log_snr, *more)]
        y = self.denoise(backend.local(z, "z"), *cut)
        return backend.wrap(y, shape[: y.ndim])


def local(denoise: Denoiser, *, within: bool = False) -> Local:
    r"""Return a denoiser of ordinary tensors as one of DTensors: each process calls it with the samples that it holds.

        local(f)(z, log_snr, ...)[mine] = f(z[mine], log_snr[mine], ...)

    So a network that knows nothing of DTensors, or whose weights FSDP divides, draws samples that are divided among processes.
    Other arguments, such as a condition, are cut likewise: tensors with one row for each sample of the whole batch, alone or in
    dicts, lists and tuples. Ordinary arrays pass as they are, so the same denoiser serves one process. A function that returns
    one number for each sample, (B,), such as a loss, is cut in the same way.

    Args:
        denoise: (z, log_snr, ...) -> prediction, called in every process of the mesh, also for no sample at all, as where there
            are fewer samples than processes.
        within: whether z may be divided within samples, by frames, height, width or channels: for a denoiser that acts element
            by element, or that sends to other processes what they need.

    Returns:
        A denoiser for `diffcore.sample`, with the attributes `prediction`, `scaling` and `schedule` of this one.

    Raises:
        TypeError: `denoise` cannot be called. ValueError: when called, z is divided within samples.

    >>> import diffcore as dc, numpy as np
    >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=4)
    >>> dc.sample(dc.mesh.local(lambda z, log_snr: 0.0 * z + 0.5), plan, shape=(1, 2), seed=7, prediction="x").tolist()
    [[0.5, 0.5]]
    """
    _check.callable_("mesh.local", "denoise", denoise, "a function of (z, log_snr)")
    _check.flag("mesh.local", "within", within)
    return Local(denoise, within)


def region(array: Array) -> tuple[tuple[int, int], ...]:
    """Return which part of a DTensor this process holds: (first index, size) along each axis of the whole.

    It is what `noise.normal` takes as `region`, and is worked out here: nothing is sent. Of any other array it is the whole.

    Raises:
        ValueError: a placement other than Shard and Replicate, such as Partial; a process outside the mesh.

    >>> import numpy as np
    >>> region(np.zeros((2, 3)))
    ((0, 2), (0, 3))
    """
    shape = tuple([int(size) for size in array.shape])
    if not _layout.divided(array):
        return tuple([(0, size) for size in shape])
    return _layout.region_of(array.device_mesh, tuple(array.placements), shape)


def _cut(value: Any, place: tuple[tuple[int, int], ...], shape: tuple[int, ...]) -> Any:
    """Return the rows of a condition, or the part of the levels, that belong to a region of data of a shape."""
    if isinstance(value, Mapping):
        return {key: _cut(part, place, shape) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_cut(part, place, shape) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if _layout.divided(value):
        return _here(value, place, shape)
    if getattr(value, "shape", ()) and value.shape[0] == shape[0]:
        first, count = place[0]
        return value[first : first + count]
    return value


def _here(value: Array, place: tuple[tuple[int, int], ...], shape: tuple[int, ...]) -> Array:
    """Return the part of a DTensor on the mesh of the data: what this process has, less the samples that are another's."""
    own = region(value)
    found = backend_of(value).local(value, "a DTensor beside z")
    for axis, ((first, size), (begin, count)) in enumerate(zip(own, place, strict=False)):
        if value.shape[axis] == shape[axis] and (first, size) != (begin, count):
            if not (first <= begin and begin + count <= first + size):
                must = "hold, in each process, what belongs to the samples that it has"
                raise _check.error(ValueError, "mesh.local", "a DTensor beside z", must, value.placements)
            found = found.narrow(axis, begin - first, count)
    return found


_explained.face(__name__)
