"""A stream continues where it stopped; a text in shards is the same bytes however often its writer was killed."""

import json
from itertools import islice, pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minwidth import errors, scales, students, text, wheels
from minwidth.wheels import Document
from tests import pile_world
from tests.test_killed import deadly
from tests.test_store import in_child

SPLITS = ("train", "held_out")
PILE = scales.SCALES["pythia-410m"]["04_distill"]["text"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(pile_world.save_pile(tmp_path_factory.mktemp("pile")))


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """Where shards of twenty documents go."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(text, "RUNS", tmp_path)
    monkeypatch.setattr(text, "BUFFER", 20)
    return tmp_path


def read(source: str, wanted: int | None = None, split: str = "train", length: int = 16, **options) -> np.ndarray:
    return text.token_blocks(pile_world.tokenizer(**options), split, length, source=source, wanted=wanted)


def recorded(folder) -> list[dict]:
    (journal,) = folder.glob("tokens/*/shards.json")
    return json.loads(journal.read_text().partition("\n")[2])


def documents_in(ids: np.ndarray) -> list[tuple[str, ...]]:
    """The words of each closed document."""
    return [tuple(f"w{i}" for i in part[:-1]) for part in np.split(ids, np.flatnonzero(ids == 0) + 1)[:-1]]


# -------------------------------------------------------------------------------------------------------- the stream

OWN = [f"First line of w{n}.\n\n  Indented w{n} " + "w3 " * n for n in range(1, 60)]


def save_own(folder, kind: str):
    """``OWN``, a file or a row each."""
    folder.mkdir()
    rows = pd.DataFrame({"id": range(len(OWN)), "text": OWN})
    if kind == "txt":
        for n, one in enumerate(OWN):
            (folder / f"{n:02}.txt").write_text(one)
    elif kind == "parquet":
        rows.to_parquet(folder / "a.parquet", row_group_size=7)
    else:
        rows.to_json(folder / f"a.{kind}", orient="records", lines=True)
    return str(folder)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_a_text_of_ones_own_stays_as_it_is(tmp_path, kind):
    folder = save_own(tmp_path / "own", kind)
    scales.check_text(folder)
    assert [document.text for document in text.documents(folder)] == OWN
    whole = [part for part, _ in text.buffers(folder, 8)]
    _, position = next(text.buffers(folder, 8))
    assert [part for part, _ in text.buffers(folder, 8, json.loads(json.dumps(position)))] == whole[1:]
    found = np.concatenate([read(folder, split=split, length=1).ravel() for split in SPLITS])
    words = [tuple(word if word[0] == "w" else "w1" for word in one.replace(".", "").split()) for one in OWN]
    assert sorted(documents_in(found)) == sorted(words)


@given(st.lists(st.sampled_from(["a", "word", " ", "\n", "x" * 30, "é"]), max_size=200).map("".join))
def test_a_long_file_is_cut_between_lines_or_words_and_nothing_is_lost(content):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PART", 20)
        parts = [document.text for document in text._documents_of({"text": content}, 0, cut=True)]
    assert "".join(parts) == content and all(0 < len(part) <= 20 for part in parts)
    for one, other in pairwise(parts):
        assert other[0].isspace() or " " not in one[1:].strip("\n") or len(one) == 20


@pytest.mark.parametrize("reached", [0, 70])
def test_a_stream_that_breaks_off_says_where_and_goes_on_there(source, monkeypatch, reached):
    whole, real = [part for part, _ in text.buffers(source, 20)], text._rows

    class Breaking:
        def __init__(self):
            self.rows = real(source)
            self.state_dict, self.load_state_dict = self.rows.state_dict, self.rows.load_state_dict

        def __iter__(self):
            yield from islice(self.rows, reached)
            raise OSError("connection reset\nand a long explanation")

    monkeypatch.setattr(text, "_rows", lambda _: Breaking())
    found, position = [], None
    with pytest.raises(errors.SourceError, match=rf"beyond document {reached} \(connection reset\)"):
        for part, behind in text.buffers(source, 20):
            found.append(part)
            position = behind
    monkeypatch.setattr(text, "_rows", real)
    assert found + [part for part, _ in text.buffers(source, 20, position)] == whole


def test_files_that_are_no_text_are_named(tmp_path, source):
    folder = tmp_path / "text"
    folder.mkdir()
    with pytest.raises(scales.ParameterError, match=r"no text '.*': give 'wheels', a folder with \.txt"):
        scales.parameters("04_distill", "tiny", text=str(folder))
    (folder / "a.jsonl").write_text('{"content": "x", "id": 1}\n')
    with pytest.raises(errors.SourceError, match=r"document 0 \(its rows have content, id, none called text\)"):
        list(text.documents(str(folder)))
    (folder / "README.txt").write_text("Not to be read.")
    with pytest.raises(scales.ParameterError, match=r"holds README\.txt and a\.jsonl: leave one kind"):
        scales.parameters("04_distill", "tiny", text=str(folder))
    (folder / "README.txt").unlink()
    (folder / "a.jsonl").write_bytes(b'{"text": "\xff\xfe"}\n')
    with pytest.raises(errors.SourceError, match="could not be read beyond document 0"):
        list(text.documents(str(folder)))


def test_a_hub_text_is_pinned(monkeypatch):
    for name in ("owner/name", "owner/name@main", "owner/name:part@main"):
        with pytest.raises(scales.ParameterError, match=r"'owner/name' needs a pinned revision .*datasets/owner/name/"):
            scales.parameters("04_distill", "tiny", text=name)
    commit = "0" * 40
    assert scales.parameters("03_sae", "tiny", text=f"owner/name:part@{commit}").text.endswith(commit)
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **options: asked.append((*names, options["revision"])))
    text._rows(f"owner/name:part@{commit}")
    text._rows(PILE)
    assert asked == [("owner/name", "part", commit), (PILE[:-41], None, PILE[-40:])]
    assert text.title(PILE) == "pile-uncopyrighted" and text.revision(PILE) == PILE[-40:]
    assert {values.get("text", PILE) for values in scales.SCALES["pythia-410m"].values()} == {PILE}


# ----------------------------------------------------------------------------------------------------------- passages

words = st.lists(st.sampled_from(["word", "two words", "end.", "Is it?", "a\nb", "", "Yes!"]), max_size=400)


@given(words.map(" ".join), st.sampled_from(["news", "code"]))
def test_passages_have_20_to_100_words_in_the_order_of_the_text(content, domain):
    pieces = list(text._cut(Document("d", domain, content)))
    assert all(20 <= len(piece.split()) <= 100 for piece in pieces)
    found = " ".join(pieces).split()
    assert found == content.split()[: len(found)]
    assert len(content.split()) - len(found) < 20  # only a short rest is dropped


def test_passages_end_where_sentences_do_and_those_of_code_keep_their_lines():
    sentence = "Here are exactly nine words that end in one."
    first, second = text._cut(Document("d", "news", " ".join([sentence] * 14)))
    assert first == " ".join([sentence] * 11) and second == " ".join([sentence] * 3)
    lines = [f"    x{number} = y{number} + 1" for number in range(12)]
    (piece,) = text._cut(Document("d", "code", "\n".join(lines)))
    assert piece.splitlines() == lines


def test_a_passage_seen_before_is_dropped_whatever_its_case_and_punctuation():
    one = " ".join(f"Word{number}," for number in range(30))
    other = " ".join(f"other{number}" for number in range(30))
    source = [("a", "news", one), ("b", text.OWN, one.lower().replace(",", "")), ("c", "x", other), ("d", text.OWN, "")]
    assert [passage.id for passage in text.passages(Document(*each) for each in source)] == ["a", "c"]


def test_samples_are_nested_and_five_per_cent_are_held_out_of_each():
    every = [f"some/document/{number}" for number in range(20_000)]
    few, more = ([document for document in every if text.sampled(document, percent)] for percent in (10, 40))
    assert set(few) < set(more) and 0.09 < len(few) / len(every) < 0.11
    assert 0.045 < np.mean([text.held_out(document) for document in more]) < 0.055


# ------------------------------------------------------------------------------------------------------- token blocks


def test_blocks_hold_each_document_once_and_whole_shuffled_within_buffers(source, store):
    texts = {document.id: tuple(document.text.replace(".", "").split()) for document in text.documents(source)}
    assert list(texts) == [f"pile/{number}" for number in range(300)] and len(texts["pile/0"]) == 120
    for split in SPLITS:
        ids = read(source, split=split, length=1).ravel()
        assert isinstance(ids, np.memmap)
        found = documents_in(ids)
        wanted = [words for name, words in texts.items() if text.held_out(name) == (split == "held_out")]
        assert found != wanted and sorted(found) == sorted(wanted)
        if split == "train":
            assert set(found[:15]) < set(list(texts.values())[:20])  # one in twenty is held out
    assert len(recorded(store)) == 300 / 20 + 1  # the last says that there is no more


def test_the_wheels_documents_come_in_an_order_of_their_own(monkeypatch, store):
    made = [Document(f"d{n}", "x", " ".join(f"w{n}" for _ in range(20))) for n in range(1, 300)]
    found = []
    for number, part in enumerate((made, made[::-1])):
        monkeypatch.setattr(text, "RUNS", store / str(number))
        monkeypatch.setattr(wheels, "documents", lambda part=part: iter(part))
        found.append({split: read("wheels", split=split, length=3) for split in SPLITS})
    for split in SPLITS:
        np.testing.assert_array_equal(found[0][split], found[1][split])
        assert len(documents_in(found[0][split].ravel())) > 5
    few = text.token_blocks(pile_world.tokenizer(), "train", 3, percent=25)
    assert found[0]["train"].size / 8 < few.size < found[0]["train"].size / 2


def test_a_bos_opens_every_block_and_an_end_which_must_be_there_closes_each_document(source):
    plain, opened = read(source, 50, length=15), read(source, 50, opens=True)
    assert (opened[:, 0] == 0).all()
    np.testing.assert_array_equal(opened[:, 1:], plain)  # none within
    tokenizer = pile_world.tokenizer()
    assert text.document_numbers([[5, 6, 0], [7, 0, 8]], tokenizer).tolist() == [[0, 0, 0], [1, 1, 2]]
    of_one_document = [[5, 6], [7, 8], [9, 0]]
    assert text.document_numbers(of_one_document, tokenizer).tolist() == [[0, 0], [1, 1], [2, 2]]
    numbers = text.document_numbers(opened, pile_world.tokenizer(opens=True))
    np.testing.assert_array_equal(numbers[:, 1:], text.document_numbers(plain, tokenizer))
    tokenizer.eos_token = None
    with pytest.raises(errors.ParameterError, match="has no eos_token"):
        text.token_blocks(tokenizer, "train", 16, source=source)


def test_blocks_are_spread_over_a_text_each_with_its_documents(source):
    every, tokenizer = read(source, 40), pile_world.tokenizer()
    blocks, documents = text.spread(tokenizer, "train", 10, 16, source=source)
    rows = [0, 4, 9, 13, 17, 22, 26, 30, 35, 39]
    np.testing.assert_array_equal(blocks, every[rows])
    np.testing.assert_array_equal(documents, text.document_numbers(every, tokenizer)[rows])
    with pytest.raises(errors.ParameterError, match=r"9999 blocks of 16 train tokens were .* has \d+: give fewer"):
        text.spread(tokenizer, "train", 9999, 16, source=source)


def test_a_longer_text_begins_with_the_shorter_and_only_what_is_asked_for_is_read(source, store):
    few = read(source, 100).copy()
    assert len(few) == 100 and len(recorded(store)) == 1
    more = read(source, 700, length=8)
    assert len(recorded(store)) == 3  # of 20 documents each, in as many tokens for another length
    np.testing.assert_array_equal(more[:200].reshape(100, 16), few)


def test_a_passage_seen_in_an_earlier_shard_is_dropped(tmp_path):
    twice = pile_world.save_pile(tmp_path / "twice", documents=40, files=1)
    once = read(str(twice), length=1).copy()
    (file,) = twice.iterdir()
    (twice / "01.jsonl.zst").write_bytes(file.read_bytes())
    np.testing.assert_array_equal(read(str(twice), length=1), once)


def test_killed_outright_the_next_process_ends_with_the_same_bytes(source, store, monkeypatch):
    """Twice, where a shard is written and the journal does not know of it yet."""
    whole = {split: read(source, split=split).copy() for split in SPLITS}
    monkeypatch.setattr(text, "RUNS", store / "killed")
    for call in (2, 5):
        with monkeypatch.context() as patch:
            patch.setattr(text, "save_json", deadly(text.save_json, call))
            assert in_child(lambda: read(source)) == "SIGKILL"
    assert len(recorded(store / "killed")) == 1 + 4
    real, calls = text._tokenize, []
    monkeypatch.setattr(text, "_tokenize", lambda *arguments: calls.append(1) or real(*arguments))
    for split, blocks in whole.items():
        np.testing.assert_array_equal(read(source, split=split), blocks)
    assert len(calls) == 16 - 5  # whole shards are kept


@pytest.mark.parametrize("damage", ["train", "held_out", "passages", "shards.json"])
def test_a_damaged_shard_is_named_and_made_again(source, store, caplog, damage):
    expected = {split: read(source, split=split).copy() for split in SPLITS}
    (folder,) = [path for path in store.glob("tokens/*") if path.is_dir()]
    path = folder / (damage if damage.endswith("json") else f"{damage}.bin")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for split, blocks in expected.items():
        np.testing.assert_array_equal(read(source, split=split), blocks)
    assert str(folder) in caplog.text and "damaged" in caplog.text
    caplog.clear()
    read(source)
    assert not caplog.text


def test_a_text_without_documents_gives_no_blocks_and_other_files_are_another_text(tmp_path):
    empty = pile_world.save_pile(tmp_path / "short", documents=1, files=1, words=5)
    assert read(str(empty)).shape == (0, 16)
    folder = pile_world.save_pile(tmp_path / "text", documents=40)
    few, job = len(read(str(folder))), students.Job("random", 16, 0, 10)
    key = students.key(scales.parameters("04_distill", "tiny", text=str(folder)), job)
    pile_world.save_pile(folder, documents=60)
    assert len(read(str(folder))) > few
    assert key != students.key(scales.parameters("04_distill", "tiny", text=str(folder)), job)
    assert text.pin(PILE) == {}


def test_another_lock_of_the_wheels_is_another_text(tmp_path, monkeypatch):
    p, job = scales.parameters("04_distill", "tiny"), students.Job("random", 16, 0, 10)
    key = students.key(p, job)
    lock = tmp_path / "corpora.txt"
    lock.write_text("another\n")
    monkeypatch.setattr("minwidth.store.CORPORA_LOCK", lock)
    assert key != students.key(p, job)
