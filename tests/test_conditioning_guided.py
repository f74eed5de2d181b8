"""Guided denoisers: the formulas in closed form, in every kind of prediction, on every library, inside graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from libraries import host
from sampler_cases import RUNS, SAMPLERS, schedule_of

import diffcore as dc
from diffcore import conditioning, levels, predictions
from diffcore.conditioning import downsample, frame_average, moment_matching, reconstruction, replacement

jax.config.update("jax_platforms", "cpu")
torch.set_num_threads(1)

RNG = np.random.default_rng(1)
EVENT = (3, 2, 2, 1)
SIZE = 12
ROOT = RNG.normal(size=(SIZE, SIZE))
COVARIANCE = ROOT @ ROOT.T / SIZE + 0.1 * np.eye(SIZE)
DATA = dc.exact.Gaussian(RNG.normal(size=EVENT), COVARIANCE)
MASK = np.zeros(EVENT, dtype=bool)
MASK[0], MASK[1, 0] = True, True
Z, X = RNG.normal(size=(2, 2, *EVENT))
GIVEN = np.where(MASK, X, np.nan)
KINDS = ["x", "eps", "v", "score", "flow", "edm"]
MAKERS: dict[str, Callable[..., Any]] = {
    "reconstruction": lambda d, *a, **k: reconstruction(d, *a, weight=2.0, **k),
    "moment_matching": moment_matching,
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
every_kind = pytest.mark.parametrize("kind", KINDS)
every_scaling = pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])


def schedule(scaling: str = "vp") -> Any:
    return schedule_of(scaling)


def saying(kind: str, scaling: str = "vp", data: Any = DATA) -> Callable[[Any, Any], Any]:
    """The exact denoiser, saying another kind of prediction."""
    exact = data.with_scaling(scaling)

    def call(z: Any, log_snr: Any) -> Any:
        x = exact(z, log_snr)
        return predictions.convert(x, z, levels.level(log_snr, scaling), source="x", target=kind)

    return call


def to_x(y: Any, z: Any, log_snr: Any, kind: str, scaling: str) -> Any:
    return predictions.convert(host(y), host(z), levels.level(host(log_snr), scaling), source=kind, target="x")


def jacobian(z: Any, log_snr: Any, scaling: str) -> Any:
    """d x-hat / d z, (B, D, D), from the posterior covariance: C = J diag(sigma^2 / alpha)."""
    level = levels.level(log_snr, scaling)
    covariance = DATA.with_scaling(scaling).posterior_covariance(z, log_snr)
    ratio = np.broadcast_to(
        np.reshape(level.alpha / level.sigma**2, np.shape(log_snr) + (1,) * (5 - np.ndim(log_snr))), z.shape
    )
    return covariance * ratio.reshape(len(z), 1, SIZE)


@every_kind
@every_scaling
@pytest.mark.parametrize("lead", [(2,), (2, 3)])
def test_reconstruction_is_its_formula(kind: str, scaling: str, lead: tuple[int, ...]) -> None:
    """x~^b = x-hat^b + w alpha J_ab^T (x^a - x-hat^a), half the gradient of the square; x~^a = x-hat^a."""
    log_snr = RNG.normal(size=lead)
    weight = lambda at: 3.0 + 0.5 * at  # noqa: E731
    guided = reconstruction(
        saying(kind, scaling), GIVEN, MASK, weight=weight, prediction=kind, schedule=schedule(scaling)
    )
    z, at = torch.from_numpy(Z), torch.from_numpy(log_snr)
    found = to_x(guided(z, at), z, at, kind, scaling)
    x = DATA.with_scaling(scaling)(Z, log_snr)
    lined = lambda part: np.reshape(part, lead + (1,) * (5 - len(lead)))  # noqa: E731
    residual = np.where(MASK, lined(weight(log_snr)) * (X - x), 0.0).reshape(2, 1, SIZE)
    pulled = (residual @ jacobian(Z, log_snr, scaling)).reshape(Z.shape)
    want = np.where(MASK, x, x + lined(levels.level(log_snr, scaling).alpha) * pulled)
    np.testing.assert_allclose(found, want, rtol=1e-8, atol=1e-8)


def test_the_libraries_agree_and_numpy_has_the_exact_denoisers() -> None:
    log_snr = np.array([0.4, -1.0])
    for make in MAKERS.values():
        want = make(DATA, GIVEN, MASK, schedule=schedule())(Z, log_snr)
        guided = make(DATA, GIVEN, MASK, schedule=schedule())
        np.testing.assert_allclose(host(guided(torch.from_numpy(Z), torch.from_numpy(log_snr))), want, atol=1e-10)
        with jax.enable_x64(True):
            np.testing.assert_allclose(host(guided(jnp.asarray(Z), jnp.asarray(log_snr))), want, atol=1e-10)
        np.testing.assert_allclose(host(guided(torch.from_numpy(Z), 0.4))[0], want[0], atol=1e-10)


def squares(x: Any) -> Any:
    """A measurement that is not linear, of another shape than x."""
    return x[:, :2, :, 0, :] ** 2 + 0.3 * x[:, 1:, :, 1, :]


def test_the_gradient_of_any_measurement_is_that_of_finite_differences() -> None:
    """Through a denoiser and a measurement that are not linear, with respect to all of z; a sum over each sample."""
    mixture = dc.exact.Mixture(np.array([0.3, 0.7]), np.stack([DATA.mean, -DATA.mean]), 0.5)
    y, mask = RNG.normal(size=(2, 2, 2, 1)), np.array([1.0, 0.0]).reshape(2, 1, 1)
    guided = reconstruction(mixture, y, mask, measure=squares, weight=1.5, schedule=schedule())
    z, log_snr = torch.from_numpy(Z), torch.tensor([0.5, -0.5], dtype=torch.float64)
    found = host(guided(z, log_snr))

    def loss(z: Any) -> Any:
        left = mask * (y - squares(mixture(z, host(log_snr))))
        return (left**2).sum(axis=(1, 2, 3))

    want, step = mixture(Z, host(log_snr)), 1e-5
    for i in np.ndindex(EVENT):
        apart = np.zeros(EVENT)
        apart[i] = step
        slope = (loss(Z + apart) - loss(Z - apart)) / (2.0 * step)
        want[(slice(None), *i)] -= 0.5 * 1.5 * levels.level(host(log_snr)).alpha * slope
    np.testing.assert_allclose(found, want, atol=1e-7)


@every_maker
def test_sample_i_does_not_know_its_batch(make: Callable[..., Any]) -> None:
    z, at = torch.from_numpy(Z), torch.tensor([0.5, -1.0], dtype=torch.float64)
    both = make(DATA, GIVEN, MASK, schedule=schedule())(z, at)
    for i in range(2):
        alone = make(DATA, GIVEN[i : i + 1], MASK, schedule=schedule())(z[i : i + 1], at[i : i + 1])
        np.testing.assert_allclose(host(alone)[0], host(both)[i], rtol=1e-10)


@every_maker
def test_several_conditions_call_the_denoiser_once(make: Callable[..., Any]) -> None:
    calls = []

    def counted(z: Any, log_snr: Any) -> Any:
        calls.append(1)
        return DATA(z, log_snr)

    z, at = torch.from_numpy(Z), torch.tensor([0.5, -1.0], dtype=torch.float64)
    first = make(counted, GIVEN, MASK, prediction="x", schedule=schedule())
    both = make(first, downsample(2)(X), measure=downsample(2))
    calls.clear()
    found = host(both(z, at))
    assert len(calls) == 1
    other = make(make(DATA, downsample(2)(X), measure=downsample(2), schedule=schedule()), GIVEN, MASK)
    np.testing.assert_allclose(found, host(other(z, at)), atol=1e-7)


def test_reconstruction_of_several_conditions_is_the_sum() -> None:
    z, at = torch.from_numpy(Z), torch.tensor([0.5, -1.0], dtype=torch.float64)
    frames = reconstruction(DATA, GIVEN, MASK, weight=2.0, schedule=schedule())
    small = reconstruction(DATA, downsample(2)(X), measure=downsample(2), weight=3.0, schedule=schedule())
    both = reconstruction(frames, downsample(2)(X), measure=downsample(2), weight=3.0)
    x = host(DATA(z, at))
    moves = [host(guided(z, at)) - x for guided in (frames, small, both)]
    np.testing.assert_allclose(moves[2][:, ~MASK], (moves[0] + moves[1])[:, ~MASK], atol=1e-12)
    assert not moves[2][:, MASK].any()


@every_kind
@every_maker
def test_finite_at_both_ends(kind: str, make: Callable[..., Any]) -> None:
    """Where x-hat cannot be told, or cannot move, the prediction stays what it was."""
    z = torch.from_numpy(Z)
    for end in (-np.inf, np.inf):

        def fixed(z: Any, log_snr: Any) -> Any:
            return 0.3 * z + 0.1 * z.mean(1, keepdim=True)

        guided = make(fixed, GIVEN, MASK, prediction=kind, schedule=schedule())
        found = guided(z, torch.full((2,), end, dtype=torch.float64))
        assert torch.isfinite(found).all()
        if (kind in ("eps", "score") and end < 0) or (kind != "x" and end > 0):
            assert torch.equal(found, fixed(z, None))


@every_maker
def test_nothing_known_changes_nothing_and_everything_known_is_finite(make: Callable[..., Any]) -> None:
    z, at = torch.from_numpy(Z), torch.tensor([0.5, -1.0], dtype=torch.float64)
    nothing = make(saying("v"), X, np.zeros(EVENT, bool), prediction="v", schedule=schedule())
    assert torch.equal(nothing(z, at), saying("v")(z, at))
    everything = make(DATA, X, schedule=schedule())
    assert torch.isfinite(everything(z, at)).all()
    if make is moment_matching:
        np.testing.assert_allclose(host(everything(z, at)), X, atol=1e-5)
    one = dc.exact.Gaussian(np.zeros((1, 2, 1, 1)), 1.0)  # a clip of one frame, its upper pixel known
    known = np.array([1, 0]).reshape(1, 2, 1, 1)
    guided = make(one, np.ones((1, 2, 1, 1)), known, schedule=schedule())
    held = replacement(np.ones((1, 2, 1, 1)), known)
    plan = SAMPLERS["ancestral"](schedule(), steps=4)
    clip = dc.sample(guided, plan, shape=(2, 1, 2, 1, 1), like=torch.zeros(1), seed=1, constraint=held)
    assert torch.isfinite(clip).all()
    assert (clip[:, 0, 0] == 1.0).all()


def test_weight_zero_is_off() -> None:
    z, at = torch.from_numpy(Z), torch.tensor([0.5, -1.0], dtype=torch.float64)
    guided = reconstruction(saying("eps"), GIVEN, MASK, weight=0.0, prediction="eps", schedule=schedule())
    assert torch.equal(guided(z, at), saying("eps")(z, at))


def net(z: Any, log_snr: Any) -> Any:
    """A network in miniature that runs on torch and JAX, mixes frames, and is not linear."""
    return 0.4 * z - 0.3 * (z**2 / (1.0 + z**2)).mean(1, keepdims=True)


@pytest.mark.parametrize("name", RUNS)
@every_maker
def test_every_plan_and_every_kind_of_prediction(name: str, make: Callable[..., Any]) -> None:
    plan = SAMPLERS[name](schedule(), steps=3)
    held = replacement(GIVEN, MASK, variant="posterior")
    for kind in KINDS:
        guided = make(net, GIVEN, MASK, prediction=kind, schedule=schedule())
        clip = dc.sample(guided, plan, shape=Z.shape, like=torch.zeros(1), seed=1, constraint=held)
        assert torch.isfinite(clip).all()
        np.testing.assert_array_equal(host(clip)[:, MASK], X.astype(np.float32)[:, MASK])


@every_maker
def test_on_jax_a_guided_run_is_one_trace_with_a_gradient(make: Callable[..., Any]) -> None:
    calls = []

    def counted(z: Any, log_snr: Any) -> Any:
        calls.append(1)
        return net(z, log_snr)

    plan = SAMPLERS["dpm_solver_pp"](schedule(), steps=4)
    guided = make(counted, GIVEN, MASK, prediction="v", schedule=schedule())
    held = replacement(GIVEN, MASK)
    run = lambda z: dc.sample(guided, plan, z, seed=1, constraint=held)  # noqa: E731
    z = jnp.asarray(Z, dtype=jnp.float32)
    clip = run(z)
    assert len(calls) == 1
    np.testing.assert_allclose(host(jax.jit(run)(z)), host(clip), atol=1e-5)
    other = make(net, GIVEN, MASK, prediction="v", schedule=schedule())
    want = dc.sample(other, plan, torch.from_numpy(Z).float(), seed=1, constraint=held)
    np.testing.assert_allclose(host(clip), host(want), atol=2e-3)


@every_maker
def test_on_torch_a_guided_denoiser_is_one_graph(make: Callable[..., Any]) -> None:
    z, at = torch.from_numpy(Z).float(), torch.tensor([0.3, -1.0])
    clip, mask = torch.from_numpy(X).float(), torch.from_numpy(MASK)
    guided = make(net, clip, mask, prediction="v", schedule=schedule())
    guided = make(guided, downsample(2)(clip), measure=downsample(2))
    with torch.no_grad():
        whole = torch.compile(guided, fullgraph=True, backend="eager")
        torch.testing.assert_close(whole(z, at), guided(z, at))


@every_maker
def test_what_is_recorded_outside_does_not_matter(make: Callable[..., Any]) -> None:
    plan = SAMPLERS["ancestral"](schedule(), steps=3)
    weight = torch.tensor(0.4, requires_grad=True)
    call = lambda z, log_snr: weight * net(z, log_snr)  # noqa: E731
    guided = make(call, GIVEN, MASK, prediction="v", schedule=schedule())
    kept: dict[str, Any] = {"shape": Z.shape, "like": torch.zeros(1), "seed": 1}
    clip = dc.sample(guided, plan, **kept)
    assert not clip.requires_grad
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(dc.sample(guided, plan, **kept), clip)
    silent = make(torch.no_grad()(call), GIVEN, MASK, prediction="v", schedule=schedule())
    with pytest.warns(RuntimeWarning, match=r"gradient is needed.*torch.no_grad"):
        dc.sample(silent, plan, **kept)


def test_classifier_free_guidance_inside_and_around() -> None:
    """Inside, the gradient goes through both passes; around, each pass is guided. On linear denoisers both are known."""
    z, at = torch.from_numpy(Z), torch.tensor([0.5, -1.0], dtype=torch.float64)
    other = dc.exact.Gaussian(-DATA.mean, 0.7, scaling="vp")
    data = DATA.with_scaling("vp")
    kept: dict[str, Any] = {"weight": 2.0, "prediction": "x", "schedule": schedule()}
    inside = reconstruction(dc.guidance.classifier_free(data, other, weight=1.5), GIVEN, MASK, **kept)
    both = lambda z, log_snr: 2.5 * data(z, log_snr) - 1.5 * other(z, log_snr)  # noqa: E731
    torch.testing.assert_close(inside(z, at), reconstruction(both, GIVEN, MASK, **kept)(z, at))
    guided = [reconstruction(d, GIVEN, MASK, **kept) for d in (data, other)]
    around = dc.guidance.classifier_free(*guided, weight=1.5)
    torch.testing.assert_close(around(z, at), 2.5 * guided[0](z, at) - 1.5 * guided[1](z, at))
    assert (inside.prediction, around.prediction, around.scaling) == ("x", "x", "vp")
    interval = dc.guidance.classifier_free(data, lambda z, l: 1 / 0, weight=2.0, interval=(5.0, 6.0))
    quiet = reconstruction(interval, GIVEN, MASK, **kept).at(0.0)  # the conditional pass only
    torch.testing.assert_close(quiet(z, at), guided[0](z, at))


def test_half_precision_is_computed_in_single() -> None:
    z, at = torch.from_numpy(Z).to(torch.bfloat16), torch.tensor([0.5, -1.0])
    for make in MAKERS.values():
        guided = make(net, GIVEN, MASK, prediction="v", schedule=schedule())
        found = guided(z, at)
        assert found.dtype == torch.bfloat16
        np.testing.assert_allclose(host(found), host(guided(z.float(), at)), atol=0.1)


def test_the_scaling_comes_from_the_schedule_the_denoiser_or_the_plan() -> None:
    plan = SAMPLERS["ddim"](schedule_of("flow"), steps=4)
    kept: dict[str, Any] = {"shape": Z.shape, "like": torch.zeros(1), "seed": 1}
    for make in MAKERS.values():
        guided = [
            make(DATA, GIVEN, MASK, schedule=schedule_of("flow")),
            make(DATA.with_scaling("flow"), GIVEN, MASK),
            make(DATA, GIVEN, MASK),
        ]
        clips = [dc.sample(one, plan, **kept) for one in guided]
        assert torch.equal(clips[0], clips[1])
        assert torch.equal(clips[0], clips[2])
        with pytest.raises(ValueError, match=r"'vp'.*'flow'"):
            dc.sample(make(DATA, GIVEN, MASK, schedule=schedule()), plan, **kept)
        with pytest.raises(ValueError, match=r"scaling is not known.*`schedule`"):
            guided[2](torch.from_numpy(Z), 0.0)
        with pytest.raises(ValueError, match=r"must have the denoiser's scaling, 'flow', got 'vp'"):
            make(DATA.with_scaling("flow"), GIVEN, MASK, schedule=schedule())


S = schedule_of("vp")
T = torch.from_numpy(Z)
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: reconstruction(net, X, MASK, weight=1.0, schedule=S), TypeError, "`prediction` must be .*, got None"),
    (
        lambda: reconstruction(net, X, MASK, weight=1.0, prediction="noise"),
        ValueError,
        "`prediction` must be .*, got 'noise'",
    ),
    (
        lambda: reconstruction(DATA, X, MASK, weight=1.0, prediction="v"),
        ValueError,
        "`prediction` must be 'x', .*, got 'v'",
    ),
    (
        lambda: reconstruction(net, X, MASK, weight=np.nan, prediction="v"),
        ValueError,
        "`weight` must be a finite number, got nan; or a function",
    ),
    (
        lambda: reconstruction(3, X, MASK, weight=1.0, prediction="v"),
        TypeError,
        "`denoise` must be a function .*, got 3",
    ),
    (
        lambda: reconstruction(net, X, measure=2, weight=1.0, prediction="v"),
        TypeError,
        "`measure` must be a function .*, got 2",
    ),
    (
        lambda: reconstruction(net, X, MASK, weight=1.0, prediction="v", schedule="vp"),
        TypeError,
        "`schedule` must be a schedule, .*, got 'vp'",
    ),
    (
        lambda: moment_matching(DATA, X, MASK, noise_std=-1.0),
        ValueError,
        "`noise_std` must be a finite number >= 0, got -1.0",
    ),
    (lambda: moment_matching(DATA, X, MASK, iterations=0), ValueError, "`iterations` must be an int >= 1, got 0"),
    (lambda: moment_matching(DATA, X * np.inf, MASK), ValueError, "must be finite"),
    (lambda: moment_matching(DATA, X[..., 0] > 0, MASK), TypeError, "bool.*floating"),
    (
        lambda: reconstruction(net, X, MASK, weight=1.0, prediction="v", schedule=S)(Z, 0.0),
        TypeError,
        "no gradients.*torch or JAX.*replacement",
    ),
    (
        lambda: reconstruction(net, X, measure=downsample(2), weight=1.0, prediction="v", schedule=S)(T, 0.0),
        ValueError,
        r"`observed` must broadcast to .*\(2, 3, 1, 1, 1\).*got shape \(2, 3, 2, 2, 1\).*`measure\(x\)`",
    ),
    (
        lambda: moment_matching(lambda z, l: z[:1], X, MASK, prediction="v", schedule=S)(T, 0.0),
        ValueError,
        r"must return the shape of z, \(2, 3, 2, 2, 1\), got \(1, 3, 2, 2, 1\)",
    ),
    (lambda: downsample(3)(Z), ValueError, "multiple of 3"),
    (lambda: downsample(0), ValueError, "`factor` must be an int >= 1, got 0"),
    (lambda: frame_average(2)(Z), ValueError, "multiple of 2"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_input_says_what_to_do(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_measurements_are_means() -> None:
    x = np.arange(2 * 4 * 4 * 2.0).reshape(1, 2, 4, 4, 2)
    np.testing.assert_array_equal(downsample((2, 4))(x)[0, 1, 1, 0], x[0, 1, 2:, :].mean(axis=(0, 1)))
    np.testing.assert_array_equal(frame_average(2)(x)[0, 0], x[0].mean(axis=0))
    assert conditioning.Downsample((2, 2)) == downsample(2)
