"""Students and ladders: exact resume after kill -9, the three kinds, other losses, processes."""

import math
import multiprocessing
import operator
import os
import re
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from minwidth import errors, ladders, models, scales, store, stream, students, text, training
from tests.small_models import config_of, teacher_of
from tests.small_world import VOCABULARY, token_blocks

WIDTH, LENGTH = 32, 12
SETTINGS = dict(
    widths=[16, 32], ladders=["random"], doubled=["random", "width_alone"], seeds=[0],
    steps=30, batch=4, length=LENGTH, learning_rate=0.01, warmup=3,
    rate_exponent=0.0, cut_rate=1.0,
    evaluations=10, held_out_blocks=6,
)  # fmt: skip


def make_teacher() -> models.Teacher:
    return teacher_of(config_of("gpt_neox", vocab_size=VOCABULARY, num_hidden_layers=2, num_attention_heads=2))


def build_small_world(folder, put=setattr, put_item=operator.setitem) -> None:
    """A teacher of width 32 and random text in place of the scale's; nothing is written outside ``folder``."""
    put(store, "RUNS", folder)
    put(stream, "RUNS", folder)
    put(store, "RESULTS", folder / "results")
    put_item(scales.SHAPES, "tiny", scales.Shape("tiny", WIDTH, 2, 2, VOCABULARY, LENGTH))
    put(scales, "shape_of", lambda teacher, revision=None: scales.SHAPES[teacher])  # the real one remembers
    put(models, "teacher_revision", lambda name: "0")
    put(models, "load_teacher", lambda name, device=None: make_teacher())
    put(text, "token_blocks", token_blocks)


@pytest.fixture(autouse=True)
def small_world(tmp_path, monkeypatch):
    build_small_world(tmp_path, monkeypatch.setattr, monkeypatch.setitem)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)


def settings(**changes) -> scales.Distill:
    return scales.parameters("04_distill", "tiny", **(SETTINGS | changes))


@pytest.fixture
def teacher():
    return make_teacher()


# ------------------------------------------------------------------------------------------------------- one student


def test_a_student_learns_and_is_found_again_read_by_others_and_missed_where_its_weights_are_lost(
    teacher, tmp_path, monkeypatch
):
    p, job = settings(), students.Job("random", 16, 0, 30)
    record = students.student(p, job, teacher)
    history = record["history"]
    assert list(history.step) == [0, *range(3, 31, 3)] and record["untrained"] == history.held_out[0]
    assert record["loss"] == history.held_out.iloc[-1] < 0.8 * record["untrained"]
    assert record["low"] < history.held_out.iloc[-1] < record["high"]
    monkeypatch.setattr(training, "train", None)
    assert students.student(p, job, teacher).key == record.key
    students.save(p, job, teacher, tmp_path / "student")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student", use_safetensors=True)
    with torch.no_grad():
        ids = torch.arange(LENGTH)[None]
        torch.testing.assert_close(again(ids).logits, students.trained(p, job, teacher)(ids).logits)
    what, parameters = students.key(p, job)
    (store.folder_of(f"{what}-weights", parameters) / "record.json").unlink()
    with pytest.raises(LookupError, match="random-w16-s0-n30"):
        students.trained(p, job, teacher)


def test_the_teacher_beside_the_student_gives_the_same_as_its_stored_states(teacher, monkeypatch):
    p, job = settings(), students.Job("random", 16, 0, 30)
    stored = students._train(p, job, teacher, "distill/tiny/a", {})
    monkeypatch.setattr(students, "STATES_BYTES", 0)
    beside = students._train(p, job, teacher, "distill/tiny/b", {})
    assert beside["loss"] == pytest.approx(stored["loss"], rel=1e-4)


def test_too_little_text_is_told_before_anything_is_trained(teacher, monkeypatch):
    monkeypatch.setattr(text, "token_blocks", lambda *given: token_blocks(*given)[:3])
    for split, least in (("held_out", 6), ("train", 4)):
        with pytest.raises(errors.ParameterError, match=f"{split} split of wheels has 3 blocks .* {least} are needed"):
            students.read(teacher, settings(), split)


