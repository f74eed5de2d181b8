"""`interop.diffusers` against the schedulers themselves: their loops, their timesteps, their x-hat and their levels."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

import diffcore as dc
from diffcore.samplers._least import responses

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers_cases import EXACT, ROUNDED  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

from diffcore.interop import diffusers as interop  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

STEPS = 8
NOISES = torch.randn(60, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CASES = [(*case, 1e-12) for case in EXACT] + [(*case, 1e-6) for case in ROUNDED]


def made(name: str, settings: dict[str, Any]) -> Any:
    if not hasattr(diffusers, name):
        pytest.skip(f"this version of diffusers has no {name}")
    if name in ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"):
        pytest.importorskip("torchsde")
    return getattr(diffusers, name)(**settings)


def network(x: Any, timestep: Any) -> Any:
    """What is not linear, and depends on the timestep."""
    t = torch.as_tensor(timestep, dtype=x.dtype).reshape(-1)[:1]
    return 0.8 * torch.tanh(1.1 * x) + 0.1 * torch.sin(t / 200.0) * x + 0.05 * torch.cos(x)


class Draws(TorchFunctionMode):
    """The draws of a plan for `torch.randn`: that of a stage is the one of its number."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.randn:
            return NOISES[self.calls].to((kwargs or {}).get("dtype") or torch.float64)
        return func(*args, **(kwargs or {}))


def their_loop(scheduler: Any, x: Any, *, clip: bool = False, first: int = 0, **step: Any) -> tuple[Any, list[Any]]:
    """Their loop as a pipeline has it: (sample, (timestep, sample, output, x-hat if they return it) of each call)."""
    own, draws, seen = copy.deepcopy(scheduler), Draws(), []
    if not clip:
        own.register_to_config(**{name: False for name in ("clip_sample", "thresholding") if name in own.config})
    if hasattr(own, "noise_sampler"):
        own.noise_sampler = lambda *_: NOISES[draws.calls]
    before, last = None, None
    with draws:
        times = own.timesteps[first:]
        for t, following in zip(times, [*times[1:], None], strict=True):
            scaled = own.scale_model_input(x, t) if hasattr(own, "scale_model_input") else x
            y, z = network(scaled, t), x
            draws.calls += 1
            if isinstance(own, diffusers.CogVideoXDPMScheduler):
                x, before = own.step(y, before, t, last, x)
                seen.append((t, z, y, before))
            else:
                more = {"prev_timestep": following} if isinstance(own, diffusers.UnCLIPScheduler) else step
                found = own.step(y, t, x, **more)
                x = found.prev_sample
                seen.append((t, z, y, getattr(found, "pred_original_sample", None)))
            last = t
    return x, seen


@pytest.mark.parametrize(("name", "settings", "step", "memory", "within"), CASES)
def test_a_plan_is_the_loop_of_its_scheduler(
    name: str, settings: dict[str, Any], step: dict[str, Any], memory: int, within: float
) -> None:
    scheduler = made(name, settings)
    plan = interop.plan(scheduler, STEPS, step=step)
    assert plan.memory == memory
    start = NOISES[0] * float(getattr(scheduler, "init_noise_sigma", 1.0))
    theirs, seen = their_loop(scheduler, start, **step)
    timesteps = []

    def model(x: Any, timestep: Any) -> Any:
        assert timestep.shape == (3,)
        timesteps.append(float(timestep[0]))
        return network(x, timestep)

    denoise = interop.denoiser(model, scheduler)
    ours = dc.sample(denoise, plan, start, noise=lambda draw, shape: NOISES[int(draw)])
    np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=within * float(theirs.abs().max()))
    np.testing.assert_allclose(timesteps, [float(t) for t, *_ in seen], rtol=0.0, atol=1e-3)
    for k, (_, z, y, x) in enumerate(seen):
        if x is not None and name not in OTHER:
            level = dc.levels.level(torch.tensor([plan.log_snr[k]], dtype=torch.float64), plan.scaling)
            mine = dc.predictions.convert(y, z, level, source=denoise.prediction, target="x")
            np.testing.assert_allclose(mine, x, rtol=0.0, atol=1e-5 * float(z.abs().max() + x.abs().max()))


OTHER = ("TCDScheduler", "LCMScheduler")
"""Those that return something else as x-hat."""

