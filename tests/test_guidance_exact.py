"""Guidance on data whose guided denoiser is known: several conditions, classifiers, history, a worse model, and what the law of the
samples is."""

import copy
import importlib
import pickle
from typing import Any

import numpy as np
import pytest
from test_guidance import LIBRARIES, Counted, Z, namespace

import diffcore as dc
from diffcore import _streams, guidance, predictions
from diffcore.exact import Gaussian, Mixture
from diffcore.guidance.split import Split
from diffcore.levels import level

RNG = np.random.default_rng(4)
SCHEDULE = dc.schedules.Cosine()


@pytest.mark.parametrize("library", LIBRARIES)
def test_conditions_compose_and_nest_in_one_call(library: str) -> None:
    xp = namespace(library)
    z, levels = xp.asarray(Z), xp.asarray(np.array([0.0, 1.0]))
    conds, null = [xp.asarray(RNG.normal(size=(n, 3, 4))) for n in (2, 1)], xp.asarray(RNG.normal(size=(1, 3, 4)))
    a, b, n = (np.asarray(part) for part in (*conds, null))
    one, scales = Counted(0.5), (np.array([2.0, 0.5]), 3.0)
    s = np.array([2.0, 0.5])[:, None, None]
    for nested, truth in ((False, n + s * (a - n) + 3.0 * (b - n)), (True, n + s * (a - n) + 3.0 * (b - a))):
        found = guidance.composed(one, conds=conds, null=null, scales=scales, nested=nested)(z, levels)
        np.testing.assert_allclose(np.asarray(found), 0.5 * Z + truth, rtol=1e-4, atol=1e-5)
    assert one.batches == [6, 6]


def test_one_condition_is_classifier_free_guidance_and_scales_of_1_are_the_last_condition() -> None:
    models: Any = [Counted(2.0, 1.0), Counted(-0.5, 3.0)]
    u = Counted(-1.0)
    plain = guidance.classifier_free(models[0], u, scale=lambda at: 2.0 + at)(Z, 0.5)
    np.testing.assert_allclose(
        guidance.composed(models[:1], u, scales=[lambda at: 2.0 + at])(Z, 0.5), plain, rtol=1e-13
    )
    last = guidance.composed(models, u, scales=[1.0, 1.0], nested=True)
    np.testing.assert_allclose(last(Z, 0.5), models[1](Z, 0.5), rtol=1e-13)
    np.testing.assert_array_equal(last.with_unguided(Z, 0.5)[1], -Z)


def test_separate_conditions_on_independent_parts_compose_to_both() -> None:
    """c_1 is about x_1 and c_2 about x_2, which are independent: composed at scales of 1 they are the condition on both."""
    prior = [1.0, 2.0]
    told = [0.25, 0.5]  # the variances under the conditions
    models = [Gaussian([1.0, 0.0], [told[0], prior[1]]), Gaussian([0.0, -1.0], [prior[0], told[1]])]
    guided = guidance.composed(models, Gaussian([0.0, 0.0], prior), scales=(1.0, 1.0)).with_scaling("vp")
    z = RNG.normal(size=(5, 2))
    np.testing.assert_allclose(guided(z, 0.3), Gaussian([1.0, -1.0], told)(z, 0.3), rtol=1e-12)
    assert (guided.prediction, guided.scaling) == ("x", "vp")


MIXTURE = Mixture(
    np.array([0.3, 0.7]), np.array([[1.0, 0.0], [-1.0, 0.5]]), [[[0.5, 0.2], [0.2, 0.3]], [[0.4, 0.0], [0.0, 0.4]]]
)
PART = Gaussian([1.0, 0.0], [[0.5, 0.2], [0.2, 0.3]])


def slope(z: Any, log_snr: Any) -> Any:
    """The gradient of log p(c | z_t) = log p(z_t | c) - log p(z_t), but for a constant."""
    return PART.with_scaling("vp").score(z, log_snr) - MIXTURE.with_scaling("vp").score(z, log_snr)


