"""A step of training in torch and in JAX: one battery over both, and the rules of the optimiser in closed form."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libraries import host, put
from training_cases import (
    CAUSAL,
    CONFIG,
    SETTINGS,
    STILL,
    TOKENS,
    advance,
    both,
    digits,
    every_backend,
    module_of,
    part,
    rows,
    tokens,
)
from training_cases import quick as quick

from diffcore import _streams, noise, predictions, schedules
from diffcore.unet3d import UNet3DConfig
from diffcore.unet3d.build import assemble
from diffcore.unet3d.training import PRESETS, Settings, objective, train

pytestmark = pytest.mark.usefixtures("quick")


# What a step does


@every_backend
def test_the_loss_falls(backend: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=60, log_every=20, checkpoint_every=60)
    train(STILL, settings, digits(), tmp_path, backend=backend)
    losses = [row["loss"] for row in rows(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("config", [pytest.param(config, marks=both) for config in (CAUSAL, TOKENS)])
def test_torch_and_jax_take_the_same_steps(config: UNet3DConfig) -> None:
    times = "pyramid" if config is CAUSAL else "shared"
    settings = replace(SETTINGS, learning_rate=1e-3, condition_dropout=0.3, frame_times=times)
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
        return float(trainer.step(number, drawn._replace(keys=noise.keys(seed, SETTINGS.batch)))[0])

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
    x, t, cond, told, _ = wide_draw(images=images)
    assert (told, x.shape, t.shape) == (images, (200, 2 + images, 8, 8, 1), (200, 2 + images))
    assert np.all(t[:, 0] == t[:, 1])
    assert np.all((t > 0) & (t < 1))
    assert len(np.unique(t)) == 200 * (1 + images)
    assert cond.shape == ((200, 2 + images) if images else (200,))
    for column in range(t.shape[1]):  # stratified: one in every 200th part
        assert np.array_equal(np.sort(np.floor(200 * t[:, column])), np.arange(200))


@pytest.mark.parametrize("frame_times", ["independent", "monotone", "pyramid"])
def test_each_frame_may_have_a_time_of_its_own(frame_times: str) -> None:
    t = objective.times_of(replace(SETTINGS, batch=400, images=2, frame_times=frame_times), 3, 4)
    assert t.shape == (400, 6)
    counts = (t > 0) & (t < 1)
    assert counts[:, 4:].all()
    assert len(np.unique(t[:, 4:])) == 800
    assert abs(t[counts].mean() - 0.5) < 5 * math.sqrt(1 / 12 / 1600)
    if frame_times == "independent":
        assert np.abs(np.corrcoef(t.T) - np.eye(6)).max() < 0.25
    else:
        assert np.all(np.diff(t[:, :4], axis=1) >= 0)
    if frame_times == "pyramid":
        assert not counts[:, :4].all()
        both = counts[:, :3] & counts[:, 1:4]
        np.testing.assert_allclose(np.diff(t[:, :4], axis=1)[both], 0.25, atol=1e-6)
        longer = objective.times_of(replace(SETTINGS, batch=400, frame_times=frame_times, lag=1.0), 3, 4)
        assert np.all(((longer > 0) & (longer < 1))[:, :4].sum(axis=1) == 1)  # one frame after another


@pytest.mark.parametrize("schedule", [SETTINGS.schedule, schedules.Flow()])  # ends that are finite, and infinite
def test_frames_of_a_pyramid_that_wait_do_not_count_whatever_is_said_of_them(schedule: Any) -> None:
    settings = replace(SETTINGS, batch=20, frame_times="pyramid", lag=0.7, schedule=schedule)
    config = replace(STILL, prediction="flow" if schedule.scaling == "flow" else "v")
    drawn = objective.draw(config, settings, digits(), None, 1)
    counts = ((drawn.t > 0) & (drawn.t < 1))[..., None, None, None]
    assert 0 < counts[:, :2].sum() < 40
    alpha, sigma = (np.asarray(some)[..., None, None, None] for some in (schedule(drawn.t)[:2]))
    eps = noise.normal(0, 1, drawn.x.shape, stream=_streams.TRAINING)
    truth = eps - drawn.x if schedule.scaling == "flow" else alpha * eps - sigma * drawn.x
    said = truth + np.where(counts, 0.5, np.nan)
    np.testing.assert_allclose(objective.loss(lambda *_: said, settings, config, drawn, 1), 0.25, rtol=1e-4)


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
    eps = noise.normal(0, 5, drawn.x.shape, stream=_streams.TRAINING)
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


@pytest.mark.parametrize("prediction", predictions.table())
def test_without_a_weight_the_loss_is_the_plain_error_of_the_prediction(prediction: str) -> None:
    drawn, config = wide_draw(config=STILL), replace(STILL, prediction=prediction)
    level = SETTINGS.schedule(drawn.t)
    eps = noise.normal(0, 5, drawn.x.shape, stream=_streams.TRAINING)
    sigma = np.asarray(level.sigma)[..., None, None, None]
    row = predictions.table()[prediction](np, level)
    a, b, divisor = (np.asarray(part)[..., None, None, None] * np.ones_like(sigma) for part in row)
    truth = (a * drawn.x + b * eps) / divisor
    off = 0.5 / sigma if prediction == "score" else 0.5  # of the score, that times sigma
    found = objective.loss(lambda *_: truth + off, SETTINGS, config, drawn, 5)
    np.testing.assert_allclose(found, 0.25, rtol=1e-4)


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
        ("frame_times", "diffusion forcing"),
        ("lag", 0.1),
        ("weight", 1.0),
    ],
)
def test_settings_name_the_field_that_does_not_fit(field: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"training.Settings: `{field}` must be .*, got "):
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
