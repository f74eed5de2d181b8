"""Videos as training data: the frames of a sequential decode wherever a file is entered, upright and undistorted, and no
bad file ends a run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chisquare

from diffcore.unet3d import data

av = pytest.importorskip("av")
Picture = Callable[[int, int, int], npt.NDArray[np.uint8]]


def stripes(number: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A picture that no other number has, even after a lossy codec."""
    bits = (number >> np.arange(10)) & 1
    row = np.where(np.repeat(bits, -(-width // 10))[:width], 220, 30).astype(np.uint8)
    return np.repeat(np.repeat(row[None, :, None], height, axis=0), 3, axis=2)


def ramp(number: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Red says how far from the left a pixel is, green how far from the top, both as a fraction of the picture."""
    red, green = (np.arange(width) + 0.5) / width, (np.arange(height)[:, None] + 0.5) / height
    return np.rint(255.0 * np.stack(np.broadcast_arrays(red, green, 0.5), axis=-1)).astype(np.uint8)


def write(
    path: Path,
    codec: str = "mpeg4",
    *,
    count: int = 60,
    size: tuple[int, int] = (32, 48),
    pixels: str = "yuv420p",
    picture: Picture = stripes,
    times: Callable[[int], int] = lambda number: number,
    aspect: int = 1,
    options: dict[str, str] | None = None,
    **settings: Any,
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        if aspect != 1:
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), "rgb24")
            frame.pts, frame.time_base = times(number), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def sequential(path: Path) -> npt.NDArray[np.uint8]:
    """Every frame of a file, decoded from its beginning."""
    with av.open(str(path)) as container:
        found = [frame.to_ndarray(format="rgb24", interpolation="BICUBIC") for frame in container.decode(video=0)]
    return np.stack(found)


def pixels_of(x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return np.rint((x.astype(np.float64) + 1.0) * 127.5).astype(np.int64)


def start_of(clip: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8], every: int) -> int:
    """Return the number of the one frame from which a clip runs through the frames, bit for bit, or fail."""
    wanted = pixels_of(clip)
    last = len(frames) - (len(clip) - 1) * every
    starts = [k for k in range(last) if np.array_equal(wanted, frames[k : k + len(clip) * every : every][: len(clip)])]
    assert len(starts) == 1, f"the clip begins at {starts}"
    return starts[0]


OPEN = {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:log-level=none"}
KINDS: dict[str, dict[str, Any]] = {
    "mpeg4.mp4": {"gop_size": 10},
    "mpeg4_b.avi": {"gop_size": 10, "max_b_frames": 2},
    "h264_open.mp4": {"codec": "libx264", "options": OPEN, "max_b_frames": 3},
    "h264.mkv": {"codec": "libx264", "gop_size": 10},
    "h264_b.avi": {"codec": "libx264", "gop_size": 10, "max_b_frames": 2},
    "h264.ts": {"codec": "libx264", "gop_size": 10},
    "h264_late.mp4": {"codec": "libx264", "gop_size": 10, "times": lambda number: 1000 + number},
    "variable.mp4": {"codec": "libx264", "gop_size": 10, "times": lambda number: 2 * number + (number % 3 > 0)},
    "vp8.webm": {"codec": "libvpx", "gop_size": 10},
    "mpeg2.mpg": {"codec": "mpeg2video", "gop_size": 10, "max_b_frames": 2},
    "animation.GIF": {"codec": "gif", "pixels": "rgb8"},
    "odd.mkv": {"codec": "ffv1", "pixels": "bgr0", "size": (23, 37)},
    "wmv.wmv": {"codec": "wmv2", "gop_size": 10},
}


@pytest.mark.parametrize(("name", "count"), [*((name, 300) for name in KINDS), ("mpeg2.mpg", 60), ("variable.mp4", 60)])
def test_random_access_equals_decoding_from_the_beginning(name: str, count: int, tmp_path: Path) -> None:
    """The frames of 300 are found by the header, those of 60 by the times of all packets."""
    write(tmp_path / name, count=count, **KINDS[name])
    frames = sequential(tmp_path / name)
    assert len(frames) == count
    source = data.videos(tmp_path, frames=3, size=frames.shape[1:3], every=2)
    starts = [start_of(source.clip(0, np.random.default_rng(k)), frames, 2) for k in range(40)]
    assert min(starts) < 0.1 * count
    assert max(starts) > 0.9 * count - 5
    assert len(set(starts)) > 20
    images = {start_of(source.frame(0, np.random.default_rng(k))[None], frames, 1) for k in range(40)}
    assert len(images) > 20


def test_every_start_of_a_short_video_is_as_likely(tmp_path: Path) -> None:
    write(tmp_path / "short.mp4", count=8)
    frames = sequential(tmp_path / "short.mp4")
    source = data.videos(tmp_path, frames=3, size=frames.shape[1:3], every=2)
    starts = [start_of(source.clip(0, np.random.default_rng(k)), frames, 2) for k in range(200)]
    assert len(np.bincount(starts)) == 4
    assert chisquare(np.bincount(starts)).pvalue > 1e-4


@pytest.mark.parametrize("count", [40, 300])
def test_at_a_constant_rate_frame_k_is_frame_k(count: int, tmp_path: Path) -> None:
    """Whether its time is from the header or from the packets: frame k of 25 a second begins at k / 25."""
    module = importlib.import_module("diffcore.unet3d.data._windows")
    write(tmp_path / "even.mp4", count=count, gop_size=10)
    file = module.probe(tmp_path / "even.mp4", 3)
    assert file.length == count
    assert (file.times is None) == (count == 300)
    for k in (0, 1, 9, 10, 11, count - 4, count - 3):
        run, _ = module.read(file, k, 3)
        assert [frame.time for frame in run] == pytest.approx([k / 25, (k + 1) / 25, (k + 2) / 25])


def test_decoding_that_began_after_the_frame_or_between_key_frames_is_not_taken() -> None:
    window = importlib.import_module("diffcore.unet3d.data._windows").window
    frames = [SimpleNamespace(pts=k, key_frame=k % 5 == 0) for k in range(3, 13)]
    assert window(iter(frames), 4.5, 2, timed=True, sought=True) is None
    assert [frame.pts for frame in window(iter(frames), 5.5, 2, timed=True, sought=True)] == [5, 6]
    assert [frame.pts for frame in window(iter(frames), 4.5, 2, timed=True, sought=False)] == [4, 5]
    assert [frame.pts for frame in window(iter(frames), 99.0, 2, timed=True, sought=True)] == [11, 12]
    assert window(iter(frames), 99.0, 9, timed=True, sought=True) is None


def test_a_long_file_is_entered_near_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "long.mp4", count=900, gop_size=20)
    module = importlib.import_module("diffcore.unet3d.data._windows")
    window, decoded = module.window, 0

    def counting(frames: Any, *arguments: Any, **options: Any) -> Any:
        def counted() -> Any:
            nonlocal decoded
            for frame in frames:
                decoded += 1
                yield frame

        return window(counted(), *arguments, **options)

    source = data.videos(tmp_path, frames=4, size=(32, 48), every=1)
    monkeypatch.setattr(module, "window", counting)
    for k in range(20):
        source.clip(0, np.random.default_rng(k))
    assert decoded < 20 * (20 + 4 + 4)


def test_batches_of_videos_are_pure_and_appended_frames_come_from_all_of_them(tmp_path: Path) -> None:
    for number in range(3):
        write(
            tmp_path / f"{number}.mp4",
            count=30,
            picture=lambda n, *size, k=number: np.full((*size, 3), 80 * k + n, np.uint8),
        )
    one, other = (data.videos(tmp_path, frames=2, size=(16, 16), every=3) for _ in range(2))
    assert [path.name for path in one.paths] == ["0.mp4", "1.mp4", "2.mp4"]
    assert (one.shape, one.frames, len(one), one.classes) == ((2, 16, 16, 3), 2, 3, None)
    x, again = (
        np.concatenate([data.batch(source, 3, step=step, images=3, flip=True).x for step in steps])
        for source, steps in ((one, range(4)), (other, range(2, 4)))
    )
    np.testing.assert_array_equal(again, x[6:])
    brightness = pixels_of(x).mean(axis=(2, 3, 4))
    np.testing.assert_array_equal(np.sort(brightness[:3, 0] // 70), [0, 1, 2])
    assert set((brightness[:, 2:] // 70).ravel()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("shape", "shown", "settings"),
    [
        ((48, 96), (48, 96), {}),
        ((100, 40), (100, 40), {}),
        ((8, 12), (8, 12), {}),  # smaller than what is cut from it
        ((48, 48), (48, 96), {"aspect": 2}),
        ((33, 47), (33, 47), {}),
    ],
)
def test_a_crop_covers_and_keeps_the_aspect_ratio(
    shape: tuple[int, int], shown: tuple[int, int], settings: dict[str, Any], tmp_path: Path
) -> None:
    """Red and green grow by 255 / (the scaled sides) a pixel, and the crop meets both ends of the longer side."""
    lossless = {"codec": "libx264", "pixels": "yuv444p", "options": {"qp": "0"}}
    write(tmp_path / "ramp.mp4", size=shape, picture=ramp, count=3, **lossless, **settings)
    source = data.videos(tmp_path, frames=1, size=(24, 24), every=1)
    crops = 127.5 * (np.stack([source.frame(0, np.random.default_rng(k)) for k in range(60)]) + 1.0)
    scale = 24.0 / min(shown)
    for channel, axis, side in ((0, 2, shown[1]), (1, 1, shown[0])):
        steps = np.diff(crops[..., channel], axis=axis)
        np.testing.assert_allclose(np.take(steps, range(4, 19), axis=axis).mean(), 255.0 / (side * scale), rtol=0.06)
        ends = crops[..., channel].take([0, -1], axis=axis)
        assert ends.min() < 20.0
        assert ends.max() > 235.0
    assert np.ptp(crops[..., 2]) <= 2.0


def test_a_name_with_a_colon_is_a_file_and_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("http:")
    folder.mkdir()
    for name in ("2026-11-28T10:30.mp4", "file:a.mp4", "concat:b|c.mp4"):
        write(tmp_path / name, count=5)
        (tmp_path / name).rename(folder / name)
    source = data.videos(folder, frames=2, size=(8, 8), report=pytest.fail)
    assert len(source) == 3
    for index in range(3):
        source.clip(index, np.random.default_rng(0))


def test_what_cannot_be_read_is_reported_and_skipped(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    write(tmp_path / "deeper" / "good.MP4", count=20)
    copy_part(tmp_path / "deeper" / "good.MP4", tmp_path / "half.mp4", 0.5)
    write(tmp_path / "short.mp4", count=4)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.webm").write_text("no video" * 100)
    (tmp_path / "notes.txt").write_text("not looked at")
    said: list[str] = []
    source = data.videos(tmp_path, frames=3, size=(16, 16), every=2, report=said.append)
    assert [path.name for path in source.paths] == ["good.MP4"]
    assert [line.split(": ", 2)[1] for line in said] == [
        f"skipped {k}" for k in ("empty.mp4", "half.mp4", "short.mp4", "text.webm")
    ]
    assert said[0] == "data.videos: skipped empty.mp4: it is empty"
    assert said[2] == "data.videos: skipped short.mp4: it has 4 frames, but 5 are needed"
    with pytest.raises(ValueError, match="has no video of 41 frames or more that can be read; 5 files were looked at"):
        data.videos(tmp_path, frames=21, size=(16, 16), every=2, report=said.append)


def copy_part(path: Path, to: Path, part: float) -> None:
    content = path.read_bytes()
    to.write_bytes(content[: int(len(content) * part)])


def test_a_file_that_breaks_later_is_replaced_by_the_next_and_training_goes_on(tmp_path: Path) -> None:
    for number in range(3):
        write(
            tmp_path / f"{number}.mp4",
            count=12,
            picture=lambda n, *size, k=number: np.full((*size, 3), 80 * k + n, np.uint8),
        )
    said: list[str] = []
    source = data.videos(tmp_path, frames=2, size=(16, 16), every=1, report=said.append)
    whole = [source.clip(k, np.random.default_rng(5)) for k in range(3)]
    assert said == []
    content = (tmp_path / "1.mp4").read_bytes()
    (tmp_path / "1.mp4").write_bytes(content[: len(content) // 3])
    for _ in range(2):
        np.testing.assert_array_equal(source.clip(1, np.random.default_rng(5)), whole[2])
        np.testing.assert_array_equal(source.clip(0, np.random.default_rng(5)), whole[0])
    (tmp_path / "2.mp4").unlink()
    np.testing.assert_array_equal(source.clip(1, np.random.default_rng(5)), whole[0])
    assert [line.split(": ")[1] for line in said] == [f"took the next video for {k}.mp4" for k in (1, 2)]
    (tmp_path / "0.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 3 videos in .* can be read any more"):
        source.clip(1, np.random.default_rng(5))


def test_a_video_whose_end_is_missing_gives_the_frames_it_has(tmp_path: Path) -> None:
    """The header is whole and speaks of frames that are not there: what comes is real, from it or from the next."""
    write(tmp_path / "a.mkv", "libx264", count=300, gop_size=10)
    copy_part(tmp_path / "a.mkv", tmp_path / "b.mkv", 0.5)
    frames = sequential(tmp_path / "a.mkv")
    source = data.videos(tmp_path, frames=3, size=(32, 48), every=1, report=lambda line: None)
    starts = [start_of(source.clip(1, np.random.default_rng(k)), frames, 1) for k in range(40)]
    assert min(starts) < 60


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"frames": 0}, ValueError, "`frames` must be an int >= 1, got 0"),
        ({"every": 0}, ValueError, "`every` must be an int >= 1, got 0"),
        ({"size": 64}, TypeError, r"`size` must be \(height, width\), ints >= 1, got 64"),
        ({"size": (64, 0)}, ValueError, r"`size` must be \(height, width\), ints >= 1, got \(64, 0\)"),
        ({"folder": "nowhere"}, FileNotFoundError, "`folder` is 'nowhere', and there is no such folder"),
    ],
)
def test_what_videos_refuse(options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=f"data.videos: {message}"):
        data.videos(**{"folder": tmp_path, "frames": 2, "size": (8, 8), **options})
