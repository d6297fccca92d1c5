from types import SimpleNamespace

import jupytext
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from minwidth import concepts, figures, ladders, probe, scales, staircase, store
from minwidth.errors import ParameterError
from minwidth.store import COMMITTED, ROOT
from tests.small_models import config_of, model_of
from tests.test_concepts import make_passages


@pytest.fixture(scope="module")
def labelled():
    return concepts.build(make_passages(), per_class=40, seed=0)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(15, 60), st.integers(1, 7))
def test_no_group_stands_on_both_sides_of_a_split(seed, groups, count):
    rng = np.random.default_rng(seed)
    labels, rows = np.tile([0, 1], 120), np.arange(40, 240)
    member = rng.integers(0, groups, 240)
    found = probe.splits(rows, labels, member, count, seed)
    assert len(found) == count
    for train, test, folds in found:
        assert not set(member[train]) & set(member[test]) and sorted([*train, *test]) == list(rows)
        assert 0.1 < len(test) / 200 < 0.35 and 0.3 < labels[test].mean() < 0.7
        for fit, choose in folds:
            assert sorted([*fit, *choose]) == list(range(len(train))), "the penalty is chosen on the training side"
            assert not set(member[train][fit]) & set(member[train][choose])
    tested = np.concatenate([test for _, test, _ in found[:5]])
    assert len(tested) == len(set(tested)), "five splits test on different passages"


def asked(labelled, concepts_):
    p = scales.parameters("05_probe", "tiny", concepts=concepts_, splits=2, layer=2, tokens=20)
    passages = labelled[labelled.concept.isin(p.concepts)].reset_index(drop=True)
    return p, passages, probe.tasks(passages, p)


def test_labels_are_dealt_at_random_within_main_and_unseen_sources_are_in_no_training_side(labelled):
    _, passages, tasks = asked(labelled, list(scales.Probe.CONCEPTS))
    unseen = {task.concept: task for task in tasks if task.control == "unseen_source"}
    assert {concept: len(task.splits) for concept, task in unseen.items()} == {"sport": 1, "legal": 3, "medical": 2}
    for task in tasks:
        table = passages.iloc[task.place]
        assert set(table.concept) == {task.concept} and (task.groups == table.group).all()
        agree = (task.labels == table.label)[table.set == "main"].mean()
        assert 0.2 < agree < 0.8 if task.control == "shuffled" else agree == 1
        for train, test in ((table.iloc[train], table.iloc[test]) for train, test, _ in task.splits):
            assert set(train.set) == {"main"} and not set(train.group) & set(test.group)
            assert set(train.label) == set(test.label) == {0, 1}
            if task.control == "unseen_source":
                assert not set(train.source) & set(test.source)
            else:
                assert set(test.set) == {"main"}
    for task in (task for task in tasks if task.control == "shuffled"):  # its folds are those of the true labels
        for train, _, folds in task.splits:
            true, groups = passages.label.to_numpy()[task.place[train]], task.groups[train]
            np.testing.assert_equal(folds, list(StratifiedGroupKFold(probe.INNER).split(train, true, groups)))
    ((_, test, _),) = unseen["sport"].splits
    assert set(passages.iloc[unseen["sport"].place].iloc[test].source) == {"sport news", "news"}


# ------------------------------------------------------------------------------------------------------------ probes


@pytest.fixture(scope="module")
def problem():
    """400 passages of 100 documents; the label is one direction of ten, blurred, and units differ a thousandfold."""
    rng, labels = np.random.default_rng(0), np.tile([0, 1], 200)
    features = rng.normal(size=(400, 10))
    features[:, 3] += 1.5 * labels
    return features * np.logspace(0, 3, 10), labels, np.arange(400) // 4


