"""Grids by name: the timesteps and sigmas of diffusers and ComfyUI, and one battery over `grids.table()`."""

import math
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from diffcore import grids, schedules
from diffcore.grids import _gits
from diffcore.schedules import Cosine, Flow, Karras, LinearLogSNR, from_betas

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers

INF = math.inf
TABLE = from_betas(schedules.betas("scaled_linear"))
SIGMAS = np.exp(-0.5 * np.array(TABLE.log_snrs))  # of Stable Diffusion, rising, as ComfyUI's model_sampling.sigmas
FLOW_1000 = np.arange(1, 1001) / 1000.0  # of ModelSamplingDiscreteFlow without a shift
NAMES, MODELS = grids.table(), schedules.named() | {"cosine": Cosine()}


def timesteps(grid: Any, schedule: Any = TABLE) -> Any:
    """Return the timesteps of the noisy points, which lie at integers to rounding."""
    return schedule.time(grid[:-1]) * 999


def sigmas(grid: Any, scaling: str = "ve") -> Any:
    return np.exp(-0.5 * grid) if scaling == "ve" else 1.0 / (1.0 + np.exp(0.5 * grid))


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 20, 30, 50, 333, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_are_those_of_diffusers(spacing: str, steps: int) -> None:
    """DDIM's rule, and that of the multistep solvers, which list one more and drop it."""
    peer = pytest.importorskip("diffusers")
    offset = {"steps_offset": 1} if spacing == "leading" and steps < 1000 else {}
    ours = {"offset": 1} if offset else {}
    ddim = peer.DDIMScheduler(timestep_spacing=spacing, **offset)
    ddim.set_timesteps(steps)
    grid = NAMES[spacing](TABLE, steps, **ours)
    np.testing.assert_allclose(timesteps(grid), np.asarray(ddim.timesteps), rtol=0, atol=1e-9)
    assert grid[-1] == INF
    if steps < 1000:
        solver = peer.DPMSolverMultistepScheduler(timestep_spacing=spacing, **offset)
        solver.set_timesteps(steps)
        ours |= {"drop_last": True} if spacing != "trailing" else {}
        found = timesteps(NAMES[spacing](TABLE, steps, **ours))
        np.testing.assert_allclose(found, np.asarray(solver.timesteps), rtol=0, atol=1e-9)


def test_timesteps_of_one_step_and_without_rounding_and_their_levels() -> None:
    for name in ("trailing", "linspace", "simple", "normal", "beta", "smoothstep", "bong_tangent"):
        np.testing.assert_allclose(timesteps(NAMES[name](TABLE, 1)), [999.0])
    whole, even = grids.linspace(TABLE, 20), grids.linspace(TABLE, 20, rounded=False)
    np.testing.assert_array_equal(
        whole[:-1], np.array(TABLE.log_snrs)[np.linspace(0, 999, 20).round().astype(int)[::-1]]
    )
    np.testing.assert_allclose(timesteps(even), np.linspace(999, 0, 20), rtol=1e-12, atol=1e-9)
    last = grids.linspace(TABLE, 20, drop_last=True, clean=False)
    assert last[-1] == TABLE.log_snrs[0]  # final_sigmas_type="sigma_min"
    assert len(grids.linspace(TABLE, 20, clean=False)) == 21
    np.testing.assert_allclose(
        timesteps(grids.trailing(Cosine(), 4, timesteps=200), Cosine()) / 999 * 199, [199, 149, 99, 49]
    )


