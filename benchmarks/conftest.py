"""Options of the suite, and what its rows share."""

from __future__ import annotations

from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("diffcore benchmarks")
    group.addoption("--device", default="cpu", choices=["cpu", "cuda"], help="where torch and JAX rows run")
    group.addoption("--quick", action="store_true", help="fewer sizes and repetitions: to see that all rows run")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Leave out the rows that `--quick` and `--device` do without; a module says which by `chosen(quick, device)`."""
    if hasattr(metafunc.module, "chosen"):
        quick, device = metafunc.config.getoption("quick"), metafunc.config.getoption("device")
        for names, values in metafunc.module.chosen(quick, device).items():
            if set(names.split(",")) <= set(metafunc.fixturenames):
                metafunc.parametrize(names, values)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("device"))


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("quick"))


@pytest.fixture
def timed(benchmark: Any, quick: bool, device: str) -> Any:
    """Return a function (call, group, who, role, calls=1) that times a call; `calls` is how many units it does.

    Roles: "ours", "peer", "ceiling". Within a group the report divides peers and ceilings by ours.
    """

    def run(call: Any, group: str, who: str, role: str, calls: int = 1, **info: Any) -> None:
        from time import perf_counter

        call()  # compiles
        start = perf_counter()
        call()
        once = perf_counter() - start
        budget = 0.2 if quick else 2.0
        rounds = int(
            min(max(budget / max(once, 1e-7), 2 if once > 1.0 else 3), 5 if quick and device == "cpu" else 2000)
        )
        benchmark.group = group
        benchmark.extra_info.update(who=who, role=role, calls=calls, **info)
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=int(once < 1.0))

    return run
