"""The loop of a training run: log, samples, and checkpoints from which a killed run goes on bit for bit."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import diffcore as dc
from diffcore import _array, _check, _files
from diffcore.unet3d import weights
from diffcore.unet3d.config import UNet3DConfig
from diffcore.unet3d.data import Source
from diffcore.unet3d.training import checkpoints, logs
from diffcore.unet3d.training.guards import alone, interrupts
from diffcore.unet3d.training.objective import draw, validation_loss
from diffcore.unet3d.training.settings import LATER, Settings
from diffcore.unet3d.training.start import check_source, started
from diffcore.unet3d.training.world import Keeper, ahead

FREE = (
    "steps",
    "validate_every",
    "accumulate",
    "log_every",
    "checkpoint_every",
    "checkpoints",
    "sample_every",
    "sample_steps",
)
"""The settings that a run may change when it goes on."""

GLIMPSE = 16
"""Clips: so many of the first batch are looked at to know other data."""

LOG, WEIGHTS = "log.jsonl", "model.safetensors"
"""What a folder holds of a run, beside checkpoints and samples."""

Tell = Callable[[int, dict[str, Any]], object]
"""What is told, after each step, how many are done, and the last line of the log, {} until there is one."""


def train(
    config: UNet3DConfig,
    settings: Settings,
    source: Source,
    folder: str | Path,
    *,
    backend: str = "torch",
    mesh: Any = None,
    workers: int = 0,
    tokens: Any = None,
    start: str | Path | None = None,
    validation: Source | None = None,
    log: Sequence[str] = (),
    progress: bool | Tell = False,
    begun: Callable[[int], object] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    r"""Train a network, and return the path of its weights file, folder/model.safetensors.

    The folder also gets `log.jsonl` (a line every `log_every` steps and at each checkpoint: step, means of loss and
    gradient_norm since the line before, learning_rate, seconds), `samples/STEP.png` where `sample_every` is set, and
    `checkpoint.safetensors`, with `checkpoint.1.safetensors`, ... the ones before it, or, of several processes, the folders
    `checkpoint-STEP`. A run that finds its checkpoint goes on from there, or, where that is damaged, from the one before,
    with a warning: batches, times, noise and dropout are pure functions of (seed, step, number of the sample), so that on a
    CPU it ends with the very bits of a run that was never stopped, and with another number of processes, another mesh or
    another `accumulate` with the same weights but for rounding. Every file appears whole or not at all, but for a line of
    the log, which the next run mends. Ctrl-C ends the step, writes a checkpoint and raises KeyboardInterrupt; a second one
    raises it at once. While a run trains, a lock on the file `.lock` keeps others out of its folder.

    Args:
        config: the network.
        settings: how it is trained.
        source: of `unet3d.data`; its clips have the config's frames and channels.
        folder: made where it is missing.
        backend: "torch" or "jax".
        mesh: a `DeviceMesh` of torch or a `Mesh` of JAX, over whose devices the batch is dealt out. One axis shards the
            parameters and the state of the optimizer too; of two, (replicas, shards), the second does. Every process of
            it calls `train` alike. None: all processes that torchrun started or `jax.distributed` knows, else one device.
        workers: threads of each process that read batches ahead; 0 reads each when it is due. The batches are the same.
        tokens: where the condition is "tokens", a pair (K, L, D) and (K, L): the tokens and masks that the labels of
            the source are indices of.
        start: a weights file whose weights the run starts from, the average too, which then does not forget them:
            `ema_warm_up` is off. Frames may be of any other size and clips of any length; other classes or another condition
            start anew, and grey weights take colours. A run that goes on has its own weights.
        validation: clips that are not trained on: their loss, of the averaged weights, at the same times and with the same noise
            each time, is in the log as validation_loss; see `Settings.validate_every`.
        log: "csv" for a copy of the log as `log.csv`, "tensorboard" for one that TensorBoard shows (needs tensorboardX).
        progress: show a bar with the loss and the time left (needs tqdm: diffcore[progress]); or a function that is
            called after each step with how many are done and the last line of the log, {} until there is one.
        begun: called with the step from which the run goes on, 0 for a new one, once it is known that it can.
        overwrite: begin anew where the folder holds a run, instead of going on with it.
        options: of the backend's trainer: device, checkpointing; for torch, compile.

    Raises:
        ValueError: a source that does not fit the config; a batch that cannot be dealt out over the mesh; a folder with the
            checkpoint of another run, or of more steps, or whose checkpoints are all damaged; a backend without gradients;
            a loss, gradient or weight that is not finite, which ends the run and leaves the last checkpoint, which is sound.
        BlockingIOError: another run trains in the folder.
        ImportError: a library is missing.

    Source: Ho et al. 2022 (arXiv 2204.03458), app. A.
    """
    function = "training.train"
    _check.choice(function, "backend", backend, ("torch", "jax"), hint="NumPy has no gradients")
    check_source(function, config, source, tokens)
    logs.check(function, log)
    if validation is not None:
        check_source(function, config, validation, tokens, "validation")
    try:
        importlib.import_module("filelock")
        module = importlib.import_module(f"diffcore.unet3d.training.{backend}_trainer")
    except ImportError as error:
        raise ImportError(
            f"{function}: training in {backend} needs {error.name}; install diffcore[{backend}]"
        ) from error
    if config.schedule not in (None, settings.schedule):
        raise ValueError(
            f"{function}: `config` is for the schedule {config.schedule}, but `settings` trains on {settings.schedule}; give "
            f"one of them, for example dataclasses.replace(settings, schedule=config.schedule)"
        )
    config = replace(config, schedule=settings.schedule)
    settings = replace(settings, weight=settings.weight_for(config.prediction))  # as files say
    workers = _check.integer(function, "workers", workers, 0, 1024)
    origin: dict[str, str] = {}
    if start is not None:
        given_weights = started(function, config, start, settings.seed)
        settings, origin = replace(settings, ema_warm_up=False), {"start": given_weights.digest}
        options = {**options, "start": given_weights.arrays}
    trainer = module.Trainer(config, settings, mesh=mesh, **options)
    world, folder = trainer.world, Path(folder)
    identity = _identity(config, settings, source, backend) | origin
    file_of_log, path = folder / LOG, folder / WEIGHTS
    read = lambda step: draw(config, settings, source, tokens, step, trainer.rows)  # noqa: E731
    with contextlib.ExitStack() as held:

        def begin() -> tuple[checkpoints.Checkpoint | None, list[float]]:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(function, folder))
            some = draw(config, settings, source, tokens, 0, (0, min(settings.batch, GLIMPSE))).x
            glimpse = some.mean(axis=(1, 2, 3, 4), dtype=np.float64).tolist()
            checkpoints.remove(folder, all_of_them=overwrite)
            for file in (file_of_log, path):
                _files.remove_parts(file)  # of a run that was killed while it wrote
                if overwrite:
                    file.unlink(missing_ok=True)
            found = _found(trainer, settings, folder, identity, glimpse)
            _cut(file_of_log, 0 if found is None else found.step)
            return found if found is None or world.count == 1 else found._replace(state={}), glimpse

        held.callback(world.close)
        found, glimpse = world.agree(begin)
        first = _restored(trainer, found)
        keeper = held.enter_context(contextlib.closing(Keeper(world, folder, settings.checkpoints)))
        interrupted = held.enter_context(interrupts())
        pending: list[tuple[Any, Any]] = []
        row: dict[str, Any] = {}
        began = time.perf_counter()
        tell = held.enter_context(_telling(progress if world.first else False, first, settings.steps))
        if begun is not None and world.first:
            begun(first)
        lines = held.enter_context(file_of_log.open("a", encoding="utf-8")) if world.first else io.StringIO()
        copy = held.enter_context(logs.copies(folder, file_of_log, log if world.first else (), first))
        given = held.enter_context(contextlib.closing(ahead(read, range(first, settings.steps), workers)))
        for step, drawn in given:
            pending.append(trainer.step(step, drawn))
            done, last, stops = step + 1, step + 1 == settings.steps, world.any(interrupted.is_set())
            keeps = done % settings.checkpoint_every == 0 or last or stops
            checked = keeps or done % (settings.validate_every or done + 1) == 0
            if (
                done % settings.log_every == 0 or keeps or (checked and validation is not None)
            ):  # so that what is kept is finite, and its log complete
                row = _means(function, done, world.mean(_numbers(pending))) | {"learning_rate": settings.rate(step)}
                pending = []
                if validation is not None and checked:
                    row["validation_loss"] = validation_loss(trainer, config, settings, validation, tokens)
                line = {**row, "seconds": round(time.perf_counter() - began, 3)}
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                copy(line)
            if settings.sample_every and (done % settings.sample_every == 0 or last):
                sheet = folder / "samples" / f"{done:07d}.png"
                write_samples(trainer.averaged, trainer.like(), settings, sheet if world.first else None)
            if keeps:
                about = {**identity, "glimpse": json.dumps(glimpse), "step": str(done), "processes": str(world.count)}
                if trainer.sharded:
                    keeper.keep(trainer.save, about)
                else:
                    checkpoints.write(folder, trainer.state(), about, settings.checkpoints)
            tell(done, row)
            if stops and not last:
                keeper.wait()
                raise KeyboardInterrupt
        keeper.wait()
        metadata = {"config": json.dumps(config.to_dict()), "settings": repr(settings), "steps": str(settings.steps)}
        metadata |= origin
        if names := getattr(source, "names", None):
            metadata["classes"] = json.dumps(names)
        if fps := getattr(source, "fps", None):
            metadata["fps"] = f"{float(fps):.6g}"
        averaged = trainer.weights()
        world.agree(lambda: weights.write(path, averaged, metadata))
        if interrupted.is_set():
            raise KeyboardInterrupt
    return path


def step_of(folder: str | Path) -> int:
    """Return the step from which the next run in a folder goes on: 0 where it begins anew.

    Warns of a damaged checkpoint, and raises ValueError where all are damaged.
    """
    found = checkpoints.newest(Path(folder))
    return 0 if found is None else found.step


def _numbers(pending: list[tuple[Any, Any]]) -> npt.NDArray[np.float64]:
    return np.array([[float(part) for part in pair] for pair in pending])


def _means(function: str, done: int, pairs: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return the mean loss and norm of the gradient of some steps, or raise where one is not finite."""
    if not np.all(np.isfinite(pairs)):
        value, norm = pairs[~np.isfinite(pairs).all(axis=1)][0]
        raise ValueError(
            f"{function}: the loss is {value} and the norm of its gradient {norm} near step {done}; start in a new folder "
            f"with a lower learning rate or a longer warm-up. The last checkpoint is from before"
        )
    value, norm = pairs.mean(axis=0)
    return {"step": done, "loss": float(value), "gradient_norm": float(norm)}


