"""Parts of plans, plans one after another, and plans that go back to noise or leave frames waiting: algebra on their tables.

Each function returns the fields of a plan that change; its settings, which make all of it, go.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check, _memory, levels, process

Float64 = npt.NDArray[np.float64]


def part(plan: Any, stages: slice) -> dict[str, Any]:
    """Return a part of the stages; see `Plan.__getitem__`."""
    if not isinstance(stages, slice) or stages.step not in (None, 1):
        raise TypeError(f"Plan: takes a slice of its stages, such as plan[4:], got {stages!r}")
    first, last, _ = stages.indices(len(plan))
    if first >= last:
        raise ValueError(f"Plan: the part [{first}:{last}] of {len(plan)} stages is empty")
    free = [stage for stage, needs in enumerate(plan.needs_memory) if not needs]
    if first not in free:
        raise ValueError(
            f"Plan: {plan.sampler} needs its memory of earlier stages at stage {first}; resume from a State of that stage, "
            f"begin the part at one of the stages {free[:8]}, or make a plan for the remaining levels, by the function that "
            f"made this one; for samplers of diffcore it is samplers.make(schedule=..., grid=..., **plan.settings)"
        )
    return {
        "sampler": f"{plan.sampler}[{first}:{last}]",
        "log_snr": plan.log_snr[first:last],
        "next_log_snr": plan.next_log_snr[first:last],
        "update": plan.update[first:last],
    }


def joined(first: Any, second: Any) -> dict[str, Any]:
    """Return one plan followed by another; see `Plan.__add__`."""
    for name in ("scaling", "second", "ahead", "lead"):
        if getattr(first, name) != getattr(second, name):
            raise ValueError(
                f"Plan: {first.sampler} and {second.sampler} differ in `{name}`, {getattr(first, name)!r} and "
                f"{getattr(second, name)!r}, so that one cannot follow the other"
            )
    end, start = first.next_log_snr[-1], second.log_snr[0]
    if not np.allclose(end, start, rtol=1e-9, atol=1e-9):
        raise ValueError(
            f"Plan: {first.sampler} ends at log_snr {end} but {second.sampler} starts at {start}; end the grid of the "
            f"first where that of the second begins"
        )
    memory = max(first.memory, second.memory)
    before, after = (with_memory(plan.update, memory) for plan in (first, second))
    if second.needs_memory[0]:  # it reads zeros at the start of a run, and must not read the memory of the first
        after[0, ..., 1 : 1 + memory] = 0.0
    return {
        "sampler": f"{first.sampler} + {second.sampler}",
        "log_snr": np.concatenate([first.log_snr, second.log_snr]),
        "next_log_snr": np.concatenate([first.next_log_snr, second.next_log_snr]),
        "update": np.concatenate([before, after]),
    }


def noised(plan: Any, log_snr: npt.ArrayLike) -> dict[str, Any]:
    """Return what finally goes back to more noise; see `Plan.noised`."""
    s = plan.end
    t = levels.level(np.broadcast_to(np.asarray(log_snr, dtype=np.float64), plan.lead), plan.scaling)
    if not np.all(t.log_snr < s.log_snr):
        raise ValueError(
            f"Plan.noised: `log_snr` must be below {s.log_snr}, where {plan.sampler} ends, got {log_snr!r}"
        )
    noise, update, after = plan.form.noise, np.array(plan.update), np.array(plan.next_log_snr)
    update[-1, ..., 0, :] *= np.asarray(t.alpha / s.alpha)[..., None]
    update[-1, ..., 0, noise] = np.hypot(update[-1, ..., 0, noise], np.sqrt(process.novelty(s, t)) * t.sigma)
    after[-1] = t.log_snr
    return {"sampler": f"{plan.sampler}, noised", "next_log_snr": after, "update": update}


def per_frame(
    plan: Any, stages: npt.ArrayLike, begun: npt.ArrayLike | None = None, history: float | None = None
) -> dict[str, Any]:
    """Return the stages that frames take at their own times; see `Plan.per_frame`."""
    order = np.asarray(stages)
    if plan.lead:
        raise ValueError(f"Plan.per_frame: the levels of the plan must have shape (), got {plan.lead}")
    if order.ndim != 2 or order.dtype.kind not in "iu" or order.size == 0:
        raise ValueError(f"Plan.per_frame: `stages` must be ints (N, T), got {order.dtype} of shape {order.shape}")
    done = np.zeros(order.shape[1], dtype=np.int64) if begun is None else np.asarray(begun)
    if done.shape != order.shape[1:] or done.dtype.kind not in "iu" or np.any((done < 0) | (done > len(plan))):
        raise ValueError(
            f"Plan.per_frame: `begun` must be ({order.shape[1]},) ints in [0, {len(plan)}], got {done.dtype} of shape {done.shape}"
        )
    before = np.maximum.accumulate(np.concatenate([done[None] - 1, order]), axis=0)
    wrong = (order < -1) | (order >= len(plan)) | ((order >= 0) & (order != before[:-1] + 1))
    if np.any(wrong):
        k, frame = np.argwhere(wrong)[0]
        raise ValueError(
            f"Plan.per_frame: frame {frame} takes stage {order[k, frame]} at stage {k}, after {before[k, frame] + 1} of "
            f"{len(plan)} stages; it must take them in order, each once, or wait with -1"
        )
    at = np.append(plan.log_snr, plan.next_log_snr[-1])
    waits, stay = order < 0, np.eye(1 + plan.memory, plan.form.columns)
    now, after = at[before[:-1] + 1], np.where(waits, at[before[:-1] + 1], plan.next_log_snr[order])
    if history is not None:
        old = done == len(plan)
        now, after = (np.where(old, float(history), part) for part in (now, after))
    return {
        "sampler": f"{plan.sampler}, frame by frame",
        "log_snr": now[:, None],
        "next_log_snr": after[:, None],
        "update": np.where(waits[..., None, None], stay, plan.update[order])[:, None],
    }


def with_memory(update: Float64, memory: int) -> Float64:
    """Return a table with rows and columns for more memory, which is unused."""
    have = update.shape[-2] - 1
    more = [1 + have] * (memory - have)
    return np.insert(np.insert(update, more, 0.0, axis=-1), more, 0.0, axis=-2)


def for_batch(function: str, log_snr: Float64, batch: int) -> Float64:
    """Return levels (stages, *lead) as those of so many samples, (stages, B) or (stages, B, T)."""
    stages, lead = log_snr.shape[0], log_snr.shape[1:]
    if not _array.traced() and not type(batch).__module__.startswith("torch"):  # a symbol, or torch.jit's tensor
        _memory.fits(function, "batch", batch, log_snr.nbytes * _check.integer(function, "batch", batch))
    if not lead or lead[0] == 1:
        log_snr = np.broadcast_to(log_snr.reshape(stages, *(lead or (1,))), (stages, batch, *lead[1:]))
    return np.array(log_snr)  # a copy: torch warns of read-only arrays