@pytest.mark.parametrize("scaling", ["ve", "flow"])
def test_conversions_of_sigmas_are_those_of_diffusers(scaling: str) -> None:
    """Karras, exponential, beta and Lu, in the float64 in which its methods compute."""
    peer = pytest.importorskip("diffusers")
    schedule: Any = Karras() if scaling == "ve" else schedules.truncate(Flow(), -9.0, 7.0)
    own = sigmas(schedule.log_snr(np.linspace(1.0, 0.0, 50)), scaling)
    theirs = peer.FlowMatchEulerDiscreteScheduler() if scaling == "flow" else peer.EulerDiscreteScheduler()
    given = {"in_sigmas": own, "num_inference_steps": 12}
    for name, method in (("karras", "karras"), ("exponential", "exponential"), ("beta_sigmas", "beta")):
        found = NAMES[name](schedule, 12, scaling=scaling)
        assert found[0] == schedule.log_snr(1.0)
        expected = getattr(theirs, f"_convert_to_{method}")(**given)
        np.testing.assert_allclose(sigmas(found, scaling)[:-1], expected, rtol=1e-11)
    lu = peer.DPMSolverMultistepScheduler()._convert_to_lu(np.log(own), 12)
    if scaling == "ve":
        np.testing.assert_allclose(sigmas(NAMES["lu"](schedule, 12))[:-1], np.exp(lu), rtol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_grids_are_those_of_diffusers(shift: float) -> None:
    peer = pytest.importorskip("diffusers")
    theirs = peer.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(20)
    found = grids.flow_match(Flow(), 20, shift=shift, least=shift / (999.0 + shift))
    np.testing.assert_allclose(sigmas(found, "flow"), np.asarray(theirs.sigmas), rtol=2e-6)
    even = np.linspace(1.0, 1 / 20, 20)  # what pipelines pass
    shifted = shift * even / (1.0 + (shift - 1.0) * even)
    np.testing.assert_allclose(sigmas(grids.flow_match(Flow(), 20, shift=shift), "flow")[:-1], shifted, rtol=1e-12)
    np.testing.assert_allclose(grids.uniform(schedules.shift(Flow(), -2 * math.log(shift)), 20)[1:-1],
                               grids.flow_match(Flow(), 20, shift=shift)[1:-1], rtol=1e-12, atol=1e-12)  # fmt: skip
    mu = grids.resolution_mu(1024)
    dynamic = peer.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    moved = dynamic.stretch_shift_to_terminal(dynamic.time_shift(mu, 1.0, even))
    found = grids.flow_match(Flow(), 20, shift=math.exp(mu), terminal=0.1)
    np.testing.assert_allclose(sigmas(found, "flow")[:-1], moved, rtol=1e-12)
    np.testing.assert_allclose(grids.stretch(grids.flow_match(Flow(), 20, shift=math.exp(mu)), 0.1), found, atol=1e-12)
    assert mu == pytest.approx(0.5 + (1.15 - 0.5) / (4096 - 256) * (1024 - 256), rel=1e-14)  # calculate_shift


def comfy_beta(steps: int, a: float, b: float) -> list[int]:
    ts = np.rint(scipy.stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), a, b) * 999)
    return [int(t) for k, t in enumerate(ts) if k == 0 or t != ts[k - 1]]


def comfy_ddim(steps: int) -> list[int]:
    found, x = list[int](), 1
    while x < 1000:
        found.append(x)
        x += max(1000 // steps, 1)
    return found[::-1]


COMFY: dict[str, Callable[[int], Any]] = {
    "simple": lambda n: [1000 - (1 + int(x * (1000 / n))) for x in range(n)],
    "ddim_uniform": comfy_ddim,
    "beta": lambda n: comfy_beta(n, 0.6, 0.6),
    "beta57": lambda n: comfy_beta(n, 0.5, 0.7),
    "normal": lambda n: np.linspace(999, 0, n),
    "sgm_uniform": lambda n: np.linspace(999, 0, n + 1)[:-1],
    "smoothstep": lambda n: [math.floor(999 * u * u * (3 - 2 * u) + 0.5) for u in (1 - i / n for i in range(n))],
}
"""Timesteps as in comfy/samplers.py, and for beta57 RES4LYF and smoothstep stable-diffusion.cpp."""


@pytest.mark.parametrize("name", COMFY)
@pytest.mark.parametrize("steps", [2, 15, 20, 37])
def test_timesteps_are_those_of_comfyui(name: str, steps: int) -> None:
    found, expected = NAMES[name](TABLE, steps), np.asarray(COMFY[name](steps))
    np.testing.assert_allclose(timesteps(found), expected, rtol=1e-12, atol=1e-9)
    own = np.exp(np.interp(expected, np.arange(1000), np.log(SIGMAS)))  # its sigma(timestep)
    np.testing.assert_allclose(sigmas(found), [*own, 0.0], rtol=1e-12)


@pytest.mark.parametrize("name", ["simple", "beta", "normal", "sgm_uniform"])
def test_sigmas_of_a_flow_are_those_of_comfyui(name: str) -> None:
    """Its table is 0.001, 0.002, ..., 1: no timestep lies at clean data."""
    own, found = COMFY[name](12), sigmas(NAMES[name](Flow(), 12), "flow")
    np.testing.assert_allclose(
        found, [*np.interp(own, np.arange(-1, 1000), np.append(0.0, FLOW_1000)), 0.0], rtol=1e-11
    )


def test_normal_where_nothing_is_left_at_the_end_is_uniform() -> None:
    schedule = LinearLogSNR(log_snr_max=30.0)
    np.testing.assert_array_equal(grids.normal(schedule, 9), grids.uniform(schedule, 9))
    np.testing.assert_allclose(NAMES["sgm_uniform"](schedule, 9), grids.uniform(schedule, 9), rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 9, 20])
