"""Thresholds: agreement with NumPy's quantile, and each sample by itself."""

import numpy as np
import pytest
from test_guidance import LIBRARIES, RNG, Z, namespace

from diffcore import guidance


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("percentile", [0.0, 0.31, 0.5, 0.995, 1.0])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1), (3, 101)])
def test_dynamic_threshold_is_numpys_quantile(library: str, percentile: float, shape: tuple[int, ...]) -> None:
    xp, x = namespace(library), 3.0 * np.random.default_rng(1).normal(size=shape)
    found = np.asarray(guidance.dynamic_threshold(percentile)(xp.asarray(x)))
    s = np.maximum(np.quantile(np.abs(x).reshape(shape[0], -1), percentile, axis=1), 1.0)
    s = s.reshape(-1, *(1,) * (len(shape) - 1))
    np.testing.assert_allclose(found, np.clip(x, -s, s) / s, rtol=1e-5 if library == "jax.numpy" else 1e-15)


def test_dynamic_threshold_leaves_what_is_in_range_and_knows_other_ranges() -> None:
    x = RNG.uniform(-1.0, 1.0, size=(2, 50))
    np.testing.assert_array_equal(guidance.dynamic_threshold()(x), x)
    wide = guidance.dynamic_threshold(bound=3.0)(3.0 * x * 7.0)
    np.testing.assert_allclose(wide, 3.0 * guidance.dynamic_threshold()(x * 7.0))
    assert guidance.dynamic_threshold()(np.zeros((2, 0))).shape == (2, 0)


def test_thresholds_do_not_look_at_other_samples() -> None:
    x = np.concatenate([Z, 100.0 * Z])
    np.testing.assert_array_equal(guidance.dynamic_threshold(0.9)(x)[:2], guidance.dynamic_threshold(0.9)(Z))


@pytest.mark.torch
def test_thresholds_in_half_precision_and_on_the_meta_device() -> None:
    import torch

    x = torch.asarray(4.0 * Z)
    for dtype in (torch.bfloat16, torch.float16):
        for transform in (guidance.dynamic_threshold(0.9), guidance.clip(-1.5, 1.5)):
            found = transform(x.to(dtype))
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), transform(x.to(dtype).double()), rtol=2**-7, atol=1e-3)
    assert guidance.dynamic_threshold()(x.to("meta")).shape == x.shape


@pytest.mark.jax
def test_thresholds_under_jit_and_grad_on_jax() -> None:
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(4.0 * Z)
    threshold = guidance.dynamic_threshold(0.9)
    np.testing.assert_allclose(jax.jit(threshold)(x), threshold(x), rtol=1e-6)
    assert threshold(x.astype("bfloat16")).dtype == jnp.bfloat16
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(threshold(x)))(x)))


def test_bad_thresholds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"guidance\.clip: `high` must be a finite number > 1, got -1\.0"):
        guidance.clip(1.0, -1.0)
    with pytest.raises(ValueError, match=r"`percentile` must be a number in \[0, 1\], got 99\.5; such as 0\.995"):
        guidance.dynamic_threshold(99.5)
    with pytest.raises(ValueError, match=r"`bound` must be .* > 0, got 0\.0"):
        guidance.dynamic_threshold(bound=0.0)
