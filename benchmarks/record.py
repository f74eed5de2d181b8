"""A result as it grows: one JSON file, written anew and renamed after every row, so that a killed process loses one row.

It is a plugin of pytest: `python -m pytest -p benchmarks.record --record FILE bench_stage.py`. In the file are `rows`, `missing`
(reason -> what was skipped for it), `failed` (name -> error), `cut` (what was to run and has not), `running`, and `passed`, which
counts the tests that time nothing and passed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from diffcore import _files

EMPTY: dict[str, Any] = {"rows": [], "missing": {}, "failed": {}, "cut": [], "running": None, "passed": 0}

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.record", "-p", "no:xdist", "-p", "no:cacheprovider"]
PYTEST += ["-W", "ignore", "-o", "addopts=", "-o", "minversion=", "-o", "python_files=bench_*.py test_*.py"]
"""A command that runs rows, but for which, and `--record FILE`; the project's own settings are for its tests."""


class Record:
    """A result in a file, which is whole at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def read(self) -> dict[str, Any]:
        return EMPTY | json.loads(self.path.read_text(encoding="utf-8"))

    def write(self, result: dict[str, Any]) -> None:
        _files.write(self.path, json.dumps(result, indent=1) + "\n")

    def change(self, how: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Let a function change the result in place, and keep it."""
        result = self.read()
        how(result)
        self.write(result)
        return result


class Recorder:
    """Keeps what pytest runs."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            error = str(report.longrepr).strip().splitlines()[-1]
            self.record.change(lambda result: result["failed"].update({report.nodeid: error}))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.record.change(lambda result: result["cut"].extend(_name(item) for item in session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.record.change(lambda result: result.update(running=Path(nodeid).name))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        outcome = yield
        name = _name(item)

        def add(result: dict[str, Any]) -> None:
            result["cut"] = [other for other in result["cut"] if other != name]
            benchmark = getattr(item, "funcargs", {}).get("benchmark")
            if outcome.skipped:
                reason = outcome.longrepr[-1] if isinstance(outcome.longrepr, tuple) else str(outcome.longrepr)
                result["missing"].setdefault(re.sub("^Skipped: ", "", reason), []).append(item.name)
            elif outcome.failed:
                result["failed"][name] = "no error" if call.excinfo is None else call.excinfo.exconly()[:500]
            elif benchmark is None or benchmark.stats is None:
                result["passed"] += 1
            else:
                result["rows"].append(report.row(benchmark))
                report.relate(result["rows"])

        if outcome.when == "call" or not outcome.passed:
            self.record.change(add)
        return outcome

    def pytest_sessionfinish(self) -> None:
        self.record.change(lambda result: result.update(running=None))


def _name(item: pytest.Item) -> str:
    return f"{item.path.name}::{item.nodeid.partition('::')[2]}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, metavar="FILE", help="a result to go on with")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("record")
    if path is not None:
        config.pluginmanager.register(Recorder(Record(path)))
