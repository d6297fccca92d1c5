"""Students: exact resume after kill -9, floors and verdicts by hand, the control that is its teacher, fits."""

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
from tokenizers import Tokenizer
from tokenizers import models as token_models
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast

from minwidth import distill, figures, models, residual, scales, store, training

WIDTH, VOCABULARY, LENGTH = 32, 40, 12
SETTINGS = dict(
    widths=[16, 32], ladders=["random"], seeds=[0], steps=30, batch=4, length=LENGTH, learning_rate=0.01, warmup=3,
    rate_exponent=0.0, cut_rate=1.0,
    evaluations=10, held_out_blocks=6,
)  # fmt: skip


def make_teacher() -> models.Teacher:
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=LENGTH, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    words = Tokenizer(token_models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    return models.Teacher(model, PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0"), "tiny", "0")


def blocks(teacher, split, length, percent, *_) -> np.ndarray:
    """Random text in place of the corpus."""
    return np.random.default_rng(split == "train").integers(0, VOCABULARY, (1000, length)).astype(np.uint16)


def build_small_world(folder, put=setattr, put_item=operator.setitem) -> None:
    """A teacher of width 32 and random text in place of the scale's; nothing is written outside ``folder``."""
    put(store, "RUNS", folder)
    put(residual, "RUNS", folder)
    put(store, "RESULTS", folder / "results")
    put_item(scales.SHAPES, "tiny", scales.Shape("tiny", WIDTH, 2, 2, VOCABULARY, LENGTH))
    put(models, "teacher_revision", lambda name: "0")
    put(distill, "_teacher", lambda scale: make_teacher())
    put(models, "load_teacher", lambda name, device=None: make_teacher())
    put(residual, "token_blocks", blocks)


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


def test_a_student_learns_and_is_found_again(teacher, monkeypatch):
    p, job = settings(), distill.Job("random", 16, 0, 30)
    record = distill.student(p, job, teacher)
    history = record["history"]
    assert list(history.step) == [0, *range(3, 31, 3)]
    assert record["untrained"] == history.held_out[0]
    assert record["floor"] == history.held_out.iloc[-1] < 0.8 * record["untrained"]
    assert record["low"] < history.held_out.iloc[-1] < record["high"]
    assert record["params"] == models.parameter_count(models.make_student(teacher.model, 16, 0))
    monkeypatch.setattr(training, "train", None)
    assert distill.student(p, job, teacher).key == record.key


def test_the_loss_is_the_divergence_of_full_logits(teacher):
    p, job = settings(), distill.Job("random", 16, 0, 30)
    record = distill.student(p, job, teacher)
    student = distill.trained(p, job, teacher)
    ids = torch.from_numpy(residual.token_blocks(teacher, "held_out", LENGTH, 10)[:6].astype(np.int64))
    with torch.no_grad():
        log_p, log_q = (torch.log_softmax(m(ids).logits.double() / 2, -1) for m in (teacher.model, student))
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert record["history"].held_out.iloc[-1] == pytest.approx(float(expected), rel=1e-5)
    uniform = np.log(VOCABULARY) + float((log_p.exp() * log_p).sum(-1).mean())
    assert record["uniform"] == pytest.approx(uniform, rel=1e-5)


def test_the_teacher_beside_the_student_gives_the_same_as_its_stored_states(teacher, monkeypatch):
    p, job = settings(), distill.Job("random", 16, 0, 30)
    stored = distill._train(p, job, teacher, "distill/tiny/a", {})
    monkeypatch.setattr(distill, "STATES_BYTES", 0)
    beside = distill._train(p, job, teacher, "distill/tiny/b", {})
    assert beside["floor"] == pytest.approx(stored["floor"], rel=1e-4)


def test_states_that_exceed_their_share_of_the_disk_are_not_kept_and_it_is_said_once(
    teacher, tmp_path, monkeypatch, caplog
):
    p = settings()
    monkeypatch.setattr(distill, "STATES_BYTES", 2**10)
    for _ in range(2):
        assert distill.read(teacher, p, "train").states is None
    size = 2 * 30 * 4 * LENGTH * WIDTH * 4 / 2**30
    assert [record.getMessage() for record in caplog.records] == [
        f"The teacher's states on 2,880 tokens would fill {size:.4g} GiB, more than the {2**-20:g} set apart for them, "
        "so it runs beside each student."
    ]
    assert not (tmp_path / "states").exists()


def test_states_that_the_disk_has_no_room_for_are_not_kept_but_those_that_are_there_are_used(
    teacher, monkeypatch, caplog
):
    p, room = settings(), shutil.disk_usage("/")._replace(free=1000)
    distill.read(teacher, p, "held_out")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: room)
    assert distill.read(teacher, p, "held_out").states is not None
    assert distill.read(teacher, p, "train").states is None
    assert re.search(
        r"states has 9.31e-07 GiB free, so it runs beside .* MINWIDTH_RUNS, and it runs but once", caplog.text
    )


def test_a_reader_is_told_where_the_states_are_not_kept():
    assert distill.about_room(settings()) == ""
    assert "more than the 64 GiB" in distill.about_room(scales.parameters("04_distill", "pythia-410m"))


@pytest.mark.parametrize("name", ["reverse", "hidden", "cross_entropy"])
def test_another_objective_is_learnt_and_judged_as_itself(teacher, name):
    p, job = settings(objective=name), distill.Job("random", 16, 0, 30)
    record = distill.student(p, job, teacher)
    assert record["params"] == models.parameter_count(models.make_student(teacher.model, 16, 0))
    student, text = distill.trained(p, job, teacher), distill.read(teacher, p, "held_out")
    with torch.no_grad():
        ids, states = torch.from_numpy(text.ids.astype(np.int64)), torch.from_numpy(np.array(text.states))
        hidden = models.final_hidden(student, ids)
        log_p = torch.log_softmax(states.double() @ models.unembedding(teacher.model).T.double() / 2, -1)
        log_q = torch.log_softmax(hidden.double() @ models.unembedding(student).T.double() / 2, -1)
    weights = store.find(*(lambda what, parameters: (f"{what}-weights", parameters))(*distill.key(p, job)))
    if name == "reverse":
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


def test_width_alone_at_full_width_is_the_teacher(teacher, monkeypatch):
    monkeypatch.setattr(training, "train", None)  # nothing to train
    record = distill.student(settings(ladders=["width_alone"]), distill.Job("width_alone", WIDTH, 0, 30), teacher)
    assert record["floor"] < 1e-6
    assert len(record["history"]) == 1
    assert record["tail_slope"] is None


def test_width_alone_starts_near_the_teacher_and_learns(teacher):
    p = settings(ladders=["width_alone"], learning_rate=0.002)
    record = distill.student(p, distill.Job("width_alone", 24, 0, 30), teacher)
    random = distill.untrained(teacher, p, "random", 24, 0)
    assert models.parameter_count(random) != record["params"]  # heads and FFN stay the teacher's
    assert record["floor"] < record["untrained"] < record["uniform"]


def train_slowly(folder, job):
    """Body of the process that is killed: checkpoints after every step, a moment of rest in each."""
    build_small_world(folder)
    training.CHECKPOINT_SECONDS, training.CHECKPOINT_SHARE = -1.0, math.inf
    original = distill.kl.divergence
    distill.kl.divergence = lambda *args, **kwargs: (time.sleep(0.02), original(*args, **kwargs))[1]
    (folder / "started").touch()
    distill.student(settings(), job, make_teacher())


def test_killed_at_ten_random_moments_a_run_gives_the_same_bits(teacher, tmp_path, monkeypatch):
    p, job = settings(), distill.Job("random", 16, 1, 160)
    what, parameters = distill.key(p, job)
    context = multiprocessing.get_context("forkserver")  # quick to start again, and without this process's threads
    context.set_forkserver_preload(["minwidth.distill", "pytest"])
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
    resumed, weights = distill.student(p, job, teacher), store.find(f"{what}-weights", parameters)
    assert not store.work_folder(what, parameters).exists()
    monkeypatch.setattr(store, "RUNS", tmp_path / "elsewhere")
    plain = distill.student(p, job, teacher)
    pd.testing.assert_frame_equal(resumed["history"], plain["history"], check_exact=True)
    for name, value in store.find(f"{what}-weights", parameters).values.items():
        np.testing.assert_array_equal(weights[name], value)


def test_divergence_stops_with_a_sentence(teacher):
    p = settings(learning_rate=1.0, warmup=0)
    with pytest.raises(FloatingPointError, match=r"lower the learning rate \(1"):
        distill.student(p, distill.Job("random", 16, 0, 30), teacher)


def test_lost_weights_are_named(teacher):
    p, job = settings(), distill.Job("random", 16, 0, 30)
    distill.student(p, job, teacher)
    what, parameters = distill.key(p, job)
    (store.folder_of(f"{what}-weights", parameters) / "record.json").unlink()
    with pytest.raises(LookupError, match="random-w16-s0-n30"):
        distill.trained(p, job, teacher)


# ------------------------------------------------------------------------------------------------- floor and verdict


def history(losses) -> pd.DataFrame:
    rows = [{"step": 0, "train": np.nan, "held_out": 9.0}]
    return pd.DataFrame(rows + [{"step": 10 * i, "train": 0.0, "held_out": x} for i, x in enumerate(losses, 1)])


def test_floor_is_the_mean_of_the_last_tenth():
    losses = [5.0] * 27 + [1.0, 2.0, 3.0]
    assert distill.floor(history(losses)) == 2.0
    assert distill.floor(history([4.0, 1.0])) == 1.0
    assert distill.floor(history([])) == 9.0  # not trained


def test_tail_slope_is_the_fall_per_doubling_the_tail_suggests():
    steps = 10 * np.arange(1, 31)
    frame = history(3.0 - 0.3 * np.log2(steps))
    assert distill.tail_slope(frame) == pytest.approx(0.3 / distill.floor(frame))


@pytest.mark.parametrize(
    ("short", "long", "expected", "words"),
    [
        (1.0, 0.98, "floor", "a floor: doubling the steps moves it by 2.0 %, less than 3 %"),
        (1.0, 1.01, "floor", "a floor: doubling the steps moves it by -1.0 %, less than 3 %"),
        (1.0, 0.75, "upper bound", "an upper bound, still falling 25 % per doubling of the steps"),
        (1.0, 1.5, "upper bound", "no floor: twice the steps end 50 % higher"),
        (1e-9, 0.0, "floor", "a floor: doubling the steps moves it by 0.0 %, less than 3 %"),
    ],
)
def test_verdicts(short, long, expected, words):
    fall = distill.fall_per_doubling(short, long)
    assert distill.verdict(fall, 0.03) == expected
    assert distill.describe(fall, 0.03) == words


# ------------------------------------------------------------------------------------------------------------ ladder


def test_a_ladder_is_trained_tested_by_doubling_and_assembled(teacher):
    p = settings(ladders=["random", "width_alone"])
    record = distill.ladder(p)
    table, curves = record["ladder"], record["curves"]
    assert len(table) == 8  # two ladders, two widths, two lengths of training
    narrow = table[(table.ladder == "random") & (table.width == 16)].set_index("steps")
    assert narrow.fall_per_doubling[60] == pytest.approx(1 - narrow.floor[60] / narrow.floor[30])
    assert narrow.verdict[60] == distill.verdict(narrow.fall_per_doubling[60], p.floor_tolerance)
    assert np.isnan(narrow.fall_per_doubling[30])
    assert narrow.raw_kl[60] == pytest.approx(narrow.floor[60] * LENGTH * 4)
    control = table[(table.ladder == "width_alone") & (table.width == WIDTH)]
    assert (control.floor < 1e-6).all()
    assert (table.d_teacher == WIDTH).all()
    chosen = curves[(curves.ladder == "random") & (curves.width == 16) & (curves.steps == 60)]
    assert chosen.step.max() == 60
    assert set(distill.longest(table).steps) == {60}
    assert distill.ladder(p).key == record.key


def test_a_ladder_takes_further_budgets(teacher):
    p = settings(widths=[16])
    table = distill.ladder(p, [distill.Job("random", 16, 0, 15)])["ladder"].set_index("steps")
    assert list(table.index) == [15, 30, 60]
    assert table.fall_per_doubling[30] == pytest.approx(1 - table.floor[30] / table.floor[15])
    assert np.isnan(table.fall_per_doubling[15])


def test_jobs_of_one_width_and_of_the_whole_ladder():
    p = settings(seeds=[0, 1])
    assert len(distill.jobs(p)) == 8
    assert distill.jobs(p)[0] == distill.Job("random", 32, 0, 60)
    assert {job.width for job in distill.jobs(settings(width=16))} == {16}


def test_keys_depend_on_what_matters_alone():
    job = distill.Job("random", 16, 0, 30)
    keys = {store.key_of(*distill.key(settings(**change), job)) for change in ({}, {"widths": [32]}, {"seeds": [0, 1]})}
    assert len(keys) == 1
    for change in ({"learning_rate": 0.02}, {"temperature": 1.0}, {"batch": 5}, {"evaluations": 5}):
        assert store.key_of(*distill.key(settings(**change), job)) not in keys


def test_the_ladder_s_own_objective_is_not_part_of_the_key():
    job = distill.Job("random", 16, 0, 30)
    assert "objective" not in distill.key(settings(), job)[1]
    assert distill.key(settings(objective="reverse"), job)[1]["objective"] == "reverse"


def test_learning_rates():
    p = settings(rate_exponent=0.5, cut_rate=0.25)
    assert distill.rate(p, distill.Job("random", 8, 0, 30)) == pytest.approx(0.02)
    assert distill.rate(p, distill.Job("width_alone", 32, 0, 30)) == pytest.approx(0.0025)
    assert distill.rate(scales.parameters("04_distill", "pythia-410m"), distill.Job("random", 128, 0, 9)) == 3e-4


def test_command_line(caplog):
    caplog.set_level("INFO")
    options = ["--scale", "tiny", "--ladder", "random", "--width", "16", "--seed", "3"]
    changes = [f"--set={name}={value}" for name, value in SETTINGS.items() if name not in ("ladders", "seeds")]
    distill.main(options + changes)
    assert store.find(*distill.key(settings(seeds=[3]), distill.Job("random", 16, 3, 60)))
    with pytest.raises(SystemExit) as error:
        distill.main(["--scale", "tiny", "--width", "33"])
    assert error.value.code == 2


# ---------------------------------------------------------------------------------------------------------------- fits


def table_of(floors: dict[int, float], ladder="random", d_teacher=64) -> pd.DataFrame:
    rows = [dict(ladder=ladder, width=w, seed=0, steps=60, floor=y, d_teacher=d_teacher) for w, y in floors.items()]
    short = [row | {"steps": 30, "floor": row["floor"] + 1} for row in rows]  # must not be used
    return pd.DataFrame(rows + short)


def predicted_of(values: dict[int, float], predictor="eq2", lam=1.0) -> pd.DataFrame:
    rows = [dict(predictor=predictor, lam=lam, chosen=True, width=w, value=x) for w, x in values.items()]
    return pd.DataFrame(rows)


def test_the_order_is_told_at_every_number_of_steps():
    floors = {30: (0.5, 0.6, 0.4), 60: (0.3, 0.2, 0.1)}
    rows = [
        ("random", width, steps, y) for steps, ys in floors.items() for width, y in zip((8, 16, 32), ys, strict=True)
    ]
    said = distill.about_order(pd.DataFrame(rows, columns=["ladder", "width", "steps", "floor"]))
    assert said == (
        "**Random weights**: after 30 steps not each wider student ends lower, after 60 steps each wider student ends "
        "lower."
    )


X = {8: 0.08, 16: 0.05, 32: 0.02, 48: 0.008, 64: 0.0}


def test_fits_find_an_affine_law():
    floors = {w: 9 * x + 0.6 for w, x in X.items()}
    found = distill.fits(table_of(floors), predicted_of(X)).set_index("fit")
    assert found.r2["affine"] == pytest.approx(1)
    assert found.slope["affine"] == pytest.approx(9)
    assert found.baseline["affine"] == pytest.approx(0.6)
    assert found.slope["fixed_B"] == pytest.approx(9)
    assert found.baseline["fixed_B"] == pytest.approx(0.6)
    assert found.r2["line"] < 0.5
    assert found.points["affine"] == 5
    assert found.predictor["power"] == "width"


def test_fits_leave_out_what_cannot_be_fitted():
    floors = {w: 9 * x + 0.6 for w, x in X.items() if w < 64}
    predicted = pd.concat([predicted_of(X), predicted_of(dict.fromkeys(X, 0.0), lam=8.0)])
    found = distill.fits(table_of(floors), predicted)
    assert "fixed_B" not in set(found.fit)  # no student is as wide as its teacher
    assert 8.0 not in set(found.lam)
    assert distill.fits(table_of({64: 0.1}), predicted_of({64: 0.0})).empty


def test_predictors(teacher):
    p = settings(ladders=["width_alone"])
    found = distill.predictors(p, [4, 16, 32]).set_index(["predictor", "width"]).value
    assert found["log_width", 16] == pytest.approx(np.log(2))
    assert found["inverse_width", 16] == 1
    assert found["pca_tail", 32] == pytest.approx(0, abs=1e-6)
    assert 1 > found["pca_tail", 4] > found["pca_tail", 16] > 0.01
    assert "eq2" not in found.index.get_level_values(0)  # 03 has not run


def test_predictors_take_the_layer_that_03_chose(teacher):
    origin = store.keep("sae/tiny/x", {}, {}, 0)
    layers = pd.DataFrame({"layer": [1, 2, 2], "lam": [1.0, 1.0, 2.0], "default": [False, True, False]})
    floors = pd.DataFrame({"layer": [1, 2, 2], "lam": [1.0, 1.0, 2.0], "width": 16, "eq2": [0.1, 0.2, 0.3]})
    store.save_results("tiny", "sae_layers", layers, origin)
    store.save_results("tiny", "sae_floors", floors, origin)
    found = distill.predictors(settings(), [16, 32])
    eq2 = found[found.predictor == "eq2"].set_index("lam")
    assert eq2.value.to_dict() == {1.0: 0.2, 2.0: 0.3}
    assert eq2.chosen.to_dict() == {1.0: True, 2.0: False}


def test_architectures_are_table_8(teacher):
    table = distill.architectures(settings(ladders=["random", "width_alone"])).set_index(["ladder", "width"])
    assert table.ffn_width["random", 16] == 32
    assert table.heads["random", 16] == 1
    assert (table.ffn_width["width_alone", 16], table.heads["width_alone", 16]) == (64, 2)
    assert table.ratio["random", 32] == pytest.approx(1)


# ------------------------------------------------------------------------------------------------- what is said of it


def small_ladder(eq2=True):
    table = pd.concat([table_of({w: 9 * x + 0.6 for w, x in X.items()}), table_of({64: 0.0, 8: 0.3}, "width_alone")])
    table = table.assign(fall_per_doubling=0.2, verdict="upper bound", tail_slope=0.01)
    predicted = predicted_of({w: np.log(64 / w) for w in X}, "log_width", np.nan).assign(chosen=False)
    return table, pd.concat([predicted_of(X), predicted]) if eq2 else predicted


def test_the_decomposition_adds_up():
    table, predicted = small_ladder()
    points = distill.against(table, predicted, "random")
    assert list(points.width) == sorted(X)
    assert points.relative_width.iloc[-1] == 1
    fitted = distill.fits(table, predicted)
    parts = distill.decomposition(points, fitted[(fitted.ladder == "random") & fitted.chosen])
    np.testing.assert_allclose(parts["sum"], parts.observed, rtol=1e-6)
    np.testing.assert_allclose(parts.geometric, 9 * parts.width.map(X), rtol=1e-6, atol=1e-12)


def test_without_03_there_is_nothing_to_decompose():
    table, predicted = small_ladder(eq2=False)
    points = distill.against(table, predicted, "random")
    assert points.empty
    fitted = distill.fits(table, predicted)
    assert distill.decomposition(points, fitted[fitted.chosen]).empty
    assert "run 03_sae first" in distill.compared(fitted)


def test_what_is_said_follows_from_the_numbers():
    table, predicted = small_ladder()
    said = distill.compared(distill.fits(table, predicted))
    assert "Eq. 2 at the λ fixed beforehand has 1.00 and beats 1 of 1 rivals" in said
    last = distill.longest(table)
    numbers = pd.Series({"longer_fall_percent": 2.8, "longer_steps": 40_000, "distill_steps": 30_000})
    said = distill.about_floors(last, numbers)
    assert said.startswith("**0 of 7** students stand at a floor")
    assert "20% to 20%" in said
    assert "at that pace a doubling takes off 7%" in said
    said = distill.about_baseline(table)
    assert "**Random weights**: at full width 0.6 nats remain" in said
    assert "**Width alone**: at full width nothing remains; B = 0." in said


def test_storing_states_in_16_bits_costs_what_the_rounded_logits_say(teacher):
    text = distill.read(teacher, settings(), "held_out")
    found = distill.storage_cost(teacher, text, 2.0)
    states = models.final_hidden(teacher.model, torch.from_numpy(text.ids.astype(np.int64)))
    matrix = models.unembedding(teacher.model).double() / 2.0
    exact, rounded = (
        torch.log_softmax(part.double() @ matrix.T, -1).flatten(0, 1) for part in (states, states.bfloat16())
    )
    expected = torch.nn.functional.kl_div(rounded, exact, reduction="batchmean", log_target=True)
    assert found["bfloat16"] == pytest.approx(float(expected), rel=0.05) and found["float16"] < found["bfloat16"]


def test_top_share_is_the_mass_of_the_likeliest(teacher):
    text = distill.read(teacher, settings(), "held_out")
    shares = distill.top_share(teacher, text, (1, 5, VOCABULARY), (1.0, 2.0))
    logits = teacher.model(torch.from_numpy(text.ids.astype(np.int64))).logits
    expected = torch.softmax(logits / 2, -1).topk(5).values.sum(-1).mean()
    assert shares.loc[5, "T = 2"] == pytest.approx(float(expected), rel=1e-5)
    assert shares.loc[VOCABULARY, "T = 1"] == pytest.approx(1, rel=1e-5)


def test_figures_take_what_the_ladder_gives(tmp_path):
    table, predicted = small_ladder(eq2=False)
    curves = pd.concat(
        pd.DataFrame({"step": steps, "train": 2.0, "held_out": row.floor + 1 / (1 + steps)}).assign(
            ladder=row.ladder, width=row.width, seed=0, steps=row.steps
        )
        for row in table.itertuples()
        for steps in [np.arange(0, row.steps + 1, 10)]
    )
    fitted = distill.fits(table, predicted)
    points = distill.against(table, predicted, "random")  # empty: 03 has not run
    paper = pd.DataFrame(
        {"width": [8, 16], "relative_width": [0.5, 1.0], "predicted": [0.1, 0.0], "observed": [1.0, 0.5]}
    )
    drawn = [
        figures.fig06_distillation(curves, table),
        figures.fig07_decomposition(points, fitted[fitted.chosen], paper),
        figures.fig16_training(curves),
        figures.fig17_normalised(points, paper),
        figures.fig18_summary(curves, table, points, paper, None),
        figures.distill_doubling(table),
        figures.distill_predictors(fitted),
        figures.distill_student(curves[curves.width == 8], table[table.width == 8]),
    ]
    for figure in drawn:
        figure.savefig(tmp_path / "figure.png", dpi=30)
        assert all(axis.get_xlabel() or axis.get_ylabel() for axis in figure.axes)
