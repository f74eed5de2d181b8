"""The U-Net in use: trained, compiled, sampled with, guided, and called with what it does not take."""

from __future__ import annotations

import importlib
import inspect
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libraries import host, quick
from unet3d_cases import (
    BASE,
    BUSY,
    CLASS,
    TOKENS,
    arguments,
    call,
    compiled_backends,
    config_of,
    counted,
    differentiate,
    draw,
    error,
    every_backend,
    model_of,
    put,
    reference,
    say,
    weights_of,
    wide,
)

import diffcore as dc
from diffcore.unet3d import build, load, preset, save
from diffcore.unet3d.half import InBfloat16

# Training


@compiled_backends
def test_checkpointing_changes_no_gradient(backend: str) -> None:
    name = "one level, causal, longer than it reaches"
    kept, again = (differentiate(name, backend, checkpointing=checkpointing) for checkpointing in (False, True))
    np.testing.assert_allclose(again.z_gradient, kept.z_gradient, rtol=1e-10, atol=1e-10)
    for part, truth in kept.gradients.items():
        np.testing.assert_allclose(again.gradients[part], truth, rtol=1e-10, atol=1e-10, err_msg=part)


@pytest.mark.torch
def test_dropout_is_for_training_on_torch() -> None:
    import torch

    z, log_snr = put("torch", (draw(1, 2, 4, 4, 2), np.zeros(1)))
    model = model_of(replace(BASE, dropout=0.5), "torch")
    with torch.no_grad():
        first, second = model.train()(z, log_snr), model(z, log_snr)
        quiet, plain = model.eval()(z, log_snr), model_of(BASE, "torch")(z, log_snr)
    assert torch.equal(quiet, plain)
    assert not torch.allclose(first, second)


@pytest.mark.torch
def test_a_loaded_model_is_for_evaluation_and_one_in_bfloat16_is_kept_in_float32(tmp_path: Path) -> None:
    import torch

    pytest.importorskip("safetensors")
    model = model_of(replace(BASE, dropout=0.5), "torch", "float32").to(torch.bfloat16)
    save(model, tmp_path / "some.safetensors")
    loaded = load(tmp_path / "some.safetensors", "torch")
    assert not any(part.training for part in loaded.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.float()), name


@pytest.mark.jax
def test_dropout_is_for_calls_with_a_key_on_jax() -> None:
    import jax
    from flax import nnx

    z, log_snr = put("jax", (draw(1, 2, 4, 4, 2), np.zeros(1)), "float32")
    model = model_of(replace(BASE, dropout=0.5), "jax", "float32")
    run = jax.jit(lambda key: model(z, log_snr, rngs=key), compiler_options=quick())
    first, second, again = (run(jax.random.key(seed)) for seed in (0, 1, 0))
    assert np.array_equal(first, again)
    assert not np.allclose(first, second)
    quiet = jax.jit(lambda: model(z, log_snr), compiler_options=quick())()
    np.testing.assert_allclose(host(quiet), say(BASE, "numpy", host(z), host(log_snr)), rtol=1e-4, atol=1e-4)
    rngs = nnx.Rngs(0)
    one, two = (run(rngs.dropout()) for _ in range(2))
    assert not np.allclose(one, two)


@pytest.mark.jax
def test_dropout_of_blocks_of_one_shape_differs_on_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax
    import jax.numpy as jnp

    from diffcore.unet3d import jax_unet

    model = model_of(replace(BASE, dropout=0.5, attention=()), "jax", "float32")
    z, log_snr = put("jax", (draw(1, 2, 4, 4, 2), np.zeros(1)), "float32")
    drop, drawn = jax_unet.drop, list[Any]()

    def watched(h: Any, rate: float, key: Any) -> Any:
        drawn.append(drop(jnp.ones(h.shape), rate, key))
        return h

    monkeypatch.setattr(jax_unet, "drop", watched)
    monkeypatch.setattr(jax_unet, "_forward", inspect.unwrap(jax_unet._forward))  # in one trace, with what is drawn
    masks = jax.jit(lambda key: (model(z, log_snr, rngs=key), drawn)[1])(jax.random.key(0))
    pairs = [(a, b) for a, b in itertools.combinations(masks, 2) if a.shape == b.shape]
    assert len(pairs) >= 3
    for a, b in pairs:
        assert 0.3 < np.mean(a == b) < 0.7  # independent halves


