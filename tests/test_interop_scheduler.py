"""`interop.diffusers.Scheduler` against the schedulers of diffusers: their loops, their configs, their interface."""

from __future__ import annotations

import copy
import inspect
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffcore as dc

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers_cases import EXACT, ROUNDED  # noqa: E402

from diffcore.interop import diffusers as interop  # noqa: E402
from diffcore.interop.diffusers import Scheduler  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Should have:UserWarning"),
]

STEPS = 8
STARTS = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NAMES = [
    "DDIMScheduler",
    "UniPCMultistepScheduler",
    "TCDScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "EDMEulerScheduler",
]
NAMES += ["IPNDMScheduler", "UnCLIPScheduler", "SASolverScheduler", "PNDMScheduler", "CogVideoXDPMScheduler"]


def made(name: str, settings: dict[str, Any]) -> Any:
    if not hasattr(diffusers, name):
        pytest.skip(f"this version of diffusers has no {name}")
    if name in ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"):
        pytest.importorskip("torchsde")
    return getattr(diffusers, name)(**settings)


def network(x: Any, timestep: Any) -> Any:
    t = torch.as_tensor(timestep, dtype=x.dtype).reshape(-1)[:1]
    return 0.8 * torch.tanh(1.1 * x) + 0.1 * torch.sin(t / 200.0) * x + 0.05 * torch.cos(x)


def loop(scheduler: Any, *, first: int = 0, dtype: Any = torch.float64, **step: Any) -> tuple[Any, list[Any], Any]:
    """A pipeline's loop: (sample, what each step returns beside it, the state of the generator)."""
    own, generator = copy.deepcopy(scheduler), torch.Generator().manual_seed(0)
    own.set_timesteps(STEPS)
    if first and hasattr(own, "set_begin_index"):
        own.set_begin_index(first)
    takes, others, old, last = inspect.signature(own.step).parameters, [], None, None
    x = STARTS.to(dtype) * float(getattr(own, "init_noise_sigma", 1.0))
    step |= {"generator": generator} if "generator" in takes else {}
    times = own.timesteps[first:]
    for k, t in enumerate(times):
        y = network(own.scale_model_input(x, t) if hasattr(own, "scale_model_input") else x, t).to(dtype)
        if isinstance(own, diffusers.CogVideoXDPMScheduler):
            found = own.step(y, old, t, last, x, **step)
            old, last = found[1], t
        else:
            following = {"prev_timestep": times[k + 1] if k + 1 < len(times) else None}
            unclip = "UnCLIPScheduler" in (type(own).__name__, own.config.get("scheduler"))
            found = own.step(y, t, x, return_dict=False, **step, **(following if unclip else {}))
        x = found[0]
        others.append(found[1] if len(found) > 1 else None)
    return x, others, generator.get_state()


CASES = [(name, settings, step, 1e-12) for name, settings, step, _ in EXACT]
CASES += [(name, settings, step, 1e-6) for name, settings, step, _ in ROUNDED]


