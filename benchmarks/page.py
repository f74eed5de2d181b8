"""Write the recorded results into docs/benchmarks.md, as tables and a picture: `python -m benchmarks.page`.

The page names each result in a comment, `<!-- results/FILE.json -->`; what stands from there to `<!-- end -->` is written anew.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from diffcore import _files

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
PICTURE = HERE.parent / "docs" / "images" / "benchmarks.png"
BLOCK = re.compile(r"(<!-- (results/[\w.-]+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)

SAMPLERS = {
    "ancestral": "ancestral (DDPM)",
    "ddim": "DDIM",
    "dpm++2m": "DPM-Solver++ 2M",
    "unipc": "UniPC 2",
    "dpm++3m sde": "DPM-Solver++ 3M SDE",
    "unipc3": "UniPC 3",
    "heun": "Heun, each of the two stages of a step",
}
COLUMNS = {
    "numpy": "NumPy",
    "jax": "JAX",
    "torch fused": "torch, `compile=True`",
    "torch kernel": "torch",
    "torch graph": "torch, one CUDA graph",
    "torch captured": "torch, `compile=True` on CUDA",
}
PEERS = {"diffusers": "0.35", "k-diffusion": "0.55", "azula": "0.75"}
"""Grey, beside ours in colours."""

PARTS = (
    ("A step on four numbers, in microseconds", r"step, (?P<row>.+), 4 numbers, float32, \w+", 1e6),
    ("A step on 6,291,456 numbers in float32, in milliseconds", r"step, (?P<row>.+), 6291456 numbers, float32, \w+", 1e3),
    ("The same in other dtypes", r"step, (?P<row>.+), 6291456 numbers, (?P<more>(?!float32)\w+), \w+", 1e3),
    ("An ancestral step by size, in milliseconds", r"step, ancestral, (?P<row>\d+) numbers, float32, \w+", 1e3),
    ("Noise, in milliseconds", r"noise, (?P<row>\w+), (?P<more>\d+ numbers, \w+), \w+", 1e3),
    ("A step with more to do, in milliseconds", r"step with more, (?P<row>\w+), \d+ numbers, \w+", 1e3),
    ("The U-Net on a GPU, in milliseconds", r"unet3d, (?P<row>\w+), (?P<more>[\w ]+), cuda", 1e3),
    ("A guided stage of a run with the U-Net, in milliseconds", r"run of (?P<row>\w+) guided stages, U-Net, cuda", 1e3),
)  # fmt: skip
"""Title, which groups of a result (what of a group names the row), and the unit."""

ON_CUDA = ("torch kernel", "torch graph", "torch captured")
"""What the goals for a GPU are about."""


def tables(result: dict[str, Any]) -> str:
    """Return a result as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if name != "diffcore")
    lines = [
        f"{result['device']}, {result['threads']} cores, {result['date']}, load {result['load'][0]}; "
        f"Python {result['python']}, {versions}. The shortest of many calls; empty where there is no such row.",
    ]
    lines += _goals(result)
    for title, pattern, unit in PARTS:
        cells: dict[str, dict[str, float]] = {}
        for row in result["rows"]:
            found = re.fullmatch(pattern, row["group"])
            if found is not None:
                name = ", ".join([SAMPLERS.get(found["row"], _spaced(found["row"])), *found.groups()[1:]])
                cells.setdefault(name, {})[row["who"]] = row["min"] * unit
        whos = list(dict.fromkeys(who for row in cells.values() for who in row))
        if cells:
            lines += [
                "",
                f"**{title}**",
                "",
                _line(["", *(_column(who, whos) for who in whos)]),
                _line(["---"] * (len(whos) + 1)),
            ]
            lines += [_line([name, *(_digits(row.get(who)) for who in whos)]) for name, row in cells.items()]
    memory = {row["who"]: row["arrays"] for row in result["rows"] if "arrays" in row}
    imports = {row["who"]: row["min"] for row in result["rows"] if row["group"].startswith("import")}
    if memory:
        lines += [
            "",
            "**Arrays of the state's size that a run of 8 stages adds to the start**: " + _listed(memory, 1.0, ""),
        ]
    if imports:
        lines += ["", "**Import after NumPy**: " + _listed(imports, 1e3, " ms")]
    for how, what in (("Failed", result.get("failed")), ("No time left for", result.get("cut"))):
        lines += ["", f"**{how}**: {', '.join(what)}."] if what else []
    return "\n".join(lines) + "\n"


