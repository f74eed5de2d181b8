"""What `train` starts from, how it is validated, and where its log goes: options and what they mean."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from diffcore import _check
from diffcore.cli import options, report, saved, sources

start_option = options.panel("Where it starts, and how it is watched")

From = Annotated[
    str | None,
    start_option(
        "--from",
        metavar="FILE|NAME",
        help="Fine-tune: start from the weights of a file or an included model, and take its network. --size, --frames, the "
        "colours and the classes may be others.",
        autocompletion=saved.shipped,
    ),
]
Freeze = Annotated[
    list[str] | None,
    start_option(
        metavar="PATTERN",
        help="Weights that stay as they are, by a pattern of their names, such as 'down.*' or '*.space.*'; may be repeated.",
    ),
]
Validation = Annotated[
    str | None,
    start_option(
        metavar="FOLDER|digits",
        help="Clips that are not trained on: their loss is in the log, with each checkpoint or as --validate-every says. On text "
        "their captions are in a file of the same name in that folder, or in that of --captions.",
    ),
]
ValidateEvery = Annotated[int | None, start_option(min=1, help="Steps between validations.")]
Log = Annotated[
    list[str] | None,
    start_option(
        metavar="csv|tensorboard",
        help="A copy of log.jsonl: csv for a spreadsheet, tensorboard for curves (tensorboard --logdir FOLDER); or both.",
    ),
]
Compile = Annotated[
    bool,
    start_option(
        "--compile",
        help="Compile the network by torch.compile: minutes before the first step, faster ones after. JAX always does.",
    ),
]


class Start(NamedTuple):
    """The weights that a run starts from."""

    path: Path | None = None
    config: Any = None


def start_of(weights: str | None) -> Start:
    """Return those of a file, or of an included model; none of either for None."""
    from diffcore.unet3d.pretrained import shipped
    from diffcore.unet3d.weights import read

    if weights is None:
        return Start()
    path = saved.weights_file(weights)
    with shipped(weights) if path is None else contextlib.nullcontext(path) as found:
        return Start(found, read(found).config)


def check(backend: str, fused: bool, log: list[str] | None, validation: str | None, every: int | None) -> None:
    """Refuse options that do not go together."""
    if fused and backend != "torch":
        report.usage(f"--compile is for --backend torch, got {backend}, which compiles in any case; leave it out")
    if unknown := [kind for kind in log or [] if kind not in {"csv", "tensorboard"}]:
        report.usage(f"--log must be csv or tensorboard, got {unknown[0]}")
    if every is not None and validation is None:
        report.usage("--validate-every needs --validation, the clips whose loss is measured")


def held_out(
    validation: str | None, config: Any, taken: sources.Taken, source: Any, said: sources.Text | None = None
) -> Any:
    """Return the clips that a run is validated on, or None; with captions, those of `source` come first in theirs."""
    if validation is None:
        return None
    taken = taken._replace(labels=getattr(source, "names", None))
    found = sources.data(validation, config, taken=taken, split="test", count=512, option="--validation")
    if said is None:
        return found
    return sources.captioned(found, validation, config, said, split="test", known=source.captions)


def words(folder: Path, settings: Any, config: Any, start: str | None) -> str:
    """Return what a new run does, in a line."""
    shape = "x".join(map(str, config.shape))
    steps, clips = _check.counted(settings.steps, "step"), _check.counted(settings.batch, "clip")
    begins = "a new run" if start is None else f"a new run from the weights of {start}"
    return (
        f"{folder}: {begins}, {steps} of {clips} {shape}, learning rate {settings.learning_rate:g}, average {settings.ema:g}, "
        f"{type(settings.schedule).__name__}"
    )
