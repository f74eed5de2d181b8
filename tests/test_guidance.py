"""Guidance: its two conventions, and which passes run where."""

import importlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from diffcore import guidance, predictions
from diffcore.levels import level

LIBRARIES = [
    "numpy",
    "array_api_strict",
    pytest.param("torch", marks=pytest.mark.torch),
    pytest.param("jax.numpy", marks=pytest.mark.jax),
]
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(2, 3, 4))
COND, NULL = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(1, 3, 4))


def namespace(name: str) -> Any:
    return importlib.import_module(name)


class Counted:
    """A denoiser that counts its calls and the samples in them."""

    def __init__(self, slope: float, offset: float = 0.0) -> None:
        self.slope, self.offset, self.batches = slope, offset, list[int]()

    def __call__(self, z: Any, log_snr: Any, cond: Any = None) -> Any:
        self.batches.append(z.shape[0])
        return z * self.slope + (self.offset if cond is None else cond)


@pytest.mark.parametrize("weight", [-1.0, 0.0, 0.5, 2.0])
def test_the_two_conventions_differ_by_one(weight: float) -> None:
    c, u = Counted(2.0, 1.0), Counted(-1.0)
    truth = (1 + weight) * (2.0 * Z + 1.0) - weight * (-Z)
    np.testing.assert_allclose(guidance.classifier_free(c, u, weight=weight)(Z, 0.0), truth, rtol=1e-13)
    np.testing.assert_allclose(guidance.classifier_free(c, u, scale=1.0 + weight)(Z, 0.0), truth, rtol=1e-13)


def test_weight_zero_is_off_and_calls_no_unconditional_model() -> None:
    c, u = Counted(2.0), Counted(-1.0)
    np.testing.assert_array_equal(guidance.classifier_free(c, u, weight=0)(Z, 0.0), 2.0 * Z)
    assert (c.batches, u.batches) == ([2], [])
    one = Counted(2.0)
    guidance.classifier_free(one, cond=COND, null=NULL, scale=1.0)(Z, 0.0)
    assert one.batches == [2]


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_doubled_batch_is_two_passes(library: str) -> None:
    xp = namespace(library)
    z, cond, null, log_snr = (xp.asarray(a) for a in (Z, COND, NULL, np.zeros(2)))
    one = Counted(0.5)
    found = guidance.classifier_free(one, cond=cond, null=null, weight=2.0)(z, log_snr)
    two = guidance.classifier_free(lambda z, _: one(z, _, cond), lambda z, _: one(z, _, null), weight=2.0)(z, log_snr)
    assert one.batches == [4, 2, 2]
    np.testing.assert_allclose(np.asarray(found), np.asarray(two), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(found), 0.5 * Z + 3.0 * COND - 2.0 * NULL, rtol=1e-5)


class Text(NamedTuple):
    tokens: Any
    kind: str


def test_conditions_may_be_nested_and_a_batch_of_one_serves_all() -> None:
    seen: list[Any] = []

    def denoise(z: Any, log_snr: Any, cond: Any) -> Any:
        seen.append(cond)
        return z

    cond = {"text": Text(np.ones((2, 5)), "bert"), "image": [np.ones((1, 3)), None], "label": (np.array([3, 4]),)}
    null = {"text": Text(np.zeros((1, 5)), "bert"), "image": [np.zeros((1, 3)), None], "label": (np.array([0]),)}
    guidance.classifier_free(denoise, cond=cond, null=null, weight=1.0)(Z, np.zeros(2))
    found = seen[0]
    assert isinstance(found["text"], Text)
    assert found["text"].kind == "bert"
    assert found["image"][1] is None
    np.testing.assert_array_equal(found["text"].tokens, [[1.0] * 5] * 2 + [[0.0] * 5] * 2)
    np.testing.assert_array_equal(found["image"][0], [[1.0] * 3] * 2 + [[0.0] * 3] * 2)
    np.testing.assert_array_equal(found["label"][0], [3, 4, 0, 0])