def test_the_test_side_changes_no_probe(problem):
    """Leak: what is measured on the test side must not depend on the other passages there, nor on their words."""
    features, labels, groups = problem
    rows = np.arange(400)
    task = probe.Task("x", "none", rows, labels, groups, probe.splits(rows, labels, groups, 1, seed=0))
    test, strange = task.splits[0][1], features.copy()
    strange[test[1:]] *= 100
    flipped = task._replace(labels=np.where(np.isin(rows, test), 1 - labels, labels))
    one, two = (probe.scores(probe.state_probe, x, of) for x, of in ((features, task), (strange, flipped)))
    assert one.score[0] == two.score[0]
    texts = np.array([f"w{n % 7} {'yes' if n % 3 and label else 'no'}" for n, label in enumerate(labels)], dtype=object)
    strange = texts.copy()
    strange[test[1:]] = "nowhere else"
    for make in (probe.word_probe, lambda folds: probe.word_probe(folds, width=3)):
        one, two = (probe.scores(make, x, task) for x in (texts, strange))
        assert one.score[0] == pytest.approx(two.score[0], rel=1e-9)


def test_words_are_present_or_not_in_any_order_and_projected_as_an_svd_does():
    labels, rng = np.tile([0, 1], 30), np.random.default_rng(0)
    texts = np.array([" ".join(f"w{n}" for n in rng.integers(0, 30, 8)) + " yes" * y for y in labels], dtype=object)
    folds = [(np.arange(40), np.arange(40, 60))]
    fitted = probe.word_probe(folds).fit(texts, labels)
    a, b = fitted.decision_function([texts[1], " ".join(reversed(texts[1].split() * 2))])
    assert a == b > 0
    projected = probe.word_probe(folds, width=2).fit(texts, labels)[:2].transform(texts)
    bags = fitted[0].transform(texts).toarray()
    *_, directions = np.linalg.svd(bags)
    np.testing.assert_allclose(np.abs(projected[:, 0]), np.abs(bags @ directions[0]), rtol=1e-2)


def test_accuracy_and_area_of_a_hand_worked_table():
    """Positives score 3, 1, -1, negatives 1, -2, -3: 3 > all three, 1 > two and ties once, -1 > two: 7.5 of 9."""
    table = {"split": 0, "label": [1, 1, 1, 0, 0, 0], "group": range(6), "score": [3.0, 1.0, -1.0, 1.0, -2.0, -3.0]}
    found = probe.summary(pd.DataFrame(table), seed=0)
    assert found["accuracy"] == pytest.approx(4 / 6) and found["auroc"] == pytest.approx(7.5 / 9)


def test_controls_are_measured_on_the_layer_they_name(labelled):
    model = model_of(config_of("gpt_neox"))
    p, passages, tasks = asked(labelled, ["medical", "french"])
    ids = [[1 + sum(map(ord, word)) % 49 for word in text.split()][:20] for text in passages.text]
    states = dict(zip((0, 2, 3), probe.pooled(model, ids, 0, [0, 2, 3]), strict=True))
    found = probe.probe_states(states, tasks, p)
    table, curve = found["accuracy"].set_index(["concept", "control"]), found["layers"].set_index(["concept", "layer"])
    assert ("french", "unseen_source") not in table.index
    for name in p.concepts:
        assert table.accuracy[name, "none"] == curve.accuracy[name, 2]
        assert table.accuracy[name, "embedding"] == curve.accuracy[name, 0]
        assert table.low[name, "shuffled"] < 0.6 and table.high[name, "shuffled"] > 0.4
    assert table.splits["medical", "none"] == table.splits["medical", "unseen_source"] == 2
    assert len(found["scores"].query("concept == 'medical'")) == table.passages["medical", "none"]
    alone = probe.probe_states({2: states[2]}, tasks, p, controls=False)["accuracy"]
    assert list(alone.control) == ["none"] * 2


def test_students_that_were_never_trained_are_left_out_and_named(monkeypatch):
    def find(what, parameters):
        return SimpleNamespace() if (parameters["ladder"], parameters["width"]) == ("random", 16) else None

    monkeypatch.setattr(store, "find", find)
    monkeypatch.setattr(ladders, "train", list)
    p = scales.parameters("05_probe", "tiny", widths=[16, 128], train_students=False)
    d = scales.parameters("04_distill", "tiny")
    found, missing = probe.trained_students(p, d)
    assert [(job.ladder, job.width) for job in found] == [("random", 16)]
    assert missing == ["random-w128-s0-n280", "width_alone-w16-s0-n280"], "at d_T it is the teacher"
    wanted, none = probe.trained_students(p.model_copy(update={"train_students": True}), d)
    assert len(wanted) == 3 and not none
    monkeypatch.setattr(store, "find", lambda *_: None)
    with pytest.raises(ParameterError, match=r"No student of widths = \[16, 128\] .* run 04_distill there first"):
        probe.trained_students(p, d)


