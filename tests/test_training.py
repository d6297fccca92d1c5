"""Training is a function of (seed, step): stopped, killed, in parts or on several devices it gives the same numbers."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minwidth import sae, store, stream, students, text, training
from minwidth.errors import ParameterError
from minwidth.store import ROOT
from minwidth.training import Schedule
from tests import small_world, test_students, two_processes

SCHEDULE = Schedule(steps=24, batch=4, learning_rate=0.05, warmup=3, weight_decay=0.1, evaluations=6)


def problem():
    """A small regression, its model drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(30, 5, generator=generator), torch.randn(30, 2, generator=generator)
    with torch.random.fork_rng():
        model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model, inputs, targets


def run(checkpoint=None, die_at=None, die=None, schedule=SCHEDULE, seed=0, by_column=False, trunk=None):
    """Train the small problem; after ``die_at`` calls of the loss, ``die`` is called."""
    model, inputs, targets = problem()
    calls = 0
    if by_column:  # how its first matrix lies in memory
        model[0].weight = torch.nn.Parameter(model[0].weight.detach().T.contiguous().T)

    def loss(model, rows):
        nonlocal calls
        calls += 1
        if calls == die_at:
            die()
        return (model(inputs[rows]) - targets[rows]).square().mean()

    def evaluate(model):
        return float((model(inputs) - targets).square().mean())

    history = training.train(model, loss, evaluate, len(inputs), schedule, seed, checkpoint, trunk=trunk)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), history, calls


def stop():
    raise KeyboardInterrupt


@pytest.fixture
def every_step(monkeypatch):
    """A checkpoint after each."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", math.inf)


@pytest.mark.parametrize("die_at, by_column", [(1, False), (8, False), (24, False), (11, True)])
def test_a_run_stopped_anywhere_continues_to_the_same_bits(tmp_path, every_step, die_at, by_column):
    """By column lies a weight in memory: the optimizer's state is written by row, and a fused step uses the memory."""
    weights, history, _ = run(by_column=by_column)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state", die_at, stop, by_column=by_column)
    resumed, resumed_history, calls = run(tmp_path / "state", by_column=by_column)
    assert calls == SCHEDULE.steps - die_at + 1, "it continues, it does not start again"
    assert torch.equal(weights, resumed) and history == resumed_history


def test_dropout_stays_as_it_was(monkeypatch):
    """A student of a teacher with dropout learns without, before and behind its first evaluation."""
    plain, build = run()[0], problem

    def dropping():
        model, *data = build()
        model[1].register_forward_hook(lambda module, _, out: torch.nn.functional.dropout(out, 0.5, module.training))
        return model.eval(), *data

    monkeypatch.setattr(sys.modules[__name__], "problem", dropping)
    assert torch.equal(run()[0], plain)


def test_a_damaged_checkpoint_is_named_and_its_run_starts_again(tmp_path, caplog):
    whole = run(tmp_path / "state")
    assert run(tmp_path / "state")[2] == 0, "a finished run is not trained further"
    file = tmp_path / "state" / store.ARRAYS
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    weights, history, calls = run(tmp_path / "state")
    assert torch.equal(weights, whole[0]) and (history, calls) == whole[1:]
    assert re.search(r"\S+/state is damaged \(.*\) and will be made again", caplog.text)


def test_stopped_between_checkpoints_a_run_repeats_the_steps_since(tmp_path, monkeypatch):
    weights, history, _ = run()
    clock = iter([0.0, 0.0, *[70.0 if step == 8 else 0.0 for step in range(1, 100)]])  # a minute has passed at step 8
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state", 15, stop)
    monkeypatch.undo()
    resumed, resumed_history, calls = run(tmp_path / "state")
    assert calls == SCHEDULE.steps - 8 and torch.equal(weights, resumed) and history == resumed_history


