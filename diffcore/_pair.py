"""Where guidance gets its two predictions from: two denoisers, or one with a batch of twice the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from diffcore import _array, _check
from diffcore._array import Array

Denoiser = Callable[[Array, Array], Array]
"""Any callable (z, log_snr) -> prediction."""


@dataclass(frozen=True, eq=False)
class Two:
    """Two denoisers."""

    parts: ClassVar = ("conditional", "unconditional")
    conditional: Denoiser
    unconditional: Denoiser

    @property
    def models(self) -> tuple[Any, ...]:
        return self.conditional, self.unconditional

    def both(self, z: Array, log_snr: Array) -> tuple[Array, Array]:
        return self.conditional(z, log_snr), self.unconditional(z, log_snr)

    def map(self, function: Callable[[Any], Any]) -> Two:
        return Two(function(self.conditional), function(self.unconditional))

    def at(self, log_snr: Any) -> Two:
        if not any(hasattr(model, "at") for model in self.models):
            return self
        return self.map(lambda model: model.at(log_snr) if hasattr(model, "at") else model)


@dataclass(frozen=True, eq=False)
class One:
    """One denoiser (z, log_snr, cond), called with a batch of twice the samples."""

    parts: ClassVar = ("denoise", "cond", "null")
    denoise: Callable[[Array, Array, Any], Array]
    cond: Any
    null: Any

    @property
    def models(self) -> tuple[Any, ...]:
        return (self.denoise,)

    def conditional(self, z: Array, log_snr: Array) -> Array:
        return self.denoise(z, log_snr, merge(self.cond, None, z.shape[0], ""))

    def both(self, z: Array, log_snr: Array) -> tuple[Array, Array]:
        xp, batch = _array.namespace("guidance.classifier_free", z=z), z.shape[0]
        shape = tuple(getattr(log_snr, "shape", ()))
        if shape and (shape[0] == batch):  # () and (1, T) fit any batch
            concat = _array.library(log_snr).concat
            log_snr = concat([log_snr, log_snr], axis=0)
        y = self.denoise(xp.concat([z, z], axis=0), log_snr, merge(self.cond, self.null, batch, ""))
        if y.shape[0] != 2 * batch:
            must = f"return a batch of {2 * batch}, the samples with `cond` and then the same samples with `null`"
            raise _check.error(ValueError, "guidance.classifier_free", "denoise", must, y)
        return y[:batch, ...], y[batch:, ...]

    def map(self, function: Callable[[Any], Any]) -> One:
        return replace(self, denoise=function(self.denoise))

    def at(self, log_snr: Any) -> One:
        return self.map(lambda model: model.at(log_snr)) if hasattr(self.denoise, "at") else self


def merge(cond: Any, null: Any, batch: int, path: str) -> Any:
    """Return conditions for [samples, samples]: leaf by leaf `cond`, then `null`, each for the whole batch.

    With null=None the structure of `cond` for the samples alone.
    """
    function = "guidance.classifier_free"
    where = f"cond{path}"
    alone = null is None
    if isinstance(cond, Mapping):
        if not alone and (not isinstance(null, Mapping) or set(null) != set(cond)):
            found = list(null) if isinstance(null, Mapping) else null
            raise _check.error(ValueError, function, f"null{path}", f"have the keys {list(cond)} of `{where}`", found)
        return {k: merge(part, None if alone else null[k], batch, f"{path}[{k!r}]") for k, part in cond.items()}
    if isinstance(cond, (tuple, list)):
        if not alone and (not isinstance(null, (tuple, list)) or len(null) != len(cond)):
            must = f"be a sequence of length {len(cond)}, as `{where}` is"
            raise _check.error(ValueError, function, f"null{path}", must, null)
        nulls = [None] * len(cond) if alone else null
        pairs = enumerate(zip(cond, nulls, strict=True))
        parts = [merge(part, other, batch, f"{path}[{k}]") for k, (part, other) in pairs]
        if hasattr(cond, "_fields"):
            return type(cond)(*parts)
        return tuple(parts) if isinstance(cond, tuple) else parts
    if cond is None or isinstance(cond, (str, bool, int, float)):
        if not alone and cond != null:
            must = f"be {_check.shown(cond)}, as `{where}` is"
            raise _check.error(ValueError, function, f"null{path}", must, null, "only arrays may differ")
        return cond
    if alone:
        xp = _array.namespace(function, **{where: cond})
        return _rows(xp, cond, batch, where)
    xp = _array.namespace(function, **{where: cond, f"null{path}": null})
    if tuple(cond.shape[1:]) != tuple(null.shape[1:]) or not cond.shape:
        must = f"have the shape of `{where}`, {tuple(cond.shape)}, except for the batch axis"
        raise _check.error(ValueError, function, f"null{path}", must, null)
    if batch == 1 and max(cond.shape[0], null.shape[0]) > 1:  # the check of the structure, before a batch is known
        batch = max(cond.shape[0], null.shape[0])
    return xp.concat([_rows(xp, cond, batch, where), _rows(xp, null, batch, f"null{path}")], axis=0)


def _rows(xp: Any, part: Array, batch: int, where: str) -> Array:
    if part.shape[0] == batch:
        return part
    if part.shape[0] != 1:
        must = f"have a first axis of {batch}, the batch, or 1"
        raise _check.error(ValueError, "guidance.classifier_free", where, must, part)
    return xp.broadcast_to(part, (batch, *part.shape[1:]))