@pytest.mark.parametrize("kind", ["x", "eps", "v", "flow"])
def test_the_classifier_of_noisy_data_leads_to_the_condition_exactly(kind: str) -> None:
    z, at = RNG.normal(size=(4, 2)), np.array([-3.0, 0.0, 2.0, 7.0])
    here = level(at)

    def denoise(z: Any, log_snr: Any) -> Any:
        return predictions.convert(MIXTURE(z, log_snr), z, here, source="x", target=kind)

    for weight in (1.0, np.array([0.0, 1.0, 2.5, -1.0])):
        guided = guidance.classifier(denoise, gradient=slope, weight=weight, prediction=kind, schedule=SCHEDULE)
        found = predictions.convert(guided(z, at), z, here, source=kind, target="x")
        truth = guidance.classifier_free(PART, MIXTURE, scale=weight)(z, at)
        np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-10)
    np.testing.assert_array_equal(guided.with_unguided(z, at)[1], denoise(z, at))
    ends = guidance.classifier(MIXTURE, gradient=lambda z, _: z, schedule=SCHEDULE)
    assert np.all(np.isfinite([ends(z, np.inf), ends(z, -np.inf)]))


@pytest.mark.parametrize(
    "library", [pytest.param("torch", marks=pytest.mark.torch), pytest.param("jax", marks=pytest.mark.jax)]
)
def test_a_classifier_is_differentiated_and_numpy_says_what_to_give(library: str) -> None:
    def log_prob(z: Any, log_snr: Any) -> Any:
        return PART.log_likelihood(z, log_snr) - MIXTURE.log_likelihood(z, log_snr)

    guided = guidance.classifier(MIXTURE, log_prob)
    plan, start = dc.samplers.ddim(SCHEDULE, grid=np.linspace(-4.0, 8.0, 4)), RNG.normal(size=(3, 2))
    truth = dc.sample(PART, plan, start)
    if library == "torch":
        import torch

        found = dc.sample(guided, plan, torch.asarray(start)).numpy()
    else:
        import jax.numpy as jnp

        found = np.asarray(dc.sample(guided, plan, jnp.asarray(start)))
    np.testing.assert_allclose(found, truth, rtol=2e-3 if library == "jax" else 1e-9, atol=1e-4)
    with pytest.raises(TypeError, match="NumPy arrays carry no gradients; give `gradient`"):
        dc.sample(guided, plan, start)


def test_guidance_does_not_draw_from_the_tilted_density() -> None:
    """p^s(x | c) p^{1-s}(x) of two Gaussians has precision s / c + (1 - s) / u; the samples of guidance have variance c^s u^{1-s},
    since the flow's velocity is linear in the score, and each flow scales a direction by the root of its variance."""
    c, u, s = 0.25, 1.0, 3.0
    tilted, sampled = 1.0 / (s / c + (1.0 - s) / u), c**s * u ** (1.0 - s)
    guided = guidance.classifier_free(Gaussian([0.0], c), Gaussian([0.0], u), scale=s)
    grid = np.linspace(-20.0, 20.0, 201)
    slopes = [
        float(dc.sample(denoise, dc.samplers.unipc(SCHEDULE, order=3, grid=grid), np.ones((1, 1)))[0, 0])
        for denoise in (guided, Gaussian([0.0], tilted), Gaussian([0.0], c))
    ]
    np.testing.assert_allclose(np.square(slopes), [sampled, tilted, c], rtol=5e-4)
    z, at = np.ones((1, 1)), level(0.5)
    score = lambda x: (at.alpha * x - z) / at.sigma**2  # noqa: E731
    truth = -(s / (at.alpha**2 * c + at.sigma**2) + (1.0 - s) / (at.alpha**2 * u + at.sigma**2))
    np.testing.assert_allclose(score(guided(z, 0.5)), truth, rtol=1e-12)
    assert abs(score(Gaussian([0.0], tilted)(z, 0.5)) / truth - 1.0) > 0.1
    for same in (0.0, 1.0):  # at both ends it is the density itself
        own = Gaussian([0.0], 1.0 / (same / c + (1.0 - same) / u))
        np.testing.assert_allclose(
            guidance.classifier_free(Gaussian([0.0], c), Gaussian([0.0], u), scale=same)(z, 0.5), own(z, 0.5)
        )
    clean = Gaussian([0.0], tilted).score(z, 30.0)  # and without noise every scale is right
    np.testing.assert_allclose(
        s * Gaussian([0.0], c).score(z, 30.0) + (1.0 - s) * Gaussian([0.0], u).score(z, 30.0), clean, rtol=1e-9
    )


