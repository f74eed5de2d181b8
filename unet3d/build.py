"""Making a model: the same seed gives the same weights in every backend."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _check, _streams
from diffcore.unet3d import structure
from diffcore.unet3d.config import UNet3DConfig

BACKENDS = {"numpy": "numpy_unet", "torch": "torch_unet", "jax": "jax_unet"}


def initial(config: UNet3DConfig, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Return the weights that a network starts from, by canonical name: a pure function of (config, seed).

    >>> from diffcore.unet3d.config import PRESETS
    >>> initial(PRESETS["tiny"])["input.weight"].shape
    (3, 3, 1, 8)
    """
    from diffcore import noise

    found = {}
    for number, (name, array) in enumerate(structure.arrays(config).items()):
        if array.deviation:
            drawn = noise.normal(seed, number, (1, *array.shape), dtype=np.float32, stream=_streams.WEIGHTS)
            found[name] = np.float32(array.deviation) * drawn[0]
        else:
            found[name] = np.full(array.shape, array.fill, dtype=np.float32)
    return found


def build(
    config: UNet3DConfig,
    backend: str = "numpy",
    seed: int = 0,
    *,
    dtype: Any = "float32",
    device: Any = None,
    checkpointing: bool = False,
) -> Any:
    r"""Return a new model, with weights drawn from a seed.

        y = model(z, log_snr, cond=None, images=0, past=None)

    `z` is (B, T, H, W, C), of any number of frames and any height and width; `log_snr` (), (B,) or (B, T), infinities
    included; `cond` the condition: labels (B,) or (B, T), or a pair of tokens (B, L, D) and their mask (B, L), or None,
    which says nothing; `images` how many of the last frames are independent images, which see no other frame. `y` has
    the shape and dtype of `z`, and is what `config.prediction` says. `model.null(cond)` is the condition that says
    nothing, in the structure of `cond`.

    A causal network keeps what it computed of past frames, and then takes new ones alone:

        past = model.past(z[:, :n], log_snr, cond, past=None)
        y[:, n:] = model(z[:, n:], log_snr, cond, past=past)                 to rounding

    `past` is a tuple of pairs of arrays, keys and values (B, P, pixels, heads, head_dim) of each temporal attention, of the last
    P = frames - 1 frames at most, which is as far as it sees: so it stays as small however long the video is. Take it at the
    levels and under the condition at which the network is to see those frames. It carries no gradient on torch.

    Args:
        config: what the network is.
        backend: "numpy" (forward only), "torch" (an `nn.Module`) or "jax" (an `nnx.Module`).
        seed: of the weights, an int in [0, 2^64); the same weights in every backend.
        dtype: of the weights and the computation, "float32" or "float64".
        device: where the weights live, as torch or JAX names it.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.

    Raises:
        ValueError: an unknown backend or dtype.
        TypeError: `config` is none.
        ImportError: the backend's library is missing; install diffcore[torch] or diffcore[jax].

    >>> import numpy as np
    >>> from diffcore.unet3d.config import preset
    >>> model = build(preset("tiny"))
    >>> model(np.zeros((2, 4, 8, 8, 1), dtype=np.float32), np.zeros(2)).shape
    (2, 4, 8, 8, 1)
    >>> model = build(preset("tiny", causal=True))
    >>> past = model.past(np.zeros((2, 7, 8, 8, 1), dtype=np.float32), np.inf)
    >>> past[0][0].shape, model(np.zeros((2, 1, 8, 8, 1), dtype=np.float32), 0.5, past=past).shape
    ((2, 3, 16, 2, 8), (2, 1, 8, 8, 1))
    """
    _check.instance("unet3d.build", "config", config, UNet3DConfig, "a UNet3DConfig", hint="see unet3d.preset")
    return assemble("unet3d.build", config, initial(config, seed), backend, dtype, device, checkpointing)


def assemble(
    function: str,
    config: UNet3DConfig,
    weights: Any,
    backend: str,
    dtype: Any = "float32",
    device: Any = None,
    checkpointing: bool = False,
) -> Any:
    """Return a model of a backend with the given weights."""
    _check.choice(function, "backend", backend, BACKENDS)
    kind = str(dtype).rsplit(".", maxsplit=1)[-1].removesuffix("'>")
    if kind not in {"float32", "float64"}:
        out = "for bfloat16 keep float32 weights and use autocast (torch) or compute_dtype (JAX)"
        raise _check.error(ValueError, function, "dtype", "be 'float32' or 'float64'", dtype, out)
    if backend == "numpy":
        from diffcore.unet3d import numpy_unet

        return numpy_unet.UNet3D(config, {name: np.asarray(array, dtype=kind) for name, array in weights.items()})
    try:
        module = importlib.import_module(f"diffcore.unet3d.{BACKENDS[backend]}")
    except ImportError as error:
        raise ImportError(
            f"{function}: the backend {backend!r} needs {error.name}; install diffcore[{backend}]"
        ) from error
    kind = getattr(module.torch, kind) if backend == "torch" else kind
    return module.UNet3D(config, weights, dtype=kind, device=device, checkpointing=checkpointing)
