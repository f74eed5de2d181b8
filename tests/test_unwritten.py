"""A denoiser that writes to its z, as `z *= 0.5` does, would change the run without a word: it is refused, on every path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sampler_cases import schedule_of

import diffcore as dc

SCHEDULE = schedule_of("vp")
PLAN = dc.samplers.ddim(SCHEDULE, steps=3)


def levels_like(z: Any) -> dict[str, Any]:
    return {name: SCHEDULE(z[:, 0] * 0.0 + time) for name, time in {"t": 0.6, "s": 0.4}.items()}


def halved(z: Any, log_snr: Any) -> Any:
    z *= 0.5
    return z


def viewed(z: Any, log_snr: Any) -> Any:
    h = z.reshape(z.shape[0], -1)
    h[:, 0] = 0.0
    return 0.5 * z


def sorted_out(z: Any, log_snr: Any) -> Any:
    return np.multiply(z, 0.5, out=z) if isinstance(z, np.ndarray) else torch.mul(z, 0.5, out=z)


class Carrying:
    """A denoiser that carries an array from stage to stage."""

    def begin(self, z: Any) -> Any:
        return (0.5 * z,)

    def carrying(self, z: Any, log_snr: Any, carried: Any) -> Any:
        return halved(z, log_snr), None, carried

    def __call__(self, z: Any, log_snr: Any) -> Any:
        return halved(z, log_snr)


RUNS: dict[str, Callable[[Any, Any], Any]] = {
    "sample": lambda f, z: dc.sample(f, PLAN, z, prediction="x"),
    "watched": lambda f, z: dc.sample(f, PLAN, z, prediction="x", callback=lambda _: None),
    "guided": lambda f, z: dc.sample(
        dc.guidance.autoguidance(f, lambda z, _: 0.4 * z, weight=0.5), PLAN, z, prediction="x"
    ),
    "cfg++": lambda f, z: dc.sample(
        dc.guidance.classifier_free(f, lambda z, _: 0.4 * z, weight=0.5),
        dc.samplers.euler_cfg_pp(SCHEDULE, steps=3),
        z,
        prediction="x",
    ),
    "carrying": lambda f, z: dc.sample(Carrying(), PLAN, z, prediction="x"),
    "parallel": lambda f, z: dc.sample_parallel(f, PLAN, z, prediction="x"),
    "adaptive": lambda f, z: dc.sample_adaptive(f, SCHEDULE, z, prediction="x"),
    "trajectory": lambda f, z: dc.likelihood.trajectory(
        f, dc.samplers.ancestral(SCHEDULE, grid=[-4.0, 0.0, 4.0]), [z, z, z], prediction="x"
    ),
    "objective": lambda f, z: dc.objectives.consistency_pair(f, z, z, **levels_like(z), prediction="v"),
    "teacher": lambda f, z: dc.objectives.consistency_pair(
        lambda z, _: 0.5 * z, z, z, **levels_like(z), prediction="v", teacher=f
    ),
}


@pytest.mark.parametrize("write", [halved, viewed, sorted_out])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("run", RUNS)
def test_a_denoiser_that_writes_to_its_state_is_refused(run: str, library: str, write: Any) -> None:
    z = np.linspace(-2.0, 2.0, 12).reshape(2, 6)
    with pytest.raises(ValueError, match=r"`(denoise|network|teacher)` must not write to its z, as z \*= 0.5"):
        RUNS[run](write, torch.from_numpy(z) if library == "torch" else z)


def test_copies_may_be_written_to_and_other_errors_stay_as_they_are() -> None:
    z = np.linspace(-2.0, 2.0, 12).reshape(2, 6)
    want = dc.sample(lambda z, _: 0.5 * z, PLAN, z, prediction="x")
    for start in (z, torch.from_numpy(z)):
        found = dc.sample(lambda z, at: halved(1.0 * z, at), PLAN, start, prediction="x")
        np.testing.assert_array_equal(np.asarray(found), want)
    both = dc.guidance.classifier_free(lambda z, _, c: halved(z, c), cond=z, null=z, weight=0.5)  # of a doubled batch
    np.testing.assert_allclose(dc.sample(both, PLAN, z, prediction="x"), want)
    fixed = np.broadcast_to(0.0, (3,))

    def other(z: Any, log_snr: Any) -> Any:
        fixed[0] = 1.0
        return z

    with pytest.raises(ValueError, match="read-only") as caught:
        dc.sample(other, PLAN, z.copy(), prediction="x")
    assert "`denoise`" not in str(caught.value)


def written(of: Callable[[Any], Any]) -> Callable[[dc.State], None]:
    def callback(state: dc.State) -> None:
        array = of(state)
        array[:, 0] = 0.0

    return callback


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(
    "of",
    [lambda state: state.z, lambda state: state.x[:1], lambda state: state.memory[0]],
    ids=["z", "a view of x", "memory"],
)
def test_a_callback_that_writes_to_its_state_is_refused(of: Any, library: str) -> None:
    """What is kept of a state may be written to when the run is over, and copies at any time."""
    z: Any = np.linspace(-2.0, 2.0, 12).reshape(2, 6)
    z = torch.from_numpy(z) if library == "torch" else z
    plan = dc.samplers.unipc(SCHEDULE, steps=4)
    for run in (dc.sample, dc.sample_parallel):
        states: list[dc.State] = []
        with pytest.raises(ValueError, match=r"`callback` must not write to the arrays of the state .*`constraint="):
            run(lambda z, _: 0.5 * z, plan, z, prediction="x", callback=written(of))
        want = run(lambda z, _: 0.5 * z, plan, z, prediction="x")
        found = run(
            lambda z, _: 0.5 * z,
            plan,
            z,
            prediction="x",
            callback=lambda state, states=states: (states.append(state), written(lambda state: 1.0 * of(state))(state)),
        )
        assert bool((found == want).all())
        written(of)(states[1])
        with pytest.raises(ZeroDivisionError):  # no array stays as it was made for a callback that fails
            run(
                lambda z, _: 0.5 * z,
                plan,
                z,
                prediction="x",
                callback=lambda state, states=states: (states.append(state), 1 / 0),
            )
        written(of)(states[-1])


def test_where_torch_counts_no_writes_runs_are_what_they_were() -> None:
    z = torch.linspace(-2.0, 2.0, 12, dtype=torch.float64).reshape(2, 6)

    def run(z: Any) -> Any:
        return dc.sample(lambda z, _: 0.5 * z, PLAN, z, prediction="x")

    want = run(z)
    with torch.inference_mode():
        torch.testing.assert_close(run(1.0 * z), want)
        torch.testing.assert_close(run(z), want)
    torch.testing.assert_close(torch.func.vmap(run)(z[None])[0], want)
    torch.testing.assert_close(torch.func.jvp(run, (z,), (z,))[1], want)  # it is linear
