"""No file does harm: whatever it holds, a reader refuses it in words or reads it, in little time and memory."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_cases import CLIPS, PLAN, READERS, chunk, trial, trials
from PIL import Image, PngImagePlugin

import diffcore as dc
from diffcore import unet3d
from diffcore.cli import files, report, sheets
from diffcore.unet3d import data

pytest.importorskip("av")
pytest.importorskip("safetensors")
posix = pytest.mark.skipif(os.name != "posix", reason="needs pipes as POSIX has them")


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_in_words(name: str, tmp_path: Path) -> None:
    """`python tests/hostile_cases.py 2000` does it for long."""
    seed = int.from_bytes(os.urandom(4)) if not os.environ.get("CI") else 1
    for says, _, content in trials(READERS[name], tmp_path, 30, seed):
        assert says in ("read", "refused"), (seed, content[:200])


@posix
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing"])
def test_what_is_no_file_is_refused_and_not_waited_for(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"some{READERS[name].suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises((ValueError, FileNotFoundError, report.Usage)):
        READERS[name].read(path)


def gif(height: int, width: int, frames: int = 3) -> bytes:
    """Return an animation whose frames change one pixel of a large canvas."""
    head = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\x00\x00\x00\x00\x00\xff\xff\xff"
    frame = b"\x21\xf9\x04\x00\x0a\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00"
    return head + frame * frames + b"\x3b"


def png(height: int, width: int) -> bytes:
    about = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(height * (1 + 3 * width)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _npz(path: Path) -> bytes:
    np.savez_compressed(path, clips=np.zeros((1, 100, 1000, 1000, 1), np.uint8), format=1, z=np.zeros(1))
    return path.read_bytes()


BOMBS: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "a gif": ("a gif", lambda path: gif(16000, 16000)),
    "a gif to train on": ("a gif to train on", lambda path: gif(16000, 16000)),
    "a png": ("a sheet", lambda path: png(6000, 6000)),
    "clips": ("clips in npz", _npz),
    "a state": ("state", _npz),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(name: str, tmp_path: Path) -> None:
    reader, make = BOMBS[name]
    path = tmp_path / f"some{READERS[reader].suffix}"
    content = make(tmp_path / "made.npz")
    (tmp_path / "made.npz").unlink(missing_ok=True)
    said = list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffcore.unet3d.data.Videos._tell", lambda self, done, path, error: said.append(str(error)))
        assert trial(READERS[reader], path, content) == "refused"
    with pytest.raises((ValueError, report.Failure), match=r"over 100 times|unpacks to|has no video"):
        READERS[reader].read(path)
    assert all("pixels take over 100 times its 89 bytes" in line for line in said)


NOTES: dict[str, Any] = {
    "as many clips as pixels": {"clips": 10**9, "height": 1, "width": 1},
    "frames of no height": {"clips": 10**5, "frames": 10**5, "height": 0},
    "no width": {"width": 0},
    "a fraction": {"zoom": 0.5},
    "less than nothing": {"frames": -1},
    "far more than a number holds": {"height": 10**400},
    "text": {"channels": "3"},
    "five channels": {"channels": 5},
}


@pytest.mark.parametrize("name", [*NOTES, "nested", "no dict"])
def test_a_sheet_whose_note_lies_is_refused(name: str, tmp_path: Path) -> None:
    sheets.write(tmp_path / "some.png", CLIPS, 1)
    with Image.open(tmp_path / "some.png") as picture:
        picture.load()
    note = {**json.loads(picture.info[sheets.KEY]), **NOTES.get(name, {})}
    text = {"nested": "[" * 10**5, "no dict": "[]"}.get(name, json.dumps(note) if name in NOTES else "")
    about = PngImagePlugin.PngInfo()
    about.add_text(sheets.KEY, text)
    picture.save(tmp_path / "some.png", pnginfo=about)
    with pytest.raises(report.Failure, match=r"some.png has a note on its frames that does not fit the picture"):
        files.look(tmp_path / "some.png")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"log_snr": ["nan"] * 4}, "NaN"),
        ({"next_log_snr": ["nan"] * 4}, "NaN"),
        ({"next_log_snr": ["1.0", "2.0", "3.0", "inf"]}, "stage 0 of unipc.* leads to `next_log_snr` 1.0"),
        ({"update": [10**400] * 4}, "its field `update` cannot be read: int too large"),
        ({"update": ["1e400"]}, "its field `update` cannot be read: cannot reshape"),
        ({"update": {}}, "its field `update` cannot be read: it is {}, no list of numbers"),
        ({"log_snr": [None]}, "its field `log_snr` cannot be read"),
        ({"shape": [10**400, 2, 3]}, "its `shape` is"),
        ({"shape": [10**9, 10**9, 10**9]}, "its `shape` is"),
        ({"sampler": "\x1b[2J"}, r"`sampler` must be a name of printable characters, got '\\x1b\[2J'"),
        ({"sampler": 5}, "`sampler` must be a name"),
        ({"scaling": []}, "`scaling` must be"),
        ({"second": {}}, "`second` must be"),
        ({"ahead": "yes"}, "`ahead` must be True or False"),
        ({"settings": [[[]]]}, "its `settings` are"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_plan_that_is_none_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    PLAN.save(tmp_path / "some.json")
    document = json.loads((tmp_path / "some.json").read_text())
    (tmp_path / "some.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(ValueError, match=rf"Plan.load: 'some.json' holds no plan: .*{says}"):
        dc.Plan.load(tmp_path / "some.json")
    (tmp_path / "some.json").write_text('{"format": ' + "[" * 10**5)
    with pytest.raises(ValueError, match="holds no plan"):
        dc.Plan.load(tmp_path / "some.json")


def test_a_plan_whose_levels_do_not_follow_is_none() -> None:
    after = np.array(PLAN.next_log_snr)
    for wrong in (after + 1.0, np.where(np.arange(4) == 2, np.nan, after), np.where(np.arange(4) == 1, np.inf, after)):
        with pytest.raises(ValueError, match=r"^Plan: (stage \d of unipc\S* leads to `next_log_snr` |.*NaN)"):
            dc.Plan("unipc", "vp", PLAN.log_snr, wrong, PLAN.update)


@pytest.mark.parametrize(
    "change",
    [{"frames": 10**9}, {"classes": 10**9}, {"size": 2**62}, {"embedding": 10**12}, {"multipliers": [1] * 10**5}],
)
def test_a_config_that_asks_for_more_than_its_file_holds_is_refused(change: Any, tmp_path: Path) -> None:
    config = unet3d.preset("tiny", condition="class", classes=3)
    model = unet3d.build(config)
    text = json.dumps({**config.to_dict(), **change})
    unet3d.weights.write(tmp_path / "some", model.arrays(), {"config": text})
    with pytest.raises(ValueError, match=r"^unet3d.load: some:? (has|lacks|'|has a config)"):
        unet3d.load(tmp_path / "some")


def test_clips_are_checked_in_place_and_only_what_is_drawn_is_converted(tmp_path: Path) -> None:
    """A clip as large as its file is not copied: of uint8 nothing is read before it is drawn."""
    clips = np.lib.format.open_memmap(tmp_path / "some.npy", "w+", np.uint8, (1, 2**20, 64, 64, 1))  # 4 GB of holes
    del clips
    source = data.array_file(tmp_path / "some.npy", frames=2)
    assert source.clip(0, np.random.default_rng(0)).shape == (2, 64, 64, 1)


@pytest.mark.parametrize(
    "content",
    [
        b"ffconcat version 1.0\nfile 'named.mp4'\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nnamed.mp4\n#EXT-X-ENDLIST\n",
        b"what a person wrote\n" * 9,
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".ts"])
def test_no_file_that_another_names_is_opened_and_no_text_is_drawn(content: bytes, suffix: str, tmp_path: Path) -> None:
    READERS["a film"].write(tmp_path / "named.mp4")
    path = tmp_path / f"list{suffix}"
    path.write_bytes(content)
    with pytest.raises(report.Failure, match="cannot be read as a video"):
        files.look(path)


def test_a_file_far_too_large_for_a_plan_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(ValueError, match=r"holds no plan: it has 1000000000000 bytes, and a plan at most 268435456$"):
        dc.Plan.load(path)


def test_a_background_shows_through_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffcore.unet3d.data import _coded

    monkeypatch.setattr(_coded, "PART", 5)
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (4, 6, 4), dtype=np.uint8)
    rgba[0, :, 3], rgba[2, :, 3] = 255, 0
    alpha = rgba[..., 3:] / 255.0
    wanted = np.rint(alpha * rgba[..., :3] + (1.0 - alpha) * np.array([3, 200, 77]))
    found = _coded.over_background(rgba, (3, 200, 77))
    np.testing.assert_allclose(found, wanted, atol=1.0)  # of a tie that float32 rounds the other way
    assert np.array_equal(found[[0, 2]], wanted[[0, 2]])


def test_what_a_file_says_moves_no_cursor() -> None:
    assert report.one_line("a\x1b[2J\x07\nb") == "a\\x1b[2J\\x07 b"
    assert report.printable("ä €\n\x9b1m") == "ä €\n\\x9b1m"
