"""What a run needs around it: its folder for itself, and a Ctrl-C that lets it end a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def alone(function: str, folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder."""
    import filelock

    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BlockingIOError(
            f"{function}: another run trains in the folder {folder.name!r}; wait for it, stop it, or take another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Give an event that is set by Ctrl-C, which then interrupts nothing until it comes again.

    It is so where Python's own handler is at work: another one, and another thread than the main one, are left alone.
    """
    asked = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if asked.is_set():
            signal.default_int_handler(number, frame)
        asked.set()

    main = threading.current_thread() is threading.main_thread()
    of = [sign for sign in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(sign) is signal.default_int_handler]
    for sign in of if main else ():
        signal.signal(sign, handle)
    try:
        yield asked
    finally:
        for sign in of if main else ():
            signal.signal(sign, signal.default_int_handler)
