"""The command line for video by levels of each frame, and for text: what it writes is what the library draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import QUICK, coded, done, refused
from cli_cases import in_a_folder as in_a_folder
from text_cases import tiny_encoder

import diffcore as dc
from diffcore.unet3d import text

CLIP = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
TRAIN = ("--preset", "tiny", "--batch", 2, "--backend", "torch", "--device", "cpu")


def shaken(path: str | Path, **changes: Any) -> Any:
    """Save a tiny network whose weights are all at work, and return it."""
    model = dc.unet3d.build(dc.unet3d.preset("tiny", **changes))
    model.weights = {
        name: array + 0.1 * np.random.default_rng(3).normal(size=array.shape).astype(np.float32)
        for name, array in model.arrays().items()
    }
    dc.unet3d.save(model, path)
    return model


@pytest.mark.parametrize("causal", [False, True])
def test_extend_by_forcing_and_rolling_is_the_librarys(causal: bool) -> None:
    model = shaken("m.safetensors", causal=causal)
    np.save("in.npy", CLIP)
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=4, eta=1.0)
    common = (
        "extend",
        "in.npy",
        "--frames",
        7,
        "-w",
        "m.safetensors",
        "--backend",
        "numpy",
        "--overlap",
        2,
        "--steps",
        4,
    )
    for method, history in (("forcing", 20.0), ("rolling", 20.0), ("rolling", 3.0)):
        given = () if history == 20.0 else ("--history", history)
        row = json.loads(
            done(*common[:2], "out.npy", *common[2:], "--method", method, *given, "--json", "--force").stdout
        )
        assert row["method"] == method
        how: dict[str, Any] = {"window": 4, "overlap": 2, "transform_x": dc.guidance.clip()}
        truth = dc.video.extend(model, plan, CLIP[None], frames=7, method=method, history=history, **how).all()
        np.testing.assert_allclose(np.load("out.npy"), truth, atol=1e-4)


def test_frames_take_the_steps_in_the_order_that_is_asked_for() -> None:
    model = shaken("m.safetensors")
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=2)
    orders = {
        ("pyramid", "--lag", 2): dc.video.orders.pyramid(2, 4, lag=2),
        ("autoregressive",): dc.video.orders.autoregressive(2, 4),
    }
    for given, stages in orders.items():
        done("sample", "out.npy", "-w", "m.safetensors", *QUICK, "--force", "--order", *given)
        truth = dc.sample(model, plan.per_frame(stages), shape=(1, 4, 8, 8, 1), transform_x=dc.guidance.clip())
        np.testing.assert_allclose(np.load("out.npy"), truth, atol=1e-5)


def test_a_model_with_one_level_for_all_frames_is_named_where_frames_get_their_own() -> None:
    says = "was trained with one noise level for all frames of a clip, and --method rolling gives each frame its own"
    model = shaken("m.safetensors")
    np.save("in.npy", CLIP)
    rolls = (
        "extend",
        "in.npy",
        "out.npy",
        "--frames",
        5,
        *QUICK,
        "--overlap",
        2,
        "--force",
        "--method",
        "rolling",
        "-w",
    )
    for settings, noted in ((None, False), ("Settings(lag=None)", True), ("Settings(frame_times='pyramid')", False)):
        dc.unet3d.save(model, "m.safetensors", metadata=None if settings is None else {"settings": settings})
        assert (says in done(*rolls, "m.safetensors").stderr) == noted
    how = ("sample", "no.npy", "--order", "autoregressive", "--frames", 17)
    assert "for up to the model's 16 frames" in refused(2, *how)


def test_a_causal_model_draws_one_frame_after_another() -> None:
    """Each given those before it, which are computed once; `--order together` draws them as other models do."""
    model = shaken("m.safetensors", causal=True)
    dc.unet3d.save(model, "m.safetensors", metadata={"settings": "Settings(frame_times='independent')"})
    done("sample", "a.npy", "-w", "m.safetensors", *QUICK, "--frames", 6, "-n", 2)
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=2)
    how = {
        "frames": 6,
        "window": 4,
        "overlap": 3,
        "method": "forcing",
        "history": 20.0,
        "transform_x": dc.guidance.clip(),
    }
    denoise = dc.video.reusing(model)
    truth = dc.video.extend(denoise, plan, np.zeros((2, 0, 8, 8, 1), np.float32), **how).all()
    np.testing.assert_allclose(np.load("a.npy"), truth, atol=1e-5)
    done("sample", "b%d.npy", "-w", "m.safetensors", *QUICK, "--frames", 6, "-n", 2)
    np.testing.assert_allclose(np.load("b1.npy")[0], truth[1], atol=1e-5)
    done("sample", "c.npy", "-w", "m.safetensors", *QUICK, "-n", 2, "--order", "together")
    assert np.abs(np.load("c.npy") - truth[:, :4]).max() > 0.1
    np.save("in.npy", np.asarray(truth[0]))
    done("extend", "in.npy", "d.npy", "--frames", 8, "-w", "m.safetensors", *QUICK, "--method", "forcing")
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=2, eta=1.0)
    longer = dc.video.extend(denoise, plan, np.asarray(truth[:1]), **how | {"frames": 8}).all()
    np.testing.assert_allclose(np.load("d.npy"), longer, atol=1e-5)


def test_interpolate_keeps_the_librarys_overlap_where_none_is_given() -> None:
    """With a large factor a block knows a whole gap of the one before, more than a quarter of the window."""
    model = shaken("m.safetensors", frames=8)
    np.save("in.npy", np.random.default_rng(0).uniform(-1, 1, (1, 4, 8, 8, 1)).astype(np.float32))
    done("interpolate", "in.npy", "out.npy", "--factor", 3, "-w", "m.safetensors", *QUICK)
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=2, eta=1.0)
    how = {"window": 8, "method": "replacement", "transform_x": dc.guidance.clip()}
    truth = dc.video.interpolate(model, plan, np.load("in.npy"), 3, **how).all()
    np.testing.assert_allclose(np.load("out.npy"), truth, atol=1e-5)
    quarter = dc.video.interpolate(model, plan, np.load("in.npy"), 3, overlap=2, **how).all()
    assert np.abs(quarter - truth).max() > 1e-2


@pytest.mark.torch
def test_train_takes_times_of_each_frame_and_causal_attention() -> None:
    done("train", "run", "--data", "digits", *TRAIN, "--steps", 1, "--causal", "--frame-times", "pyramid", "--lag", 0.5)
    assert dc.unet3d.load("run/model.safetensors").config.causal


@pytest.mark.torch
def test_a_model_is_trained_and_sampled_on_text(tmp_path: Path) -> None:
    folder = tiny_encoder("t5", tmp_path)
    done("train", "run", "--data", "digits", *TRAIN, "--steps", 1, "--encoder", folder, "--validation", "digits")
    config = dc.unet3d.load("run/model.safetensors").config
    found = text.encoder(folder)
    assert (config.condition, config.token_width, config.token_heads, config.encoder) == ("tokens", 8, 8, found.name)
    model = shaken(
        "said.safetensors",
        **{name: getattr(config, name) for name in ("condition", "token_width", "token_heads", "encoder")},
    )
    said = ["a three moves up left", "an eight"]
    common = ("-w", "said.safetensors", *QUICK, "--encoder", folder)
    row = json.loads(done("sample", "out.npy", *common, "-p", said[0], "--prompt", said[1], "--json").stdout)
    assert (row["prompts"], row["clips"], row["labels"]) == (said, 2, None)
    cond = found(said)
    guided = dc.guidance.classifier_free(model, cond=cond, null=model.null(cond), weight=1.0)
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=2)
    truth = dc.sample(guided, plan, shape=(2, 4, 8, 8, 1), prediction="v", transform_x=dc.guidance.clip())
    np.testing.assert_allclose(np.load("out.npy"), truth, atol=1e-5)
    done("sample", "one.npy", *common, "-p", said[0], "-n", 3)
    assert np.load("one.npy").shape[0] == 3
    np.save("in.npy", CLIP)
    done("extend", "in.npy", "longer.npy", "--frames", 6, *common, "-p", said[0])
    Path("v").mkdir()
    coded("v/a.mp4", frames=8)
    videos = ("train", "other", "--data", "v", *TRAIN, "--steps", 1, "--captions", "v/c.jsonl", "--encoder", folder)
    Path("v/c.jsonl").write_text('{"file_name": "b.mp4", "text": "a"}')
    assert "--captions v/c.jsonl: c.jsonl has no caption of a.mp4" in refused(2, *videos)
    Path("v/c.jsonl").write_text('{"file_name": "a.mp4", "text": "a three"}')
    done(*videos)
    assert dc.unet3d.load("other/model.safetensors").config.encoder == found.name
    assert "trained with the text encoder" in refused(
        2, "sample", "no.npy", *common[:-1], tiny_encoder("t5", tmp_path, 1), "-p", said[0]
    )
    assert "--prompt is given 2 times for 3 clips" in refused(
        2, "sample", "no.npy", *common, "-p", "a", "-p", "b", "-n", 3
    )


class Spelling:
    """A text encoder that needs no library: a token for each letter."""

    name, width = "letters 1", 3

    def __call__(self, texts: list[str]) -> Any:
        letters = np.zeros((len(texts), 12), dtype=np.float32)
        for row, words in zip(letters, texts, strict=True):
            row[: len(words)] = [ord(letter) for letter in words[:12]]
        return np.sin(letters[..., None] * np.arange(1, 4, dtype=np.float32)), letters > 0.0


@pytest.mark.torch
def test_held_out_clips_have_captions_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a learning rate, the loss of clips that a run is validated on is that of a run on these clips alone."""
    monkeypatch.setattr("diffcore.cli.conditions.encoder_in", lambda folder: Spelling())
    shaken("said.safetensors", condition="tokens", token_width=3, encoder="letters 1")
    for name in ("v/a.mp4", "h/b.mp4"):
        Path(name).parent.mkdir()
        coded(name, frames=9 if name[0] == "h" else 8)
    lines = ['{"file_name": "v/a.mp4", "text": "a three"}', '{"file_name": "h/b.mp4", "text": "an eight"}']
    Path("all.jsonl").write_text("\n".join(lines))
    for folder, line in zip("vh", lines, strict=True):
        Path(folder, "c.jsonl").write_text(line.replace(f"{folder}/", ""))
    common = (
        "--from",
        "said.safetensors",
        "--batch",
        2,
        "--device",
        "cpu",
        "--learning-rate",
        0,
        "--steps",
        1,
        "--seed",
        1,
    )
    train = ("train", "run", *common, "--encoder", "letters", "--force", "--json", "--data")
    truth, other = (json.loads(done(*train, name, "--captions", f"{name}/c.jsonl").stdout)["loss"] for name in "hv")
    assert truth != pytest.approx(other, rel=1e-3)
    for captions in ("v/c.jsonl", "all.jsonl"):
        row = json.loads(done(*train, "v", "--captions", captions, "--validation", "h").stdout)
        assert [row["validation_loss"], row["loss"]] == pytest.approx([truth, other], rel=1e-5)
    Path("h", "c.jsonl").unlink()
    assert "has no caption of b.mp4; each video needs a line; they may be in h/c.jsonl, as --captions are" in refused(
        2, *train, "v", "--captions", "v/c.jsonl", "--validation", "h"
    )
    assert "--data digits takes --validation digits with --encoder, got h" in refused(
        2, *train, "digits", "--validation", "h"
    )