def _goals(result: dict[str, Any]) -> list[str]:
    """Return the goals for a GPU beside what was measured; nothing for a result of a CPU."""
    lines = []

    def goal(what: str, wanted: str, measured: str, met: bool) -> None:
        lines.append(_line([what, wanted, measured, "yes" if met else "no"]))

    for row in result["rows"]:
        few = re.fullmatch(r"step, (.+), 4 numbers, float32, cuda", row["group"])
        if few is not None and row["who"] == "torch kernel":
            micros = row["min"] * 1e6
            what = f"{SAMPLERS.get(few[1], few[1])}, 4 numbers, {COLUMNS[row['who']]}: the host's time, a stage"
            goal(what, "at most 25 us", f"{micros:.3g} us", micros <= 25.0)
        found = re.fullmatch(r"step, (.+), (\d{7,}) numbers, (\w+), cuda", row["group"])
        if found is None or row["who"] not in ON_CUDA:
            continue
        sampler, size, dtype = SAMPLERS.get(found[1], found[1]), _spaced(found[2]), found[3]
        step = f"{sampler}, {size}, {dtype}, {COLUMNS[row['who']]}"
        if "copy" in row["ceilings"]:
            share = row["ceilings"]["copy"]
            rate = f"{row.get('bytes', 0) / row['min'] / 1e12:.2f} TB/s"
            shown = f"{share:.1%}".replace("%", " %")
            goal(f"{step}: share of the bandwidth reached", "at least 85 %", f"{shown}, {rate}", share >= 0.85)
        if "diffusers" in row["peers"]:
            times = row["peers"]["diffusers"]
            goal(f"{step}: times as fast as diffusers", "at least 8", f"{times:.3g}", times >= 8.0)
    graph = {row["who"]: row["min"] for row in result["rows"] if row["group"] == "one graph of 256 stages"}
    if {"run", "denoiser"} <= graph.keys():
        over = graph["run"] / graph["denoiser"] - 1.0
        goal("256 stages in one graph: over the denoiser", "under 2 %", f"{over:.2%}".replace("%", " %"), over < 0.02)
    network = {row["who"]: row["min"] for row in result["rows"] if row["group"].endswith("guided stages, U-Net, cuda")}
    if {"torch captured", "torch kernel"} <= network.keys():
        times = network["torch kernel"] / network["torch captured"]
        goal("16 guided stages with the U-Net: captured, times as fast", "at least 3", f"{times:.3g}", times >= 3.0)
    for row in result["rows"]:
        if row["group"] == "bits of the noise, cuda":
            what = f"Bits of the noise that differ from NumPy's, {COLUMNS.get(row['who'], row['who'])}"
            goal(what, "0", f"{row['differ']:,} of {row['words']:,}", row["differ"] == 0)
    if not lines:
        return []
    return ["", "**Goals on a GPU**", "", _line(["", "wanted", "measured", "met"]), _line(["---"] * 4), *lines]


def _column(who: str, whos: list[str]) -> str:
    """Return the heading of a column; on CUDA "torch" is the kernel, and what runs without it says so."""
    return "torch, plain operations" if who == "torch" and "torch kernel" in whos else COLUMNS.get(who, who)


def _spaced(name: str) -> str:
    return f"{int(name):,} numbers" if name.isdigit() else name


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000.0 else f"{value:,.0f}"


def _listed(values: dict[str, float], unit: float, name: str) -> str:
    return ", ".join(f"{who} {_digits(value * unit)}{name}" for who, value in values.items()) + "."


def page(text: str) -> str:
    """Return the page with the tables of the results that it names."""

    def block(found: re.Match[str]) -> str:
        result = json.loads((HERE / found[2]).read_text(encoding="utf-8"))
        return f"{found[1]}\n{tables(result)}\n{found[3]}"

    return BLOCK.sub(block, text)


def draw(result: dict[str, Any], to: Path) -> None:
    """Draw the steps on few and on many numbers as bars."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(11, 6), layout="constrained")
    names = list(SAMPLERS)[:4]
    for axes, (title, pattern, unit) in zip(figure.subplots(1, 2), PARTS[:2], strict=True):
        bars: dict[str, dict[str, float]] = {}
        for row in result["rows"]:
            found = re.fullmatch(pattern, row["group"])
            if found is not None and found["row"] in names and row["role"] != "ceiling":
                bars.setdefault(row["who"], {})[found["row"]] = row["min"] * unit
        height = 0.8 / len(bars)
        for place, (who, values) in enumerate(bars.items()):
            at = [names.index(name) + (place - (len(bars) - 1) / 2) * height for name in values]
            label, colour = COLUMNS.get(who, who).replace("`", ""), PEERS.get(who, f"C{place}")
            container = axes.barh(at, list(values.values()), height, label=label, color=colour)
            axes.bar_label(container, fmt="%.3g", padding=2, fontsize=7)
        axes.set(xscale="log", yticks=range(len(names)), yticklabels=[SAMPLERS[name] for name in names])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(title, fontsize=10)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=len(bars))
    with _files.replacing(to) as part:
        figure.savefig(part, dpi=110, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__.splitlines()[0])
    parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    names = [found[2] for found in BLOCK.finditer(text)]
    _files.write(PAGE, page(text))
    draw(json.loads((HERE / names[0]).read_text(encoding="utf-8")), PICTURE)
    print(f"{PAGE} and {PICTURE}, from {', '.join(names)}")


if __name__ == "__main__":
    main()
