"""What goes into the command line and out of it: files of every kind, whole or not at all, and one line for each error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cli_cases
import numpy as np
import pytest
import typer
from cli_cases import QUICK, clip, coded, done, refused, run, whole
from safetensors.numpy import save_file

import diffcore as dc
from diffcore.cli import app, drawing, files, idle, sheets, writers

av = pytest.importorskip("av")

in_a_folder, tiny = cli_cases.in_a_folder, cli_cases.tiny


def test_a_video_of_another_size_is_scaled_cut_and_made_grey(tiny: str) -> None:
    coded("in.mp4", 5, (24, 40))
    found = done("extend", "in.mp4", "out.npy", "--frames", 6, "-w", tiny, *QUICK)
    assert [line for line in found.stderr.splitlines() if "24x40" in line]
    assert np.load("out.npy").shape == (1, 6, 8, 8, 1)
    even = np.broadcast_to(np.array([0.5, -0.5, 0.0], np.float32), (2, 16, 32, 3))
    np.save("even.npy", even)
    video = files.look(Path("even.npy"))
    grey = files.read(video, (8, 8), 1)
    assert np.allclose(grey, 0.5 * 0.299 - 0.5 * 0.587, atol=1e-6)
    halves = np.concatenate([np.full((1, 16, 16, 1), -1.0), np.full((1, 16, 16, 1), 1.0)], axis=2)
    np.save("halves.npy", halves)
    middle = files.read(files.look(Path("halves.npy")), (8, 8), 1)[0, 0, :, :, 0]
    assert np.all(middle[:, :3] < -0.9)
    assert np.all(middle[:, 5:] > 0.9)


def test_clips_on_a_sheet_are_counted_from_0_as_frames_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[str] = []
    page: Any = vars(sheets)["page"]

    def spy(given: Any, zoom: Any) -> Any:
        rows.extend(name for name, _ in given)
        return page(given, zoom)

    monkeypatch.setattr(sheets, "page", spy)
    sheets.write(Path("two.png"), np.zeros((2, 17, 8, 8, 1), np.float32), 1)
    assert rows == [f"clip {number}, frame {first}" for number in (0, 1) for first in (0, 16)]


def test_one_frame_is_a_video_too(tiny: str) -> None:
    np.save("one.npy", clip(1))
    assert "all light" not in done("extend", "one.npy", "longer.npy", "--frames", 5, "-w", tiny, *QUICK).stderr
    np.save("light.npy", 0.5 * clip(1) + 0.5)
    found = done("interpolate", "light.npy", "l.npy", "-w", tiny, *QUICK)
    assert "all light; if black is 0 there, give x * 2 - 1" in found.stderr
    assert np.array_equal(np.load("longer.npy")[0, :1], np.load("one.npy"))
    found = done("interpolate", "one.npy", "same.npy", "-w", tiny, *QUICK)
    assert "one frame, and nothing lies between" in found.stderr
    assert np.array_equal(np.load("same.npy")[0], np.load("one.npy"))


def _bad(name: str) -> int:
    """Write a file that cannot be used, and return the exit code that it leads to."""
    arrays = {
        "nan.npy": np.full((4, 8, 8, 1), np.nan),
        "range.npy": np.full((4, 8, 8, 1), 3.0),
        "rank.npy": np.zeros((4, 8, 8)),
        "none.npy": np.zeros((0, 8, 8, 1)),
        "whole.npy": np.zeros((4, 8, 8, 1), dtype=np.int64),
        "two.npy": np.zeros((4, 8, 8, 2)),
        "first.npy": np.zeros((2, 4, 3, 8, 8)),
        "before.npy": np.zeros((3, 6, 8, 8)),
        "objects.npy": np.array([{}], dtype=object),
    }
    if name in arrays:
        np.save(name, arrays[name])
    elif name == "empty.mp4":
        Path(name).touch()
    elif name == "folder.mp4":
        Path(name).mkdir()
        return 2
    elif name == "broken.png":
        Path(name).write_bytes(b"\x89PNG no")
    elif name == "text.txt":
        Path(name).write_text("hello")
        return 2
    elif name == "missing.mp4":
        return 2
    else:
        data = Path(coded("sound.mp4")).read_bytes()
        Path(name).write_bytes({"cut.mp4": data[: len(data) // 2], "junk.mp4": os.urandom(2000)}[name])
    return 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nan.npy", "values from nan to nan"),
        ("range.npy", "x * 2 - 1 from"),
        ("rank.npy", "must have shape (T, H, W, C)"),
        ("none.npy", "at least one frame"),
        ("whole.npy", "must hold uint8"),
        ("two.npy", "2 channels"),
        ("first.npy", "whose channels are before its rows; put them last: numpy.moveaxis(clips, -3, -1)"),
        ("before.npy", "if they are before the frames: numpy.moveaxis(clips, -4, -1)"),
        ("objects.npy", "holds objects"),
        ("empty.mp4", "0 bytes"),
        ("folder.mp4", "is a folder"),
        ("broken.png", "as a picture"),
        ("text.txt", "must have the suffix of a video"),
        ("missing.mp4", "there is no file"),
        ("cut.mp4", "damaged or not a video"),
        ("junk.mp4", "damaged or not a video"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tiny: str, name: str, says: str) -> None:
    code = _bad(name)
    assert says in refused(code, "extend", name, "out.mp4", "--frames", 9, "-w", tiny, *QUICK)


def test_a_video_that_breaks_off_leaves_no_output(tiny: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    with av.open("sound.mp4", "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    data = Path("sound.mp4").read_bytes()
    Path("cut.mp4").write_bytes(data[: len(data) // 2])
    assert "breaks off after" in refused(1, "interpolate", "cut.mp4", "out.mp4", "--factor", 1, "-w", tiny, *QUICK)


def test_a_file_is_overwritten_by_force_alone(tiny: str) -> None:
    Path("out.npy").write_text("mine")
    assert "--force overwrites it" in refused(2, "sample", "out.npy", "-w", tiny, *QUICK)
    assert Path("out.npy").read_text() == "mine"
    done("sample", "out.npy", "-w", tiny, *QUICK, "--force")
    assert np.load("out.npy").shape == (1, 4, 8, 8, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sample", "out.avi"), "must be one of .mp4 .gif .png .npy, got .avi"),
        (("sample", "no/out.mp4"), "mkdir -p no"),
        (("sample", "out.mp4", "-w", "nope"), "moving_digits"),
        (("sample", "out.mp4", "-w", "no/"), "there is no folder no/, nor"),
        (("sample", "out.mp4", "-w", "no/model.safetensors"), "there is no folder no for model.safetensors, nor"),
        (("info", "no/plan.json"), "there is no folder no for plan.json"),
        (("extend", "no/in.mp4", "out.mp4", "--frames", "9"), "there is no folder no for in.mp4"),
        (("sample", "out.mp4", "--sampler", "zzz"), "--sampler must be one of ancestral"),
        (("sample", "out.mp4", "--sampler", "DPM++ 2M Karras"), "did you mean --sampler dpmpp_2m --grid karras?"),
        (("sample", "out.mp4", "--grid", "karas"), "did you mean --grid karras?"),
        (("info", "--plan", "Euler a"), "did you mean --plan euler_ancestral?"),
        (("info", "moving_digit"), "did you mean moving_digits?"),
        (("sample", "out.mp4", "-w", "moving_digit"), "did you mean moving_digits? Or give"),
        (("sample", "out.mp4", "--backend", "numpy", "--label", "1,2"), "give each by itself: -l 1 -l 2"),
        (("train", "run", "--data", "digits", "--preset", "Tiny"), "did you mean --preset tiny?"),
        (
            ("train", "run", "--data", "digits", "--schedule", "scaled_linear"),
            "did you mean --schedule stable_diffusion?",
        ),
        (("sample", "out.mp4", "--grid", "14.6, x1, 0"), "must hold numbers"),
        (("sample", "out.mp4", "--grid", "[0, 1, 14.6]"), "its sigmas rise; turn them round: --grid '14.6, 1, 0'"),
        (("sample", "out.mp4", "--grid", "999, 749, 499"), "--grid ends in noise, at sigma 499"),
        (("sample", "out.mp4", "--set", "gamma=1"), "has the settings order, eta"),
        (("sample", "out.mp4", "--set", "order=x"), "is not a number"),
        (("sample", "out.mp4", "--set", "order=9"), "int in [1, 3], got 9"),
        (("sample", "out.mp4", "--steps", "0"), "greater than or equal to 1"),
        (("sample", "out.mp4", "--size", "0x4"), "--size must be a side"),
        (("sample", "out.mp4", "--seed", "-1"), "--seed must be an int in"),
        (("sample", "out.mp4", "--backend", "numpy", "--device", "cuda"), "runs on the cpu"),
        (("sample",), "Missing argument"),
        (("sampel", "out.mp4"), "No such command"),
        (("info", "nope"), "there is no file nope"),
        (("verify", "-b", "cupy"), "--backend must be one of jax, numpy, torch"),
        (("verify", "-k", "nothing of the kind"), "no identity has that"),
        (("train", "run", "--data", "digits", "--preset", "huge"), "--preset must be one of"),
        (("train", "run", "--data", "nowhere"), "--data must be a folder of videos"),
        (("evaluate", "clip.mp4"), "is a video; --against says"),
        (("evaluate", "--data", "nowhere"), "--data must be a folder of videos"),
    ],
)
def test_what_is_wrongly_asked_is_refused_in_one_line(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(2, *arguments)


IDLE = """
sample x.gif --grid 9,1,0 --steps 4 | --steps | the sigmas of --grid are the steps
upscale a.mp4 x.gif --grid 9,0 --steps 4 | --steps | the sigmas of --grid
sample x.gif --lag 2 | --lag | it is for --order pyramid
sample x.gif --batch 2 | --batch | clips of one file are drawn at once
extend a.mp4 x.png --frames 9 --fps 2 | --fps | only .mp4 and .gif
interpolate a.mp4 x.npy --zoom 2 | --zoom | a .npy keeps pixels
train run --data digits --rate 2 | --rate | it says how clips are taken from a folder
train run --data digits --validation set --labels folders | --labels | the digits have labels
train run --data digits --lag 2 | --lag | it is for --frame-times pyramid
evaluate a.mp4 --against b.mp4 --backend numpy | --backend | it is for a model
evaluate a.mp4 --against b.mp4 -n 9 | --count | two videos are compared frame by frame
evaluate a.mp4 --against b.mp4 --features pixels --every 1 | --every | it is for folders of videos
evaluate a.mp4 --against set --seed 1 | --seed | it is for a model
evaluate --frames 4 | --frames | a model has its own
evaluate --every 4 | --every | it says how clips are taken from a folder
evaluate --no-samples --set eta=1 | --set | --no-samples draws no clip
evaluate --data set --steps 2 | --steps | clips are drawn and judged on --data digits alone
evaluate --steps 2 --grid 9,0 | --steps | the sigmas of --grid
info moving_digits --steps 2 | --steps | it is for --plan SAMPLER
info moving_digits --all | --all | it is for --plan SAMPLER or a saved plan
info --plan ddim --steps 2 --grid 9,0 | --steps | the sigmas of --grid
"""


def test_an_option_that_does_nothing_beside_another_is_refused() -> None:
    Path("set").mkdir()
    seen: set[str] = set()
    for line in IDLE.strip().splitlines():
        command, option, why = (part.strip() for part in line.split("|"))
        said = refused(2, *command.split())
        assert said.startswith(f"diffcore: {option} does nothing here: {why}")
        seen |= {row.why for row in idle.TABLE[command.split()[0]] if row.why in said}
    known = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]
    for command, rows in idle.TABLE.items():
        assert {name for row in rows for name in row.names} <= {param.name for param in known[command].params}
        assert {row.why for row in rows} <= seen


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("x.gif", "-n", 200, "--zoom", 64),
            "x.gif: 200 clips side by side, zoomed 64 times, make frames of 512x102400 pixels",
        ),
        (("x.gif", "--size", 70000), "gif takes sides up to 65535"),
        (
            ("x.mp4", "--size", "8x16400"),
            "x.mp4: zoomed 1 times, make frames of 8x16400 pixels, and mp4 takes sides up to 16384",
        ),
        (("x.mp4", "--size", "9000"), "and 67108864 pixels"),
        (("x.png", "--frames", 10**12), "`frames` must fit in the memory that is free"),
        (("x.npy", "--frames", 10**12), "an .mp4 is written frame by frame"),
    ],
)
def test_files_too_large_to_be_written_are_refused_before_a_frame_is_drawn(
    tiny: str, arguments: tuple[object, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "drawn", None)
    assert says in run("sample", *arguments, "-w", tiny, *QUICK).stderr
    assert os.listdir() == []


def test_extend_says_that_its_frames_are_the_total(tiny: str) -> None:
    np.save("in.npy", clip())
    common = ("extend", "in.npy", "out.npy", "-w", tiny, *QUICK)
    assert "in.npy has 4 already" in refused(2, *common, "--frames", 4)
    assert "--overlap must be in" in refused(2, *common, "--frames", 9, "--overlap", 4)


def test_a_file_of_something_else_is_no_model(tiny: str) -> None:
    for name, says in (
        ("in.mp4", "is a video and holds no weights; "),
        ("old.ckpt", "is a pickle, to judge by its name"),
    ):
        Path(name).write_bytes(b"nothing of the kind")
        assert f"{name} {says}" in refused(2, "sample", "out.npy", "-w", name, *QUICK)
        assert f"{name} {says}" in refused(2, "train", "run", "--data", "digits", "--from", name)
    Path("run").mkdir()
    save_file({"x": np.zeros(1)}, "run/checkpoint.safetensors", metadata={"glimpse": "[]", "step": "1"})
    assert "run holds a run that has not ended" in refused(2, "sample", "out.npy", "-w", "run", *QUICK)
    assert "is a checkpoint of a run" in refused(2, "info", "run/checkpoint.safetensors")
    for given in (("sample", "out.npy", "-w", "runn", *QUICK), ("info", "runn"), ("evaluate", "--data", "runn")):
        assert "runn (did you mean run?)" in refused(2, *given).replace("runn/", "runn")
    assert "run holds a run that has not ended" in refused(2, "info", "run")
    assert "without a video that can be read; give a run's folder, or one" in refused(2, "info", ".")
    assert "and in.mp4 is a file" in refused(2, "evaluate", "--data", "in.mp4")
    Path("text.md").write_text("nothing of the kind")
    assert "must be weights (.safetensors), a plan (.json) or a video" in refused(2, "info", "text.md")
    Path("x.safetensors").write_text("nothing of the kind")
    assert "damaged or cut off" in refused(1, "sample", "out.npy", "-w", "x.safetensors", *QUICK)
    assert "damaged or cut off" in refused(1, "info", "x.safetensors")


def test_a_sheet_reads_back_and_another_picture_is_one_frame() -> None:
    clips = clip(19, (9, 7), 3, count=2)
    with writers.opened(Path("sheet.png"), 1.0, zoom=2) as file:
        file.write(clips[:, :4])
        file.write(clips[:, 4:])
    assert np.abs(whole("sheet.png") - clips).max() <= 1 / 127
    from PIL import Image

    Image.new("L", (5, 3), 255).save("plain.png")
    assert sheets.read(Path("plain.png")).clips.shape == (1, 1, 3, 5, 3)


def test_a_picture_of_16_bits_is_not_cut_off() -> None:
    from PIL import Image

    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4
    Image.fromarray(grey * 257).save("deep.png")
    assert np.array_equal(sheets.read(Path("deep.png")).clips[0, 0], np.repeat(grey[..., None], 3, axis=-1))


def test_a_picture_too_large_to_be_meant_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32)).save("large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "large.png cannot be read as a picture" in refused(1, "info", "large.png")


def test_a_gif_of_more_frames_a_second_than_it_can_tell_is_slower(tiny: str) -> None:
    found = done("sample", "fast.gif", "--fps", 240, "-w", tiny, *QUICK)
    assert "gif takes at most 50 frames a second" in found.stderr
    assert files.look(Path("fast.gif")).fps == 50.0


def test_a_name_may_be_as_long_as_a_folder_takes(tiny: str) -> None:
    name = 250 * "x" + ".npy"
    done("sample", name, "-w", tiny, *QUICK)
    assert os.listdir() == [name]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_name_with_a_colon_is_a_file_and_no_url(suffix: str) -> None:
    name = coded(f"2026-11-28T10:30{suffix}", frames=6)
    assert files.look(Path(name)).frames == 6
    assert whole(name).shape == (1, 6, 16, 16, 3)
    assert os.listdir() == [name]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_coded_file_keeps_equal_frames_colours_and_odd_sizes(suffix: str) -> None:
    frames = np.zeros((1, 7, 9, 13, 3), dtype=np.float32)
    frames[:, 3:] = np.array([0.8, -0.6, 0.2])
    with writers.opened(Path(f"out{suffix}"), 12.5) as file:
        for block in (frames[:, :2], frames[:, 2:]):
            file.write(block)
    video = files.look(Path(f"out{suffix}"))
    assert (video.frames, video.size) == (7, (9, 13))
    assert video.fps == pytest.approx(12.5)
    assert np.abs(whole(f"out{suffix}") - frames).max() < 0.02
    with writers.opened(Path(f"bare{suffix}"), 12.5, zoom=1) as file:
        file.write(frames)
    assert files.look(Path(f"bare{suffix}")).size == ((10, 14) if suffix == ".mp4" else (9, 13))
    with av.open(f"out{suffix}") as container:
        frame = next(container.decode(video=0))
        assert (frame.height, frame.width) == (72, 104)
        assert suffix == ".gif" or (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (
            1,
            1,
            1,
            1,
        )


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png", ".npy"])
def test_a_writer_that_is_left_by_an_error_leaves_nothing(suffix: str) -> None:
    def stopped() -> None:
        with writers.opened(Path(f"out{suffix}"), 5.0) as file:
            file.write(clip()[None])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with pytest.raises(Exception, match="no frame"), writers.opened(Path(f"out{suffix}"), 5.0):
        pass
    assert os.listdir() == []


def test_numbers_that_are_not_finite_are_no_video(monkeypatch: pytest.MonkeyPatch, tiny: str) -> None:
    monkeypatch.setattr(dc, "sample", lambda *given, **how: np.full((1, 4, 8, 8, 1), np.nan, np.float32))
    assert "not finite" in refused(1, "sample", "out.mp4", "-w", tiny, *QUICK)


def test_debug_shows_where_an_error_comes_from() -> None:
    found = run("info", "nope", "--debug")
    assert found.exit_code == 2
    assert "Traceback" in found.stderr


def test_an_unforeseen_error_names_its_kind_and_the_way_to_see_more(monkeypatch: pytest.MonkeyPatch, tiny: str) -> None:
    def wrong(*given: Any, **how: Any) -> None:
        raise KeyError("here")

    monkeypatch.setattr(dc, "sample", wrong)
    assert "KeyError 'here'; --debug shows" in refused(1, "sample", "out.mp4", "-w", tiny, *QUICK)
