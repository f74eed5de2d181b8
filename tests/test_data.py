"""Training data: a pure function of (seed, step), each clip once an epoch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from diffcore.unet3d import data

COUNTS = st.integers(1, 23)
SEEDS = st.integers(0, 2**64 - 1)


def coded(count: int = 11, length: int = 7, *, labels: bool = False, frames: int = 4) -> data.Arrays:
    """Clips whose pixels say where they are from: the channels are (clip, frame, column)."""
    clips = np.zeros((count, length, 2, 6, 3), dtype=np.uint8)
    clips[..., 0] = np.arange(count)[:, None, None, None]
    clips[..., 1] = np.arange(length)[:, None, None]
    clips[..., 2] = np.arange(6)
    return data.Arrays(clips, labels=100 - np.arange(count) if labels else None, frames=frames)


def decoded(x: data.source.Float32) -> npt.NDArray[np.int64]:
    return np.rint((x.astype(np.float64) + 1.0) * 127.5).astype(np.int64)


def batches(source: data.Source, size: int, steps: range, **options: Any) -> npt.NDArray[np.float32]:
    return np.concatenate([data.batch(source, size, step=step, **options).x for step in steps])


# A batch


@given(SEEDS, st.integers(0, 10**9), COUNTS)
def test_a_batch_is_a_pure_function_of_seed_and_step(seed: int, step: int, size: int) -> None:
    """A source made anew, as after a restart, gives the same bits; another seed or step gives others."""
    arguments = {"images": 2, "flip": True}
    x = data.batch(coded(), size + 8, seed=seed, step=step, **arguments).x
    np.testing.assert_array_equal(data.batch(coded(), size + 8, seed=seed, step=step, **arguments).x, x)
    for other in ({"seed": seed ^ 1, "step": step}, {"seed": seed, "step": step + 1}):
        assert np.any(data.batch(coded(), size + 8, **other, **arguments).x != x)


@given(COUNTS, st.integers(1, 5), st.integers(0, 9))
def test_a_batch_is_the_concatenation_of_smaller_ones(size: int, parts: int, step: int) -> None:
    options: dict[str, Any] = {"seed": 3, "images": 1, "flip": True}
    small = batches(coded(), size, range(step * parts, (step + 1) * parts), **options)
    np.testing.assert_array_equal(data.batch(coded(), size * parts, step=step, **options).x, small)


@given(COUNTS, COUNTS, st.integers(0, 3), SEEDS)
def test_an_epoch_meets_every_clip_once(count: int, size: int, epoch: int, seed: int) -> None:
    x = batches(coded(count), size, range((epoch + 1) * count // size + 1), seed=seed)
    met = decoded(x)[epoch * count : (epoch + 1) * count, 0, 0, 0, 0]
    np.testing.assert_array_equal(np.sort(met), np.arange(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        tuple(decoded(data.batch(coded(), 11, seed=s, step=k).x)[:, 0, 0, 0, 0]) for s in range(3) for k in range(3)
    ]
    assert len(set(orders)) == 9


def test_a_clip_is_a_run_of_frames_and_starts_anywhere() -> None:
    x = decoded(batches(coded(), 11, range(100)))
    starts = x[:, 0, 0, 0, 1]
    np.testing.assert_array_equal(x[..., 1], starts[:, None, None, None] + np.arange(4)[:, None, None] + 0 * x[..., 1])
    assert uniform(np.bincount(starts, minlength=4)) > 1e-4


def test_images_are_frames_of_random_videos_each_on_its_own() -> None:
    """Uniform over videos and frames, whatever the clip and the image beside it are."""
    x = decoded(batches(coded(5, 6), 5, range(400), images=2))
    assert x.shape == (2000, 6, 2, 6, 3)
    np.testing.assert_array_equal(np.unique(x[:, 4:, ..., 1]), np.arange(6))
    clip, first, second = x[:, 0, 0, 0], x[:, 4, 0, 0], x[:, 5, 0, 0]
    tables = [
        (clip[:, 0], first[:, 0]),
        (first[:, 0], second[:, 0]),
        (first[:, 1], second[:, 1]),
        (first[:, 0], first[:, 1]),
    ]
    for one, other in tables:
        assert (
            uniform(np.bincount(6 * one + other, minlength=36).reshape(6, 6)[: one.max() + 1, : other.max() + 1]) > 1e-4
        )


def test_images_and_flips_leave_the_clips_as_they_are() -> None:
    plain = batches(coded(), 8, range(20))
    np.testing.assert_array_equal(batches(coded(), 8, range(20), images=3)[:, :4], plain)
    flipped = batches(coded(), 8, range(20), flip=True)
    for clip, same in zip(flipped, plain, strict=True):
        assert np.array_equal(clip, same) or np.array_equal(clip, same[..., ::-1, :])


def test_a_clip_is_flipped_whole_and_an_image_on_its_own() -> None:
    x = decoded(batches(coded(), 11, range(60), images=2, flip=True))[..., 2]
    forward = np.all(x == np.arange(6), axis=(2, 3))
    assert np.all(forward | np.all(x == np.arange(6)[::-1], axis=(2, 3)))
    assert np.all(forward[:, :4] == forward[:, :1])
    flips = np.stack([forward[:, 0], forward[:, 4], forward[:, 5]], axis=1).astype(int)
    assert uniform(np.bincount(flips @ [4, 2, 1], minlength=8)) > 1e-4
    assert np.all(decoded(batches(coded(), 11, range(20), images=2))[..., 2] == np.arange(6))


def test_labels_belong_to_the_frames() -> None:
    source = coded(labels=True)
    assert source.classes == 101
    assert data.batch(coded(), 3, step=0).labels is None
    x, labels = data.batch(source, 30, step=1)
    assert labels is not None
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, 100 - decoded(x)[:, 0, 0, 0, 0])
    x, labels = data.batch(source, 30, step=1, images=3)
    np.testing.assert_array_equal(labels, 100 - decoded(x)[:, :, 0, 0, 0])


def test_one_frame_and_one_clip_are_enough() -> None:
    x, labels = data.batch(data.Arrays(np.zeros((1, 1, 2, 3, 1), np.uint8), [0], frames=1), 5, step=2, images=1)
    assert x.shape == (5, 2, 2, 3, 1)
    np.testing.assert_array_equal(labels, np.zeros((5, 2)))


def uniform(table: npt.NDArray[np.int64]) -> float:
    """Return the p-value of Pearson's test that all cells are as likely."""
    return float(chisquare(table.ravel()).pvalue)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 0}, ValueError, "`size` must be an int >= 1, got 0"),
        ({"size": 1.5}, TypeError, "`size` must be an int >= 1, got 1.5"),
        ({"step": -1}, ValueError, "`step` must be an int >= 0, got -1"),
        ({"images": -1}, ValueError, "`images` must be an int >= 0, got -1"),
        ({"seed": -1}, ValueError, r"`seed` must be an int in \[0, 2\^64 - 1\], got -1"),
        ({"source": np.zeros((1, 1, 2, 2, 1))}, TypeError, "`source` must be a Source, .*, got ndarray"),
    ],
)
def test_what_a_batch_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"data.batch: {message}"):
        data.batch(**{"source": coded(), "size": 1, "step": 0, **options})


