"""Runs of training in torch and in JAX: what they leave, what they go on from, and what they refuse."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kills import halve, kills
from training_cases import (
    CONFIG,
    SETTINGS,
    STILL,
    TOKENS,
    Stopped,
    both,
    copied,
    digits,
    every_backend,
    left,
    module_of,
    rows,
    stop,
    tokens,
)
from training_cases import quick as quick

from diffcore import schedules, weights
from diffcore.unet3d import UNet3DConfig, build, data, load, save, training
from diffcore.unet3d import weights as files
from diffcore.unet3d.training import checkpoints, loop, train

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a run that was never stopped."""

    @functools.cache
    def of(backend: str) -> Path:
        folder = tmp_path_factory.mktemp(backend)
        train(CONFIG, SETTINGS, digits(), folder, backend=backend)
        return folder

    return of


# A run that was stopped


@every_backend
def test_what_a_run_leaves(backend: str, unbroken: Any) -> None:
    folder = unbroken(backend)
    kept = ["checkpoint.safetensors", "checkpoint.1.safetensors", "checkpoint.2.safetensors"]
    assert set(left(folder)) == {*kept, "log.jsonl", "model.safetensors"}
    assert [files.read_metadata("test", folder / name)["step"] for name in kept] == ["7", "6", "3"]
    assert [row["step"] for row in rows(folder)] == [2, 3, 4, 6, 7]
    assert all(set(row) == {"step", "loss", "gradient_norm", "learning_rate"} for row in rows(folder))
    content = files.read(folder / "model.safetensors")
    assert content.config == replace(CONFIG, schedule=SETTINGS.schedule)
    assert content.metadata["steps"] == "7"
    assert load(folder / "model.safetensors").config == content.config


def _half_written(patch: Any, target: Any) -> None:
    """Fail at the second file, once its bytes are written and before it has its name."""
    calls = itertools.count(1)  # of the first file, of its folder, of the second file
    stop(patch, target, "fsync", lambda number: next(calls) == 3)


PLACES: dict[str, Callable[[pytest.MonkeyPatch, Any], None]] = {
    **{
        f"before step {n}": lambda patch, trainer, n=n: stop(patch, trainer, "step", lambda _, at, *__: at == n)
        for n in range(7)
    },
    "after step 4": lambda patch, trainer: stop(patch, trainer, "step", lambda _, at, *__: at == 4, after=True),
    "before a checkpoint": lambda patch, trainer: stop(
        patch, files, "write", lambda _, __, metadata: metadata.get("step") == "6"
    ),
    "in the middle of a checkpoint": lambda patch, trainer: _half_written(patch, os),
    "after a checkpoint": lambda patch, trainer: stop(
        patch, files, "write", lambda _, __, metadata: metadata.get("step") == "3", after=True
    ),
    "after the last checkpoint": lambda patch, trainer: stop(
        patch, files, "write", lambda _, __, metadata: metadata.get("step") == "7", after=True
    ),
    "before the weights": lambda patch, trainer: stop(patch, trainer, "weights", lambda _: True),
}


