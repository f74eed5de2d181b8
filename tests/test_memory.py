"""What a count with too many zeros, and a wrapper at the prompt, say."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from libraries import every_framework, namespace

import diffcore as dc
from diffcore import _memory

MANY = 10**13
PLAN = dc.samplers.ddim(dc.schedules.Cosine(), 4)
SHIFTED = dc.exact.Gaussian(np.zeros(3), 1.0)
X = np.zeros((2, 16, 8, 8, 3), np.float32)
CALLS: dict[str, Callable[[], Any]] = {
    "noise.keys: `count`": lambda: dc.noise.keys(0, MANY),
    "exact.Gaussian.sample: `count`": lambda: SHIFTED.sample(0, MANY),
    "exact.Mixture.sample: `count`": lambda: dc.exact.Mixture([1.0], np.zeros((1, 3)), 1.0).sample(0, MANY),
    "exact.Empirical.sample: `count`": lambda: dc.exact.Empirical(np.zeros((1, 3))).sample(0, MANY),
    "Plan.levels_of: `batch`": lambda: PLAN.levels_of(MANY),
    "Plan.next_levels_of: `batch`": lambda: PLAN.next_levels_of(MANY),
}


@pytest.mark.parametrize("begin", CALLS)
def test_what_exceeds_the_memory_is_refused_with_what_it_would_take(begin: str) -> None:
    with pytest.raises(MemoryError) as error:
        CALLS[begin]()
    assert str(error.value).startswith(begin + " must fit in the memory that is free")
    assert f"got {MANY}, which takes " in str(error.value)


@every_framework
def test_so_are_shapes_on_the_host_but_not_on_other_devices(library: str) -> None:
    like = namespace(library).zeros(1)
    for call in (dc.noise.normal, dc.noise.bits):
        with pytest.raises(MemoryError, match=r"`shape` must fit in .* see `region`"):
            call([0, 1], 0, (2, MANY), like=like)
        if library != "jax":  # which counts in 32 bits
            assert call([0, 1], 0, (2, MANY), like=like, region=((0, 2), (MANY - 4, 3))).shape == (2, 3)
    with pytest.raises(MemoryError, match=r"times.antithetic: `shape` must fit"):
        dc.times.antithetic(0, 1, MANY, like=like)
    with pytest.raises(MemoryError, match=r"start: `shape` must fit in .*=noise\.keys"):
        dc.sample(SHIFTED, PLAN, shape=(MANY, 3), like=like)
    assert _memory.here(like)
    if library == "torch":
        assert not _memory.here(namespace(library).zeros(1, device="meta"))
    if library == "jax":
        jax = importlib.import_module("jax")
        assert not jax.jit(_memory.here)(like)  # a tracer
        found = jax.eval_shape(lambda: dc.noise.normal(7, 0, (10**6, 10**6), like=like))  # beside an array that is none
        assert found.shape == (10**6, 10**6)


def test_room_is_no_more_than_a_process_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    before = _memory.room()
    assert 2**28 < before < 2**60
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**27, 2**27))
    assert _memory.room() == 2**27
    _memory.fits("f", "a", 3, _memory.SMALL)  # which is never looked at
    with pytest.raises(
        MemoryError, match=r"^f: `a` must fit in the memory that is free, 0\.134 GB, got 3, which takes 0 GB$"
    ):
        _memory.fits("f", "a", 3, _memory.SMALL + 1)


def model(z: Any, log_snr: Any, cond: Any = None) -> Any:
    raise AssertionError


WRAPPERS: dict[str, Callable[[], Any]] = {
    "ClassifierFree(source=Together(function='guidance.classifier_free', names=('cond', 'null'), denoise=model, "
    "conds=({'text': [<float32 (2, 16, 8, 8, 3)>]}, {'text': [<float32 (2, 16, 8, 8, 3)>]})), "
    "weight=<float64 (2,)>)": lambda: dc.guidance.classifier_free(
        model, cond={"text": [X]}, null={"text": [X]}, weight=np.ones(2)
    ),
    "Ruled(source=Apart(models=(partial(model), model)), weight=2.0, interval=(0.0, 3.0), "
    "rule=Projected(parallel=0.5, norm=inf, momentum=0.0, over=None), prediction='v')": lambda: (
        dc.guidance.classifier_free(
            partial(model, cond=X),
            model,
            weight=2.0,
            interval=(0, 3),
            rule=dc.guidance.projected(parallel=0.5),
            prediction="v",
        )
    ),
    "Reconstruction(denoise=Gaussian(mean=<float64 (3,)>, covariance=1.0), terms=(Term(observed=<float32 (2, 16, 8, 8, 3)>, "
    "mask=None, measure=Downsample(factor=(4, 4), axes=None), strength=9.0),), prediction='x', scaling=None)": lambda: (
        dc.conditioning.reconstruction(SHIFTED, X, measure=dc.conditioning.downsample(4), weight=9.0)
    ),
    "Replacement(observed=<float32 (2, 16, 8, 8, 3)>, mask=<bool (16, 1, 1, 1)>)": lambda: dc.conditioning.replacement(
        X, dc.conditioning.frames([0], of=16)
    ),
}


@pytest.mark.parametrize("text", WRAPPERS, ids=lambda text: text.partition("(")[0])
def test_a_wrapper_is_printed_without_the_numbers_it_holds(text: str) -> None:
    assert repr(WRAPPERS[text]()) == text


def test_a_forgotten_like_is_thought_of() -> None:
    class Network:
        def __call__(self, z: Any, log_snr: Any) -> Any:
            return z.to("cuda")

    with pytest.raises(AttributeError, match=r"'numpy\.ndarray' object has no attribute 'to'") as error:
        dc.sample(Network(), PLAN, shape=(2, 3), prediction="v")
    assert "without `like` the start is a NumPy array; give like=torch.zeros(1)" in error.value.__notes__[0]
    with pytest.raises(AttributeError) as error:
        dc.sample(Network(), PLAN, shape=(2, 3), like=np.zeros(1), prediction="v")
    assert not any("without `like`" in note for note in getattr(error.value, "__notes__", ()))


def test_the_names_of_other_libraries_are_answered_with_ours() -> None:
    z, at = np.zeros((2, 3)), dc.levels.level(0.0)
    for other, ours in (("v_prediction", "'v'"), ("sample", "'x'"), ("noise", "'eps'"), ("flow_prediction", "'flow'")):
        with pytest.raises(ValueError, match=f"{other!r} is called {ours} here"):
            dc.predictions.convert(z, z, at, source=other, target="x")
    with pytest.raises(TypeError, match=r"got the class MinSNR; call it: MinSNR\(\)"):
        dc.losses.factor(at, prediction="v", weight=dc.weights.MinSNR)  # type: ignore[arg-type]
