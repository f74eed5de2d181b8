"""The samplers that batteries of tests walk: every variant of every row of `dc.samplers.table()`, by a name of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import diffcore as dc


def schedule_of(scaling: str) -> Any:
    return dc.schedules.LinearLogSNR(log_snr_min=-9.0, log_snr_max=9.0, scaling=scaling)


def _named(name: str, variant: dc.samplers.Variant) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in variant.settings.items())])


VARIANTS = {_named(name, variant): variant for name, row in dc.samplers.table().items() for variant in row.variants}
"""Every variant of the table by its name, such as "ddim eta=0.5"; those with the default settings by that of the sampler."""

SAMPLERS: dict[str, Callable[..., dc.Plan]] = {
    name: partial(dc.samplers.make, name.split()[0], **variant.settings) for name, variant in VARIANTS.items()
}
"""The same, ready to be called with a schedule and steps or a grid."""

every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
every_scaling = pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])


def _first_of_each_form() -> dict[str, Callable[..., dc.Plan]]:
    found: dict[Any, str] = {}
    for name, make in SAMPLERS.items():
        plan = make(schedule_of("vp"), steps=5)
        found.setdefault((plan.form, plan.stochastic, plan.ahead), name)
    return {name: SAMPLERS[name] for name in found.values()}


RUNS = _first_of_each_form()
"""One sampler of each form that loops and kernels tell apart, with and without noise: for tests that run plans, not read them."""

every_run = pytest.mark.parametrize("make", RUNS.values(), ids=RUNS.keys())
