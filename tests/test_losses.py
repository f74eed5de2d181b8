"""Losses: one number whatever the network predicts, finite wherever it has a limit, and the gradient it should have."""

import functools
import importlib
import itertools
from typing import Any

import mpmath
import numpy as np
import pytest

from diffcore import losses, predictions, process, weights
from diffcore.levels import Level, level, scalings

SLOPE = -17.0
WEIGHTS: dict[str, weights.Weight] = {
    name: weights.Sigmoid(bias=-1.0) if name == "sigmoid" else kind() for name, kind in weights.table().items()
}
PREDICTIONS = sorted(predictions.table())
LIBRARIES = [
    "numpy",
    "array_api_strict",
    pytest.param("torch", marks=pytest.mark.torch),
    pytest.param("jax.numpy", marks=pytest.mark.jax),
]
RNG = np.random.default_rng(0)
X, EPS = RNG.normal(size=(2, 3, 4, 5)), RNG.normal(size=(2, 3, 4, 5))
X_HAT = X + 0.1 * RNG.normal(size=X.shape)


def namespace(name: str) -> Any:
    return importlib.import_module(name)


def on(xp: Any, *arrays: Any) -> list[Any]:
    return [xp.asarray(array) for array in arrays]


def diverges(prediction: str, weight: str, end: float) -> bool:
    """Whether w (dx-hat/dy)^2 has no finite limit: w there, against the error of x-hat per error of the prediction."""
    limit = float(WEIGHTS[weight](level(end), SLOPE))
    return bool(prediction == "x" and np.isinf(limit)) if end > 0 else prediction in ("eps", "score") and limit > 0.0


@pytest.mark.parametrize("scaling", scalings())
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_loss_is_equal_whatever_the_network_predicts(weight: str, scaling: str) -> None:
    at = level(np.array([[-2.0, 0.1, 3.0], [7.0, -5.0, 1.0]]), scaling)
    z = process.diffuse(X, EPS, at)
    w = WEIGHTS[weight](at, SLOPE)[:, :, None, None]
    truth = np.mean(w * (X - X_HAT) ** 2, axis=(1, 2, 3))
    for prediction in PREDICTIONS:
        y = predictions.convert(X_HAT, z, at, source="x", target=prediction)
        found = losses.denoising(y, X, EPS, at, prediction=prediction, weight=WEIGHTS[weight], slope=SLOPE)
        np.testing.assert_allclose(found, truth, rtol=1e-9, err_msg=prediction)


def test_the_loss_is_equal_for_a_row_of_ones_own_and_a_weight_of_ones_own() -> None:
    at = level(np.array([-2.0, 3.0]))
    row = lambda xp, here: predictions.Row(-here.sigma * 2.0, here.alpha + 1.0, xp.ones_like(here.alpha))  # noqa: E731
    y = losses.target(X, EPS, at, prediction=row)
    z = process.diffuse(X, EPS, at)
    error = predictions.convert(y + 0.1, z, at, source=row, target="x") - X
    weight = lambda here, slope: np.exp(-here.log_snr)  # noqa: E731
    found = losses.denoising(y + 0.1, X, EPS, at, prediction=row, weight=weight)
    np.testing.assert_allclose(found, np.exp(-at.log_snr) * np.mean(error**2, axis=(1, 2, 3)), rtol=1e-10)