def test_a_longer_run_goes_on_from_where_a_shorter_one_began_to_end(tmp_path, every_step):
    whole = SCHEDULE._replace(decay=0.25, evaluations=2)
    weights, history, _ = run(schedule=whole)
    assert [row["step"] for row in history] == [21, 24]
    half, trunk = whole._replace(steps=12), tmp_path / "trunk"
    first = run(schedule=half, trunk=trunk)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state", 5, stop, schedule=whole, trunk=trunk)
    longer, its_history, calls = run(tmp_path / "state", schedule=whole, trunk=trunk)
    assert calls == 24 - 9 - 4, "both from the shorter run's ninth step and from its own checkpoint"
    assert torch.equal(weights, longer) and history == its_history
    again = run(schedule=half, trunk=trunk)
    assert again[2] == 12 and torch.equal(first[0], again[0]), "the longer run's trunk is beyond it"


def test_the_global_generator_changes_nothing_and_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, _, _ = run()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two, _, _ = run()
    assert torch.equal(one, two) and not torch.equal(one, run(seed=1)[0])


def test_history_tells_mean_training_loss_and_held_out_loss():
    history = run()[1]
    assert [row["step"] for row in history] == [4, 8, 12, 16, 20, 24]
    assert history[-1]["held_out"] < history[0]["held_out"]
    whole = run(schedule=SCHEDULE._replace(evaluations=1))[1]
    assert [row["step"] for row in whole] == [24]
    assert math.isclose(whole[0]["train"], sum(row["train"] for row in history) / 6, rel_tol=1e-12)


def test_a_diverged_run_does_not_spoil_its_checkpoint(tmp_path, every_step):
    model, inputs, _ = problem()
    calls = iter([1.0] * 5 + [math.inf])
    with pytest.raises(FloatingPointError, match="inf at step 5"):
        training.train(
            model, lambda m, rows: m(inputs[rows]).mean() * next(calls), lambda m: 0.0, 30, SCHEDULE, 0, tmp_path / "s"
        )
    weights, _, calls = run(tmp_path / "s")
    assert calls == SCHEDULE.steps - 5 and weights.isfinite().all()


def test_weight_decay_spares_gains_and_biases():
    model, inputs, _ = problem()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    schedule = Schedule(steps=1, batch=4, learning_rate=0.1, weight_decay=0.5)
    training.train(model, lambda m, rows: m(inputs[rows]).sum() * 0, lambda m: 0.0, 30, schedule, seed=0)
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.1 * 0.5) if old.ndim == 2 else old)


@given(st.integers(1, 40), st.integers(1, 10), st.integers(0, 3), st.integers(0, 5))
def test_an_epoch_draws_each_row_at_most_once(total, batch, epoch, seed):
    if batch > total:
        with pytest.raises(ValueError, match="lower the batch"):
            training.batch_rows(total, batch, 0, seed)
        return
    steps = total // batch
    rows = np.concatenate([training.batch_rows(total, batch, epoch * steps + step, seed) for step in range(steps)])
    assert len(set(rows)) == len(rows) == steps * batch and set(rows) <= set(range(total))
    orders = {tuple(training.batch_rows(20, 20, n, s)) for n in (epoch, epoch + 1) for s in (seed, seed + 1)}
    assert len(orders) == 4, "epochs and seeds have orders of their own"


def test_the_rate_warms_up_peaks_and_follows_a_cosine():
    schedule = Schedule(steps=110, batch=1, learning_rate=0.2, warmup=10, floor=0.1)
    for step, rate in ((0, 0.02), (9, 0.2), (10, 0.2), (60, 0.2 * (0.1 + 0.9 * 0.5)), (110, 0.02)):
        assert math.isclose(schedule.rate(step), rate)
    assert math.isclose(Schedule(steps=10, batch=1, learning_rate=0.2).rate(0), 0.2)
    falling = schedule._replace(decay=0.2)  # of 110 steps the last 22
    for step, rate in ((9, 0.2), (60, 0.2), (88, 0.2), (99, 0.2 * (0.1 + 0.9 * 0.5)), (110, 0.02)):
        assert math.isclose(falling.rate(step), rate)


@given(st.integers(1, 500), st.integers(1, 60))
def test_evaluations_are_spaced_evenly_and_end_with_the_run(steps, evaluations):
    schedule = Schedule(steps=steps, batch=1, learning_rate=0.1, evaluations=evaluations)
    at = [step for step in range(1, steps + 1) if schedule.evaluated(step)]
    assert at[-1] == steps and len(at) == min(steps, evaluations)
    assert np.ptp(np.diff([0, *at])) <= 1