def test_a_worse_model_is_the_one_without_condition() -> None:
    better, worse, cond = Counted(2.0), Counted(0.5), RNG.normal(size=(1, 3, 4))
    found = guidance.autoguidance(better, worse, cond=cond, weight=1.5)(Z, 0.0)
    np.testing.assert_allclose(found, 2.5 * (2.0 * Z + cond) - 1.5 * (0.5 * Z + cond), rtol=1e-13)
    guidance.autoguidance(better, worse, weight=1.5, interval=(1.0, 2.0)).at(0.0)(Z, 0.0)
    assert (better.batches, worse.batches) == ([2, 2], [2])


def test_wrappers_are_copied_and_pickled() -> None:
    guided = guidance.autoguidance(Counted(2.0), Counted(0.5), cond=np.ones((1, 3, 4)), weight=1.5)
    for one, given in (
        (guided, ()),
        (Split(Counted(2.0), None, "a"), (np.ones((1, 3, 4)),)),
        (dc.mesh.Local(Gaussian(np.zeros((3, 4)), 1.0, scaling="vp")), ()),
    ):
        for made in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            np.testing.assert_array_equal(made(Z, 0.0, *given), one(Z, 0.0, *given))
            assert getattr(made, "prediction", None) == getattr(one, "prediction", None)


A = RNG.normal(size=(8, 8))
VIDEO = Gaussian(RNG.normal(size=(4, 2)), A @ A.T / 8 + 0.1 * np.eye(8), scaling="vp")
KNOWN = np.array([True, True, False, False])


def history(known: Any, **how: Any) -> Any:
    return guidance.history(VIDEO, OBSERVED, known, **how)


OBSERVED = VIDEO.sample(3, 2)


def without(z: Any, at: float, *frames: int) -> Any:
    """E[x | z_t] without some frames."""
    levels = np.full((2, 4), at)
    levels[:, list(frames)] = -np.inf
    return VIDEO(z, levels)