APART = ("PNDMScheduler", "IPNDMScheduler")
"""PNDM's Runge-Kutta start, and its averages of v, mix levels; IPNDM starts at alpha = 0, where it makes x-hat 0."""


KEPT = [case for case in CASES if case[0] not in APART and case[1] != {"variance_type": "fixed_large"}]


@pytest.mark.parametrize(("name", "settings", "step", "memory", "within"), KEPT)
def test_the_levels_are_those_of_the_states(
    name: str, settings: dict[str, Any], step: dict[str, Any], memory: int, within: float
) -> None:
    """Where x-hat is x, every state is alpha x + sigma eps: so the responses of a plan show its levels."""
    plan = interop.plan(made(name, settings), STEPS, step=step)
    for row, level in zip(responses(plan.update)[:-1], plan.log_snr, strict=True):
        inputs = 2 + (plan.second is not None)
        noise = math.hypot(row[0] * plan.start.sigma, *row[1::inputs])
        signal = row[0] * (plan.start.alpha - 1.0) + row.sum() - row[1::inputs].sum()
        at = dc.levels.level(level, plan.scaling)
        np.testing.assert_allclose([signal, noise], [at.alpha, at.sigma], rtol=2e-3, atol=1e-5)


def test_a_plan_ends_where_its_scheduler_does() -> None:
    for settings, alpha in (({}, 1.0), ({"set_alpha_to_one": False}, 0.9999)):
        end = interop.plan(diffusers.DDIMScheduler(**settings), STEPS).end
        np.testing.assert_allclose([end.alpha, end.sigma], [alpha**0.5, (1.0 - alpha) ** 0.5], rtol=1e-3)


def test_image_to_image_begins_in_the_middle() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(3)
    plan = interop.plan(scheduler)
    assert len(plan) == STEPS - 3
    theirs, _ = their_loop(scheduler, NOISES[0], first=3)
    ours = dc.sample(interop.denoiser(network, scheduler), plan, NOISES[0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "second"),
    [
        ("DDPMScheduler", {}, None),
        ("DDIMScheduler", {}, "raw"),  # whose direction keeps the noise of x-hat before it is clipped
        ("DDIMScheduler", {"use_clipped_model_output": True}, None),
        ("CogVideoXDDIMScheduler", {}, None),  # which has the setting, and ignores it
    ],
)
def test_clipping_is_a_transform_and_the_scheduler_keeps_its_own(name: str, settings: Any, second: str | None) -> None:
    scheduler = made(name, {"clip_sample": True})
    plan = interop.plan(scheduler, STEPS, step=settings)
    assert scheduler.config.clip_sample
    assert plan.second == second
    clips = name != "CogVideoXDDIMScheduler"
    theirs, _ = their_loop(scheduler, NOISES[0], clip=True, **settings)
    noise = lambda draw, shape: NOISES[int(draw)]  # noqa: E731
    run = {"noise": noise, "transform_x": dc.guidance.clip()} if clips else {"noise": noise}
    ours = dc.sample(interop.denoiser(network, scheduler), plan, NOISES[0], **run)
    np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=1e-6)  # x-hat before it is clipped, from levels of float32
    plain = dc.sample(interop.denoiser(network, scheduler), plan, NOISES[0], noise=noise)
    assert clips == (not np.allclose(ours, plain))


def test_the_steps_may_be_set_before_or_by_their_other_arguments() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    plan = interop.plan(scheduler, sigmas=[1.0, 0.7, 0.4])
    np.testing.assert_allclose(plan.levels.sigma, [1.0, 0.7, 0.4], rtol=1e-6)
    assert interop.plan(scheduler) == plan


def test_schedules_are_their_tables() -> None:
    ddpm = diffusers.DDPMScheduler()
    alpha = interop.schedule(ddpm)(np.arange(1000) / 999.0).alpha
    np.testing.assert_allclose(alpha**2, ddpm.alphas_cumprod, rtol=1e-6)
    assert interop.schedule(diffusers.EulerDiscreteScheduler()).scaling == "ve"
    assert interop.schedule(diffusers.FlowMatchEulerDiscreteScheduler()) == dc.schedules.Flow()
    assert interop.schedule(diffusers.EDMEulerScheduler()) == dc.schedules.Karras()
    zero = interop.schedule(diffusers.UniPCMultistepScheduler(rescale_betas_zero_snr=True))  # whose last entry is 2^-24
    assert zero.log_snr(1.0) == -np.inf
    with pytest.raises(TypeError, match="no table of training"):
        interop.schedule(diffusers.IPNDMScheduler())


