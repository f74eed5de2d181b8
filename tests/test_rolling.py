"""Levels of each frame: rolling windows, clean and noisy history, context windows, and what is seen at seams; mostly by algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from libraries import every_framework, example, host, put

import diffcore as dc
from diffcore import _streams
from diffcore.testing.affine import drawn_from
from diffcore.video import extend, orders, shuffled_noise, windowed

RHO = 0.8


def ar1(frames: int) -> Any:
    return 0.25 * RHO ** np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))


class Exact:
    """The exact denoiser of clips of one pixel of any length, AR(1) in time or independent, and the levels it was called at."""

    prediction, scaling = "x", "vp"

    def __init__(self, covariance: Callable[[int], Any] = ar1) -> None:
        self.covariance = covariance
        self.levels: list[Any] = []

    def __call__(self, z: Any, log_snr: Any) -> Any:
        self.levels.append(np.asarray(log_snr))
        frames = z.shape[1]
        data = dc.exact.Gaussian(np.zeros((frames, 1, 1, 1)), self.covariance(frames), scaling="vp")
        return data(z, log_snr)


def drawn(plan: dc.Plan, denoise: Any, frames: int, **how: Any) -> Any:
    """The exact covariance of a stream that starts from nothing."""

    def run(noise: Any, batch: int) -> Any:
        return extend(denoise, plan, np.zeros((batch, 0, 1, 1, 1)), frames=frames, noise=noise, **how).all()

    return drawn_from(run).covariance


def divergence(covariance: Any, truth: Any) -> float:
    ratio = np.linalg.solve(truth, covariance)
    return float(0.5 * (np.trace(ratio) - len(truth) - np.linalg.slogdet(ratio)[1]))


@pytest.mark.parametrize("name", ["ancestral", "dpm_solver_pp"])
@pytest.mark.parametrize("method", ["rolling", "forcing", "replacement"])
def test_independent_frames_are_the_runs_of_one_frame(name: str, method: str) -> None:
    """Each takes every stage of the plan once, with its own memory and noise."""
    plan = getattr(dc.samplers, name)(dc.schedules.Cosine(), steps=6)
    found = drawn(plan, Exact(lambda frames: 0.25 * np.eye(frames)), 9, window=4, overlap=1, method=method)
    want = dc.exact.moments(plan, dc.exact.Gaussian(np.zeros(1), 0.25)).covariance
    np.testing.assert_allclose(found, want * np.eye(9), atol=1e-12)


def test_forcing_is_the_run_of_the_exact_conditional_denoiser() -> None:
    """Which is the truth but for the steps: an exact denoiser that sees clean frames knows all that they say."""
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=6, eta=1.0)
    clip = 0.5 * dc.noise.normal(3, 0, (2, 3, 1, 1, 1), dtype=np.float64)
    made = extend(Exact(), plan, clip, frames=9, window=5, overlap=2, method="forcing", seed=7).all()
    for first in (3, 6):
        for i in range(2):
            known = np.zeros((5, 1, 1, 1))
            known[:2] = made[i, first - 2 : first]
            data = dc.exact.Gaussian(np.zeros((5, 1, 1, 1)), ar1(5))
            exact = data.conditional(known, dc.conditioning.frames([0, 1], of=5)).with_scaling("vp")
            seed = dc.noise.fold_in(dc.noise.keys(7, 1, first=i), first, 1, stream=_streams.EXTEND)
            want = dc.sample(exact, plan, shape=(1, 5, 1, 1, 1), like=np.zeros(1), seed=seed)
            np.testing.assert_allclose(made[i, first : first + 3], want[0, 2:], atol=1e-8)


def test_rolling_and_forcing_come_to_the_truth_and_replacement_does_not() -> None:
    """AR(1), of which one clean frame says all that is past: KL of nine frames falls with the steps."""
    off: dict[str, list[float]] = {}
    for method, steps in [(m, n) for m in ("rolling", "forcing", "replacement") for n in (12, 48)]:
        plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=steps, order=1)
        found = drawn(plan, Exact(), 9, window=4, overlap=1, method=method)
        off.setdefault(method, []).append(divergence(found, ar1(9)))
    for method in ("rolling", "forcing"):
        assert off[method][1] < 0.3 * off[method][0], off
        assert off[method][1] < 0.2 * off["replacement"][1], off


def test_rolling_frames_are_functions_of_their_number_and_can_be_resumed() -> None:
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=6, eta=1.0)
    clip = 0.5 * dc.noise.normal(3, 0, (2, 3, 1, 1, 1))
    how: dict[str, Any] = {"frames": 9, "window": 4, "overlap": 1, "method": "rolling", "seed": 7}
    stream = extend(Exact(), plan, clip, **how)
    blocks = [next(stream) for _ in range(3)]
    state = stream.state
    assert [block.shape[1] for block in blocks] == [3, 1, 1]
    rest = stream.all()
    resumed = extend(Exact(), plan, clip[:, :0], resume=state, **how).all()
    np.testing.assert_array_equal(resumed, rest)
    assert sum(part.shape[1] for part in stream.state.going or ()) == 4 * (1 + plan.memory)  # the window, and no more
    alone = extend(Exact(), plan, clip[1:], **{**how, "seed": dc.noise.keys(7, 1, first=1)}).all()
    np.testing.assert_allclose(alone[0], np.concatenate([*blocks, rest], axis=1)[1], atol=1e-6)
    endless = extend(Exact(), plan, clip, **{**how, "frames": None})
    np.testing.assert_array_equal(
        np.concatenate([next(endless) for _ in range(7)], axis=1), np.concatenate([*blocks, rest], axis=1)
    )


@every_framework
@pytest.mark.parametrize("history", [None, 3.0])
def test_rolling_is_alike_in_every_library(library: str, history: float | None) -> None:
    if library == "jax" and history is None:
        pytest.skip("one trace shows it")
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=4, eta=1.0)
    how: dict[str, Any] = {"frames": 7, "window": 3, "overlap": 1, "method": "rolling", "history": history, "seed": 7}

    def net(z: Any, log_snr: Any) -> Any:
        return 0.5 * z + 0.1 * z.mean(1, keepdims=True)

    clip = 0.5 * dc.noise.normal(3, 0, (2, 2, 1, 1, 1))
    with example(library) as like:
        found = host(extend(net, plan, put(clip, like), prediction="v", **how).all())
    np.testing.assert_allclose(found, extend(net, plan, clip, prediction="v", **how).all(), atol=1e-5)


@pytest.mark.parametrize("method", ["forcing", "rolling"])
def test_history_is_shown_at_its_own_small_noise(method: str) -> None:
    plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=6)
    clip = 0.5 * dc.noise.normal(3, 0, (2, 3, 1, 1, 1), dtype=np.float64)
    how: dict[str, Any] = {"frames": 8, "window": 5, "overlap": 2, "method": method, "seed": 7}
    shown, clean = Exact(), extend(Exact(), plan, clip, **how).all()
    made = extend(shown, plan, clip, history=4.0, **how).all()
    assert all(np.all(level[:, :2] == 4.0) for level in shown.levels)
    np.testing.assert_array_equal(made[:, :3], clip)
    assert np.abs(made - clean).max() > 1e-3
    np.testing.assert_allclose(extend(Exact(), plan, clip, history=30.0, **how).all(), clean, atol=1e-5)


def test_orders_take_every_stage_once_and_reach_from_all_together_to_one_by_one() -> None:
    plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=40)
    data = dc.exact.Gaussian(np.zeros((4, 1)), ar1(4))
    np.testing.assert_array_equal(orders.autoregressive(5, 3), orders.pyramid(5, 3, lag=5))
    joint = dc.exact.moments(plan, data).covariance
    found = dc.exact.moments(plan.per_frame(orders.together(40, 4)), data).covariance[0]
    np.testing.assert_allclose(found, joint, atol=1e-12)
    for order in (orders.pyramid(40, 4, lag=3), orders.autoregressive(40, 4), orders.autoregressive(40, 4, block=3)):
        found = dc.exact.moments(plan.per_frame(order), data).covariance[0]
        assert divergence(found, ar1(4)) < 2.0 * divergence(joint, ar1(4))


@pytest.mark.parametrize("weights", ["constant", "pyramid"])
@pytest.mark.parametrize("frames", [3, 4, 9])
def test_windows_are_means_of_what_each_predicts(weights: str, frames: int) -> None:
    mix = np.random.default_rng(0).normal(size=(4, 4))

    def short(z: Any, log_snr: Any) -> Any:
        return np.einsum("fg,bgc->bfc", mix[: z.shape[1], : z.shape[1]], z) * log_snr[:, :, None]

    z, level = np.random.default_rng(1).normal(size=(2, frames, 3)), np.random.default_rng(2).normal(size=(2, frames))
    share = np.array([1.0, 2.0, 2.0, 1.0]) if weights == "pyramid" else np.ones(4)
    want, total = np.zeros_like(z), np.zeros(frames)
    for first in {3: [0], 4: [0], 9: [0, 2, 4, 5]}[frames]:
        part = slice(first, first + 4)
        size = min(4, frames)
        want[:, part] += share[:size, None] * short(z[:, part], level[:, part])
        total[part] += share[:size]
    np.testing.assert_allclose(windowed(short, 4, weights=weights)(z, level), want / total[:, None], atol=1e-12)


def test_windows_that_overlap_by_what_matters_are_exact_in_the_middle_of_independent_frames() -> None:
    whole = dc.exact.Gaussian(np.zeros((9, 1, 1, 1)), 0.25, scaling="vp")
    z = dc.noise.normal(1, 0, (2, 9, 1, 1, 1), dtype=np.float64)
    guided = windowed(Exact(lambda frames: 0.25 * np.eye(frames)), 4)
    assert (guided.prediction, guided.scaling) == ("x", "vp")
    np.testing.assert_allclose(guided(z, 0.5), whole(z, 0.5), atol=1e-12)


@every_framework
def test_shuffled_noise_repeats_its_first_window(library: str) -> None:
    with example(library) as like:
        found = host(shuffled_noise(7, 6, stride=2, like=like)(3, (2, 17, 2)))
    plain = dc.noise.normal(7, 3, (2, 6, 2))
    np.testing.assert_allclose(found[:, :6], plain, atol=1e-6)
    for first in range(0, 11, 2):
        np.testing.assert_allclose(np.sort(found[:, first : first + 6], axis=1), np.sort(plain, axis=1), atol=1e-6)
    assert not np.allclose(found[:, 6:12], plain, atol=1e-3)


def test_seams_see_a_jump_that_no_frame_shows() -> None:
    """Independent blocks of AR(1): (1 - 0) / (1 - rho), in closed form; and 1 for the clips as they are."""
    count, frames = 4000, 12
    whole = dc.exact.Gaussian(np.zeros((frames, 1)), ar1(frames)).sample(1, count)
    cut = np.concatenate([whole[:, :6], dc.exact.Gaussian(np.zeros((6, 1)), ar1(6)).sample(2, count)], axis=1)
    fine, jumps = dc.metrics.seams(whole, [6]), dc.metrics.seams(cut, [6])
    assert abs(fine.ratio - 1.0) < 4.0 * fine.error < 0.2
    assert abs(jumps.ratio - 1.0 / (1.0 - RHO)) < 4.0 * jumps.error < 1.0
    bent = np.abs(np.arange(-6.0, 6.0))[None, :, None] + 1e-3 * whole[:50]
    assert dc.metrics.seams(bent, [6]).ratio < 1.1
    assert dc.metrics.seams(bent, [7], order=2).ratio > 100.0


PLAN = dc.samplers.ancestral(dc.schedules.Cosine(), steps=6)
CLIP = np.zeros((1, 4, 1, 1, 1))
ROLL: dict[str, Any] = {"frames": 9, "window": 4, "overlap": 1, "method": "rolling"}
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: extend(Exact(), PLAN, CLIP, **{**ROLL, "overlap": 0}), ValueError, "a multiple of 4 stages.*got 6"),
    (lambda: extend(Exact(), PLAN, CLIP, **{**ROLL, "method": "roling"}), ValueError, "did you mean 'rolling'"),
    (
        lambda: extend(Exact(), PLAN, CLIP, **{**ROLL, "method": "replacement"}, history=3.0),
        ValueError,
        "`history` must be None",
    ),
    (lambda: extend(Exact(), PLAN, CLIP, **ROLL, history="small"), TypeError, "`history` must be a finite number"),
    (lambda: extend(Exact(), PLAN, CLIP, **ROLL, noise=3), TypeError, "`noise` must be a function"),
    (lambda: PLAN.per_frame([[0, 0]], begun=[0, 7]), ValueError, r"`begun` must be \(2,\) ints in \[0, 6\]"),
    (lambda: windowed(Exact(), 4, stride=5), ValueError, r"`stride` must be an int in \[1, 4\], got 5"),
    (lambda: shuffled_noise(1, 4, stride=3), ValueError, "`stride` must divide the window, 4, got 3"),
    (lambda: orders.pyramid(0, 3), ValueError, "`steps` must be an int >= 1, got 0"),
    (lambda: dc.metrics.seams(CLIP, [4]), ValueError, r"`at` must be an int in \[1, 3\], got 4"),
    (lambda: dc.metrics.seams(CLIP, []), ValueError, "leave differences at seams and elsewhere"),
    (lambda: dc.metrics.seams(CLIP, [2]), ValueError, "change somewhere else"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_input_says_what_to_do(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
