"""The one way in which a file is read, and the one in which it is written: whole, under a temporary name, which then
becomes its own.

Whoever opens the file finds the old content or the new one, also after a power cut, and however many threads, processes
and machines write it at once. In all else it is as with `open`: the same permissions, and a link is followed.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from diffcore import _check

PART = ".{}.{}.part"
"""A temporary name: of the file's, as much as surely fits into a name of 255 bytes, and a number of 64 bits."""


def regular(function: str, path: str | os.PathLike[str], argument: str = "path") -> Path:
    """Return the path of a file that is there, is no folder, and ends: a pipe or a device may never.

    Raises:
        TypeError: what names no file.
        FileNotFoundError: there is none.
        ValueError: something that is no regular file.

    >>> regular("Plan.load", "/dev/null")
    Traceback (most recent call last):
    ValueError: Plan.load: `path` must be the name of a regular file, got '/dev/null', which is a device
    """
    name = named(function, path, argument)
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{function}: there is no file {_check.shown(name)}") from None
    except ValueError:  # of a character that no name has
        raise _check.error(ValueError, function, argument, "be the name of a file", name) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device"
        must = f"must be the name of a regular file, got {_check.shown(name)}, which is {kind}"
        raise ValueError(f"{function}: `{argument}` {must}")
    return Path(name)


def named(function: str, path: object, argument: str = "path") -> str:
    """Return the name of a file as text, or raise TypeError for what is none, ValueError for the empty one."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(name := os.fspath(path), str):
        raise _check.error(TypeError, function, argument, "be the name of a file, a str or a pathlib.Path", path)
    if not name or "\0" in name:
        raise _check.error(ValueError, function, argument, "be the name of a file", name)
    return name


UNPACKED = 2**26
"""Bytes that any file may unpack to: 22 million pixels; a larger one may unpack to 100 times its own size."""


def room(path: Path) -> int:
    """Return how many bytes the content of a compressed file may take. More is no picture, clip or state but an attack."""
    return max(UNPACKED, 100 * path.stat().st_size)


def archive(function: str, path: str | os.PathLike[str], argument: str = "path") -> Path:
    """Return the path of a zip archive, such as .npz, of which nothing was unpacked yet and which has `room` for its content.

    Raises:
        ValueError: no archive, or one that unpacks to more; beside what `regular` raises.
    """
    found = regular(function, path, argument)
    name = _check.shown(found.name)
    try:
        import zipfile  # which, with its compressors, is slow to load

        with zipfile.ZipFile(found) as held:
            size = sum(info.file_size for info in held.infolist())
    except Exception as error:  # of many kinds for a damaged one
        raise ValueError(f"{function}: {name} is no whole archive ({_check.shown(str(error))})") from None
    if size > room(found):
        raise ValueError(
            f"{function}: {name} has {found.stat().st_size} bytes and unpacks to {_check.shown(size)}; write it uncompressed, for "
            f"example with numpy.savez"
        )
    return found


def read(function: str, path: str | os.PathLike[str], argument: str = "path") -> bytes:
    """Return what a file holds. Raises what `regular` raises, and the OSError of a file that may not be read."""
    found = regular(function, path, argument)
    try:
        return found.read_bytes()
    except OSError as error:  # while it is read, the error does not name it
        raise error if error.filename else OSError(error.errno, error.strerror, str(found)) from None


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty file beside `path` to write to; it takes the place of `path` when the block ends without an error, and
    goes when it does not. A pipe or a device, which nothing can replace, is given itself.

    Raises:
        OSError: what `open` raises for the path: no such folder, a folder, a file that may not be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(folder + "/a.txt") as part:
    ...         _ = part.write_text("whole")
    ...     Path(folder, "a.txt").read_text()
    'whole'
    """
    mode, path = None, named("", path)
    if os.path.exists(path):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            yield Path(path)
            return
        os.close(os.open(path, os.O_WRONLY))  # raises where it may not be written
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {_check.shown(str(target.parent))} for {_check.shown(target.name)}"
        )
    part = target.with_name(PART.format(target.name[:40], os.urandom(8).hex()))
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less the umask, which cannot be asked for
    try:
        if mode is not None:
            part.chmod(stat.S_IMODE(mode))
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(target.parent)


def write(path: str | os.PathLike[str], content: str | bytes | memoryview) -> None:
    """Write a file whole or not at all; text is UTF-8."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_parts(*paths: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed left of files. For whoever knows that nobody writes them now."""
    left = re.compile(PART.format("(.+)", "[0-9a-f]{16}").replace(".part", r"\.part"), re.DOTALL)
    folders: dict[Path, set[str]] = {}
    for path in paths:
        target = Path(os.path.realpath(path))
        folders.setdefault(target.parent, set()).add(target.name[:40])
    for folder, names in folders.items():
        for other in folder.iterdir() if folder.is_dir() else ():
            if (found := left.fullmatch(other.name)) and found[1] in names:
                other.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring the new name of a file to the disk, where the system lets one."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
