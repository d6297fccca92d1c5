"""The Pile, a text too long for memory: streamed, shuffled by buffers, cut and tokenized shard by shard.

A shard is what one buffer of documents gives. Its tokens are added to the files of those before it, then a journal says
where they end, their SHA-256 and the position in the stream behind them: a killed process goes on from its last whole
shard, to the same bytes. A longer text begins with the shorter one, so every reader shares the files and they grow on
demand.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from minwidth import corpus
from minwidth.corpus import Document
from minwidth.errors import SourceError
from minwidth.store import RUNS, alone, replace_file, writing

log = logging.getLogger(__name__)

BUFFER = 10_000  # documents that are shuffled among themselves and make a shard: about 15 million tokens
SEED = 0  # of their order
FILES = ("train", "held_out", "passages")  # tokens of each split, and digests of the passages seen, 12 bytes each
JOURNAL = "shards.json"


# ---------------------------------------------------------------------------------------------------------- documents


def documents(source: str) -> Iterator[Document]:
    """Stream The Pile in its own order.

    Args:
        source: a hub data set as ``owner/name@commit``, or a folder in the Pile's format (``*.jsonl.zst`` with
            ``text`` and ``meta.pile_set_name``).

    Raises:
        SourceError: the hub cannot be reached, the stream breaks off, or a file has other fields.
    """
    for part, _ in _read(source, BUFFER):
        yield from part


def buffers(source: str, size: int = BUFFER, position: dict | None = None) -> Iterator[tuple[list[Document], dict]]:
    """The Pile, ``size`` documents at a time in an order drawn from ``SEED``, each time with the position behind them.

    A position is JSON; given back, the stream continues with the next buffer. The shuffling buffer of ``datasets``
    would be lost when a stream is resumed; this one is filled, shuffled and emptied whole.

    Raises:
        SourceError: as ``documents``.
    """
    for part, behind in _read(source, size, position):
        order = np.random.default_rng([SEED, behind["documents"]]).permutation(len(part))
        yield [part[place] for place in order], behind


def title(source: str) -> str:
    """What a text is called in the names of files and records."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "_", Path(source).name.partition("@")[0])


def _read(source: str, size: int, position: dict | None = None) -> Iterator[tuple[list[Document], dict]]:
    done = position["documents"] if position else 0
    try:
        rows = _rows(source)
        if position:
            rows.load_state_dict(position["rows"])
        stream = iter(rows)
        while part := list(islice(stream, size)):
            found = [
                Document(f"pile/{done + n}", row["meta"]["pile_set_name"], row["text"]) for n, row in enumerate(part)
            ]
            done += len(part)
            yield found, {"documents": done, "rows": rows.state_dict()}
    except (OSError, ValueError, KeyError) as error:  # no network, no such text, not in this format
        reason = str(error).strip().splitlines()[0]
        raise SourceError(
            f"The text {source} could not be read beyond document {done:,} ({reason}): run this again where it can be, "
            "or name another folder with *.jsonl.zst files as text; the tokens so far stay."
        ) from error


def _rows(source: str):
    from datasets import load_dataset  # seconds to import, and only this scale needs it

    files = [str(path) for path in _files(source)]
    if files:
        return load_dataset("json", data_files={"train": files}, split="train", streaming=True)
    name, _, commit = source.partition("@")
    return load_dataset(name, split="train", streaming=True, revision=commit)


def _files(source: str) -> list[Path]:
    return sorted(Path(source).glob("*.jsonl.zst"))


# ------------------------------------------------------------------------------------------------------- token blocks


