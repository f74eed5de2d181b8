"""Blocks of long video are the runs that they are said to be, and on Gaussian video they are true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from libraries import host
from test_video import PLAN, RHO, SIDE, Denoiser, covariance, movie, source

import diffcore as dc
from diffcore import _streams
from diffcore.video import extend, interpolate, upscale


@pytest.mark.torch
def test_extension_is_the_run_of_the_exact_conditional_denoiser() -> None:
    """By moment matching, which is exact on Gaussian data: every block, given the frames before it."""
    import torch

    denoise, clip = Denoiser(2), movie(4, side=2).astype(np.float64)
    video = torch.from_numpy(clip)
    kind = {"method": "moment_matching", "iterations": 24}
    made = host(extend(denoise, PLAN, video, frames=10, window=5, overlap=2, seed=7, **kind).all())
    for first in (4, 7):
        known = np.full((2, 5, 2, 2, 1), np.nan)
        known[:, :2] = made[:, first - 2 : first]
        for i in range(2):
            mask = dc.conditioning.frames([0, 1], of=5)
            exact = denoise.data(5).conditional(known[i], np.broadcast_to(mask, known[i].shape)).with_scaling("vp")
            seed = dc.noise.fold_in(dc.noise.keys(7, 1, first=i), first, 1, stream=_streams.EXTEND)
            want = dc.sample(exact, PLAN, shape=(1, 5, 2, 2, 1), like=np.zeros(1), seed=seed, prediction="x")
            np.testing.assert_allclose(made[i, first : first + 3], want[0, 2:], atol=1e-6)


@pytest.mark.torch
def test_interpolation_is_the_run_of_the_exact_conditional_denoiser() -> None:
    import torch

    denoise, clip = Denoiser(2), movie(3, side=2).astype(np.float64)
    kind = {"method": "moment_matching", "iterations": 30}
    stream = interpolate(denoise, PLAN, torch.from_numpy(clip), 3, window=4, overlap=0, seed=7, **kind)
    made = host(stream.all())
    assert made.shape[1] == 7
    for first, number in ((0, 0), (3, 4)):
        known = np.full((2, 4, 2, 2, 1), np.nan)
        known[:, 0], known[:, 3] = made[:, first], made[:, first + 3]
        for i in range(2):
            mask = dc.conditioning.frames([0, 3], of=4)
            exact = denoise.data(4).conditional(known[i], np.broadcast_to(mask, known[i].shape)).with_scaling("vp")
            seed = dc.noise.fold_in(dc.noise.keys(7, 1, first=i), number, 1, stream=_streams.INTERPOLATE)
            want = dc.sample(exact, PLAN, shape=(1, 4, 2, 2, 1), like=np.zeros(1), seed=seed, prediction="x")
            np.testing.assert_allclose(made[i, first + 1 : first + 3], want[0, 1:3], atol=1e-6)


@pytest.mark.torch
def test_a_long_video_has_the_covariance_of_the_data_by_moment_matching_and_not_by_replacement() -> None:
    """AR(1), extended by three blocks that know one frame: enough for a Markov chain. 4,000 videos of one pixel."""
    import torch

    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=40, eta=1.0)
    count, frames = 4000, 8
    start = torch.zeros(count, 0, 1, 1, 1, dtype=torch.float64)
    time = RHO ** np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    off = {}
    for method in ("moment_matching", "replacement"):
        options: dict[str, Any] = {"method": method, "iterations": 3, "frames": frames, "window": 4, "overlap": 1}
        made = host(extend(Denoiser(1), plan, start, seed=0, **options).all()).reshape(count, frames)
        off[method] = np.max(np.abs(made.T @ made / count / (0.25 * 1.1) - time))
    assert off["moment_matching"] < 0.09  # four standard errors of a covariance, and what 40 steps leave
    assert off["replacement"] > 0.13


@pytest.mark.torch
@pytest.mark.parametrize("weight", [1.5, lambda log_snr: 1.5 + 0.0 * log_snr])
def test_a_larger_block_is_the_run_that_is_guided_by_the_averages_with_so_many_times_the_weight(weight: Any) -> None:
    import torch

    denoise, video = Denoiser(), torch.from_numpy(source("upscale", 5))
    made = upscale(denoise, PLAN, video, 2, window=5, weight=weight, seed=7).all()
    guided = dc.conditioning.reconstruction(
        denoise, video, measure=dc.conditioning.downsample(2), weight=4 * 1.5, prediction="x"
    )
    seed = dc.noise.fold_in(7, 0, 2, stream=_streams.UPSCALE)
    want = dc.sample(guided, PLAN, shape=(2, 5, SIDE, SIDE, 1), like=video, seed=seed)
    torch.testing.assert_close(made, want, rtol=0.0, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("factor", [2, 4])
def test_an_average_of_n_pixels_has_n_times_the_weight_of_one(factor: int) -> None:
    """By algebra: at its weights 1 and 2 what a block of `upscale` draws is close to the truth, and at 1/4 and 6 far."""
    import torch

    side = 8
    denoise = Denoiser(side)
    down, data = dc.conditioning.downsample(factor), denoise.data(1)
    sigma = covariance(1, side)
    a = down(np.eye(side**2).reshape(-1, 1, side, side, 1)).reshape(side**2, -1).T
    seen = down((np.linalg.cholesky(sigma) @ np.sin(np.arange(side**2))).reshape(1, 1, side, side, 1))
    gain = sigma @ a.T @ np.linalg.inv(a @ sigma @ a.T)
    mean, spread = gain @ seen.ravel(), sigma - gain @ a @ sigma
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=32, eta=1.0)
    like = torch.zeros((), dtype=torch.float64)

    def off(weight: float) -> float:
        how: dict[str, Any] = {"measure": down, "prediction": "x", "schedule": dc.schedules.Cosine()}
        guided = dc.conditioning.reconstruction(data.to(like), seen, weight=weight, **how)
        drawn = dc.testing.drawn_by(guided, plan, (1, side, side, 1), like=like)
        roots = [np.linalg.cholesky(part + 1e-10 * np.eye(side**2)).T for part in (drawn.covariance, spread)]
        both = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
        traces = np.trace(drawn.covariance) + np.trace(spread)
        return float(np.sum((drawn.mean.ravel() - mean) ** 2) + traces - 2.0 * both)

    n = factor**2
    for weight in (1.0, 2.0):
        assert off(weight * n) < 0.5 * off(0.25 * n)
        assert off(weight * n) < 0.1 * off(6.0 * n)