@pytest.mark.parametrize(
    ("name", "settings", "step", "within", "first"), [(*case, 4 * (k % 2)) for k, case in enumerate(CASES)]
)
def test_a_loop_is_the_one_of_its_class(
    name: str, settings: dict[str, Any], step: dict[str, Any], within: float, first: int
) -> None:
    """From the start and from the middle, with clipping, its draws, and what it returns beside the sample."""
    stock = made(name, settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the seed of Brownian paths
        theirs, beside, used = loop(stock, first=first, **step)
        torch.manual_seed(0)
        ours, mine, drawn = loop(Scheduler.from_config(stock), first=first, **step)
    scale = float(theirs.abs().max())
    np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=within * scale)
    assert torch.equal(drawn, used)
    for one, other in zip(mine, beside, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            np.testing.assert_allclose(one, other, rtol=0.0, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("name", ["DDIMScheduler", "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_dtypes_are_those_of_their_class(name: str) -> None:
    for sample, output in (
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
    ):
        found = []
        for scheduler in (made(name, {}), Scheduler.from_config(made(name, {}))):
            scheduler.set_timesteps(4)
            x = STARTS[:, :, None].to(sample)  # video
            found.append(scheduler.step(0.1 * x.to(output), scheduler.timesteps[0], x, return_dict=False)[0])
        assert found[0].dtype is found[1].dtype
        assert torch.allclose(found[0].float(), found[1].float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_kept_and_saved(name: str, tmp_path: Path) -> None:
    stock = made(name, {})
    ours = Scheduler.from_config(stock)
    for key, value in stock.config.items():
        assert key.startswith("_") or ours.config[key] == value
    for other in ours.compatibles if name in ("DDIMScheduler", "UniPCMultistepScheduler") else ():
        if other.__name__ == "DPMSolverSDEScheduler":  # which needs torchsde
            continue
        back = Scheduler.from_config(other.from_config(ours.config).config).config
        assert {key: back[key] for key in ours.config} == dict(ours.config)
    ours.save_pretrained(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    assert {k: v for k, v in ours.config.items() if k != "_use_default_values"} == dict(again.config)
    stock.save_pretrained(tmp_path)  # a config of theirs, with its class
    assert Scheduler.from_pretrained(tmp_path).config.scheduler == name


def test_a_config_names_its_class_or_has_its_entries() -> None:
    assert (
        Scheduler.from_config(diffusers.UniPCMultistepScheduler().config).config.scheduler == "UniPCMultistepScheduler"
    )
    assert Scheduler.from_config(diffusers.DDPMScheduler().config).config.scheduler == "DDPMScheduler"
    with pytest.raises(ValueError, match=r"could be of LCMScheduler or TCDScheduler; give the scheduler itself"):
        Scheduler.from_config(diffusers.TCDScheduler().config)
    assert Scheduler.from_config(diffusers.TCDScheduler()).config.scheduler == "TCDScheduler"


def test_another_class_keeps_the_training_of_the_network() -> None:
    """CogVideoX's defaults are another table of betas than DDIM's, which theirs forgets."""
    cog = diffusers.CogVideoXDDIMScheduler()
    assert diffusers.DDIMScheduler.from_config(cog.config).config.beta_start == 0.0001
    ours = Scheduler.from_config(cog, scheduler="DDIMScheduler")
    assert ours.config.beta_start == cog.config.beta_start == 0.00085
    assert ours.config.beta_schedule == "scaled_linear"


def test_what_pipelines_change_in_a_config_counts() -> None:
    """Those of Stable Diffusion put another config in the place of a scheduler's, with steps_offset 1 and no clipping."""
    for scheduler in (stock := diffusers.DDIMScheduler(), ours := Scheduler.from_config(diffusers.DDIMScheduler())):
        changed = dict(scheduler.config) | {"steps_offset": 1, "clip_sample": False}
        scheduler._internal_dict = diffusers.configuration_utils.FrozenDict(changed)
    again = Scheduler.from_config(stock)  # whose config still says that nobody gave these two
    theirs, *_ = loop(stock)
    for scheduler in (ours, again):
        np.testing.assert_allclose(loop(scheduler)[0], theirs, rtol=0.0, atol=1e-12 * float(theirs.abs().max()))


def test_copies_run_apart_in_threads() -> None:
    scheduler = Scheduler.from_config(diffusers.UniPCMultistepScheduler())
    scheduler.set_timesteps(STEPS)

    def run(seed: int) -> Any:
        own = copy.copy(scheduler)
        x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        for t in own.timesteps:
            x = own.step(network(x, t), t, x, return_dict=False)[0]
        return x

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(run, range(16)))
    assert all(torch.equal(one, run(seed)) for seed, one in enumerate(together))
    assert scheduler.step_index is None


@pytest.mark.parametrize(
    ("stock", "given"),
    [
        ("DDIMScheduler", {"timesteps": [900, 500, 100]}),
        ("DDIMScheduler", {"sigmas": [10.0, 1.0, 0.1]}),
        ("EulerDiscreteScheduler", {"sigmas": [10.0, 1.0, 0.1, 0.0]}),
        ("EulerDiscreteScheduler", {"num_inference_steps": 3}),
        ("FlowMatchEulerDiscreteScheduler", {"sigmas": [1.0, 0.6, 0.2]}),
    ],
)
@pytest.mark.parametrize("sampler", ["unipc", "heun"])
def test_a_sampler_by_name_is_its_plan(stock: str, given: dict[str, Any], sampler: str) -> None:
    """The loop of a pipeline equals `dc.sample` with the plan, on the levels of the class or on those that are given."""
    scheduler = Scheduler.from_config(getattr(diffusers, stock)(), sampler=sampler)
    scheduler.set_timesteps(**given)
    plan = scheduler.plan
    assert plan.sampler.startswith(sampler)
    assert len(scheduler.timesteps) == len(plan) == {"unipc": 3, "heun": 5}[sampler]
    assert scheduler.order == {"unipc": 1, "heun": 2}[sampler]
    if stock != "DDIMScheduler":  # which has none
        assert len(scheduler.sigmas) == len(plan) + 1
        np.testing.assert_allclose(scheduler.sigmas[:-1], plan.levels.sigma, rtol=1e-6)
    x = start = STARTS * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    times = iter(scheduler.timesteps)

    def denoise(z: Any, log_snr: Any) -> Any:
        scale = dc.levels.level(log_snr, "vp").alpha if plan.scaling == "ve" else torch.ones(1)
        return network(z * scale.reshape(-1, 1, 1, 1).to(z.dtype), next(times))

    clip = {"transform_x": dc.guidance.clip()} if scheduler.config.get("clip_sample") else {}
    expected = dc.sample(denoise, plan, start, prediction="flow" if plan.scaling == "flow" else "eps", **clip)
    np.testing.assert_allclose(x, expected, rtol=1e-10, atol=1e-10)


def test_a_sampler_by_name_starts_in_the_middle_and_adds_noise_there() -> None:
    scheduler = Scheduler.from_config(diffusers.EulerDiscreteScheduler(), sampler="heun")
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(6)
    noised = scheduler.add_noise(STARTS, torch.ones_like(STARTS), scheduler.timesteps[6:7])
    sigma = float(scheduler.sigmas[6])
    np.testing.assert_allclose(noised - STARTS, sigma, rtol=1e-6)
    grid = [-2.0 * np.log(float(sigma)) for sigma in scheduler.sigmas[6:-1:2]] + [np.inf]
    expected = dc.samplers.heun(dc.interop.diffusers.schedule(diffusers.EulerDiscreteScheduler()), grid=grid)
    x = noised
    for t in scheduler.timesteps[6:]:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    ours = dc.sample(lambda z, log_snr: 0.1 * z, expected, noised, prediction="eps")
    np.testing.assert_allclose(x, ours, rtol=1e-6)


def test_a_setting_that_a_class_ignores_is_ignored() -> None:
    """CogVideoX's DDIM has `clip_sample` and does not clip."""
    stock = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    theirs, *_ = loop(stock)
    ours, *_ = loop(Scheduler.from_config(stock, sampler="ddim"))
    np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=1e-6 * float(theirs.abs().max()))


def test_a_sampler_by_name_leads_to_the_next_timestep() -> None:
    """DDIM of diffusers goes 1000 // N down, which is the next timestep where N divides 1000; there both are the same."""
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    stock = diffusers.CogVideoXDDIMScheduler(**zero)
    theirs, *_ = loop(stock)
    ours, *_ = loop(Scheduler.from_config(stock, sampler="ddim"))
    np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=1e-12 * float(theirs.abs().max()))
    named = Scheduler.from_config(stock, sampler="ddim")
    named.set_timesteps(3)
    assert named.timesteps.tolist() == [999, 666, 332]
    table = dc.interop.diffusers.schedule(stock)
    np.testing.assert_allclose(named.plan.next_log_snr[:-1], table.log_snr(np.array([666, 332]) / 999), rtol=1e-12)


def test_two_stages_round_no_more_than_one() -> None:
    """In float32 by 3e-7 of the result in float64, where the last of these steps leads from sigma = 0.75 to 0.009."""
    scheduler, found = Scheduler.from_config(diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)), []
    for dtype in (torch.float32, torch.float64):
        scheduler.set_timesteps(3)
        x = STARTS.to(dtype)
        for t in scheduler.timesteps:
            x = scheduler.step((0.8 * torch.tanh(1.1 * x)).to(dtype), t, x).prev_sample
        found.append(x.double())
    assert (found[0] - found[1]).abs().max() < 3e-7 * found[1].abs().max()
    assert len([term for stage in scheduler._run.rows for term in stage.rows[0]]) == 10  # no sum of three


@pytest.mark.parametrize(
    ("name", "settings", "within"),
    [
        ("DDPMScheduler", {"variance_type": "learned_range"}, 1e-12),
        ("DDPMScheduler", {"variance_type": "learned", "thresholding": True}, 1e-12),
        ("UnCLIPScheduler", {"variance_type": "learned_range"}, 1e-12),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned_range"}, 1e-6),
    ],
)
def test_networks_that_predict_variances(name: str, settings: dict[str, Any], within: float) -> None:
    found = []
    for scheduler in (stock := made(name, settings), Scheduler.from_config(stock)):
        generator = torch.Generator().manual_seed(0)
        scheduler.set_timesteps(4)
        x = STARTS
        for t in scheduler.timesteps:
            y = torch.cat([torch.tanh(x), 0.5 + 0.4 * torch.cos(7.0 * x)], dim=1)
            x = scheduler.step(y, t, x, generator=generator).prev_sample
        found.append(x)
    np.testing.assert_allclose(found[1], found[0], rtol=0.0, atol=within * float(found[0].abs().max()))
    named = Scheduler.from_config(stock, sampler="ddim")
    named.set_timesteps(4)
    assert named.step(y, named.timesteps[0], x).prev_sample.shape == x.shape
    network = dc.interop.diffusers.denoiser(lambda sample, timestep: torch.cat([sample, sample], dim=1), stock)
    assert network(x, torch.zeros(2)).shape == x.shape
    if name != "DPMSolverMultistepScheduler":  # which leaves them unused
        with pytest.raises(
            ValueError, match=r"variance its network predicts.*read it with variance_type='fixed_small'"
        ):
            dc.interop.diffusers.plan(stock, 4)
        with pytest.raises(
            ValueError, match=r"must have twice the channels of `sample`, \(2, 6, 4, 4\), got \(2, 3, 4, 4\)"
        ):
            Scheduler.from_config(stock).step(x, 500, x)


def test_a_timestep_for_each_token_is_theirs_to_step() -> None:
    flow, found = diffusers.FlowMatchEulerDiscreteScheduler(), []
    tokens = torch.tensor([[1000.0, 500.0, 250.0]])
    for scheduler in (flow, Scheduler.from_config(flow)):
        scheduler.set_timesteps(4)
        x = STARTS[:1, 0, :3].float()
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * x, t, x, per_token_timesteps=torch.minimum(tokens, t)).prev_sample
        found.append(x)
    assert torch.equal(*found)
    named = Scheduler.from_config(flow, sampler="heun")
    named.set_timesteps(4)
    with pytest.raises(ValueError, match=r"heun takes no `per_token_timesteps`; .* plan.per_frame"):
        named.step(x, named.timesteps[0], x, per_token_timesteps=tokens)


def test_noise_is_theirs_to_give() -> None:
    scheduler = Scheduler.from_config(diffusers.DDPMScheduler(), sampler="ancestral")
    scheduler.set_timesteps(STEPS)
    x, noise = STARTS, torch.ones_like(STARTS)
    with_noise = scheduler.step(0.1 * x, scheduler.timesteps[0], x, variance_noise=noise).prev_sample
    scheduler.set_timesteps(STEPS)
    without = scheduler.step(0.1 * x, scheduler.timesteps[0], x, variance_noise=0.0 * noise).prev_sample
    np.testing.assert_allclose(with_noise - without, scheduler.plan.update[0, 0, 1], rtol=1e-10)


def test_training_methods_are_those_of_the_class() -> None:
    x, noise = STARTS, torch.ones_like(STARTS)
    for name, method in (
        ("DDPMScheduler", "add_noise"),
        ("DDPMScheduler", "get_velocity"),
        ("EulerDiscreteScheduler", "add_noise"),
    ):
        stock = made(name, {})
        ours = Scheduler.from_config(stock)
        at = stock.timesteps[[3, 7]]
        assert torch.equal(getattr(ours, method)(x, noise, at), getattr(stock, method)(x, noise, at))
    flow = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for scheduler in (flow, ours := Scheduler.from_config(flow)):
        scheduler.set_timesteps(5, mu=0.7)
    assert torch.equal(ours.timesteps, flow.timesteps)
    at = flow.timesteps[[1, 2]]
    assert torch.equal(ours.scale_noise(x, at, noise), flow.scale_noise(x, at, noise))


def test_it_is_an_object_of_diffusers() -> None:
    ours = Scheduler.from_config(diffusers.DDIMScheduler())
    assert isinstance(ours, diffusers.SchedulerMixin)
    assert isinstance(ours, diffusers.ConfigMixin)
    assert len(ours) == 1000
    assert ours.betas.shape == (1000,)
    with pytest.raises(AttributeError, match="'Scheduler' object has no attribute 'nothing'"):
        _ = ours.nothing
    ours.register_to_config(more=5)
    with pytest.warns(FutureWarning):
        assert ours.more == 5


@pytest.mark.parametrize("name", ["DDIMScheduler", "FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler"])
def test_it_is_read_as_the_one_that_it_stands_for(name: str) -> None:
    theirs = made(name, {})
    ours = Scheduler.from_config(theirs)
    ours.set_timesteps(4)
    got, truth = (interop.plan(each, 4) for each in (ours, theirs))
    np.testing.assert_allclose(got.coefficients("x"), truth.coefficients("x"), atol=1e-12)
    assert interop.schedule(ours).scaling == interop.schedule(theirs).scaling == got.scaling
    denoise = [interop.denoiser(network, each) for each in (ours, theirs)]
    assert (denoise[0].prediction, denoise[0].scaling) == (denoise[1].prediction, denoise[1].scaling)
    x, at = (torch.from_numpy(np.array(each)) for each in (STARTS, got.levels_of(2)[1]))
    torch.testing.assert_close(*[each(x, at) for each in denoise])


def test_what_does_not_fit_is_refused() -> None:
    x = STARTS
    with pytest.raises(ValueError, match="`scheduler` must be the name of a scheduler of diffusers"):
        Scheduler(scheduler="Nothing")
    with pytest.raises(TypeError, match=r"a DDIMScheduler takes no `shift`; .* take it: scheduler="):
        Scheduler(shift=3.0)
    with pytest.raises(ValueError, match=r"`sampler` must be .*got 'unipcc'; did you mean 'unipc'"):
        Scheduler(sampler="unipcc")
    with pytest.raises(TypeError, match=r"takes no `sampelr`; did you mean `sampler`\?"):
        Scheduler.from_config(diffusers.DDIMScheduler(), sampelr="unipc")
    with pytest.raises(TypeError, match="`config` must be the config of a scheduler"):
        Scheduler.from_config(3)
    ddim = Scheduler.from_config(diffusers.DDIMScheduler())
    with pytest.raises(ValueError, match=r"a DDIMScheduler takes no `timesteps`; .* a `sampler` of ours"):
        ddim.set_timesteps(timesteps=[900, 100])
    ddim.set_timesteps(4)
    with pytest.raises(TypeError, match="step: a DDIMScheduler takes no `s_churn`"):
        ddim.step(x, ddim.timesteps[0], x, s_churn=1.0)
    with pytest.raises(ValueError, match=r"that also predicts variances needs a config that says so"):
        ddim.step(torch.cat([x, x], 1), ddim.timesteps[0], x)
    with pytest.raises(ValueError, match="give `generator` or `variance_noise`"):
        ddim.step(x, ddim.timesteps[0], x, eta=1.0, generator=torch.Generator(), variance_noise=x)
    with pytest.raises(TypeError, match="its states are tokens"):
        Scheduler(scheduler="VQDiffusionScheduler", num_vec_classes=4)
    unipc = Scheduler.from_config(diffusers.UniPCMultistepScheduler())
    unipc.set_timesteps(2)
    for t in unipc.timesteps:
        unipc.step(x, t, x)
    with pytest.raises(ValueError, match="all 2 steps are done; call set_timesteps"):
        unipc.step(x, t, x)
    named = Scheduler.from_config(
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), sampler="ddim"
    )
    with pytest.raises(ValueError, match="the plan of ddim needs timesteps; call set_timesteps"):
        _ = named.plan
    plms = Scheduler.from_config(diffusers.PNDMScheduler(skip_prk_steps=True))
    plms.set_timesteps(4)
    plms.step(x, plms.timesteps[0], x)
    with pytest.raises(ValueError, match="must be the next one, number 1 of `timesteps`"):
        plms.step(x, plms.timesteps[3], x)


def test_a_step_that_is_not_linear_is_refused() -> None:
    class Odd(diffusers.EulerDiscreteScheduler):  # type: ignore[name-defined, misc]
        def step(self, *args: Any, **kwargs: Any) -> Any:
            found = super().step(*args, **kwargs)
            return (found[0].tanh(), *found[1:]) if isinstance(found, tuple) else found

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(diffusers, "Odd", Odd, raising=False)
        odd = Scheduler(scheduler="Odd")
        odd.set_timesteps(4)
        with pytest.raises(ValueError, match="a step of Odd is not linear"):
            odd.step(STARTS, odd.timesteps[0], STARTS)
