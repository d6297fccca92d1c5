"""The cell for Colab: the same in every notebook, nothing elsewhere, and there the study comes from git."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

from minwidth import colab
from minwidth.scales import NOTEBOOKS
from minwidth.store import ROOT


def cell(name: str) -> str:
    cells = jupytext.read(ROOT / "notebooks" / f"{name}.py").cells
    (found,) = (cell.source for cell in cells if "colab" in cell.metadata.get("tags", []))
    return found


def python(source: str, folder: Path) -> str:
    """What ``source`` prints as a program of its own in an IPython that knows of no minwidth."""
    program = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell\n"
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]\n"
        f"InteractiveShell.instance().run_cell({source!r}).raise_error()"
    )
    line = [sys.executable, "-I", "-c", program]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MINWIDTH_")}
    return subprocess.run(line, cwd=folder, env=env, check=True, capture_output=True, text=True).stdout


def test_it_is_the_same_in_every_notebook_and_does_nothing_elsewhere(tmp_path: Path):
    (source,) = {cell(name) for name in NOTEBOOKS}
    assert python(source, tmp_path) == "" and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git clone needs a repository, and this is a copy without one")
def test_on_colab_it_fetches_the_study_and_what_is_missing(tmp_path: Path):
    there = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
    source = cell("01_theory").replace('repository = ""', f"repository = '{ROOT}'")
    said = python(f"{there}{source}\nfrom minwidth import store; print(store.ROOT)", tmp_path)
    assert said.split()[-1] == str(tmp_path / "minwidth")  # git says that a folder's history is copied whole


def test_only_what_is_not_there_is_installed(tmp_path: Path):
    assert colab.missing() == []
    text = (ROOT / "pyproject.toml").read_text()
    project = tmp_path / "pyproject.toml"
    project.write_text(re.sub(r'"numpy==\S+"', '"numpy==1.0.0", "not-there==1.0"', text))
    assert colab.missing(project) == ["not-there==1.0"]