def _identity(config: UNet3DConfig, settings: Settings, source: Source, backend: str) -> dict[str, str]:
    """Return what two parts of one run have in common."""
    names = [field.name for field in fields(settings) if field.name not in FREE]
    names = [name for name in names if name not in LATER or getattr(settings, name) != LATER[name]]
    fixed = {name: repr(getattr(settings, name)) for name in names}
    fixed = {name: re.sub(" at 0x[0-9a-f]+", "", text) for name, text in fixed.items()}  # a function's place in memory
    if settings.cool_down:
        fixed["steps"] = str(settings.steps)  # the end of the learning rate depends on it
    data: dict[str, Any] = {"clips": len(source), "shape": list(source.shape)}
    if hasattr(source, "fps"):
        data["fps"] = round(float(source.fps), 6) if source.fps else None
    if data.get("fps", 0.0) is None and hasattr(source, "every"):  # else the rate says it
        data["every"] = source.every
    return {
        "config": json.dumps(config.to_dict()),
        "settings": json.dumps(fixed),
        "source": json.dumps(data),
        "backend": backend,
    }


def _found(
    trainer: Any, settings: Settings, folder: Path, identity: dict[str, str], glimpse: list[float]
) -> checkpoints.Checkpoint | None:
    """Return the checkpoint to go on from, or raise where it does not fit."""
    found = checkpoints.newest(folder)
    if found is None:
        return None
    checkpoints.check_same(folder, found, identity, glimpse)
    held = trainer.held(found.path) if found.path.is_dir() else checkpoints.held(found.state)
    checkpoints.check_form(found.path, held, trainer.form())
    if found.step > settings.steps:
        raise ValueError(
            f"{checkpoints.FUNCTION}: `steps` is {settings.steps}, but the folder {folder.name!r} holds a run at step "
            f"{found.step}; take at least as many, or another folder"
        )
    return found


