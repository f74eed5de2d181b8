"""diffcore: the mathematics of Gaussian diffusion, written once, on NumPy, PyTorch and JAX arrays.

A schedule maps time to log-SNR, a scaling turns log-SNR into (alpha, sigma), a prediction is a row, a sampler is a
table, and noise is a pure function. Start with `schedules`, `samplers` and `sample`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffcore import _explained, grids, levels, noise, predictions, process, samplers, schedules
from diffcore.levels import Gaussian, Level
from diffcore.plan import Plan
from diffcore.sampling import sample, start, step
from diffcore.state import State, load_state, save_state

if TYPE_CHECKING:
    from diffcore import (
        backends,
        conditioning,
        exact,
        guidance,
        interop,
        likelihood,
        losses,
        mesh,
        metrics,
        objectives,
        plots,
        testing,
        times,
        unet3d,
        video,
        weights,
    )
    from diffcore.adaptive import Adapted, sample_adaptive
    from diffcore.parallel import sample_parallel

__version__ = "0.2.0"

__all__ = [
    "Adapted",
    "Gaussian",
    "Level",
    "Plan",
    "State",
    "backends",
    "conditioning",
    "exact",
    "grids",
    "guidance",
    "interop",
    "levels",
    "likelihood",
    "load_state",
    "losses",
    "mesh",
    "metrics",
    "noise",
    "objectives",
    "plots",
    "predictions",
    "process",
    "sample",
    "sample_adaptive",
    "sample_parallel",
    "samplers",
    "save_state",
    "schedules",
    "start",
    "step",
    "testing",
    "times",
    "unet3d",
    "video",
    "weights",
]

_DRIVERS = {"Adapted": "adaptive", "sample_adaptive": "adaptive", "sample_parallel": "parallel"}


def __getattr__(name: str) -> Any:
    if name in _DRIVERS:
        return getattr(import_module(f"diffcore.{_DRIVERS[name]}"), name)
    if name in __all__:  # a module that is loaded when it is asked for
        return import_module(f"diffcore.{name}")
    raise _explained.missing("diffcore", name)


def __dir__() -> list[str]:
    return sorted(__all__)
