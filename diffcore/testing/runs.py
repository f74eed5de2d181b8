"""The identities of whole runs, bit for bit: on any library, with any denoiser, sampler or backend.

A check raises AssertionError and says which identity, where, and by how much. `denoise` is any callable
(z, log_snr) -> prediction; what it says is given by `prediction`. With `backend` a run goes through that backend instead
of the one that serves `like`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence

import numpy as np

import diffcore as dc
from diffcore import _check, levels, noise
from diffcore._array import Array
from diffcore.backends import Backend
from diffcore.plan import Plan
from diffcore.state import State
from diffcore.testing._arrays import compare, epsilon, fail_unless, host, put
from diffcore.testing._loop import Denoise, Loop
from diffcore.testing._naming import plan_of

__all__ = [
    "check_batch_equals_singles",
    "check_deterministic",
    "check_interleaved",
    "check_last_step_returns_x",
    "check_resumed",
    "check_run",
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

    >>> check_last_step_returns_x(dc.samplers.ancestral(dc.schedules.Cosine(), 4, gamma=1.0))
    """
    plan_of("testing.check_last_step_returns_x", plan)
    fail_unless(
        np.all(plan.next_log_snr[-1] == np.inf),
        plan.sampler,
        f"ends at log_snr = {plan.next_log_snr[-1]}, but must end on clean data",
    )
    last = np.zeros(plan.update.shape[-1])
    last[plan.form.x] = 1.0
    compare(f"{plan.sampler}: the last step returns x-hat", plan.update[-1, ..., 0, :], last, 0.0)
    loop = Loop(like, backend)
    predicted: list[Array] = []
    shape = (*(plan.lead or (2,)), 5)
    target = put(np.linspace(-0.9, 1.1, math.prod(shape)).reshape(shape), loop.like)

    def denoise(z: Array, _: Array) -> Array:
        predicted.append(target + 0.25 * z)
        return predicted[-1]

    state = loop.start(plan, shape, 0)
    for log_snr in plan.log_snr:
        state = loop.step(plan, state, denoise(state.z, log_snr), "x")
    _same_bits(f"{plan.sampler}: the last step returns x-hat", state.z, predicted[-1])


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

    >>> check_deterministic(lambda z, log_snr: 0.5 * z, dc.samplers.ancestral(dc.schedules.Cosine(), 4))
    """
    plan_of("testing.check_deterministic", plan)
    loop = Loop(like, backend)
    first, again, other = (loop.sample(denoise, plan, loop.start(plan, shape, seed), prediction) for seed in (7, 7, 8))
    _same_bits(f"{plan.sampler}: a run is a function of its seed", again, first)
    if first.shape and math.prod(first.shape):
        fail_unless(not np.array_equal(host(first), host(other)), plan.sampler, "two seeds gave the same result")


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

    >>> check_batch_equals_singles(lambda z, log_snr: 0.5 * z, dc.samplers.ancestral(dc.schedules.Cosine(), 4))
    """
    plan_of("testing.check_batch_equals_singles", plan)
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

    >>> schedule = dc.schedules.Cosine()
    >>> check_interleaved(lambda z, l: 0.5 * z, [dc.samplers.unipc(schedule, 4), dc.samplers.heun(schedule, 3)])
    """
    for plan in plans:
        plan_of("testing.check_interleaved", plan, "plans")
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

    >>> check_resumed(lambda z, log_snr: 0.5 * z, dc.samplers.unipc(dc.schedules.Cosine(), 4))
    """
    plan_of("testing.check_resumed", plan)
    loop = Loop(like, backend)
    states: list[State] = []
    straight = loop.sample(denoise, plan, loop.start(plan, shape, 3), prediction, callback=states.append)
    fail_unless(len(states) == len(plan), plan.sampler, f"{len(states)} callbacks for {len(plan)} stages")
    for stage in range(len(plan) - 1) if stages is None else stages:
        kept = states[stage]
        carry = lambda array: None if array is None else put(host(array), straight)  # noqa: E731
        state = kept._replace(z=carry(kept.z), memory=tuple(map(carry, kept.memory)), x=carry(kept.x))
        again = loop.sample(denoise, plan, state, prediction)
        _same_bits(f"{plan.sampler}: resumed after stage {stage} and straight", again, straight)