def _restored(trainer: Any, found: checkpoints.Checkpoint | None) -> int:
    """Return the step to go on from, with the state as it was there."""
    if found is None:
        return 0
    if found.path.is_dir():
        trainer.load(found.path)
    else:
        trainer.restore(found.state or weights.read_arrays(checkpoints.FUNCTION, found.path)[0])
    return found.step


def _cut(log: Path, step: int) -> None:
    """Leave of a log what came before a step."""
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    whole = ""
    for line in text.splitlines():  # what came after the checkpoint will come again; the last line may be half a one
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step:
                whole += line + "\n"
    if whole != text:
        _files.write(log, whole)


@contextlib.contextmanager
def _telling(progress: bool | Tell, first: int, steps: int) -> Iterator[Tell]:
    if callable(progress):
        yield progress
        return
    if not progress:
        yield lambda *_: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("training.train: `progress` needs tqdm; install diffcore[progress]") from error
    with tqdm(initial=first, total=steps, unit="step") as bar:

        def tell(done: int, row: dict[str, Any]) -> None:
            if row:
                bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            bar.update(done - bar.n)

        yield tell


def write_samples(model: Any, like: Any, settings: Settings, path: Path | None, count: int = 4) -> None:
    """Write clips that a model draws, the same seeds each time, as a contact sheet; None draws them alone."""
    from diffcore import _pictures

    plan = dc.samplers.dpm_solver_pp(settings.schedule, steps=settings.sample_steps)
    cond = None
    if model.config.condition == "class":
        labels = np.arange(count) % model.config.classes
        cond = _array.library(like).asarray(labels, device=_array.device(like))
    clips = dc.sample(
        lambda z, log_snr: model(z, log_snr, cond),
        plan,
        shape=(count, *model.config.shape),
        like=like,
        seed=settings.seed,
        prediction=model.config.prediction,
        transform_x=dc.guidance.clip(),
    )
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _pictures.write_sheet(
        path, [(f"seed {settings.seed}, clip {i}", clip) for i, clip in enumerate(_array.to_host(clips))]
    )
