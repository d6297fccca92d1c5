"""Measured numbers: printed with the digits that survive another processor or another seed, and compared by these.

A number that a notebook measures has a **spread**, the largest distance from its committed value in runs of the same
notebook on other processors' instruction sets and with other seeds (``make processors``, docs/processors.md), and is
printed as 72.8(9): 72.8 ± 0.9. The bracket is its tolerance, ``MARGIN`` spreads.
``data/results/<scale>/numbers_<notebook>.csv`` holds name, value and spread.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from IPython.display import HTML
from numpy.typing import ArrayLike

from minwidth.store import RESULTS, load_results, replace_file

MARGIN = 2.0  # spreads in a tolerance; rounded up to what is printed, it stays below 3
NOTHING = 1e-5  # a smaller number, with a smaller tolerance, is printed as 0: a student that is its teacher, say


def text(value: float, tolerance: float = math.nan) -> str:
    """``value`` as 72.8(9); three digits where the tolerance is not known (NaN), four where it is 0."""
    if not math.isfinite(value):
        return "–"
    if abs(value) < NOTHING and not tolerance >= NOTHING:
        return "0"
    if not tolerance > 0:
        whole = float(value).is_integer() or abs(value) >= 1000
        return f"{value:,.0f}" if whole else f"{value:.{4 if tolerance == 0 else 3}g}"
    place = math.floor(math.log10(tolerance))
    if tolerance < 2.95 * 10.0**place:  # of a leading 1 or 2, one digit would round too much
        place -= 1
    steps = math.ceil(round(tolerance / 10.0**place, 6))
    decimals = max(0, -place)
    bracket = f"{steps}" if decimals and steps < 10**decimals else f"{steps * 10.0**place:,.{decimals}f}"
    return f"{round(value / 10.0**place) * 10.0**place:,.{decimals}f}({bracket})"


def interval(values: ArrayLike, groups: ArrayLike, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` if whole groups, documents say, are drawn again with replacement."""
    _, member = np.unique(groups, return_inverse=True)
    total, size = np.bincount(member, np.asarray(values, float)), np.bincount(member)
    drawn = np.random.default_rng(seed).multinomial(len(size), np.full(len(size), 1 / len(size)), draws)
    low, high = np.quantile(drawn @ total / (drawn @ size), [0.025, 0.975])
    mean = total.sum() / size.sum()  # of few groups, rounding could leave it outside
    return float(min(low, mean)), float(max(high, mean))


# ------------------------------------------------------------------------------------------------ print and record


def number(notebook: str, scale: str, name: str, value: float) -> str:
    """Record a measured number of a notebook under a name of its own, and give it as it is printed."""
    return _recorded(notebook, scale, {name: float(value)})[0]


def table(notebook: str, scale: str, name: str, frame: pd.DataFrame, keys: str | Sequence[str]) -> HTML:
    """Record every number of a table outside its ``keys``, the columns that name a row; show it as it is printed."""
    keys = list(np.atleast_1d(keys))
    columns = [column for column in frame if column not in keys and pd.api.types.is_numeric_dtype(frame[column])]
    rows = [
        " ".join([name, *(f"{key}={said:g}" if np.isreal(said) else str(said) for key, said in row.items())])
        for row in frame[keys].to_dict("records")
    ]
    numbers = frame[columns].astype(float).to_numpy()
    found = {f"{row} {column}": numbers[i, j] for i, row in enumerate(rows) for j, column in enumerate(columns)}
    if len(found) < numbers.size:
        raise ValueError(f"keys = {keys} do not tell the rows of {name} apart; add a column that does.")
    shown = frame.astype(dict.fromkeys(columns, object))
    shown[columns] = np.array(_recorded(notebook, scale, found), object).reshape(numbers.shape)
    return HTML(shown.to_html(index=False, escape=False, float_format="{:g}".format, na_rep=""))


def spreads(notebook: str, scale: str) -> pd.Series:
    """Spread of each of a notebook's numbers by name; empty where none was measured."""
    return _known(notebook, scale).spread


def _recorded(notebook: str, scale: str, found: dict[str, float]) -> list[str]:
    known = _known(notebook, scale)
    new = pd.DataFrame({"value": found}).assign(spread=known.spread.reindex(list(found)).to_numpy())
    both = known.reindex(known.index.union(new.index, sort=False)).rename_axis("name")
    both.loc[new.index] = new
    replace_file(RESULTS / scale / f"numbers_{notebook}.csv", both.to_csv(float_format="%.6g").encode())
    return [text(value, MARGIN * float(spread)) for value, spread in zip(new.value, new.spread, strict=True)]


def _known(notebook: str, scale: str) -> pd.DataFrame:
    """Value and spread by name, of this run or else as committed."""
    known = load_results(scale, f"numbers_{notebook}")
    known = pd.DataFrame(columns=["name", "value", "spread"]) if known is None else known
    return known.set_index("name").astype(float)
