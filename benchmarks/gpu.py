"""One command for a machine with a GPU: the rows of the goals, every test marked gpu, then the other rows, in one JSON.

    python -m benchmarks.gpu --json benchmarks/results/h100.json

It needs no installation, only a checkout, PyTorch with CUDA, and the packages that it names where one is missing. Each part is a
process of its own with its own time, so that a crash or a hang costs the rest of that part alone; the JSON is whole after every
row. What failed stands under `failed` with its error, what there was no time for under `cut`, what is not installed under
`missing`. Exit status: 0, 1 where something failed or was cut, 2 at once where nothing can run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

NONE = "no CUDA device"
LIMIT = 470.0
"""Seconds for everything, which leaves some of eight minutes for starting."""

NEEDED = {name: name for name in ("numpy", "scipy", "torch", "triton", "pytest", "hypothesis")}
NEEDED |= {"array_api_compat": "array-api-compat", "pytest_benchmark": "pytest-benchmark"}
"""Module -> the name to install it by."""

CARD = """
import json, torch
found = torch.cuda.is_available()
name = torch.cuda.get_device_name() if found else None
print(json.dumps({"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}))
"""


class Part(NamedTuple):
    """What one process runs: its name, the seconds it may take, which files, and pytest's filter of names."""

    name: str
    seconds: float
    targets: Sequence[str]
    keep: str = ""


STAGE, NOISE = ["benchmarks/bench_stage.py"], ["benchmarks/bench_noise.py"]
RUN, NETWORK = ["benchmarks/bench_run.py"], ["benchmarks/bench_unet3d.py"]
OURS = "(kernel or graph or captured or copy)"
REST = "test_stage and not kernel and not graph and not captured and not copy"
PARTS = (
    Part("copy", 20, STAGE, "test_copy"),
    Part("a few numbers", 40, STAGE, f"test_stage and not 6291456 and not 100000000 and {OURS}"),
    Part("stage, float32", 40, STAGE, f"test_stage and 6291456 and float32 and {OURS}"),
    Part("graph", 30, RUN, "test_graph"),
    Part("bits of the noise", 30, NOISE, "test_bits"),
    Part("a run with the U-Net", 60, RUN, "test_network"),
    Part("noise", 60, NOISE, "test_noise"),
    Part("stage, half precision", 40, STAGE, f"test_stage and 6291456 and (bfloat16 or float16) and {OURS}"),
    Part("stage with more", 60, STAGE, "test_more"),
    Part("stage, larger than the cache", 60, STAGE, "100000000"),
    Part("tests", 180, ["tests"]),
    Part("stage, JAX", 60, STAGE, f"{REST} and 6291456 and jax"),
    Part("U-Net", 120, NETWORK, "cuda and not jax and not compiled"),
    Part("layers of the U-Net", 60, NETWORK, "test_norm or test_time"),
    Part("U-Net, JAX", 90, NETWORK, "cuda and jax"),
    Part("stage, torch and peers", 90, STAGE, f"{REST} and 6291456 and not jax"),
    Part("a few numbers, others", 60, STAGE, f"{REST} and not 6291456 and not 100000000"),
    Part("runs", 60, RUN, "test_run"),
    Part("product", 20, ["benchmarks/bench_process.py"], "test_product"),
    Part("several GPUs", 120, ["benchmarks/bench_mesh.py"], "mesh"),
    Part("U-Net, compiled", 120, NETWORK, "cuda and compiled"),
)
"""The most telling first."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the result goes")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS", help="for all of it; %(default)g")
    given = parser.parse_args()
    end = monotonic() + given.limit
    if not given.json.parent.is_dir():
        parser.error(f"argument --json: there is no folder {given.json.parent} for {given.json.name}; make it first")
    if (problem := lacking()) is not None:
        print(f"benchmarks.gpu: {problem}", file=sys.stderr)
        return 2
    from benchmarks import report  # needs what may be lacking
    from benchmarks.record import EMPTY, Record

    card = _card()
    head = report.head(card["device"], quick=True)
    head["versions"].update(torch=card["torch"], cuda=card["cuda"])
    record = Record(given.json)
    record.write(EMPTY | head)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # else what is running would be left behind
    run(record, PARTS, end)
    result = record.read()
    print(report.markdown(result))
    print(f"{len(result['rows'])} rows, {result['passed']} tests passed, {len(result['failed'])} failed", end=", ")
    print(f"{len(result['cut'])} cut; {given.json}")
    return int(bool(result["failed"] or result["cut"]))


def lacking() -> str | None:
    """Return what keeps everything from running and the way out, or None."""
    absent = [given for module, given in NEEDED.items() if importlib.util.find_spec(module) is None]
    if absent:
        return f"not installed: {', '.join(absent)}; run `{sys.executable} -m pip install {' '.join(absent)}`"
    for name in ("backends", "unet3d"):
        if not (ROOT / "diffcore" / name / "__init__.py").exists() and not _installed(f"diffcore.{name}"):
            link = f"rm -f diffcore/{name} && ln -s ../{name} diffcore/{name}"
            return f"diffcore.{name} is not found, since this checkout has lost its symbolic links; run `{link}`"
    try:
        card = _card()
    except subprocess.CalledProcessError as error:
        return f"torch cannot be imported: {error.stderr.strip().splitlines()[-1]}"
    if card["device"] is None:
        return f"no GPU: torch {card['torch']} (CUDA {card['cuda']}) sees none; on a CPU run `python -m benchmarks`"
    return None


def name() -> str:
    """Return the name of the GPU."""
    return str(_card()["device"] or NONE)


def run(record: Any, parts: Sequence[Part], end: float) -> None:
    """Run parts, each in a process, until a time of the monotonic clock; what each finds is in the record at once."""
    for part in parts:
        left, before = min(part.seconds, end - monotonic()), record.read()
        code = None
        if left >= 1.0:
            print(f"benchmarks.gpu: {part.name}, {left:.0f} s at most", flush=True)
            code = _run(_command(part, record.path), left)
        result = record.read()
        running, result["running"] = result["running"], None
        if code is None and result == before:
            result["cut"].append(f"{part.name}: all of it")
        elif code is not None and code not in (0, 1, 5):  # pytest's own for: all well, some failed, none there
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            result["failed"][running or part.name] = f"the process of '{part.name}' ended by {how}"
            result["cut"] = [name for name in result["cut"] if name != running]
        record.write(result)


def _command(part: Part, to: Path) -> list[str]:
    from benchmarks.record import PYTEST

    command = [*PYTEST, f"--record={to}", "--continue-on-collection-errors"]
    if part.targets == ["tests"]:  # a warning of ours says that the kernel does not run
        files = sorted((ROOT / "tests").glob("test_*.py"))
        marked = [str(path) for path in files if "mark.gpu" in path.read_text(encoding="utf-8")]
        return [*command, "-W", "error:diffcore", "-m", "gpu", *marked]
    return [*command, "--benchmark-only", "--device=cuda", "--quick", "-k", part.keep, *part.targets]


def _run(command: list[str], seconds: float) -> int | None:
    """Return a command's exit status, or None where the time was up; it is ended with all that it started."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # JAX would take three quarters of the card
    started = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return started.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def _card() -> dict[str, Any]:
    """Return the GPU's name and torch's versions, from a process that leaves nothing on the card."""
    done = subprocess.run([sys.executable, "-c", CARD], capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


if __name__ == "__main__":
    sys.exit(main())
