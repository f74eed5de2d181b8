"""What a loop of PyTorch is read under: float64 throughout, and noise that the reader hands out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_NOISE = (torch.randn, torch.randn_like)
_CASTS = (torch.Tensor.to, torch.Tensor.type, torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)


class Reading(TorchFunctionMode):
    """Within it `torch.randn` and `torch.randn_like` return a draw, and what is float64 is not cast to fewer digits.

    Nothing is patched: a mode is a context of the thread that enters it.

    Args:
        draw: () -> noise like z.
        shape: of z; noise of another shape is refused.
    """

    def __init__(self, draw: Callable[[], Any], shape: Any) -> None:
        super().__init__()
        self.draw, self.shape = draw, tuple(shape)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _NOISE:
            shape = torch.empty_like(*args[:1]).shape if func is torch.randn_like else _size(args, kwargs)
            if tuple(shape) != self.shape:
                raise ValueError(
                    f"interop: the sampler draws noise of shape {tuple(shape)}, but a plan adds noise of the shape of z, "
                    f"{self.shape}"
                )
            return self.draw()
        found = func(*args, **kwargs)
        fewer = func in _CASTS and isinstance(found, torch.Tensor) and found.is_floating_point()
        return args[0] if fewer and args[0].dtype == torch.float64 and found.dtype != torch.float64 else found


def _size(args: Any, kwargs: Any) -> Any:
    size = kwargs.get("size", args)
    return size[0] if len(size) == 1 and not isinstance(size[0], int) else size
