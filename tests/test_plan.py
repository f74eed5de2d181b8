"""A plan is data: it prints, draws, saves and loads exactly, and refuses what is no plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sampler_cases import every_sampler, schedule_of

import diffcore as dc

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
    for field in document:
        path.write_text(json.dumps({name: value for name, value in document.items() if name != field}))
        with pytest.raises(ValueError, match=f"holds no plan: it has no field `{field}`"):
            dc.Plan.load(path)
    document["update"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="holds no plan: its field `update` cannot be read"):
        dc.Plan.load(path)


def test_it_prints_a_row_a_stage_and_only_the_columns_it_uses() -> None:
    text = str(plan_of(steps=5))
    assert text.splitlines()[0] == "dpm_solver_pp(order=3, eta=1.0), vp, 5 stages"
    assert text.splitlines()[1].split() == ["stage", "log_snr", "next", *NAMES, "m1:", "x", "m2:", "m1"]
    assert len(text.splitlines()) == 7
    assert text.splitlines()[-1].split()[2] == "inf"


def test_it_prints_one_sample_of_many() -> None:
    plan = plan_of(grid=np.linspace([-8.0, -6.0], [5.0, 6.0], 4))
    assert plan.text(lead=(1,)).splitlines()[2].split()[1] == "-6"
    assert "(2,)" in str(plan)
    for lead, says in (((), "an index for each axis of the levels, whose leading shape is"), ((2,), r"in \[0, 1\]")):
        with pytest.raises(ValueError, match=f"Plan.text: `lead` must .*{says}"):
            plan.text(lead=lead)


def test_of_a_long_plan_it_prints_the_first_and_last_stages_but_where_all_are_asked_for() -> None:
    plan = plan_of(steps=64)
    assert str(plan) == plan.text()
    assert len(plan.text().splitlines()) == 66
    plan = plan_of(steps=1000)
    whole, brief = (text.splitlines() for text in (plan.text(), str(plan)))
    assert [line.split()[0] for line in whole[2:]] == [str(k) for k in range(1000)]
    assert [line.split() for line in (*brief[:22], *brief[23:])] == [
        line.split() for line in (*whole[:22], *whole[-10:])
    ]
    assert brief[22].split() == ["...", "970", "more", "stages;", "plan.text()", "shows", "all"]


def test_it_draws_itself(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = plan_of(steps=5).plot(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 1000
    labels = figure.axes[1].get_legend_handles_labels()[1]
    assert labels == [*NAMES, "m1: x", "m2: m1"]
    plan_of(steps=5).plot(tmp_path / "bare")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.png", "plan.png"]
    with pytest.raises(ValueError, match=r"`path` must end in one of \..*, got '.*plan\.docx'"):
        plan_of(steps=5).plot(tmp_path / "plan.docx")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        plan_of(steps=5).plot(tmp_path / "nowhere" / "plan.png")


def test_a_spike_is_clipped_and_told_and_the_legend_covers_nothing() -> None:
    """dpm2 calls at one level twice near pure noise, where two coefficients are a hundred times the others."""
    pytest.importorskip("matplotlib")
    plan = dc.samplers.dpm2(dc.schedules.Cosine(), 8)
    below = plan.plot().axes[1]
    largest = float(plan.update.max())
    assert below.get_ylim()[1] < 0.2 * largest
    assert f"{largest:.3g}" in [text.get_text() for text in below.texts]
    box, inside = below.get_legend().get_bbox_to_anchor().bounds, below.get_window_extent().bounds
    assert box[0] >= inside[0] + inside[2], "the legend stands right of the axes"
    assert all(float(tick).is_integer() for tick in below.get_xticks())
    even = dc.samplers.ddim(dc.schedules.Cosine(), 8).plot().axes[1]
    assert not even.texts, "no spike, nothing clipped"


def test_zero_is_printed_as_0_in_every_plan() -> None:
    for name in ("ancestral", "dpm2", "deis"):
        assert "e-16" not in str(dc.samplers.make(name, schedule=dc.schedules.Cosine(), steps=20))


def test_pictures_of_schedules_grids_plans_and_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from diffcore import plots

    cosine = dc.schedules.Cosine()
    table = dc.schedules.from_betas(np.linspace(1e-4, 0.02, 100))
    lines = plots.schedules({"a": cosine, "b": table}, tmp_path / "a.png").axes[0].get_lines()
    np.testing.assert_allclose(lines[1].get_ydata()[200], table.log_snr(0.5), rtol=1e-6)
    axes = plots.grids([dc.grids.uniform(cosine, 6, clean=True), [-3.0, 2.0]], tmp_path / "b.svg").axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["grid 1 (6)", "grid 2 (1)"]
    some = [dc.samplers.ddim(cosine, 4), dc.samplers.ancestral(cosine, 6)]
    below = plots.plans(some).axes[1].get_lines()
    np.testing.assert_allclose(below[1].get_ydata(), some[1].update[:, 0, 1])
    for shape in ((2, 3), (2, 8, 8, 1), (2, 2, 8, 8, 3)):
        states = list[dc.State]()
        dc.sample(lambda z, _: 0.5 * z, some[1], shape=shape, prediction="x", callback=states.append)
        axes = plots.trajectory(states, columns=3, sample=1).axes
        assert len(axes) == (2 if len(shape) == 2 else 6)
    for wrong in ([], [1.0], states[0]):
        with pytest.raises(ValueError, match="`states` must be states of a run, collected by"):
            plots.trajectory(wrong)
    with pytest.raises(TypeError, match="`given` must be a plan"):
        plots.plans([cosine])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="`given` must hold grids"):
        plots.grids({"x": np.zeros((2, 2))})


def test_a_schedule_of_a_long_table_prints_its_ends_and_a_short_one_all() -> None:
    assert repr(dc.schedules.Table(log_snrs=(8.0, -4.0))) == "Table(log_snrs=(8.0, -4.0), scaling='vp')"
    assert len(repr(dc.schedules.from_betas(np.linspace(1e-4, 0.02, 1000)))) < 80
    assert repr(dc.samplers.table()["unipc"]).startswith("<unipc(schedule, steps, ")


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
    signed = dc.Plan(
        plan.sampler, plan.scaling, -plan.log_snr, -plan.next_log_snr, np.where(update == 0.0, -0.0, update)
    )
    unsigned = dc.Plan(plan.sampler, plan.scaling, -plan.log_snr, -plan.next_log_snr, update)
    assert (signed, hash(signed)) == (unsigned, hash(unsigned))


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


@every_sampler
def test_the_settings_of_a_file_make_the_plan_again(make: Any, tmp_path: Path) -> None:
    plan = make(schedule_of("vp"), steps=3)
    plan.save(tmp_path / "plan")
    again = dc.samplers.make(schedule=schedule_of("vp"), steps=3, **dc.Plan.load(tmp_path / "plan").settings)
    assert again == plan
    assert (again.settings, str(again)) == (plan.settings, str(plan))


def test_settings_are_plain_numbers(tmp_path: Path) -> None:
    for make, given, plain in (
        (dc.samplers.euler, {"churn": np.float32(0.5), "churn_range": np.array([0.5, 4.0])}, (0.5, (0.5, 4.0))),
        (dc.samplers.sa_solver, {"tau_range": [0, np.int64(9)]}, ((0, 9),)),
    ):
        plan = make(schedule_of("vp"), 3, **given)
        assert plan == make(schedule_of("vp"), 3, **dict(zip(given, plain, strict=True)))
        plan.save(tmp_path / "plan")
        loaded = dc.Plan.load(tmp_path / "plan")
        assert dc.samplers.make(schedule=schedule_of("vp"), steps=3, **loaded.settings) == plan
