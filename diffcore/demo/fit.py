r"""A mixture of probabilistic principal component analysers: an exact model of clips, in closed form.

In each cluster, with sample covariance S of eigenvalues l_1 >= l_2 >= ... in D dimensions, the maximum-likelihood covariance
of rank q plus noise is

    C = W W^T + v I,   v = (l_{q+1} + ... + l_D) / (D - q),   W = U_q (L_q - v I)^{1/2}

Source: Tipping & Bishop 1999 (doi 10.1111/1467-9868.00196), eq. 7-8.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffcore.exact import LowRank, Mixture

Float64 = npt.NDArray[np.float64]


MOST_NOISE = 4e-4
"""The most that v may be: 2 % of the range of a pixel. What the factors leave out is dropped and not shown as grain."""


def principal_components(points: Float64, rank: int, most_noise: float = MOST_NOISE) -> tuple[Float64, LowRank]:
    """Return the mean (D,) and the covariance of one analyser, from points (N, D), by the N-by-N Gram matrix.

    The noise v is the maximum-likelihood one, but at most `most_noise`.
    """
    count, size = points.shape
    mean = points.mean(axis=0)
    centred = points - mean
    values, vectors = np.linalg.eigh(centred @ centred.T / count)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    rank = max(1, min(rank, count - 1, int(np.sum(values > 1e-9 * max(values[0], 1e-300)))))
    noise = min(max(float(values[rank:].sum()) / max(size - rank, 1), 1e-6), most_noise)
    directions = centred.T @ (vectors[:, :rank] / np.sqrt(np.maximum(values[:rank], 1e-300) * count))
    return mean, LowRank(directions * np.sqrt(np.maximum(values[:rank] - noise, 0.0)), noise)


def clusters(points: Float64, count: int, *, seed: int = 0, rounds: int = 20) -> npt.NDArray[np.intp]:
    """Return the cluster (N,) of each point by k-means, started by k-means++ (Arthur & Vassilvitskii 2007)."""
    rng = np.random.default_rng(seed)
    gram = points @ points.T
    square = np.diag(gram)
    chosen = [int(rng.integers(len(points)))]
    for _ in range(count - 1):
        nearest = np.min([square + square[c] - 2.0 * gram[:, c] for c in chosen], axis=0).clip(0.0)
        if nearest.sum() <= 0.0:
            break
        chosen.append(int(rng.choice(len(points), p=nearest / nearest.sum())))
    own = np.argmin([square + square[c] - 2.0 * gram[:, c] for c in chosen], axis=0)
    for _ in range(rounds):  # distances to a mean follow from the Gram matrix: no pass over the pixels
        member = (own[:, None] == np.arange(len(chosen))).astype(np.float64)
        share = member / np.maximum(member.sum(axis=0), 1.0)
        distance = -2.0 * gram @ share + np.einsum("nk,nk->k", share, gram @ share)
        new = np.argmin(np.where(member.sum(axis=0) > 0, distance, np.inf), axis=1)
        if np.array_equal(new, own):
            break
        own = new
    return np.asarray(own)


def fit_mixture(clips: npt.NDArray[np.float32], components: int, rank: int, *, seed: int = 0) -> Mixture:
    """Return an exact mixture fitted to clips (N, *event): k-means, then principal components in each cluster."""
    points = clips.reshape(clips.shape[0], -1).astype(np.float64)
    own = clusters(points, components, seed=seed)
    means, covariances, weights = [], [], []
    for cluster in np.unique(own):
        members = points[own == cluster]
        if len(members) < 2:
            continue
        mean, covariance = principal_components(members, rank)
        means.append(mean.reshape(clips.shape[1:]))
        covariances.append(covariance)
        weights.append(float(len(members)))
    return Mixture(np.array(weights), np.stack(means), covariances)


def distance_to_nearest(samples: npt.NDArray[np.float32], clips: npt.NDArray[np.float32]) -> Float64:
    """Return the root mean square distance of each sample to its nearest clip, (B,), per element."""
    a = samples.reshape(samples.shape[0], -1).astype(np.float64)
    b = clips.reshape(clips.shape[0], -1).astype(np.float64)
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * a @ b.T
    found: Float64 = np.sqrt(np.maximum(square.min(axis=1), 0.0) / a.shape[1])
    return found