def test_mochis_grid_is_its_coefficients(steps: int) -> None:
    """As in genmo's infer.py, for a flow, and times sigma_max for another model."""
    n, theta, x = steps, 0.025, [0.0]
    if n > 1:
        lines = n // 2
        quadratic = (lines - theta * n) / (lines * (n - lines) ** 2)
        linear = theta / lines - 2 * (lines - theta * n) / ((n - lines) ** 2)
        x = [i * theta / lines for i in range(lines)]
        x += [quadratic * i**2 + linear * i + quadratic * lines**2 for i in range(lines, n)]
    expected = [*(1.0 - np.array(x)), 0.0]
    found = grids.by_name("linear_quadratic", Flow(), steps)
    np.testing.assert_allclose(sigmas(found, "flow"), expected, rtol=1e-12)
    np.testing.assert_allclose(sigmas(grids.linear_quadratic(Karras(), steps)), 80.0 * np.array(expected), rtol=1e-12)


@pytest.mark.parametrize("scaling", ["ve", "flow"])
def test_kl_optimal_is_even_in_the_arctangent_of_sigma(scaling: str) -> None:
    schedule: Any = Karras() if scaling == "ve" else schedules.truncate(Flow(), -30.0, 30.0)
    own = sigmas(schedule.log_snr(np.array([1.0, 0.0])), scaling)
    part = np.arange(12) / 11
    expected = np.tan(part * math.atan(own[1]) + (1 - part) * math.atan(own[0]))
    found = sigmas(grids.kl_optimal(schedule, 12, scaling=scaling), scaling)
    np.testing.assert_allclose(found, [*expected, 0.0], rtol=1e-11)


def test_kl_optimal_is_even_in_the_time_of_the_cosine_and_keeps_its_digits() -> None:
    schedule = LinearLogSNR(log_snr_min=-40.0, log_snr_max=40.0)
    cosine = Cosine(log_snr_min=-40.0, log_snr_max=40.0)
    np.testing.assert_allclose(
        grids.kl_optimal(schedule, 9)[:-1], cosine.log_snr(np.linspace(1.0, 0.0, 9)), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("steps", [2, 3, 8, 20, 31])
def test_bong_tangent_is_that_of_res4lyf(steps: int) -> None:
    def arc(n: int, slope: float, pivot: int, first: float, last: float) -> list[float]:
        s = [((2 / math.pi) * math.atan(-slope * (x - pivot)) + 1) / 2 for x in range(n)]
        return [(one - s[-1]) * (1 / (s[0] - s[-1])) * (first - last) + last for one in s]

    n = steps + 2
    middle = int((n * 0.6 + n * 0.6) / 2)
    slope = 0.2 / (n / 40)
    expected = arc(middle, slope, int(n * 0.6), 1.0, 0.5)[:-1] + arc(n - middle, slope, int(n * 0.6) - middle, 0.5, 0.0)
    np.testing.assert_allclose(sigmas(grids.bong_tangent(Flow(), steps), "flow"), expected, rtol=1e-12, atol=1e-15)


def comfy_list(listed: Any, steps: int) -> Any:
    """Return a list at another length as the nodes of ComfyUI do it."""
    if steps + 1 != len(listed):
        logs = np.log(listed[::-1])
        listed = np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(listed)), logs))[::-1].copy()
    return np.append(listed[:-1], 0.0)


@pytest.mark.parametrize("steps", [1, 6, 10, 25])
def test_align_your_steps_is_its_published_list(steps: int) -> None:
    lists = {
        "sd1": [14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904,
                0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582],
        "svd": [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002],
    }  # fmt: skip
    for model, listed in lists.items():
        found = sigmas(grids.align_your_steps(TABLE, steps, model=model))
        np.testing.assert_allclose(found, comfy_list(listed, steps), rtol=1e-12)


def test_align_your_steps_is_near_what_diffusers_rounds_to_timesteps_and_three_digits() -> None:
    peer = pytest.importorskip("diffusers.schedulers").AysSchedules
    for model, name in (("sd1", ""), ("sdxl", "XL"), ("svd", "Video")):
        listed = peer[f"StableDiffusion{name}Sigmas"]
        found = sigmas(grids.align_your_steps(TABLE, 10, model=model))
        np.testing.assert_allclose(found, [*listed[:-1], 0.0], rtol=2e-2)


