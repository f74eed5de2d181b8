"""Files that were damaged, or made to do damage, and the readers that they are given to.

    python tests/hostile_cases.py [TRIALS OF EACH READER] [SEED]

prints for each reader how often it read the file, refused it clearly or did not, and the most time and memory it took.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import diffcore as dc
from diffcore import unet3d
from diffcore.cli import files, report, sheets, writers
from diffcore.unet3d import data

EXTREMES = (0, 1, 255, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1)
NUMBERS = (
    b"0",
    b"-1",
    b"1e400",
    b"NaN",
    b"null",
    b"99999999999999999999",
    b"1e9",
    b"[[[[]]]]",
    b'"x"',
    b"1" + b"0" * 5000,
)


class Reader(NamedTuple):
    """A reader, a sound file for it, and what damages its inside without what its format notices."""

    suffix: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    unwrap: Callable[[bytes, random.Random], bytes] | None = None


def damaged(sound: bytes, rng: random.Random) -> bytes:
    """Return a file with one to three things wrong with it."""
    held = bytearray(sound)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(held) + 1) if rng.random() < 0.5 else rng.randrange(min(len(held), 200) + 1)
        kind = rng.randrange(7)
        if kind == 0:
            del held[at:]
        elif kind == 1 and at < len(held):
            held[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            held[at:at] = rng.randbytes(rng.randint(1, 40))
        elif kind == 3:
            del held[at : at + rng.randint(1, 40)]
        elif kind == 4:
            held[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(EXTREMES))
        elif kind == 5:
            held[at:at] = held[rng.randrange(len(held) + 1) :][:200]
        elif numbers := list(re.finditer(rb"-?\d[\d.e+-]*", bytes(held))):
            found = rng.choice(numbers)
            held[found.start() : found.end()] = rng.choice(NUMBERS)
    return bytes(held)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _inside_png(sound: bytes, rng: random.Random) -> bytes:
    """Damage the content of one chunk, and say its right checksum."""
    parts, at = [], 8
    while at < len(sound):
        (size,) = struct.unpack(">I", sound[at : at + 4])
        parts.append((sound[at + 4 : at + 8], sound[at + 8 : at + 8 + size]))
        at += 12 + size
    place = rng.randrange(len(parts))
    parts[place] = (parts[place][0], damaged(parts[place][1], rng))
    return sound[:8] + b"".join(chunk(*part) for part in parts)


def _inside_npz(sound: bytes, rng: random.Random) -> bytes:
    """Damage one array, and archive it again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(sound)) as archive, zipfile.ZipFile(out, "w", rng.choice([0, 8])) as other:
        names = archive.namelist()
        place = rng.choice(names)
        for name in names:
            other.writestr(name, damaged(archive.read(name), rng) if name == place else archive.read(name))
    return out.getvalue()


def _inside_weights(sound: bytes, rng: random.Random) -> bytes:
    """Damage the config, and leave no digest."""
    size = int.from_bytes(sound[:8], "little")
    header = json.loads(sound[8 : 8 + size])
    header["__metadata__"].pop("digest")
    text = damaged(header["__metadata__"]["config"].encode(), rng).decode(errors="replace")
    header["__metadata__"]["config"] = text
    text = json.dumps(header)
    return len(text.encode()).to_bytes(8, "little") + text.encode() + sound[8 + size :]


CLIPS = np.random.default_rng(0).random((2, 3, 8, 8, 1), np.float32) * 2.0 - 1.0
PLAN = dc.samplers.unipc(dc.schedules.Cosine(), 4)


def _coded(path: Path) -> None:
    with writers.opened(path, 10.0) as writer:
        writer.write(np.repeat(CLIPS[:1], 3, axis=-1))


def _folder(path: Path) -> object:
    """Read a video as a folder for training has it: what is broken is reported and left out."""
    source = data.Videos(path.parent, frames=2, size=(8, 8), every=1, report=lambda _: None)
    return source.clip(0, np.random.default_rng(0))


def _seen(path: Path) -> object:
    video = files.look(path)
    return files.read(video, (8, 8), 1)


READERS: dict[str, Reader] = {
    "plan": Reader(".json", PLAN.save, dc.Plan.load),
    "state": Reader(
        ".npz",
        lambda path: dc.save_state(path, dc.start(PLAN, CLIPS, seed=1)),
        dc.load_state,
        _inside_npz,
    ),
    "weights": Reader(
        ".safetensors",
        lambda path: unet3d.save(unet3d.build(unet3d.preset("tiny")), path),
        unet3d.load,
        _inside_weights,
    ),
    "clips in npz": Reader(
        ".npz",
        lambda path: np.savez(path, clips=CLIPS, labels=[0, 1]),
        lambda path: data.array_file(path, frames=2).clip(1, np.random.default_rng(0)),
        _inside_npz,
    ),
    "clips in npy": Reader(
        ".npy",
        lambda path: np.save(path, CLIPS),
        lambda path: data.array_file(path, frames=2).clip(1, np.random.default_rng(0)),
    ),
    "a video in npy": Reader(".npy", lambda path: np.save(path, CLIPS), _seen),
    "a sheet": Reader(".png", lambda path: sheets.write(path, CLIPS, 1), _seen, _inside_png),
    "a gif": Reader(".gif", _coded, _seen),
    "a film": Reader(".mp4", _coded, _seen),
    "a gif to train on": Reader(".gif", _coded, _folder),
    "a film to train on": Reader(".mp4", _coded, _folder),
}
CLEAR = (ValueError, TypeError, OSError, report.Failure, report.Usage)


def trial(reader: Reader, path: Path, content: bytes) -> str:
    """Give a file to a reader, and return "read", "refused", or what was unclear about the error."""
    path.write_bytes(content)
    try:
        reader.read(path)
    except CLEAR as error:
        text = str(error)
        named = path.stem in text or path.name in text or re.match(r"(data|unet3d|Plan|load_state)\b", text)
        return "refused" if len(text) <= 500 and named else f"unclear {type(error).__name__}: {text[:300]}"
    except Exception as error:
        return f"unclear {type(error).__name__}: {str(error)[:300]}"
    return "read"


def trials(reader: Reader, folder: Path, count: int, seed: int) -> Any:
    """Yield what came of each damaged file, and how long it took."""
    path, rng = folder / f"some{reader.suffix}", random.Random(seed)
    reader.write(path)
    sound = path.read_bytes()
    assert trial(reader, path, sound) == "read"
    for _ in range(count):
        harm = reader.unwrap if reader.unwrap is not None and rng.random() < 0.5 else damaged
        content, began = harm(sound, rng), time.perf_counter()
        yield trial(reader, path, content), time.perf_counter() - began, content


def main(count: int, seed: int) -> None:
    """Report on each reader in a process of its own, by its time and its memory."""
    import resource

    for name, reader in READERS.items():
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder, "kept")
            if os.fork() == 0:
                found, longest, before = dict[str, int](), 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                (place := Path(folder, "place")).mkdir()
                for says, took, _ in trials(reader, place, count, seed):
                    found[says] = found.get(says, 0) + 1
                    longest = max(longest, took)
                grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
                kept.write_text(json.dumps({**found, "longest, s": round(longest, 2), "memory, MB": round(grown)}))
                os._exit(0)
            os.wait()
            sys.stdout.write(f"{name} {kept.read_text() if kept.exists() else 'DIED'}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
