"""What a step of `interop.diffusers.Scheduler` costs on four numbers, beside the step of the class that it reads.

    python -m benchmarks.scheduler_steps

Each row is a loop of 20 steps, without its `set_timesteps` and without a network, the median of nine pairs in turn.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

STEPS, PAIRS = 20, 9

CLASSES: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "KDPM2DiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "UniPCMultistepScheduler": {},
    "DEISMultistepScheduler": {},
    "SASolverScheduler": {},
    "LCMScheduler": {},
    "TCDScheduler": {},
    "EDMEulerScheduler": {},
    "CogVideoXDDIMScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {},
}


def seconds(scheduler: Any, x: Any, y: Any) -> float:
    """Return the seconds of one step, in a loop as pipelines have it."""
    scheduler.set_timesteps(STEPS)
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(x, scheduler.timesteps[0])
    before = time.perf_counter()
    for t in scheduler.timesteps:
        x = scheduler.step(y, t, x, return_dict=False)[0]
    return (time.perf_counter() - before) / len(scheduler.timesteps)


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m benchmarks.scheduler_steps", description=__doc__.partition("\n")[0]
    ).parse_args()
    warnings.simplefilter("ignore")
    import diffusers
    import torch

    from diffcore.interop.diffusers import Scheduler

    diffusers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    x, y = torch.randn(1, 4), torch.randn(1, 4)
    print("| class | theirs, us | ours, us | ratio |\n|---|---|---|---|")
    for name, settings in CLASSES.items():
        stock = getattr(diffusers, name)(**settings)
        ours = Scheduler.from_config(stock)
        seconds(ours, x, y)  # which reads it
        pairs = [
            (min(seconds(stock, x, y) for _ in range(3)), min(seconds(ours, x, y) for _ in range(3)))
            for _ in range(PAIRS)
        ]
        theirs, mine = sorted(pairs, key=lambda pair: pair[1] / pair[0])[PAIRS // 2]
        print(f"| {name} | {theirs * 1e6:.1f} | {mine * 1e6:.1f} | {mine / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