@pytest.mark.parametrize("scaling", ["vp", "flow"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_has_no_loss_and_the_truth_is_the_row(prediction: str, scaling: str) -> None:
    at = level(np.array([-3.0, 2.0]), scaling)
    y = losses.target(X, EPS, at, prediction=prediction)
    z = process.diffuse(X, EPS, at)
    np.testing.assert_allclose(predictions.convert(X, z, at, source="x", target=prediction), y)
    found = losses.denoising(y, X, EPS, at, prediction=prediction)
    np.testing.assert_allclose(found, 0.0, atol=1e-25)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
@pytest.mark.parametrize("prediction", ["x", "eps", "v", "score", "flow"])
def test_the_factor_at_60_digits(prediction: str, scaling: str, dtype: str) -> None:
    """w (sigma / D)^2 from its definition, D = alpha b - sigma a."""
    log_snr = np.linspace(-20.0, 20.0, 41).astype(dtype)
    eps = float(np.finfo(dtype).eps)
    with mpmath.workdps(60):
        for name, weight in WEIGHTS.items():
            found = losses.factor(level(log_snr, scaling), prediction=prediction, weight=weight, slope=SLOPE)
            assert found.dtype == dtype
            for l, f in zip(log_snr, found, strict=True):
                ratio = _error_ratio(mpmath.mpf(float(l)), scaling, prediction)
                truth = _exact_weight(name, mpmath.mpf(float(l))) * ratio**2
                assert abs(mpmath.mpf(float(f)) / truth - 1) <= 12 * eps, (name, l)


def _error_ratio(l: Any, scaling: str, prediction: str) -> Any:
    c, s = 1 / mpmath.sqrt(1 + mpmath.exp(-l)), 1 / mpmath.sqrt(1 + mpmath.exp(l))
    norm = {"vp": 1, "ve": 1 / c, "flow": 1 / (c + s)}[scaling]
    alpha, sigma = c * norm, s * norm
    a, b = {"x": (1, 0), "eps": (0, 1), "v": (-sigma, alpha), "score": (0, -1), "flow": (-1, 1)}[prediction]
    return sigma / (alpha * b - sigma * a)


def _exact_weight(name: str, l: Any) -> Any:
    e, g = mpmath.exp(l), mpmath.mpf(5)
    return {
        "x": mpmath.mpf(1),
        "eps": e,
        "v": 1 + e,
        "flow": (1 + mpmath.sqrt(e)) ** 2,
        "truncated": max(mpmath.mpf(1), e),
        "min_snr": min(e, g),
        "soft_min_snr": g * e / (g + e),
        "p2": e / (1 + e),
        "sigmoid": mpmath.exp(-1) / (1 + mpmath.exp(-1 - l)) * -SLOPE,
        "edm": 4 + e,
        "bound": e * -SLOPE / 2,
    }[name]


@pytest.mark.parametrize("scaling", ["vp", "flow"])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_finite_and_the_limit_at_both_ends(prediction: str, library: str, scaling: str) -> None:
    """At lambda = +-inf the loss is that of lambda = +-60, or refused by name where it has no finite limit."""
    xp = namespace(library)
    for (name, weight), end in itertools.product(WEIGHTS.items(), (-np.inf, np.inf)):
        at, near = (level(xp.asarray(np.array([point])), scaling) for point in (end, np.sign(end) * 60.0))
        x, eps, y = on(xp, X[:1].astype(np.float32), EPS[:1].astype(np.float32), X_HAT[:1].astype(np.float32))
        settings: Any = {"prediction": prediction, "weight": weight, "slope": SLOPE}
        if diverges(prediction, name, end):
            if library == "numpy":
                with pytest.raises(
                    ValueError, match=r"give .* a finite factor at (alpha|sigma) = 0.*use prediction='v'"
                ):
                    losses.denoising(y, x, eps, at, **settings)
            else:
                with np.errstate(divide="ignore"):  # array_api_strict's own
                    assert np.all(np.isinf(np.asarray(losses.factor(at, **settings))))
            continue
        factor = np.asarray(losses.factor(at, **settings))
        np.testing.assert_allclose(factor, np.asarray(losses.factor(near, **settings)), rtol=1e-5, atol=1e-20)
        found = np.asarray(losses.denoising(y, x, eps, at, **settings))
        assert np.all(np.isfinite(found)), name
        if prediction == "score" and end > 0:  # sigma y + eps: the limit needs y itself to stay finite, which it does
            np.testing.assert_allclose(found, factor * np.mean(np.asarray(eps) ** 2), rtol=1e-5)


def test_plain_losses_have_the_factor_one_at_every_level() -> None:
    log_snr = np.concatenate([[-np.inf, -800.0, -90.0], np.linspace(-20, 20, 41), [90.0, 800.0, np.inf]])
    for dtype in (np.float32, np.float64):
        at = level(log_snr.astype(dtype))
        assert np.all(losses.factor(at, prediction="eps", weight=weights.Eps()) == 1.0)
        eps = float(np.finfo(dtype).eps)
        np.testing.assert_allclose(losses.factor(at, prediction="v", weight=weights.V()), 1.0, rtol=4 * eps)
        found = losses.factor(at, prediction=predictions.edm(0.5), weight=weights.EDM(0.5))
        np.testing.assert_allclose(found, 1.0, rtol=8 * eps)
        for scaling in ("vp", "flow"):
            found = losses.factor(level(log_snr.astype(dtype), scaling), prediction="flow", weight=weights.Flow())
            np.testing.assert_allclose(found, 1.0, rtol=8 * eps)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("shape", [(), (2,), (1,), (2, 3), (1, 3), (2, 1)])
def test_levels_lead(library: str, shape: tuple[int, ...]) -> None:
    xp = namespace(library)
    log_snr = np.linspace(-2.0, 2.0, int(np.prod(shape, dtype=int))).reshape(shape)
    full = np.broadcast_to(log_snr.reshape(shape + (1,) * (2 - len(shape))), (2, 3))
    x, eps, y = on(xp, X, EPS, X_HAT)
    found = losses.denoising(y, x, eps, level(xp.asarray(log_snr)), prediction="v", weight=weights.V())
    truth = losses.denoising(X_HAT, X, EPS, level(full), prediction="v", weight=weights.V())
    np.testing.assert_allclose(np.asarray(found), truth, rtol=1e-5)


def test_a_batch_is_its_samples_one_by_one() -> None:
    at = level(np.array([-2.0, 3.0]))
    together = losses.denoising(X_HAT, X, EPS, at, prediction="v")
    for i in range(2):
        alone = losses.denoising(X_HAT[i : i + 1], X[i : i + 1], EPS[i : i + 1], level(at.log_snr[i]), prediction="v")
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-15)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 4), (2,)])
def test_nothing_to_count_is_zero_not_nan(shape: tuple[int, ...]) -> None:
    empty = np.zeros(shape)
    assert losses.denoising(empty, empty, empty, level(0.0), prediction="v").tolist() == [0.0] * shape[0]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_mask_counts_only_what_it_marks_and_never_reads_the_rest(library: str) -> None:
    xp = namespace(library)
    mask = np.zeros((2, 3, 1, 1))
    mask[0, 1:] = 1.0
    y = np.where(np.broadcast_to(mask, X.shape) > 0, X_HAT, np.nan)
    at = np.array([-1.0, 1.0])
    x, eps, said, log_snr, given = on(xp, X, EPS, y, at, mask > 0)
    found = losses.denoising(said, x, eps, level(log_snr), prediction="x", mask=given)
    truth = losses.denoising(X_HAT[:, 1:], X[:, 1:], EPS[:, 1:], level(at), prediction="x")[0]
    np.testing.assert_allclose(np.asarray(found), [truth, 0.0], rtol=1e-6)


