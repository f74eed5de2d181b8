"""Inverse problems: each method against the case in which it is exact, in closed form and mostly by algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from libraries import example, host, put
from sampler_cases import schedule_of

import diffcore as dc
from diffcore import conditioning, levels, predictions
from diffcore.conditioning import (
    daps,
    ddrm,
    diffpir,
    downsample,
    dps,
    dps_plan,
    frame_average,
    ilvr,
    linear,
    moment_matching,
    pigdm,
    repaint,
    replacement,
    tmpd,
    twisted,
)
from diffcore.testing.affine import drawn_by

RNG = np.random.default_rng(5)
ROOT = RNG.normal(size=(6, 6))
FULL = ROOT @ ROOT.T / 6 + 0.1 * np.eye(6)
MEAN, ROWS, Y, Z = RNG.normal(size=6), RNG.normal(size=(2, 6)), RNG.normal(size=2), RNG.normal(size=(3, 6))
A = linear(ROWS, event=(6,))
NOISE = 0.4
GIVEN, MASK = np.array([1.5, -0.5, np.nan, np.nan, 0.3, np.nan]), np.array([1, 1, 0, 0, 1, 0]) == 1
PLAN = dc.samplers.ddim(schedule_of("vp"), steps=6, eta=0.85)


def posterior(covariance: Any, rows: Any, y: Any, noise: float, z: Any = None, level: Any = None) -> tuple[Any, Any]:
    """Mean and covariance of x given y = A x + noise, and z, by precisions: not the formula of any method."""
    precision = np.linalg.inv(covariance) + rows.T @ rows / noise**2
    pulled = np.linalg.solve(covariance, MEAN) + rows.T @ y / noise**2
    if level is not None:
        precision = precision + (level.alpha / level.sigma) ** 2 * np.eye(6)
        pulled = pulled + level.alpha / level.sigma**2 * z
    return np.linalg.solve(precision, pulled.T).T, np.linalg.inv(precision)


def data(covariance: Any, scaling: str | None = "vp") -> Any:
    return dc.exact.Gaussian(MEAN, covariance, scaling=scaling)


ISOTROPIC: dict[str, Callable[..., Any]] = {
    "pigdm": lambda d, *a, **k: pigdm(d, *a, data_variance=0.3, **k),
    "diffpir": lambda d, *a, **k: diffpir(d, *a, data_variance=0.3, **k),
    "moment_matching": moment_matching,
}


@pytest.mark.parametrize("name", ISOTROPIC)
@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
def test_on_independent_elements_of_one_variance_they_are_the_exact_conditional_denoiser(
    name: str, scaling: str
) -> None:
    for log_snr in (-6.0, 0.0, 6.0):
        level = levels.level(log_snr, scaling)
        want = posterior(0.3 * np.eye(6), ROWS, Y, NOISE, Z, level)[0]
        guided = ISOTROPIC[name](data(0.3, scaling), Y, measure=A, noise_std=NOISE)
        np.testing.assert_allclose(guided(Z, log_snr), want, atol=1e-7)


def test_with_the_true_variance_given_as_a_function_too() -> None:
    variance = lambda log_snr: 0.3 / (0.3 * np.exp(log_snr) + 1.0)  # noqa: E731
    for method in (pigdm, diffpir):
        found = method(data(0.3), Y, measure=A, noise_std=NOISE, data_variance=variance)(Z, 0.5)
        np.testing.assert_allclose(
            found, ISOTROPIC["pigdm"](data(0.3), Y, measure=A, noise_std=NOISE)(Z, 0.5), atol=1e-9
        )


def test_tmpd_is_exact_where_measured_numbers_are_independent_and_for_one_number() -> None:
    level = levels.level(0.5)
    spread = np.linspace(0.2, 1.0, 6)
    want = posterior(np.diag(spread), np.eye(6)[MASK], GIVEN[MASK], NOISE, Z, level)[0]
    np.testing.assert_allclose(tmpd(data(spread), GIVEN, MASK, noise_std=NOISE)(Z, 0.5), want, atol=1e-9)
    want = posterior(FULL, ROWS[:1], Y[:1], NOISE, Z, level)[0]
    one = linear(ROWS[:1], event=(6,))
    np.testing.assert_allclose(tmpd(data(FULL), Y[:1], measure=one, noise_std=NOISE)(Z, 0.5), want, atol=1e-9)


def test_dps_moves_too_far_by_the_factor_of_its_derivation() -> None:
    """For one number: (A C A^T + s^2) / s^2; and as run, by the weight along the same line."""
    exact, row = data(FULL), ROWS[:1]
    covariance, x = exact.posterior_covariance(Z, 0.5)[0], exact(Z, 0.5)
    given: dict[str, Any] = {"measure": linear(row, event=(6,))}
    want = posterior(FULL, row, Y[:1], NOISE, Z, levels.level(0.5))[0] - x
    factor = ((row @ covariance @ row.T)[0, 0] + NOISE**2) / NOISE**2
    np.testing.assert_allclose(dps(exact, Y[:1], noise_std=NOISE, **given)(Z, 0.5) - x, factor * want, atol=1e-9)
    moved = dps(exact, Y[:1], weight=0.7, **given)(Z, 0.5) - x
    level = levels.level(0.5)
    jacobian = covariance * level.alpha / level.sigma**2
    np.testing.assert_allclose(moved, 0.7 * np.sign(Y[:1] - x @ row.T) * (row @ jacobian), atol=1e-9)


def test_dps_on_its_plan_is_its_algorithm() -> None:
    """z_s = ancestral step - w grad ||y - A x-hat||, stage by stage."""
    plan, exact = dc.samplers.ancestral(schedule_of("vp"), steps=5), data(FULL)
    found = dc.sample(dps(exact, Y, measure=A, weight=0.3), dps_plan(plan), Z, seed=3)
    z = Z
    for k, log_snr in enumerate(plan.log_snr):
        level, x = levels.level(log_snr), exact(z, log_snr)
        left = Y - x @ ROWS.T
        jacobian = exact.posterior_covariance(z, log_snr)[0] * level.alpha / level.sigma**2
        c_z, c_n, c_x = plan.update[k, 0]
        z = c_z * z + c_x * x + c_n * dc.noise.normal(3, k + 1, z.shape, like=z)
        z = z + 0.3 * (left / np.linalg.norm(left, axis=1, keepdims=True)) @ ROWS @ jacobian
    np.testing.assert_allclose(found, z, atol=1e-10)


def test_diffpir_is_exact_for_data_of_no_known_variance() -> None:
    """With its own r^2 = sigma^2 / alpha^2, which is the posterior's where the data may be anything."""
    wide = 1e8
    guided = diffpir(dc.exact.Gaussian(MEAN, wide, scaling="vp"), Y, measure=A, noise_std=NOISE, weight=1.0)
    want = posterior(wide * np.eye(6), ROWS, Y, NOISE, Z, levels.level(0.5))[0]
    np.testing.assert_allclose(guided(Z, 0.5), want, atol=1e-6)


