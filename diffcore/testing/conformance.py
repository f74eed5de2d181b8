"""The battery for a backend: everything that `diffcore.backends.Backend` promises, on arrays of its library.

    from diffcore import testing
    testing.check_backend(my_backend, like=my_library.zeros(1))

Each part is a function of its own, so that a failure can be looked into alone; all raise AssertionError.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

import diffcore as dc
from diffcore import _array, _check, noise, stage
from diffcore._array import Array
from diffcore._dispatch import backend_of
from diffcore.backends import Backend
from diffcore.plan import Plan
from diffcore.state import State
from diffcore.testing import runs
from diffcore.testing._arrays import compare, epsilon, fail_unless, host, put
from diffcore.testing._loop import Loop
from diffcore.testing._naming import naming, promise
from diffcore.testing.noise import check_noise

__all__ = [
    "check_advance",
    "check_agreement",
    "check_backend",
    "check_branch",
    "check_compile",
    "check_contract",
    "check_gradient",
    "check_lead",
    "check_type",
    "plans",
]


@cache
def _plans(steps: int) -> Mapping[str, Plan]:
    vp = dc.schedules.Cosine(log_snr_min=-8.0, log_snr_max=8.0)
    flow = dc.schedules.truncate(dc.schedules.Flow(), -8.0, 8.0)
    ve = dc.schedules.Karras(sigma_min=0.02, sigma_max=20.0)
    found: dict[str, Plan] = {}
    for name, row in dc.samplers.table().items():
        schedule = (vp, flow, ve)[len(found) % 3]
        grid = dc.grids.uniform_log_snr(schedule, steps, clean=True)
        made = [row.make(schedule, grid=grid, **variant.settings) for variant in row.variants]
        for plan in sorted(made, key=lambda plan: (plan.memory, plan.stochastic), reverse=True):
            if (plan.form, plan.stochastic) not in [(other.form, other.stochastic) for other in found.values()]:
                found[name] = plan
                break
    return found


def plans(steps: int = 4) -> dict[str, Plan]:
    """Return the plans that the battery runs: samplers of the table, under the three scalings in turn, of each the variant that
    remembers most, where it is of a form, or of a form with noise, that none before it has.

    >>> sorted(plans())[:3]
    ['ancestral', 'ddim', 'dpm2']
    """
    return dict(_plans(steps))


def _bounded(z: Array, log_snr: Array) -> Array:
    """Predict v, or anything: linear in z, so that no library rounds it another way."""
    del log_snr
    return -0.5 * z


def check_backend(backend: Backend | None = None, like: Array | None = None, *, half: bool = True) -> None:
    r"""Run all conformance tests on a backend: interface, noise, every kind of plan, levels, dtypes, compiler, gradients.

    Args:
        backend: an instance; None is the one that serves `like`, through `diffcore.sample` and its kin.
        like: a float32 or float64 array of the library, on the device to check; NumPy float32 without one.
        half: check float16 and bfloat16 too, where the library has them.

    Raises:
        AssertionError: naming the method of the backend and the promise that is not kept, where, and by how much; also where a
            method raises, with what the contract says of it.

    >>> check_backend(like=np.zeros(1, np.float32))
    """
    array = np.zeros(1, dtype=np.float32) if like is None else put(np.zeros(1), like)
    _array.check_floating("testing.check_backend", like=array)
    try:
        _check_all(backend_of(array) if backend is None else backend, backend, array, half)
    except AssertionError as error:
        if like is None and backend is not None:
            error.add_note(
                "testing.check_backend: without `like` the arrays are NumPy's; give one of the backend's library"
            )
        raise


def _check_all(served: Backend, backend: Backend | None, like: Array, half: bool) -> None:
    check_contract(served)
    check_noise(like, backend=served)
    with naming(served, "run"):
        check_type(backend, like)
        check_agreement(backend, like)
    with naming(served, "advance"):
        check_advance(served, like)
    with naming(served, "run"):
        check_lead(backend, like)
        _check_runs(backend, like)
    with naming(served, "cond"):
        check_branch(served, like)
    with naming(served, "gradient"):
        check_gradient(served, like)
    with naming(served, "compile"):
        check_compile(served, like)
    xp = _array.namespace("testing.check_backend", like=like)
    for kind in ("bfloat16", "float16") if half else ():
        dtype = getattr(xp, kind, None)
        if dtype is not None:
            narrow = put(np.zeros(1), like, dtype=dtype)
            check_noise(narrow, backend=served, size=40, draws=[(1, 0)])
            with naming(served, "run", kind):
                check_agreement(backend, narrow, names=("ancestral", "unipc"))


def _check_runs(backend: Backend | None, like: Array) -> None:
    """Check what `runs` has, on a few plans."""
    for plan in plans().values():
        runs.check_last_step_returns_x(plan, like=like, backend=backend)
    for name in ("ancestral", "unipc", "heun"):
        settings: dict[str, Any] = {"prediction": "v", "backend": backend}
        runs.check_deterministic(_bounded, plans()[name], like, **settings)
        runs.check_batch_equals_singles(_bounded, plans()[name], like, **settings, shape=(2, 5))
        runs.check_resumed(_bounded, plans()[name], like, **settings, stages=(0, 2))
    runs.check_interleaved(_bounded, list(plans().values())[:3], like, prediction="v", backend=backend)


def check_contract(backend: Backend) -> None:
    """Check that a backend has every member of the contract, and takes the arguments that the loop passes."""
    members = ("name", "keys", "normal", "bits", "index", "advance", "run", "cond", "repeat", "gradient")
    instance = not isinstance(backend, type)
    fail_unless(instance, "contract", f"`backend` must be an instance, got {_check.shown(backend)}; call it")
    for name in (*members, "jvp", "compile", "trace"):
        what = "" if name == "name" or hasattr(backend, name) else f", which must be {promise(name)}"
        fail_unless(hasattr(backend, name), "contract", f"{type(backend).__name__} has no {name!r}{what}")
    fail_unless(isinstance(backend, Backend), "contract", f"{type(backend).__name__} is not a Backend")
    fail_unless(
        isinstance(backend.name, str) and backend.name, "contract", f"`name` must be a text, got {backend.name!r}"
    )
    for name in ("keys", "normal", "bits", "index", "advance", "run"):
        wanted = inspect.signature(getattr(Backend, name)).parameters
        try:
            takes = inspect.signature(getattr(backend, name)).parameters
        except ValueError:  # a compiled function may not tell
            continue
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
            continue
        for keyword, parameter in wanted.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                fail_unless(
                    keyword in takes,
                    "contract",
                    f"{type(backend).__name__}.{name} takes no `{keyword}`: {promise(name)}",
                )


def check_type(backend: Backend | None, like: Array) -> None:
    """Check that library, dtype, device and shape go through a run unchanged, an empty frame axis included."""
    loop, plan = Loop(like, backend), plans()["ancestral"]
    xp = _array.namespace("testing.check_type", like=like)
    for shape in ((1, 3, 5, 1), (3,), (2, 0, 4)):
        state = loop.start(plan, shape, 1)
        end = loop.sample(_bounded, plan, state, "v")
        for what, array in (("the start", state.z), ("a run", end)):
            name = f"type of {what} of shape {shape}"
            fail_unless(_array.library(array) is xp, name, f"library {_array.name(_array.library(array))}")
            fail_unless(array.dtype == like.dtype, name, f"dtype {array.dtype}, but should be {like.dtype}")
            fail_unless(tuple(array.shape) == shape, name, f"shape {tuple(array.shape)}")
            same = _array.device(array) == _array.device(like)
            fail_unless(same, name, f"device {_array.device(array)}, but should be {_array.device(like)}")


def check_agreement(
    backend: Backend | None, like: Array, *, names: Sequence[str] | None = None, rounding: float = 32.0
) -> float:
    """Check that every plan and prediction gives what NumPy gives in float64, up to the rounding of `like`.

    Args:
        backend: an instance, or None for the one that serves `like`.
        like: gives library, dtype and device.
        names: of `plans`; None is all.
        rounding: the tolerance, in units of the dtype's rounding of the largest number.

    Returns:
        How much of the tolerance was used up, in [0, 1].

    Raises:
        AssertionError: naming plan and prediction.
    """
    loop, worst = Loop(like, backend), 0.0
    for name, plan in plans().items():
        if names is not None and name not in names:
            continue
        truth = _by_float64(plan, "v", like)
        end = host(loop.sample(_bounded, plan, loop.start(plan, (2, 5), 11), "v"))
        size = np.abs(truth).max()
        identity = f"{name} on {_array.name(_array.library(like))} and on NumPy"
        worst = max(worst, compare(identity, end, truth, rounding * epsilon(like) * size))
    for prediction in sorted(dc.predictions.table()):
        plan = plans()["unipc"]
        truth = _by_float64(plan, prediction, like)
        end = host(loop.sample(_bounded, plan, loop.start(plan, (2, 5), 11), prediction))
        allowed = rounding * epsilon(like) * np.abs(truth).max()
        worst = max(worst, compare(f"unipc of {prediction!r} and on NumPy", end, truth, allowed))
    return worst


def _by_float64(plan: Plan, prediction: str, like: Array) -> Any:
    """Return the run in float64 on NumPy, whose start is rounded as that of `like` is."""
    state = dc.start(plan, shape=(2, 5), like=np.zeros(1), seed=11)
    if epsilon(like) > 1e-4:
        state = state._replace(z=host(put(state.z, like)))
    return dc.sample(_bounded, plan, state, prediction=prediction)


def check_advance(backend: Backend, like: Array, *, rounding: float = 16.0) -> float:
    """Check that `advance` is `diffcore.stage.advance`, the plain function, for coefficients as floats and as arrays."""
    worst = 0.0
    for name, plan in plans().items():
        state = Loop(like, backend).start(plan, (2, 5), 4)
        table, form = plan.coefficients("v"), plan.form
        for k, noisy in enumerate(plan.noisy):
            y = _bounded(state.z, state.z)
            given: list[Any] = [table[k].tolist(), _array.table_for(table[k], state.z)]
            drawn = stage.drawn(backend, state, None) if noisy else None
            plain = stage.advance(form, state, y, given[0], drawn, None)
            size = 1.0 + np.abs(host(plain.z)).max() + np.abs(table[k]).max() * np.abs(host(state.z)).max()
            for row in given:
                fused = backend.advance(form, state, y, row, None, stochastic=noisy, transform_x=None)
                reached = int(fused.index), int(fused.draw)
                fail_unless(reached == (k + 1, k + 2), "advance", f"index and draw {reached} after stage {k}")
                pairs = [(fused.z, plain.z), (fused.x, plain.x), *zip(fused.memory, plain.memory, strict=True)]
                for got, want in pairs:
                    identity = f"advance of {name}, stage {k}"
                    worst = max(worst, compare(identity, host(got), host(want), rounding * epsilon(like) * size))
            moved = backend.advance(form, state, y, given[0], drawn, stochastic=noisy, transform_x=lambda x: 0.0 * x)
            want = stage.advance(form, state, y, given[0], drawn, lambda x: 0.0 * x)
            allowed = rounding * epsilon(like) * size
            compare(f"advance of {name} with transform_x", host(moved.z), host(want.z), allowed)
            state = plain._replace(index=backend.index(k + 1), draw=backend.index(k + 2))
    return worst


def check_lead(backend: Backend | None, like: Array, *, rounding: float = 64.0) -> float:
    """Check that levels of shape (B,) and (B, T) give as many independent runs, each with its own levels in the denoiser."""
    loop, schedule, worst = Loop(like, backend), dc.schedules.Cosine(log_snr_min=-8.0, log_snr_max=8.0), 0.0
    for lead in ((2,), (2, 3)):
        start = np.linspace(1.0, 0.5, int(np.prod(lead))).reshape(lead)
        together = dc.samplers.ancestral(schedule, grid=dc.grids.uniform(schedule, 3, start=start), gamma=0.1)
        seen: list[tuple[int, ...]] = []

        def denoise(z: Array, log_snr: Array, seen: list[tuple[int, ...]] = seen) -> Array:
            seen.append(tuple(log_snr.shape))
            return -0.5 * z

        found = host(loop.sample(denoise, together, loop.start(together, (2, 3, 4), 5), "v"))
        fail_unless(set(seen) == {lead}, f"levels of shape {lead}", f"the denoiser got log_snr of shape {set(seen)}")
        for where in np.ndindex(lead):
            alone = dc.samplers.ancestral(schedule, grid=dc.grids.uniform(schedule, 3, start=start[where]), gamma=0.1)
            want = host(loop.sample(_bounded, alone, loop.start(alone, (2, 3, 4), 5), "v"))[where]
            allowed = rounding * epsilon(like) * (1.0 + np.abs(want).max())
            worst = max(worst, compare(f"levels of shape {lead} at {where}", found[where], want, allowed))
    return worst


def check_branch(backend: Backend, like: Array) -> None:
    """Check that `cond` takes the branch of a 0-d boolean, and `repeat` repeats."""
    xp = _array.namespace("testing.check_branch", like=like)
    z = put([1.0, 2.0], like)
    for value in (True, False):
        predicate = xp.asarray(value, device=_array.device(like))
        got = backend.cond(predicate, lambda z: z + 1.0, lambda z: z - 1.0, z)
        compare(f"cond({value})", host(got), [2.0, 3.0] if value else [0.0, 1.0], 0.0)
    compare("repeat", host(backend.repeat(3, lambda z: z + z, z)), [8.0, 16.0], 0.0)


def check_gradient(backend: Backend, like: Array) -> bool:
    """Check that `gradient` gives a value and its pullback and `jvp` its derivative, or a TypeError that names libraries that can.

    Returns:
        Whether the library has gradients.
    """
    z = put([1.0, -2.0, 3.0], like)
    try:
        value, pullback = backend.gradient(lambda z: z * z * z, z)
    except TypeError as error:
        text = str(error)
        helpful = backend.name in text and ("torch" in text or "JAX" in text)
        fail_unless(helpful, "gradient", f"the TypeError names neither the library nor a way out: {text!r}")
        return False
    compare("gradient: value", host(value), [1.0, -8.0, 27.0], 1e-5)
    cotangent = put([1.0, 10.0, 0.0], like)
    compare("gradient: pullback", host(pullback(cotangent)), [3.0, 120.0, 0.0], 1e-4)
    product, change = backend.jvp(lambda z, w: z * w, (z, z + 1.0), (cotangent, z))
    compare("jvp: value", host(product), [2.0, 2.0, 12.0], 1e-5)
    compare("jvp: derivative", host(change), [3.0, -6.0, 9.0], 1e-4)
    return True


def check_compile(backend: Backend, like: Array, *, rounding: float = 64.0) -> None:
    """Check that a stage can be compiled, without its values being looked at, and is the same stage then."""
    plan = plans()["ancestral"]
    table = _array.table_for(plan.coefficients("v"), like)

    def one(z: Array, y: Array, row: Array, index: Any, words: Array) -> Array:
        state = State(z, (), None, index, index + 1, words)
        return backend.advance(plan.form, state, y, row, None, stochastic=True, transform_x=None).z

    compiled: Callable[..., Array] = backend.compile(one)
    z = Loop(like, backend).start(plan, (2, 5), 9).z
    words = backend.keys(noise.keys(9, 2), like)
    for k in range(len(plan) - 1):
        given = (z, _bounded(z, z), table[k, ...], backend.index(k), words)
        want, got = one(*given), compiled(*given)
        fail_unless(got.dtype == want.dtype, f"compile: stage {k}", f"dtype {got.dtype}, but should be {want.dtype}")
        allowed = rounding * epsilon(like) * (1.0 + np.abs(host(want)).max())
        compare(f"compile: stage {k}", host(got), host(want), allowed)
        z = want
