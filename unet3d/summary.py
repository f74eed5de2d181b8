"""What a network costs: parameters, activations and floating-point operations of one forward pass, level by level."""

from __future__ import annotations

import math
from typing import NamedTuple

from diffcore.unet3d import structure
from diffcore.unet3d.config import UNet3DConfig


class Cost(NamedTuple):
    """Of a part of the network, for one clip of the config's shape.

    Fields:
        parameters: weights.
        activations: numbers that convolutions, linear maps and attention write, which is what training keeps.
        flops: floating-point operations of those, a multiplication and an addition counted as two; norms and
            activations, some ten a number, are left out.
    """

    parameters: int
    activations: int
    flops: int


class Summary(NamedTuple):
    """The costs of a network: of its levels, from the finest, of the embedding, and of all."""

    config: UNet3DConfig
    levels: tuple[Cost, ...]
    embedding: Cost
    total: Cost

    def __str__(self) -> str:
        frames, size, _, channels = self.config.shape
        lines = [
            f"UNet3D on {frames} frames of {size}x{size}x{channels}, prediction {self.config.prediction!r}",
            f"{'level':>9} {'pixels':>9} {'channels':>9} {'attention':>9} {'parameters':>12} {'activations':>12} {'GFLOP':>9}",
        ]
        for level, cost in enumerate(self.levels):
            side = _sides(self.config)[level]
            attends = "yes" if self.config.attends(level) else "middle" if level == len(self.levels) - 1 else "no"
            about = f"{level:>9} {f'{side}x{side}':>9} {self.config.widths[level]:>9} {attends:>9}"
            lines.append(f"{about} {_numbers(cost)}")
        lines.append(f"{'embedding':>9} {'':>9} {self.config.embedding:>9} {'':>9} {_numbers(self.embedding)}")
        lines.append(f"{'all':>9} {'':>9} {'':>9} {'':>9} {_numbers(self.total)}")
        return "\n".join(lines)


def summarise(config: UNet3DConfig) -> Summary:
    """Return what a network costs; `print` shows it.

    >>> from diffcore.unet3d.config import PRESETS
    >>> summary = summarise(PRESETS["text_large_16x64x64"])
    >>> round(summary.total.parameters / 1e6), round(summary.total.flops / 1e12, 1)
    (1146, 6.9)
    """
    costs = costs_of(config, config.frames, (config.size, config.size))
    return Summary(config, tuple(costs[:-1]), costs[-1], total(costs))


def total(costs: list[Cost]) -> Cost:
    """Return the cost of all parts."""
    return Cost(*map(sum, zip(*costs, strict=True)))


def costs_of(config: UNet3DConfig, frames: int, size: tuple[int, int]) -> list[Cost]:
    """Return the costs of the levels and of the embedding for a clip of other frames (H, W) than the config's."""
    arrays = structure.arrays(config)
    held = {name: math.prod(array.shape) for name, array in arrays.items()}
    rows = {row.name: row for row in structure.rows(config)}
    areas = [math.prod(-(-side // 2**level) for side in size) for level in range(len(config.widths))]
    parameters, activations, flops = ([0] * (len(areas) + 1) for _ in range(3))
    for name, array in arrays.items():
        owner = next((row for prefix, row in rows.items() if name.startswith(f"{prefix}.")), None)
        if owner is None:
            level, pixels = (0, areas[0]) if name.startswith(("input", "output")) else (len(areas), 0)
        else:
            level = owner.level + {"down": 1, "up": -1}.get(owner.kind, 0)
            pixels = areas[level]
        parameters[level] += held[name]
        if not name.endswith("weight") or len(array.shape) == 1:
            continue
        vectors = 1 if pixels == 0 or name.endswith(".embed.weight") else frames * pixels
        activations[level] += vectors * array.shape[-1]
        flops[level] += 2 * vectors * held[name]
    for row in rows.values():
        if row.attends:
            tokens, pixels = frames * areas[row.level], areas[row.level]
            heads = row.outputs // config.head_dim
            space, time = tokens * pixels, tokens * frames
            activations[row.level] += heads * (space + time) + 2 * tokens * row.outputs
            flops[row.level] += 4 * row.outputs * (space + 2 * time)
    return [Cost(*numbers) for numbers in zip(parameters, activations, flops, strict=True)]


def _sides(config: UNet3DConfig) -> list[int]:
    return [-(-config.size // 2**level) for level in range(len(config.widths))]


def _numbers(cost: Cost) -> str:
    return f"{cost.parameters:>12,} {cost.activations:>12,} {cost.flops / 1e9:>9.2f}"