@pytest.mark.parametrize("shape", [(), (2,), (1,), (2, 3), (1, 3)])
def test_levels_of_every_shape_reach_the_doubled_batch(shape: tuple[int, ...]) -> None:
    log_snr = RNG.normal(size=shape)

    def denoise(z: Any, at: Any, cond: Any) -> Any:
        at = np.asarray(at)
        return z * at.reshape(at.shape + (1,) * (z.ndim - at.ndim)) + cond

    found = guidance.classifier_free(denoise, cond=COND, null=NULL, weight=1.0)(Z, log_snr)
    expanded = log_snr.reshape(shape + (1,) * (3 - len(shape)))
    np.testing.assert_allclose(found, Z * expanded + 2 * COND - NULL, rtol=1e-12)


def test_a_batch_of_one_and_an_empty_axis() -> None:
    one = Counted(0.5)
    found = guidance.classifier_free(one, cond=COND[:1], null=NULL, weight=2.0)(Z[:1], np.zeros(1))
    np.testing.assert_allclose(found, 0.5 * Z[:1] + 3.0 * COND[:1] - 2.0 * NULL)
    empty = np.zeros((2, 0, 4))
    assert guidance.classifier_free(Counted(1.0), Counted(2.0), weight=1.0)(empty, np.zeros(2)).shape == (2, 0, 4)


def test_a_negative_condition_is_a_null_that_guidance_leads_away_from() -> None:
    """With prediction c = z + cond, the guided prediction moves from the negative condition by w (cond - negative)."""
    one = Counted(1.0)
    found = guidance.classifier_free(one, cond=COND, null=-COND, weight=1.0)(Z, 0.0)
    np.testing.assert_allclose(found, Z + COND + 1.0 * (COND - -COND), rtol=1e-13)


@pytest.mark.parametrize("kind", ["x", "v", "score", "flow"])
def test_guidance_is_the_same_in_every_prediction(kind: str) -> None:
    """All kinds are affine in one another at one z, and (1 + w) - w = 1."""
    at = level(0.7)
    as_eps = guidance.classifier_free(Counted(0.3, 0.1), Counted(-0.2), weight=3.0)(Z, 0.7)
    to: Any = lambda eps: predictions.convert(eps, Z, at, source="eps", target=kind)  # noqa: E731
    c, u = Counted(0.3, 0.1), Counted(-0.2)
    found = guidance.classifier_free(lambda z, l: to(c(z, l)), lambda z, l: to(u(z, l)), weight=3.0)(Z, 0.7)
    np.testing.assert_allclose(found, to(as_eps), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_outside_the_interval_the_conditional_prediction_stands(library: str, rescale: float) -> None:
    xp = namespace(library)
    settings: Any = {"weight": 3.0, "rescale": rescale}
    always = guidance.classifier_free(Counted(2.0, 1.0), Counted(-1.0), **settings)
    within = guidance.classifier_free(Counted(2.0, 1.0), Counted(-1.0), **settings, interval=(-1.0, 2.0))
    z = xp.asarray(Z)
    for levels, active in (([-3.0, 5.0], [0, 0]), ([-1.0, 2.0], [1, 1]), ([0.0, 5.0], [1, 0])):
        log_snr = np.asarray(levels)
        guided, c = np.asarray(always(z, xp.asarray(log_snr))), 2.0 * Z + 1.0
        truth = np.where(np.asarray(active, dtype=bool)[:, None, None], guided, c)
        np.testing.assert_allclose(np.asarray(within(z, xp.asarray(log_snr))), truth, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(within.at(log_snr)(z, xp.asarray(log_snr))), truth, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(within(z, log_snr)), truth, rtol=1e-5)  # known on the host


@pytest.mark.parametrize("library", LIBRARIES)
def test_outside_the_interval_only_the_conditional_pass_runs(library: str) -> None:
    xp = namespace(library)
    z, log_snr = xp.asarray(Z), xp.asarray(np.full(2, 5.0))
    c, u, one = Counted(2.0), Counted(-1.0), Counted(0.5)
    guidance.classifier_free(c, u, weight=3.0, interval=(-1.0, 2.0)).at(5.0)(z, log_snr)
    cond, null = xp.asarray(COND), xp.asarray(NULL)
    guidance.classifier_free(one, cond=cond, null=null, weight=3.0, interval=(-1.0, 2.0)).at(5.0)(z, log_snr)
    assert (c.batches, u.batches, one.batches) == ([2], [], [2])
    guidance.classifier_free(c, u, weight=3.0, interval=(-1.0, 2.0))(z, 5.0)  # a number is known on the host
    assert (c.batches, u.batches) == ([2, 2], [])


@pytest.mark.jax
def test_on_jax_the_branch_is_taken_on_the_device() -> None:
    import jax
    import jax.numpy as jnp

    calls: list[float] = []

    def unconditional(z: Any, log_snr: Any) -> Any:
        jax.debug.callback(lambda at: calls.append(float(at)), log_snr[0])
        return -z

    guided = guidance.classifier_free(lambda z, _: 2.0 * z, unconditional, weight=3.0, interval=(-1.0, 2.0))
    run = jax.jit(guided)
    z = jnp.asarray(Z)
    outside = run(z, jnp.full(2, 5.0))
    inside = run(z, jnp.full(2, 0.5))
    jax.effects_barrier()
    assert calls == [0.5]
    np.testing.assert_allclose(outside, 2.0 * Z, rtol=1e-6)
    np.testing.assert_allclose(inside, 11.0 * Z, rtol=1e-5)
    scanned = jax.lax.scan(lambda z, at: (z, guided(z, at)), z, jnp.asarray([[5.0, 5.0], [0.5, 5.0]]))[1]
    np.testing.assert_allclose(scanned[1], np.stack([11.0 * Z[0], 2.0 * Z[1]]), rtol=1e-5)
    gradient = jax.grad(lambda z: jnp.sum(guided(z, jnp.full(2, 0.5))))(z)
    np.testing.assert_allclose(gradient, np.full(Z.shape, 11.0), rtol=1e-5)


@pytest.mark.torch
def test_one_graph_on_torch_with_the_interval_the_weight_and_the_threshold() -> None:
    import torch

    guided = guidance.classifier_free(
        lambda z, log_snr, cond: 2.0 * z + cond["c"],
        cond={"c": torch.asarray(COND)},
        null={"c": torch.asarray(NULL)},
        weight=lambda at: at * at,
        rescale=0.5,
        interval=(-1.0, 2.0),
    )
    threshold, clip = guidance.dynamic_threshold(0.9), guidance.clip(-2.0, 2.0)
    stage: Any = lambda z, log_snr: clip(threshold(guided(z, log_snr)))  # noqa: E731
    z, log_snr = torch.asarray(Z), torch.tensor([0.5, 5.0], dtype=torch.float64)
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z, log_snr), stage(z, log_snr))
    gradient = torch.func.grad(lambda z: stage(z, log_snr).sum())(z)
    assert torch.all(torch.isfinite(gradient))


