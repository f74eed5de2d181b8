"""Training, evaluation, information, identities, benchmarks, help, completion, and signals."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import cli_cases
import numpy as np
import pytest
import typer
from cli_cases import QUICK, ROOT, clip, coded, done, refused, run

import diffcore as dc
from diffcore import unet3d
from diffcore.cli import battery, bench, estimates, evaluating
from diffcore.cli.app import app
from diffcore.unet3d import summary

in_a_folder, tiny = cli_cases.in_a_folder, cli_cases.tiny


@pytest.mark.torch
def test_train_evaluate_and_sample_of_what_was_trained() -> None:
    pytest.importorskip("sklearn")
    common = (
        "train",
        "run",
        "--data",
        "digits",
        "--preset",
        "tiny",
        "--backend",
        "torch",
        "--device",
        "cpu",
        "--batch",
        2,
    )
    row = json.loads(done(*common, "--steps", 3, "--json").stdout)
    assert row["weights"] == str(Path("run", "model.safetensors"))
    assert row["loss"] > 0.0
    assert "run: resuming from step 3" in done(*common, "--steps", 4).stderr
    said = run(*common, "--steps", 2).stderr
    assert "at step 4" in said
    assert "resuming" not in said  # before it is refused
    assert "going on" not in done(*common, "--steps", 2, "--force").stderr
    Path("run", "checkpoint.safetensors").unlink()
    assert "--force overwrites it" in refused(2, *common, "--steps", 2)
    row = json.loads(done("evaluate", "run", "-n", 2, "--no-samples", "--out", "found.json", "--json").stdout)
    parts = json.loads(done("evaluate", "run", "-n", 2, "--no-samples", "--batch", 1, "--json").stdout)
    assert parts["loss"] == pytest.approx(row["loss"], rel=1e-4)
    assert len(row["loss"]) == 7
    assert all(np.isfinite(list(row["loss"].values())))
    assert json.loads(Path("found.json").read_text())["loss"] == row["loss"]
    done("sample", "clip.npy", "-w", "run", *QUICK)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("at", "times", "force", "goes"),
    [
        (1, 1, False, "stopped; the same command goes on from step 2"),
        (1, 1, True, "stopped; the same command, without --force, goes on from step 2"),
        (1, 2, False, "stopped; the same command begins anew"),
    ],
)
def test_an_interrupted_training_says_what_the_next_one_does(
    at: int, times: int, force: bool, goes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffcore.cli import report

    def told(bar: Any, count: int, text: str = "") -> None:
        for _ in range(times if count == at else 0):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(report.Bar, "done", told)
    command = ("train", "run", "--data", "digits", "--preset", "tiny", "--device", "cpu", "--batch", 2, "--steps", 9)
    try:
        found = run(*command, *(["--force"] if force else []))
    finally:
        signal.signal(signal.SIGINT, before)
    assert found.exit_code == 130
    assert goes in found.stderr.splitlines()
    if "from step" in goes:
        assert "run: resuming from step 2" in done(*command[:-1], 2).stderr


@pytest.mark.torch
def test_train_from_weights(tiny: str) -> None:
    common = ("train", "run", "--data", "digits", "--from", tiny, "--batch", 2, "--device", "cpu", "--frames", 3)
    more = ("--freeze", "embed.*", "--validation", "digits", "--log", "csv")
    found = done(*common, *more, "--steps", 1, "--json")
    assert f"run: a new run from the weights of {tiny}, 1 step of 2 clips 3x8x8x1, learning rate 0.0001" in found.stderr
    row = json.loads(found.stdout)
    assert Path("run", "log.csv").read_text().splitlines()[1].split(",")[4] == str(row["validation_loss"])
    shown = done("info", "run").stdout
    assert "trained with" in shown
    assert "('embed.*',)" in shown
    assert "--log must be csv or tensorboard" in refused(2, *common, "--log", "excel")
    assert "needs --validation" in refused(2, *common, "--validate-every", 2)
    assert "compiles in any case" in refused(2, *common, "--backend", "jax", "--compile")
    found = run(*common[:1], "new", *common[2:], "--base-channels", 16)
    assert found.exit_code == 1
    assert "is another network, with base_channels 8 for 16" in found.stderr


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
    said = done("evaluate", "run", "--data", "videos", "-n", 2, "--backend", "numpy").stderr
    assert "clips are taken at 5 frames a second, as those of run were" in said
    assert "2 clips are cut" not in said
    shutil.copytree("videos", "classed/one")
    labelled = ("evaluate", "run", "--data", "classed", "--labels", "folders", "--backend", "numpy")
    assert "--labels is for models of classes" in refused(2, *labelled)
    sets = ("evaluate", "videos", "--against", "videos", "--features", "pixels", "--size", 128, "-n", 3, "--frames")
    said = done(*sets, 4).stderr
    assert (
        "note: 3 clips are cut from 2 videos in videos, at random places, which may overlap; -n 2 takes one of" in said
    )
    assert "2 of the videos in videos, such as a.mp4 of 96x96, are enlarged to cover 128x128" in said
    assert "one of 2; --frames takes fewer; --every 1 takes each frame" in refused(2, *sets, 7)
    np.save("small.npy", clip(12, (16, 16)))
    assert "of small.npy, 16x16, are enlarged" in done("evaluate", "small.npy", *sets[2:], 4).stderr
    tuned = done("train", "tuned", "--data", "videos", "--from", "run", "--steps", 1, "--batch", 1, "--rate", 2.5)
    assert "clips are taken" not in tuned.stderr
    again = ("train", "tuned", "--data", "videos", "--from", "run", "--steps", 2, "--batch", 1, "--rate", 5)
    assert "holds a run on other data: fps 2.5 instead of 5.0" in refused(1, *again)
    assert "run is a model, and --against compares videos; draw some" in refused(
        2, "evaluate", "run", "--against", "videos"
    )
    assert "compared with goes after --against" in refused(2, "evaluate", "a.mp4", "b.mp4")
    assert [dc.unet3d.weights.read(f"{name}/model.safetensors").metadata["fps"] for name in ("run", "tuned")] == [
        "5",
        "2.5",
    ]


def test_evaluate_two_sets_by_the_features_of_a_name() -> None:
    from diffcore.metrics import features

    real = clip(4, (8, 8), 3, count=6)
    np.save("real.npy", real)
    np.save("made.npy", 0.5 * real)
    Path("mine_for_a_test.py").write_text("def means(clips):\n    return clips.mean(axis=(1, 2, 3))\n")
    common = ("evaluate", "made.npy", "--against", "real.npy", "--frames", 4, "--size", 8, "--json", "--features")
    known = {**features.table(), "mine_for_a_test:means": lambda clips: clips.mean(axis=(1, 2, 3))}
    for name, function in known.items():
        row = json.loads(done(*common, name).stdout)
        with pytest.warns(dc.metrics.SmallSample) if name in features.table() else contextlib.nullcontext():
            truth = dc.metrics.frechet_distance(real, 0.5 * real, features=function)
        assert row["frechet_distance"] == pytest.approx(truth, rel=1e-4)
    assert "--features must be one of pixels, convolutions, digits" in refused(2, *common, "pixel")
    assert "needs --against" in refused(2, "evaluate", "made.npy", "--features", "pixels")


def test_evaluate_two_videos_by_psnr_and_ssim() -> None:
    pytest.importorskip("skimage")
    real = clip(19, (16, 16))  # more than are read at once
    made = np.clip(real + np.linspace(0, 0.3, 19, dtype=np.float32)[:, None, None, None], -1, 1)[:18]
    np.save("real.npy", real)
    np.save("made.npy", made)
    found = done("evaluate", "made.npy", "--against", "real.npy", "--json")
    row = json.loads(found.stdout)
    pair = made[None, 1:], real[None, 1:18]
    assert row["psnr"] == [None]  # the first frames are equal
    assert row["ssim"][0] == pytest.approx((1 + 17 * float(dc.metrics.ssim(*pair)[0])) / 18, rel=1e-6)
    assert "the first 18 are compared" in found.stderr
    np.save("made.npy", made[1:])
    np.save("real.npy", real[1:])
    row = json.loads(done("evaluate", "made.npy", "--against", "real.npy", "--json").stdout)
    assert row["psnr"][0] == pytest.approx(float(dc.metrics.psnr(*pair)[0]), abs=1e-3)
    same = done("evaluate", "real.npy", "--against", "real.npy")
    assert "PSNR inf dB, SSIM 1.0000" in same.stdout
    assert json.loads(done("evaluate", "real.npy", "--against", "real.npy", "--json").stdout)["psnr"] == [None]


@pytest.mark.torch
def test_evaluate_reads_the_digits_that_a_model_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(evaluating, "LEVELS", (0.0,))
    monkeypatch.setattr(evaluating, "HELD_OUT", 64)
    real = dc.unet3d.digits.moving_digits(count=64, split="test")
    assert real.labels is not None
    first = [int(np.flatnonzero(real.labels == digit)[0]) for digit in range(10)]
    drawn = real.clips[first].astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    monkeypatch.setattr(dc, "sample", lambda *given, **how: drawn[: how["shape"][0]])
    found = done("evaluate", "-n", 4, "--backend", "torch", "--json", "--steps", 1)
    row = json.loads(found.stdout)
    assert row["samples"]["accuracy"] == 1.0
    assert row["loss"]["0"] < 0.1
    assert "covariance is singular" in found.stderr
    assert "Frechet".lower() in done("evaluate", "-n", 4, "--backend", "torch", "--steps", 1).stdout


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
    for grid, points in (
        (("karras", "--steps", 3), dc.grids.karras(dc.schedules.Cosine(), 3)),
        (("9, 1, 1, 0",), dc.grids.from_sigmas([9.0, 1.0, 0.0]).grid),
    ):
        found = done("info", "--plan", "ancestral", "--json", "--grid", *grid)
        assert np.allclose(json.loads(found.stdout)["log_snr"], points[:-1])
        assert ("left out 1 of 4 sigmas: [2] repeats 1.0" in found.stderr) == (len(grid) == 1)
    plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=70)
    plan.save("plan.json")
    assert "40 more stages; --all shows all" in done("info", "plan.json").stdout
    assert done("info", "plan.json", "--all").stdout == f"{plan.text()}\n"


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
        rows: list[dict[str, Any]] = [] if {"nothing", "cuda"} & set(command) else [{}]
        result = {"rows": rows, "missing": {"no CUDA device": ["test_unet3d[cuda]"]}}
        Path(command[command.index("--json") + 1]).write_text(json.dumps(result), encoding="utf-8")
        return subprocess.CompletedProcess(command, 2 if "nothing" in command else 0)

    monkeypatch.setattr(subprocess, "run", instead)
    pytest.importorskip("pytest_benchmark")
    done("bench", "--quick", "-k", "stage", "--out", "found.json")
    ((command, where),) = seen
    assert where == ROOT
    assert command[1:3] == ["-m", "benchmarks"]
    assert {"--quick", "stage"} <= set(command)
    assert json.loads(Path("found.json").read_text())["rows"] == [{}]
    assert "no row that fits -k 'cuda' runs here: no CUDA device" in refused(1, "bench", "-k", "cuda")
    assert run("bench", "-k", "nothing").exit_code == 2


def test_benchmarks_refuse_in_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pytest_benchmark")
    from benchmarks import __main__ as suite
    from benchmarks import gpu, report

    row = '{{"rows": [{{"group": "{0}", "who": "{0}", "min": 0.5}}]}}'
    monkeypatch.setattr(suite, "_run", lambda *given: pytest.ExitCode.NO_TESTS_COLLECTED)
    monkeypatch.setattr(gpu, "name", lambda: gpu.NONE)
    for name, text in (("no.json", '{"rows": [{}]}'), ("a.json", row.format("a")), ("b.json", row.format("b"))):
        Path(name).write_text(text, encoding="utf-8")
    for options, says in (
        (("-k", "nothing"), "no row fits -k 'nothing'"),
        (("--device", "cuda"), "finds no CUDA device"),
        (("--json", "gone/found.json"), "argument --json: there is no folder gone for found.json; make it first"),
        (("--compare", "gone.json", "a.json"), "argument --compare: there is no file gone.json"),
        (("--compare", "a.json", "no.json"), "argument --compare: no.json is no result of these benchmarks"),
        (("--compare", "a.json", "b.json", "--quick"), "--quick does nothing beside --compare"),
        (("--compare", "a.json", "b.json", "-k", "a"), "-k does nothing beside --compare"),
    ):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *options])
        with pytest.raises(SystemExit, match="2"):
            suite.main()
        said = capfd.readouterr().err.splitlines()
        assert says in said[-1]
        assert len(said) == 1 or said[0].startswith("usage:")
    for new, says in (("a.json", "| a: a | 500 ms | 500 ms | 1.00 |"), ("b.json", "no row is in both")):
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--compare", "a.json", new])
        assert suite.main() == 0
        assert says in capfd.readouterr().out
    one: dict[str, Any] = {
        "rows": [{"group": "a", "who": "a", "min": 0.5}],
        "device": "A",
        "versions": {"numpy": "1", "diffcore": "1"},
    }
    other: dict[str, Any] = {
        "rows": [*one["rows"], {"group": "b", "who": "b", "min": 0.5}],
        "device": "B",
        "versions": {"numpy": "2"},
    }
    assert "Not alike" not in report.compare(one, one)
    assert report.compare(one, other).endswith(
        "Not alike: 1 of the new result's rows are in it alone; device: A before, B after; numpy: 1 before, 2 after.\n"
    )


def test_help_teaches_by_examples() -> None:
    assert "diffcore sample clip.mp4" in done().stdout
    for command in ("sample", "extend", "interpolate", "upscale", "train", "evaluate", "info", "verify", "bench"):
        text = done(command, "--help").stdout
        assert "Examples:" in text
        assert f"$ diffcore {command}" in text
        assert "--json" in text
        for option in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
            assert len(option.help or "") > 10, f"{command} {option.name}"
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
    words = {"_DIFFCORE_COMPLETE": "complete_bash", "COMP_WORDS": "diffcore sample --sampler pl", "COMP_CWORD": "3"}
    process = _process(code="from diffcore.cli import main; main()", **words)
    out, _ = process.communicate(timeout=60)
    assert out.split() == ["plms"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGINT")
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_leaves_no_file(tiny: str, which: signal.Signals) -> None:
    # a job in the background, and what it starts, ignores an interrupt
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = ("sample", "out.mp4", "-w", tiny, "--backend", "numpy", "--steps", "2000", "--sampler", "ddim")
    process = _process(*command, code=f"{heeds}\nfrom diffcore.cli import main; main()")
    with process:
        try:
            deadline = time.monotonic() + 60.0
            while not list(Path().glob(".out.mp4.*.part")):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(which)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines() == ["diffcore: interrupted; no half-written file was left"]
    assert os.listdir() == []


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex of zeros is one of Linux")
def test_an_interrupt_is_heard_while_a_library_computes() -> None:
    """Python never comes to its handler: the main thread waits in C, for a mutex that it holds, as for a compiled run."""
    code = """if True:
        import ctypes, signal
        from pathlib import Path
        from diffcore.cli import interrupts
        signal.signal(signal.SIGINT, signal.default_int_handler)
        part = Path("half.part")
        part.touch()
        mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
        with interrupts.heard(part):
            print("waits", flush=True)
            lock(mutex)
            lock(mutex)
        print("ended")
    """
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err == "diffcore: interrupted; no half-written file was left\n"
    assert not Path("half.part").exists()


def test_without_its_libraries_the_command_says_what_to_install() -> None:
    process = _process(code="import sys; sys.modules['typer'] = None\nfrom diffcore.cli import main\nmain()")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert err == "diffcore: the command line needs typer; install diffcore[cli]\n"
    process = _process(code="import sys; sys.modules['rich.console'] = None\nfrom diffcore.cli import main\nmain()")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "diffcore: the command line needs rich; install diffcore[cli]\n")


def test_a_long_run_says_before_it_begins_how_long(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bare, size = (
        unet3d.UNet3DConfig(
            frames=4, size=64, channels=1, base_channels=8, multipliers=(1, 2), head_dim=8, attention=()
        ),
        (64, 256),
    )
    ratio = summary.total(summary.costs_of(bare, 4, size)).flops / unet3d.summarise(bare).total.flops
    assert 4.0 < ratio < 16.0  # the middle attends over all pixels, and the embedding costs what it did
    half = summary.total(summary.costs_of(bare, 2, (64, 64))).flops / unet3d.summarise(bare).total.flops
    assert 0.45 < half < 0.55
    np.save("in.npy", clip())
    job = ("extend", "in.npy", "out.npy", "--frames", 8, "--method", "replacement", "-w", tiny, *QUICK, "--force")
    assert "note: this takes" not in done(*job).stderr
    monkeypatch.setattr(estimates, "LONG", 1)
    note = r"note: this takes about \d+ seconds here: \d+ calls of the network with 1 x 4 frames of 8x8, each up to"
    assert re.search(note, done(*job).stderr)
