"""Video files as people have them: mixed and variable rates, every colour tag, every orientation, transparency, classes in folders.

Files are lossless and made here, so that what comes out is known: pixels to 2 of 255, times to a frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffcore.unet3d import data
from diffcore.unet3d.data import _coded, _times

av = pytest.importorskip("av")
pytest.importorskip("typer")

from diffcore.cli import files  # noqa: E402

CLEAR = {"crf": "4", "b": "2M", "auto-alt-ref": "0"}
"""For VP8 and VP9 with alpha."""
CELLS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def write(path: Path, pictures: Any, *, times: Any = None, rate: int = 10, form: str = "bgr0", **how: Any) -> None:
    """Write RGB pictures, or frames that are there, by a lossless codec; times in milliseconds."""
    codec, turn = how.pop("codec", "ffv1"), how.pop("turn", None)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=how.pop("options", {}))
        first = pictures[0]
        size = (first.height, first.width) if isinstance(first, av.VideoFrame) else first.shape[:2]
        stream.height, stream.width, stream.pix_fmt = *size, form
        if turn is not None:
            stream.set_display_rotation(**turn)
        for name, value in how.items():
            setattr(stream.codec_context, name, value)
        for number, picture in enumerate(pictures):
            known = {3: "rgb24", 4: "rgba"}
            frame = (
                picture
                if isinstance(picture, av.VideoFrame)
                else av.VideoFrame.from_ndarray(picture, known[picture.shape[-1]])
            )
            at = number * Fraction(1000, rate) if times is None else times[number]
            frame.pts, frame.time_base = round(at), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def bar(place: float) -> Any:
    """A bar whose left edge is at a place."""
    picture = np.zeros((8, 256, 3), dtype=np.uint8)
    picture[:, round(place) : round(place) + 16] = 255
    return picture


def places(clip: Any) -> Any:
    return (clip[:, 0, :, 0] > 0.0).argmax(axis=1)


def test_one_motion_has_one_speed_in_files_of_any_rate(tmp_path: Path) -> None:
    for rate in (12, 24, 30, 60):  # mkv rounds times to milliseconds
        write(tmp_path / f"{rate}.mkv", [bar(120 * k / rate) for k in range(int(1.5 * rate))], rate=rate)
    said: list[str] = []
    how: dict[str, Any] = {"frames": 5, "size": (8, 256), "report": said.append}
    source = data.videos(tmp_path, fps=6.0, **how)
    starts = set()
    for index in range(4):
        for seed in range(6):
            at = places(source.clip(index, np.random.default_rng(seed)))
            np.testing.assert_array_equal(np.diff(at), 20)
            starts.add((index, int(at[0])))
    assert len(starts) > 12
    assert said == []
    data.videos(tmp_path, every=1, **how)
    assert said == [
        "data.videos: the 4 videos have 12 to 60 frames a second (most often 12, 24, 30), so one motion has several speeds; give "
        "fps= for frames at equal times"
    ]
    faster = data.videos(tmp_path, fps=20.0, **how)  # no multiple of it: never more than a frame of the file away
    assert said[-1].startswith(
        "data.videos: frames of 1 of 4 videos are repeated, for example of 12.mkv with 12 a second"
    )
    for index, rate in enumerate((12, 24, 30, 60)):
        at = places(faster.clip(index, np.random.default_rng(1)))
        assert np.abs(at - at[0] - 6.0 * np.arange(5)).max() <= 120 / rate


def test_a_long_file_is_entered_where_its_header_says(tmp_path: Path) -> None:
    write(tmp_path / "long.mkv", [bar(120 * (k % 100) / 60) for k in range(600)], rate=60, gop_size=20)
    source = data.videos(tmp_path, fps=30.0, frames=4, size=(8, 256))
    for seed in range(8):
        at = places(source.clip(0, np.random.default_rng(seed)))
        assert set(np.diff(at) % 200) == {4}


UNEVEN = [0, 100, 200, 300, 1500, 1600, 1700, 4000, 4050, 4100, 5000]


def test_a_variable_rate_keeps_its_length_and_what_shows_when(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "screen.mkv"
    write(path, [bar(20 * k) for k in range(11)], times=UNEVEN, rate=20)
    for fps in (None, 25.0):
        video = files.look(path, fps)
        files.say(video)
        assert "has a variable rate, 0.43 to 20 frames a second; it is read at equal times" in capsys.readouterr().err
        assert video.fps == pytest.approx(fps or 2.0)
        assert video.fps is not None
        clip = files.read(video, (8, 256), 3)[0]
        assert len(clip) == video.frames
        shown = places(clip) // 20
        for k, number in enumerate(shown):  # at k / fps, or up to a third of an interval later
            now = 1000 * k / video.fps
            assert UNEVEN[number] <= now + 340 / max(video.fps, 2.0) + 1
            assert number == 10 or UNEVEN[number + 1] >= now - 1
        assert abs(video.frames / video.fps - video.times.seconds) <= 1 / video.fps
        assert 5.0 <= video.times.seconds <= 5.6


def uneven(number: int) -> int:
    """40 ms a frame, then 100."""
    return 40 * number if number < 200 else 8000 + 100 * (number - 200)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_a_variable_rate_is_seen_in_files_of_any_length(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    write(
        path,
        [bar(k % 240) for k in range(300)],
        times=[uneven(k) for k in range(300)],
        rate=50,
        codec="libx264",
        form="yuv420p",
    )
    by_packets = _times.times_of(path)
    assert by_packets[:2] == pytest.approx((300, 299 / 17.9))
    assert by_packets.rates == pytest.approx((10.0, 25.0))
    said: list[str] = []
    source = data.videos(tmp_path, frames=2, size=(8, 16), report=said.append)
    assert len(source) == 1
    assert any(f"{name} has a variable rate, 10 to 25 frames a second; give fps=" in line for line in said)
    monkeypatch.setattr(_times, "LARGE", 0)  # as of a film
    assert _times.times_of(path) == by_packets
    write(path, [bar(k % 240) for k in range(300)], rate=50, codec="libx264", form="yuv420p")
    truth = _times.times_of(path)
    if name == "film.mp4":
        monkeypatch.setattr(_times, "packets_of", pytest.fail)  # its header says all
    assert _times.times_of(path) == truth == (300, 50.0, 6.0, None)


def test_a_cut_that_the_file_only_describes_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As phones cut: frames from the key frame on are in the file, and its edit list says which of them show."""
    write(tmp_path / "whole.mp4", [bar(4 * k) for k in range(60)], codec="libx264", form="yuv420p", gop_size=30)
    keep = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "cut.mp4"
    with av.open(str(tmp_path / "whole.mp4")) as whole, av.open(str(path), "w", options=keep) as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                begin = round(1 / packet.time_base)  # of ten frames
                packet.pts, packet.dts, packet.stream = packet.pts - begin, packet.dts - begin, stream
                cut.mux(packet)
    for large in (_times.LARGE, 0):
        monkeypatch.setattr(_times, "LARGE", large)
        video = files.look(path)
        assert (video.frames, video.fps, video.times.seconds) == (50, 10.0, 5.0)
        assert np.abs(places(files.read(video, (8, 256), 3)[0]) - 4 * np.arange(10, 60)).max() <= 1
    source = data.videos(tmp_path / "in", frames=50, size=(8, 256), every=1)
    assert len(source.clip(0, np.random.default_rng(0))) == 50


