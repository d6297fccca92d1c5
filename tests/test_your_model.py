"""08_your_model's measurements of small random teachers; every text is made up."""

import numpy as np
import pytest
import torch

from minwidth import cut, models, projection, scales, store, stream, text, training, your_model
from minwidth.errors import ParameterError
from tests.small_models import VOCABULARY, D, config_of, kl
from tests.test_models import save_teacher
from workflow import teacher

torch.set_num_threads(1)


@pytest.fixture
def parameters(tmp_path, monkeypatch):
    """Of a folder, its records and made-up text of its own vocabulary."""
    for module in (store, stream, models):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    made = np.random.default_rng(0).zipf(1.3, (400, 16)) % VOCABULARY
    blocks = {"train": made[:300], "held_out": made[300:]}
    monkeypatch.setattr(text, "token_blocks", lambda tokenizer, split, *_: blocks[split])

    def of(config, **changes):
        save_teacher(tmp_path / "teacher", config, torch.float32)
        given = dict(length=16, widths=[8, 16], basis_blocks=64, blocks=16, contexts=256, held_out_contexts=32)
        given |= dict(floor_steps=5, teacher=str(tmp_path / "teacher")) | changes
        return scales.parameters("08_your_model", "tiny", **given)

    return of


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi", "cohere"])
def test_a_measurement_is_of_the_students_that_exist(parameters, architecture):
    p = parameters(config_of(architecture))
    teacher = models.load_teacher(p.teacher)
    text = your_model.read(teacher, p)
    table, ids = your_model.measure(teacher, text, p)["table"], torch.from_numpy(text.held_out)
    assert table.width.tolist() == [8, 16] and (table.low <= table.high).all() and (table.low < table.kl).all()
    assert (table.kl_low < table.kl).all() and (table.kl < table.kl_high).all()
    with torch.no_grad():
        expected = float(teacher.model(input_ids=ids, labels=ids).loss)
    assert table.teacher_loss.to_numpy() == pytest.approx(expected, rel=1e-4)
    if architecture in cut.FAMILIES:
        basis = your_model.principal_basis(teacher, text)
        for row in table.itertuples():
            student = cut.cut_to_width(teacher.model, basis, row.width)
            assert row.kl == pytest.approx(kl(teacher.model, student, ids, p.temperature), rel=1e-3)


def test_a_width_that_was_measured_is_found_again(parameters, monkeypatch):
    p = parameters(config_of("llama"))
    teacher = models.load_teacher(p.teacher)
    text = your_model.read(teacher, p)
    first = your_model.measure(teacher, text, p)["table"]
    asked = []
    measure = projection.untrained
    monkeypatch.setattr(projection, "untrained", lambda *given: asked.append(given[2]) or measure(*given))
    more = p.model_copy(update={"widths": [8, 12, 16]})
    again = your_model.measure(teacher, text, more)["table"]
    assert len(asked) == 1 and asked[0].shape == (D, 12)
    assert again[again.width != 12].reset_index(drop=True).equals(first)
    your_model.untrained(teacher, text, p.model_copy(update={"temperature": 1.0}))
    assert len(asked) == 4  # another temperature: the teacher and both widths


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"widths": [8, 32]}, r"widths = \[8, 32\] must lie between 2 and 31, below the teacher's 32"),
        ({"length": 128, "contexts": 128}, "length = 128 exceeds the context of .*; give at most 64"),
        ({"basis_blocks": 5000, "contexts": 128}, "5000 blocks of 16 train tokens were .* has 300: give fewer"),
        ({"steps": 5}, "A phi cannot be built at another width of its stream alone, only llama"),
    ],
)
def test_bad_input(parameters, changes, sentence):
    p = parameters(config_of("phi"), **changes)
    teacher = models.load_teacher(p.teacher)
    with pytest.raises(ParameterError, match=sentence):
        your_model.untrained(teacher, your_model.read(teacher, p), p)


@pytest.mark.slow
def test_a_trained_teacher_of_another_family(tmp_path, monkeypatch, steps=300):
    """Qwen3's architecture at 2M parameters, trained on the study's text for minutes with the tiny tokenizer."""
    tiny = models.load_teacher("tiny")
    config = config_of(
        "qwen3", hidden_size=160, num_hidden_layers=5, intermediate_size=480, head_dim=32, vocab_size=2048,
        max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = models.from_config(config)
    read = torch.from_numpy(text.token_blocks(tiny.tokenizer, "train", 128, 10.0).astype(np.int64))
    training.train(
        model,
        loss=lambda model, rows: teacher.cross_entropy(model, read[rows]),
        evaluate=lambda model: 0.0,
        rows=len(read),
        schedule=teacher.SCHEDULE._replace(steps=steps, warmup=steps // 20),
        seed=0,
    )
    model.eval().save_pretrained(tmp_path / "qwen3")
    tiny.tokenizer.save_pretrained(tmp_path / "qwen3")

    monkeypatch.setattr(store, "RUNS", tmp_path / "runs")
    p = scales.parameters("08_your_model", "tiny", teacher=str(tmp_path / "qwen3"), widths=[20, 40, 80, 120])
    trained = models.load_teacher(p.teacher)
    blocks = your_model.read(trained, p)
    table = your_model.measure(trained, blocks, p)["table"]
    assert table.kl.is_monotonic_decreasing and table.low.is_monotonic_decreasing and (table.low < table.kl).all()
    student = cut.cut_to_width(trained.model, your_model.principal_basis(trained, blocks), 80)
    ids = torch.from_numpy(blocks.held_out)
    assert table.kl[2] == pytest.approx(kl(trained.model, student, ids, p.temperature), rel=1e-3)
