import json
import logging
import math
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minwidth import store

WHAT = "toy/tiny/sweep"
TABLE = pd.DataFrame(
    {"width": [16, 32], "floor": [0.25, math.nan], "ladder": ["random", None], "floored": [True, False]}
)
VALUES = {
    "mean": 0.1 + 0.2,
    "widths": [16, 32],
    "nested": {"a": {"b": [1.5, "x"]}},
    "table": TABLE,
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "ids": np.array([1, 2, 3], dtype=np.uint16),
}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "RUNS", tmp_path)
    monkeypatch.setattr(store, "RESULTS", tmp_path / "results")
    return tmp_path


class Computation:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return VALUES


def test_values_come_back_with_their_types():
    for _ in range(2):  # computed, then found
        record = store.find_or_compute(WHAT, {"seed": 0}, lambda: VALUES)
        assert {name: record[name] for name in ("mean", "widths", "nested")} == {
            name: VALUES[name] for name in ("mean", "widths", "nested")
        }
        pd.testing.assert_frame_equal(record["table"], TABLE)
        for name in ("weights", "ids"):
            np.testing.assert_array_equal(record[name], VALUES[name], strict=True)


def test_a_record_is_computed_once():
    compute = Computation()
    first = store.find_or_compute(WHAT, {"seed": 0, "steps": 10}, compute)
    again = store.find_or_compute(WHAT, {"steps": 10, "seed": 0}, compute)
    assert compute.calls == 1
    assert first.key == again.key
    assert first.provenance == again.provenance


@pytest.mark.parametrize("other", [{"seed": 1}, {"seed": 0, "steps": 10}, {"seed": 0.5}, {"seed": "0"}, {}])
def test_other_parameters_are_another_record(other):
    compute = Computation()
    store.find_or_compute(WHAT, {"seed": 0}, compute)
    store.find_or_compute(WHAT, other, compute)
    assert compute.calls == 2


def test_keys_are_readable_and_stable():
    assert store.key_of("distill/tiny/w64-s0", {"width": 64}) == "distill/tiny/w64-s0-ddfab03c"


@pytest.mark.parametrize("file", ["record.json", "arrays.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_a_damaged_record_is_named_and_computed_again(store, caplog, file, damage):
    compute = Computation()
    key = store.find_or_compute(WHAT, {"seed": 0}, compute).key
    path = store / key / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
    kept = {"flip": content, "truncate": content[: len(content) // 2], "empty": b""}.get(damage)
    path.unlink() if kept is None else path.write_bytes(kept)
    with caplog.at_level(logging.WARNING):
        assert store.find(WHAT, {"seed": 0}) is None
        record = store.find_or_compute(WHAT, {"seed": 0}, compute)
    assert key in caplog.text
    assert compute.calls == 2
    assert record["mean"] == VALUES["mean"]
    assert store.find(WHAT, {"seed": 0}) is not None


def test_a_record_of_other_content_is_damaged_too(store, caplog):
    key = store.find_or_compute(WHAT, {}, lambda: {"x": 1}).key
    for body in ("[]", "null", "{}", '{"sha256": "0"}'):
        (store / key / "record.json").write_text(body + "\n{}\n")
        assert store.find(WHAT, {}) is None
    assert caplog.text.count(key) == 4


def test_a_record_copied_under_another_key_is_not_believed(store):
    one = store.find_or_compute(WHAT, {"seed": 0}, lambda: {"x": 1})
    (store / one.key).rename(store / store.key_of(WHAT, {"seed": 1}))
    assert store.find(WHAT, {"seed": 1}) is None


def test_a_computation_that_fails_leaves_no_record_but_its_checkpoints(store):
    def compute():
        work = store.work_folder(WHAT, {})
        work.mkdir(parents=True)
        (work / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.find_or_compute(WHAT, {}, compute)
    assert store.find(WHAT, {}) is None
    assert (store.work_folder(WHAT, {}) / "checkpoint").read_text() == "half"
    store.find_or_compute(WHAT, {}, lambda: {"x": 1})
    assert list((store / "toy" / "tiny").iterdir()) == [store.folder_of(WHAT, {})], "checkpoints go once it is written"


def test_a_value_that_cannot_be_stored_leaves_nothing(store):
    with pytest.raises(TypeError):
        store.find_or_compute(WHAT, {}, lambda: {"x": object()})
    assert not [path for path in store.rglob("*") if path.is_file()]


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_killed_writer_leaves_a_record_whole_or_absent(store, monkeypatch, writes):
    """Killed before the first file, between the two, or once both are written and only the renaming is left."""
    left = [writes]

    def dies_in_time(function):
        def wrapped(*arguments):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*arguments)

        return wrapped

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "write_bytes"), (Path, "write_text"), (Path, "rename")):
            patch.setattr(owner, name, dies_in_time(getattr(owner, name)))
        child = multiprocessing.get_context("fork").Process(target=runs.store, args=(WHAT, {}, {"x": 1}, 0.0))
        child.start()
        child.join(60)
        ended = child.exitcode
        child.kill()
    assert ended == -signal.SIGKILL
    assert store.find(WHAT, {}) is None
    assert store.find_or_compute(WHAT, {}, lambda: {"x": 2})["x"] == 2


@pytest.mark.parametrize(
    "what", ["toy", "", "/tmp/x/y", "toy/../../etc/x", "toy/ti ny/x", "toy//x", "toy/tiny/", "Töy/a/b"]
)
def test_names_that_are_no_place_in_the_store_are_refused(what):
    with pytest.raises(ValueError, match="room/scale/label"):
        store.key_of(what, {})


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}, np.arange(2)])
def test_parameters_that_are_not_json_are_refused(value):
    with pytest.raises(ValueError, match="finite JSON"):
        store.find_or_compute(WHAT, {"x": value}, Computation())


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.dictionaries(st.text(min_size=1), json_values, max_size=4))
def test_any_json_values_come_back_equal(values):
    store.keep(WHAT, {}, values, seconds=0)
    assert store.find(WHAT, {}).values == values


def test_results_come_back_with_their_origin_beside_them(store):
    record = store.find_or_compute(WHAT, {"seed": 0}, lambda: {"table": TABLE})
    store.save_results("tiny", "sweep", record["table"], record)
    pd.testing.assert_frame_equal(store.load_results("tiny", "sweep"), TABLE)
    origin = json.loads((store / "results" / "tiny" / "sweep.json").read_text())
    assert origin["record"] == record.key
    assert origin["rows"] == 2
    assert origin["parameters"] == {"seed": 0}


def test_results_not_measured_yet_are_none():
    assert store.load_results("tiny", "nothing") is None


def test_provenance_names_versions_corpus_and_time():
    provenance = store.find_or_compute(WHAT, {}, lambda: {"x": 1}).provenance
    assert provenance["versions"]["torch"]
    assert provenance["corpus"] == store.locked_digest()
    assert provenance["seconds"] >= 0
