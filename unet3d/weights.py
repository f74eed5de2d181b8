"""The weights file: safetensors, one name and one layout for each array, and the config in its metadata.

The file has exactly the arrays of `structure.arrays(config)`: convolutions (height, width, in, out), linear maps (in, out).
It is read whole and checked before a model is made, so that there is no partly loaded one, and written under a
temporary name, so that there is no partly written one. A pickle is refused: to open one is to run it.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore.unet3d import structure
from diffcore.unet3d.build import assemble
from diffcore.unet3d.config import UNet3DConfig

Arrays = dict[str, npt.NDArray[Any]]
DTYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float64}


class Content(NamedTuple):
    """What a weights file holds: the config, the arrays by canonical name, and the rest of the metadata."""

    config: UNet3DConfig
    arrays: Arrays
    metadata: dict[str, str]


def save(model: Any, path: str | os.PathLike[str], *, dtype: str | None = None, metadata: Any = None) -> None:
    """Write a model to a safetensors file that every backend loads.

    Args:
        model: of any backend.
        path: of the file; it is replaced in one go once the new one is whole.
        dtype: "float16", "float32" or "float64" to store the arrays in; without one as they are, but bfloat16, which NumPy lacks,
            in float32.
        metadata: str -> str, kept beside the config and the version of this library.

    Raises:
        ValueError: an array with NaN or infinity, or one beyond the range of `dtype`; an unknown dtype.
        ImportError: safetensors is missing; install diffcore[weights].

    >>> import tempfile
    >>> from diffcore.unet3d import build, preset
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(build(preset("tiny")), folder + "/model.safetensors")
    ...     load(folder + "/model.safetensors").config == preset("tiny")
    True
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"unet3d.save: `dtype` is {dtype!r}, but takes one of {sorted(DTYPES)}, or None")
    with np.errstate(over="ignore"):
        arrays = {
            name: np.ascontiguousarray(array, dtype=array.dtype if dtype is None else DTYPES[dtype])
            for name, array in model.arrays().items()
        }
    _check_finite("unet3d.save", arrays)
    write(path, arrays, {**(metadata or {}), "config": json.dumps(model.config.to_dict())})


def load(
    path: str | os.PathLike[str],
    backend: str = "numpy",
    *,
    dtype: Any = "float32",
    device: Any = None,
    checkpointing: bool = False,
) -> Any:
    """Return the model of a weights file in any backend; on torch in evaluation mode, without dropout.

    Args:
        path: of the file that `save` wrote.
        backend, dtype, device, checkpointing: as in `unet3d.build`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged file, a pickle, a file of something else; missing, extra or misshapen arrays; NaN.
        ImportError: safetensors is missing (install diffcore[weights]), or the backend's library is.
    """
    content = read(path)
    model = assemble("unet3d.load", content.config, content.arrays, backend, dtype, device, checkpointing)
    return model.eval() if backend == "torch" else model


def read(path: str | os.PathLike[str]) -> Content:
    """Return what a weights file holds, checked against its config. Raises what `load` raises."""
    function, name = "unet3d.load", Path(path).name
    arrays, metadata = read_arrays(function, path)
    if "config" not in metadata:
        raise ValueError(f"{function}: {name} is a safetensors file without a config; unet3d.save writes one")
    try:
        config = UNet3DConfig.from_dict(json.loads(metadata.pop("config")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{function}: {name} has a config that does not fit: {error}") from None
    _check_arrays(f"{function}: {name}", config, arrays)
    _check_finite(f"{function}: {name}", arrays)
    return Content(config, arrays, metadata)


def _check_arrays(where: str, config: UNet3DConfig, arrays: Arrays) -> None:
    wanted = structure.arrays(config)
    for kind, names in (
        ("lacks", wanted.keys() - arrays.keys()),
        ("has unknown arrays:", arrays.keys() - wanted.keys()),
    ):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise ValueError(f"{where} {kind} {some}{f' and {len(names) - 3} more' if len(names) > 3 else ''}")
    for name, array in arrays.items():
        if array.shape != wanted[name].shape:
            raise ValueError(f"{where}: {name!r} has shape {array.shape}, but its config takes {wanted[name].shape}")
        if array.dtype not in DTYPES.values():
            raise ValueError(f"{where}: {name!r} has dtype {array.dtype}, but takes one of {sorted(DTYPES)}")


def _check_finite(where: str, arrays: Arrays) -> None:
    for name, array in arrays.items():
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{where}: {name!r} has NaN or infinity in {int(np.sum(~np.isfinite(array)))} places")


def write(path: str | os.PathLike[str], arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays and metadata to a safetensors file, whole or not at all, even where the machine stops."""
    import diffcore

    numpy = _safetensors("unet3d.save")
    data = memoryview(numpy.save(dict(arrays), metadata={**metadata, "diffcore": diffcore.__version__}))
    size = _header_size(data)
    header = json.loads(bytes(data[8 : 8 + size]))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # the library's order differs from run to run
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    replace(path, lambda file: file.writelines([len(text).to_bytes(8, "little"), text, data[8 + size :]]))


def _header_size(data: Any) -> int:
    return int.from_bytes(data[:8], "little")


def replace(path: str | os.PathLike[str], fill: Callable[[Any], object]) -> None:
    """Let `fill` write to a binary file under a temporary name, bring it to the disk, and then give it its name."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read_arrays(function: str, path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, str]]:
    """Return the arrays and metadata of a safetensors file; see `load` for what is raised."""
    numpy = _safetensors(function)
    target = Path(path)
    if not target.is_file():
        raise FileNotFoundError(f"{function}: there is no file {str(path)!r}")
    data = target.read_bytes()
    try:
        arrays = numpy.load(data)
        metadata = json.loads(data[8 : 8 + _header_size(data)]).get("__metadata__", {})
    except KeyError as error:  # which the library raises for a dtype that NumPy lacks
        raise ValueError(
            f"{function}: {target.name} has arrays of dtype {error.args[0]}, but takes one of {sorted(DTYPES)}"
        ) from None
    except Exception as error:  # of kinds of the library's own
        # only now: a safetensors file begins with the size of its header, whose first byte may be that of a pickle
        if data[:1] == b"\x80" or zipfile.is_zipfile(target):
            raise ValueError(
                f"{function}: {target.name} is a pickle or an archive, as torch.save and numpy.savez write; it takes a "
                f"safetensors file, since opening a pickle can run any code. Write one with unet3d.save"
            ) from None
        raise ValueError(
            f"{function}: {target.name} is no whole safetensors file ({error}); it is damaged or cut off"
        ) from None
    return arrays, metadata


def _safetensors(function: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f"{function}: weights files need safetensors; install diffcore[weights]") from error
    return safetensors.numpy
