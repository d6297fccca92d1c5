"""The machine fails, or the person in front of it errs: one sentence, nothing lost, nothing half-written.

``docs/faults.md`` lists every fault with what happens and the test that shows it; the last test here reads it.
"""

import ast
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from papermill.cli import papermill as command

from minwidth import corpus, errors, notebooks, residual, scales, store, training
from tests.test_corpus import Words

WHAT = "toy/tiny/sweep"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    for module in (store, corpus, residual):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(store, "RESULTS", tmp_path / "results")
    return tmp_path


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


# --------------------------------------------------------------------------------------------- a full disk, no rights


def write_record():
    store.find_or_compute(WHAT, {}, lambda: {"x": np.zeros(10**6)})


def write_table():
    record = store.Record("toy", {}, {}, {})
    store.save_results("tiny", "sweep", pd.DataFrame({"x": np.arange(10**6)}), record)


def write_checkpoint():
    import torch

    training.save_state(store.RUNS / "a.work" / "state", {"x": torch.zeros(10**6)}, {"step": 1})


def write_tokens():
    source = [corpus.Passage(f"d{n}", "x", "1 " * 500) for n in range(500)]
    corpus.token_blocks("toy", Words(), source, 5, "train")


def write_states():
    target = store.RUNS / "states" / "x.bin"
    with store.alone(target):
        residual._File(target, "float32", (1000, 1000, 1))


EVERY_WRITE = [write_record, write_table, write_checkpoint, write_tokens, write_states]


@pytest.mark.parametrize("write", EVERY_WRITE)
def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing_half_written(store, write):
    said = in_child(write, RLIMIT_FSIZE=100_000)
    assert re.fullmatch(r"StorageError: \S+ cannot be written \(File too large\): make room there, or .* lost\.", said)
    assert files(store) == {}
    assert in_child(write) == "done"


def test_a_full_disk_leaves_what_was_there(store):
    store.find_or_compute(WHAT, {}, lambda: {"x": 1})
    store.save_results("tiny", "sweep", pd.DataFrame({"x": [1]}), store.Record("toy", {}, {}, {}))
    before = files(store)
    assert "StorageError" in in_child(write_table, RLIMIT_FSIZE=100_000)
    assert "StorageError" in in_child(lambda: store.keep(WHAT, {}, {"x": np.zeros(10**6)}, 0), RLIMIT_FSIZE=100_000)
    assert files(store) == before


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


@pytest.mark.parametrize("write", EVERY_WRITE)
def test_a_read_only_folder_is_named_with_the_way_out(store, write):
    said = read_only(store, write)
    assert re.match(r"StorageError: \S+ cannot be written \(Permission denied\): make it writable, or", said), said
    assert "MINWIDTH_RUNS" in said and "MINWIDTH_OUT" in said
    assert files(store) == {}


def test_what_is_found_needs_no_right_to_write(store):
    write_tokens()
    write_record()
    assert read_only(store, write_tokens, write_record) == "done"


# --------------------------------------------------------------------------------------------------- kill -9, damage


@pytest.mark.parametrize("moment", ["tokenizing", "writing", "sealing", "renaming"])
def test_kill_while_text_is_tokenized_leaves_no_blocks_and_the_next_run_writes_them(store, monkeypatch, moment):
    def dies(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    owner, name = {
        "tokenizing": (Words, "__call__"),
        "writing": (Path, "write_bytes"),
        "sealing": (Path, "write_text"),
        "renaming": (Path, "rename"),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        assert in_child(write_tokens) == "SIGKILL"
    assert not [path for path in store.glob("runs/tokens/*") if path.is_dir() and not path.name.startswith(".")]
    write_tokens()
    assert len(list(store.glob("runs/tokens/toy-*-5/*"))) == 3


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "swap", "seal"])
def test_damaged_token_blocks_are_named_and_written_again(store, caplog, damage):
    write_tokens()
    (folder,) = store.glob("runs/tokens/toy-*")
    before = files(folder)
    train, other = folder / "train.npy", folder / "held_out.npy"
    content = bytearray(train.read_bytes())
    content[-1] ^= 1
    if damage == "seal":
        (folder / store.SEAL).write_text("[]")
    elif damage == "remove":
        train.unlink()
    else:
        train.write_bytes({"flip": content, "truncate": content[:-9], "swap": other.read_bytes()}[damage])
    write_tokens()
    assert files(folder) == before
    assert caplog.text.count("is damaged") == 1 and str(folder) in caplog.text


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "swap"])
def test_a_damaged_checkpoint_is_named_and_its_run_starts_again(store, caplog, damage):
    from tests.test_training import run

    whole = run()
    file, another = store / "one" / "state", store / "two" / "state"
    run(file)
    run(another, seed=1)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flip": content, "truncate": content[:-9], "empty": b"", "swap": another.read_bytes()}[damage])
    weights, history, calls = run(file)
    assert calls == whole[2], "it starts again"
    assert (weights == whole[0]).all() and history == whole[1]
    assert re.search(r"checkpoint \S+/one/state is damaged \(.*\); its run starts again", caplog.text)


