r"""Samplers written as `sample(model, x, sigmas, ...)`, as in k-diffusion and ComfyUI: read as plans, and models both ways.

Their model returns x-hat at x = x_0 + sigma eps, which is scaling "ve"; their flow models have x = (1 - sigma) x_0 + sigma eps,
which is scaling "flow".
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from diffcore import _array, _brief, _check, _explained, _wrapping, levels, predictions
from diffcore._array import Array
from diffcore.interop._inputs import inputs
from diffcore.plan import Plan
from diffcore.samplers import _trace

SCALINGS = ("ve", "flow")

CALLS = 50
"""How many calls of the model there may be for each sigma; where step sizes adapt, random numbers may take any number."""


def plan(
    function: Callable[..., Any],
    sigmas: npt.ArrayLike,
    *,
    scaling: str = "ve",
    name: str | None = None,
    inner_model: Any = None,
    **settings: Any,
) -> Plan:
    """Return the plan of a function `sample(model, x, sigmas, extra_args, callback, disable, noise_sampler, **settings)`.

    It is run in float64 on unit vectors, as `samplers.trace` does. Of these arguments it gets those that it takes. Its noise
    is one draw for each call of `noise_sampler`, `torch.randn_like` or `torch.randn`, so that a plan draws white noise where
    theirs reads a Brownian path. The run starts from sigmas[0] times noise, which the plan's own start is.

    Args:
        function: the sampler.
        sigmas: (N + 1,), falling noise levels, the last of which may be 0.
        scaling: "ve", or "flow" for the rectified flows of ComfyUI.
        name: what the plan is called; the name of the function without one.
        inner_model: what functions of ComfyUI find at `model.inner_model`, such as an object with its `model_sampling`.
        settings: further arguments of the function, such as eta=0.5.

    Raises:
        ValueError: sigmas out of range; what cannot be a plan, such as step sizes that adapt, with the call where it shows;
            noise that is added before the first call, as `s_churn` does.

    Source: Karras et al. 2022 (arXiv 2206.00364), for x, sigma and the model.

    >>> import pytest; _ = pytest.importorskip("torch")
    >>> def euler(model, x, sigmas):
    ...     for sigma, after in zip(sigmas, sigmas[1:]):
    ...         x = x + (x - model(x, sigma * x.new_ones(len(x)))) / sigma * (after - sigma)
    ...     return x
    >>> print(plan(euler, [80.0, 10.0, 1.0, 0.0]))
    euler, ve, 3 stages
    stage  log_snr    next      z      x
        0   -8.764  -4.605  0.125  0.875
        1   -4.605       0    0.1    0.9
        2        0     inf      0      1
    """
    import torch

    from diffcore.interop._torch import Reading

    function_name = "interop.k_diffusion.plan"
    _check.choice(function_name, "scaling", scaling, SCALINGS)
    _check.callable_(function_name, "function", function, "a sampler (model, x, sigmas, ...), such as sample_heun")
    takes = inspect.signature(function).parameters
    if "sigmas" not in takes and "sigma_min" in takes:
        must = "take (model, x, sigmas, ...)"
        hint = "its like here are samplers.dpm_solver_fast and sample_adaptive, or call it in a function of yours that does"
        raise _check.error(TypeError, function_name, "function", must, function, hint)
    given = np.array(_array.to_host(sigmas, np.float64, function=function_name, argument="sigmas"))
    top = 1.0 if scaling == "flow" else math.inf
    fits = given.ndim == 1 and given.size > 1 and given[0] > 0.0
    if not fits or not np.all((given >= 0.0) & (given <= top) & np.isfinite(given)):
        raise ValueError(
            f"{function_name}: `sigmas` must be (N + 1,) noise levels in [0, {top:g}], the first above 0, got "
            f"{given.reshape(-1)[:4].tolist()}"
        )
    every = any(one.kind is one.VAR_KEYWORD for one in takes.values())

    called = name or getattr(function, "__name__", "loop").removeprefix("sample_")

    def loop(denoise: Callable[..., Any], z: Any, draw: Callable[[], Any]) -> Any:
        calls = itertools.count()

        def model(x: Any, sigma: Any, **_: Any) -> Any:
            if (call := next(calls)) >= CALLS * given.size:
                raise ValueError(
                    f"{function_name}: {called} makes call {call} for {given.size} sigmas; step sizes that adapt are no plan"
                )
            return denoise(x, _log_snr(torch, torch.as_tensor(sigma, dtype=torch.float64), scaling))

        if inner_model is not None:
            model.inner_model = inner_model  # type: ignore[attr-defined]
        offered: dict[str, Any] = {
            "extra_args": {},
            "callback": None,
            "disable": True,
            "noise_sampler": lambda *_: draw(),
        }
        with Reading(lambda _: draw(), z.shape):
            wanted = {key: value for key, value in offered.items() if (every or key in takes) and key not in settings}
            return function(model, z, torch.tensor(given), **wanted, **settings)

    end = float(_log_snr(torch, torch.tensor(given[-1]), scaling))
    return _trace.read(function_name, loop, scaling, torch.zeros(1), end=end, name=called)


def _log_snr(xp: Any, sigma: Any, scaling: str) -> Any:
    return 2.0 * (xp.log1p(-sigma) - xp.log(sigma)) if scaling == "flow" else -2.0 * xp.log(sigma)


@dataclass(frozen=True, eq=False)
class _Denoiser:
    """Their model as a denoiser."""

    model: Any
    scaling: str
    inputs: Any
    prediction: ClassVar = "x"
    __repr__ = _brief.fields

    def __call__(self, z: Array, log_snr: Array, /, cond: Any = MappingProxyType({})) -> Array:
        more = inputs("interop.k_diffusion.denoiser", self.inputs, cond)
        return self.model(z, levels.level(log_snr, self.scaling).sigma, **more)


def denoiser(model: Callable[..., Array], *, scaling: str = "ve", **inputs: Any) -> Any:
    """Return their model, (x, sigma, **inputs) -> x-hat, as a denoiser with prediction "x".

    Args:
        model: sigma is (B,), or of the leading shape of the plan's levels.
        scaling: "ve", or "flow" for the rectified flows of ComfyUI.
        inputs: what it gets at every call, their `extra_args`.

    Returns:
        A denoiser. It takes a third argument, a dict of further inputs, which take the place of equal names in `inputs`, for
        guidance: guidance.classifier_free(denoise, cond={"cond": text}, null={"cond": empty}, scale=7.5).

    Raises:
        ValueError: another scaling.

    >>> import diffcore as dc, numpy as np
    >>> denoise = denoiser(lambda x, sigma: x / (1.0 + sigma[:, None] ** 2))       # data N(0, 1)
    >>> plan = dc.samplers.ddim(dc.schedules.Karras(), steps=8)
    >>> dc.sample(denoise, plan, shape=(2, 3), seed=7).shape
    (2, 3)
    """
    _check.choice("interop.k_diffusion.denoiser", "scaling", scaling, SCALINGS)
    return _Denoiser(model, scaling, inputs)


def model(
    denoise: Callable[[Array, Array], Array], *, prediction: predictions.Prediction | None = None, scaling: str = "ve"
) -> Callable[..., Array]:
    r"""Return a denoiser as their model, (x, sigma) -> x-hat, for functions such as k-diffusion's `sample_heun`.

        z = (alpha' / alpha) x  at the same log-SNR, where the denoiser is for another scaling (alpha', sigma')

    Args:
        denoise: a denoiser; where it has a `scaling` or `schedule`, x is scaled for it.
        prediction: what it returns; may be left out where it has an attribute `prediction`.
        scaling: "ve", or "flow" for the rectified flows of ComfyUI: how their x is scaled.

    Returns:
        A function of x (B, ...), sigma, a number or (B,), and further arguments, which it ignores.

    Raises:
        ValueError: another scaling.
        TypeError: `prediction` is missing and the denoiser does not say.

    >>> import diffcore as dc, numpy as np
    >>> float(model(dc.exact.Gaussian(np.zeros(1), 1.0))(np.ones((1, 1)), 1.0)[0, 0].round(12))   # 1 / (1 + sigma^2)
    0.5
    """
    function = "interop.k_diffusion.model"
    _check.choice(function, "scaling", scaling, SCALINGS)
    source = predictions.kind_of(function, denoise, prediction)
    own = _wrapping.own_scaling(denoise) or scaling
    fitted: Any = _wrapping.scaled(denoise, own, function)
    return partial(_estimate, fitted, source, own, scaling)


def _estimate(denoise: Any, source: Any, own: str, scaling: str, x: Array, sigma: Any, **_: Any) -> Array:
    """Return x-hat of a denoiser for the scaling `own`, at x as `scaling` has it."""
    xp = _array.library(x)
    sigma = xp.zeros(x.shape[0], dtype=x.dtype, device=_array.device(x)) + sigma
    log_snr = _log_snr(xp, sigma, scaling)
    at = levels.level(log_snr, own)
    z = x
    if own != scaling:
        theirs = levels.level(log_snr, scaling)
        ratio = xp.where(log_snr < 0.0, at.sigma / theirs.sigma, at.alpha / theirs.alpha)
        z = x * xp.reshape(ratio, (-1,) + (1,) * (x.ndim - 1))
    return predictions.convert(denoise(z, log_snr), z, at, source=source, target="x")


_explained.face(__name__)