def check_run(
    plan: Plan,
    run: Callable[..., Array] = dc.sample,
    like: Array | None = None,
    *,
    shape: Sequence[int] = (3, 4, 5),
    transform_x: Callable[[Array], Array] | None = None,
    rounding: float = 64.0,
) -> float:
    """Check a loop: that a run is what the plan's table says, worked out stage by stage in float64 on NumPy.

    The denoiser predicts v from z, the level and the place in the sample. This detects a loop that draws one noise
    for two stages or for two samples, in another order, that reads another level, or that forgets what x-hat became.

    Args:
        plan: with levels of shape ().
        run: called as `diffcore.sample` is: (denoise, plan, z, seed=, prediction=, transform_x=) -> the end of the run;
            the noise of stage k is draw k + 1.
        like: a floating array of the library, dtype and device; NumPy float64 without one.
        shape: (B, ...).
        transform_x: a clip or another function of x-hat.
        rounding: the tolerance, in units of the dtype's rounding of the largest number.

    Returns:
        How much of the tolerance was used up, in [0, 1].

    Raises:
        AssertionError: naming the element, and how far off it is.

    >>> check_run(dc.samplers.unipc(dc.schedules.Cosine(), 4), transform_x=dc.guidance.clip()) <= 1.0
    True
    """
    plan_of("testing.check_run", plan)
    if plan.lead or plan.second:
        raise ValueError(
            f"testing.check_run: `plan` must have levels of shape () and no second estimate, got {plan.lead} and {plan.second!r}"
        )
    like = np.zeros(()) if like is None else like
    seed = [(3, 2**64 - 1, 2**33 + 5)[i % 3] + i // 3 for i in range(shape[0])]
    place = np.linspace(-1.0, 1.0, math.prod(shape[1:])).reshape(shape[1:])
    begin = put(plan.start.sigma * noise.normal(seed, 0, shape, dtype=np.float64), like)

    def says(z: Array, log_snr: Array) -> Array:
        of_level = 0.5 / (1.0 + 0.1 * log_snr * log_snr)
        return put(place, z) - of_level.reshape(-1, *(1,) * (len(shape) - 1)) * z

    z = host(begin)
    memory = [np.zeros(shape)] * plan.memory
    largest = np.abs(z).max(initial=0.0)
    for k, log_snr in enumerate(plan.log_snr.tolist()):
        at = levels.level(np.float64(log_snr), plan.scaling)
        v = says(z, np.full(shape[0], log_snr))
        x = (at.alpha * z - at.sigma * v) / (at.alpha**2 + at.sigma**2)
        x = x if transform_x is None else np.asarray(transform_x(x))
        eps = noise.normal(seed, k + 1, shape, dtype=np.float64)
        terms = [z, *memory, eps, x]
        sizes = np.array([np.abs(term).max(initial=0.0) for term in terms])
        largest = max(largest, float((np.abs(plan.update[k]) @ sizes).max()))  # before what cancels
        z, *memory = (sum(c * term for c, term in zip(row, terms, strict=True)) for row in plan.update[k].tolist())
    try:
        inspect.signature(run).bind(says, plan, begin, seed=seed, prediction="v", transform_x=transform_x)
    except TypeError as error:
        must = "take (denoise, plan, z, *, seed, prediction, transform_x), as diffcore.sample does"
        raise _check.error(TypeError, "testing.check_run", "run", must, run, str(error)) from None
    except ValueError:  # a compiled function may not tell
        pass
    found = run(says, plan, begin, seed=seed, prediction="v", transform_x=transform_x)
    identity = f"a run of {plan.sampler} is what its table says"
    fail_unless(found.dtype == begin.dtype, identity, f"dtype {found.dtype}, but should be {begin.dtype}")
    fail_unless(
        tuple(found.shape) == tuple(shape), identity, f"shape {tuple(found.shape)}, but should be {tuple(shape)}"
    )
    return compare(identity, host(found), z, rounding * epsilon(begin) * (1.0 + largest), where="element ")


def _same_bits(identity: str, found: Array, want: Array) -> None:
    fail_unless(found.dtype == want.dtype, identity, f"dtype {found.dtype}, but should be {want.dtype}")
    got, truth = host(found), host(want)
    fail_unless(got.shape == truth.shape, identity, f"shape {got.shape}, but should be {truth.shape}")
    if not np.array_equal(got, truth):
        apart = np.abs(got - truth)
        raise AssertionError(
            f"{identity}: {int(np.sum(got != truth))} of {got.size} differ, by up to {apart.max():.3g}"
        )