# ------------------------------------------------------------------------------------------------------ two at once


def test_two_processes_that_want_the_same_record_compute_it_once(store):
    def compute():
        with (store / "computed").open("a") as file:
            file.write("x")
        time.sleep(0.3)
        return {"x": 1}

    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=store.find_or_compute, args=(WHAT, {}, compute)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert (store / "computed").read_text() == "x"
    assert store.find(WHAT, {})["x"] == 1
    assert list((store / "runs" / "toy" / "tiny").iterdir()) == [store.folder_of(WHAT, {})], "no lock is left"


def test_a_killed_process_lets_the_next_one_in(store):
    assert in_child(lambda: store.find_or_compute(WHAT, {}, lambda: os.kill(os.getpid(), signal.SIGKILL))) == "SIGKILL"
    assert store.find_or_compute(WHAT, {}, lambda: {"x": 1})["x"] == 1


def test_processes_that_replace_one_folder_at_once_leave_it_whole(store):
    def write(number):
        for _ in range(20):
            with store.replace_folder(store / "folder") as temporary:
                for name in ("a", "b"):
                    (temporary / name).write_text(str(number))

    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=write, args=(number,)) for number in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert (store / "folder" / "a").read_text() == (store / "folder" / "b").read_text()
    assert [path.name for path in store.glob(".*")] + [path.name for path in store.iterdir()] == ["folder"]


# ------------------------------------------------------------------------------------------------ hostile parameters

