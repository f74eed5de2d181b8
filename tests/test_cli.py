"""The commands that make videos: what they write is what the library draws."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cli_cases
import numpy as np
import pytest
from cli_cases import QUICK, clip, coded, done, refused, whole

import diffcore as dc
from diffcore.cli import files

in_a_folder, tiny = cli_cases.in_a_folder, cli_cases.tiny


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
    assert "must be one of" not in refused(2, "sample", "d.npy", *common, "-l", 11)
    assert "--label is given 2 times for 3" in refused(2, "sample", "d.npy", *common, "-l", 1, "-l", 2, "-n", 3)
    assert "--guidance 2 needs --label" in refused(2, "sample", "d.npy", *common, "--guidance", 2)


def test_a_class_is_named_as_the_folder_it_was_trained_on() -> None:
    model = dc.unet3d.build(dc.unet3d.preset("tiny", condition="class", classes=3), seed=1)
    dc.unet3d.save(model, "m.safetensors", metadata={"classes": '["1", "cat", "dog"]'})
    common = ("-w", "m.safetensors", *QUICK)
    row = json.loads(done("sample", "a.npy", *common, "-l", "dog", "-l", "1", "-l", 0, "-l", 3, "--json").stdout)
    assert row["labels"] == [2, 0, 0, 3]  # a name goes before a number
    said = refused(2, "sample", "b.npy", *common, "--label", "cow")
    assert "--label cow: the model knows 0 to 2, and 3 for any, by name 1, cat, dog" in said
    assert "--label -1: the model knows 0 to 2" in refused(2, "sample", "b.npy", *common, "--label", -1)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_dtype_is_what_the_network_computes_in(tiny: str, dtype: str) -> None:
    done("sample", "a.npy", "-w", tiny, "--backend", "torch", "--device", "cpu", "--steps", 2, "--dtype", dtype)
    done("sample", "b.npy", "-w", tiny, *QUICK)
    apart = np.abs(np.load("a.npy") - np.load("b.npy")).max()
    assert apart < (1e-4 if dtype == "float64" else 0.2)
    measure = ("evaluate", tiny, "--backend", "torch", "--device", "cpu", "--no-samples", "-n", 2, "--json", "--dtype")
    losses, truth = (json.loads(done(*measure, kind).stdout)["loss"] for kind in (dtype, "float32"))
    assert losses == pytest.approx(truth, rel=1e-4 if dtype == "float64" else 0.05)
    assert "needs --backend torch or jax" in refused(2, "sample", "c.npy", "-w", tiny, *QUICK, "--dtype", "bfloat16")


def test_extend_keeps_the_frames_that_were_given(tiny: str) -> None:
    given = clip()
    np.save("in.npy", given)
    row = json.loads(done("extend", "in.npy", "out.npy", "--frames", 9, "-w", tiny, *QUICK, "--json").stdout)
    made = np.load("out.npy")
    assert row["method"] == "replacement"
    assert made.shape == (1, 9, 8, 8, 1)
    assert np.array_equal(made[0, :4], given)
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=2, eta=1.0)
    truth = dc.video.extend(
        dc.unet3d.load(tiny),
        plan,
        given[None],
        frames=9,
        window=4,
        method="replacement",
        transform_x=dc.guidance.clip(),
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


def test_a_model_knows_how_many_frames_a_second_its_clips_had() -> None:
    model = dc.unet3d.build(dc.unet3d.preset("tiny"))
    dc.unet3d.save(model, "m.safetensors", metadata={"fps": "2.5"})
    coded("in.mp4", frames=6)  # 5 a second
    common = ("-w", "m.safetensors", *QUICK)

    def made(*command: object) -> tuple[str, float | None]:
        return done(*command, *common, "--force").stderr, files.look(Path("out.mp4")).fps

    assert made("sample", "out.mp4", "--size", 8) == ("", 2.5)
    assert "trained at 8x8 and works at 16x16" in made("sample", "out.mp4", "--size", 16, "--fps", 4)[0]
    said, rate = made("extend", "in.mp4", "out.mp4", "--frames", 5)
    assert "in.mp4 has 5 frames a second and the clips that the model was trained on had 2.5; so many" in said
    assert rate == 2.5
    speed = "and the clips that it was trained on had 2.5"
    said, rate = made("extend", "in.mp4", "out.mp4", "--frames", 8, "--in-fps", 5)
    assert speed in said
    assert rate == 5.0
    said, rate = made("interpolate", "in.mp4", "out.mp4")
    assert f"10 frames a second here, {speed}" in said
    assert rate == 10.0
    assert f"5 frames a second here, {speed}" in made("upscale", "in.mp4", "out.mp4")[0]
    np.save("in.npy", clip())
    assert made("extend", "in.npy", "out.mp4", "--frames", 5) == ("", 2.5)
    for other in ({}, {"fps": "fast"}, {"fps": "inf"}):
        dc.unet3d.save(model, "m.safetensors", metadata=other)
        assert made("sample", "out.mp4") == ("", 10.0)


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
    assert "11 frames of 16x16" in done("info", "d.mp4").stdout
    Path("broken.mp4").write_bytes(b"no video")
    found = done("info", ".")  # of the folder
    assert found.stdout.endswith(done("info", "d.mp4").stdout + "3 videos of 21 frames in all\n")
    assert "note: broken.mp4" in found.stderr


def test_numbered_clips_are_the_same_files_however_many_processes_share_them(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each clip is a file of its own, drawn in blocks that depend on its number alone; what is there is kept."""
    common = ("-w", tiny, *QUICK, "-n", 5, "--batch", 2, "--seed", 7, "--json")
    done("sample", "all.npy", "-w", tiny, *QUICK, "-n", 5, "--seed", 7)
    Path("one").mkdir()
    assert json.loads(done("sample", "one/%02d.npy", *common).stdout)["made"] == 5
    names = [f"{number:02}.npy" for number in range(5)]
    assert sorted(os.listdir("one")) == names
    clips = np.concatenate([np.load(f"one/{name}") for name in names])
    assert np.allclose(clips, np.load("all.npy"), atol=1e-5)
    Path("three").mkdir()
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank, made in enumerate((2, 2, 1)):
        monkeypatch.setenv("RANK", str(rank))
        row = json.loads(done("sample", "three/%02d.npy", *common).stdout)
        assert (row["made"], row["process"], row["processes"]) == (made, rank, 3)
    assert all(Path("one", name).read_bytes() == Path("three", name).read_bytes() for name in names)
    assert "3 processes would each write" in refused(2, "sample", "a.npy", "-w", tiny, *QUICK, "-n", 5)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    kept = {name: Path("one", name).stat() for name in names}
    Path("one", "03.npy").unlink()
    Path("one", ".03.npy.0123456789abcdef.part").write_bytes(b"of a process that was killed")
    assert json.loads(done("sample", "one/%02d.npy", *common).stdout)["made"] == 1
    assert sorted(os.listdir("one")) == names
    assert Path("one", "03.npy").read_bytes() == Path("three", "03.npy").read_bytes()
    assert all(Path("one", name).stat() == kept[name] for name in names if name != "03.npy")
    assert "must have one number" in refused(2, "sample", "%02d%d.npy", *common)
    monkeypatch.setenv("RANK", "4")
    assert "RANK must be in [0, WORLD_SIZE)" in refused(2, "sample", "one/%02d.npy", *common)


def test_clips_that_are_longer_than_the_model_are_numbered_too(tiny: str) -> None:
    common = ("-w", tiny, *QUICK, "--frames", 9, "--seed", 7)
    done("sample", "all.npy", *common, "-n", 2)
    done("sample", "%d.npy", *common, "-n", 2, "--batch", 1)
    assert np.allclose(np.load("1.npy")[0], np.load("all.npy")[1], atol=1e-5)


def test_killed_processes_lose_no_clip_and_make_none_twice() -> None:
    """`python tests/killed_samplers.py 100` does it a hundred times."""
    import killed_samplers

    assert killed_samplers.main(2)[1] >= 1
