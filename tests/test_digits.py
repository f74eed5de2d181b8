"""Moving digits: a pure function of their arguments, drawn by area, that obey mechanics."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from diffcore.unet3d import digits
from diffcore.unet3d.data import Arrays
from diffcore.unet3d.digits import MovingDigits
from diffcore.unet3d.digits import data as drawing


@pytest.fixture(scope="module")
def moving() -> tuple[Arrays, MovingDigits]:
    return digits.moving_digits(count=300, frames=24), digits.moving_digits_truth(count=300, frames=24)


def test_digits_are_a_pure_function_of_their_arguments(moving: tuple[Arrays, MovingDigits]) -> None:
    clips = moving[0].clips
    np.testing.assert_array_equal(digits.moving_digits(count=300, frames=24).clips, clips)
    np.testing.assert_array_equal(digits.moving_digits(count=70, frames=16).clips, clips[:70, :16])
    for other in ({"seed": 1}, {"split": "test"}):
        positions = digits.moving_digits_truth(count=300, frames=24, **other).positions
        assert np.all(np.any(positions != moving[1].positions, axis=(1, 2, 3)))


def test_train_and_test_share_no_image_of_a_digit() -> None:
    train, test = (
        set(digits.moving_digits_truth(count=20_000, split=split).images.ravel()) for split in ("train", "test")
    )
    assert not train & test
    assert train | test == set(range(1797))
    assert len(test) == 297


def test_labels_are_what_the_images_show(moving: tuple[Arrays, MovingDigits]) -> None:
    from sklearn.datasets import load_digits

    source, truth = moving
    np.testing.assert_array_equal(truth.labels, load_digits().target[truth.images])
    np.testing.assert_array_equal(source.labels, truth.labels[:, 0])
    assert source.classes == 10
    assert [source.label(k) for k in range(300)] == truth.labels[:, 0].tolist()


def test_positions_move_at_constant_speed_and_bounce_elastically(moving: tuple[Arrays, MovingDigits]) -> None:
    """In a step without a wall |dp| = v in each axis; with one, the way to the wall and back is v."""
    p, room = moving[1].positions[:, :, 0], 16.0
    assert np.all((p >= 0.0) & (p <= room))
    direct, low = np.abs(np.diff(p, axis=1)), p[:, 1:] + p[:, :-1]
    v = np.max(direct, axis=1, keepdims=True)
    reached = [np.abs(way - v) < 1e-9 for way in (direct, low, 2.0 * room - low)]
    assert np.all(reached[0] | reached[1] | reached[2])
    speed = np.hypot(*np.moveaxis(v[:, 0], -1, 0)) / 32.0
    assert speed.min() > 1 / 41  # the sides of `SPEED`
    assert speed.max() < 1 / 12 + 1e-9
    assert all(np.count_nonzero(way) > 100 for way in reached)
    turned = np.diff(np.sign(np.diff(p, axis=1)), axis=1) != 0.0
    near = np.minimum(p, room - p)[:, 1:-1] <= v
    assert not np.any(turned & ~near)


def test_no_light_is_lost_and_the_digit_is_where_the_truth_says(moving: tuple[Arrays, MovingDigits]) -> None:
    source, truth = moving
    light = source.clips[..., 0].astype(np.float64)
    total = light.sum(axis=(2, 3))
    np.testing.assert_allclose(total, np.broadcast_to(total.mean(axis=1, keepdims=True), total.shape), rtol=3e-3)
    centres = np.arange(32) + 0.5
    centroid = np.stack([light.sum(axis=3) @ centres, light.sum(axis=2) @ centres], axis=-1) / total[..., None]
    offset = centroid - truth.positions[:, :, 0]
    assert np.abs(offset - offset.mean(axis=1, keepdims=True)).max() < 0.02
    top, left = np.moveaxis(truth.positions[:, :, 0, :, None, None], 2, 0)
    rows, columns = np.arange(32)[:, None], np.arange(32)
    outside = (rows + 1 <= top) | (rows >= top + 16) | (columns + 1 <= left) | (columns >= left + 16)
    assert not np.any(light[outside])


def test_a_digit_on_whole_pixels_is_the_mean_over_them() -> None:
    """Against scikit-image's block mean of SciPy's enlargement."""
    transform = pytest.importorskip("skimage.transform")
    glyph = drawing._glyphs(np.array([5]), 16)
    assert 0.9 < glyph.max() <= 1.0
    frame = drawing._render(glyph, np.array([[[3.0, 11.0]]]), 32)[0, 0]
    np.testing.assert_allclose(frame[3:19, 11:27], transform.downscale_local_mean(glyph[0], (2, 2)), atol=1e-6)
    from sklearn.datasets import load_digits

    pixels = transform.downscale_local_mean(frame[3:19, 11:27], (2, 2))
    assert np.corrcoef(pixels.ravel(), load_digits().images[5].ravel())[0, 1] > 0.97


def test_two_digits_pass_over_one_another_and_have_no_label() -> None:
    source = digits.moving_digits(count=20, digits=2, size=48, digit_size=20, frames=5)
    truth = digits.moving_digits_truth(count=20, digits=2, size=48, digit_size=20, frames=5)
    assert source.classes is None
    each = [drawing._render(drawing._glyphs(truth.images[:, k], 20), truth.positions[:, :, k], 48) for k in range(2)]
    np.testing.assert_array_equal(source.clips[..., 0], np.rint(255.0 * np.maximum(*each)))


def test_a_digit_as_large_as_the_frame_rests() -> None:
    clips = digits.moving_digits(count=2, frames=3, size=16, digit_size=16).clips
    np.testing.assert_array_equal(clips, np.repeat(clips[:, :1], 3, axis=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "`split` must be 'train' or 'test', got 'valid'"),
        ({"frames": 0}, "`frames` must be an int >= 1, got 0"),
        ({"count": 0}, "`count` must be an int >= 1, got 0"),
        ({"digits": 0}, "`digits` must be an int >= 1, got 0"),
        ({"size": 7}, "`size` must be an int >= 8, got 7"),
        ({"digit_size": 33}, r"`digit_size` must be an int in \[8, 32\], got 33"),
        ({"seed": 2**64}, r"`seed` must be an int in .*, got 18446744073709551616"),
    ],
)
def test_what_moving_digits_refuse(options: dict[str, Any], message: str) -> None:
    for function in (digits.moving_digits, digits.moving_digits_truth):
        with pytest.raises(ValueError, match=f"digits.moving_digits: {message}"):
            function(**options)


def test_scikit_learn_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"digits.moving_digits: needs the digits of scikit-learn; pip install"):
        digits.moving_digits(count=1)
