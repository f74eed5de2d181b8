"""Weights of guidance: numbers, one for each sample or frame, traced, by the noise level; and rescaling."""

from typing import Any, cast

import numpy as np
import pytest
from test_guidance import LIBRARIES, Counted, Z, namespace

from diffcore import guidance

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_the_weight_may_follow_the_noise_level(library: str, shape: tuple[int, ...]) -> None:
    xp, log_snr = namespace(library), RNG.normal(size=shape)
    guided = guidance.classifier_free(Counted(2.0), Counted(-1.0), weight=lambda at: at * at)
    found = guided(xp.asarray(Z), xp.asarray(log_snr))
    w = (log_snr**2).reshape(shape + (1,) * (3 - len(shape)))
    np.testing.assert_allclose(np.asarray(found), (1 + w) * 2.0 * Z + w * Z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_rescale_brings_the_deviation_back(library: str) -> None:
    xp = namespace(library)
    z, log_snr = xp.asarray(Z), xp.asarray(np.zeros(2))
    noise = RNG.normal(size=Z.shape)
    c, u = (lambda z, _: z + 1.0), (lambda z, _: -z + xp.asarray(noise))
    plain = np.asarray(guidance.classifier_free(c, u, weight=4.0)(z, log_snr))
    full = np.asarray(guidance.classifier_free(c, u, weight=4.0, rescale=1.0)(z, log_snr))
    half = np.asarray(guidance.classifier_free(c, u, weight=4.0, rescale=0.5)(z, log_snr))
    np.testing.assert_allclose(full.std(axis=(1, 2)), Z.std(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(half, 0.5 * full + 0.5 * plain, rtol=1e-5)
    unit_full, unit_plain = (part / part.std(axis=(1, 2), keepdims=True) for part in (full, plain))
    np.testing.assert_allclose(unit_full, unit_plain, rtol=1e-4)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3,)])
def test_rescale_leaves_a_sample_without_deviation_as_it_is(library: str, shape: tuple[int, ...]) -> None:
    xp = namespace(library)
    guided = guidance.classifier_free(lambda z, _: z, lambda z, _: 0.5 * z, weight=2.0, rescale=1.0)
    np.testing.assert_array_equal(np.asarray(guided(xp.full(shape, 2.0), 0.0)), np.full(shape, 4.0))


@pytest.mark.parametrize("library", LIBRARIES)
def test_rescale_of_a_constant_condition_has_its_deviation_0(library: str) -> None:
    xp = namespace(library)
    guided = guidance.classifier_free(lambda z, _: xp.ones_like(z), lambda z, _: z, weight=2.0, rescale=1.0)
    found = np.asarray(guided(xp.asarray(Z), 0.0))
    np.testing.assert_allclose(found, 0.0 * Z, atol=1e-12)