@every_backend
@pytest.mark.parametrize("place", PLACES)
def test_a_stopped_run_goes_on_bit_for_bit(backend: str, place: str, unbroken: Any, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        PLACES[place](patch, module_of(backend).Trainer)
        with pytest.raises(Stopped):
            train(CONFIG, SETTINGS, digits(), tmp_path, backend=backend)
    assert not list(tmp_path.glob(".*.part"))
    train(CONFIG, SETTINGS, digits(), tmp_path, backend=backend)
    assert left(tmp_path) == left(unbroken(backend))


@every_backend
def test_a_kill_at_any_point_of_a_checkpoint_leaves_the_one_before_or_the_new_one(
    backend: str, unbroken: Any, tmp_path: Path
) -> None:
    """Also where one is removed for it, and nothing of it stays once the next run begins."""
    folder, tried, written = tmp_path / "run", tmp_path / "tried", dict[int, Any]()
    folder.mkdir()
    for path in unbroken(backend).glob("checkpoint*"):  # of steps 3, 6, 7, each read as the newest of a folder
        shutil.copy(path, folder / checkpoints.NEWEST)
        found = checkpoints.newest(folder)
        assert found is not None
        written[found.step] = found
    assert set(written) == {3, 6, 7}
    (folder / checkpoints.NEWEST).unlink()
    checkpoints.write(folder, written[3].state, written[3].metadata, 2)
    seen: list[tuple[int, int]] = []

    def copied() -> None:
        shutil.rmtree(tried, ignore_errors=True)
        shutil.copytree(folder, tried)

    for before, step in ((3, 6), (6, 7)):
        state, about = written[step].state, written[step].metadata
        for _ in kills(copied, lambda state=state, about=about: checkpoints.write(tried, state, about, 2)):  # type: ignore[misc]
            halve(tried)
            checkpoints.remove(tried, all_of_them=False)
            found = checkpoints.newest(tried)
            assert found is not None
            assert found.step in (before, step)
            assert found.state.keys() == state.keys()
            for name, array in found.state.items():
                np.testing.assert_array_equal(array, written[found.step].state[name])
            assert not list(tried.glob(".*.part"))
            seen.append((step, found.step))
        checkpoints.write(folder, state, about, 2)
    assert set(seen) == {(6, 3), (6, 6), (7, 6), (7, 7)}


@pytest.mark.torch
@pytest.mark.parametrize("rest", ['{"step": 4, "lo', '{"step": 5, "loss": 1.0}', "null\n", '{"loss": 1}\n', "\n"])
def test_what_a_killed_run_wrote_after_its_checkpoint_is_taken_back(rest: str, unbroken: Any, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        PLACES["before step 5"](patch, module_of("torch").Trainer)
        with pytest.raises(Stopped):
            train(CONFIG, SETTINGS, digits(), tmp_path)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write(rest)
    (tmp_path / ".checkpoint.safetensors.0123456789abcdef.part").write_bytes(b"half of it")
    (tmp_path / ".download.part").write_bytes(b"of another program")
    train(CONFIG, SETTINGS, digits(), tmp_path)
    assert left(tmp_path) == {**left(unbroken("torch")), ".download.part": b"of another program"}


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from dataclasses import replace
from training_cases import CONFIG, SETTINGS
from diffcore.unet3d import data
from diffcore.unet3d.training import torch_trainer, train

folders, seed = [Path(name) for name in sys.argv[1:3]], int(sys.argv[3])
settings, rng = replace(SETTINGS, steps=24), random.Random(seed)
source = data.Arrays(np.random.default_rng(0).random((9, 4, 8, 8, 1)), np.arange(9) + 1, frames=2)

def start(folder):
    child = os.fork()
    if child == 0:
        try:
            train(CONFIG, settings, source, folder)
        finally:
            os._exit(int(not (folder / "model.safetensors").is_file()))
    return child

began = time.monotonic()
assert os.waitpid(start(folders[0]), 0)[1] == 0
whole, killed = time.monotonic() - began, 0
for _ in range(5):
    child = start(folders[1])
    time.sleep(whole * rng.uniform(0.02, 0.4))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
assert os.waitpid(start(folders[1]), 0)[1] == 0
print(killed)
"""


@pytest.mark.torch
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_run_that_is_killed_at_any_moment_goes_on_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    seed = int.from_bytes(os.urandom(4))
    given = [sys.executable, "-c", KILLED, str(tmp_path / "one"), str(tmp_path / "other"), str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(given, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, (seed, done.stderr)
    assert int(done.stdout) >= 1, seed
    assert left(tmp_path / "one") == left(tmp_path / "other"), seed


@pytest.fixture
def interrupt() -> Iterator[Callable[..., Any]]:
    """Give what interrupts this process at a step, as Ctrl-C does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

    def at(number: int, times: int = 1) -> Any:
        def tell(done: int, row: dict[str, Any]) -> None:
            for _ in range(times if done == number else 0):
                signal.raise_signal(signal.SIGINT)

        return tell

    yield at
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@every_backend
def test_an_interrupted_run_goes_on_bit_for_bit(backend: str, interrupt: Any, unbroken: Any, tmp_path: Path) -> None:
    settings = replace(SETTINGS, checkpoint_every=100)
    assert training.step_of(tmp_path) == 0
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, settings, digits(), tmp_path, backend=backend, progress=interrupt(1))
    assert training.step_of(tmp_path) == 2
    assert not (tmp_path / "model.safetensors").exists()
    train(CONFIG, settings, digits(), tmp_path, backend=backend)
    assert training.step_of(tmp_path) == 7
    found, wanted = (files.read(folder / "model.safetensors").arrays for folder in (tmp_path, unbroken(backend)))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert rows(tmp_path)[0]["step"] == 2


@pytest.mark.torch
def test_a_second_interrupt_does_not_wait(interrupt: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, SETTINGS, digits(), tmp_path, progress=interrupt(1, times=2))
    assert training.step_of(tmp_path) == 0


@pytest.mark.torch
@pytest.mark.parametrize("step", [6, 7])
def test_an_interrupt_at_the_end_leaves_a_whole_run(step: int, interrupt: Any, unbroken: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, SETTINGS, digits(), tmp_path, progress=interrupt(step))
    assert left(tmp_path) == left(unbroken("torch"))


@pytest.mark.torch
def test_a_handler_of_ones_own_and_another_thread_are_left_alone(tmp_path: Path) -> None:
    seen, found = list[int](), list[Any]()
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    progress = lambda done, row: signal.raise_signal(signal.SIGINT) if done == 1 else None  # noqa: E731
    try:
        train(CONFIG, replace(SETTINGS, steps=2), digits(), tmp_path / "one", progress=progress)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert seen == [signal.SIGINT]
    try:
        give = lambda: found.append(train(CONFIG, replace(SETTINGS, steps=2), digits(), tmp_path / "two"))  # noqa: E731
        thread = threading.Thread(target=give)
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [tmp_path / "two" / "model.safetensors"]


@pytest.mark.torch
def test_two_runs_in_one_folder_exclude_each_other(unbroken: Any, tmp_path: Path) -> None:
    def other(done: int, row: dict[str, Any]) -> None:
        if done == 2:
            for settings in (SETTINGS, replace(SETTINGS, seed=1)):
                with pytest.raises(
                    BlockingIOError, match=r"^training.train: another run trains in the folder 'run'; wait"
                ):
                    train(CONFIG, settings, digits(), tmp_path / "run", overwrite=True)

    train(CONFIG, SETTINGS, digits(), tmp_path / "run", progress=other)
    assert left(tmp_path / "run") == left(unbroken("torch"))
    with pytest.MonkeyPatch.context() as patch:  # one that failed holds nothing
        PLACES["before step 1"](patch, module_of("torch").Trainer)
        with pytest.raises(Stopped):
            train(CONFIG, SETTINGS, digits(), tmp_path / "new")
    train(CONFIG, SETTINGS, digits(), tmp_path / "new")


@pytest.mark.torch
def test_a_run_may_begin_anew(unbroken: Any, tmp_path: Path) -> None:
    train(CONFIG, replace(SETTINGS, seed=1, steps=9), digits(), tmp_path)
    train(CONFIG, SETTINGS, digits(), tmp_path, overwrite=True)
    assert left(tmp_path) == left(unbroken("torch"))


@every_backend
def test_steps_may_be_raised_and_not_lowered(backend: str, unbroken: Any, tmp_path: Path) -> None:
    train(CONFIG, replace(SETTINGS, steps=4), digits(), tmp_path, backend=backend)
    train(CONFIG, SETTINGS, digits(), tmp_path, backend=backend)
    for name in ("model.safetensors", "checkpoint.safetensors"):
        assert left(tmp_path)[name] == left(unbroken(backend))[name]
    with pytest.raises(ValueError, match=r"`steps` is 5, but the folder .* holds a run at step 7"):
        train(CONFIG, replace(SETTINGS, steps=5), digits(), tmp_path, backend=backend)


@every_backend
def test_a_finished_run_returns_at_once(
    backend: str, unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(unbroken(backend), tmp_path / "copy")
    stop(monkeypatch, module_of(backend).Trainer, "step", lambda *_: True)
    assert train(CONFIG, SETTINGS, digits(), folder, backend=backend) == folder / "model.safetensors"
    assert left(folder) == left(unbroken(backend))


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "config": ({"config": replace(CONFIG, dropout=0.1)}, "another network: dropout 0.2 instead of 0.1"),
    "settings": (
        {"settings": replace(SETTINGS, learning_rate=0.5, seed=3)},
        "other settings: learning_rate 0.01 instead of 0.5, seed 0 instead of 3",
    ),
    "a schedule": (
        {"settings": replace(SETTINGS, schedule=schedules.Sigmoid())},
        r"schedule {'kind': 'Cosine'.* instead of {'kind': 'Sigmoid'",
    ),
    "the end, where the rate depends on it": ({"settings": replace(SETTINGS, cool_down=2)}, "cool_down 0 instead of 2"),
    "source": ({"source": digits}, "other data: clips 24 instead of 25"),
    "backend": ({"backend": "jax"}, "another backend: torch instead of jax"),
}


def test_a_rate_is_compared_where_the_checkpoint_has_one(tmp_path: Path) -> None:
    def check(before: str, now: str) -> None:
        found = checkpoints.Checkpoint(tmp_path, {}, {"source": before, "glimpse": "[]"}, 1)
        checkpoints.check_same(tmp_path, found, {"source": now}, [])

    check('{"clips": 3}', '{"clips": 3, "fps": 10.0}')  # of an earlier version
    check('{"clips": 3, "fps": null}', '{"clips": 3, "fps": null}')
    with pytest.raises(ValueError, match=r"holds a run on other data: fps 10.0 instead of None"):
        check('{"clips": 3, "fps": 10.0}', '{"clips": 3, "fps": null}')
    with pytest.raises(ValueError, match="every 1 instead of 2"):
        check('{"clips": 3, "fps": null, "every": 1}', '{"clips": 3, "fps": null, "every": 2}')
    with pytest.raises(ValueError, match="clips 3 instead of 4"):
        check('{"clips": 3}', '{"clips": 4, "fps": 10.0}')


@pytest.mark.parametrize("other", [pytest.param(name, marks=both) for name in OTHERS])
def test_the_checkpoint_of_another_run_is_refused(other: str, unbroken: Any, tmp_path: Path) -> None:
    folder = copied(unbroken("torch"), tmp_path / "copy")
    changes, message = OTHERS[other]
    given = {"config": CONFIG, "settings": SETTINGS, "source": digits(), "backend": "torch", **changes}
    given["source"] = digits(25) if other == "source" else given["source"]
    with pytest.raises(ValueError, match=message):
        train(given["config"], given["settings"], given["source"], folder, backend=given["backend"])
    assert left(folder) == left(unbroken("torch"))


@pytest.mark.torch
def test_other_data_of_the_same_size_are_noticed_and_another_rounding_is_not(unbroken: Any, tmp_path: Path) -> None:
    folder, longer = copied(unbroken("torch"), tmp_path / "copy"), replace(SETTINGS, steps=8)
    clips = digits().clips
    with pytest.raises(ValueError, match=r"a run on other data: the means .*, in their order, or take another folder"):
        train(CONFIG, longer, data.Arrays(clips[::-1], frames=CONFIG.frames, labels=digits().labels), folder)
    assert left(folder) == left(unbroken("torch"))
    near = data.Arrays(np.maximum(clips, 2), frames=CONFIG.frames, labels=digits().labels)
    train(CONFIG, longer, near, folder)


@pytest.mark.torch
def test_a_weight_of_ones_own_is_told_by_its_name_and_not_by_its_place_in_memory(tmp_path: Path) -> None:
    of = [replace(SETTINGS, weight=lambda level, slope: weights.V()(level)) for _ in range(2)]
    assert repr(of[0].weight) != repr(of[1].weight)
    assert loop._identity(CONFIG, of[0], digits(), "torch") == loop._identity(CONFIG, of[1], digits(), "torch")


def _flipped(path: Path) -> None:
    """Flip one bit of the number in the middle, which a file without a digest would not show."""
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


@every_backend
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(
    backend: str, unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(unbroken(backend), tmp_path / "copy")
    newest, before, first = (folder / f"checkpoint{age}.safetensors" for age in ("", ".1", ".2"))
    _flipped(newest)
    before.write_bytes(before.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"checkpoint.safetensors is damaged .* at step 3$"):
        assert training.step_of(folder) == 3
    with pytest.warns(
        UserWarning, match=r"checkpoint.safetensors is damaged .* going on from checkpoint.2.safetensors"
    ):
        train(CONFIG, SETTINGS, digits(), folder, backend=backend)
    assert [left(folder)[name] for name in ("model.safetensors", newest.name, before.name)] == [
        left(unbroken(backend))[name] for name in ("model.safetensors", newest.name, before.name)
    ]
    stop(monkeypatch, module_of(backend).Trainer, "step", lambda *_: True)
    for path in (newest, before, first):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        ValueError, match=r"checkpoint.safetensors is no whole .* no older one is whole, .* overwrite=True"
    ):
        train(CONFIG, SETTINGS, digits(), folder, backend=backend)


@every_backend
@pytest.mark.parametrize("wrong", ["shape", "dtype", "lacks", "more", "no digest"])
def test_a_checkpoint_that_does_not_fit_is_refused(backend: str, wrong: str, unbroken: Any, tmp_path: Path) -> None:
    folder = copied(unbroken(backend), tmp_path / "copy")
    state, metadata = files.read_arrays("test", folder / "checkpoint.safetensors")
    name = "averaged/" + ("output.bias" if backend == "jax" else next(n for n in state if n[:9] == "averaged/")[9:])
    state = {
        "shape": {**state, name: state[name].reshape(-1)[:1].reshape(1, 1)},  # which broadcasts
        "dtype": {**state, name: state[name].astype(np.float64)},
        "lacks": {other: array for other, array in state.items() if other != name},
        "more": {**state, "more": np.zeros(1)},
        "no digest": state,
    }[wrong]
    if wrong == "no digest":
        from safetensors.numpy import save_file

        for path in folder.glob("checkpoint*"):
            save_file(state, path, metadata=metadata)
        says = "its digest is missing"
    else:
        files.write(folder / "checkpoint.safetensors", state, metadata)
        says = {"lacks": "lacks", "more": "has unknown arrays: more"}.get(wrong, "has shape .* float")
    with pytest.raises(ValueError, match=rf"^training.train: checkpoint.safetensors .*{says}"):
        train(CONFIG, SETTINGS, digits(), folder, backend=backend)


@every_backend
def test_an_average_that_is_not_finite_is_not_kept(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = module_of(backend).Trainer
    state = trainer.state

    def spoiled(self: Any) -> Any:
        found = state(self)
        name = next(name for name in found if name.startswith("averaged/"))
        return {**found, name: found[name] * np.float32(np.nan)}

    train(CONFIG, replace(SETTINGS, steps=3), digits(), tmp_path, backend=backend)
    before = left(tmp_path)
    monkeypatch.setattr(trainer, "state", spoiled)
    with pytest.raises(ValueError, match=r"'averaged/.* has NaN or infinity .* after step 6; start in a new folder"):
        train(CONFIG, SETTINGS, digits(), tmp_path, backend=backend)
    assert {name: found for name, found in left(tmp_path).items() if name != "log.jsonl"} == {
        name: found for name, found in before.items() if name != "log.jsonl"
    }


@pytest.mark.torch
def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path: Path) -> None:
    for kept in (1, 4, 2):
        steps = {1: 3, 4: 6, 2: 7}[kept]
        (tmp_path / "checkpoint.other.safetensors").touch()
        train(CONFIG, replace(SETTINGS, steps=steps, checkpoint_every=1, checkpoints=kept), digits(), tmp_path)
        assert len(list(tmp_path.glob("checkpoint*"))) == min(kept, 4) + 1


@every_backend
def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_a_sound_checkpoint(backend: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, learning_rate=1e30, warm_up=0, log_every=100, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"the loss is .* near step 2; .* lower learning rate"):
        train(STILL, settings, digits(), tmp_path, backend=backend)
    assert [row["step"] for row in rows(tmp_path)] == [1]
    arrays, metadata = files.read_arrays("test", tmp_path / "checkpoint.safetensors")
    assert metadata["step"] == "1"
    assert all(np.all(np.isfinite(array)) for array in arrays.values())
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.torch
def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of("torch").Trainer, "step", lambda self, number, drawn: (1.0, math.inf))
    with pytest.raises(ValueError, match="the norm of its gradient inf near step 2"):
        train(STILL, SETTINGS, digits(), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


# What does not fit


def clips(frames: int = 2, channels: int = 1, labels: Any = (0, 1, 9)) -> data.Arrays:
    some = np.zeros((3, 2, 8, 8, channels), dtype=np.uint8)
    return data.Arrays(some, None if labels is None else list(labels), frames=frames)


@pytest.mark.parametrize(
    ("config", "source", "of_labels", "message"),
    [
        (CONFIG, clips(frames=1), None, "1 frames and 1 channels, but `config` takes 2 and 1"),
        (CONFIG, clips(channels=3), None, "2 frames and 3 channels, but `config` takes 2 and 1"),
        (CONFIG, clips(labels=None), None, "condition 'class', but `source` has no labels"),
        (TOKENS, clips(labels=None), tokens(), "condition 'tokens', but `source` has no labels"),
        (CONFIG, clips(labels=(0, 1, 2)), None, "3 classes, but `config` takes 10"),
        (CONFIG, clips(), tokens(), "`tokens` is given, but the condition is 'class'"),
        (TOKENS, clips(), None, "`tokens` is missing, but the condition is 'tokens'"),
        (TOKENS, clips(), tuple(some[:9] for some in tokens()), r"`tokens` has \[9, 9\] rows, but takes .* 10 labels"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(
    config: UNet3DConfig, source: data.Arrays, of_labels: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(config, SETTINGS, source, tmp_path / "new", tokens=of_labels)
    assert not (tmp_path / "new").exists()


def test_numpy_has_no_gradients(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`backend` must be 'torch' or 'jax', got 'numpy'; NumPy has no gradients"):
        train(CONFIG, SETTINGS, digits(), tmp_path, backend="numpy")


@pytest.mark.parametrize(("backend", "library"), [("torch", "torch"), ("jax", "optax"), ("torch", "filelock")])
def test_a_missing_library_is_named(
    backend: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"diffcore.unet3d.training.{backend}_trainer", raising=False)
    with pytest.raises(ImportError, match=rf"training.train: .*; install diffcore\[{backend}\]"):
        train(CONFIG, SETTINGS, digits(), tmp_path, backend=backend)


# Samples, the bar, the command


@every_backend
def test_samples_are_written_as_a_sheet(backend: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    settings = replace(SETTINGS, steps=3, sample_every=2, sample_steps=1, checkpoint_every=9)
    train(STILL, settings, digits(), tmp_path, backend=backend)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["0000002.png", "0000003.png"]
    with image.open(tmp_path / "samples" / "0000003.png") as sheet:
        assert sheet.size == (2 * (12 * 8 + 4) + 4, 4 * (12 * 8 + 14 + 4) + 4)


def test_samples_of_any_condition(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    for number, config in enumerate([STILL, TOKENS, replace(STILL, condition="none", classes=0)]):
        loop.write_samples(build(config), np.zeros(1, np.float32), SETTINGS, tmp_path / f"{number}.png", count=1)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.torch
def test_the_bar_counts_on_from_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    for steps in (2, 4):
        train(STILL, replace(SETTINGS, steps=steps), digits(), tmp_path, progress=True)
    assert "4/4" in capsys.readouterr().err


@pytest.mark.torch
def test_the_shipped_model_is_trained_by_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffcore.unet3d.digits import train as script

    monkeypatch.setattr(script, "preset", lambda name: STILL)
    monkeypatch.setitem(training.PRESETS, "moving_digits", replace(SETTINGS, cool_down=1))
    video = ["--causal", "--frame-times", "pyramid", "--lag", "0.5", "--frames", "4"]
    script.main(["--out", str(tmp_path), "--steps", "2", *video])
    assert str(tmp_path / "model.safetensors") in capsys.readouterr().out
    assert rows(tmp_path)[-1]["step"] == 2
    config = load(tmp_path / "moving_digits_causal.safetensors").config
    assert (config.causal, config.frames) == (True, 4)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::diffcore.metrics.SmallSample")
@pytest.mark.parametrize("method", ["forcing", "rolling"])
def test_a_model_of_digits_is_evaluated_over_long_clips(method: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from diffcore.unet3d.digits import long

    config = replace(STILL, frames=4, size=16, causal=True)
    save(build(config, seed=3), tmp_path / "some.safetensors")
    with pytest.raises(SystemExit):
        long.main([str(tmp_path / "some.safetensors"), "--out", str(tmp_path / "found.json"), "--count", "1"])
    how = ["--frames", "13", "--count", "3", "--steps", "4", "--overlap", "2", "--method", method]
    long.main([str(tmp_path / "some.safetensors"), "--out", str(tmp_path / "found.json"), *how])
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["window"], found["history"]) == (4, 20.0)
    real, drawn = found["real"], found["drawn"]
    assert all(len(drawn[name]) == len(real[name]) == 3 for name in ("frechet_distance", "digit_as_asked", "speed"))
    assert max(real["frechet_distance"]) < min(drawn["frechet_distance"])
    assert real["digit_held"] > 0.9
    assert ("change_at_seams" in drawn) == (method == "forcing")
    assert drawn["drift"] == pytest.approx(drawn["frechet_distance"][-1] - drawn["frechet_distance"][0])
