r"""Multistep predictors with a corrector that costs no call: UniPC for the ODE, SA-Solver for the SDE, too.

The call at level i, made at the predicted state, first corrects the step that led there, then predicts the next:

    z_i^c     = a_i z_{i-1}^c + alpha_i sum_j w_j x-hat_{i-j} + b_i eps_i,             j = 0 .. q-1    (corrector)
    z_{i+1}   = a_{i+1} z_i^c + alpha_{i+1} sum_j w'_j x-hat_{i-j} + b_{i+1} eps_{i+1},  j = 0 .. p-1  (predictor)

with the weights of `exponential`, and the same noise in both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffcore.plan import Float64, Form
from diffcore.samplers._build import Steps, empty
from diffcore.samplers._exponential import interpolation_weights, nodes_of
from diffcore.samplers._written import refuse_pure_noise


class Corrected(NamedTuple):
    """A predictor of p and a corrector of q estimates."""

    name: str
    pairs: Steps
    p: int
    q: int
    eta: Float64
    noise_scale: float
    variant: str | None
    lower: bool
    again: bool = False
    """Whether the denoiser is called at the corrected state, too."""

    def table(self) -> tuple[Float64, Float64, Float64]:
        """Return the levels before and after every stage, and the table.

        Raises:
            ValueError: a method that has no value from pure noise, where a run starts there.
        """
        with np.errstate(all="ignore"):
            at, to, update = self._table()
        if not np.all(np.isfinite(update)):
            refuse_pure_noise(self.name, self.pairs)
        return at, to, update

    def _table(self) -> tuple[Float64, Float64, Float64]:
        """Return the same, finite or not.

        The memory holds the next correction but for its newest estimate, then the past estimates, newest first.
        """
        pairs, count = self.pairs, len(self.pairs)
        per, past = 1 + self.again, max(min(self.p, count) - 1, min(self.q, count) - 2, 0)
        form = Form(memory=int(count > 1) * (1 + past))
        update = empty(per * (count - 1) + 1, pairs.lead, form.memory)
        at = np.concatenate([pairs.t.log_snr[:1], np.repeat(pairs.t.log_snr[1:], per, axis=0)])
        to = np.concatenate([at[1:], pairs.s.log_snr[-1:]])
        unit = np.eye(form.columns)
        corrected = np.broadcast_to(
            unit[0], (*pairs.lead, form.columns)
        ).copy()  # z^c of a stage, as a row over the columns
        for k in range(count):
            row = update[per * k]
            row[..., 0, :] = self._moved(k, corrected, form, k, min(self.p, k + 1, count - k if self.lower else self.p))
            for memory in range(2, form.memory + 1):
                row[..., memory, :] = unit[form.x if memory == 2 else memory - 1]
            if k < count - 1:
                use = min(self.q, k + 2, count - k + 1 if self.lower else self.q)
                correction = self._moved(k, corrected, form, k + 1, use)
                row[..., 1, :] = correction
                newest = self._weights(k, k + 1, use)[..., 0] * pairs.s.alpha[k]
                corrected = np.broadcast_to(unit[1], corrected.shape) + newest[..., None] * unit[form.x]
                if self.again:
                    update[per * k + 1, ..., 0, :] = corrected
                    update[per * k + 1, ..., 2:, 2 : form.memory + 1] = np.eye(form.memory - 1)
                    corrected = np.broadcast_to(unit[0], corrected.shape)
        return at, to, update

    def _moved(self, k: int, start: Float64, form: Form, newest: int, use: int) -> Float64:
        """Return step k from a start, as a row: with estimates from number `newest` on, but not those of the next stage."""
        t, s, half, eta = self.pairs.t, self.pairs.s, self.pairs.half[k], self.eta[k]
        kept = s.sigma[k] / t.sigma[k] * np.where(eta > 0.0, np.exp(-eta * half), 1.0)
        noise = self.noise_scale * s.sigma[k] * np.sqrt(-np.expm1(-2.0 * np.where(eta > 0.0, eta * half, 0.0)))
        row = np.asarray(kept[..., None] * start)
        row[..., form.noise] += noise
        weights = s.alpha[k][..., None] * self._weights(k, newest, use)
        columns = [form.x, *range(2, form.memory + 1)]
        known = weights[..., newest - k :]
        row[..., columns[: known.shape[-1]]] += known
        return row

    def _weights(self, k: int, newest: int, use: int) -> Float64:
        """Return the weights of step k of the estimates at `newest` and before."""
        points, clean = np.concatenate([self.pairs.t.log_snr, self.pairs.s.log_snr[-1:]]), self.pairs.clean[k]
        points[k + 1] = np.where(clean, points[k] + 1.0, points[k + 1])
        width = (1.0 + self.eta[k]) * np.where(clean, 1.0, self.pairs.half[k])
        weights = _weights(width, nodes_of(points, k, k + 1, newest, use), self.variant)
        return np.asarray(np.where(clean[..., None], np.arange(use) == 0, weights), dtype=np.float64)


def _weights(width: Float64, nodes: Float64, variant: str | None) -> Float64:
    """Return the weights at the nodes, with the short cut of a variant where there are two, of which one is 0."""
    if variant is None or nodes.shape[-1] != 2:
        return interpolation_weights(width, nodes)
    total = -np.expm1(-width)
    other = np.where(nodes == 0.0, np.inf, nodes)
    short = 0.5 * (width if variant == "bh1" else total)[..., None] / other
    return np.where(nodes == 0.0, total[..., None] - short.sum(axis=-1, keepdims=True), short)
