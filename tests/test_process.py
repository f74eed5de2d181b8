"""The process: Chapman-Kolmogorov and Bayes, the posterior to sixteen units in the last place, and every bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import both_dtypes, every_framework, every_library, every_scaling, example, host, put

import diffcore as dc
from diffcore import likelihood, process, testing
from diffcore.levels import Gaussian, level
from diffcore.testing import precision, strategies

ULPS: dict[str, float] = {"a": 16.0, "b": 16.0, "variance": 16.0, "mean": 16.0}


@both_dtypes
@every_scaling
@every_framework
def test_the_posterior_is_right_to_sixteen_ulps_over_the_whole_range(library: str, scaling: str, dtype: str) -> None:
    with example(library, dtype) as like:
        worst = testing.check_posterior_precision(like, scaling, pairs=precision.pairs_over(dtype, 300))
    assert all(worst[name] < ULPS[name] for name in ULPS)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_the_reverse_variance_to_clean_data_is_no_nan(gamma: float) -> None:
    found = process.reverse_variance(level(np.inf), level(0.0), gamma)
    assert float(found) == pytest.approx(0.5 if gamma == 1.0 else 0.0)


@every_scaling
@every_framework
def test_between_equal_levels_nothing_happens_even_at_the_ends(library: str, scaling: str) -> None:
    log_snr = np.array([-np.inf, -1000.0, -80.0, 0.0, 1000.0, np.inf])
    with example(library, "float64") as like:
        at, z = level(put(log_snr, like), scaling=scaling), put(np.linspace(-2.0, 3.0, 18).reshape(6, 3), like)
        once, back = process.transition(z, s=at, t=at), process.posterior(z, z, s=at, t=at)
        variances = [process.reverse_variance(at, at, gamma) for gamma in (0.0, 0.3, 1.0)]
        for mean, variance in (once, back, *((z, each) for each in variances)):
            np.testing.assert_array_equal(host(mean), host(z))
            np.testing.assert_array_equal(host(variance), np.zeros_like(host(variance)))


@every_library
@settings(max_examples=10)
@given(drawn=st.data())
def test_everything_keeps_shape_and_dtype_for_every_lead(library: str, drawn: st.DataObject) -> None:
    shape = drawn.draw(strategies.shapes())
    lead = drawn.draw(strategies.leads(shape))
    with example(library) as like:
        kind = drawn.draw(strategies.dtypes(dc._array.library(like)))
        x = testing._arrays.put(np.ones(shape), like, dtype=kind)
        s, t = (level(put(np.full(lead, at), like)) for at in (2.0, -1.0))
        z = process.diffuse(x, x, t)
        for gaussian in (process.posterior(z, x, s=s, t=t), process.transition(x, s=s, t=t), process.marginal(x, t)):
            assert (tuple(gaussian.mean.shape), gaussian.mean.dtype) == (shape, kind)
            assert len(gaussian.variance.shape) == len(shape)
            assert np.broadcast_shapes(tuple(gaussian.variance.shape), shape) == shape
        assert (tuple(z.shape), z.dtype) == (shape, kind)
        want = float(level(-1.0).alpha + level(-1.0).sigma)
        np.testing.assert_allclose(host(z), want, rtol=0.02)


@every_library
def test_levels_align_with_the_leading_axes(library: str) -> None:
    with example(library) as like:
        x = np.arange(24.0).reshape(2, 3, 4) / 24.0
        eps = x[::-1].copy()
        for lead in ((2,), (1,), (2, 3), (2, 1)):
            at = np.linspace(-3.0, 3.0, math.prod(lead)).reshape(lead)
            found = process.diffuse(put(x, like), put(eps, like), level(put(at, like)))
            wide = np.broadcast_to(at.reshape(lead + (1,) * (3 - len(lead))), x.shape)
            want = np.sqrt(1.0 / (1.0 + np.exp(-wide))) * x + np.sqrt(1.0 / (1.0 + np.exp(wide))) * eps
            np.testing.assert_allclose(host(found), want, rtol=1e-6, atol=1e-7)


@every_library
@settings(max_examples=8)
@given(drawn=st.data())
def test_two_levels_of_different_rank_align_by_their_leading_axes(library: str, drawn: st.DataObject) -> None:
    """Sample by sample and frame by frame, each result is that of two numbers."""
    batch, frames = drawn.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    leads = st.sampled_from([(), (batch,), (batch, frames), (batch, 1), (1, frames)])
    lead_s, lead_t = drawn.draw(leads), drawn.draw(leads)
    values = [np.linspace(a, a + 4.0, math.prod(lead)).reshape(lead) for a, lead in ((1.0, lead_s), (-5.0, lead_t))]
    with example(library) as like:
        s, t = (level(put(at, like)) for at in values)
        wide = [np.broadcast_to(at.reshape(at.shape + (1,) * (2 - at.ndim)), (batch, frames)) for at in values]
        z = put(np.ones((batch, frames, 2)), like)
        got = {
            "transition": process.transition(z, s=s, t=t).variance,
            "mean": process.posterior(z, 0.5 * z, s=s, t=t).mean,
            "posterior": process.posterior(z, z, s=s, t=t).variance,
            "reverse": process.reverse_variance(s, t, 0.3),
            "novelty": process.novelty(s, t),
            "weight": likelihood.discrete_weight(s, t, 7),
        }
        for i, j in np.ndindex(batch, frames):
            one, at_s, at_t = np.ones((1, 1, 2)), *(level(float(at[i, j])) for at in wide)
            want = {
                "transition": process.transition(one, s=at_s, t=at_t).variance,
                "mean": process.posterior(one, 0.5 * one, s=at_s, t=at_t).mean,
                "posterior": process.posterior(one, one, s=at_s, t=at_t).variance,
                "reverse": process.reverse_variance(at_s, at_t, 0.3),
                "novelty": process.novelty(at_s, at_t),
                "weight": likelihood.discrete_weight(at_s, at_t, 7),
            }
            for name, truth in want.items():
                found = host(got[name])
                found = found[tuple(min(k, n - 1) for k, n in zip((i, j), found.shape, strict=False))]
                np.testing.assert_allclose(np.ravel(found)[0], np.ravel(truth)[0], rtol=1e-5, err_msg=name)


@pytest.mark.torch
def test_on_the_meta_device_everything_stays_there() -> None:
    import torch

    x = torch.zeros(2, 3, 4, device="meta", dtype=torch.bfloat16)
    s, t = (level(torch.zeros(2, device="meta")) for _ in range(2))
    for gaussian in (process.posterior(x, x, s=s, t=t), process.transition(x, s=s, t=t), process.marginal(x, t)):
        assert (gaussian.mean.device.type, gaussian.mean.dtype) == ("meta", torch.bfloat16)
        assert (gaussian.variance.device.type, gaussian.variance.dtype) == ("meta", torch.float32)


def test_half_precision_keeps_small_noise_and_rounds_once() -> None:
    """alpha and sigma are not rounded to half precision before they meet the data."""
    x, eps = np.zeros((1, 2), np.float16), np.ones((1, 2), np.float16)
    found = process.diffuse(x, eps, level(20.0))
    np.testing.assert_array_equal(found, np.float16(level(20.0).sigma))
    assert found[0, 0] > 0.0


@every_scaling
def test_at_both_ends_everything_is_finite(scaling: str) -> None:
    x, clean, noise = np.full((1, 2), 0.5), level(np.inf, scaling), level(-np.inf, scaling)
    np.testing.assert_array_equal(process.posterior(x, 2.0 * x, s=clean, t=level(0.0, scaling)).mean, 2.0 * x)
    if scaling == "ve":
        return
    found = process.posterior(x, x, s=level(1.0, scaling), t=noise)  # nothing is known of z_s but x
    np.testing.assert_allclose(found.mean, level(1.0, scaling).alpha * x)
    np.testing.assert_allclose(found.variance, level(1.0, scaling).sigma ** 2)
    np.testing.assert_array_equal(process.transition(x, s=clean, t=noise).variance, 1.0)


def test_kl_is_the_expected_logarithm_of_the_ratio() -> None:
    """By Gauss-Hermite quadrature, which is exact for a quadratic."""
    p, q = Gaussian(np.full((1, 1), 0.3), np.full((1, 1), 0.2)), Gaussian(np.full((1, 1), -1.0), np.full((1, 1), 1.7))
    nodes, share = np.polynomial.hermite_e.hermegauss(5)
    points = (p.mean + np.sqrt(p.variance) * nodes).T
    ratio = process.log_density(points, Gaussian(p.mean[0], p.variance[0]))
    ratio = ratio - process.log_density(points, Gaussian(q.mean[0], q.variance[0]))
    assert float(process.kl(p, q)[0]) == pytest.approx(float(share @ ratio / share.sum()), rel=1e-13)
    assert float(process.kl(p, p)[0]) == 0.0


@pytest.mark.jax
def test_on_jax_the_process_goes_under_jit_vmap_and_grad() -> None:
    import jax
    import jax.numpy as jnp

    def mean(z: Any, l: Any) -> Any:
        return process.posterior(z, 0.5 * z, s=level(l + 1.0), t=level(l)).mean

    z, at = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), jnp.asarray([-2.0, 0.0, 3.0])
    plain = host(mean(z, at))
    np.testing.assert_allclose(host(jax.jit(mean)(z, at)), plain, rtol=1e-5)
    np.testing.assert_allclose(host(jax.vmap(lambda z, l: mean(z[None], l)[0])(z, at)), plain, rtol=1e-5)
    a, b, _ = (host(part) for part in process.posterior_coefficients(level(at + 1.0), level(at)))
    slope = jax.grad(lambda z: mean(z, at).sum())(z)
    np.testing.assert_allclose(host(slope), np.broadcast_to((a + 0.5 * b)[:, None], (3, 4)), rtol=1e-5)


@pytest.mark.torch
def test_on_torch_the_process_goes_under_func_and_one_graph() -> None:
    import torch

    def mean(z: Any, l: Any) -> Any:
        return process.posterior(z, 0.5 * z, s=level(l + 1.0), t=level(l)).mean

    z, at = torch.linspace(-1.0, 1.0, 12).reshape(3, 4), torch.tensor([-2.0, 0.0, 3.0])
    plain = host(mean(z, at))
    np.testing.assert_allclose(host(torch.func.vmap(lambda z, l: mean(z[None], l)[0])(z, at)), plain, rtol=1e-6)
    a, b, _ = (host(part) for part in process.posterior_coefficients(level(at + 1.0), level(at)))
    slope = torch.func.grad(lambda z: mean(z, at).sum())(z)
    np.testing.assert_allclose(host(slope), np.broadcast_to((a + 0.5 * b)[:, None], (3, 4)), rtol=1e-5)
    graph = torch.compile(mean, fullgraph=True, backend="eager")
    np.testing.assert_allclose(host(graph(z, at)), plain, rtol=1e-6)


X = np.zeros((2, 3))
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: process.diffuse(np.zeros((2, 3), int), X, level(0.0)), TypeError, "`x` has dtype int64.*cast it first"),
    (
        lambda: process.diffuse(X, np.zeros((2, 4)), level(0.0)),
        ValueError,
        r"`x` and `eps` must have equal shapes, got \(2, 3\) and \(2, 4\)",
    ),
    (
        lambda: process.diffuse(X, X, level(np.zeros(3))),
        ValueError,
        r"shape \(3,\).*does not align.*\(2, 3\).*\(B, T\)",
    ),
    (lambda: process.diffuse(X, X, level(np.zeros((2, 3, 1)))), ValueError, "does not align"),
    (
        lambda: process.posterior(X, X, s=level(-1.0), t=level(1.0)),
        ValueError,
        r"`s` must .* >= 1\.0.*, got -1\.0; exchange",
    ),
    (
        lambda: process.transition(X, s=level(-1.0), t=level(1.0)),
        ValueError,
        "that of `t`, the noisier level.*exchange them",
    ),
    (
        lambda: process.reverse_variance(level(1.0), level(0.0), 1.5),
        ValueError,
        r"`gamma` must be a number in \[0, 1\], got 1\.5",
    ),
    (lambda: process.reverse_variance(level(0.0), level(1.0), 0.5), ValueError, "exchange them"),
    (
        lambda: process.reverse_variance(level(np.array([2.0, 0.0])), level(np.array([1.0, 1.0])), 0.5),
        ValueError,
        r"`s` must have a log-SNR >= 1.0, that of `t`, the noisier level at \[1\], got 0.0; exchange them",
    ),
    (lambda: process.diffuse("x", X, level(0.0)), TypeError, "`x` takes an array"),
    (
        lambda: process.novelty(level(np.zeros(3)), level(np.zeros((2, 3)))),
        ValueError,
        r"`s` has shape \(3,\) and `t` has \(2, 3\), which do not align by their leading axes",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_refused_with_the_argument_and_the_way_out(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert str(caught.value).startswith("process.")


@pytest.mark.torch
def test_mixed_libraries_are_refused_naming_both() -> None:
    import torch

    with pytest.raises(TypeError, match=r"`eps` is a numpy array but `x` is a torch array; convert one of them"):
        process.diffuse(torch.zeros(2, 3), X, level(0.0))
    with pytest.raises(TypeError, match=r"`level` is a torch array but `x` is a numpy array"):
        process.diffuse(X, X, level(torch.zeros(2)))
