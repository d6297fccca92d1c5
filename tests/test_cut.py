import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from minwidth import cut, models, projection
from tests.small_models import D, config_of, kl, model_of, token_batches

torch.set_num_threads(1)
ROPE = dict(rope_theta=1e4)
CONFIGS = {
    "gpt_neox, serial, no attention bias": config_of("gpt_neox", use_parallel_residual=False, attention_bias=False),
    "llama, tied": config_of("llama", tie_word_embeddings=True),
    "llama, all biases": config_of("llama", attention_bias=True, mlp_bias=True),
    "gemma3_text": config_of("gemma3_text"),
    "gpt2": config_of("gpt2", scale_attn_by_inverse_layer_idx=True),
    "qwen3, 3 heads, one key head": config_of("qwen3", num_attention_heads=3, head_dim=16, num_key_value_heads=1),
    "qwen3, 5 heads": config_of("qwen3", num_attention_heads=5, head_dim=6, num_key_value_heads=5),
    "qwen3, linear rope": config_of("qwen3", rope_parameters=ROPE | dict(rope_type="linear", factor=4.0)),
    "qwen3, yarn": config_of(
        "qwen3", rope_parameters=ROPE | dict(rope_type="yarn", factor=2.0, beta_fast=32, beta_slow=1)
    ),
}


@pytest.fixture(params=CONFIGS)
def teacher(request):
    return model_of(CONFIGS[request.param])


def test_cut_at_full_width_is_exact_in_any_basis_of_the_stream(teacher):
    basis = projection.stream_basis(teacher, token_batches())
    generator = torch.Generator().manual_seed(5)
    rotation, _ = torch.linalg.qr(torch.randn(D - 1, D - 1, generator=generator, dtype=torch.float64))
    basis[:, :-1] = basis[:, :-1] @ rotation
    ids = token_batches()[0]
    logits, student = teacher(ids).logits, cut.cut_to_width(teacher, basis, D)
    assert logits.std() > 1  # else the next line would say little
    assert (student(ids).logits - logits).abs().max() < 1e-4 and kl(teacher, student, ids) < 1e-5


def test_a_cut_student_read_again_is_what_the_projection_says_and_only_its_stream_is_narrower(teacher, tmp_path):
    models.check_logits(teacher)
    (ids,), norms = token_batches(1), projection.stream_norms(teacher)
    basis = projection.stream_basis(teacher, [ids])
    for width in (teacher.config.num_attention_heads, 7):
        cut.cut_to_width(teacher, basis, width).save_pretrained(tmp_path)
        student = AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=True).eval()
        with projection.projected(teacher, norms, projection.kept(basis, width, norms[-1].centred)):
            torch.testing.assert_close(student(ids).logits, teacher(ids).logits, rtol=1e-3, atol=1e-3)
        for name in ("num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings"):
            assert getattr(student.config, name) == getattr(teacher.config, name)
        assert models.final_hidden(student, ids).shape == (2, 40, width)


def test_the_norm_of_a_cut_stream_is_the_teachers_of_the_kept_part():
    # Hand-worked: one RMSNorm, stream e_1 * 3 + e_2 * 4 cut to e_1 in width 2 of 4 keeps direction and overall scale.
    teacher = model_of(
        config_of("llama", hidden_size=4, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    )
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            teacher.model.layers[0].get_submodule(name).weight.zero_()  # the stream is the embedding
        teacher.model.embed_tokens.weight[5] = torch.tensor([3.0, 0.0, 4.0, 0.0])
    student = cut.cut_to_width(teacher, torch.eye(4), 2)
    hidden = models.final_hidden(student, torch.tensor([[5]]))
    torch.testing.assert_close(hidden[0, 0], torch.tensor([2.0, 0.0]))  # sqrt(d) e_1: the part that was kept, renormed


def test_final_hidden_and_unembedding_give_the_logits_and_gradients(teacher):
    ids = token_batches()[0]
    basis = projection.stream_basis(teacher, token_batches(1))
    for model in (cut.cut_to_width(teacher, basis, 16), models.make_student(teacher, 16, 0), teacher):
        logits = models.final_hidden(model, ids) @ models.unembedding(model).T
        torch.testing.assert_close(logits, model(ids).logits, rtol=1e-4, atol=1e-4)
        if model is not teacher:
            F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().sum() > 0 or "bias" in name, name


def test_a_students_transformer_is_one_graph():
    """As it is compiled on a GPU: no Python in between, the same gradients, and each of many students in turn."""
    neox, llama = (model_of(config_of(name, num_hidden_layers=1)) for name in ("gpt_neox", "llama"))
    ids = token_batches()[0]
    cuts = [cut.cut_to_width(teacher, projection.stream_basis(teacher, [ids]), 16) for teacher in (neox, llama)]
    for student in (models.make_student(neox, 16, 0), *cuts):
        student.requires_grad_(True)

        def gradients(student=student):
            logits = models.final_hidden(student, ids) @ models.unembedding(student).T
            return torch.autograd.grad(logits.square().mean(), [*student.parameters()])

        expected, names = gradients(), [name for name, _ in student.named_parameters()]
        models.compile_transformer(student, backend="aot_eager", fullgraph=True)
        with torch._dynamo.config.patch(recompile_limit=1):
            torch.testing.assert_close(gradients(), expected)
        assert [name for name, _ in student.named_parameters()] == names


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_bad_cuts(architecture):
    teacher = model_of(config_of(architecture))
    basis = projection.stream_basis(teacher, token_batches(1))
    for width in (3, 33):
        with pytest.raises(ValueError, match=f"from 4 to 32, not to {width}"):
            cut.cut_to_width(teacher, basis, width)
    for bad in (basis[:, :16], 2 * basis, basis * torch.nan):
        with pytest.raises(ValueError, match="32 x 32 with orthonormal columns"):
            cut.cut_to_width(teacher, bad, 16)
    if projection.stream_norms(teacher)[0].centred:
        with pytest.raises(ValueError, match="end with the constant direction"):
            cut.cut_to_width(teacher, torch.eye(D), 16)
    with pytest.raises(ValueError, match=r"bloom cannot be built at another width .* only llama, "):
        cut.cut_config(config_of("bloom"), 16)