def test_evaluate_shows_a_model_of_texts_the_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is that under each clip's caption; samples are read for the digit and the motion that theirs name."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr("diffcore.cli.conditions.encoder_in", lambda folder: Spelling())
    monkeypatch.setattr("diffcore.cli.evaluating.LEVELS", (1.0,))
    monkeypatch.setattr("diffcore.cli.evaluating.HELD_OUT", 40)
    forced = shaken("forced.safetensors", causal=True)
    dc.unet3d.save(forced, "forced.safetensors", metadata={"settings": "Settings(frame_times='independent')"})
    causal = json.loads(
        done("evaluate", "forced.safetensors", "-n", 2, "--backend", "numpy", "--steps", 1, "--json").stdout
    )
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=1)
    how = {"frames": 4, "window": 4, "method": "forcing", "history": 20.0, "transform_x": dc.guidance.clip()}
    clips = dc.video.extend(dc.video.reusing(forced), plan, np.zeros((2, 0, 8, 8, 1), np.float32), **how).all()
    assert causal["samples"]["identity_held"] == dc.unet3d.digits.identity_held(clips)
    assert causal["samples"]["legibility"] == pytest.approx(dc.unet3d.digits.legibility(clips).probability, rel=1e-4)
    config = {
        "condition": "tokens",
        "token_width": 3,
        "encoder": "letters 1",
        "size": 16,
        "frames": 8,
        "attention": (8,),
    }
    model = shaken("said.safetensors", **config)
    held = {"frames": 8, "size": 16, "count": 40, "split": "test"}
    source = dc.unet3d.digits.moving_digits(**held)
    captions = dc.unet3d.digits.captions(dc.unet3d.digits.moving_digits_truth(**held))
    common = ("evaluate", "said.safetensors", "-n", 3, "--backend", "numpy", "--json")
    row = json.loads(done(*common, "--no-samples", "--encoder", "letters").stdout)
    drawn = [dc.unet3d.data.batch(source, 1, step=step, seed=0) for step in range(3)]
    clips = source.clips / np.float32(127.5) - np.float32(1.0)
    which = [int(np.abs(clips - each.x).max(axis=(1, 2, 3, 4)).argmin()) for each in drawn]
    cond, x = Spelling()([captions[number] for number in which]), clips[which]
    level, eps = dc.levels.level(np.ones(3, dtype=np.float32)), dc.noise.normal(dc.noise.keys(0, 3), 0, x.shape)
    y = model(dc.process.diffuse(x, eps, level), level.log_snr, cond)
    truth = dc.losses.denoising(y, x, eps, level, prediction="v", weight=dc.weights.V()).mean()
    assert row["loss"]["1"] == pytest.approx(float(truth), rel=1e-4)
    blind = done(*common, "--no-samples")
    assert abs(json.loads(blind.stdout)["loss"]["1"] / float(truth) - 1.0) > 1e-3
    assert "it is measured without it; --encoder FOLDER reads captions" in blind.stderr
    for frames, moves in ((clips, True), (clips[:, ::-1], False)):
        monkeypatch.setattr(dc, "sample", lambda *given, frames=frames, **how: frames[: how["shape"][0]])
        seen = json.loads(done(*common, "--steps", 1, "--encoder", "letters").stdout)["samples"]
        assert seen["accuracy"] == 1.0
        assert (seen["moves_as_said"] == 1.0) == moves


