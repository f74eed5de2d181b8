"""One command for a machine with a GPU: every test marked gpu, then the rows of the suite that need one, in one JSON.

    python -m benchmarks.gpu --json benchmarks/results/h100.json

It ends within nine minutes: what is left out for lack of time is named in the result. The most telling rows come first.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks import report

HERE = Path(__file__).resolve().parent
LIMIT = 520.0
"""Seconds for everything; the rest of nine minutes is for starting and writing."""

PARTS = {"tests": 200.0, "stage": 200.0, "graph": 60.0, "noise or product": 90.0, "unet3d and cuda": 120.0}
"""Part -> seconds it may take: the tests, then filters of the suite."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the result goes")
    given = parser.parse_args()
    end = monotonic() + LIMIT
    found: dict[str, Any] = {"tests": None, "rows": [], "missing": {}, "cut": []}
    with tempfile.TemporaryDirectory() as folder:
        for part, seconds in PARTS.items():
            left = min(seconds, end - monotonic())
            path = Path(folder, "part")
            path.unlink(missing_ok=True)
            if part == "tests":
                command = [
                    "pytest",
                    str(HERE.parent / "tests"),
                    "-m",
                    "gpu",
                    "-q",
                    f"--junit-xml={path}",
                ]
            else:
                command = ["benchmarks", "--device=cuda", "--quick", "-k", part, "--json", str(path)]
            code = _run(command, left)
            if code is None:
                found["cut"].append(part)
                continue
            if not path.exists():
                found["cut"].append(f"{part}: exit status {code}")
            elif part == "tests":
                found["tests"] = _counts(path)
            else:
                result = json.loads(path.read_text(encoding="utf-8"))
                found["rows"] += result.pop("rows")
                found["missing"].update(result.pop("missing"))
                found.update(result)
            given.json.write_text(
                json.dumps(found, indent=1) + "\n", encoding="utf-8"
            )  # after each part, in case of a cut
    if found["rows"]:
        print(report.markdown(found))
    print(json.dumps({"tests": found["tests"], "cut": found["cut"]}))
    tests = found["tests"]
    return int(bool(found["cut"]) or tests is None or bool(tests["failed"]))


def _run(command: list[str], seconds: float) -> int | None:
    """Return a command's exit status, or None where the time was up and it was ended with all that it started."""
    started = subprocess.Popen([sys.executable, "-m", *command], cwd=HERE.parent, start_new_session=True)
    try:
        return started.wait(timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        return None


def _counts(path: Path) -> dict[str, Any]:
    cases = list(xml.etree.ElementTree.parse(path).iter("testcase"))
    failed = [
        str(case.get("name")) for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failed": failed}


if __name__ == "__main__":
    sys.exit(main())