def test_states_that_the_disk_has_no_room_for_or_beyond_their_share_are_not_kept_but_those_that_are_there_are_used(
    teacher, tmp_path, monkeypatch, caplog
):
    p, room = settings(), shutil.disk_usage("/")._replace(free=1000)
    students.read(teacher, p, "held_out")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: room)
        assert students.read(teacher, p, "held_out").states is not None
        assert students.read(teacher, p, "train").states is None
    monkeypatch.setattr(students, "STATES_BYTES", 2**10)
    for _ in range(2):
        assert students.read(teacher, p, "train").states is None
    no_room, beyond = (record.getMessage() for record in caplog.records)  # each is said once
    assert re.search(r"states has 9.31e-07 GiB free, so it runs beside .* MINWIDTH_RUNS, and it runs but once", no_room)
    assert beyond == (
        f"The teacher's states on 2,880 tokens would fill {2 * 30 * 4 * LENGTH * WIDTH * 4 / 2**30:.4g} GiB, more than "
        f"the {2**-20:g} GiB set apart for them, so it runs beside each student."
    )
    assert len(list((tmp_path / "states").glob("*.bin"))) == 1


@pytest.mark.parametrize("name", ["forward", "reverse", "hidden", "cross_entropy"])
def test_every_objective_is_learnt_and_judged_as_itself(teacher, name):
    p, job = settings(objective=name), students.Job("random", 16, 0, 30)
    record = students.student(p, job, teacher)
    assert record["params"] == models.parameter_count(models.make_student(teacher.model, 16, 0))
    student, text = students.trained(p, job, teacher), students.read(teacher, p, "held_out")
    with torch.no_grad():
        ids, states = torch.from_numpy(text.ids.astype(np.int64)), torch.from_numpy(np.array(text.states))
        hidden = models.final_hidden(student, ids)
        log_p = torch.log_softmax(states.double() @ models.unembedding(teacher.model).T.double() / 2, -1)
        log_q = torch.log_softmax(hidden.double() @ models.unembedding(student).T.double() / 2, -1)
    weights = store.find(*(lambda what, parameters: (f"{what}-weights", parameters))(*students.key(p, job)))
    if name == "forward":
        expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        uniform = np.log(VOCABULARY) + float((log_p.exp() * log_p).sum(-1).mean())
        assert record["uniform"] == pytest.approx(uniform, rel=1e-5)
    elif name == "reverse":
        expected = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    elif name == "hidden":
        missed = states - hidden @ torch.from_numpy(weights["match.weight"]).T
        share = missed.square().sum(-1) / states.square().sum(-1)
        expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean() + share.mean()
        assert share.mean() < 0.9
    else:
        logits = student(ids[:, :-1]).logits.flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        assert record["uniform"] == pytest.approx(np.log(VOCABULARY), rel=1e-5)
    assert record["history"].held_out.iloc[-1] == pytest.approx(float(expected), rel=1e-4)
    assert record["history"].train.iloc[-1] < record["history"].train.iloc[1]


def test_width_alone_starts_near_the_teacher_learns_and_is_the_teacher_at_full_width(teacher, monkeypatch):
    p = settings(ladders=["width_alone"], learning_rate=0.002)
    record = students.student(p, students.Job("width_alone", 24, 0, 30), teacher)
    random = students.make(teacher, p, "random", 24, 0)
    assert models.parameter_count(random) != record["params"]  # heads and FFN stay the teacher's
    assert record["loss"] < record["untrained"] < record["uniform"]
    monkeypatch.setattr(training, "train", None)  # nothing to train
    record = students.student(p, students.Job("width_alone", WIDTH, 0, 30), teacher)
    assert record["loss"] < 1e-6 and len(record["history"]) == 1