@pytest.mark.jax
@pytest.mark.parametrize(("z", "own"), [(np.full((2, 3), 2.0), 1.0), (Z, 0.0)], ids=["constant", "any"])
def test_on_jax_the_gradient_of_rescale_is_finite_where_a_deviation_is_0(z: Any, own: float) -> None:
    import jax
    import jax.numpy as jnp

    guided = guidance.classifier_free(lambda z, _: own * z + 1.0, lambda z, _: 0.5 * z, weight=2.0, rescale=1.0)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(guided(z, 0.0))))(jnp.asarray(z))
    assert np.all(np.isfinite(gradient))
    if np.ptp(z) == 0.0:  # the ratio is 1 and flat there
        np.testing.assert_allclose(gradient, 3.0 * own - 1.0, rtol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("own", [0.0, 1.0])
def test_on_torch_the_gradient_of_rescale_is_finite_where_a_deviation_is_0(own: float) -> None:
    import torch

    guided = guidance.classifier_free(lambda z, _: own * z + 1.0, lambda z, _: 0.5 * z, weight=2.0, rescale=1.0)
    for z in (torch.full((2, 3), 2.0), torch.asarray(Z)):
        assert torch.all(torch.isfinite(torch.func.grad(lambda z: guided(z, 0.0).sum())(z)))


WEIGHTS = {
    "number": 2.0,
    "NumPy number": np.float32(2.0),
    "one": np.array(2.0),
    "samples": np.array([0.0, 3.0]),
    "one for all samples": np.array([[0.0, 1.0, 2.0]]),
    "frames": np.arange(6.0).reshape(2, 3),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("interval", [None, (-1.0, 1.0), (0.5, 1.0)])
def test_the_weight_may_be_a_number_for_all_or_one_for_each(library: str, name: str, interval: Any) -> None:
    xp, weight = namespace(library), cast(Any, WEIGHTS[name])
    wide = np.reshape(weight, np.shape(weight) + (1,) * (3 - np.ndim(weight))) if np.ndim(weight) else weight
    truth = 2.0 * Z + (wide * 3.0 * Z if interval is None or interval[0] < 0.0 else 0.0)
    for given in (weight, xp.asarray(weight)) if isinstance(weight, np.ndarray) else (weight,):
        for setting in ({"weight": given}, {"scale": given + 1.0}):
            guided = guidance.classifier_free(Counted(2.0), Counted(-1.0), **setting, interval=interval)
            found = guided(xp.asarray(Z), xp.zeros(2))
            np.testing.assert_allclose(np.asarray(found), truth, rtol=1e-5, atol=1e-6)
            assert (guided.apart(xp.asarray(Z), 0.0) is None) == (
                interval is not None or not isinstance(guided.weight, float)
            )


@pytest.mark.torch
def test_gradients_reach_a_weight_that_is_a_tensor() -> None:
    import torch

    weight = torch.tensor(2.0, requires_grad=True)
    z = torch.asarray(Z)
    guidance.classifier_free(Counted(2.0), Counted(-1.0), weight=weight)(z, 0.0).sum().backward()
    torch.testing.assert_close(cast(Any, weight.grad).double(), 3.0 * z.sum())
    graph = torch.compile(
        lambda z, w: guidance.classifier_free(lambda z, _: z, lambda z, _: -z, weight=w)(z, 0.0),
        fullgraph=True,
        backend="eager",
    )
    torch.testing.assert_close(graph(z, torch.tensor([1.0, 0.0])), z * torch.tensor([3.0, 1.0])[:, None, None])


@pytest.mark.jax
def test_on_jax_the_weight_may_be_traced_and_another_value_is_no_new_trace() -> None:
    import jax
    import jax.numpy as jnp

    import diffcore as dc

    traces: list[int] = []

    def net(z: Any, log_snr: Any) -> Any:
        traces.append(1)
        return 0.5 * z

    def run(weight: Any, *, compile: bool = True) -> Any:
        guided = guidance.classifier_free(net, half, weight=weight)
        return dc.sample(guided, plan, z, prediction="v", compile=compile)

    half = lambda z, _: 0.25 * z  # noqa: E731
    plan, z = dc.samplers.ddim(dc.schedules.Cosine(), steps=4), jnp.ones((2, 3))
    kept = [run(jnp.asarray(w)) for w in ([0.0, 2.0], [1.0, 3.0])]
    assert len(traces) == 1
    alone = [np.asarray(run(w, compile=False)) for w in (0.0, 2.0, 1.0, 3.0)]
    np.testing.assert_allclose(np.concatenate(kept), [row[k % 2] for k, row in enumerate(alone)], rtol=1e-5)
    at = jax.jit(lambda w: run(w, compile=False))(2.0)
    np.testing.assert_allclose(at, alone[1], rtol=1e-5)
    guided = guidance.classifier_free(net, half, weight=jnp.asarray([0.0, 2.0]))
    tripled = jax.tree.map(lambda part: 3.0 * part if hasattr(part, "dtype") else part, guided)
    np.testing.assert_array_equal(tripled.weight, [0.0, 6.0])
    assert jax.tree.map(lambda part: part, guidance.classifier_free(net, half, weight=2.0)).weight == 2.0


def test_a_weight_that_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`weight` has shape \(3,\), which does not align with the leading axes"):
        guidance.classifier_free(Counted(1.0), Counted(0.0), weight=np.ones(3))(Z, 0.0)
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"`weight` is a torch array but `the prediction` is a numpy array"):
        guidance.classifier_free(Counted(1.0), Counted(0.0), weight=torch.ones(2))(Z, 0.0)
