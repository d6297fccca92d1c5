"""The known language: its sentences show its features, its numbers are those of its definition, its judge is just."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minwidth import capacity, errors, kl, known_heads
from minwidth import known_language as known

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


# ------------------------------------------------------------------------------------------------------------ judging


@torch.no_grad()
def test_heads_that_copy_the_language_lose_what_they_drop():
    language = known.language(8, 0.8)
    u, x = language.unembedding, known.draw(language, 512, 1)
    heads = known_heads.Heads(u, 8, [0, 1])
    heads.reduce[0] = torch.eye(8)
    heads.reduce[1] = torch.eye(8) * (torch.arange(8) != 3)  # one feature dropped
    heads.unembedding[:] = u.T
    found = known.judged(language, x, x @ u.T, heads(x))
    kept = found["kept"]
    assert found["losses"][0] < 1e-6 and (kept[0] > 0.999).all()
    assert (found["losses"] == found["from_language"]).all(), "the teacher is the language"
    assert kept[1, 3] < 0.05 and (kept[1, np.arange(8) != 3] > 0.999).all()
    by_kernel = kl.divergence(x @ heads.reduce[1] + heads.bias[1], heads.unembedding[1].T, x, u, 1.0)
    assert found["losses"][1] == pytest.approx(float(by_kernel), rel=1e-4)
