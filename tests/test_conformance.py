"""The conformance battery: on the project's backends, and on a third-party one that an entry point brings in."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import array_api_strict
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import diffcore as dc
from diffcore import _dispatch, backends, testing
from diffcore.testing import conformance

THIRD_PARTY = """
import array_api_strict
from diffcore.backends import ArrayAPIBackend

class Strict(ArrayAPIBackend):
    def compile(self, function):
        return function

backend = Strict(array_api_strict)
"""


@pytest.mark.slow
@pytest.mark.parametrize("like", [np.zeros(1, np.float32), torch.zeros(1), jnp.zeros(1)], ids=["numpy", "torch", "jax"])
def test_the_backends_conform(like: Any) -> None:
    testing.check_backend(like=like)


@pytest.mark.parametrize("like", [np.zeros(1, np.float32), torch.zeros(1), jnp.zeros(1)], ids=["numpy", "torch", "jax"])
def test_a_run_is_what_the_table_of_its_plan_says(like: Any) -> None:
    for plan in conformance.plans().values():
        testing.check_run(plan, like=like, transform_x=dc.guidance.clip(-0.5, 0.5))


def test_a_third_party_backend_is_found_by_its_entry_point_and_conforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_backend.py").write_text(THIRD_PARTY)
    info = tmp_path / "their_backend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-backend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[diffcore.backends]\narray_api_strict = their_backend:backend\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _dispatch._load.cache_clear()
    try:
        like = array_api_strict.zeros(1, dtype=array_api_strict.float32)
        found = backends.of(like)
        assert type(found).__module__ == "their_backend"
        assert backends.available()["array_api_strict"] == "their_backend:backend"
        testing.check_backend(found, like=like)
    finally:
        _dispatch._load.cache_clear()
        sys.modules.pop("their_backend", None)


def test_an_entry_point_that_holds_no_backend_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "wrong_backend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong-backend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[diffcore.backends]\narray_api_strict = math:pi\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _dispatch._load.cache_clear()
    try:
        with pytest.raises(TypeError, match=r"math:pi.*derive it from"):
            backends.of(array_api_strict.zeros(1))
    finally:
        _dispatch._load.cache_clear()


def test_a_backend_with_other_noise_fails_the_battery() -> None:
    class Wrong(backends.ArrayAPIBackend):
        def normal(self, words: Any, draw: Any, shape: Any, **settings: Any) -> Any:
            return super().normal(words, draw + 1, shape, **settings)

    with pytest.raises(AssertionError, match=r"^Wrong\.normal: .*: normals at sample = "):
        testing.check_backend(Wrong(array_api_strict), like=array_api_strict.zeros(1, dtype=array_api_strict.float32))


def test_a_kernel_that_is_not_the_plain_function_fails_the_battery() -> None:
    class Wrong(backends.ArrayAPIBackend):
        def advance(self, *given: Any, **settings: Any) -> Any:
            after = super().advance(*given, **settings)
            return after._replace(z=after.z * 1.001)

    backend = Wrong(array_api_strict)
    with pytest.raises(AssertionError):
        conformance.check_advance(backend, array_api_strict.zeros(1, dtype=array_api_strict.float32))


def test_a_method_that_raises_or_is_missing_is_named_with_what_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(backends.ArrayAPIBackend):
        def advance(self, *given: Any, **settings: Any) -> Any:
            raise NotImplementedError("later")

        def cond(self, *given: Any) -> Any:
            return "neither"

    def says(backend: Any) -> str:
        with pytest.raises(AssertionError) as caught:
            testing.check_backend(backend, like=array_api_strict.zeros(1, dtype=array_api_strict.float32))
        return str(caught.value)

    with pytest.raises(AssertionError, match=r"^Later\.bits raised ValueError: ") as caught:
        testing.check_backend(Later(array_api_strict))
    assert caught.value.__notes__ == [
        "testing.check_backend: without `like` the arrays are NumPy's; give one of the backend's library"
    ]
    keys = "which must be keys(words, like): Return key words (B, 2) (low, high) in the form that `normal` takes"
    assert keys in says(SimpleNamespace(name="mine"))
    assert says(Later) == "contract: `backend` must be an instance, got the class Later; call it"
    monkeypatch.setattr(conformance, "check_noise", lambda *given, **how: 0.0)
    advance = "Later.advance raised NotImplementedError: later; it must be advance(form, state, y, row, noise, *, stochastic, "
    assert says(Later(array_api_strict)).startswith(advance)
    for name in ("check_type", "check_agreement", "check_advance", "check_lead", "_check_runs"):
        monkeypatch.setattr(conformance, name, lambda *given, **how: 0.0)
    found = says(Later(array_api_strict))
    assert found.startswith("Later.cond, as it was checked, led to ")
    assert "; it must be cond(predicate, true, false, *operands): Return true(*operands) or false(*operands)" in found


def test_arrays_without_gradients_say_what_has_them() -> None:
    with pytest.raises(TypeError, match="use torch or JAX"):
        backends.of(np.zeros(1)).gradient(lambda z: z, np.zeros(1))
