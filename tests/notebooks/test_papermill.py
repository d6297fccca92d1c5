"""papermill as people type it: no output path, a wrong parameter, a committed notebook in the way; students' copies."""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner, Result
from jupytext import read as jupytext_read
from jupytext.cli import jupytext
from papermill.cli import papermill as command

from minwidth import notebooks, scales, store
from minwidth.exercises import check

SOURCE = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
scale = None  # the smallest that will do
width = None  # of the student

# %%
from minwidth import scales

p = scales.validate("01_theory", globals())

# %%
print("width", p.width)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with one small paired notebook."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(store.ROOT / "notebooks" / "jupytext.toml", folder)
    (folder / "01_theory.py").write_text(SOURCE)
    sync(folder / "01_theory.py")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", folder)
    monkeypatch.setattr(notebooks, "RUNS", tmp_path / "runs")
    return tmp_path


def sync(path: Path) -> None:
    jupytext(["--quiet", "--sync", str(path)])


def papermill(*arguments: str) -> Result:
    """Run papermill's command in this process, as the entry point would have it."""
    return CliRunner().invoke(command, list(arguments))


def written(project: Path) -> list[str]:
    """Files beside the pair itself."""
    pair = {"notebooks/jupytext.toml", "notebooks/01_theory.py", "notebooks/01_theory.ipynb"}
    return sorted({str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()} - pair)


def test_without_an_output_path_the_copy_goes_to_runs_and_is_no_pair(project: Path):
    committed, name = Path("01_theory.ipynb").read_bytes(), "runs/01_theory__width=512.ipynb"
    # stdin is no terminal: papermill alone would take the one path as its output
    assert papermill("01_theory.ipynb", "-p", "width", "512", "--no-progress-bar").exit_code == 0
    copy = nbformat.read(project / name, as_version=4)
    assert copy.cells[-1].outputs[0].text == "width 512\n"
    assert "jupytext" not in copy.metadata and copy.metadata.papermill.output_path == str(project / name)
    sync(project / name)
    assert Path("01_theory.ipynb").read_bytes() == committed and written(project) == [name]


def test_on_a_terminal_one_line_tells_what_a_cell_does(project: Path):
    """papermill as a program of its own."""
    work = "from tqdm.auto import tqdm\n\nfor _ in tqdm(range(20), desc='floors'):\n    import time; time.sleep(0.1)\n"
    (project / "notebooks" / "01_theory.py").write_text(f"{SOURCE}{work}")
    sync(project / "notebooks" / "01_theory.py")
    terminal, side = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MINWIDTH_", "TQDM_"))}
    line = [Path(sys.executable).with_name("papermill"), "01_theory.ipynb", "-p", "width", "512"]
    subprocess.run(line, env=kept | {"MINWIDTH_ROOT": str(project)}, check=True, stdin=side, stdout=side, stderr=side)
    os.close(side)
    said = b""
    with suppress(OSError):  # a terminal ends so
        while part := os.read(terminal, 2**16):
            said += part
    os.close(terminal)
    lines = said.decode().replace("\r", "\n").replace("[IPKernelApp]", "\n").splitlines()  # a starting kernel may warn
    lines = [line for line in lines if "cells |" in line]
    assert "width 512" in lines[0] and all(len(line.strip()) <= 100 for line in lines)
    assert sum(bool(re.search(r"3/4 cells .* \[\d+:\d+, floors: +\d+% \d+/20", line)) for line in lines) >= 2
    assert written(project) == ["runs/01_theory__width=512.ipynb"]


