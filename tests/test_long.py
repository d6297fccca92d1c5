"""The hour-long jobs at small parameters: what is trained, what is judged, and that it is found again."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from minwidth import ladders, models, probe, sae, scales, store, students, training
from tests import small_world, test_students
from tests.test_killed import small  # noqa: F401
from workflow import long

world = small_world.world  # a fixture


def test_one_choice_is_changed_at_a_time_and_what_was_measured_is_found(world, tmp_path, monkeypatch):
    grid = dict(layer=[2], expansion=[4], tokens=[10_000], steps=[60, 30], seed=[0, 1])
    base = small_world.SMALL | dict(teacher=world.teacher, layer=2, layers=[1, 2], lams=[0.3, 3.0])
    monkeypatch.setitem(long.GRIDS["sensitivity"], "tiny", dict(base=base, lams=[3.0]) | grid)
    monkeypatch.setattr(store, "RESULTS", tmp_path / "results")
    long.sensitivity("tiny")
    table, floors = (store.load_results("tiny", f"sae_sensitivity{what}") for what in ("", "_floors"))
    found = list(zip(table.layer, table.lam, table.steps, table.seed, table["default"], strict=True))
    assert found == [(2, 0.3, 60, 0, False), (2, 1.0, 60, 0, True), (2, 3.0, 60, 0, False)] + [
        (2, lam, steps, seed, False) for steps, seed in ((30, 0), (60, 1)) for lam in (1.0, 3.0)
    ]
    names = ["layer", "lam", "steps", "seed"]
    assert len(floors.merge(table, on=names)) == 6 * len(table)
    origin = json.loads((tmp_path / "results/tiny/sae_sensitivity.json").read_text())
    assert len(origin["parameters"]["records"]) == 3 and origin["provenance"]["seconds"] > 0
    monkeypatch.setattr(sae, "_measure", lambda *_: pytest.fail("computed again"))
    long.sensitivity("tiny")
    with pytest.raises(ValueError, match="no sensitivity; it can be tiny, smollm2"):
        long.sensitivity("pythia-410m")


@pytest.mark.parametrize("scale", ["tiny", "smollm2"])
def test_brackets_are_the_records_of_the_committed_tables(scale, tmp_path, monkeypatch):
    """Nothing is computed: what counts is what would be asked for."""

    def asked(what, parameters, _):
        values = dict.fromkeys(("table", "growth"), pd.DataFrame([{"width": 1}]))
        return store.Record(store.key_of(what, parameters), parameters, values, {})

    teacher = SimpleNamespace(config=models.load_config(scale)), None, scale, models.teacher_revision(scale)
    monkeypatch.setattr(models, "load_teacher", lambda _: models.Teacher(*teacher))
    monkeypatch.setattr(store, "find_or_compute", asked)
    monkeypatch.setattr(store, "RESULTS", tmp_path)
    long.brackets(scale)
    for name in ("bottleneck.json", "bottleneck_growth.json"):
        ours, committed = (json.loads((folder / scale / name).read_text()) for folder in (tmp_path, store.COMMITTED))
        assert ours["record"] == committed["record"]


def test_longer_ladders_have_seeds_and_budgets_and_are_found_again(small, monkeypatch):
    monkeypatch.setitem(long.GRIDS["longer"], "tiny", dict(times=2, seeds=[0, 1]))
    p = test_students.settings(steps=10, warmup=2, evaluations=2)
    long.longer(p)
    table = store.load_results("tiny", "distill_long")
    longest = table[table.steps == 40].set_index(["width", "seed"])
    assert set(longest.index) == {(w, s) for w in (16, 32) for s in (0, 1)}
    assert longest.fall_per_doubling.notna().all()
    assert set(table[table.width == 32].steps) == {5, 10, 20, 40}
    monkeypatch.setattr(training, "train", None)
    long.longer(p)


def test_longest_ladders_end_at_five_lengths_and_some_have_a_second_seed(small, monkeypatch):
    changes = dict(steps=20, warmup=2, decay=0.25, evaluations=2, doubled=[], again=dict(seed=1, widths=[16]))
    monkeypatch.setitem(long.GRIDS["longest"], "tiny", changes)
    floors = dict(widths=[16], contexts=[16, 64], held_out=32, starts=1, blocks=[16, 8])
    monkeypatch.setitem(scales.FLOORS, "tiny", floors)
    p = test_students.settings(ladders=["random", "head"])
    with pytest.MonkeyPatch.context() as patch:  # the steps of each run, in the order in which they are taken
        steps = []
        update = training.update
        patch.setattr(training, "update", lambda *arguments: steps.append(1) or update(*arguments))
        patch.setattr(training, "in_processes", lambda work, items, progress: work(items))
        long.longest(p)
    table = store.load_results("tiny", "distill_longest")
    runs = table.groupby(["ladder", "width", "seed"]).steps.apply(list)
    assert set(runs.index) == {(name, w, s) for name in ("random", "head") for w, s in ((16, 0), (16, 1), (32, 0))}
    assert all(each == [2, 5, 10, 20, 40] for each in runs)
    of_head = table[(table.ladder == "head") & (table.width == 16)]
    assert (of_head.proved_from > 0).all() and (of_head.proved_from < of_head.proved_to).all()
    assert (of_head.proved < of_head.proved_high).all()
    students_trained = 5  # the head of full width is its teacher
    assert len(steps) == students_trained * (2 + 5 - 2 + (10 - 4) + (20 - 8) + (40 - 15)), "each goes on from the last"


def test_every_objective_is_judged_by_the_ladders_own_loss(small):
    p, teacher = test_students.settings(steps=10, evaluations=2, widths=[16]), test_students.make_teacher()
    table = long.controls(p, "distill_controls", seeds=[0]).set_index("student")
    assert set(table.index) == set(scales.CONTROLS["distill_controls"])
    own = table.loc["forward KL, T = 2"]
    assert own.kl == pytest.approx(own.own, rel=1e-5)
    other, job = p.model_copy(update={"temperature": 4.0}), students.Job("random", 16, 0, 10)
    model, text = students.trained(other, job, teacher), students.read(teacher, p, "held_out")
    assert table.kl["forward KL, T = 4"] == pytest.approx(students.losses(p, teacher, model, text).mean())
    assert table.own["forward KL, T = 4"] == pytest.approx(students.losses(other, teacher, model, text).mean())


def test_students_of_every_basis_start_as_projected_and_learn(small):
    """Uncut, a student starts where the one that is cut to the same directions does."""
    p, teacher = test_students.settings(steps=10, evaluations=2, widths=[16, 32]), test_students.make_teacher()
    table = long.controls(p, "distill_bases", seeds=[0]).set_index("student")
    assert set(table.index) == set(scales.CONTROLS["distill_bases"]) and set(table.ladder) == {"width_alone"}
    assert set(table.width) == {16}, "the teacher cut to its own width is itself"
    start = {}
    for name in ("principal", "channels", "uncut", "local"):
        other, job = p.model_copy(update={"basis": name}), students.Job("width_alone", 16, 0, 10)
        record = students.student(other, job, teacher)
        start[name] = record["untrained"]
        assert record["loss"] < 0.97 * start[name]
        text = students.read(teacher, p, "held_out")
        again = students.losses(p, teacher, students.trained(other, job, teacher), text).mean()
        assert again == pytest.approx(record["history"].held_out.iloc[-1], rel=1e-4)
    assert start["uncut"] == pytest.approx(start["principal"], rel=1e-3)
    assert len({round(value, 4) for value in start.values()}) == 3


@pytest.mark.parametrize("scale", long.GRIDS["probes"])
def test_every_student_of_the_ladder_is_probed(scale, monkeypatch):
    monkeypatch.setattr(ladders, "train", list)
    p, ladder = long.every_student(scale)
    p = p.model_copy(update={"train_students": True})
    assert {(job.ladder, job.width, job.steps) for job in probe.trained_students(p, ladder)[0]} == {
        (job.ladder, job.width, 2 * ladder.steps)
        for job in ladders.jobs(ladder)
        if job.ladder != "head" and (job.ladder, job.width) != ("width_alone", p.shape.width)
    }
