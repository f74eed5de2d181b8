"""`diffcore bench`: the benchmarks of a checkout."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

import diffcore as dc
from diffcore import _files
from diffcore.cli import options, report, writers

EXAMPLES = (
    "Examples:\n\n"
    "$ diffcore bench --quick\n\n"
    "$ diffcore bench -k 'stage and ddim' --out mine.json\n\n"
    "$ diffcore bench --device cuda --json > cuda.json"
)


def checkout() -> Path:
    """Return the folder of the checkout that has the benchmarks; refuse an installed package, which has none."""
    root = Path(dc.__file__).resolve().parent.parent
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise report.Failure(
            "the benchmarks are in a checkout of the project only, and this diffcore is installed without them; clone it, run "
            "`pip install -e .[cli,bench]` there, and try again"
        )
    return root


def bench(
    only: Annotated[
        str | None,
        typer.Option("-k", metavar="FILTER", help="Only rows whose name matches, as in pytest: 'stage and ddim'."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes and repetitions.")] = False,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where torch and JAX rows run.")] = "cpu",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as JSON here too.")] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Time the library against its peers: what `python -m benchmarks` does in a checkout."""
    del debug
    root = checkout()
    if out is not None:
        writers.check_place(out, force)
    for module in ("pytest", "pytest_benchmark"):
        if importlib.util.find_spec(module) is None:
            raise report.Failure(f"the benchmarks need {module}; install diffcore[bench,test]")
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "result.json")
        command = [sys.executable, "-m", "benchmarks", "--device", device, "--json", str(found)]
        command += ["-k", only] if only else []
        command += ["--quick"] if quick else []
        done = subprocess.run(command, cwd=root, check=False, stdout=sys.stderr.fileno() if as_json else None)
        if done.returncode == 2:  # it said itself what is wrong with the options
            raise typer.Exit(2)
        if not found.is_file():
            raise report.Failure(f"the benchmarks ended with exit code {done.returncode} and no result; see above")
        result = json.loads(found.read_text(encoding="utf-8"))
    if only and not result["rows"] and not done.returncode:
        raise report.Failure(
            f"no row that fits -k {only!r} runs here: {'; '.join(result['missing']) or 'none is known'}"
        )
    if out is not None:
        _files.write(out, json.dumps(result, indent=1) + "\n")
    if as_json:
        report.result(result, "", as_json=True)
    if done.returncode:
        raise report.Failure(f"some benchmarks failed, exit code {done.returncode}; see above")
