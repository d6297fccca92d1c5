"""The tiny teacher: tokenizer, GPT-NeoX, training and n-gram baselines. ``make teacher`` trains it again.

It has the Pythia architecture at d_T = 128: 4 layers, 4 heads, a quarter of each head rotary, parallel residual,
untied unembedding, and a byte-level BPE vocabulary of 2,048. What it learned from is in ``data/corpora.txt``.
"""

import json

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast

from minwidth import errors, training
from minwidth import text as texts
from minwidth.models import TINY as FOLDER
from minwidth.models import digest_of
from minwidth.store import RUNS, locked_digest, replace_folder

VOCABULARY = 2048
CONTEXT = 128
END = "<|endoftext|>"
SEED = 20260407  # the paper's date; no student uses it
SCHEDULE = training.Schedule(  # one epoch: 25 million tokens
    steps=12_288, batch=16, learning_rate=2e-3, warmup=400, weight_decay=0.1, betas=(0.9, 0.95), floor=0.02
)


def tokenizer_from(texts) -> PreTrainedTokenizerFast:
    """Byte-level BPE of ``VOCABULARY`` entries, ``<|endoftext|>`` first, learned from an iterator of texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, bos_token=END, unk_token=END)


def untrained() -> torch.nn.Module:
    """The teacher's architecture with its initial weights, drawn from ``SEED``."""
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512,
        max_position_embeddings=CONTEXT, rotary_pct=0.25, use_parallel_residual=True, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def cross_entropy(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss in nats of token blocks ``[batch, length]``."""
    logits = model(ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def ngram_losses(train: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Held-out loss in nats per token of unigram, bigram and trigram models with Witten-Bell interpolation.

    An order's estimate (count + T lower) / (N + T) mixes in the next lower order's by T, the number of distinct
    continuations of the context; below the unigram lies the uniform distribution. Both arguments are token blocks
    ``[blocks, length]``; a held-out block's first two tokens, which have no trigram context, are not scored.
    """
    probability = np.full(held_out[:, 2:].size, 1.0 / VOCABULARY)
    losses = {}
    for order, name in enumerate(("unigram", "bigram", "trigram")):
        counts = pd.Series(_windows(train, order + 1, order)).value_counts()
        contexts = counts.groupby(counts.index // VOCABULARY).agg(["sum", "size"])
        asked = _windows(held_out, order + 1, 2)
        count, seen = counts.reindex(asked, fill_value=0), contexts.reindex(asked // VOCABULARY, fill_value=0)
        kinds = np.maximum(seen["size"].to_numpy(), 1)  # an unseen context asks the lower order
        probability = (count.to_numpy() + kinds * probability) / (seen["sum"].to_numpy() + kinds)
        losses[name] = float(-np.log(probability).mean())
    return losses


def _windows(blocks: np.ndarray, width: int, first: int) -> np.ndarray:
    """The ``width`` tokens that end at each position from ``first`` on, as one integer each."""
    length = blocks.shape[1]
    codes = np.zeros((len(blocks), length - first), dtype=np.int64)
    for place in range(width):
        codes = codes * VOCABULARY + blocks[:, first - width + 1 + place : length - width + 1 + place]
    return codes.ravel()


def train() -> None:
    """Train tokenizer and teacher, resuming if interrupted, and replace ``data/teacher/``, whole or not at all."""
    work = RUNS / "teacher"
    if not (work / "tokenizer").exists():
        seen = (p.text for p in texts.passages(texts.documents()) if not texts.held_out(p.id))
        with replace_folder(work / "tokenizer") as folder:
            tokenizer_from(seen).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    text, unseen = (
        torch.from_numpy(texts.token_blocks(tokenizer, split, CONTEXT).astype(np.int64))
        for split in ("train", "held_out")
    )
    sample = unseen[np.random.default_rng(SEED).permutation(len(unseen))[:512]]
    model = untrained()
    history = training.train(
        model,
        loss=lambda model, rows: cross_entropy(model, text[rows]),
        evaluate=lambda model: float(cross_entropy(model, sample)),
        rows=len(text),
        schedule=SCHEDULE,
        seed=SEED,
        checkpoint=work / "checkpoint",
        progress="tiny teacher",
    )
    model.eval()
    with torch.no_grad():
        parts = [cross_entropy(model, unseen[i : i + 256]) for i in range(0, len(unseen) - 255, 256)]
    record = {
        "held_out_nats_per_token": float(torch.stack(parts).mean()),
        "baselines_nats_per_token": ngram_losses(text.numpy(), unseen.numpy()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_seen": history[-1]["step"] * SCHEDULE.batch * CONTEXT,
        "training_tokens": text.numel(),
        "held_out_tokens": unseen.numel(),
        "schedule": SCHEDULE._asdict(),
        "seed": SEED,
        "corpus": locked_digest(),
        "history": history,
    }
    with replace_folder(FOLDER) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        record["revision"] = digest_of(folder)
        (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)  # at batches of 2,048 tokens a second thread adds a third of its time at most
    errors.command(train)