@pytest.mark.jax
@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_dropout_keeps_the_mean(rate: float) -> None:
    import jax
    import jax.numpy as jnp

    from diffcore.unet3d.jax_unet import drop

    h = drop(jnp.ones(100_000), rate, jax.random.key(0))
    np.testing.assert_allclose(np.unique(h), [0.0, 1.0 / (1.0 - rate)], rtol=1e-6)
    np.testing.assert_allclose(h.mean(), 1.0, atol=5 * np.sqrt(rate / (1.0 - rate) / 100_000))


@compiled_backends
def test_bfloat16_stays_close_with_parameters_in_float32(backend: str) -> None:
    config, (z, log_snr, cond, images) = config_of(BUSY), arguments(BUSY)
    if backend == "torch":
        import torch

        model = model_of(config, "torch", "float32")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = call(model, backend, z, log_snr, cond, images, dtype="float32")
    else:
        from diffcore.unet3d.jax_unet import UNet3D

        model = UNet3D(config, weights_of(config), compute_dtype="bfloat16")
        found = call(model, backend, z, log_snr, cond, images, dtype="float32")
    assert {array.dtype for array in model.arrays().values()} == {np.dtype(np.float32)}
    distance = np.sqrt(np.mean((found - reference(BUSY)) ** 2) / np.mean(reference(BUSY) ** 2))
    assert 1e-4 < distance < 0.05


@pytest.mark.torch
def test_guidance_by_gradients_reaches_through_bfloat16() -> None:
    import torch

    model = model_of(replace(BASE, attention=(8,)), "torch", "float32").requires_grad_(False)
    z, log_snr = put("torch", (draw(1, 3, 4, 4, 2), np.zeros(1)), "float32")
    known = torch.arange(3).reshape(3, 1, 1, 1) < 1
    guided = (
        dc.conditioning.reconstruction(net, z, known, weight=50.0, prediction="v", schedule=dc.schedules.Cosine())
        for net in (model, InBfloat16(model))
    )
    full, half = (denoise(z, log_snr) for denoise in guided)
    moved = full - model(z, log_snr)
    assert moved.square().mean() > 1e-2
    assert 1e-8 < (half - full).square().mean() / moved.square().mean() < 0.05**2


# Compiled


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "changes"), [("eager", {}), ("inductor", {"multipliers": (1,), "attention": (8,)})]
)
def test_torch_compiles_the_network_as_one_graph_that_says_the_same(backend: str, changes: dict[str, Any]) -> None:
    import torch

    torch._dynamo.reset()
    config = replace(config_of(BUSY), **changes)  # inductor takes long for each loop, so it gets one level
    model = torch.compile(model_of(config, "torch"), fullgraph=True, backend=backend)
    assert error(call(model, "torch", *arguments(BUSY)), say(config, "numpy", *arguments(BUSY))) < 1e-10


@pytest.mark.jax
def test_jax_traces_a_shape_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax.numpy as jnp
    from flax import nnx

    from diffcore.unet3d.jax_unet import UNet3D

    traces: list[Any] = []
    embedding = UNet3D.embedding
    monkeypatch.setattr(UNet3D, "embedding", counted(traces, embedding))
    config = replace(BASE, attention=(), embedding=8)  # of its own: one that is traced already is not traced again
    model = model_of(config, "jax", "float32")
    z = jnp.asarray(draw(1, 2, 4, 4, 2), dtype=jnp.float32)
    first = model(z, jnp.zeros(1))
    assert len(traces) == 1
    for array in (z, z + 1.0):
        second = model(array, jnp.ones(1))
    other = model_of(config, "jax", "float32")  # new weights, same network
    np.testing.assert_array_equal(other(z + 1.0, jnp.ones(1)), second)
    graph, state = nnx.split(model)
    np.testing.assert_array_equal(nnx.merge(graph, state)(z, jnp.zeros(1)), first)
    assert len(traces) == 1


