"""Several processes that train one model: the numbers of one, records once, and what happens if one is killed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from minwidth import distill, residual, sae, store, training
from minwidth.errors import ParameterError
from minwidth.store import ROOT
from tests import small_world, test_distill, two_processes

LAUNCH = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"]  # accelerate launch does this on GPUs


def run(*command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def here(monkeypatch):
    """After it is called, records of the small world of test_distill are found in a folder."""

    def look(folder: Path) -> None:
        test_distill.build_small_world(folder, monkeypatch.setattr, monkeypatch.setitem)

    return look


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """Folder of a student and autoencoders that two processes trained."""
    folder = tmp_path_factory.mktemp("launched")
    small_world.save_teacher(folder / "teacher")
    done = run(*LAUNCH, "-m", "tests.two_processes", "launched", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_give_a_student_the_numbers_of_one(launched, tmp_path, here, monkeypatch):
    here(launched)
    p, job, teacher = two_processes.student_parameters(), two_processes.JOB, test_distill.make_teacher()
    together = store.find(*distill.key(p, job))
    monkeypatch.setattr(store, "RUNS", tmp_path)
    alone = distill.student(p, job, teacher)
    pd.testing.assert_frame_equal(together["history"], alone["history"], check_exact=False, rtol=0, atol=1e-4)
    assert len(list((launched / "distill" / "tiny").glob("*/record.json"))) == 2  # the student and its weights, once


def test_two_processes_give_autoencoders_the_numbers_of_one(launched, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "RUNS", tmp_path)
    monkeypatch.setattr(residual, "RUNS", tmp_path)
    monkeypatch.setattr(residual, "token_blocks", small_world.token_blocks)
    p = two_processes.autoencoder_parameters(launched)
    alone = sae.measure(p)
    monkeypatch.setattr(store, "RUNS", launched / "runs")
    monkeypatch.setattr(sae, "_measure", lambda *_: pytest.fail("not found"))
    together = sae.measure(p)
    for name in ("error", "l0"):
        np.testing.assert_allclose(together["curves"][name], alone["curves"][name], rtol=1e-4)


def test_a_killed_process_is_told_and_the_others_go_on_from_the_checkpoint(launched, tmp_path, here):
    done = run("tests.two_processes", "dying", str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "run this again, and it continues from its last checkpoint" in last
    seen_first = "Process 1 of 2 has ended with code -9" in last  # else the other one, which has missed it
    assert seen_first or ("Process 0 of 2" in last and "Another of the 2 processes has ended" in done.stderr)
    (checkpoint,) = tmp_path.glob("distill/tiny/*.work/checkpoint")
    _, place = training.load_state(checkpoint)
    assert 25 <= place["step"] < 30
    done = run("tests.two_processes", "notebook", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = []
    for folder in (tmp_path, launched):
        here(folder)
        found.append(store.find(*distill.key(two_processes.student_parameters(), two_processes.JOB)))
    pd.testing.assert_frame_equal(found[0]["history"], found[1]["history"], check_exact=True)


def test_each_row_is_read_by_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(training.share(np.arange(12)))
    assert sorted(np.concatenate(shares)) == list(range(12)) and {len(share) for share in shares} == {4}
    with pytest.raises(ParameterError, match="A batch of 10 cannot be shared by 3 processes; give a multiple"):
        training.share(np.arange(10))


def test_a_batch_in_parts_has_the_same_gradients():
    inputs, found = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), []
    model = torch.nn.Linear(5, 1)
    schedule = training.Schedule(steps=1, batch=12, learning_rate=0.1, clip=1e9)

    def loss(rows):
        return model(inputs[rows]).exp().mean()

    for parts in (1, 3):
        frozen = torch.optim.SGD(model.parameters(), lr=0.0)
        value = training.update(model, frozen, loss, np.arange(12), schedule._replace(parts=parts))
        found.append((value, model.weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1])
    with pytest.raises(ParameterError, match="12 blocks cannot be divided into parts = 5"):
        training.update(model, frozen, loss, np.arange(12), schedule._replace(parts=5))
