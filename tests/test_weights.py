"""Weights: each is its formula, at 60 digits, on every library, and the same under every scaling."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from diffcore import weights
from diffcore.levels import level, scalings

SLOPE = -17.0
LOG_SNRS = np.linspace(-20.0, 20.0, 81)
LIBRARIES = [
    "numpy",
    "array_api_strict",
    pytest.param("torch", marks=pytest.mark.torch),
    pytest.param("jax.numpy", marks=pytest.mark.jax),
]

# name -> (weight, formula of lambda at any precision), the column w(lambda) of the table
TRUTH: dict[str, tuple[weights.Weight, Callable[[Any], Any]]] = {
    "x": (weights.X(), lambda l: mpmath.mpf(1)),
    "eps": (weights.Eps(), mpmath.exp),
    "v": (weights.V(), lambda l: 1 + mpmath.exp(l)),
    "flow": (weights.Flow(), lambda l: (1 + mpmath.exp(l / 2)) ** 2),
    "truncated": (weights.Truncated(), lambda l: max(mpmath.mpf(1), mpmath.exp(l))),
    "min_snr": (weights.MinSNR(5.0), lambda l: min(mpmath.exp(l), mpmath.mpf(5))),
    "soft_min_snr": (weights.SoftMinSNR(5.0), lambda l: 5 * mpmath.exp(l) / (5 + mpmath.exp(l))),
    "p2": (weights.P2(k=2.0, gamma=1.5), lambda l: mpmath.exp(l) / (2 + mpmath.exp(l)) ** 1.5),
    "sigmoid": (weights.Sigmoid(bias=-3.0), lambda l: mpmath.exp(-3) / (1 + mpmath.exp(-3 - l)) * -SLOPE),
    "edm": (weights.EDM(0.5), lambda l: (mpmath.exp(-l) + 0.25) / (mpmath.exp(-l) * 0.25)),
    "bound": (weights.VariationalBound(), lambda l: mpmath.exp(l) * -SLOPE / 2),
}


def namespace(name: str) -> Any:
    return importlib.import_module(name)


def ulps(found: Any, truth: list[Any], dtype: Any) -> float:
    eps = float(np.finfo(dtype).eps)
    pairs = zip(np.asarray(found), truth, strict=True)
    return max(float(abs((mpmath.mpf(float(f)) - t) / (t * eps))) for f, t in pairs)


def test_every_weight_is_in_the_table() -> None:
    concrete = [kind for _, kind in inspect.getmembers(weights, inspect.isclass) if issubclass(kind, weights.Weight)]
    assert {kind for kind in concrete if kind is not weights.Weight} == set(weights.table().values())
    assert set(weights.table()) == set(TRUTH)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TRUTH)
def test_weight_is_its_formula_at_60_digits(name: str, dtype: str) -> None:
    weight, formula = TRUTH[name]
    log_snr = LOG_SNRS.astype(dtype)
    found = weight(level(log_snr), np.full_like(log_snr, SLOPE))
    assert found.dtype == dtype
    with mpmath.workdps(60):
        truth = [formula(mpmath.mpf(float(at))) for at in log_snr]
        assert ulps(found, truth, dtype) <= 6.0


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,)])
def test_libraries_agree_and_keep_the_shape(library: str, name: str, shape: tuple[int, ...]) -> None:
    xp, (weight, _) = namespace(library), TRUTH[name]
    log_snr = np.full(shape, 1.5, dtype=np.float32)
    found = weight(level(xp.asarray(log_snr)), xp.asarray(np.full(shape, SLOPE, dtype=np.float32)))
    truth = weight(level(1.5), SLOPE)
    assert tuple(found.shape) == shape
    assert "float32" in str(found.dtype)
    np.testing.assert_allclose(np.asarray(found), np.broadcast_to(truth, shape), rtol=1e-6)


@pytest.mark.parametrize("name", TRUTH)
def test_weight_is_the_same_under_every_scaling(name: str) -> None:
    weight, _ = TRUTH[name]
    found = [weight(level(LOG_SNRS, scaling), SLOPE) for scaling in scalings()]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", TRUTH)
def test_weight_at_both_ends_is_its_limit(library: str, name: str) -> None:
    xp, (weight, formula) = namespace(library), TRUTH[name]
    with np.errstate(divide="ignore", over="ignore"):  # array_api_strict's own
        found = np.asarray(weight(level(xp.asarray(np.array([-np.inf, np.inf]))), SLOPE))
    limits = [float(formula(mpmath.mpf(end))) for end in (-400, 400)]
    assert not np.any(np.isnan(found))
    for end, limit in zip(found, limits, strict=True):
        assert end == pytest.approx(np.inf if limit > 1e100 else limit if limit > 1e-100 else 0.0, rel=1e-6)


def test_bound_is_minus_half_the_slope_of_the_snr() -> None:
    """With lambda = 5 - 10 t the SNR is e^(5 - 10 t), whose derivative is known."""
    t = np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(
        weights.VariationalBound()(level(5.0 - 10.0 * t), np.full_like(t, -10.0)),
        -0.5 * -10.0 * np.exp(5.0 - 10.0 * t),
        rtol=1e-14,
    )


@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
def test_sigmoid_is_twice_the_noise_space_form_and_soft_min_snr_times_the_slope(bias: float) -> None:
    """(1/2) sigmoid(b - l) (-dl/dt) on the noise (Kingma & Gao 2023) is half of e^b sigmoid(l - b) (-dl/dt) on x."""
    found = weights.Sigmoid(bias)(level(LOG_SNRS), SLOPE)
    on_noise = 0.5 / (1.0 + np.exp(LOG_SNRS - bias)) * -SLOPE
    np.testing.assert_allclose(found, 2.0 * on_noise * weights.Eps()(level(LOG_SNRS)), rtol=1e-13)
    np.testing.assert_allclose(found, weights.SoftMinSNR(np.exp(bias))(level(LOG_SNRS)) * -SLOPE, rtol=1e-13)


def test_weights_that_others_contain() -> None:
    at = level(LOG_SNRS)
    np.testing.assert_allclose(weights.EDM(1.0)(at), weights.V()(at), rtol=1e-14)
    np.testing.assert_allclose(weights.P2(gamma=0.0)(at), weights.Eps()(at), rtol=1e-14)
    np.testing.assert_allclose(weights.P2(k=5.0)(at) * 5.0, weights.SoftMinSNR(5.0)(at), rtol=1e-14)
    np.testing.assert_allclose(weights.Truncated()(at) * weights.MinSNR(1.0)(at), weights.Eps()(at), rtol=1e-14)


@pytest.mark.parametrize("name", TRUTH)
def test_half_precision_levels_are_widened(name: str) -> None:
    weight, _ = TRUTH[name]
    assert weight(level(np.ones(3, dtype=np.float16)), SLOPE).dtype == np.float32


@pytest.mark.jax
@pytest.mark.parametrize("name", TRUTH)
def test_weight_under_jit_vmap_and_grad_on_jax(name: str) -> None:
    import jax
    import jax.numpy as jnp

    weight, formula = TRUTH[name]
    of: Any = lambda log_snr: weight(level(log_snr), SLOPE * jnp.ones_like(log_snr))  # noqa: E731
    log_snr = jnp.asarray([-4.0, 0.5, 3.0])
    np.testing.assert_allclose(jax.jit(of)(log_snr), of(log_snr), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(of)(log_snr), of(log_snr), rtol=1e-6)
    slopes = jax.vmap(jax.grad(of))(log_snr)
    truth = [float(mpmath.diff(formula, float(at))) for at in log_snr]
    np.testing.assert_allclose(slopes, truth, rtol=1e-4, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("name", TRUTH)
def test_weight_under_func_transforms_and_on_the_meta_device_of_torch(name: str) -> None:
    import torch

    weight, formula = TRUTH[name]
    of: Any = lambda log_snr: weight(level(log_snr), SLOPE * torch.ones_like(log_snr))  # noqa: E731
    log_snr = torch.tensor([-4.0, 0.5, 3.0])
    slopes = torch.func.vmap(torch.func.grad(of))(log_snr)
    truth = [float(mpmath.diff(formula, float(at))) for at in log_snr]
    np.testing.assert_allclose(slopes.numpy(), truth, rtol=1e-4, atol=1e-6)
    assert of(log_snr.to("meta")).device.type == "meta"


@pytest.mark.parametrize("name", ["sigmoid", "bound"])
def test_a_missing_or_positive_slope_is_refused_with_the_way_out(name: str) -> None:
    weight, _ = TRUTH[name]
    with pytest.raises(ValueError, match=r"`slope` must be .*, got None; pass slope=schedule\.slope\(t\)"):
        weight(level(0.0))
    with pytest.raises(ValueError, match=r"`slope` must be d lambda / dt <= 0, got 3\.0"):
        weight(level(0.0), 3.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: weights.MinSNR(0.0),
        lambda: weights.SoftMinSNR(float("inf")),
        lambda: weights.P2(k=-1.0),
        lambda: weights.P2(gamma=float("nan")),
        lambda: weights.Sigmoid(bias=float("nan")),
        lambda: weights.EDM(sigma_data=-0.5),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], weights.Weight]) -> None:
    with pytest.raises(ValueError, match=r"weights\.\w+: `\w+` must be a (finite )?number"):
        make()


def test_weights_are_values() -> None:
    assert weights.MinSNR(5.0) == weights.MinSNR(gamma=5.0)
    assert hash(weights.V()) == hash(weights.V())
    assert repr(weights.Sigmoid(bias=-1.0)) == "Sigmoid(bias=-1.0)"


def test_integer_levels_are_refused() -> None:
    from diffcore.levels import Level

    with pytest.raises(TypeError, match=r"weights\.Eps: `level\.log_snr` has dtype int"):
        weights.Eps()(Level(np.ones(1), np.ones(1), np.zeros(1, dtype=int)))