WRAPPERS: dict[str, Callable[..., Any]] = {
    "dps": lambda d, *a, noise_std=0.0, **k: dps(d, *a, weight=0.5, **k),
    "dps as derived": dps,
    "pigdm": pigdm,
    "tmpd": tmpd,
    "diffpir": diffpir,
}


def saying(kind: str) -> Any:
    """The exact denoiser, saying another kind of prediction."""
    exact = data(FULL)

    def call(z: Any, log_snr: Any) -> Any:
        return predictions.convert(exact(z, log_snr), z, levels.level(log_snr), source="x", target=kind)

    return call


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.torch
def test_the_kind_of_prediction_changes_nothing(name: str) -> None:
    import torch

    z, at, mask = (
        torch.from_numpy(Z),
        torch.tensor([0.5, -1.0, 3.0], dtype=torch.float64),
        np.array([1, 0.5, 0, 0, 1, 0]),
    )
    kept: dict[str, Any] = {"noise_std": NOISE, "schedule": schedule_of("vp")}
    want = host(WRAPPERS[name](data(FULL), np.nan_to_num(GIVEN), mask, **kept)(z, at))
    for kind in ("eps", "v", "flow"):
        y = WRAPPERS[name](saying(kind), np.nan_to_num(GIVEN), mask, prediction=kind, **kept)(z, at)
        x = predictions.convert(y, z, levels.level(at), source=kind, target="x")
        np.testing.assert_allclose(host(x), want, atol=1e-8, err_msg=kind)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_libraries_agree_and_two_conditions_are_one_of_both(library: str, name: str) -> None:
    make = WRAPPERS[name]
    kept: dict[str, Any] = {"noise_std": NOISE}
    with example(library, "float64") as like:
        z, small = put(Z.reshape(3, 1, 6), like), frame_average(3, axis=2)
        other = dc.exact.Gaussian(MEAN.reshape(1, 6), FULL, scaling="vp")
        both = make(
            make(other, Y.reshape(1, 2), measure=small, **kept), GIVEN.reshape(1, 6), MASK.reshape(1, 6), **kept
        )
        found = host(both(z, 0.5)).reshape(3, 6)
    stacked = np.concatenate([np.kron(np.eye(2), np.full((1, 3), 1 / 3)), np.eye(6)[MASK]])
    want = make(data(FULL), np.concatenate([Y, GIVEN[MASK]]), measure=linear(stacked, event=(6,)), **kept)(Z, 0.5)
    np.testing.assert_allclose(found, want, atol=1e-8)