def test_a_page_has_neither_code_nor_bars_nor_exercises(tmp_path: Path):
    bar = nbformat.v4.new_output("display_data", {notebooks.WIDGET: {"model_id": "0"}, "text/plain": "floors: 10%"})
    cell = nbformat.v4.new_code_cell("secret", outputs=[bar, nbformat.v4.new_output("stream", text="the answer")])
    cells = [nbformat.v4.new_markdown_cell("# How wide"), cell, nbformat.v4.new_markdown_cell("## Exercises")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a b.ipynb")
    text = notebooks.page(tmp_path / "a b.ipynb").read_text()
    assert "How wide" in text and "the answer" in text and (tmp_path / "a b.html").exists()
    assert not any(word in text for word in ("secret", "floors: 10%", "Exercises"))


@pytest.mark.parametrize(
    ("options", "said"),
    [(["-p", "width", "wide"], "width = "), (["-r", "width", "3"], "width = "), (["-y", "width: []"], "width = "),
     (["-f", "../values.yaml"], "width = "), (["-p", "wdith", "3"], "no parameter 'wdith'; it takes scale, "),
     (["../out.ipynb", "-p", "wdith", "3"], "no parameter 'wdith'; it takes scale, ")],
)  # fmt: skip
def test_a_wrong_value_is_refused_whichever_option_brings_it(project: Path, options: list[str], said: str):
    (project / "values.yaml").write_text("width: wide\n")
    result = papermill("01_theory.ipynb", *options)
    assert result.exit_code == 1
    assert re.search(rf"\n01_theory(: | has ){said}", result.output) and "Traceback" not in result.output
    assert written(project) == ["values.yaml"]


@pytest.mark.parametrize("arguments", [["01_theory.ipynb", "./01_theory.ipynb"], ["-", "01_theory.ipynb"]])
def test_a_notebook_of_the_project_is_never_overwritten(project: Path, arguments: list[str]):
    committed = Path("01_theory.ipynb").read_bytes()
    result = papermill(*arguments)
    assert result.exit_code == 1 and "01_theory.ipynb is a notebook of this project" in result.output
    assert Path("01_theory.ipynb").read_bytes() == committed and written(project) == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("01_theory.ipynb", "01_theory"),
        ("-p width 512 ./01_theory.ipynb", "01_theory__width=512"),
        ("01_theory.ipynb -p width 512 -p seed 1 --log-output", "01_theory__width=512__seed=1"),
        ("--cwd /tmp 01_theory.ipynb --parameters width 512 -k python3", "01_theory__width=512"),
        ("-pwidth 512 --autosave-cell-every=5 01_theory.ipynb", "01_theory__width=512"),
        ("01_theory.ipynb -f widths.yaml", "01_theory__widths.yaml"),
        ("01_theory.ipynb -p teacher ../../a{b}", "01_theory__teacher=..-..-a-b--e23430"),
    ],
)
def test_the_copys_name_tells_the_parameters(line: str, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notebooks, "_is_ours", lambda path: path.endswith("01_theory.ipynb"))
    output = command.make_context("papermill", line.split()).params["output_path"]
    assert output == f"{notebooks.SCHEME}{store.RUNS}/{name}.ipynb"


@pytest.mark.parametrize(
    ("line", "output"),
    [("a.ipynb", ""), ("a.ipynb b.ipynb -p width 3", "b.ipynb"), ("01_theory.ipynb -", "-"),
     ("01_theory.ipynb s3://x/y.ipynb", "s3://x/y.ipynb"), ("--help-notebook 01_theory.ipynb", "")],
)  # fmt: skip
def test_other_command_lines_are_left_alone(project: Path, line: str, output: str):
    assert command.make_context("papermill", line.split()).params["output_path"] == output


def test_papermill_tells_what_the_cell_tells_and_none_of_its_own_lines(project: Path, monkeypatch: pytest.MonkeyPatch):
    """A fault that is only met while the notebook runs, of a parameter that papermill has injected unchecked."""
    monkeypatch.setattr(scales, "parameters", lambda *_, **__: None)
    result = papermill("01_theory.ipynb", "--no-progress-bar", "--log-level", "ERROR", "-p", "wdith", "3")
    assert result.exit_code == 1
    *_, last = result.output.strip().splitlines()
    assert last.startswith("ParameterError: 01_theory has no parameter 'wdith'; it takes scale, ")
    assert "papermill/" not in result.output and "Traceback" not in result.output


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make student`` leaves."""
    folder = tmp_path_factory.mktemp("student")
    shutil.copytree(store.ROOT / "notebooks", folder / "notebooks")
    options = ["--file", store.ROOT / "Makefile", "--old-file=.venv/.installed", f"BIN={Path(sys.executable).parent}"]
    subprocess.run(["make", *options, "student"], cwd=folder, check=True)
    return folder / "runs" / "student"


@pytest.mark.parametrize("name", scales.NOTEBOOKS)
def test_a_student_gets_all_but_the_solutions(name: str, students: Path):
    copy = nbformat.read(students / f"{name}.ipynb", as_version=4)
    whole = jupytext_read(store.ROOT / "notebooks" / f"{name}.py")
    nbformat.validate(copy)
    kept = [cell.source for cell in whole.cells if "solution" not in cell.metadata.get("tags", [])]
    assert [cell.source for cell in copy.cells] == kept and len(kept) < len(whole.cells)
    assert not any(cell.get("outputs") for cell in copy.cells)
    assert "jupytext" not in copy.metadata, "a copy that is saved changes no source"
    assert "solution" not in "\n".join(kept).lower()
    start = next(number for number, text in enumerate(kept) if text.startswith("## Exercises"))
    text = "\n".join(kept[start:])
    asked = re.findall(r"^\*\*(\d)\.", text, re.MULTILINE)
    assert asked and all(re.search(rf"check\(\s*{number},", text) for number in asked)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [(None, "no answer yet"), (2.0, "right"), (3.0, "*Hint*: halve it"), ("two", "could not use it")],
)
def test_exercises_tell_right_from_wrong_and_survive_answers_of_any_kind(answer, verdict):
    assert verdict in check(1, answer, lambda a: abs(a - 2) < 0.1, "halve it").data
