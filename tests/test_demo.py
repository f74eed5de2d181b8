"""The demo: it draws from the shipped model, the same clip on every library, and writes whole files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffcore import _pictures as pictures
from diffcore import schedules, unet3d
from diffcore.demo.__main__ import main

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("safetensors")

TINY = unet3d.preset("tiny", condition="class", classes=10)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    unet3d.save(unet3d.build(TINY), path)
    return str(path)


def test_it_runs_from_end_to_end_and_is_reproducible(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--weights", weights, "--digits", "3", "1", "--steps", "4", "--backends", "numpy"]
    for out in ("a", "b"):
        assert main([*given, "--out", str(tmp_path / out)]) == 0
    said = capsys.readouterr().out
    assert "new clips of the digits [3, 1]: DPM-Solver++ 2M SDE, 4 steps, guidance 1.0" in said
    assert "made longer, and its end small and large again, by replacement on numpy" in said
    for name in ("clips.gif", "longer.gif", "sheet.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with Image.open(tmp_path / "a" / "clips.gif") as picture:
        assert picture.n_frames == 6  # four frames forwards, two back
    with Image.open(tmp_path / "a" / "longer.gif") as picture:
        assert picture.n_frames == 12  # seven frames forwards, five back
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["clips.gif", "longer.gif", "sheet.png"]


@pytest.mark.torch
def test_where_there_are_gradients_guidance_goes_through_the_network(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--weights", weights, "--digits", "3", "--steps", "2", "--backends", "torch"]
    assert main([*given, "--out", str(tmp_path)]) == 0
    assert "by reconstruction guidance on torch" in capsys.readouterr().out


@pytest.mark.torch
@pytest.mark.jax
def test_one_seed_is_one_clip_on_every_library(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("flax")
    assert main(["--weights", weights, "--digits", "3", "--steps", "3", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    apart = [float(line.split(", ")[1].split(" ")[0]) for line in lines if line.endswith("from numpy's")]
    assert len(apart) == 2
    assert max(apart) < 1e-4


def test_another_seed_is_another_clip(weights: str, tmp_path: Path) -> None:
    given = ["--weights", weights, "--digits", "3", "--steps", "2", "--backends", "numpy"]
    for seed in ("1", "2"):
        main([*given, "--seed", seed, "--out", str(tmp_path / seed)])
    assert (tmp_path / "1" / "sheet.png").read_bytes() != (tmp_path / "2" / "sheet.png").read_bytes()


def test_a_picture_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    rows = [("x", np.zeros((2, 4, 4, 1), dtype=np.float32))]
    with pytest.raises(OSError, match="disk full"):
        pictures.write_sheet(tmp_path / "sheet.png", rows)
    assert list(tmp_path.iterdir()) == []


def test_a_grey_picture_is_the_coloured_one_with_equal_channels(tmp_path: Path) -> None:
    grey = np.linspace(-1.0, 1.0, 32, dtype=np.float32).reshape(2, 4, 4, 1)
    for name, frames in (("grey", grey), ("coloured", np.repeat(grey, 3, axis=-1))):
        pictures.write_sheet(tmp_path / f"{name}.png", [("x", frames)])
    assert (tmp_path / "grey.png").read_bytes() == (tmp_path / "coloured.png").read_bytes()


def test_settings_out_of_range_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--steps", "0"])
    assert "--steps must be an int >= 1, got 0" in capsys.readouterr().err


def test_the_shipped_models_are_small_and_are_what_the_preset_says() -> None:
    for name in unet3d.MODELS:
        path = Path(unet3d.__file__).parent / "digits" / f"{name}.safetensors"
        assert path.stat().st_size <= 4e6
        causal = name == "moving_digits_causal"
        want = unet3d.preset("moving_digits", schedule=schedules.Cosine(), causal=causal)
        assert unet3d.pretrained(name).config == want
    with pytest.raises(ValueError, match="`name` must be 'moving_digits' or 'moving_digits_causal', got 'faces'"):
        unet3d.pretrained("faces")
