"""The space-time U-Net: three implementations of one function and its gradients, and the identities that it keeps.

Weights are drawn at random everywhere: those that a network starts from are zero where a residual branch closes, and would
hide what lies before. The battery runs over a table of configs and calls; a new case is a new row.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from libraries import FRAMEWORKS, JAX, TORCH, host

import diffcore as dc
from diffcore.unet3d import UNet3DConfig, build, numpy_unet, preset, structure
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
    "one level": Case({"multipliers": (1,), "attention": (8,), "mlp_layers": 3}, (2, 2, 3, 3), [1.0, -1.0]),
    "labels, one of them the null condition": Case(CLASS, (2, 3, 4, 4), [1.0, 2.0], np.array([2, 3])),
    "labels per frame": Case({**CLASS, "mlp_layers": 3}, (2, 3, 4, 4), 1.0, np.array([[0, 1, 3], [2, 2, 0]]), images=1),
    "no label": Case(CLASS, (2, 2, 4, 4), np.array(PER_FRAME)[:, :2]),
    "tokens, none of them in a sample": Case(TOKENS, (2, 5, 5, 4), PER_FRAME, MASK, images=1),
    "tokens per frame": Case(
        {**TOKENS, "mlp_layers": 1}, (2, 2, 4, 4), [0.0, 1.0], np.stack([MASK, ~MASK], 1), images=2
    ),
    "no tokens": Case(TOKENS, (2, 2, 4, 4), [-4.0, 4.0]),
}
BUSY = "tokens, none of them in a sample"
SLOPES = [  # every kind of weight and of call
    BUSY,
    "some frames are images, both ends",
    "one level",
    "three levels, no multiple of their stride",
    "labels per frame",
]
every_case = pytest.mark.parametrize("name", CASES)
every_backend = pytest.mark.parametrize("backend", FRAMEWORKS)
compiled_backends = pytest.mark.parametrize("backend", [TORCH, JAX])
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}  # a third of the time to compile


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

        run = jax.jit(lambda model, *given: model(*given, images=images), compiler_options=QUICK)
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

            y, gradients, slope = jax.jit(pull, compiler_options=QUICK)(
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
    return lambda self, name, h, sizes: time(self, name, h, sizes._replace(images=0))


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

    def counted(self: Any, tokens: Any, video: int) -> Any:
        rows.append(tokens.shape[0] * tokens.shape[2] // self.head_dim)
        return mixed(self, tokens, video)

    monkeypatch.setattr(module.TimeAttention, "_mixed", counted)
    monkeypatch.setattr(module, "MOST_ROWS", 40)
    assert error(say(config_of(BUSY), backend, *arguments(BUSY)), reference(BUSY)) < 1e-10
    assert max(rows) <= 40
    assert len(rows) > len([row for row in structure.rows(config_of(BUSY)) if row.attends])


# Training


@compiled_backends
def test_checkpointing_changes_no_gradient(backend: str) -> None:
    kept, again = (differentiate("one level", backend, checkpointing=checkpointing) for checkpointing in (False, True))
    np.testing.assert_allclose(again.z_gradient, kept.z_gradient, rtol=1e-10, atol=1e-10)
    for name, truth in kept.gradients.items():
        np.testing.assert_allclose(again.gradients[name], truth, rtol=1e-10, atol=1e-10, err_msg=name)


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


@pytest.mark.jax
def test_dropout_is_for_calls_with_a_key_on_jax() -> None:
    import jax
    from flax import nnx

    z, log_snr = put("jax", (draw(1, 2, 4, 4, 2), np.zeros(1)), "float32")
    model = model_of(replace(BASE, dropout=0.5), "jax", "float32")
    run = jax.jit(lambda key: model(z, log_snr, rngs=key), compiler_options=QUICK)
    first, second, again = (run(jax.random.key(seed)) for seed in (0, 1, 0))
    assert np.array_equal(first, again)
    assert not np.allclose(first, second)
    quiet = jax.jit(lambda: model(z, log_snr), compiler_options=QUICK)()
    np.testing.assert_allclose(host(quiet), say(BASE, "numpy", host(z), host(log_snr)), rtol=1e-4, atol=1e-4)
    rngs = nnx.Rngs(0)
    one, two = (run(rngs.dropout()) for _ in range(2))
    assert not np.allclose(one, two)


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


# Compiled


def _compiled(backend: str, tolerance: float = 1e-10) -> None:
    import torch

    torch._dynamo.reset()
    model = torch.compile(model_of(config_of(BUSY), "torch"), fullgraph=True, backend=backend)
    assert error(call(model, "torch", *arguments(BUSY)), reference(BUSY)) < tolerance


@pytest.mark.torch
def test_torch_compiles_the_network_as_one_graph() -> None:
    _compiled("eager")


@pytest.mark.torch
@pytest.mark.slow
def test_the_compiled_network_says_the_same_on_torch() -> None:
    _compiled("inductor")


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
    "z without channels": ({}, (Z[..., 0], 0.0), ValueError, "`z` has shape"),
    "z of other channels": ({}, (Z[..., :1], 0.0), ValueError, "`z` has shape"),
    "no frame": ({}, (Z[:, :0], 0.0), ValueError, "at least one frame"),
    "levels of another batch": ({}, (Z, np.zeros(3)), ValueError, "`log_snr` has shape"),
    "levels of other frames": ({}, (Z, np.zeros((2, 2))), ValueError, "`log_snr` has shape"),
    "more images than frames": ({}, (Z, 0.0, None, 4), ValueError, "`images` is 4"),
    "images below zero": ({}, (Z, 0.0, None, -1), ValueError, "`images` is -1"),
    "images as a bool": ({}, (Z, 0.0, None, True), ValueError, "`images` is True"),
    "images as a float": ({}, (Z, 0.0, None, 1.0), ValueError, "`images` is 1.0"),
    "a condition of none": ({}, (Z, 0.0, np.zeros(2, dtype=int)), ValueError, "`cond` is given"),
    "labels of another batch": (CLASS, (Z, 0.0, np.zeros(3, dtype=int)), ValueError, "`cond` has shape"),
    "labels of other frames": (CLASS, (Z, 0.0, np.zeros((2, 2), dtype=int)), ValueError, "`cond` has shape"),
    "labels as tokens": (CLASS, (Z, 0.0, TEXT), ValueError, "`cond` has shape"),
    "labels as floats": (CLASS, (Z, 0.0, np.zeros(2)), TypeError, "`cond` has dtype float64"),
    "tokens without a mask": (TOKENS, (Z, 0.0, TEXT[0]), ValueError, "`cond` is ndarray"),
    "tokens of another width": (TOKENS, (Z, 0.0, (np.zeros((2, 3, 4)), TEXT[1])), ValueError, "`cond` has tokens"),
    "tokens of another batch": (TOKENS, (Z[:1], 0.0, TEXT), ValueError, "`cond` has tokens"),
    "another mask": (TOKENS, (Z, 0.0, (TEXT[0], TEXT[1][:, :2])), ValueError, "`cond` has tokens"),
    "no token": (TOKENS, (Z, 0.0, (TEXT[0][:, :0], TEXT[1][:, :0])), ValueError, "`cond` has tokens"),
}


@every_backend
@pytest.mark.parametrize("mistake", WRONG)
def test_an_error_names_the_argument(mistake: str, backend: str) -> None:
    changes, given, kind, words = WRONG[mistake]
    with wide(backend):
        model = model_of(replace(BASE, **changes), backend)
        if backend == "torch":
            given = tuple(part if isinstance(part, bool | float) else put(backend, part) for part in given)
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
    with pytest.raises(ValueError, match=r"`dtype` is 'float64'.*enable_x64"):
        build(preset("tiny"), "jax", dtype="float64")


@every_backend
def test_a_label_out_of_range_is_never_taken_for_another(backend: str) -> None:
    model = model_of(preset("tiny", condition="class", classes=3, attention=()), backend, "float32")
    z, label = draw(1, 1, 4, 4, 1).astype("float32"), np.array([4])
    if backend == "jax":
        assert np.isnan(np.asarray(model(z, 0.0, label))).all()
        return
    if backend == "torch":
        torch = importlib.import_module("torch")
        z, label = torch.from_numpy(z), torch.from_numpy(label)
    with pytest.raises(IndexError):
        model(z, 0.0, label)
