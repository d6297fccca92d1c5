"""A made-up text in the Pile's format, and bodies of processes that are killed while they read it."""

import json
from pathlib import Path

import numpy as np
import zstandard
from tokenizers import Tokenizer
from tokenizers import models as token_models
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from minwidth import pile


def save_pile(folder: Path, documents: int = 300, files: int = 3, words: int = 120, vocabulary: int = 400) -> Path:
    """``documents`` documents in sentences of twelve made-up words, in ``files`` files."""
    rng, folder = np.random.default_rng(0), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(documents):
        drawn = rng.integers(1, vocabulary, words)
        text = " ".join(f"w{word}" + "." * (place % 12 == 11) for place, word in enumerate(drawn))
        lines.append(json.dumps({"text": text, "meta": {"pile_set_name": f"Subset {number % 5}"}}) + "\n")
    for number, part in enumerate(np.array_split(lines, files)):
        (folder / f"{number:02}.jsonl.zst").write_bytes(zstandard.compress("".join(part).encode()))
    return folder


def tokenizer(vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """An id for each made-up word, none for a full stop; 0 ends a document."""
    words = {"<end>": 0} | {f"w{i}": i for i in range(1, vocabulary)}
    made = Tokenizer(token_models.WordLevel(words, unk_token="w1"))
    made.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation("removed")])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def tokenize(folder: Path, source: Path) -> None:
    """Body of a process that is killed: all of the text, in shards of twenty documents."""
    pile.RUNS, pile.BUFFER = folder, 20
    pile.token_blocks(str(source), tokenizer(), 16, "train", 10**6)
