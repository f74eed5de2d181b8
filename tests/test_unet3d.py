"""The space-time U-Net: three implementations of one function and its gradients, and the identities that it keeps."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from unet3d_cases import (
    BASE,
    BUSY,
    CLASS,
    INF,
    SLOPES,
    TOKENS,
    answer,
    arguments,
    call,
    compiled_backends,
    config_of,
    differentiate,
    draw,
    error,
    every_backend,
    every_case,
    model_of,
    put,
    reference,
    say,
    weights_of,
    wide,
)

from diffcore.unet3d import build, numpy_unet, preset, structure
from diffcore.unet3d.build import assemble

# Parity


@every_case
@compiled_backends
def test_every_backend_is_the_reference(name: str, backend: str) -> None:
    assert error(answer(name, backend), reference(name)) < 1e-10


@pytest.mark.torch
@pytest.mark.jax
@pytest.mark.parametrize("name", SLOPES)
def test_the_gradients_of_torch_and_jax_are_equal(name: str) -> None:
    one, two = differentiate(name, "torch"), differentiate(name, "jax")
    np.testing.assert_allclose(one.z_gradient, two.z_gradient, rtol=1e-8, atol=1e-8)
    assert one.gradients.keys() == two.gradients.keys() == structure.arrays(config_of(name)).keys()
    for part, truth in two.gradients.items():
        np.testing.assert_allclose(one.gradients[part] + 0 * truth, truth, rtol=1e-8, atol=1e-8, err_msg=part)


@pytest.mark.torch
def test_the_gradients_of_torch_are_those_of_finite_differences_of_the_reference() -> None:
    config, (z, *rest), run = config_of(BUSY), arguments(BUSY), differentiate(BUSY, "torch")
    cotangent, step = draw(*z.shape, seed=1), 1e-5
    towards = {part: draw(*value.shape, seed=2) for part, value in weights_of(config).items()}

    def along(length: float) -> Any:
        moved = {part: value + length * towards[part] for part, value in weights_of(config).items()}
        return np.sum(cotangent * numpy_unet.UNet3D(config, moved)(z + length, *rest))

    truth = (along(step) - along(-step)) / (2 * step)
    found = np.sum(run.z_gradient) + sum(np.sum(run.gradients[part] * towards[part]) for part in towards)
    np.testing.assert_allclose(found, truth, rtol=1e-6)


@pytest.mark.torch
def test_torch_differentiates_forwards_and_maps() -> None:
    import torch

    model, z, log_snr = model_of(BASE, "torch"), torch.tensor(draw(1, 3, 4, 4, 2)), torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        y, change = torch.func.jvp(lambda z: model(z, log_snr), (z,), (z,))
        up, middle, down = (model(z * (1.0 + step), log_snr) for step in (1e-5, 0.0, -1e-5))
        mapped = torch.func.vmap(lambda z: model(z, log_snr))(torch.stack([z, 2.0 * z]))
        torch.testing.assert_close(mapped[1], model(2.0 * z, log_snr), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(y, middle, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(change, (up - down) / 2e-5, rtol=1e-6, atol=1e-6)


@every_backend
@pytest.mark.parametrize("name", [BUSY, "labels per frame", "three levels, no multiple of their stride"])
def test_float32_keeps_five_digits(name: str, backend: str) -> None:
    found = say(config_of(name), backend, *arguments(name), dtype="float32")
    assert error(found, reference(name)) < 1e-5


@every_backend
def test_a_prediction_has_the_dtype_of_the_data(backend: str) -> None:
    model = build(preset("tiny"), backend)
    z = put(backend, draw(1, 2, 8, 8, 1), "float16")
    assert model(z, put(backend, 0.0, "float32")).dtype == z.dtype


def _softer(softmax: Any) -> Callable[[Any], Any]:
    return lambda logits: softmax(logits * 0.999)


def _swapped(block: Any) -> Callable[..., Any]:
    def swapped(self: Any, row: Any, h: Any, *rest: Any) -> Any:
        before = self.rows[self.rows.index(row) - 1].outputs
        return block(self, row, np.roll(h, row.inputs - before, axis=-1) if row.pops else h, *rest)

    return swapped


def _together(time: Any) -> Callable[..., Any]:
    return lambda self, name, h, sizes, *rest: time(self, name, h, sizes._replace(images=0), *rest)


def _shifted(conv: Any) -> Callable[..., Any]:
    def shifted(h: Any, weight: Any, bias: Any, stride: int = 1) -> Any:
        return conv(h if stride == 1 else np.pad(h, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:], weight, bias, stride)

    return shifted


MISTAKES: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "what a norm adds": (structure, "EPSILON", lambda epsilon: epsilon * 2.0),
    "frequencies": (structure, "FREQUENCIES", lambda frequencies: tuple(f * 1.001 for f in frequencies)),
    "where log-SNR ends": (structure, "LOG_SNR_LIMIT", lambda limit: limit - 0.1),
    "the scale of attention": (numpy_unet, "softmax", _softer),
    "the number of groups": (numpy_unet, "groups", lambda groups: lambda channels: groups(channels) // 2),
    "the activation": (numpy_unet, "silu", lambda silu: lambda h: silu(h) * 1.001),
    "height for width": (
        numpy_unet,
        "conv",
        lambda conv: lambda h, w, *rest, **more: conv(h, np.swapaxes(w, 0, 1), *rest, **more),
    ),
    "where a stride starts": (numpy_unet, "conv", _shifted),
    "tiled, not repeated": (
        numpy_unet,
        "resize",
        lambda resize: lambda h, size: np.tile(h, (1, 2, 2, 1))[:, : size[0], : size[1]],
    ),
    "the order of a skip": (numpy_unet.UNet3D, "block", _swapped),
    "the sign of a distance": (
        numpy_unet.UNet3D,
        "positions",
        lambda positions: lambda *given: np.swapaxes(positions(*given), 0, 1),
    ),
    "images that see the video": (numpy_unet.UNet3D, "time", _together),
}


@compiled_backends
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_parity_sees_a_mistake(mistake: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = differentiate(BUSY, backend).y
    where, name, change = MISTAKES[mistake]
    monkeypatch.setattr(where, name, change(getattr(where, name)))
    assert error(found, say(config_of(BUSY), "numpy", *arguments(BUSY))) > 1e-7


@every_backend
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_tokens_are_pooled_by_attention_of_a_query_per_head(heads: int, backend: str) -> None:
    torch = pytest.importorskip("torch")
    config = replace(BASE, **TOKENS, token_heads=heads, mlp_layers=1)
    w = {name: torch.from_numpy(array) for name, array in weights_of(config).items()}
    tokens, mask = draw(3, 7, 5), np.arange(7) < [[7], [1], [4]]
    normed = torch.nn.functional.layer_norm(
        torch.from_numpy(tokens), (5,), w["condition.norm.weight"], w["condition.norm.bias"], structure.EPSILON
    )
    keys, values = (
        (normed @ w[f"condition.{name}.weight"] + w[f"condition.{name}.bias"]).reshape(3, 7, heads, -1).swapaxes(1, 2)
        for name in ("keys", "values")
    )
    query = w["condition.query"].reshape(heads, 1, -1).expand(3, -1, -1, -1)
    counts = torch.from_numpy(mask)[:, None, None]
    truth = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=counts).reshape(3, -1)
    with wide(backend):
        found = model_of(config, backend).condition(tuple(put(backend, part) for part in (tokens, mask)))
        found = np.asarray(found.detach() if backend == "torch" else found)
    np.testing.assert_allclose(found, truth.numpy(), rtol=1e-9, atol=1e-12)


# Names and weights


@every_backend
@pytest.mark.parametrize("changes", [{}, CLASS, TOKENS], ids=["none", "class", "tokens"])
def test_weights_have_their_canonical_names_and_come_back_as_they_went_in(changes: Any, backend: str) -> None:
    config = replace(BASE, **changes)
    with wide(backend):
        model = model_of(config, backend)
        if backend == "torch":
            assert model.state_dict().keys() == structure.arrays(config).keys()
        if backend == "jax":
            from flax import nnx

            paths = {".".join(path) for path, _ in nnx.to_flat_state(nnx.state(model))}
            assert paths == structure.arrays(config).keys()
        found = model.arrays()
    assert found.keys() == structure.arrays(config).keys()
    for name, truth in weights_of(config).items():
        np.testing.assert_array_equal(found[name], truth, err_msg=name)


@compiled_backends
def test_a_seed_gives_the_same_weights_everywhere(backend: str) -> None:
    truth, found = (build(preset("tiny"), library, seed=5).arrays() for library in ("numpy", backend))
    for name, array in truth.items():
        assert array.tobytes() == np.ascontiguousarray(found[name]).tobytes(), name
    assert not np.array_equal(truth["input.weight"], build(preset("tiny"), seed=6).arrays()["input.weight"])


@every_backend
def test_a_network_starts_by_saying_zero(backend: str) -> None:
    model = build(preset("tiny"), backend)
    assert not call(model, backend, draw(1, 2, 4, 4, 1), np.zeros(1), dtype="float32").any()
    assert model.prediction == "v"


# Identities

LEVELS = np.array([[0.0, 1.0, -1.0, 2.0, 5.0], [3.0, -3.0, 0.5, 1.0, INF]])


@every_backend
def test_independent_images_are_clips_of_one_frame(backend: str) -> None:
    z = draw(2, 5, 4, 6, 2)
    together = say(BASE, backend, z, LEVELS, None, 3)[:, 2:]
    alone = say(BASE, backend, z[:, 2:].reshape(6, 1, 4, 6, 2), LEVELS[:, 2:].reshape(6, 1), None, 0)
    np.testing.assert_allclose(together.reshape(alone.shape), alone, rtol=1e-10, atol=1e-10)


@every_backend
def test_independent_images_have_no_order_and_the_video_does_not_see_them(backend: str) -> None:
    z, order = draw(2, 5, 4, 6, 2), [0, 1, 4, 2, 3]
    y = say(BASE, backend, z, LEVELS, None, 3)
    permuted = say(BASE, backend, z[:, order], LEVELS[:, order], None, 3)
    np.testing.assert_allclose(permuted, y[:, order], rtol=1e-10, atol=1e-10)
    video = say(BASE, backend, z[:, :2], LEVELS[:, :2], None, 0)
    np.testing.assert_allclose(y[:, :2], video, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_less(1e-3, np.max(np.abs(say(BASE, backend, z, LEVELS, None, 0) - y)))


@every_backend
def test_a_batch_is_its_samples(backend: str) -> None:
    config, (z, log_snr, (tokens, mask), images) = config_of(BUSY), arguments(BUSY)
    together = say(config, backend, z, log_snr, (tokens, mask), images)
    for i in range(2):
        part = slice(i, i + 1)
        alone = say(config, backend, z[part], log_snr[part], (tokens[part], mask[part]), images)
        np.testing.assert_allclose(alone, together[part], rtol=1e-10, atol=1e-10)


@every_backend
@pytest.mark.parametrize("name", ["labels, one of them the null condition", "labels per frame", BUSY])
def test_the_null_condition_is_none_at_all(name: str, backend: str) -> None:
    z, log_snr, cond, images = arguments(name)
    with wide(backend):
        model = model_of(config_of(name), backend)
        null = model.null(put(backend, cond))
        null = tuple(np.asarray(part) for part in null) if isinstance(null, tuple) else np.asarray(null)
        nothing = call(model, backend, z, log_snr, None, images)
        np.testing.assert_allclose(call(model, backend, z, log_snr, null, images), nothing, rtol=1e-10, atol=1e-10)
    assert error(nothing, reference(name)) > 1e-3


@every_backend
def test_tokens_that_do_not_count_do_not_matter(backend: str) -> None:
    config, (z, log_snr, (tokens, mask), images) = config_of(BUSY), arguments(BUSY)
    others = np.where(mask[..., None], tokens, 100.0)
    found = say(config, backend, z, log_snr, (others, mask), images)
    np.testing.assert_allclose(found, reference(BUSY), rtol=1e-10, atol=1e-10)


@every_backend
def test_beyond_the_longest_distance_positions_stay_the_same(backend: str) -> None:
    config, (z, log_snr, cond, images) = config_of(BUSY), arguments(BUSY)
    longer = replace(config, frames=6)
    spread = {
        name: array[np.clip(np.arange(11) - 5, -3, 3) + 3] if name.endswith("positions") else array
        for name, array in weights_of(config).items()
    }
    with wide(backend):
        found = call(assemble("test", longer, spread, backend, "float64"), backend, z, log_snr, cond, images)
    np.testing.assert_allclose(found, reference(BUSY), rtol=1e-10, atol=1e-10)


@compiled_backends
def test_temporal_attention_in_parts_is_the_same(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module(f"diffcore.unet3d.{backend}_unet")
    if backend == "jax":
        monkeypatch.setattr(module, "_forward", module._forward.__wrapped__)  # one that has traced nothing yet
    rows: list[int] = []
    mixed = module.TimeAttention._mixed

    def counted(self: Any, tokens: Any, *rest: Any) -> Any:
        rows.append(tokens.shape[0] * tokens.shape[2] // self.head_dim)
        return mixed(self, tokens, *rest)

    monkeypatch.setattr(module.TimeAttention, "_mixed", counted)
    monkeypatch.setattr(module, "MOST_ROWS", 40)
    assert error(say(config_of(BUSY), backend, *arguments(BUSY)), reference(BUSY)) < 1e-10
    assert max(rows) <= 40
    assert len(rows) > len([row for row in structure.rows(config_of(BUSY)) if row.attends])
