"""Every architecture at random weights: what can be measured, built narrower, saved; the table of the docs."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from minwidth import cut, models, projection, stream
from minwidth.store import ROOT
from tests.small_models import ARCHITECTURES, D, config_of, model_of, token_batches

torch.set_num_threads(1)
PAGE = ROOT / "docs" / "architectures.md"
REFUSED = {"olmo2": "reads the stream without a norm", "mamba": "no transformer", "t5": "encoder-decoder"}
START, END = "<!-- made by tests/test_architectures.py -->\n", "<!-- end -->"


@pytest.fixture(scope="module")
def rows():
    """Filled by the tests of this module, compared with the page of the docs by the last."""
    return {}


def measured(architecture, ids):
    """A model, its norms and basis; raises what the study says of an architecture that it cannot measure."""
    config = config_of(architecture)
    try:
        models.check_decoder(config)
    except ValueError as error:
        raise models.ParameterError(f"{error}.") from None
    model = model_of(config)
    models.check_logits(model)
    return model, projection.stream_norms(model), projection.stream_basis(model, [ids])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_cut_saved_and_loaded_or_refused_in_one_sentence(architecture, rows, tmp_path):
    (ids, *_) = token_batches(1)
    try:
        model, norms, basis = measured(architecture, ids)
    except models.ParameterError as error:
        assert architecture in REFUSED and REFUSED[architecture] in str(error)
        rows[architecture] = ["no", "no", "no", str(error)]
        return
    assert architecture not in REFUSED
    logits, centred = model(ids).logits, norms[0].centred
    scale = logits.abs().max()
    with projection.projected(model, norms, projection.kept(basis, D, centred)):
        assert (model(ids).logits - logits).abs().max() < 1e-4 * scale  # at full width, the teacher

    held = projection.kept(basis, 15, centred)
    stray = torch.randn(D, generator=torch.Generator().manual_seed(2))
    stray = 3 * (stray - held.float() @ (held.float().T @ stray))
    with projection.projected(model, norms, held):
        narrow = model(ids).logits
        assert (narrow - logits).abs().max() > 1e-2 * scale
        for layer in range(3):  # at width 15, deaf to whatever else the stream may hold
            with stream.spliced(model, layer, lambda stream: stream + stray):
                assert (model(ids).logits - narrow).abs().max() < 1e-4 * scale

    rows[architecture] = ["yes", "no", "no", notes(model)]
    if architecture in cut.FAMILIES:
        student = cut.cut_to_width(model, basis, 15)
        assert (student(ids).logits - narrow).abs().max() < 1e-4 * scale  # it computes what the projection says
        student.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert type(again) is type(student)
        torch.testing.assert_close(again(ids).logits, student(ids).logits, rtol=0, atol=0)
        rows[architecture][1:3] = "yes", "yes"


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in ("mamba", "t5")])
def test_the_papers_student_of_every_architecture(architecture):
    teacher = model_of(
        config_of(architecture, hidden_size=64, **({"word_embed_proj_dim": 64} if architecture == "opt" else {}))
    )
    student = models.make_student(teacher, 32, 0)
    assert student.config.hidden_size == 32 and student(token_batches(1)[0]).logits.isfinite().all()
    assert models.parameter_count(student) < 0.7 * models.parameter_count(teacher)


def notes(model) -> str:
    config, said = model.config, []
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        said.append("output bias: a coordinate more in every final state")
    if getattr(config, "final_logit_softcapping", None):
        said.append("capped logits: part of the measured loss; refused where a loss is made of final states")
    for name in ("logit_scale", "logits_scaling"):
        if getattr(config, name, 1.0) != 1.0:
            said.append(f"`{name}`: part of the unembedding")
    return "; ".join(said)


def test_the_page_of_the_docs_says_this(rows):
    if set(rows) != set(ARCHITECTURES):
        pytest.skip("made when all tests of this module have run")
    lines = ["| architecture | measured | built narrower | saved | notes |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(rows[name])} |" for name in ARCHITECTURES]
    table = "\n".join(lines) + "\n"
    page = PAGE.read_text()
    made = re.sub(f"{START}.*{END}", lambda _: f"{START}{table}{END}", page, flags=re.S)
    if made != page:
        PAGE.write_text(made)
        pytest.fail(f"{PAGE.name} told of another table and was written anew: look at it and commit it.")
