r"""Guidance by several conditions at once, each with a scale of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffcore import _array, _brief, _check
from diffcore._array import Array
from diffcore.guidance import _weights
from diffcore.guidance._guided import Sourced, check_alike
from diffcore.guidance._sources import Apart, Together, merge
from diffcore.guidance._weights import Weight

FUNCTION = "guidance.composed"


@dataclass(frozen=True, eq=False)
class Composed(Sourced):
    """A denoiser under several conditions: what `composed` returns, which documents it."""

    parts: ClassVar = ("source", "scales")
    source: Apart | Together
    scales: tuple[Weight, ...]
    nested: bool = False
    __repr__ = _brief.fields

    def __call__(self, z: Array, log_snr: Array) -> Array:
        """Return the guided prediction at z, of its shape and dtype."""
        return self.with_unguided(z, log_snr)[0]

    def with_unguided(self, z: Array, log_snr: Array) -> tuple[Array, Array]:
        """Return the guided prediction at z and the one without any condition, for plans that read both."""
        *conditional, last = self.source.all(z, log_snr)
        xp = _array.namespace(FUNCTION, z=z)
        u = before = guided = _array.widen(xp, last)
        for scale, prediction in zip(self.scales, conditional, strict=True):
            c = _array.widen(xp, prediction)
            guided = guided + _weights.along(FUNCTION, scale, log_snr, u, xp) * (c - before)
            before = c if self.nested else u
        return xp.astype(guided, last.dtype, copy=False), last


def composed(
    denoise: Any,
    unconditional: Any = None,
    *,
    conds: Sequence[Any] | None = None,
    null: Any = None,
    scales: Sequence[Weight],
    nested: bool = False,
) -> Composed:
    r"""Return a denoiser that is guided by several conditions, each with its scale.

        u + s_1 (c_1 - u) + s_2 (c_2 - u) + ...                             composed, of separate conditions
        u + s_1 (c_1 - u) + s_2 (c_12 - c_1) + ...                          nested, where each includes those before

    Two forms:

    * `composed([denoise_1, denoise_2], denoise_uncond, scales=(3.0, 2.0))`: denoisers (z, log_snr).
    * `composed(denoise, conds=[c_1, c_2], null=n, scales=(3.0, 2.0))`: one (z, log_snr, cond), called once with a batch of
      (K + 1) B.

    The two scales of InstructPix2Pix are nested: `conds=[picture, picture_and_text], scales=(s_picture, s_text), nested=True`.
    A scale of 1 everywhere is, nested, the last condition as it is, and otherwise the product of independent conditions. A negative
    scale leads away from a condition. One condition is `classifier_free(..., scale=s)`. The coefficients sum to one, so that the
    result is the same whatever the denoiser predicts.

    Args:
        denoise: a sequence of K denoisers (z, log_snr), or one of (z, log_snr, cond).
        unconditional: (z, log_snr) -> u, with a sequence.
        conds: K conditions, each arrays (B, ...), or dicts, tuples and lists of them, nested alike.
        null: the condition that says nothing, nested like them.
        scales: K scales: numbers, arrays of shape (), (B,) or (B, T), or functions of log_snr, as in `classifier_free`.
        nested: whether each condition includes those before it.

    Returns:
        A callable (z, log_snr) -> prediction with the attributes `prediction` and `scaling` of the denoiser, where it has them.

    Raises:
        ValueError: another number of scales than of conditions, or none; conditions that differ in structure; a scale that is
            not finite; denoisers of different `prediction` or `scaling`.
        TypeError: neither form; a denoiser that cannot be called; a scale that is neither a number nor an array.

    Source: Liu et al. 2022 (arXiv 2206.01714), sec. 3.2, conjunction; Brooks et al. 2023 (arXiv 2211.09800), eq. 3, nested.

    >>> import numpy as np
    >>> guided = composed(lambda z, l, c: z + c, conds=[np.ones((1, 1)), 5 * np.ones((1, 1))], null=np.zeros((1, 1)),
    ...     scales=(2.0, 1.0), nested=True)
    >>> guided(np.zeros((1, 2)), 0.0)                      # 0 + 2 (1 - 0) + 1 (5 - 1)
    array([[6., 6.]])
    """
    if not isinstance(scales, (tuple, list)) or not scales:
        raise _check.error(TypeError, FUNCTION, "scales", "be a sequence of scales, one for each condition", scales)
    given = tuple([_weights.check(FUNCTION, "scales", scale) for scale in scales])
    source: Apart | Together
    if isinstance(denoise, (tuple, list)) and unconditional is not None and conds is None and null is None:
        for name, model in [*[("denoise", model) for model in denoise], ("unconditional", unconditional)]:
            _check.callable_(FUNCTION, name, model, "a function of (z, log_snr)")
            check_alike(FUNCTION, name, unconditional, model)
        source, count = Apart((*denoise, unconditional)), len(denoise)
    elif callable(denoise) and unconditional is None and isinstance(conds, (tuple, list)) and null is not None:
        count = len(conds)
        names = (*[f"conds[{at}]" for at in range(count)], "null")
        source = Together(FUNCTION, names, denoise, (*conds, null))
        merge(FUNCTION, names, source.conds, None)
    else:
        raise TypeError(
            f"{FUNCTION}: give either ([denoise_1, ...], denoise_uncond), or (denoise, conds=[...], null=...)"
        )
    if count != len(given):
        raise _check.error(ValueError, FUNCTION, "scales", f"have one entry for each of {count} conditions", scales)
    return Composed(source, given, _check.flag(FUNCTION, "nested", nested))
