"""What is more than a loop over a plan: adaptive steps against k-diffusion's, and all stages at once against one by one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_sampler_peers
import torch

import diffcore as dc

DATA = dc.exact.Mixture(np.array([0.5, 0.5]), np.array([[-1.0, 1.0], [1.0, -0.5]]), 0.05)
VE, VP = (dc.schedules.LinearLogSNR(log_snr_min=-8.0, log_snr_max=11.0, scaling=scaling) for scaling in ("ve", "vp"))
WIDE = np.zeros(1)
library = test_sampler_peers.k_diffusion


def like_of(name: str) -> Any:
    return {"numpy": WIDE, "torch": torch.zeros(1, dtype=torch.float64), "jax": jnp.zeros(1)}[name]


def net(z: Any, log_snr: Any) -> Any:
    """A network that no solver integrates exactly, of any library, with v for a prediction."""
    return -0.6 * z / (1.0 + z * z)


class Guided:
    """A denoiser that also says what it predicts without guidance."""

    def with_unguided(self, z: Any, log_snr: Any) -> tuple[Any, Any]:
        return net(z, log_snr) + 0.3, net(z, log_snr)

    def __call__(self, z: Any, log_snr: Any) -> Any:
        return self.with_unguided(z, log_snr)[0]


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("options", [{}, {"pcoeff": 0.3, "icoeff": 0.7, "dcoeff": 0.1}, {"eta": 0.6, "s_noise": 1.1}])
def test_adaptive_steps_are_those_of_k_diffusion(order: int, options: dict[str, float], library: Any) -> None:
    """A batch of one, as its error is that of the batch; trials that are rejected are part of it."""
    tried = [0]
    denoise = DATA.with_scaling("ve")

    def model(x: Any, sigma: Any) -> Any:
        return torch.from_numpy(np.asarray(denoise(x.numpy(), -2.0 * np.log(sigma.numpy()))))

    def drawn(draw: int, shape: tuple[int, ...]) -> Any:
        return dc.noise.normal(3, draw, shape, like=WIDE)

    solver = library.DPMSolver(model, info_callback=lambda info: tried.__setitem__(0, info["steps"]))
    start = 60.0 * dc.noise.normal(1, 0, (1, 2), like=WIDE)
    ends = [torch.tensor(half, dtype=torch.float64) for half in (-4.0, 5.5)]
    noise = lambda *_: torch.from_numpy(drawn(tried[0] + 1, (1, 2)))  # noqa: E731
    tolerances = {"rtol": 2.0**-4, "atol": 2.0**-7}  # k-diffusion keeps them in float32
    want, info = solver.dpm_solver_adaptive(
        torch.from_numpy(start), *ends, order, **tolerances, **options, noise_sampler=noise
    )
    gains = tuple(options.get(name, default) for name, default in (("pcoeff", 0.0), ("icoeff", 1.0), ("dcoeff", 0.0)))
    more = {"eta": options.get("eta", 0.0), "noise_scale": options.get("s_noise", 1.0)}
    found = dc.sample_adaptive(
        DATA, VE, start, order=order, ends=(-8.0, 11.0), clean=False, gains=gains, noise=drawn, **tolerances, **more
    )
    assert found.z == pytest.approx(want.numpy(), abs=1e-9)
    assert (found.accepted[0], found.rejected[0], found.calls) == (info["n_accept"], info["n_reject"], info["nfe"])
    assert info["n_reject"] > 0


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_adaptive_samples_do_not_know_their_batch_or_scaling(eta: float) -> None:
    """Each has its own steps, and draws that no other sample shifts; tolerances hold for z / alpha."""
    draw = lambda schedule, count, seed: dc.sample_adaptive(  # noqa: E731
        DATA, schedule, shape=(count, 2), like=WIDE, seed=seed, eta=eta
    )
    whole, alone = draw(VE, 4, 5), draw(VE, 1, dc.noise.keys(5, 1, first=2))
    assert np.array_equal(alone.z[0], whole.z[2])
    assert alone.accepted[0] == whole.accepted[2]
    level = dc.levels.level(-8.0)
    start = dc.noise.normal(5, 0, (4, 2), like=WIDE)
    vp = dc.sample_adaptive(DATA, VP, start * level.sigma, seed=5, eta=eta)
    ve = dc.sample_adaptive(DATA, VE, start * level.sigma / level.alpha, seed=5, eta=eta)
    assert vp.z == pytest.approx(ve.z, abs=1e-9)
    assert np.array_equal(vp.accepted, ve.accepted)


def test_adaptive_steps_keep_their_tolerance_in_both_directions() -> None:
    """Errors add up over the steps; z_s / z_t = sqrt((alpha_s^2 c + sigma_s^2) / (alpha_t^2 c + sigma_t^2))."""
    data, ends = dc.exact.Gaussian(np.zeros(3), 0.25), (-6.0, 8.0)
    spread = [float(np.sqrt(0.25 * level.alpha**2 + level.sigma**2)) for level in map(dc.levels.level, ends)]
    start = np.array([[1.0, -0.5, 2.0]])
    calls = []
    for tolerance in (1e-2, 1e-4):
        settings = {"rtol": tolerance, "atol": 0.1 * tolerance, "clean": False}
        there = dc.sample_adaptive(data, VP, start, ends=ends, **settings)
        assert there.z == pytest.approx(start * spread[1] / spread[0], rel=20.0 * tolerance)
        back = dc.sample_adaptive(data, VP, there.z, ends=ends[::-1], **settings)
        assert back.z == pytest.approx(start, rel=40.0 * tolerance)
        calls.append(there.calls)
    assert calls[0] < calls[1]


@pytest.mark.parametrize("name", ["torch", pytest.param("jax", marks=pytest.mark.jax)])
def test_drivers_run_on_every_library(name: str) -> None:
    with jax.enable_x64(True):
        plan = dc.samplers.dpm_solver_pp(VP, 6, order=3, eta=1.0)
        settings: dict[str, Any] = {"shape": (2, 3), "seed": 7, "prediction": "v"}
        parallel, steps = (
            [np.asarray(draw(like_of(library))) for library in ("numpy", name)]
            for draw in (
                lambda like: dc.sample_parallel(net, plan, like=like, window=4, tolerance=1e-2, **settings),
                lambda like: dc.sample_adaptive(net, VP, like=like, order=2, rtol=0.5, eta=0.5, **settings).z,
            )
        )
    assert parallel[1] == pytest.approx(parallel[0], abs=1e-10)
    assert steps[1] == pytest.approx(steps[0], abs=1e-9)


PARALLEL = {
    "ddim": {},
    "ancestral": {"gamma": 0.3},
    "dpm_solver_pp": {"order": 3, "eta": 1.0},
    "unipc": {},
    "heun": {},
    "predictor_corrector": {},
    "pndm": {},
}


@pytest.mark.parametrize("sampler", PARALLEL)
def test_all_stages_at_once_are_one_after_another(sampler: str) -> None:
    """With tolerance 0 the same state to rounding in at most as many sweeps as stages; with one, as near and in fewer."""
    plan = dc.samplers.make(sampler, VP, grid=dc.grids.uniform_log_snr(VP, 24), **PARALLEL[sampler])
    want = dc.sample(DATA, plan, shape=(3, 2), like=WIDE, seed=7)
    for window, tolerance, most in (
        (None, 0.0, len(plan)),
        (None, 1e-4, 0.85 * len(plan)),
        (7, 1e-3, 0.85 * len(plan)),
    ):
        states: list[dc.State] = []
        found = dc.sample_parallel(
            DATA,
            plan,
            shape=(3, 2),
            like=WIDE,
            seed=7,
            window=window,
            tolerance=tolerance,
            callback=states.append,
        )
        assert found == pytest.approx(want, abs=30.0 * tolerance + 1e-12)
        reached = [int(state.index) for state in states]
        assert [int(state.mark) for state in states] == [plan.marks[at] for at in reached]
        assert len(reached) <= most
        assert reached == sorted(set(reached))
        assert reached[-1] == len(plan)


def test_a_window_of_one_is_sampling() -> None:
    """And holds constraints, a transform of x-hat, levels per frame, guidance, a source of noise, and a start in the middle."""
    plan = dc.samplers.ancestral(VP, 5)
    known = dc.conditioning.replacement(np.full((2, 3), 0.5), np.array([True, False, False])[None, :])
    cfg = dc.samplers.euler_cfg_pp(VP, 5)
    frames = plan.per_frame([[0, -1], [1, 0], [2, 1], [3, 2], [4, 3], [-1, 4]])
    cases: list[tuple[Any, dc.Plan, tuple[int, ...], dict[str, Any]]] = [
        (net, plan, (2, 3), {"constraint": known, "prediction": "v"}),
        (
            net,
            plan,
            (2, 3),
            {"transform_x": dc.guidance.clip(-0.3, 0.3), "noise": dc.noise.brownian(7), "prediction": "v"},
        ),
        (net, frames, (2, 2, 3), {"prediction": "v"}),
        (Guided(), cfg, (2, 3), {"prediction": "v"}),
    ]
    for denoise, run, shape, settings in cases:
        settings |= {} if "noise" in settings else {"seed": 3}
        want = dc.sample(denoise, run, shape=shape, like=WIDE, **settings)
        for window in (1, 3):
            found = dc.sample_parallel(denoise, run, shape=shape, like=WIDE, window=window, tolerance=0.0, **settings)
            assert found == pytest.approx(want, abs=1e-12)
    state = dc.start(plan, shape=(2, 3), like=WIDE, seed=3)
    for _ in range(2):
        state = dc.step(plan, state, net(state.z, None), prediction="v")
    want = dc.sample(net, plan, shape=(2, 3), like=WIDE, seed=3, prediction="v")
    assert dc.sample_parallel(net, plan, state, prediction="v", tolerance=0.0) == pytest.approx(want, abs=1e-12)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="`ends` must be two finite log-SNRs"):
        dc.sample_adaptive(net, dc.schedules.Flow(), shape=(1, 2), prediction="v")
    with pytest.raises(ValueError, match="`ends` must rise, unless eta is 0 and clean False"):
        dc.sample_adaptive(net, VP, shape=(1, 2), prediction="v", ends=(5.0, 0.0))
    with pytest.raises(ValueError, match="`limit` must be enough trials to arrive, got 3"):
        dc.sample_adaptive(net, VP, shape=(1, 2), prediction="v", limit=3)
    with pytest.raises(ValueError, match="`denoise` must return finite numbers"):
        dc.sample_adaptive(lambda z, _: z * np.nan, VP, shape=(1, 2), prediction="x")
    with pytest.raises(ValueError, match="`window` must be an int >= 1, got 0"):
        dc.sample_parallel(net, dc.samplers.ddim(VP, 3), shape=(1, 2), prediction="v", window=0)
    guided = Guided()
    guided.carrying = None  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="`denoise` must depend on z and the level alone"):
        dc.sample_parallel(guided, dc.samplers.ddim(VP, 3), shape=(1, 2), prediction="v")
    with pytest.raises(ValueError, match="`middle` must be"):
        dc.samplers.dpm_solver(VP, 3, middle=1.0)
