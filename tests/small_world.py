"""A random GPT-NeoX in a folder, made-up text, and parameters of 03_sae small enough for seconds."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models as token_models
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast

from minwidth import sae, scales, store, stream, text, training

SMALL = dict(expansion=4, tokens=10_000, steps=60, batch=64, held_out_tokens=1600, kl_tokens=160, length=16)


def save_teacher(folder: Path) -> None:
    """A random teacher of Pythia's architecture with a tokenizer, as ``save_pretrained`` leaves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPTNeoXConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=32, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = {"<end>": 0} | {f"w{i}": i for i in range(1, 40)}
    tokenizer = Tokenizer(token_models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)


def token_blocks(tokenizer, split: str, *_) -> np.ndarray:
    """Instead of ``text.token_blocks``."""
    made = np.random.default_rng(0).zipf(1.3, (800, 16)) % 40
    return {"train": made[:700], "held_out": made[700:]}[split]


def parameters(folder: Path, **changes) -> scales.Sae:
    given = SMALL | dict(teacher=str(folder), layer=2, layers=[1, 2], lams=[0.3, 3.0], lam=1.0) | changes
    return scales.parameters("03_sae", "tiny", **given)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Parameters of a measurement whose records lie in a folder of their own."""
    for module in (store, stream):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(text, "token_blocks", token_blocks)
    save_teacher(tmp_path / "teacher")
    return parameters(tmp_path / "teacher")


def measure_slowly(folder: Path) -> None:
    """Body of a process that is killed: the measurement of ``world``, with a checkpoint after every window."""
    store.RUNS = stream.RUNS = folder / "runs"
    text.token_blocks = token_blocks
    training.CHECKPOINT_SECONDS, training.CHECKPOINT_SHARE = -1.0, math.inf
    torch.set_num_threads(1)
    sae.measure(parameters(folder / "teacher"))
