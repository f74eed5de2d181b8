"""What a compiler's failure is on torch, and the warning that tells of it: whatever is compiled has a plain way beside it."""

from __future__ import annotations

import warnings
from subprocess import CalledProcessError


def is_compiler_error(error: Exception) -> bool:
    """Return whether an error says that code was not compiled: by its type, or raised inside Triton, whose errors without a C
    compiler or libcuda are of Python."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = "" if last is None else str(last.tb_frame.f_globals.get("__name__"))
    ours = type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))
    return ours or where.startswith("triton.") or isinstance(error, CalledProcessError) or "C compiler" in str(error)


def warn(what: str, error: Exception, instead: str, stacklevel: int = 4) -> None:
    """Warn that something is not compiled here, and say what runs in its place."""
    warnings.warn(
        f"diffcore: {what} does not work here ({type(error).__name__}: {str(error).splitlines()[0]}); {instead}",
        RuntimeWarning,
        stacklevel=stacklevel,
    )
