"""Schedulers of diffusers that are not read as plans: why, and what draws the same here."""

from __future__ import annotations

from typing import Any

TOKENS = "its states are tokens, not floating arrays", "use its own loop"
TRACE = "write its loop for samplers.trace"

UNTAKEN = {
    "AmusedScheduler": TOKENS,
    "BlockRefinementScheduler": TOKENS,
    "DiscreteDDIMScheduler": TOKENS,
    "EntropyBoundScheduler": TOKENS,
    "VQDiffusionScheduler": TOKENS,
    "CMStochasticIterativeScheduler": (
        "its network is part of a consistency function",
        "use samplers.lcm(schedules.Karras(), grid=..., floor=scheduler.config.sigma_min) with a denoiser that returns c_skip z + "
        "c_out network, prediction='x'; for c_skip, c_out see its get_scalings_for_boundary_condition",
    ),
    "ConsistencyDecoderScheduler": ("it has scalings of its own, for one decoder", TRACE),
    "DDPMWuerstchenScheduler": (
        "its network takes a share of time instead of timesteps",
        "use samplers.ancestral(schedules.Cosine(), steps) with a denoiser network(z, schedule.time(log_snr)), prediction='eps'",
    ),
    "FlowMapEulerDiscreteScheduler": (
        "its network returns the mean velocity up to another level",
        "use samplers.flow_map(schedules.Flow(), grid=grids.flow_match(schedules.Flow(), steps, shift=...)) with a denoiser of "
        "(z, log_snr, next_log_snr), prediction='flow'",
    ),
    "HeliosScheduler": (
        "with these settings it runs stages of several sizes, or a method that its pipeline feeds",
        "it can be read with stages=1, scheduler_type='euler'",
    ),
    "HeliosDMDScheduler": (
        "its step takes the tables of its pipeline",
        "use samplers.lcm(schedules.Flow(), grid=...)",
    ),
    "KarrasVeScheduler": (
        "its step is two methods that a pipeline calls in turn",
        "use samplers.heun(schedules.Karras(), steps, churn=...)",
    ),
    "MiniMaxH3Scheduler": (
        "its network returns a velocity towards the data, at time 1 - sigma",
        "use samplers.ddim(schedules.Flow(), grid=grids.flow_match(schedules.Flow(), steps - 1, shift=scheduler.shift)) with a "
        "denoiser -network(z, 1 - sigma), prediction='flow'",
    ),
    "PiflowScheduler": ("its network returns several estimates of x for a segment", "use its own loop"),
    "RFD4ProteinaScheduler": ("it rescales the score of its network", TRACE),
    "RePaintScheduler": (
        "it goes back and forth to fill in what is not known",
        "use conditioning.repaint(plan(DDPMScheduler.from_config(scheduler.config), steps), jump=..., times=...) and "
        "constraint=conditioning.replacement(observed, mask)",
    ),
    "SCMScheduler": (
        "its network is one of TrigFlow",
        "divide the latents by its sigma_data, and use samplers.lcm on a schedule of scaling 'vp', prediction='v'",
    ),
    "ScoreSdeVeScheduler": (
        "its corrector divides by norms, which is not linear",
        "use samplers.ancestral(schedules.Geometric(sigma_min=..., sigma_max=...), steps), prediction='score'",
    ),
    "ScoreSdeVpScheduler": (
        "its step is `step_pred`, given a score",
        "use samplers.ancestral(schedules.LinearBeta(), steps), prediction='score'",
    ),
}
"""By the name of a class: what is particular to it, and the way out."""

TAKEN = "schedulers of the families DDPM, DDIM, PNDM, Euler, Heun, LMS, DEIS, DPM-Solver, UniPC, EDM, LCM, flow matching are taken"


def refuse(scheduler: Any, named: str) -> None:
    """Raise TypeError for a scheduler of a class that is not read; `named` is that of a config, for a `Scheduler` of ours."""
    names = [named, *(kind.__name__ for kind in type(scheduler).__mro__)]
    name = next((one for one in names if one in UNTAKEN), None)
    config = getattr(scheduler, "config", {})
    if name is None or (name == "HeliosScheduler" and config["stages"] == 1 and config["scheduler_type"] == "euler"):
        return
    why, way = UNTAKEN[name]
    raise TypeError(f"interop.diffusers: `scheduler`, a {name}, cannot be read as a plan: {why}; {way}")
