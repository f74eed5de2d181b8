"""The command for a GPU keeps what it found, whatever a row does: fails, hangs, or takes its process with it."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = """
import os, time
import pytest

def test_good(timed):
    timed(lambda: 0, "group", "ours", "ours", calls=4, bytes=8)

def test_copy(timed):
    timed(lambda: 0, "group", "copy", "ceiling", bytes=8)

def test_wrong(timed):
    raise RuntimeError("out of memory")

def test_absent(timed):
    pytest.skip("the peer is not installed")

def test_crash(timed):
    os.abort()

def test_hang(timed):
    time.sleep(60)

def test_last(timed):
    timed(lambda: 0, "group", "last", "ours")
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("pytest_benchmark")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # with which the processes begun here would time nothing
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.gpu")


@pytest.mark.slow
def test_no_part_takes_another_with_it(gpu: Any, tmp_path: Path) -> None:
    """A row that fails, hangs or crashes costs itself or the rest of its part.

    Filters of rows also read the name of a test's folder, so that this name has none of their words.
    """
    (tmp_path / "bench_rows.py").write_text(ROWS)
    (tmp_path / "bench_broken.py").write_text("import a_package_that_is_not_there\n")
    options = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from benchmarks.conftest import *"
    (tmp_path / "conftest.py").write_text(options)
    record = importlib.import_module("benchmarks.record").Record(tmp_path / "result.json")
    record.write({"device": "a card"})
    rows = [str(tmp_path / "bench_rows.py")]
    parts = [
        gpu.Part("good", 60, rows, "good or copy or wrong or absent"),
        gpu.Part("crash", 60, rows, "crash or last"),
        gpu.Part("broken", 60, [str(tmp_path / "bench_broken.py")], "broken"),
        gpu.Part("hang", 12, rows, "hang or last"),
        gpu.Part("late", 0.5, rows, "good"),
    ]
    began = monotonic()
    gpu.run(record, parts, began + 120.0)
    assert monotonic() - began < 60.0
    found = record.read()
    assert [row["who"] for row in found["rows"]] == ["ours", "copy"]
    assert found["rows"][0]["ceilings"].keys() == {"copy"}
    assert found["missing"] == {"the peer is not installed": ["test_absent"]}
    failed = found["failed"]
    assert failed["bench_rows.py::test_wrong"] == "RuntimeError: out of memory"
    assert failed["bench_rows.py::test_crash"] == "the process of 'crash' ended by signal SIGABRT"
    assert any("a_package_that_is_not_there" in error for error in failed.values())
    assert found["cut"] == [
        *["bench_rows.py::test_last", "bench_rows.py::test_hang"],
        "bench_rows.py::test_last",
        "late: all of it",
    ]
    assert found["running"] is None
    assert found["device"] == "a card"
    assert not list(tmp_path.glob(".*.part"))
    assert "failed, bench_rows.py::test_wrong: RuntimeError: out of memory" in (
        importlib.import_module("benchmarks.report").markdown(
            found | dict.fromkeys(("date", "python", "threads", "quick")) | {"versions": {}, "load": [0]}
        )
    )


