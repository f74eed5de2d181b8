"""Where guidance gets its predictions from: several denoisers, or one with a batch of several times the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from diffcore import _array, _brief, _check, _layout
from diffcore._array import Array
from diffcore._wrapping import Forwarding

Denoiser = Callable[[Array, Array], Array]
"""Any callable (z, log_snr) -> prediction."""


@dataclass(frozen=True, eq=False)
class Apart:
    """Several denoisers, the conditional one first and the unconditional one last."""

    parts: ClassVar = ("models",)
    models: tuple[Any, ...]
    __repr__ = _brief.fields

    def conditional(self, z: Array, log_snr: Array) -> Array:
        return self.models[0](z, log_snr)

    def all(self, z: Array, log_snr: Array) -> tuple[Array, ...]:
        return tuple([model(z, log_snr) for model in self.models])

    def map(self, function: Callable[[Any], Any]) -> Apart:
        return Apart(tuple([function(model) for model in self.models]))

    def at(self, log_snr: Any) -> Apart:
        if not any(hasattr(model, "at") for model in self.models):
            return self
        return self.map(lambda model: model.at(log_snr) if hasattr(model, "at") else model)


@dataclass(frozen=True, eq=False)
class Together:
    """One denoiser (z, log_snr, cond), called once with a batch of the samples under each condition in turn."""

    parts: ClassVar = ("denoise", "conds")
    function: str
    names: tuple[str, ...]
    denoise: Callable[[Array, Array, Any], Array]
    conds: tuple[Any, ...]
    __repr__ = _brief.fields

    @property
    def models(self) -> tuple[Any, ...]:
        return (self.denoise,)

    def conditional(self, z: Array, log_snr: Array) -> Array:
        return self.denoise(z, log_snr, merge(self.function, self.names[:1], self.conds[:1], z.shape[0]))

    def all(self, z: Array, log_snr: Array) -> tuple[Array, ...]:
        xp, batch, times = _array.namespace(self.function, z=z), z.shape[0], len(self.conds)
        each = getattr(self.denoise, "each", None)
        # of samples that are divided, a batch several times as large would be sent round
        if each is not None or _layout.samples_divided(z):
            pairs = zip(self.names, self.conds, strict=True)
            merged = tuple([merge(self.function, (name,), (cond,), batch) for name, cond in pairs])
            return each(z, log_snr, merged) if each else tuple([self.denoise(z, log_snr, cond) for cond in merged])
        shape = tuple(getattr(log_snr, "shape", ()))
        if shape and (shape[0] == batch):  # () and (1, T) fit any batch
            concat = _array.library(log_snr).concat
            log_snr = concat([log_snr] * times, axis=0)
        y = self.denoise(xp.concat([z] * times, axis=0), log_snr, merge(self.function, self.names, self.conds, batch))
        if y.shape[0] != times * batch:
            order = " and then the same samples with ".join(f"`{name}`" for name in self.names)
            must = f"return a batch of {times * batch}, the samples with {order}"
            raise _check.error(ValueError, self.function, "denoise", must, y)
        return tuple([y[batch * at : batch * (at + 1), ...] for at in range(times)])

    def map(self, function: Callable[[Any], Any]) -> Together:
        return replace(self, denoise=function(self.denoise))

    def at(self, log_snr: Any) -> Together:
        return self.map(lambda model: model.at(log_snr)) if hasattr(self.denoise, "at") else self


@dataclass(frozen=True, eq=False)
class Under(Forwarding):
    """A denoiser (z, log_snr, cond) under a condition: (z, log_snr) -> prediction."""

    parts: ClassVar = ("denoise", "cond")
    function: str
    denoise: Any
    cond: Any
    __repr__ = _brief.fields

    def __call__(self, z: Array, log_snr: Array) -> Array:
        return self.denoise(z, log_snr, merge(self.function, ("cond",), (self.cond,), z.shape[0]))


def merge(function: str, names: tuple[str, ...], conds: tuple[Any, ...], batch: int | None, path: str = "") -> Any:
    """Return several conditions as one for [samples, samples, ...]: leaf by leaf the first, each for the whole batch, then the
    next. They have the structure of the first. Without a batch the largest of the conditions' own, to check them.
    """
    first, others = conds[0], list(zip(names[1:], conds[1:], strict=True))
    where = f"{names[0]}{path}"
    if isinstance(first, Mapping):
        for name, other in others:
            if not isinstance(other, Mapping) or set(other) != set(first):
                found = list(other) if isinstance(other, Mapping) else other
                must = f"have the keys {list(first)} of `{where}`"
                raise _check.error(ValueError, function, f"{name}{path}", must, found)
        return {
            key: merge(function, names, tuple([cond[key] for cond in conds]), batch, f"{path}[{key!r}]")
            for key in first
        }
    if isinstance(first, (tuple, list)):
        for name, other in others:
            if not isinstance(other, (tuple, list)) or len(other) != len(first):
                must = f"be a sequence of length {len(first)}, as `{where}` is"
                raise _check.error(ValueError, function, f"{name}{path}", must, other)
        parts = [
            merge(function, names, tuple([cond[at] for cond in conds]), batch, f"{path}[{at}]")
            for at in range(len(first))
        ]
        if hasattr(first, "_fields"):
            return type(first)(*parts)
        return tuple(parts) if isinstance(first, tuple) else parts
    if first is None or isinstance(first, (str, bool, int, float)):
        for name, other in others:
            if first != other:
                must = f"be {_check.shown(first)}, as `{where}` is"
                hint = "only arrays may differ; labels are arrays, one for each sample: of shape (B,), or (1,) for all"
                raise _check.error(ValueError, function, f"{name}{path}", must, other, hint)
        return first
    xp = _array.namespace(function, **{f"{name}{path}": cond for name, cond in zip(names, conds, strict=True)})
    for name, other in others:
        if not (first.shape and other.shape):
            must = "have a first axis, the batch: (B, ...), or (1, ...) for all samples"
            wrong = (f"{name}{path}", other) if first.shape else (where, first)
            raise _check.error(ValueError, function, wrong[0], must, wrong[1])
        if tuple(first.shape[1:]) != tuple(other.shape[1:]):
            must = f"have the shape of `{where}`, {tuple(first.shape)}, except for the batch axis"
            raise _check.error(ValueError, function, f"{name}{path}", must, other)
    if batch is None:
        batch = max([cond.shape[0] for cond in conds])
    rows = [_rows(xp, function, cond, batch, f"{name}{path}") for name, cond in zip(names, conds, strict=True)]
    return rows[0] if len(rows) == 1 else xp.concat(rows, axis=0)


def _rows(xp: Any, function: str, part: Array, batch: int, where: str) -> Array:
    if part.shape[0] == batch:
        return part
    if part.shape[0] != 1:
        must = f"have a first axis of {batch}, the batch, or 1"
        raise _check.error(ValueError, function, where, must, part)
    return xp.broadcast_to(part, (batch, *part.shape[1:]))
