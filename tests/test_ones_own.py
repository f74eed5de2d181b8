"""Functions, wrappers, rules, weights, schedules and loops of one's own: what they get and must return is said."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
from libraries import JAX, TORCH, example

import diffcore as dc
from diffcore import testing

SCHEDULE = dc.schedules.Cosine()
PLAN = dc.samplers.ddim(SCHEDULE, steps=3)
Z, LEVEL = np.linspace(-1.0, 1.0, 6).reshape(2, 3), SCHEDULE(0.5)


def denoise(z: Any, log_snr: Any) -> Any:
    return 0.5 * z


def sample(net: Any = denoise, **settings: Any) -> Any:
    return dc.sample(net, PLAN, Z, **{"prediction": "v", **settings})


class Pair(dc.guidance.Rule):
    def __call__(self, c: Any, u: Any) -> Any:  # type: ignore[override]
        return c + u


def by(rule: Any) -> Any:
    return dc.guidance.classifier_free(lambda z, _, c: z + c, cond=Z, null=Z, weight=1.0, rule=rule, prediction="x")


TAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "denoise": (lambda: sample(lambda z: z), r"sample: `denoise` .* of \(z, log_snr\), got one of \(z\)"),
    "callback": (lambda: sample(callback=lambda k, state: 0), r"`callback` .* of \(state\), got one of \(k, state\)"),
    "transform": (lambda: sample(transform_x=lambda x, at: x), r"`transform_x` .* of \(x\), got one of \(x, at\)"),
    "noise": (
        lambda: dc.sample(denoise, dc.samplers.ancestral(SCHEDULE, 3), Z, prediction="v", noise=lambda shape: Z),
        r"`noise` .* of \(draw, shape\), got one of \(shape\)",
    ),
    "prediction": (lambda: sample(prediction=lambda level: 1.0), r"`source` .* of \(xp, level\), got one of \(level\)"),
    "weight": (
        lambda: dc.losses.denoising(Z, Z, Z, LEVEL, prediction="v", weight=lambda level: 1.0),
        r"`weight` .* of \(level, slope\), got one of \(level\)",
    ),
    "weight of guidance": (
        lambda: sample(dc.guidance.classifier_free(denoise, denoise, weight=lambda one, other: 1.0)),
        r"guidance.ClassifierFree: `weight` .* of \(log_snr\), got one of \(one, other\)",
    ),
    "denoise under guidance": (
        lambda: sample(dc.guidance.classifier_free(denoise, cond=Z, null=Z, weight=1.0)),
        r"ClassifierFree: `denoise` .* of \(z, log_snr, cond\), got one of \(z, log_snr\)",
    ),
    "one of two": (
        lambda: sample(dc.guidance.autoguidance(denoise, lambda z: z, weight=1.0)),
        r"ClassifierFree: `denoise` .* of \(z, log_snr\), got one of \(z\)",
    ),
    "rule": (lambda: sample(by(Pair()), prediction="x"), r"guidance.Ruled: `rule` .* of \(at\), got one of \(c, u\)"),
    "loop": (
        lambda: dc.samplers.trace(lambda denoise, z: z),  # type: ignore[arg-type]
        r"`loop` .* of \(denoise, z, draw\), got one of \(denoise, z\)",
    ),
}


@pytest.mark.parametrize("takes", TAKES)
def test_a_function_that_takes_something_else_is_answered_with_what_it_gets(takes: str) -> None:
    call, message = TAKES[takes]
    with pytest.raises(TypeError, match=message.replace(" .* of ", " must be a function of ")):
        call()
    with pytest.raises(TypeError, match=r"must return a predictions\.Row, got 1\.0"):
        sample(prediction=lambda xp, level: 1.0)


def test_a_rule_and_a_weight_say_what_they_get_and_return() -> None:
    class Split(dc.weights.Weight):
        def split(self, at: Any) -> Any:
            return at.alpha2 if at.slope is None else at.alpha

    rule = type("Mine", (dc.guidance.Rule,), {"__call__": lambda _, at: at.c + at.scale * at.difference})()
    guided = dc.guidance.classifier_free(lambda z, _, c: z + c, cond=Z, null=Z, weight=1.0, rule=rule, prediction="x")
    with pytest.raises(
        AttributeError, match=r"no attribute 'scale'; it has xp, c, u, difference, weight, log_snr; the"
    ):
        dc.sample(guided, PLAN, Z)
    level = dc.schedules.Cosine()(0.5)
    with pytest.raises(AttributeError, match=r"no attribute 'alpha'; it has xp, one, alpha2, sigma2, slope; alpha2 is"):
        Split()(level, slope=-1.0)
    with pytest.raises(
        TypeError, match=r"weights.Split: `split` must return weights\.Split\(i, j, coefficient\), got 0\."
    ):
        Split()(level)


def test_methods_of_a_schedule_return_arrays_of_the_shape_that_they_get() -> None:
    def own(**methods: Any) -> Any:
        named = {
            "scaling": "vp",
            "_log_snr": lambda _, xp, t, rest: xp.log(rest) - xp.log(t),
            "_time": lambda _, xp, log_snr: (1.0 / (1.0 + xp.exp(log_snr)), 1.0 / (1.0 + xp.exp(-log_snr))),
            "_slope": lambda _, xp, t, rest: -1.0 / (t * rest),
        }
        return type("Mine", (dc.schedules.Schedule,), named | methods)()

    testing.check_schedule(own())
    assert own(_slope=lambda _, xp, t, rest: -2.0).slope(Z**2).shape == Z.shape  # a constant
    for method, call in {"_log_snr": "log_snr", "_slope": "slope", "_time": "time"}.items():
        for wrong in (None, 1.0, np.ones(3)) if method != "_slope" else (None, np.ones(3)):
            made = own(**{method: lambda *_, wrong=wrong, pair=method == "_time": (wrong, wrong) if pair else wrong})
            with pytest.raises(
                (TypeError, ValueError), match=rf"Mine: `{method}` must return an array of the shape .*\(2, 3\), got"
            ):
                getattr(made, call)(Z**2)
    wrongs: tuple[Any, ...] = (0.5, Z, None)
    for wrong in wrongs:  # of two samples, which was taken for the pair
        with pytest.raises(TypeError, match=r"Mine: `_time` must return the pair \(t, 1 - t\), got"):
            own(_time=lambda *_, wrong=wrong: wrong).time(Z)


def test_parts_name_fields() -> None:
    for given, says in (
        (("net",), r"must name fields of it, \['denoise'\], got \('net',\)"),
        ("denoise", r"must be a tuple of names, \('denoise',\), got 'denoise'"),
        (["denoise"], r"must be a tuple of names, \('denoise',\), got \['denoise'\]"),
    ):

        @dataclass(frozen=True)
        class Mine:
            denoise: Any
            parts: ClassVar = given

            def __call__(self, z: Any, log_snr: Any) -> Any:
                return self.denoise(z, log_snr)

        with pytest.raises(TypeError, match=rf"sample: `parts` of Mine {says}"):
            dc.sample(Mine(denoise), PLAN, Z, prediction="x")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])  # the plain function, the kernel
def test_a_transform_that_works_in_place_leaves_the_raw_estimate(dtype: Any) -> None:
    def in_place(x: Any) -> Any:
        x *= 0.5
        return x

    update = np.array([[[0.25, 0.0, 0.5, 0.125]], [[0.0, 0.0, 0.5, 0.5]]])
    plan = dc.Plan("raw", "vp", [-1.0, 1.0], [1.0, np.inf], update, second="raw")
    found, want = (
        dc.sample(denoise, plan, Z.astype(dtype), prediction="x", transform_x=transform)
        for transform in (in_place, lambda x: 0.5 * x)
    )
    np.testing.assert_array_equal(found, want)


LOOPS: dict[str, tuple[Callable[..., Any], str]] = {
    "noise of a shape": (
        lambda f, z, draw: f(z, 0.0) + draw(z.shape),
        r"`draw` must be called as draw\(\), .*\(1, 8\)",
    ),
    "no level": (lambda f, z, draw: f(z), r"`denoise` must be called as denoise\(z, log_snr\), .*; a log-SNR is -2"),
    "sigma": (lambda f, z, draw: f(z, sigma=1.0), r"`denoise` must be called as .*'sigma'\); a log-SNR is -2"),
    "a condition": (
        lambda f, z, draw: f(z, 0.0, cond=1),
        r"`denoise` must be .*'cond'\); other inputs .* in the denoiser",
    ),
    "twice the batch": (lambda f, z, draw: f(np.concatenate([z, z]), 0.0), r"\(2, 8\); leave guidance to the denoiser"),
    "a mean first": (lambda f, z, draw: f(z - z.mean(axis=0), 0.0), "the z of call 0 depends on the other samples"),
    "a mean": (lambda f, z, draw: f(z, 0.0) - z.mean(axis=0), "what the loop returns depends on the other samples"),
    "a matrix": (lambda f, z, draw: np.ones((len(z), len(z))) @ f(z, 0.0), "depends on the other samples of its batch"),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_what_a_loop_may_not_do_is_said(loop: str) -> None:
    function, message = LOOPS[loop]
    with pytest.raises((TypeError, ValueError), match=f"samplers.trace: {message}|samplers.trace: .*{message}"):
        dc.samplers.trace(function)


@pytest.mark.parametrize("library", [TORCH, JAX])
def test_a_loop_may_be_one_of_its_library(library: str) -> None:
    """`lax.scan` and `jax.jit` are run as plain code; what is mapped has no values to read."""
    levels = np.array([-6.0, -2.0, 0.0, 3.0])

    def step(denoise: Any, z: Any, at: Any, to: Any) -> Any:
        return denoise(z, at) + 0.25 * to * z

    def plain(denoise: Any, z: Any, draw: Any) -> Any:
        for at, to in pairwise(levels):
            z = step(denoise, z, at, to)
        return z

    def scanned(denoise: Any, z: Any, draw: Any) -> Any:
        import jax

        return jax.lax.scan(lambda z, pair: (step(denoise, z, *pair), None), z, (levels[:-1], levels[1:]))[0]

    def mapped(denoise: Any, z: Any, draw: Any) -> Any:
        module: Any = importlib.import_module("torch.func" if library == "torch" else library)
        return module.vmap(lambda z: denoise(z[None], 0.0)[0])(z)

    with example(library) as like:
        if library == "jax":
            want, found = dc.samplers.trace(plain, like=like), dc.samplers.trace(scanned, like=like)
            np.testing.assert_allclose(found.update, want.update, atol=1e-12)
            np.testing.assert_allclose(found.log_snr, levels[:-1])
        with pytest.raises(TypeError, match=r"call 0 must give `denoise` an array whose values are known, .* traced"):
            dc.samplers.trace(mapped, like=like)


@pytest.mark.jax
def test_drivers_that_read_their_arrays_are_not_traced() -> None:
    jax = pytest.importorskip("jax")
    z = jax.numpy.asarray(Z, jax.numpy.float32)
    state = dc.start(PLAN, z)
    calls: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "sample_adaptive": (lambda z: dc.sample_adaptive(denoise, SCHEDULE, z, prediction="x").z, z),
        "sample_parallel": (lambda z: dc.sample_parallel(denoise, PLAN, z, prediction="x"), z),
        "sample_parallel of": (lambda state: dc.sample_parallel(denoise, PLAN, state, prediction="x"), state),
    }
    for name, (call, given) in calls.items():
        match = (
            rf"{name.split()[0]}: a run must not be traced, .*the denoiser alone in jax\.jit, or take diffcore\.sample"
        )
        with pytest.raises(TypeError, match=match):
            jax.jit(call)(given)
