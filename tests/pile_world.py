"""Made-up texts in The Pile's format, and a tokenizer of their words."""

import json
from pathlib import Path

import numpy as np
import zstandard
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

FRENCH_WORDS, SPORT_WORDS = "le les des et est du dans pour une qui", "team season coach scored"
SUBSETS = {  # subset: words that its passages have among made-up ones; a subset may come twice
    "EuroParl": ("", FRENCH_WORDS), "Pile-CC": ("", SPORT_WORDS, "team"), "Wikipedia (en)": ("", SPORT_WORDS),
    "HackerNews": ("",), "StackExchange": ("",), "Github": ("",), "ArXiv": ("",), "FreeLaw": ("",),
    "PubMed Abstracts": ("",), "PubMed Central": ("",), "Enron Emails": ("",),
}  # fmt: skip


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


def save_subsets(folder: Path, documents: int = 60) -> Path:
    """``documents`` documents of each kind of ``SUBSETS``, each of some passages that ask and state."""
    rng, lines = np.random.default_rng(0), []
    for number in range(documents):
        for subset, kinds in SUBSETS.items():
            for kind in kinds:
                words = [f"{subset[:3].lower()}{word}" for word in rng.integers(0, 10**6, 120)]
                parts = [" ".join(words[start : start + 12]) for start in range(0, len(words), 12)]
                text = " ".join(f"What is {part} {kind}? It is {part} indeed {kind}." for part in parts)
                lines.append(json.dumps({"text": f"{text} {number}", "meta": {"pile_set_name": subset}}) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "00.jsonl.zst").write_bytes(zstandard.compress("".join(lines).encode()))
    return folder


def tokenizer(vocabulary: int = 400, opens: bool = False, **special: str) -> PreTrainedTokenizerFast:
    """An id for each made-up word, none for a full stop; 0 ends a document and, if it ``opens`` a text, is its BOS."""
    words = {"<end>": 0} | {f"w{i}": i for i in range(1, vocabulary)}
    made = Tokenizer(token_models.WordLevel(words, unk_token="w1"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    if opens:
        made.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    special = special or {"eos_token": "<end>"} | ({"bos_token": "<end>"} if opens else {})
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)
