"""What every test shares: Hypothesis profiles, markers for what may not be installed, and fixtures of stages on a CPU.

Profiles: `default` for work at the keyboard, `ci` (chosen where the variable CI is set) derandomised, so that a red run
is red again on the same code, and `thorough` for a long search: `pytest --hypothesis-profile=thorough`.
"""

import functools
import importlib.util
import os
from typing import Any

import hypothesis
import pytest

from diffcore.backends import cpu_threads, numpy_memory

collect_ignore_glob = ["devices_that_*.py", "processes_that_*.py", "killed_*.py"]
"""Programs that tests start, which set up the process they are in: not to be imported in search of doctests."""

_SLOW_START = [hypothesis.HealthCheck.too_slow]  # a first example that compiles takes long, and that is no fault

hypothesis.settings.register_profile("default", deadline=None, max_examples=25, suppress_health_check=_SLOW_START)
hypothesis.settings.register_profile(
    "ci", deadline=None, max_examples=25, derandomize=True, database=None, suppress_health_check=_SLOW_START
)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000, suppress_health_check=_SLOW_START)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@functools.cache
def _installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


@functools.cache
def _cuda() -> bool:
    if not _installed("torch"):
        return False
    import torch

    return bool(torch.cuda.is_available())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of a file to one process, so that they share what they compile and build.

    The groups of pytest-xdist 3.8 are suffixes of test ids, which pytest 9.2 ignores.
    """
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # by the number of tests, where one may take a minute
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of slow tests, so that no process is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose marker names what this machine lacks."""
    for library in ("torch", "jax"):
        if item.get_closest_marker(library) is not None and not _installed(library):
            pytest.skip(f"{library} is not installed")
    if item.get_closest_marker("gpu") is not None and not _cuda():
        pytest.skip("no CUDA device")


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small arrays large: several programs a sample, on three threads, in memory that is used again."""
    monkeypatch.setattr(cpu_threads, "ELEMENTS", 1)
    monkeypatch.setattr(cpu_threads, "count", lambda: 3)
    monkeypatch.setattr(numpy_memory, "LARGE", 1)


@pytest.fixture
def without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.compile trace stages and run what it traced, for tests that count graphs: no code is written for them."""
    import torch

    from diffcore.backends import torch_backend

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(torch_backend, "_fused", functools.cache(torch_backend._fused.__wrapped__))
