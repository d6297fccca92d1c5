"""Committed notebooks: each is a pair in step, executed from top to bottom, with nothing of papermill in it."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from jupytext.cli import jupytext

from minwidth.scales import NOTEBOOKS
from minwidth.store import ROOT

FOLDER = ROOT / "notebooks"
every_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def test_every_notebook_is_a_pair_and_known():
    for suffix in ("py", "ipynb"):
        assert sorted(path.stem for path in FOLDER.glob(f"*.{suffix}")) == list(NOTEBOOKS)


@pytest.mark.parametrize("edited", ["py", "ipynb"])
@every_notebook
def test_synchronising_changes_neither_side(name: str, edited: str, tmp_path: Path):
    for path in (FOLDER / "jupytext.toml", FOLDER / f"{name}.py", FOLDER / f"{name}.ipynb"):
        shutil.copy(path, tmp_path)
        os.utime(tmp_path / path.name, (1e9, 1e9 + (path.suffix == f".{edited}")))
    jupytext(["--quiet", "--sync", str(tmp_path / f"{name}.{edited}")])
    for suffix in ("py", "ipynb"):
        file = f"{name}.{suffix}"
        assert (tmp_path / file).read_text() == (FOLDER / file).read_text(), f"jupytext --sync notebooks/{file}"


@every_notebook
def test_it_was_executed_in_order_without_errors_warnings_or_anything_of_papermill(name: str):
    text, notebook = (FOLDER / f"{name}.py").read_text(), read(name)
    nbformat.validate(notebook)
    assert "papermill=" not in text and "tags=[]" not in text and "papermill" not in notebook.metadata
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        assert "papermill" not in cell.metadata and "injected-parameters" not in tags
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert "nbval-ignore-output" in tags or output.get("name") != "stderr", cell.source


@every_notebook
def test_its_first_code_cells_are_parameters_installation_on_colab_and_validation(name: str):
    notebook = read(name)
    tags = [cell.metadata.get("tags", []) for cell in code_cells(notebook)]
    for place, tag in enumerate(("parameters", "colab")):
        assert [tag in found for found in tags] == [at == place for at in range(len(tags))]
    assert f'validate("{name}", globals())' in code_cells(notebook)[2].source
    assert notebook.metadata.kernelspec.name == "python3"  # papermill asks for it
