"""Metrics: the Frechet distance against closed forms, PSNR and SSIM against scikit-image."""

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import EVERY, both_dtypes, example, put

from diffcore import metrics

every_library = pytest.mark.parametrize("library", EVERY)


def vectors(count: int, size: int, seed: int = 0, scale: float = 1.0) -> Any:
    return scale * np.random.default_rng(seed).normal(size=(count, size)) @ rotation(size, seed + 50) + seed


def rotation(size: int, seed: int = 0) -> Any:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def covariance(size: int, seed: int, rank: int | None = None) -> Any:
    factor = np.random.default_rng(seed).normal(size=(rank or 2 * size, size))
    return factor.T @ factor / size


def by_sqrtm(mean1: Any, c1: Any, mean2: Any, c2: Any) -> float:
    from scipy.linalg import sqrtm

    return float(np.sum((mean1 - mean2) ** 2) + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2))))


@pytest.fixture
def small_samples() -> Iterator[None]:
    """Let sets be smaller than their number of features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", metrics.SmallSample)
        yield


# The Frechet distance


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(-5, 5), st.floats(0, 5))
def test_in_one_dimension_it_is_the_sum_of_the_squares_of_both_differences(
    m1: float, s1: float, m2: float, s2: float
) -> None:
    truth = (m1 - m2) ** 2 + (s1 - s2) ** 2
    found = metrics.frechet_gaussians(np.array([m1]), np.array([[s1**2]]), np.array([m2]), np.array([[s2**2]]))
    assert found == pytest.approx(truth, rel=1e-9, abs=1e-12)
    pairs = ([m - s / 2**0.5, m + s / 2**0.5] for m, s in ((m1, s1), (m2, s2)))  # whose variance, by N - 1, is s^2
    assert metrics.frechet_distance(*(np.array(pair)[:, None] for pair in pairs)) == pytest.approx(
        truth, rel=1e-9, abs=1e-12
    )


def test_of_commuting_covariances_it_is_the_distance_of_the_deviations() -> None:
    turn, mean = rotation(7), np.arange(7.0)
    a, b = np.array([3.0, 1, 0, 0, 2, 5, 1e-3]), np.array([1.0, 0, 4, 0, 2, 6, 1e3])
    found = metrics.frechet_gaussians(mean, turn * a**2 @ turn.T, mean[::-1], turn * b**2 @ turn.T)
    assert found == pytest.approx(np.sum((a - b) ** 2) + np.sum((mean - mean[::-1]) ** 2), rel=1e-9)


@pytest.mark.parametrize("size", [1, 2, 9, 40])
def test_it_agrees_with_the_matrix_square_root_where_that_is_well_conditioned(size: int) -> None:
    x, y = vectors(3 * size + 2, size), vectors(5 * size + 2, size, 1, 2.0)
    moments = [part for z in (x, y) for part in (z.mean(axis=0), np.cov(z.T).reshape(size, size))]
    truth = by_sqrtm(*moments)
    assert metrics.frechet_distance(x, y) == pytest.approx(truth, rel=1e-10)
    assert metrics.frechet_gaussians(*moments) == pytest.approx(truth, rel=1e-10)


@pytest.mark.usefixtures("small_samples")
@pytest.mark.parametrize(("n1", "n2", "size"), [(3, 4, 6), (2, 9, 5), (9, 2, 5), (4, 4, 2), (2, 2, 1)])
def test_of_singular_covariances_it_is_what_50_digits_say(n1: int, n2: int, size: int) -> None:
    """tr (C1 C2)^{1/2} from the eigenvalues of C1^{1/2} C2 C1^{1/2}, of exact moments of the same numbers."""
    x, y = vectors(n1, size), vectors(n2, size, 1, 3.0)
    with mpmath.workdps(50):
        (m1, c1), (m2, c2) = exact_moments(x), exact_moments(y)
        values, v = mpmath.eigsy(c1)
        root = v * mpmath.diag([mpmath.sqrt(max(e, 0)) for e in values]) * v.T
        product = root * c2 * root
        inner = mpmath.eigsy((product + product.T) / 2, eigvals_only=True)
        truth = sum((a - b) ** 2 for a, b in zip(m1, m2, strict=True))
        truth += sum(c1[i, i] + c2[i, i] for i in range(size)) - 2 * sum(mpmath.sqrt(max(e, 0)) for e in inner)
    assert metrics.frechet_distance(x, y) == pytest.approx(float(truth), rel=1e-13)


def exact_moments(values: Any) -> Any:
    rows = [[mpmath.mpf(float(v)) for v in row] for row in values]
    count, size = len(rows), len(rows[0])
    mean = [sum(row[i] for row in rows) / count for i in range(size)]
    centred = mpmath.matrix([[row[i] - mean[i] for i in range(size)] for row in rows])
    return mean, centred.T * centred / (count - 1)


@pytest.mark.usefixtures("small_samples")
def test_of_covariances_on_two_lines_it_is_known() -> None:
    """C1 = a^2 u u^T and C2 = b^2 w w^T: tr (C1 C2)^{1/2} = a b |u . w|."""
    u, w = np.array([1.0, 0.0, 0.0]), np.array([0.6, 0.8, 0.0])
    x, y = np.array([-1, 1])[:, None] * u * 2 / 2**0.5, np.array([-1, 1])[:, None] * w * 5 / 2**0.5
    assert metrics.frechet_distance(x, y) == pytest.approx(4 + 25 - 2 * 2 * 5 * 0.6, rel=1e-14)
    found = metrics.frechet_gaussians(np.zeros(3), 4 * np.outer(u, u), np.zeros(3), 25 * np.outer(w, w))
    assert found == pytest.approx(17.0, rel=1e-14)


@pytest.mark.usefixtures("small_samples")
@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 12), st.floats(0.01, 100))
def test_it_is_symmetric_turns_and_scales_with_the_space_and_is_zero_for_equal_sets(
    n1: int, n2: int, d: int, c: float
) -> None:
    x, y, turn = vectors(n1, d), vectors(n2, d, 1, 2.0), rotation(d, 9)
    found = metrics.frechet_distance(x, y)
    assert found >= 0.0
    assert metrics.frechet_distance(y, x) == pytest.approx(found, rel=1e-10)
    assert metrics.frechet_distance(x @ turn + 3.0, y @ turn + 3.0) == pytest.approx(found, rel=1e-10)
    assert metrics.frechet_distance(c * x, c * y) == pytest.approx(c**2 * found, rel=1e-10)
    assert metrics.frechet_distance(x, x[::-1]) < 1e-24
    square = np.cov(x.T).reshape(d, d)
    assert metrics.frechet_gaussians(x[0], square, x[0], square) < 1e-12


def test_close_sets_keep_their_digits() -> None:
    """A shift by h has the distance D h^2 exactly, far below the rounding of the traces, tr C eps = 1e-14."""
    x = np.random.default_rng(0).normal(size=(64, 8))
    assert metrics.frechet_distance(x, x + 2.0**-40) == pytest.approx(8 * 2.0**-80, rel=1e-2)
    assert metrics.frechet_distance(x - x.mean(0), (x - x.mean(0)) * (1 + 1e-9)) == pytest.approx(
        1e-18 * np.trace(np.cov(x.T)), rel=1e-5
    )


@both_dtypes
@every_library
def test_it_takes_arrays_of_any_library_and_features_get_slices_of_that_library(library: str, dtype: str) -> None:
    x, y = (vectors(n, 6, seed).astype(dtype) for n, seed in ((30, 0), (25, 1)))
    truth = metrics.frechet_distance(x, y)
    with example(library, dtype) as like:
        real, fake = put(x, like), put(y, like)
        assert metrics.frechet_distance(real, fake) == truth
        kinds: list[Any] = []
        sizes: list[int] = []

        def features(clips: Any) -> Any:
            kinds.append(type(clips))
            sizes.append(clips.shape[0])
            return clips * 1.0

        assert metrics.frechet_distance(real, fake, features=features, batch=8) == truth
        assert sizes == [8, 8, 8, 6, 8, 8, 8, 1]
        assert set(kinds) == {type(like)}
        found = metrics.frechet_gaussians(*(put(part, like) for z in (x, y) for part in (z.mean(0), np.cov(z.T))))
    assert found == pytest.approx(truth, rel=1e-4 if dtype == "float32" else 1e-10)


@pytest.mark.torch
def test_half_precision_and_gradients_do_not_matter() -> None:
    import torch

    x = torch.arange(32.0).reshape(16, 2) ** 2 / 64
    truth = metrics.frechet_distance(x.to(torch.bfloat16).double(), x)
    assert metrics.frechet_distance(x.to(torch.bfloat16).requires_grad_(), x.requires_grad_()) == truth


@pytest.mark.usefixtures("small_samples")
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 6))
def test_moments_in_parts_are_the_moments_of_the_whole(sizes: list[int], d: int) -> None:
    whole = 1e3 + vectors(sum(sizes) + 1, d)
    seen = metrics.moments(whole[:1])
    merged = seen
    for part in np.split(whole[1:], np.cumsum(sizes)[:-1]):
        seen = seen.update(part)
        merged = metrics.moments(part).update(merged)
    for found in (seen, merged):
        assert found.samples == len(whole)
        assert found.factor.shape[0] <= d
        np.testing.assert_allclose(found.mean, whole.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(found.covariance, np.cov(whole.T).reshape(d, d), rtol=1e-9, atol=1e-11)
        assert metrics.frechet_distance(found, whole) < 1e-20
    assert np.isnan(metrics.moments(whole[:1]).covariance).all()


def test_what_is_beyond_float64_is_infinite_or_refused_and_never_nan() -> None:
    x, clips = vectors(40, 2), np.random.default_rng(0).normal(size=(2, 4, 8, 8, 1))
    with np.errstate(over="ignore"):
        assert metrics.frechet_distance_unbiased(x, 1e300 * x, points=3) == np.inf
    with np.errstate(over="raise"):
        assert metrics.seams(1e300 * clips, [2]).ratio == pytest.approx(metrics.seams(clips, [2]).ratio, rel=1e-12)
    with pytest.raises(ValueError, match=r"`x` must have entries whose fourth powers float64 holds.*; scale them"):
        metrics.ssim(clips, 1e300 * clips)


def test_the_extrapolated_distance_has_lost_the_bias() -> None:
    """E of the estimate is d + c / N + ...: from 400 samples of 30 features, d = 30 * 0.2^2."""
    rng, truth = np.random.default_rng(0), 30 * 0.2**2
    plain, free = [], []
    for seed in range(8):
        x, y = rng.normal(size=(400, 30)), 1.2 * rng.normal(size=(400, 30))
        plain.append(metrics.frechet_distance(x, y))
        free.append(metrics.frechet_distance_unbiased(x, y, seed=seed))
    assert np.mean(plain) - truth > 1.0
    assert abs(np.mean(free) - truth) < 0.15
    assert metrics.frechet_distance_unbiased(x, y, seed=1) == metrics.frechet_distance_unbiased(x, y, seed=1)
    assert metrics.frechet_distance_unbiased(x, y, features=lambda z: z, seed=1) == metrics.frechet_distance_unbiased(
        x, y, seed=1
    )


@pytest.mark.parametrize("compare", [metrics.frechet_distance, metrics.frechet_distance_unbiased])
def test_a_set_with_no_more_samples_than_features_warns_where_it_is_called(compare: Any) -> None:
    least = 21 if compare is metrics.frechet_distance else 84
    with pytest.warns(
        metrics.SmallSample, match=r"`fake` has 20 samples of 20 features.*biased upwards; give more"
    ) as found:
        compare(vectors(least, 20), vectors(least - 1 if least == 21 else 80, 20))
    assert [warning.filename for warning in found] == [__file__]
    compare(vectors(least, 20), vectors(least, 20))


def test_mistakes_are_named() -> None:
    x = vectors(9, 3)
    bad = x.copy()
    bad[0, 0], bad[1, 1] = np.nan, np.inf
    compare, gaussians = metrics.frechet_distance, metrics.frechet_gaussians
    for error, message, call in [
        (
            ValueError,
            "frechet_distance: `fake` must be finite, got NaN or infinity in 2 of 27 entries",
            lambda: compare(x, bad),
        ),
        (ValueError, "`real` has 3 features but `fake` has 2", lambda: compare(x, x[:, :2])),
        (ValueError, "`fake` has 1 sample, but a covariance takes at least 2", lambda: compare(x, x[:1])),
        (
            ValueError,
            r"`real` must have shape \(N, D\), .* \(9, 3, 1\) .*; pass `features=`",
            lambda: compare(x[..., None], x),
        ),
        (ValueError, r"`real` must have shape .* \(0, 3\)", lambda: compare(x[:0], x)),
        (ValueError, "`fake` must have at least one clip", lambda: compare(x, x[:0], features=np.abs)),
        (ValueError, "`batch` must be an int >= 1, got 0", lambda: compare(x, x, features=np.abs, batch=0)),
        (ValueError, r"`features` returned \(3,\) for 9 clips", lambda: compare(x, x, features=lambda z: z.mean(0))),
        (
            ValueError,
            r"`features\(real\)` must be finite, got NaN or infinity in 2 of 27 entries",
            lambda: compare(bad, x, features=lambda z: z),
        ),
        (
            TypeError,
            "`features` must be a function of clips, or None, got 'inception'",
            lambda: compare(x, x, features="inception"),
        ),
        (TypeError, "`real` takes an array", lambda: compare([[1.0]], x)),
        (TypeError, "`real` takes an array", lambda: compare([[1.0]], x, features=np.abs)),
        (ValueError, "`more` has D = 2, but this has 3", lambda: metrics.moments(x).update(x[:, :2])),
        (ValueError, "`points` must be an int >= 2, got 1", lambda: metrics.frechet_distance_unbiased(x, x, points=1)),
        (
            ValueError,
            r"one shape \(D,\), got \(3,\) and \(2,\)",
            lambda: gaussians(x[0], np.eye(3), x[0, :2], np.eye(3)),
        ),
        (
            ValueError,
            r"`covariance2` must have shape \(3, 3\), .* shape \(2, 2\)",
            lambda: gaussians(x[0], np.eye(3), x[0], np.eye(2)),
        ),
        (
            ValueError,
            "`covariance1` is not symmetric, by 1",
            lambda: gaussians(x[0], np.eye(3) + np.eye(3, k=1), x[0], np.eye(3)),
        ),
        (
            ValueError,
            "`covariance2` has the eigenvalue -1",
            lambda: gaussians(x[0], np.eye(3), x[0], np.diag([1.0, -1, 1])),
        ),
        (
            ValueError,
            "`mean2` must be finite, got NaN or infinity in 1 of",
            lambda: gaussians(x[0], np.eye(3), bad[0], np.eye(3)),
        ),
    ]:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eigenvalues_below_zero_by_rounding_are_taken_for_zero(dtype: str) -> None:
    low = covariance(40, 1, rank=5).astype(dtype)
    assert np.linalg.eigvalsh(low.astype(np.float64))[0] < 0.0
    assert metrics.frechet_gaussians(np.zeros(40), low, np.zeros(40), low) < 1e-10
    with pytest.raises(ValueError, match="more than rounding"):
        metrics.frechet_gaussians(np.zeros(40), low - np.eye(40, dtype=dtype) * 1e-3, np.zeros(40), low)


# PSNR and SSIM


@given(st.integers(1, 3), st.integers(1, 3), st.integers(7, 11), st.integers(7, 11), st.sampled_from([1, 3]))
def test_psnr_and_ssim_are_those_of_scikit_image_frame_by_frame(b: int, t: int, h: int, w: int, c: int) -> None:
    skimage = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(b + 10 * t + 100 * h)
    x = rng.uniform(-1, 1, size=(b, t, h, w, c)).astype(np.float32)
    y = np.clip(x + 0.2 * rng.normal(size=x.shape), -1, 1)
    peak, alike = metrics.psnr(x, y), metrics.ssim(x, y)
    np.testing.assert_allclose(peak, (10 * np.log10(4 / ((x - y) ** 2).mean((2, 3, 4)))).mean(1), rtol=1e-12)
    for clip in range(b):
        pairs = [(x[clip, frame].astype(np.float64), y[clip, frame]) for frame in range(t)]
        one = [skimage.peak_signal_noise_ratio(*pair, data_range=2.0) for pair in pairs]
        assert peak[clip] == pytest.approx(np.mean(one), rel=1e-12)
        planes = [(p[..., k], q[..., k]) for p, q in pairs for k in range(c)]
        one = [skimage.structural_similarity(*plane, data_range=2.0) for plane in planes]
        assert alike[clip] == pytest.approx(np.mean(one), rel=1e-10)


@every_library
def test_equal_clips_have_no_error_and_the_similarity_one(library: str) -> None:
    pytest.importorskip("skimage")
    with example(library) as like:
        x = put(np.random.default_rng(0).uniform(-1, 1, size=(2, 3, 8, 8, 3)), like)
        for found, truth in ((metrics.psnr(x, x), np.inf), (metrics.ssim(x, x), 1.0)):
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, [truth, truth])


def test_ssim_of_flat_frames_has_a_closed_form_and_the_range_counts() -> None:
    pytest.importorskip("skimage")
    a, b = 0.5, -0.25
    x, y = np.full((1, 2, 8, 8, 1), a), np.full((1, 2, 8, 8, 1), b)
    for reach in (2.0, 1.0):
        c1 = (0.01 * reach) ** 2
        assert metrics.ssim(x, y, reach)[0] == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-9)
        assert metrics.psnr(x, y, reach)[0] == pytest.approx(20 * np.log10(reach / 0.75), rel=1e-12)


def test_mistakes_in_psnr_and_ssim_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    x = np.zeros((1, 2, 6, 9, 3))
    assert metrics.ssim(x, x, win_size=5)[0] == 1.0
    for message, call in [
        (r"`win_size` must be an odd number from 3 to .* 6, got 7; use win_size=5", lambda: metrics.ssim(x, x)),
        ("`win_size` must be an odd number .* got 4", lambda: metrics.ssim(x, x, win_size=4)),
        ("frames of at least 3 x 3", lambda: metrics.ssim(x[:, :, :2], x[:, :, :2])),
        (
            r"one shape \(B, T, H, W, C\), got \(1, 2, 6, 9, 3\) and \(1, 2, 6, 9, 1\)",
            lambda: metrics.psnr(x, x[..., :1]),
        ),
        (r"got \(2, 6, 9, 3\) and \(2, 6, 9, 3\)", lambda: metrics.psnr(x[0], x[0])),
        ("`data_range` must be a finite number > 0, got 0; it is 2", lambda: metrics.psnr(x, x, 0)),
        ("`y` must be finite, got NaN or infinity in 324 of 324 entries", lambda: metrics.ssim(x, x * np.nan)),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    for metric in (metrics.psnr, metrics.ssim):
        with pytest.raises(ImportError, match=r"install diffcore\[metrics\]"):
            metric(x, x)
