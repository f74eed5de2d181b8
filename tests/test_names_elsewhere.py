"""Names of other libraries, misspelt names and arguments that do not fit are answered with what there is."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffcore
from diffcore import _explained, _synonyms
from diffcore.samplers._table import others

dc: Any = diffcore
SCHEDULE = dc.schedules.Cosine()
PLAN = dc.samplers.ddim(SCHEDULE, 2)
X = np.ones((1, 2))


def net_of(z: Any, log_snr: Any, cond: Any) -> Any:
    return z


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        (dc, "ddim", "diffcore.samplers.ddim"),
        (dc, "Cosine", "diffcore.schedules.Cosine"),
        (dc, "sampler", "diffcore.samplers"),
        (dc.samplers, "DDIM", "diffcore.samplers.ddim"),
        (dc.samplers, "dpmpp_2m_sde", r"diffcore.samplers.dpm_solver_pp\(schedule, steps, order=2, eta=1.0\)"),
        (dc.samplers, "UniPCMultistepScheduler", "diffcore.samplers.unipc"),
        (dc.samplers, "dpmpp", "diffcore.samplers.dpm_solver_pp`"),
        (dc.samplers, "edm", "diffcore.samplers.heun"),
        (dc.samplers, "EulerA", "diffcore.samplers.euler_ancestral"),
        (dc.samplers, "dpm_adaptive", "diffcore.sample_adaptive`"),
        (dc.guidance, "APG", "diffcore.guidance.projected"),
        (dc.metrics, "FID", "diffcore.metrics.frechet_distance`"),
        (dc.exact, "GaussianMixture", "diffcore.exact.Mixture"),
        (dc.grids, "get_sigmas_karras", "diffcore.grids.karras"),
        (dc.schedules, "get_named_beta_schedule", "diffcore.schedules.by_name"),
        (dc, "dpmpp", "diffcore.samplers.dpm_solver_pp`"),
        (dc.schedules, "linear_beta", "diffcore.schedules.LinearBeta"),
        (dc.schedules, "scaled_linear", r"diffcore.schedules.by_name\(\"stable_diffusion\"\)"),
        (dc.grids, "sgm", r"diffcore.grids.by_name\(\"sgm_uniform\", schedule, steps\)"),
        (dc.grids, "ays", "diffcore.grids.align_your_steps"),
        (dc.process, "add_noise", "diffcore.process.diffuse"),
        (dc.video, "extnd", "diffcore.video.extend"),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_the_one_that_is(module: Any, name: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'; did you mean `{meant}"):
        getattr(module, name)
    assert not hasattr(module, name)


def test_functions_and_classes_of_other_libraries_lead_to_ours() -> None:
    """Wherever they are looked for: `dc.sample_dpmpp_2m`, `dc.samplers.DDIMParallelScheduler`, `samplers.make`."""
    here = {f"sample_{name}": of for name, (of, _) in dc.samplers.aliases().items() if not name.endswith("Scheduler")}
    here |= {name: of for name, (of, _) in dc.samplers.aliases().items() if name.endswith("Scheduler")}
    here |= {f"sample_{name}_gpu": "dpm_solver_pp" for name in ("dpmpp_2m_sde", "dpmpp_3m_sde")}
    here |= {f"sample_{name}": name for name in ("euler", "heun", "lms", "euler_ancestral", "lcm", "deis", "er_sde")}
    here |= {f"{name}Scheduler": "ddim" for name in ("DDIMParallel", "DDIMInverse", "CogVideoXDDIM")}
    here |= {f"{name}Scheduler": "ancestral" for name in ("DDPMParallel", "DDPMWuerstchen", "UnCLIP")}
    here |= {f"{name}Scheduler": "dpm_solver_pp" for name in ("DPMSolverMultistepInverse", "CosineDPMSolverMultistep")}
    here |= {
        "sample_exp_heun_2_x0": "res_2s",
        "sample_exp_heun_2_x0_sde": "seeds",
        "sample_dpmpp_2m_alt": "dpm_solver_pp",
    }
    here |= {f"sample_res_multistep{middle}_cfg_pp": "dpm_solver_pp_2m_cfg_pp" for middle in ("", "_ancestral")}
    here |= {f"sample_{name}_cfg_pp": "euler_cfg_pp" for name in ("euler_ancestral", "gradient_estimation")}
    here |= {"CMStochasticIterativeScheduler": "lcm", "FlowMapEulerDiscreteScheduler": "flow_map"}
    modules = (dc, dc.samplers, dc.interop.k_diffusion, dc.interop.diffusers)
    for name, meant in here.items():
        for module in modules:
            with pytest.raises(AttributeError, match=rf"did you mean `diffcore\.samplers\.{meant}[`(]"):
                getattr(module, name)
    for name, meant in {
        "sample_dpm_adaptive": "sample_adaptive",
        "get_sigmas_exponential": r'grids\.by_name\("exponential"',
        "AmusedScheduler": r"interop\.diffusers\.plan\(scheduler, steps\)",
    }.items():
        for module in modules:
            with pytest.raises(AttributeError, match=f"did you mean `diffcore.{meant}"):
                getattr(module, name)
    with pytest.raises(
        ValueError, match=r"got 'AmusedScheduler'; interop\.diffusers\.plan\(scheduler, steps\) reads one"
    ):
        dc.samplers.make("AmusedScheduler", SCHEDULE, 4)


def test_names_nobody_could_mean_and_private_ones_get_no_answer() -> None:
    for name in ("zzzzzz", "_ddim", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"^module 'diffcore.samplers' has no attribute '{name}'$"):
            getattr(dc.samplers, name)


def test_completion_lists_what_a_module_offers_and_nothing_that_it_imports() -> None:
    for module in (dc.testing, dc.process, dc.samplers, dc.mesh):
        assert "Any" not in dir(module)
        assert set(dir(module)) == {name for name in dir(module) if hasattr(module, name)}
    assert set(dir(dc.samplers)) >= set(dc.samplers.table())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dc.samplers.ddim(SCHEDULE, num_inference_steps=4),
            r"samplers.ddim: got an unexpected keyword argument 'num_inference_steps'; did you mean `steps`\? it takes "
            r"\(schedule, steps=None, \*, eta=0.0, ",
        ),
        (
            lambda: dc.sample(None, PLAN, device="cpu"),
            r"sample: .*'device'; did you mean `like`\? it takes \(denoise, plan",
        ),
        (lambda: dc.guidance.classifier_free(None, guidance_scale=2.0), "did you mean `scale`"),
        (lambda: dc.exact.Gaussian(0.0, covarience=1.0), r"'covarience'; did you mean `covariance`\?"),
        (
            lambda: dc.process.posterior(1.0, 2.0, SCHEDULE(0.1), SCHEDULE(0.5)),
            r"process.posterior: got 4 positional arguments, which are too many; it takes \(z_t, x, \*, s, t\)",
        ),
        (
            lambda: dc.noise.normal((2, 3)),
            r"noise.normal: missing 2 .* 'draw' and 'shape'; it takes \(seed, draw, shape",
        ),
        (
            lambda: dc.unet3d.UNet3DConfig(64),
            r"UNet3DConfig: got 1 positional argument, which is .*takes \(\*, frames, size",
        ),
        (lambda: dc.schedules.Cosine.log_snr(0.5), "it is a method of an object, not of a class"),
        (lambda: dc.testing.check_moments(dc.samplers.ddim), r"`plan` must be a Plan.*call it: ddim\(...\)"),
        (lambda: dc.samplers.ddim("edm", 4), r"must be a schedule.*schedules.by_name\('edm'\)"),
        (lambda: dc.samplers.ddim(SCHEDULE, grid="karras"), r"`grid` .*grids.by_name\('karras', schedule, 20\)"),
        (lambda: dc.samplers.heun(SCHEDULE, grid="14.6, 1, 0"), r"`grid` .*grids.from_sigmas\(text\).grid"),
        (lambda: dc.samplers.heun(SCHEDULE, grid=dc.grids.karras), r"`grid` .*call it: grids.karras\(schedule, 20\)"),
        (
            lambda: dc.sample(net_of, "ddim", shape=(1, 2)),
            r"`plan` .*by name it is samplers.make\('ddim', schedule, steps\)",
        ),
        (
            lambda: dc.samplers.heun(SCHEDULE, "karras"),
            r"samplers.heun: `steps` .*grids.by_name\('karras', schedule, 20\)",
        ),
        (
            lambda: dc.samplers.ddim(SCHEDULE, PLAN.log_snr),
            r"samplers.ddim: `steps` must be an int >= 1, .*; log-SNRs are `grid=`",
        ),
        (
            lambda: dc.sample(lambda z, _: z, PLAN, shape=(1, 2), like="cuda", prediction="v"),
            "`like` takes an array .*device='cuda'",
        ),
        (
            lambda: dc.sample(dc.conditioning.replacement(X, X > 0), PLAN, shape=(1, 2)),
            "denoise.*give it as `constraint=`",
        ),
        (
            lambda: dc.sample(lambda z, _: z, PLAN, shape=(1, 2), prediction="x", constraint=lambda z, _: z),
            "`constraint` must be .*goes in its place",
        ),
        (lambda: dc.guidance.clip(X), r"`low` must .*transform_x=guidance.clip\(-1.0, 1.0\)"),
        (lambda: dc.conditioning.frames(2, of=8), r"`which` must be the numbers .*range\(2\)"),
        (
            lambda: dc.guidance.classifier_free(net_of, cond=X, null=X, weight=1, rule=dc.guidance.projected),
            r"`rule` must .*call it: projected\(...\)",
        ),
        (lambda: dc.guidance.classifier_free(net_of, cond=X, weight=1), "`null` is the condition of nothing"),
        (lambda: dc.noise.normal(np.random.default_rng(0), 0, (2,)), "`seed` must be .*`noise=`"),
    ],
)
def test_arguments_that_do_not_fit_are_answered_with_those_that_do(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        call()
    assert len(str(caught.value)) <= 500


def test_an_error_of_the_denoiser_says_what_it_had_where_it_failed() -> None:
    def net(z: Any, log_snr: Any) -> Any:
        z = z[:, :1]  # which is what the note is about, and not what came
        return z * log_snr  # (4, 1, 3) by (4,)

    with pytest.raises(ValueError, match="broadcast") as caught:
        dc.sample(net, PLAN, shape=(4, 2, 3), prediction="v")
    assert caught.value.__notes__ == [
        "sample: `net` had z: ndarray of shape (4, 1, 3) and dtype float32, "
        "log_snr: ndarray of shape (4,) and dtype float32 where it failed"
    ]


class Unmade:
    """What says nothing of itself, like a parameter that torch has not made yet."""

    @property
    def shape(self) -> Any:
        raise RuntimeError("not made")


class Frozen(ValueError):
    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError(name)


def test_no_note_takes_the_place_of_an_error() -> None:
    for error in (ValueError("theirs"), Frozen("theirs")):

        def failing(z: Any, log_snr: Any, of: Any = Unmade(), error: Exception = error) -> Any:  # noqa: B008
            raise error

        with pytest.raises(ValueError, match=r"^theirs"):
            dc.sample(failing, PLAN, shape=(4, 2), prediction="v")
    with pytest.raises(TypeError, match="an object of type Unmade"):
        dc.exact.Gaussian(Unmade(), 1.0)


def test_a_call_that_is_too_deep_is_no_misfit() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(RecursionError, match="recursion"):  # which begins in no frame, as at a call
        _explained.explained(repr)(nested)


def test_only_what_makes_something_is_asked_for_its_result() -> None:
    def of(cls: Any, dtype: Any, made: Any) -> Any:
        return cls, dtype, made

    for made, hint in ((int, False), (len, False), (dc.exact.Gaussian, True), (dc.samplers.ddim, True)):
        said = str(_explained._explanation("of", of, (int, np.float32, made), {}, TypeError("theirs")))
        asks = f"; is `made` meant to be what {made.__name__}(...) returns?" if hint else ""
        assert said.startswith("of: cannot work with `dtype` the class float32, `made` ")
        assert said.endswith(f": theirs{asks}")


def test_modules_that_stand_for_nothing_hinder_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffcore.absent", None)
    assert str(_explained.missing("diffcore.absent", "Cosine")).endswith("did you mean `diffcore.schedules.Cosine`?")


def test_a_condition_has_a_batch_axis() -> None:
    for cond, null, message in (
        (np.array(3), np.array(0), "`cond` must have a first axis, the batch"),
        (3, 0, "labels are arrays"),
    ):
        with pytest.raises(ValueError, match=message):
            dc.guidance.classifier_free(net_of, cond=cond, null=null, weight=1.0)


def test_schedules_go_by_their_names() -> None:
    assert dc.schedules.by_name("edm") == dc.schedules.Karras()
    assert {name: dc.schedules.by_name(name) for name in dc.schedules.named()} == dc.schedules.named()
    assert dc.schedules.by_name("cosine") == dc.schedules.Cosine()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (
            lambda name: dc.samplers.make(name, SCHEDULE, 4),
            {
                "euler_ancestral": ("euler_a", "Euler a", "k_euler_a", "sample_euler_ancestral"),
                "dpm_solver_pp": ("dpm_solver++", "DPMpp", "dpm_solver_plus_plus"),
                "dpmpp_2m": ("DPM++ 2M", "dpmsolver++_2m"),
                "dpmpp_2m' with grid=grids.by_name('karras', schedule, steps)?": ("DPM++ 2M Karras", "dpmpp_2m_karras"),
                "dpmpp_2s_ancestral' with grid=grids.by_name('sgm_uniform": ("DPM++ 2S a SGM Uniform",),
                "dpmpp_2m_sde": ("dpmpp_2m_sde_gpu", "sde-dpmsolver++"),
                "dpm_solver_pp_2s": ("DPMSolverSinglestepScheduler",),
                "heun": ("edm", "Heun"),
                "unipc": ("unipcc", "UniPC"),
                "euler_cfg_pp": ("DDIM CFG++", "euler_cfgpp"),
            },
        ),
        (
            dc.schedules.by_name,
            {
                "cosine": ("cosin",),
                "ddpm": ("linear",),
                "stable_diffusion": ("scaled_linear", "SDXL"),
                "iddpm": ("squaredcos_cap_v2", "cosine_beta_schedule"),
                "rectified_flow": ("flow matching",),
                "vp_sde": ("VP",),
            },
        ),
        (dc.schedules.betas, {"squaredcos_cap_v2": ("cosine",), "scaled_linear": ("stable_diffusion",)}),
        (
            lambda name: dc.grids.by_name(name, SCHEDULE, 4),
            {"align_your_steps": ("AYS",), "karras": ("edm", "karras_sigmas"), "uniform": ("linear",)},
        ),
    ],
    ids=["samplers", "schedules", "betas", "grids"],
)
def test_names_of_the_field_lead_to_ours(make: Callable[[str], Any], names: dict[str, tuple[str, ...]]) -> None:
    for meant, given in names.items():
        for name in given:
            with pytest.raises(ValueError, match=re.escape(f"did you mean '{meant}")):
                make(name)


def test_every_synonym_is_a_name_and_every_spacing_a_grid() -> None:
    named = {*dc.samplers.table(), *others(), *dc.samplers.aliases(), *dc.schedules.named(), *dc.grids.table()}
    assert set(_synonyms.ELSEWHERE) <= named | {"linear", "scaled_linear", "squaredcos_cap_v2"}
    for here in _synonyms.FUNCTIONS:
        assert (
            here.startswith("interop") or functools.reduce(getattr, here.removesuffix("()").split("."), dc) is not None
        )
    assert set(_synonyms.SPACED.values()) <= set(dc.grids.table())
    assert all(name == _synonyms.plainly(name) for there in _synonyms.ELSEWHERE.values() for name in there.split())
    with pytest.raises(ValueError, match=rf"samplers.aliases\(\) has {len(dc.samplers.aliases())} names"):
        dc.samplers.make("nothing like it", SCHEDULE, 4)
    with pytest.raises(ValueError, match=r"that is a grid, .*grid=grids.by_name"):
        dc.samplers.make("karras", SCHEDULE, 4)
    with pytest.raises(ValueError, match=r"dc\.sample_adaptive"):
        dc.samplers.make("DPM adaptive", SCHEDULE, 4)


def test_training_says_what_a_source_is() -> None:
    settings = dc.unet3d.training.Settings(steps=1)
    for wrong in ("videos", np.zeros((4, 4, 8, 8, 1), np.float32)):
        with pytest.raises(
            TypeError, match=r"training.train: `source` must be a source of clips, got .*videos\(folder"
        ):
            dc.unet3d.training.train(dc.unet3d.preset("tiny"), settings, wrong, "run")
    with pytest.raises(TypeError, match=r"data.videos: `folder` must be the path of one folder"):
        dc.unet3d.data.videos(["a.mp4"], frames=4, size=(8, 8))


def test_the_folder_of_a_run_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model = dc.unet3d.build(dc.unet3d.preset("tiny"))
    dc.unet3d.save(model, tmp_path / "model.safetensors")
    assert dc.unet3d.load(tmp_path).config == model.config
    with pytest.raises(ValueError, match="which is a folder"):
        dc.unet3d.load(tmp_path.parent)
