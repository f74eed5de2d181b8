"""`diffcore info`: this machine's backends, a weights file, a plan, a video, a folder of videos."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Annotated, Any

import typer

import diffcore as dc
from diffcore import _check, _synonyms
from diffcore.cli import files, models, options, report, saved
from diffcore.plan import text

EXAMPLES = (
    "Examples:\n\n"
    "$ diffcore info\n\n"
    "$ diffcore info moving_digits\n\n"
    "$ diffcore info run/model.safetensors --json\n\n"
    "$ diffcore info --plan ancestral --steps 8 --set gamma=0.1\n\n"
    "$ diffcore info clip.mp4\n\n"
    "$ diffcore info my_videos"
)


def info(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="WHAT",
            help="A weights file, a run or an included model, a saved plan (.json), a video or a folder of videos; without it, "
            "this machine.",
            autocompletion=saved.shipped,
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="SAMPLER",
            help=f"Print the plan of a sampler: {', '.join(models.samplers())}.",
            autocompletion=models.samplers,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the plan.")] = 16,
    grid: options.Grid = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the sampler, such as gamma=0.1."),
    ] = None,
    whole: Annotated[bool, typer.Option("--all", help="Print all stages of a plan of more than 64.")] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show the backends of this machine, what a weights file holds, what a plan does, what a video is."""
    del debug
    if plan is not None:
        if what is not None:
            report.usage(f"give {what} or --plan, not both")
        _plan(models.plan(plan, steps, settings, grid=grid, option="--plan"), whole, as_json)
    elif what is None:
        _machine(as_json)
    elif what.endswith(".json"):
        _saved_plan(Path(what), whole, as_json)
    elif Path(what).is_dir() and not (Path(what) / "model.safetensors").is_file():
        _videos(Path(what), as_json)
    elif what in saved.shipped() or Path(what).suffix == ".safetensors" or Path(what).is_dir():
        _weights(what, as_json)
    elif not Path(what).exists():
        meant, _ = _synonyms.meant(what, saved.shipped())
        way = f"did you mean {meant}?" if meant else f"included are {', '.join(saved.shipped())}"
        report.usage(f"{report.absent(what)}, nor an included model of that name; {way}")
    elif Path(what).is_file() and Path(what).suffix.lower() not in files.readable():
        report.usage(f"{what} must be weights (.safetensors), a plan (.json) or a video (.mp4, .gif, .npy, ...)")
    else:
        _video(Path(what), as_json)


# This machine


def _machine(as_json: bool) -> None:
    from diffcore.backends import cpu_threads

    rows, compiled = [_numpy(), _torch(), _jax()], cpu_threads.kernel is not None
    if as_json:
        report.result({"diffcore": dc.__version__, "cpu_kernel": compiled, "backends": rows}, "", as_json=True)
        return
    shown = [
        [
            row["name"],
            row["version"] or "-",
            ", ".join(row["devices"]) or row["missing"],
            "yes" if row["gradients"] else "no",
            row["compiles"] or "no",
        ]
        for row in rows
    ]
    report.table(f"diffcore {dc.__version__}", ["backend", "version", "devices", "gradients", "compiles"], shown)
    kernel = "compiled" if compiled else "not compiled, so NumPy's operations serve; install again with a C compiler"
    typer.echo(f"kernel of the CPU: {kernel}")
    typer.echo(f"included models: {', '.join(saved.shipped())}; the default backend here is {models.installed()[0]}")


def _row(name: str, devices: list[str], *, gradients: bool, compiles: str | None) -> report.Row:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    here = name in models.installed()
    return {
        "name": name,
        "installed": here,
        "version": version,
        "devices": devices,
        "gradients": gradients,
        "compiles": compiles,
        "missing": None if here else f"install diffcore[{name}]",
    }


def _numpy() -> report.Row:
    return _row("numpy", ["cpu"], gradients=False, compiles=None)


def _torch() -> report.Row:
    devices = []
    if "torch" in models.installed():
        import torch

        devices = ["cpu"]
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
        devices += ["mps"] if torch.backends.mps.is_available() else []
    return _row("torch", devices, gradients=True, compiles="torch.compile")


def _jax() -> report.Row:
    devices = []
    if "jax" in models.installed():
        import jax

        devices = [f"{device.platform}:{device.id} ({device.device_kind})" for device in jax.devices()]
    return _row("jax", devices, gradients=True, compiles="jax.jit")


# A weights file


