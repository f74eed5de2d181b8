"""Where guidance gets its two predictions from: two denoisers, or one with a batch of twice the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from diffcore import _array
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
            raise ValueError(
                f"guidance.classifier_free: `denoise` returned a batch of {y.shape[0]} for one of {2 * batch}, samples "
                f"with `cond` followed by the same samples with `null`; it must keep the batch axis"
            )
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
            raise ValueError(f"{function}: `{where}` and `null{path}` differ; they need the same keys")
        return {k: merge(part, None if alone else null[k], batch, f"{path}[{k!r}]") for k, part in cond.items()}
    if isinstance(cond, (tuple, list)):
        if not alone and (not isinstance(null, (tuple, list)) or len(null) != len(cond)):
            raise ValueError(f"{function}: `{where}` and `null{path}` differ; they need the same length")
        nulls = [None] * len(cond) if alone else null
        pairs = enumerate(zip(cond, nulls, strict=True))
        parts = [merge(part, other, batch, f"{path}[{k}]") for k, (part, other) in pairs]
        if hasattr(cond, "_fields"):
            return type(cond)(*parts)
        return tuple(parts) if isinstance(cond, tuple) else parts
    if cond is None or isinstance(cond, (str, bool, int, float)):
        if not alone and cond != null:
            raise ValueError(f"{function}: `{where}` is {cond!r} and `null{path}` is {null!r}; only arrays may differ")
        return cond
    if alone:
        xp = _array.namespace(function, **{where: cond})
        return _rows(xp, cond, batch, where)
    xp = _array.namespace(function, **{where: cond, f"null{path}": null})
    if tuple(cond.shape[1:]) != tuple(null.shape[1:]) or not cond.shape:
        raise ValueError(
            f"{function}: `{where}` has shape {tuple(cond.shape)} and `null{path}` has {tuple(null.shape)}; they must "
            f"be equal but for the batch axis"
        )
    if batch == 1 and max(cond.shape[0], null.shape[0]) > 1:  # the check of the structure, before a batch is known
        batch = max(cond.shape[0], null.shape[0])
    return xp.concat([_rows(xp, cond, batch, where), _rows(xp, null, batch, f"null{path}")], axis=0)


def _rows(xp: Any, part: Array, batch: int, where: str) -> Array:
    if part.shape[0] == batch:
        return part
    if part.shape[0] != 1:
        raise ValueError(
            f"guidance.classifier_free: `{where}` has shape {tuple(part.shape)} for a batch of {batch}; its first axis "
            f"must be the batch, or 1"
        )
    return xp.broadcast_to(part, (batch, *part.shape[1:]))
