"""The identities of whole runs, bit for bit: on any library, with anybody's denoiser, sampler or backend.

A check raises AssertionError and says which identity, where, and by how much. `denoise` is any callable
(z, log_snr) -> prediction; what it says is given by `prediction`. With `backend` a run goes through that backend instead
of the one that serves `like`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from diffcore._array import Array
from diffcore.backends import Backend
from diffcore.plan import Plan, X
from diffcore.sampling import State
from diffcore.testing._arrays import compare, fail_unless, host, put
from diffcore.testing._loop import Denoise, Loop

__all__ = [
    "check_batch_equals_singles",
    "check_deterministic",
    "check_interleaved",
    "check_last_step_returns_x",
    "check_resumed",
]


def check_last_step_returns_x(plan: Plan, *, like: Array | None = None, backend: Backend | None = None) -> None:
    """Check that a plan that ends on clean data returns its last x-hat: no mixing, no noise, every bit the same.

    Args:
        plan: whose last level is lambda = inf.
        like: a floating array of the library and dtype to run in; NumPy float64 without one.
        backend: see the module.

    Raises:
        AssertionError: the plan ends elsewhere, mixes, or returns other bits.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 2.

    >>> import diffcore as dc
    >>> check_last_step_returns_x(dc.samplers.ancestral(dc.schedules.Cosine(), 4, gamma=1.0))
    """
    fail_unless(np.all(plan.next_log_snr[-1] == np.inf), plan.sampler, f"ends at log_snr = {plan.next_log_snr[-1]}")
    last = np.zeros(plan.update.shape[-1])
    last[X] = 1.0
    compare(f"{plan.sampler}: the last step returns x-hat", plan.update[-1, ..., 0, :], last, 0.0)
    loop = Loop(like, backend)
    said: list[Array] = []
    shape = (*(plan.lead or (2,)), 5)
    target = put(np.linspace(-0.9, 1.1, math.prod(shape)).reshape(shape), loop.like)

    def denoise(z: Array, _: Array) -> Array:
        said.append(target + 0.25 * z)
        return said[-1]

    state = loop.start(plan, shape, 0)
    for log_snr in plan.log_snr:
        state = loop.step(plan, state, denoise(state.z, log_snr), "x")
    _same_bits(f"{plan.sampler}: the last step returns x-hat", state.z, said[-1])


def check_deterministic(
    denoise: Denoise,
    plan: Plan,
    like: Array | None = None,
    *,
    shape: Sequence[int] = (2, 5),
    prediction: str = "x",
    backend: Backend | None = None,
) -> None:
    """Check that a run is a function of its seed: the same twice, another for another seed where the plan is noisy.

    Args:
        denoise, prediction, backend: see the module.
        plan: the plan.
        like: a floating array of the library, dtype and device; NumPy float64 without one.
        shape: (B, ...).

    Raises:
        AssertionError: bits that differ, or do not.

    >>> import diffcore as dc
    >>> check_deterministic(lambda z, log_snr: 0.5 * z, dc.samplers.ancestral(dc.schedules.Cosine(), 4))
    """
    loop = Loop(like, backend)
    first, again, other = (loop.sample(denoise, plan, loop.start(plan, shape, seed), prediction) for seed in (7, 7, 8))
    _same_bits(f"{plan.sampler}: a run is a function of its seed", again, first)
    if first.shape and math.prod(first.shape):
        fail_unless(not np.array_equal(host(first), host(other)), plan.sampler, "two seeds gave one result")


def check_batch_equals_singles(
    denoise: Denoise,
    plan: Plan,
    like: Array | None = None,
    *,
    shape: Sequence[int] = (3, 5),
    seeds: Sequence[int] | None = None,
    prediction: str = "x",
    backend: Backend | None = None,
) -> None:
    """Check that sample i does not know of its batch: a batch of B is B singles, bit for bit.

    Args:
        denoise, plan, like, shape, prediction, backend: as for `check_deterministic`.
        seeds: one per sample; None takes both ends of the range.

    Raises:
        AssertionError: naming the sample and how far it moved.

    >>> import diffcore as dc
    >>> check_batch_equals_singles(lambda z, log_snr: 0.5 * z, dc.samplers.ancestral(dc.schedules.Cosine(), 4))
    """
    loop = Loop(like, backend)
    given = (
        [(2**64 - 1, 0, 2**63, 5)[i % 4] + (i // 4) for i in range(1, shape[0] + 1)] if seeds is None else list(seeds)
    )
    batch = loop.sample(denoise, plan, loop.start(plan, shape, given), prediction)
    for i, seed in enumerate(given):
        alone = loop.sample(denoise, plan, loop.start(plan, (1, *shape[1:]), [seed]), prediction)
        _same_bits(f"{plan.sampler}: sample {i} alone and in a batch of {shape[0]}", alone[0, ...], batch[i, ...])


def check_interleaved(
    denoise: Denoise,
    plans: Sequence[Plan],
    like: Array | None = None,
    *,
    shape: Sequence[int] = (2, 5),
    prediction: str = "x",
    backend: Backend | None = None,
) -> None:
    """Check that nothing is kept outside the state: runs whose stages are taken in turn equal runs one after another.

    Args:
        denoise, like, shape, prediction, backend: as for `check_deterministic`.
        plans: two or more.

    Raises:
        AssertionError: naming the plan and how far it moved.

    >>> import diffcore as dc
    >>> schedule = dc.schedules.Cosine()
    >>> import diffcore as dc
    >>> check_interleaved(lambda z, l: 0.5 * z, [dc.samplers.unipc(schedule, 4), dc.samplers.heun(schedule, 3)])
    """
    loop = Loop(like, backend)
    together = [loop.start(plan, shape, seed) for seed, plan in enumerate(plans)]
    for stage in range(max(len(plan) for plan in plans)):
        for which, plan in enumerate(plans):
            if stage < len(plan):
                y = denoise(
                    together[which].z, put(np.broadcast_to(plan.log_snr[stage], (shape[0],)), together[which].z)
                )
                together[which] = loop.step(plan, together[which], y, prediction)
    for seed, plan in enumerate(plans):
        state = loop.start(plan, shape, seed)
        for log_snr in plan.log_snr:
            y = denoise(state.z, put(np.broadcast_to(log_snr, (shape[0],)), state.z))
            state = loop.step(plan, state, y, prediction)
        _same_bits(f"{plan.sampler}: interleaved and in sequence", together[seed].z, state.z)


def check_resumed(
    denoise: Denoise,
    plan: Plan,
    like: Array | None = None,
    *,
    shape: Sequence[int] = (2, 5),
    prediction: str = "x",
    backend: Backend | None = None,
    stages: Sequence[int] | None = None,
) -> None:
    """Check that a run resumed after any stage, its state carried through host memory, is the straight run bit for bit.

    Args:
        denoise, plan, like, shape, prediction, backend: as for `check_deterministic`.
        stages: after which to stop and go on; None is all of them.

    Raises:
        AssertionError: naming the stage and how far the end moved.

    >>> import diffcore as dc
    >>> check_resumed(lambda z, log_snr: 0.5 * z, dc.samplers.unipc(dc.schedules.Cosine(), 4))
    """
    loop = Loop(like, backend)
    states: list[State] = []
    straight = loop.sample(denoise, plan, loop.start(plan, shape, 3), prediction, callback=states.append)
    fail_unless(len(states) == len(plan), plan.sampler, f"{len(states)} callbacks for {len(plan)} stages")
    for stage in range(len(plan) - 1) if stages is None else stages:
        kept = states[stage]
        carry = lambda array: None if array is None else put(host(array), straight)  # noqa: E731
        estimates = tuple(carry(estimate) for estimate in kept.estimates)
        state = kept._replace(z=carry(kept.z), saved=carry(kept.saved), estimates=estimates)
        again = loop.sample(denoise, plan, state, prediction)
        _same_bits(f"{plan.sampler}: resumed after stage {stage} and straight", again, straight)


def _same_bits(identity: str, found: Array, want: Array) -> None:
    fail_unless(found.dtype == want.dtype, identity, f"dtype {found.dtype}, but should be {want.dtype}")
    got, truth = host(found), host(want)
    fail_unless(got.shape == truth.shape, identity, f"shape {got.shape}, but should be {truth.shape}")
    if not np.array_equal(got, truth):
        apart = np.abs(got - truth)
        raise AssertionError(
            f"{identity}: {int(np.sum(got != truth))} of {got.size} differ, by up to {apart.max():.3g}"
        )