def test_a_source_that_belies_its_shape_is_refused() -> None:
    class Wrong(data.Arrays):
        def clip(self, index: int, rng: np.random.Generator) -> data.source.Float32:
            return super().clip(index, rng)[:1]

    with pytest.raises(ValueError, match=r"gave an array of shape \(1, 2, 3, 1\), but its `shape` says \(4, 2, 3, 1\)"):
        data.batch(Wrong(np.zeros((1, 4, 2, 3, 1), np.uint8), frames=4), 1, step=0)


# Arrays


def test_bytes_map_to_minus_one_to_one_and_floats_stay() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 4, 8, 8, 1)
    x = data.Arrays(values, frames=4).clip(0, np.random.default_rng(0))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, values[0] / 127.5 - 1.0, atol=1e-7)
    assert (x.min(), x.max()) == (-1.0, 1.0)
    for dtype in (np.float16, np.float32, np.float64):
        floats = (values / 127.5 - 1.0).astype(dtype)
        x = data.Arrays(floats, frames=4).clip(0, np.random.default_rng(0))
        np.testing.assert_array_equal(x, floats[0].astype(np.float32))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_file_gives_what_the_array_gives(suffix: str, tmp_path: Path) -> None:
    source, path = coded(labels=suffix == "npz"), tmp_path / f"clips.{suffix}"
    if suffix == "npy":
        np.save(path, source.clips)
    else:
        np.savez_compressed(path, clips=source.clips, labels=source.labels)
    found = data.array_file(path, frames=4)
    assert isinstance(found.clips, np.memmap) == (suffix == "npy")
    assert (found.shape, len(found), found.classes) == (source.shape, len(source), source.classes)
    for one, other in zip(data.batch(found, 9, step=5, images=2), data.batch(source, 9, step=5, images=2), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_large_file_is_not_read_whole_and_each_clip_is_checked_where_it_is_drawn(tmp_path: Path) -> None:
    clips = np.zeros((1000, 2, 2, 2, 1), dtype=np.float32)
    clips[321] = np.nan
    np.save(tmp_path / "clips.npy", clips)
    source = data.array_file(tmp_path / "clips.npy", frames=2)
    with pytest.raises(ValueError, match="values from nan to nan in clip 321, but takes floats in"):
        source.clip(321, np.random.default_rng(0))


CLIPS = np.zeros((3, 4, 2, 2, 1), dtype=np.uint8)


@pytest.mark.parametrize(
    ("clips", "options", "error", "message"),
    [
        ([[1]], {}, TypeError, "`clips` must be a NumPy array"),
        (
            CLIPS[..., 0],
            {},
            ValueError,
            r"must have shape .* got ndarray of shape \(3, 4, 2, 2\) .* clips\[..., None\]",
        ),
        (CLIPS[:0], {}, ValueError, "`clips` must have no empty axis"),
        (CLIPS.astype(np.int32), {}, TypeError, "must be uint8 from 0 to 255 or floats .* dtype int32"),
        (CLIPS + 255.0, {}, ValueError, r"values from 255 to 255 in clip 0, but takes floats in \[-1, 1\]; scale them"),
        (CLIPS, {"frames": 5}, ValueError, "`frames` is 5, but the clips have 4"),
        (CLIPS, {"frames": 0}, ValueError, "`frames` must be an int >= 1, got 0"),
        (
            CLIPS,
            {"labels": [0, 1]},
            ValueError,
            r"`labels` must be one for each clip, \(3,\), got ndarray of shape \(2,\)",
        ),
        (CLIPS, {"labels": [0.0, 1.0, 2.0]}, TypeError, "`labels` must be integers, got .* float64"),
        (CLIPS, {"labels": [0, -1, 2]}, ValueError, r"`labels` must be in \[0, 2\], got -1 to 2"),
        (CLIPS, {"labels": [0, 1, 2], "classes": 2}, ValueError, r"`labels` must be in \[0, 1\], got 0 to 2"),
        (CLIPS, {"classes": 2}, ValueError, "`classes` is 2, but there are no labels"),
    ],
)
def test_what_arrays_refuse(clips: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"data.Arrays: .*{message}"):
        data.Arrays(clips, **{"frames": 4, **options})


def test_what_a_file_is_refused_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.array_file: there is no file '.*none.npy'"):
        data.array_file(tmp_path / "none.npy", frames=1)
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("text.npy", "empty.npz", "objects.npy"):
        with pytest.raises(ValueError, match=f"data.array_file: '{name}' is no .npy or .npz file of numbers"):
            data.array_file(tmp_path / name, frames=1)
    np.savez(tmp_path / "other.npz", frames=CLIPS)
    with pytest.raises(ValueError, match=r"'other.npz' lacks an array named 'clips'"):
        data.array_file(tmp_path / "other.npz", frames=1)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"data.videos: reading videos needs PyAV; install diffcore\[video\]"):
        data.videos(tmp_path, frames=1, size=(8, 8))
