"""A file is written whole or not at all, whoever else writes it, and otherwise as `open` would."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kills import halve, kills
from libraries import example
from training_cases import CONFIG

import diffcore as dc
from diffcore import _files, unet3d

posix = pytest.mark.skipif(os.name != "posix", reason="needs permissions and links as POSIX has them")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_there_is_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    _files.write(path, "old")
    with _files.replacing(path) as part:
        assert part.parent == tmp_path
        assert part.read_bytes() == b""
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    _files.write(path, "ö")
    assert path.read_bytes() == "ö".encode()
    _files.write(path, memoryview(b"bytes"))
    assert path.read_bytes() == b"bytes"
    assert names(tmp_path) == {"some.txt"}


PLACES: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "the disk is full": lambda patch: patch.setattr(os, "fsync", _full),
    "the name is not given": lambda patch: patch.setattr(Path, "replace", _full),
    "the permissions are not given": lambda patch: patch.setattr(Path, "chmod", _full),
}


def _full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _interrupted(path: Path) -> None:
    with _files.replacing(path) as part:
        part.write_text("half of")
        raise KeyboardInterrupt


@pytest.mark.parametrize("place", PLACES)
def test_a_failure_leaves_the_old_file_and_the_parts_of_others(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, others = tmp_path / "some.txt", {".some.txt.1.part", ".some.txt.0123456789abcdef.part"}
    for name in ("some.txt", *others):
        (tmp_path / name).write_text("old")
    with monkeypatch.context() as patch:
        PLACES[place](patch)
        with pytest.raises(OSError, match="No space left"):
            _files.write(path, "new")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == {"some.txt", *others}


def _state(library: str, number: int) -> Callable[[Path], object]:
    with example(library) as like:
        state = dc.start(dc.samplers.unipc(dc.schedules.Cosine(), 4), shape=(2, 3), like=like, seed=number)
    return lambda path: dc.save_state(path, state)


def _weights(library: str, number: int) -> Callable[[Path], object]:
    model = unet3d.build(CONFIG, backend=library, seed=number)
    return lambda path: unet3d.save(model, path)


WRITERS: dict[str, Callable[[int], Callable[[Path], object]]] = {
    "text": lambda number: lambda path: _files.write(path, f"number {number}"),
    "plan": lambda number: dc.samplers.ddim(dc.schedules.Cosine(), 2 + number).save,
    **{f"state {library}": functools.partial(_state, library) for library in ("numpy", "torch", "jax")},
    **{f"weights {library}": functools.partial(_weights, library) for library in ("numpy", "torch", "jax")},
}
"""For each kind of file what makes, of a number, a function that writes what differs with that number."""


@pytest.mark.parametrize("kind", WRITERS)
def test_a_process_killed_at_any_point_of_a_write_leaves_the_old_file_or_the_new_one(kind: str, tmp_path: Path) -> None:
    for library in ("torch", "jax"):
        if library in kind:
            pytest.importorskip(library)
    path, left = tmp_path / "some.file", list[bytes]()
    write_old, write_new = (WRITERS[kind](number) for number in range(2))
    write_new(path)
    new = path.read_bytes()
    write_old(path)
    old = path.read_bytes()
    assert old != new
    for _ in kills(lambda: path.write_bytes(old), lambda: write_new(path)):
        left.append(path.read_bytes())
        halve(tmp_path)
        _files.remove_parts(path)
        assert names(tmp_path) == {"some.file"}
    assert left == sorted(left, key=lambda content: content == new)  # once it is there it stays
    assert set(left) == {old, new}
    assert path.read_bytes() == new


def test_parts_that_were_left_are_removed_and_those_of_other_files_and_programs_are_not(tmp_path: Path) -> None:
    mine = ".a+b.txt.0123456789abcdef.part"
    others = {
        "a+b.txt",
        ".a+b.txt.1.part",
        ".aab.txt.0123456789abcdef.part",
        ".a+b.txt.0123456789abcdefg.part",
        "x.part",
    }
    for name in {mine, *others}:
        (tmp_path / name).touch()
    _files.remove_parts(tmp_path / "a+b.txt")
    assert names(tmp_path) == others
    with _files.replacing(tmp_path / ("n" * 255)) as part:
        part.with_name(part.name.replace(part.name[42:58], "f" * 16)).touch()
    _files.remove_parts(tmp_path / ("n" * 255))
    assert names(tmp_path) == {*others, "n" * 255}
    _files.remove_parts(tmp_path / "no folder" / "some")


def test_threads_that_write_one_file_do_not_damage_it(tmp_path: Path) -> None:
    path, failures = tmp_path / "some.bin", list[BaseException]()

    def run(letter: bytes) -> None:
        try:
            for _ in range(50):
                with _files.replacing(path) as part:
                    part.write_bytes(letter * 100_000)
                content = path.read_bytes()
                assert len(content) == 100_000
                assert len(set(content)) == 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert names(tmp_path) == {"some.bin"}


def test_processes_that_write_one_file_do_not_damage_it(tmp_path: Path) -> None:
    code = (
        "import sys; from diffcore import _files\n"
        "for _ in range(50):\n"
        "    _files.write(sys.argv[1], sys.argv[2] * 100_000)\n"
        "    assert len(set(open(sys.argv[1]).read())) == 1\n"
    )
    path = tmp_path / "some.txt"
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    assert len(path.read_text()) == 100_000
    assert names(tmp_path) == {"some.txt"}


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0])
def test_a_new_file_has_the_permissions_that_open_gives(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        (tmp_path / "opened").open("w").close()
        _files.write(tmp_path / "written", "")
    found = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("opened", "written")]
    assert found == [0o666 & ~mask] * 2


@posix
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_an_old_file_keeps_its_permissions(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.touch()
    path.chmod(mode)
    _files.write(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == mode


@posix
def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    for name in ("there", "not yet there"):
        target, link, second = tmp_path / "far" / name, tmp_path / f"link to {name}", tmp_path / f"second to {name}"
        if name == "there":
            target.write_text("old")
        link.symlink_to(Path("far", name))
        second.symlink_to(link.name)
        _files.write(second, "new")
        assert second.is_symlink()
        assert link.is_symlink()
        assert target.read_text() == "new"
    assert names(tmp_path / "far") == {"there", "not yet there"}


@posix
def test_what_cannot_be_replaced_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # no device: root could replace a real one, if this did not hold
    found = list[str]()
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    _files.write(tmp_path / "pipe", "through")
    reader.join()
    assert found == ["through"]
    assert names(tmp_path) == {"pipe"}


def test_what_open_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError if os.name == "posix" else OSError):
        _files.write(tmp_path, "new")
    with pytest.raises(FileNotFoundError):
        _files.write(tmp_path / "no folder" / "some", "new")
    with pytest.raises(OSError, match=r"."):
        _files.write(tmp_path / ("n" * 300), "new")
    assert not names(tmp_path)


@posix
@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write all files")
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(PermissionError):
        _files.write(path, "new")
    assert path.read_text() == "old"


def test_the_file_and_then_its_folder_are_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = list[tuple[int, bool]](), os.fsync

    def noted(handle: int) -> None:
        synced.append((os.fstat(handle).st_ino, (tmp_path / "some").exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    _files.write(tmp_path / "some", "new")
    wanted = [((tmp_path / "some").stat().st_ino, False), (tmp_path.stat().st_ino, True)]
    assert synced == (wanted if os.name == "posix" else wanted[:1])


def test_a_name_like_a_url_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with _files.replacing("2026-11-28T10:30.mp4") as part:
        assert part.is_absolute()
    assert names(tmp_path) == {"2026-11-28T10:30.mp4"}