# ---------------------------------------------------------------------------------------------------- single features


def test_a_read_out_is_judged_on_active_tokens_and_some_of_the_others(monkeypatch):
    x, y = torch.randn(2, 2000, 4, generator=torch.Generator().manual_seed(0))
    seen, unseen = x[:, :1] > 1, y[:, :1] + y[:, 1:2] > 1
    some = unseen[:, 0] | (torch.arange(2000) % staircase.NEGATIVES_EVERY == 0)
    area = staircase.read_out(x, seen, y, unseen)
    monkeypatch.setattr(staircase, "NEGATIVES_EVERY", 1)
    assert area == pytest.approx(staircase.read_out(x, seen, y[some], unseen[some]))


def test_bins_of_rank_hold_every_feature_once():
    values = np.random.default_rng(0).random(100)
    frame = pd.DataFrame({"model": ["teacher", "student"], "width": [8, 4], "kept": [80.0, 40.0]})
    record = store.Record("x", {}, {"models": frame, "auroc": np.stack([np.ones(100), 0.5 + values])}, {})
    student = staircase.by_rank(record).query("model == 'student'")
    assert student["rank"].is_monotonic_increasing and student["features"].sum() == 100
    assert (student.low <= student.auroc).all() and (student.auroc <= student.high).all()
    assert np.average(student.auroc, weights=student["features"]) == pytest.approx(0.5 + values.mean())


# --------------------------------------------------------------------------------------------------- what 05 defines


@pytest.fixture(scope="module")
def notebook():
    """The functions of 05 that draw and judge."""
    defined = {"np": np, "pd": pd, "figures": figures}
    for cell in jupytext.read(ROOT / "notebooks" / "05_probe.py").cells:
        if "drawing" in cell.metadata.get("tags", []):
            exec(cell.source, defined)
        elif cell.source.startswith("def beats"):
            exec(cell.source.partition("\n\n\n")[0], defined)
    return SimpleNamespace(**defined)


@pytest.mark.parametrize("student, wins", [(0.8, True), (0.765, False)])
def test_a_model_beats_its_controls_if_its_interval_lies_above_theirs(notebook, student, wins):
    """Words in as many numbers as its own state has are a rival; labels at random are none, nor are all words."""
    rows = [("teacher", "none", 128, "none", 0.95), ("teacher", "none", 128, "embedding", 0.9)]
    rows += [("student", "random", 16, name, x) for name, x in dict(none=student, untrained=0.7, shuffled=0.99).items()]
    models = pd.DataFrame(rows, columns=["model", "ladder", "width", "control", "accuracy"])
    bags = [("bag_of_words", 0, 0.99), ("projected_words", 16, 0.75), ("projected_words", 128, 0.92)]
    words = pd.DataFrame(bags, columns=["control", "width", "accuracy"])
    both = (t.assign(concept="code", low=t.accuracy - 0.01, high=t.accuracy + 0.01) for t in (models, words))
    found = notebook.beats(*both)
    assert list(found.control) == ["projected_words"] * 2 and list(found.control_high) == pytest.approx([0.93, 0.76])
    assert list(found.beats) == [True, wins]


@pytest.mark.parametrize("scale", sorted(file.parent.name for file in COMMITTED.glob("*/probe_students.csv")))
def test_a_cut_students_twin_before_distillation_is_no_untrained_one(notebook, scale):
    accuracy, words = (store.load_results(scale, f"probe_students{end}") for end in ("", "_words"))
    for ladder in accuracy[accuracy.model == "student"].ladder.unique():
        figure = notebook.draw_controls(accuracy, words, ladder)
        shown = [text.get_text() for text in figure.legends[0].get_texts()]
        assert ("the same student, only cut" in shown) == (ladder == "width_alone") and len(shown) == 8
