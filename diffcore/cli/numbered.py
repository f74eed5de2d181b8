"""Clips that are files of their own, each under its number, divided among processes: `diffcore sample clips/%04d.mp4`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffcore import _files
from diffcore.cli import writers
from diffcore.cli.report import usage

NUMBER = re.compile(r"%(?:0[1-9])?d")


class Process(NamedTuple):
    """Which of how many processes this is, as torchrun says in RANK and WORLD_SIZE."""

    rank: int
    size: int


def process() -> Process:
    """Return which process this is; alone without a launcher."""
    try:
        found = Process(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        usage(
            "RANK and WORLD_SIZE in the environment must be numbers, as torchrun sets them; without torchrun, unset them"
        )
    if not 0 <= found.rank < found.size:
        usage(f"RANK must be in [0, WORLD_SIZE), got {found.rank} of {found.size}")
    return found


def device_of(device: str | None, backend: str | None) -> str | None:
    """Return the device of this process: under torchrun, of the CUDA devices its own."""
    if "LOCAL_RANK" not in os.environ or backend not in {None, "torch"} or device not in {None, "cuda"}:
        return device
    try:
        import torch
    except ImportError:
        return device
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}" if torch.cuda.is_available() else device


def asked(out: Path) -> bool:
    """Return whether a name has a number in it; refuse one where each of several processes would write the same file."""
    found, count = NUMBER.findall(out.name), process().size
    if len(found) > 1 or (found and "%" in NUMBER.sub("", out.name)):
        usage(f"{out.name} must have one number, such as %04d, and no other %")
    if not found and count > 1:
        usage(f"{count} processes would each write {out}; give it a number, such as {out.stem}%04d{out.suffix}")
    return bool(found)


def path_of(out: Path, number: int) -> Path:
    """Return the file of a clip."""
    return out.with_name(out.name % number)


def mine(count: int, size: int) -> Iterator[list[int]]:
    """Yield the numbers of each block of this process. A block is the same however many processes there are."""
    here = process()
    for first in range(here.rank * size, count, here.size * size):
        yield list(range(first, min(first + size, count)))


def begin(out: Path, count: int, size: int, force: bool) -> list[tuple[list[int], list[int]]]:
    """Return (numbers, those that are not there yet) of each block of this process in which one is not there, and remove what
    processes that were killed left of their files."""
    writers.check(path_of(out, 0), force=True)
    numbers = list(mine(count, size))
    _files.remove_parts(*(path_of(out, number) for block in numbers for number in block))
    found = [(block, [number for number in block if force or not path_of(out, number).exists()]) for block in numbers]
    return [(block, missing) for block, missing in found if missing]
