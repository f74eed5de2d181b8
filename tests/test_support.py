"""What docs/backends.md says works on a library does work there, with every sampler; and what it does not say does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libraries import JAX, TORCH, example, host, put
from sampler_cases import RUNS as FORMS
from sampler_cases import SAMPLERS

import diffcore as dc

PAGE = Path(__file__).resolve().parent.parent / "docs" / "backends.md"
SCHEDULE = dc.schedules.Cosine()
SHAPE = (2, 4, 2, 2, 1)
CLIP = 0.5 * dc.noise.normal(3, 0, SHAPE)
MASK = dc.conditioning.frames([0, 2], of=4)
DOWN = dc.conditioning.downsample(2)


def table() -> dict[str, tuple[str, ...]]:
    """Return the rows of the table: what -> what is said of NumPy, PyTorch and JAX."""
    text = PAGE.read_text(encoding="utf-8").split("## What works where")[1].split("##")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return {cells[0]: tuple(cells[1:]) for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines)}


ROWS = table()


def net(z: Any, log_snr: Any, cond: Any = 0.0) -> Any:
    return 0.4 * z + 0.1 * cond


def exact(like: Any) -> Any:
    return dc.exact.Gaussian(np.zeros(SHAPE[1:]), np.full(SHAPE[1:], 0.25)).to(like)


def sample(plan: dc.Plan, like: Any, denoise: Any, **options: Any) -> None:
    prediction = None if hasattr(denoise, "prediction") else "x"
    found = dc.sample(denoise, plan, shape=SHAPE, like=like, seed=7, prediction=prediction, **options)
    assert type(found) is type(like)
    assert np.all(np.isfinite(host(found)))


def guided(plan: dc.Plan, like: Any, denoise: Any) -> None:
    if denoise is not net:
        return
    for options in (
        {"weight": 2.0},
        {"weight": lambda log_snr: 0.0 * log_snr + 1.0},
        {"weight": 2.0, "interval": (-5.0, 5.0), "rescale": 0.5},
    ):
        one = put(np.ones((1,) * len(SHAPE)), like)
        sample(plan, like, dc.guidance.classifier_free(net, cond=one, null=0.0 * one, **options))


def ruled(plan: dc.Plan, like: Any, denoise: Any) -> None:
    one = put(np.ones((1,) * len(SHAPE)), like)
    both: dict[str, Any] = {"cond": one, "null": 0.0 * one}
    for rule in (dc.guidance.projected(momentum=-0.5), *(row.make() for row in dc.guidance.table().values())):
        sample(plan, like, dc.guidance.classifier_free(net, **both, weight=2.0, rule=rule, prediction="x"))
    sample(plan, like, dc.guidance.composed(net, conds=[one, 2.0 * one], null=0.0 * one, scales=(2.0, 1.0)))
    sample(plan, like, dc.guidance.autoguidance(net, lambda z, log_snr: 0.5 * z, weight=1.0))
    known = dc.guidance.history(net, put(CLIP, like), (True, False, False, False), scale=2.0, prediction="x")
    sample(plan, like, known)


def classified(plan: dc.Plan, like: Any, denoise: Any) -> None:
    schedule: dict[str, Any] = {"prediction": "x", "schedule": dc.schedules.LinearLogSNR(scaling=plan.scaling)}

    def log_prob(z: Any, log_snr: Any) -> Any:
        return -0.5 * (z**2).sum((1, 2, 3, 4))

    if isinstance(like, np.ndarray):
        with pytest.raises(TypeError, match="gradient"):
            sample(plan, like, dc.guidance.classifier(denoise, log_prob, **schedule))
    else:
        sample(plan, like, dc.guidance.classifier(denoise, log_prob, **schedule))
    sample(plan, like, dc.guidance.classifier(denoise, gradient=lambda z, log_snr: -z, **schedule))


def clipped(plan: dc.Plan, like: Any, denoise: Any) -> None:
    for transform_x in (dc.guidance.clip(-1.0, 1.0), dc.guidance.dynamic_threshold(0.9)):
        sample(plan, like, denoise, transform_x=transform_x)


def replaced(plan: dc.Plan, like: Any, denoise: Any) -> None:
    for variant in ("marginal", "posterior"):
        sample(plan, like, denoise, constraint=dc.conditioning.replacement(CLIP, MASK, variant=variant))


def projected(plan: dc.Plan, like: Any, denoise: Any) -> None:
    sample(plan, like, denoise, transform_x=dc.conditioning.projection(DOWN(CLIP), measure=DOWN))


def reconstructed(plan: dc.Plan, like: Any, denoise: Any) -> None:
    wrapped = dc.conditioning.reconstruction(
        denoise, CLIP, MASK, weight=1.0, prediction="x", schedule=dc.schedules.LinearLogSNR(scaling=plan.scaling)
    )
    sample(plan, like, wrapped)


def matched(plan: dc.Plan, like: Any, denoise: Any) -> None:
    sample(plan, like, dc.conditioning.moment_matching(denoise, CLIP, MASK, iterations=2, prediction="x"))


def sensed(plan: dc.Plan, like: Any, denoise: Any) -> None:
    for make in (dc.conditioning.dps, dc.conditioning.pigdm, dc.conditioning.tmpd):
        sample(
            plan,
            like,
            make(denoise, CLIP, MASK, prediction="x", schedule=dc.schedules.LinearLogSNR(scaling=plan.scaling)),
        )


def restored(plan: dc.Plan, like: Any, denoise: Any) -> None:
    schedule = dc.schedules.LinearLogSNR(scaling=plan.scaling)
    sample(plan, like, dc.conditioning.diffpir(denoise, CLIP, MASK, noise_std=0.1, prediction="x", schedule=schedule))
    for constraint in (
        dc.conditioning.ddrm(CLIP, MASK),
        dc.conditioning.ilvr(CLIP, MASK),
        dc.conditioning.daps(CLIP, MASK),
    ):
        sample(dc.samplers.ddim(schedule, steps=3), like, denoise, constraint=constraint)


def video(*methods: str) -> Callable[[dc.Plan, Any, Any], None]:
    def run(plan: dc.Plan, like: Any, denoise: Any) -> None:
        clip = put(CLIP, like)
        for method in methods:
            common: dict[str, Any] = {"method": method, "weight": 1.0, "iterations": 2, "window": 4}
            common |= {"seed": 7, "prediction": "x"}
            made = dc.video.extend(denoise, plan, clip, frames=7, overlap=1, **common).all()
            assert made.shape[1] == 7
            assert np.all(np.isfinite(host(made)))
            made = dc.video.interpolate(denoise, plan, clip[:, :2], 3, **common).all()
            assert made.shape[1] == 4
            if method == "replacement" or denoise is net:  # by gradients with a measurement: no closed form
                made = dc.video.upscale(denoise, plan, DOWN(clip), 2, **common).all()
                assert tuple(made.shape) == SHAPE

    return run


RUNS: dict[str, Callable[[dc.Plan, Any, Any], None]] = {
    "every sampler of `dc.samplers`": sample,
    "`guidance.classifier_free`, by level, in an interval, rescaled": guided,
    "its rules, with momentum too; `guidance.composed`, `autoguidance`, `history`": ruled,
    "`guidance.classifier`": classified,
    "`guidance.clip`, `guidance.dynamic_threshold`": clipped,
    "`conditioning.replacement`, both variants": replaced,
    "`conditioning.projection`": projected,
    "`conditioning.reconstruction`": reconstructed,
    "`conditioning.moment_matching`": matched,
    "`conditioning.dps`, `pigdm`, `tmpd`": sensed,
    "`conditioning.diffpir`; `ddrm`, `ilvr`, `daps` for plans with one call a step": restored,
    "`video.extend`, `interpolate`, `upscale` by replacement": video("replacement"),
    "the same by reconstruction or moment matching": video("reconstruction", "moment_matching"),
}


def test_each_row_of_the_page_is_run() -> None:
    assert list(ROWS) == list(RUNS)


def plans(library: str, row: str) -> dict[str, dc.Plan]:
    """Return a sampler of every form; on JAX, where each run is traced, all of them only for the row that is about them."""
    many = RUNS[row] in (ruled, classified, sensed, restored) or "video" in row or "same" in row  # runs of their own
    few = ("ancestral gamma=0.3", "unipc")[many and library == "jax" :]
    names = few if many or (library == "jax" and row != next(iter(RUNS))) else FORMS
    return {name: SAMPLERS[name](SCHEDULE, steps=3) for name in names}


@pytest.mark.parametrize("row", RUNS)
@pytest.mark.parametrize(("column", "library"), [(0, "numpy"), pytest.param(1, *TORCH.values, marks=TORCH.marks),
                                                 pytest.param(2, *JAX.values, marks=JAX.marks)])  # fmt: skip
def test_a_cell_of_the_page_is_true(row: str, column: int, library: str) -> None:
    said, run = ROWS[row][column], RUNS[row]
    with example(library) as like:
        for plan in plans(library, row).values():
            if said in ("yes", "by a gradient that you give"):
                run(plan, like, net)
            else:
                assert said == "exact denoisers"
                with pytest.raises(TypeError, match="gradients"):
                    run(plan, like, net)
                run(plan, like, exact(like).with_scaling(plan.scaling))
