"""Butcher tableaux of explicit Runge-Kutta methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffcore import _check

Tableau = tuple[Sequence[Sequence[float]], Sequence[float], Sequence[float]]


def tableaux() -> dict[str, Tableau]:
    """Return the tableaux (A, b, c) that are known by name; row i of A has i entries.

    >>> tableaux()["midpoint"]
    (((), (0.5,)), (0.0, 1.0), (0.0, 0.5))
    """
    dopri5 = (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    )
    return {
        "midpoint": (((), (0.5,)), (0.0, 1.0), (0.0, 0.5)),
        "ralston": (((), (2 / 3,)), (0.25, 0.75), (0.0, 2 / 3)),
        "kutta3": (((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), (0.0, 0.5, 1.0)),
        "rk4": (((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0)),
        "dopri5": (
            dopri5,
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
            (0.0, 0.2, 0.3, 0.8, 8 / 9, 1.0),
        ),
    }


def checked(tableau: Any) -> Tableau:
    """Return the tableau (A, b, c) if it is explicit and consistent, else raise ValueError."""
    function, known = "samplers.runge_kutta", tableaux()
    if isinstance(tableau, str):
        return known[_check.choice(function, "tableau", tableau, tuple(known))]
    try:
        rows, *rest = tableau
        a = [[float(number) for number in row] for row in rows]
        b, c = ([float(number) for number in row] for row in rest)
        explicit = [len(row) for row in a] == list(range(len(c))) and len(b) == len(c) <= 16
        sums = np.allclose([sum(row) for row in a], c, atol=1e-12) and np.isclose(sum(b), 1.0)
        if explicit and sums and min(c) >= 0.0 and max(c) <= 1.0:
            return a, b, c
    except (TypeError, ValueError):
        pass
    must = f"be one of {sorted(known)}, or (A, b, c): row i of A with i numbers, that sum to c_i in [0, 1], and b that sums to 1"
    raise _check.error(ValueError, function, "tableau", must, tableau)
