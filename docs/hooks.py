"""How the site is made from the pages and docstrings: the reference, equations, doctests, the version, the figures."""

from __future__ import annotations

import ast
import base64
import contextlib
import importlib.util
import io
import json
import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent

REFERENCE = (
    "diffcore",
    "diffcore.schedules",
    "diffcore.grids",
    "diffcore.levels",
    "diffcore.process",
    "diffcore.predictions",
    "diffcore.times",
    "diffcore.weights",
    "diffcore.losses",
    "diffcore.objectives",
    "diffcore.samplers",
    "diffcore.denoiser",
    "diffcore.mesh",
    "diffcore.noise",
    "diffcore.guidance",
    "diffcore.conditioning",
    "diffcore.likelihood",
    "diffcore.exact",
    "diffcore.metrics",
    "diffcore.metrics.features",
    "diffcore.plots",
    "diffcore.video",
    "diffcore.interop.diffusers",
    "diffcore.interop.k_diffusion",
    "diffcore.testing",
    "diffcore.testing.strategies",
    "diffcore.backends.contract",
    "diffcore.unet3d",
    "diffcore.unet3d.data",
    "diffcore.unet3d.text",
    "diffcore.unet3d.digits",
    "diffcore.unet3d.training",
)
"""The modules that have a page in the reference, in the order of the menu."""

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

CLASSES_FIRST = {f"diffcore{name}" for name in ("", ".schedules", ".weights", ".times", ".exact", ".denoiser")}
"""Modules whose classes are what one looks for; elsewhere most are what functions return, and come after these."""


def on_config(config: Any) -> Any:
    """Put the version into the footer, and the reference into the menu."""
    text = (ROOT / "diffcore" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.*)"', text, re.MULTILINE)
    assert version is not None, "diffcore/__init__.py does not state its version"
    config.copyright = f"diffcore {version.group(1)}, Apache-2.0"
    config.nav[-2]["Notebooks"] = [f"notebooks/{path.stem}.md" for path in NOTEBOOKS]
    config.nav[-1]["Reference"] = [{module: f"reference/{module}.md"} for module in REFERENCE]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every module of the reference, and draw anew the figures that the code of a page draws."""
    for module in REFERENCE:
        content = f"# {module}\n\n::: {module}\n    options: {{members: false}}\n\n"
        for name, path in public(module).items():
            heading = f"heading: {name}, toc_label: {name}, show_root_heading: true, show_root_toc_entry: true"
            content += f"::: {path}\n    options: {{{heading}}}\n\n"
        files.append(File.generated(config, f"reference/{module}.md", content=content))
    for saved in NOTEBOOKS:
        content, pictures = notebook(saved)
        files.append(File.generated(config, f"notebooks/{saved.stem}.md", content=content))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    for page in [file for file in files.documentation_pages() if file.abs_src_path]:
        for name, picture in figures(page.content_string).items():
            files.append(File.generated(config, f"images/{name}", content=picture))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to notebooks lead to their pages."""
    return re.sub(r"\]\((notebooks/\w+)\.ipynb\)", r"](\1.md)", markdown)


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return the page of a notebook, with the results that are saved in it, and its pictures."""
    parts, pictures = list[str](), dict[str, bytes]()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        results = [{"text/plain": found.get("text", ""), **found.get("data", {})} for found in cell.get("outputs", ())]
        printed = "".join("".join(data["text/plain"]) for data in results if "image/png" not in data)
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
        for data in results:
            if "image/png" in data:
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![what the code above draws]({name})")
    return "\n\n".join([*parts, f"[The notebook]({path.name}){{download}}"]) + "\n", pictures


def public(module: str) -> dict[str, str]:
    """Return the public names of a module, other modules left out, and where each is found.

    samplers.ddim is a function, and the file that it stands in: only by the file can it be told apart.
    """
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None)
    if names is None:
        body = ast.parse(Path(str(found.__file__)).read_text(encoding="utf-8")).body
        names = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    objects = {name: getattr(found, name) for name in names if not name.startswith("_")}
    if module not in CLASSES_FIRST:
        objects = dict(sorted(objects.items(), key=lambda entry: isinstance(entry[1], type)))
    folder = hasattr(found, "__path__")
    return {
        name: f"{value.__module__}.{name}"
        if folder and importlib.util.find_spec(f"{module}.{name}")
        else f"{module}.{name}"
        for name, value in objects.items()
        if not isinstance(value, ModuleType)
    }


def figures(text: str) -> dict[str, bytes]:
    """Return the pictures that the Python of a page writes, which runs where it writes any, as it does in the tests."""
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if not any(re.search(r"(plot|savefig)\(.*\.png", block) for block in blocks):
        return {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        names: dict[str, Any] = {"__name__": "page"}
        for block in blocks:
            exec(block, names)
        return {path.name: path.read_bytes() for path in Path(folder).glob("*.png")}


class Docstrings(griffe.Extension):
    """Fence the doctests of a docstring, which Markdown takes for quotations, and name its sections as the style does."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value).replace("\nFields:\n", "\nAttributes:\n")


