"""Run the suite and write what it found: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks import gpu, record, report
from diffcore import _arguments, _files

HERE = Path(__file__).resolve().parent


NAMES = "names are such as 'test_stage[4-ddim-float32-torch]', and 'stage', 'noise', 'run' and 'unet' are words of them"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time diffcore against its peers.")
    parser.add_argument("-k", metavar="FILTER", help="only rows whose name fits, as for pytest: -k 'stage and ddim'")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions: to see that all rows run")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where torch and JAX rows run; cpu without it")
    new = {"type": _arguments.new_file, "metavar": "FILE"}
    parser.add_argument("--json", **new, help="write the result here; recorded ones are in results/")
    parser.add_argument("--markdown", **new, help="write the tables here; they are printed anyway")
    parser.add_argument(
        "--compare", type=_result, nargs=2, metavar=("OLD", "NEW"), help="compare two results and run nothing"
    )
    given = parser.parse_args()
    if given.compare:
        idle = [f"--{name}".replace("--k", "-k") for name, value in vars(given).items() if value and name != "compare"]
        if idle:
            parser.error(f"{idle[0]} does nothing beside --compare, which runs nothing; leave it out")
        print(report.compare(*given.compare))
        return 0
    given.device = given.device or "cpu"
    with tempfile.TemporaryDirectory() as folder:
        kept = record.Record(given.json or Path(folder, "result.json"))
        device = gpu.name() if given.device == "cuda" else report.processor()
        if given.device == "cuda" and device == gpu.NONE:
            parser.exit(2, "python -m benchmarks: --device cuda: this torch finds no CUDA device\n")
        kept.write(record.EMPTY | report.head(device, given.quick))
        worst = 0
        for path in sorted(HERE.glob("bench_*.py")):  # each by itself, so that none takes the next with it
            code = _run(path, given, kept.path)
            if code == pytest.ExitCode.USAGE_ERROR:  # which pytest has said
                return 2
            worst = worst if code == pytest.ExitCode.NO_TESTS_COLLECTED else max(worst, abs(code))
            if given.markdown:
                _files.write(given.markdown, report.markdown(kept.read()))
        found = kept.read()
        if given.k and not (found["rows"] or found["missing"] or worst):
            parser.exit(2, f"python -m benchmarks: no row fits -k {given.k!r}; {NAMES}\n")
        print(report.markdown(found))
    return worst


def _result(text: str) -> report.Result:
    try:
        return report.load(_arguments.old_file(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _run(path: Path, given: argparse.Namespace, to: Path) -> int:
    """Return the exit status of one file of the suite."""
    filters = ["-k", given.k] if given.k else []
    command = [*record.PYTEST, str(path), "--benchmark-only", f"--record={to}", f"--device={given.device}", *filters]
    return subprocess.run([*command, *(["--quick"] if given.quick else [])], check=False, cwd=HERE.parent).returncode


if __name__ == "__main__":
    sys.exit(main())
