"""Exercises tell right from wrong and survive answers of any kind."""

import pytest

from minwidth.exercises import check


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [(None, "no answer yet"), (2.0, "right"), (3.0, "*Hint*: halve it"), ("two", "could not use it")],
)
def test_verdicts(answer, verdict):
    assert verdict in check(1, answer, lambda a: abs(a - 2) < 0.1, "halve it").data
