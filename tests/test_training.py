"""Training in torch and in JAX: one battery over both, with the rules of the optimiser in closed form.

The configuration has dropout, labels, independent images and flips, so that a run that goes on bit for bit does so with
all that is drawn.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libraries import JAX, TORCH, host, put

from diffcore import schedules, weights
from diffcore.unet3d import UNet3DConfig, build, data, load, training
from diffcore.unet3d import weights as files
from diffcore.unet3d.build import assemble
from diffcore.unet3d.training import PRESETS, Settings, loop, objective, train

CONFIG = UNet3DConfig(
    frames=2,
    size=8,
    channels=1,
    base_channels=8,
    multipliers=(1,),
    blocks=1,
    attention=(),
    head_dim=4,
    embedding=8,
    mlp_layers=2,
    dropout=0.2,
    condition="class",
    classes=10,
)
SETTINGS = Settings(
    steps=7,
    batch=2,
    images=1,
    flip=True,
    learning_rate=1e-2,
    warm_up=2,
    beta1=0.8,
    beta2=0.95,
    weight_decay=0.1,
    clip_norm=0.5,
    ema=0.9,
    log_every=2,
    checkpoint_every=3,
)
STILL = replace(CONFIG, dropout=0.0)
TOKENS = replace(STILL, condition="tokens", classes=0, token_width=3)
every_backend = pytest.mark.parametrize("backend", [TORCH, JAX])
both = [pytest.mark.torch, pytest.mark.jax]


class Stopped(Exception):
    """What stops a run."""


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Compile a step of JAX once for all settings that share it, and without optimisation."""
    try:
        import jax

        from diffcore.unet3d.training import jax_trainer
    except ImportError:
        yield
        return
    inside = ("images", "beta1", "beta2", "weight_decay", "clip_norm", "schedule", "weight", "precision", "seed")
    once = functools.cache(jax_trainer.compiled)

    def compiled(graph: Any, config: Any, settings: Any) -> Any:
        return once(graph, config, Settings(steps=1, **{name: getattr(settings, name) for name in inside}))

    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax_trainer, "compiled", compiled)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def digits(count: int = 24) -> data.Arrays:
    return data.moving_digits(frames=CONFIG.frames, size=CONFIG.size, count=count, digit_size=8)


def tokens() -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    return rng.normal(size=(10, 4, 3)).astype(np.float32), np.arange(4) <= np.arange(10)[:, None] % 4


def module_of(backend: str) -> Any:
    return importlib.import_module(f"diffcore.unet3d.training.{backend}_trainer")


def advance(backend: str, config: Any, settings: Settings, steps: int = 3, **options: Any) -> tuple[Any, list[Any]]:
    """Return a trainer after some steps, and the (loss, norm) of each."""
    trainer = module_of(backend).Trainer(config, settings, **options)
    of_labels = tokens() if config.condition == "tokens" else None
    drawn = [objective.draw(config, settings, digits(), of_labels, step) for step in range(steps)]
    return trainer, [tuple(map(float, trainer.step(step, some))) for step, some in enumerate(drawn)]


