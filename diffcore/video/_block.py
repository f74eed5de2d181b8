"""One block: a run of the sampler that is conditioned on known frames, and on a smaller version of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffcore import _array, _brief, _check, _layout, _streams, conditioning, noise, sampling
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore.conditioning.reconstruction import weight_of
from diffcore.levels import level
from diffcore.plan import Plan
from diffcore.predictions import Prediction, kind_of
from diffcore.state import State
from diffcore.video.reuse import Reusing

METHODS = ("reconstruction", "replacement", "moment_matching", "forcing")
GRADIENTS = ("reconstruction", "moment_matching")


@dataclass(frozen=True, eq=False, kw_only=True)
class Sampler:
    """What draws a block: the arguments that `extend`, `interpolate` and `upscale` share; `extend` documents them."""

    function: str
    stream: int
    denoise: Callable[[Array, Array], Array]
    plan: Plan
    method: str
    weight: Any
    iterations: int
    seed: Any
    prediction: Prediction | None
    transform_x: Callable[[Array], Array] | None
    compile: bool | None
    callback: Callable[[State], object] | None
    history: float | None = None
    source: Callable[..., Array] | None = None
    """Noise instead of that of the seed: (number of the block's or frame's first frame, draw, shape, stream) -> array."""
    methods: tuple[str, ...] = METHODS
    traced: dict[Any, Callable[..., Array]] = field(default_factory=dict)
    """A run for each pattern of known frames, which blocks share: a stream has two or three; one that begins with few frames and
    keeps what it computed has one for each number of frames before its blocks, until these know `overlap` of them."""

    __repr__ = _brief.fields

    def __post_init__(self) -> None:
        _check.choice(self.function, "method", self.method, self.methods)
        _check.callable_(self.function, "denoise", self.denoise, "a function of (z, log_snr)")
        _check.instance(self.function, "plan", self.plan, Plan, "a diffcore.Plan", hint="see diffcore.samplers")
        if self.transform_x is not None:
            _check.callable_(self.function, "transform_x", self.transform_x, "a function of x-hat")
        weight_of(self.function, self.weight)
        _check.integer(self.function, "iterations", self.iterations, 1)
        noise.keys(self.seed, len(self.seed) if np.ndim(self.seed) else 1)
        kind_of(self.function, self.denoise, self.prediction)
        if self.history is not None:
            _check.number(self.function, "history", self.history, hint="a log-SNR, or None")

    def words(self, number: int, batch: int) -> Any:
        """Return the key words of a part of the video, by the number of its first frame."""
        return number if self.source is not None else noise.fold_in(self.seed, number, batch, stream=self.stream)

    def noise_of(self, words: Any, draw: Any, shape: tuple[int, ...], like: Array, stream: int) -> Array:
        """Return a draw of noise for the part of these words."""
        if self.source is not None:
            return self.source(words, draw, shape, stream)
        return noise.normal(words, draw, shape, like=like, stream=stream)

    def draw(
        self,
        number: int,
        shape: tuple[int, ...],
        known: list[tuple[int, Array]],
        like: Array,
        low: Array | None = None,
        measure: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Return a block with known frames in their places.

        Args:
            number: of its first new frame in the video, which sets its noise apart from that of all others.
            shape: (B, T, H, W, C) of the block.
            known: (place, frames (B, n, H, W, C)).
            like: any array of the video.
            low, measure: what is measured of the block, of its first frames alone where `low` has fewer.
        """
        if self.reuses and known:
            return self._after(number, shape, known[0][1], like)
        xp, backend = _array.library(like), backend_of(like)
        which, given = np.zeros(shape[1], dtype=np.bool_), None
        if known:
            blank = xp.zeros((shape[0], 1, *shape[2:]), dtype=like.dtype, device=_array.device(like))
            blank = _layout.beside(blank, like)
            places = [blank] * shape[1]
            for place, frames in known:
                for k in range(frames.shape[1]):
                    places[place + k], which[place + k] = frames[:, k : k + 1, ...], True
            given = xp.concat(places, axis=1)
        mask, measured = which.reshape(-1, 1, 1, 1), None
        if low is not None and low.shape[1] < shape[1]:
            measured = (np.arange(shape[1]) < low.shape[1]).reshape(-1, 1, 1, 1)
            rest = (low.shape[0], shape[1] - low.shape[1], *low.shape[2:])
            more = _layout.beside(xp.zeros(rest, dtype=low.dtype, device=_array.device(low)), low)
            low = xp.concat([low, more], axis=1)
        plan, drawn = self._plan(which), None
        how: dict[str, Any] = {"seed": self.words(number, shape[0])}
        if self.source is not None:
            drawn = lambda draw, shape, stream: self.noise_of(number, draw, shape, like, stream)  # noqa: E731
            how = {"noise": drawn}
        start = sampling.start(plan, shape=shape, like=like, **how)
        if drawn is not None:
            return self._sample(start, plan, mask, given, low, measured, measure, drawn)
        key = (shape, which.tobytes(), None if measured is None else measured.tobytes())
        if key not in self.traced:

            def run(z: Array, memory: tuple[Array, ...], keys: Array, given: Any, low: Any) -> Array:
                state = State(z, memory, None, backend.index(0), backend.index(1), keys)
                return self._sample(state, plan, mask, given, low, measured, measure)

            self.traced[key] = backend.trace(run)
        return self.traced[key](start.z, start.memory, start.keys, given, low)

    @property
    def reuses(self) -> bool:
        """Whether known frames are computed once and kept."""
        return self.method in ("forcing", "rolling") and isinstance(self.denoise, Reusing)

    def past(self, frames: Array, eps: Callable[[], Array]) -> Callable[[Array, Array], Array]:
        """Return the denoiser of what follows known frames: clean ones, or with the noise eps of a history."""
        at = math.inf
        if self.history is not None:
            xp, at = _array.library(frames), self.history
            alpha, sigma, _ = level(self.history, scaling=self.plan.scaling)
            noisy = float(alpha) * _array.widen(xp, frames) + float(sigma) * _array.widen(xp, eps())
            frames = xp.astype(noisy, frames.dtype, copy=False)
        denoise: Any = self.denoise
        found: Callable[[Array, Array], Array] = denoise.after(denoise.past(frames, at))
        return found

    def _after(self, number: int, shape: tuple[int, ...], context: Array, like: Array) -> Array:
        """Return a block whose known frames, its first ones, are computed once: the other frames go through the plan alone."""
        there, words = context.shape[1], self.words(number, shape[0])

        def run(context: Array, words: Any) -> Array:
            def drawn(draw: Any, shape_: tuple[int, ...], stream: int = _streams.SAMPLER) -> Array:  # noqa: ARG001
                return self.noise_of(words, draw, shape, like, stream)[:, there:, ...]  # as in a block of all frames

            new = (shape[0], shape[1] - there, *shape[2:])
            start = sampling.start(self.plan, shape=new, like=like, noise=drawn)
            return sampling.sample(
                self.past(context, lambda: self.noise_of(words, 0, shape, like, _streams.KNOWN)[:, :there, ...]),
                self.plan,
                start,
                noise=drawn,
                prediction=self.prediction,
                transform_x=self.transform_x,
                compile=self.compile,
                callback=self.callback,
            )

        if self.source is None:
            key = ("after", shape, there)
            run = self.traced.setdefault(key, backend_of(like).trace(run))
        return _array.library(like).concat([context, run(context, words)], axis=1)

    def _plan(self, which: Any) -> Plan:
        """Return the plan of a block: that in which known frames are clean from the start and wait, where the method has it so."""
        if self.method != "forcing" or not which.any():
            return self.plan
        steps = len(self.plan)
        stages = np.where(which, -1, np.arange(steps)[:, None])
        return self.plan.per_frame(stages, begun=np.where(which, steps, 0), history=self.history)

    def _sample(
        self,
        state: State,
        plan: Plan,
        mask: Any,
        given: Any,
        low: Any,
        measured: Any,
        measure: Any,
        drawn: Callable[..., Array] | None = None,
    ) -> Array:
        denoise, constraint, transform_x = self.denoise, None, self.transform_x
        if given is not None:
            denoise = self._guided(denoise, given, mask, None, self.weight)
            variant = "posterior" if self.method == "forcing" else "marginal"
            constraint = conditioning.replacement(given, mask, variant=variant)
        if low is not None and self.method not in GRADIENTS:
            transform_x = conditioning.projection(low, measured, measure=measure, after=transform_x)
        elif low is not None:
            denoise = self._guided(denoise, low, measured, measure, self._weight_of_means(measure))
        return sampling.sample(
            denoise,
            plan,
            state,
            noise=drawn,
            prediction=self.prediction,
            transform_x=transform_x,
            constraint=constraint,
            compile=self.compile,
            callback=self.callback,
        )

    def _guided(self, denoise: Any, observed: Array, mask: Any, measure: Any, weight: Any) -> Any:
        if self.method not in GRADIENTS:
            return denoise
        how: dict[str, Any] = {"measure": measure, "prediction": self.prediction}
        if self.method == "reconstruction":
            return conditioning.reconstruction(denoise, observed, mask, weight=weight, **how)
        return conditioning.moment_matching(denoise, observed, mask, iterations=self.iterations, **how)

    def _weight_of_means(self, measure: Any) -> Any:
        """Return the weight of a measurement that is a mean of n pixels: so many times as certain as one of them."""
        count, weight = measure.factor[0] * measure.factor[1], self.weight
        return (lambda log_snr: count * weight(log_snr)) if callable(weight) else count * weight
