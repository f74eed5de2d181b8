"""How long a policy takes to draw actions (1, 16, 7) in 10 steps, the first two of them known, on one core.

    python -m benchmarks.policy [--compile]

The network is a small one-dimensional convolution; the rows are `dc.sample`, the same as one compiled graph, a loop that puts
the known actions in at every step with our `Scheduler` and with `DDIMScheduler`, and ten calls of the network alone.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

STEPS, REPEATS = 10, 50


def median(call: Callable[[], Any]) -> float:
    """Return the milliseconds of a call, the median of many."""
    call()
    times = []
    for _ in range(REPEATS):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return 1e3 * sorted(times)[REPEATS // 2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy", description=__doc__.partition("\n")[0])
    parser.add_argument("--compile", action="store_true", help="time one compiled graph too")
    wanted = parser.parse_args()
    warnings.simplefilter("ignore")
    import diffusers
    import torch

    import diffcore as dc
    from diffcore.interop.diffusers import Scheduler

    torch.set_num_threads(1)
    torch.manual_seed(0)
    convolution = torch.nn.Sequential(
        torch.nn.Conv1d(7, 64, 5, padding=2), torch.nn.SiLU(), torch.nn.Conv1d(64, 7, 5, padding=2)
    ).requires_grad_(False)

    def network(z: Any, timestep: Any) -> Any:
        return convolution(z.mT).mT + timestep[:, None, None] * 1e-6

    scheduler = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    plan = dc.interop.diffusers.plan(scheduler, STEPS)
    denoise = dc.interop.diffusers.denoiser(network, scheduler)
    observed, known = torch.zeros(1, 16, 7), torch.arange(16)[:, None] < 2
    start = torch.randn(1, 16, 7)

    def draw(start: Any, observed: Any) -> Any:
        hold = dc.conditioning.replacement(observed, known)
        return dc.sample(denoise, plan, start, seed=7, constraint=hold)

    def steps(scheduler: Any) -> Any:
        scheduler.set_timesteps(STEPS)
        x = start
        for t in scheduler.timesteps:
            x = torch.where(known, scheduler.add_noise(observed, torch.randn_like(x), t[None]), x)
            x = scheduler.step(network(x, t[None]), t, x).prev_sample
        return torch.where(known, observed, x)

    def alone() -> Any:
        for t in scheduler.timesteps:
            network(start, t[None])

    rows: dict[str, Callable[[], Any]] = {"dc.sample": lambda: draw(start, observed)}
    if wanted.compile:
        compiled = torch.compile(draw, fullgraph=True)
        rows["dc.sample, one graph"] = lambda: compiled(start, observed)
    print("| | ms |\n|---|---|")
    ours = Scheduler.from_config(scheduler)
    rows |= {"Scheduler": lambda: steps(ours), "DDIMScheduler": lambda: steps(scheduler), "network alone": alone}
    for name, call in rows.items():
        print(f"| {name} | {median(call):.2f} |", flush=True)


if __name__ == "__main__":
    main()
