from types import SimpleNamespace

import jupytext
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from minwidth import concepts, figures, ladders, probe, scales, staircase, store
from minwidth.store import RESULTS, ROOT
from tests.test_concepts import make_passages


@pytest.fixture(scope="module")
def labelled():
    return concepts.build(make_passages(), per_class=40, seed=0)


# ------------------------------------------------------------------------------------------------------------ splits


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(15, 60), st.integers(1, 7))
def test_no_group_stands_on_both_sides_of_a_split(seed, groups, count):
    rng = np.random.default_rng(seed)
    labels, rows = np.tile([0, 1], 120), np.arange(40, 240)
    member = np.array([f"d{number}" for number in rng.integers(0, groups, 240)])
    found = probe.splits(rows, labels, member, count, seed)
    assert len(found) == count
    for train, test, folds in found:
        assert not set(member[train]) & set(member[test])
        assert sorted([*train, *test]) == list(rows)
        assert 0.1 < len(test) / 200 < 0.35
        assert 0.3 < labels[test].mean() < 0.7
        for fit, choose in folds:
            assert sorted([*fit, *choose]) == list(range(len(train))), "the penalty is chosen on the training side"
            assert not set(member[train][fit]) & set(member[train][choose])
    tested = np.concatenate([split.test for split in found[:5]])
    assert len(tested) == len(set(tested)), "five splits test on different passages"


def asked(labelled, concepts_):
    p = scales.parameters("05_probe", "tiny", concepts=concepts_, splits=2, layer=2, tokens=20)
    passages = labelled[labelled.concept.isin(p.concepts)].reset_index(drop=True)
    return p, passages, probe.tasks(passages, p)


def test_labels_are_dealt_at_random_within_main_and_unseen_sources_are_in_no_training_side(labelled):
    _, passages, tasks = asked(labelled, list(scales.Probe.CONCEPTS))
    found = {(task.concept, task.control): task for task in tasks}
    unseen = {concept: len(task.splits) for (concept, control), task in found.items() if control == "unseen_source"}
    assert unseen == {"sport": 1, "legal": 3, "medical": 2}
    for task in tasks:
        table = passages.iloc[task.place]
        assert set(table.concept) == {task.concept} and (task.groups == table.group).all()
        agree = (task.labels == table.label)[table.set == "main"].mean()
        assert 0.2 < agree < 0.8 if task.control == "shuffled" else agree == 1
        for split in task.splits:
            train, test = table.iloc[split.train], table.iloc[split.test]
            assert set(train.set) == {"main"} and not set(train.group) & set(test.group)
            assert set(train.label) == set(test.label) == {0, 1}
            if task.control == "unseen_source":
                assert not set(train.source) & set(test.source)
            else:
                assert set(test.set) == {"main"}
    (split,), table = found["sport", "unseen_source"].splits, passages.iloc[found["sport", "unseen_source"].place]
    assert set(table.iloc[split.test].source) == {"sport news", "news"}


# --------------------------------------------------------------------------------------------- what a probe is shown


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


def test_pooled_states_are_plain_means_whatever_the_batch(model, monkeypatch):
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 50, length).tolist() for length in (3, 20, 1, 7, 20, 11)]
    expected = np.zeros((2, len(ids), 16))
    for number, passage in enumerate(ids):
        with torch.no_grad():
            states = model(torch.tensor([[0, *passage]]), output_hidden_states=True).hidden_states
        expected[:, number] = [states[layer][0, 1:].mean(0) for layer in (0, 2)]
    for tokens in (8192, 30):
        monkeypatch.setattr(probe, "FORWARD_TOKENS", tokens)
        np.testing.assert_allclose(probe.pooled(model, ids, 0, [0, 2, 3])[:2], expected, atol=1e-5)


def test_the_embedding_knows_no_order_and_deeper_layers_do(model):
    here, there = probe.pooled(model, [[1, 2, 3, 4], [4, 3, 2, 1]], 0, [0, 2]).transpose(1, 0, 2)
    np.testing.assert_allclose(here[0], there[0], atol=1e-6)
    assert np.abs(here[1] - there[1]).max() > 1e-3


def test_a_passage_is_cut_to_its_first_tokens():
    def tokenizer(texts, add_special_tokens):
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

    assert probe.tokenized(tokenizer, ["1 2 3 4", "5"], 3) == [[1, 2, 3], [5]]


# ------------------------------------------------------------------------------------------------------------ probes


