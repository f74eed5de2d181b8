"""Training over several processes of torch and many devices of JAX: the same batches and noise, and the same weights.

Weights of different layouts agree to rounding, which AdamW enlarges where a gradient is nearly zero: to 1e-4 after a few steps
at a rate of 1e-2. Those of equal layouts agree bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kills import halve, kills
from training_cases import CONFIG, SETTINGS, TOKENS, digits, rows, tokens

from diffcore import _streams, noise
from diffcore.unet3d import build, save, weights
from diffcore.unet3d.training import checkpoints, objective
from diffcore.unet3d.training.world import ahead, part_of

HERE = Path(__file__).parent


def start(*given: object) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    environment.pop("RANK", None)
    command = [sys.executable, *map(str, given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(*running: subprocess.Popen[str]) -> None:
    try:
        for some in running:
            said, _ = some.communicate(timeout=600)
            assert some.returncode == 0, said
    finally:
        for some in running:
            some.kill()


@pytest.fixture(scope="module")
def of_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `processes_that_train` leaves."""
    pytest.importorskip("torch.distributed.fsdp")
    pytest.importorskip("typer")
    folder = tmp_path_factory.mktemp("torch")
    finish(start(HERE / "processes_that_train.py", folder))
    return folder


@pytest.fixture(scope="module")
def of_jax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `devices_that_train` leaves."""
    pytest.importorskip("orbax.checkpoint")
    pytest.importorskip("typer")
    folder = tmp_path_factory.mktemp("jax")
    save(build(CONFIG, seed=5), folder / "start.safetensors")
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    script = HERE / "devices_that_train.py"
    finish(*(start(script, folder, number, port) for number in range(2)))
    finish(start(script, folder))
    return folder


def check_equal(folder: Path, name: str) -> None:
    """Hold the weights and the log of a run, which is validated, to those of one process on one device."""
    of = [weights.read(folder / run / "model.safetensors").arrays for run in (name, "one")]
    for array, arrays in of[1].items():
        np.testing.assert_allclose(of[0][array], arrays, atol=1e-4, err_msg=array)
    seen = [{row["step"]: row for row in rows(folder / run)} for run in (name, "one")]
    common = [step for step in seen[1] if step in seen[0]]
    for step in common:
        for what in ("gradient_norm", "validation_loss"):
            if what in seen[0][step]:
                np.testing.assert_allclose(
                    seen[0][step][what], seen[1][step][what], rtol=1e-4, err_msg=f"{what} {step}"
                )
    assert max(seen[1]) in common


# What every process draws


@pytest.mark.parametrize("config", [CONFIG, TOKENS])
def test_rows_of_a_batch_and_their_noise_are_those_of_the_whole_bit_for_bit(config: Any) -> None:
    settings = replace(SETTINGS, batch=7, condition_dropout=0.5)
    of_labels = tokens() if config.condition == "tokens" else None
    whole = objective.draw(config, settings, digits(), of_labels, 5)
    eps = noise.normal(settings.seed, 5, whole.x.shape, stream=_streams.TRAINING)
    for count in (1, 2, 3, 7):
        for number in range(count):
            first, size = part_of(7, number, count)
            part = objective.draw(config, settings, digits(), of_labels, 5, (first, size))
            for found in (part, objective.parts(whole, count)[number]):
                for mine, theirs in zip(found, whole, strict=True):
                    for some, all_of_it in zip(_each(mine), _each(theirs), strict=True):
                        assert np.array_equal(some, all_of_it[first : first + size])
            drawn = noise.normal(part.keys, 5, part.x.shape, stream=_streams.TRAINING)
            assert np.array_equal(drawn, eps[first : first + size])


def _each(value: Any) -> list[Any]:
    return [] if isinstance(value, int) else list(value) if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("workers", [0, 3])
def test_threads_that_read_ahead_keep_the_order_and_hand_on_what_goes_wrong(workers: int) -> None:
    def read(number: int) -> int:
        if number == 20:
            raise ValueError("no clip 20")
        return number**2

    found = list[tuple[int, int]]()
    with pytest.raises(ValueError, match="no clip 20"):
        found.extend(ahead(read, range(100), workers))
    assert found == [(number, number**2) for number in range(20)]


# torch: FSDP2 over 1, 2 and 4 processes


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", ["four", "replicated", "down", "up"])
def test_torch_ends_with_the_same_weights_on_any_mesh(name: str, of_torch: Path) -> None:
    check_equal(of_torch, name)  # "down" went on from 4 processes with 2 and with 1, "up" from 1 with 2 and 2 x 2


@pytest.mark.torch
def test_torch_goes_on_bit_for_bit_after_an_interrupt_of_one_process(of_torch: Path) -> None:
    found, wanted = (weights.read(of_torch / name / "model.safetensors").arrays for name in ("interrupted", "four"))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.torch
def test_every_process_of_torch_stops_refuses_and_holds_its_part(of_torch: Path) -> None:
    said = [json.loads((of_torch / f"said-{rank}.json").read_text()) for rank in range(4)]
    for each in said:
        assert "interrupted" not in each
        assert each["stopped at"] == "['checkpoint-000000002', 'checkpoint-000000003']"
        assert "other settings: seed 0 instead of 1" in each["another run"]
        assert "`batch` must be at least 4, 1 for each of 4 devices, got 3" in each["too small"]
    sizes = [path.stat().st_size for path in (of_torch / "four" / "checkpoint-000000006").glob("*.distcp")]
    assert len(sizes) == 4
    assert max(sizes) < 0.4 * sum(sizes)


@pytest.mark.torch
def test_checkpoints_of_several_processes_are_kept_checked_and_ordered(of_torch: Path, tmp_path: Path) -> None:
    names = [path.name for path in checkpoints.places(of_torch / "four")]
    assert names == ["checkpoint-000000006", "checkpoint-000000004", "checkpoint-000000002"]
    mixed = [path.name for path in checkpoints.places(of_torch / "up")]
    assert mixed == ["checkpoint-000000006", "checkpoint-000000004", "checkpoint.safetensors"]
    folder = shutil.copytree(of_torch / "four", tmp_path / "copy")
    part = folder / names[0] / "__1_0.distcp"
    held = bytearray(part.read_bytes())
    held[len(held) // 2] ^= 1
    part.write_bytes(held)
    (folder / names[1] / checkpoints.SEAL).unlink()
    with pytest.warns(
        UserWarning, match=r"checkpoint-000000006 is damaged .* going on from checkpoint-000000002, at step 2$"
    ):
        found = checkpoints.newest(folder)
    assert found is not None
    assert (found.step, found.metadata["processes"]) == (2, "4")
    checkpoints.remove(folder, all_of_them=False)
    assert {path.name for path in folder.glob("checkpoint*")} == {names[0], names[2]}
    checkpoints.remove(folder, all_of_them=True)
    assert not list(folder.glob("checkpoint*"))


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_processes_that_are_killed_at_any_moment_end_with_the_same_bits() -> None:
    pytest.importorskip("torch.distributed.fsdp")
    finish(start("-m", "benchmarks.kill_training", "--kills", 1, "--each", 1, "--steps", 16))


# JAX: named shardings over 2, 4 and 8 devices, and two processes


@pytest.mark.jax
@pytest.mark.slow
@pytest.mark.parametrize("name", ["down", "across"])
def test_jax_ends_with_the_same_weights_on_any_mesh(name: str, of_jax: Path) -> None:
    check_equal(of_jax, name)  # "down" went on from 8 devices with 2 x 2 and with 2, "across" from 2 processes with 1


@pytest.mark.jax
def test_every_process_of_jax_refuses_another_run(of_jax: Path) -> None:
    for number in range(2):
        assert "other settings: seed 0 instead of 1" in (of_jax / f"said-{number}.txt").read_text()


@pytest.mark.jax
def test_a_kill_at_any_point_of_a_checkpoint_of_orbax_leaves_the_one_before_or_the_new_one(tmp_path: Path) -> None:
    """Before it is sealed it counts for nothing; the one before is removed once the new one is whole."""
    pytest.importorskip("orbax.checkpoint")
    import jax.numpy as jnp

    from diffcore.unet3d.training import jax_mesh

    states = {step: {"weights/a": jnp.full((4, 3), float(step)), "count": jnp.asarray(step)} for step in (3, 6)}
    folder, tried, left = tmp_path / "whole", tmp_path / "tried", list[int]()
    for step, state in states.items():
        jax_mesh.save(state, checkpoints.place(folder, step))()
        checkpoints.seal(checkpoints.place(folder, step), {"step": str(step)}, 2)
    (checkpoints.place(folder, 6) / checkpoints.SEAL).unlink()

    def copied() -> None:
        shutil.rmtree(tried, ignore_errors=True)
        shutil.copytree(folder, tried)

    for _ in kills(copied, lambda: checkpoints.seal(checkpoints.place(tried, 6), {"step": "6"}, 1)):
        halve(checkpoints.place(tried, 6))
        checkpoints.remove(tried, all_of_them=False)
        found = checkpoints.newest(tried)
        assert found is not None
        if found.step not in left:
            loaded = jax_mesh.load(states[found.step], found.path)
            assert all((loaded[name] == array).all() for name, array in states[found.step].items())
        left.append(found.step)
    assert left == sorted(left)
    assert set(left) == {3, 6}
