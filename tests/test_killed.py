"""kill -9 in each long stage: what was finished stays as it is, nothing is left half-done, and the next run ends with
the same numbers as one that was never killed.

tests/test_students.py kills students, tests/test_store.py whoever writes records, tests/test_text.py token blocks.
"""

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from minwidth import autoencoder, known_language, models, probe, sae, sae_kernel, scales, store, stream, text, wheels
from minwidth import known_heads as heads
from minwidth.training import Schedule
from minwidth.wheels import Document
from tests import small_world, test_students
from tests.test_store import in_child
from tests.test_training import every_step  # noqa: F401
from workflow import known, long, teacher


def deadly(function: Callable, call: int) -> Callable:
    """``function``, and kill -9 instead of its ``call``-th call, counted from one."""
    calls = itertools.count(1)

    def wrapped(*arguments, **options):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return wrapped


def records(folder: Path) -> dict[str, tuple]:
    """What the records below ``folder`` hold, without when and how long it was computed."""
    found = {}
    for file in folder.rglob("record.json"):
        content = json.loads(file.read_text().partition("\n")[2])
        found[content["key"]] = tuple(json.dumps(content[part]) for part in ("values", "tables", "arrays_sha256"))
    return found


@pytest.fixture
def survives(tmp_path, monkeypatch):
    """Kill ``work`` at a call of ``owner.name``, repeat it, and compare with one that was not killed."""

    def place(name: str) -> Path:
        for module in (store, stream, models, teacher):
            monkeypatch.setattr(module, "RUNS", tmp_path / name)
        monkeypatch.setattr(store, "RESULTS", tmp_path / name / "results")
        return tmp_path / name

    def check(work: Callable, owner, name: str, call: int, finished: int, goes_on: bool = False) -> None:
        folder = place("killed")
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, deadly(getattr(owner, name), call))
            assert in_child(work) == "SIGKILL"
            kept = [file for file in folder.rglob("record.json") if ".work/" not in str(file)]
            stayed = {file: file.stat().st_mtime_ns for file in kept}
            assert len(stayed) >= finished
            if goes_on:
                assert in_child(work) == "done", "fewer calls are left than it was killed after"
        assert in_child(work) == "done"
        assert {file: file.stat().st_mtime_ns for file in stayed} == stayed, "what was finished is not done again"
        left = [path.name for path in folder.rglob("*") if path.name[0] == "." or path.suffix in (".lock", ".work")]
        assert not left
        whole = place("whole")
        assert in_child(work) == "done"
        assert records(folder) == records(whole) and len(records(whole)) > len(stayed)

    return check


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Random text and a teacher of width 32."""
    test_students.build_small_world(tmp_path, monkeypatch.setattr, monkeypatch.setitem)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)  # or others would train beside it
    return test_students.settings(ladders=["random", "width_alone"], steps=10, warmup=2, evaluations=2)


@pytest.fixture
def folder(monkeypatch, tmp_path, every_step):
    """Of a small teacher, whose autoencoders are written down after every step."""
    monkeypatch.setattr(text, "token_blocks", small_world.token_blocks)
    small_world.save_teacher(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_autoencoders(survives, folder, monkeypatch):
    """In the second shard of the text."""
    monkeypatch.setattr(autoencoder, "ACTIVATION_BYTES", 4 * 32 * 16 * 200)
    p = small_world.parameters(folder, layers=[2], lams=[3.0], doubling=False)
    survives(lambda: sae.measure(p), sae_kernel.Adam, "step", call=100, finished=0, goes_on=True)  # of 2 x 60


def test_sensitivity(survives, folder, monkeypatch):
    base = small_world.SMALL | dict(teacher=str(folder), layer=2, layers=[2], lams=[3.0], steps=20)
    grid = dict(lams=[3.0], layer=[2], expansion=[4], tokens=[10_000], steps=[20], seed=[0, 1])
    monkeypatch.setitem(long.GRIDS["sensitivity"], "tiny", dict(base=base) | grid)
    survives(lambda: long.sensitivity("tiny"), sae, "_measure", call=2, finished=1)


def test_other_objectives(survives, small, monkeypatch):
    some = dict(list(scales.CONTROLS["distill_controls"].items())[:2])
    monkeypatch.setitem(scales.CONTROLS, "distill_controls", some)
    survives(lambda: long.controls(small, "distill_controls", seeds=[0]), long, "trained", call=2, finished=4)


def test_probes(survives, small, monkeypatch):
    p = scales.parameters("05_probe", "tiny", concepts=["legal"], splits=2, layer=1, tokens=8, widths=[16])
    ids = np.random.default_rng(0).integers(test_students.VOCABULARY, size=(18, 12)).tolist()
    inputs = test_students.make_teacher(), ids, []
    monkeypatch.setattr(probe, "probe_states", lambda states, *_, **__: {"mean": float(np.mean(states[1]))})

    teacher_itself, narrow = probe.Job("", 32, 0, 0), probe.Job("random", 16, 0, 0)

    def survey():
        for job in (teacher_itself, narrow, narrow._replace(seed=1)):
            probe.probed(p, small, job, (f"probe/tiny/{job.label}", {}), lambda: inputs)

    survives(survey, probe, "pooled", call=2, finished=1)


def test_a_student_of_the_known_languages_teacher(survives, every_step, monkeypatch):
    """In its eighth step, its teacher's ten behind it."""
    language = known_language.language(8, 0.8)
    monkeypatch.setattr(heads, "HELD_OUT", 256)
    monkeypatch.setattr(heads, "POOL", 2)
    monkeypatch.setattr(known, "TEACHER", known.TEACHER | {"batch": 64, "width": 16, "steps": 10})

    def work():
        known.teacher.cache_clear()
        heads.pool.cache_clear()
        known.student(language, "random", 2, 4, 0, 12)

    survives(work, known.training, "update", call=18, finished=1, goes_on=True)


