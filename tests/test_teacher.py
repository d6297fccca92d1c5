import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from minwidth import models
from workflow import teacher

TEXTS = ["The court held that the patient scored.", "def f(x):\n    return x + 1\n", "Voilà, où étiez-vous ? Là."] * 30


blocks = st.lists(st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=1, max_size=6)


@settings(deadline=None)
@given(blocks, blocks)
def test_ngram_losses_match_a_plain_count(train, held_out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "VOCABULARY", 3)
        losses = teacher.ngram_losses(np.array(train), np.array(held_out))
    orders = [Counter(tuple(row[i : i + n]) for row in train for i in range(len(row) - n + 1)) for n in (1, 2, 3)]

    def probability(gram, n):
        if n == 0:
            return 1 / 3
        followers = {g: count for g, count in orders[n - 1].items() if g[:-1] == gram[-n:-1]}
        kinds = len(followers) or 1
        return (followers.get(gram[-n:], 0) + kinds * probability(gram, n - 1)) / (sum(followers.values()) + kinds)

    asked = [tuple(row[i : i + 3]) for row in held_out for i in range(3)]
    for n, name in enumerate(("unigram", "bigram", "trigram"), 1):
        assert math.isclose(losses[name], -np.mean([math.log(probability(gram, n)) for gram in asked]), rel_tol=1e-9)


@pytest.fixture(scope="module")
def tokenizer():
    return teacher.tokenizer_from(TEXTS)


@settings(deadline=None)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and all(0 <= i < teacher.VOCABULARY for i in ids)


def test_the_end_of_text_comes_first_and_is_never_added_unasked(tokenizer):
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == (teacher.END, 0)
    assert 0 not in tokenizer("A sentence. Another.\n")["input_ids"]


def test_the_untrained_teacher_depends_on_its_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = teacher.untrained()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    for a, b in zip(one.parameters(), teacher.untrained().parameters(), strict=True):
        assert torch.equal(a, b)


def test_cross_entropy_scores_each_token_by_the_logits_before_it():
    class Copies(torch.nn.Module):
        """Is sure that the next token is the present one plus one."""

        def forward(self, ids):
            logits = 50.0 * torch.nn.functional.one_hot((ids + 1) % 10, 10)
            return type("Output", (), {"logits": logits})

    rising = torch.arange(10)[None]
    assert float(teacher.cross_entropy(Copies(), rising)) < 1e-6
    assert float(teacher.cross_entropy(Copies(), rising.flip(1))) == pytest.approx(50, rel=1e-3)


def test_the_shipped_teacher_is_what_its_record_says_beats_the_trigram_and_prefers_english_to_random_tokens():
    """A sentence in plain English costs it far less than text of random tokens, and less than a unigram's guess."""
    record = json.loads((teacher.FOLDER / "training.json").read_text())
    assert record["held_out_nats_per_token"] < record["baselines_nats_per_token"]["trigram"]
    sizes = [tensor.size for tensor in load_file(teacher.FOLDER / "model.safetensors").values()]
    assert sum(sizes) == record["parameters"]
    assert sum(path.stat().st_size for path in teacher.FOLDER.iterdir()) < 15e6
    model, tokenizer, _, _ = models.load_teacher("tiny")
    ids = tokenizer("The Prime Minister said that the government would not accept the terms of the agreement.")
    random = torch.randint(1, teacher.VOCABULARY, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = float(teacher.cross_entropy(model, torch.tensor([ids["input_ids"]])))
        noise = float(teacher.cross_entropy(model, random))
    assert plain < record["baselines_nats_per_token"]["unigram"] and noise > 1.5 * plain
