"""The table of densities of times."""

from __future__ import annotations

from diffcore.schedules import Cosine
from diffcore.times.curves import Beta, CosMap, Mode, Shifted
from diffcore.times.densities import Density, LogitNormal, LogNormal, Uniform


def table() -> dict[str, Density]:
    """Return the table of densities, name -> one example of each kind, for tests.

    >>> table()["Mode"]
    Mode(scale=1.29)
    """
    kinds = [
        Uniform(),
        LogitNormal(),
        LogNormal(Cosine()),
        Mode(),
        CosMap(),
        Beta(1.5, 1.0),
        Shifted(LogitNormal(), 3.0),
    ]
    return {type(density).__name__: density for density in kinds}
