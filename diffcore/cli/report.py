"""What a command says: results on stdout, all else on stderr; one line an error; a bar with the time left."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

from diffcore import _check, _synonyms

Row = dict[str, Any]


class Failure(Exception):
    """A run that failed for the reason in its message: exit code 1."""


class Usage(Exception):
    """A command that was used wrongly: exit code 2."""


def usage(message: str) -> NoReturn:
    """Refuse what was asked for."""
    raise Usage(message)


def no_such(
    option: str, given: str, choices: Collection[str], *, others: Collection[str] = (), more: str = ""
) -> NoReturn:
    """Refuse a name that an option does not know, with the one that may be meant, or else with all choices.

    `others` are known too.
    """
    found, spaced = _synonyms.meant(given, [*choices, *others])
    if found:
        usage(
            f"{option}: there is no {_check.cut(given)}; did you mean {option} {found}{spaced and f' --grid {spaced}'}?"
        )
    usage(f"{option} must be one of {', '.join(choices)}{more}, got {_check.cut(given)}")


def absent(path: object) -> str:
    """Return that there is no such file or folder, and which one may be meant, or that its folder is missing already."""
    text, whole = str(path), Path(str(path))
    if not whole.parent.is_dir():
        return f"there is no folder {whole.parent} for {whole.name}"
    beside: list[str] = []
    with contextlib.suppress(OSError):  # of a folder that may not be read
        beside = [each.name for each in whole.parent.iterdir() if not each.name.startswith(".")]
    near = _synonyms.closest(whole.name, beside, 0.65)
    meant = f" (did you mean {whole.parent / near}?)" if near else ""
    return f"there is no {'folder' if text.endswith('/') else 'file'} {text}{meant}"


def printable(text: object) -> str:
    """Return a text as a terminal may show it: a character that would move its cursor or colour it is escaped."""
    return "".join(
        part if part.isprintable() or part == "\n" else part.encode("unicode_escape").decode() for part in str(text)
    )


def one_line(text: object) -> str:
    """Return a text on one line."""
    return printable(" ".join(str(text).split()))


def note(text: str) -> None:
    """Say something on stderr, on one line."""
    typer.echo(one_line(text), err=True)


def notes(lines: Iterable[str]) -> None:
    """Say lines on stderr."""
    for line in lines:
        note(line)


def result(row: Row, text: str, *, as_json: bool) -> None:
    """Say what came out, on stdout: the row as JSON, or the text."""
    typer.echo(as_text(row) if as_json else printable(text))


def as_text(row: Row) -> str:
    """Return a row as JSON on one line."""
    return json.dumps(_plain(row), allow_nan=False)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Show a table on stdout."""
    from rich.table import Table
    from rich.text import Text

    if title:
        typer.echo(printable(title))
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 132).print(shown)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: no infinity, no NaN, no arrays."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


class Bar:
    """A bar on stderr with the time left; silent where stderr is no terminal.

    Args:
        what: is being made.
        total: units of work, or None where it is not known.
        stages: how many calls of `stage` a block takes.
        block: units that a block is expected to make, until one is done.
    """

    def __init__(self, what: str, total: float | None, *, stages: int = 1, block: float = 1.0) -> None:
        from rich import progress

        console = Console(stderr=True)
        self._stages, self._block, self._made = stages, block, 0.0
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def stage(self, _: object = None) -> None:
        """Move on by one stage of a block: a callback for `diffcore.sample`."""
        self._bar.advance(self._task, self._block / self._stages)

    def made(self, units: float) -> None:
        """Say that a block is done that made so many units."""
        self._block, self._made = units or self._block, self._made + units
        self._bar.update(self._task, completed=self._made)

    def done(self, units: float, text: str = "") -> None:
        """Say how much is done in total."""
        self._bar.update(self._task, completed=units, description=text or None)


@contextlib.contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Say warnings on one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(one_line(warning.message) for warning in caught):
        note(f"note: {text}")
