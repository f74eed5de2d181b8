"""Samplers that are known by name against k-diffusion and azula, which made them known."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from peers_cases import SIGMAS, START, VE, Noise, estimate, ours

import diffcore as dc

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def k_diffusion() -> Iterator[Any]:
    """Its module of samplers alone: the package imports much that no sampler needs."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None or any(importlib.util.find_spec(name) is None for name in ("torchdiffeq", "torchsde", "scipy")):
        pytest.skip("k-diffusion is not installed")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = list(found.submodule_search_locations or [])
    package.utils = utils  # type: ignore[attr-defined]
    utils.append_dims = lambda x, count: x[(..., *(None,) * (count - x.ndim))]  # type: ignore[attr-defined]
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "k_diffusion"}
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    yield importlib.import_module("k_diffusion.sampling")
    for name in [name for name in sys.modules if name.split(".")[0] == "k_diffusion"]:
        del sys.modules[name]
    sys.modules.update(before)


K_DIFFUSION: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "euler_ancestral": ("sample_euler_ancestral", {"eta": 0.7, "noise_scale": 1.1}, {"eta": 0.7, "s_noise": 1.1}),
    "dpm2": ("sample_dpm_2", {}, {}),
    "dpm2_ancestral": ("sample_dpm_2_ancestral", {"eta": 0.7}, {"eta": 0.7}),
    "dpm_solver_pp_2s": ("sample_dpmpp_2s_ancestral", {"eta": 0.6}, {"eta": 0.6}),
    "lms": ("sample_lms", {"final": "full"}, {}),
}
"""Our sampler: theirs, our settings, theirs."""


@pytest.mark.parametrize("name", K_DIFFUSION)
def test_k_diffusion(name: str, k_diffusion: Any) -> None:
    theirs, settings, options = K_DIFFUSION[name]
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    with np.errstate(divide="ignore"):
        plan = dc.samplers.make(name, VE, grid=-2.0 * np.log(SIGMAS), **settings)
    if plan.stochastic:
        options = {**options, "noise_sampler": Noise()}
    z = START * SIGMAS[0]
    want = getattr(k_diffusion, theirs)(
        lambda u, sigma: estimate(u, sigma.reshape(-1, 1)), z, sigmas, disable=True, **options
    )
    # k-diffusion integrates the polynomials of LMS by quadrature, to a relative 1e-4
    torch.testing.assert_close(ours(plan, z), want, rtol=0, atol=1e-4 if name == "lms" else 1e-10)


@pytest.mark.parametrize("order", [2, 3])
def test_k_diffusion_dpm_solver(order: int, k_diffusion: Any) -> None:
    solver = k_diffusion.DPMSolver(lambda u, sigma: estimate(u, sigma.reshape(-1, 1)))
    plan = dc.samplers.dpm_solver(VE, grid=-2.0 * np.log(SIGMAS[:-1]), order=order)
    want = START * SIGMAS[0]
    at = -torch.tensor(SIGMAS[:-1], dtype=torch.float64).log()
    for t, s in itertools.pairwise(at):
        want, _ = getattr(solver, f"dpm_solver_{order}_step")(want, t, s)
    torch.testing.assert_close(ours(plan), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("solver", "eta"), [("midpoint", 1.0), ("heun", 1.0), ("heun", 0.5), ("midpoint", 0.0)])
def test_k_diffusion_2m_sde(solver: str, eta: float, k_diffusion: Any) -> None:
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    with np.errstate(divide="ignore"):
        plan = dc.samplers.dpm_solver_pp(VE, grid=-2.0 * np.log(SIGMAS), eta=eta, solver=solver, noise_scale=0.9)
    z = START * SIGMAS[0]
    want = k_diffusion.sample_dpmpp_2m_sde(
        lambda u, sigma: estimate(u, sigma.reshape(-1, 1)),
        z,
        sigmas,
        disable=True,
        noise_sampler=Noise(),
        eta=eta,
        solver_type=solver,
        s_noise=0.9,
    )
    torch.testing.assert_close(ours(plan, z), want, rtol=0, atol=1e-10)


def test_k_diffusion_3m_sde(k_diffusion: Any) -> None:
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    with np.errstate(divide="ignore"):
        plan = dc.samplers.dpm_solver_pp(VE, grid=-2.0 * np.log(SIGMAS), eta=1.0, order=3, solver="heun")
    z = START * SIGMAS[0]
    want = k_diffusion.sample_dpmpp_3m_sde(
        lambda u, sigma: estimate(u, sigma.reshape(-1, 1)), z, sigmas, disable=True, noise_sampler=Noise(), eta=1.0
    )
    torch.testing.assert_close(ours(plan, z), want, rtol=0, atol=1e-10)


