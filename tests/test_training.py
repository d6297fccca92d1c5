import itertools
import math
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minwidth import training
from minwidth.training import Schedule

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


def run(checkpoint=None, die_at=None, die=None, schedule=SCHEDULE, seed=0):
    """Train the small problem; ``die_at`` calls of the loss, ``die`` is called."""
    model, inputs, targets = problem()
    calls = 0

    def loss(model, rows):
        nonlocal calls
        calls += 1
        if calls == die_at:
            die()
        return (model(inputs[rows]) - targets[rows]).square().mean()

    def evaluate(model):
        return float((model(inputs) - targets).square().mean())

    history = training.train(model, loss, evaluate, len(inputs), schedule, seed, checkpoint)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), history, calls


def stop():
    raise KeyboardInterrupt


@pytest.mark.parametrize("die_at", [1, 2, 5, 8, 13, 24])
def test_a_run_stopped_anywhere_continues_to_the_same_bits(tmp_path, monkeypatch, die_at):
    weights, history, _ = run()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)  # a checkpoint after every step
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", math.inf)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state", die_at, stop)
    resumed, resumed_history, calls = run(tmp_path / "state")
    assert calls == SCHEDULE.steps - die_at + 1, "it continues, it does not start again"
    assert torch.equal(weights, resumed)
    assert history == resumed_history


def run_until_killed(checkpoint):
    """In a process of its own: at the eleventh step, kill -9."""
    training.CHECKPOINT_SECONDS, training.CHECKPOINT_SHARE = -1.0, math.inf
    torch.set_num_threads(1)
    run(checkpoint, 11, lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_run_killed_outright_continues_to_the_same_bits(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    weights, history, _ = run()
    child = multiprocessing.get_context("spawn").Process(target=run_until_killed, args=[tmp_path / "state"])
    child.start()
    child.join(120)
    ended = child.exitcode
    child.kill()
    assert ended == -signal.SIGKILL
    resumed, resumed_history, calls = run(tmp_path / "state")
    torch.set_num_threads(threads)
    assert calls == SCHEDULE.steps - 10
    assert torch.equal(weights, resumed)
    assert history == resumed_history


def test_a_weight_that_lies_column_by_column_in_memory_resumes_as_exactly(tmp_path, monkeypatch):
    """The optimizer's state is written row by row, and a fused step goes through memory."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)

    def weight(checkpoint=None, die_at=None):
        model, inputs, targets = problem()
        model[0].weight = torch.nn.Parameter(model[0].weight.detach().T.contiguous().T)
        calls = itertools.count(1)

        def loss(model, rows):
            if next(calls) == die_at:
                raise KeyboardInterrupt
            return (model(inputs[rows]) - targets[rows]).square().mean()

        training.train(model, loss, lambda model: 0.0, len(inputs), SCHEDULE, 0, checkpoint)
        return model[0].weight.detach()

    with pytest.raises(KeyboardInterrupt):
        weight(tmp_path / "state", 11)
    assert torch.equal(weight(tmp_path / "state"), weight())


def test_stopped_between_checkpoints_a_run_repeats_the_steps_since(tmp_path, monkeypatch):
    weights, history, _ = run()
    clock = iter([0.0, 0.0, *[70.0 if step == 8 else 0.0 for step in range(1, 100)]])  # a minute has passed at step 8
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state", 15, stop)
    monkeypatch.undo()
    resumed, resumed_history, calls = run(tmp_path / "state")
    assert calls == SCHEDULE.steps - 8
    assert torch.equal(weights, resumed)
    assert history == resumed_history


def test_a_finished_run_is_not_trained_further(tmp_path):
    weights, history, _ = run(tmp_path / "state")
    again, again_history, calls = run(tmp_path / "state")
    assert calls == 0
    assert torch.equal(weights, again)
    assert history == again_history


def test_the_global_generator_changes_nothing_and_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, _, _ = run()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two, _, _ = run()
    assert torch.equal(one, two)
    assert not torch.equal(one, run(seed=1)[0])


def test_history_tells_mean_training_loss_and_held_out_loss():
    _, history, _ = run()
    assert [row["step"] for row in history] == [4, 8, 12, 16, 20, 24]
    assert history[-1]["held_out"] < history[0]["held_out"]
    whole = run(schedule=SCHEDULE._replace(evaluations=1))[1]
    assert [row["step"] for row in whole] == [24]
    assert math.isclose(whole[0]["train"], sum(row["train"] for row in history) / 6, rel_tol=1e-12)


def test_a_loss_that_is_not_finite_stops_the_run():
    model, _, _ = problem()
    with pytest.raises(FloatingPointError, match="nan at step 0; lower the learning rate"):
        training.train(
            model, lambda model, rows: model[0].weight.sum() * math.nan, lambda model: 0.0, 30, SCHEDULE, seed=0
        )


def test_a_diverged_run_does_not_spoil_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", math.inf)
    model, inputs, _ = problem()
    calls = iter([1.0] * 5 + [math.inf])
    with pytest.raises(FloatingPointError, match="inf at step 5"):
        training.train(
            model, lambda m, rows: m(inputs[rows]).mean() * next(calls), lambda m: 0.0, 30, SCHEDULE, 0, tmp_path / "s"
        )
    weights, _, calls = run(tmp_path / "s")
    assert calls == SCHEDULE.steps - 5
    assert weights.isfinite().all()


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
    assert len(rows) == steps * batch
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(total))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(training.batch_rows(20, 20, epoch, seed)) for epoch in range(2) for seed in range(2)]
    assert len(set(orders)) == 4


def test_the_rate_warms_up_peaks_and_follows_a_cosine():
    schedule = Schedule(steps=110, batch=1, learning_rate=0.2, warmup=10, floor=0.1)
    assert math.isclose(schedule.rate(0), 0.02)
    assert math.isclose(schedule.rate(9), 0.2)
    assert math.isclose(schedule.rate(10), 0.2)
    assert math.isclose(schedule.rate(60), 0.2 * (0.1 + 0.9 * 0.5))
    assert math.isclose(schedule.rate(110), 0.02)
    assert math.isclose(Schedule(steps=10, batch=1, learning_rate=0.2).rate(0), 0.2)


@given(st.integers(1, 500), st.integers(1, 60))
def test_evaluations_are_spaced_evenly_and_end_with_the_run(steps, evaluations):
    schedule = Schedule(steps=steps, batch=1, learning_rate=0.1, evaluations=evaluations)
    at = [step for step in range(1, steps + 1) if schedule.evaluated(step)]
    assert at[-1] == steps
    gaps = np.diff([0, *at])
    assert len(set(gaps[:-1])) <= 1
    assert gaps[-1] >= gaps[0]
    assert min(steps, evaluations) <= len(at) < 2 * max(evaluations, 1) + 1
