"""nbval goes red where a committed output was altered by more than the tolerance, and only there."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from minwidth.store import ROOT
from tests.notebooks.tolerance import DECIMAL, RELATIVE_TOLERANCE, Output

WITHIN, BEYOND = 1 + RELATIVE_TOLERANCE / 2, 1 + 2 * RELATIVE_TOLERANCE

# what a cell shows, what its committed output says, and whether nbval must accept it
STREAM = "print('floor', 1.234)"
TABLE = "from IPython.display import HTML\nHTML('<b>floor</b> <td>1.234</td>')"
VALUE = "{'floor': 1.234, 'alive': 57}"
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
    "nothing committed": (STREAM, None, False),
}


def _output(source: str, text: str | None) -> list[nbformat.NotebookNode]:
    if text is None:
        return []
    if source == STREAM:
        return [new_output("stream", name="stdout", text=text)]
    if source == TABLE:
        data = {"text/html": text, "text/plain": "<IPython.core.display.HTML object>"}
    else:
        data = {"text/plain": text}
    return [new_output("execute_result", data=data, execution_count=1)]


def test_nbval_sees_what_was_altered_and_nothing_else(tmp_path: Path):
    cells = [
        new_code_cell(source, outputs=_output(source, text), execution_count=1) for source, text, _ in CASES.values()
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "altered.ipynb")
    options = ["--nbval", "--nbval-current-env", "-p", "tests.notebooks.tolerance", "-p", "no:cacheprovider"]
    options += ["-q", "-rA", "--color=no", f"--rootdir={tmp_path}", "-c", "/dev/null"]
    report = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "altered.ipynb"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    ).stdout
    for number, (case, (_, _, accepted)) in enumerate(CASES.items()):
        verdict = "PASSED" if accepted else "FAILED"
        assert f"{verdict} altered.ipynb::Cell {number}\n" in report.replace(" - ", "\n"), f"{case} was not {verdict}"


def _committed_outputs() -> list[tuple[str, str]]:
    outputs = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                texts = [output.text] if output.output_type == "stream" else list(output.get("data", {}).values())
                outputs += [(path.stem, text) for text in texts if isinstance(text, str)]
    return outputs


def test_every_committed_decimal_is_held_to_the_tolerance():
    checked = 0
    for name, text in _committed_outputs():
        for match in DECIMAL.finditer(text):
            number = float(match[0].replace("−", "-"))
            if number and len(text) < 20_000:  # pictures in text form would take minutes
                within, beyond = (
                    text[: match.start()] + repr(number * factor) + text[match.end() :] for factor in (WITHIN, BEYOND)
                )
                assert Output(text) == within, f"{name}: {number} altered by less than the tolerance is refused"
                assert Output(text) != beyond, f"{name}: {number} altered by more than the tolerance is accepted"
                checked += 1
    assert checked, "no notebook with a decimal number in its outputs"


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
