"""``make paper`` goes on where it was killed, and ``docs/faults.md`` names a test of every fault that it lists."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minwidth import store

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
    shutil.copytree(store.ROOT / "workflow", tmp_path / "workflow")
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
    refused = subprocess.run(["make", "paper"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert refused.returncode and "Another make paper is running" in refused.stderr
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (tmp_path / "go").touch()
    again = subprocess.run(["make", "paper"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "going on from there" in again.stdout
    assert (tmp_path / "log").read_text().split() == ["x", "y", "y"], "what was finished is not done again"
    assert (tmp_path / "b").read_text() == "whole\n"


def test_every_fault_of_the_table_has_its_test():
    table = (store.ROOT / "docs" / "faults.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", table)
    assert len(named) >= 25
    for file, name in named:
        tree = ast.parse((store.ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
