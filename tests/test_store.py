"""Records are found again whole or not at all; what fails is said in one sentence and leaves nothing half-written."""

import json
import logging
import math
import multiprocessing
import os
import random
import re
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from minwidth import errors, store, stream, training

WHAT = "toy/tiny/sweep"
FLOORS = {"floor": [0.25, math.nan], "low": [math.nan] * 2, "floored": [True, False]}
TABLE = pd.DataFrame({"width": [16, 32], "ladder": ["random", None]} | FLOORS)
VALUES = {
    "mean": 0.1 + 0.2,
    "widths": [16, 32],
    "nested": {"a": {"b": [1.5, "x", None, True]}, "": "α\n"},
    "table": TABLE,
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "ids": np.array([1, 2, 3], dtype=np.uint16),
    "step": np.array(3.0, dtype=np.float32),
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder of which all else is empty."""
    for name in ("RUNS", "RESULTS", "COMMITTED"):
        monkeypatch.setattr(store, name, tmp_path / name.lower())
    return tmp_path


def compute_once(what=WHAT, parameters=None):
    """The record of some values, and whether they had to be computed for it."""
    calls = []
    record = store.find_or_compute(what, parameters or {}, lambda: calls.append(1) or VALUES)
    return record, bool(calls)


def in_child(work, **limits) -> str:
    """Run ``work`` in a forked process: ``done``, the sentence of its fault, or the signal that ended it."""
    reader, writer = multiprocessing.Pipe(duplex=False)

    def body():
        torch.set_num_threads(1)  # the parent's other threads are not in a fork, and would be waited for
        try:
            for limit, value in limits.items():
                resource.setrlimit(getattr(resource, limit), (value, value))
            work()
            writer.send("done")
        except errors.Fault as fault:
            writer.send(f"{type(fault).__name__}: {fault}")
        except BaseException as error:
            writer.send(f"no fault: {error!r}")

    child = multiprocessing.get_context("fork").Process(target=body)
    child.start()
    child.join(300)
    child.kill()
    return reader.recv() if reader.poll() else signal.Signals(-child.exitcode).name


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------------------ records


def test_values_come_back_with_their_types_and_are_computed_once():
    for computed in (True, False):
        record, had_to = compute_once(parameters={"seed": 0, "steps": 10})
        assert had_to == computed
        assert all(record[name] == VALUES[name] for name in ("mean", "widths", "nested"))
        pd.testing.assert_frame_equal(record["table"], TABLE)
        for name in ("weights", "ids", "step"):
            np.testing.assert_array_equal(record[name], VALUES[name], strict=True)
    assert not compute_once(parameters={"steps": 10, "seed": 0})[1]
    assert record.provenance["versions"]["torch"] and record.provenance["corpus"] == store.locked_digest()


def test_keys_are_readable_and_stable_of_all_parameters_and_of_finite_json():
    assert store.key_of("distill/tiny/w64-s0", {"width": 64}) == "distill/tiny/w64-s0-ddfab03c"
    several = [{"seed": 0}, {"seed": 1}, {"seed": 0, "steps": 10}, {"seed": 0.5}, {"seed": "0"}, {}]
    assert len({store.key_of(WHAT, parameters) for parameters in several}) == len(several)
    with pytest.raises(ValueError, match="JSON"):
        store.key_of(WHAT, {"x": math.nan})


def test_a_computation_that_fails_leaves_no_record_but_its_checkpoints(place):
    def compute():
        work = store.work_folder(WHAT, {})
        work.mkdir(parents=True)
        (work / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.find_or_compute(WHAT, {}, compute)
    assert store.find(WHAT, {}) is None
    assert (store.work_folder(WHAT, {}) / "checkpoint").read_text() == "half"
    with pytest.raises(TypeError):
        store.find_or_compute(WHAT, {}, lambda: {"x": object()})
    compute_once()
    assert list((place / "runs/toy/tiny").iterdir()) == [store.folder_of(WHAT, {})], "checkpoints go once it is written"


def test_tables_are_this_runs_or_else_the_committed_ones(place, monkeypatch):
    record, _ = compute_once(parameters={"seed": 0})
    assert store.load_results("tiny", "sweep") is None
    monkeypatch.setattr(store, "RESULTS", place / "committed")
    store.save_results("tiny", "sweep", TABLE, record)
    monkeypatch.setattr(store, "RESULTS", place / "results")
    pd.testing.assert_frame_equal(store.load_results("tiny", "sweep"), TABLE)
    store.save_results("tiny", "sweep", TABLE[:1], record)
    assert len(store.load_results("tiny", "sweep")) == 1
    assert store.origin("tiny", "sweep").key == record.key


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("file", ["record.json", "arrays.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "[]\n{}\n", '{"sha256": "0"}\n{}\n'])
def test_a_damaged_record_is_named_and_computed_again(caplog, file, damage):
    record, _ = compute_once()
    path = store.RUNS / record.key / file
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    kept = {"flip": content, "truncate": content[: len(content) // 2], "empty": b""}.get(damage, damage.encode())
    path.write_bytes(kept)
    if damage == "remove":
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert store.find(WHAT, {}) is None
        again, computed = compute_once()
    assert record.key in caplog.text
    assert computed and again["mean"] == VALUES["mean"] and store.find(WHAT, {}) is not None


def test_a_record_copied_under_another_key_is_not_believed():
    record, _ = compute_once(parameters={"seed": 0})
    (store.RUNS / record.key).rename(store.folder_of(WHAT, {"seed": 1}))
    assert store.find(WHAT, {"seed": 1}) is None


def seal_two() -> None:
    def write(folder):
        for name in ("a", "b"):
            (folder / name).write_bytes(name.encode() * 10**6)

    store.sealed(store.RUNS / "tokens", write)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "swap", "seal"])
def test_a_damaged_folder_is_named_and_written_again(place, caplog, damage):
    seal_two()
    before, folder = files(place), store.RUNS / "tokens"
    content = bytearray((folder / "a").read_bytes())
    content[-1] ^= 1
    if damage == "remove":
        (folder / "a").unlink()
    else:
        kept = {"flip": content, "truncate": content[:-9], "swap": (folder / "b").read_bytes()}.get(damage, b"[]")
        (folder / (store.SEAL if damage == "seal" else "a")).write_bytes(kept)
    seal_two()
    assert files(place) == before
    assert caplog.text.count("is damaged") == 1 and str(folder) in caplog.text


# ------------------------------------------------------------------------------------------------------------ kill -9


def dies(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("write", [compute_once, seal_two])
@pytest.mark.parametrize("call", range(4))
def test_a_killed_writer_leaves_a_record_whole_or_absent(place, monkeypatch, write, call):
    """Killed before one of its files is written, and once all are there and only the renaming is left."""
    left = [call]

    def dies_in_time(function):
        def wrapped(*arguments):
            left[0] -= 1
            return dies() if left[0] < 0 else function(*arguments)

        return wrapped

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "write_bytes"), (Path, "replace"), (Path, "rename")):
            patch.setattr(owner, name, dies_in_time(getattr(owner, name)))
        ended = in_child(write)
    assert ended in ("SIGKILL", "done")
    there = [path for path in place.glob("runs/**/*") if path.suffix == ".json" and path.parent.name[0] != "."]
    assert len(there) == (ended == "done") and in_child(write) == "done"


def test_what_was_to_be_replaced_is_put_back_when_killed_between_the_renames(monkeypatch):
    compute_once()
    with monkeypatch.context() as patch:
        rename = Path.rename
        patch.setattr(Path, "rename", lambda path, to: dies() if "-new-" in path.name else rename(path, to))
        assert in_child(lambda: store.keep(WHAT, {}, {"mean": 2}, 0)) == "SIGKILL"
    assert not store.folder_of(WHAT, {}).exists() and store.find(WHAT, {})["mean"] == VALUES["mean"]


def test_a_killed_process_lets_the_next_one_in():
    assert in_child(lambda: store.find_or_compute(WHAT, {}, dies)) == "SIGKILL" and compute_once()[1]


# --------------------------------------------------------------------------------------------- a full disk, no rights


def write_table():
    store.save_results("tiny", "sweep", pd.DataFrame({"x": np.arange(10**6)}), store.Record("toy", {}, {}, {}))


def write_record():
    store.find_or_compute(WHAT, {}, lambda: {"x": np.zeros(10**6)})


def write_checkpoint():
    training.save_state(store.RUNS / "a.work" / "state", {"x": torch.zeros(10**6)}, {"step": 1})


def write_part():
    with store.alone(store.RUNS / "shards"):
        store.write_part(store.RUNS / "shards", 0, b"x" * 10**6)


def reserve_states():
    with store.alone(store.RUNS / "states.bin"):
        stream._reserve(store.RUNS / "states.bin", 10**7)


def test_a_full_disk_leaves_what_was_there(place):
    compute_once()
    store.save_results("tiny", "sweep", TABLE, store.Record("toy", {}, {}, {}))
    before = files(place)
    for write in (write_table, lambda: store.keep(WHAT, {}, {"x": np.zeros(10**6)}, 0)):
        assert "StorageError" in in_child(write, RLIMIT_FSIZE=100_000)
    assert files(place) == before


def read_only(folder: Path, *works) -> str:
    """What ``works`` say in a child that may read ``folder`` and write nothing in it."""

    def without_rights():
        if os.getuid() == 0:
            os.setuid(65534)  # root may write anywhere
        for work in works:
            work()

    inside = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for above in folder.parents[:2]:  # pytest's own, closed to others
        above.chmod(0o755)
    for path in inside:
        path.chmod(0o555)
    try:
        return in_child(without_rights)
    finally:
        for path in inside:
            path.chmod(0o755)


@pytest.mark.parametrize("write", [write_record, write_table, write_checkpoint, seal_two, write_part, reserve_states])
def test_a_read_only_folder_and_a_full_disk_are_named_with_the_way_out_and_nothing_is_half_written(place, write):
    way_out = r", or name another folder with MINWIDTH_RUNS .* MINWIDTH_OUT .*; nothing was lost\."
    said = read_only(place, write)
    assert re.fullmatch(r"StorageError: \S+ cannot be written \(Permission denied\): make it writable" + way_out, said)
    assert files(place) == {}
    said = in_child(write, RLIMIT_FSIZE=100_000)
    assert re.fullmatch(r"StorageError: \S+ cannot be written \(File too large\): make room there" + way_out, said)
    assert [name for name in files(place) if name != "runs/shards"] == []  # a journal says how far shards are valid
    assert in_child(write) == "done"


def test_what_is_found_needs_no_right_to_write(place):
    seal_two()
    write_record()
    assert read_only(place, seal_two, write_record) == "done"


# --------------------------------------------------------------------------------------------------------- two at once


def at_once(*works) -> None:
    children = [multiprocessing.get_context("fork").Process(target=work) for work in works]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * len(children)


def test_two_processes_that_want_the_same_record_compute_it_once(place):
    def compute():
        with (place / "computed").open("a") as file:
            file.write("x")
        time.sleep(0.3)
        return {"x": 1}

    at_once(*[lambda: store.find_or_compute(WHAT, {}, compute)] * 3)
    assert (place / "computed").read_text() == "x" and store.find(WHAT, {})["x"] == 1
    assert list((place / "runs/toy/tiny").iterdir()) == [store.folder_of(WHAT, {})], "no lock is left"


def test_processes_that_replace_one_folder_at_once_leave_it_whole(place, monkeypatch):
    folder, rename = place / "folder", Path.rename

    def late(path, target):
        time.sleep(random.uniform(0, 0.002))  # others come between any look at a folder and its renaming
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)

    def write(number):
        for _ in range(20):
            with store.replace_folder(folder) as temporary:
                for name in ("a", "b"):
                    (temporary / name).write_text(json.dumps(number))

    def read():
        for _ in range(200):
            store.load(folder)  # gives a folder its name back where it seems that a process was killed

    at_once(*[lambda number=number: write(number) for number in range(3)], read)
    assert (folder / "a").read_text() == (folder / "b").read_text()
    assert [path.name for path in place.iterdir()] == ["folder"]