def part(trainer: Any, kind: str) -> dict[str, Any]:
    """Return the arrays of one kind in a trainer's state, float64."""
    kind = {"mu": "exp_avg", "nu": "exp_avg_sq"}.get(kind, kind) if trainer.library == "torch" else kind
    start = f"{kind}/"
    return {
        name.removeprefix(start): array.astype(np.float64)
        for name, array in trainer.state().items()
        if name.startswith(start)
    }


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the log of a run without its times."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def left(folder: Path) -> dict[str, Any]:
    """Return all that a run left behind, to be compared."""
    return {
        path.name: rows(folder) if path.name == "log.jsonl" else path.read_bytes() for path in sorted(folder.iterdir())
    }


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a run that was never stopped."""

    @functools.cache
    def of(backend: str) -> Path:
        folder = tmp_path_factory.mktemp(backend)
        train(CONFIG, SETTINGS, digits(), folder, backend=backend)
        return folder

    return of


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def stop(patch: pytest.MonkeyPatch, target: Any, name: str, when: Callable[..., bool], after: bool = False) -> None:
    """Let a function raise where `when` says so of its arguments: before it does anything, or once it is done."""
    inner = getattr(target, name)

    @functools.wraps(inner)
    def wrapped(*given: Any, **named: Any) -> Any:
        due = when(*given)
        if due and not after:
            raise Stopped
        found = inner(*given, **named)
        if due:
            raise Stopped
        return found

    patch.setattr(target, name, wrapped)


# A run that was stopped


@every_backend
def test_what_a_run_leaves(backend: str, unbroken: Any) -> None:
    folder = unbroken(backend)
    assert set(left(folder)) == {"checkpoint.safetensors", "log.jsonl", "model.safetensors"}
    assert [row["step"] for row in rows(folder)] == [2, 3, 4, 6, 7]
    assert all(set(row) == {"step", "loss", "gradient_norm", "learning_rate"} for row in rows(folder))
    content = files.read(folder / "model.safetensors")
    assert content.config == CONFIG
    assert content.metadata["steps"] == "7"
    assert load(folder / "model.safetensors").config == CONFIG


def _half_written(patch: Any, target: Any) -> None:
    """Fail at the second file, once its bytes are written and before it has its name."""
    calls = itertools.count(1)
    stop(patch, target, "fsync", lambda number: next(calls) == 2)


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
    assert not list(tmp_path.glob(".*"))
    train(CONFIG, SETTINGS, digits(), tmp_path, backend=backend)
    assert left(tmp_path) == left(unbroken(backend))


@pytest.mark.torch
@pytest.mark.parametrize("rest", ['{"step": 4, "lo', '{"step": 5, "loss": 1.0}', "null\n", '{"loss": 1}\n', "\n"])
def test_what_a_killed_run_wrote_after_its_checkpoint_is_taken_back(rest: str, unbroken: Any, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        PLACES["before step 5"](patch, module_of("torch").Trainer)
        with pytest.raises(Stopped):
            train(CONFIG, SETTINGS, digits(), tmp_path)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write(rest)
    (tmp_path / ".checkpoint.safetensors.1.part").write_bytes(b"half of it")
    train(CONFIG, SETTINGS, digits(), tmp_path)
    assert left(tmp_path) == left(unbroken("torch"))


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import test_training as t
from diffcore.unet3d.training import torch_trainer

folders, seed = [Path(name) for name in sys.argv[1:3]], int(sys.argv[3])
settings, rng = t.replace(t.SETTINGS, steps=24), random.Random(seed)
source = t.data.Arrays(t.np.random.default_rng(0).random((9, 4, 8, 8, 1)), t.np.arange(9) + 1, frames=2)

def start(folder):
    child = os.fork()
    if child == 0:
        try:
            t.train(t.CONFIG, settings, source, folder)
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
    "config": ({"config": replace(CONFIG, dropout=0.1)}, "another config: dropout 0.2 instead of 0.1"),
    "settings": (
        {"settings": replace(SETTINGS, learning_rate=0.5, seed=3)},
        "another settings: learning_rate 0.01 instead of 0.5, seed 0 instead of 3",
    ),
    "a schedule": (
        {"settings": replace(SETTINGS, schedule=schedules.Sigmoid())},
        r"schedule Cosine\(.* instead of Sigmoid\(",
    ),
    "the end, where the rate depends on it": ({"settings": replace(SETTINGS, cool_down=2)}, "cool_down 0 instead of 2"),
    "source": ({"source": digits}, "another source: clips 24 instead of 25"),
    "backend": ({"backend": "jax"}, "another backend: torch instead of jax"),
}


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
def test_a_weight_of_ones_own_is_told_by_its_name_and_not_by_its_place_in_memory(tmp_path: Path) -> None:
    of = [replace(SETTINGS, weight=lambda level, slope: weights.V()(level)) for _ in range(2)]
    assert repr(of[0].weight) != repr(of[1].weight)
    assert loop._identity(CONFIG, of[0], digits(), "torch") == loop._identity(CONFIG, of[1], digits(), "torch")


@pytest.mark.torch
def test_a_damaged_checkpoint_is_told(unbroken: Any, tmp_path: Path) -> None:
    folder = copied(unbroken("torch"), tmp_path / "copy")
    kept = folder / "checkpoint.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"training.train: checkpoint.safetensors is no whole safetensors file"):
        train(CONFIG, SETTINGS, digits(), folder)


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


# What a step does


@every_backend
def test_the_loss_falls(backend: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=60, log_every=20, checkpoint_every=60)
    train(STILL, settings, digits(), tmp_path, backend=backend)
    losses = [row["loss"] for row in rows(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("config", [pytest.param(config, marks=both) for config in (STILL, TOKENS)])
def test_torch_and_jax_take_the_same_steps(config: UNet3DConfig) -> None:
    settings = replace(SETTINGS, learning_rate=1e-3, condition_dropout=0.3)
    (torch, of_torch), (jax, of_jax) = (advance(backend, config, settings) for backend in ("torch", "jax"))
    np.testing.assert_allclose(of_jax, of_torch, rtol=1e-5)
    ours, theirs = jax.weights(), torch.weights()
    assert list(ours) == list(theirs) or set(ours) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-5, err_msg=name)
        assert ours[name].dtype == array.dtype == np.float32


@every_backend
@pytest.mark.parametrize("clip_norm", [SETTINGS.clip_norm, math.inf])
def test_the_first_step_is_clipped_adamw_in_closed_form(backend: str, clip_norm: float) -> None:
    settings = replace(SETTINGS, clip_norm=clip_norm, warm_up=0)
    free, ((_, norm),) = advance(backend, STILL, replace(settings, clip_norm=math.inf), steps=1)
    trainer, ((_, told),) = advance(backend, STILL, settings, steps=1)
    before = part(module_of(backend).Trainer(STILL, settings), "model")
    gradient = {name: array / 0.2 for name, array in part(free, "mu").items()}
    np.testing.assert_allclose(norm, math.sqrt(sum(np.sum(array**2) for array in gradient.values())), rtol=1e-5)
    np.testing.assert_allclose(told, norm, rtol=1e-6)
    shrink = min(1.0, clip_norm / (norm + 1e-6))
    assert (shrink < 1.0) == (clip_norm < math.inf)
    after, mu, nu = (part(trainer, kind) for kind in ("model", "mu", "nu"))
    for name, g in gradient.items():
        np.testing.assert_allclose(mu[name], 0.2 * shrink * g, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(nu[name], 0.05 * (shrink * g) ** 2, rtol=1e-5, atol=1e-12)
        exact = (1 - 0.1 * 1e-2) * before[name] - 1e-2 * shrink * g / (np.abs(shrink * g) + 1e-8)
        np.testing.assert_allclose(after[name], exact, rtol=1e-5, atol=1e-5, err_msg=name)


@every_backend
def test_the_averaged_weights_are_the_closed_form_sum(backend: str) -> None:
    trainer = module_of(backend).Trainer(STILL, SETTINGS)
    seen, kept = [part(trainer, "model")], [1.0]
    for step in range(4):
        trainer.step(step, objective.draw(STILL, SETTINGS, digits(), None, step))
        d = min(SETTINGS.ema, (1 + step) / (10 + step))
        kept = [d * share for share in kept] + [1.0 - d]
        seen.append(part(trainer, "model"))
    for name, mean in part(trainer, "averaged").items():
        exact = sum(share * some[name] for share, some in zip(kept, seen, strict=True))
        np.testing.assert_allclose(mean, exact, rtol=1e-5, atol=1e-6, err_msg=name)
    saved, sampled = trainer.weights(), trainer.averaged.arrays()
    assert all(np.array_equal(saved[name], sampled[name]) for name in sampled)


@every_backend
def test_checkpointing_changes_nothing(backend: str) -> None:
    (plain, first), (kept, second) = (advance(backend, CONFIG, SETTINGS, 2, checkpointing=c) for c in (False, True))
    np.testing.assert_allclose(second, first, rtol=1e-5)
    for name, array in plain.weights().items():
        np.testing.assert_allclose(kept.weights()[name], array, atol=1e-5, err_msg=name)


@every_backend
def test_bfloat16_is_near_and_keeps_float32(backend: str) -> None:
    (_, wide), (trainer, half) = (
        advance(backend, STILL, replace(SETTINGS, precision=precision)) for precision in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(half, wide, rtol=0.1)
    assert half != wide
    assert {array.dtype for name, array in trainer.state().items() if "/" in name} == {np.dtype(np.float32)}
    z = objective.draw(STILL, SETTINGS, digits(), None, 0).x
    exact = assemble("test", STILL, trainer.weights(), "numpy")(z, np.float32(0.5))
    said = host(trainer.averaged(put(z, trainer.like()), put(0.5, trainer.like())))
    np.testing.assert_allclose(said, exact, atol=1e-4)  # which samples of half precision would miss


@every_backend
def test_dropout_is_drawn_from_seed_and_step_alone(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    def loss(predict: Any, settings: Any, config: Any, drawn: Any, number: Any) -> Any:
        return (predict(drawn.x, drawn.t, drawn.cond, drawn.images) ** 2).mean()  # without the noise of the step

    monkeypatch.setattr(module_of(backend), "loss", loss)
    drawn = objective.draw(CONFIG, SETTINGS, digits(), None, 0)

    def of(seed: int, number: int) -> float:
        trainer, _ = advance(backend, CONFIG, replace(SETTINGS, seed=seed), 1)
        state, rng = trainer.state(), np.random.default_rng(0)
        for name in sorted(state):  # those that a network starts from let nothing through
            if name.startswith("model/"):
                state[name] = rng.normal(size=state[name].shape).astype(np.float32)
        trainer.restore(state)
        if backend == "torch":
            import torch

            torch.manual_seed(random.getrandbits(32))
        return float(trainer.step(number, drawn)[0])

    assert of(90, 1) == of(90, 1)
    assert len({of(90, 1), of(90, 2), of(91, 1)}) == 3


@pytest.mark.torch
def test_the_users_generator_is_left_alone() -> None:
    import torch

    torch.manual_seed(3)
    before = torch.get_rng_state()
    advance("torch", CONFIG, SETTINGS, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.jax
def test_a_step_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    calls: list[Any] = []

    def loss(predict: Any, settings: Any, config: Any, drawn: Any, number: Any) -> Any:
        calls.append(number)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(predict.func))

    monkeypatch.setattr(module_of("jax"), "loss", loss)
    advance("jax", STILL, replace(SETTINGS, seed=99, cool_down=2), 3)
    assert len(calls) == 1


@every_backend
def test_a_device_by_name(backend: str) -> None:
    trainer = module_of(backend).Trainer(STILL, SETTINGS, device="cpu")
    assert "cpu" in str(trainer.like().device).lower()
    assert "cpu" in str(getattr(trainer.averaged.input.weight, "device", None)).lower()


# What a step is given


def wide_draw(step: int = 0, config: UNet3DConfig = CONFIG, **changes: Any) -> objective.Drawn:
    settings = replace(SETTINGS, batch=200, **changes)
    return objective.draw(config, settings, digits(), tokens() if config.condition == "tokens" else None, step)


@pytest.mark.parametrize("images", [0, 2])
def test_a_clip_has_one_time_and_each_image_its_own(images: int) -> None:
    x, t, cond, told = wide_draw(images=images)
    assert (told, x.shape, t.shape) == (images, (200, 2 + images, 8, 8, 1), (200, 2 + images))
    assert np.all(t[:, 0] == t[:, 1])
    assert np.all((t > 0) & (t < 1))
    assert len(np.unique(t)) == 200 * (1 + images)
    assert cond.shape == ((200, 2 + images) if images else (200,))
    for column in range(t.shape[1]):  # stratified: one in every 200th part
        assert np.array_equal(np.sort(np.floor(200 * t[:, column])), np.arange(200))


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("config", [CONFIG, TOKENS])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_conditions_are_dropped_as_often_as_told(rate: float, config: UNet3DConfig, images: int) -> None:
    changes = {"images": images, "condition_dropout": rate}
    labels = wide_draw(config=CONFIG, **{**changes, "condition_dropout": 0.0}).cond
    assert np.all((labels >= 0) & (labels < 10))
    cond = wide_draw(config=config, **changes).cond
    if config.condition == "tokens":
        dropped = ~cond[1].any(axis=-1)
        assert np.array_equal(cond[0], tokens()[0][labels])
        assert np.array_equal(cond[1][~dropped], tokens()[1][labels][~dropped])
    else:
        dropped = cond == 10
        assert np.array_equal(cond[~dropped], labels[~dropped])
    if images:
        assert np.array_equal(dropped[:, 0], dropped[:, 1])
    draws = dropped[:, 1:] if images else dropped
    assert abs(draws.mean() - rate) <= 5 * math.sqrt(rate * (1 - rate) / draws.size)


def test_what_a_step_is_given_depends_on_seed_and_step_alone() -> None:
    first, second, later, other = wide_draw(3), wide_draw(3), wide_draw(4), wide_draw(3, seed=1)
    for some in range(3):
        assert np.array_equal(first[some], second[some])
        assert not np.array_equal(first[some], later[some])
        assert not np.array_equal(first[some], other[some])
    for rate in (0.0, 1.0):
        changed = wide_draw(3, condition_dropout=rate)
        assert np.array_equal(changed.x, first.x)
        assert np.array_equal(changed.t, first.t)
    assert objective.draw(replace(CONFIG, condition="none", classes=0), SETTINGS, digits(), None, 0).cond is None


def test_flips_mirror_half_of_the_clips_and_images_as_a_whole() -> None:
    plain, flipped = wide_draw(flip=False).x, wide_draw(flip=True).x
    mirrored = plain[:, :, :, ::-1]
    for frames in (slice(0, 2), slice(2, 3)):
        same, turned = (np.all(flipped[:, frames] == some[:, frames], axis=(1, 2, 3, 4)) for some in (plain, mirrored))
        assert np.all(same | turned)
        assert 60 < turned.sum() < 140


def test_the_loss_is_the_mean_over_all_of_the_weighted_error() -> None:
    drawn = wide_draw(config=STILL)
    level = SETTINGS.schedule(drawn.t)
    from diffcore import noise

    eps = noise.normal(0, 5, drawn.x.shape, stream=objective.STREAM)
    alpha, sigma = (np.asarray(some)[..., None, None, None] for some in (level.alpha, level.sigma))
    seen: list[Any] = []

    def predict(z: Any, log_snr: Any, cond: Any, images: int) -> Any:
        seen.append(log_snr)
        np.testing.assert_allclose(z, alpha * drawn.x + sigma * eps, atol=1e-5)
        return alpha * eps - sigma * drawn.x + 0.5

    # v is off by 1/2, under the weight by which the loss is the plain error of v
    found = objective.loss(predict, SETTINGS, STILL, drawn, 5)
    np.testing.assert_allclose(found, 0.25, rtol=1e-5)
    np.testing.assert_allclose(seen[0], level.log_snr)


# Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, value) for name in ("steps", "batch", "log_every", "checkpoint_every") for value in (0, 1.0, True)],
        *[(name, -1) for name in ("images", "warm_up", "cool_down", "seed", "sample_every")],
        *[(name, value) for name in ("beta1", "beta2", "ema") for value in (1.0, -0.1, math.nan, "0.9")],
        *[(name, value) for name in ("learning_rate", "weight_decay") for value in (-1.0, math.inf, math.nan, None)],
        *[("clip_norm", value) for value in (0.0, -1.0, math.nan, "1", True)],
        *[("condition_dropout", value) for value in (-0.1, 1.1, math.nan, "0")],
        ("seed", 2**64),
        ("sample_steps", 0),
        ("flip", "yes"),
        ("precision", "float16"),
        ("schedule", "cosine"),
        ("weight", 1.0),
    ],
)
def test_settings_name_the_field_that_does_not_fit(field: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"training.Settings: `{field}` is .*, but takes "):
        replace(SETTINGS, **{field: value})


def test_the_learning_rate_rises_stays_and_falls_in_closed_form() -> None:
    settings = Settings(steps=50, learning_rate=0.2, warm_up=10, cool_down=20)
    for step in range(50):
        exact = 0.2 * ((step + 1) / 10 if step < 10 else 1.0 if step < 30 else (50 - step) / 20)
        assert settings.rate(step) == pytest.approx(exact, rel=1e-12)
    assert {Settings(steps=9, learning_rate=0.2, warm_up=0).rate(step) for step in range(20)} == {0.2}


def test_the_average_forgets_its_start_and_then_decays_as_told() -> None:
    assert [SETTINGS.decay(step) for step in (0, 1, 10)] == [0.1, 2 / 11, 11 / 20]
    assert SETTINGS.decay(10**6) == SETTINGS.ema
    assert replace(SETTINGS, ema=0.0).decay(5) == 0.0


def test_the_presets_are_those_of_the_networks() -> None:
    from diffcore.unet3d import PRESETS as networks

    assert set(PRESETS) == set(networks) - {"tiny"}
    assert all(PRESETS[name].condition_dropout == 0.1 for name in PRESETS)


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
    with pytest.raises(ValueError, match=r"`backend` is 'numpy', but takes .* NumPy has no gradients"):
        train(CONFIG, SETTINGS, digits(), tmp_path, backend="numpy")


@pytest.mark.parametrize(("backend", "library"), [("torch", "torch"), ("jax", "optax")])
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
        assert sheet.size == (2 * (2 * 8 + 4) + 4, 4 * (2 * 8 + 14 + 4) + 4)


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
    from diffcore.unet3d.training import moving_digits

    monkeypatch.setattr(moving_digits, "preset", lambda name: STILL)
    monkeypatch.setitem(training.PRESETS, "moving_digits", replace(SETTINGS, cool_down=1))
    moving_digits.main(["--out", str(tmp_path), "--steps", "2"])
    assert str(tmp_path / "model.safetensors") in capsys.readouterr().out
    assert rows(tmp_path)[-1]["step"] == 2
