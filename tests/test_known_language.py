"""The known language: its sentences show its features, its numbers are those of its definition, its students learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minwidth import capacity, errors, kl, store
from minwidth import known_language as known


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A store of its own, and few sentences."""
    monkeypatch.setattr(store, "RUNS", tmp_path)
    monkeypatch.setattr(known, "HELD_OUT", 512)
    monkeypatch.setattr(known, "SAMPLE", 256)


# ----------------------------------------------------------------------------------------------------------- language


@settings(max_examples=20)
@given(st.integers(2, 40), st.sampled_from([0.5, 0.8, 0.95, 0.99]), st.integers(0, 10**6))
def test_sentences_show_just_their_features(features, alpha, seed):
    language = known.language(features, alpha)
    x = known.draw(language, 50, seed)
    tokens = known.sentences(language, x, seed)
    assert torch.equal(known.read(language, tokens), x)
    m = language.symbols
    first, second = tokens[:, :-1:2], tokens[:, 1::2]
    assert ((first < m) | (first == 2 * m)).all() and (tokens[:, -1] == 2 * m + 1).all()
    assert ((second >= m) & (second <= 2 * m)).all() and torch.equal(first == 2 * m, second == 2 * m)
    assert ((first < m).sum(1) == (x > 0).sum(1)).all(), "a pair a feature, no more"


def test_features_are_what_the_conventions_of_capacity_say():
    language = known.language(32, 0.9)
    x = known.draw(language, 40_000, 7).double()
    assert float((x == 0).double().mean()) == pytest.approx(0.9, abs=2e-3)
    middle = (np.arange(known.LEVELS) + 0.5) / known.LEVELS
    assert float(x.square().mean()) == pytest.approx(0.1 * (middle**2).mean(), rel=0.02)
    assert float(x.square().mean()) == pytest.approx(capacity.second_moment(0.9), rel=0.04)
    together = torch.corrcoef(x.T) - torch.eye(32)
    assert together.abs().max() < 0.03, "independent"
    assert torch.equal(known.draw(language, 9, 1, 2), known.draw(language, 9, 1, 2))
    assert not torch.equal(known.draw(language, 9, 1, 2), known.draw(language, 9, 2, 1))


def test_no_symbol_gives_a_feature_away():
    language = known.language(32, 0.95)
    for place in (language.pairs // language.symbols, language.pairs % language.symbols):
        features = [len(set((place == symbol).nonzero()[:, 0].tolist())) for symbol in range(language.symbols)]
        assert min(features) > 4
    assert language.pairs.unique().numel() == language.pairs.numel(), "no pair shows two things"


def test_the_unembedding_is_orthogonal_centred_and_of_zipf_size():
    u = known.language(32, 0.9, 5.0).unembedding.double()
    size = 5.0 * np.arange(1, 33) ** -0.5
    np.testing.assert_allclose((u.T @ u / len(u)).numpy(), np.diag(size**2), atol=1e-4)
    assert u.mean(0).abs().max() < 1e-5


def test_importance_is_half_the_variance_in_weak_logits():
    """To second order; notebook 07 drops a feature of strong ones."""
    weak = known.importance(known.language(6, 0.7, 0.01))
    expected = 0.5 * 0.3 * np.mean(((np.arange(4) + 0.5) / 4) ** 2) * 0.01**2 / np.arange(1, 7)
    np.testing.assert_allclose(weak, expected, rtol=0.05)


@pytest.mark.parametrize("given_", [(1, 0.9, 8.0), (8, 1.0, 8.0), (8, 0.0, 8.0), (8, 0.9, 0.0), (8, 0.9, math.inf)])
def test_what_makes_no_language_is_refused(given_):
    with pytest.raises(errors.ParameterError, match="make no language: give at least 2"):
        known.language(*given_)


# ----------------------------------------------------------------------------------------------------------- students


@torch.no_grad()
def test_heads_that_copy_the_language_lose_what_they_drop():
    language = known.language(8, 0.8)
    u, x = language.unembedding, known.draw(language, known.HELD_OUT, 1)
    heads = known.Heads(u, 8, [0, 1])
    heads.reduce[0] = torch.eye(8)
    heads.reduce[1] = torch.eye(8) * (torch.arange(8) != 3)  # one feature dropped
    heads.unembedding[:] = u.T
    found = known.judged(language, x, x @ u.T, heads(x))
    kept = found["kept"]
    assert found["losses"][0] < 1e-6 and (kept[0] > 0.999).all()
    assert kept[1, 3] < 0.05 and (kept[1, np.arange(8) != 3] > 0.999).all()
    by_kernel = kl.divergence(x @ heads.reduce[1] + heads.bias[1], heads.unembedding[1].T, x, u, 1.0)
    assert found["losses"][1] == pytest.approx(float(by_kernel), rel=1e-4)


def test_gradients_by_hand_are_those_of_autograd():
    language = known.language(8, 0.8)
    u, x = language.unembedding, known.draw(language, 64, 5)
    heads = known.Heads(u, 3, [0, 1])
    known.divergence(x @ u.T, heads(x)).mean(1).sum().backward()
    expected = [parameter.grad.clone() for parameter in heads.parameters()]
    heads.gradients(x, (x @ u.T).softmax(-1))
    for parameter, gradient in zip(heads.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_heads_side_by_side_learn_what_they_learn_alone():
    language = known.language(8, 0.8)
    both, alone = known.student(language, 3, [4, 5], 40), known.student(language, 3, [4], 40)
    assert both["losses"][0] == pytest.approx(alone["losses"][0], rel=1e-3)
    assert both["losses"][0] != pytest.approx(both["losses"][1], rel=1e-3)


def test_steps_are_doubled_until_little_moves():
    losses = {10: 4.0, 20: 3.0, 40: 2.5, 80: 2.49, 160: 2.0}
    asked = []

    def train(steps):
        asked.append(steps)
        return {"losses": np.array([losses[steps], losses[steps]])}

    found, ending = known.doubled(train, 10, 5)
    assert asked == [10, 20, 40, 80] and found["losses"][0] == ending["loss"] == 2.49
    assert ending["steps"] == 80 and ending["moved"] == pytest.approx(0.01 / 2.49)
    assert ending["low"] <= ending["ends"] <= ending["high"]
    assert known.doubled(train, 10, 3)[1]["steps"] == 40, "no more runs than allowed"


def test_a_ladder_ends_and_no_student_passes_the_bracket(monkeypatch):
    language = known.language(8, 0.8)
    monkeypatch.setattr(known, "HEADS", known.HEADS | {"steps": 100, "runs": 4})
    monkeypatch.setattr(known, "HELD_OUT", 4096)
    floors, kept = known.ladder(language, [2, 8], [0, 1])
    two, eight = floors.to_dict("records")
    assert two["steps"] == 800 or (two["steps"] == 400 and two["moved"] < known.MOVES)
    assert two["low"] <= two["ends"] <= two["high"] and two["least"] <= two["loss"] <= two["most"]
    assert two["least"] > two["proved"] - 3 * two["error"]
    assert eight["loss"] < 0.05 * two["loss"] and eight["proved"] < 1e-3, "at full width nothing need be lost"
    table = kept.pivot(index="feature", columns="width", values="kept")
    assert table[8].min() > 0.9 > table[2].min()
