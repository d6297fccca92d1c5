"""The known language's teacher has learnt it, and students of both end at floors (test_killed.py kills one)."""

import os

import numpy as np
import pytest
import torch

from minwidth import known_heads, known_language, store
from workflow import known

LANGUAGE = known_language.language(8, 0.8)
U = LANGUAGE.unembedding
SMALL = {
    known_heads: {"HELD_OUT": 1024, "RUNS": (20, 3), "HEADS": known_heads.HEADS | {"batch": 64}},
    known: {
        "WIDTHS": [4], "SEEDS": [0, 1], "LANGUAGES": [(8, 0.8, [2, 8])], "TEACHERS": [(8, 0.8)],
        "LADDERS": [("head", 0), ("random", 1), ("width alone", 2)],
        "RUNS": {"head": (20, 5), "random": (5, 3), "width alone": (5, 3)},
        "TEACHER": known.TEACHER | {"width": 16, "batch": 64, "rate": 1e-2, "steps": 60},
        "STUDENTS": known.STUDENTS | {"batch": 64},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A store of its own, few sentences, and a teacher that is trained in seconds."""
    for name in ("RUNS", "RESULTS"):
        monkeypatch.setattr(store, name, tmp_path / name)
    for module, values in SMALL.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    for cached in (known.teacher, known_heads.pool):
        cached.cache_clear()
    yield
    for cached in (known.teacher, known_heads.pool):
        cached.cache_clear()


def test_the_teacher_learns_and_is_found_again():
    model, record = known.teacher(LANGUAGE)
    untrained = known.transformer(LANGUAGE, 16, 2, known.TEACHER["seed"])
    x, tokens, _ = known_heads.lesson(LANGUAGE, None, 256, 9)
    loss = [known_language.divergence(x @ U.T, known.said(LANGUAGE, m, tokens)).mean() for m in (model, untrained)]
    assert loss[0] < 0.8 * loss[1] and record["gap"] == pytest.approx(loss[0].item(), rel=0.3)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    known.teacher.cache_clear()
    again, _ = known.teacher(LANGUAGE)
    assert torch.equal(*(known.said(LANGUAGE, m, tokens) for m in (again, model)))


def test_a_transformer_sees_its_sentence_and_nothing_else():
    model = known.transformer(LANGUAGE, 8, 2, 0).eval()
    _, tokens, _ = known_heads.lesson(LANGUAGE, None, 4, 1)
    logits = known.said(LANGUAGE, model, tokens)
    assert logits.shape == (4, 16)
    torch.testing.assert_close(logits, model(tokens).logits[:, -1, :16])
    other = tokens.clone()
    other[0, 0] = (other[0, 0] + 1) % LANGUAGE.symbols
    changed = known.said(LANGUAGE, model, other)
    assert not torch.allclose(changed[0], logits[0], atol=1e-7)
    torch.testing.assert_close(changed[1:], logits[1:])


def test_the_teacher_cut_to_its_own_width_and_its_own_head_lose_nothing():
    assert known.student(LANGUAGE, "width alone", 2, 16, 0, 1)["untrained"] < 1e-4
    model, record = known.teacher(LANGUAGE)
    matrix = known_heads.words(LANGUAGE, model)

    @torch.no_grad()
    def copied(_, states):
        head = known_heads.Heads(matrix, 16, [0])
        head.reduce[0], head.unembedding[0] = torch.eye(16), matrix.T
        return head(states)

    found = known_heads.judged(LANGUAGE, model, copied)
    assert found["losses"][0] < 1e-5 and found["from_language"][0] == pytest.approx(record["gap"])


def test_gradients_by_hand_are_those_of_autograd():
    x, heads = known_language.draw(LANGUAGE, 64, 5), known_heads.Heads(U, 3, [0, 1])
    known_language.divergence(x @ U.T, heads(x)).mean(1).sum().backward()
    expected = [parameter.grad.clone() for parameter in heads.parameters()]
    heads.gradients(x, (x @ U.T).softmax(-1))
    for parameter, gradient in zip(heads.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_heads_side_by_side_learn_what_they_learn_alone():
    both, alone = (known_heads.heads(LANGUAGE, 3, seeds, 40) for seeds in ([4, 5], [4]))
    assert both["losses"][0] == pytest.approx(alone["losses"][0], rel=1e-3)
    assert both["losses"][0] != pytest.approx(both["losses"][1], rel=1e-3)


def test_steps_are_doubled_until_little_moves():
    losses = {10: 4.0, 20: 3.0, 40: 2.5, 80: 2.49, 160: 2.0}
    asked = []

    def train(steps):
        asked.append(steps)
        return {"losses": np.array([losses[steps], losses[steps]])}

    found, ending = known_heads.doubled(train, 10, 5)
    assert asked == [10, 20, 40, 80] and found["losses"][0] == ending["loss"] == 2.49
    assert ending["steps"] == 80 and ending["moved"] == pytest.approx(0.01 / 2.49)
    assert ending["low"] <= ending["ends"] <= ending["high"]
    assert known_heads.doubled(train, 10, 3)[1]["steps"] == 40, "no more runs than allowed"


def test_a_ladder_ends_and_no_student_passes_the_bracket(monkeypatch):
    for name, value in {"HEADS": {"batch": 256, "rate": 0.1}, "RUNS": (100, 4), "HELD_OUT": 4096}.items():
        monkeypatch.setattr(known_heads, name, value)
    floors, kept = known_heads.ladder(LANGUAGE, [2, 8], [0, 1])
    two, eight = floors.to_dict("records")
    assert two["steps"] == 800 or (two["steps"] == 400 and two["moved"] < known_heads.MOVES)
    assert two["low"] <= two["ends"] <= two["high"] and two["least"] <= two["loss"] <= two["most"]
    assert two["least"] > two["proved"] - 3 * two["error"]
    assert eight["loss"] < 0.05 * two["loss"] and eight["proved"] == 0, "at full width nothing need be lost"
    table = kept.pivot(index="feature", columns="width", values="kept")
    assert table[8].min() > 0.9 > table[2].min()


def test_the_command_trains_each_kind_to_above_the_bracket(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)  # a spawned process is not small
    known.main([])
    names = ("known_teachers", "known_heads_floors", "known_heads_kept", "known_students")
    teachers, floors, kept, students = (store.load_results("tiny", name) for name in names)
    assert len(teachers) == 1 and len(floors) == 2 and len(kept) == 16 and len(students) == 6
    assert (students.loss > students.proved).all() and np.isfinite(students.from_language).all()
    assert (students.loss < students.untrained)[students.kind != "head"].all()
    for _, (first, second) in ((kind, rows.to_dict("records")) for kind, rows in students.groupby("kind")):
        assert first["steps"] == second["steps"] and first["loss"] != second["loss"]
        assert np.isfinite(first["moved"]) and np.isnan(second["moved"]), "of the first seed alone"


def test_the_number_of_threads_changes_nothing(tmp_path, monkeypatch):
    known.teacher(LANGUAGE)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            monkeypatch.setattr(store, "RUNS", tmp_path / f"{threads}")
            known_heads.pool.cache_clear()
            found.append(known.rung(LANGUAGE, "random", 1, 4, 0))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