@pytest.mark.torch
def test_half_precision_is_combined_in_float32() -> None:
    import torch

    c, u = torch.asarray(COND).to(torch.bfloat16), torch.asarray(Z).to(torch.bfloat16)
    found = guidance.classifier_free(lambda *_: c, lambda *_: u, weight=7.5, rescale=0.7)(u, torch.zeros(2))
    exact = guidance.classifier_free(lambda *_: c.double(), lambda *_: u.double(), weight=7.5, rescale=0.7)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact(u.double(), torch.zeros(2)).to(torch.bfloat16), rtol=2**-8, atol=1e-6)


@dataclass(frozen=True)
class Scaled:
    """A denoiser that says what it predicts, and of what scaling it is."""

    prediction: str = "x"
    scaling: str | None = None

    def __call__(self, z: Any, log_snr: Any) -> Any:
        return z

    def with_scaling(self, scaling: str) -> "Scaled":
        return replace(self, scaling=scaling)


def test_what_the_denoiser_says_of_itself_is_said_by_the_wrapper() -> None:
    guided = guidance.classifier_free(Scaled(), Scaled(), weight=1.0)
    assert guided.prediction == "x"
    assert guided.scaling is None
    assert guided.with_scaling("flow").scaling == "flow"
    plain = guidance.classifier_free(Counted(1.0), Counted(1.0), weight=1.0)
    assert not any(hasattr(plain, name) for name in ("prediction", "scaling", "with_scaling", "other"))
    with pytest.raises(ValueError, match=r"`unconditional` must have the `prediction` of `denoise`, 'x', got 'v'"):
        guidance.classifier_free(Scaled(), Scaled(prediction="v"), weight=1.0)


def test_guidance_of_guidance_hands_the_level_down() -> None:
    inner_u = Counted(-1.0)
    inner = guidance.classifier_free(Counted(2.0), inner_u, weight=1.0, interval=(0.0, 1.0))
    guidance.classifier_free(inner, Counted(0.0), weight=1.0).at(5.0)(Z, np.full(2, 5.0))
    assert inner_u.batches == []


