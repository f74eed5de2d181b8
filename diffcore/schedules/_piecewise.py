"""Straight lines between knots at t_i = i / K, i = 0..K: shared by tables, learned schedules and densities of times."""

from __future__ import annotations

from typing import Any

from diffcore._array import Array
from diffcore.schedules._base import Pair


def log_snr(xp: Any, knots: Array, t: Array) -> Array:
    """Return the value at time t of the lines through the knots, (K + 1,)."""
    before, after, part = piece(xp, knots, t * (knots.shape[0] - 1.0))
    return before * (1.0 - part) + after * part


def slope(xp: Any, knots: Array, t: Array) -> Array:
    """Return the slope at time t; at a knot, that of the piece after it."""
    before, after, _ = piece(xp, knots, t * (knots.shape[0] - 1.0))
    return (after - before) * (knots.shape[0] - 1.0)


def time(xp: Any, knots: Array, value: Array) -> Pair:
    """Return the time at which the decreasing lines take a value; the first and last pieces extend outside."""
    pieces = knots.shape[0] - 1
    found = xp.searchsorted(-knots, xp.reshape(-value, (-1,)))  # flat and contiguous, as torch requires
    index = xp.reshape(xp.clip(xp.astype(found, xp.int32) - 1, 0, pieces - 1), value.shape)
    before, after = _take(xp, knots, index), _take(xp, knots, index + 1)
    fall = before - after  # may be 0 in float32 where the table has closer knots
    part = (before - value) / xp.where(fall > 0.0, fall, xp.ones_like(fall))
    done = xp.astype(index, value.dtype)
    return (done + part) / pieces, ((pieces - 1.0 - done) + (1.0 - part)) / pieces


def piece(xp: Any, knots: Array, position: Array) -> tuple[Array, Array, Array]:
    """Return the knots before and after each position in [0, K], and how far between them it is."""
    inside = xp.where(position > 0.0, position, xp.zeros_like(position))  # NaN cannot be cast to an integer
    below = xp.clip(xp.floor(inside), 0.0, knots.shape[0] - 2.0)
    index = xp.astype(below, xp.int32)
    return _take(xp, knots, index), _take(xp, knots, index + 1), position - below


def _take(xp: Any, knots: Array, index: Array) -> Array:
    return xp.reshape(xp.take(knots, xp.reshape(index, (-1,)), axis=0), index.shape)
