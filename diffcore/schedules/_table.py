"""The table of schedules, and schedules as plain values, for files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from diffcore import _array, _check
from diffcore.schedules._base import Schedule
from diffcore.schedules.combinators import Shifted, Truncated
from diffcore.schedules.cosine import Cosine, InverseCosine
from diffcore.schedules.exploding import Flow, Geometric, Karras
from diffcore.schedules.interpolated import Interpolated
from diffcore.schedules.polynomial import Polynomial, PolynomialVP
from diffcore.schedules.sigmoid import Sigmoid
from diffcore.schedules.tables import Table
from diffcore.schedules.variance_preserving import Cauchy, Laplace, LinearBeta, LinearLogSNR, SubVP


def table() -> dict[str, Schedule]:
    """Return the table of schedules, name -> one example of each kind, for tests and for files.

    >>> table()["Flow"]
    Flow(scaling='flow')
    """
    kinds = [
        Cosine(),
        InverseCosine(),
        LinearBeta(),
        SubVP(),
        LinearLogSNR(),
        Sigmoid(),
        Laplace(),
        Cauchy(),
        PolynomialVP(),
        Flow(),
        Polynomial(),
        Geometric(),
        Karras(),
        Shifted(schedule=Cosine(), delta=-1.4),
        Truncated(schedule=Flow(), log_snr_min=-8.0, log_snr_max=8.0),
        Interpolated(a=Cosine(), b=LinearLogSNR(), weight=0.3),
        Table(log_snrs=tuple(np.linspace(9.0, -11.0, 1000).tolist())),
    ]
    return {type(schedule).__name__: schedule for schedule in kinds}


def to_dict(schedule: Schedule) -> dict[str, Any]:
    """Return a schedule as plain values, for JSON; `from_dict` reads them back.

    Raises:
        TypeError: a kind of schedule that is not in `table`, which another program could not read.

    >>> to_dict(Flow())
    {'kind': 'Flow', 'scaling': 'flow'}
    """
    kind = type(schedule).__name__
    if type(table().get(kind)) is not type(schedule):
        raise TypeError(
            f"schedules.to_dict: `schedule` must be one of diffcore.schedules, got {kind}; tabulate it: "
            f"schedules.Table(log_snrs=tuple(schedule.log_snr(numpy.linspace(0, 1, 1000)).tolist()), scaling=schedule.scaling)"
        )
    plain: dict[str, Any] = {"kind": kind}
    for field in fields(schedule):  # type: ignore[arg-type]
        value = getattr(schedule, field.name)
        if field.init:
            plain[field.name] = to_dict(value) if isinstance(value, Schedule) else _plain(value)
    return plain


def from_dict(values: Mapping[str, Any]) -> Schedule:
    """Return the schedule of `to_dict`.

    Raises:
        ValueError: an unknown kind, or fields that it does not take.

    >>> from_dict({"kind": "Karras", "sigma_max": 40.0}).sigma_max
    40.0
    """
    function = "schedules.from_dict"
    _check.instance(function, "values", values, Mapping, "what schedules.to_dict returns")
    kind = _check.choice(function, "kind", values.get("kind"), table())
    given = {
        name: from_dict(value) if isinstance(value, Mapping) else tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name != "kind"
    }
    try:
        return type(table()[kind])(**given)
    except TypeError as error:
        names = [field.name for field in fields(type(table()[kind])) if field.init]  # type: ignore[arg-type]
        raise _check.error(
            ValueError, function, "values", f"have the fields of {kind}, {names}", sorted(given), str(error)
        ) from None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | float | int):
        return value
    return [float(number) for number in np.ravel(_array.to_host(value))]
