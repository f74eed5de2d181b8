"""A process that dies at its n-th operation on files, played in this one: nothing reaches the disk after it."""

from __future__ import annotations

import builtins
import contextlib
import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

OPERATIONS = ("open", "replace", "rename", "unlink", "remove", "rmdir", "mkdir", "chmod", "fsync")


class Killed(BaseException):
    """What nothing catches."""


@contextlib.contextmanager
def killed(at: int) -> Iterator[None]:
    """Let the process die before its operation `at`, counted from 0."""
    numbers = itertools.count()

    def dying(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            if next(numbers) >= at:
                raise Killed
            return operation(*args, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, dying(getattr(os, name)))
        opened = dying(io.open)
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        yield


def kills(prepare: Callable[[], Any], write: Callable[[], Any]) -> Iterator[int]:
    """Yield after each kill of `write`, from the first operation to the last, each after `prepare`; at last it is not killed.

    Of a file that was being written, half is there: what was in buffers is lost.
    """
    for at in itertools.count():
        prepare()
        try:
            with killed(at):
                write()
        except Killed:
            yield at
        else:
            assert at >= 5  # a temporary file is made, opened, written, brought to the disk, renamed
            return


def halve(folder: Path) -> None:
    """Cut the temporary files of a folder short."""
    for part in folder.glob(".*.part"):
        os.truncate(part, part.stat().st_size // 2)
