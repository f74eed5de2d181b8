"""The kernel of Pallas for JAX on CUDA, interpreted: a stage that makes its noise is the plain function's, whatever the plan."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("jax.experimental.pallas.triton", exc_type=ImportError)
import diffcore as dc  # noqa: E402
from diffcore.backends import jax_backend, jax_kernel, jax_pallas  # noqa: E402
from diffcore.plan import Form  # noqa: E402

jnp = jax.numpy
pytestmark = pytest.mark.jax

COSINE = dc.schedules.Cosine()
ROUNDING = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
SHAPE = (2, 3, 32, 32)
"""Three tiles of 1,024 numbers a sample."""


@pytest.fixture(autouse=True)
def _no_kernel_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let JAX be as on a GPU: without the kernel of the CPU, and with nothing kept from elsewhere."""
    monkeypatch.setattr(jax_kernel, "serves", lambda *_: False)
    _forget()
    yield
    _forget()


def _forget() -> None:
    jax_backend._kept.cache_clear()
    jax.clear_caches()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let the kernel serve, and return a list that grows by what each trace of it is called with."""
    found: list[Any] = []
    real = jax_pallas.call

    def spy(plain: Any, kind: Any, read: Any) -> Any:
        found.append((kind, read))
        return real(plain, kind, read)

    monkeypatch.setattr(jax_pallas, "call", spy)
    monkeypatch.setattr(jax_pallas, "works", lambda: True)
    monkeypatch.setattr(jax_pallas, "INTERPRETED", True)
    return found


def both(run: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return what a run makes by the kernel, then by the plain function."""
    _forget()
    found = run()
    with monkeypatch.context() as patch:
        patch.setattr(jax_pallas, "works", lambda: False)
        _forget()
        return found, run()


def close(found: Any, want: Any, dtype: str) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        one, other = (np.asarray(part, np.float64) for part in (one, other))
        np.testing.assert_allclose(one, other, rtol=0, atol=ROUNDING[dtype] * max(1.0, np.abs(other).max()))


def arrays(dtype: str, count: int = 2, shape: tuple[int, ...] = SHAPE) -> list[Any]:
    random = np.random.default_rng(len(dtype))
    return [jnp.asarray(random.normal(size=shape), dtype) for _ in range(count)]


KINDS: dict[str, dict[str, Any]] = {
    "ancestral": {},
    "dpm_solver_pp_sde": {"transform_x": None},
    "er_sde, thresholds of one's own": {"transform_x": dc.guidance.dynamic_threshold(0.9)},
    "ddim, a row for each sample": {"eta": 0.5, "levels": 2},
}


