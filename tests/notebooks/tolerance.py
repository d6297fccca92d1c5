"""How nbval compares a committed output with the newly computed one; a pytest plugin, loaded by conftest.py.

A decimal number (1.25, -3e-05; not 42) may differ by the relative tolerance below; integers, words and everything else
must be the same. Pictures are not compared.
"""

import math
import re

from nbval.plugin import IPyNbCell

RELATIVE_TOLERANCE = 0.02

DECIMAL = re.compile(r"(?<![\w.])([-+−]?(?:\d*\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+))")
NEW_EVERY_TIME = [  # what has no meaning and differs between two runs
    (re.compile(r"\b0x[0-9a-f]{6,}"), "0x"),  # addresses
    (re.compile(r"/ipykernel_\d+/\d+\.py"), "/ipykernel/"),
    (re.compile(r"\bT_[0-9a-f]{5}(?=_|\b)"), "T_"),  # names of pandas' styled tables
    (re.compile(r" +"), " "),  # columns are padded to their widest number
]


class Output(str):
    """A cell's output that equals another if texts are the same and decimal numbers lie within the tolerance."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        ours, theirs = _parts(self), _parts(other)
        return ours[::2] == theirs[::2] and all(map(_close, ours[1::2], theirs[1::2]))

    def __ne__(self, other: object) -> bool:  # nbval asks this; str would answer it letter by letter
        return not self == other


def _parts(text: str) -> list[str]:
    """``text`` as text, number, text, number, ..., text."""
    for pattern, replacement in NEW_EVERY_TIME:
        text = pattern.sub(replacement, text)
    return DECIMAL.split(text)


def _close(one: str, other: str) -> bool:
    a, b = (float(number.replace("−", "-")) for number in (one, other))
    return math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE)


def pytest_configure():
    IPyNbCell.sanitize = lambda cell, output: Output(output) if isinstance(output, str) else output
