"""Known frames computed once: forcing and rolling with what a causal network keeps are the runs without it, to rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from libraries import every_framework, example, host, put
from unet3d_cases import BASE, CLASS, weights_of
from unet3d_cases import put as labels_in

import diffcore as dc
from benchmarks import seams
from diffcore.testing import drawn_from
from diffcore.unet3d.build import assemble
from diffcore.video import extend, reusing

CONFIG = replace(BASE, frames=6, multipliers=(1,), attention=(8,), causal=True, **CLASS)
PLAN = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(log_snr_min=-6.0, log_snr_max=8.0), steps=4, eta=1.0)
HOW: dict[str, Any] = {"frames": 9, "window": 5, "overlap": 3, "seed": 7, "transform_x": dc.guidance.clip()}


class Frames:
    """A model that counts the frames it is given."""

    def __init__(self, model: Any) -> None:
        self.model, self.prediction, self.config, self.count = model, model.prediction, model.config, 0

    def __call__(self, z: Any, *given: Any, **named: Any) -> Any:
        self.count += z.shape[1]
        return self.model(z, *given, **named)

    def past(self, z: Any, *given: Any, **named: Any) -> Any:
        self.count += z.shape[1]
        return self.model.past(z, *given, **named)


def model_in(library: str) -> Any:
    return assemble("test", CONFIG, weights_of(CONFIG), library, "float32")


def made(library: str, again: bool, method: str, *, weight: float | None = None, **how: Any) -> tuple[Any, int]:
    """Return a video made longer, and how many frames the network was given."""
    counted = Frames(model_in(library))
    clip = 0.5 * dc.noise.normal(3, 0, (2, 4, 3, 4, 2))
    with example(library) as like:
        labels = labels_in(library, np.array([1, 2]))
        null = None if weight is None else counted.model.null(labels)
        denoise: Any = reusing(counted, labels, null=null, weight=weight)
        if not again and weight is None:
            denoise = lambda z, log_snr: counted(z, log_snr, labels)  # noqa: E731
        elif not again:
            denoise = dc.guidance.classifier_free(counted, cond=labels, null=null, weight=weight)
        return host(
            extend(denoise, PLAN, put(clip, like), prediction="v", method=method, **{**HOW, **how}).all()
        ), counted.count


@pytest.mark.parametrize("history", [None, 5.0])
@pytest.mark.parametrize("method", ["forcing", "rolling"])
def test_known_frames_are_computed_once_and_nothing_changes(method: str, history: float | None) -> None:
    (plain, many), (kept, few) = (made("numpy", again, method, history=history) for again in (False, True))
    np.testing.assert_allclose(kept, plain, atol=2e-5)
    assert np.abs(kept[:, 4:]).max() > 0.1
    if method == "forcing":  # three blocks of four calls
        assert (many, few) == (3 * 4 * 5, 3 * (3 + 4 * 2))
    else:  # six turns of two
        assert (many, few) == (6 * 2 * 5, 6 * (3 + 2 * 2))


@every_framework
@pytest.mark.parametrize("method", ["forcing", "rolling"])
def test_every_library_keeps_the_same(library: str, method: str) -> None:
    if library == "jax" and method == "rolling":
        pytest.skip("forcing shows it in one trace")
    how: dict[str, Any] = {"frames": 6, "overlap": 1, "weight": None if library == "jax" else 1.0, "history": 4.0}
    plain, _ = made("numpy", False, method, **how)
    np.testing.assert_allclose(made(library, True, method, **how)[0], plain, atol=1e-4)


def test_it_is_a_plain_denoiser_for_other_methods_and_refuses_what_keeps_nothing() -> None:
    kept, plain = (made("numpy", again, "replacement")[0] for again in (True, False))
    np.testing.assert_array_equal(kept, plain)
    model = model_in("numpy")
    stream = extend(reusing(model), PLAN, np.zeros((1, 0, 3, 4, 2)), frames=9, window=5, method="replacement")
    assert [block.shape[1] for block in stream] == [5, 4]  # a quarter of the window is known
    with pytest.raises(TypeError, match="`model` must have a method `past`"):
        reusing(lambda z, log_snr: z)
    with pytest.raises(ValueError, match="`model` is not causal"):
        reusing(dc.unet3d.build(replace(CONFIG, causal=False)))
    with pytest.raises(ValueError, match="`null` and `weight` come together"):
        reusing(model, np.array([1, 2]), weight=1.0)


def test_a_causal_denoiser_draws_a_frame_at_a_time_unless_asked_otherwise() -> None:
    """It knows nothing of later frames, so that frames drawn together miss the truth however many steps they take."""

    def law(steps: int, **how: Any) -> Any:
        plan = dc.samplers.dpm_solver_pp(seams.SCHEDULE, steps=steps, order=1, eta=1.0)

        def run(noise: Any, batch: int) -> Any:
            empty = np.zeros((batch, 0, 1, 1, 1))
            common = {"frames": 5, "window": 3, "method": "forcing", "noise": noise}
            stream = extend(reusing(seams.Causal()), plan, empty, **common, **how)
            blocks = list(stream)
            assert [block.shape[1] for block in blocks] == ([2, 2, 1] if how else [1] * 5)
            return np.concatenate(blocks, axis=1)

        return drawn_from(run).covariance

    truth = seams.covariance(5)
    alone, together = (
        [seams.divergence(law(steps, **how), truth) for steps in (8, 32)] for how in ({}, {"overlap": 1})
    )
    reach = _reaches(truth, 3)
    assert alone[1] - reach < 0.35 * (alone[0] - reach)
    assert together[1] > 3.0 * alone[1]


def _reaches(truth: Any, window: int) -> float:
    """Return the divergence of frames that know only the last `window` - 1 before them: what no number of steps removes."""
    lower = np.zeros_like(truth)  # x = lower @ noise
    for k in range(len(truth)):
        first = max(0, k - window + 1)
        weights = np.linalg.solve(truth[first:k, first:k], truth[first:k, k])
        lower[k] = weights @ lower[first:k]
        lower[k, k] = np.sqrt(truth[k, k] - weights @ truth[first:k, k])
    return seams.divergence(lower @ lower.T, truth)
