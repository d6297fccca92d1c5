"""Text: a source's documents -> passages -> token blocks ``[blocks, length]``, on disk once.

A source is ``wheels`` (the locked ones); a folder of .txt, .jsonl (.zst, .gz) or .parquet files whose rows have a
``text``; or a hub data set, ``owner/name@commit`` or ``owner/name:configuration@commit``. Rows with
``meta.pile_set_name`` are The Pile's and are cut into passages as the wheels' documents are; others stay as they are.

Tokens lie in shards: the wheels make one, of a streamed text each buffer of documents makes one. It is added to the
files of those before it, then a journal says where they end, their SHA-256 and the position in the stream behind them.
So a killed process goes on from its last whole shard, to the same bytes, a longer text begins with the shorter one, and
every reader shares the files.
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tqdm.auto import tqdm

from minwidth import wheels
from minwidth.errors import ParameterError, SourceError
from minwidth.store import RUNS, alone, load_json, locked_digest, save_json, sha256_part, write_part
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
BEGUN = {"ends": dict.fromkeys(("train", "held_out", "passages"), 0), "sha256": {}, "position": {}}  # before any shard


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
        return locked_digest()
    status = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files(source)[1]]
    return hashlib.sha256(json.dumps(status).encode()).hexdigest()[:8] if status else source.partition("@")[2]


def pin(source: str) -> dict[str, str]:
    """What a record says of a text beside its name, where that does not pin it: the lock's or a folder's revision."""
    return {"text_revision": revision(source)} if source == "wheels" or files(source)[1] else {}


def title(source: str) -> str:
    """What a text, or a teacher, is called in the names of files and records."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "_", Path(source).name.partition("@")[0])


def documents(source: str = "wheels") -> Iterator[Document]:
    """Every document of a text in its own order; raises as ``buffers``."""
    for part, _ in buffers(source, BUFFER):
        yield from part


def buffers(source: str, size: int, position: dict | None = None) -> Iterator[tuple[Iterable[Document], dict | None]]:
    """A streamed text, ``size`` documents at a time, each time with the position behind them; the wheels at once.

    A position is JSON; given back, the stream continues with the next buffer.

    Raises:
        SourceError: the hub cannot be reached, the stream breaks off, or a file is in another format.
    """
    if source == "wheels":
        yield wheels.documents(), None
        return
    done, found = position["documents"] if position else 0, []
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
    if not isinstance(row["text"], str | None):
        raise ValueError(f"its text is a {type(row['text']).__name__}, no string")
    if isinstance(row.get("meta"), dict) and "pile_set_name" in row["meta"]:
        return [Document(f"pile/{number}", row["meta"]["pile_set_name"], row["text"])]
    text, most = row["text"] or "", f".{{1,{PART}}}"
    parts = re.findall(rf"{most}(?=\n|\Z)|{most}(?=\s)|{most}", text, re.DOTALL) if cut else [text]
    return [Document(f"{OWN}/{number}/{n}", OWN, part) for n, part in enumerate(parts)]


# -------------------------------------------------------------------------------------------------------- passages


def sampled(document: str, percent: float) -> bool:
    """Whether a document belongs to a share of them, by its id alone; a larger share contains a smaller one."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[-4:], "big") * 100 < percent * 2**32


def held_out(document: str) -> bool:
    """Whether a document belongs to the held-out split: 5 % of them, decided by its id alone."""
    return hashlib.sha256(document.encode()).digest()[0] * 100 < HELD_OUT_PERCENT * 256


def passages(source: Iterable[Document], seen: dict[bytes, None] | None = None) -> Iterator[Document]:
    """Passages of 20 to 100 words, each under its document's name; of a text of your own, the documents as they are.

    Those whose letters and digits have been seen are dropped; ``seen`` holds digests.
    """
    seen = {} if seen is None else seen
    for document in source:
        for text in [document.text] if document.domain == OWN else _cut(document):
            digest = hashlib.sha256(re.sub(r"[\W_]+", "", text.lower()).encode()).digest()[:DIGEST]
            if digest not in seen and text.strip():
                seen[digest] = None
                yield document._replace(text=text)


def _cut(document: Document) -> Iterator[str]:
    """Pack sentences (of code: lines) into pieces of at most 100 words; what is left with fewer than 20 is dropped."""
    shortest, longest = WORDS
    if document.domain == "code":
        units, glue = document.text.splitlines(), "\n"
    else:
        units, glue = re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", document.text.replace("\x00", ""))), " "
    piece, count = [], 0
    for unit in units:
        words = len(unit.split())
        if count >= shortest and count + words > longest:
            yield glue.join(piece)
            piece, count = [], 0
        if count + words > longest:  # one endless sentence, or a source without punctuation
            words = " ".join([*piece, unit]).split()
            *whole, rest = (words[start : start + longest] for start in range(0, len(words), longest))
            yield from map(" ".join, whole)
            piece, count = [" ".join(rest)], len(rest)
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

    The (fast) tokenizer's end-of-text token closes each document; its BOS, if it has one, opens each block. The wheels'
    documents come in an order fixed by their ids, others shuffled within each buffer. What is not there yet is read; a
    damaged shard is named in the log and made again with those behind it.

    Args:
        split: ``train`` or ``held_out``.
        percent: share of the documents that is read.

    Raises:
        ParameterError: the tokenizer has no end-of-text token.
        SourceError: as ``buffers``.
    """
    if tokenizer.eos_token_id is None:
        raise ParameterError("The tokenizer has no eos_token, which closes each document; set one and save it.")
    first, dtype = opening(tokenizer), np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    made_of = [revision(source), tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, percent, BUFFER, SEED]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:8]
    folder = RUNS / "tokens" / f"{title(source)}-{percent:g}pct-{digest}"
    a_block = (length - len(first)) * dtype.itemsize
    size = math.inf if wanted is None else wanted * a_block

    def enough(shard: dict) -> bool:
        return shard["position"] is None or shard["ends"][split] >= size

    shards = _shards(folder)
    if not enough(shards[-1]):
        with alone(folder / "shards"):
            shards = _extend(folder, source, tokenizer, dtype, percent, enough)
    count = min(shards[-1]["ends"][split], size) // a_block
    if not count:
        return np.zeros((0, length), dtype)
    blocks = np.memmap(folder / f"{split}.bin", dtype, "r", shape=(count, length - len(first)))
    return np.hstack([np.tile(np.array(first, dtype), (count, 1)), blocks]) if first else blocks