@pytest.mark.jax
def test_on_jax_all_of_it_is_one_trace() -> None:
    """Each wrapper of a denoiser that is not linear, and weighted particles, against torch and NumPy."""
    import jax
    import torch

    plan = dc.samplers.ancestral(schedule_of("vp"), grid=[-3.0, 1.0, np.inf])
    how: dict[str, Any] = {"noise_std": NOISE, "prediction": "v", "schedule": schedule_of("vp")}
    kept: dict[str, Any] = {
        "shape": (1, 6),
        "particles": 4,
        "noise_std": NOISE,
        "threshold": 1.0,
        "seed": 7,
        "prediction": "v",
    }

    def all_of(z: Any) -> Any:
        found = [make(_bent, np.nan_to_num(GIVEN), MASK, **how)(z, 0.5) for make in WRAPPERS.values()]
        return [*found, twisted(_bent, plan, Y[None], measure=A, like=z, **kept).x]

    with jax.enable_x64(True):
        found = jax.jit(all_of)(jax.numpy.asarray(Z))
        for one, want in zip(found, all_of(torch.from_numpy(Z)), strict=True):
            np.testing.assert_allclose(host(one), host(want), atol=1e-8)


def _bent(z: Any, log_snr: Any) -> Any:
    return 0.4 * z - 0.3 * z**2 / (1.0 + z**2)


