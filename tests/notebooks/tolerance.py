"""How nbval compares a committed output with the newly computed one; a pytest plugin, loaded by conftest.py.

A measured number carries its tolerance, 72.8(9), and may differ by it (``minwidth.measured``, the one place that says
how wide it is). Any other decimal number (1.25, -3e-05) is computed exactly and may differ by ``RELATIVE``, a rounding;
integers, words and everything else must be the same. Pictures are not compared.
"""

import math
import re

from nbval.plugin import IPyNbCell

RELATIVE = 0.02
BRACKETED = re.compile(r"(?<![\w.,])([-−]?(?:\d[\d,]*\.?\d*|\.\d+))\(([\d.,]+)\)")
DECIMAL = re.compile(r"(?<![\w.])([-+−]?(?:\d*\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+))")
NUMBER = re.compile(f"{BRACKETED.pattern}|{DECIMAL.pattern}")
NEW_EVERY_TIME = [  # what has no meaning and differs between two runs
    (re.compile(r"\b0x[0-9a-f]{6,}"), "0x"),  # addresses
    (re.compile(r"/ipykernel_\d+/\d+\.py"), "/ipykernel/"),
    (re.compile(r"\bT_[0-9a-f]{5}(?=_|\b)"), "T_"),  # names of pandas' styled tables
    (re.compile(r" +"), " "),  # columns are padded to their widest number
]


class Output(str):
    """A cell's output that equals another if texts are the same and numbers lie within their tolerances."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        (words, numbers), (others, found) = _parts(self), _parts(other)
        return words == others and all(map(_close, numbers, found))

    def __ne__(self, other: object) -> bool:  # nbval asks this; str would answer it letter by letter
        return not self == other


def read(number: str, bracket: str) -> tuple[float, float]:
    """Value and tolerance of what ``measured.text`` wrote and ``BRACKETED`` found."""
    decimals = len(number.partition(".")[2])
    value = float(number.replace(",", "").replace("−", "-"))
    in_last_digits = decimals and "." not in bracket
    return value, float(bracket.replace(",", "")) * (10.0**-decimals if in_last_digits else 1.0)


def _parts(text: str) -> tuple[list[str], list[tuple[float, float | None]]]:
    """The words around its numbers, and the numbers, each with its tolerance; None for one that is exact."""
    for pattern, replacement in NEW_EVERY_TIME:
        text = pattern.sub(replacement, text)
    words, numbers, start = [], [], 0
    for match in NUMBER.finditer(text):
        words.append(text[start : match.start()])
        bracketed = BRACKETED.fullmatch(match[0])
        numbers.append(read(*bracketed.groups()) if bracketed else (float(match[0].replace("−", "-")), None))
        start = match.end()
    return [*words, text[start:]], numbers


def _close(one: tuple[float, float | None], other: tuple[float, float | None]) -> bool:
    (a, tolerance), (b, same) = one, other
    if tolerance is None or same is None:
        return tolerance == same and math.isclose(a, b, rel_tol=RELATIVE)
    return math.isclose(tolerance, same, rel_tol=1e-6) and abs(a - b) <= tolerance * (1 + 1e-6)


def pytest_configure():
    IPyNbCell.sanitize = lambda cell, output: Output(output) if isinstance(output, str) else output
    # a cell's last message may come late on a busy machine; nbval gives it 5 seconds and has no option for that
    IPyNbCell.output_timeout = property(lambda cell: 60, lambda cell, seconds: None)