def test_gits_are_their_published_lists() -> None:
    """Some of the lists, written out as they are published; the others have as many points as steps, and fall."""
    for coefficient, listed in (
        (0.8, [14.61464119, 13.76078796, 12.96784878, 12.2308979, 11.54541874, 10.90732002, 10.31284904, 9.75859547, 9.24142551,
               8.75849152, 8.30717278, 7.88507891, 7.49001646, 6.77309084, 5.85520077, 4.86714602, 3.75677586, 2.84484982,
               1.78698075, 0.803307, 0.02916753]),
        (0.95, [14.61464119, 11.54541874, 7.49001646, 4.86714602, 3.07277966, 1.91321158, 1.08895338, 0.50118381, 0.02916753]),
        (1.2, [14.61464119, 0.803307, 0.02916753]),
        (1.2, [14.61464119, 5.85520077, 2.84484982, 1.67050016, 1.08895338, 0.74807048, 0.50118381, 0.32104823, 0.19894916,
               0.09824532, 0.02916753]),
        (1.5, [14.61464119, 2.45070267, 1.41535246, 0.95350921, 0.72133851, 0.57119018, 0.4783645, 0.43325692, 0.38853383,
               0.36617002, 0.34370604, 0.32104823, 0.29807833, 0.27464288, 0.25053367, 0.22545385, 0.19894916, 0.17026083,
               0.13792117, 0.09824532, 0.02916753]),
    ):  # fmt: skip
        found = sigmas(grids.gits(TABLE, len(listed) - 1, coefficient=coefficient))
        np.testing.assert_allclose(found, [*listed[:-1], 0.0], rtol=1e-12)
    np.testing.assert_allclose(sigmas(grids.gits(TABLE, 33, coefficient=1.5)), comfy_list(listed, 33), rtol=1e-12)
    assert [len(grids.gits(TABLE, n)) for n in range(1, 25)] == list(range(2, 26))


def test_the_lists_of_gits_are_levels_of_stable_diffusion_and_fall() -> None:
    """15 coefficients, N = 2 .. 20; each level that of a hundredth of the timesteps, which float32 made at its source."""
    lists = _gits.lists()
    assert list(lists) == list(range(80, 155, 5))
    for rows in lists.values():
        assert [len(row) for row in rows] == list(range(3, 22))
        assert all(np.all(np.diff(row) < 0.0) and (row[0], row[-1]) == (14.61464119, 0.02916753) for row in rows)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    ratio = np.sqrt(1.0 / np.cumprod(1.0 - betas) - 1.0)
    levels = np.exp(np.interp(9.99 * np.arange(101), np.arange(1000), np.log(ratio)))
    np.testing.assert_allclose([levels[k] for k in _gits.SIGMAS], list(_gits.SIGMAS.values()), rtol=3e-5)


