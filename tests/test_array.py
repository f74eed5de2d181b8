"""One way to the host: every library, dtype and device, exactly, and no array whose values are not known."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from libraries import EVERY, JAX, TORCH, namespace

from diffcore import _array

VALUES = [1.0, -0.5, 3.0, 0.0]  # which every floating dtype holds


def made(library: str, dtype: str) -> Any:
    xp = namespace(library)
    kind: Any = getattr(xp, dtype)
    return xp.asarray(VALUES, dtype=kind) if library != "torch" else xp.tensor(VALUES, dtype=kind)


@pytest.mark.parametrize("library", EVERY)
@pytest.mark.parametrize("dtype", ["float32", "int32", "bool"])
def test_an_array_comes_as_it_is(library: str, dtype: str) -> None:
    array = made(library, dtype)
    found = _array.to_host(array)
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, np.array(VALUES).astype(dtype), strict=True)
    wide = _array.to_host(array, np.float64)
    np.testing.assert_array_equal(wide, np.array(VALUES).astype(dtype).astype(np.float64), strict=True)


@pytest.mark.parametrize(
    ("library", "dtype"),
    [
        *[pytest.param("torch", d, marks=pytest.mark.torch) for d in ("bfloat16", "float8_e5m2", "float8_e4m3fn")],
        *[pytest.param("jax", d, marks=pytest.mark.jax) for d in ("bfloat16", "float8_e5m2", "float8_e4m3fn")],
    ],
)
def test_a_dtype_that_numpy_lacks_comes_exactly_in_float32(library: str, dtype: str) -> None:
    array = made(library, "float32")
    array = array.to(getattr(namespace(library), dtype)) if library == "torch" else array.astype(dtype)
    np.testing.assert_array_equal(_array.to_host(array), np.array(VALUES, np.float32), strict=True)
    np.testing.assert_array_equal(_array.to_host(array[:2], np.float64), np.array(VALUES[:2]), strict=True)
    if library == "jax":
        np.testing.assert_array_equal(_array.to_host(np.asarray(array)), np.array(VALUES, np.float32), strict=True)


@pytest.mark.parametrize("library", [TORCH, JAX])
def test_half_precision_stays_half(library: str) -> None:
    np.testing.assert_array_equal(_array.to_host(made(library, "float16")), np.array(VALUES, np.float16), strict=True)


def test_numbers_and_sequences_are_arrays() -> None:
    np.testing.assert_array_equal(_array.to_host(2.5), np.array(2.5), strict=True)
    np.testing.assert_array_equal(_array.to_host([1, 2], np.float64), np.array([1.0, 2.0]), strict=True)
    np.testing.assert_array_equal(_array.to_host(np.float32(2)), np.array(2, np.float32), strict=True)
    np.testing.assert_array_equal(_array.to_host([Fraction(1, 2)], np.float64), np.array([0.5]), strict=True)
    pairs = np.zeros(2, dtype=[("a", "f4"), ("b", "i4")])
    assert _array.to_host(pairs) is pairs


@pytest.mark.torch
def test_a_tensor_leaves_its_gradient_behind() -> None:
    import torch

    leaf = torch.ones(2, requires_grad=True)
    for tensor in (leaf, leaf * 2.0, (leaf * 2.0).expand(3, 2).T, torch.nn.Parameter(torch.ones(2))):
        np.testing.assert_array_equal(_array.to_host(tensor), tensor.detach().tolist())


@pytest.mark.torch
def test_a_tensor_that_is_divided_comes_whole() -> None:
    import torch
    from torch._C._distributed_c10d import HashStore
    from torch.distributed import device_mesh, tensor

    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = device_mesh.init_device_mesh("cpu", (1,))
        divided = tensor.distribute_tensor(torch.arange(4.0), mesh, [tensor.Shard(0)])
        np.testing.assert_array_equal(_array.to_host(divided), np.arange(4.0, dtype=np.float32), strict=True)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.jax
def test_a_traced_array_is_refused() -> None:
    import jax
    import jax.numpy as jnp

    call = jax.jit(lambda x: _array.to_host(x, np.float64, function="metrics.psnr", argument="x"))
    with pytest.raises(
        TypeError,
        match=r"^metrics.psnr: `x` must be numbers, .* none that is being traced, got \w+ of shape \(2,\) and dtype",
    ):
        call(jnp.ones(2))


@pytest.mark.torch
def test_a_tensor_under_vmap_is_refused() -> None:
    import torch

    with pytest.raises(TypeError, match="none that is being traced, got Tensor of shape"):
        torch.func.vmap(lambda x: x + float(_array.to_host(x)[0]))(torch.ones(2, 3))


@pytest.mark.parametrize("value", ["a", None, object(), [1, [2, 3]], [1, None], {"a": 1}])
def test_what_holds_no_numbers_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^f: `x` must be numbers, as a sequence or an array .*, got "):
        _array.to_host(value, np.float64, function="f", argument="x")


@pytest.mark.parametrize("library", EVERY)
def test_what_is_not_finite_is_counted(library: str) -> None:
    xp = namespace(library)
    for bad in (np.nan, np.inf, -np.inf):
        array = xp.asarray([1.0, bad, bad])
        assert _array.to_host(array).shape == (3,)
        with pytest.raises(ValueError, match=r"^f: `x` must be finite, got NaN or infinity in 2 of 3 entries$"):
            _array.to_host(array, function="f", argument="x", finite=True)
    assert _array.to_host(xp.asarray([1.0]), finite=True)[0] == 1.0
