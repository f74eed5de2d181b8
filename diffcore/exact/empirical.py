r"""A finite data set as a distribution: its denoiser has the lowest loss that any network can have on that data.

    E[x | z] = sum_i rho_i x_i,    rho = softmax_i( log w_i - ||z - alpha x_i||^2 / (2 sigma^2) )

Source: Karras et al. 2022 (arXiv 2206.00364), app. B.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffcore import _array, _check
from diffcore._array import Array
from diffcore.exact._conditional import check_observation
from diffcore.exact._denoiser import Weighed
from diffcore.exact._parts import Diagonal, cast, check_event, check_weights
from diffcore.exact._weighing import model_of
from diffcore.exact.mixture import choose


@dataclass(frozen=True, eq=False)
class Empirical(Weighed):
    r"""The distribution of a finite data set, and its exact denoiser E[x | z_t].

    Args:
        points: (N, *event), N >= 1, of any library; kept on the host in float64, or in float32 if it is that.
        weights: (N,), finite, not negative, not all zero; normalised to sum to one. None weighs all alike.
        scaling: "vp", "ve" or "flow"; None is the plan's in `diffcore.sample`, and "vp" in a call of one's own.

    Raises:
        ValueError: no points, entries that are not finite, weights that do not fit, an unknown scaling.

    At lambda = inf x-hat is the nearest point, and the density of the data is a spike (`log_likelihood` is then finite
    and large). Sets of more than 2^18 numbers go through matrix products, which in float32 do not tell points apart
    that are nearer than 3e-4 of the set's spread.

    >>> data = Empirical(np.array([[-1.0], [1.0]]))
    >>> data(np.array([[0.9]]), np.inf), data(np.array([[0.9]]), -np.inf)
    (array([[1.]]), array([[0.]]))
    """

    points: Array
    weights: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        function = self._begin()
        host = _array.to_host(self.points, function=function, argument="points")
        if host.dtype == np.float32 and host.ndim and host.size and np.all(np.isfinite(host)):
            points: Any = host.copy()
            points.setflags(write=False)
        else:
            points = check_event(function, "points", host, 1)
        weights = check_weights(function, self.weights, points.shape[0])
        parts = Diagonal(points.reshape(points.shape[0], -1), np.zeros((points.shape[0], 1)))
        self._set(points=points, weights=weights, event=points.shape[1:], model=model_of(weights, parts))

    def __repr__(self) -> str:
        return f"Empirical({self.points.shape[0]} points, event={self.event}, scaling={self.scaling!r})"

    def conditional(self, observed: Array, mask: Array, *, noise_std: float = 0.0) -> Empirical:
        r"""Return the distribution of all of x given its elements under the mask: the points that agree with them.

        Args:
            observed, mask: as for `Gaussian.conditional`.
            noise_std: 0 keeps the points that agree exactly. s > 0 takes `observed` as x^a + s eps, and multiplies the
                weights by exp(-||observed - x_i^a||^2 / (2 s^2)).

        Raises:
            ValueError: no point agrees; and as for `Gaussian.conditional`.

        >>> data = Empirical(np.array([[0.0, 1.0], [0.0, 3.0], [1.0, 5.0]]))
        >>> data.conditional(np.zeros(2), [True, False]).points
        array([[0., 1.],
               [0., 3.]])
        """
        function = "exact.Empirical.conditional"
        noise_std = _check.number(function, "noise_std", noise_std, 0)
        given, known = check_observation(function, observed, mask, self.event)
        where = known.ravel()
        apart = self.points.reshape(self.points.shape[0], -1)[:, where] - given.ravel()[where].astype(self.points.dtype)
        distance = np.einsum("nd,nd->n", apart, apart, dtype=np.float64)
        if noise_std > 0.0:
            nearest = distance[self.weights > 0.0].min()
            weights = self.weights * np.exp(-np.maximum(distance - nearest, 0.0) / (2.0 * noise_std**2))
            return Empirical(self.points, weights=weights, scaling=self.scaling)
        agrees = (distance == 0.0) & (self.weights > 0.0)
        if not np.any(agrees):
            raise ValueError(
                f"{function}: `observed` must equal a point where it is known, got none, the nearest is "
                f"{float(distance.min()) ** 0.5:.3g} away; give `noise_std` > 0 to take such points too"
            )
        return Empirical(self.points[agrees], weights=self.weights[agrees], scaling=self.scaling)

    def sample(self, seed: Any, count: int, *, like: Array | None = None) -> Array:
        """Return points drawn by their weights, (count, *event); see `Gaussian.sample`."""
        which = choose("exact.Empirical.sample", self.weights, seed, count, math.prod(self.event))
        drawn = self.points[which].astype(np.float64)
        return drawn if like is None else cast(drawn, like)
