"""Couplings of data and noise within a batch."""

from __future__ import annotations

import math

import numpy as np

from diffcore import _array, _check, _layout
from diffcore._array import Array


def optimal_transport(x: Array, eps: Array) -> Array:
    r"""Return the noise of a batch in the order that couples it with the data at the least cost, sum_i |x_i - eps_{p(i)}|^2.

    Pairs that are near each other have straighter paths that cross less; noise stays standard normal over batches. It is solved on
    the host, in O(B^3), and moves nothing but noise, so that labels and masks stay with their data.

    Args:
        x, eps: data and noise (B, ...), floating arrays of one shape.

    Returns:
        `eps` with its samples in another order.

    Raises:
        TypeError: mixed libraries, an integer array, arrays that are being traced.
        ValueError: shapes that differ; values that are not finite.

    Source: Pooladian et al. 2023 (arXiv 2304.14772), sec. 3.2; Tong et al. 2024 (arXiv 2302.00482), alg. 3.

    >>> optimal_transport(np.array([[1.0], [-1.0]]), np.array([[-0.5], [0.3]])).ravel()
    array([ 0.3, -0.5])
    """
    from scipy.optimize import linear_sum_assignment  # not before it is needed: it takes 0.2 s

    function = "objectives.optimal_transport"
    xp = _array.check_data(function, x=x, eps=eps)
    shape = _check.equal_shapes(function, x=x, eps=eps)
    host = [
        _array.to_host(_layout.gathered(array), np.float64, function=function, argument=argument, finite=True)
        for argument, array in (("x", x), ("eps", eps))
    ]
    data, drawn = (array.reshape(shape[0], math.prod(shape[1:])) for array in host)
    order = linear_sum_assignment(-data @ drawn.T)[1]  # the squares of |x_i - eps_j|^2 are in every order
    whole = _layout.gathered(eps)
    return _layout.beside(xp.take(whole, xp.asarray(order, device=_array.device(whole)), axis=0), eps, shape=shape)
