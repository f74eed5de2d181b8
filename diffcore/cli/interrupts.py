"""Ctrl-C while a library computes: Python hears of it when the library returns, which may take minutes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 1.5
"""Seconds that Python has for ending by itself."""

INTERRUPTED = 130
SAYS = "diffcore: interrupted; no half-written file was left"


@contextlib.contextmanager
def heard(part: Path) -> Iterator[None]:
    """Leave the process, without the half-written file `part`, where Python does not come to an interrupt in `PATIENCE` seconds.

    The interpreter's handler writes the number of a signal to a socket at once, whatever else runs; a thread waits for it.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield  # only the main thread may be told of signals; and there no socket is
        return
    ours, handlers = socket.socketpair()
    handlers.setblocking(False)
    before = signal.set_wakeup_fd(handlers.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(ours, part), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        handlers.close()
        thread.join()
        ours.close()


def _watch(ours: socket.socket, part: Path) -> None:
    while number := ours.recv(1):
        if number[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        ours.settimeout(PATIENCE)
        with contextlib.suppress(TimeoutError):
            while ours.recv(1):  # more signals; nothing, once the context was left
                pass
            return
        part.unlink(missing_ok=True)
        os.write(sys.stderr.fileno(), f"{SAYS}\n".encode())
        os._exit(INTERRUPTED)
