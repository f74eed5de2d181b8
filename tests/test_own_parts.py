"""Wrappers, constraints, rules and schedules of one's own: they do what ours do, and what is wrong is said where it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from libraries import every_framework, example, host, put

import diffcore as dc
from diffcore import testing

PLAN = dc.samplers.ddim(dc.schedules.Cosine(), steps=3)
Z = np.linspace(-1.0, 1.0, 6).reshape(2, 3)


def denoise(z: Any, log_snr: Any) -> Any:
    return 0.5 * z


def constraint(begin: Any = lambda state: state.z, after: Any = lambda state: state.z) -> Any:
    held = SimpleNamespace(begin=lambda state, noise: begin(state), after=lambda before, state, noise: after(state))
    return SimpleNamespace(hold=lambda plan, z: held)


WRONG: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "None": (lambda state: None, TypeError, "got None"),
    "a State": (lambda state: state, TypeError, "take its `.z`"),
    "a list": (lambda state: state.z.tolist(), TypeError, r"got \[\["),
    "a sample": (lambda state: state.z[:1], ValueError, r"of shape \(1, 3\)"),
    "half": (lambda state: np.asarray(state.z).astype(np.float16), TypeError, "float16"),
    "another library": (
        lambda state: torch.tensor(state.z) if isinstance(state.z, np.ndarray) else state.z.numpy(),
        TypeError,
        r"got (Tensor|ndarray) of shape \(2, 3\)",
    ),
}


@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("method", ["begin", "after"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_constraint_returns_an_array_like_its_state(wrong: str, method: str, to: Any) -> None:
    """An array of one sample went on as a run of one sample; one of another dtype as a run in that dtype."""
    returned, kind, says = WRONG[wrong]
    held = constraint(**{method: returned})
    like = r"an array like z of its state, \w+ of shape \(2, 3\) and dtype \S*float64"
    match = rf"`constraint\.{method}` must return {like}, .*{says}"

    def step(constraint: Any) -> Any:
        return dc.step(PLAN, dc.start(PLAN, to(Z)), to(Z), prediction="x", constraint=constraint)

    with pytest.raises(kind, match=match) as caught:
        dc.sample(denoise, PLAN, to(Z), prediction="x", constraint=held)
    assert not getattr(caught.value, "__notes__", [])
    by_hand: Callable[..., Any] = (
        (lambda constraint: dc.start(PLAN, to(Z), constraint=constraint)) if method == "begin" else step
    )
    with pytest.raises(kind, match=match):
        by_hand(constraint=held)
    assert dc.sample(denoise, PLAN, to(Z), prediction="x", constraint=constraint()).shape == (2, 3)


def test_a_constraint_holds_an_object_of_two_methods() -> None:
    for held in (None, SimpleNamespace(begin=lambda *_: Z), lambda before, state, noise: state.z):
        with pytest.raises(
            TypeError, match=r"sample: `constraint\.hold` must return an object with begin\(state, noise\)"
        ):
            dc.sample(
                denoise, PLAN, Z, prediction="x", constraint=SimpleNamespace(hold=lambda plan, z, held=held: held)
            )


def test_the_note_about_like_stands_where_another_library_was_meant() -> None:
    def notes(denoise: Any, **more: Any) -> str:
        with pytest.raises((TypeError, AttributeError)) as caught:
            dc.sample(denoise, PLAN, prediction="x", shape=(2, 3), **more)
        return " ".join(getattr(caught.value, "__notes__", []))

    linear = torch.nn.Linear(3, 3)
    for meant in (
        lambda z, _: linear(z),
        lambda z, _: z.unsqueeze(0),
        lambda z, _: torch.cat([z, z]),
        lambda z, _: z.view(z.size(0), -1),
        lambda z, _: z.mean(dim=1),
        lambda z, _: torch.zeros(2, 3),
        lambda z, _: z.at[0].set(0.0),
    ):
        assert "without `like`" in notes(meant)
    for other in (lambda z, _: None, lambda z, _: z.foo, lambda z, _: z + None, lambda z, _, cond: z):
        assert "without `like`" not in notes(other)
    assert "without `like`" not in notes(denoise, constraint=constraint(after=lambda state: None))
    assert "without `like`" not in notes(denoise, callback=lambda state: state.foo)


def test_a_rule_and_a_schedule_of_ones_own_are_subclasses() -> None:
    class Duck:
        scaling = "vp"

        def log_snr(self, t: Any) -> Any:
            return -t

    for rule in (lambda at: at.c, Duck):
        with pytest.raises(
            TypeError, match=r"`rule` must be a rule, .* is a subclass of guidance\.Rule with __call__\(self, at\)"
        ):
            dc.guidance.classifier_free(denoise, cond=Z, null=Z, weight=1.0, rule=rule)
    scheduler = SimpleNamespace(config={}, set_timesteps=None, alphas_cumprod=Z)
    calls: list[Callable[[Any], Any]] = [
        lambda schedule: dc.samplers.ddim(schedule, steps=3),
        lambda schedule: dc.grids.karras(schedule, 3),
        lambda schedule: dc.sample_adaptive(denoise, schedule, Z, prediction="x"),
    ]
    for given, says in (
        (Duck(), r"one of your own is a subclass of schedules\.Schedule"),
        (lambda t: -t, r"one of your own is a subclass of schedules\.Schedule"),
        (scheduler, r"interop\.diffusers\.schedule\(scheduler\)"),
        (np.linspace(1e-4, 0.02, 1000), r"schedules\.from_betas, from_alphas_cumprod or from_sigmas"),
        ("cosine", r"by name it is schedules\.by_name\('cosine'\)"),
        (dc.schedules.Cosine, r"call it: Cosine\(\)"),
    ):
        for call in calls:
            with pytest.raises(TypeError, match=rf"`schedule` must be a schedule, .*{says}"):
                call(given)


def test_a_rule_returns_an_array_like_c_in_a_space_that_there_is() -> None:
    """A mean was broadcast, so that every sample became one number."""

    def run(returned: Any, **fields: Any) -> Any:
        rule = type("Mine", (dc.guidance.Rule,), {"space": "x", "__call__": lambda _, at: returned(at), **fields})()
        guided = dc.guidance.classifier_free(
            lambda z, _, c: z + c, cond=Z[:1], null=Z[:1], weight=1.0, rule=rule, prediction="eps"
        )
        return dc.sample(guided, PLAN, Z)

    with pytest.raises(
        ValueError, match=r"`Mine\.__call__` must return an array of the shape of c, \(2, 3\), got .* shape \(1, 3\)"
    ):
        run(lambda at: at.c.mean(0, keepdims=True))
    with pytest.raises(TypeError, match=r"`Mine\.__call__` must return an array of the shape of c, \(2, 3\), got None"):
        run(lambda at: None)
    with pytest.raises(ValueError, match=r"`Mine\.space` must be .* got 'epsilon'"):
        run(lambda at: at.c, space="epsilon")
    np.testing.assert_allclose(run(lambda at: at.c), dc.sample(lambda z, _: z + Z[:1], PLAN, Z, prediction="eps"))


def test_a_denoiser_that_carries_or_knows_the_unguided_returns_as_many_things() -> None:
    def own(**methods: Any) -> Any:
        named = {"prediction": "x", "__call__": lambda _, z, log_snr: 0.5 * z, **methods}
        return type("Own", (), named)()

    both = own(with_unguided=lambda _, z, log_snr: 0.5 * z)  # of two samples, which were taken for the two predictions
    with pytest.raises(
        TypeError, match=r"`denoise\.with_unguided` must return \(prediction, prediction without guidance\), got nd"
    ):
        dc.sample(both, dc.samplers.euler_cfg_pp(dc.schedules.Cosine(), steps=3), Z)
    carries = own(begin=lambda _, z: (z,), carrying=lambda _, z, log_snr, carried: 0.5 * z)
    with pytest.raises(
        TypeError, match=r"`denoise\.carrying` must return \(prediction, .*, what the next stage gets\)"
    ):
        dc.sample(carries, PLAN, Z)
    with pytest.raises(TypeError, match=r"`denoise` must have a method begin\(z\)"):
        dc.sample(own(carrying=lambda _, z, log_snr, carried: (z, z, carried)), PLAN, Z)


def test_a_schedule_of_ones_own_says_its_scaling() -> None:
    with pytest.raises(TypeError, match=r"schedules.Mine: `schedule` must define a field `scaling`"):
        type("Mine", (dc.schedules.Schedule,), {**dict.fromkeys(("_time", "_slope")), "_log_snr": lambda *_: 0.0})()(
            0.5
        )
    with pytest.raises(TypeError, match=r"`schedule` must define a field `scaling`, 'vp', 've' or 'flow'"):
        dc.samplers.ddim(
            type("Mine", (dc.schedules.Schedule,), dict.fromkeys(("_log_snr", "_time", "_slope")))(), steps=3
        )


@dataclass(frozen=True)
class Blend:
    """The wrapper of docs/write_a_denoiser.md."""

    parts: ClassVar[tuple[str, ...]] = ("first", "second")
    first: Any
    second: Any
    middle: float = 0.0

    def __call__(self, z: Any, log_snr: Any) -> Any:
        xp = array_namespace(z)
        share = 1.0 / (1.0 + xp.exp(self.middle - log_snr))
        share = share.reshape(*share.shape, *(1,) * (z.ndim - share.ndim))
        return (1.0 - share) * self.first(z, log_snr) + share * self.second(z, log_snr)


@dataclass(frozen=True)
class Several:
    """A wrapper that keeps its denoisers in containers, and makes something of them when it is made."""

    parts: ClassVar = ("held",)
    held: dict[str, Any]
    names: list[str]
    chosen: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chosen", [self.held[name][0] for name in self.names])

    def __call__(self, z: Any, log_snr: Any) -> Any:
        return self.chosen[0](z, log_snr)


@dataclass(frozen=True, init=False)
class OwnInit:
    """A wrapper whose `__init__` takes something else than its fields."""

    parts: ClassVar = ("denoise",)
    denoise: Any

    def __init__(self, made: Callable[[], Any]) -> None:
        object.__setattr__(self, "denoise", made())
        object.__setattr__(self, "times", 1.0)

    def __call__(self, z: Any, log_snr: Any) -> Any:
        return self.times * self.denoise(z, log_snr)  # type: ignore[attr-defined]


G = dc.exact.Gaussian(np.zeros(3), np.array([0.3, 1.0, 2.0]))
ROUND: dict[str, Callable[[], Any]] = {
    "a wrapper": lambda: Blend(G, G),
    "wrappers round wrappers": lambda: Blend(Blend(G, G), dc.mesh.local(Blend(G, G))),
    "ours round it": lambda: dc.guidance.autoguidance(Blend(G, G), G, weight=1.0),
    "ours round two": lambda: dc.guidance.autoguidance(Blend(G, G), Blend(G, G), weight=1.0),
    "ours where only one says its scaling": lambda: dc.guidance.autoguidance(Flowing(), G, weight=1.0),
    "by a rule": lambda: dc.guidance.classifier_free(
        Flowing(), Blend(G, G), weight=1.0, rule=dc.guidance.projected(), prediction="x"
    ),
    "windows": lambda: replace(dc.video.windowed(G, 3), denoise=Blend(G, G)),
    "containers": lambda: Several({"a": (G, 2.0)}, ["a"]),
    "an `__init__` of its own": lambda: OwnInit(lambda: Blend(G, G)),
}


class Flowing:
    schedule, prediction = dc.schedules.Flow(), "x"

    def __call__(self, z: Any, log_snr: Any) -> Any:
        return G.with_scaling("flow")(z, log_snr)


@pytest.mark.parametrize("made", ROUND)
def test_what_is_wrapped_is_for_the_scaling_of_the_plan(made: str) -> None:
    """It drew with 0.34 of the variance: the exact denoisers inside were for "vp"."""
    plan = dc.samplers.ddim(dc.schedules.Flow(), steps=8)
    found, want = (dc.sample(net, plan, Z, prediction="x") for net in (ROUND[made](), G))
    np.testing.assert_allclose(found, want, rtol=1e-12)
    assert G.scaling is None


def test_a_wrapper_draws_the_moments_of_what_it_wraps() -> None:
    plan = dc.samplers.ancestral(dc.schedules.Flow(), steps=4)
    found = testing.drawn_by(Blend(G, G), plan, (3,), prediction="x").covariance
    np.testing.assert_allclose(found, np.diag(dc.exact.moments(plan, G).covariance), rtol=1e-9, atol=1e-12)


@every_framework
def test_a_wrapper_gets_the_scaling_on_every_library(library: str) -> None:
    plan = dc.samplers.ddim(dc.schedules.Flow(), steps=3)
    with example(library, "float64") as like:
        found = host(dc.sample(Blend(G, G), plan, put(Z, like), prediction="x"))
    np.testing.assert_allclose(found, dc.sample(G, plan, Z), rtol=1e-9)


@pytest.mark.parametrize(
    ("net", "where"),
    [
        (Blend(Flowing(), G), r"`denoise\.first`"),
        (Blend(G, Blend(G, G.with_scaling("flow"))), r"`denoise\.second\.second`"),
        (Several({"a": [Flowing()]}, ["a"]), r"`denoise\.held\['a'\]\[0\]`"),
        (dc.guidance.autoguidance(Blend(Flowing(), G), denoise, weight=1.0), r"`denoise\.source\.models\[0\]\.first`"),
        (dc.guidance.autoguidance(G, Flowing(), weight=1.0), "`denoise`"),
    ],
)
def test_a_part_for_another_scaling_is_refused(net: Any, where: str) -> None:
    with pytest.raises(ValueError, match=where + r" must have the scaling 'vp', got 'flow'; .* scaling 'flow'"):
        dc.sample(net, PLAN, Z, prediction="x")


def test_a_wrapper_that_converts_answers_for_its_parts() -> None:
    @dataclass(frozen=True)
    class Converted(Blend):
        scaling: ClassVar = "vp"

    @dataclass(frozen=True)
    class Asked(Blend):
        asked: Any = None

        def with_scaling(self, scaling: str) -> Any:
            return replace(self, asked=scaling)

        def __call__(self, z: Any, log_snr: Any) -> Any:
            assert self.asked == "vp"
            return self.first(z, log_snr)

    @dataclass(frozen=True)
    class Beside(Blend):
        parts: ClassVar = ("first", "second", "other")
        other: Any = None

    attention = partial(denoise)
    attention.scaling = 0.125  # type: ignore[attr-defined]
    schedule = dc.schedules.Flow()  # which can be called, and has a scaling, but predicts nothing
    for net in (Converted(Flowing(), Flowing()), Asked(Flowing(), G), Beside(denoise, attention, other=schedule)):
        assert np.isfinite(dc.sample(net, PLAN, Z, prediction="x")).all()


@dataclass(frozen=True)
class Calm(dc.guidance.Rule):
    space: ClassVar = "x"

    def __call__(self, at: Any) -> Any:
        correction = at.weight * at.difference
        return at.c + correction / (1.0 + at.xp.sqrt(at.xp.mean(correction**2, axis=1, keepdims=True)))


@pytest.mark.parametrize("scaling", ["vp", "flow"])
def test_guidance_of_ones_own_that_is_the_same_on_every_prediction_passes(scaling: str) -> None:
    """Half the weight, a mean of two, and a rule that works on x-hat are no classifier-free guidance of weight w."""
    own: list[Callable[..., Any]] = [
        lambda c, u, *, weight: lambda z, at: (1.0 + 0.5 * weight) * c(z, at) - 0.5 * weight * u(z, at),
        lambda c, u, *, weight: Blend(c, u),
        partial(dc.guidance.autoguidance),
        lambda c, u, *, weight, prediction: dc.guidance.classifier_free(
            c, u, weight=weight, rule=Calm(), prediction=prediction
        ).with_scaling(scaling),
    ]
    for guided in own:
        at = dc.levels.level(np.array([-np.inf, -18.0, -1.0, 0.0, 6.0, np.inf]), scaling)
        assert testing.check_guidance_invariance(at, classifier_free=guided) <= 1.0
    wrong = lambda c, u, *, weight, prediction: partial(own[0](c, u, weight=weight + (prediction == "v")))  # noqa: E731
    with pytest.raises(AssertionError, match="guidance on 'v'"):
        testing.check_guidance_invariance(at, classifier_free=wrong)
    with pytest.raises(
        TypeError, match=r"`classifier_free` must take \(cond, uncond, \*, weight\), two denoisers, got .*'null'"
    ):
        testing.check_guidance_invariance(at, classifier_free=lambda net, cond, null, weight: net)
