"""Copies for students: everything but the solutions, from the one source."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest

from minwidth import notebooks
from minwidth.scales import NOTEBOOKS
from minwidth.store import ROOT


def solution(cell: nbformat.NotebookNode) -> bool:
    return "solution" in cell.metadata.get("tags", [])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_student_gets_all_but_the_solutions(name: str, tmp_path: Path):
    source = ROOT / "notebooks" / f"{name}.py"
    notebooks.without_solutions([str(source)], tmp_path)
    copy, whole = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4), jupytext.read(source)
    nbformat.validate(copy)
    assert [cell.source for cell in copy.cells] == [cell.source for cell in whole.cells if not solution(cell)]
    assert not any(cell.get("outputs") for cell in copy.cells)
    assert "parameters" in next(cell for cell in copy.cells if cell.cell_type == "code").metadata.tags
    assert "jupytext" not in copy.metadata, "a copy that is saved changes no source"
    assert "solution" not in "\n".join(cell.source for cell in copy.cells).lower()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_exercise_has_a_check_and_a_solution(name: str):
    cells = jupytext.read(ROOT / "notebooks" / f"{name}.py").cells
    start = next(number for number, cell in enumerate(cells) if cell.source.startswith("## Exercises"))
    text = "\n".join(cell.source for cell in cells[start:] if not solution(cell))
    asked = re.findall(r"^\*\*(\d)\.", text, re.MULTILINE)
    assert asked == [str(number) for number in range(1, len(asked) + 1)]
    assert 3 <= len(asked) <= 6
    assert len(re.findall(r"^(?:    return exercises\.)?check\(|return exercises\.check\(", text, re.MULTILINE)) == len(
        asked
    )
    assert sum(solution(cell) and cell.cell_type == "code" for cell in cells[start:]) == len(asked)
