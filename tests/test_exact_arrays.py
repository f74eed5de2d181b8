"""Exact distributions on every library and dtype, at the ends of the levels, by matrix products; and bad input."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exact_cases import EVERY, INF, MEANS, Z, dense_components, every_data, every_library, every_scaling

from diffcore import exact, levels
from diffcore.exact import _components, _isotropic


@every_library
@every_data
def test_libraries_agree(make: Any, library: str) -> None:
    xp = importlib.import_module(library)
    data, log_snr = make(), np.array([-25.0, -1.0, 2.0, 20.0], dtype=np.float32)
    moved = xp.asarray(Z.astype(np.float32))
    near = data.to(moved)
    for call in (lambda d, z, at: d(z, at), lambda d, z, at: d.score(z, at), lambda d, z, at: d.log_likelihood(z, at)):
        want = call(data, Z, log_snr.astype(np.float64))
        for denoiser in (data, near):
            got = call(denoiser, moved, xp.asarray(log_snr))
            assert type(got) is type(moved)
            assert got.dtype == moved.dtype
            np.testing.assert_allclose(np.asarray(got), want, rtol=1e-3, atol=1e-3)


@every_data
def test_to_converts_once_and_other_arrays_still_work(make: Any) -> None:
    data = make()
    near = data.to(np.zeros(1, dtype=np.float32))
    leaf = (near.near.parts or near.near.fast)[0]
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(near(Z, 1.0), data(Z, 1.0))  # float64 data meets float64 parameters
    assert near.with_scaling("ve").near is near.near


@pytest.mark.torch
@every_data
def test_torch_half_precision_is_computed_in_float32(make: Any) -> None:
    import torch

    z = torch.asarray(Z).to(torch.bfloat16)
    found = make()(z, torch.asarray(1.0, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    np.testing.assert_allclose(found.double(), make()(z.double().numpy(), 1.0), rtol=1e-2, atol=1e-2)


@pytest.mark.torch
@every_data
def test_torch_meta_and_one_graph(make: Any) -> None:
    import torch

    data = make()
    assert data(torch.empty(4, 2, device="meta"), torch.empty(4, device="meta")).shape == (4, 2)
    z = torch.asarray(Z, dtype=torch.float32)
    torch.compiler.reset()
    graph = torch.compile(data.to(z).denoise, fullgraph=True, backend="eager")
    for log_snr in (0.0, 3.0):
        found = graph(z, torch.full((4,), log_snr))
        np.testing.assert_allclose(found, data(Z, log_snr), rtol=1e-4, atol=1e-5)


@every_scaling
@every_data
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_finite_at_both_ends(make: Any, scaling: str, dtype: Any) -> None:
    """At alpha = 0, or where sigma = inf, x-hat is the mean of the data; at sigma = 0 it is z / alpha, or a point."""
    data, z = make(scaling=scaling), (10.0 * Z).astype(dtype)
    mean = sum(weight * m for weight, m, _ in dense_components(data))
    with np.errstate(all="raise"):
        np.testing.assert_allclose(data(z, -INF), np.broadcast_to(mean, z.shape), rtol=1e-4, atol=1e-5)
        clean = data(z, np.full(4, INF, dtype=dtype))
    nearest = np.argmin(np.sum((z[:, None] - MEANS) ** 2, axis=-1), axis=1)
    want = MEANS[nearest] if isinstance(data, exact.Empirical) else z
    np.testing.assert_allclose(clean, want, rtol=1e-5, atol=1e-5)
    for log_snr in (-INF, -80.0, -20.0, 20.0, 43.0, 80.0):
        assert np.all(np.isfinite(data(z, log_snr)))
        assert np.all(np.isfinite(data.log_likelihood(z, log_snr)))
        assert np.all(np.isfinite(data.posterior_covariance(z, log_snr)))
    for log_snr in (-20.0, 20.0):
        assert np.all(np.isfinite(data.score(z, log_snr)))


@pytest.mark.parametrize("form", ["diagonal", "full", "low rank"])
def test_a_direction_without_variance_stays_at_the_mean(form: str) -> None:
    covariance: Any = {
        "diagonal": np.array([1.0, 0.0]),
        "full": np.diag([1.0, 0.0]),
        "low rank": exact.LowRank(np.array([[1.0], [0.0]]), 0.0),
    }[form]
    data = exact.Gaussian(np.array([0.5, -2.0]), covariance)
    for log_snr in (-INF, -5.0, 0.0, 30.0, INF):
        np.testing.assert_array_equal(data(Z, log_snr)[:, 1], -2.0)
    np.testing.assert_allclose(data(Z, INF)[:, 0], Z[:, 0], rtol=1e-12)
    np.testing.assert_array_equal(data.posterior_covariance(Z, INF), 0.0 * data.posterior_covariance(Z, 0.0))
    half = np.array([[INF, 0.0]] * 4)  # clean in one frame, noisy in the other, and singular
    np.testing.assert_allclose(data(Z, half), np.stack([Z[:, 0], np.full(4, -2.0)], axis=1), atol=1e-7)


LARGE: dict[str, Callable[[Any], Any]] = {
    "empirical": lambda m: exact.Empirical(m),
    "empirical, weighted": lambda m: exact.Empirical(m, weights=np.arange(1.0, 1.0 + len(m))),
    "mixture, number": lambda m: exact.Mixture(None, m, 0.1),
    "mixture, numbers": lambda m: exact.Mixture(None, m, np.linspace(0.1, 0.3, len(m))),
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("per_frame", [False, True], ids=["one level", "level per frame"])
def test_matrix_products_and_turns_change_nothing(make: Any, per_frame: bool, monkeypatch: Any) -> None:
    """Many isotropic components go through matrix products, many others in turns: the same numbers."""
    rng = np.random.default_rng(2)
    means = 5.0 + rng.normal(size=(7, 3, 2))
    z = 3.0 + rng.normal(size=(2, 3, 2))
    direct = make(means)
    monkeypatch.setattr(_isotropic, "CHUNK", 1)
    fast = make(means)
    assert direct.model.fast is None
    assert fast.model.fast is not None
    log_snr = np.array([[-2.0, 0.0, 3.0], [1.0, 4.0, -4.0]]) if per_frame else np.array([0.5, 3.0])
    for turns in (1 << 18, 12):
        monkeypatch.setattr(_components, "CHUNK", turns)
        for data in (fast, direct, fast.to(z)):
            np.testing.assert_allclose(data(z, log_snr), direct(z, log_snr), rtol=1e-9)
            np.testing.assert_allclose(data.score(z, log_snr), direct.score(z, log_snr), rtol=1e-8, atol=1e-9)
            np.testing.assert_allclose(data.log_likelihood(z, log_snr), direct.log_likelihood(z, log_snr), rtol=1e-9)
            rho = direct.responsibilities(z, log_snr)
            np.testing.assert_allclose(data.responsibilities(z, log_snr), rho, rtol=1e-8, atol=1e-12)
            covariance = direct.posterior_covariance(z, log_snr)
            np.testing.assert_allclose(data.posterior_covariance(z, log_snr), covariance, rtol=1e-8, atol=1e-9)


def test_float32_at_high_snr_finds_the_point_by_both_ways(monkeypatch: Any) -> None:
    """sigma = 4.5e-5: exponents of 1e9 that neither overflow nor lose the nearest point."""
    rng = np.random.default_rng(3)
    points = 3.0 + rng.normal(size=(50, 64)).astype(np.float32)
    alpha, sigma, _ = levels.level(20.0)
    z = (alpha * points + sigma * rng.normal(size=points.shape)).astype(np.float32)
    direct = exact.Empirical(points)
    monkeypatch.setattr(_isotropic, "CHUNK", 1)
    fast = exact.Empirical(points)
    assert fast.points.dtype == np.float32
    for data in (direct, fast):
        for log_snr in (20.0, 60.0, INF):
            np.testing.assert_allclose(data(z, log_snr), points, rtol=1e-6)
        want = exact.Empirical(points.astype(np.float64)).log_likelihood(z.astype(np.float64), 20.0)
        np.testing.assert_allclose(data.log_likelihood(z, 20.0), want, rtol=2e-3)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "not symmetric": (lambda: exact.Gaussian(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]])), "must be symmetric"),
    "negative eigenvalue": (lambda: exact.Gaussian(np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]])), "negative eig"),
    "negative variance": (lambda: exact.Gaussian(np.zeros(2), -1.0), "must not have a negative variance, got -1.0"),
    "shape": (lambda: exact.Gaussian(np.zeros(3), np.ones(2)), r"\(3,\).*LowRank.*, got shape \(2,\)"),
    "not finite": (lambda: exact.Gaussian(np.array([0.0, np.nan]), 1.0), "`mean` must be finite"),
    "low rank": (lambda: exact.Gaussian(np.zeros(3), exact.LowRank(np.ones((2, 1)), 1.0)), r"factor.*\(3, r\)"),
    "low rank rest": (
        lambda: exact.Gaussian(np.zeros(2), exact.LowRank(np.ones((2, 1)), np.array([1.0, 2.0]))),
        "must be equal in all rows",
    ),
    "scaling": (lambda: exact.Gaussian(np.zeros(2), 1.0, scaling="vp2"), "`scaling` must be 'flow', .*, got 'vp2'"),
    "weights": (lambda: exact.Mixture([1.0], MEANS, 1.0), r"`weights` must have shape \(3,\), got \(1,\)"),
    "weights all zero": (lambda: exact.Mixture(np.zeros(3), MEANS, 1.0), "not all zero"),
    "covariances": (lambda: exact.Mixture(None, MEANS, np.ones(2)), r"`covariances` must be .*, got shape \(2,\)"),
    "list": (lambda: exact.Mixture(None, MEANS, [1.0, 2.0]), "must have 3 entries, one per mean, got 2"),
    "no points": (lambda: exact.Empirical(np.zeros((0, 2))), r"`points` must be .*, got shape \(0, 2\)"),
    "data": (
        lambda: exact.Gaussian(np.zeros(2), 1.0)(np.zeros((1, 3)), 0.0),
        r"`z` must have shape \(B, 2\), got \(1, 3\)",
    ),
    "level": (lambda: exact.Gaussian(np.zeros(2), 1.0)(np.zeros((4, 2)), np.zeros(3)), "`log_snr` has shape"),
    "mask": (
        lambda: exact.Gaussian(np.zeros(2), 1.0).conditional(np.zeros(2), np.ones(3)),
        "`mask` must broadcast to the event",
    ),
    "mask of a batch": (
        lambda: exact.Gaussian(np.zeros(2), 1.0).conditional_denoise(Z, 0.0, Z, np.ones(3, dtype=bool)),
        "`mask` must broadcast to `z`",
    ),
    "observed": (
        lambda: exact.Gaussian(np.zeros(2), 1.0).conditional(np.array([np.nan, 0.0]), [True, False]),
        "under the mask",
    ),
    "degenerate low rank": (
        lambda: exact.Gaussian(np.zeros(2), exact.LowRank(np.ones((2, 1)))).conditional(np.zeros(2), [True, False]),
        "small variance",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_with_the_way_out(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.torch
def test_integers_and_mixed_libraries_are_refused() -> None:
    import torch

    data = exact.Gaussian(np.zeros(2), 1.0)
    with pytest.raises(TypeError, match=r"`z` has dtype int64"):
        data(np.zeros((1, 2), dtype=np.int64), 0.0)
    with pytest.raises(TypeError, match="`log_snr` is a torch array but `z` is a numpy"):
        data(Z, torch.zeros(4))


@pytest.mark.torch
def test_parameters_of_any_library_and_host_levels() -> None:
    """Parameters come from torch, with gradients on; levels may stay on the host."""
    import torch

    data = exact.Gaussian(torch.ones(2, requires_grad=True), torch.eye(2))
    found = data(torch.asarray(Z), np.array([0.0, 1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found, exact.Gaussian(np.ones(2), np.eye(2))(Z, np.array([0.0, 1.0, 2.0, 3.0])))


@pytest.mark.parametrize("make", [EVERY["gaussian, full"], EVERY["mixture, low rank"], EVERY["empirical"]])
def test_says_what_it_is(make: Any) -> None:
    assert "event=(2,)" in repr(make())
    assert len(repr(make())) < 100