def test_a_denoiser_serves_any_plan_of_its_scaling() -> None:
    scheduler = diffusers.DDPMScheduler()
    seen = []

    class Output:
        sample = torch.zeros(2, 3)

    def model(x: Any, timestep: Any, shift: float) -> Any:
        seen.append((timestep.dtype, timestep.tolist(), shift))
        return Output()

    denoise = interop.denoiser(model, scheduler, shift=0.5)
    schedule = interop.schedule(scheduler)
    found = denoise(torch.zeros(2, 3), torch.tensor([schedule.log_snr(0.5), schedule.log_snr(1.0)]).float())
    assert found is Output.sample
    assert seen[0][0] == torch.int64 or seen[0][0] == torch.float32
    assert seen[0][2] == 0.5
    np.testing.assert_allclose(seen[0][1], [499.5, 999.0], atol=0.6)
    with pytest.raises(ValueError, match="scaling"):
        dc.sample(denoise, dc.samplers.ddim(dc.schedules.Flow(), steps=2), torch.zeros(2, 3))


def test_guidance_by_two_embeddings_is_one_call() -> None:
    scheduler = diffusers.EulerDiscreteScheduler()
    calls = []

    def model(x: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
        calls.append(len(x))
        return network(x, timestep) + encoder_hidden_states

    text, null = torch.ones(1, 5, dtype=torch.float64), torch.zeros(1, 5, dtype=torch.float64)
    plan = interop.plan(scheduler, 3)
    denoise = interop.denoiser(model, scheduler)
    cond, nothing = {"encoder_hidden_states": text}, {"encoder_hidden_states": null}
    guided = dc.guidance.classifier_free(denoise, cond=cond, null=nothing, scale=7.5)
    ours = dc.sample(guided, plan, 10.0 * NOISES[0])
    assert calls == [6, 6, 6]
    u = interop.denoiser(lambda x, t: network(x, t) + 7.5, scheduler)  # u + 7.5 (c - u)
    np.testing.assert_allclose(ours, dc.sample(u, plan, 10.0 * NOISES[0]), rtol=1e-12)


def test_the_timesteps_of_a_run_are_worked_out_on_the_host() -> None:
    """So that nothing waits for a device: the run reads no value of a tensor."""

    class Reads(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func not in (torch.Tensor.item, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.tolist)
            assert func is not torch.Tensor.__array__
            return func(*args, **(kwargs or {}))

    scheduler = diffusers.DDIMScheduler()
    plan = interop.plan(scheduler, 3)
    seen = []

    def watched(x: Any, t: Any) -> Any:
        seen.append(t)
        return network(x, t)

    denoise = interop.denoiser(watched, scheduler)
    level = torch.full((3,), float(plan.log_snr[1]))
    at = denoise.at(plan.log_snr[1])
    with Reads():
        found = at(NOISES[0], level)
    assert torch.equal(found, denoise(NOISES[0], level))
    assert [t.tolist() for t in seen] == [[333] * 3] * 2


def test_what_cannot_be_a_plan_is_refused() -> None:
    stock = diffusers.DDIMScheduler
    for wrong, says in (
        (3, "got 3; write its loop for samplers.trace"),
        (stock, r"got the class DDIMScheduler; call it: DDIMScheduler\(\), or"),
        (
            type("Pipeline", (), {"scheduler": stock()})(),
            r"got an object of type Pipeline; give its .* pipeline\.scheduler",
        ),
    ):
        with pytest.raises(TypeError, match=rf"`scheduler` must be a scheduler of diffusers .* {says}"):
            interop.plan(wrong)
    for steps, error in ((0, ValueError), ("3", TypeError), (2.5, TypeError)):
        with pytest.raises(error, match=r"interop\.diffusers\.plan: `steps` must be an int >= 1, got"):
            interop.plan(stock(), steps)
    with pytest.raises(TypeError, match="DDIMInverseScheduler, which takes the output"):
        interop.plan(diffusers.DDIMInverseScheduler(), STEPS)
    with pytest.raises(ValueError, match="`prediction_type` must be one of"):
        interop.denoiser(network, diffusers.DDPMScheduler(prediction_type="score"))


def test_every_scheduler_of_diffusers_is_taken_or_refused_with_the_way_out() -> None:
    """Whatever class a project has; those that are taken draw what they draw (above), so that here only their kind is asked for."""
    from diffcore.interop import _config, _untaken

    needs: dict[str, dict[str, Any]] = {
        "AmusedScheduler": {"mask_token_id": 1},
        "VQDiffusionScheduler": {"num_vec_classes": 8},
        "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
    }
    named = {case[0] for case in CASES}
    for name, kind in _config.kinds().items():
        if name in ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"):
            continue  # which need torchsde to be made
        scheduler = kind(**needs.get(name, {}))
        if name in _untaken.UNTAKEN or name == "DDIMInverseScheduler":
            for call in (
                interop.plan,
                interop.schedule,
                lambda s: interop.denoiser(network, s),
                interop.Scheduler.from_config,
            ):
                with pytest.raises(TypeError, match=rf"`scheduler`,? (is )?a {name}.*; (use|write|it can|divide) .*"):
                    call(scheduler)
        else:
            assert name in named, f"{name} is neither read in CASES nor refused in interop._untaken"
            assert interop.denoiser(network, scheduler).prediction is not None
    assert len(interop.plan(diffusers.HeliosScheduler(stages=1, scheduler_type="euler"), 4)) == 4


def test_what_takes_the_place_of_a_scheduler_that_is_refused_draws_the_same() -> None:
    """The advice is right: the loops of three of them against the plans that their messages name."""
    x, flow = NOISES[0], dc.schedules.Flow()

    def mean(z: Any, t: Any, r: Any) -> Any:
        return network(z, 1000.0 * t) + 0.1 * r * z

    def sigma(log_snr: Any) -> Any:
        return float(dc.levels.level(log_snr.reshape(-1)[:1], "flow").sigma)

    scheduler: Any = diffusers.FlowMapEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    want = x
    for k, t in enumerate(scheduler.timesteps):
        want = scheduler.step(
            mean(want, float(scheduler.sigmas[k]), float(scheduler.sigmas[k + 1])), t, want
        ).prev_sample
    plan = dc.samplers.flow_map(flow, grid=dc.grids.flow_match(flow, 4, shift=3.0))
    found = dc.sample(lambda z, a, b: mean(z, sigma(a), sigma(b)), plan, x, prediction="flow")
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)

    scheduler = diffusers.MiniMaxH3Scheduler()
    scheduler.set_timesteps(5)
    want = x
    for t in scheduler.timesteps:
        want = scheduler.step(network(want, t), t, want).prev_sample
    plan = dc.samplers.ddim(flow, grid=dc.grids.flow_match(flow, 5 - 1, shift=scheduler.shift))
    found = dc.sample(lambda z, at: -network(z, 1.0 - sigma(at)), plan, x, prediction="flow")
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)  # whose times are float32

    scheduler, draws = diffusers.CMStochasticIterativeScheduler(clip_denoised=False), iter(NOISES[1:])
    scheduler.set_timesteps(3)
    levels = torch.cat([scheduler.sigmas[:3].double(), torch.tensor([scheduler.config.sigma_min]).double()])
    want = levels[0] * x
    own: Any = Draws()
    for t in scheduler.timesteps:
        scale = scheduler.scale_model_input(want, t)
        own.calls += 1
        with own:
            want = scheduler.step(network(scale, t), t, want).prev_sample

    def consistent(z: Any, log_snr: Any) -> Any:
        at = torch.exp(-0.5 * log_snr.reshape(-1)[:1])
        skip, out = scheduler.get_scalings_for_boundary_condition(at)
        return skip * z + out * network(z / (at**2 + 0.25) ** 0.5, 250.0 * torch.log(at))

    grid = -2.0 * np.log(levels.numpy())
    plan = dc.samplers.lcm(dc.schedules.Karras(), grid=grid, floor=scheduler.config.sigma_min)
    found = dc.sample(consistent, plan, levels[0] * x, prediction="x", noise=lambda *_: next(draws))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_an_entry_that_the_class_does_not_take_is_answered_with_where_it_belongs() -> None:
    own, stock = interop.Scheduler.from_config, diffusers.DDIMScheduler()
    for more, says in (
        (
            {"use_karras_sigmas": True},
            r"DDIMScheduler takes no `use_karras_sigmas`; DPMSolverMultistep.* take it: scheduler='DPMSolver",
        ),
        (
            {"sampler": "dpm_solver_pp", "order": 3},
            r"`order`; it is a setting of dpm_solver_pp: settings={'order': ...}",
        ),
        ({"predicton_type": "sample"}, r"did you mean `prediction_type`\?"),
        ({"colour": 3}, r"`colour`; it takes .*beta_end.*"),
    ):
        with pytest.raises(TypeError, match=says):
            own(stock, **more)
    with pytest.raises(TypeError, match=r"Scheduler: a DDIMScheduler takes no `use_karras_sigmas`; DPM"):
        interop.Scheduler(use_karras_sigmas=True)
    assert own(stock, scheduler="DPMSolverMultistepScheduler", use_karras_sigmas=True).config["use_karras_sigmas"]


