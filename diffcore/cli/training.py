"""`diffcore train`: a network of one's own, on a folder of videos or on moving digits."""

from __future__ import annotations

import contextlib
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import diffcore as dc
from diffcore import _check
from diffcore.cli import meshes, models, options, report, sources, tuning

network_option, training_option = options.panel("The network"), options.panel("Training")

EXAMPLES = (
    "Examples:\n\n"
    "$ diffcore train run --data digits --preset tiny --steps 200\n\n"
    "$ diffcore train run --data my_videos --preset bair --size 64 --frames 16 --images 8 --device cuda\n\n"
    "$ diffcore train run --data my_videos --preset bair --size 64   # the same command goes on after Ctrl-C\n\n"
    "$ diffcore train tuned --data my_videos --from moving_digits --rate 12 --freeze 'embed.*' --validation held_out\n\n"
    "$ diffcore train forced --data digits --causal --frame-times independent\n\n"
    "$ diffcore train said --data my_videos --captions my_videos/captions.jsonl --encoder models/bert-large-uncased\n\n"
    "$ torchrun --nproc-per-node 8 -m diffcore train run --data my_videos --preset bair --batch 64 --workers 4\n\n"
    "$ diffcore sample clip.mp4 --weights run/model.safetensors"
)


def train(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="The folder for the run: where weights, log, checkpoint and samples go; made if it is missing.",
        ),
    ],
    data: Annotated[str, typer.Option(metavar="FOLDER|digits", help='A folder of video files, or "digits".')],
    preset: Annotated[
        str | None,
        network_option(
            metavar="NAME",
            help=f"The network and how it is trained: {', '.join(sources.presets())}; with --encoder text_small "
            "and larger ones too. moving_digits without it and --from. Options change single parts of it.",
            autocompletion=sources.presets,
        ),
    ] = None,
    start: tuning.From = None,
    freeze: tuning.Freeze = None,
    validation: tuning.Validation = None,
    validate_every: tuning.ValidateEvery = None,
    log: tuning.Log = None,
    fused: tuning.Compile = False,
    size: Annotated[
        int | None,
        network_option(min=1, help="Side of a frame in pixels: videos are scaled to cover it and cut."),
    ] = None,
    frames: Annotated[int | None, network_option(min=1, help="Frames of a clip.")] = None,
    base_channels: Annotated[
        int | None,
        network_option(min=1, help="Channels of the finest level; the others are multiples."),
    ] = None,
    blocks: Annotated[int | None, network_option(min=1, help="Residual blocks of a level on the way down.")] = None,
    prediction: Annotated[str | None, network_option(help="What it predicts: v, eps, x, score, flow or edm.")] = None,
    causal: Annotated[
        bool,
        network_option(
            "--causal",
            help="No frame sees a later one: for endless video (extend --method forcing), which then computes known frames once.",
        ),
    ] = False,
    captions: Annotated[
        Path | None,
        network_option(
            metavar="FILE",
            help='Train on text: lines {"file_name": "a.mp4", "text": "a dog walks"}, with paths from the folder of the file. The '
            "digits have captions of their own.",
        ),
    ] = None,
    encoder: Annotated[
        Path | None,
        network_option(
            metavar="FOLDER",
            help="The text encoder, a local folder as transformers saves it: BERT as in the paper, T5, or CLIP's. Nothing is "
            "downloaded; the weights file says which one it was.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        training_option(
            min=1,
            help="Steps of training, in all: a run that ended goes on with more. Without it the preset's, or 1000.",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        training_option(
            min=1,
            help="Clips a step, on all devices together; without it the preset's, or 8.",
        ),
    ] = None,
    accumulate: Annotated[
        int | None,
        training_option(min=1, help="Take a batch in this many parts: less memory, the same step."),
    ] = None,
    images: Annotated[
        int | None,
        training_option(
            min=0,
            help="Independent frames of other clips beside each clip, as in the paper: clearer pictures at equal steps.",
        ),
    ] = None,
    frame_times: Annotated[
        Literal["shared", "independent", "monotone", "pyramid"] | None,
        training_option(
            help="How noisy the frames of a clip are: all alike (shared); each by itself, as forcing and rolling need it "
            "(independent); sorted (monotone); or each --lag behind the next (pyramid).",
        ),
    ] = None,
    lag: Annotated[
        float | None,
        training_option(
            min=0.0,
            help="How far a frame is behind the next one in a pyramid, in time; 1 / frames without it.",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        training_option(
            min=0.0,
            help="Learning rate of AdamW; without it the preset's or 1e-3, with --from 1e-4.",
        ),
    ] = None,
    warm_up: Annotated[int | None, training_option(min=0, help="Steps over which the learning rate rises.")] = None,
    every: options.Every = None,
    rate: options.Rate = None,
    labels: options.Labels = None,
    background: options.Background = "black",
    checkpoint_every: Annotated[
        int | None,
        training_option(min=1, help="Steps between checkpoints: what a killed run loses at most."),
    ] = None,
    checkpoints: Annotated[
        int | None, training_option(min=1, help="How many of the last checkpoints are kept.")
    ] = None,
    sample_every: Annotated[
        int | None,
        training_option(min=0, help="Steps between sheets of samples, samples/STEP.png; 0: none."),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None,
        training_option(
            help="Precision of convolutions and matrix products; bfloat16 is faster on most GPUs, weights stay float32.",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        training_option(
            metavar="NAME",
            help="The noise schedule: Cosine as in the paper, Flow, Karras, LinearBeta, ..., or a name such as ddpm; "
            "kept in the weights file.",
        ),
    ] = None,
    seed: Annotated[int, training_option(min=0, help="Seed of weights, batches and noise.")] = 0,
    backend: Annotated[
        Literal["torch", "jax"] | None,
        training_option(help="The library; without it torch, or JAX. NumPy has no gradients."),
    ] = None,
    mesh: Annotated[
        str | None,
        training_option(
            metavar="N|RxS",
            help="Devices that share the batch: N that share the network too, or R replicas of S that share it; 8x1 is "
            "data parallel. By default all processes of torchrun; of JAX, one device.",
        ),
    ] = None,
    workers: Annotated[int, training_option(min=0, help="Threads that read batches ahead, in each process.")] = 0,
    device: options.Device = None,
    force: Annotated[
        bool,
        options.output_option("--force", "-f", help="Start over: delete the run in the folder."),
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train a network on a folder of videos or on moving digits, from new weights or, with --from, from those of a model.

    The folder gets model.safetensors, log.jsonl and the last checkpoints. The same command goes on from the newest checkpoint
    of a run that was stopped, and on a CPU ends with the same bits as one that was not. Under torchrun, all its processes
    train one network; any number of them goes on with what any other number began.
    """
    del debug
    backend_ = _trains(backend)
    tuning.check(backend_, fused, log, validation, validate_every)
    origin = tuning.start_of(start)
    preset = preset or ("moving_digits" if start is None else None)
    network = {
        "frames": frames,
        "size": size,
        "base_channels": base_channels,
        "blocks": blocks,
        "prediction": prediction,
        "causal": causal or None,
    }
    said, taken = sources.text(data, captions, encoder), sources.Taken(every, rate, labels, background)
    taken = sources.as_trained(taken, start, data)
    config, source = sources.network_and_data(preset, network, data, taken, text=said, origin=origin.config)
    held_out = tuning.held_out(validation, config, taken, source, said)
    tokens = None if said is None else said.encoder((held_out or source).captions)
    how = {"steps": steps, "batch": batch, "accumulate": accumulate, "images": images, "learning_rate": learning_rate,
           "warm_up": warm_up, "checkpoint_every": checkpoint_every, "checkpoints": checkpoints,
           "sample_every": sample_every, "precision": precision, "seed": seed, "frame_times": frame_times,
           "lag": lag, "schedule": _schedule(schedule) or (origin.config and origin.config.schedule),
           "frozen": freeze and tuple(freeze), "validate_every": validate_every}  # fmt: skip
    settings = _settings(preset, {name: value for name, value in how.items() if value is not None})
    folder = _prepared(folder, force)
    over = meshes.of(backend_, mesh, device)
    place, name, _ = models.placed(backend_, over.device, "float32")
    name = f"{over.devices} x {name}" if over.devices > 1 else name
    took, last = time.perf_counter(), {}
    anew = tuning.words(folder, settings, config, start)
    begins = _where_it_begins(folder, force, over.processes, anew) if over.first else []
    with report.Bar("training", settings.steps) as bar:

        def report_step(done: int, row: dict[str, Any]) -> None:
            last.update(row)
            bar.done(done, f"loss {row['loss']:.4f}" if row else "")

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "training.train: checkpoint", UserWarning)  # which is said above
                path = dc.unet3d.training.train(
                    config,
                    settings,
                    source,
                    folder,
                    backend=backend_,
                    tokens=tokens,
                    device=place,
                    mesh=over.mesh,
                    workers=workers,
                    progress=report_step,
                    begun=lambda _: report.notes(begins),
                    overwrite=force,
                    start=origin.path,
                    validation=held_out,
                    log=log or (),
                    **({"compile": True} if fused else {}),
                )
        except KeyboardInterrupt:
            if over.first:
                kept = dc.unet3d.training.step_of(folder)
                goes = f"goes on from step {kept}" if kept else "begins anew"
                report.note(f"stopped; the same command{', without --force,' if force and kept else ''} {goes}")
            raise
    if not over.first:
        return
    seconds = time.perf_counter() - took
    row = {"command": "train", "weights": str(path), "steps": settings.steps, "loss": last.get("loss"), "backend": backend_,
           "device": name, "config": config.to_dict(), "seconds": round(seconds, 3)}  # fmt: skip
    loss = f", loss {last['loss']:.4f}" if last else ", as it was"
    done = _check.counted(settings.steps, "step")
    if "validation_loss" in last:
        row["validation_loss"] = last["validation_loss"]
        loss += f", {last['validation_loss']:.4f} on {validation}"
    report.result(row, f"{path}: {done}{loss}, {backend_} on {name}, {seconds:.1f} s", as_json=as_json)


def _where_it_begins(folder: Path, force: bool, processes: int, anew: str) -> list[str]:
    """Return lines that say from where a run goes on, or that it begins anew, and what is deleted for it."""
    with report.warnings_as_notes():
        try:
            found = dc.unet3d.training.checkpoints.newest(folder)
        except ValueError:
            if not force:
                raise
            found = None
    if found is None:
        return [anew]
    before = int(found.metadata.get("processes", "1"))
    if force:
        return [f"{folder}: beginning anew; the run that was here, at step {found.step}, is deleted", anew]
    goes = f"{folder}: resuming from step {found.step}"
    if before != processes:
        goes += f", which {_so_many(before)} wrote, with {_so_many(processes)}: equal to rounding"
    return [goes]


def _so_many(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def _trains(backend: str | None) -> str:
    """Return the backend to train on."""
    able = [name for name in models.installed() if name != "numpy"]
    if backend is None and not able:
        raise report.Failure("training needs torch or JAX; install diffcore[torch] or diffcore[jax]")
    return backend or able[0]


def _schedule(name: str | None) -> Any:
    """Return a schedule by its own name, with its default settings, or by that of a paper."""
    known = dict[str, Any]()
    for each in (*dc.schedules.named(), *dc.schedules.table()):
        with contextlib.suppress(ValueError):  # those that have no default settings
            known[each] = dc.schedules.by_name(each)
    if name is not None and name not in known:
        report.no_such("--schedule", name, sorted(known))
    return None if name is None else known[name]


def _settings(preset: str | None, given: dict[str, Any]) -> Any:
    base = dc.unet3d.training.PRESETS.get(preset or "")
    try:
        if base is not None:
            if given.get("steps", base.steps) < base.cool_down:
                given["cool_down"] = given["steps"] // 4
            return replace(base, **given)
        return dc.unet3d.training.Settings(
            **{"steps": 1000, "warm_up": 100, "ema": 0.99, "learning_rate": 1e-3 if preset else 1e-4, **given}
        )
    except (ValueError, TypeError) as error:
        report.usage(str(error))


def _prepared(folder: Path, force: bool) -> Path:
    """Return the folder of a run, if there can be one in it."""
    if folder.exists() and not folder.is_dir():
        report.usage(f"{folder} is a file; give a folder for the run")
    if not folder.parent.is_dir():
        report.usage(f"there is no folder {folder.parent} for {folder.name}; make it first: mkdir -p {folder.parent}")
    weights = folder / "model.safetensors"
    if not force and weights.exists() and not list(folder.glob("checkpoint*")):
        report.usage(f"{weights} exists already, without a checkpoint to resume from; --force overwrites it")
    return folder
