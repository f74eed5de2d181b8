"""Convolution and attention of the network in JAX: the derivatives of the forms that a CPU computes well are XLA's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
from diffcore.backends import cpu_threads  # noqa: E402
from diffcore.unet3d import jax_conv, jax_layers  # noqa: E402

jnp = jax.numpy
pytestmark = pytest.mark.jax

Conv = Callable[[Any, Any], Any]


def gradients(conv: Conv, h: Any, w: Any, dh: Any, dw: Any) -> Any:
    return jax.grad(lambda h, w: jnp.sin(conv(h, w)).sum(), (0, 1))(h, w)


def tangents(conv: Conv, h: Any, w: Any, dh: Any, dw: Any) -> Any:
    along_frames = jax.jvp(lambda h: conv(h, w), (h,), (dh,))
    return along_frames, jax.jvp(conv, (h, w), (dh, dw))


def gradient_of_tangent(conv: Conv, h: Any, w: Any, dh: Any, dw: Any) -> Any:
    """What MeanFlow trains on."""
    return jax.grad(lambda w: (jax.jvp(lambda h: jnp.tanh(conv(h, w)), (h,), (dh,))[1] ** 2).sum())(w)


def tangent_of_gradient(conv: Conv, h: Any, w: Any, dh: Any, dw: Any) -> Any:
    return jax.jvp(jax.grad(lambda w: jnp.sin(conv(h, w)).sum()), (w,), (dw,))[1]


def gradient_of_each(conv: Conv, h: Any, w: Any, dh: Any, dw: Any) -> Any:
    kept = jax.checkpoint(lambda h, w: jnp.sin(conv(h, w)).sum())
    return jax.vmap(jax.grad(kept, 1), in_axes=(0, None))(jnp.stack([h, dh]), w)


def plainly_enlarged(h: Any, weight: Any) -> Any:
    return jax_conv._plain(jnp.repeat(jnp.repeat(h, 2, -3), 2, -2), weight)


def enlarged(h: Any, weight: Any) -> Any:
    return jax_conv.enlarged(h, weight, (2 * h.shape[-3], 2 * h.shape[-2]))


@pytest.mark.parametrize(
    "pair", [(jax_conv.conv, jax_conv._plain), (enlarged, plainly_enlarged)], ids=["as it is", "enlarged"]
)
@pytest.mark.parametrize("derived", [gradients, tangents, gradient_of_tangent, tangent_of_gradient, gradient_of_each])
def test_derivatives_of_any_order_are_xlas(derived: Any, pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # with several, they are XLA's
    monkeypatch.setattr(jax_conv, "MOST", 200)  # five rows at once
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        frames, weights = [(2, 25, 23, 2)] * 2, [(3, 3, 2, 3)] * 2
        h, dh, w, dw = (jnp.asarray(rng.standard_normal(shape)) for shape in (*frames, *weights))
        assert h.shape[1] * h.shape[2] >= jax_conv.LEAST
        found, want = (jax.jit(derived, static_argnums=0)(conv, h, w, dh, dw) for conv in pair)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-9, atol=1e-9)


SAME, BEFORE, AFTER = ((1, 1), (1, 1)), ((1, 0), (1, 0)), ((0, 1), (0, 1))
WIDE = [
    ((6, 3, 5, 3), 3 * 5, SAME),
    ((4, 2, 7, 3), 2 * 7, BEFORE),
    ((4, 2, 7, 3), 4 * 7, AFTER),
    ((2, 4, 1, 3), 2, SAME),
]


@pytest.mark.parametrize(("shape", "row", "padding"), WIDE, ids=str)
def test_frames_side_by_side_are_those_apart(
    shape: tuple[int, ...], row: int, padding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ROW", row), ("WORK", 0)):
        monkeypatch.setattr(jax_conv, name, value)
    monkeypatch.setattr(cpu_threads, "count", lambda: 2)
    window = [1 + sum(pixels) for pixels in padding]
    assert jax_conv._together(shape, (*window, 3, 2)) == row // shape[2]
    assert jax_conv._together(shape, (*window, 128, 128)) == 1
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        h, dh, w, dw = (jnp.asarray(random.normal(size=size)) for size in (*[shape] * 2, *[(*window, 3, 2)] * 2))
        wide, apart = (
            jax.jit(gradients, static_argnums=0)(conv, h, w, dh, dw)
            for conv in (lambda h, w: jax_conv._beside(h, w, padding), lambda h, w: jax_conv._plain(h, w, 1, padding))
        )
        for one, other in zip(wide, apart, strict=True):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(5, 6), (6, 7), (6, 8)])
def test_each_pixel_is_made_four_before_the_convolution(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        h, w = jnp.asarray(rng.standard_normal((2, 3, 4, 5))), jnp.asarray(rng.standard_normal((3, 3, 5, 2)))
        want = jax_conv._plain(jnp.repeat(jnp.repeat(h, 2, 1), 2, 2)[:, : size[0], : size[1]], w)
        np.testing.assert_allclose(jax_conv.enlarged(h, w, size), want, rtol=1e-12, atol=1e-12)


def test_a_training_step_keeps_no_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose arrays are nine times as large as the frames."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    h, w = jnp.ones((8, 32, 32, 16)), jnp.ones((3, 3, 16, 16))
    step = jax.jit(jax.grad(lambda h, w: (jax_conv.conv(h, w) ** 2).sum(), 1))
    assert step.lower(h, w).compile().memory_analysis().temp_size_in_bytes < 5 * h.nbytes


def whole(q: Any, k: Any, v: Any) -> Any:
    logits = jnp.einsum("nihd,njhd->nhij", q, k) / q.shape[-1] ** 0.5
    return jnp.einsum("nhij,njhd->nihd", jax.nn.softmax(logits, axis=-1), v)


def test_attention_part_by_part_is_that_of_all_at_once_and_keeps_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_threads, "count", lambda: 4)  # heads at once
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # with several, all at once
    with jax.enable_x64(True):
        given = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, jax_layers.LEAST + 8, 2, 4)))
        found, want = (
            jax.jit(jax.value_and_grad(lambda q, k, v, f=f: jnp.sin(f(q, k, v)).sum(), (0, 1, 2)))(*given)
            for f in (jax_layers.attend, whole)
        )
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-9, atol=1e-9)
    q = jnp.ones((8, 512, 2, 8))
    step = jax.make_jaxpr(jax.grad(lambda q: (jax_layers.attend(q, q, q) ** 2).sum()))(q)
    assert 256 * 512 <= max(sizes(step.jaxpr)) < 16 * 512**2  # one set of all logits


def sizes(jaxpr: Any) -> Iterator[int]:
    """Yield the sizes of all arrays that a program computes, those of its parts too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for part in equation.params.values():
            for one in part if isinstance(part, tuple | list) else (part,):
                one = getattr(one, "jaxpr", one)
                if hasattr(one, "eqns"):
                    yield from sizes(one)
