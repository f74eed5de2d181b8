"""Whatever is passed for an argument is accepted or refused in words: see `mistaken_calls`, which does it for long."""

from __future__ import annotations

import random

import pytest
from libraries import FRAMEWORKS
from mistaken_calls import FOLDER, calls, given_in, limited, outcome, public, rows, targets


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)  # some write what they are given a name for


def test_nearly_every_public_function_has_sound_arguments() -> None:
    """A new one whose arguments have the names of others needs no row; else one row in `mistaken_calls.rows`."""
    give, sound, unsound = given_in("numpy"), set[str](), dict[str, str]()
    for target in targets(give):
        try:
            target.call(**target.given)
            sound.add(target.name)
        except Exception as error:
            if "gradients" not in str(error):  # which NumPy has none of
                unsound[target.name] = str(error)
    left_out = {name for name, row in rows(give).items() if row is None}
    missing = {name for name, _ in public()} - sound - left_out
    assert len(missing) <= 0.1 * len(sound), (missing, unsound)


@pytest.mark.parametrize("library", FRAMEWORKS)
def test_a_mistake_is_accepted_or_refused_in_words(library: str) -> None:
    """In `python tests/mistaken_calls.py` 10^9 is among the mistakes too; here it might take the memory of others."""
    rng, share = random.Random(1), {"numpy": 0.02, "torch": 0.005, "jax": 0.0005}[library]
    made, bad = 0, list[str]()
    for target, argument, name, value in calls(given_in(library)):
        if rng.random() < share and "10^9" not in name:
            made += 1
            with limited(60):  # seconds of a machine that others use too
                what, where = outcome(target, argument, value, seconds=60)
            if what not in ("accepted", "refused", "of the caller"):
                bad.append(f"{what}: {target.name}({argument}={name}) {where}")
    assert len(bad) <= 1 + 0.001 * made, bad