def test_the_teachers_states(tmp_path, monkeypatch, small):
    """Shards that were finished are kept, the others computed."""
    monkeypatch.setattr(stream, "RUNS", tmp_path)
    monkeypatch.setattr(stream, "SHARD_BYTES", test_students.LENGTH * test_students.WIDTH * 4 * 16)
    model, blocks = test_students.make_teacher(), small_world.token_blocks(None, "train", test_students.LENGTH)[:40]

    def compute():
        stream.offline_teacher(model, blocks, "text")

    with monkeypatch.context() as patch:
        patch.setattr(stream, "write_part", deadly(stream.write_part, 2))
        assert in_child(compute) == "SIGKILL"
    (sums,) = tmp_path.glob("states/*.json")
    assert list(store.load_json(sums)) == ["0"]
    with monkeypatch.context() as patch:
        patch.setattr(stream, "write_part", deadly(stream.write_part, 3))
        assert in_child(compute) == "done", "two of three shards were missing"
    assert sorted(store.load_json(sums)) == ["0", "16", "32"]
    expected = models.final_hidden(model.model, torch.from_numpy(blocks.astype(np.int64))).numpy()
    np.testing.assert_allclose(stream.offline_teacher(model, blocks, "text"), expected, rtol=1e-5, atol=1e-6)


def test_the_tiny_teachers_training(tmp_path, every_step, monkeypatch):
    """The Makefile's own target in small: killed in the middle of a step, then continued to the same weights."""
    texts = [Document(f"d{n}", "x", f"The court held {n} times that the patient scored. " * 9) for n in range(1000)]
    schedule = Schedule(steps=12, batch=4, learning_rate=1e-3, evaluations=2)
    for name, value in dict(VOCABULARY=300, CONTEXT=16, SCHEDULE=schedule).items():
        monkeypatch.setattr(teacher, name, value)
    monkeypatch.setattr(wheels, "documents", lambda: texts)
    monkeypatch.setattr(text, "RUNS", tmp_path / "tokens")
    found = {}
    for name in ("killed", "whole"):
        monkeypatch.setattr(teacher, "RUNS", tmp_path / name)
        monkeypatch.setattr(teacher, "FOLDER", tmp_path / name / "teacher-published")
        if name == "killed":
            with monkeypatch.context() as patch:
                patch.setattr(teacher, "cross_entropy", deadly(teacher.cross_entropy, 8))
                assert in_child(teacher.train) == "SIGKILL"
            assert not teacher.FOLDER.exists() and (tmp_path / name / "teacher" / "checkpoint").exists()
        assert in_child(teacher.train) == "done"
        found[name] = (teacher.FOLDER / "model.safetensors").read_bytes()
    assert found["killed"] == found["whole"]