@pytest.fixture(scope="module")
def problem():
    """400 passages of 100 documents; the label is one direction of ten, blurred, and units differ a thousandfold."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 200)
    groups = np.array([f"d{number // 4}" for number in range(400)])
    features = rng.normal(size=(400, 10))
    features[:, 3] += 1.5 * labels
    return features * np.logspace(0, 3, 10), labels, groups


def task_of(labels, groups, count):
    rows = np.arange(len(labels))
    return probe.Task("x", "none", rows, labels, groups, probe.splits(rows, labels, groups, count, seed=0))


def test_scores_are_those_of_a_plain_logistic_regression(problem, monkeypatch):
    features, labels, groups = problem
    task = task_of(labels, groups, 2)
    monkeypatch.setattr(probe, "PENALTIES", (0.1,))
    found = probe.scores(probe.state_probe, features, task)
    for number, (train, test, _) in enumerate(task.splits):
        mean, deviation = features[train].mean(0), features[train].std(0)
        plain = LogisticRegression(C=0.1, max_iter=1000).fit((features[train] - mean) / deviation, labels[train])
        here = found[found.split == number]
        assert (here.row == test).all() and (here.group == groups[test]).all() and (here.label == labels[test]).all()
        expected = plain.decision_function((features[test] - mean) / deviation)
        np.testing.assert_allclose(here.score, expected, atol=5e-3)  # as near as either solver goes


def test_the_penalty_is_chosen_where_it_matters(problem):
    """A strong informative direction asks for a weak penalty, hundreds of noise for a strong one."""
    features, labels, _ = problem
    every = np.arange(400)
    folds = [(every[every % 4 != n], every[every % 4 == n]) for n in range(2)]
    noise = np.random.default_rng(1).normal(size=(400, 300))
    chosen = [probe.state_probe(folds).fit(x, labels)[-1].C_ for x in (features[:, 3:4] * 5, noise)]
    assert chosen[0] > chosen[1]
    fitted = probe.state_probe(folds).fit(features, labels)
    expected = -log_loss(labels, fitted.predict_proba(features))
    assert probe._log_likelihood(fitted, features, labels) == pytest.approx(expected)


def test_the_test_side_changes_no_probe(problem):
    """Leak: what is measured on the test side must not depend on the other passages there, nor on their words."""
    features, labels, groups = problem
    task = task_of(labels, groups, 1)
    test = task.splits[0].test
    other, flipped = features.copy(), np.where(np.isin(np.arange(400), test), 1 - labels, labels)
    other[test[1:]] *= 100
    one = probe.scores(probe.state_probe, features, task)
    two = probe.scores(probe.state_probe, other, task._replace(labels=flipped))
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
    few = probe.word_probe(folds, width=2).fit(texts, labels)
    bags = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b").fit_transform(texts).toarray()
    *_, directions = np.linalg.svd(bags)
    projected = few[:2].transform(texts)
    np.testing.assert_allclose(np.abs(projected[:, 0]), np.abs(bags @ directions[0]), rtol=1e-2)
    assert projected.shape == (60, 2)


def test_a_probe_finds_what_is_there_and_nothing_where_nothing_is(problem):
    features, labels, groups = problem
    task = task_of(labels, groups, 5)
    there = probe.summary(probe.scores(probe.state_probe, features, task), seed=0)
    assert 0.70 < there["low"] < there["accuracy"] < there["high"] < 0.86  # the best possible is 0.773
    assert there["auroc"] > there["accuracy"] and there["documents"] == 100 and there["splits"] == 5
    noise = np.random.default_rng(2).normal(size=features.shape)
    nothing = probe.summary(probe.scores(probe.state_probe, noise, task), seed=0)
    assert nothing["low"] < 0.5 < nothing["high"]


# --------------------------------------------------------------------------------------------------------- intervals


def table_of(odds, labels, groups=None, split=0):
    odds = np.asarray(odds, float)
    groups = np.arange(len(odds)) if groups is None else groups
    return pd.DataFrame({"split": split, "row": np.arange(len(odds)), "label": labels, "group": groups, "score": odds})


def test_accuracy_and_area_of_a_hand_worked_table():
    """Positives score 3, 1, -1, negatives 1, -2, -3: 3 > all three, 1 > two and ties once, -1 > two: 7.5 of 9."""
    found = probe.summary(table_of([3, 1, -1, 1, -2, -3], [1, 1, 1, 0, 0, 0]), seed=0)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["auroc"] == pytest.approx(7.5 / 9)


def test_intervals_resample_documents_and_not_passages():
    """Fifty passages of one document say hardly more than one: the interval is as wide as that of the documents."""
    right = np.repeat(np.random.default_rng(0).random(40) < 0.7, 50)
    labels = np.tile([0, 1], 1000)
    odds = np.where(right, 1, -1) * np.where(labels == 1, 1, -1)
    by_document = probe.summary(table_of(odds, labels, np.repeat(np.arange(40), 50)), seed=0)
    by_passage = probe.summary(table_of(odds, labels), seed=0)
    width = by_document["high"] - by_document["low"]
    assert width == pytest.approx(2 * 1.96 * right.std() / 40**0.5, rel=0.15)
    assert width > 4 * (by_passage["high"] - by_passage["low"])


def test_a_difference_is_paired_and_of_the_same_passages():
    """Two probes that err on the same passages but ten differ by these ten, surely."""
    labels = np.tile([0, 1], 100)
    odds = np.where(labels == 1, 1.0, -1.0)
    odds[:80] *= -1
    worse = odds.copy()
    worse[100:110] *= -1
    shift, low, high = probe.difference(table_of(worse, labels), table_of(odds, labels), seed=0)
    assert shift == pytest.approx(-0.05)
    assert low < -0.05 < high < 0
    assert probe.difference(table_of(odds, labels), table_of(odds, labels), seed=0) == (0, 0, 0)
    with pytest.raises(ValueError, match="tested on different passages"):
        probe.difference(table_of(odds, labels), table_of(odds, labels, split=1), seed=0)


def probed(student: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One concept; a student of width 16 and its teacher; intervals of a point to either side."""
    rows = [("teacher", "none", 128, "none", 0.95), ("teacher", "none", 128, "embedding", 0.9)]
    rows += [("student", "random", 16, name, x) for name, x in dict(none=student, untrained=0.7, shuffled=0.99).items()]
    models = pd.DataFrame(rows, columns=["model", "ladder", "width", "control", "accuracy"])
    bags = [("bag_of_words", 0, 0.93), ("projected_words", 16, 0.75), ("projected_words", 128, 0.92)]
    words = pd.DataFrame(bags, columns=["control", "width", "accuracy"])
    return tuple(t.assign(concept="code", low=t.accuracy - 0.01, high=t.accuracy + 0.01) for t in (models, words))


