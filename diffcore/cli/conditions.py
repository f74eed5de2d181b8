"""Conditions from the options of the command line: labels, or texts and the encoder of their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import diffcore as dc
from diffcore.cli import models
from diffcore.cli.report import Failure, usage


def condition_for(
    weights: str,
    config: Any,
    labels: list[str] | None,
    prompts: list[str] | None,
    encoder: Path | None,
    count: int | None,
) -> tuple[Any, int]:
    """Return the condition of the clips on the host, labels or tokens and their mask, or None; and how many clips there are."""
    if prompts and labels:
        usage("--label and --prompt are both given; a model takes one of them")
    if encoder is not None and not prompts:
        usage("--encoder is given without --prompt TEXT, which it reads")
    if not prompts:
        found, count = models.labels_for(weights, config, labels, count)
        return None if found is None else np.asarray(found, dtype=np.int64), count
    if config.condition != "tokens":
        usage(f"--prompt is given, but this model has the condition {config.condition!r}; train one with --captions")
    if encoder is None:
        known = f", {config.encoder!r}" if config.encoder else ""
        usage(f"--prompt takes --encoder FOLDER, the text encoder that the model was trained with{known}")
    count = len(prompts) if count is None else count
    if len(prompts) not in {1, count}:
        usage(f"--prompt is given {len(prompts)} times for {count} clips; give one for each, or one for all")
    tokens, mask = encoded(config, encoder, prompts)
    rows = np.arange(count) % len(prompts)
    return (tokens[rows], mask[rows]), count


def rows_of(condition: Any, numbers: list[int]) -> Any:
    """Return the condition of the clips of these numbers."""
    return tuple([part[numbers] for part in condition]) if isinstance(condition, tuple) else condition[numbers]


def encoder_in(folder: Path) -> Any:
    """Return the text encoder of a folder."""
    try:
        return dc.unet3d.text.encoder(folder)
    except ImportError as error:
        raise Failure(str(error)) from error
    except (OSError, ValueError) as error:
        usage(f"--encoder {folder}: {str(error).removeprefix('unet3d.text.encoder: ')}")


def encoded(config: Any, folder: Path, texts: list[str]) -> Any:
    """Return tokens and mask of texts, by the encoder that a network knows."""
    found = encoder_in(folder)
    check(config, found, str(folder))
    return found(texts)


def check(config: Any, encoder: Any, folder: str) -> None:
    """Refuse an encoder, that of a folder, whose vectors a network does not take."""
    try:
        dc.unet3d.text.check(config, encoder)
    except ValueError as error:
        usage(f"--encoder {folder}: {str(error).removeprefix('unet3d.text: ')}")