def test_sample_takes_the_wrapper_and_leaves_out_the_passes_outside_the_interval() -> None:
    import diffcore as dc

    plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=8)
    c, u = Counted(0.5), Counted(0.25)
    guided = guidance.classifier_free(c, u, weight=2.0, interval=(-5.0, 5.0))
    found = dc.sample(guided, plan, np.ones((2, 3)), prediction="x", transform_x=guidance.clip(-1.0, 1.0))
    inside = int(np.sum((plan.log_snr >= -5.0) & (plan.log_snr <= 5.0)))
    assert (len(c.batches), len(u.batches)) == (8, inside)
    assert np.max(np.abs(found)) <= 1.0


MODEL = Counted(1.0)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((MODEL, MODEL), {}, ValueError, r"give exactly one of `weight`, w of .* and `scale` = 1 \+ w"),
        ((MODEL, MODEL), {"weight": 1.0, "scale": 2.0}, ValueError, r"give exactly one of `weight`"),
        (
            (MODEL, MODEL),
            {"weight": float("nan")},
            ValueError,
            r"`weight` must be a finite number, or an array .*, got nan",
        ),
        ((MODEL, MODEL), {"scale": "7.5"}, TypeError, r"`scale` must be .*, got '7\.5'"),
        ((MODEL, MODEL), {"weight": [1.0, 2.0]}, TypeError, r"`weight` must be .*, got \[1\.0, 2\.0\]"),
        ((MODEL, MODEL), {"weight": np.array([1.0, np.inf])}, ValueError, r"`weight` must be a finite .*, got ndarray"),
        ((MODEL, MODEL), {"weight": True}, TypeError, r"`weight` must be .*, got True"),
        (
            (MODEL, MODEL),
            {"weight": 1.0, "rescale": 1.5},
            ValueError,
            r"`rescale` must be a number in \[0, 1\], got 1\.5",
        ),
        (
            (MODEL, MODEL),
            {"weight": 1.0, "interval": (2.0, 1.0)},
            ValueError,
            r"`interval` must be .*, got \(2\.0, 1\.0\)",
        ),
        ((MODEL, 3.0), {"weight": 1.0}, TypeError, r"`unconditional` must be a function .*, got 3\.0"),
        ((MODEL,), {"weight": 1.0}, TypeError, r"give either \(denoise_cond, denoise_uncond\), or"),
        ((MODEL,), {"weight": 1.0, "cond": COND}, TypeError, r"give either \(denoise_cond, denoise_uncond\), or"),
        (
            (MODEL,),
            {"weight": 1.0, "cond": COND, "null": NULL[..., :2]},
            ValueError,
            r"`null` must have the shape of `cond`",
        ),
        (
            (MODEL,),
            {"weight": 1.0, "cond": {"a": COND}, "null": {"b": NULL}},
            ValueError,
            r"`null` must have the keys \['a'\] of `cond`",
        ),
        (
            (MODEL,),
            {"weight": 1.0, "cond": [COND], "null": [NULL, NULL]},
            ValueError,
            r"`null` must be a sequence of length 1",
        ),
        (
            (MODEL,),
            {"weight": 1.0, "cond": {"a": "x"}, "null": {"a": "y"}},
            ValueError,
            r"`null\['a'\]` must be 'x', .* got 'y'",
        ),
    ],
)
def test_bad_settings_are_refused_with_the_way_out(
    arguments: tuple[Any, ...], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        guidance.classifier_free(*arguments, **settings)


def test_conditions_that_do_not_fit_the_batch_are_refused() -> None:
    guided = guidance.classifier_free(MODEL, cond=COND, null=NULL, weight=1.0)
    with pytest.raises(ValueError, match=r"`cond` must have a first axis of 3, the batch, or 1, got .* \(2, 3, 4\)"):
        guided(np.zeros((3, 3, 4)), np.zeros(3))
    folded = guidance.classifier_free(lambda z, *_: z[:1], cond=COND, null=NULL, weight=1.0)
    with pytest.raises(ValueError, match=r"`denoise` must return a batch of 4, .* got ndarray of shape \(1, "):
        folded(Z, np.zeros(2))