def test_optimal_steps_are_their_published_lists() -> None:
    flux = [0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001]
    for steps in (4, 10, 20):
        found = sigmas(grids.optimal_steps(Flow(), steps), "flow")
        np.testing.assert_allclose(found, comfy_list(flux, steps), rtol=1e-12)
    wan, chroma = (grids.optimal_steps(Flow(), n, model=model) for n, model in ((20, "wan"), (40, "chroma")))
    assert wan[0] == -INF
    np.testing.assert_allclose(sigmas(chroma, "flow")[[0, 20, 39]], [0.992, 0.69, 0.048], rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@hypothesis.given(
    schedule=st.sampled_from(["cosine", "rectified_flow", "edm", "stable_diffusion", "sigmoid"]).map(MODELS.get),
    steps=st.integers(1, 25),
    start=st.floats(0.2, 1.0) | st.just(1.0),
    clean=st.booleans(),
)
@hypothesis.settings(max_examples=25)
def test_every_named_grid_leads_from_its_start_to_its_end(
    name: str, schedule: Any, steps: int, start: float, clean: bool
) -> None:
    """Up strictly, of the length asked for, clean or not, from any start: for image to image."""
    listed = name.startswith(("align", "gits", "optimal"))
    hypothesis.assume(not listed or schedule.log_snr(start) < 6.0)  # the lists are of levels of their own
    end = 0.0 if clean else 0.02
    hypothesis.assume(clean or not listed or schedule.log_snr(end) > schedule.log_snr(start))
    grid = grids.by_name(name, schedule, steps, start=start, end=end)
    assert grid.dtype == np.float64
    assert np.all(np.diff(grid) > 0.0)
    assert name in {"beta", "beta57", "ddim_uniform", "smoothstep"} or len(grid) == steps + 1
    assert (grid[-1] == INF) == clean
    first = schedule.log_snr(start)
    if name not in {"leading", "ddim_uniform"} and not listed and np.isfinite(first):
        assert grid[0] == pytest.approx(first, rel=1e-9, abs=1e-9)
    if not listed:
        assert grid[0] >= first - 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_every_named_grid_of_many_is_the_grids_of_each_and_runs_both_ways(name: str) -> None:
    if name == "ddim_uniform":
        with pytest.raises(ValueError, match=r"must give grids of one length, got \[8, 9\] points; ask for fewer"):
            grids.ddim_uniform(TABLE, 7, start=np.array([1.0, 0.6]), end=np.array([0.0, 0.25]))
        return
    schedule, start, end = TABLE, np.array([1.0, 0.6]), np.array([[0.0, 0.25], [0.1, 0.0]])
    both = grids.table()[name](schedule, 7, start=start, end=end)
    for i, j in np.ndindex(2, 2):
        alone = grids.table()[name](schedule, 7, start=start[i], end=end[i, j])
        np.testing.assert_allclose(both[:, i, j], alone, rtol=1e-12)
    if name != "linear_quadratic":
        up = grids.table()[name](schedule, 7, start=0.1, end=0.8)
        np.testing.assert_allclose(up[::-1], grids.table()[name](schedule, 7, start=0.8, end=0.1), rtol=1e-9)


def test_timesteps_with_repeats_and_jitter_are_the_grid_of_the_others() -> None:
    want = np.append(TABLE.log_snr(np.array([999.0, 666.0, 333.0, 0.0]) / 999.0), np.inf)
    found = grids.from_timesteps(TABLE, np.array([999, 666, 666, 333, 333.0001, 0, 0], np.float32))
    np.testing.assert_array_equal(found.grid, want)
    assert found.note == (
        "left out 3 of 7 timesteps: [2] repeats 666.0, [4] repeats 333.0 but for rounding, 333.0000915527344, [6] repeats 0.0"
    )
    assert grids.from_timesteps(TABLE, [999, 666, 333, 0]).note == ""
    np.testing.assert_array_equal(grids.from_timesteps(TABLE, [999, 666, 333, 0], clean=False).grid, want[:-1])
    np.testing.assert_array_equal(grids.from_timesteps(TABLE, [0, 333, 333, 666, 999]).grid, want[-2::-1])
    np.testing.assert_array_equal(grids.from_timesteps(TABLE, [9, 9]).grid, [TABLE.log_snr(9 / 999), np.inf])
    flow = grids.from_timesteps(Flow(), [1000.0, 800.0, 200.0], total=1000).grid
    np.testing.assert_allclose(flow, grids.from_sigmas([1.0, 0.8, 0.2, 0.0], scaling="flow").grid, rtol=1e-12)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "EulerDiscreteScheduler", "DDIMScheduler"])
def test_timesteps_of_diffusers_are_its_sigmas(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    beta = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "leading"}
    scheduler = getattr(diffusers, name)(**beta)
    scheduler.set_timesteps(7)
    schedule = schedules.from_alphas_cumprod(scheduler.alphas_cumprod.double())
    found = grids.from_timesteps(schedule, scheduler.timesteps)
    alphas = scheduler.alphas_cumprod.double()[scheduler.timesteps.long()]
    sigmas = getattr(scheduler, "sigmas", np.append(((1.0 - alphas) / alphas).sqrt(), 0.0))
    np.testing.assert_allclose(found.grid, grids.from_sigmas(sigmas).grid, rtol=1e-5, atol=1e-5)
    assert (len(found.grid), bool(found.note)) == (8, name == "HeunDiscreteScheduler")


