"""The weights file: the same bits in every backend, all of it or nothing, and a word for everything that is wrong with it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libraries import FRAMEWORKS, TORCH

import diffcore as dc
from diffcore import unet3d
from diffcore.unet3d import UNet3DConfig, build, load, save, structure, weights
from diffcore.unet3d.build import assemble

pytest.importorskip("safetensors")

CONFIG = UNet3DConfig(
    frames=2, size=4, channels=1, base_channels=4, multipliers=(1, 2), blocks=1, attention=(), head_dim=4, embedding=8
)
TEXT = replace(CONFIG, condition="tokens", token_width=3)
every_backend = pytest.mark.parametrize("backend", FRAMEWORKS)


def arrays_of(config: UNet3DConfig = CONFIG) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    return {name: rng.normal(size=array.shape).astype(np.float32) for name, array in structure.arrays(config).items()}


def model_of(backend: str, config: UNet3DConfig = CONFIG, dtype: str = "float32") -> Any:
    return assemble("test", config, arrays_of(config), backend, dtype)


def written(path: Path, arrays: Any = None, config: Any = None, **metadata: str) -> Path:
    """Write a file past all checks of `save`."""
    metadata = {"config": json.dumps(CONFIG.to_dict()) if config is None else config, **metadata}
    weights.write(path, arrays_of() if arrays is None else arrays, metadata)
    return path


def same(found: Any, wanted: Any) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype and np.array_equal(found[name], wanted[name]) for name in wanted
    )


# There and back


@every_backend
@pytest.mark.parametrize("reader", FRAMEWORKS)
@pytest.mark.parametrize("config", [CONFIG, TEXT])
def test_every_backend_reads_the_bits_that_any_wrote(
    backend: str, reader: str, config: UNet3DConfig, tmp_path: Path
) -> None:
    save(model_of(backend, config), tmp_path / "some.safetensors")
    found = load(tmp_path / "some.safetensors", reader)
    assert found.config == config
    assert same(found.arrays(), arrays_of(config))


def test_one_model_is_one_file_byte_for_byte(tmp_path: Path) -> None:
    metadata = {letter: letter for letter in "zyxwvuts"}
    for number in range(2):
        save(model_of("numpy"), tmp_path / str(number), metadata=metadata)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    _, found = weights.read_arrays("test", tmp_path / "0")
    assert list(found) == sorted(found)  # the library's own order differs from process to process


@every_backend
def test_the_bytes_do_not_depend_on_the_backend(backend: str, tmp_path: Path) -> None:
    for name in ("numpy", backend):
        save(model_of(name), tmp_path / name)
    assert (tmp_path / "numpy").read_bytes() == (tmp_path / backend).read_bytes()


@pytest.mark.parametrize("backend", ["numpy", TORCH])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_storage_rounds_to_its_dtype_and_to_nothing_else(backend: str, dtype: str, tmp_path: Path) -> None:
    save(model_of(backend), tmp_path / "some", dtype=dtype)
    kept = weights.read(tmp_path / "some").arrays
    assert same(kept, {name: array.astype(dtype) for name, array in arrays_of().items()})
    rounded = {name: array.astype(dtype).astype(np.float32) for name, array in arrays_of().items()}
    assert same(load(tmp_path / "some", backend).arrays(), rounded)
    wide = load(tmp_path / "some", backend, dtype="float64").arrays()
    assert same(wide, {name: array.astype(np.float64) for name, array in kept.items()})


def test_metadata_is_kept_beside_config_and_version(tmp_path: Path) -> None:
    import diffcore

    own = {"of": "my own", "config": "{}", "diffcore": "0"}
    save(model_of("numpy"), tmp_path / "some", metadata=own)
    content = weights.read(tmp_path / "some")
    assert content.config == CONFIG
    assert content.metadata == {"of": "my own", "diffcore": diffcore.__version__}


def test_the_size_of_a_header_may_begin_like_a_pickle(tmp_path: Path) -> None:
    for length in range(256):
        path = written(tmp_path / "some", note="x" * length)
        if path.read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header of such a size")
    assert load(path).config == CONFIG


# All of it or nothing


@pytest.mark.parametrize("place", ["open", "fsync", "rename"])
def test_a_failure_while_writing_leaves_the_old_file(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "some.safetensors")
    before = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no space left")

    target, name = {"open": (Path, "open"), "fsync": (os, "fsync"), "rename": (Path, "replace")}[place]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, fail)
        with pytest.raises(OSError, match="no space left"):
            save(build(CONFIG, seed=1), path)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite_is_not_saved(bad: float, tmp_path: Path) -> None:
    model = build(CONFIG)
    model.weights["input.bias"][1] = bad
    with pytest.raises(ValueError, match=r"unet3d.save: 'input.bias' has NaN or infinity in 1 places"):
        save(model, tmp_path / "some")
    assert not list(tmp_path.iterdir())


def test_a_model_beyond_the_range_of_its_storage_is_not_saved(tmp_path: Path) -> None:
    model = build(CONFIG)
    model.weights["input.bias"][...] = 1e5
    with pytest.raises(ValueError, match=r"'input.bias' has NaN or infinity in 4 places"):
        save(model, tmp_path / "some", dtype="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", ValueError), ("int8", ValueError), (np.float16, TypeError)])
def test_an_unknown_storage_is_named(dtype: Any, kind: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(kind, match=r"unet3d.save: `dtype` must be 'float16', 'float32', 'float64' or None, got "):
        save(build(CONFIG), tmp_path / "some", dtype=dtype)


@pytest.mark.torch
def test_a_model_is_taken_out_of_what_wraps_it(tmp_path: Path) -> None:
    import torch
    import torch.distributed
    from torch._C._distributed_c10d import HashStore

    save(model_of("torch"), tmp_path / "plain")
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(model_of("torch"))
    finally:
        torch.distributed.destroy_process_group()
    wrapped = [
        parallel,
        torch.nn.DataParallel(model_of("torch")),
        torch.nn.DataParallel(torch.optim.swa_utils.AveragedModel(model_of("torch"))),
        torch.compile(model_of("torch")),
        torch.compile(parallel),
    ]
    for number, model in enumerate(wrapped):
        save(model, tmp_path / str(number))
        assert (tmp_path / str(number)).read_bytes() == (tmp_path / "plain").read_bytes()


def test_what_is_no_model_is_not_saved(tmp_path: Path) -> None:
    for other in (arrays_of(), CONFIG, lambda z, log_snr: z, type(build(CONFIG))):
        with pytest.raises(
            TypeError, match=r"^unet3d.save: `model` must be what unet3d.build or unet3d.load returns, got"
        ):
            save(other, tmp_path / "some")
    model = build(CONFIG)
    model.weights["input.bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"unet3d.save: 'input.bias' has shape \(3,\), but its config takes \(4,\)"):
        save(model, tmp_path / "some")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("whole") / "some").read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cut") / "some"


@given(share=st.floats(0.0, 1.0, exclude_max=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_at_any_byte_is_refused(share: float, whole: bytes, place: Path) -> None:
    place.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"unet3d.load: some is (no whole safetensors file|a pickle)"):
        load(place)


@given(share=st.floats(0.0, 1.0, exclude_max=True), bit=st.integers(0, 7), header=st.booleans())
def test_a_flipped_bit_is_refused_or_changes_nothing(
    share: float, bit: int, header: bool, whole: bytes, place: Path
) -> None:
    size = int.from_bytes(whole[:8], "little") + 8 if header else len(whole)
    damaged = bytearray(whole)
    damaged[int(share * size)] ^= 1 << bit
    place.write_bytes(damaged)
    found = None
    with contextlib.suppress(ValueError):  # and nothing else
        found = load(place)
    if found is not None:
        assert found.config == CONFIG
        wanted = arrays_of()
        assert all(np.array_equal(array, wanted[name]) for name, array in found.arrays().items())


def test_the_digest_is_of_the_content_and_files_without_one_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path, arrays = written(tmp_path / "some"), arrays_of()
    about = weights.read_metadata("test", path)
    assert about["digest"].startswith("sha256:")
    save_file(dict(reversed(load_file(path).items())), path, metadata=about)  # by another program, in another order
    assert load(path).config == CONFIG
    save_file({**arrays, "input.bias": arrays["input.bias"] + 1.0}, path, metadata=about)
    with pytest.raises(
        ValueError, match=r"some is damaged or was changed: its digest is of something else; take a copy"
    ):
        load(path)
    del about["digest"]
    save_file({**arrays, "input.bias": arrays["input.bias"] + 1.0}, path, metadata=about)
    np.testing.assert_array_equal(load(path).arrays()["input.bias"], arrays["input.bias"] + 1.0)


def without(name: str) -> dict[str, Any]:
    return {other: array for other, array in arrays_of().items() if other != name}


def spoiled(value: float, dtype: str = "float32") -> dict[str, Any]:
    arrays = {name: array.astype(dtype) for name, array in arrays_of().items()}
    arrays["output.weight"][1, 2, 0, 0] = value
    return arrays


RENAMED = {f"other.{name}": array for name, array in arrays_of().items()}
NAMES = len(structure.arrays(CONFIG))
WRONG: dict[str, tuple[Any, str]] = {
    "a missing array": (without("input.bias"), "lacks input.bias$"),
    "all of them missing": ({}, f"lacks .* and {NAMES - 3} more$"),
    "an array too many": ({**arrays_of(), "more": np.zeros(1)}, "has unknown arrays: more$"),
    "other names": (RENAMED, f"lacks .* and {NAMES - 3} more$"),
    "another shape": (
        {**arrays_of(), "input.bias": np.zeros(5, np.float32)},
        r"'input.bias' has shape \(5,\), but its config takes \(4,\)$",
    ),
    "torch's layout": (
        {**arrays_of(), "input.weight": np.zeros((4, 1, 3, 3), np.float32)},
        r"'input.weight' has shape \(4, 1, 3, 3\), but its config takes \(3, 3, 1, 4\)$",
    ),
    "integers": (
        {**arrays_of(), "input.bias": np.zeros(4, np.int32)},
        "'input.bias' has dtype int32, but takes one of",
    ),
    "NaN": (spoiled(np.nan), "'output.weight' has NaN or infinity in 1 places$"),
    "infinity": (spoiled(-np.inf), "'output.weight' has NaN or infinity in 1 places$"),
    "infinity in half precision": (spoiled(np.inf, "float16"), "'output.weight' has NaN or infinity in 1 places$"),
}


@every_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_arrays_that_do_not_fit_are_named_and_no_model_is_made(
    wrong: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, message = WRONG[wrong]
    monkeypatch.setattr(weights, "assemble", lambda *_: pytest.fail("a model was made"))
    with pytest.raises(ValueError, match=rf"unet3d.load: some:? {message}"):
        load(written(tmp_path / "some", arrays), backend)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "has a config that does not fit: "),
        ("[]", "has a config that does not fit: "),
        ("5", "has a config that does not fit: "),
        ("null", "has a config that does not fit: "),
        (json.dumps({**CONFIG.to_dict(), "depth": 3}), r"has a config that does not fit: .*unknown fields \['depth'\]"),
        (
            json.dumps({**CONFIG.to_dict(), "blocks": 0}),
            "has a config that does not fit: .*`blocks` must be an int >= 1, got 0",
        ),
        (json.dumps({**CONFIG.to_dict(), "blocks": 2}), "lacks down"),
        (json.dumps({**CONFIG.to_dict(), "base_channels": 8}), "has shape .*, but its config takes"),
    ],
)
def test_a_config_that_does_not_fit_is_told(config: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"unet3d.load: some:? .*{message}"):
        load(written(tmp_path / "some", config=config))


@pytest.mark.parametrize("change", [{"blocks": 10**9}, {"mlp_layers": 10**9}, {"blocks": 10**4000}])
@pytest.mark.parametrize("arrays", [{}, None])
def test_a_config_far_beyond_its_file_is_refused_at_once(change: Any, arrays: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "some", arrays, json.dumps({**CONFIG.to_dict(), **change}))
    with pytest.raises(ValueError, match=r"some has \d+ arrays, but its config takes at least (\d+|2\^\d+\.\.\.)$"):
        load(path)


def test_a_deep_network_is_listed_and_the_count_is_a_lower_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "MANY", 0)
    for config in (CONFIG, TEXT, replace(CONFIG, blocks=3, multipliers=(1, 1, 2)), replace(CONFIG, mlp_layers=9)):
        assert structure.least(config) <= len(structure.arrays(config))
        save(model_of("numpy", config), tmp_path / "some")
        assert load(tmp_path / "some").config == config


def test_a_file_without_a_config_is_told(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for number, metadata in enumerate([None, {"of": "something else"}]):
        save_file(arrays_of(), tmp_path / str(number), metadata=metadata)
        with pytest.raises(ValueError, match=r"is a safetensors file without a config; unet3d.save writes one"):
            load(tmp_path / str(number))


class Trap:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize(
    "kind", [*(f"pickle {n}" for n in range(2, 6)), "npz", pytest.param("torch", marks=pytest.mark.torch)]
)
def test_a_pickle_is_refused_and_never_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    if kind == "torch":
        import torch

        torch.save({"input.bias": torch.zeros(3)}, path)
    elif kind == "npz":
        np.savez(path, **arrays_of())
    else:
        path.write_bytes(pickle.dumps(Trap(), protocol=int(kind[-1])))
    with pytest.raises(ValueError, match=r"unet3d.load: some.npz is a pickle or an archive, .* unet3d.save"):
        load(path)


@pytest.mark.parametrize("kind", ["empty", "text", "an old pickle", "npy", "a huge header"])
def test_what_is_no_weights_file_is_told(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "some"
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(
            {
                "empty": b"",
                "text": b"no weights at all, only words",
                "an old pickle": pickle.dumps(Trap(), protocol=0),
                "a huge header": (2**62).to_bytes(8, "little") + b"{}",
            }[kind]
        )
    with pytest.raises(
        ValueError, match=r"unet3d.load: some is no whole safetensors file .*; it is damaged or cut off"
    ):
        load(path)


def test_a_damaged_header_is_not_quoted_in_full(tmp_path: Path) -> None:
    """Whose reader repeats the text that it did not expect."""
    header = json.dumps({"__metadata__": "x" * 5000}).encode()
    (tmp_path / "some").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"is no whole safetensors file .*; it is damaged or cut off") as error:
        load(tmp_path / "some")
    assert len(str(error.value)) <= 500


@pytest.mark.torch
def test_a_dtype_that_no_weights_file_has_is_named(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    arrays = {name: torch.from_numpy(array).bfloat16() for name, array in arrays_of().items()}
    save_file(arrays, tmp_path / "some", metadata={"config": json.dumps(CONFIG.to_dict())})
    with pytest.raises(ValueError, match=r"unet3d.load: some has arrays of dtype BF16, but takes one of"):
        load(tmp_path / "some")


def test_a_path_without_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"unet3d.load: there is no file '"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"unet3d.load: `path` must be the name of a regular file, .* is a folder"):
        load(tmp_path)


def test_an_unknown_backend_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unet3d.load: `backend` must be 'numpy', 'torch' or 'jax', got 'cupy'"):
        load(written(tmp_path / "some"), "cupy")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = written(tmp_path / "some")
    for module in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    for call in (lambda: load(path), lambda: save(build(CONFIG), path)):
        with pytest.raises(ImportError, match=r"weights files need safetensors; install diffcore\[weights\]"):
            call()


def test_the_file_says_what_the_network_was_trained_on(tmp_path: Path) -> None:
    """So that a plan of another scaling is refused, whatever wraps the network."""
    config = unet3d.preset("tiny", schedule=dc.schedules.shift(dc.schedules.Flow(), -1.0))
    unet3d.save(unet3d.build(config), tmp_path / "model.safetensors")
    for backend in ("numpy", "torch", "jax"):
        model = unet3d.load(tmp_path / "model.safetensors", backend=backend)
        assert (model.schedule, model.scaling) == (config.schedule, "flow")
    guided = dc.guidance.classifier_free(model, lambda z, log_snr: z, weight=1.0)
    for denoise in (model, guided):
        with pytest.raises(ValueError, match=r"must have the scaling of `plan`, 'vp', got 'flow'"):
            dc.sample(denoise, dc.samplers.ddim(dc.schedules.Cosine(), 2), shape=(1, *config.shape))
    assert unet3d.build(unet3d.preset("tiny")).scaling is None
    assert unet3d.pretrained("moving_digits").schedule == dc.schedules.Cosine()
