"""Arguments of programs run by `python -m`, for the `type=` of argparse: wrong ones are refused before anything is measured."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def new_file(text: str) -> Path:
    """Return the path of a file to write, whose folder is there.

    >>> new_file("no/such/folder/found.json")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: there is no folder no/such/folder for found.json; make it first: mkdir -p no/such/folder
    """
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{text} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise ArgumentTypeError(
            f"there is no folder {path.parent} for {path.name}; make it first: mkdir -p {path.parent}"
        )
    return path


def old_file(text: str) -> Path:
    """Return the path of a file that is there."""
    path = Path(text)
    if not path.is_file():
        raise ArgumentTypeError(
            f"{text} is a folder; give a file in it" if path.is_dir() else f"there is no file {text}"
        )
    return path


def folder(text: str) -> Path:
    """Return the path of a folder, which may still have to be made."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise ArgumentTypeError(f"{text} is a file; give a folder")
    return path


def count(least: int = 1) -> Callable[[str], int]:
    """Return the reader of an int of at least so many.

    >>> count(2)("1")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: it must be an int >= 2, got 1
    """

    def read(text: str) -> int:
        found = int(text) if text.strip().removeprefix("-").isdecimal() else least - 1
        if found < least:
            raise ArgumentTypeError(f"it must be an int >= {least}, got {text}")
        return found

    return read