CASES = [(name, "float32") for name in KINDS]
CASES += [
    (name, dtype) for name in ("ancestral", "er_sde, thresholds of one's own") for dtype in ("float16", "bfloat16")
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_run_is_that_of_the_plain_function(
    name: str, dtype: str, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"transform_x": dc.guidance.clip(), **KINDS[name]}
    grid: Any = np.linspace(-6.0, 4.0, 4)
    if settings.pop("levels", None):
        grid = np.stack([grid, grid - 0.5], axis=-1)
    made = {key: settings.pop(key) for key in ("eta",) if key in settings}
    plan = dc.samplers.make(name.partition(",")[0], COSINE, grid=grid, **made)
    z, y = arrays(dtype)
    start = dc.start(plan, z, seed=[5, 2**63])

    def run() -> Any:
        return dc.sample(lambda z, _: y + z, plan, start, prediction="eps", **settings)

    found, want = both(run, monkeypatch)
    assert calls
    close(found, want, dtype)


def test_a_callback_and_a_constraint_see_the_same_states(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dc.samplers.make("er_sde", COSINE, 3)
    z, y = arrays("float32")
    mask = np.arange(32) < 16
    start = dc.start(plan, z, seed=5)

    def run() -> Any:
        seen: list[Any] = []
        held = dc.conditioning.replacement(y, mask)
        end = dc.sample(lambda z, _: y, plan, start, prediction="eps", callback=seen.append, constraint=held)
        jax.effects_barrier()
        return end, [(state.z, state.x) for state in seen]

    found, want = both(run, monkeypatch)
    assert calls
    close(found, want, "float32")


def test_by_hand_traced_and_mapped(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dc.samplers.make("er_sde", COSINE, 3)
    z, y = arrays("float32", shape=(3, *SHAPE))

    def step(z: Any, y: Any) -> Any:
        state = dc.start(plan, z, seed=5)
        for _ in range(2):
            state = dc.step(plan, state, y, prediction="eps")
        return state.z, state.x

    for run in (lambda: step(z[0], y[0]), lambda: jax.jit(jax.vmap(step))(z, y)):
        calls.clear()
        found, want = both(run, monkeypatch)
        assert calls
        close(found, want, "float32")


def test_derivatives_are_those_of_the_plain_function(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dc.samplers.make("ancestral", COSINE, 2)
    z, y = arrays("float32")

    def loss(z: Any, y: Any) -> Any:
        return (dc.sample(lambda z, _: y * z, plan, dc.start(plan, z, seed=5), prediction="eps") ** 2).sum()

    found, want = both(lambda: jax.grad(loss, (0, 1))(z, y), monkeypatch)
    assert calls
    close(found, want, "float32")


def test_the_kernel_takes_what_it_says(calls: list[Any]) -> None:
    z, y = arrays("float32")
    row, keys = jnp.zeros(5), jnp.zeros((2, 2), jnp.uint32)
    read = jax_kernel.Stage(z, (), y, None, None, None, keys, row, 0, 0)
    cut = z[..., :-1]
    given = {
        "noise it makes itself": (read, True),
        "none": (read._replace(keys=None), False),
        "a row for each sample": (read._replace(row=jnp.zeros((2, 5))), True),
        "for each frame": (read._replace(row=jnp.zeros((2, 3, 5))), False),
        "parts of tiles": (read._replace(z=cut, y=cut), False),
        "another dtype": (read._replace(y=y.astype(jnp.bfloat16)), False),
        "memory of another dtype": (read._replace(memory=(y.astype(jnp.float16),)), False),
        "integers": (read._replace(z=z.astype(int), y=y.astype(int)), False),
        "numbers without samples": (read._replace(z=z.ravel(), y=y.ravel()), False),
    }
    assert {name: jax_pallas.takes(one) for name, (one, _) in given.items()} == {
        n: want for n, (_, want) in given.items()
    }


def test_a_mesh_or_another_default_device_leaves_the_stage_to_xla(calls: list[Any]) -> None:
    z, y = arrays("float32")
    keys, row = jnp.zeros((2, 2), jnp.uint32), jnp.zeros(5)
    auto, explicit = (
        jax.make_mesh((1,), ("x",), (kind,), devices=jax.devices()[:1])
        for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit)
    )
    found: list[bool] = []

    def seen(z: Any, y: Any) -> Any:
        found.append(jax_pallas.takes(jax_kernel.Stage(z, (), y, None, None, None, keys, row, 0, 0)))
        return z

    spec = jax.sharding.PartitionSpec("x")
    jax.jit(jax.shard_map(seen, mesh=auto, in_specs=(spec, spec), out_specs=spec)).lower(z, y)
    with jax.set_mesh(explicit):
        jax.jit(seen).lower(z, y)
    jax.jit(seen).lower(z, y)
    assert found == [False, False, True]


def test_a_stage_is_tried_first_and_one_that_is_wrong_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_pallas, "INTERPRETED", True)
    jax_pallas._try()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax_pallas.works.cache_clear()
    try:
        assert jax.jit(lambda x: x + jax_pallas.works())(0) == 1  # from within a trace
        jax_pallas.works.cache_clear()
        monkeypatch.setattr(jax_pallas, "_multiply", lambda constant, words: (words, words))
        with pytest.warns(RuntimeWarning, match="XLA's own operations serve"):
            assert not jax_pallas.works()
        jax_pallas.works.cache_clear()
        monkeypatch.setenv("DIFFCORE_PALLAS", "0")
        assert not jax_pallas.works()  # without a word
    finally:
        jax_pallas.works.cache_clear()


@pytest.mark.gpu
def test_on_a_gpu_the_kernel_serves_and_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    if jax.default_backend() != "gpu" or jax.device_count() > 1:
        pytest.skip("needs one GPU that JAX sees")
    assert jax_pallas.works()
    for dtype in ROUNDING:
        z, y = arrays(dtype, shape=(2, 16, 64, 64))
        plan = dc.samplers.make("ancestral", COSINE, 3)
        start = dc.start(plan, z, seed=5)

        run = partial(dc.sample, lambda z, _, y=y: y + z, plan, start, prediction="eps")
        close(*both(run, monkeypatch), dtype)


FORMS = [Form(3, 1), Form(2, 0, False, "unguided"), Form(1, 0, True, "raw")]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_stage_of_any_form_is_the_plain_function(
    form: Form, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    z, y, other, x, *memory = arrays("float32", 4 + form.memory)
    row = jnp.asarray(np.random.default_rng(0).normal(size=form.width), jnp.float32)
    keys = jnp.asarray([[5, 0], [0, 1 << 31]], jnp.uint32)
    kind = jax_kernel.Kind(form, None, slots=False, over=False, tells=not form.keeps_x)
    given = jax_kernel.Stage(z, tuple(memory), y, None, other, None, keys, row, jnp.int32(9), 0)
    for read in (given, given._replace(x=x)):
        made, want = both(partial(jax_backend._stage, kind, None, read, False), monkeypatch)
        close(made, want, "float32")
    assert len(calls) == 2


def test_noise_is_that_of_every_library(calls: list[Any]) -> None:
    """A row that is 1 for the noise and 0 for all else."""
    z, y = arrays("float32")
    row, keys = jnp.zeros(5).at[3].set(1.0), jnp.asarray([[5, 0], [0, 1 << 31]], jnp.uint32)
    kind = jax_kernel.Kind(Form(), None, slots=False, over=False, tells=False)
    read = jax_kernel.Stage(z, (), y, None, None, None, keys, row, jnp.int32(9), 0)
    made = jax_backend._stage(kind, None, read, False)
    assert len(calls) == 1
    want = dc.noise.normal([5, 2**63], 9, SHAPE, like=np.zeros(1, np.float32))
    np.testing.assert_allclose(np.asarray(made.z), want, rtol=0, atol=3e-6)
