"""The demo: it fits what it is given, draws, writes whole files, and skips what it cannot read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffcore import _pictures as pictures
from diffcore.demo import clips, fit
from diffcore.demo.__main__ import main

Image = pytest.importorskip("PIL.Image")


def test_principal_components_are_the_maximum_likelihood_fit() -> None:
    """Points of a known factor model: the covariance fitted is theirs, and its noise the mean of what is left."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(6, 2))
    points = rng.normal(size=(20_000, 2)) @ factor.T + 0.1 * rng.normal(size=(20_000, 6)) + 3.0
    sample = points[:400]
    mean, found = fit.principal_components(sample, 2, most_noise=1.0)
    values, vectors = np.linalg.eigh(np.cov(sample.T, bias=True))
    noise = values[:4].mean()
    want = vectors[:, 4:] @ np.diag(values[4:] - noise) @ vectors[:, 4:].T + noise * np.eye(6)
    np.testing.assert_allclose(mean, sample.mean(axis=0))
    np.testing.assert_allclose(found.factor @ found.factor.T + found.variance * np.eye(6), want, atol=1e-9)
    assert abs(found.variance - 0.01) < 0.002


def test_clusters_that_are_apart_are_found() -> None:
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1, 2], 30)
    points = rng.normal(size=(90, 5)) + 40.0 * np.eye(5)[truth]
    own = fit.clusters(points, 3)
    assert len(np.unique(own)) == 3
    for cluster in range(3):
        assert len(np.unique(own[truth == cluster])) == 1


def test_the_mixture_of_one_cluster_draws_its_mean() -> None:
    rng = np.random.default_rng(2)
    some = (0.3 + 0.05 * rng.normal(size=(40, 2, 3, 4, 3))).astype(np.float32)
    data = fit.fit_mixture(some, 1, 3)
    at_noise = data(np.zeros((1, 2, 3, 4, 3)), -np.inf)
    np.testing.assert_allclose(at_noise[0], some.mean(axis=0), atol=1e-6)


def test_the_nearest_clip_is_found() -> None:
    some = np.arange(3, dtype=np.float32).reshape(3, 1) * np.ones((1, 4), dtype=np.float32)
    np.testing.assert_allclose(fit.distance_to_nearest(some + np.float32(0.25), some), 0.25, atol=1e-6)


def test_windows_overlap_by_all_but_one_frame() -> None:
    frames = np.arange(5, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(clips.windows(frames, 3)[:, :, 0], [[0, 1, 2], [1, 2, 3], [2, 3, 4]])
    assert clips.windows(frames, 6).shape[0] == 0


def test_broken_files_are_reported_and_skipped(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "notes.txt").write_text("not a video")
    said: list[str] = []
    assert clips.from_folder(tmp_path, 4, 8, 8, said.append) == {}
    assert [line.split()[1] for line in said] == ["broken.mp4", "empty.mp4"]


def test_it_runs_from_end_to_end_and_is_reproducible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    for out in ("a", "b"):
        assert main(["--quick", "--clips", str(tmp_path / "none"), "--out", str(tmp_path / out)]) == 0
    said = capsys.readouterr().out
    assert "digits: 400 clips of 4 frames" in said
    assert "ancestral(gamma=0.1), numpy: 12 calls" in said
    for name in ("clips.gif", "sheet.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with Image.open(tmp_path / "a" / "clips.gif") as picture:
        assert picture.n_frames == 6  # four frames forwards, two back
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["clips.gif", "sheet.png"]


def test_a_picture_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    rows = [("x", np.zeros((2, 4, 4, 3), dtype=np.float32))]
    with pytest.raises(OSError, match="disk full"):
        pictures.write_sheet(tmp_path / "sheet.png", rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--samples", "--frames", "--components", "--rank"])
def test_settings_out_of_range_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([option, "0"])
    assert f"{option} is 0, but takes an int >= 1" in capsys.readouterr().err