def _weights(weights: str, as_json: bool) -> None:
    from diffcore.unet3d.pretrained import shipped
    from diffcore.unet3d.summary import summarise
    from diffcore.unet3d.weights import read

    path = saved.weights_file(weights)
    if path is None:
        with shipped(weights) as found:
            content, size = read(found), found.stat().st_size
    else:
        content, size = read(path), path.stat().st_size
    kinds = sorted({str(array.dtype) for array in content.arrays.values()})
    count = sum(array.size for array in content.arrays.values())
    if as_json:
        row = {
            "weights": weights,
            "config": content.config.to_dict(),
            "parameters": count,
            "arrays": len(content.arrays),
            "dtypes": kinds,
            "bytes": size,
            "metadata": content.metadata,
        }
        report.result(row, "", as_json=True)
        return
    typer.echo(
        f"{report.printable(weights)}: {count:,} weights in {len(content.arrays)} arrays of {', '.join(kinds)}, "
        f"{size / 1e6:.1f} MB\n"
    )
    typer.echo(f"{summarise(content.config)}\n")
    report.table("config", ["field", "value"], [[key, str(value)] for key, value in content.config.to_dict().items()])
    if settings := _fields(content.metadata.pop("settings", "")):
        typer.echo()
        report.table("trained with", ["setting", "value"], settings)
    if content.metadata:
        typer.echo()
        report.table("metadata", ["key", "value"], [[key, str(value)] for key, value in content.metadata.items()])


def _fields(text: str) -> list[list[str]]:
    """Return the fields and values of a dataclass as it prints, "Settings(steps=3, frozen=('a', 'b'))"."""
    inside = text.removeprefix("Settings(").removesuffix(")")
    if inside == text:
        return []
    parts, depth, last = [], 0, 0
    for found in re.finditer(r"[()]|, (?=\w+=)", inside):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if depth == 0 and found[0] not in "()":
            parts.append(inside[last : found.start()])
            last = found.end()
    return [part.split("=", 1) for part in [*parts, inside[last:]]]


# A plan


def _saved_plan(path: Path, whole: bool, as_json: bool) -> None:
    if not path.is_file():
        report.usage(report.absent(path))
    _plan(dc.Plan.load(path), whole, as_json)


def _plan(plan: Any, whole: bool, as_json: bool) -> None:
    row = {
        "sampler": plan.sampler,
        "scaling": plan.scaling,
        "calls": len(plan),
        "stochastic": plan.stochastic,
        "memory": plan.memory,
        "log_snr": plan.log_snr,
        "next_log_snr": plan.next_log_snr,
        "update": plan.update,
    }
    report.result(row, text.table(plan, whole=whole, way="--all"), as_json=as_json)


# Videos


def _videos(folder: Path, as_json: bool) -> None:
    from diffcore.unet3d.data._coded import SUFFIXES

    if list(folder.glob("checkpoint*")):
        saved.weights_file(str(folder))  # which says that the run has not ended
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()):
        try:
            found.append(_seen(path))
        except report.Failure as error:
            report.note(f"note: {error}")
    if not found:
        report.usage(
            f"{folder} is a folder without model.safetensors and without a video that can be read; give a run's folder, "
            "or one of videos"
        )
    rows, lines = [row for row, _ in found], [text for _, text in found]
    row = {"folder": str(folder), "videos": rows, "frames": sum(row["frames"] for row in rows)}
    text = f"{_check.counted(len(rows), 'video')} of {_check.counted(row['frames'], 'frame')} in all"
    report.result(row, "\n".join([*lines, text]), as_json=as_json)


def _video(path: Path, as_json: bool) -> None:
    row, text = _seen(path)
    report.result(row, text, as_json=as_json)


def _seen(path: Path) -> tuple[report.Row, str]:
    """Return what a video is, as a row and in words."""
    from diffcore.unet3d.data._times import rates_of

    video = files.look(path)
    height, width = video.size
    row = {
        "file": str(path),
        "clips": video.clips,
        "frames": video.frames,
        "size": [height, width],
        "channels": video.channels,
        "fps": video.fps,
        "seconds": None if video.times is None else video.times.seconds or None,
        "rates": None if video.times is None else video.times.rates,
        "colours": video.colours or None,
        "transparency": video.alpha,
    }
    clips = "" if video.clips == 1 else f"{video.clips} clips of "
    text = f"{path}: {clips}{_check.counted(video.frames, 'frame')} of {height}x{width} (height x width), "
    text += _check.counted(video.channels, "channel")
    if video.times is not None and video.fps is not None:
        text += f", {video.fps:.4g} a second"
        text += "" if video.times.rates is None else f" on average ({rates_of(video.times.rates)}: a variable rate)"
        text += f", {video.times.seconds:.4g} s"
    text += f", {video.colours}" if video.colours else ""
    text += ", with transparency" if video.alpha else ""
    return row, text
