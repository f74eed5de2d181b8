"""The command `diffcore`: what it writes, says and returns, and that a run that fails or is stopped leaves nothing."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffcore as dc

pytest.importorskip("typer")
pytest.importorskip("av")
pytest.importorskip("PIL")

from typer.testing import CliRunner, Result

from diffcore.cli import app as app_module
from diffcore.cli import battery, bench, files, sheets, writers

ROOT = Path(__file__).resolve().parent.parent
RUNNER = CliRunner()
QUICK = ("--backend", "numpy", "--steps", "2")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save a network that takes no time."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    dc.unet3d.save(dc.unet3d.build(dc.unet3d.preset("tiny")), path)
    return str(path)


def run(*arguments: object) -> Result:
    return RUNNER.invoke(app_module.app, [str(argument) for argument in arguments], prog_name="diffcore")


def done(*arguments: object) -> Result:
    found = run(*arguments)
    assert found.exit_code == 0, found.output
    return found


def refused(code: int, *arguments: object) -> str:
    """Return the one line on stderr of a command that ends with a code and writes no file."""
    before = sorted(os.listdir())
    found = run(*arguments)
    assert found.exit_code == code, found.output
    assert found.stdout == ""
    lines = [line for line in found.stderr.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, found.stderr
    assert lines[0].startswith("diffcore")
    assert "Traceback" not in lines[0]
    assert sorted(os.listdir()) == before
    return lines[0]


def clip(frames: int = 4, size: tuple[int, int] = (8, 8), channels: int = 1, count: int | None = None) -> Any:
    lead = (frames,) if count is None else (count, frames)
    return np.random.default_rng(0).uniform(-1.0, 1.0, (*lead, *size, channels)).astype(np.float32)


def coded(path: str, frames: int = 6, size: tuple[int, int] = (16, 16)) -> str:
    with writers.opened(Path(path), 5.0) as file:
        file.write(clip(frames, size, 3)[None])
    return path


def whole(path: str) -> Any:
    video = files.look(Path(path))
    return files.whole(video, video.size, video.channels)


# Sampling


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png", ".npy"])
def test_sample_writes_what_the_library_draws(tiny: str, suffix: str) -> None:
    out = f"clip{suffix}"
    row = json.loads(done("sample", out, "-w", tiny, *QUICK, "--seed", 7, "-n", 2, "--json").stdout)
    assert (row["frames"], row["clips"], row["size"], row["backend"]) == (4, 2, [8, 8], "numpy")
    model = dc.unet3d.load(tiny)
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=2)
    truth = dc.sample(
        model, plan, shape=(2, 4, 8, 8, 1), seed=7, prediction="v", transform_x=dc.guidance.clip(-1.0, 1.0)
    )
    found = whole(out)[..., :1]
    if suffix in {".mp4", ".gif"}:  # side by side
        truth = np.concatenate(list(truth), axis=2)[None]
    tolerance = {".mp4": 0.35, ".gif": 1 / 127, ".png": 1 / 127, ".npy": 1e-6}[suffix]
    assert found.shape == truth.shape
    assert np.abs(found - truth).max() <= tolerance


def test_settings_of_a_sampler_and_the_number_of_frames_are_the_librarys(tiny: str) -> None:
    done("sample", "a.npy", "-w", tiny, *QUICK, "--sampler", "ancestral", "--set", "gamma=0.3", "--frames", 3)
    plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=2, gamma=0.3)
    truth = dc.sample(
        dc.unet3d.load(tiny), plan, shape=(1, 3, 8, 8, 1), seed=0, prediction="v", transform_x=dc.guidance.clip()
    )
    assert np.allclose(np.load("a.npy"), truth, atol=1e-6)


def test_more_frames_than_the_models_are_made_block_by_block(tiny: str) -> None:
    done("sample", "long.npy", "-w", tiny, *QUICK, "--frames", 9)
    assert np.load("long.npy").shape == (1, 9, 8, 8, 1)


def test_labels_guide_the_shipped_model() -> None:
    common = ("--backend", "numpy", "--steps", 1, "--frames", 2, "--size", 16)
    done("sample", "a.npy", *common, "-l", 3, "-l", 5)
    done("sample", "b.npy", *common, "-l", 3)
    done("sample", "c.npy", *common, "-l", 5, "--seed", 1, "--guidance", 0)
    a, b, c = (np.load(f"{name}.npy") for name in "abc")
    assert np.allclose(a[0], b[0], atol=1e-5)
    assert not np.allclose(a[1], c[0], atol=1e-2)
    assert "takes one of" not in refused(2, "sample", "d.npy", *common, "-l", 11)
    assert "--label is given 2 times for 3" in refused(2, "sample", "d.npy", *common, "-l", 1, "-l", 2, "-n", 3)
    assert "--guidance 2 needs --label" in refused(2, "sample", "d.npy", *common, "--guidance", 2)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_dtype_is_what_the_network_computes_in(tiny: str, dtype: str) -> None:
    done("sample", "a.npy", "-w", tiny, "--backend", "torch", "--device", "cpu", "--steps", 2, "--dtype", dtype)
    done("sample", "b.npy", "-w", tiny, *QUICK)
    apart = np.abs(np.load("a.npy") - np.load("b.npy")).max()
    assert apart < (1e-4 if dtype == "float64" else 0.2)
    assert "needs --backend torch or jax" in refused(2, "sample", "c.npy", "-w", tiny, *QUICK, "--dtype", "bfloat16")


# Longer, smoother, larger


def test_extend_keeps_the_frames_that_were_given(tiny: str) -> None:
    given = clip()
    np.save("in.npy", given)
    row = json.loads(done("extend", "in.npy", "out.npy", "--frames", 9, "-w", tiny, *QUICK, "--json").stdout)
    made = np.load("out.npy")
    assert row["method"] == "replacement"
    assert made.shape == (1, 9, 8, 8, 1)
    assert np.array_equal(made[0, :4], given)
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=2)
    truth = dc.video.extend(
        dc.unet3d.load(tiny), plan, given[None], frames=9, window=4, method="replacement", transform_x=dc.guidance.clip()
    )
    assert np.allclose(made, truth.all(), atol=1e-6)


@pytest.mark.torch
def test_extend_takes_gradients_where_there_are_some(tiny: str) -> None:
    np.save("in.npy", clip())
    common = ("extend", "in.npy", "out.npy", "--frames", 6, "-w", tiny, "--backend", "torch", "--steps", 1, "--json")
    assert json.loads(done(*common).stdout)["method"] == "reconstruction"
    assert "needs gradients" in refused(2, *common, "--force", "--method", "reconstruction", "--backend", "numpy")


def test_interpolate_puts_frames_between_at_the_same_speed(tiny: str) -> None:
    given = clip(3, count=2)
    np.save("in.npy", given)
    done("interpolate", "in.npy", "out.npy", "--factor", 3, "-w", tiny, *QUICK)
    made = np.load("out.npy")
    assert made.shape == (2, 7, 8, 8, 1)
    assert np.array_equal(made[:, ::3], given)
    coded("in.mp4", frames=3)
    done("interpolate", "in.mp4", "out.mp4", "--factor", 2, "-w", tiny, *QUICK)
    video = files.look(Path("out.mp4"))
    assert (video.frames, video.fps) == (5, 10.0)


def test_upscale_keeps_averages_and_never_shrinks_what_fits(tiny: str) -> None:
    small = 0.5 * clip(5, (4, 4))
    np.save("in.npy", small)
    done("upscale", "in.npy", "out.npy", "--factor", 2, "-w", tiny, *QUICK)
    large = np.load("out.npy")
    assert large.shape == (1, 5, 8, 8, 1)
    assert np.allclose(dc.conditioning.downsample(2)(large)[0], small, atol=1e-5)
    np.save("in.npy", clip(2, (8, 6)))
    found = done("upscale", "in.npy", "out.npy", "--factor", 2, "-w", tiny, *QUICK, "--force")
    assert np.load("out.npy").shape == (1, 2, 16, 12, 1)
    assert "works at 16x12" in found.stderr


def test_commands_chain_through_files(tiny: str) -> None:
    done("sample", "a.mp4", "-w", tiny, *QUICK)
    done("extend", "a.mp4", "b.gif", "--frames", 6, "-w", tiny, *QUICK)
    done("interpolate", "b.gif", "c.png", "-w", tiny, *QUICK)
    done("upscale", "c.png", "d.mp4", "-w", tiny, *QUICK)
    assert "1 x 11 frames of 16x16" in done("info", "d.mp4").stdout


# What goes in


def test_a_video_of_another_size_is_scaled_cut_and_made_grey(tiny: str) -> None:
    coded("in.mp4", 5, (24, 40))
    found = done("extend", "in.mp4", "out.npy", "--frames", 6, "-w", tiny, *QUICK)
    assert [line for line in found.stderr.splitlines() if "24x40" in line]
    assert np.load("out.npy").shape == (1, 6, 8, 8, 1)
    even = np.broadcast_to(np.array([0.5, -0.5, 0.0], np.float32), (2, 16, 32, 3))
    np.save("even.npy", even)
    video = files.look(Path("even.npy"))
    grey = files.whole(video, (8, 8), 1)
    assert np.allclose(grey, 0.5 * 0.299 - 0.5 * 0.587, atol=1e-6)
    halves = np.concatenate([np.full((1, 16, 16, 1), -1.0), np.full((1, 16, 16, 1), 1.0)], axis=2)
    np.save("halves.npy", halves)
    middle = files.whole(files.look(Path("halves.npy")), (8, 8), 1)[0, 0, :, :, 0]
    assert np.all(middle[:, :3] < -0.9)
    assert np.all(middle[:, 5:] > 0.9)


def test_one_frame_is_a_video_too(tiny: str) -> None:
    np.save("one.npy", clip(1))
    done("extend", "one.npy", "longer.npy", "--frames", 5, "-w", tiny, *QUICK)
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
        ("rank.npy", "takes (T, H, W, C)"),
        ("none.npy", "at least one frame"),
        ("whole.npy", "takes uint8"),
        ("two.npy", "2 channels"),
        ("objects.npy", "holds objects"),
        ("empty.mp4", "0 bytes"),
        ("folder.mp4", "is a folder"),
        ("broken.png", "as a picture"),
        ("text.txt", "no suffix of a video"),
        ("missing.mp4", "there is no file"),
        ("cut.mp4", "damaged or no video"),
        ("junk.mp4", "damaged or no video"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tiny: str, name: str, says: str) -> None:
    code = _bad(name)
    assert says in refused(code, "extend", name, "out.mp4", "--frames", 9, "-w", tiny, *QUICK)


def test_a_video_that_breaks_off_leaves_no_output(tiny: str) -> None:
    av = pytest.importorskip("av")
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


# What goes out


def test_a_file_is_overwritten_by_force_alone(tiny: str) -> None:
    Path("out.npy").write_text("mine")
    assert "--force overwrites it" in refused(2, "sample", "out.npy", "-w", tiny, *QUICK)
    assert Path("out.npy").read_text() == "mine"
    done("sample", "out.npy", "-w", tiny, *QUICK, "--force")
    assert np.load("out.npy").shape == (1, 4, 8, 8, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sample", "out.avi"), "takes one of .mp4 .gif .png .npy"),
        (("sample", "no/out.mp4"), "mkdir -p no"),
        (("sample", "out.mp4", "-w", "nope"), "moving_digits"),
        (("sample", "out.mp4", "--sampler", "euler2"), "takes one of ancestral"),
        (("sample", "out.mp4", "--set", "gamma=1"), "has the settings order, eta"),
        (("sample", "out.mp4", "--set", "order=x"), "is no number"),
        (("sample", "out.mp4", "--set", "order=9"), "takes 1, 2 or 3"),
        (("sample", "out.mp4", "--steps", "0"), "greater than or equal to 1"),
        (("sample", "out.mp4", "--size", "0x4"), "takes a side"),
        (("sample", "out.mp4", "--seed", "-1"), "takes an int in"),
        (("sample", "out.mp4", "--backend", "numpy", "--device", "cuda"), "runs on the cpu"),
        (("sample",), "Missing argument"),
        (("sampel", "out.mp4"), "No such command"),
        (("info", "nope"), "there is no file nope"),
        (("verify", "-b", "cupy"), "takes one of jax, numpy, torch"),
        (("verify", "-k", "nothing of the kind"), "no identity has that"),
        (("train", "run", "--data", "digits", "--preset", "huge"), "takes one of"),
        (("train", "run", "--data", "nowhere"), "takes a folder of videos"),
        (("evaluate", "--data", "nowhere"), "takes a folder of videos"),
    ],
)
def test_what_is_wrongly_asked_is_refused_in_one_line(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(2, *arguments)


def test_extend_says_that_its_frames_are_the_total(tiny: str) -> None:
    np.save("in.npy", clip())
    common = ("extend", "in.npy", "out.npy", "-w", tiny, *QUICK)
    assert "in.npy has 4 already" in refused(2, *common, "--frames", 4)
    assert "leaves no new frame" in refused(2, *common, "--frames", 9, "--overlap", 4)


def test_a_file_of_something_else_is_no_model(tiny: str) -> None:
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
    assert sheets.read(Path("plain.png")).shape == (1, 1, 3, 5, 3)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_coded_file_keeps_equal_frames_colours_and_odd_sizes(suffix: str) -> None:
    frames = np.zeros((1, 7, 9, 13, 3), dtype=np.float32)
    frames[:, 3:] = np.array([0.8, -0.6, 0.2])
    with writers.opened(Path(f"out{suffix}"), 12.5) as file:
        for block in (frames[:, :2], frames[:, 2:]):
            file.write(block)
    video = files.look(Path(f"out{suffix}"))
    assert (video.frames, video.size) == (7, (10, 14) if suffix == ".mp4" else (9, 13))
    assert video.fps == pytest.approx(12.5)
    assert np.abs(whole(f"out{suffix}")[:, :, :9, :13] - frames).max() < 0.05


def test_a_writer_that_is_left_by_an_error_leaves_nothing() -> None:
    for suffix in (".mp4", ".gif", ".png", ".npy"):
        with pytest.raises(KeyboardInterrupt), writers.opened(Path(f"out{suffix}"), 5.0) as file:
            file.write(clip()[None])
            raise KeyboardInterrupt
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


# Training, evaluation, information


@pytest.mark.torch
def test_train_evaluate_and_sample_of_what_was_trained() -> None:
    pytest.importorskip("sklearn")
    common = ("train", "run", "--data", "digits", "--preset", "tiny", "--backend", "torch", "--device", "cpu", "--batch", 2)
    row = json.loads(done(*common, "--steps", 3, "--json").stdout)
    assert row["weights"] == str(Path("run", "model.safetensors"))
    assert row["loss"] > 0.0
    done(*common, "--steps", 4)  # goes on
    assert "at step 4" in run(*common, "--steps", 2).stderr
    done(*common, "--steps", 2, "--force")
    Path("run", "checkpoint.safetensors").unlink()
    assert "--force overwrites it" in refused(2, *common, "--steps", 2)
    row = json.loads(done("evaluate", "run", "-n", 2, "--no-samples", "--out", "found.json", "--json").stdout)
    assert len(row["loss"]) == 7
    assert all(np.isfinite(list(row["loss"].values())))
    assert json.loads(Path("found.json").read_text())["loss"] == row["loss"]
    done("sample", "clip.npy", "-w", "run", *QUICK)


@pytest.mark.torch
def test_train_on_a_folder_of_videos_takes_its_colours() -> None:
    Path("videos").mkdir()
    for name in ("a", "b"):
        coded(f"videos/{name}.mp4", frames=12)
    Path("videos", "broken.mp4").write_bytes(b"no")
    how = ("--preset", "tiny", "--steps", 1, "--batch", 1, "--every", 1, "--json")
    found = done("train", "run", "--data", "videos", *how)
    assert json.loads(found.stdout)["config"]["channels"] == 3
    assert "skipped broken.mp4" in found.stderr
    done("evaluate", "run", "--data", "videos", "-n", 2, "--every", 1, "--backend", "numpy")


def test_evaluate_two_videos_by_psnr_and_ssim() -> None:
    pytest.importorskip("skimage")
    real = clip(4, (16, 16))
    np.save("real.npy", real)
    np.save("made.npy", np.clip(real + 0.1, -1, 1)[:3])
    found = done("evaluate", "made.npy", "--against", "real.npy", "--json")
    row = json.loads(found.stdout)
    truth = float(dc.metrics.psnr(np.clip(real + 0.1, -1, 1)[None, :3], real[None, :3])[0])
    assert row["psnr"][0] == pytest.approx(truth, abs=1e-3)
    assert "the first 3 are compared" in found.stderr
    same = done("evaluate", "real.npy", "--against", "real.npy")
    assert "PSNR inf dB, SSIM 1.0000" in same.stdout
    assert json.loads(done("evaluate", "real.npy", "--against", "real.npy", "--json").stdout)["psnr"] == [None]


def test_evaluate_reads_the_digits_that_a_model_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    real = dc.unet3d.data.moving_digits(count=256, split="test")
    assert real.labels is not None
    order = np.argsort(real.labels, kind="stable")
    first = [int(order[np.searchsorted(real.labels[order], digit)]) for digit in range(10)]
    drawn = real.clips[first].astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    monkeypatch.setattr(dc, "sample", lambda *given, **how: drawn[: how["shape"][0]])
    found = done("evaluate", "-n", 10, "--batch", 10, "--backend", "numpy", "--json", "--steps", 1)
    row = json.loads(found.stdout)
    assert row["samples"]["accuracy"] >= 0.9
    assert row["loss"]["0"] < 0.1
    assert "covariance is singular" in found.stderr


def test_info_tells_of_machine_weights_and_plan(tiny: str) -> None:
    rows = {row["name"]: row for row in json.loads(done("info", "--json").stdout)["backends"]}
    assert rows["numpy"]["installed"]
    assert not rows["numpy"]["gradients"]
    assert rows["numpy"]["version"] == np.__version__
    assert "gradients" in done("info").stdout
    row = json.loads(done("info", tiny, "--json").stdout)
    assert row["parameters"] == 51689
    assert dc.unet3d.UNet3DConfig.from_dict(row["config"]) == dc.unet3d.preset("tiny")
    assert "1,844,289 weights" in done("info", "moving_digits").stdout
    plan = dc.samplers.ancestral(dc.schedules.Cosine(), steps=3, gamma=0.1)
    options = ("info", "--plan", "ancestral", "--steps", 3, "--set", "gamma=0.1")
    assert done(*options).stdout == f"{plan}\n"
    assert np.allclose(json.loads(done(*options, "--json").stdout)["update"], plan.update)
    plan.save("plan.json")
    assert done("info", "plan.json").stdout == f"{plan}\n"


# Identities and benchmarks


def test_verify_passes_on_numpy_and_tabulates() -> None:
    row = json.loads(done("verify", "--quick", "-b", "numpy", "--json").stdout)
    assert row["passed"]
    assert {one["outcome"] for one in row["checks"]} == {"pass"}
    assert "1 passed, 0 failed" in done("verify", "-b", "numpy", "-k", "chapman").stdout


@pytest.mark.torch
@pytest.mark.jax
def test_verify_runs_on_each_backend() -> None:
    row = json.loads(done("verify", "-k", "scaling", "--json").stdout)
    assert [one["backend"] for one in row["checks"]] == ["numpy", "torch", "jax"]


def test_verify_fails_where_an_identity_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(like: Any) -> None:
        raise AssertionError("off by\n0.5")

    def missing(like: Any) -> None:
        raise ImportError("install diffcore[test]")

    rows = [battery.Check("one", wrong), battery.Check("two", missing), battery.Check("three", print)]
    monkeypatch.setattr(battery, "checks", lambda: rows)
    found = run("verify", "-b", "numpy")
    assert found.exit_code == 1
    assert "1 passed, 1 failed, 1 skipped" in found.stdout
    assert "diffcore: one on numpy does not hold: off by 0.5" in found.stderr.splitlines()


def test_every_identity_of_the_table_is_one_of_the_library() -> None:
    names = [one.name for one in battery.checks()]
    assert len(set(names)) == len(names) >= 25


def test_bench_is_for_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bench.checkout() == ROOT
    monkeypatch.setattr(dc, "__file__", str(tmp_path / "diffcore" / "__init__.py"))
    assert "in a checkout of the project only" in refused(1, "bench", "--quick")


def test_bench_hands_its_options_over(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def instead(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        seen.append((command, how["cwd"]))
        Path(command[command.index("--json") + 1]).write_text('{"rows": []}', encoding="utf-8")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", instead)
    pytest.importorskip("pytest_benchmark")
    done("bench", "--quick", "-k", "stage", "--out", "found.json")
    ((command, where),) = seen
    assert where == ROOT
    assert command[1:3] == ["-m", "benchmarks"]
    assert {"--quick", "stage"} <= set(command)
    assert json.loads(Path("found.json").read_text()) == {"rows": []}


# Help, completion, processes


def test_help_teaches_by_examples() -> None:
    assert "diffcore sample clip.mp4" in done().stdout
    for command in ("sample", "extend", "interpolate", "upscale", "train", "evaluate", "info", "verify", "bench"):
        text = done(command, "--help").stdout
        assert "Examples:" in text
        assert f"$ diffcore {command}" in text
        assert "--json" in text
    assert done("--version").stdout == f"{dc.__version__}\n"


def test_the_entry_point_is_there() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, name = scripts["diffcore"].split(":")
    assert callable(getattr(importlib.import_module(module), name))


def _process(*arguments: str, code: str = "", **extra: Any) -> subprocess.Popen[str]:
    start = ["-c", code] if code else ["-m", "diffcore.cli"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **extra}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
    return subprocess.Popen([sys.executable, *start, *arguments], **pipes)


def test_the_shell_completes_commands_and_names() -> None:
    words = {"_DIFFCORE_COMPLETE": "complete_bash", "COMP_WORDS": "diffcore sample --sampler d", "COMP_CWORD": "3"}
    process = _process(code="from diffcore.cli import main; main()", **words)
    out, _ = process.communicate(timeout=60)
    assert out.split() == ["ddim", "dpm_solver_pp"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGINT")
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_leaves_no_file(tiny: str, which: signal.Signals) -> None:
    process = _process("sample", "out.mp4", "-w", tiny, "--backend", "numpy", "--steps", "20000", "--sampler", "ddim")
    deadline = time.monotonic() + 60.0
    while not list(Path().glob(".out.mp4.*.part")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(which)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines() == ["diffcore: interrupted; no half-written file was left"]
    assert os.listdir() == []


def test_without_its_libraries_the_command_says_what_to_install() -> None:
    process = _process(code="import sys; sys.modules['typer'] = None\nfrom diffcore.cli import main\nmain()")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert err == "diffcore: the command line needs typer; install diffcore[cli]\n"
