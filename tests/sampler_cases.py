"""The samplers that batteries of tests walk: every variant of every row of `dc.samplers.table()`, by a name of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import diffcore as dc


def schedule_of(scaling: str) -> Any:
    return dc.schedules.LinearLogSNR(log_snr_min=-9.0, log_snr_max=9.0, scaling=scaling)


SAMPLERS: dict[str, Callable[..., dc.Plan]] = {
    " ".join([name, *(f"{key}={value}" for key, value in variant.settings.items())]): partial(
        row.make, **variant.settings
    )
    for name, row in dc.samplers.table().items()
    for variant in row.variants
}

every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
every_scaling = pytest.mark.parametrize("scaling", ("vp", "ve", "flow"))
