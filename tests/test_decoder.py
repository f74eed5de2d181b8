"""The last term of the bound: data of a few values, continuous data, and data that is neither."""

import numpy as np
import pytest
import scipy.special
from test_likelihood import LIBRARIES, NARROW, X0, namespace

from diffcore import _streams, likelihood, noise, process, schedules
from diffcore.levels import Gaussian


@pytest.mark.parametrize("log_snr", [-30.0, 0.0, 6.0, 12.0, 20.0])
@pytest.mark.parametrize("bins", [2, 256])
def test_the_reconstruction_term_is_a_softmax_over_the_bins(log_snr: float, bins: int) -> None:
    schedule = schedules.LinearLogSNR(log_snr_min=-40.0, log_snr_max=log_snr)
    values = np.linspace(-1.0, 1.0, bins)
    x = np.random.default_rng(0).choice(values, size=(3, 5))
    found = likelihood.reconstruction(x, schedule, decoder=likelihood.Bins(bins), seed=7)
    seen = x + np.exp(-0.5 * log_snr) * noise.normal(7, 0, x.shape, like=x, stream=_streams.RECONSTRUCTION)
    logits = -0.5 * np.exp(log_snr) * (seen[..., None] - values) ** 2
    own = np.argmin(np.abs(x[..., None] - values), axis=-1)[..., None]
    truth = -np.sum(np.take_along_axis(scipy.special.log_softmax(logits, axis=-1), own, axis=-1), axis=(1, 2))
    np.testing.assert_allclose(found, truth, rtol=1e-7, atol=1e-7)
    single = likelihood.reconstruction(x.astype(np.float32), schedule, decoder=likelihood.Bins(bins), seed=7)
    np.testing.assert_allclose(single, truth, rtol=1e-3, atol=1e-4)


def test_noise_free_reconstruction_is_free_and_pure_noise_costs_all_bits() -> None:
    x = np.linspace(-1.0, 1.0, 256).reshape(2, 128)
    clean = schedules.LinearLogSNR(log_snr_min=-1.0, log_snr_max=20.0)
    np.testing.assert_allclose(likelihood.reconstruction(x, clean), 0.0, atol=1e-12)
    noisy = schedules.LinearLogSNR(log_snr_min=-40.0, log_snr_max=-30.0)
    bits = likelihood.bits_per_dim(likelihood.reconstruction(x, noisy), 128, bin_width=1.0)
    np.testing.assert_allclose(bits, 8.0, atol=1e-4)


def test_what_a_dtype_rounds_is_one_of_the_values() -> None:
    schedule = schedules.LinearLogSNR(log_snr_min=-1.0, log_snr_max=8.0)
    for low, high in ((-1.0, 1.0), (0.0, 255.0), (0.0, 1.0)):
        decoder = likelihood.Bins(256, low, high)
        exact = np.linspace(low, high, 256)[None, :]
        truth = likelihood.reconstruction(exact, schedule, decoder=decoder)
        rounded = likelihood.reconstruction(exact.astype(np.float32), schedule, decoder=decoder)
        np.testing.assert_allclose(rounded, truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("wrong", [1.8, -1.1, 0.5, float("nan")])
def test_data_of_other_values_is_refused(library: str, wrong: float) -> None:
    """Beyond the range, or between the values: its probability is 0, and what nats the nearest value has says nothing."""
    x = namespace(library).asarray(np.array([[1.0, -1.0], [wrong, 1.0]]))
    with pytest.raises(
        ValueError, match=r"`x` must have only the 3 values from -1\.0 to 1\.0.*decoder=likelihood\.Density"
    ):
        likelihood.bound(None, x, NARROW, decoder=likelihood.Bins(3))


@pytest.mark.jax
def test_traced_data_of_other_values_is_infinitely_unlikely() -> None:
    import jax
    import jax.numpy as jnp

    found = jax.jit(lambda x: likelihood.reconstruction(x, NARROW))(jnp.asarray([[1.0, -1.0], [1.0, 1.5], [0.1, 1.0]]))
    np.testing.assert_array_equal(np.isfinite(found), [True, False, False])


def test_the_reconstruction_of_a_density_is_the_mean_of_its_gaussian() -> None:
    """E[-log N(x; z_0 / alpha_0, 1 / SNR_0)] over z_0, by Gauss-Hermite quadrature; and without a decoder 0."""
    nodes, share = np.polynomial.hermite_e.hermegauss(9)
    ratio = np.exp(-0.5 * NARROW.log_snr(0.0))
    each = -process.log_density(ratio * nodes[:, None], Gaussian(np.zeros((9, 1)), np.full((9, 1), ratio**2)))
    truth = 2.0 * (share @ each) / share.sum()
    np.testing.assert_allclose(likelihood.reconstruction(X0, NARROW, decoder=likelihood.Density()), truth, rtol=1e-12)
    np.testing.assert_array_equal(likelihood.reconstruction(X0, NARROW, decoder=None), [0.0])
