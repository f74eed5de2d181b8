"""The check that guidance is the same whatever its denoisers predict."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from diffcore import _check, guidance, predictions
from diffcore._array import Array
from diffcore.levels import Level
from diffcore.testing._arrays import Float64, compare, epsilon, fail_unless, host, in_range, largest, put, smallest


def check_guidance_invariance(
    level: Level,
    weight: float = 3.0,
    *,
    classifier_free: Callable[..., Any] = guidance.classifier_free,
    seed: int = 0,
    ulps: float = 16.0,
) -> float:
    r"""Check that guidance at one z is the same on x, eps, v, score, flow and EDM's F.

        x-hat of g(y_c, y_u) = g(x-hat_c, x-hat_u);   of the library's own also = (1 + w) x-hat_c - w x-hat_u

    Args:
        level: of any shape. A prediction is left out at entries where it says nothing about x, as eps at lambda = -inf.
        weight: w.
        classifier_free: a function (cond, uncond, weight=) -> denoiser to check instead of `guidance.classifier_free`, called
            at levels of shape (N,). One that takes `prediction` as well gets the kind in use, as a rule with a `space` needs.
        seed: of the two estimates.
        ulps: the tolerance, in units of the rounding of the conversions; guidance with larger weights than w may need more.

    Raises:
        AssertionError: naming the prediction and the log-SNR.
        ValueError: a finite log-SNR at which alpha^2 or sigma^2 leaves the range of the dtype, 87 in float32.

    Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6.

    >>> from diffcore import levels
    >>> check_guidance_invariance(levels.level(np.array([-3.0, 4.0]))) <= 1.0
    True
    """
    (level,) = in_range("testing.check_guidance_invariance", level=level)
    at, most = Level(*(host(part) for part in level)), largest(level.alpha)
    random, kinds = np.random.default_rng(seed), predictions.table()
    z, with_condition, without = random.normal(size=(3, *at.alpha.shape, 5))

    takes_prediction = _takes_prediction(classifier_free)

    def guided(kind: str, outputs: Any, ok: Any) -> Float64:
        here, there = Level(*(put(part[ok], level.alpha) for part in at)), put(z[ok], level.alpha)
        more = {"prediction": kind} if takes_prediction else {}
        made = classifier_free(*(_constant(put(y[ok], level.alpha)) for y in outputs), weight=weight, **more)
        return host(predictions.convert(made(there, here.log_snr), there, here, source=kind, target="x"))

    truth = (1.0 + weight) * with_condition - weight * without
    if classifier_free is not guidance.classifier_free:
        truth = guided("x", (with_condition, without), np.ones(at.alpha.shape, bool))
        fail_unless(np.isfinite(truth).all(), "guidance on 'x'", "is not finite")
    used = 0.0
    for name, row in kinds.items():
        with np.errstate(all="ignore"):
            (to_z, to_y), (from_z, from_y) = (
                [part[:, None] for part in predictions.solve(np, at, *pair)]
                for pair in ((kinds["x"], row), (row, kinds["x"]))
            )
            outputs = [to_z * z + to_y * x for x in (with_condition, without)]
            guided_size = (1.0 + weight) * np.abs(outputs[0]) + weight * np.abs(outputs[1])
            made = np.abs(to_z * z) * (1.0 + 2.0 * weight)  # beside which the estimates may be small, and are lost
            size = np.abs(from_z * z) + np.abs(from_y) * (guided_size + made) + np.abs(truth)
            flushed = 4.0 * (1.0 + 2.0 * weight) * smallest(level.alpha) * (1.0 + np.abs(from_y))
            sizes = [np.abs(part) * np.ones(z.shape) for part in (from_z, from_y, guided_size, size)]
            ok = (np.max(sizes, axis=(0, 2)) < most) & (np.abs(to_y[:, 0]) >= smallest(level.alpha))
        if np.any(ok):
            tolerance = (ulps * epsilon(level.alpha) * size + flushed)[ok]
            where = {"log_snr": at.log_snr[ok][:, None]}
            got = guided(name, outputs, ok)
            used = max(used, compare(f"guidance on {name!r}", got, truth[ok], tolerance, where=where))
    return used


def _takes_prediction(make: Callable[..., Any]) -> bool:
    """Return whether guidance is to be given the kind of prediction, which `guidance.classifier_free` takes for a rule alone."""
    signature = inspect.signature(make)
    takes = signature.parameters
    try:
        signature.bind(_constant, _constant, weight=1.0, **{name: "x" for name in takes if name == "prediction"})
    except TypeError as error:
        must, name = "take (cond, uncond, *, weight), two denoisers", "testing.check_guidance_invariance"
        raise _check.error(TypeError, name, "classifier_free", must, make, str(error)) from None
    return "prediction" in takes and not ("rule" in takes and takes["rule"].default is None)


def _constant(y: Array) -> Callable[[Array, Array], Array]:
    return lambda z, log_snr: y  # noqa: ARG005
