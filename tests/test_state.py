"""The state of a run in a file: of any library, to the bit, and what is no state is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sampler_cases import SAMPLERS, schedule_of

import diffcore as dc

LIKE = {
    "numpy": np.zeros(1, np.float32),
    "numpy64": np.zeros(1),
    "numpy16": np.zeros(1, np.float16),
    "torch": torch.zeros(1),
    "torch brain": torch.zeros(1, dtype=torch.bfloat16),
    "jax": jnp.zeros(1),
    "jax brain": jnp.zeros(1, jnp.bfloat16),
}
every_library = pytest.mark.parametrize("like", LIKE.values(), ids=LIKE)


def denoise(z: Any, log_snr: Any) -> Any:
    return -0.6 * z


def bits(array: Any) -> bytes:
    if isinstance(array, torch.Tensor):
        array = array.view(torch.int16 if array.element_size() == 2 else torch.int32)
    return np.asarray(array).tobytes()


@every_library
@pytest.mark.parametrize("name", ["ancestral", "unipc", "dpm_solver_pp order=3 eta=1.0"])
def test_a_run_goes_on_from_a_file_to_the_bit(name: str, like: Any, tmp_path: Path) -> None:
    plan = SAMPLERS[name](schedule_of("vp"), steps=5)
    states: list[dc.State] = []
    clip = dc.sample(
        denoise, plan, shape=(2, 3), like=like, seed=[5, 2**64 - 1], prediction="v", callback=states.append
    )
    dc.save_state(tmp_path / "state", states[2])
    state = dc.load_state(tmp_path / "state", like=like)
    for got, want in zip([state.z, state.x, *state.memory], [states[2].z, states[2].x, *states[2].memory], strict=True):
        assert type(got) is type(want)
        assert got.dtype == want.dtype
        assert bits(got) == bits(want)
    assert (int(state.index), int(state.draw)) == (3, 4)
    assert bits(dc.sample(denoise, plan, state, prediction="v")) == bits(clip)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_state_moves_from_one_library_to_another(tmp_path: Path) -> None:
    plan = SAMPLERS["ancestral"](schedule_of("vp"), steps=4)
    state = dc.step(plan, dc.start(plan, shape=(2, 3), seed=3), np.zeros((2, 3), np.float32), prediction="v")
    dc.save_state(tmp_path / "state.npz", state)
    ends = [
        np.asarray(dc.sample(denoise, plan, dc.load_state(tmp_path / "state.npz", like=like), prediction="v"))
        for like in (None, torch.zeros(1), jnp.zeros(1))
    ]
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], atol=1e-6)


def test_a_state_of_ones_own_noise_has_no_keys(tmp_path: Path) -> None:
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=4)
    state = dc.start(plan, np.ones((2, 3)), noise=lambda draw, shape: np.zeros(shape))._replace(x=None)
    dc.save_state(tmp_path / "state", state)
    back = dc.load_state(tmp_path / "state")
    assert back.keys is None
    assert back.x is None


def test_what_is_no_state_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.npz"
    np.savez(path, z=np.zeros(3))
    whole = path.read_bytes()
    np.savez(path, z=np.array([{}], dtype=object))
    for content in (b"", b"text", whole, whole[:-30], path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"load_state: 'broken\.npz' (holds no state|is no whole archive)"):
            dc.load_state(path)
    with pytest.raises(TypeError, match=r"`state` must be a diffcore\.State, got ndarray"):
        dc.save_state(path, np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        dc.load_state(tmp_path / "missing")
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=4)
    dc.save_state(path, dc.start(plan, torch.zeros(1, 2, dtype=torch.bfloat16)))
    with pytest.raises(ValueError, match="holds bfloat16, which numpy does not have"):
        dc.load_state(path)


@pytest.mark.parametrize("name", ["numpy16", "torch brain", "jax", "jax brain"])
def test_what_a_denoiser_carries_keeps_its_own_dtype(name: str, tmp_path: Path) -> None:
    """The momentum of guidance is float32 beside halves, and whole numbers stay whole."""
    like = LIKE[name]
    plan = SAMPLERS["unipc"](schedule_of("vp"), steps=4)
    rule = dc.guidance.projected(momentum=-0.7)
    guided = dc.guidance.classifier_free(denoise, lambda z, _: 0.3 * z, weight=3.0, prediction="v", rule=rule)
    states: list[dc.State] = []
    clip = dc.sample(guided, plan, shape=(4, 8), like=like, seed=3, callback=states.append)
    path = tmp_path / "state.npz"
    dc.save_state(path, states[1])
    back = dc.load_state(path, like=like)
    assert [str(array.dtype).split(".")[-1] for array in back.carried] == ["float32"]
    assert bits(dc.sample(guided, plan, back)) == bits(clip)
    with np.load(path) as file:  # as files of before were
        np.savez(path, **{name: file[name] for name in file.files if name != "dtypes"})
    assert bits(dc.sample(guided, plan, dc.load_state(path, like=like))) == bits(clip)


def test_whole_numbers_and_flags_that_a_denoiser_carries_stay_so(tmp_path: Path) -> None:
    plan, carried = SAMPLERS["ddim"](schedule_of("vp"), steps=4), (np.arange(3), np.array([True, False]))
    dc.save_state(tmp_path / "state", dc.start(plan, shape=(1, 2))._replace(carried=carried))
    back = dc.load_state(tmp_path / "state").carried
    assert [array.dtype for array in back] == [np.int64, np.bool_]
    dc.save_state(tmp_path / "state", dc.start(plan, shape=(1, 2))._replace(carried=(np.array(["load"]),)))
    with pytest.raises(ValueError, match="holds no state: its 1 arrays of a denoiser have the dtypes"):
        dc.load_state(tmp_path / "state")


def test_jax_without_64_bits_refuses_a_state_of_float64(tmp_path: Path) -> None:
    plan = SAMPLERS["ddim"](schedule_of("vp"), steps=4)
    dc.save_state(tmp_path / "state", dc.start(plan, shape=(1, 2), like=np.zeros(1)))
    with pytest.raises(ValueError, match=r"holds float64, which jax does not have; .*enable_x64"):
        dc.load_state(tmp_path / "state", like=jnp.zeros(1))
    with jax.enable_x64(True):
        assert dc.load_state(tmp_path / "state", like=jnp.zeros(1)).z.dtype == jnp.float64