def fenced(text: str) -> str:
    """Return a docstring with every paragraph that begins with >>> in a fence."""
    paragraphs = re.split(r"\n[ ]*\n", text)
    return "\n\n".join(f"```pycon\n{p}\n```" if p.lstrip().startswith(">>>") else p for p in paragraphs)


GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eps": "ε", "eta": "η", "kappa": "κ", "lambda": "λ"}
GREEK |= {"Delta": "Δ", "Phi": "Φ", "Sigma": "Σ"}
GREEK |= {"mu": "μ", "phi": "φ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "theta": "θ"}
GREEK |= {"inf": "∞", "-inf": "-∞", "+-inf": "±∞", "sqrt": "√", "x-hat": "x̂", "eps-hat": "ε̂"}
OPERATORS = {"grad": "∇", "int": "∫", "prod": "∏", "sum": "∑"}
WORDS = "|".join(map(re.escape, sorted(GREEK, key=len, reverse=True)))
NAME = re.compile(rf"(?<![\w.\"'`=])(?<!\w-)(?<!\D/)({WORDS})(?![A-Za-z0-9\"`=]|-[a-z])")
OPERATOR = re.compile(rf"\b({'|'.join(OPERATORS)})(?=_)")
DENSITY = re.compile(r"(?<![\w.])([pqlα-ω])_([a-z]+)(?=\()")
WORD = "sin|cos|argmin|loss|mean|each|std|sd|SNR|Cov|gain|floor"
INDEX = re.compile(
    rf"((?<![A-Za-z0-9])[A-Za-zα-ωΔΦΣ∇∫∏∑]̂?'?|[)\]>|]|\b(?:{WORD})|(?<![\w.])\d+(?:\.\d+)?(?=\^))([_^])"
    r"(?:\{([^{}]*)\}|(-?[A-Za-z0-9α-ω]+(?!\w|(?<=[A-Za-z])\()|\([^()]*\)|\+))"
)


def typeset(text: str) -> str:
    """Return HTML text with its Greek letters, indices and exponents set as in print.

    >>> typeset("z_t = alpha_t x + sigma_{t+1}^2 eps, `log_snr` at +-inf")
    'z<sub>t</sub> = α<sub>t</sub> x + σ<sub>t+1</sub><sup>2</sup> ε, `log_snr` at ±∞'
    >>> typeset("sum_{j<i} |a_j|^2 + sin^2(phi), log_snr_max, f_x(z)")
    '∑<sub>j<i</sub> |a<sub>j</sub>|<sup>2</sup> + sin<sup>2</sup>(φ), log_snr_max, f_x(z)'
    >>> typeset("-eps' / 2^-16, p_k(x) sd^2, sigma_max^(1/rho), eps-network, at -inf")
    "-ε' / 2<sup>-16</sup>, p<sub>k</sub>(x) sd<sup>2</sup>, σ<sub>max</sub><sup>(1/ρ)</sup>, eps-network, at -∞"
    """
    text = NAME.sub(lambda m: GREEK[m.group(1)], text)
    text = OPERATOR.sub(lambda m: OPERATORS[m.group(1)], text)
    text = DENSITY.sub(r"\1<sub>\2</sub>", text)
    before = ""
    while before != text:  # from the innermost braces outwards, and x_t^2 in two turns
        before, text = text, INDEX.sub(index, text)
    return text


def index(found: re.Match[str]) -> str:
    """Return a letter with its index or exponent as HTML."""
    tag = "sub" if found.group(2) == "_" else "sup"
    return f"{found.group(1)}<{tag}>{found.group(3) or found.group(4)}</{tag}>"


def equation(found: re.Match[str]) -> str:
    """Return a block without a language as an equation, or as it is where an argument or a comment shows that it is code."""
    text = re.sub("<[^>]*>", "", found.group(1))
    return found.group() if CODE.search(text) else f'<div class="equation">{text}</div>'


EQUATION = re.compile(
    r'<div class="(?:language-text )?highlight"><pre><span></span><code>(.*?)</code></pre></div>', re.DOTALL
)
CODE = re.compile(r"\w=[\w&]|  # ")
APART = re.compile(r"(<(pre|code|h\d|svg|script|style)\b.*?</\2>|<[^>]*>)", re.DOTALL)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Typeset the prose of a page and its equations: blocks without a language, in the reference or with an exponent."""
    docstrings = page.file.src_uri.startswith("reference/")
    html = EQUATION.sub(lambda m: equation(m) if docstrings or "^" in m.group(1) else m.group(), html)
    pieces = APART.split(html)  # text, what is apart, the name of its tag, text, ...
    pieces[::3] = map(typeset, pieces[::3])
    del pieces[2::3]
    return "".join(pieces)
