"""Copies of a run's log: a table for a spreadsheet, and curves for TensorBoard."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from diffcore import _check

KINDS = ("csv", "tensorboard")
COLUMNS = ("step", "loss", "gradient_norm", "learning_rate", "validation_loss", "seconds")
CURVES = "tensorboard"
"""The folder of a run that TensorBoard reads."""


def check(function: str, kinds: Sequence[str]) -> None:
    """Raise where a kind is unknown, or its library missing."""
    if isinstance(kinds, str):
        raise _check.error(TypeError, function, "log", f"be some of {list(KINDS)} in a list or tuple", kinds)
    for kind in kinds:
        _check.choice(function, "log", kind, KINDS)
    if "tensorboard" in kinds:
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"{function}: `log` for TensorBoard needs {error.name}; install diffcore[tensorboard]"
            ) from error


@contextlib.contextmanager
def copies(folder: Path, log: Path, kinds: Sequence[str], first: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that is called with each line of a log, which goes on from step `first`."""
    writes: list[Callable[[dict[str, Any]], Any]] = []
    with contextlib.ExitStack() as held:
        if "csv" in kinds:
            rows = [
                json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()
            ]  # as it was cut to the checkpoint
            file = held.enter_context((folder / "log.csv").open("w", newline="", encoding="utf-8"))
            table = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)
            writes += [table.writerow, lambda _: file.flush()]
        if "tensorboard" in kinds:
            from tensorboardX import SummaryWriter

            curves = held.enter_context(
                contextlib.closing(SummaryWriter(str(folder / CURVES), purge_step=first + 1, flush_secs=10))
            )

            def draw(row: dict[str, Any]) -> None:
                for name, value in row.items():
                    if name != "step":
                        curves.add_scalar(name, value, row["step"])

            writes.append(draw)

        def copy(row: dict[str, Any]) -> None:
            for write in writes:
                write(row)

        yield copy
