"""The configuration of a space-time U-Net, and the presets of the paper's six models."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from diffcore import _check, predictions, schedules
from diffcore.schedules import Schedule

NAME = "UNet3DConfig"
CONDITIONS = ("none", "class", "tokens")
LATER: dict[str, Any] = {"causal": False, "encoder": "", "token_heads": 1}
"""Fields that were added later, and what files without them mean: they are written only where they say something else."""


@dataclass(frozen=True, kw_only=True)
class UNet3DConfig:
    """All that defines the network: the same config and weights give the same function in every backend.

    Args:
        frames: frames of a training clip; temporal attention tells distances up to frames - 1 apart, and takes longer
            clips, in which what is further apart counts as that far.
        size: side of a training frame in pixels; level k works at size / 2^k. The network takes frames of any size,
            square or not; this one only says which levels have attention.
        channels: of the data, in and out.
        base_channels: channels of level 0.
        multipliers: channels of level k are base_channels * multipliers[k]; as many levels as entries.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention: the resolutions, as size / 2^k, whose blocks have spatial and temporal attention. The middle has it
            always.
        head_dim: channels of an attention head; divides the channels of every level that has attention.
        embedding: width of what log-SNR and condition are turned into.
        mlp_layers: layers that turn them into it, at least 1.
        dropout: in [0, 1), in each residual block while training.
        condition: "none", "class" (labels), or "tokens" (vectors of a text encoder, pooled by attention).
        classes: how many labels there are, where condition is "class".
        token_width: of a token vector, where condition is "tokens"; 1024 for BERT-large.
        token_heads: heads of the attention that pools the tokens, each with its own share of `embedding`, which they divide.
            With a single head the first word that helps takes nearly all of the attention, and others are hardly learned.
        encoder: where condition is "tokens", which text encoder they come from: `unet3d.text.encoder(...).name`; "" is not known.
        causal: temporal attention of a frame sees that frame and the frames - 1 before it, none after. The weights have the same
            names and shapes as without. Such a network can keep what it computed of past frames: `model.past`.
        prediction: what the network is trained to predict: "x", "eps", "v", "score", "flow" or "edm".
        schedule: what it is trained on, of `diffcore.schedules`; None where that is not known.

    Raises:
        ValueError: a field out of its range, or a head_dim that does not divide; the message names the field.

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 3 and app. A.

    >>> config = UNet3DConfig(frames=4, size=16, base_channels=32, multipliers=(1, 2), attention=(8,), head_dim=32)
    >>> config.widths, config.attends(0), config.attends(1)
    ((32, 64), False, True)
    """

    frames: int = 16
    size: int = 64
    channels: int = 3
    base_channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    blocks: int = 2
    attention: tuple[int, ...] = (8, 16, 32)
    head_dim: int = 64
    embedding: int = 1024
    mlp_layers: int = 4
    dropout: float = 0.0
    condition: str = "none"
    classes: int = 0
    token_width: int = 0
    token_heads: int = 1
    encoder: str = ""
    causal: bool = False
    prediction: str = "v"
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "size", "channels", "base_channels", "blocks", "head_dim", "embedding", "mlp_layers"):
            self._set(name, _check.integer(NAME, name, getattr(self, name), 1))
        self._set("multipliers", _check.shape(NAME, "multipliers", self.multipliers, "(level 0, ...)", least=1))
        self._set("attention", _check.shape(NAME, "attention", self.attention, "(...)", least=1))
        at = {self.size >> level: level for level in range(len(self.multipliers))}
        if any(side not in at for side in self.attention):
            must = f"be resolutions of the levels, which are {sorted(at)}"
            raise _check.error(ValueError, NAME, "attention", must, self.attention)
        self._set("dropout", _check.number(NAME, "dropout", self.dropout, 0, 1, open_high=True))
        _check.choice(NAME, "condition", self.condition, CONDITIONS)
        for name, kind in (("classes", "class"), ("token_width", "tokens")):
            wanted = self.condition == kind
            self._set(name, _check.integer(NAME, name, getattr(self, name), 1 if wanted else 0))
            if getattr(self, name) and not wanted:
                must = f"be 0 where `condition` is {self.condition!r}"
                raise _check.error(ValueError, NAME, name, must, getattr(self, name), f'give condition="{kind}"')
        self._set("token_heads", _check.integer(NAME, "token_heads", self.token_heads, 1))
        if self.token_heads > 1 and self.condition != "tokens":
            must = f"be 1 where `condition` is {self.condition!r}"
            raise _check.error(ValueError, NAME, "token_heads", must, self.token_heads, 'give condition="tokens"')
        if self.embedding % self.token_heads:
            must = f"divide `embedding`, which is {self.embedding}"
            raise _check.error(ValueError, NAME, "token_heads", must, self.token_heads)
        if not isinstance(self.encoder, str):
            raise _check.error(TypeError, NAME, "encoder", "be the name of a text encoder", self.encoder)
        if self.encoder and self.condition != "tokens":
            must = f"be empty where `condition` is {self.condition!r}"
            raise _check.error(ValueError, NAME, "encoder", must, self.encoder, 'give condition="tokens"')
        self._set("causal", _check.flag(NAME, "causal", self.causal))
        _check.choice(NAME, "prediction", self.prediction, predictions.table())
        if self.schedule is not None:
            what = "a schedule, such as schedules.Cosine(), or None"
            _check.instance(NAME, "schedule", self.schedule, Schedule, what)
        widths = self.widths
        for level, width in enumerate(widths):
            last = level == len(widths) - 1  # the middle
            if (self.attends(level) or last) and width % self.head_dim:
                who = f"level {level}" if self.attends(level) else "the middle"
                must = f"divide the {width} channels of {who}, which attends"
                raise _check.error(ValueError, NAME, "head_dim", must, self.head_dim)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per level."""
        return tuple(self.base_channels * multiplier for multiplier in self.multipliers)

    def attends(self, level: int) -> bool:
        """Return whether the blocks of a level have attention."""
        return self.size >> level in self.attention

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of a training clip."""
        return self.frames, self.size, self.size, self.channels

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; `from_dict` reads them back."""
        plain = {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in fields(self)
        }
        plain |= {"schedule": self.schedule and schedules.to_dict(self.schedule)}
        return {name: value for name, value in plain.items() if name not in LATER or value != LATER[name]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UNet3DConfig:
        """Return the config of `to_dict`.

        Raises:
            ValueError: a field that this version does not know, or one out of range.

        >>> UNet3DConfig.from_dict(PRESETS["tiny"].to_dict()) == PRESETS["tiny"]
        True
        """
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(
                f"UNet3DConfig: unknown fields {sorted(unknown)}; a newer version of diffcore wrote them, "
                f"or they are misspelt; it takes {sorted(known)}"
            )
        schedule = values.get("schedule")
        return cls(**{**values, "schedule": schedule and schedules.from_dict(schedule)})


_PAPER = UNet3DConfig(frames=16, size=64, multipliers=(1, 2, 4, 8), blocks=2, head_dim=64, mlp_layers=4)
_TOKENS: dict[str, Any] = {"condition": "tokens", "token_width": 1024, "token_heads": 16}

PRESETS: dict[str, UNet3DConfig] = {
    "ucf101": replace(_PAPER, base_channels=256, dropout=0.1, prediction="eps"),
    "bair": replace(
        _PAPER, base_channels=128, multipliers=(1, 2, 3, 4), blocks=3, mlp_layers=2, dropout=0.1, prediction="v"
    ),
    "kinetics600": replace(_PAPER, base_channels=256, mlp_layers=2, dropout=0.1, prediction="v"),
    "text_small": replace(_PAPER, base_channels=128, prediction="eps", **_TOKENS),
    "text_large_16x64x64": replace(_PAPER, base_channels=256, prediction="eps", **_TOKENS),
    "text_large_9x128x128": replace(
        _PAPER,
        frames=9,
        size=128,
        base_channels=128,
        multipliers=(1, 2, 4, 8, 16),
        head_dim=128,
        prediction="eps",
        **_TOKENS,
    ),
    "tiny": UNet3DConfig(
        frames=4,
        size=8,
        channels=1,
        base_channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(4,),
        head_dim=8,
        embedding=32,
        mlp_layers=2,
    ),
    "moving_digits": UNet3DConfig(
        frames=16,
        size=32,
        channels=1,
        base_channels=16,
        multipliers=(2, 3, 6),
        blocks=1,
        attention=(8, 16),
        head_dim=48,
        embedding=128,
        mlp_layers=2,
        condition="class",
        classes=10,
    ),
}
"""The models of Ho et al. 2022, app. A, by the names of its tables; a tiny one for first trials; and the included one."""


def preset(name: str, **changes: Any) -> UNet3DConfig:
    """Return a preset, with fields of it replaced.

    Args:
        name: "ucf101", "bair", "kinetics600", "text_small", "text_large_16x64x64", "text_large_9x128x128" (Ho et al.
            2022, app. A), "moving_digits" (the included model), or "tiny".
        changes: fields of `UNet3DConfig`.

    Raises:
        ValueError: an unknown name, or a field out of range.

    >>> preset("bair", frames=20).widths
    (128, 256, 384, 512)
    """
    _check.choice("unet3d.preset", "name", name, PRESETS)
    return replace(PRESETS[name], **changes)


def groups(channels: int) -> int:
    """Return how many groups a norm of so many channels has: at most 32, of at least four channels each.

    >>> groups(256), groups(96), groups(32), groups(8)
    (32, 16, 8, 2)
    """
    return max(n for n in (32, 16, 8, 4, 2, 1) if n == 1 or (channels % n == 0 and channels // n >= 4))
