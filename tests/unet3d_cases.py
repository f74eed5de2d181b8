"""The configs and calls that the tests of the U-Net share, and what they ask of a model in each library.

Weights are drawn at random everywhere: those that a network starts from are zero where a residual branch closes, and would
hide what lies before. A new case is a new row.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from libraries import FRAMEWORKS, JAX, TORCH, host, quick

from diffcore.unet3d import UNet3DConfig, structure
from diffcore.unet3d.build import assemble

INF = np.inf
BASE = UNet3DConfig(
    frames=4,
    size=8,
    channels=2,
    base_channels=12,  # groups of several channels, several heads
    multipliers=(1, 2),
    blocks=1,
    attention=(4,),
    head_dim=4,
    embedding=16,
    mlp_layers=2,
)
CLASS, TOKENS = {"condition": "class", "classes": 3}, {"condition": "tokens", "token_width": 5}


class Case(NamedTuple):
    config: dict[str, Any]
    shape: tuple[int, ...]
    log_snr: Any
    cond: Any = None
    images: int = 0


PER_FRAME = [[-3.0, 0.5, INF, 2.0, -INF], [40.0, -40.0, 1.0, 0.0, -7.5]]
MASK = np.array([[True, False, True], [False, False, False]])
CASES = {
    "a clip as in training": Case({}, (2, 4, 8, 8), [-1.0, 3.0]),
    "one frame, one pixel row, one level of noise": Case({}, (1, 1, 1, 5), 0.3),
    "odd sizes, longer than in training, levels per frame": Case({}, (2, 5, 7, 9), PER_FRAME),
    "some frames are images, both ends": Case({"mlp_layers": 1}, (2, 5, 6, 3), [INF, -INF], images=2),
    "all frames are images, every level attends": Case({"attention": (8, 4)}, (1, 3, 5, 4), [0.0], images=3),
    "no level attends, two blocks": Case({"attention": (), "blocks": 2}, (1, 2, 6, 6), -2.0, images=1),
    "three levels, no multiple of their stride": Case({"multipliers": (1, 2, 1), "frames": 2}, (1, 3, 5, 7), [1.0]),
    "one level, causal, longer than it reaches": Case(
        {"multipliers": (1,), "attention": (8,), "mlp_layers": 3, "causal": True, "frames": 2},
        (2, 4, 3, 2),
        [1.0, -1.0],
    ),
    "labels, one of them the null condition": Case(CLASS, (2, 3, 4, 4), [1.0, 2.0], np.array([2, 3])),
    "labels per frame": Case({**CLASS, "mlp_layers": 3}, (2, 3, 4, 4), 1.0, np.array([[0, 1, 3], [2, 2, 0]]), images=1),
    "no label": Case(CLASS, (2, 2, 4, 4), np.array(PER_FRAME)[:, :2]),
    "tokens, none of them in a sample": Case(TOKENS, (2, 5, 5, 4), PER_FRAME, MASK, images=1),
    "tokens per frame, several heads": Case(
        {**TOKENS, "token_heads": 4, "mlp_layers": 1}, (2, 2, 4, 4), [0.0, 1.0], np.stack([MASK, ~MASK], 1), images=2
    ),
    "no tokens": Case(TOKENS, (2, 2, 4, 4), [-4.0, 4.0]),
}
BUSY = "tokens, none of them in a sample"
SLOPES = [  # every kind of weight and of call
    BUSY,
    "some frames are images, both ends",
    "one level, causal, longer than it reaches",
    "three levels, no multiple of their stride",
    "labels per frame",
]
every_case = pytest.mark.parametrize("name", CASES)
every_backend = pytest.mark.parametrize("backend", FRAMEWORKS)
compiled_backends = pytest.mark.parametrize("backend", [TORCH, JAX])


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def counted(calls: list[Any], function: Any) -> Any:
    """Return a function that also notes each call."""

    def call(*given: Any, **options: Any) -> Any:
        calls.append(given)
        return function(*given, **options)

    return call


@functools.cache
def weights_of(config: UNet3DConfig) -> dict[str, Any]:
    return {
        name: array.fill + draw(*array.shape, seed=number) * max(0.2, float(np.prod(array.shape[:-1]))) ** -0.5
        for number, (name, array) in enumerate(structure.arrays(config).items())
    }


def config_of(name: str) -> UNet3DConfig:
    return replace(BASE, **CASES[name].config)


def arguments(name: str) -> tuple[Any, Any, Any, int]:
    """Return (z, log_snr, cond, images) of a case on NumPy."""
    case = CASES[name]
    z = draw(*case.shape, BASE.channels)
    tokens = case.cond is not None and case.cond.dtype == bool
    cond = (draw(*case.cond.shape, TOKENS["token_width"]), case.cond) if tokens else case.cond
    return z, np.array(case.log_snr), cond, case.images


def model_of(config: UNet3DConfig, backend: str, dtype: str = "float64", **options: Any) -> Any:
    return assemble("test", config, weights_of(config), backend, dtype, **options)


@contextlib.contextmanager
def wide(backend: str, dtype: str = "float64") -> Iterator[None]:
    """Let JAX compute in float64, for no longer than this."""
    if backend != "jax":
        yield
        return
    import jax

    with jax.enable_x64(dtype == "float64"):
        yield


def put(backend: str, value: Any, dtype: str = "float64") -> Any:
    """Return arrays, in tuples or alone, on a backend; floats in a dtype."""
    if isinstance(value, tuple):
        return tuple(put(backend, part, dtype) for part in value)
    if value is None or isinstance(value, int):
        return value
    value = np.asarray(value)
    value = value.astype(dtype) if value.dtype.kind == "f" else value
    if backend == "torch":
        import torch

        return torch.tensor(value)
    if backend == "jax":
        import jax.numpy as jnp

        return jnp.asarray(value)
    return value


def call(model: Any, backend: str, *given: Any, dtype: str = "float64") -> Any:
    """Return what a model says, on the host, for arguments on the host."""
    *given, images = put(backend, given if len(given) == 4 else (*given, *(None, 0)[len(given) - 2 :]), dtype)
    if backend == "jax":
        import jax

        run = jax.jit(lambda model, *given: model(*given, images=images), compiler_options=quick())
        return host(run(model, *given))
    if backend == "torch":
        import torch

        with torch.no_grad():
            return host(model(*given, images=images))
    return host(model(*given, images=images))


def say(config: UNet3DConfig, backend: str, *given: Any, dtype: str = "float64") -> Any:
    """Return what the model of a config says, in float64 unless told."""
    with wide(backend, dtype):
        return call(model_of(config, backend, dtype), backend, *given, dtype=dtype)


class Run(NamedTuple):
    y: Any
    z_gradient: Any
    gradients: dict[str, Any]


@functools.cache
def differentiate(name: str, backend: str, checkpointing: bool = False) -> Run:
    """Return what a model says and the gradients of a weighted sum of it, float64, on the host."""
    *given, images = arguments(name)
    cotangent = draw(*given[0].shape, seed=1)
    with wide(backend):
        model = model_of(config_of(name), backend, checkpointing=checkpointing)
        z, log_snr, cond = put(backend, tuple(given))
        if backend == "jax":
            import jax

            def pull(model: Any, z: Any, log_snr: Any, cond: Any, cotangent: Any) -> Any:
                y, back = jax.vjp(lambda model, z: model(z, log_snr, cond, images), model, z)
                return y, *back(cotangent)

            y, gradients, slope = jax.jit(pull, compiler_options=quick())(
                model, z, log_snr, cond, put(backend, cotangent)
            )
            return Run(host(y), host(slope), gradients.arrays())
        from diffcore.unet3d.torch_unet import canonical

        z.requires_grad_()
        y = model(z, log_snr, cond, images)
        y.backward(put(backend, cotangent))
        found = {
            part: np.zeros(1) if value.grad is None else host(canonical(part, value.grad))
            for part, value in model.named_parameters()
        }
        return Run(host(y), host(z.grad), found)


def answer(name: str, backend: str) -> Any:
    """Return what a backend says, from the run that is differentiated where there is one."""
    return differentiate(name, backend).y if name in SLOPES else say(config_of(name), backend, *arguments(name))


@functools.cache
def reference(name: str) -> Any:
    return say(config_of(name), "numpy", *arguments(name))


def error(found: Any, truth: Any) -> float:
    """Return the largest difference, in units of the largest value."""
    assert found.shape == truth.shape
    assert np.isfinite(truth).all()
    return float(np.max(np.abs(found - truth)) / np.max(np.abs(truth)))