@pytest.mark.parametrize(
    ("measure", "event"),
    [
        (downsample((2, 1)), (2, 4, 2, 1)),
        (frame_average(2), (4, 1, 1, 1)),
        (linear({-2: RNG.normal(size=(2, 3)), -1: RNG.normal(size=(4, 2))}), (3, 2)),
        (linear(RNG.normal(size=(5, 6)), event=(2, 3)), (2, 3)),
    ],
)
def test_linear_measurements_keep_the_protocol(measure: Any, event: tuple[int, ...]) -> None:
    """As matrices: A^T, A = U S V^T with orthonormal columns, and A^+."""

    def matrix(function: Any, shape: tuple[int, ...]) -> Any:
        count = int(np.prod(shape))
        return np.asarray(function(np.eye(count).reshape(count, *shape))).reshape(count, -1).T

    kept: bool = isinstance(measure, conditioning.LinearMeasurement)
    assert kept
    a, seen = matrix(measure, event), measure(np.zeros((1, *event))).shape[1:]
    np.testing.assert_allclose(matrix(measure.adjoint, seen), a.T, atol=1e-12)
    np.testing.assert_allclose(matrix(measure.spread, seen), np.linalg.pinv(a), atol=1e-10)
    svd = measure.svd()
    inner = svd.into(np.zeros((1, *event))).shape[1:]
    v, u = matrix(svd.out, inner), matrix(svd.seen, seen).T
    values = np.broadcast_to(svd.values, inner).ravel()
    np.testing.assert_allclose(v.T @ v, np.eye(len(values)), atol=1e-12)
    np.testing.assert_allclose(matrix(svd.into, event), v.T, atol=1e-12)
    np.testing.assert_allclose(u @ np.diag(values) @ v.T, a, atol=1e-12)


@pytest.mark.parametrize("noise", [0.0, 0.4, 30.0])
@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.3, 0.6)])
def test_ddrm_keeps_the_law_of_every_state(noise: float, eta: float, eta_b: float) -> None:
    """If x-hat is x: over the noise of y and its own, each state is N(alpha x, sigma^2), above and below the noise of y."""
    x = RNG.normal(size=6)
    plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=5, eta=eta)
    known = lambda z, _: np.broadcast_to(x, z.shape)  # noqa: E731
    for stages in range(1, len(plan)):
        part = plan[:stages]

        def drawn(y: Any) -> Any:
            held = ddrm(y[None], measure=A, noise_std=noise, eta=eta, eta_b=eta_b)
            return drawn_by(known, part, (6,), prediction="x", constraint=held)  # noqa: B023

        base, level = drawn(ROWS @ x), levels.level(part.next_log_snr[-1])
        response = np.stack([drawn(ROWS @ x + step).mean - base.mean for step in np.eye(2)], axis=1)
        np.testing.assert_allclose(base.mean, level.alpha * x, atol=1e-4)  # the start is at log-SNR -20
        total = base.covariance + noise**2 * response @ response.T
        np.testing.assert_allclose(total, level.sigma**2 * np.eye(6), atol=1e-4)


def test_ilvr_is_replacement_for_a_mask_and_ends_on_what_was_measured() -> None:
    exact = data(FULL)
    want = dc.sample(exact, PLAN, shape=(2, 6), like=Z, seed=1, constraint=replacement(GIVEN, MASK))
    np.testing.assert_allclose(
        dc.sample(exact, PLAN, shape=(2, 6), like=Z, seed=1, constraint=ilvr(GIVEN, MASK)), want, atol=1e-12
    )
    for held in (ilvr(Y[None], measure=A), ddrm(Y[None], measure=A), daps(Y[None], measure=A)):
        found = dc.sample(exact, PLAN, shape=(2, 6), like=Z, seed=1, constraint=held)
        np.testing.assert_allclose(found @ ROWS.T, np.broadcast_to(Y, (2, 2)), atol=1e-9)
    free = dc.sample(exact, PLAN, Z, seed=1)
    kept = dc.sample(exact, PLAN, Z, seed=1, constraint=ilvr(Y[None], measure=A, until=-np.inf))
    np.testing.assert_array_equal(kept, free)


@pytest.mark.parametrize("noise", [0.0, NOISE])
def test_daps_draws_every_state_from_the_posterior_of_independent_elements(noise: float) -> None:
    plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=6)
    held = daps(Y[None], measure=A, noise_std=noise, data_variance=0.3)
    mean, covariance = posterior(0.3 * np.eye(6), ROWS, Y, max(noise, 1e-5))
    for part in (plan[:1], plan[:3], plan, dc.samplers.ddim(dc.schedules.Cosine(), steps=1)):
        found, level = drawn_by(data(0.3), part, (6,), constraint=held), part.end
        np.testing.assert_allclose(found.mean, level.alpha * mean, atol=1e-4)  # the start is at log-SNR -20
        want = level.alpha**2 * covariance + level.sigma**2 * np.eye(6)
        np.testing.assert_allclose(found.covariance, want, atol=1e-4)