@pytest.mark.jax
def test_the_transforms_of_nnx_take_the_network() -> None:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    config = preset("tiny", multipliers=(1,), attention=())
    model = model_of(config, "jax", "float32")
    z = jnp.asarray(draw(1, 2, 4, 4, 1), dtype=jnp.float32)

    def loss(model: Any) -> Any:
        return jnp.mean(model(z, jnp.zeros(1)) ** 2)

    @nnx.jit
    def step(model: Any) -> Any:
        value, gradients = nnx.value_and_grad(loss)(model)
        state = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda weight, slope: weight - 1e-3 * slope, state, gradients))
        return value

    values = [float(step(model)) for _ in range(3)]
    assert values == sorted(values, reverse=True)
    assert values[0] != values[2]


# With the rest of diffcore


@every_backend
def test_sampling_gives_the_same_clip_everywhere(backend: str) -> None:
    config = replace(BASE, frames=2, attention=(), prediction="v")
    plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=4)

    def clip(backend: str) -> Any:
        model = model_of(config, backend, "float32")
        like = put(backend, 0.0, "float32")
        compile = True if backend == "jax" else None
        return [host(dc.sample(model, plan, shape=(2, 2, 4, 4, 2), like=like, seed=3, compile=compile)) for _ in "12"]

    first, second = clip(backend)
    np.testing.assert_array_equal(first, second)
    assert error(first, clip("numpy")[0]) < 1e-4


@pytest.mark.jax
def test_a_run_is_one_trace_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax.numpy as jnp

    from diffcore.unet3d.jax_unet import UNet3D

    traces: list[Any] = []
    calls = UNet3D.__call__
    monkeypatch.setattr(UNet3D, "__call__", counted(traces, calls))
    model = build(preset("tiny", attention=()), "jax")
    plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=5)
    for seed in (0, 1):
        dc.sample(model, plan, shape=(1, 2, 4, 4, 1), like=jnp.zeros(()), seed=seed, compile=True)
    assert len(traces) == 1


@every_backend
@pytest.mark.parametrize("name", ["labels, one of them the null condition", BUSY])
def test_classifier_free_guidance_takes_the_condition_and_its_null(name: str, backend: str) -> None:
    (z, log_snr, cond, _), weight = arguments(name), 1.5
    truth = (1 + weight) * say(config_of(name), "numpy", z, log_snr, cond, 0)
    truth = truth - weight * say(config_of(name), "numpy", z, log_snr, None, 0)
    with wide(backend):
        model = model_of(config_of(name), backend)
        given = put(backend, cond)
        guided = dc.guidance.classifier_free(model, cond=given, null=model.null(given), weight=weight)
        z, log_snr = put(backend, (z, log_snr))
        found = host(guided(z, log_snr))
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-9)


# Errors

