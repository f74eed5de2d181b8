r"""Guidance without a classifier: a wrapper round a conditional and an unconditional denoiser.

    guided = (1 + w) c - w u = u + scale (c - u),    scale = 1 + w

with c the prediction under the condition and u the one without it. Here `weight` is always w, 0 is off, and `scale` is
always 1 + w, 1 is off. c and u may be eps, x, v or score: at one z all of these are affine maps of one another and the
coefficients sum to one, so the result is the same; it is of the kind that the denoiser predicts. A rule is another way to
put c and u together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffcore import _check
from diffcore._array import Array
from diffcore.guidance import _weights
from diffcore.guidance._guided import FUNCTION, ClassifierFree, check_alike
from diffcore.guidance._rule import Rule
from diffcore.guidance._ruled import guided_by
from diffcore.guidance._sources import Apart, Denoiser, Together, merge
from diffcore.guidance._weights import Weight
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule


def classifier_free(
    denoise: Callable[..., Array],
    unconditional: Denoiser | None = None,
    *,
    cond: Any = None,
    null: Any = None,
    weight: Weight | None = None,
    scale: float | Array | None = None,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
    rule: Rule | None = None,
    prediction: Prediction | None = None,
    schedule: Schedule | None = None,
) -> ClassifierFree:
    r"""Return a denoiser with classifier-free guidance: (1 + w) c - w u.

    Two forms:

    * `classifier_free(denoise_cond, denoise_uncond, weight=w)`: two callables (z, log_snr).
    * `classifier_free(denoise, cond=c, null=n, weight=w)`: one callable (z, log_snr, cond), called once with a batch of
      2 B: first the samples with their condition, then the same samples with `null`.

    For a **negative condition** pass it as `null` (or as the second callable): guidance then leads away from it.

    Args:
        denoise: (z, log_snr) -> c, or, with `cond` and `null`, (z, log_snr, cond) -> prediction.
        unconditional: (z, log_snr) -> u.
        cond, null: arrays (B, ...), or dicts, tuples and lists of them, nested alike; a batch of 1 serves all samples.
        weight: w. A number; 0 is off, and calls no unconditional model. Or an array of shape (), (B,) or (B, T), one for
            each sample or frame, in NumPy or the library of z: it may be traced and carries gradients, and on JAX
            other values are no new trace. Or a function of log_snr, (), (B,) or (B, T), that returns w of that shape.
            Exactly one of weight and scale.
        scale: the other convention, u + scale (c - u): w = scale - 1, 1 is off; a number or an array.
        rescale: phi in [0, 1]; how far to bring the standard deviation of each sample back to that of c (Lin et al.). A
            sample without deviation is left as it is.
        interval: (low, high) in log-SNR, ends included; outside only the conditional pass runs (Kynkaanniemi et al.).

        rule: another way to put c and u together, one of `guidance.table()`, such as `projected()`. None is c + w (c - u).
        prediction: with a rule, what the denoiser returns, unless it says so by its attribute. Rules work on x-hat, eps or
            the velocity, whatever the denoiser predicts: so the guided x-hat is the same.
        schedule: with a rule, gives the scaling; may be left out in `diffcore.sample`, which takes the plan's.

    Returns:
        A callable (z, log_snr) -> prediction that `diffcore.sample` takes, with the attributes `prediction` and
        `scaling` of the denoiser, where it has them.

    Raises:
        ValueError: neither or both of weight and scale; a weight that is not finite (of an array, where it is NumPy's);
            rescale or interval out of range; cond and null that differ in structure; two denoisers of different
            `prediction` or `scaling`; `prediction` or `schedule` without a rule; when called, a weight that does
            not align with the leading axes of z.
        TypeError: a denoiser that cannot be called; a weight that is neither a number nor an array; neither form;
            when called, a weight of another library than z; a rule without a known `prediction`.

    Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6; Lin et al. 2023 (arXiv 2305.08891), eq. 15-16; Kynkaanniemi et
    al. 2024 (arXiv 2404.07724), eq. 3.

    >>> import numpy as np
    >>> guided = classifier_free(lambda z, log_snr: z + 1.0, lambda z, log_snr: z, weight=2.0)
    >>> guided(np.zeros((1, 2)), 0.0)
    array([[3., 3.]])
    >>> one = classifier_free(lambda z, log_snr, cond: z + cond, cond=np.ones((1, 1)), null=np.zeros((1, 1)), scale=3.0)
    >>> one(np.zeros((1, 2)), 0.0)
    array([[3., 3.]])
    """
    function = FUNCTION
    w = _weights.of_two(function, weight, scale)
    _check.callable_(function, "denoise", denoise, "a function of (z, log_snr)")
    if unconditional is not None:
        _check.callable_(function, "unconditional", unconditional, "a function of (z, log_snr)")
    source: Apart | Together
    if unconditional is not None and cond is None and null is None:
        source = Apart((denoise, unconditional))
        check_alike(function, "unconditional", denoise, unconditional)
    elif unconditional is None and cond is not None and null is not None:
        source = Together(function, ("cond", "null"), denoise, (cond, null))
        merge(function, source.names, source.conds, None)
    else:
        null_hint = "; `null` is the condition of nothing, as model.null(labels) of unet3d" * (
            cond is not None and null is None
        )
        either = "give either (denoise_cond, denoise_uncond), or (denoise, cond=..., null=...)"
        raise TypeError(f"{function}: {either}{null_hint}")
    return guided_by(function, source, w, rescale, interval, rule, prediction, schedule)
