"""A stream continues where it stopped; a text in shards is the same bytes however often its writer was killed."""

import json
import multiprocessing
import signal
import time
from itertools import islice

import numpy as np
import pytest
import zstandard

from minwidth import corpus, errors, pile, scales
from tests import pile_world


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(pile_world.save_pile(tmp_path_factory.mktemp("pile")))


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """Where shards of twenty documents go."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pile, "RUNS", tmp_path)
    monkeypatch.setattr(pile, "BUFFER", 20)
    return tmp_path


def read(source: str, wanted: int = 10**6, split: str = "train", length: int = 16) -> np.ndarray:
    return pile.token_blocks(source, pile_world.tokenizer(), length, split, wanted)


def recorded(folder) -> list[dict]:
    (journal,) = folder.glob("tokens/*/shards.json")
    return json.loads(journal.read_text().partition("\n")[2])


# ---------------------------------------------------------------------------------------------------------- the stream


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_a_stream_that_is_taken_up_again_and_again_gives_the_same_documents(source, size):
    whole = [part for part, _ in pile.buffers(source, size)][:10]
    again, position = [], None
    while len(again) < len(whole):
        part, position = next(pile.buffers(source, size, position))
        again.append(part)
        position = json.loads(json.dumps(position))
    assert again == whole


def test_the_pile_is_read_from_a_folder_in_its_own_format(source):
    first = next(pile.documents(source))
    assert first.domain == "Subset 0" and len(first.text.split()) == 120


def test_the_buffer_is_shuffled_alike_each_time_and_loses_nothing(source):
    in_order = list(pile.documents(source))
    assert [document.id for document in in_order] == [f"pile/{number}" for number in range(300)]
    first, second = ([part for part, _ in pile.buffers(source, 64)] for _ in range(2))
    assert first == second
    for number, part in enumerate(first):
        assert part != in_order[64 * number : 64 * number + 64]
        assert sorted(part) == sorted(in_order[64 * number : 64 * number + 64])


def test_a_text_that_cannot_be_reached_is_said_in_a_sentence(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to the hub\nand a long explanation")

    monkeypatch.setattr(pile, "_rows", unreachable)
    with pytest.raises(errors.SourceError, match=r"owner/name@0 could not be read beyond document 0 \(no route to"):
        next(pile.documents("owner/name@0"))


def test_a_stream_that_breaks_off_says_where_and_goes_on_there(source, monkeypatch):
    whole, real = [part for part, _ in pile.buffers(source, 20)], pile._rows

    class Breaking:
        def __init__(self):
            self.rows = real(source)
            self.state_dict, self.load_state_dict = self.rows.state_dict, self.rows.load_state_dict

        def __iter__(self):
            yield from islice(self.rows, 70)
            raise OSError("connection reset")

    monkeypatch.setattr(pile, "_rows", lambda _: Breaking())
    found = []
    with pytest.raises(errors.SourceError, match=r"beyond document 60 \(connection reset\)"):
        for part, behind in pile.buffers(source, 20):
            found.append(part)
            position = behind
    monkeypatch.setattr(pile, "_rows", real)
    assert found + [part for part, _ in pile.buffers(source, 20, position)] == whole


def test_a_file_of_another_format_is_named(tmp_path):
    folder = pile_world.save_pile(tmp_path / "text", documents=10, files=1)
    (folder / "01.jsonl.zst").write_bytes(zstandard.compress(b'{"other": 1}\n'))
    with pytest.raises(errors.SourceError, match=r"text could not be read beyond document 0 \("):
        list(pile.documents(str(folder)))


def test_a_hub_text_is_pinned():
    for text in ("owner/name", "owner/name@main"):
        with pytest.raises(scales.ParameterError, match=r"'owner/name' needs a pinned revision .*datasets/owner/name/"):
            scales.parameters("04_distill", "tiny", text=text)
    assert scales.parameters("03_sae", "tiny", text=f"owner/name@{'0' * 40}").text.endswith("0")
    assert pile.title(scales.PILE) == "pile-uncopyrighted"
    assert {values.get("text", scales.PILE) for values in scales.SCALES["pythia-410m"].values()} == {scales.PILE}


# ------------------------------------------------------------------------------------------------------- token blocks


def test_blocks_hold_each_document_once_and_whole(source, store):
    found = {split: read(source, split=split, length=1).ravel() for split in ("train", "held_out")}
    texts = {document.id: document.text.replace(".", "").split() for document in pile.documents(source)}
    for split, ids in found.items():
        assert isinstance(ids, np.memmap)
        parts = np.split(ids, np.flatnonzero(ids == 0) + 1)[:-1]
        words = sorted(tuple(f"w{i}" for i in part[:-1]) for part in parts)
        wanted = [tuple(text) for name, text in texts.items() if corpus.held_out(name) == (split == "held_out")]
        assert words == sorted(wanted)
    assert len(recorded(store)) == 300 / 20 + 1  # the last says that there is no more


def test_a_longer_text_begins_with_the_shorter_and_only_what_is_asked_for_is_read(source, store):
    few = read(source, 100).copy()
    assert len(few) == 100 and len(recorded(store)) == 1
    more = read(source, 700, length=8)
    assert len(recorded(store)) == 3  # of 20 documents each, in as many tokens for another length
    np.testing.assert_array_equal(more[:200].reshape(100, 16), few)


def test_a_passage_seen_in_an_earlier_shard_is_dropped(tmp_path):
    twice = pile_world.save_pile(tmp_path / "twice", documents=40, files=1)
    (file,) = twice.iterdir()
    (twice / "01.jsonl.zst").write_bytes(file.read_bytes())
    once = read(str(pile_world.save_pile(tmp_path / "once", documents=40, files=1)), length=1)
    found = read(str(twice), length=1)
    np.testing.assert_array_equal(found, once)


def test_an_interrupted_shard_is_written_again_and_those_before_it_are_not(source, store, monkeypatch):
    whole = {split: read(source, split=split).copy() for split in ("train", "held_out")}
    monkeypatch.setattr(pile, "RUNS", store / "again")
    real, calls = corpus.tokenize, []

    def dies_in_the_fourth(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(corpus, "tokenize", dies_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        read(source)
    assert len(recorded(store / "again")) == 3
    for split, blocks in whole.items():
        np.testing.assert_array_equal(read(source, split=split), blocks)
    assert len(calls) == 4 + 12 + 1


def test_killed_outright_the_next_process_ends_with_the_same_bytes(source, store, monkeypatch):
    whole = {split: read(source, split=split).copy() for split in ("train", "held_out")}
    killed = store / "killed"
    monkeypatch.setattr(pile, "RUNS", killed)
    context = multiprocessing.get_context("spawn")
    for shards in (1, 5):
        child = context.Process(target=pile_world.tokenize, args=(killed, source))
        child.start()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and child.is_alive():
            if list(killed.glob("tokens/*/shards.json")) and len(recorded(killed)) >= shards:
                break
            time.sleep(0.001)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL  # it had not ended by itself
    assert 5 <= len(recorded(killed)) < 16
    for split, blocks in whole.items():
        np.testing.assert_array_equal(read(source, split=split), blocks)


@pytest.mark.parametrize("damage", ["train", "held_out", "passages", "shards.json"])
def test_a_damaged_shard_is_named_and_made_again(source, store, caplog, damage):
    expected = {split: read(source, split=split).copy() for split in ("train", "held_out")}
    (folder,) = [path for path in store.glob("tokens/*") if path.is_dir()]
    path = folder / (damage if damage.endswith("json") else f"{damage}.bin")
    start = recorded(store)[7]["ends"].get(damage, 100)
    while damage == "held_out" and recorded(store)[0]["ends"][damage] == start:
        start += 1
    content = bytearray(path.read_bytes())
    content[start - 1] ^= 1
    path.write_bytes(content)
    for split, blocks in expected.items():
        np.testing.assert_array_equal(read(source, split=split), blocks)
    assert f"of {folder} is damaged" in caplog.text
    caplog.clear()
    read(source)
    assert not caplog.text


def test_a_text_without_documents_gives_no_blocks(tmp_path):
    empty = pile_world.save_pile(tmp_path / "short", documents=1, files=1, words=5)
    assert read(str(empty)).shape == (0, 16)


def test_other_files_are_another_text(tmp_path, store):
    folder = pile_world.save_pile(tmp_path / "text", documents=40)
    few = len(read(str(folder)))
    pile_world.save_pile(folder, documents=60)
    assert len(read(str(folder))) > few