LONG = "x" * 10_000
HOSTILE = [
    ("01_theory", {"alpha": math.nan}, "alpha = nan"),
    ("01_theory", {"alpha": -math.inf}, "alpha = -inf"),
    ("01_theory", {"alpha": 10**400}, "alpha = 1000000"),
    ("01_theory", {"alpha": 10**5000}, "alpha = a number of thousands of digits"),
    ("01_theory", {"alpha": "0,992"}, "alpha = '0,992'"),
    ("01_theory", {"features": 1e3}, "features = 1000.0"),
    ("01_theory", {"features": 10**7}, "features = 10000000"),
    ("01_theory", {"width": {"a": 1}}, "width = {'a': 1}"),
    ("01_theory", {"width": -1}, "width = -1"),
    ("01_theory", {"zipf_exponent": 1e308}, "zipf_exponent = 1e+308"),
    ("01_theory", {"scale": "../../etc"}, "scale = '../../etc'"),
    ("01_theory", {"scale": LONG}, "scale = 'xxxxx"),
    ("01_theory", {"__import__('os').system('x')": 1}, "has no parameter"),
    ("01_theory", {"a b": 1}, "has no parameter 'a b'"),
    ("02_toy_sweep", {"features": "[10, 20]"}, "features = '[10, 20]'"),
    ("02_toy_sweep", {"features": [10, 10]}, "features names 10 twice"),
    ("02_toy_sweep", {"features": [2]}, "exceed features = 2"),
    ("02_toy_sweep", {"features": [10**9]}, "features.0 = 1000000000"),
    ("02_toy_sweep", {"sparsities": [0.9, None]}, "sparsities.1 = None"),
    ("02_toy_sweep", {"sparsities": [math.nan]}, "sparsities.0 = nan"),
    ("02_toy_sweep", {"seeds": 0}, "seeds = 0"),
    ("02_toy_sweep", {"steps": 1e99}, "steps = 1e+99"),
    ("02_toy_sweep", {"seed": -1}, "seed = -1"),
    ("03_sae", {"teacher": "/does/not/exist"}, "no teacher '/does/not/exist'"),
    ("03_sae", {"teacher": "~nobody-here/model"}, "no teacher '~nobody-here/model'"),
    ("03_sae", {"teacher": "../" * 2000}, "no teacher '../../"),
    ("03_sae", {"teacher": "a\x00b"}, r"no teacher 'a\x00b'"),
    ("03_sae", {"teacher": "line\nbreak"}, r"no teacher 'line\nbreak'"),
    ("03_sae", {"teacher": "数/据"}, "no teacher '数/据'"),
    ("03_sae", {"teacher": "owner/name"}, "needs a pinned revision"),
    ("03_sae", {"teacher": "owner/name@main"}, "needs a pinned revision and has 'main'"),
    ("03_sae", {"teacher": 7}, "teacher = 7"),
    ("03_sae", {"text": "/etc"}, "no text '/etc'"),
    ("03_sae", {"text": "https://example.org/x.zst"}, "no text 'https:"),
    ("03_sae", {"kind": "L1 "}, "kind = 'L1 '"),
    ("03_sae", {"kind": "topk", "topk": 10**6}, "topk = 1000000 exceeds the 2048 latents"),
    ("03_sae", {"lam": 0}, "lam = 0"),
    ("03_sae", {"lams": [1.0, math.inf]}, "lams.1 = inf"),
    ("03_sae", {"tokens": 10**30}, "tokens = 1000000"),
    ("03_sae", {"steps": 10**30}, "steps = 1000000"),
    ("03_sae", {"percent": 101}, "percent = 101"),
    ("03_sae", {"doubling": "yes"}, "doubling = 'yes'"),
    ("04_distill", {"width": 2**70}, "wider than every teacher"),
    ("04_distill", {"width": "５１２"}, "width = '５１２'"),
    ("04_distill", {"widths": list(range(16, 10_000))}, "widths"),
    ("04_distill", {"ladders": ["random", "random"]}, "ladders names 'random' twice"),
    ("04_distill", {"text": "a\x00b", "scale": "tiny"}, r"no text 'a\x00b'"),
    ("04_distill", {"objective": "../forward"}, "objective = '../forward'"),
    ("04_distill", {"temperature": math.nan}, "temperature = nan"),
    ("04_distill", {"batch": 10**12}, "batch = 1000000000000"),
    ("04_distill", {"seeds": [0, 0]}, "seeds names 0 twice"),
    ("04_distill", {"seeds": 0}, "seeds = 0"),
    ("05_probe", {"concepts": ["question", "'; DROP TABLE"]}, "concepts.1"),
    ("05_probe", {"concepts": []}, "concepts = []"),
    ("05_probe", {"passages": 10**9}, "passages = 1000000000"),
    ("05_probe", {"tokens": 2048}, "give at most 127"),
    ("05_probe", {"widths": [16, 16]}, "widths names 16 twice"),
    ("05_probe", {"train_students": 1}, "train_students = 1"),
    ("05_probe", {"layer": 10**400}, "layer = 1000000"),
    ("06_ledger", {"scale": "TINY"}, "scale = 'TINY'"),
    ("06_ledger", {"scale": 10**5000}, "scale = a number of thousands of digits"),
    ("06_ledger", {"width": 64}, "has no parameter 'width'"),
    ("06_ledger", {"\u202etiny": 1}, "has no parameter"),
]


def one_sentence(text: str) -> bool:
    return text.endswith(".") and "\n" not in text and len(text) < 700 and not re.search(r"[.!?] [A-Z]", text)


