"""What a network of another library gets beside the sample and its level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffcore import _check


def inputs(function: str, fixed: Mapping[str, Any], cond: Any) -> dict[str, Any]:
    """Return the inputs of a call by their names: the fixed ones, and those of a condition, which come first."""
    if not isinstance(cond, Mapping):
        must = "be a dict of inputs of the network by their names, such as {'encoder_hidden_states': text}"
        raise _check.error(TypeError, function, "cond", must, cond)
    return {**fixed, **cond}
