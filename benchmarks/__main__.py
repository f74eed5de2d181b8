"""Run the suite and write what it found: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks import report

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time diffcore against its peers.")
    parser.add_argument("-k", metavar="FILTER", help="only rows whose name fits, as for pytest: -k 'stage and ddim'")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions: to see that all rows run")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where torch and JAX rows run")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the result here; recorded ones are in results/"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here; they are printed anyway")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="compare two results and run nothing"
    )
    given = parser.parse_args()
    if given.compare:
        print(report.compare(*(json.loads(path.read_text(encoding="utf-8")) for path in given.compare)))
        return 0
    results, worst = [], 0
    for path in sorted(HERE.glob("bench_*.py")):  # each by itself, and what it found kept at once
        code, result = _run(path, given)
        worst = worst if code == pytest.ExitCode.NO_TESTS_COLLECTED else max(worst, code)
        if result is None:
            continue
        results.append(result)
        merged = report.merged(results)
        for place, content in (
            (given.json, json.dumps(merged, indent=1) + "\n"),
            (given.markdown, report.markdown(merged)),
        ):
            if place is not None:
                part = place.with_name(f".{place.name}.part")
                part.write_text(content, encoding="utf-8")
                os.replace(part, place)
    if results:
        print(report.markdown(report.merged(results)))
    return worst


def _run(path: Path, given: argparse.Namespace) -> tuple[int, report.Result | None]:
    """Return the exit status of one file of the suite, and its result, if it has rows."""
    with tempfile.TemporaryDirectory() as folder:
        raw, notes = Path(folder, "raw.json"), Path(folder, "notes.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            str(path),
            "--benchmark-only",
            "-q",
            "-p",
            "no:xdist",
            "-W",
            "ignore",
        ]
        command += ["--override-ini", "python_files=bench_*.py", "--override-ini", "addopts="]
        command += ["--benchmark-columns=min,median,rounds", f"--benchmark-json={raw}", f"--junit-xml={notes}"]
        command += [
            f"--device={given.device}",
            *(["--quick"] if given.quick else []),
            *(["-k", given.k] if given.k else []),
        ]
        code = subprocess.run(command, check=False, cwd=HERE.parent).returncode
        if code == pytest.ExitCode.NO_TESTS_COLLECTED or not notes.exists():
            return code, None
        text = raw.read_text(encoding="utf-8") if raw.exists() else ""
        return code, report.result(json.loads(text or '{"benchmarks": []}'), notes, given.device, given.quick)


if __name__ == "__main__":
    sys.exit(main())
