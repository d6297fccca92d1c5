"""The known language's trained teacher has learnt it, and its students learn from it (test_killed.py kills one)."""

import numpy as np
import pytest
import torch

from minwidth import known_language as known
from minwidth import known_teacher as taught
from minwidth import store

LANGUAGE = known.language(8, 0.8)


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A store of its own, few sentences, and a teacher that is trained in seconds."""
    monkeypatch.setattr(store, "RUNS", tmp_path)
    monkeypatch.setattr(known, "HELD_OUT", 512)
    monkeypatch.setattr(taught, "TEACHER", taught.TEACHER | {"width": 16, "batch": 64, "rate": 1e-2, "steps": 60})
    monkeypatch.setattr(taught, "FIRST", 5)
    monkeypatch.setattr(known, "HEADS", known.HEADS | {"batch": 64, "steps": 20})
    monkeypatch.setattr(taught, "STUDENTS", taught.STUDENTS | {"batch": 64})
    for cached in (taught.teacher, taught.pool):
        cached.cache_clear()
    yield
    for cached in (taught.teacher, taught.pool):
        cached.cache_clear()


def test_the_teacher_learns_and_is_found_again():
    model, record = taught.teacher(LANGUAGE)
    untrained = taught.transformer(LANGUAGE, 16, 2, taught.TEACHER["seed"])
    x, tokens = taught.sentences(LANGUAGE, 256, 9)
    p = x @ LANGUAGE.unembedding.T
    loss = [known.divergence(p, taught.said(LANGUAGE, m, tokens)).mean().item() for m in (model, untrained)]
    assert loss[0] < 0.8 * loss[1] and record["gap"] == pytest.approx(loss[0], rel=0.3)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    taught.teacher.cache_clear()
    again, _ = taught.teacher(LANGUAGE)
    assert torch.equal(taught.said(LANGUAGE, again, tokens), taught.said(LANGUAGE, model, tokens))


def test_a_transformer_sees_its_sentence_and_nothing_else():
    model = taught.transformer(LANGUAGE, 8, 2, 0).eval()
    _, tokens = taught.sentences(LANGUAGE, 4, 1)
    logits = taught.said(LANGUAGE, model, tokens)
    assert logits.shape == (4, 16)
    torch.testing.assert_close(logits, model(tokens).logits[:, -1, :16])
    other = tokens.clone()
    other[0, 0] = (other[0, 0] + 1) % LANGUAGE.symbols
    assert not torch.allclose(taught.said(LANGUAGE, model, other)[0], logits[0], atol=1e-7)
    torch.testing.assert_close(taught.said(LANGUAGE, model, other)[1:], logits[1:])


def test_the_teacher_cut_to_its_own_width_and_its_own_head_lose_nothing():
    assert taught.student(LANGUAGE, "width alone", 2, 16, 0, 1)["untrained"] < 1e-4
    model, _ = taught.teacher(LANGUAGE)
    matrix = taught.words(LANGUAGE, model)

    @torch.no_grad()
    def copied(_, states):
        head = known.Heads(matrix, 16, [0])
        head.reduce[0], head.unembedding[0] = torch.eye(16), matrix.T
        return head(states)

    found = taught.judged(LANGUAGE, copied)
    assert found["losses"][0] < 1e-5 and found["from_language"][0] == pytest.approx(taught.teacher(LANGUAGE)[1]["gap"])


@pytest.mark.parametrize("kind, depth", [("head", 0), ("random", 1), ("width alone", 2)])
def test_each_kind_of_student_learns_and_is_above_the_bracket(kind, depth, monkeypatch):
    monkeypatch.setattr(known, "HELD_OUT", 1024)
    rows = [taught.rung(LANGUAGE, kind, depth, 4, seed) for seed in taught.SEEDS[:2]]
    first, second = rows
    assert first["loss"] > first["proved"] and second["loss"] > first["proved"]
    assert first["steps"] == second["steps"] and "moved" in first and "moved" not in second
    assert first["loss"] != second["loss"] and np.isfinite(first["from_language"])
    if kind != "head":
        assert first["loss"] < first["untrained"]


def test_the_number_of_threads_changes_nothing(tmp_path, monkeypatch):
    taught.teacher(LANGUAGE)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            monkeypatch.setattr(store, "RUNS", tmp_path / f"{threads}")
            taught.pool.cache_clear()
            found.append(taught.rung(LANGUAGE, "random", 1, 4, 0))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
