"""What a loop of PyTorch is read under: float64 throughout, noise that the reader hands out, and no clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_NOISE = (torch.randn, torch.randn_like)
_CLIPS = (torch.Tensor.clamp, torch.clamp)
_CASTS = (torch.Tensor.to, torch.Tensor.type, torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)


class Reading(TorchFunctionMode):
    """Within it `torch.randn` and `torch.randn_like` return a draw, and what is float64 is not cast to fewer digits.

    Nothing is patched: a mode is a context of the thread that enters it.

    Args:
        draw: (dtype that is asked for) -> noise like z.
        shape: of z; noise of another shape is refused.
        clip: what a tensor of this shape becomes where it is clipped; None leaves clipping to torch.
    """

    def __init__(self, draw: Callable[[Any], Any], shape: Any, clip: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.draw, self.shape, self.clip = draw, tuple(shape), clip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _NOISE:
            shape = torch.empty_like(*args[:1]).shape if func is torch.randn_like else _size(args, kwargs)
            if tuple(shape) != self.shape:
                raise ValueError(
                    f"interop: the sampler draws noise of shape {tuple(shape)}, but a plan adds noise of the shape of z, "
                    f"{self.shape}"
                )
            return self.draw(kwargs.get("dtype"))
        if self.clip is not None and func in _CLIPS and tuple(args[0].shape) == self.shape:
            return self.clip(args[0])
        found = func(*args, **kwargs)
        fewer = func in _CASTS and isinstance(found, torch.Tensor) and found.is_floating_point()
        return args[0] if fewer and args[0].dtype == torch.float64 and found.dtype != torch.float64 else found


def _size(args: Any, kwargs: Any) -> Any:
    size = kwargs.get("size", args)
    return size[0] if len(size) == 1 and not isinstance(size[0], int) else size
