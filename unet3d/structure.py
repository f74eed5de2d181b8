r"""The network as a table: every implementation walks these rows, and the weights file follows from them.

    h = input(z);  push h
    for each row on the way down:   h = row(h);  push h
    middle:                          h = row(h)
    for each row on the way up:      h = row([h, pop])     where the row says so
    y = output(h)

A "block" is a residual block, then spatial attention, then temporal attention where its level attends; "down" halves a
frame's height and width (rounding up), "up" doubles them and crops to the size of the next skip. Nothing but temporal
attention looks beyond a frame, so that all else works on B * T frames, and a network is causal where its mask is.

Source: Ho et al. 2022 (arXiv 2204.03458), sec. 3 and fig. 1; Ho et al. 2020 (arXiv 2006.11239), app. B.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffcore.unet3d.config import UNet3DConfig, groups

EPSILON = 1e-5
"""What a group norm adds to the variance."""

LOG_SNR_LIMIT = 30.0
"""Beyond it one log-SNR is like another, noise or signal being gone in float32; infinity included."""

FREQUENCIES = tuple(math.pi / (2 * LOG_SNR_LIMIT) * (4 * LOG_SNR_LIMIT) ** (i / 31) for i in range(32))
"""Of the sines and cosines of log-SNR: half a period over all of [-30, 30], to a period of one nat."""


class Row(NamedTuple):
    """A part of the network.

    Fields:
        name: prefix of its arrays, such as "down.0.1".
        kind: "block", "down" or "up".
        level: at which it works.
        inputs, outputs: channels; inputs count the concatenated skip.
        attends: whether a block has attention.
        pushes: whether its output is a skip.
        pops: whether a skip is concatenated to its input, after it.
    """

    name: str
    kind: str
    level: int
    inputs: int
    outputs: int
    attends: bool = False
    pushes: bool = False
    pops: bool = False


def rows(config: UNet3DConfig) -> tuple[Row, ...]:
    """Return the rows between input and output convolution, in the order in which they run.

    >>> from diffcore.unet3d.config import PRESETS
    >>> [row.name for row in rows(PRESETS["tiny"])]
    ['down.0.0', 'down.0.resize', 'down.1.0', 'middle.0', 'middle.1', 'up.1.0', 'up.1.1', 'up.1.resize', 'up.0.0', 'up.0.1']
    """
    found: list[Row] = []
    skips = [config.base_channels]
    width, last = config.base_channels, len(config.widths) - 1
    for level, channels in enumerate(config.widths):
        for number in range(config.blocks):
            found.append(
                Row(f"down.{level}.{number}", "block", level, width, channels, config.attends(level), pushes=True)
            )
            width = channels
            skips.append(width)
        if level < last:
            found.append(Row(f"down.{level}.resize", "down", level, width, width, pushes=True))
            skips.append(width)
    found += [Row(f"middle.{number}", "block", last, width, width, attends=number == 0) for number in (0, 1)]
    for level in range(last, -1, -1):
        channels = config.widths[level]
        for number in range(config.blocks + 1):
            inputs = width + skips.pop()
            found.append(
                Row(f"up.{level}.{number}", "block", level, inputs, channels, config.attends(level), pops=True)
            )
            width = channels
        if level > 0:
            found.append(Row(f"up.{level}.resize", "up", level, width, width))
    return tuple(found)


def least(config: UNet3DConfig) -> int:
    """Return a number of arrays that the network has at least, without listing them.

    >>> from diffcore.unet3d.config import PRESETS
    >>> least(PRESETS["tiny"]), len(arrays(PRESETS["tiny"]))
    (84, 160)
    """
    return 10 * (len(config.widths) * (2 * config.blocks + 1) + 2) + 2 * config.mlp_layers


Pair = tuple[Any, Any]
"""Keys and values of past frames in one temporal attention, each (B, P, pixels, heads, d), in the library of the network."""

Past = tuple[Pair, ...]
"""What a causal network keeps of past frames: a pair for each row that attends, of the last frames - 1 at most."""


def distances(frames: int, before: int = 0) -> npt.NDArray[np.int64]:
    """Return j - i of each frame i to each j, those before included, (frames, before + frames).

    >>> distances(2, before=1).tolist()
    [[-1, 0, 1], [-2, -1, 0]]
    """
    return np.arange(before + frames)[None, :] - before - np.arange(frames)[:, None]


def seen(reach: int, frames: int, before: int = 0) -> npt.NDArray[np.bool_]:
    """Return which frames j a frame i of a causal network sees: itself and the reach - 1 before it.

    >>> seen(2, 3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    apart = distances(frames, before)
    return (apart <= 0) & (apart > -reach)


class Array(NamedTuple):
    """A weight: its shape, and the standard deviation it starts with; 0 starts at `fill`."""

    shape: tuple[int, ...]
    deviation: float = 0.0
    fill: float = 0.0


def arrays(config: UNet3DConfig) -> dict[str, Array]:
    """Return every weight by its canonical name, in the order of the network.

    Convolutions are (height, width, in, out), linear maps (in, out): y = x W + b. Weights start normal with variance
    1 / fan-in; whatever closes a residual branch, and the output, starts at zero.

    >>> from diffcore.unet3d.config import PRESETS
    >>> arrays(PRESETS["tiny"])["down.1.0.time.key_positions"].shape
    (7, 8)
    """
    found: dict[str, Array] = {}
    width = config.embedding

    def linear(name: str, inputs: int, outputs: int, *, zero: bool = False) -> None:
        found[f"{name}.weight"] = Array((inputs, outputs), 0.0 if zero else inputs**-0.5)
        found[f"{name}.bias"] = Array((outputs,))

    def conv(name: str, inputs: int, outputs: int, *, zero: bool = False) -> None:
        found[f"{name}.weight"] = Array((3, 3, inputs, outputs), 0.0 if zero else (9 * inputs) ** -0.5)
        found[f"{name}.bias"] = Array((outputs,))

    def norm(name: str, channels: int) -> None:
        found[f"{name}.weight"] = Array((channels,), fill=1.0)
        found[f"{name}.bias"] = Array((channels,))

    def attention(name: str, channels: int, *, time: bool) -> None:
        norm(f"{name}.norm", channels)
        linear(f"{name}.qkv", channels, 3 * channels)
        if time:
            for part in ("key_positions", "value_positions"):
                found[f"{name}.{part}"] = Array((2 * config.frames - 1, config.head_dim), config.head_dim**-0.5)
        linear(f"{name}.out", channels, channels, zero=True)

    linear("embed.0", 2 * len(FREQUENCIES), width)
    if config.condition == "class":
        found["condition.classes"] = Array((config.classes + 1, width), 1.0)
    elif config.condition == "tokens":
        norm("condition.norm", config.token_width)
        linear("condition.keys", config.token_width, width)
        linear("condition.values", config.token_width, width)
        found["condition.query"] = Array((width,), 1.0)
        found["condition.null"] = Array((width,), 1.0)
    for layer in range(1, config.mlp_layers):
        linear(f"embed.{layer}", width, width)
    conv("input", config.channels, config.base_channels)
    for row in rows(config):
        if row.kind != "block":
            conv(row.name, row.inputs, row.outputs)
            continue
        norm(f"{row.name}.norm1", row.inputs)
        conv(f"{row.name}.conv1", row.inputs, row.outputs)
        linear(f"{row.name}.embed", width, row.outputs)
        norm(f"{row.name}.norm2", row.outputs)
        conv(f"{row.name}.conv2", row.outputs, row.outputs, zero=True)
        if row.inputs != row.outputs:
            linear(f"{row.name}.skip", row.inputs, row.outputs)
        if row.attends:
            attention(f"{row.name}.space", row.outputs, time=False)
            attention(f"{row.name}.time", row.outputs, time=True)
    norm("output.norm", config.widths[0])
    conv("output", config.widths[0], config.channels, zero=True)
    return found


__all__ = [
    "Array",
    "EPSILON",
    "FREQUENCIES",
    "LOG_SNR_LIMIT",
    "Pair",
    "Past",
    "Row",
    "arrays",
    "distances",
    "groups",
    "least",
    "rows",
    "seen",
]
