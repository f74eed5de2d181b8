"""The layers of the library: imports go down only, those inside functions too, and no modules import each other in a circle."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS: dict[str, list[str]] = {
    "leaves": [
        "_arguments",
        "_array",
        "_brief",
        "_check",
        "_explained",
        "_dispatch",
        "_files",
        "_layout",
        "_memory",
        "_misfit",
        "_philox",
        "_pictures",
        "_quantile",
        "_rescale",
        "_seeds",
        "_streams",
        "_synonyms",
        "_threshold",
        "_unwritten",
    ],
    "mathematics": [
        "levels",
        "process",
        "predictions",
        "weights",
        "_weight",
        "_wrapping",
        "losses",
        "schedules",
        "grids",
        "_keys",
        "_brownian",
        "noise",
        "times",
    ],
    "the table": ["plan"],
    "the stage": ["state", "denoiser", "stage"],
    "the backends": ["backends"],
    "the loop": [
        "_fitting",
        "sampling",
        "adaptive",
        "parallel",
        "samplers",
        "guidance",
        "conditioning",
        "likelihood",
        "exact",
        "mesh",
        "metrics",
        "objectives",
        "video",
    ],
    "the face": [""],
    "beside it": ["__main__", "plots", "testing", "unet3d", "cli", "demo", "interop"],
}
ORDER = list(LAYERS)


@cache
def modules() -> dict[str, Path]:
    """Every module by its name; what the symlinks show a second time is left out."""
    found = {}
    for folder, package in (("diffcore", "diffcore"), ("backends", "diffcore.backends"), ("unet3d", "diffcore.unet3d")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder != "diffcore" or parts[0] not in ("backends", "unet3d"):
                found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """What a file imports, anywhere in it; what a package names for type checkers, and loads when it is asked for, is no import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name == "__init__.py":
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules() else node.module for name in names)


@cache
def graph() -> dict[str, set[str]]:
    return {
        name: {other for other in imported(path) if other in modules()} - {name} for name, path in modules().items()
    }


def layer_of(module: str) -> int:
    inside = module.removeprefix("diffcore").removeprefix(".").split(".")[0]
    found = [at for at, names in enumerate(LAYERS.values()) if inside in names]
    assert len(found) == 1, f"{module} stands in {len(found)} layers; give it one in LAYERS"
    return found[0]


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_down_only(module: str) -> None:
    for other in sorted(graph()[module]):
        here, there = layer_of(module), layer_of(other)
        assert there <= here, f"{module} ({ORDER[here]}) imports {other} ({ORDER[there]}), which stands above it"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """A module without imports among those that are left is taken away; what stays forms circles."""
    left = {name: set(others) for name, others in graph().items()}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    inside = {name: sorted(others & set(left)) for name, others in left.items()}
    assert not inside, f"these modules import each other, or what does: {inside}"


def test_a_circle_and_an_import_inside_a_function_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("def f():\n    from diffcore import sampling\n\nif TYPE_CHECKING:\n    import diffcore.video\n")
    assert set(imported(path)) == {"diffcore.sampling", "diffcore.video"}


def lines_of_code(text: str) -> int:
    """How many lines hold code: no docstrings, comments or blank lines."""
    said = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            said |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - said)


def test_lines_of_code_leave_out_what_is_said() -> None:
    assert (
        lines_of_code(
            '"""Said\n\ntwice."""\n\n# a note\nx = """two\nlines"""\n\n\ndef f():\n    "said"\n    return (\n        1)\n'
        )
        == 5
    )


def test_the_file_of_a_sampler_has_under_60_lines_of_code() -> None:
    """What several samplers share stands in modules whose names begin with an underscore."""
    counts = {
        path.name: lines_of_code(path.read_text(encoding="utf-8")) for path in ROOT.glob("diffcore/samplers/[a-z]*.py")
    }
    assert {"ddim.py", "heun.py", "pndm.py"} <= set(counts)
    assert {name: count for name, count in counts.items() if count >= 60} == {}
