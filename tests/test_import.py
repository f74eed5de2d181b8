"""`import diffcore` loads no framework and costs no more than NumPy and 150 ms."""

import importlib
import importlib.util
import json
import pkgutil
import subprocess
import sys

import pytest

LATER = ("av", "hypothesis", "jax", "jaxlib", "matplotlib", "PIL", "pytest", "scipy", "sklearn", "torch", "tqdm")

TIMED = """
import json, sys, time
zero = time.perf_counter()
import numpy
one = time.perf_counter()
import diffcore
two = time.perf_counter()
print(json.dumps([one - zero, two - one, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def _fresh_import() -> tuple[float, float, list[str]]:
    done = subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True, check=True, timeout=120)
    numpy_seconds, diffcore_seconds, modules = json.loads(done.stdout)
    return numpy_seconds, diffcore_seconds, modules


@pytest.fixture(scope="module")
def fresh_imports() -> list[tuple[float, float, list[str]]]:
    """Seven imports, each in a process of its own; the first may still compile bytecode."""
    return [_fresh_import() for _ in range(7)]


@pytest.mark.parametrize("library", LATER)
def test_import_loads_no_library_that_is_not_needed_yet(
    fresh_imports: list[tuple[float, float, list[str]]], library: str
) -> None:
    assert library not in fresh_imports[-1][2]


def test_import_costs_at_most_numpy_and_150_ms(fresh_imports: list[tuple[float, float, list[str]]]) -> None:
    # Other work on the machine only ever adds, so that the least of several is the cost.
    assert min(after_numpy for _, after_numpy, _ in fresh_imports) <= 0.150


def _modules() -> list[str]:
    import diffcore

    names = [module.name for module in pkgutil.walk_packages(diffcore.__path__, "diffcore.")]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", _modules())
def test_every_module_imports_where_its_library_is_installed(name: str) -> None:
    # The doctests of a module that cannot be imported are skipped; this test tells when that is a mistake.
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        assert missing not in {"", "diffcore", "numpy", "scipy", "array_api_compat"}
        assert importlib.util.find_spec(missing) is None


def test_every_public_name_is_there_and_an_unknown_one_is_named_in_the_error() -> None:
    import diffcore

    for name in diffcore.__all__:
        assert getattr(diffcore, name) is not None
        assert name in dir(diffcore)
    with pytest.raises(AttributeError, match="no attribute 'schedule'"):
        diffcore.schedule  # noqa: B018
