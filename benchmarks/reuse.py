"""What known frames cost when a causal network computes them once: forcing with and without `video.reusing`, in turn.

    OMP_NUM_THREADS=1 python -m benchmarks.reuse            # some 20 seconds: seconds of the processor, and their ratio

The network is that of the moving digits, causal, with weights as they start, on torch; a block of 16 frames, 16 steps.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import diffcore as dc

WINDOW, STEPS, TIMES = 16, 16, 3


def seconds(denoise: Any, overlap: int) -> float:
    """Return the least time of the processor in which a block is drawn."""
    import torch

    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=STEPS, eta=1.0)
    clip, found = torch.zeros(1, WINDOW, 32, 32, 1), []
    how: dict[str, Any] = {"method": "forcing", "history": 20.0, "prediction": "v", "seed": 1}
    for _ in range(TIMES):
        began = time.process_time()
        dc.video.extend(denoise, plan, clip, frames=2 * WINDOW - overlap, window=WINDOW, overlap=overlap, **how).all()
        found.append(time.process_time() - began)
    return min(found)


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.reuse", description=__doc__.partition("\n")[0]).parse_args()
    import torch

    config = dc.unet3d.preset("moving_digits", causal=True)
    model, label = dc.unet3d.build(config, "torch").requires_grad_(False), torch.tensor([3])
    for overlap in (4, 8, 12):
        whole, kept = (
            seconds(each, overlap) for each in (lambda z, l: model(z, l, label), dc.video.reusing(model, label))
        )
        frames = (overlap + STEPS * (WINDOW - overlap)) / (STEPS * WINDOW)
        print(
            f"{overlap:2} of {WINDOW} known: {whole:.2f} and {kept:.2f} s, ratio {kept / whole:.2f}; of frames {frames:.2f}"
        )


if __name__ == "__main__":
    main()
