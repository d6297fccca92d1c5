import numpy as np
import pandas as pd
import pytest
import torch

from minwidth import bottleneck, cut, models, projection, store, stream, text, training
from minwidth.errors import ParameterError
from tests.small_models import D, config_of, kl, model_of, token_batches
from workflow import teacher as workflow

torch.set_num_threads(1)


@pytest.fixture(params=["gpt_neox", "llama"])
def teacher(request):
    return model_of(config_of(request.param))


def test_the_norms_that_read_the_stream_are_found_by_what_they_do():
    """Gemma 3 has norms of queries, of keys and of what is written too; GPT-NeoX's two of a block read one stream."""
    found = projection.stream_norms(model_of(config_of("gemma3_text")))
    inner = [f"layers.{n}.{name}_layernorm" for n in range(3) for name in ("input", "pre_feedforward")]
    assert [norm.name for norm in found] == [*inner, "norm"]
    assert [norm.site for norm in found] == list(range(7)) and not any(norm.centred for norm in found)
    model = model_of(config_of("gpt_neox"))
    found, first = projection.stream_norms(model), model.gpt_neox.layers[0]
    assert [norm.site for norm in found] == [0, 0, 1, 1, 2, 2, 3] and all(norm.centred for norm in found)
    assert [norm.readers for norm in found[:2]] == [[first.attention.query_key_value], [first.mlp.dense_h_to_4h]]


@pytest.mark.parametrize("architecture, offset", [("gemma3_text", 1), ("llama", 0), ("gpt2", 0)])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-3])
def test_a_norm_is_asked_for_its_gain_bias_and_epsilon(architecture, offset, epsilon):
    names = {"rms_norm_eps": epsilon} if architecture != "gpt2" else {"layer_norm_epsilon": epsilon}
    for norm in projection.stream_norms(model_of(config_of(architecture, **names))):
        torch.testing.assert_close(norm.gain, offset + norm.module.weight.double(), rtol=1e-5, atol=1e-5)
        bias = getattr(norm.module, "bias", torch.zeros(D)).double()
        torch.testing.assert_close(norm.bias, bias, rtol=1e-5, atol=1e-5)
        assert norm.epsilon == pytest.approx(epsilon, rel=1e-2)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_block_that_reads_the_stream_past_its_norm_is_refused_and_a_final_state_that_no_norm_gives(teacher, place):
    final, block = projection.stream_norms(teacher)[-1], stream.blocks_of(teacher)[place]
    hook = block.register_forward_hook(lambda _, given, output: output + 0.1 * torch.tanh(given[0]))
    with pytest.raises(ParameterError, match="reads moves with the residual stream but not one for one"):
        projection.stream_norms(teacher)
    hook.remove()
    teacher.base_model.set_submodule(final.name, torch.nn.Identity())
    with pytest.raises(ParameterError, match="its final state is not a norm of the residual stream"):
        projection.stream_norms(teacher)


def test_a_token_of_a_hundred_times_the_norm_changes_neither_norms_nor_exactness(teacher):
    teacher.get_input_embeddings().weight[7] *= 100
    (ids, *_) = token_batches()
    ids[:, 20] = 7
    norms = projection.stream_norms(teacher)
    whole = projection.kept(projection.stream_basis(teacher, [ids]), D, norms[0].centred)
    assert np.abs(projection.untrained(teacher, ids.numpy(), whole, norms=norms).kl).max() < 1e-4


def test_untrained_students_kl_and_loss_are_those_of_the_model_that_is_built(teacher):
    (ids, *_) = token_batches()
    norms, basis = projection.stream_norms(teacher), projection.stream_basis(teacher, token_batches())
    student = cut.cut_to_width(teacher, basis, 16)
    found = projection.untrained(teacher, ids.numpy(), projection.kept(basis, 16, norms[0].centred), norms=norms)
    assert found.kl.mean() == pytest.approx(kl(teacher, student, ids), rel=1e-4)
    expected = float(student(input_ids=ids, labels=ids).loss.detach())
    assert np.nanmean(found.loss) == pytest.approx(expected, rel=1e-4)
    assert np.isnan(found.loss).sum() == len(ids)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in teacher.modules())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi", "cohere"])