def token_blocks(source: str, tokenizer, length: int, split: str, wanted: int, percent: float = 100) -> np.ndarray:
    """The first ``wanted`` token blocks ``[blocks, length]`` of a split, memory-mapped; fewer if the text ends before.

    Passages and splits are those of ``corpus``. Documents come in the order of ``buffers``, each closed by the
    tokenizer's end-of-text token. What is not there yet is streamed and added; a damaged shard is named in the log and
    made again with those behind it.

    Args:
        source: as for ``documents``.
        tokenizer: a Hugging Face fast tokenizer with an ``eos_token_id``.
        split: ``train`` or ``held_out``.
        percent: share of the documents, drawn by a hash of their id.

    Raises:
        SourceError: as ``documents``.
        StorageError: there is no room for a shard; those before it stay.
    """
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    origin = {"source": [(path.name, path.stat().st_size) for path in _files(source)] or source}
    origin |= {"tokenizer": tokenizer.backend_tokenizer.to_str(), "percent": percent, "buffer": BUFFER, "seed": SEED}
    digest = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:8]
    folder = RUNS / "tokens" / f"{title(source)}-{percent:g}pct-{digest}"
    size = wanted * length * dtype.itemsize
    shards = _shards(folder)
    if not _enough(shards, split, size):
        with alone(folder):
            shards = _extend(folder, source, tokenizer, dtype, percent, split, size)
    count = min(wanted, _ends(shards)[split] // dtype.itemsize // length)
    if not count:
        return np.zeros((0, length), dtype)
    return np.memmap(folder / f"{split}.bin", dtype, "r", shape=(count, length))


def _extend(folder: Path, source: str, tokenizer, dtype: np.dtype, percent: float, split: str, size: int) -> list[dict]:
    """Add shards until ``size`` bytes of the split are there or the text ends."""
    shards = _shards(folder)  # another process may just have added some
    seen = _seen(folder, shards)
    bar = tqdm(total=size // dtype.itemsize, desc=f"tokens of {title(source)}", unit=" tokens", leave=False)
    bar.update(_ends(shards)[split] // dtype.itemsize)
    stream = buffers(source, BUFFER, shards[-1]["position"] if shards else None)
    while not _enough(shards, split, size):
        part, position = next(stream, ([], None))
        if position is None and not shards:
            break
        before = len(seen)
        texts: dict[str, list[str]] = {}
        for passage in corpus.passages(corpus.sample(part, percent), seen):
            texts.setdefault(passage.document, []).append(passage.text)
        found = {name: ids.tobytes() for name, ids in corpus.tokenize(texts, tokenizer, dtype).items()}
        found["passages"] = b"".join(islice(seen, before, None))
        shards.append(_add(folder, _ends(shards), found, position))
        _write_journal(folder, shards)
        bar.update(len(found[split]) // dtype.itemsize)
    bar.close()
    return shards


def _enough(shards: list[dict], split: str, size: int) -> bool:
    """Whether ``size`` bytes are there, or all that the text has: its last shard is empty and has no position."""
    return bool(shards) and (shards[-1]["position"] is None or shards[-1]["ends"][split] >= size)


def _ends(shards: list[dict]) -> dict[str, int]:
    """Bytes of each file."""
    return shards[-1]["ends"] if shards else dict.fromkeys(FILES, 0)


def _add(folder: Path, starts: dict[str, int], found: dict[str, bytes], position: dict | None) -> dict[str, Any]:
    """Write a shard behind those before it, over what an interrupted one left; nothing is ever cut off a file that
    another process may have mapped."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in found.items():
            path = folder / f"{name}.bin"
            path.touch()
            with path.open("r+b") as file:
                file.seek(starts[name])
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    ends = {name: starts[name] + len(content) for name, content in found.items()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
    return {"ends": ends, "sha256": sums, "position": position}


def _seen(folder: Path, shards: list[dict]) -> dict[bytes, None]:
    """Digests of the passages in all shards, in their order: about a GB of memory for a billion tokens."""
    if not shards:
        return {}
    content = (folder / "passages.bin").read_bytes()[: _ends(shards)["passages"]]
    return dict.fromkeys(content[start : start + corpus.DIGEST] for start in range(0, len(content), corpus.DIGEST))


def _shards(folder: Path) -> list[dict]:
    """What the journal says of the shards, up to the first that is not as it was written."""
    try:
        first, _, body = (folder / JOURNAL).read_text().partition("\n")
        if first != hashlib.sha256(body.encode()).hexdigest():
            raise ValueError("it does not match its checksum")
        shards = json.loads(body)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.warning("The journal of %s is damaged (%s); its shards will be made again.", folder, error)
        return []
    for number, shard in enumerate(shards):
        starts = _ends(shards[:number])
        if any(
            _sha256(folder / f"{name}.bin", starts[name], shard["ends"][name]) != shard["sha256"][name]
            for name in FILES
        ):
            log.warning("Shard %d of %s is damaged and will be made again, with those behind it.", number + 1, folder)
            return shards[:number]
    return shards


def _write_journal(folder: Path, shards: list[dict]) -> None:
    body = json.dumps(shards)
    replace_file(folder / JOURNAL, f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}".encode())


def _sha256(path: Path, start: int, end: int) -> str | None:
    """SHA-256 of a part of a file; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(end - start)).hexdigest()
    except OSError:
        return None
