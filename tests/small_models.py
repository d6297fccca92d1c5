"""Small random models of every architecture that is tested, in memory and in folders, and token batches for them."""

import copy
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from minwidth import models
from tests import pile_world

D, VOCABULARY = 32, 97
SHARED = dict(num_key_value_heads=2)
ARCHITECTURES = {
    "llama": SHARED,
    "mistral": SHARED | dict(sliding_window=16),
    "qwen2": SHARED,
    "qwen3": SHARED | dict(head_dim=16),
    "gemma": SHARED | dict(head_dim=16),
    "gemma2": SHARED | dict(head_dim=16, sliding_window=16),
    "gemma3_text": SHARED | dict(head_dim=16, sliding_window=16),
    "phi": {},
    "phi3": SHARED,
    "olmo": SHARED,
    "olmo2": SHARED,
    "gpt2": dict(n_inner=80),
    "opt": dict(ffn_dim=80, word_embed_proj_dim=D),
    "bloom": {},
    "falcon": {},
    "stablelm": SHARED,
    "gpt_neo": dict(attention_types=[[["global", "local", "global"], 1]], window_size=16),
    "gptj": dict(rotary_dim=4),
    "gpt_neox": {},
    "granite": SHARED | dict(logits_scaling=3.0, residual_multiplier=0.5, embedding_multiplier=4.0),
    "cohere": SHARED,
    "starcoder2": SHARED,
    "smollm3": SHARED,
    "mamba": {},
    "t5": dict(num_layers=2),
}


def config_of(architecture: str, **changes):
    settings = dict(
        vocab_size=VOCABULARY, hidden_size=D, num_hidden_layers=3, intermediate_size=80, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    if architecture != "mamba":
        settings |= dict(num_attention_heads=4)
    return CONFIG_MAPPING[architecture](**(settings | ARCHITECTURES[architecture] | changes))


def model_of(config, seed=0):
    """A model whose every parameter is random, gains and biases too, and whose logits are far from flat."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 1.0 if "embed" in name or "wte" in name else 0.2)
                else:
                    parameter.normal_(1.0 if "weight" in name else 0.0, 0.5)
    return model.requires_grad_(False)


def teacher_of(config, name="tiny") -> models.Teacher:
    return models.Teacher(model_of(config), pile_world.tokenizer(config.vocab_size), name, "0")


def save_teacher(folder: Path, config=None, dtype=torch.float16, words=3, special=None, **options):
    """A random model and a tokenizer of a few words, as ``save_pretrained`` leaves them; returns the model."""
    model = model_of(config or config_of("gpt_neox"))
    copy.deepcopy(model).to(dtype).save_pretrained(folder, **options)
    pile_world.tokenizer(words, **special or {}).save_pretrained(folder)
    for parameter in model.parameters():  # alone: rounded buffers, such as rotary frequencies, are not saved
        parameter.copy_(parameter.to(dtype))
    return model


def token_batches(count=4, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocabulary, (2, 40), generator=generator) for _ in range(count)]


def kl(teacher, student, ids, temperature=2.0):
    with torch.no_grad():
        log_p, log_q = ((model(ids).logits.double() / temperature).log_softmax(-1) for model in (teacher, student))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
