"""`diffcore verify`: the identities of diffusion, on every backend that is here."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from diffcore.cli import battery, models, options, report

EXAMPLES = (
    "Examples:\n\n"
    "$ diffcore verify --quick\n\n"
    "$ diffcore verify --backend jax --device gpu\n\n"
    "$ diffcore verify -k noise --json > verified.json"
)


def verify(
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", "-b", metavar="NAME", help="Only this one: numpy, torch or jax; may be repeated."),
    ] = None,
    device: options.Device = None,
    only: Annotated[
        str | None, typer.Option("-k", metavar="TEXT", help="Only identities whose name contains this.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what takes long.")] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check the identities of diffusion on each backend, and print a table: exit code 1 if one does not hold.

    They are those of diffcore.testing: Chapman-Kolmogorov, Bayes, rounding against 60 digits, equal noise bits, samplers that
    are one, exact moments, runs that repeat bit for bit, and the contract of a backend.
    """
    del debug
    if unknown := [name for name in backend or [] if name not in models.BACKENDS]:
        report.usage(f"--backend must be one of {', '.join(sorted(models.BACKENDS))}, got {unknown[0]}")
    names = sorted(backend or models.installed(), key=["numpy", "torch", "jax"].index)
    chosen = [one for one in battery.checks() if not (quick and one.slow) and (only or "").lower() in one.name.lower()]
    if not chosen:
        report.usage(f"-k {only}: no identity has that in its name; without -k all are run")
    likes = {name: models.placed(name, device if name != "numpy" or backend else None, "float32")[1:] for name in names}
    rows: list[report.Row] = []
    with report.Bar("verify", sum(1 if one.host else len(names) for one in chosen)) as bar:
        for one in chosen:
            for name in ["host"] if one.host else names:
                place, like = ("cpu", None) if one.host else likes[name]
                bar.done(len(rows), one.name)
                rows.append({"identity": one.name, "backend": name, "device": place, **_tried(one, like)})
    failed = [row for row in rows if row["outcome"] == "fail"]
    if as_json:
        report.result({"command": "verify", "passed": not failed, "checks": rows}, "", as_json=True)
    else:
        _show(rows, names)
    for row in failed:
        report.note(f"diffcore: {row['identity']} on {row['backend']} does not hold: {row['message']}")
    if failed:
        raise typer.Exit(1)


def _tried(one: battery.Check, like: Any) -> report.Row:
    """Run a check, and return what came of it."""
    began = time.perf_counter()
    outcome, message = "pass", ""
    try:
        one.run(like)
    except ImportError as error:
        outcome, message = "skip", report.one_line(error)
    except Exception as error:
        outcome, message = "fail", report.one_line(error) or type(error).__name__
    return {"outcome": outcome, "seconds": round(time.perf_counter() - began, 3), "message": message}


def _show(rows: list[report.Row], names: list[str]) -> None:
    found = {(row["identity"], row["backend"]): row for row in rows}
    columns = [name for name in [*names, "host"] if any(row["backend"] == name for row in rows)]
    lines = []
    for identity in dict.fromkeys(row["identity"] for row in rows):
        cells = [found.get((identity, name)) for name in columns]
        lines.append(
            [identity, *("" if cell is None else f"{cell['outcome']} {cell['seconds']:.2f}" for cell in cells)]
        )
    report.table("", ["identity", *(f"{name}, s" for name in columns)], lines)
    counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in ("pass", "fail", "skip")}
    typer.echo(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
    for message in dict.fromkeys(row["message"] for row in rows if row["outcome"] == "skip"):
        report.note(f"note: skipped: {message}")
