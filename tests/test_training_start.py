"""Runs that start from weights, freeze some of them, are validated, and copy their log."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_cases
from training_cases import CONFIG, SETTINGS, STILL, digits, every_backend, module_of, part, rows

from diffcore import unet3d
from diffcore.unet3d import training, weights
from diffcore.unet3d.build import assemble, initial
from diffcore.unet3d.training import objective, start

quick = training_cases.quick
pytestmark = pytest.mark.usefixtures("quick")

SHORT = replace(SETTINGS, steps=2, warm_up=0, log_every=1)


def drawn(config: Any, seed: int = 3) -> dict[str, Any]:
    """Return weights of which none is zero."""
    rng = np.random.default_rng(seed)
    return {name: 0.3 * rng.normal(size=array.shape).astype(np.float32) for name, array in initial(config).items()}


def trained(path: Path, config: Any = STILL, seed: int = 3) -> None:
    weights.write(path, drawn(config, seed), {"config": json.dumps(config.to_dict())})


@every_backend
def test_a_run_starts_from_weights_keeps_the_frozen_and_does_not_forget_the_average(backend: str) -> None:
    """After one step with a decay d the average is d start + (1 - d) new, where a new run keeps 1 / 10 of its start."""
    arrays = drawn(STILL)
    settings = replace(SETTINGS, frozen=("embed.*", "down.0.0.norm?.bias"), ema=0.75, ema_warm_up=False)
    trainer = module_of(backend).Trainer(STILL, settings, start=arrays)
    before = part(trainer, "model")
    trainer.step(0, objective.draw(STILL, settings, digits(), None, 0))
    now, mean = part(trainer, "model"), part(trainer, "averaged")
    frozen = [name for name in now if np.array_equal(now[name], before[name])]
    assert frozen == [name for name in now if name.startswith("embed.") or fnmatch(name, "down.0.0.norm?.bias")]
    for name in now:
        np.testing.assert_allclose(mean[name], 0.75 * before[name] + 0.25 * now[name], atol=1e-5)


@pytest.mark.torch
def test_a_run_goes_on_from_its_own_weights_and_refuses_other_ones(tmp_path: Path) -> None:
    trained(tmp_path / "w.safetensors")
    trained(tmp_path / "other.safetensors", seed=4)
    how: dict[str, Any] = {"start": tmp_path / "w.safetensors"}
    written = training.train(STILL, SHORT, digits(), tmp_path / "whole", **how)
    about = weights.read(written).metadata
    assert about["start"].startswith("sha256:")
    assert "ema_warm_up=False" in about["settings"]
    training.train(STILL, replace(SHORT, steps=1), digits(), tmp_path / "parts", **how)
    training.train(STILL, SHORT, digits(), tmp_path / "parts", **how)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "parts" / "model.safetensors"
    ).read_bytes()
    with pytest.raises(ValueError, match="holds a run from other weights"):
        training.train(STILL, SHORT, digits(), tmp_path / "parts", start=tmp_path / "other.safetensors")


WIDE = replace(unet3d.preset("tiny"), condition="class", classes=3)


def without_classes(config: Any, arrays: dict[str, Any]) -> Any:
    kept = {name: array for name, array in arrays.items() if name != "condition.classes"}
    return assemble("train", replace(config, condition="none", classes=0), kept, "numpy")


def test_weights_fit_longer_clips_other_sizes_and_more_classes(tmp_path: Path) -> None:
    """The network with fitted weights is the old one on what both can take."""
    trained(tmp_path / "w.safetensors", WIDE)
    old = unet3d.load(tmp_path / "w.safetensors")
    longer = replace(WIDE, frames=7, size=16, attention=(8,), classes=5)
    found = start.started("train", longer, tmp_path / "w.safetensors")
    assert found.anew == ("condition.classes",)
    z = np.random.default_rng(0).normal(size=(1, 6, 8, 8, 1)).astype(np.float32)
    fitted, bare = without_classes(longer, found.arrays), without_classes(WIDE, old.arrays())
    np.testing.assert_allclose(fitted(z, np.zeros(1)), bare(z, np.zeros(1)), rtol=1e-4, atol=1e-4)
    colours = replace(WIDE, channels=3, condition="none", classes=0)
    rgb = assemble("train", colours, start.started("train", colours, tmp_path / "w.safetensors").arrays, "numpy")
    grey = bare(z, np.zeros(1))
    np.testing.assert_allclose(
        rgb(np.repeat(z, 3, axis=-1), np.zeros(1)), np.repeat(grey, 3, axis=-1), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_channels": 16}, "is another network, with base_channels 8 for 16; only frames, size"),
        ({"blocks": 2}, "blocks 1 for 2"),
        ({"multipliers": (1,), "attention": ()}, "multipliers"),
        ({"channels": 4}, "channels 1 for 4"),
        ({"prediction": "eps"}, "predicts 'v', but `config` 'eps'"),
    ],
)
def test_weights_of_another_network_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    trained(tmp_path / "w.safetensors", WIDE)
    with pytest.raises(ValueError, match=f"train: `start` 'w.safetensors' .*{says}"):
        start.started("train", replace(WIDE, **changes), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("frozen", "error", "says"),
    [
        (("nothing.*",), ValueError, "fits no weight; their names begin with"),
        (("*",), ValueError, "fits every weight"),
        ("embed.*", TypeError, "must be patterns of names"),
    ],
)
def test_patterns_that_freeze_nothing_or_all_are_refused(frozen: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"training.Settings: `frozen` .*{says}"):
        replace(SETTINGS, frozen=frozen).frozen_of(initial(STILL))


@every_backend
def test_the_validation_loss_is_that_of_the_averaged_weights_and_the_log_is_copied(
    backend: str, tmp_path: Path
) -> None:
    """Without a learning rate nothing changes, so that each validation gives one number: for the same clips, that of training."""
    every = {"log_every": 1, "checkpoint_every": 4, "validate_every": 2}
    settings = replace(SETTINGS, steps=4, warm_up=0, learning_rate=0.0, batch=4, images=0, **every)
    training.train(STILL, settings, digits(4), tmp_path / "run", backend=backend, validation=digits(4), log=["csv"])
    log = rows(tmp_path / "run")
    assert [row["step"] for row in log if "validation_loss" in row] == [2, 4]
    assert log[1]["validation_loss"] == log[3]["validation_loss"] == pytest.approx(log[0]["loss"], rel=1e-5)
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in log]
    assert [row["validation_loss"] for row in table] == ["", str(log[1]["validation_loss"])] * 2
    longer = replace(settings, steps=5)
    training.train(STILL, longer, digits(4), tmp_path / "run", backend=backend, validation=digits(4), log=["csv"])
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5"]


@pytest.mark.torch
def test_tensorboard_reads_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    training.train(STILL, SHORT, digits(), tmp_path / "run", log=["tensorboard"])
    events = b"".join(path.read_bytes() for path in (tmp_path / "run" / "tensorboard").iterdir())
    for name in (b"loss", b"gradient_norm", b"learning_rate"):
        assert events.count(name) >= SHORT.steps


@pytest.mark.torch
@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"log": "csv"}, TypeError, "`log` must be some of"),
        ({"log": ["excel"]}, ValueError, "`log` must be"),
        ({"start": "nowhere.safetensors"}, FileNotFoundError, "there is no file"),
    ],
)
def test_what_a_run_refuses(how: dict[str, Any], error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        training.train(CONFIG, SHORT, digits(), tmp_path / "run", **how)
