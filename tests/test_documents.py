"""The Python in README.md and docs/ runs as it stands, page by page, and every link between pages leads to a file."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [page.relative_to(ROOT).as_posix() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for library in ("torch", "jax", "diffusers"):
        if re.search(rf"^\s*(?:import|from) {library}\b", text, re.MULTILINE):
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)  # a block may write files
    names: dict[str, Any] = {"__name__": "page"}
    for block in BLOCK.finditer(text):
        above = text.count("\n", 0, block.start(1))  # so that a traceback tells the line of the page
        exec(compile("\n" * above + block.group(1), str(ROOT / page), "exec"), names)


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))])
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "notebooks" / name).read_text(encoding="utf-8")
    if "import torch" in text:
        pytest.importorskip("torch")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "1")  # of training, of sampling
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(json.loads(text)["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
    pyplot.close("all")


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in LINK.findall(text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}, which is not there"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    run = subprocess.run(
        build, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    reference = (tmp_path / "reference" / "diffcore.process.html").read_text(encoding="utf-8")
    assert "<sub>" in reference  # equations are typeset
    assert "2<sup>64</sup>" in (tmp_path / "noise.html").read_text(encoding="utf-8")
    contract = (tmp_path / "reference" / "diffcore.backends.contract.html").read_text(encoding="utf-8")
    assert "<code>from diffcore.backends import" in contract  # an indented block of code stays code
    assert ">>>" not in re.sub(
        r"<pre.*?</pre>", "", reference.replace("&gt;", ">"), flags=re.DOTALL
    )  # doctests are code
    assert 'href="notebooks/train_on_toys.html"' in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "notebooks" / "train_on_toys_0.png").is_file()
    figures = {path.name for path in (tmp_path / "images").glob("*.png")}
    assert {"paths.png", "levels.png", "plan.png"} <= figures
