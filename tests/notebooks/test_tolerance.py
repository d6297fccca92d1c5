"""nbval goes red where a committed output was altered by more than the tolerance, and only there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output

from minwidth.measured import MARGIN, text
from minwidth.scales import NOTEBOOKS
from minwidth.store import ROOT
from tests.notebooks.tolerance import BRACKETED, NUMBER, RELATIVE, Output, read

WITHIN, BEYOND = 1 + RELATIVE / 2, 1 + 2 * RELATIVE

# what a cell shows, what its committed output says, and whether nbval must accept it
STREAM = "print('floor', 1.234)"
TABLE = "from IPython.display import HTML\nHTML('<b>floor</b> <td>1.234</td>')"
VALUE = "{'floor': 1.234, 'alive': 57}"
MEASURED = "print('d* = 72.8(9), F = 1,890(30)')"
CASES = {
    "stream, within": (STREAM, f"floor {1.234 * WITHIN}\n", True),
    "stream, beyond": (STREAM, f"floor {1.234 * BEYOND}\n", False),
    "html, within": (TABLE, f"<b>floor</b> <td>{1.234 * WITHIN}</td>", True),
    "html, beyond": (TABLE, f"<b>floor</b> <td>{1.234 * BEYOND}</td>", False),
    "value, within": (VALUE, f"{{'floor': {1.234 / WITHIN}, 'alive': 57}}", True),
    "value, beyond": (VALUE, f"{{'floor': {1.234 / BEYOND}, 'alive': 57}}", False),
    "measured, within": (MEASURED, "d* = 72.4(9), F = 1,905(30)\n", True),
    "measured, beyond": (MEASURED, "d* = 71.0(9), F = 1,890(30)\n", False),
    "nothing committed": (STREAM, None, False),
}


def _output(source: str, text: str | None) -> list[nbformat.NotebookNode]:
    if source in (STREAM, MEASURED):
        return [new_output("stream", name="stdout", text=text)] if text else []
    data = {"text/html": text, "text/plain": "<IPython.core.display.HTML object>"} if source == TABLE else {}
    return [new_output("execute_result", data={"text/plain": text} | data, execution_count=1)]


def test_nbval_sees_what_was_altered_and_nothing_else(tmp_path: Path):
    cells = [
        new_code_cell(source, outputs=_output(source, text), execution_count=1) for source, text, _ in CASES.values()
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "altered.ipynb")
    options = ["--nbval", "--nbval-current-env", "-p", "tests.notebooks.tolerance", "-p", "no:cacheprovider"]
    options += ["-q", "-rA", "--color=no", f"--rootdir={tmp_path}", "-c", "/dev/null"]
    line = [sys.executable, "-m", "pytest", *options, "altered.ipynb"]
    place = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    report = subprocess.run(line, cwd=tmp_path, env=place, capture_output=True, text=True).stdout
    for number, (case, (_, _, accepted)) in enumerate(CASES.items()):
        verdict = "PASSED" if accepted else "FAILED"
        assert f"{verdict} altered.ipynb::Cell {number}\n" in report.replace(" - ", "\n"), f"{case} was not {verdict}"


def moved(number: re.Match, tolerances: float) -> str:
    """A number as it is printed, moved by so many of its tolerances."""
    if measured := BRACKETED.fullmatch(number[0]):
        value, tolerance = read(*measured.groups())
        return f"{value + tolerances * tolerance:.9f}({tolerance:.9f})"
    return repr(float(number[0].replace("−", "-")) * (1 + tolerances * RELATIVE))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_committed_number_is_held_to_its_tolerance(name: str):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    said = [part for output in outputs for part in (output.get("text"), *output.get("data", {}).values())]
    shown = [part for part in said if isinstance(part, str) and len(part) < 20_000 and NUMBER.search(part)]
    assert shown, "no number in its outputs"  # pictures in text form, longer ones, would take minutes
    for part in shown:
        assert Output(part) == NUMBER.sub(lambda number: moved(number, 0.5), part), "moved by half, refused"
        for line in set(part.splitlines()):
            for number in (number for number in NUMBER.finditer(line) if re.search("[1-9]", number[0])):
                beyond = line[: number.start()] + moved(number, 2) + line[number.end() :]
                assert Output(line) != beyond, f"{number[0]}, moved by twice its tolerance, is accepted"


@given(st.floats(-1e5, 1e5), st.floats(1e-4, 1e4))
def test_a_tolerance_as_printed_is_read_again_and_never_wider_than_three_spreads(value: float, spread: float):
    printed = BRACKETED.fullmatch(text(value, MARGIN * spread))
    number, tolerance = read(*printed.groups())
    assert MARGIN * spread * (1 - 1e-5) <= tolerance <= 3 * spread
    assert abs(number - value) <= tolerance / 2 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x  9.99", "x 10.02"),  # padding follows the width of a number
        ("<figure at 0x7f00aa11bb22>", "<figure at 0x7f00cc33dd44>"),
        ('<td id="T_1a2b3_row0_col1">', '<td id="T_4c5d6_row0_col1">'),
        ("0.00", "-0.00"),
        ("from −0.50", "from -0.50"),
    ],
)
def test_what_differs_between_two_runs_is_no_difference(one: str, other: str):
    assert Output(one) == other


@pytest.mark.parametrize(
    ("one", "other"),
    [("n = 100", "n = 101"), ("501.", "500."), ("version 3.11.7", "version 3.11.8"), ("1.5 nats", "1.5 bits"),
     ("1.5", "-1.5"), ("1,890(30)", "1,890(60)"), ("1,890(30)", "1,890"), ("1,890(30)", "1,950(30)")],
)  # fmt: skip
def test_integers_words_signs_and_tolerances_are_compared_exactly(one: str, other: str):
    assert Output(one) != other