@pytest.mark.parametrize("library", LIBRARIES)
def test_history_guidance_is_exact_on_gaussian_video(library: str) -> None:
    xp = namespace(library)
    z, at, new = RNG.normal(size=(2, 4, 2)), 0.4, ~KNOWN
    c = VIDEO.conditional_denoise(z, at, OBSERVED, KNOWN[:, None])[:, new]
    u = without(z, at, 0, 1)[:, new]
    ends: Any = {"level": np.inf, "absent": -np.inf}
    video = VIDEO if library == "numpy" else VIDEO.to(xp.asarray(z))
    for scale in (0.0, 1.0, np.array([2.5, 0.5])) if library == "numpy" else (np.array([2.5, 0.5]),):
        guided: Any = guidance.history(video, xp.asarray(OBSERVED), KNOWN, scale=scale, **ends)
        if library == "jax.numpy":
            guided = importlib.import_module("jax").jit(guided)
        x = np.asarray(guided(xp.asarray(z), xp.asarray(np.full(2, at))))
        s = np.reshape(scale, (-1, 1, 1))
        np.testing.assert_allclose(x[:, new], u + s * (c - u), rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(x[:, KNOWN], OBSERVED[:, KNOWN], rtol=1e-5)


def test_temporal_and_fractional_history() -> None:
    """Subsets of frames compose; a history at a level of its own is the exact denoiser at that level, with fixed noise."""
    z, at = RNG.normal(size=(2, 4, 2)), 0.4
    subsets, new = [[True, False, False, False], [False, True, False, False]], ~KNOWN
    guided = guidance.history(
        VIDEO, OBSERVED, KNOWN, seen=subsets, scale=(1.5, -0.5), level=(np.inf, 1.0), absent=-np.inf, seed=9
    )
    u = without(z, at, 0, 1)
    eps = dc.noise.normal(9, 0, z.shape, dtype=np.dtype(np.float64), stream=_streams.HISTORY)
    old = level(1.0)
    first, second = z.copy(), z.copy()
    first[:, 0], second[:, 1] = OBSERVED[:, 0], old.alpha * OBSERVED[:, 1] + old.sigma * eps[:, 1]
    parts = [
        VIDEO(first, np.array([[np.inf, -np.inf, at, at]] * 2)),
        VIDEO(second, np.array([[-np.inf, 1.0, at, at]] * 2)),
    ]
    truth = u + 1.5 * (parts[0] - u) - 0.5 * (parts[1] - u)
    np.testing.assert_allclose(guided(z, at)[:, new], truth[:, new], rtol=1e-9)


def test_history_leads_a_run_of_a_network_that_predicts_v() -> None:
    """Scale 1 draws what the exact conditional denoiser draws, step by step, and known frames come out."""

    def network(z: Any, log_snr: Any) -> Any:
        assert log_snr.shape == (2, 4)
        return predictions.convert(VIDEO(z, log_snr), z, level(log_snr), source="x", target="v")

    plan, start = dc.samplers.ddim(SCHEDULE, grid=[-8.0, -2.0, 2.0, np.inf]), RNG.normal(size=(2, 4, 2))
    guided = guidance.history(network, OBSERVED, KNOWN, scale=1.0, prediction="v", level=30.0, absent=-30.0)
    found = dc.sample(guided, plan, start)
    truth = dc.sample(
        lambda z, at: VIDEO.conditional_denoise(z, at, OBSERVED, KNOWN[:, None]), plan, start, prediction="x"
    )
    np.testing.assert_allclose(found, truth, atol=2e-5)
    split = [
        dc.sample(guidance.history(VIDEO, OBSERVED[k : k + 1], KNOWN, scale=2.0, seed=[k]), plan, start[k : k + 1])
        for k in (0, 1)
    ]
    whole = dc.sample(history(KNOWN, scale=2.0, seed=[0, 1]), plan, start)
    np.testing.assert_array_equal(np.concatenate(split), whole)


VARIED: Any = {"scale": 1.0}
TWO = [Counted(1.0), Counted(2.0)]
UNLIKE: Any = lambda: guidance.composed(TWO[0], conds=[Z, Z[:, :2]], null=Z, scales=[1, 1])  # noqa: E731
SHORT = guidance.classifier(MIXTURE, gradient=lambda z, _: z[:1], schedule=SCHEDULE)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: guidance.composed(TWO, TWO[0], scales=[1.0]), ValueError, "one entry for each of 2 conditions"),
        (lambda: guidance.composed(TWO, TWO[0], scales=2.0), TypeError, "`scales` must be a sequence of scales"),
        (lambda: guidance.composed(TWO, TWO[0], scales=[1.0, "2"]), TypeError, r"`scales` must be a finite number, .* got '2'"),
        (lambda: guidance.composed(TWO, scales=[1.0, 2.0]), TypeError, r"give either \(\[denoise_1, ...\], denoise_uncond\), or"),
        (lambda: UNLIKE(), ValueError, r"`conds\[1\]` must have the shape of `conds\[0\]`"),
        (lambda: guidance.composed([Counted(1.0), 3.0], TWO[0], scales=[1.0, 1.0]), TypeError, "`denoise` must be a function"),
        (lambda: guidance.composed(TWO, TWO[0], scales=[1.0, 1.0], nested="yes"), TypeError, "`nested` must be True or False"),
        (lambda: guidance.classifier(MIXTURE), TypeError, "exactly one of `log_prob`"),
        (lambda: guidance.classifier(MIXTURE, gradient=3.0), TypeError, "`gradient` must be a function"),
        (lambda: guidance.classifier(TWO[0], gradient=slope), TypeError, "`prediction` must be"),
        (lambda: guidance.classifier(MIXTURE, gradient=slope)(Z[0], 0.0), ValueError, "exact.Mixture.denoise: `z` must"),
        (lambda: guidance.classifier(MIXTURE, gradient=slope)(Z[0, :, :2], 0.0), ValueError, "the scaling is not known"),
        (lambda: SHORT(Z[0, :, :2], 0.0), ValueError, "have equal shapes"),
        (lambda: guidance.autoguidance(TWO[0], None, weight=1.0), TypeError, "`worse` must be a function"),
        (lambda: guidance.autoguidance(*TWO, weight=1.0, rescale=2.0), ValueError, "autoguidance: `rescale` must be"),
        (lambda: history([False] * 4, **VARIED), ValueError, "`known` must have a frame that is known"),
        (lambda: history([1, 0, 0, 0], **VARIED), TypeError, "`known` must be flags"),
        (lambda: history(KNOWN, seen=[[False, False, True, False]], **VARIED), ValueError, "`seen` must hold flags"),
        (lambda: history(KNOWN, scale=[1.0, 2.0]), ValueError, "`scale` must have one entry for each of 1 subsets"),
        (lambda: history(KNOWN, **VARIED, level=np.nan), ValueError, "`level` must be a number, got nan"),
        (lambda: history(KNOWN[:3], **VARIED)(OBSERVED, 0.0), ValueError, "`z` must have the frames of `known`, 3"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_with_the_way_out(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
