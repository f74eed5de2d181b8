"""From what pytest-benchmark measured to one result: rows with their ratios, the versions, and tables."""

from __future__ import annotations

import os
import platform
import re
import xml.etree.ElementTree
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("diffcore", "numpy", "torch", "triton", "jax", "jaxlib", "diffusers", "k-diffusion", "azula")

Result = dict[str, Any]


def result(raw: Result, notes: Path, device: str, quick: bool) -> Result:
    """Return the result: `rows` with seconds a unit and ratios, `missing` with the reasons, versions, machine and date.

    The ratio to a copy is that of the bytes a second.
    """
    rows = []
    for bench in raw["benchmarks"]:
        info = dict(bench["extra_info"])
        calls = info.pop("calls", 1)
        seconds = {name: bench["stats"][name] / calls for name in ("min", "median")}
        if "seconds" in info:  # measured in a process of its own
            seconds = dict.fromkeys(seconds, info.pop("seconds"))
        who, role = info.pop("who", bench["name"]), info.pop("role", "ours")
        rows.append({"group": bench["group"], "who": who, "role": role, **seconds, **info})
    for row in rows:
        others = [other for other in rows if other["group"] == row["group"]]
        if row["role"] == "ours":
            row["peers"] = {o["who"]: o["min"] / row["min"] for o in others if o["role"] == "peer"}
            row["ceilings"] = {
                o["who"]: o["min"] / row["min"] * row.get("bytes", 1) / o.get("bytes", 1)
                for o in others
                if o["role"] == "ceiling"
            }
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": _device(device),
        "threads": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": (raw.get("commit_info") or {}).get("id"),
        "quick": quick,
        "load": [round(load, 1) for load in os.getloadavg()],
        "rows": rows,
        "missing": _missing(notes),
    }


def merged(results: list[Result]) -> Result:
    """Return the results of several parts of one run as one: the rows of all, and the head of the last."""
    missing: dict[str, list[str]] = {}
    for result in results:
        for reason, names in result["missing"].items():
            missing.setdefault(reason, []).extend(names)
    return results[-1] | {"rows": [row for result in results for row in result["rows"]], "missing": missing}


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
    if result["missing"]:
        lines += ["", "Not run:", ""]
    for reason, names in result["missing"].items():
        lines.append(f"- {reason}: {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}")
    return "\n".join(lines) + "\n"


def compare(old: Result, new: Result) -> str:
    """Return how the rows that two results share have changed."""
    before = {(row["group"], row["who"]): row["min"] for row in old["rows"]}
    lines = ["| row | before | after | before / after |", "|---|---|---|---|"]
    for row in new["rows"]:
        was = before.get((row["group"], row["who"]))
        if was is not None:
            lines.append(
                f"| {row['group']}: {row['who']} | {duration(was)} | {duration(row['min'])} | {was / row['min']:.2f} |"
            )
    return "\n".join(lines) + "\n"


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


def _missing(notes: Path) -> dict[str, list[str]]:
    """Return reason -> the rows that were skipped for it, from the JUnit file."""
    found: dict[str, list[str]] = {}
    for case in xml.etree.ElementTree.parse(notes).iter("testcase"):
        skipped = case.find("skipped")
        if skipped is not None:
            reason = re.sub(r"^Skipped: ", "", skipped.get("message", ""))
            found.setdefault(reason, []).append(str(case.get("name")))
    return found


def _device(device: str) -> str:
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "no CUDA device"
    for line in (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    ):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