def test_repaint_comes_to_the_joint_law_and_keeps_the_marginals() -> None:
    grid = np.concatenate([np.linspace(-10.0, 10.0, 41), [np.inf]])
    plan, exact = dc.samplers.ancestral(schedule_of("vp"), grid=grid), data(FULL)
    truth = exact.conditional(np.nan_to_num(GIVEN), MASK)
    mean, spread = truth.mean[~MASK], truth.covariance[np.ix_(~MASK, ~MASK)]

    def off(times: int) -> float:
        held = replacement(np.nan_to_num(GIVEN), MASK)
        found = drawn_by(exact, repaint(plan, jump=4, times=times), (6,), constraint=held)
        ratio = np.linalg.solve(spread, found.covariance[np.ix_(~MASK, ~MASK)])
        apart = found.mean[~MASK] - mean
        return float(0.5 * (np.trace(ratio) - 3 - np.linalg.slogdet(ratio)[1] + apart @ np.linalg.solve(spread, apart)))

    once, some, many = (off(times) for times in (1, 4, 16))
    assert many < 0.5 * some < 0.2 * once
    dc.testing.check_keeps_marginals(repaint(dc.samplers.ancestral(schedule_of("vp"), steps=6), jump=4, times=3))
    assert repaint(plan, times=1) is plan


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_evidence_of_twisted_particles_is_unbiased(threshold: float) -> None:
    """Its mean over 3,000 samples of 3 particles is p(y) of what the plan draws, in closed form; for any guess of r^2."""
    plan = dc.samplers.ancestral(schedule_of("vp"), grid=[-4.0, -2.0, 0.0, 2.0, np.inf])
    exact, noise = data(FULL), 2.0
    drawn = dc.exact.moments(plan, exact)
    spread = ROWS @ drawn.covariance @ ROWS.T + noise**2 * np.eye(2)
    apart = Y - ROWS @ drawn.mean
    want = np.exp(-0.5 * apart @ np.linalg.solve(spread, apart)) / (2.0 * np.pi * np.sqrt(np.linalg.det(spread)))
    given: dict[str, Any] = {"measure": A, "noise_std": noise, "threshold": threshold, "like": Z, "seed": 2}
    found = twisted(exact, plan, Y[None], shape=(3000, 6), particles=3, data_variance=0.5, **given)
    ratio = np.exp(found.log_evidence) / want
    assert abs(ratio.mean() - 1.0) < 4.0 * ratio.std() / 3000**0.5 < 0.1
    np.testing.assert_allclose(np.exp(found.log_weights).sum(axis=1), 1.0)
    assert found.effective.min() >= 1.0 - 1e-9
    assert found.effective.max() <= 3.0 + 1e-9


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_twisted_particles_are_the_posterior_and_alike_in_every_library(library: str) -> None:
    """A sample is the same in another batch, and weighted means come to those of x given y."""
    plan, exact = dc.samplers.ancestral(schedule_of("vp"), steps=12), data(FULL)
    given: dict[str, Any] = {"measure": A, "noise_std": NOISE, "particles": 64, "data_variance": 0.5}
    with example(library, "float64") as like:
        found = twisted(exact, plan, Y[None], shape=(2, 6), like=like, seed=7, **given)
        alone = twisted(exact, plan, Y[None], shape=(1, 6), like=like, seed=dc.noise.keys(7, 1, first=1), **given)
        weights, x, one, drawn = host(found.log_weights), host(found.x), host(alone.x), host(found.draw(3))
    np.testing.assert_allclose(one[0], x[1], atol=1e-9)
    assert all(np.any(np.all(np.isclose(drawn[i], x[i]), axis=-1)) for i in range(2))
    want = posterior(FULL, ROWS, Y, NOISE)
    mean = np.einsum("bk,bki->i", np.exp(weights), x) / 2
    assert np.abs((mean - want[0]) / np.sqrt(np.diag(want[1]))).max() < 0.5
    if library != "numpy":
        plain = twisted(exact, plan, Y[None], shape=(2, 6), like=Z, seed=7, **given)
        np.testing.assert_allclose(x, plain.x, atol=1e-7)


