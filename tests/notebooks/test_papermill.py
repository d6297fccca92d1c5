"""papermill as people type it: no output path, a wrong parameter, a committed notebook in the way."""

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner, Result
from jupytext.cli import jupytext
from papermill import PapermillExecutionError, execute_notebook
from papermill.cli import papermill as command

from minwidth import notebooks, store

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
    return CliRunner().invoke(command, notebooks.with_output_path(list(arguments)))


def written(project: Path) -> list[str]:
    """Files beside the pair itself."""
    pair = {"notebooks/jupytext.toml", "notebooks/01_theory.py", "notebooks/01_theory.ipynb"}
    return sorted({str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()} - pair)


@pytest.mark.parametrize("where", ["terminal", "pipes"])
def test_without_an_output_path_the_copy_goes_to_runs(project: Path, where: str):
    committed = Path("01_theory.ipynb").read_bytes()
    if where == "terminal":
        terminal, side = pty.openpty()
        streams = {"stdin": side, "stdout": side, "stderr": side}
    else:  # stdin a pipe too: papermill alone would take the one path as its output
        streams = {"input": b"", "stdout": subprocess.PIPE}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MINWIDTH_")}
    line = [Path(sys.executable).with_name("papermill"), "01_theory.ipynb", "-p", "width", "512", "--no-progress-bar"]
    subprocess.run(line, env=kept | {"MINWIDTH_ROOT": str(project)}, check=True, **streams)
    if where == "terminal":
        os.close(terminal)
        os.close(side)
    assert Path("01_theory.ipynb").read_bytes() == committed
    assert written(project) == ["runs/01_theory__width=512.ipynb"]
    copy = nbformat.read("../runs/01_theory__width=512.ipynb", as_version=4)
    assert copy.cells[-1].outputs[0].text == "width 512\n"


def test_an_executed_copy_is_no_pair(project: Path):
    assert papermill("01_theory.ipynb", "../out.ipynb", "-p", "width", "8").exit_code == 0
    copy = nbformat.read("../out.ipynb", as_version=4)
    assert "jupytext" not in copy.metadata
    assert copy.metadata.papermill.output_path == "../out.ipynb"
    sync(Path("../out.ipynb"))
    assert written(project) == ["out.ipynb"]


@pytest.mark.parametrize("output", [[], ["out.ipynb"]], ids=["default", "named"])
def test_an_unknown_parameter_is_one_sentence_and_writes_nothing(output: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(store.ROOT / "notebooks")
    watched = [Path(), store.RUNS, store.FIGURES]
    before = [sorted(folder.rglob("*")) for folder in watched]
    result = papermill("01_theory.ipynb", *output, "-p", "wdith", "3")
    assert result.exit_code == 1
    assert "01_theory has no parameter 'wdith'; it takes scale, " in result.output
    assert "Traceback" not in result.output
    assert [sorted(folder.rglob("*")) for folder in watched] == before


def test_the_notebook_itself_refuses_an_unknown_parameter(project: Path):
    with pytest.raises(PapermillExecutionError, match="01_theory has no parameter 'wdith'; it takes scale, "):
        execute_notebook("01_theory.ipynb", None, {"wdith": 3}, progress_bar=False)


@pytest.mark.parametrize(
    "options", [["-p", "width", "wide"], ["-r", "width", "3"], ["-y", "width: []"], ["-f", "../values.yaml"]]
)
def test_a_wrong_value_is_refused_whichever_option_brings_it(project: Path, options: list[str]):
    (project / "values.yaml").write_text("width: wide\n")
    result = papermill("01_theory.ipynb", *options)
    assert result.exit_code == 1
    assert "\n01_theory: width = " in result.output
    assert written(project) == ["values.yaml"]


@pytest.mark.parametrize("arguments", [["01_theory.ipynb", "./01_theory.ipynb"], ["-", "01_theory.ipynb"]])
def test_a_notebook_of_the_project_is_never_overwritten(project: Path, arguments: list[str]):
    with pytest.raises(SystemExit, match="would be overwritten"):
        notebooks.with_output_path(arguments)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notebooks, "_is_ours", lambda path: path.endswith("04_distill.ipynb"))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("04_distill.ipynb", "04_distill"),
        ("-p width 512 notebooks/04_distill.ipynb", "04_distill__width=512"),
        ("04_distill.ipynb -p width 512 -p seed 1 --log-output", "04_distill__width=512__seed=1"),
        ("--cwd /tmp 04_distill.ipynb --parameters width 512 -k python3", "04_distill__width=512"),
        ("-pwidth 512 --autosave-cell-every=5 04_distill.ipynb", "04_distill__width=512"),
        ("04_distill.ipynb -f widths.yaml", "04_distill__widths.yaml"),
        ("04_distill.ipynb -p teacher ../../a{b}", "04_distill__teacher=..-..-a-b--e23430"),
    ],
)
def test_the_copys_name_tells_the_parameters(ours, line: str, name: str):
    arguments = notebooks.with_output_path(line.split())
    assert arguments[:-1] == line.split()
    assert arguments[-1] == f"{notebooks.SCHEME}{store.RUNS}/{name}.ipynb"


@pytest.mark.parametrize("line", ["", "--version", "a.ipynb", "a.ipynb b.ipynb -p width 3", "04_distill.ipynb -"])
def test_other_command_lines_are_left_alone(ours, line: str):
    assert notebooks.with_output_path(line.split()) == line.split()


def test_papermills_options_are_the_ones_we_know():
    options = command.get_params(command.make_context("papermill", ["a", "b"]))
    flags = [option for option in options if getattr(option, "is_flag", False)]
    assert {name for flag in flags for name in flag.opts + flag.secondary_opts} == notebooks.NO_VALUE
    assert {name for option in options if option.nargs == 2 for name in option.opts} == notebooks.TWO_VALUES
    taking = {name for option in options if option.name.startswith("parameters") for name in option.opts}
    assert taking == notebooks.PARAMETERS
