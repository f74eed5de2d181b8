"""A training step in PyTorch."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diffcore._array import to_host
from diffcore.unet3d import torch_unet
from diffcore.unet3d.build import build
from diffcore.unet3d.config import UNet3DConfig
from diffcore.unet3d.training.objective import Drawn, loss
from diffcore.unet3d.training.settings import Settings


class Trainer:
    """The state of a run and its step: the network, its averaged twin, and AdamW.

    Args:
        config, settings: what is trained, and how.
        device: a torch device.
        compile: fuse the network with `torch.compile`.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
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
    ) -> None:
        self.settings = settings
        self.model = build(config, "torch", settings.seed, device=device, checkpointing=checkpointing)
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.device = next(self.model.parameters()).device
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
        )
        self.call = torch.compile(self.model, fullgraph=True) if compile else self.model

    def step(self, number: int, drawn: Drawn) -> tuple[Any, Any]:
        """Take step `number`, and return the loss and the norm of the gradient, which may still be on the device."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(number)
        with self._seeded(number):
            value = loss(self._predict, settings, self.model.config, self._drawn(drawn), number)
            value.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for mean, now in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now, 1.0 - settings.decay(number))
        return value.detach(), norm

    def _predict(self, *arguments: Any) -> torch.Tensor:
        half = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            y: torch.Tensor = self.call(*arguments)
        return y

    @contextlib.contextmanager
    def _seeded(self, number: int) -> Any:
        """Draw the dropout of a step from (seed, step) alone, and leave the user's generators as they were."""
        if self.model.config.dropout == 0.0:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            words = np.random.SeedSequence([self.settings.seed, number]).generate_state(1, np.uint64)
            torch.manual_seed(int(words[0] >> np.uint64(1)))
            yield

    def _drawn(self, drawn: Drawn) -> Drawn:
        move = lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)  # noqa: E731
        cond = drawn.cond
        cond = tuple(map(move, cond)) if isinstance(cond, tuple) else None if cond is None else move(cond)
        return Drawn(move(drawn.x), move(drawn.t), cond, drawn.images)

    def like(self) -> torch.Tensor:
        """Return an array of the library and device of this run."""
        return torch.zeros(1, device=self.device)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that a run needs to go on, as arrays on the host."""
        found = {}
        twins = zip(self.model.named_parameters(), self.averaged.parameters(), strict=True)
        for (name, now), mean in twins:
            kept = self.optimizer.state.get(now, {})
            for kind, value in {"model": now, "averaged": mean, **kept}.items():
                found[f"{kind}/{name}"] = to_host(value.contiguous())
        return found

    def form(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays of `state` once a step was taken."""
        kinds = ("model", "averaged", "exp_avg", "exp_avg_sq")
        found = {f"{kind}/{name}": tuple(now.shape) for name, now in self.model.named_parameters() for kind in kinds}
        return found | {f"step/{name}": () for name, _ in self.model.named_parameters()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take up the state that `state` returned."""
        with torch.no_grad():
            for name, now in self.model.named_parameters():
                now.copy_(torch.from_numpy(state[f"model/{name}"].copy()))
                self.averaged.get_parameter(name).copy_(torch.from_numpy(state[f"averaged/{name}"].copy()))
                kept = {"step": torch.from_numpy(state[f"step/{name}"].copy())}
                for kind in ("exp_avg", "exp_avg_sq"):  # in the memory layout of the parameter, as AdamW makes them
                    kept[kind] = torch.zeros_like(now, memory_format=torch.preserve_format)
                    kept[kind].copy_(torch.from_numpy(state[f"{kind}/{name}"].copy()))
                self.optimizer.state[now] = kept

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the averaged weights by canonical name."""
        return {name: to_host(torch_unet.canonical(name, value)) for name, value in self.averaged.named_parameters()}