@pytest.mark.parametrize(("library", "compile"), [("numpy", None), ("torch", None), ("jax", True)])
def test_constraints_run_in_every_library(library: str, compile: bool | None) -> None:
    small, clip = downsample(2), RNG.normal(size=(2, 3, 1, 1, 1)).astype(np.float32)
    held: dict[str, Any] = {"ddrm": ddrm(clip, measure=small, noise_std=0.1)}
    if library != "jax":  # whose compiler takes seconds each
        held |= {
            "daps": daps(clip, measure=small, noise_std=0.1),
            "ilvr": ilvr(clip, measure=small, until=2.0),
        }
    for name, constraint in held.items():
        run = lambda like, how, c=constraint: host(  # noqa: E731
            dc.sample(_half, PLAN, shape=(2, 3, 2, 2, 1), like=like, seed=1, prediction="v", constraint=c, compile=how)
        )
        with example(library) as like:
            np.testing.assert_allclose(run(like, compile), run(Z.astype(np.float32), None), atol=3e-5, err_msg=name)


def _half(z: Any, log_snr: Any) -> Any:
    return 0.5 * z


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ddrm(Y, measure=lambda x: x), TypeError, "`measure` must be downsample.*pigdm"),
    (lambda: ddrm(Y, measure=A, eta=2), ValueError, r"`eta` must be a number in \[0, 1\], got 2"),
    (
        lambda: daps(Y, measure=A, data_variance=0.0),
        ValueError,
        "`data_variance` must be a finite number > 0, got 0.0; or",
    ),
    (lambda: pigdm(data(FULL), GIVEN, 0.5 * MASK), ValueError, "weights between 0 and 1.*`noise_std` > 0"),
    (lambda: dps(data(FULL), Y, noise_std=0.0), ValueError, "`noise_std` must be a finite number > 0, got 0.0"),
    (lambda: diffpir(data(FULL), Y, weight=1.0, data_variance=1.0), ValueError, "both say how far"),
    (lambda: linear(ROWS), TypeError, r"`matrix` must be \{axis: matrix\}"),
    (lambda: linear({1: ROWS}), ValueError, "`matrix` must be an int <= -1, got 1; axes count from the last"),
    (lambda: A(np.zeros((1, 5))), ValueError, r"must have shape \(B, 6\), got \(1, 5\)"),
    (lambda: linear({-1: ROWS})(np.zeros((1, 5))), ValueError, "6 elements along axis -1"),
    (lambda: repaint(PLAN, times=0), ValueError, "`times` must be an int >= 1, got 0"),
    (lambda: repaint(dc.samplers.dpm_solver_pp(schedule_of("vp"), 8), jump=2), ValueError, "needs its memory"),
    (lambda: dps_plan(dps_plan(PLAN)), ValueError, "`plan` must read no second estimate"),
    (
        lambda: dc.sample(data(FULL), PLAN, Z, constraint=ddrm(Y, np.array([1, 0]), measure=A)),
        ValueError,
        "`mask` must be None for this measurement",
    ),
    (
        lambda: twisted(
            data(FULL), dc.samplers.ddim(schedule_of("vp"), 4), Y, shape=(1, 6), particles=2, noise_std=1.0
        ),
        ValueError,
        "must add noise at every stage but the last.*ancestral",
    ),
    (
        lambda: twisted(_half, PLAN, 0.0, shape=(1, 6), particles=2, noise_std=1.0, prediction="x"),
        TypeError,
        "no gradients.*torch or JAX",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_input_says_what_to_do(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
