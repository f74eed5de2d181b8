"""The page of figures says what was recorded."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.page")


def test_the_figures_are_those_of_the_recorded_results(page: Any) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    names = [found[2] for found in page.BLOCK.finditer(text)]
    assert names
    assert page.page(text) == text, "run `python -m benchmarks.page`"
    assert page.page(text.replace("| ancestral (DDPM) |", "| ancestral (DDPM) | 0 |")) == text


def test_every_number_of_a_result_is_found_in_its_tables(page: Any) -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "2026-11-28-xeon-2-cores.json").read_text(encoding="utf-8"))
    tables = page.tables(result)
    steps = [row for row in result["rows"] if row["group"].startswith("step") and ", 4 numbers" in row["group"]]
    assert len(steps) > 20
    for row in steps:
        assert f"{row['min'] * 1e6:.3g}" in tables


def test_a_picture_is_drawn(page: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    name = page.BLOCK.search(page.PAGE.read_text(encoding="utf-8"))[2]
    page.draw(json.loads((page.HERE / name).read_text(encoding="utf-8")), tmp_path / "figure.png")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def made_up(group: str, who: str, role: str, seconds: float, **info: Any) -> dict[str, Any]:
    return {"group": group, "who": who, "role": role, "min": seconds, "median": seconds, **info}


@pytest.fixture
def on_a_gpu(page: Any) -> dict[str, Any]:
    """A result whose numbers are made up, so that its goals are known."""
    step, bits = "step, ancestral, 6291456 numbers, float32, cuda", "bits of the noise, cuda"
    rows = [
        made_up(step, "torch kernel", "ours", 4e-5, bytes=300),
        made_up(step, "torch graph", "ours", 3e-5, bytes=300),
        made_up(step, "torch", "ours", 9e-4, bytes=300),
        made_up(step, "diffusers", "peer", 3e-4),
        made_up(step, "copy", "ceiling", 1.8e-5, bytes=200),
        made_up("step, ddim, 4 numbers, float32, cuda", "torch kernel", "ours", 31e-6, bytes=48),
        made_up("step, ddim, 100000000 numbers, float32, cuda", "torch kernel", "ours", 1e-3, bytes=4050000000),
        made_up("step, ddim, 100000000 numbers, float32, cuda", "copy", "ceiling", 4e-4, bytes=800000000),
        made_up("step, ddim, 100000000 numbers, bfloat16, cuda", "torch kernel", "ours", 1e-4, bytes=600000000),
        made_up("step, ddim, 100000000 numbers, bfloat16, cuda", "copy", "ceiling", 1e-4, bytes=400000000),
        made_up("copy, 1073741824 numbers, float32, cuda", "copy", "ceiling", 2e-3, bytes=9000000000),
        made_up("run of 16 guided stages, U-Net, cuda", "torch kernel", "ours", 0.04),
        made_up("run of 16 guided stages, U-Net, cuda", "torch captured", "ours", 0.01),
        made_up("one graph of 256 stages", "denoiser", "ceiling", 1e-3),
        made_up("one graph of 256 stages", "run", "ours", 1.015e-3),
        made_up(bits, "torch", "ours", 1e-3, words=2**20, differ=0),
        made_up(bits, "triton", "ours", 1e-3, words=1024, differ=3),
    ]
    importlib.import_module("benchmarks.report").relate(rows)
    head = {
        "device": "a card",
        "threads": 16,
        "date": "today",
        "load": [0.1],
        "python": "3.12",
        "versions": {"torch": "2"},
    }
    return head | {
        "rows": rows,
        "failed": {"bench_run.py::test_graph": "error"},
        "cut": ["bench_unet3d.py::test_unet3d"],
    }


def test_the_goals_for_a_gpu_stand_beside_what_was_measured(page: Any, on_a_gpu: dict[str, Any]) -> None:
    tables = page.tables(on_a_gpu)
    step, few = "ancestral (DDPM), 6,291,456 numbers, float32, torch", "DDIM, 4 numbers, torch"
    large, half = (f"DDIM, 100,000,000 numbers, {dtype}, torch" for dtype in ("float32", "bfloat16"))
    for line in (
        "|  | wanted | measured | met |",
        f"| {step}: share of the bandwidth reached | at least 85 % | 67.5 %, 0.00 TB/s | no |",
        f"| {step}: times as fast as diffusers | at least 8 | 7.5 | no |",
        f"| {step}, one CUDA graph: share of the bandwidth reached | at least 85 % | 90.0 %, 0.00 TB/s | yes |",
        f"| {few}: the host's time, a stage | at most 25 us | 31 us | no |",
        f"| {large}: share of the bandwidth reached | at least 85 % | 90.0 %, 4.05 TB/s | yes |",
        f"| {half}: share of the bandwidth reached | at least 85 % | 100.0 %, 6.00 TB/s | yes |",
        "| 16 guided stages with the U-Net: captured, times as fast | at least 3 | 4 | yes |",
        f"| {step}, one CUDA graph: times as fast as diffusers | at least 8 | 10 | yes |",
        "| 256 stages in one graph: over the denoiser | under 2 % | 1.50 % | yes |",
        "| Bits of the noise that differ from NumPy's, torch | 0 | 0 of 1,048,576 | yes |",
        "| Bits of the noise that differ from NumPy's, triton | 0 | 3 of 1,024 | no |",
        "|  | torch | torch, one CUDA graph | torch, plain operations | diffusers | copy |",
        "| ancestral (DDPM) | 0.04 | 0.03 | 0.9 | 0.3 | 0.018 |",
        "**Failed**: bench_run.py::test_graph.",
        "**No time left for**: bench_unet3d.py::test_unet3d.",
    ):
        assert line in tables.splitlines(), line


def test_a_block_of_the_page_shows_it(page: Any, on_a_gpu: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(page, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "card.json").write_text(json.dumps(on_a_gpu))
    assert "**Goals on a GPU**" in page.page("<!-- results/card.json -->\n<!-- end -->\n")
