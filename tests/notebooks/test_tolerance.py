"""nbval goes red where a committed output was altered by more than the tolerance, and only there."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output

from minwidth.measured import MARGIN, text
from minwidth.store import ROOT
from tests.notebooks.tolerance import BRACKETED, NUMBER, RELATIVE, Output, read

WITHIN, BEYOND = 1 + RELATIVE / 2, 1 + 2 * RELATIVE

# what a cell shows, what its committed output says, and whether nbval must accept it
STREAM = "print('floor', 1.234)"
TABLE = "from IPython.display import HTML\nHTML('<b>floor</b> <td>1.234</td>')"
VALUE = "{'floor': 1.234, 'alive': 57}"
MEASURED = "print('d* = 72.8(9), F = 1,890(30)')"
CASES = {
    "stream, same": (STREAM, "floor 1.234\n", True),
    "stream, within": (STREAM, f"floor {1.234 * WITHIN}\n", True),
    "stream, beyond": (STREAM, f"floor {1.234 * BEYOND}\n", False),
    "stream, word": (STREAM, "flour 1.234\n", False),
    "stream, sign": (STREAM, "floor -1.234\n", False),
    "html, within": (TABLE, f"<b>floor</b> <td>{1.234 * WITHIN}</td>", True),
    "html, beyond": (TABLE, f"<b>floor</b> <td>{1.234 * BEYOND}</td>", False),
    "html, tag": (TABLE, "<i>floor</i> <td>1.234</td>", False),
    "value, within": (VALUE, f"{{'floor': {1.234 / WITHIN}, 'alive': 57}}", True),
    "value, beyond": (VALUE, f"{{'floor': {1.234 / BEYOND}, 'alive': 57}}", False),
    "value, integer": (VALUE, "{'floor': 1.234, 'alive': 58}", False),
    "measured, within": (MEASURED, "d* = 72.4(9), F = 1,905(30)\n", True),
    "measured, beyond": (MEASURED, "d* = 71.0(9), F = 1,890(30)\n", False),
    "measured count, beyond": (MEASURED, "d* = 72.8(9), F = 1,950(30)\n", False),
    "measured, another tolerance": (MEASURED, "d* = 72.8(9), F = 1,890(60)\n", False),
    "measured, none": (MEASURED, "d* = 72.8, F = 1,890(30)\n", False),
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


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_every_committed_number_is_held_to_its_tolerance(notebook: Path):
    cells, checked = nbformat.read(notebook, as_version=4).cells, 0
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    for shown in (said for output in outputs for said in [output.get("text"), *output.get("data", {}).values()]):
        if not isinstance(shown, str) or len(shown) > 20_000:  # pictures in text form would take minutes
            continue
        for match in NUMBER.finditer(shown):
            if not (altered := _altered(match[0])):
                continue
            within, beyond = (shown[: match.start()] + number + shown[match.end() :] for number in altered)
            assert Output(shown) == within, f"{match[0]}, altered by half, is refused"
            assert Output(shown) != beyond, f"{match[0]}, altered by twice, is accepted"
            checked += 1
    assert checked, "no number in its outputs"


def _altered(number: str) -> list[str]:
    """A number moved by half its tolerance, and by twice; nothing of zero."""
    if measured := BRACKETED.fullmatch(number):
        value, tolerance = read(*measured.groups())
        return [f"{value + times * tolerance:.9f}({tolerance:.9f})" for times in (0.5, 2)]
    value = float(number.replace("−", "-"))
    return [repr(value * WITHIN), repr(value * BEYOND)] if value else []


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
    [("n = 100", "n = 101"), ("501.", "500."), ("version 3.11.7", "version 3.11.8"), ("1.5 nats", "1.5 bits")],
)
def test_integers_and_words_are_compared_exactly(one: str, other: str):
    assert Output(one) != other