@pytest.mark.parametrize(("notebook", "given", "says"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_parameters_are_answered_with_one_sentence(notebook, given, says):
    with pytest.raises(errors.ParameterError) as refused:
        scales.check_names(notebook, given)
        scales.validate(notebook, given)
    assert says in str(refused.value)
    assert one_sentence(str(refused.value)), refused.value


@pytest.mark.parametrize(
    ("notebook", "options", "says"),
    [
        ("01_theory", ["-y", "alpha: .nan"], "01_theory: alpha = nan"),
        ("01_theory", ["-y", "alpha: .inf"], "01_theory: alpha = inf"),
        ("01_theory", ["-p", "width", "9" * 400], "01_theory: width = 9999"),
        ("01_theory", ["-p", "x=1; y", "1"], "has no parameter 'x=1; y'"),
        ("02_toy_sweep", ["-y", "features: [[10]]"], "features.0 = [10]"),
        ("03_sae", ["-p", "teacher", "../../../../nowhere"], "there is no teacher '../../../../nowhere'"),
        ("03_sae", ["-p", "teacher", "owner/naïve"], "there is no teacher 'owner/naïve'"),
        ("04_distill", ["-p", "width", "1_000_000"], "wider than every teacher"),
        ("04_distill", ["-y", "widths: [32, 32]"], "widths names 32 twice"),
        ("05_probe", ["-r", "passages", "500"], "passages = '500'"),
        ("06_ledger", ["-p", "scale", "\u0000"], r"scale = '\x00' is not known"),
    ],
)
def test_papermill_refuses_them_before_anything_runs_or_is_written(monkeypatch, tmp_path, notebook, options, says):
    monkeypatch.chdir(store.ROOT / "notebooks")
    monkeypatch.setattr(notebooks, "RUNS", tmp_path / "runs")
    line = notebooks.with_output_path([f"{notebook}.ipynb", *options])
    result = CliRunner().invoke(command, line)
    said = result.output.strip().splitlines()[-1]
    assert result.exit_code == 1
    assert says in said and one_sentence(said)
    assert "Traceback" not in result.output
    assert files(tmp_path) == {}


def test_papermill_tells_what_the_cell_tells_and_none_of_its_own_lines(tmp_path):
    """A fault that is only met while the notebook runs."""
    shutil.copytree(store.ROOT / "notebooks", tmp_path / "notebooks")
    stub = (
        (store.ROOT / "notebooks" / "06_ledger.ipynb")
        .read_text()
        .replace("from minwidth import scales\\n", "from minwidth import errors\\n", 1)
    )
    stub = stub.replace('p = scales.validate(\\"06_ledger\\", globals())', "raise errors.LostError('It is gone.')", 1)
    (tmp_path / "notebooks" / "06_ledger.ipynb").write_text(stub)
    result = subprocess.run(
        [Path(sys.executable).with_name("papermill"), "06_ledger.ipynb", "--no-progress-bar", "--log-level", "ERROR"],
        cwd=tmp_path / "notebooks",
        env=os.environ | {"MINWIDTH_ROOT": str(tmp_path), "MINWIDTH_RUNS": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.strip().endswith("LostError: It is gone.")
    assert "papermill/" not in result.stderr and "Traceback" not in result.stderr


# ---------------------------------------------------------------------------------------- from anywhere, interrupted


def test_a_notebook_runs_from_any_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(store.RESULTS, tmp_path / "out" / "data" / "results")
    places = {"MINWIDTH_RUNS": str(tmp_path / "runs"), "MINWIDTH_OUT": str(tmp_path / "out")}
    line = [Path(sys.executable).with_name("papermill"), store.ROOT / "notebooks" / "06_ledger.ipynb"]
    subprocess.run(
        [*line, "--no-progress-bar", "--log-level", "ERROR"],
        cwd=tmp_path / "elsewhere", env=os.environ | places, check=True,
    )  # fmt: skip
    assert files(tmp_path / "elsewhere") == {}
    assert (tmp_path / "runs" / "06_ledger.ipynb").exists()
    assert (tmp_path / "out" / "figures" / "tiny" / "ledger_verdicts.png").exists()


SNAKEFILE = """
rule all:
    input: "a", "b"
rule a:
    output: "a"
    shell: "echo x >> log; touch a"
rule b:
    input: "a"
    output: "b"
    shell: "echo y >> log; echo half > b; test -e go && echo whole > b || sleep 60"
"""


@pytest.mark.slow
def test_make_paper_goes_on_where_it_was_killed(tmp_path):
    """The Makefile's own recipe, over two small jobs, with everything killed in the second."""
    shutil.copy(store.ROOT / "Makefile", tmp_path)
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "snakemake"):
        (binaries / name).write_text(f'#!/bin/sh\nexec {Path(sys.executable).with_name(name)} "$@"\n')
        (binaries / name).chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    env = os.environ | {"MINWIDTH_OUT": str(tmp_path)}
    first = subprocess.Popen(["make", "paper"], cwd=tmp_path, env=env, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "b").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (tmp_path / "go").touch()
    again = subprocess.run(["make", "paper"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "going on from there" in again.stdout
    assert (tmp_path / "log").read_text().split() == ["x", "y", "y"], "what was finished is not done again"
    assert (tmp_path / "b").read_text() == "whole\n"


# ------------------------------------------------------------------------------------------------------- the promise


def test_every_fault_of_the_table_has_its_test():
    table = (store.ROOT / "docs" / "faults.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", table)
    assert len(named) >= 25
    for file, name in named:
        tree = ast.parse((store.ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