def test_a_mask_of_shares_is_a_weighted_mean() -> None:
    share = np.abs(RNG.normal(size=X.shape))
    found = losses.denoising(X_HAT, X, EPS, level(0.0), prediction="x", weight=weights.X(), mask=share)
    np.testing.assert_allclose(found, [np.average((X - X_HAT)[i] ** 2, weights=share[i]) for i in range(2)], rtol=1e-13)


@pytest.mark.torch
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gradient_on_torch_is_twice_the_factor_times_the_error(prediction: str) -> None:
    import torch

    at = level(torch.tensor([-2.0, 3.0], dtype=torch.float64))
    x, eps = torch.asarray(X), torch.asarray(EPS)
    y = torch.asarray(X_HAT).requires_grad_()
    losses.denoising(y, x, eps, at, prediction=prediction).sum().backward()
    found = y.grad
    assert found is not None
    w = predictions.table()[prediction](torch, at).w[:, None, None, None]
    factor = losses.factor(at, prediction=prediction, weight=weights.MinSNR(5.0))[:, None, None, None]
    truth = 2.0 * factor * w**2 * (y - losses.target(x, eps, at, prediction=prediction)) / X[0].size
    torch.testing.assert_close(found, truth)


@pytest.mark.torch
def test_masked_gradient_of_what_is_not_a_number_is_zero() -> None:
    import torch

    y = torch.full((1, 2), torch.nan).requires_grad_()
    mask = torch.zeros((1, 2))
    one, at = torch.ones(1, 2), level(torch.zeros(1))
    losses.denoising(y, one, one, at, prediction="v", mask=mask).sum().backward()
    assert y.grad is not None
    assert torch.all(y.grad == 0.0)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_torch_is_computed_and_returned_in_float32(dtype: str) -> None:
    import torch

    x, eps, y = (torch.asarray(a).to(getattr(torch, dtype)) for a in (X, EPS, X_HAT))
    at = level(torch.tensor([-2.0, 18.0]))
    found = losses.denoising(y, x, eps, at, prediction="v", weight=weights.V())
    wide = level(at.log_snr.double())
    exact = losses.denoising(y.double(), x.double(), eps.double(), wide, prediction="v", weight=weights.V())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0.0)


