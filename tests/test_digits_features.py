"""What the features of clips of digits can see: every spoilt set is farther from real clips than other real clips are."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import every_library, example, put

from diffcore import metrics

pytest.importorskip("sklearn")

from diffcore.unet3d import digits as look
from diffcore.unet3d.digits import moving_digits, moving_digits_truth
from diffcore.unet3d.digits.features import _classifier, _see

COUNT = 384


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    """Real clips of both splits, and the second of them spoilt in one way each."""
    from scipy.ndimage import gaussian_filter

    train = moving_digits(count=COUNT, split="train", seed=3)
    test = moving_digits(count=COUNT, split="test", seed=4)
    real = test.clips / np.float32(127.5) - 1.0
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(16) for _ in range(COUNT)])
    return {
        "train": train.clips / np.float32(127.5) - 1.0,
        "labels": test.labels,
        "real": real,
        "noise": rng.uniform(-1, 1, size=real.shape),
        "black": np.full(real.shape, -1.0),
        "shuffled": np.take_along_axis(real, order[:, :, None, None, None], axis=1),
        "frozen": np.repeat(real[:, :1], 16, axis=1),
        "switched": switched(real, test.labels),
        "blurred": gaussian_filter(real, (0, 0, 1.5, 1.5, 0)),
        "hazy": real + 0.3 * rng.normal(size=real.shape),
    }


def switched(real: Any, labels: Any) -> Any:
    """Return clips that end as another digit: the second half of another clip, moved to where this one would have been."""
    other = np.roll(np.argsort(labels, kind="stable"), COUNT // 2)[np.argsort(np.argsort(labels, kind="stable"))]
    places = 32 * _see("test", real, 1).places
    step = np.rint(places - places[other]).astype(int)
    out = real.copy()
    for clip, frame in itertools.product(range(COUNT), range(8, 16)):
        out[clip, frame] = np.roll(real[other[clip], frame], tuple(step[clip, frame]), axis=(0, 1))
    return out


def test_real_clips_of_digits_never_seen_are_near_and_every_spoilt_set_is_far(digits: dict[str, Any]) -> None:
    train = look.features(digits["train"])
    found = {
        name: metrics.frechet_distance(train, look.features(clips))
        for name, clips in digits.items()
        if name not in ("train", "labels")
    }
    for name, times in [
        ("blurred", 3),
        ("hazy", 10),
        ("frozen", 10),
        ("switched", 5),
        ("black", 50),
        ("shuffled", 100),
        ("noise", 300),
    ]:
        assert found[name] > times * found["real"], found


def test_the_table_of_an_evaluation_tells_what_was_spoilt(digits: dict[str, Any]) -> None:
    real, labels = digits["real"], digits["labels"]
    assert (look.legibility(real, labels).accuracy or 0.0) > 0.97
    assert look.legibility(real).accuracy is None
    assert look.legibility(digits["blurred"]).probability < look.legibility(real).probability - 0.01
    assert (look.legibility(digits["noise"], labels).accuracy or 0.0) < 0.3
    assert look.identity_held(real) > 0.98
    assert look.identity_held(digits["switched"]) < 0.7
    assert look.straightness(real) < 1e-3
    assert look.straightness(digits["shuffled"]) > 100 * look.straightness(real)
    assert look.speed(digits["frozen"]) == look.straightness(digits["frozen"]) == 0.0
    assert look.speed(digits["shuffled"]) > 2 * look.speed(real)


def test_speed_and_place_are_the_truth_of_the_clips() -> None:
    clips = moving_digits(count=16, seed=1).clips / 127.5 - 1.0
    steps = np.diff(moving_digits_truth(count=16, seed=1).positions[:, :, 0], axis=1) / 32
    assert look.speed(clips) == pytest.approx(np.linalg.norm(steps, axis=-1).mean(), rel=1e-2)


def test_the_features_of_a_white_square_are_known() -> None:
    """Place, velocity, acceleration and light in closed form; the window lies on the square, also where there is haze."""
    corners = np.array([[0, 3], [2, 3], [3, 7], [9, 4], [16, 1]])
    clips = np.full((1, 5, 32, 32, 1), -1.0)
    for frame, (top, left) in enumerate(corners):
        clips[0, frame, top : top + 16, left : left + 16] = 1.0
    place = (corners + 8) / 32
    velocity, change = np.diff(place, axis=0), np.abs(np.diff(place, n=2, axis=0))
    rows = [
        4 * place.mean(0),
        4 * place.std(0),
        20 * velocity.mean(0),
        20 * np.abs(velocity).mean(0),
        20 * velocity.std(0),
    ]
    rows += [20 * change.mean(0), 20 * np.median(change, axis=0), np.array([40 * 0.25, 0.0, 0.0, 0.0])]
    found = look.features(clips)[0]
    np.testing.assert_allclose(found[128:], np.concatenate(rows), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found[64:128], 0.0, atol=1e-12)
    np.testing.assert_allclose(look.features(np.maximum(clips, -0.96))[0, 128:142], found[128:142], rtol=5e-3)
    assert look.straightness(clips) == pytest.approx(np.median(change, axis=0).mean())
    wide = np.concatenate([clips, np.full((1, 5, 32, 20, 1), -1.0)], axis=3)
    np.testing.assert_allclose(look.features(wide)[0, :142], found[:142], rtol=1e-12, atol=1e-12)


@given(
    st.integers(1, 2),
    st.integers(3, 5),
    st.integers(4, 20),
    st.integers(4, 20),
    st.sampled_from([-1.0, 1.0, 0.0, 1e30]),
)
def test_any_finite_clip_has_finite_features(n: int, t: int, h: int, w: int, value: float) -> None:
    clips = np.full((n, t, h, w, 1), value)
    clips[0, 0, 0, 0, 0] = -1.0 + 1e-7
    found = look.features(clips)
    assert found.shape == (n, 146)
    assert np.isfinite(found).all()
    for figure in (
        look.legibility(clips).probability,
        look.identity_held(clips),
        look.straightness(clips),
        look.speed(clips),
    ):
        assert np.isfinite(figure)


@every_library
def test_features_are_equal_in_every_library_and_batch(library: str, digits: dict[str, Any]) -> None:
    real = digits["real"][:6]
    truth = look.features(real)
    with example(library) as like:
        np.testing.assert_allclose(look.features(put(real, like)), truth, rtol=1e-12)
    np.testing.assert_allclose(
        np.concatenate([look.features(clip[None]) for clip in real]), truth, rtol=1e-9, atol=1e-12
    )


def test_a_classifier_trained_again_is_the_same(digits: dict[str, Any]) -> None:
    before = look.features(digits["real"][:6])
    _classifier.cache_clear()
    assert np.array_equal(look.features(digits["real"][:6]), before)


def test_mistakes_in_clips_of_digits_are_named() -> None:
    clips = np.zeros((2, 4, 8, 8, 1))
    for error, message, call in [
        (
            ValueError,
            r"features: `clips` must have shape \(N, T, H, W, 1\) with T >= 3, got .* \(2, 2, 8, 8, 1\)",
            lambda: look.features(clips[:, :2]),
        ),
        (ValueError, "speed: .* T >= 2", lambda: look.speed(clips[:, :1])),
        (ValueError, r"\(2, 4, 8, 8, 3\)", lambda: look.identity_held(np.zeros((2, 4, 8, 8, 3)))),
        (ValueError, "must be finite, got NaN or infinity in 512 of", lambda: look.legibility(clips * np.nan)),
        (ValueError, r"`labels` must be one digit a clip, .* shape \(3,\)", lambda: look.legibility(clips, [1, 2, 3])),
        (TypeError, "`clips` has dtype uint8", lambda: look.straightness(clips.astype(np.uint8))),
    ]:
        with pytest.raises(error, match=message):
            call()
