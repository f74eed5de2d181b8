"""From what pytest-benchmark measured to a result: rows with their ratios, the versions, and tables."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import diffcore

PACKAGES = ("numpy", "torch", "triton", "jax", "jaxlib", "diffusers", "k-diffusion", "azula")

HERE = Path(__file__).resolve().parent

Result = dict[str, Any]


def head(device: str, quick: bool) -> Result:
    """Return what a result says before its rows: date, device by its name, Python, versions, commit, load."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device,
        "threads": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {"diffcore": diffcore.__version__}
        | {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "quick": quick,
        "load": [round(load, 1) for load in os.getloadavg()],
    }


def row(benchmark: Any) -> Result:
    """Return the row of a fixture of pytest-benchmark that has run: seconds a unit, and what the row says of itself."""
    info = dict(benchmark.extra_info)
    calls, stats = info.pop("calls", 1), benchmark.stats.stats
    seconds = {"min": stats.min / calls, "median": stats.median / calls}
    if "seconds" in info:  # measured in a process of its own
        seconds = dict.fromkeys(seconds, info.pop("seconds"))
    who, role = info.pop("who", benchmark.name), info.pop("role", "ours")
    return {"group": benchmark.group, "who": who, "role": role, **seconds, **info}


def load(path: Path) -> Result:
    """Return a result from its file; ValueError for a file that cannot be read, or holds none."""
    try:
        found: Result = json.loads(path.read_text(encoding="utf-8"))
        sound = all(isinstance(row["group"] + row["who"], str) and row["min"] > 0.0 for row in found["rows"])
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, LookupError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"{path} is no result of these benchmarks, which --json writes")
    return found


FEW = 1 << 20
"""Bytes below which a copy takes the time of its launch, so that it says nothing of the memory."""


def relate(rows: list[Result]) -> None:
    """Give every row of ours its ratios to the peers and ceilings of its group; to a copy, that of the bytes a second.

    For the bytes a second, the ceiling is what any copy or step of as many bytes or more reaches on the device: a larger array
    gains nothing from a cache that a smaller one has not, but a library may copy some sizes slowly.
    """
    for row in rows:
        others = [other for other in rows if other["group"] == row["group"]]
        if row["role"] == "ours":
            row["peers"] = {o["who"]: o["min"] / row["min"] for o in others if o["role"] == "peer"}
            row["ceilings"] = {
                o["who"]: _least(o, rows) / row["min"] * row.get("bytes", 1) / o.get("bytes", 1)
                for o in others
                if o["role"] == "ceiling"
            }


def _least(ceiling: Result, rows: list[Result]) -> float:
    """Return the least time of a ceiling: of a copy, at the bytes a second of whatever moves as many or more."""
    size, device = ceiling.get("bytes", 0), ceiling["group"].rsplit(", ", 1)[-1]
    if ceiling["who"] != "copy" or size < FEW:
        return float(ceiling["min"])
    alike = [row for row in rows if row["group"].endswith(f", {device}") and row.get("bytes", 0) >= size]
    return float(min(row["min"] * size / row["bytes"] for row in alike))


def markdown(result: Result) -> str:
    """Return a result as tables, a group each; a ratio over 1 means that ours is faster."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{result['date']}, {result['device']}, {result['threads']} threads, load {result['load'][0]}; Python "
        f"{result['python']}, {versions}{'; quick' if result['quick'] else ''}. The shortest time of each row; `x` says "
        f"how many times as long the other one takes, for a copy which part of its bytes a second is reached.",
    ]
    for group in dict.fromkeys(row["group"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["group"] == group]
        lines += [
            "",
            f"**{group}**",
            "",
            "| who | time | against peers | against the ceiling | more |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            who = row["who"] if row["role"] == "ours" else f"{row['who']} ({row['role']})"
            peers, ceilings = (_ratios(row.get(name, {})) for name in ("peers", "ceilings"))
            lines.append(f"| {who} | {duration(row['min'])} | {peers} | {ceilings} | {_more(row)} |")
    if result["missing"] or result.get("failed") or result.get("cut"):
        lines += ["", "Not run:", ""]
    for reason, names in result["missing"].items():
        lines.append(f"- {reason}: {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}")
    lines += [f"- failed, {name}: {error}" for name, error in result.get("failed", {}).items()]
    lines += [f"- no time left: {', '.join(result['cut'])}"] if result.get("cut") else []
    return "\n".join(lines) + "\n"


ALIKE = ("device", "threads", "quick", "python")
"""What two results have in common where their difference is that of the code."""


def compare(old: Result, new: Result) -> str:
    """Return how the rows that two results share have changed, and what else is not alike."""
    before = {(row["group"], row["who"]): row["min"] for row in old["rows"]}
    if not any((row["group"], row["who"]) in before for row in new["rows"]):
        return f"no row is in both: the old result has {len(old['rows'])} rows, the new one {len(new['rows'])}"
    lines = ["| row | before | after | before / after |", "|---|---|---|---|"]
    for row in new["rows"]:
        was = before.get((row["group"], row["who"]))
        if was is not None:
            lines.append(
                f"| {row['group']}: {row['who']} | {duration(was)} | {duration(row['min'])} | {was / row['min']:.2f} |"
            )
    shared = len(lines) - 2
    alone = [(len(old["rows"]) - shared, "old"), (len(new["rows"]) - shared, "new")]
    notes = [f"{count} of the {which} result's rows are in it alone" for count, which in alone if count]
    was, now = ({name: of.get(name) for name in ALIKE} | of.get("versions", {}) for of in (old, new))
    notes += [f"{name}: {was[name]} before, {now[name]} after" for name in was if was[name] != now.get(name, was[name])]
    return "\n".join([*lines, *(("", "Not alike: " + "; ".join(notes) + ".") if notes else ())]) + "\n"


def duration(seconds: float) -> str:
    """Return a time with three digits and a unit.

    >>> duration(0.00123)
    '1.23 ms'
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _more(row: Result) -> str:
    known = ("group", "who", "role", "min", "median", "peers", "ceilings")
    return ", ".join(f"{name} {value:.3g}" for name, value in row.items() if name not in known and value is not None)


def _ratios(ratios: dict[str, float]) -> str:
    return ", ".join(f"{who} {ratio:.2g}x" for who, ratio in ratios.items())


def processor() -> str:
    """Return the name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=HERE)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
