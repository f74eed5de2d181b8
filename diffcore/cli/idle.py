"""Options that do nothing beside what else a command is given: refused, so that none is silently dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from typer.core import TyperCommand

from diffcore.cli import models, report, sources

Given = dict[str, Any]


class Idle(NamedTuple):
    """Options by the names of their parameters, when they do nothing, and why."""

    names: tuple[str, ...]
    where: Callable[[Given], bool]
    why: str


def _suffix(given: Given) -> str:
    return Path(given["out"]).suffix.lower()


def _folders(given: Given) -> bool:
    return given["against"] is not None and any(Path(given[name]).is_dir() for name in ("what", "against"))


DRAWING = ("guidance", "sampler", "steps", "grid", "settings")
OF_FOLDERS = ("every", "rate", "labels", "background")
NO_FOLDER = "it says how clips are taken from a folder of videos, and the digits are none"

SIGMAS = Idle(("steps",), lambda given: models.is_sigmas(given["grid"]), "the sigmas of --grid are the steps")
FPS = Idle(("fps",), lambda given: _suffix(given) in {".npy", ".png"}, "only .mp4 and .gif have a frame rate")
ZOOM = Idle(("zoom",), lambda given: _suffix(given) == ".npy", "a .npy keeps pixels as they are")
WRITING = (SIGMAS, FPS, ZOOM)

TABLE: dict[str, tuple[Idle, ...]] = {
    "sample": (
        *WRITING,
        Idle(("lag",), lambda given: given["order"] != "pyramid", "it is for --order pyramid"),
        Idle(
            ("batch",),
            lambda given: "%" not in Path(given["out"]).name,
            "clips of one file are drawn at once; a number in its name, such as clip%04d.mp4, makes a file of each",
        ),
    ),
    "extend": WRITING,
    "interpolate": WRITING,
    "upscale": WRITING,
    "train": (
        Idle(("labels",), lambda given: given["data"] == sources.DIGITS, "the digits have labels of their own"),
        Idle(OF_FOLDERS, lambda given: {given["data"], given["validation"]} <= {sources.DIGITS, None}, NO_FOLDER),
        Idle(("lag",), lambda given: given["frame_times"] != "pyramid", "it is for --frame-times pyramid"),
    ),
    "evaluate": (
        Idle(
            (
                "data",
                "labels",
                "captions",
                "encoder",
                "samples",
                "batch",
                "backend",
                "device",
                "dtype",
                *DRAWING,
                "seed",
            ),
            lambda given: given["against"] is not None,
            "it is for a model, and with --against there is none",
        ),
        Idle(
            ("frames", "size", "count", "rate"),
            lambda given: given["against"] is not None and given["features"] is None and not _folders(given),
            "two videos are compared frame by frame, and --features compares them as sets of clips",
        ),
        Idle(
            ("every",),
            lambda given: given["against"] is not None and not _folders(given),
            "it is for folders of videos",
        ),
        Idle(("frames", "size"), lambda given: given["against"] is None, "a model has its own; it goes with --against"),
        Idle(OF_FOLDERS, lambda given: given["against"] is None and given["data"] == sources.DIGITS, NO_FOLDER),
        Idle(DRAWING, lambda given: not given["samples"], "--no-samples draws no clip"),
        Idle(
            (*DRAWING, "samples"),
            lambda given: given["samples"] and given["data"] != sources.DIGITS,
            "clips are drawn and judged on --data digits alone",
        ),
        SIGMAS,
    ),
    "info": (
        Idle(("steps", "grid", "settings"), lambda given: given["plan"] is None, "it is for --plan SAMPLER"),
        Idle(
            ("whole",),
            lambda given: given["plan"] is None and not str(given["what"]).endswith(".json"),
            "it is for --plan SAMPLER or a saved plan",
        ),
        SIGMAS,
    ),
}
"""For each command; the first that fits is said."""


class Command(TyperCommand):
    """A command that refuses options of `TABLE` where they do nothing."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        options = {param.name: max(param.opts, key=len) for param in self.params}
        for idle in TABLE.get(str(self.name), ()):
            said = [name for name in idle.names if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
            if said and idle.where(ctx.params):
                report.usage(f"{options[said[0]]} does nothing here: {idle.why}; leave it out")
        return super().invoke(ctx)