def test_k_diffusion_dpmpp_sde(k_diffusion: Any) -> None:
    """Its noise is that of one Brownian motion in sigma."""
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    with np.errstate(divide="ignore"):
        plan = dc.samplers.dpm_solver_pp_sde(VE, grid=-2.0 * np.log(SIGMAS), eta=0.8, noise_scale=0.9)
    fresh = Noise()

    class Brownian:
        def __init__(self) -> None:
            self.middle: tuple[float, float, Any] | None = None

        def __call__(self, t: Any, s: Any) -> Any:
            t, s = float(t), float(s)
            if self.middle is None or abs(self.middle[0] - t) > 1e-9 * t:
                self.middle = (t, s, fresh())
                return self.middle[2]
            _, m, first = self.middle
            return ((t - m) ** 0.5 * first + (m - s) ** 0.5 * fresh()) / (t - s) ** 0.5

    z = START * SIGMAS[0]
    want = k_diffusion.sample_dpmpp_sde(
        lambda u, sigma: estimate(u, sigma.reshape(-1, 1)),
        z,
        sigmas,
        disable=True,
        noise_sampler=Brownian(),
        eta=0.8,
        s_noise=0.9,
    )
    torch.testing.assert_close(ours(plan, z), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", ["z", "v", "xE"])
def test_azula_adams_bashforth(kind: str, order: int) -> None:
    """Its steps in eps-hat are LMS, in the velocity LMS under "flow", exponential ones in x-hat DPM-Solver++ with exact weights."""
    azula = pytest.importorskip("azula.sample")
    at = np.linspace(-5.0, 5.0, 9)
    scaling = "flow" if kind == "v" else "vp"
    level = dc.levels.level(at, scaling)
    alpha, sigma = torch.from_numpy(level.alpha), torch.from_numpy(level.sigma)

    class Denoiser(torch.nn.Module):  # type: ignore[name-defined, misc]
        @staticmethod
        def schedule(time: Any) -> Any:
            return alpha[time.long()], sigma[time.long()]

        def forward(self, z: Any, time: Any) -> Any:
            a, s = self.schedule(time)
            return types.SimpleNamespace(mean=estimate(z / a, s / a))

    maker = {"z": "zABSampler", "v": "vABSampler", "xE": "xEABSampler"}[kind]
    theirs = type("Theirs", (getattr(azula, maker),), {"timesteps": torch.arange(9)})
    sampler = theirs(Denoiser(), order=order, silent=True)
    schedule = dc.schedules.LinearLogSNR(log_snr_min=-9.0, log_snr_max=9.0, scaling=scaling)
    exact: dict[str, Any] = {"order": order, "solver": "heun" if order == 2 else None}
    plan = (
        dc.samplers.dpm_solver_pp(schedule, grid=at, **exact)
        if kind == "xE"
        else dc.samplers.lms(schedule, grid=at, order=order)
    )
    want = sampler(START)
    if kind == "xE" and order == 3:  # ours takes the midpoint's weights in the second step
        first = dc.samplers.dpm_solver_pp(schedule, grid=at, order=2, solver="heun").update[1, 0]
        update = plan.update.copy()
        update[1, 0, [0, 1, -1]] = first[[0, 1, -1]]
        plan = dc.Plan("exact", plan.scaling, plan.log_snr, plan.next_log_snr, update)
    torch.testing.assert_close(ours(plan, START), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [2, 18])
def test_grids_are_those_of_k_diffusion(k_diffusion: Any, steps: int) -> None:
    torch.set_default_dtype(torch.float64)  # of its linspace
    try:
        theirs = {
            "karras": k_diffusion.get_sigmas_karras(steps, 0.002, 80.0),
            "exponential": k_diffusion.get_sigmas_exponential(steps, 0.002, 80.0),
            "polyexponential": k_diffusion.get_sigmas_polyexponential(steps, 0.002, 80.0, rho=1.7),
        }
    finally:
        torch.set_default_dtype(torch.float32)
    for name, expected in theirs.items():
        settings = {"rho": 1.7} if name == "polyexponential" else {}
        found = dc.grids.table()[name](dc.schedules.Karras(), steps, **settings)
        np.testing.assert_allclose(np.exp(-0.5 * found), expected, rtol=1e-12)
