"""Causal networks: no frame sees a later one, and what is kept of past frames stands in for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from libraries import host, quick
from unet3d_cases import BASE, CLASS, call, draw, every_backend, model_of, put, say, wide

from diffcore.unet3d import UNet3DConfig, pretrained, structure
from diffcore.unet3d.half import InBfloat16
from diffcore.unet3d.pretrained import shipped
from diffcore.unet3d.weights import read_metadata

CAUSAL = replace(BASE, frames=3, causal=True, **CLASS)
CONFIGS = {
    "numpy": CAUSAL,
    "torch": CAUSAL,
    "jax": replace(CAUSAL, multipliers=(1,), attention=(8,)),
}  # quicker to compile
LEVELS = np.array([[np.inf, 3.0, -1.0, 2.0, -5.0, 0.0], [0.5, -np.inf, 0.5, 1.0, 7.0, 2.0]])
LABELS = np.array([1, 3])


def clip(seed: int = 0) -> Any:
    return draw(2, 6, 5, 4, 2, seed=seed)


@every_backend
def test_a_change_of_a_frame_leaves_the_ones_before_it_as_they_were_to_the_bit(backend: str) -> None:
    dtype = "float64" if backend == "numpy" else "float32"
    z, other = clip(), clip(1)
    with wide(backend, dtype):
        model = model_of(CONFIGS[backend], backend, dtype)
        before = call(model, backend, z, LEVELS, LABELS, 0, dtype=dtype)
        for frame in (1, 4) if backend == "numpy" else (3,):
            changed = np.concatenate([z[:, :frame], other[:, frame:]], axis=1)
            after = call(model, backend, changed, np.where(np.arange(6) < frame, LEVELS, 4.0), LABELS, 0, dtype=dtype)
            np.testing.assert_array_equal(after[:, :frame], before[:, :frame])
            assert np.all(np.abs(after[:, frame:] - before[:, frame:]).max(axis=(0, 2, 3, 4)) > 1e-3)


def test_a_frame_reaches_frames_minus_one_back_in_each_attention_and_no_further() -> None:
    layers = sum(row.attends for row in structure.rows(CAUSAL))
    z = draw(1, 2 * layers + 3, 4, 4, 2)
    changed = np.concatenate([draw(1, 1, 4, 4, 2, seed=1), z[:, 1:]], axis=1)
    before, after = (say(CAUSAL, "numpy", each, 0.5, LABELS[:1], 0) for each in (z, changed))
    moved = np.abs(after - before).max(axis=(0, 2, 3, 4))
    assert np.all(moved[: 2 * layers + 1] > 0.0)
    assert np.all(moved[2 * layers + 1 :] == 0.0)


def test_levels_that_all_frames_share_are_one_level_to_the_bit() -> None:
    for config in (CAUSAL, replace(CAUSAL, causal=False)):
        shared = np.repeat(LEVELS[:, 1:2], 6, axis=1)
        one, many = (say(config, "numpy", clip(), level, LABELS, 0) for level in (LEVELS[:, 1], shared))
        np.testing.assert_array_equal(one, many)


def in_parts(model: Any, given: Any, ends: Any) -> Any:
    """Return what a model says of parts one after another, with what it keeps of those before, and what it keeps at last."""
    z, levels, labels = given
    past, found, first = None, [], 0
    for end in ends:
        part = z[:, first:end], levels[:, first:end], labels
        found.append(model(*part, past=past))
        past = model.past(*part, past=past)
        first = end
    return found, past


@every_backend
def test_parts_with_what_is_kept_of_the_past_are_the_whole_clip(backend: str) -> None:
    """The reach is three frames, so that the last part has lost what lies further back, as the whole has."""
    config, ends = CONFIGS[backend], (3, 6) if backend == "jax" else (2, 3, 6)
    truth = say(config, "numpy", clip(), LEVELS, LABELS, 0)
    _, want = in_parts(model_of(config, "numpy"), (clip(), LEVELS, LABELS), ends)
    with wide(backend):
        model, given = model_of(config, backend), put(backend, (clip(), LEVELS, LABELS))
        run: Callable[..., Any] = lambda: in_parts(model, given, ends)  # noqa: E731
        if backend == "jax":
            import jax

            run = jax.jit(run, compiler_options=quick())
        found, past = run()
        np.testing.assert_allclose(np.concatenate([host(part) for part in found], axis=1), truth, rtol=1e-9, atol=1e-10)
        assert len(past) == sum(row.attends for row in structure.rows(config))
        for pair, same in zip(past, want, strict=True):
            for part, array in zip(pair, same, strict=True):
                assert part.shape[:2] == (2, CAUSAL.frames - 1)
                np.testing.assert_allclose(host(part), array, rtol=1e-9, atol=1e-10)


@pytest.mark.torch
def test_gradients_reach_no_later_frame_and_half_precision_keeps_the_past() -> None:
    import torch

    model = model_of(CAUSAL, "torch", "float32")
    z, levels, labels = put("torch", (clip(), LEVELS, LABELS), "float32")
    z.requires_grad_()
    model(z, levels, labels)[:, 2].square().sum().backward()
    assert not z.grad[:, 3:].any()
    assert z.grad[:, :3].abs().amax(dim=(0, 2, 3, 4)).min() > 0.0
    half = InBfloat16(model)
    with torch.no_grad():
        parts = torch.cat(in_parts(half, (z, levels, labels), (2, 6))[0], dim=1)
        whole, exact = half(z, levels, labels), model(z, levels, labels)
    assert whole.dtype == torch.float32
    assert 0.0 < (whole - exact).abs().max() < 0.03 * exact.abs().max()
    assert (parts - whole).abs().max() < 0.03 * whole.abs().max()


def test_old_files_mean_what_they_meant_and_say_what_they_said() -> None:
    pytest.importorskip("safetensors")
    with shipped("moving_digits") as path:
        said = json.loads(read_metadata("test", path)["config"])
    config = pretrained("moving_digits").config
    assert config.causal is False
    assert config.to_dict() == said
    assert UNet3DConfig.from_dict(CAUSAL.to_dict()) == CAUSAL
    assert structure.arrays(CAUSAL) == structure.arrays(replace(CAUSAL, causal=False))


BAD: list[tuple[dict[str, Any], Any, str]] = [
    ({"causal": False}, (), "UNet3DConfig\\(causal=True\\)"),
    ({}, (), "`past` must be what model.past returned for 2 clips of 5x4"),
    ({}, 3, "`past` must be what model.past returned"),
    ({}, "of other frames", "`past` must be what model.past returned for 2 clips of 5x4"),
]


@pytest.mark.parametrize(("changes", "past", "words"), BAD)
def test_a_past_that_does_not_fit_is_refused(changes: dict[str, Any], past: Any, words: str) -> None:
    model = model_of(replace(CAUSAL, **changes), "numpy")
    past = model.past(clip()[:, :, :3], 0.0) if past == "of other frames" else past
    with pytest.raises(ValueError, match=words):
        model(clip(), 0.0, past=past)
    if changes:
        with pytest.raises(ValueError, match=words):
            model.past(clip(), 0.0)
