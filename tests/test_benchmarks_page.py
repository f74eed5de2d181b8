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
    result = json.loads((ROOT / "benchmarks" / "results" / "2026-11-24-epyc-2-cores.json").read_text(encoding="utf-8"))
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