def test_a_model_beats_its_controls_if_its_interval_lies_above_theirs():
    """Words in as many numbers as its own state has; labels at random are no rival, nor are all words unless asked."""
    teacher, student = probe.beats(*probed(0.8)).to_dict("records")
    assert teacher["beats"] and (teacher["control"], teacher["control_accuracy"]) == ("projected_words", 0.92)
    assert student["beats"] and (student["control"], student["control_high"]) == ("projected_words", 0.76)
    assert not probe.beats(*probed(0.765)).beats[1], "the intervals overlap"
    full = probe.beats(*probed(0.8), controls=("bag_of_words", *probe.CONTROLS))
    assert list(full.control) == ["bag_of_words", "bag_of_words"] and not full.beats[1]


# ---------------------------------------------------------------------------------------------------------- controls


def test_controls_are_measured_on_the_layer_they_name(labelled, model):
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
    p = scales.parameters("05_probe", "tiny", widths=[16, 128], train_students=False)
    d = scales.parameters("04_distill", "tiny")
    found, missing = probe.subjects(p, d)
    assert [(s.ladder, s.width) for s in found] == [("random", 16)]
    assert [(s.ladder, s.width) for s in missing] == [("random", 128), ("width_alone", 16)], "at d_T it is the teacher"
    wanted, none = probe.subjects(p.model_copy(update={"train_students": True}), d)
    assert len(wanted) == 3 and not none


@pytest.mark.parametrize("scale", scales.EVERY_STUDENT)
def test_every_student_of_the_ladder_is_probed(scale):
    changes, ladder = dict(scales.EVERY_STUDENT[scale]), scales.parameters("04_distill", scale)
    ladder = ladder.longer() if changes.pop("longer", False) else ladder
    p = scales.parameters("05_probe", scale, **changes)
    assert p.widths == ladder.widths
    everyone, _ = probe.subjects(p.model_copy(update={"train_students": True}), ladder)
    assert {(s.ladder, s.width, s.steps) for s in everyone} == {
        (job.ladder, job.width, 2 * ladder.steps)
        for job in ladders.jobs(ladder)
        if job.ladder != "head" and (job.ladder, job.width) != ("width_alone", p.shape.width)
    }


# ---------------------------------------------------------------------------------------------------- single features


