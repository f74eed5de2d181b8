"""Predictions: every kind into every other, under every scaling, in every library, finite at both ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import both_dtypes, every_framework, every_library, every_scaling, example, host, put

import diffcore as dc
from diffcore import predictions, process, testing
from diffcore.levels import Level, level
from diffcore.testing import precision, strategies

KINDS = sorted(predictions.table())
PAIRS = list(itertools.product(KINDS, KINDS))


@both_dtypes
@every_scaling
@every_framework
def test_every_prediction_turns_into_every_other(library: str, scaling: str, dtype: str) -> None:
    with example(library, dtype) as like:
        testing.check_conversions(level(put(precision.log_snrs_over(dtype, 41), like), scaling))


@every_scaling
@given(drawn=st.data())
def test_there_and_back_is_the_identity_for_every_lead(scaling: str, drawn: st.DataObject) -> None:
    z = drawn.draw(strategies.batches())
    lead = drawn.draw(strategies.leads(z.shape))
    at = level(np.full(lead, drawn.draw(strategies.log_snrs(ends=False, reach=6.0))), scaling)
    for source, target in PAIRS:
        y = predictions.convert(z[::-1], z, at, source=source, target=target)
        back = predictions.convert(y, z, at, source=target, target=source)
        np.testing.assert_allclose(back, z[::-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("scaling", "sigma_data"), [("vp", 0.5), ("ve", 0.5), ("flow", 2.0)])
def test_edm_is_the_preconditioning_of_its_paper(scaling: str, sigma_data: float) -> None:
    """D = c_skip z + c_out F, in the variables in which alpha is 1 (Karras et al. 2022, table 1)."""
    at = level(np.linspace(-8.0, 8.0, 9), scaling)
    z, f = np.linspace(-1.0, 1.0, 9), np.linspace(2.0, -1.0, 9)
    s = at.sigma / at.alpha
    c_skip = sigma_data**2 / (s**2 + sigma_data**2)
    c_out = s * sigma_data / np.sqrt(s**2 + sigma_data**2)
    found = predictions.convert(f, z, at, source=predictions.edm(sigma_data), target="x")
    np.testing.assert_allclose(found, c_skip * z / at.alpha + c_out * f, rtol=1e-12)


def test_v_is_that_of_salimans_and_ho() -> None:
    """v = alpha eps - sigma x, and x = alpha z - sigma v where alpha^2 + sigma^2 = 1."""
    at, x, eps = level(np.float64(0.7)), np.array([0.3]), np.array([-1.2])
    z, v = at.alpha * x + at.sigma * eps, at.alpha * eps - at.sigma * x
    np.testing.assert_allclose(predictions.convert(v, z, at, source="v", target="x"), at.alpha * z - at.sigma * v)
    np.testing.assert_allclose(predictions.convert(eps, z, at, source="eps", target="v"), v)
    np.testing.assert_allclose(predictions.convert(eps, z, at, source="eps", target="score"), -eps / at.sigma)


@every_scaling
@pytest.mark.parametrize("kind", ["x", "v", "flow", "edm"])
def test_x_follows_at_both_ends(kind: str, scaling: str) -> None:
    x, eps = np.full(1, 0.3), np.full(1, -0.8)
    for end in (-np.inf, np.inf) if scaling != "ve" else (np.inf,):
        at = level(end, scaling)
        z = process.diffuse(x, eps, at)
        y = dc.losses.target(x, eps, at, prediction=kind)
        np.testing.assert_allclose(predictions.convert(y, z, at, source=kind, target="x"), x, rtol=1e-15)


@pytest.mark.parametrize("kind", ["eps", "score"])
def test_noise_says_nothing_about_x_at_alpha_0_and_the_error_says_what_to_do(kind: str) -> None:
    with pytest.raises(ValueError, match=r"`source` must determine 'x' at alpha = 0.*use prediction='v'"):
        predictions.convert(np.ones(1), np.ones(1), level(-np.inf), source=kind, target="x")
    with pytest.raises(ValueError, match=r"`source` must determine 'eps' at sigma = 0.*, got 'x'; .*finite log-SNR"):
        predictions.convert(np.ones(1), np.ones(1), level(np.inf), source="x", target="eps")
    plan = dc.samplers.ddim(dc.schedules.Cosine(log_snr_min=-np.inf), 4)
    with pytest.raises(ValueError, match=r"use prediction='v'"):
        dc.sample(lambda z, l: z, plan, shape=(1, 2), prediction=kind)


def test_the_same_kind_is_the_same_array_even_where_nothing_follows() -> None:
    y = np.array([0.25, -3.0])
    for kind, end in itertools.product(KINDS, (-np.inf, np.inf)):
        np.testing.assert_array_equal(predictions.convert(y, y, level(end), source=kind, target=kind), y)


@every_library
def test_library_dtype_and_shape_stay(library: str) -> None:
    with example(library) as like:
        xp = dc._array.library(like)
        for dtype in ("float32", "bfloat16", "float16"):
            if not hasattr(xp, dtype):
                continue
            z = testing._arrays.put(np.linspace(-1.0, 1.0, 24).reshape(2, 3, 4), like, dtype=getattr(xp, dtype))
            for lead in ((), (2,), (2, 3)):
                found = predictions.convert(z, z, level(put(np.zeros(lead), like)), source="v", target="eps")
                assert (found.dtype, tuple(found.shape)) == (z.dtype, (2, 3, 4))
                np.testing.assert_allclose(host(found), np.sqrt(2.0) * host(z), rtol=0.01)


@every_library
def test_guidance_is_the_same_on_every_prediction(library: str) -> None:
    with example(library) as like:
        testing.check_guidance_invariance(level(put(np.linspace(-8.0, 8.0, 5), like)), weight=3.0)


@every_scaling
@given(
    values=st.lists(strategies.log_snrs(ends=False, reach=15.0), min_size=1, max_size=4), weight=st.floats(0.0, 20.0)
)
def test_guidance_is_the_same_wherever_hypothesis_looks(scaling: str, values: list[float], weight: float) -> None:
    testing.check_guidance_invariance(level(np.array(values), scaling), weight=weight)


def test_guidance_of_the_library_is_compared_with_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is off is the same on every prediction."""
    guided = dc.guidance._guided.ClassifierFree
    right = guided._combined
    monkeypatch.setattr(
        guided, "_combined", lambda self, xp, z, at, c, u: right(self, xp, z, at, c, 0.99 * u + 0.01 * c)
    )
    with pytest.raises(AssertionError, match="guidance on 'x'"):
        testing.check_guidance_invariance(level(np.linspace(-8.0, 8.0, 5)))
    by = dc.guidance.classifier_free
    testing.check_guidance_invariance(
        level(np.linspace(-8.0, 8.0, 5)), classifier_free=lambda c, u, *, weight: by(c, u, weight=weight)
    )


