"""A plan is data: it prints, draws, saves and loads exactly, and refuses what is no plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffcore as dc
from diffcore.plan.text import table

NAMES = ["z", "m1", "m2", "noise", "x"]


def plan_of(**settings: Any) -> dc.Plan:
    return dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), order=3, eta=1.0, **settings)


def test_save_and_load_is_exact(tmp_path: Path) -> None:
    for plan in (plan_of(steps=7), plan_of(grid=np.linspace([-8.0, -6.0], [5.0, 6.0], 5))):
        plan.save(tmp_path / "plan.json")
        loaded = dc.Plan.load(tmp_path / "plan.json")
        assert loaded == plan
        assert hash(loaded) == hash(plan)
        assert loaded.update.tobytes() == plan.update.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    plan_of(steps=3).save(path)
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        plan_of(steps=9).save(path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '{"format": 99}'])
def test_a_file_that_is_no_plan_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json"):
        dc.Plan.load(path)


def test_a_truncated_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan_of(steps=7).save(path)
    document = json.loads(path.read_text())
    document["update"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="holds no plan"):
        dc.Plan.load(path)


def test_it_prints_a_row_a_stage_and_only_the_columns_it_uses() -> None:
    text = str(plan_of(steps=5))
    assert text.splitlines()[0] == "dpm_solver_pp(order=3, eta=1.0), vp, 5 stages"
    assert text.splitlines()[1].split() == ["stage", "log_snr", "next", *NAMES, "m1:", "x", "m2:", "m1"]
    assert len(text.splitlines()) == 7
    assert text.splitlines()[-1].split()[2] == "inf"


def test_it_prints_one_sample_of_many() -> None:
    plan = plan_of(grid=np.linspace([-8.0, -6.0], [5.0, 6.0], 4))
    assert table(plan, lead=(1,)).splitlines()[2].split()[1] == "-6"
    assert "(2,)" in str(plan)


def test_it_draws_itself(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = plan_of(steps=5).plot(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 1000
    labels = figure.axes[1].get_legend_handles_labels()[1]
    assert labels == [*NAMES, "m1: x", "m2: m1"]


def test_its_arrays_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        plan_of(steps=3).update[0] = 0.0


def test_plans_differ_by_any_number() -> None:
    plan = plan_of(steps=3)
    update = plan.update.copy()
    update[1, 0, 3] = np.nextafter(update[1, 0, 3], 2.0)
    other = dc.Plan(plan.sampler, plan.scaling, plan.log_snr, plan.next_log_snr, update)
    assert other != plan
    assert plan != "plan"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"scaling": "vq"}, "scaling"),
        ({"log_snr": np.zeros(0)}, "log_snr"),
        ({"next_log_snr": np.zeros(2)}, "next_log_snr"),
        ({"update": np.zeros((3, 2, 3))}, "update"),
        ({"update": np.full((3, 3, 5), np.nan)}, "not finite"),
        ({"update": np.ones((3, 3, 6))}, "update"),
        ({"update": np.ones((3, 3, 5)), "second": "raw"}, "update"),
        ({"second": "other"}, "second"),
        ({"next_log_snr": np.full(3, np.nan)}, "NaN"),
    ],
)
def test_arrays_that_are_no_plan_are_refused(change: dict[str, Any], word: str) -> None:
    plan = plan_of(steps=3)
    fields = {name: getattr(plan, name) for name in ("sampler", "scaling", "log_snr", "next_log_snr", "update")}
    with pytest.raises(ValueError, match=word):
        dc.Plan(**{**fields, **change})


def test_eps_at_pure_noise_has_no_table_and_says_what_to_use() -> None:
    plan = dc.samplers.ddim(dc.schedules.Cosine(log_snr_min=-np.inf, log_snr_max=np.inf), steps=4)
    assert set(plan.tables) == {"x", "v", "flow", "edm"}
    for kind in ("eps", "score"):
        with pytest.raises(ValueError, match=f"alpha = 0.*got '{kind}'; use prediction='v'"):
            plan.coefficients(kind)
    with pytest.raises(ValueError, match=r"`prediction` must be .*, got 'w'"):
        plan.coefficients("w")
