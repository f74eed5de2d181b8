"""The weights file: safetensors, one name and one layout for each array, and the config in its metadata.

The file has exactly the arrays of `structure.arrays(config)`: convolutions (height, width, in, out), linear maps (in, out).
It is read whole and checked before a model is made, so that there is no partly loaded one, and written under a
temporary name, so that there is no partly written one. A digest of names, dtypes, shapes, numbers and metadata is among the
metadata and is checked where it is there; files of other programs need none. A pickle is refused: to open one is to run it.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _check, _files
from diffcore.unet3d import structure
from diffcore.unet3d.build import assemble
from diffcore.unet3d.config import UNet3DConfig

Arrays = dict[str, npt.NDArray[Any]]
DTYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
MANY = 10_000
"""Arrays: a config that takes more is held against how many the file has before they are listed."""


class Content(NamedTuple):
    """What a weights file holds: the config, the arrays by canonical name, and the rest of the metadata."""

    config: UNet3DConfig
    arrays: Arrays
    metadata: dict[str, str]


def save(model: Any, path: str | os.PathLike[str], *, dtype: str | None = None, metadata: Any = None) -> None:
    """Write a model to a safetensors file that every backend loads.

    Args:
        model: of any backend; one in a wrapper with a `module`, as of torch.nn.parallel, is taken out of it.
        path: of the file; it is replaced in one go once the new one is whole.
        dtype: "float16", "float32" or "float64" to store the arrays in; without one as they are, but bfloat16, which NumPy lacks,
            in float32.
        metadata: str -> str, kept beside the config and the version of this library.

    Raises:
        TypeError: what is no model.
        ValueError: an array with NaN or infinity, or one beyond the range of `dtype`; an unknown dtype.
        ImportError: safetensors is missing; install diffcore[weights].

    >>> import tempfile
    >>> from diffcore.unet3d import build, preset
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(build(preset("tiny")), folder + "/model.safetensors")
    ...     load(folder + "/model.safetensors").config == preset("tiny")
    True
    """
    _check.choice("unet3d.save", "dtype", dtype, [*DTYPES, None])
    model = _unwrapped(model)
    with np.errstate(over="ignore"):
        arrays = {
            name: np.ascontiguousarray(array, dtype=array.dtype if dtype is None else DTYPES[dtype])
            for name, array in model.arrays().items()
        }
    _check_arrays("unet3d.save", model.config, arrays)
    check_finite("unet3d.save", arrays)
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
        path: of the file that `save` wrote, or a run's folder, which has model.safetensors.
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
    function = "unet3d.load"
    if isinstance(path, (str, os.PathLike)) and (inside := Path(path, "model.safetensors")).is_file():
        path = inside
    arrays, metadata = read_arrays(function, path)
    name = Path(path).name
    if "config" not in metadata:
        raise ValueError(f"{function}: {name} is a safetensors file without a config; unet3d.save writes one")
    try:
        config = UNet3DConfig.from_dict(json.loads(metadata.pop("config")))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{function}: {name} has a config that does not fit: {_check.cut(str(error), 300)}") from None
    _check_arrays(f"{function}: {name}", config, arrays)
    check_finite(f"{function}: {name}", arrays)
    return Content(config, arrays, metadata)


def _unwrapped(model: Any) -> Any:
    while not hasattr(model, "arrays") and hasattr(model, "module"):
        model = model.module
    if not hasattr(model, "arrays") or not hasattr(model, "config"):
        raise _check.error(TypeError, "unet3d.save", "model", "be what unet3d.build or unet3d.load returns", model)
    return model


def _check_arrays(where: str, config: UNet3DConfig, arrays: Arrays) -> None:
    if (least := structure.least(config)) > max(MANY, len(arrays)):
        raise ValueError(f"{where} has {len(arrays)} arrays, but its config takes at least {_check.shown(least)}")
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


def check_finite(where: str, arrays: Arrays) -> None:
    """Raise ValueError where an array has NaN or infinity."""
    for name, array in arrays.items():
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{where}: {name!r} has NaN or infinity in {int(np.sum(~np.isfinite(array)))} places")


def write(path: str | os.PathLike[str], arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays and metadata to a safetensors file, whole or not at all, even where the machine stops."""
    import diffcore

    numpy = _safetensors("unet3d.save")
    about = {**metadata, "diffcore": diffcore.__version__}
    about["digest"] = _digest(arrays, about)
    data = memoryview(numpy.save(dict(arrays), metadata=about))
    size = _header_size(data)
    header = json.loads(bytes(data[8 : 8 + size]))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # the library's order differs from run to run
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _files.replacing(path) as part, part.open("wb") as file:
        file.writelines([len(text).to_bytes(8, "little"), text, data[8 + size :]])


def _header_size(data: Any) -> int:
    return int.from_bytes(data[:8], "little")


def _digest(arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of a file's content; the order in which a program writes it does not count."""
    about = {name: text for name, text in metadata.items() if name != "digest"}
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(json.dumps([name, array.dtype.str, arrays[name].shape]).encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return f"sha256:{found.hexdigest()}"


def read_arrays(function: str, path: str | os.PathLike[str], *, digest: bool = False) -> tuple[Arrays, dict[str, str]]:
    """Return the arrays and metadata of a safetensors file, which has to have a digest where `digest` says so."""
    numpy = _safetensors(function)
    data = _files.read(function, path)
    target = Path(path)
    try:
        arrays = numpy.load(data)
        metadata = json.loads(data[8 : 8 + _header_size(data)]).get("__metadata__", {})
    except KeyError as error:  # which the library raises for a dtype that NumPy lacks
        raise ValueError(
            f"{function}: {target.name} has arrays of dtype {error.args[0]}, but takes one of {sorted(DTYPES)}"
        ) from None
    except Exception as error:  # of kinds of the library's own
        raise _refused(function, target, error) from None
    found = metadata.pop("digest", None)
    if (digest or found is not None) and found != _digest(arrays, metadata):
        raise ValueError(
            f"{function}: {target.name} is damaged or was changed: its digest is {'of something else' if found else 'missing'}; "
            f"take a copy of it, or remove its metadata entry 'digest' if another program changed it"
        )
    return arrays, metadata


def read_metadata(function: str, path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a safetensors file, whose arrays are not read; see `load` for what is raised."""
    _safetensors(function)
    from safetensors import safe_open

    target = _files.regular(function, path)
    try:
        with safe_open(target, "numpy") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # of kinds of the library's own
        raise _refused(function, target, error) from None


def _refused(function: str, path: Path, error: Exception) -> ValueError:
    with path.open("rb") as file:
        first = file.read(1)
    # only now: a safetensors file begins with the size of its header, whose first byte may be that of a pickle
    if first == b"\x80" or zipfile.is_zipfile(path):
        return ValueError(
            f"{function}: {path.name} is a pickle or an archive, as torch.save and numpy.savez write; it takes a "
            f"safetensors file, since opening a pickle can run any code. Write one with unet3d.save"
        )
    why = _check.cut(str(error))  # of a damaged header it quotes whole texts
    return ValueError(f"{function}: {path.name} is no whole safetensors file ({why}); it is damaged or cut off")


def _safetensors(function: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f"{function}: weights files need safetensors; install diffcore[weights]") from error
    return safetensors.numpy