PROMPT = ("sample", "no.npy", "-w", "m.safetensors", *QUICK, "--prompt", "a dog")
LONGER = ("extend", "in.npy", "no.npy", "--frames", 9, "-w", "m.safetensors", "--backend", "numpy", "--steps", 4)
BAD = [
    (PROMPT, "--prompt takes --encoder FOLDER, the text encoder that the model was trained with, 't5 12'"),
    ((*PROMPT, "--label", 1), "--label and --prompt are both given"),
    ((*PROMPT[:-2], "--encoder", "gone"), "--encoder is given without --prompt TEXT"),
    (
        ("evaluate", "still.safetensors", "--backend", "numpy"),
        "clips of 2 frames have no motion to compare; --no-samples",
    ),
    (("train", "run", "--data", ".", "--preset", "text_small"), "--preset text_small takes --encoder FOLDER"),
    ((*PROMPT, "--encoder", "gone"), "--encoder gone: there is no folder 'gone' with a config.json"),
    ((*PROMPT, "-w", "plain.safetensors"), "--prompt is given, but this model has the condition 'none'"),
    (("train", "run", "--data", "digits", "--encoder", "gone"), "--encoder gone: there is no folder"),
    (("train", "run", "--data", "digits", "--captions", "a.jsonl"), "--captions takes --encoder FOLDER"),
    (("evaluate", "m.safetensors", "--captions", "a.jsonl"), "--captions takes --encoder FOLDER"),
    (("train", "run", "--data", ".", "--encoder", "gone"), "--encoder takes --captions FILE"),
    (
        ("train", "run", "--data", "gone", "--captions", "a.jsonl", "--encoder", "gone"),
        "--encoder gone: there is no folder",
    ),
    (
        ("train", "run", "--data", "digits", "--encoder", "gone", "--captions", "a.jsonl"),
        "--captions is for a folder of videos",
    ),
    ((*LONGER, "--method", "rolling"), "a multiple of window - overlap, 3 here, got 4"),
    ((*LONGER, "--history", 4), "--history 4 is for --method forcing and rolling, and not for replacement"),
    ((*LONGER, "--weight", 4), "--weight 4 is for --method reconstruction, and not for replacement"),
    (("interpolate", *LONGER[1:3], *LONGER[5:], "--factor", 4, "--window", 4), "--window must be more than --factor 4"),
    (
        ("interpolate", *LONGER[1:3], *LONGER[5:], "--method", "forcing"),
        "--method forcing is for extend; interpolate takes",
    ),
    (
        ("sample", "no.npy", "-w", "plain.safetensors", *QUICK, "--frames", 9, "--order", "pyramid"),
        "use extend for more",
    ),
]


@pytest.mark.parametrize(("arguments", "says"), BAD)
def test_what_does_not_go_together_is_refused(arguments: tuple[Any, ...], says: str) -> None:
    shaken("m.safetensors", condition="tokens", token_width=3, encoder="t5 12")
    shaken("plain.safetensors")
    shaken("still.safetensors", frames=2)
    np.save("in.npy", CLIP)
    assert says in refused(2, *arguments)