Z = np.zeros((2, 3, 4, 4, 2))
TEXT = (np.zeros((2, 3, 5)), np.ones((2, 3), dtype=bool))
WRONG: dict[str, tuple[dict[str, Any], tuple[Any, ...], type[Exception], str]] = {
    "z without channels": ({}, (Z[..., 0], 0.0), ValueError, "`z` must have shape"),
    "z of other channels": ({}, (Z[..., :1], 0.0), ValueError, "`z` must have shape"),
    "no frame": ({}, (Z[:, :0], 0.0), ValueError, "at least one frame"),
    "levels of another batch": ({}, (Z, np.zeros(3)), ValueError, "`log_snr` must have shape"),
    "levels of other frames": ({}, (Z, np.zeros((2, 2))), ValueError, "`log_snr` must have shape"),
    "frames of bytes": (
        {},
        (Z.astype(np.uint8), 0.0),
        TypeError,
        r"`z` must have a real floating dtype.*uint8.*127\.5",
    ),
    "a level in words": ({}, (Z, "0.5"), TypeError, "`log_snr` must be a real number.* got '0.5'"),
    "levels in a list": ({}, (Z, [0.5, 0.5]), TypeError, r"`log_snr` must be .* got \[0\.5, 0\.5\]"),
    "a yes for a level": ({}, (Z, True), TypeError, "`log_snr` must be .* got True"),
    "complex levels": ({}, (Z, np.zeros(2, complex)), TypeError, "`log_snr` must be .*complex"),
    "more images than frames": ({}, (Z, 0.0, None, 4), ValueError, r"`images` must be an int in \[0, 3\], got 4"),
    "images below zero": ({}, (Z, 0.0, None, -1), ValueError, "`images` must be .* got -1"),
    "images as a bool": ({}, (Z, 0.0, None, True), TypeError, "`images` must be .* got True"),
    "images as a float": ({}, (Z, 0.0, None, 1.0), TypeError, "`images` must be .* got 1.0"),
    "a condition of none": ({}, (Z, 0.0, np.zeros(2, dtype=int)), ValueError, "`cond` is given"),
    "labels of another batch": (CLASS, (Z, 0.0, np.zeros(3, dtype=int)), ValueError, "`cond` must be labels of shape"),
    "labels of other frames": (
        CLASS,
        (Z, 0.0, np.zeros((2, 2), dtype=int)),
        ValueError,
        "`cond` must be labels of shape",
    ),
    "labels as tokens": (CLASS, (Z, 0.0, TEXT), ValueError, "`cond` must be labels of shape"),
    "labels as floats": (
        CLASS,
        (Z, 0.0, np.zeros(2)),
        TypeError,
        "`cond` must be labels, of an integer dtype, got .* float64",
    ),
    "tokens without a mask": (TOKENS, (Z, 0.0, TEXT[0]), TypeError, "`cond` must be a pair .* got ndarray"),
    "tokens of another width": (
        TOKENS,
        (Z, 0.0, (np.zeros((2, 3, 4)), TEXT[1])),
        ValueError,
        "`cond` must have shapes",
    ),
    "tokens of another batch": (TOKENS, (Z[:1], 0.0, TEXT), ValueError, "`cond` must have shapes"),
    "another mask": (TOKENS, (Z, 0.0, (TEXT[0], TEXT[1][:, :2])), ValueError, "`cond` must have shapes"),
    "no token": (TOKENS, (Z, 0.0, (TEXT[0][:, :0], TEXT[1][:, :0])), ValueError, "`cond` must have shapes"),
}


@every_backend
@pytest.mark.parametrize("mistake", WRONG)
def test_an_error_names_the_argument(mistake: str, backend: str) -> None:
    changes, given, kind, words = WRONG[mistake]
    with wide(backend):
        model = model_of(replace(BASE, **changes), backend)
        if backend == "torch":
            kept = (bool, float, str, list, type(None))
            given = tuple(part if isinstance(part, kept) else put(backend, part) for part in given)
        words = words.replace("ndarray", "Tensor") if backend == "torch" else words
        words = words.replace("float64", r"(torch\.)?float64")
        with pytest.raises(kind, match=words):
            model(*given)


@every_backend
def test_a_model_of_no_condition_has_no_null(backend: str) -> None:
    with wide(backend), pytest.raises(ValueError, match="no null condition"):
        model_of(BASE, backend).null(None)


@pytest.mark.jax
def test_float64_on_jax_needs_its_64_bits() -> None:
    with pytest.raises(ValueError, match=r"`dtype` .*'float64'.*enable_x64"):
        build(preset("tiny"), "jax", dtype="float64")


@every_backend
def test_a_label_out_of_range_is_never_taken_for_another(backend: str) -> None:
    model = model_of(preset("tiny", condition="class", classes=3, attention=()), backend, "float32")
    z = draw(2, 1, 4, 4, 1).astype("float32")
    for outside in (4, -1):
        label = np.array([0, outside])
        words = rf"labels in \[0, 2\], or 3 for the null condition, got {min(label)} to {max(label)}"
        if backend == "jax":  # whose own arrays the host does not look into
            wrong = np.isnan(np.asarray(model(z, 0.0, importlib.import_module("jax").numpy.asarray(label)))).all(
                axis=(1, 2, 3, 4)
            )
            assert wrong.tolist() == [False, True]
        with pytest.raises(ValueError, match=words):
            model(*((z, 0.0, label) if backend == "jax" else put(backend, (z, np.zeros(2), label))))


@every_backend
def test_an_array_of_another_library_is_refused_in_words(backend: str) -> None:
    other = Z if backend == "torch" else pytest.importorskip("torch").from_numpy(Z)
    with pytest.raises(TypeError, match=r"unet3d: `z` must be a .*, got .*; unet3d.load"):
        model_of(BASE, backend, "float32")(other, 0.0)