def test_a_read_out_finds_what_is_linear_and_not_what_is_noise():
    generator = torch.Generator().manual_seed(0)
    stream, unseen = torch.randn(2000, 6, generator=generator), torch.randn(1000, 6, generator=generator)
    weights = torch.randn(6, 2, generator=generator)
    noise = torch.randn(3000, 1, generator=generator)
    active = torch.cat([stream @ weights > 1, noise[:2000] > 1], 1)
    asked = torch.cat([unseen @ weights > 1, noise[2000:] > 1], 1)
    areas = staircase.read_out(stream, active, unseen, asked)
    assert (areas[:2] > 0.99).all()
    assert abs(areas[2] - 0.5) < 0.05
    scaled = staircase.read_out(stream * 1000 + 5, active, unseen * 1000 + 5, asked)
    torch.testing.assert_close(scaled, areas, atol=1e-3, rtol=0)


@pytest.mark.parametrize("every", [1, 2])
def test_a_read_out_is_least_squares_judged_on_other_tokens(monkeypatch, every):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 4)), rng.normal(size=(200, 4))
    active, asked = x[:, 0] + rng.normal(size=300) > 1, y[:, 0] + rng.normal(size=200) > 1
    coefficients, *_ = np.linalg.lstsq(np.c_[np.ones(300), x], active * 1.0, rcond=None)
    odds = np.c_[np.ones(200), y] @ coefficients
    streams = [torch.tensor(a, dtype=torch.float32) for a in (x, y)]
    flags = [torch.tensor(a)[:, None] for a in (active, asked)]
    monkeypatch.setattr(staircase, "NEGATIVES_EVERY", every)
    area = float(staircase.read_out(streams[0], flags[0], streams[1], flags[1])[0])
    some = asked | (np.arange(200) % every == 0)
    assert area == pytest.approx(roc_auc_score(asked[some], odds[some]), abs=2e-3)


def test_bins_of_rank_hold_every_feature_once():
    values = np.random.default_rng(0).random(100)
    frame = pd.DataFrame({"model": ["teacher", "student"], "width": [8, 4], "kept": [80.0, 40.0]})
    record = store.Record("x", {}, {"models": frame, "auroc": np.stack([np.ones(100), 0.5 + values])}, {})
    binned = staircase.by_rank(record, bins=7)
    student = binned[binned.model == "student"]
    assert student["rank"].is_monotonic_increasing
    assert (student.low <= student.auroc).all() and (student.auroc <= student.high).all()
    assert student["features"].sum() == 100
    assert np.average(student.auroc, weights=student["features"]) == pytest.approx(0.5 + values.mean())


# ------------------------------------------------------------------------------------------------- 05 on every scale

MEASURED = sorted(file.parent.name for file in RESULTS.glob("*/probe_students.csv"))


@pytest.mark.parametrize("scale", MEASURED)
def test_the_notebook_draws_every_scales_committed_tables(scale):
    """Also students that were cut, whose twin before distillation is no untrained one."""
    drawing = {"np": np, "pd": pd, "figures": figures}
    for cell in jupytext.read(ROOT / "notebooks" / "05_probe.py").cells:
        if "drawing" in cell.metadata.get("tags", []):
            exec(cell.source, drawing)
    tables = (
        "probe_students",
        "probe_students_words",
        "probe_students_staircase",
        "probe_students_layers",
        "probe_layers",
    )
    accuracy, words, binned, *layers = (store.load_results(scale, name) for name in tables)
    students = accuracy[(accuracy.model == "student") & (accuracy.control == "none")]
    panels = drawing["draw_students"](accuracy, words).axes
    assert [panel.get_title() for panel in panels] == list(accuracy.concept.unique())
    layers = next(table for table in layers if table is not None)
    assert drawing["draw_layers"](layers, words).axes[0].lines
    for ladder in students.ladder.unique():
        figure = drawing["draw_controls"](accuracy, words, ladder)
        shown = [text.get_text() for text in figure.legends[0].get_texts()]
        assert ("the same student, only cut" in shown) == (ladder == "width_alone") and len(shown) == 8
        own = binned[(binned.model == "student") & (binned.ladder == ladder)]
        assert sum(bool(a.get_title()) for a in drawing["draw_staircase"](binned, ladder).axes) == own.width.nunique()
    paper = pd.DataFrame({"concept": ["code"], "shift": [1.0]})
    assert drawing["draw_shifts"](students.assign(d_teacher=students.width.max()), paper).axes[0].get_title()
    wins = probe.beats(accuracy, words)
    assert len(wins) == len(students) + accuracy.concept.nunique() and set(wins.control) <= set(probe.CONTROLS)
