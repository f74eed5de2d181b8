"""A training step in PyTorch, in one process or in several."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diffcore import _streams, noise
from diffcore._array import to_host
from diffcore.unet3d import torch_unet, weights
from diffcore.unet3d.build import assemble, initial
from diffcore.unet3d.config import UNet3DConfig
from diffcore.unet3d.training import torch_mesh
from diffcore.unet3d.training.objective import Drawn, loss, parts
from diffcore.unet3d.training.settings import Settings
from diffcore.unet3d.training.world import World, check_batch, part_of


class Trainer:
    """The state of a run and its step: the network, its averaged twin, and AdamW.

    Args:
        config, settings: what is trained, and how.
        device: a torch device.
        compile: fuse the network with `torch.compile`; over a mesh, each of its blocks.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
        start: weights to start from, by canonical name; None draws them from the seed.
        mesh: a `DeviceMesh` of one axis, or of two, (replicas, shards); None takes all processes that torchrun started.
    """

    library = "torch"

    def __init__(
        self,
        config: UNet3DConfig,
        settings: Settings,
        *,
        device: Any = None,
        compile: bool = False,
        checkpointing: bool = False,
        mesh: Any = None,
        start: Any = None,
    ) -> None:
        self.config, self.settings = config, settings
        mesh = torch_mesh.whole(device) if mesh is None else mesh
        if mesh is not None:
            torch_mesh.check(mesh)
            device = torch_mesh.device_of(mesh)
        self.world = World() if mesh is None else torch_mesh.Processes(mesh)
        check_batch(settings.batch, settings.accumulate, self.world.count, even=False)
        self.rows = part_of(settings.batch, getattr(self.world, "number", 0), self.world.count)
        self.parts = settings.accumulate
        start = initial(config, settings.seed) if start is None else start
        self.model = assemble("training.train", config, start, "torch", "float32", device, checkpointing)
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        for name in settings.frozen_of(start):
            self.model.get_parameter(name).requires_grad_(False)
        self.device = next(self.model.parameters()).device
        self.sharded = mesh is not None
        if mesh is not None:
            for model in (self.model, self.averaged):
                torch_mesh.shard(model, mesh, compile=compile)
        self.call = torch.compile(self.model, fullgraph=True) if compile and mesh is None else self.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
        )
        for now in self.model.parameters():  # as AdamW makes it at its first step
            empty = lambda now=now: torch.zeros_like(now, memory_format=torch.preserve_format)  # noqa: E731
            moments = {kind: empty() for kind in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[now] = {"step": torch.tensor(0.0), **moments}

    def step(self, number: int, drawn: Drawn) -> tuple[Any, Any]:
        """Take step `number`, and return the loss and the norm of the gradient, which may still be on the device."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(number)
        total, some = torch.zeros((), device=self.device), parts(drawn, settings.accumulate)
        for part in some:
            if self.sharded and len(some) > 1:  # gradients meet once a step
                self.model.set_requires_gradient_sync(part is some[-1])
            self._set_dropout(part, number)
            value = loss(self._predict, settings, self.config, self._drawn(part), number)
            value = value * (
                len(part.x) * self.world.count / settings.batch
            )  # the mean over processes is that of the batch
            value.backward()
            total += value.detach()
        norm = torch_mesh.gathered(torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for mean, now in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now, 1.0 - settings.decay(number))
        return total, norm

    def _predict(self, *arguments: Any) -> torch.Tensor:
        half = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            y: torch.Tensor = self.call(*arguments)
        return y

    def _set_dropout(self, drawn: Drawn, number: int) -> None:
        """Draw the dropout of a step from (seed, number of the sample, step) and the place in the network alone."""
        if self.config.dropout == 0.0:
            return
        blocks = self.model.dropouts
        shape = (len(drawn.keys), len(blocks))
        seeds = noise.bits(drawn.keys, number, shape, stream=_streams.DROPOUT).astype(np.int64)
        for block, column in zip(blocks, torch.from_numpy(seeds).unbind(1), strict=True):
            block.seeds = column

    def _drawn(self, drawn: Drawn) -> Drawn:
        move = lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)  # noqa: E731
        cond = drawn.cond
        cond = tuple(map(move, cond)) if isinstance(cond, tuple) else None if cond is None else move(cond)
        return Drawn(move(drawn.x), move(drawn.t), cond, drawn.images, drawn.keys)

    def like(self) -> torch.Tensor:
        """Return an array of the library and device of this run."""
        return torch.zeros(1, device=self.device)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return all that a run needs to go on."""
        found = {}
        twins = zip(self.model.named_parameters(), self.averaged.parameters(), strict=True)
        for (name, now), mean in twins:
            for kind, value in {"model": now, "averaged": mean, **self.optimizer.state[now]}.items():
                found[f"{kind}/{name}"] = value.detach()
        return found

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that a run needs to go on, as arrays on the host."""
        return {name: to_host(torch_mesh.gathered(value).contiguous()) for name, value in self._tensors().items()}

    def form(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays of `state`."""
        return {name: tuple(value.shape) for name, value in self._tensors().items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take up the state that `state` returned."""
        for name, value in self._tensors().items():
            torch_mesh.fill(value, state[name])

    def save(self, path: Path) -> Callable[[], Any]:
        """Write the state to a folder, each process its part, in another thread; what is returned waits for it.

        Raises:
            ValueError: NaN or infinity in what this process has.
        """
        found = self._tensors()
        weights.check_finite(
            "training.train", {name: to_host(torch_mesh.local(value)) for name, value in found.items()}
        )
        return torch_mesh.save(found, path, getattr(self.world, "saving", None))

    def load(self, path: Path) -> None:
        """Take up the state that any number of processes wrote."""
        torch_mesh.load(self._tensors(), path, getattr(self.world, "saving", None))

    held = staticmethod(torch_mesh.held)

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the averaged weights by canonical name, to every process."""
        whole = {name: torch_mesh.gathered(value) for name, value in self.averaged.named_parameters()}
        return {name: to_host(torch_unet.canonical(name, value)) for name, value in whole.items()}