@pytest.mark.torch
def test_loss_under_compile_func_and_on_the_meta_device_of_torch() -> None:
    import torch

    x, eps, y = (torch.asarray(a, dtype=torch.float32) for a in (X, EPS, X_HAT))

    def loss(y: Any, x: Any, eps: Any, log_snr: Any) -> Any:
        slope = torch.full_like(log_snr, SLOPE)
        at, some = level(log_snr), x > -1.0
        total = losses.denoising(y, x, eps, at, prediction="v", mask=some)
        total = total + losses.denoising(y, x, eps, at, prediction="eps", weight=weights.Sigmoid(-1.0), slope=slope)
        return total + losses.denoising(y, x, eps, at, prediction="x", weight=weights.P2(gamma=1.5))

    log_snr = torch.tensor([-2.0, 3.0])
    eager = loss(y, x, eps, log_snr)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(y, x, eps, log_snr), eager)
    per_sample = torch.func.vmap(lambda *one: loss(*(part[None] for part in one))[0])(y, x, eps, log_snr)
    torch.testing.assert_close(per_sample, eager)
    gradient = torch.func.grad(lambda y: loss(y, x, eps, log_snr).sum())(y)
    assert torch.all(torch.isfinite(gradient))
    assert loss(*(part.to("meta") for part in (y, x, eps, log_snr))).shape == (2,)


@pytest.mark.jax
def test_loss_under_jit_vmap_and_grad_on_jax() -> None:
    import jax
    import jax.numpy as jnp

    x, eps, y = (jnp.asarray(a) for a in (X, EPS, X_HAT))
    log_snr = jnp.asarray([-2.0, 3.0])

    def loss(y: Any, x: Any, eps: Any, log_snr: Any) -> Any:
        return losses.denoising(y, x, eps, level(log_snr), prediction="v", weight=weights.Sigmoid(0.0), slope=SLOPE)

    eager = loss(y, x, eps, log_snr)
    np.testing.assert_allclose(jax.jit(loss)(y, x, eps, log_snr), eager, rtol=1e-6)
    singly = jax.vmap(lambda *one: loss(*(part[None] for part in one))[0])(y, x, eps, log_snr)
    np.testing.assert_allclose(singly, eager, rtol=1e-6)
    gradient = jax.grad(lambda y: jnp.sum(loss(y, x, eps, log_snr)))(y)
    numeric = (jnp.sum(loss(y + 0.01 * y, x, eps, log_snr)) - jnp.sum(loss(y - 0.01 * y, x, eps, log_snr))) / 0.02
    np.testing.assert_allclose(jnp.sum(gradient * y), numeric, rtol=1e-3)
    half = [part.astype("bfloat16") for part in (y, x, eps)]
    assert losses.denoising(half[0], half[1], half[2], level(0.0), prediction="v").dtype == jnp.float32


