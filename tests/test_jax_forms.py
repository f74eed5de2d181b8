"""JAX on plans of every form that a kernel takes, and more: every state of a run, and of steps by hand, is NumPy's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_jax_kernel import CLIP, denoise, make, needs_kernel, start

import diffcore as dc
from diffcore import backends
from diffcore.plan import Form

jax.config.update("jax_platforms", "cpu")
pytestmark = pytest.mark.jax

WITH_MEMORY = ["dpm_solver_pp order=3", "unipc order=3", "dpm_solver_pp order=3 eta=1.0"]
FORMS = [
    Form(0, 0, False, "unguided"),
    Form(0, 0, False, "raw"),
    Form(1, 0, False, None),
    Form(1, 0, True, "raw"),
    Form(2, 1, False, "unguided"),
    Form(3, 0, False, None),
    Form(3, 2, True, "raw"),
    Form(4, 0, True, "unguided"),
    Form(4, 1, False, None),
    Form(4, 2, True, None),
    Form(8, 6, True, "unguided"),
]
every_form = pytest.mark.parametrize("form", FORMS, ids=str)


class Guided:
    """A denoiser that is asked for what it predicts without its guidance too."""

    def __call__(self, z: Any, log_snr: Any) -> Any:
        return -0.5 * z

    def with_unguided(self, z: Any, log_snr: Any) -> tuple[Any, Any]:
        return -0.5 * z, 0.25 * z


def made_up(form: Form, stages: int = 7) -> dc.Plan:
    """Return a plan of a form whose coefficients are nobody's, with noise in every row that is computed."""
    lead, columns = 1 + form.memory, form.columns
    update = np.random.default_rng(3).uniform(-0.4, 0.4, (stages, lead, columns))
    update[2, 1 : form.memory : 2] = 0.0
    if form.keeps_x:
        update[:, form.computed] = np.arange(columns) == form.x
    for row in range(1 + form.computed, lead):
        update[:, row] = np.arange(columns) == row - 1
    log_snr = np.linspace(-6.0, 6.0, stages + 1)
    plan = dc.Plan("made up", "vp", log_snr[:-1], log_snr[1:], update, second=form.second)
    assert plan.form == form
    return plan


def alike(found: dc.State, want: dc.State) -> None:
    for name, got, expected in zip(dc.State._fields, found, want, strict=True):
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=name)


@needs_kernel
@every_form
def test_so_is_a_plan_of_any_form(form: Form) -> None:
    """Every state of it, in a run and by hand: rows that move up are renamed, and noise comes into any row."""
    transform_x = (None, CLIP)[FORMS.index(form) % 2]
    plan, call, settings = made_up(form), Guided(), {"prediction": "v", "transform_x": transform_x}
    states: list[dc.State] = []
    clip = dc.sample(call, plan, jnp.asarray(start()), seed=3, callback=states.append, **settings)
    jax.effects_barrier()
    want, by_hand = dc.start(plan, start(), seed=3), dc.start(plan, jnp.asarray(start()), seed=3)
    for reached in states:
        y, other = call.with_unguided(want.z, None)
        unguided = other if form.second == "unguided" else None
        want = dc.step(plan, want, y, unguided=unguided, **settings)
        y, unguided = (None if part is None else jnp.asarray(part) for part in (y, unguided))
        by_hand = dc.step(plan, by_hand, y, unguided=unguided, **settings)
        alike(reached, want)
        alike(by_hand, want)
    assert len(states) == len(plan)
    np.testing.assert_array_equal(np.asarray(clip), want.z)
    kept = dc.sample(call, plan, jnp.asarray(start()), seed=3, compile=True, **settings)
    np.testing.assert_array_equal(np.asarray(kept), want.z)


@pytest.mark.parametrize(
    "form", [Form(3, 1, True, "raw"), Form(2, 0, False, "unguided"), Form(9, 2, True, None)], ids=str
)
def test_a_transform_of_ones_own_and_much_memory_go_another_way_to_the_same_end(form: Form) -> None:
    plan, call = made_up(form), Guided()
    settings: dict[str, Any] = {"seed": 3, "prediction": "v", "transform_x": lambda x: 0.5 * x * x}
    want = dc.sample(call, plan, start(), **settings)
    np.testing.assert_allclose(np.asarray(dc.sample(call, plan, jnp.asarray(start()), **settings)), want, atol=1e-5)
    slope = jax.jvp(lambda z: dc.sample(call, plan, z, **settings), (jnp.asarray(start()),), (jnp.ones_like(start()),))[
        1
    ]
    step = (dc.sample(call, plan, start(dtype=np.float64) + h, **settings) for h in (1e-5, -1e-5))
    np.testing.assert_allclose(np.asarray(slope), (next(step) - next(step)) / 2e-5, atol=2e-3)


@needs_kernel
@pytest.mark.parametrize("name", WITH_MEMORY)
def test_resumed_runs_are_the_run(name: str) -> None:
    """What is remembered comes out in order wherever a run begins and ends."""
    plan, settings = make(name, 6), {"prediction": "v", "transform_x": CLIP}
    states: list[dc.State] = []
    clip = dc.sample(denoise, plan, jnp.asarray(start()), seed=3, callback=states.append, **settings)
    jax.effects_barrier()
    run = backends.Run(denoise, plan, plan.coefficients("v"), CLIP)
    ended = backends.of(clip).run(run, dc.start(plan, jnp.asarray(start()), seed=3))
    alike(ended._replace(x=None), states[-1]._replace(x=None, mark=ended.mark))
    for state in states[:-1]:
        np.testing.assert_array_equal(np.asarray(dc.sample(denoise, plan, state, **settings)), np.asarray(clip))


@needs_kernel
def test_a_plan_that_follows_another_draws_on() -> None:
    """The number of a draw is apart from that of a stage."""
    for name in ("ancestral gamma=0.3", "dpm_solver_pp order=3 eta=1.0"):
        plan, ends = make(name), []
        for to in (np.asarray, jnp.asarray):
            state = dc.start(plan, to(start()), seed=3)
            for _ in range(2):
                state = dc.step(plan, state, denoise(state.z, None), prediction="v")
            ends.append(np.asarray(dc.sample(denoise, plan, dc.start(plan, state), prediction="v")))
        np.testing.assert_array_equal(ends[1], ends[0])
        other = dc.sample(
            denoise, plan, state._replace(index=0, draw=1, memory=dc.start(plan, state).memory), prediction="v"
        )
        assert np.abs(np.asarray(other) - ends[0]).max() > 0.01