def test_every_row_for_a_gpu_is_in_one_part(gpu: Any) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:xdist", "-o", "addopts=", "--quick"]
    command += ["--device=cuda", "-o", "python_files=bench_*.py", "benchmarks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [line for line in done.stdout.splitlines() if "::" in line and "[cpu-" not in line]
    assert len(rows) > 100
    elsewhere = ("test_memory", "test_import")  # of the CPU
    for row in rows:
        file, name = row.split("::")
        inside = [part.name for part in gpu.PARTS if part.targets == [file] and fits(part.keep, name)]
        assert len(inside) == (0 if name.startswith(elsewhere) else 1), (row, inside)


def fits(keep: str, name: str) -> bool:
    """Return what pytest's `-k` says of a name."""
    words = re.sub(r"\w+", lambda w: w[0] if w[0] in ("and", "or", "not") else str(w[0] in name), keep)
    return bool(eval(words))


def test_the_tests_part_takes_the_files_with_a_test_for_a_gpu(gpu: Any) -> None:
    part = next(part for part in gpu.PARTS if part.name == "tests")
    files = [Path(word).name for word in gpu._command(part, Path("result.json")) if word.endswith(".py")]
    assert "test_triton_run.py" in files
    assert "test_schedules.py" not in files


def test_the_parts_have_time_for_the_goals_first(gpu: Any) -> None:
    names = [part.name for part in gpu.PARTS]
    assert names[0] == "copy"  # what the others are held against
    first = sum(part.seconds for part in gpu.PARTS[: names.index("tests")])
    assert first <= gpu.LIMIT < 8 * 60


@pytest.mark.torch
def test_nothing_starts_without_a_gpu(gpu: Any, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", str(tmp_path / "result.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(r"no GPU: torch \S+ \(CUDA .*\) sees none", done.stderr) or "not installed: triton" in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_named_with_the_way_out(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "NEEDED", {"a_package_that_is_not_there": "its-name"})
    assert "not installed: its-name; run `" in gpu.lacking()
    monkeypatch.setattr(gpu, "NEEDED", {})
    monkeypatch.setattr(gpu, "_card", lambda: {"device": "a card", "torch": "2", "cuda": "13"})
    assert gpu.lacking() is None


def test_a_checkout_without_its_links_says_how_to_mend_it(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "_installed", lambda module: False)
    monkeypatch.setattr(gpu, "NEEDED", {})
    assert "ln -s ../backends diffcore/backends" in gpu.lacking()


def test_the_suite_on_a_cpu_keeps_its_rows(gpu: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "-k", "product and numpy"]
    command += ["--json", str(tmp_path / "result.json"), "--markdown", str(tmp_path / "result.md")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert [(row["who"], row["role"]) for row in found["rows"]] == [("numpy", "ceiling")]
    assert found["cut"] == []
    for text in (done.stdout, (tmp_path / "result.md").read_text(encoding="utf-8")):
        assert "| numpy (ceiling) |" in text


@pytest.mark.torch
def test_what_the_network_multiplies_is_what_its_summary_says(gpu: Any) -> None:
    """Beside the norms, sums and shares, of which the summary knows nothing; a step is a pass and two of its size back."""
    roofline = importlib.import_module("benchmarks.roofline")
    unet3d = importlib.import_module("diffcore.unet3d")
    rows = roofline.count(2, True, 4.2e12, 790e12)
    flops = unet3d.summarise(roofline.bench_unet3d.config()).total.flops
    assert sum(row.flops for row in rows.values()) == pytest.approx(2 * flops * 3, rel=0.03)
    layers = {"diffcore.normed": 49, "diffcore.attended": 10}
    layers |= {f"{name}_gradient": calls for name, calls in layers.items()}
    assert {name: row.calls for name, row in rows.items() if name.startswith("diffcore")} == layers
    norm, back = rows["diffcore.normed"].bytes, rows["diffcore.normed_gradient"].bytes
    assert back / norm == pytest.approx(5 / 3, rel=0.01)  # readings and writings of frames


def test_what_a_loop_launches_is_read_from_a_compiled_program(gpu: Any) -> None:
    launches = importlib.import_module("benchmarks.xla_gpu").launches
    text = """
%body.2 (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %one = s32[] fusion(%arg), kind=kLoop, calls=%fused
  %bitcast.1 = f32[8,4]{1,0} bitcast(%arg)
  ROOT %copy.3 = f32[8,4]{1,0} copy(%bitcast.1)
}
ENTRY %main (z: f32[8,4]) -> f32[8,4] {
  %copy.9 = f32[8,4]{1,0} copy(%z)
  %while.1 = (s32[], f32[8,4]{1,0}) while(%copy.9), condition=%cond.1, body=%body.2
}
"""
    assert [line.split() for line in launches(text)] == [["fusion", "%one", "s32[]"], ["copy", "%copy.3", "f32[8,4]"]]
    assert launches("ENTRY %main (z: f32[]) -> f32[] {\n}\n") == []
