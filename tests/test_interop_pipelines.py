"""Pipelines of diffusers with tiny random weights: with `Scheduler` they draw what they draw with their own schedulers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffcore.interop.diffusers import Scheduler  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def seeded(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def unet(**changes: Any) -> Any:
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 2, "sample_size": 8, "cross_attention_dim": 8}
    return diffusers.UNet2DConditionModel(**blocks, **sizes, norm_num_groups=2, **changes)


def vae(channels: int = 4) -> Any:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return diffusers.AutoencoderKL(block_out_channels=[4, 8], latent_channels=channels, norm_num_groups=2, **blocks)


def stable(pipeline: str, scheduler: Any, **changes: Any) -> Any:
    parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
    make = getattr(diffusers, pipeline)
    return make(vae=vae(), unet=unet(**changes), scheduler=scheduler, requires_safety_checker=False, **parts)


TEXT = {"prompt_embeds": seeded(1, 4, 8), "negative_prompt_embeds": seeded(1, 4, 8) + 1.0}
IMAGE = seeded(1, 3, 16, 16).clamp(-1, 1)
MASK = (torch.arange(16) < 8).float().expand(1, 1, 16, 16)


def ddpm(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    model = diffusers.UNet2DModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
        in_channels=3,
        out_channels=3,
        **blocks,
    )
    return diffusers.DDPMPipeline(unet=model, scheduler=scheduler), {"num_inference_steps": 4}


def text_to_image(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    return stable("StableDiffusionPipeline", scheduler), {**TEXT, "num_inference_steps": 4, "height": 16, "width": 16}


def image_to_image(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    return stable("StableDiffusionImg2ImgPipeline", scheduler), {**TEXT, "num_inference_steps": 6, "image": IMAGE}


def inpainting(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    given = {"num_inference_steps": 4, "image": IMAGE, "mask_image": MASK, "height": 16, "width": 16, "strength": 0.8}
    return stable("StableDiffusionInpaintPipeline", scheduler), {**TEXT, **given}


def animate(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    sizes = {"motion_layers_per_block": 2, "motion_norm_num_groups": 2, "motion_num_attention_heads": 4}
    adapter = diffusers.MotionAdapter(block_out_channels=(8, 8), **sizes)
    parts = {"text_encoder": None, "tokenizer": None, "motion_adapter": adapter}
    made = diffusers.AnimateDiffPipeline(vae=vae(), unet=unet(), scheduler=scheduler, **parts)
    return made, {**TEXT, "num_inference_steps": 3, "num_frames": 3, "height": 16, "width": 16}


def cog(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    sizes = {
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 2,
    }
    sizes |= {"text_embed_dim": 8, "num_layers": 1, "sample_width": 2, "sample_height": 2, "sample_frames": 9}
    model = diffusers.CogVideoXTransformer3DModel(**sizes, patch_size=2, max_text_seq_length=4)
    made = diffusers.CogVideoXPipeline(
        transformer=model, vae=None, tokenizer=None, text_encoder=None, scheduler=scheduler
    )
    return made, {**TEXT, "num_inference_steps": 3, "num_frames": 9, "height": 16, "width": 16}


def wan(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8}
    model = diffusers.WanTransformer3DModel(**sizes, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32)
    made = diffusers.WanPipeline(transformer=model, vae=None, tokenizer=None, text_encoder=None, scheduler=scheduler)
    return made, {**TEXT, "num_inference_steps": 3, "num_frames": 5, "height": 16, "width": 16}


def ltx(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    sizes = {"in_channels": 8, "out_channels": 8, "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 1}
    model = diffusers.LTXVideoTransformer3DModel(**sizes, cross_attention_dim=32, caption_channels=8)
    made = diffusers.LTXPipeline(transformer=model, vae=None, tokenizer=None, text_encoder=None, scheduler=scheduler)
    masks = {"prompt_attention_mask": torch.ones(1, 4), "negative_prompt_attention_mask": torch.ones(1, 4)}
    return made, {**TEXT, **masks, "num_inference_steps": 3, "num_frames": 9, "height": 32, "width": 32}


def sd3(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    sizes = {"sample_size": 8, "patch_size": 1, "in_channels": 4, "num_layers": 1, "attention_head_dim": 8}
    more = {"joint_attention_dim": 8, "caption_projection_dim": 32, "pooled_projection_dim": 8, "out_channels": 4}
    model = diffusers.SD3Transformer2DModel(**sizes, **more, num_attention_heads=4)
    parts = dict.fromkeys(
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3", "vae")
    )
    made = diffusers.StableDiffusion3Pipeline(transformer=model, scheduler=scheduler, **parts)
    pooled = {"pooled_prompt_embeds": seeded(1, 8), "negative_pooled_prompt_embeds": seeded(1, 8) + 1.0}
    return made, {**TEXT, **pooled, "num_inference_steps": 3, "height": 64, "width": 64}


def flux(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    sizes = {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    more = {"num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": [4, 4, 8]}
    model = diffusers.FluxTransformer2DModel(**sizes, **more)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae"))
    made = diffusers.FluxPipeline(transformer=model, scheduler=scheduler, **parts)
    text = {"prompt_embeds": TEXT["prompt_embeds"], "pooled_prompt_embeds": seeded(1, 8)}
    return made, {**text, "num_inference_steps": 3, "height": 32, "width": 32}


DYNAMIC = {"use_dynamic_shifting": True}
PIPELINES: list[tuple[Callable[[Any], Any], str, dict[str, Any]]] = [
    (text_to_image, "DDIMScheduler", {**SD, "set_alpha_to_one": False, "steps_offset": 1}),
    (text_to_image, "PNDMScheduler", {"skip_prk_steps": True}),
    (text_to_image, "EulerDiscreteScheduler", {}),
    (text_to_image, "EulerAncestralDiscreteScheduler", {}),
    (text_to_image, "UniPCMultistepScheduler", {}),
    (text_to_image, "LCMScheduler", {}),
    (image_to_image, "PNDMScheduler", {"skip_prk_steps": True}),
    (image_to_image, "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    (image_to_image, "HeunDiscreteScheduler", {}),
    (image_to_image, "DDIMScheduler", {}),
    (inpainting, "DDIMScheduler", SD),
    (inpainting, "EulerDiscreteScheduler", {}),
    (animate, "DDIMScheduler", {**SD, "beta_schedule": "linear"}),
    (cog, "CogVideoXDDIMScheduler", ZERO),
    (cog, "CogVideoXDPMScheduler", ZERO),
    (wan, "UniPCMultistepScheduler", FLOW),
    (wan, "FlowMatchEulerDiscreteScheduler", {"shift": 7.0}),
    (ltx, "FlowMatchEulerDiscreteScheduler", {**DYNAMIC, "shift_terminal": 0.1, "base_shift": 0.95, "max_shift": 2.05}),
    (sd3, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    (sd3, "UniPCMultistepScheduler", FLOW),
    (sd3, "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    (flux, "FlowMatchEulerDiscreteScheduler", DYNAMIC),
]


def drawn(pipe: Any, given: dict[str, Any]) -> Any:
    pipe.set_progress_bar_config(disable=True)
    kind = "latent" if not isinstance(pipe, diffusers.DDPMPipeline) else "np"
    found = pipe(**given, generator=torch.Generator().manual_seed(0), output_type=kind, return_dict=False)[0]
    return torch.as_tensor(found)


def check(make: Callable[[Any], Any], name: str, settings: dict[str, Any]) -> float:
    """Return by how much a pipeline made with our scheduler is off, relative to what it draws with its own."""
    found = []
    for scheduler in (
        getattr(diffusers, name)(**settings),
        Scheduler.from_config(getattr(diffusers, name)(**settings)),
    ):
        torch.manual_seed(0)  # of the weights
        pipe, given = make(scheduler)  # which changes some settings of schedulers
        found.append(drawn(pipe, given))
    assert found[0].dtype is found[1].dtype
    assert torch.isfinite(found[0]).all()
    return float((found[1] - found[0]).abs().max() / found[0].abs().max())


@pytest.mark.parametrize(("name", "settings"), [("DDPMScheduler", {}), ("DDIMScheduler", {"thresholding": True})])
def test_ddpm_draws_the_same(name: str, settings: dict[str, Any]) -> None:
    assert check(ddpm, name, settings) < 1e-5


def test_a_pipeline_is_saved_and_loaded_with_it(tmp_path: Path) -> None:
    pipe, given = ddpm(Scheduler.from_config(diffusers.DDPMScheduler(), sampler="dpm_solver_pp", settings={"order": 2}))
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is Scheduler
    assert again.scheduler.config.sampler == "dpm_solver_pp"
    again.unet = pipe.unet  # weights of a file lie at odd addresses, where some processors sum in another order
    assert torch.equal(drawn(again, given), drawn(pipe, given))


@pytest.mark.slow
@pytest.mark.parametrize(("make", "name", "settings"), PIPELINES)
def test_pipelines_draw_the_same(make: Callable[[Any], Any], name: str, settings: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    assert check(make, name, settings) < 1e-5


if __name__ == "__main__":  # the figures: python tests/test_interop_pipelines.py
    for make, name, settings in [(ddpm, "DDPMScheduler", {}), *PIPELINES]:
        print(f"{make.__name__:16s} {name:36s} {check(make, name, settings):.1e}", flush=True)  # noqa: T201
