"""The table of rules: tests, documents and benchmarks walk it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from diffcore.guidance._rule import Rule
from diffcore.guidance.bands import bands
from diffcore.guidance.magnitude import magnitude
from diffcore.guidance.projected import projected
from diffcore.guidance.renormed import renormed
from diffcore.guidance.tangential import tangential
from diffcore.guidance.zero_star import zero_star


class Row(NamedTuple):
    """A rule of guidance: what makes it, its name elsewhere, and the settings at which it is classifier-free guidance."""

    make: Callable[..., Rule]
    known_as: str
    plain: Mapping[str, Any] | None
    """None where no setting but only some predictions make it so."""


def table() -> Mapping[str, Row]:
    """Return the rules: name -> `Row`.

    >>> sorted(table())
    ['bands', 'magnitude', 'projected', 'renormed', 'tangential', 'zero_star']
    """
    return MappingProxyType(
        {
            "bands": Row(bands, "FDG", {"low": 1.0, "high": 1.0}),
            "magnitude": Row(magnitude, "MAMBO-G", {"rate": 0.0}),
            "projected": Row(projected, "APG", {"parallel": 1.0}),
            "renormed": Row(renormed, "CFGNorm", {"low": 1.0, "high": 1.0}),
            "tangential": Row(tangential, "TCFG", None),
            "zero_star": Row(zero_star, "CFG-Zero*", None),
        }
    )
