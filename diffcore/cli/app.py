"""The commands, and what becomes of an error: one line on stderr and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import diffcore as dc
from diffcore.cli import bench, evaluating, idle, info, interrupts, long, options, report, sample, training, verify


class Commands(TyperGroup):
    """A group of commands whose errors are one line, whoever calls it."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *others: Any, **extra: Any) -> Any:
        """Run a command and leave with its exit code."""
        given = sys.argv[1:] if args is None else list(args)
        extra["standalone_mode"] = False
        try:
            code = super().main(given, prog_name, *others, **extra)
        except KeyboardInterrupt:
            code = interrupts.INTERRUPTED
        except SystemExit:
            raise
        except Exception as error:
            code = _told(error, debug="--debug" in given)
        if code == interrupts.INTERRUPTED:
            report.note(interrupts.SAYS)
        sys.exit(code if isinstance(code, int) else 0)


def _told(error: Exception, *, debug: bool) -> int:
    """Say what went wrong on one line, and return the exit code."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, typer.Abort):
        return interrupts.INTERRUPTED
    if hasattr(error, "format_message"):  # of the parser of arguments
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "diffcore"
        text = report.one_line(error.format_message()).rstrip(".")
        if path.endswith(" evaluate") and "unexpected extra argument" in text:
            text += "; what it is compared with goes after --against"
        report.note(f"{path}: {text}; see {path} --help")
        return int(getattr(error, "exit_code", 2))
    text = report.one_line(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.strerror}: {error.filename}"
    known = isinstance(
        error,
        report.Failure | report.Usage | ValueError | TypeError | ImportError | OSError | RuntimeError | MemoryError,
    )
    if not known or not text:
        text = f"{type(error).__name__} {text}; --debug shows where it comes from"
    report.note(f"diffcore: {text}")
    return 2 if isinstance(error, report.Usage) else 1


app = typer.Typer(
    cls=Commands,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with:\n\n"
    "$ diffcore sample clip.mp4 --label 3\n\n"
    "$ diffcore extend clip.mp4 longer.mp4 --frames 64 --label 3\n\n"
    "$ diffcore info\n\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(dc.__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def diffcore_(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from; also after the name of a command.")
    ] = False,
) -> None:
    """Draw videos with diffusion models, make them longer, smoother and larger, and train models of your own."""
    del version, debug
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command, examples in (
    (sample.sample, sample.EXAMPLES),
    (long.with_job(long.extend), long.EXTEND),
    (long.with_job(long.interpolate), long.INTERPOLATE),
    (long.with_job(long.upscale), long.UPSCALE),
    (training.train, training.EXAMPLES),
    (evaluating.evaluate, evaluating.EXAMPLES),
    (info.info, info.EXAMPLES),
    (verify.verify, verify.EXAMPLES),
    (bench.bench, bench.EXAMPLES),
):
    app.command(cls=idle.Command, help=options.help_of(command), epilog=examples)(command)