class Pipeline:
    scheduler: Any = None
    components: Any = None


def test_what_is_given_in_the_wrong_place_is_answered_with_where_it_goes() -> None:
    stock, x, plan = diffusers.DDIMScheduler(), NOISES[0], interop.plan(diffusers.DDIMScheduler(), 4)
    calls: list[tuple[Any, str]] = [
        (
            lambda: interop.plan(stock.config, 4),
            r"give the scheduler itself, such as DDIMScheduler\.from_config\(config\)",
        ),
        (lambda: interop.plan("DDIMScheduler", 4), r"give the scheduler itself"),
        (lambda: interop.Scheduler(stock), r"it is Scheduler\.from_config\(\.\.\.\)"),
        (lambda: interop.Scheduler(stock.config), r"it is Scheduler\.from_config\(\.\.\.\)"),
        (lambda: interop.Scheduler(**stock.config), r"it is Scheduler\.from_config\(config\)"),
        (
            lambda: interop.plan(stock, 4, eta=1.0),
            r"`eta` is an argument of DDIMScheduler\.step; give step=\{'eta': 1\.0\}",
        ),
        (lambda: interop.plan(stock, 4, step=1.0), r"`step` must be a dict of arguments of scheduler\.step"),
        (
            lambda: interop.denoiser(network, stock)(x, torch.zeros(3), x),
            r"`cond` must be a dict of inputs of the network",
        ),
        (lambda: dc.sample(interop.denoiser(network, stock), plan, x.numpy()), r"`z` must be a tensor of torch"),
        (lambda: interop.denoiser(Pipeline(), stock), r"give that of the pipeline: pipeline\.unet"),
        (
            lambda: dc.sample(lambda z, _: (z, 3), plan, x, prediction="eps"),
            r"return one of its entries, the prediction",
        ),
        (
            lambda: dc.sample(lambda z, _: {"y": z}, plan, x, prediction="eps"),
            r"return one of its entries \['y'\], the prediction",
        ),
    ]
    for call, says in calls:
        with pytest.raises(TypeError, match=says):
            call()


def test_a_network_may_return_a_tuple_and_conditions_replace_inputs() -> None:
    def labelled(sample: Any, timestep: Any, label: Any) -> Any:
        return (network(sample, timestep) + label.reshape(-1, 1),)

    stock, label = diffusers.DDIMScheduler(), torch.full((1,), 0.3, dtype=torch.float64)
    plain = interop.denoiser(lambda z, t: network(z, t) + 0.3, stock)
    want = dc.sample(plain, interop.plan(stock, 4), NOISES[0])
    found = dc.sample(interop.denoiser(labelled, stock, label=label), interop.plan(stock, 4), NOISES[0])
    torch.testing.assert_close(found, want)
    both = interop.denoiser(labelled, stock, label=9.0 * label)
    guided = dc.guidance.classifier_free(both, cond={"label": label}, null={"label": label}, scale=3.0)
    torch.testing.assert_close(dc.sample(guided, interop.plan(stock, 4), NOISES[0]), want)


def test_nothing_is_patched_and_the_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    assert interop.plan(diffusers.EulerAncestralDiscreteScheduler(), STEPS).stochastic
    assert torch.equal(torch.get_rng_state(), before)