def test_the_rate_is_that_of_the_frames_and_not_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "slow.mkv"
    write(path, [bar(20 * k) for k in range(8)], times=range(0, 8000, 1000), rate=30)
    video = files.look(path)
    assert (video.frames, video.evenly) == (8, False)
    assert video.fps == pytest.approx(1.0)
    np.testing.assert_array_equal(places(files.read(video, (8, 256), 3)[0]), 20 * np.arange(8))


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_equal_times_at_the_rate_of_the_file_are_its_frames(jitter: float) -> None:
    at = np.arange(50) / 24.0 + jitter / 24.0 * np.random.default_rng(0).uniform(-0.5, 0.5, 50)
    found = list(_times.evenly(zip(at, range(50), strict=True), 24.0, 24.0))
    assert found == list(range(50))
    assert len(found) == _times.counted(50 / 24.0, 24.0, 24.0)


def coded(matrix: str, full: bool, height: int, width: int) -> Any:
    """CELLS as Y'CbCr, by the equations of BT.601 and BT.709."""
    red, blue = {"709": (0.2126, 0.0722), "601": (0.299, 0.114)}[matrix]
    r, g, b = np.moveaxis(np.kron(CELLS, np.ones((height // 4, width // 6, 1))) / 255.0, -1, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    planes = np.stack([y, (b - y) / 2 / (1 - blue), (r - y) / 2 / (1 - red)])
    low, high, chroma = (0.0, 255.0, 255.0) if full else (16.0, 219.0, 224.0)
    planes = np.array([low, 128.0, 128.0])[:, None, None] + np.array([high, chroma, chroma])[:, None, None] * planes
    return av.VideoFrame.from_ndarray(np.rint(planes).clip(0, 255).astype(np.uint8), "yuv444p")


@pytest.mark.parametrize(
    ("matrix", "full", "tags", "size", "says"),
    [
        ("709", False, {"colorspace": 1, "color_range": 1}, (32, 48), "BT.709, limited range"),
        ("709", True, {"colorspace": 1, "color_range": 2}, (32, 48), "BT.709, full range"),
        ("601", False, {"colorspace": 6, "color_range": 1}, (32, 48), "BT.601, limited range"),
        ("601", True, {"colorspace": 5, "color_range": 2}, (32, 48), "BT.601, full range"),
        ("601", False, {}, (32, 48), "no tag, read as BT.601, limited range"),
        ("709", False, {}, (864, 1296), "no tag, read as BT.709, limited range"),
    ],
)
def test_colours_are_those_of_the_tags(
    matrix: str, full: bool, tags: dict[str, int], size: tuple[int, int], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "colour.mp4"
    frame = coded(matrix, full, *size)
    write(path, [frame], codec="libx264", form="yuv444p", options={"qp": "0"}, **tags)
    video = files.look(path)
    assert video.colours == says
    source = data.videos(tmp_path, frames=1, size=(32, 48))
    for clip in (files.read(video, (32, 48), 3)[0, 0], source.frame(0, np.random.default_rng(0))):
        assert np.abs(127.5 * (clip[4::8, 4::8] + 1.0) - CELLS).max() <= 2.0


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_every_orientation_is_seen_upright(degrees: int, mirrored: bool, tmp_path: Path) -> None:
    """`degrees` counterclockwise, then mirrored left to right, as the eight orientations of EXIF."""
    path = tmp_path / "turned.mov"
    picture = np.kron(CELLS, np.ones((8, 8, 1), dtype=np.uint8))
    write(
        path,
        [picture],
        codec="libx264rgb",
        form="rgb24",
        options={"qp": "0"},
        turn={"degrees": degrees, "hflip": mirrored},
    )
    truth = np.rot90(CELLS, degrees // 90)
    truth = truth[:, ::-1] if mirrored else truth
    video = files.look(path)
    assert video.size == tuple(8 * side for side in truth.shape[:2])
    found = files.read(video, video.size, 3)[0, 0]
    assert np.abs(127.5 * (found[4::8, 4::8] + 1.0) - truth).max() <= 2.0


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("8.webm", "libvpx", "yuva420p"),
        ("a.mov", "qtrle", "argb"),
        ("a.gif", "", ""),
        ("a.png", "", ""),
    ],
)
@pytest.mark.parametrize(("background", "under"), [("black", (0, 0, 0)), ("0,128,255", (0, 128, 255))])
def test_transparency_lies_over_the_background(
    name: str, codec: str, form: str, background: str, under: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = np.zeros((32, 48, 4), dtype=np.uint8)
    picture[:, :16] = (200, 60, 30, 255)
    picture[:, 16:32] = (0, 255, 0, 0)  # green that must not be seen
    picture[:, 32:] = (250, 250, 250, 255 if name == "a.gif" else 51)
    if codec:
        write(
            tmp_path / name,
            [picture] * 2,
            codec=codec,
            form=form,
            options=CLEAR if form == "yuva420p" else {},
        )
    else:
        from PIL import Image

        frames = [Image.fromarray(np.roll(picture, k, axis=0)) for k in range(2)]
        frames[0].save(
            tmp_path / name,
            **({"save_all": True, "append_images": frames[1:], "disposal": 2} if name == "a.gif" else {}),
        )
    truth = np.array([(200, 60, 30), under, 0.2 * np.array([250] * 3) + 0.8 * np.array(under)])
    truth[2] = (250, 250, 250) if name == "a.gif" else truth[2]
    video = files.look(tmp_path / name, background=background)
    files.say(video)
    assert "has transparency, which lies over" in capsys.readouterr().err
    found = files.read(video, video.size, 3)[0, 0, 16, 8::16]
    assert np.abs(127.5 * (found + 1.0) - truth).max() <= (3.0 if name.endswith(".webm") else 2.0)


def test_transparency_that_cannot_be_decoded_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.webm", [np.zeros((32, 48, 4), dtype=np.uint8)], codec="libvpx", form="yuva420p", options=CLEAR)
    monkeypatch.setattr(_coded, "_ALPHA", {})
    assert not files.look(tmp_path / "a.webm").alpha
    assert (
        "a.webm has transparency that this PyAV cannot decode; its frames are taken as opaque"
        in capsys.readouterr().err
    )


def test_the_sub_folder_is_the_class(tmp_path: Path) -> None:
    for name, count in (("cat", 2), ("dog/indoors", 1), ("bird", 1)):
        (tmp_path / name).mkdir(parents=True)
        for number in range(count):
            write(tmp_path / name / f"{number}.mkv", [bar(20 * k) for k in range(4)])
    write(tmp_path / "stray.mkv", [bar(20 * k) for k in range(4)])
    said: list[str] = []
    how: dict[str, Any] = {"frames": 2, "size": (8, 16), "every": 1, "report": said.append}
    source = data.videos(tmp_path, labels="folders", **how)
    assert (source.names, source.classes) == (("bird", "cat", "dog"), 3)
    assert [source.label(index) for index in range(len(source))] == [0, 1, 1, 2]
    assert said == ["data.videos: skipped stray.mkv: it lies in no sub-folder, which would be its class"]
    (tmp_path / "cat" / "0.mkv").write_bytes(b"")  # the next of its class takes its place
    assert source.clip(1, np.random.default_rng(0)).shape == (2, 8, 16, 3)
    assert "took the next video for cat/0.mkv" in said[-1]
    (tmp_path / "bird" / "0.mkv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 4 videos in .* of the class 'bird' can be read any more"):
        source.clip(0, np.random.default_rng(0))
    some = data.videos(tmp_path, labels=["dog", "cat"], **how)
    assert [some.label(index) for index in range(len(some))] == [1, 0]
    assert any("cat/0.mkv: it is empty" in line for line in said)
    assert data.batch(some, 2, step=0).labels is not None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fps": 0}, ValueError, "`fps` must be a finite number > 0, got 0"),
        ({"fps": 5.0, "every": 2}, ValueError, "give `every` or `fps`, not both"),
        ({"labels": "files"}, ValueError, '`labels` must be "folders"'),
        ({"labels": 3}, TypeError, '`labels` must be "folders"'),
        ({"background": "pink"}, ValueError, "`background` must be"),
        ({"background": (0, 0, 300)}, ValueError, "`background` must be one of"),
        ({"background": 3}, TypeError, "`background` must be one of"),
        ({"fps": 0.5, "frames": 4}, ValueError, "has no video of 6 seconds or more"),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", [bar(0), bar(1)])
    with pytest.raises(error, match=f"data.videos: .*{message}"):
        data.videos(tmp_path, **{"frames": 2, "size": (8, 8), "report": lambda line: None, **options})
