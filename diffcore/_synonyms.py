"""Names of the field that are written otherwise here, for messages that say which name may be meant."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

ELSEWHERE = {
    # samplers
    "ancestral": "ddpmancestral psample ddpmpsample ddpmparallel ddpmwuerstchen unclip",
    "ddim": "ddimparallel ddiminverse cogvideoxddim",
    "dpm2_ancestral": "dpm2a kdpm2a",
    "dpm_solver_fast": "dpmfast",
    "dpm_solver_pp": "dpmpp dpmsolvermultistep edmdpmsolvermultistep dpmpp3m dpmsolvermultistepinverse cogvideoxdpm",
    "dpm_solver_pp_2s": "dpmpp2s dpmsolversinglestep",
    "dpm_solver_pp_2m_cfg_pp": "resmultistepcfgpp resmultistepancestralcfgpp",
    "dpm_solver_pp_2s_cfg_pp": "dpmpp2sancestralcfgpp",
    "dpm_solver_pp_3s": "dpmpp3s",
    "dpm_solver_pp_sde": "dpmsolversde",
    "dpmpp_2m": "dpmsolverpp2m dpmpp2malt",
    "dpmpp_2m_sde": "dpmsolverpp2msde sdedpmsolverpp cosinedpmsolvermultistep",
    "dpmpp_2s_ancestral": "dpmpp2sa",
    "dpmpp_3m_sde": "dpmsolverpp3msde",
    "euler": "edmeuler eulerdiscrete flowmatcheuler flowmatcheulerdiscrete",
    "euler_ancestral": "eulera ltxeulerancestralrf",
    "euler_cfg_pp": "ddimcfgpp eulerancestralcfgpp gradientestimationcfgpp",
    "flow_map": "meanflow shortcut flowmapeuler",
    "gradient_estimation": "ge",
    "heun": "edm edmheun edmstochastic heundiscrete karrasve",
    "lcm": "cm consistency cmstochasticiterative heliosdmd scm",
    "predictor_corrector": "pc langevin annealedlangevin",
    "res_2s": "expheun2x0",
    "res_multistep": "res",
    "runge_kutta": "rk2 rk3 rk4 rk45 midpoint dopri5 bosh3 ode",
    "seeds": "expheun2x0sde",
    # schedules
    "ddpm": "linear linearbetaschedule sqrtlinear",
    "edm": "elucidated",
    "iddpm": "squaredcos squaredcoscap cosinebetaschedule squaredcoscapv2 improvedddpm",
    "rectified_flow": "flowmatch flowmatching rf reflow condot ot optimaltransport linearinterpolant",
    "stable_diffusion": "scaledlinear sd sd1 sd15 sd2 sdxl ldm latentdiffusion",
    "stable_diffusion_zero_snr": "zerosnr ztsnr zeroterminalsnr rescalebetaszerosnr",
    "sub_vp_sde": "subvp",
    "ve_sde": "ve ncsn ncsnpp smld loglinear",
    "vp_sde": "vp",
    # tables of betas
    "linear": "ddpm",
    "scaled_linear": "stablediffusion sd sd15 sdxl ldm",
    "squaredcos_cap_v2": "cosine squaredcos iddpm",
    # grids
    "align_your_steps": "ays",
    "bong_tangent": "bong",
    "flow_match": "flow flowmatching discreteflow flowmatcheuler flowmatcheulerdiscrete",
    "karras": "edm",
    "kl_optimal": "klopt",
    "optimal_steps": "oss",
    "sgm_uniform": "sgm",
    "uniform": "linear uniformtime timeuniform",
    "uniform_log_snr": "logsnr lambda lambdas loguniform loglinear",
}
"""Names here, and what they are called elsewhere, as `plainly` writes that. Of names that mean two things the choices decide."""

SPACED = {
    **{
        name.replace("_", ""): name
        for name in ("karras", "exponential", "polyexponential", "simple", "normal", "beta", "gits")
    },
    **{name.replace("_", ""): name for name in ("sgm_uniform", "ddim_uniform", "kl_optimal", "align_your_steps")},
    "klopt": "kl_optimal",
    "ays": "align_your_steps",
}
"""What names such as "DPM++ 2M Karras" say after the sampler, plainly: where its steps lie, which is the grid here."""


ARGUMENTS = {
    "steps": "num_steps n_steps num_inference_steps inference_steps nfe",
    "like": "device dtype mesh sharding backend xp",
    "seed": "generator rng key random_state keys",
    "prediction": "prediction_type parameterization parametrization objective model_type",
    "scale": "guidance_scale cfg_scale cfg",
    "weight": "guidance guidance_weight",
    "transform_x": "clip clip_denoised clip_sample clip_x transform",
    "denoise": "model net network unet denoiser",
    "grid": "timesteps sigmas times t_steps",
    "callback": "callback_on_step_end hook",
    "shape": "batch_size size n num_samples",
    "z": "x_t latents x_T init",
}
"""Arguments here, and what they are called elsewhere."""

FUNCTIONS = {
    "process.diffuse": "add_noise q_sample forward_process",
    "process.posterior": "q_posterior q_posterior_mean_variance",
    "step": "p_sample",
    "sample": "p_sample_loop generate",
    "guidance.classifier_free": "classifier_free classifier_free_guidance cfg cfg_rescale rescale_cfg",
    "guidance.clip": "clip clip_denoised",
    "guidance.projected": "apg adaptive_projected_guidance",
    "guidance.zero_star": "cfg_zero cfg_zero_star",
    "conditioning.replacement": "replacement inpaint inpainting",
    "conditioning.reconstruction": "reconstruction reconstruction_guidance",
    "losses.denoising": "loss denoising_loss training_losses p_losses mse",
    "schedules.by_name": "get_named_beta_schedule get_beta_schedule",
    "samplers.make": "get_sampler make_sampler",
    "samplers.table()": "names SAMPLERS",
    "noise.normal": "randn randn_like randn_tensor gaussian",
    "likelihood.bound": "elbo vlb",
    "likelihood.ode": "nll log_prob log_likelihood",
    "metrics.frechet_distance": "fid fvd",
    "exact.Mixture": "gmm gaussian_mixture",
    "weights.MinSNR": "min_snr_gamma",
    "predictions.table()": "epsilon v_prediction velocity",
    "sample_adaptive": "dpm_adaptive adaptive",
    "interop.k_diffusion": "comfyui",
    "unet3d.build": "Unet3D UNet UNet3D Unet UNet3DConditionModel",
}
"""Functions here, and what they are called elsewhere."""


def plainly(name: str) -> str:
    """Return a name by its letters and digits alone.

    >>> plainly("DPM++ 2M_SDE"), plainly("dpm_solver_plus_plus")
    ('dpmpp2msde', 'dpmsolverpp')
    """
    return re.sub("[^a-z0-9]", "", name.lower().replace("+", "p")).replace("plusplus", "pp")


def short(name: str) -> str:
    """Return a name plainly, without what other libraries put before and after theirs."""
    ends = "(betaschedule|scheduler|schedule|sampler|sigmas|gpu)+$"
    return re.sub(ends, "", re.sub("^(sample|getsigmas)", "", plainly(name)))


def _forms(name: str) -> Iterator[str]:
    """Yield a name plainly, and in shorter forms."""
    yield plainly(name)
    brief = short(name)
    yield brief
    yield brief.removesuffix("discrete")
    yield brief.removesuffix("multistep")
    yield brief.removeprefix("k")


def same(name: str, choices: Collection[str]) -> str:
    """Return the choice that is written otherwise, or called so elsewhere, "" where there is none.

    >>> same("Euler a", ["euler", "euler_ancestral"]), same("linear", ["ddpm", "linear_vp"]), same("linear", ["euler"])
    ('euler_ancestral', 'ddpm', '')
    """
    plain = {plainly(choice): choice for choice in reversed(list(choices))}
    for form in dict.fromkeys(_forms(name)):
        if form in plain:
            return plain[form]
        for here, there in ELSEWHERE.items():
            if here in choices and form in there.split():
                return here
    return ""


def elsewhere(name: str, names: Mapping[str, str], prefix: str = "") -> str:
    """Return what is called so elsewhere, after a prefix, "" where nothing is.

    >>> elsewhere("sample_dpm_adaptive", FUNCTIONS)
    'sample_adaptive'
    """
    for form in (plainly(name), short(name)):
        for here, there in names.items():
            if form in map(plainly, there.split()):
                return prefix + here
    return ""


def meant(name: str, choices: Collection[str]) -> tuple[str, str]:
    """Return the choice that a name may mean, "" where it means none, and the grid that it names beside a sampler, or "".

    >>> meant("DPM++ 2M Karras", ["euler", "dpmpp_2m"]), meant("unipcc", ["ddim", "unipc"])
    (('dpmpp_2m', 'karras'), ('unipc', ''))
    """
    found = same(name, choices)
    if found or not name:
        return found, ""
    if "euler" in choices:
        for ending in sorted(SPACED, key=len, reverse=True):
            rest = plainly(name).removesuffix(ending)
            if rest != plainly(name) and (found := same(rest, choices)):
                return found, SPACED[ending]
    known = {short(choice): choice for choice in sorted(choices, key=lambda choice: choice == short(choice))}
    near = closest(short(name), known, 0.8 if name.endswith("Scheduler") else 0.6)
    return known.get(near, ""), ""


def closest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the name that is written most like another one, "" where none is like it.

    >>> closest("unipcc", ["ddim", "unipc"])
    'unipc'
    """
    import difflib  # for messages alone

    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)), "")
