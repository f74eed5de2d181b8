r"""The Frechet distance of two sets, by the mean and covariance of their feature vectors.

The Frechet distance of two Gaussians is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^{1/2}). With any factors C1 = F^T F and
C2 = G^T G, where F (n1, D) and G (n2, D) may have fewer rows than D,

    C1 C2 = F^T (F G^T) G  has the non-zero eigenvalues of  (F G^T)(F G^T)^T,  so  tr (C1 C2)^{1/2} = ||F G^T||_*,

the sum of the singular values of F G^T = P S Q^T. For n1 >= n2 (else swap) that is the largest tr(F G^T U^T) over U with
orthonormal columns, reached at U = P Q^T, hence

    tr(C1 + C2 - 2 (C1 C2)^{1/2}) = min_U ||F - U G||_F^2 = ||F - P Q^T G||_F^2.

The right side is what is computed: it is exact for singular covariances, never negative, and subtracts before it squares,
so that close sets keep their digits. F is the triangle of a QR decomposition of the centred features: it has min(N, D)
rows, so the singular value problem is the smallest there is, and no covariance is ever formed.

Source: Dowson & Landau 1982 (doi 10.1016/0047-259X(82)90077-X); Heusel et al. 2017 (arXiv 1706.08500), eq. 6;
Bhatia, Jain & Lim 2019 (arXiv 1712.01504), theorem 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check
from diffcore._array import Array

Float64 = npt.NDArray[np.float64]

Features = Callable[[Any], Array]
"""Clips (N, ...) -> feature vectors (N, D)."""


class SmallSample(UserWarning):
    """A set has no more samples than features: its covariance is singular and the distance biased upwards."""


class Moments(NamedTuple):
    r"""Mean and covariance of feature vectors, as far as they were seen: what `moments` returns.

    `samples` is N, `mean` (D,), `factor` (at most D, D) with factor^T factor = sum_i (y_i - mean)(y_i - mean)^T. Sets merge
    by the update of Chan et al., with roots in the place of sums, so that nothing is squared:

        sum = sum_1 + sum_2 + (m2 - m1)(m2 - m1)^T n1 n2 / (n1 + n2)
    """

    samples: int
    mean: Float64
    factor: Float64

    @property
    def covariance(self) -> Float64:
        """The unbiased covariance (D, D), with N - 1; NaN for a single sample."""
        root = self.factor / math.sqrt(self.samples - 1) if self.samples > 1 else self.factor * math.nan
        return root.T @ root

    def update(self, more: Array | Moments) -> Moments:
        """Return the moments of all that was seen and more: features (N, D), or the moments of another set.

        Each call costs O((N + D) D^2): give hundreds of features at a time rather than one.

        Raises:
            ValueError: D differs; features as in `moments`.

        Source: Chan, Golub & LeVeque 1983 (doi 10.1080/00031305.1983.10483115).
        """
        more = more if isinstance(more, Moments) else moments(more)
        if more.mean.shape != self.mean.shape:
            raise ValueError(f"metrics.Moments.update: `more` has D = {more.mean.size}, but this has {self.mean.size}")
        samples, step = self.samples + more.samples, more.mean - self.mean
        between = step * math.sqrt(self.samples * more.samples / samples)
        factor = _triangle(np.vstack([self.factor, more.factor, between]))
        return Moments(samples, self.mean + step * (more.samples / samples), factor)


def moments(features: Array) -> Moments:
    """Return the mean and the covariance factor of feature vectors, to be updated with more or compared.

    Args:
        features: (N, D) of any library, N >= 1; computed on the host in float64.

    Raises:
        ValueError: another shape, no entries, or entries that are not finite.

    >>> seen = moments(np.array([[0.0], [2.0]])).update(np.array([[4.0]]))
    >>> seen.samples, seen.mean, seen.covariance
    (3, array([2.]), array([[4.]]))
    """
    return _moments("metrics.moments", "features", features)


def frechet_distance(
    real: Array | Moments, fake: Array | Moments, *, features: Features | None = None, batch: int = 64
) -> float:
    r"""Return the Frechet distance of two sets: of the Gaussians with the mean and covariance of their features.

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^{1/2})

    The distance is a squared length (as published: FID, FVD); it is 0 for equal moments and grows by c^2 when features do
    by c. Estimates from N samples are biased upwards by about 1/N: compare those of equal N, or see
    `frechet_distance_unbiased`.

    Args:
        real, fake: clips (N, ...) of any library; with `features` None, feature vectors (N, D); or `Moments` of them.
        features: clips (n, ...), a slice of what was given, in its library -> (n, D). It states what is compared: a
            distance means nothing without it.
        batch: how many clips `features` gets at a time, the last time perhaps fewer.

    Returns:
        A float >= 0, computed in float64 on the host.

    Raises:
        ValueError: N < 2, D that differs, features that are not (N, D) or not finite.
        TypeError: `features` that cannot be called.

    Warns:
        SmallSample: N <= D in a set.

    Source: Heusel et al. 2017 (arXiv 1706.08500), eq. 6; for video Unterthiner et al. 2018 (arXiv 1812.01717).

    >>> real, fake = np.array([[-1.0], [1.0]]), np.array([[1.0], [7.0]])
    >>> round(frechet_distance(real, fake), 6)                           # (0 - 4)^2 + (2^{1/2} - 18^{1/2})^2
    24.0
    """
    function = "metrics.frechet_distance"
    first, second = (
        given
        if isinstance(given, Moments)
        else _moments(function, name, _featured(function, name, given, features, batch))
        for name, given in (("real", real), ("fake", fake))
    )
    return _distance(function, first, second)


def frechet_distance_unbiased(
    real: Array,
    fake: Array,
    *,
    features: Features | None = None,
    batch: int = 64,
    points: int = 15,
    smallest: float = 0.25,
    seed: int = 0,
) -> float:
    r"""Return the Frechet distance extrapolated to infinitely many samples.

    The bias of an estimate is c / N + O(1/N^2). So distances of random parts of both sets, a fraction f of each, are laid
    on a line d_f = d + c / f by least squares, and d is returned: nearly unbiased, noisier, and it may fall below 0.

    Args:
        real, fake, features, batch: as in `frechet_distance`, but no `Moments`; features are computed once.
        points: how many fractions, evenly spaced from `smallest` to 1.
        smallest: in (0, 1); the smallest part should still have several times as many samples as features.
        seed: of the random parts.

    Raises:
        ValueError: as in `frechet_distance`; points < 2; smallest out of range.

    Warns:
        SmallSample: N <= D in the smallest part.

    Source: Chong & Forsyth 2020 (arXiv 1911.07023), with both sets taken in parts.

    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(2, 2000, 20))
    >>> frechet_distance(x, y) > 0.1, abs(frechet_distance_unbiased(x, y)) < 0.02
    (True, True)
    """
    function = "metrics.frechet_distance_unbiased"
    _check.count(function, "points", points, 2)
    _check.number(function, "smallest", smallest, 0, 1, open_low=True, open_high=True)
    sets = [_featured(function, name, given, features, batch) for name, given in (("real", real), ("fake", fake))]
    rng = np.random.default_rng(seed)
    fractions = np.linspace(smallest, 1.0, points)
    found = []
    for fraction in fractions:
        parts = (rng.permutation(whole)[: max(2, round(fraction * len(whole)))] for whole in sets)
        first, second = (_moments(function, name, part) for name, part in zip(("real", "fake"), parts, strict=True))
        found.append(_distance(function, first, second, warn=fraction == smallest))
    if not np.all(np.isfinite(found)):
        return float("inf")  # the squares of some features are beyond float64
    return float(np.polynomial.polynomial.polyfit(1.0 / fractions, found, 1)[0])


def frechet_gaussians(mean1: Array, covariance1: Array, mean2: Array, covariance2: Array) -> float:
    r"""Return the Frechet distance of two Gaussians with known moments.

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^{1/2})

    Args:
        mean1, mean2: (D,), of any library.
        covariance1, covariance2: (D, D), symmetric with no negative eigenvalue, but for rounding in their dtype; they may
            be singular.

    Returns:
        A float >= 0, computed in float64 on the host.

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, a matrix that is not symmetric or is indefinite.

    Source: Dowson & Landau 1982 (doi 10.1016/0047-259X(82)90077-X).

    >>> round(frechet_gaussians(np.zeros(2), np.diag([1.0, 0.0]), np.array([3.0, 0.0]), np.diag([4.0, 0.0])), 6)
    10.0
    """
    function = "metrics.frechet_gaussians"
    first, second = (_host(function, name, mean) for name, mean in (("mean1", mean1), ("mean2", mean2)))
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(
            f"{function}: `mean1` and `mean2` must have one shape (D,), got {first.shape} and {second.shape}"
        )
    root1 = _root(function, "covariance1", covariance1, first.size)
    root2 = _root(function, "covariance2", covariance2, first.size)
    return _squared(first - second, root1, root2)


def _host(function: str, argument: str, array: Array) -> Float64:
    _array.namespace(function, **{argument: array})
    return _array.to_host(array, np.float64, function=function, argument=argument, finite=True)


def _featured(function: str, name: str, given: Array, features: Features | None, batch: int) -> Float64:
    if features is None:
        return _host(function, name, given)
    _check.callable_(function, "features", features, "a function of clips, or None")
    _array.namespace(function, **{name: given})
    _check.integer(function, "batch", batch, 1)
    if given.shape[0] == 0:
        raise _check.error(ValueError, function, name, "have at least one clip", given)
    parts = []
    for start in range(0, given.shape[0], batch):
        clips = given[start : min(start + batch, given.shape[0]), ...]
        part = _host(function, f"features({name})", features(clips))
        if part.ndim != 2 or part.shape[0] != clips.shape[0]:
            raise ValueError(
                f"{function}: `features` returned {part.shape} for {clips.shape[0]} clips, but must (n, D)"
            )
        parts.append(part)
    return np.concatenate(parts)


def _moments(function: str, argument: str, features: Array) -> Moments:
    values = _host(function, argument, features)
    if values.ndim != 2 or not values.size:
        way_out = "" if argument == "features" else "pass `features=` to turn clips into vectors"
        raise _check.error(ValueError, function, argument, "have shape (N, D)", values, way_out)
    mean = values.mean(axis=0)
    return Moments(len(values), mean, _triangle(values - mean))


def _triangle(rows: Float64) -> Float64:
    """Return R, (min(N, D), D), with R^T R = rows^T rows."""
    return np.asarray(np.linalg.qr(rows, mode="r"), dtype=np.float64)


def _distance(function: str, real: Moments, fake: Moments, *, warn: bool = True) -> float:
    sets = {"real": real, "fake": fake}
    if real.mean.shape != fake.mean.shape:
        raise ValueError(f"{function}: `real` has {real.mean.size} features but `fake` has {fake.mean.size}")
    for name, (count, mean, _) in sets.items():
        if count < 2:
            raise ValueError(f"{function}: `{name}` has {count} sample, but a covariance takes at least 2")
        if warn and count <= mean.size:
            warnings.warn(
                f"{function}: `{name}` has {count} samples of {mean.size} features, so its covariance is singular and the "
                f"distance biased upwards; give more samples than features, ten times as many if you can, or fewer "
                f"features, and compare only distances of equally many samples",
                SmallSample,
                stacklevel=4,
            )
    roots = (part.factor / math.sqrt(part.samples - 1) for part in sets.values())
    return _squared(real.mean - fake.mean, *roots)


def _squared(step: Float64, f: Float64, g: Float64) -> float:
    """Return |step|^2 + min_U ||f - U g||^2 over U with orthonormal columns: see the head of this module."""
    f, g = (f, g) if f.shape[0] >= g.shape[0] else (g, f)
    p, _, q = np.linalg.svd(f @ g.T, full_matrices=False)
    return float(step @ step + np.sum((f - (p @ q) @ g) ** 2))


def _root(function: str, argument: str, covariance: Array, size: int) -> Float64:
    """Return F with F^T F = C by the eigenvectors of C."""
    matrix = _host(function, argument, covariance)
    if matrix.shape != (size, size):
        raise _check.error(ValueError, function, argument, f"have shape {(size, size)}, as the mean says", matrix)
    kind = str(covariance.dtype).rsplit(".", 1)[-1]
    ulp = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}.get(kind, 2.0**-52)
    rounding = 8 * size * ulp * float(np.abs(matrix).max())
    if not np.allclose(matrix, matrix.T, rtol=0.0, atol=rounding):
        raise ValueError(f"{function}: `{argument}` is not symmetric, by {np.abs(matrix - matrix.T).max():.3g}")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2.0)
    if values[0] < -rounding:
        raise ValueError(
            f"{function}: `{argument}` has the eigenvalue {values[0]:.3g}, which is more than rounding ({rounding:.1g}); "
            f"a covariance has none below 0"
        )
    root: Float64 = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    return root