def spread(
    tokenizer, split: str, count: int, length: int, percent: float = 100, source: str = "wheels"
) -> tuple[Int[np.ndarray, "blocks length"], Int[np.ndarray, "blocks length"]]:
    """``count`` token blocks spread evenly over a split, and the number of the document each token belongs to.

    The wheels are few enough to be spread over as a whole; of a streamed text, whose documents come shuffled, four
    times as many blocks are read.

    Raises:
        ParameterError: the text has fewer; and as ``token_blocks``.
    """
    every = token_blocks(tokenizer, split, length, percent, source, None if source == "wheels" else 4 * count)
    if len(every) < count:
        raise ParameterError(
            f"{count} blocks of {length} {split} tokens were asked for and the text {source} has {len(every)}: "
            "give fewer, shorter ones, a higher percent, or more text."
        )
    rows = np.linspace(0, len(every) - 1, count).round().astype(int)
    return every[rows].astype(np.int64), document_numbers(every, tokenizer)[rows]


def opening(tokenizer) -> list[int]:
    """What the tokenizer puts before a text: its BOS, or nothing."""
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return whole[: next(n for n in range(len(whole) + 1) if whole[n : n + len(plain)] == plain)]


def document_numbers(blocks: Int[np.ndarray, "blocks length"], tokenizer) -> Int[np.ndarray, "blocks length"]:
    """Number of the document each token belongs to, or of its block where all are of one: an interval draws these."""
    ends = np.asarray(blocks) == tokenizer.eos_token_id
    ends[:, : len(opening(tokenizer))] = False  # the BOS of some families is their EOS
    numbers = (np.cumsum(ends) - ends.ravel()).reshape(ends.shape)
    return numbers if numbers.any() else np.tile(np.arange(len(ends))[:, None], ends.shape[1])


def _extend(folder: Path, source: str, tokenizer, dtype: np.dtype, percent: float, enough: Callable) -> list[dict]:
    """Add shards until one is ``enough``: the last of a text, which is empty where it was streamed, has no position.

    Nothing is ever cut off a file, which another process may have mapped: a shard is written over what an interrupted
    one left.
    """
    shards = _shards(folder)  # another process may just have added some
    content = (folder / "passages.bin").read_bytes()[: shards[-1]["ends"]["passages"]] if shards[1:] else b""
    seen = dict.fromkeys(content[at : at + DIGEST] for at in range(0, len(content), DIGEST))  # a GB per 1e9 tokens
    stream = buffers(source, BUFFER, shards[-1]["position"])
    while not enough(shards[-1]):
        part, position = next(stream, ([], None))
        if position:
            # ``datasets``' own shuffling buffer would be lost when a stream is resumed; this one is emptied whole
            order = np.random.default_rng([SEED, position["documents"]]).permutation(len(part))
            part = [part[place] for place in order]
        start, starts, texts = len(seen), shards[-1]["ends"], {}
        chosen = (document for document in part if sampled(document.id, percent))
        progress = f"{title(source)}, part {len(shards)}"
        for passage in tqdm(passages(chosen, seen), progress, unit=" passages", leave=False):
            texts.setdefault(passage.id, []).append(passage.text)
        if source == "wheels":
            texts = dict(sorted(texts.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest()[1:]))
        found = _tokenize(texts, tokenizer, dtype) | {"passages": b"".join(islice(seen, start, None))}
        sums = {name: write_part(folder / f"{name}.bin", starts[name], part) for name, part in found.items()}
        ends = {name: starts[name] + len(part) for name, part in found.items()}
        shards.append({"ends": ends, "sha256": sums, "position": position})
        save_json(folder / "shards.json", shards[1:])
    return shards


def _tokenize(texts: dict[str, list[str]], tokenizer, dtype: np.dtype) -> dict[str, bytes]:
    """Token ids of each split, the passages of its documents in the order given, each document closed."""
    found, order = {"train": bytearray(), "held_out": bytearray()}, list(texts)
    for start in tqdm(range(0, len(order), 1000), desc="tokenizing", unit="k documents", leave=None):
        part = order[start : start + 1000]
        every = tokenizer(["\n".join(texts[document]) for document in part], add_special_tokens=False)["input_ids"]
        for document, ids in zip(part, every, strict=True):
            side = "held_out" if held_out(document) else "train"
            found[side] += np.array([*ids, tokenizer.eos_token_id], dtype).tobytes()
    return found


def _shards(folder: Path) -> list[dict]:
    """``BEGUN`` and what the journal says of the shards, up to the first that is not as it was written."""
    shards = [BEGUN, *(load_json(folder / "shards.json") or [])]
    for number, (before, shard) in enumerate(pairwise(shards), 1):
        for name, digest in shard["sha256"].items():
            if sha256_part(folder / f"{name}.bin", before["ends"][name], shard["ends"][name]) != digest:
                log.warning("Shard %d of %s is damaged, is made again, and those behind it too.", number, folder)
                return shards[:number]
    return shards
