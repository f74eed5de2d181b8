"""What is public is data: it can be copied deeply and pickled, as processes and averages of weights do."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from libraries import FRAMEWORKS, namespace
from mistaken_calls import FOLDER, given_in, net, targets
from sampler_cases import SAMPLERS, schedule_of

import diffcore as dc

RESULTS = (
    "plots",
    "metrics",
    "likelihood",
    "objectives",
    "sample",
    "unet3d.digits",
    "unet3d.save",
    "unet3d.load",
    "video",
)
"""Functions whose results are numbers and arrays, and take long."""
FUNCTIONS = types.FunctionType, types.MethodType, partial


def alike(one: Any, other: Any) -> bool:
    """Return whether two objects hold equal values, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, partial):
        return alike((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
    if isinstance(one, types.MethodType):
        return one.__func__ is other.__func__ and alike(one.__self__, other.__self__)
    if isinstance(one, Mapping):
        return list(one) == list(other) and alike(list(one.values()), list(other.values()))
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, type | types.FunctionType):
        return one is other
    if hasattr(one, "__array__"):
        one, other = np.asarray(one), np.asarray(other)
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return alike(vars(one), vars(other)) if hasattr(one, "__dict__") else bool(one == other)


def copies(thing: Any) -> Iterator[Any]:
    yield from (copy.copy(thing), copy.deepcopy(thing), pickle.loads(pickle.dumps(thing)))


def doubled(log_snr: Any) -> Any:
    return 2.0 + 0.0 * log_snr


def test_whatever_a_public_function_makes_is_copied_and_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    seen, bad = 0, list[str]()
    for target in targets(given_in("numpy")):
        if target.name.startswith(RESULTS):
            continue
        try:
            made = target.call(**target.given)
        except Exception:  # refused: see `test_mistaken_calls`
            continue
        if type(made).__module__.startswith("diffcore") or isinstance(made, FUNCTIONS):
            seen += 1
            try:
                bad += [target.name] * (not all(alike(made, found) for found in copies(made)))
            except Exception as error:
                bad.append(f"{target.name}: {error}")
    assert not bad
    assert seen > 120


@pytest.mark.parametrize("library", FRAMEWORKS)
def test_with_arrays_of_each_library_and_other_settings(library: str) -> None:
    like = namespace(library).zeros((2, 4))
    plan = SAMPLERS["euler churn=4.0 noise_scale=1.003"](schedule_of("vp"), steps=4)
    state = dc.step(plan, dc.start(plan, like), like, prediction="v")
    guided: Callable[..., Any] = dc.guidance.classifier_free(net, cond=like, null=like, scale=doubled)
    for thing in (
        plan,
        state,
        guided,
        dc.noise.native(7, like=like),
        dc.noise.brownian(7),
        dc.video.shuffled_noise(7, 4, like=like),
        dc.conditioning.replacement(like, like > 1.0),
        dc.exact.Gaussian(np.zeros(4), np.eye(4)).to(like),
        dc.grids.karras(schedule_of("ve"), 4),
    ):
        assert all(alike(found, thing) for found in copies(thing)), thing
    source = pickle.loads(pickle.dumps(dc.noise.native(7, like=like)))
    assert alike(source(3, (2, 4)), dc.noise.native(7, like=like)(3, (2, 4)))
    went_on = [dc.sample(net, plan, found, prediction="v") for found in (state, pickle.loads(pickle.dumps(state)))]
    assert alike(*went_on)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scheduler_goes_on_after_it_was_copied() -> None:
    pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    for sampler in (None, "unipc"):
        scheduler = dc.interop.diffusers.Scheduler("DPMSolverMultistepScheduler", sampler)
        scheduler.set_timesteps(4)
        x = torch.ones(1, 3, 4, 4)
        for first in (0, 2):
            for t in scheduler.timesteps[first - 2 : first] if first else ():
                x = scheduler.step(0.1 * x, t, x).prev_sample
            ends = []
            for found in copies(scheduler):
                y = x
                for t in found.timesteps[first:]:
                    y = found.step(0.1 * y, t, y).prev_sample
                ends.append(y)
            assert all(torch.equal(end, ends[0]) for end in ends)