@pytest.mark.parametrize("text", ["14.6, 6.4, 1, 0", "[14.6 6.4 1.0 0.0]", "(14.6,6.4,\n1e0,\t0,)", " 14.6;6.4;1;0 "])
def test_a_text_of_sigmas_is_its_numbers(text: str) -> None:
    found = grids.from_sigmas(text)
    np.testing.assert_array_equal(found.grid, grids.from_sigmas([14.6, 6.4, 1.0, 0.0]).grid)
    assert grids.from_sigmas("14.6 1 1 0").note == "left out 1 of 4 sigmas: [2] repeats 1.0"


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: grids.by_name("karas", TABLE, 4),
            ValueError,
            r"grids\.by_name: `name` must be .*did you mean 'karras'",
        ),
        (lambda: grids.by_name("karras", Cosine, 4), TypeError, r"`schedule` must be a schedule"),
        (lambda: grids.leading(TABLE, 1001), ValueError, r"`steps` must be at most 1000, the timesteps .*, got 1001"),
        (
            lambda: grids.leading(TABLE, 4, offset=250),
            ValueError,
            r"grids\.leading: `offset` must be at most 249, got 250",
        ),
        (lambda: grids.trailing(Flow(), 4, timesteps=1), ValueError, r"`timesteps` must be an int >= 2, got 1"),
        (lambda: grids.linspace(TABLE, 4, rounded=1), TypeError, r"`rounded` must be True or False, got 1"),  # type: ignore[arg-type]
        (lambda: grids.beta(TABLE, 4, a=0.0), ValueError, r"grids\.beta: `a` must be .* > 0, got 0"),
        (lambda: grids.karras(Karras(), 4, scaling="edm"), ValueError, r"grids\.karras: `scaling` must be 'flow'"),
        (lambda: grids.karras(Flow(), 4, scaling="flow"), ValueError, r"must be finite, got -inf and inf; give"),
        (
            lambda: grids.linear_quadratic(Flow(), 4),
            ValueError,
            r"sigma at `start` must be finite, got inf; give `start` < 1",
        ),
        (
            lambda: grids.linear_quadratic(TABLE, 4, linear_steps=4),
            ValueError,
            r"`linear_steps` must be an int in \[1, 3\]",
        ),
        (lambda: grids.align_your_steps(TABLE, 4, model="sd3"), ValueError, r"`model` must be 'sd1', .*, got 'sd3'"),
        (
            lambda: grids.gits(TABLE, 4, coefficient=1.21),
            ValueError,
            r"`coefficient` must be a multiple of 0.05 in \[0.8, 1.5\]",
        ),
        (lambda: grids.gits(LinearLogSNR(), 4, start=0.1), ValueError, r"levels within the list, sigma in \[0\.029"),
        (lambda: grids.flow_match(Flow(), 4, shift=0.0), ValueError, r"`shift` must be .* > 0, got 0"),
        (lambda: grids.flow_match(Flow(), 4, terminal=1.0), ValueError, r"`terminal` must be a number in \(0, 1\)"),
        (lambda: grids.flow_match(Flow(), 4, least=1.0), ValueError, r"`least` must be a number in \(0, 1\), got 1"),
        (lambda: grids.stretch([2.0, 1.0], 0.1), ValueError, r"grids\.stretch: `grid` must rise"),
        (lambda: grids.resolution_mu(0), ValueError, r"grids\.resolution_mu: `tokens` must be .* > 0, got 0"),
        (lambda: grids.from_sigmas("14.6, x, 0"), TypeError, r"`sigmas\[1\]` must hold numbers, as in .*, got 'x'"),
        (
            lambda: grids.from_timesteps(TABLE, [999, 500, 700]),
            ValueError,
            r"`timesteps` must decrease .* got 500\.0 and 700\.0",
        ),
        (
            lambda: grids.from_timesteps(TABLE, [1000, 5]),
            ValueError,
            r"`timesteps\[0\]` must be in \[0, 999\], got 1000",
        ),
        (
            lambda: grids.from_timesteps(TABLE, [5, math.nan]),
            ValueError,
            r"`timesteps\[1\]` must be in \[0, 999\], got nan",
        ),
        (
            lambda: grids.from_timesteps(TABLE, [1, 9], clean=True),
            ValueError,
            r"`clean` must not be True for timesteps",
        ),
        (
            lambda: grids.from_timesteps(TABLE, [9, 9], clean=False),
            ValueError,
            r"must have at least two levels, got only 9",
        ),
        (lambda: grids.from_timesteps(TABLE, []), ValueError, r"`timesteps` must be \(N,\), N >= 1, got shape \(0,\)"),
        (lambda: grids.from_timesteps(TABLE, "a"), TypeError, r"from_timesteps: `timesteps` must be numbers"),
        (lambda: grids.from_timesteps([9.0], [9]), TypeError, r"from_timesteps: `schedule` must be"),
        (lambda: grids.from_sigmas("14.6, ..., 0"), TypeError, r"`sigmas\[1\]` must hold numbers.*got '\.\.\.'"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()
