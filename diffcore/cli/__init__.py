"""The command `diffcore`: draw, extend, smooth and enlarge videos, train and evaluate, from a shell; `diffcore --help`.

Nothing is computed here: each command reads its files, calls the library, and writes what comes back. It needs
diffcore[cli].
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and leave with its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        from diffcore.cli.app import app
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        needs = (error.name or "").split(".")[0]
        if needs not in {"typer", "rich"}:
            raise
        sys.stderr.write(f"diffcore: the command line needs {needs}; install diffcore[cli]\n")
        sys.exit(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no half-written file stays then either
    app(prog_name="diffcore")
    sys.exit(0)