def test_a_level_given_as_numbers_fits_every_library_and_is_exact() -> None:
    torch = pytest.importorskip("torch")
    y, x, eps = (torch.asarray(a) for a in (X_HAT, X, EPS))
    found = losses.denoising(y, x, eps, level(1.0), prediction="v")
    np.testing.assert_allclose(found.numpy(), losses.denoising(X_HAT, X, EPS, level(1.0), prediction="v"), rtol=1e-14)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"y": X[:1]},
            ValueError,
            r"losses\.denoising: `y` and `x` must have equal shapes, got \(1, 3, 4, 5\) and \(2, 3, 4, 5\)",
        ),
        ({"y": X.astype(int)}, TypeError, r"`y` has dtype int64, but takes a real floating dtype"),
        ({"y": 1.0}, TypeError, r"`y` must be an array \(B, \.\.\.\), got 1\.0"),
        ({"level": level(np.zeros(5))}, ValueError, r"does not align with the leading axes"),
        (
            {"prediction": "nothing"},
            ValueError,
            r"`prediction` must be 'edm', 'eps'.*, got 'nothing'; or give a row function",
        ),
        ({"weight": "min_snr"}, TypeError, r"`weight` must be a weight, such as diffcore\.weights.*, got 'min_snr'"),
        (
            {"weight": weights.VariationalBound()},
            ValueError,
            r"weights\.VariationalBound: `slope` must be d lambda / dt",
        ),
        (
            {"mask": np.ones((2, 3))},
            ValueError,
            r"`mask` must broadcast .* got shape \(2, 3\); reshape it to \(2, 3, 1, 1\) for one",
        ),
        (
            {"level": level(np.zeros((2, 3))), "weight": weights.VariationalBound(), "slope": np.zeros(3)},
            ValueError,
            r"weights\.VariationalBound: `slope` must be one number, or one for each level, of shape \(2, 3\), got .* \(3,\)",
        ),
        (
            {"level": level(np.zeros((2, 3))), "weight": lambda at, slope: np.ones(3)},
            ValueError,
            r"`weight` must return one number, or one for each level, of shape \(2, 3\), got .* \(3,\)",
        ),
        (
            {"prediction": predictions.edm(1.5), "weight": weights.EDM()},
            ValueError,
            r"`weight` must be weights\.EDM\(1\.5\), for .* predictions\.edm\(1\.5\), got EDM\(sigma_data=0\.5\)",
        ),
    ],
)
def test_bad_input_is_refused_with_the_way_out(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"y": X_HAT, "x": X, "eps": EPS, "level": level(0.0), "prediction": "v"} | change
    with pytest.raises(error, match=message):
        losses.denoising(**given)


def test_a_mask_that_can_be_read_two_ways_is_refused() -> None:
    """Of data (2, 2, 2) a mask (2, 2) is one of frames or of the last axes; with all its axes it is what it says."""
    x, mask = np.arange(8.0).reshape(2, 2, 2), np.array([[1.0, 0.0], [1.0, 1.0]])
    loss = functools.partial(losses.denoising, 0.0 * x, x, x, level(0.0), prediction="x", weight=weights.X())
    with pytest.raises(ValueError, match=r"first and the last axes.*\(2, 2, 1\) for one.*or to \(1, 2, 2\)"):
        loss(mask=mask)
    for whole in (mask[:, :, None], mask[None]):
        share = np.broadcast_to(whole, x.shape)
        want = np.sum(share * x**2, axis=(1, 2)) / np.sum(share, axis=(1, 2))
        np.testing.assert_allclose(loss(mask=whole), want, rtol=1e-14)


@pytest.mark.parametrize("sigma_data", [0.5, 1.5])
@pytest.mark.parametrize("at", [-8.0, 0.0, 8.0])
def test_one_deviation_of_the_data_gives_plain_error_of_f(sigma_data: float, at: float) -> None:
    weight = weights.EDM(sigma_data)
    found = losses.factor(level(at), prediction=predictions.edm(sigma_data), weight=weight)
    np.testing.assert_allclose(found, 1.0, rtol=1e-14)


def test_mixed_libraries_are_refused() -> None:
    torch = pytest.importorskip("torch")
    x = torch.asarray(X)
    with pytest.raises(TypeError, match=r"`x` is a numpy array but `y` is a torch array"):
        losses.denoising(torch.asarray(X_HAT), X, EPS, level(0.0), prediction="v")
    with pytest.raises(TypeError, match=r"level\.log_snr` is a numpy array but"):
        losses.denoising(x, x, x, level(np.zeros(2)), prediction="v")


def test_a_level_of_ones_own_needs_only_consistent_numbers() -> None:
    at = Level(alpha=np.array([0.6]), sigma=np.array([0.8]), log_snr=np.log(np.array([0.36 / 0.64])))
    np.testing.assert_allclose(losses.factor(at, prediction="v", weight=weights.V()), 1.0, rtol=1e-14)