def train_slowly(folder, job):
    """Body of the process that is killed: checkpoints after every step, a moment of rest in each."""
    build_small_world(folder)
    training.CHECKPOINT_SECONDS, training.CHECKPOINT_SHARE = -1.0, math.inf
    original = students.kl.divergence
    students.kl.divergence = lambda *args, **kwargs: (time.sleep(0.02), original(*args, **kwargs))[1]
    (folder / "started").touch()
    students.student(settings(), job, make_teacher())


def test_killed_at_ten_random_moments_a_run_gives_the_same_bits(teacher, tmp_path, monkeypatch):
    p, job = settings(), students.Job("random", 16, 1, 160)
    what, parameters = students.key(p, job)
    context = multiprocessing.get_context("forkserver")  # quick to start again, and without this process's threads
    context.set_forkserver_preload(["tests.test_students", "transformers.models.gpt_neox.modeling_gpt_neox"])
    moments, started = np.random.default_rng().uniform(0, 0.4, 10), tmp_path / "started"  # others in each test run
    for pause in moments:
        process = context.Process(target=train_slowly, args=(tmp_path, job))
        process.start()
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(pause)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        started.unlink()
    assert store.find(what, parameters) is None, "it was killed, not finished"
    resumed, weights = students.student(p, job, teacher), store.find(f"{what}-weights", parameters)
    assert not store.work_folder(what, parameters).exists()
    monkeypatch.setattr(store, "RUNS", tmp_path / "elsewhere")
    plain = students.student(p, job, teacher)
    pd.testing.assert_frame_equal(resumed["history"], plain["history"], check_exact=True)
    for name, value in store.find(f"{what}-weights", parameters).values.items():
        np.testing.assert_array_equal(weights[name], value)


# ------------------------------------------------------------------------------------------------- where a run ended


def history(losses) -> pd.DataFrame:
    rows = [{"step": 0, "train": np.nan, "held_out": 9.0}]
    return pd.DataFrame(rows + [{"step": 10 * i, "train": 0.0, "held_out": x} for i, x in enumerate(losses, 1)])


def test_the_final_loss_is_the_mean_of_the_last_tenth():
    losses = [5.0] * 27 + [1.0, 2.0, 3.0]
    assert students.final_loss(history(losses)) == 2.0 and students.final_loss(history([4.0, 1.0])) == 1.0
    assert students.final_loss(history([])) == 9.0  # not trained


# ------------------------------------------------------------------------------------------------ the last state alone


