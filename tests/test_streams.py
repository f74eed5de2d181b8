"""One number for one use: streams are all different, and stand in one file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import diffcore
from diffcore import _streams

ROOT = Path(diffcore.__file__).resolve().parent.parent
FOLDERS = ["diffcore", "backends", "unet3d", "benchmarks"]
NAMES = [name for name in vars(_streams) if name.isupper()]


@pytest.mark.parametrize("generator", [False, True], ids=["noise", "generator"])
def test_streams_are_all_different(generator: bool) -> None:
    numbers = [getattr(_streams, name) for name in NAMES if name.startswith("GENERATOR_") == generator]
    assert len(numbers) >= 6
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 100 for number in numbers)


def test_the_kernels_of_a_stage_draw_from_the_stream_of_samplers() -> None:
    """They have it as a constant, in languages that cannot import it."""
    assert _streams.SAMPLER == 0


def literals(source: str) -> list[int]:
    """Return the lines where a number is given as a stream: to a call, as a default, by a name, or to `generator`."""
    found = []

    def check(name: str | None, value: ast.expr | None) -> None:
        number = isinstance(value, ast.Constant) and isinstance(value.value, int)
        if name is not None and "stream" in name.lower().split("_") and number:
            found.append(value.lineno)  # type: ignore[union-attr]

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                check(keyword.arg, keyword.value)
            if isinstance(node.func, ast.Name) and node.func.id == "generator" and len(node.args) > 1:
                check("stream", node.args[1])
        elif isinstance(node, ast.FunctionDef | ast.Lambda):
            given = node.args.posonlyargs + node.args.args
            for argument, default in zip(reversed(given), reversed(node.args.defaults), strict=False):
                check(argument.arg, default)
            for argument, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                check(argument.arg, value)
        elif isinstance(node, ast.AnnAssign):
            check(getattr(node.target, "id", None), node.value)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                check(getattr(target, "id", None), node.value)
    return found


def test_no_number_of_a_stream_stands_anywhere_else() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path.name != "_streams.py"]
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not a checkout")
    assert len(files) > 100
    assert not [f"{path}:{line}" for path in files for line in literals(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "source",
    [
        "normal(x, stream=3)",
        "def f(*, stream: int = 0): ...",
        "def f(a, stream=0): ...",
        "STREAM = 4",
        "NOISE_STREAM: int = 4",
        "generator(seed, 3)",
    ],
)
def test_such_a_number_is_found(source: str) -> None:
    assert literals(source) == [1]