def test_untrained_students_lie_above_the_floor_of_their_last_state(architecture):
    model, ids = model_of(config_of(architecture)), torch.cat(token_batches())
    norms, basis = projection.stream_norms(model), projection.stream_basis(model, token_batches())
    whole = projection.untrained(model, ids.numpy(), None, norms=norms)
    assert not whole.kl.any() and np.nanmean(whole.loss) == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-4)
    states, matrix = models.final_hidden(model, ids).flatten(0, 1), models.unembedding(model)
    for width in (8, 16):
        directions = projection.kept(basis, width, norms[-1].centred)
        found = projection.untrained(model, ids.numpy(), directions, norms=norms).kl.mean()
        floor = bottleneck.floor(states, matrix, width, held_out=states, bias=matrix.shape[1] > D, steps=5)
        assert floor.low < found
        if architecture in cut.FAMILIES:
            assert found == pytest.approx(kl(model, cut.cut_to_width(model, basis, width), ids), rel=1e-3)


@pytest.mark.slow
def test_a_trained_teacher_of_another_family(tmp_path, monkeypatch, steps=300):
    """Qwen3's architecture at 2M parameters, trained on the study's text for minutes with the tiny tokenizer."""
    tokenizer, widths = models.load_teacher("tiny").tokenizer, [20, 40, 80, 120]
    config = config_of(
        "qwen3", hidden_size=160, num_hidden_layers=5, intermediate_size=480, head_dim=32, vocab_size=2048,
        max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = models.from_config(config)
    read = torch.from_numpy(text.token_blocks(tokenizer, "train", 128, 10.0).astype(np.int64))
    training.train(
        model,
        loss=lambda model, rows: workflow.cross_entropy(model, read[rows]),
        evaluate=lambda model: 0.0,
        rows=len(read),
        schedule=workflow.SCHEDULE._replace(steps=steps, warmup=steps // 20),
        seed=0,
    )
    model.eval().requires_grad_(False)
    monkeypatch.setattr(store, "RUNS", tmp_path)
    held_out, _ = text.spread(tokenizer, "held_out", 32, 128, 10.0)
    basis = projection.stream_basis(model, read[:: len(read) // 128].split(32))
    norms = projection.stream_norms(model)
    kept = [projection.kept(basis, width, norms[-1].centred) for width in widths]
    found = pd.Series([projection.untrained(model, held_out, each, norms=norms).kl.mean() for each in kept])
    given = dict(contexts=[768], held_out=256, blocks=[128, 32], starts=1)
    low = bottleneck.ladder(models.Teacher(model, tokenizer, "qwen3", "0"), widths, **given)["table"].low
    assert found.is_monotonic_decreasing and low.is_monotonic_decreasing and (low < found).all()
    student, ids = cut.cut_to_width(model, basis, 80), torch.from_numpy(held_out)
    assert found[2] == pytest.approx(kl(model, student, ids), rel=1e-3)


@pytest.fixture
def sites(teacher):
    """The teacher's norms, and the 16 directions that are kept at each site."""
    norms = projection.stream_norms(teacher)
    moments = projection.stream_moments(teacher, token_batches(), each_site=True)
    return norms, [projection.kept(projection.principal_basis(teacher, m), 16, norms[0].centred) for m in moments]


def test_a_basis_at_each_site_cuts_the_stream_itself(teacher, sites):
    """By hand: the stream is cut before each block and again before the final norm, and what is lost stays lost."""
    (ids, *_), (norms, bases) = token_batches(), sites
    assert len(bases) == norms[-1].site + 1
    with projection.projected(teacher, norms, bases):
        found = teacher(ids).logits
    if not norms[0].centred:  # llama: two sites a block
        stream, body = teacher.model.embed_tokens(ids), teacher.model
        angles = body.rotary_emb(stream, torch.arange(ids.shape[1])[None])
        cuts = [basis.float() @ basis.float().T for basis in bases]
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)[None, None]
        for number, layer in enumerate(body.layers):
            stream = stream @ cuts[2 * number]
            read = layer.input_layernorm(stream)
            stream = stream + layer.self_attn(read, position_embeddings=angles, attention_mask=mask)[0]
            stream = stream @ cuts[2 * number + 1]
            stream = stream + layer.mlp(layer.post_attention_layernorm(stream))
        expected = teacher.lm_head(body.norm(stream @ cuts[-1]))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    same = projection.kept(projection.stream_basis(teacher, token_batches()), 16, norms[0].centred)
    with projection.projected(teacher, norms, same):
        one = teacher(ids).logits
    with projection.projected(teacher, norms, [same] * len(bases)):
        torch.testing.assert_close(teacher(ids).logits, one, rtol=1e-3, atol=1e-3)


def test_a_student_with_a_basis_at_each_site_can_be_trained(teacher, sites):
    """Gradients against finite differences, through a stream that is cut in place."""
    (ids, *_) = token_batches()
    weight = next(w for name, w in teacher.named_parameters() if w.ndim == 2 and ".1." in name).requires_grad_(True)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    hooks = projection.project(teacher, *sites)
    teacher(ids, labels=ids).loss.backward()

    def moved(step):
        with torch.no_grad():
            weight.add_(step * direction)
            loss = float(teacher(ids, labels=ids).loss)
            weight.sub_(step * direction)
        return loss

    slope = (moved(1e-2) - moved(-1e-2)) / 2e-2
    assert float((weight.grad * direction).sum()) == pytest.approx(slope, rel=0.02, abs=1e-3)
    for hook in hooks:
        hook.remove()


def test_moments_are_those_of_all_norms_outputs_before_their_gains(teacher):
    batches, seen = token_batches(), []
    norms = [m for name, m in teacher.named_modules() if name.endswith("norm")]
    assert len(norms) == 2 * 3 + 1

    def undo(norm, _, output):
        seen.append((output - getattr(norm, "bias", torch.zeros(1))) / norm.weight)

    hooks = [norm.register_forward_hook(undo) for norm in norms]
    for batch in batches:
        teacher(batch)
    for hook in hooks:
        hook.remove()
    stream = torch.cat([part.flatten(0, -2) for part in seen]).double()
    moments = projection.stream_moments(teacher, batches)
    torch.testing.assert_close(moments, stream.T @ stream / len(stream), rtol=1e-4, atol=1e-4)
    assert moments.trace() == pytest.approx(D, rel=1e-4)
    as_arrays = projection.stream_moments(teacher, [batch.numpy().astype(np.uint16) for batch in batches])
    torch.testing.assert_close(as_arrays, moments, rtol=0, atol=0)
    each = projection.stream_moments(teacher, batches, each_site=True)
    weights = torch.tensor([2.0, 2.0, 2.0, 1.0] if len(each) == 4 else [1.0] * 7, dtype=torch.float64)
    torch.testing.assert_close((each * weights[:, None, None]).sum(0) / 7, moments)
    with pytest.raises(ValueError, match="at least one batch"):
        projection.stream_basis(teacher, [])


def test_basis_is_orthonormal_and_ordered(teacher):
    moments = projection.stream_moments(teacher, token_batches())
    basis = projection.principal_basis(teacher, moments)
    torch.testing.assert_close(basis.T @ basis, torch.eye(D, dtype=torch.float64))
    energies = ((moments @ basis) * basis).sum(0)
    assert (energies.diff() < 1e-12).all()
    assert (basis.abs().max(0).values == basis.max(0).values).all()  # signs
    if projection.stream_norms(teacher)[0].centred:
        torch.testing.assert_close(basis[:, -1], torch.full((D,), D**-0.5, dtype=torch.float64))
        assert energies[-1].abs() < 1e-12


def test_channels_are_kept_by_their_mean_square(teacher):
    moments = projection.stream_moments(teacher, token_batches())
    basis, order = projection.channel_basis(teacher, moments), moments.diagonal().argsort(descending=True)
    torch.testing.assert_close(basis.T @ basis, torch.eye(D, dtype=torch.float64))
    kept = projection.kept(basis, 9, centred := projection.stream_norms(teacher)[0].centred)
    channels = torch.eye(D, dtype=torch.float64)[:, order[: kept.shape[1]]] - centred / D
    torch.testing.assert_close(kept @ (kept.T @ channels), channels, msg="they span the strongest, made zero-mean")
    student = cut.cut_to_width(teacher, basis, 9)
    ids = token_batches()[0]
    with projection.projected(teacher, projection.stream_norms(teacher), kept):
        torch.testing.assert_close(student(ids).logits, teacher(ids).logits, rtol=1e-3, atol=1e-3)