def test_a_batch_in_parts_has_the_same_gradients():
    inputs, found = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), []
    model = torch.nn.Linear(5, 1)
    schedule = training.Schedule(steps=1, batch=12, learning_rate=0.1)

    def loss(rows):
        return model(inputs[rows]).exp().mean()

    for parts in (1, 3):
        frozen = torch.optim.SGD(model.parameters(), lr=0.0)
        value = training.update(model, frozen, loss, np.arange(12), schedule._replace(parts=parts))
        found.append((value, model.weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1])
    with pytest.raises(ParameterError, match="12 blocks cannot be divided into parts = 5"):
        training.update(model, frozen, loss, np.arange(12), schedule._replace(parts=5))


LAUNCH = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"]  # accelerate launch does this on GPUs


def program(*command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """Folder of a student and autoencoders that two processes trained."""
    folder = tmp_path_factory.mktemp("launched")
    small_world.save_teacher(folder / "teacher")
    done = program(*LAUNCH, "-m", "tests.two_processes", "launched", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_give_a_student_the_numbers_of_one(launched, tmp_path, monkeypatch):
    test_students.build_small_world(launched, monkeypatch.setattr, monkeypatch.setitem)
    p, job, teacher = two_processes.student_parameters(), two_processes.JOB, test_students.make_teacher()
    together = store.find(*students.key(p, job))
    monkeypatch.setattr(store, "RUNS", tmp_path)
    alone = students.student(p, job, teacher)
    pd.testing.assert_frame_equal(together["history"], alone["history"], check_exact=False, rtol=0, atol=1e-4)
    assert len(list((launched / "distill" / "tiny").glob("*/record.json"))) == 2  # the student and its weights, once


def test_two_processes_give_autoencoders_the_numbers_of_one(launched, tmp_path, monkeypatch):
    for module in (store, stream):
        monkeypatch.setattr(module, "RUNS", tmp_path)
    monkeypatch.setattr(text, "token_blocks", small_world.token_blocks)
    p = two_processes.autoencoder_parameters(launched)
    alone = sae.measure(p)
    monkeypatch.setattr(store, "RUNS", launched / "runs")
    monkeypatch.setattr(sae, "_measure", lambda *_: pytest.fail("not found"))
    together = sae.measure(p)
    for name in ("error", "l0"):
        np.testing.assert_allclose(together["curves"][name], alone["curves"][name], rtol=1e-4)


def test_a_killed_process_is_told_and_the_others_go_on_from_the_checkpoint(launched, tmp_path, monkeypatch):
    done = program("tests.two_processes", "dying", str(tmp_path))
    assert done.returncode == 0, done.stderr
    last = next(line for line in done.stderr.splitlines() if "run this again, and it continues" in line)
    seen_first = "Process 1 of 2 has ended with code -9" in last  # else the other one, which has missed it
    assert seen_first or ("Process 0 of 2" in last and "Another of the 2 processes has ended" in done.stderr)
    assert 25 <= int(re.search(r"killed behind step (\d+)", done.stdout)[1]) < 30
    found = []
    for folder in (tmp_path, launched):
        test_students.build_small_world(folder, monkeypatch.setattr, monkeypatch.setitem)
        found.append(store.find(*students.key(two_processes.student_parameters(), two_processes.JOB)))
    pd.testing.assert_frame_equal(found[0]["history"], found[1]["history"], check_exact=True)


def test_each_row_is_read_by_one_process(monkeypatch):
    shares = []
    for rank in range(3):
        monkeypatch.setattr(training, "state", lambda r=rank: SimpleNamespace(num_processes=3, process_index=r))
        shares.append(training.share(np.arange(12)))
    assert sorted(np.concatenate(shares)) == list(range(12)) and {len(share) for share in shares} == {4}
    with pytest.raises(ParameterError, match="A batch of 10 cannot be shared by 3 processes; give a multiple"):
        training.share(np.arange(10))