@pytest.mark.parametrize(("source", "target"), list(itertools.combinations(KINDS, 2)))
def test_a_run_does_not_care_what_the_network_predicts(source: str, target: str) -> None:
    """The same x-hat, said in two ways, gives the same clip."""
    plan = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), grid=np.linspace(-6.0, 6.0, 6), order=2, eta=0.5)

    def says(kind: str) -> Callable[[Any, Any], Any]:
        def denoise(z: Any, log_snr: Any) -> Any:
            return predictions.convert(0.6 * z, z, level(log_snr), source="x", target=kind)

        return denoise

    clips = [dc.sample(says(k), plan, shape=(2, 3), like=np.zeros(1), seed=2, prediction=k) for k in (source, target)]
    np.testing.assert_allclose(clips[0], clips[1], rtol=1e-10)


def test_a_row_of_ones_own_is_a_prediction_like_any_other() -> None:
    row = lambda xp, at: predictions.Row(0.3 + 0.0 * at.alpha, 1.0 + 0.0 * at.alpha, 2.0 + 0.0 * at.alpha)  # noqa: E731
    testing.check_conversions(level(np.linspace(-5.0, 0.0, 5)), kinds={"mine": row, **predictions.table()}, ulps=32.0)


@pytest.mark.jax
def test_on_jax_conversions_go_under_jit_vmap_and_grad() -> None:
    import jax
    import jax.numpy as jnp

    z, at = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), jnp.asarray([-2.0, 0.0, 3.0])
    for source, target in (("eps", "x"), ("v", "score"), ("edm", "flow")):
        call = lambda y, l: predictions.convert(y, z, level(l), source=source, target=target)  # noqa: B023, E731
        plain = host(call(0.5 * z, at))
        np.testing.assert_allclose(host(jax.jit(call)(0.5 * z, at)), plain, rtol=1e-5, atol=1e-6)
        _, q = predictions.mixing(level(at), source, target)
        slope = jax.grad(lambda y: call(y, at).sum())(z)  # noqa: B023
        np.testing.assert_allclose(host(slope), np.broadcast_to(host(q)[:, None], (3, 4)), rtol=1e-5)
        one = lambda y, z, l: predictions.convert(y, z, level(l), source=source, target=target)  # noqa: B023, E731
        np.testing.assert_allclose(host(jax.vmap(one)(0.5 * z, z, at)), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.torch
def test_on_torch_conversions_go_under_func_one_graph_and_the_meta_device() -> None:
    import torch

    z, at = torch.linspace(-1.0, 1.0, 12).reshape(3, 4), torch.tensor([-2.0, 0.0, 3.0])
    call = lambda y, z, l: predictions.convert(y, z, level(l), source="v", target="eps")  # noqa: E731
    plain = host(call(0.5 * z, z, at))
    np.testing.assert_allclose(host(torch.func.vmap(call)(0.5 * z, z, at)), plain, rtol=1e-6, atol=1e-7)
    slope = torch.func.grad(lambda y: call(y, z, at).sum())(z)
    np.testing.assert_allclose(host(slope), np.broadcast_to(host(level(at).alpha)[:, None], (3, 4)), rtol=1e-6)
    graph = torch.compile(call, fullgraph=True, backend="eager")
    np.testing.assert_allclose(host(graph(0.5 * z, z, at)), plain, rtol=1e-6)
    meta = torch.zeros(2, 3, device="meta", dtype=torch.bfloat16)
    found = call(meta, meta, torch.zeros(2, device="meta"))
    assert (found.device.type, found.dtype, tuple(found.shape)) == ("meta", torch.bfloat16, (2, 3))


Y = np.zeros((2, 3))
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: predictions.convert(Y, Y, level(0.0), source="noise", target="x"),
        ValueError,
        "`source` must be 'edm', 'eps'.*, got 'noise'",
    ),
    (
        lambda: predictions.convert(Y, Y, level(0.0), source="x", target="velocity"),
        ValueError,
        "`target` must be .*, got 'velocity'",
    ),
    (
        lambda: predictions.convert(Y.astype(int), Y, level(0.0), source="x", target="v"),
        TypeError,
        "`y` has dtype int64",
    ),
    (lambda: predictions.convert(Y, Y, level(np.zeros(3)), source="x", target="v"), ValueError, "does not align"),
    (lambda: predictions.edm(0.0), ValueError, r"`sigma_data` must be a finite number > 0, got 0\.0"),
    (
        lambda: predictions.edm((0.5, 1.0)),
        TypeError,
        r"`sigma_data` must be one number for all channels, got \(0\.5, 1\.0\); divide each channel",
    ),
    (
        lambda: predictions.kind_of("predictions.kind_of", SimpleNamespace(prediction=predictions.edm(1.5)), "edm"),
        ValueError,
        r"`prediction` must be predictions\.edm\(1\.5\), the attribute of the denoiser, or left out, got 'edm'",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_refused_with_the_choices(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert str(caught.value).startswith("predictions.")


@pytest.mark.torch
def test_mixed_libraries_are_refused_naming_both() -> None:
    import torch

    with pytest.raises(TypeError, match=r"predictions\.convert: `z` is a numpy array but `y` is a torch array"):
        predictions.convert(torch.zeros(2, 3), Y, level(0.0), source="x", target="v")


@every_scaling
def test_a_level_of_parts_that_are_numbers_will_do(scaling: str) -> None:
    at = level(0.5, scaling)
    plain = Level(float(at.alpha), float(at.sigma), 0.5)
    found = predictions.convert(0.25, 0.5, plain, source="v", target="x")
    assert float(found) == pytest.approx(float(predictions.convert(0.25, 0.5, at, source="v", target="x")), rel=1e-15)
