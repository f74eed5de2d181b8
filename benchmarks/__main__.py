"""Run the suite and write what it found: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

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
    with tempfile.TemporaryDirectory() as folder:
        raw, notes = Path(folder, "raw.json"), Path(folder, "notes.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            str(HERE),
            "--override-ini",
            "python_files=bench_*.py",
            "--benchmark-only",
        ]
        command += [
            "--override-ini",
            "addopts=",
            "-q",
            "-p",
            "no:xdist",
            "-W",
            "ignore",
            "--benchmark-columns=min,median,rounds",
            f"--device={given.device}",
        ]
        command += [f"--benchmark-json={raw}", f"--junit-xml={notes}"]
        command += ["--quick"] if given.quick else []
        command += ["-k", given.k] if given.k else []
        code = subprocess.run(command, check=False, cwd=HERE.parent).returncode
        if not notes.exists():
            return code or 1
        text = raw.read_text(encoding="utf-8") if raw.exists() else ""
        result = report.result(json.loads(text or '{"benchmarks": []}'), notes, given.device, given.quick)
    text = report.markdown(result)
    print(text)
    for path, content in ((given.json, json.dumps(result, indent=1) + "\n"), (given.markdown, text)):
        if path is not None:
            path.write_text(content, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
