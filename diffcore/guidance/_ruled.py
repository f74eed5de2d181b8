"""The denoiser under guidance by a rule, and by a rule with momentum, which carries something from stage to stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from diffcore import _array, _brief, _check, _layout, _wrapping, levels, predictions
from diffcore._array import Array
from diffcore.guidance import _weights
from diffcore.guidance._guided import FUNCTION, ClassifierFree, chosen
from diffcore.guidance._rule import At, Rule
from diffcore.guidance._sources import Apart, Together
from diffcore.guidance._weights import Weight
from diffcore.predictions import Prediction
from diffcore.schedules import Schedule


@dataclass(frozen=True, eq=False)
class Ruled(ClassifierFree):
    """A denoiser under guidance by another rule than c + w (c - u)."""

    rule: Any = None
    prediction: Prediction | None = None
    scaling: str | None = None
    __repr__ = _brief.fields

    def apart(self, z: Array, log_snr: Array) -> None:  # noqa: ARG002
        """Return None: a rule is left to no kernel."""
        return

    @property
    def _reads_samples(self) -> bool:
        return True

    def with_scaling(self, scaling: str) -> Ruled:
        """Return the same denoiser for "vp", "ve" or "flow"; `diffcore.sample` calls it if no schedule was given."""
        levels.check_scaling(FUNCTION, scaling)
        return replace(self._with_scaling(scaling), scaling=scaling)

    def _combined(self, xp: Any, z: Array, log_snr: Array, c: Array, u: Array) -> Array:
        return self._by_rule(xp, z, log_snr, c, u, None)[0]

    def _by_rule(
        self, xp: Any, z: Array, log_snr: Array, c: Array, u: Array, average: Array | None
    ) -> tuple[Array, Array]:
        """Return the guided prediction, and the difference c - u that led to it, of the kind that the rule works on."""
        space, weight = self.rule.space, _weights.along(FUNCTION, self.weight, log_snr, c, xp)
        mixing = None
        if space is not None and space != self.prediction:
            assert self.prediction is not None
            level = _wrapping.level_of(FUNCTION, log_snr, self.scaling)
            mixing = _wrapping.mixing(FUNCTION, level, self.prediction, space, c)
        difference, wide = c - u, _layout.samples(_array.widen(xp, z))
        inside, other = c, u
        if mixing is not None:
            difference, inside, other = mixing.q * difference, mixing.into(wide, c), mixing.into(wide, u)
        if average is not None:
            difference = difference + self.rule.momentum * _layout.samples(average)
        guided = self.rule(At(xp, inside, other, difference, weight, log_snr))
        if tuple(getattr(guided, "shape", ())) != tuple(inside.shape):  # else it would broadcast
            must = f"return an array of the shape of c, {tuple(inside.shape)}"
            kind = ValueError if _check.is_array(guided) else TypeError
            raise _check.error(kind, FUNCTION, f"{type(self.rule).__name__}.__call__", must, guided)
        return (guided if mixing is None else c + mixing.back * (guided - inside)), difference


@dataclass(frozen=True, eq=False)
class Carrying(Ruled):
    """A denoiser under guidance by a rule with momentum: it takes what it made of the stages before."""

    __repr__ = _brief.fields

    def __call__(self, z: Array, log_snr: Array) -> Array:  # noqa: ARG002
        """Raise: the average over the stages before is missing."""
        raise TypeError(
            f"{FUNCTION}: a rule with momentum needs what it made of the stages before; call it through diffcore.sample, "
            f"without another wrapper round it, or by its method `carrying`"
        )

    def with_unguided(self, z: Array, log_snr: Array) -> tuple[Array, Array]:
        """Raise, as a call does."""
        return self(z, log_snr), self(z, log_snr)

    def begin(self, z: Array) -> tuple[Array, ...]:
        """Return what a run carries before its first stage."""
        xp = _array.namespace(FUNCTION, z=z)
        return (xp.zeros_like(_array.widen(xp, z)),)

    def carrying(self, z: Array, log_snr: Array, carried: tuple[Array, ...]) -> tuple[Array, Array, tuple[Array, ...]]:
        """Return the guided prediction at z, the unconditional one, and what the next stage gets as `carried`."""

        def both(z: Array, log_snr: Array, inside: Array | None, carried: tuple[Array, ...]) -> Any:
            if _weights.is_off(self.weight):
                return alone(z, log_snr, inside, carried)
            xp = _array.namespace(FUNCTION, z=z)
            c, u = self._both(z, log_snr)
            wide = _array.widen(xp, c)
            guided, average = self._by_rule(xp, z, log_snr, wide, _array.widen(xp, u), carried[0])
            y = xp.astype(self._rescaled(xp, guided, wide), c.dtype, copy=False)
            average = _layout.alike(average, carried[0])
            return chosen(z, inside, y, c), chosen(z, inside, u, c), (chosen(z, inside, average, carried[0]),)

        def alone(z: Array, log_snr: Array, inside: Array | None, carried: tuple[Array, ...]) -> Any:
            c = self._conditional(z, log_snr, inside)
            return c, c, carried

        return self._branch(both, alone, z, log_snr, carried)  # type: ignore[no-any-return]


def guided_by(
    function: str,
    source: Apart | Together,
    weight: Weight,
    rescale: float,
    interval: tuple[float, float] | None,
    rule: Rule | None,
    prediction: Prediction | None,
    schedule: Schedule | None,
) -> ClassifierFree:
    """Return the denoiser under guidance, by a rule where there is one, of settings that are checked here."""
    rescale = _check.number(function, "rescale", rescale, 0, 1)
    if interval is not None:
        interval = _check.interval(function, "interval", interval, equal=True, finite=False, hint="they are log-SNRs")
    if rule is None:
        if prediction is not None or schedule is not None:
            raise ValueError(f"{function}: `prediction` and `schedule` must be left out where there is no `rule`")
        return ClassifierFree(source, weight, rescale, interval)
    hint = "guidance.table() lists them"
    if callable(rule):
        hint = "one of your own is a subclass of guidance.Rule with __call__(self, at), see its help"
    _check.instance(function, "rule", rule, Rule, "a rule, such as guidance.projected()", hint=hint)
    model = source.models[0]
    if rule.space is not None:
        predictions.row_function(function, f"{type(rule).__name__}.space", rule.space)
    if rule.space is not None or prediction is not None:
        prediction = predictions.kind_of(function, model, prediction)
    else:
        prediction = getattr(model, "prediction", None)
    scaling = _wrapping.scaling_given(function, model, schedule)
    if scaling is not None:
        to = scaling
        source = source.map(lambda model: _wrapping.scaled(model, to))
    kind = Carrying if rule.momentum else Ruled
    return kind(source, weight, rescale, interval, rule, prediction, scaling)
