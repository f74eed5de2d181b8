r"""Components weighed against each other: their log-densities are large, and only the differences count.

E[x | z] = sum_k rho_k E_k[x | z],    rho_k = w_k q_k(z) / sum_j w_j q_j(z)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from diffcore._array import Array
from diffcore.exact import _components, _isotropic
from diffcore.exact._components import DENSITY, Solved
from diffcore.exact._isotropic import Isotropic
from diffcore.exact._parts import Parts

NEVER = -1e30
"""The logarithm of a weight of zero: finite, so that nothing becomes inf - inf."""


class Model(NamedTuple):
    """Log-weights (K,) and components; `fast` is there for many isotropic ones."""

    log_weights: Array
    parts: Parts | None
    fast: Isotropic | None


def model_of(weights: Any, parts: Parts) -> Model:
    """Return the model of weighted components, on the host."""
    with np.errstate(divide="ignore"):
        return Model(np.maximum(np.log(np.asarray(weights)), NEVER), parts, _isotropic.isotropic_of(parts))


class Entered(NamedTuple):
    """A call: data (B, D) in the dtype it is computed in, levels (B or 1, D or 1), the shape and dtype to leave in."""

    xp: Any
    z: Array
    alpha: Array
    sigma: Array
    shape: tuple[int, ...]
    dtype: Any

    def leave(self, flat: Array) -> Array:
        """Return a result of the shape and dtype that came in."""
        return self.xp.astype(self.xp.reshape(flat, self.shape), self.dtype, copy=False)


def by_components(model: Model, at: Entered, want: str) -> tuple[Array, Array]:
    """Return log q(z_t) but for the factor of 2 pi, (B,), and E[x | z_t] or the score, (B, D), in turns."""
    xp, parts = at.xp, model.parts
    assert parts is not None
    density, vector, reference = None, None, None
    for which in _components.turns(parts, levels_differ=at.alpha.shape[1] != 1 or at.sigma.shape[1] != 1):
        found = _components.solve(xp, _components.some(parts, which), at.z, at.alpha, at.sigma, want)
        reference = _reference(xp, found) if reference is None else reference
        logits = model.log_weights[which, None] + _relative(xp, found, reference)
        part_density, part_vector = logits[0, :], found.vector[0, ...]
        if logits.shape[0] > 1:
            weights, part_density = softmax(xp, logits, axis=0)
            if want != DENSITY:
                part_vector = xp.sum(weights[:, :, None] * found.vector, axis=0)
        if density is None:
            density, vector = part_density, part_vector
        else:
            both = xp.logaddexp(density, part_density)
            vector = xp.exp(density - both)[:, None] * vector + xp.exp(part_density - both)[:, None] * part_vector
            density = both
    assert reference is not None
    return density - 0.5 * (reference[0] + reference[1])[0, :], vector


def joint(model: Model, at: Entered) -> Array:
    """Return log(w_k q_k(z)) up to a number for each sample, (K, B)."""
    parts, xp = model.parts, at.xp
    assert parts is not None
    found = [
        _components.solve(xp, _components.some(parts, which), at.z, at.alpha, at.sigma, DENSITY)
        for which in _components.turns(parts, levels_differ=at.alpha.shape[1] != 1 or at.sigma.shape[1] != 1)
    ]
    reference = _reference(xp, found[0])
    each = [_relative(xp, part, reference) for part in found]
    return model.log_weights[:, None] + (each[0] if len(each) == 1 else xp.concat(each, axis=0))


def _reference(xp: Any, found: Solved) -> tuple[Array, Array]:
    """Return what all log-densities are taken relative to: they are large, and their differences are what counts."""
    return xp.min(found.quadratic, axis=0, keepdims=True), found.log_determinant[:1, :]


def _relative(xp: Any, found: Solved, reference: tuple[Array, Array]) -> Array:
    nearest = found.quadratic == reference[0]  # also where all are infinitely far
    further = xp.where(nearest, xp.zeros_like(found.quadratic), found.quadratic - reference[0])
    return -0.5 * (further + (found.log_determinant - reference[1]))


def softmax(xp: Any, logits: Array, axis: int) -> tuple[Array, Array]:
    """Return the softmax and the logarithm of its normaliser."""
    top = xp.max(logits, axis=axis, keepdims=True)
    raised = xp.exp(logits - top)
    total = xp.sum(raised, axis=axis, keepdims=True)
    return raised / total, xp.squeeze(top + xp.log(total), axis=axis)