def test_a_head_starts_from_the_best_low_rank_logits_and_is_exact_at_full_width(teacher):
    p = settings(ladders=["head"], learning_rate=0.003)
    text, matrix = students.read(teacher, p, "train"), models.unembedding(teacher.model)
    sample = torch.from_numpy(np.array(text.states)).flatten(0, 1)[: students.BASIS_TOKENS // 4]
    head = students.Head(matrix, sample, 8)
    logits = sample.double() @ matrix.T.double()
    s = torch.linalg.svdvals(logits)
    found = (head(sample) @ head.unembedding.T).detach().double()
    assert (found - logits).square().sum() == pytest.approx(float((s[8:] ** 2).sum()), rel=1e-3)
    assert students.student(p, students.Job("head", WIDTH, 0, 30), teacher)["loss"] < 1e-6
    record = students.student(p, students.Job("head", 8, 0, 30), teacher)
    assert record["loss"] < record["untrained"] and record["params"] == 8 * (VOCABULARY + WIDTH)


# ------------------------------------------------------------------------------------------------------------ ladder


def test_a_ladder_is_trained_tested_by_doubling_and_assembled(teacher):
    p = settings(ladders=["random", "width_alone"], steps=10)
    record = ladders.ladder(p)
    table, curves = record["ladder"], record["curves"]
    assert len(table) == 8  # two ladders, two widths, two lengths of training
    narrow = table[(table.ladder == "random") & (table.width == 16)].set_index("steps")
    assert narrow.fall_per_doubling[20] == pytest.approx(1 - narrow.loss[20] / narrow.loss[10])
    assert np.isnan(narrow.fall_per_doubling[10])
    assert narrow.raw_kl[20] == pytest.approx(narrow.loss[20] * LENGTH * 4)
    control = table[(table.ladder == "width_alone") & (table.width == WIDTH)]
    assert (control.loss < 1e-6).all()
    assert (table.d_teacher == WIDTH).all() and (table.tokens == table.steps * 4 * LENGTH).all()
    chosen = curves[(curves.ladder == "random") & (curves.width == 16) & (curves.steps == 20)]
    assert chosen.step.max() == 20 and ladders.ladder(p).key == record.key


def test_jobs_of_one_width_and_of_the_whole_ladder():
    p = settings(seeds=[0, 1])
    assert len(ladders.jobs(p)) == 8 and ladders.jobs(p)[0] == students.Job("random", 32, 0, 60)
    assert {job.width for job in ladders.jobs(settings(width=16))} == {16}


def test_keys_depend_on_what_matters_alone_and_a_student_may_be_of_another_depth(teacher):
    job, deeper = students.Job("random", 16, 0, 30), settings().model_copy(update={"layers": 3})
    same = [settings(**change) for change in ({}, {"widths": [32]}, {"seeds": [0, 1]})]
    (key,) = {store.key_of(*students.key(p, job)) for p in same}
    assert not {"objective", "layers"} & students.key(settings(), job)[1].keys(), "so that the ladder's own keep names"
    others = [{"learning_rate": 0.02}, {"temperature": 1.0}, {"batch": 5}, {"evaluations": 5}, {"objective": "reverse"}]
    for p in [*(settings(**change) for change in others), deeper]:
        assert store.key_of(*students.key(p, job)) != key
    assert students.make(teacher, deeper, "random", 16, 0).config.num_hidden_layers == 3


def test_learning_rates():
    p = settings(rate_exponent=0.5, cut_rate=0.25)
    assert students.rate(p, students.Job("random", 8, 0, 30)) == pytest.approx(0.02)
    assert students.rate(p, students.Job("width_alone", 32, 0, 30)) == pytest.approx(0.0025)
    assert students.rate(scales.parameters("04_distill", "pythia-410m"), students.Job("random", 128, 0, 9)) == 3e-4


def test_command_line(caplog):
    caplog.set_level("INFO")
    options = ["--scale", "tiny", "--ladder", "random", "--width", "16", "--seed", "3"]
    given = {name: value for name, value in SETTINGS.items() if name not in ("ladders", "seeds", "doubled")}
    changes = [f"--set={name}={value}" for name, value in given.items()]
    ladders.main(options + changes)
    assert store.find(*students.key(settings(seeds=[3]), students.Job("random", 16, 3, 60)))
    of_head, uncut = (
        ["--ladder", "head", "--save", "x"],
        ["--ladder", "width_alone", "--set", "basis=uncut", "--save", "x"],
    )
    for refused in (["--width", "33"], ["--width", "0"], ["--set", "scale=smollm2"], of_head, uncut):
        with pytest.raises(SystemExit) as error:
            ladders.main(refused)
        assert error.value.code == 2


def work_in_the_small_world(*given):
    """Body of a process that is spawned by a ladder."""
    build_small_world(store.RUNS)
    ladders._work(*given)


def test_processes_side_by_side_train_what_one_trains_and_a_fault_in_one_is_told(teacher, tmp_path, monkeypatch):
    p, todo = settings(), [students.Job("random", 16, seed, 30) for seed in (0, 1)]
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(ladders, "_work", work_in_the_small_world)
    monkeypatch.setenv("MINWIDTH_RUNS", str(tmp_path))
    with pytest.raises(errors.LostError, match="lower the learning rate"):
        ladders.train([*((p, job) for job in todo), (settings(learning_rate=1.0, warmup=0), todo[0])])
    beside = {job: record for job in todo if (record := store.find(*students.key(p, job)))}
    assert beside, "the process that met the fault had trained another student before"
    monkeypatch.setattr(store, "RUNS", tmp_path / "alone")
    for job, record in beside.items():
        alone = students.student(p, job, teacher)
        pd.testing.assert_frame_equal(record["history"], alone["history"], check_exact=True)
