"""Conditions divided among devices: each calls the denoiser under some of them, and one exchange gives all to all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from diffcore import _array, _brief, _check, _layout
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore._wrapping import Forwarding, Staged

FUNCTION = "guidance.split"


@dataclass(frozen=True, eq=False)
class Split(Staged, Forwarding):
    """A denoiser (z, log_snr, cond) whose conditions are divided among devices: what `split` returns, which documents it."""

    parts: ClassVar = ("denoise",)
    denoise: Any
    mesh: Any
    axis: str
    __repr__ = _brief.fields

    def __call__(self, z: Array, log_snr: Array, cond: Any) -> Array:
        """Return the prediction under one condition: every device makes it."""
        return self.denoise(z, log_snr, cond)

    def each(self, z: Array, log_snr: Array, conds: tuple[Any, ...]) -> tuple[Array, ...]:
        """Return the prediction under each condition, with one exchange along the axis."""
        library = _array.name(_array.namespace(FUNCTION, z=z))
        if library not in ("torch", "jax"):
            must = "be an array of torch or JAX"
            raise _check.error(TypeError, FUNCTION, "z", must, z, "leave out guidance.split where there is one device")
        return (_by_torch if library == "torch" else _by_jax)(self, z, log_snr, conds)


def split(denoise: Any, mesh: Any, axis: str) -> Split:
    r"""Return a denoiser whose conditions are divided along an axis of a mesh, for `classifier_free` and `composed`.

        device i of k along the axis:  y_j = denoise(z, log_snr, cond_j)  for its 1 / k of the conditions j;  then all y_j to all

    So of classifier-free guidance one half of the devices works out the conditional prediction and the other half the
    unconditional one, at the same time, and a call costs one exchange of the predictions. Along the axis z is the same on all
    devices; along others it may be divided.

        guided = classifier_free(split(network, mesh, "guidance"), cond=c, null=n, weight=2.0)

    Args:
        denoise: one of (z, log_snr, cond).
        mesh: a `torch.distributed.device_mesh.DeviceMesh`, whose processes all call the denoiser; or a `jax.sharding.Mesh`.
        axis: the name of its axis, whose size divides the number of conditions, 2 for classifier-free guidance.

    Returns:
        A denoiser (z, log_snr, cond) with the attributes of this one.

    Raises:
        TypeError: `denoise` cannot be called, or `mesh` is no mesh. ValueError: the mesh has no such axis; when called, its size
            does not divide the number of conditions; z is divided along it; gradients are recorded on torch.
    """
    _check.callable_(FUNCTION, "denoise", denoise, "a function of (z, log_snr, cond)")
    names = _names(mesh)
    if names is None:
        must = "be a torch DeviceMesh with mesh_dim_names, or a jax.sharding.Mesh"
        raise _check.error(TypeError, FUNCTION, "mesh", must, mesh)
    _check.choice(FUNCTION, "axis", axis, names)
    return Split(denoise, mesh, axis)


def _names(mesh: Any) -> tuple[str, ...] | None:
    return getattr(mesh, "mesh_dim_names", None) or getattr(mesh, "axis_names", None)


def _share(size: int, conds: tuple[Any, ...]) -> int:
    """Return how many conditions each device has."""
    if len(conds) % size:
        must = f"have a size that divides the number of conditions, {len(conds)}"
        raise _check.error(ValueError, FUNCTION, "axis", must, size)
    return len(conds) // size


def _by_torch(self: Split, z: Any, log_snr: Any, conds: tuple[Any, ...]) -> tuple[Any, ...]:
    import torch
    import torch.distributed as dist

    at = self.mesh.mesh_dim_names.index(self.axis)
    share, rank = _share(self.mesh.size(at), conds), self.mesh.get_local_rank(self.axis)
    divided = _layout.divided(z)
    if divided and z.device_mesh == self.mesh and not z.placements[at].is_replicate():
        must = f"be the same in all processes along {self.axis!r}, Replicate()"
        raise _check.error(ValueError, FUNCTION, "z", must, z.placements[at])
    ys = [self.denoise(z, log_snr, cond) for cond in conds[share * rank : share * (rank + 1)]]
    if torch.is_grad_enabled() and any(y.requires_grad for y in ys):
        raise ValueError(f"{FUNCTION}: gradients are not exchanged; call it in torch.no_grad, or leave it out")
    mine = torch.stack([backend_of(z).local(y, "y") if divided else y for y in ys])
    found = [torch.empty_like(mine) for _ in range(self.mesh.size(at))]
    dist.all_gather(found, mine, group=self.mesh.get_group(self.axis))
    every = [y for part in found for y in part]
    return tuple([backend_of(z).wrap(y, tuple(z.shape)) for y in every] if divided else every)


def _by_jax(self: Split, z: Any, log_snr: Any, conds: tuple[Any, ...]) -> tuple[Any, ...]:
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    share = _share(self.mesh.shape[self.axis], conds)

    def each(z: Any, log_snr: Any, conds: tuple[Any, ...]) -> Any:
        first = share * jax.lax.axis_index(self.axis)
        found = [jnp.zeros_like(z)] * len(conds)
        for number in range(share):
            here = (first + number).astype(jnp.int32)
            y = self.denoise(z, log_snr, jax.tree.map(lambda *each, at=here: jax.lax.select_n(at, *each), *conds))
            found = [jnp.where(here == at, y, other) for at, other in enumerate(found)]
        return jax.lax.psum(jnp.stack(found), self.axis)  # of which one is not 0: exact

    if self.axis not in jax.sharding.get_abstract_mesh().manual_axes:
        everywhere = PartitionSpec()
        each = jax.jit(
            jax.shard_map(each, mesh=self.mesh, axis_names={self.axis}, in_specs=everywhere, out_specs=everywhere)
        )
    found = each(z, log_snr, conds)
    return tuple([found[at] for at in range(len(conds))])
