"""Measurements by matrices: along some axes (blur, a filter in time, colour to grey), or of a whole event."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from diffcore import _array, _brief, _check
from diffcore._array import Array
from diffcore.conditioning.measurements import Svd

FUNCTION = "conditioning.linear"

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Linear:
    """A matrix along each of some axes, one after another: what `linear` returns."""

    parts: ClassVar = ()
    factors: tuple[tuple[int, Float64], ...]
    event: tuple[int, ...] | None = None
    decomposed: tuple[tuple[Float64, Float64, Float64], ...] = field(init=False, repr=False)
    __repr__ = _brief.fields

    def __post_init__(self) -> None:
        found = tuple(np.linalg.svd(matrix, full_matrices=False) for _, matrix in self.factors)
        object.__setattr__(self, "decomposed", found)

    def __call__(self, x: Array) -> Array:
        """Return y = A x."""
        return self._into(x, [matrix for _, matrix in self.factors])

    def adjoint(self, y: Array) -> Array:
        """Return A^T y."""
        return self._out(y, [matrix.T for _, matrix in self.factors])

    def spread(self, y: Array) -> Array:
        """Return A^+ y, the least x of which A is nearest to y."""
        return self._out(y, [np.asarray(np.linalg.pinv(matrix)) for _, matrix in self.factors])

    def svd(self) -> Svd:
        """Return the decomposition: that of a product along axes is the product of those along each."""
        values: Any = np.ones(())
        for (axis, _), (_, s, _) in zip(self.factors, self.decomposed, strict=True):
            values = values * s.reshape((-1,) + (1,) * (-axis - 1))
        u, _, vt = zip(*self.decomposed, strict=True)
        return Svd(
            values,
            partial(self._apply, matrices=[part.T for part in u]),
            partial(self._into, matrices=vt),
            partial(self._out, matrices=[part.T for part in vt]),
            aligned=False,
        )

    def _apply(self, x: Array, matrices: Sequence[Any]) -> Array:
        xp = _array.namespace(FUNCTION, x=x)
        for (axis, _), matrix in zip(self.factors, matrices, strict=True):
            if x.ndim < 1 - axis or x.shape[axis] != matrix.shape[1]:
                raise ValueError(
                    f"{FUNCTION}: the data must have {matrix.shape[1]} elements along axis {axis}, got shape {tuple(x.shape)}"
                )
            rows = xp.asarray(np.array(matrix.T), dtype=x.dtype, device=_array.device(x))
            x = xp.moveaxis(xp.matmul(xp.moveaxis(x, axis, -1), rows), -1, axis)
        return x

    def _into(self, x: Array, matrices: Sequence[Any]) -> Array:
        if self.event is None:
            return self._apply(x, matrices)
        if tuple(x.shape[1:]) != self.event:
            shape = ", ".join(["B", *map(str, self.event)])
            raise ValueError(f"{FUNCTION}: `x` must have shape ({shape}), got {tuple(x.shape)}")
        return self._apply(_array.library(x).reshape(x, (x.shape[0], math.prod(self.event))), matrices)

    def _out(self, c: Array, matrices: Sequence[Any]) -> Array:
        x = self._apply(c, matrices)
        return x if self.event is None else _array.library(x).reshape(x, (x.shape[0], *self.event))


def linear(matrix: Any, *, event: Sequence[int] | None = None) -> Linear:
    r"""Return the measurement y = A x by a matrix of the whole event, or by one along each of some axes.

    A product along axes, such as a blur of columns and then of rows, is as cheap as its factors: its matrix, their
    Kronecker product, is never formed, and neither is that of its decomposition.

    Args:
        matrix: {axis: (m, n)}, with axes counted from the last, such as {-3: blur, -2: blur} for (..., H, W, C) or
            {-1: [[0.3, 0.6, 0.1]]} for grey from colours; or with `event` one (m, D), for y (B, m).
        event: the shape of a sample, D elements.

    Returns:
        `Linear`, a `LinearMeasurement` with `adjoint`, `spread` (A^+) and `svd`, for every method of this package.

    Raises:
        TypeError: neither form; an axis that is not an int.
        ValueError: not a matrix of finite numbers; an axis that is not negative; when called, another size.

    >>> grey = linear({-1: [[0.3, 0.6, 0.1]]})
    >>> grey(np.ones((1, 2, 2, 3))).shape, grey.adjoint(np.ones((1, 2, 2, 1)))[0, 0, 0]
    ((1, 2, 2, 1), array([0.3, 0.6, 0.1]))
    """
    if (event is None) != isinstance(matrix, Mapping):
        must = "be {axis: matrix}" if event is None else "be one matrix (m, D) where `event` is given"
        raise _check.error(TypeError, FUNCTION, "matrix", must, matrix)
    whole = None if event is None else _check.shape(FUNCTION, "event", event, "(...)", least=1)
    factors = []
    for axis, values in {-1: matrix}.items() if whole is not None else matrix.items():
        _check.integer(FUNCTION, "matrix", axis, None, -1, hint="axes count from the last: -1, -2, ...")
        found = np.array(values, dtype=np.float64)
        if found.ndim != 2 or not found.size or not np.all(np.isfinite(found)):
            raise _check.error(ValueError, FUNCTION, "matrix", "be a matrix of finite numbers", found)
        if whole is not None and found.shape[1] != math.prod(whole):
            raise _check.error(ValueError, FUNCTION, "matrix", f"have {math.prod(whole)} columns", found)
        found.setflags(write=False)
        factors.append((int(axis), found))
    return Linear(tuple(factors), whole)
