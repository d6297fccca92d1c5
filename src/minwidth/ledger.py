"""The ledger: the paper's claims, the numbers that notebooks measured, and verdicts, none of them typed.

``data/paper/claims.yaml`` holds each claim in the paper's own words, what would refute it, and the bounds its number
must meet, each with a reason. A notebook judges a claim where it has measured it: ``claim(id, value)`` records the
number in ``data/results/<scale>/claims_<notebook>.csv`` and shows a card. ``ledger`` collects these records, ``grade``
compares a number with its bounds, ``judge`` turns grades into a verdict.
"""

import html
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from IPython.display import HTML

from minwidth import capacity, measured
from minwidth.scales import SCALES
from minwidth.store import DATA, OUT, RESULTS, replace_file, results_files

PAPER = DATA / "paper"
VERDICTS = {  # seaborn's colour-blind palette; the verdict is always written out too
    "holds": "#0173b2",
    "holds at our scale": "#56b4e9",
    "holds loosely": "#ece133",
    "weakly supported": "#fbafe4",
    "undetermined": "#ca9161",
    "does not hold": "#d55e00",
    "contradicts the paper itself": "#cc78bc",
    "not tested here": "#949494",
}
KINDS = ("paper", "theory", "toy", "sae", "distill", "probe")
PRINTED = "paper"  # the place of numbers that need no model: recomputed from the paper's own, or from formulas
COUNTS = {"layer", "width", "alive_features", "kept_features", "dropped_features", "layers", "heads", "ffn_width"}
NEEDED = {"id", "place", "section", "quote", "printed", "kind", "where", "refute"}
BOUNDS = {"near", "within", "at_least", "at_most", "loosely", "reason", "given", "ideal"}
Value = float | Iterable[float] | Mapping[str, float | Iterable[float]]


class Paper(NamedTuple):
    """The paper's tables by short name (``table1`` ... ``table8``): values, and half a unit of each last digit."""

    values: dict[str, pd.DataFrame]
    rounding: dict[str, pd.DataFrame]
    numbers: dict[str, float]


# -------------------------------------------------------------------------------------------------- the paper's numbers


def half_unit(printed: str) -> float:
    """Half a unit of the last printed digit: "1.320" -> 0.0005, "27" -> 0.5, "" -> nan."""
    return 0.5 * 10.0 ** -len(printed.partition(".")[2]) if printed else math.nan


@cache
def load_paper(folder: Path = PAPER) -> Paper:
    """The transcribed tables and the text's numbers."""
    values, rounding = {}, {}
    for path in sorted(folder.glob("table*.csv")):
        printed = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns="corrected")
        name = path.stem.partition("_")[0]
        numeric = [column for column in printed if printed[column].str.fullmatch(r"-?[\d.]+|").all()]
        values[name] = printed.assign(**{column: pd.to_numeric(printed[column]) for column in numeric})
        rounding[name] = printed[numeric].map(half_unit)
        exact = COUNTS | ({"alpha"} if name == "table7" else set())  # a grid, not measurements
        rounding[name][[column for column in numeric if column in exact]] = 0.0
    text = pd.read_csv(folder / "text_numbers.csv").set_index("name")["value"]
    return Paper(values, rounding, text.to_dict())


@cache
def claims(file: Path = PAPER / "claims.yaml") -> dict[str, dict[str, Any]]:
    """The claims by id, in the paper's order.

    Raises:
        ValueError: one lacks a field, has an unknown one, a bound without a reason, or another's id.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in yaml.safe_load(file.read_text()):
        name = entry.get("id", "without an id")
        if missing := sorted(NEEDED - entry.keys()):
            raise ValueError(f"Claim {name} lacks {', '.join(missing)}; every claim in claims.yaml needs it.")
        if unknown := sorted(entry.keys() - NEEDED - {"recompute", "measure", "untested", "headline", "weak"}):
            raise ValueError(f"Claim {name} has the unknown field {unknown[0]!r}; a verdict, say, is never typed.")
        if entry["kind"] not in KINDS:
            raise ValueError(f"Claim {name} is of kind {entry['kind']!r}; it can be {', '.join(KINDS)}.")
        if not entry.keys() & {"recompute", "measure", "untested"}:
            raise ValueError(f"Claim {name} has no bounds; give recompute, measure or untested.")
        for part in ("recompute", "measure"):
            if part in entry and ("reason" not in entry[part] or entry[part].keys() - BOUNDS):
                raise ValueError(f"The bounds of claim {name} need a reason, and can have {', '.join(sorted(BOUNDS))}.")
        if name in found:
            raise ValueError(f"Two claims in claims.yaml have the id {name}; each needs its own.")
        found[name] = entry
    return found


# ------------------------------------------------------------------------- columns that follow from others, by rounding


def neox_millions(width: float, ffn: float, layers: int = 24, vocabulary: int = 50_304) -> float:
    """Parameters, in millions, of a GPT-NeoX with untied embeddings: what Table 8 counts."""
    block = 4 * width**2 + 4 * width + 2 * width * ffn + ffn + width + 4 * width
    return (2 * vocabulary * width + layers * block + 2 * width) / 1e6


def _kept(width: float, features: float, l0: float) -> float:
    return float(capacity.features_kept(width, 1 - l0 / features))


def _affine(*cells: float) -> tuple[float, float, float]:
    """Slope, baseline and R^2 of raw KL/2048 (the last five cells) fitted on L* (the first five)."""
    x, y = np.array(cells[:5]), np.array(cells[5:]) / 2048
    dx, dy = x - x.mean(), y - y.mean()  # written out: it runs for each corner of the rounding
    slope = (dx @ dy) / (dx @ dx)
    return slope, y.mean() - slope * x.mean(), slope * (dx @ dy) / (dy @ dy)


def _line(*cells: float) -> tuple[float, float]:
    """Slope and R^2 of the same through zero."""
    x, y = np.array(cells[:5]), np.array(cells[5:]) / 2048
    slope, dy = (x @ y) / (x @ x), y - y.mean()
    return slope, 1 - ((y - slope * x) @ (y - slope * x)) / (dy @ dy)


_LADDER = "table2.predicted_floor@* table3.raw_kl@*"
_F, _L0 = "table1.alive_features@1", "table1.mean_l0@1"  # layer 12
# column, or column@row -> the cells it follows from (@row: that row, @*: all rows, else the same row) and how
DERIVED: dict[str, tuple[str, Callable[..., float]]] = {
    "table1.alpha": ("table1.mean_l0 table1.alive_features", lambda l0, f: 1 - l0 / f),
    "table1.g": ("table1.mean_l0 table1.alive_features", lambda l0, f: float(capacity.g(1 - l0 / f))),
    "table1.critical_width": (
        "table1.mean_l0 table1.alive_features",
        lambda l0, f: float(capacity.critical_width(f, 1 - l0 / f)),
    ),
    "table2.kept_features": (f"table2.width {_F} {_L0}", _kept),
    "table2.dropped_features": (f"{_F} table2.kept_features", lambda f, kept: f - kept),
    "table2.normalized": ("table2.predicted_floor table2.predicted_floor@0", lambda x, *first: x / (*first, x)[0]),
    "table3.kl_per_token": ("table3.raw_kl", lambda raw: raw / (512 * 2**2)),
    "table3.normalized": ("table3.raw_kl table3.raw_kl@0", lambda raw, *first: raw / (*first, raw)[0]),
    "table3.params_millions": ("table3.width", lambda d: neox_millions(d, 4 * d)),
    "table4.slope_c@0": (_LADDER, lambda *cells: _line(*cells)[0]),
    "table4.r2@0": (_LADDER, lambda *cells: _line(*cells)[1]),
    "table4.slope_c@1": (_LADDER, lambda *cells: _affine(*cells)[0]),
    "table4.baseline_b@1": (_LADDER, lambda *cells: _affine(*cells)[1]),
    "table4.r2@1": (_LADDER, lambda *cells: _affine(*cells)[2]),
    "table5.observed": ("table3.raw_kl", lambda raw: raw / 2048),
    "table5.geometric": ("table4.slope_c@1 table2.predicted_floor", lambda c, x: c * x),
    "table5.baseline": ("table3.raw_kl@4", lambda raw: raw / 2048),
    "table5.geometric_percent": (
        "table3.raw_kl table3.raw_kl@4",
        lambda raw, *last: 100 * (1 - (*last, raw)[0] / raw),
    ),
    "table7.one_minus_alpha": ("table7.alpha", lambda alpha: 1 - alpha),
    "table7.g": ("table7.alpha", lambda alpha: float(capacity.g(alpha)) if alpha else math.inf),
    "table7.features_per_dimension": ("table7.alpha", lambda alpha: float(capacity.g(alpha)) if alpha else math.inf),
    "table8.ffn_width": ("table8.width", lambda d: 4 * d),
    "table8.params_millions": ("table8.width table8.ffn_width", neox_millions),
    "table8.compression_ratio": (
        "table8.width",
        lambda d: neox_millions(1024, 4096) / neox_millions(d, 4 * d),
    ),
}


COLUMNS = tuple(dict.fromkeys(key.partition("@")[0] for key in DERIVED))


def rederive(paper: Paper, column: str) -> pd.DataFrame:
    """Recompute a derived column ``"table1.g"`` from the cells it follows from, as printed and over their rounding.

    Returns:
        One row for each cell: row, printed, value (from the digits as printed), low and high (its range if every cell
        it follows from may be off by half a unit of its last digit), half (half a unit of the printed digit), agrees.
    """
    table, name = column.split(".")
    rows = []
    for row in range(len(paper.values[table])):
        key = column if column in DERIVED else f"{column}@{row}"
        if key not in DERIVED:
            continue
        references, function = DERIVED[key]
        cells: dict[tuple[str, str, int], None] = {}  # ordered, and each cell once
        for reference in references.split():
            source, _, at = reference.partition("@")
            source_table, source_column = source.split(".")
            every = range(len(paper.values[source_table]))
            cells |= dict.fromkeys((source_table, source_column, i) for i in (every if at == "*" else [int(at or row)]))
        centre = [float(paper.values[t].at[i, c]) for t, c, i in cells]
        half = [float(paper.rounding[t].at[i, c]) for t, c, i in cells]
        corners = itertools.product(*({x - h, x + h} for x, h in zip(centre, half, strict=True)))
        reached = [function(*corner) for corner in corners]
        printed, slack = float(paper.values[table].at[row, name]), float(paper.rounding[table].at[row, name])
        low, high = min(reached), max(reached)
        agrees = low - slack - 1e-9 <= printed <= high + slack + 1e-9
        rows.append((row, printed, function(*centre), low, high, slack, agrees))
    return pd.DataFrame(rows, columns=["row", "printed", "value", "low", "high", "half", "agrees"])


# ---------------------------------------------------------------------------------------------------------- judgement


def grade(value: Value, bounds: Mapping[str, Any], tolerance: Value = 0.0) -> str:
    """Compare a value with ``near``/``within``, ``at_least`` or ``at_most``, each with its ``loosely``.

    Several values are "loosely" right where some are right and some are not. A mapping holds the value under each
    choice of ours (an L1 coefficient, say). "varies" says that the choice, or the measured tolerance, decides.

    Returns:
        "yes", "loosely", "no" or "varies".
    """
    if isinstance(value, Mapping):
        grades = {grade(item, bounds, tolerance[name] if isinstance(tolerance, Mapping) else tolerance)
                  for name, item in value.items()}  # fmt: skip
    else:
        values, slack = np.atleast_1d(np.asarray(value, dtype=float)), np.nan_to_num(np.asarray(tolerance, dtype=float))
        if not values.size or np.isnan(values).any():
            raise ValueError(f"A claim was given {value}; it needs numbers to be graded, or to stay unjudged.")
        grades = {_grade(values + sign * slack, bounds) for sign in (-1, 0, 1)}
    if len(grades) == 1:
        return grades.pop()
    return "loosely" if grades == {"yes", "loosely"} else "varies"


def _grade(values: np.ndarray, bounds: Mapping[str, Any]) -> str:
    if "near" in bounds:
        miss, bound = np.abs(values - np.asarray(bounds["near"], dtype=float)), bounds["within"]
        loose = bounds.get("loosely", bound)
    elif "at_least" in bounds:
        miss, bound, loose = -values, -bounds["at_least"], -bounds.get("loosely", bounds["at_least"])
    else:
        miss, bound, loose = values, bounds["at_most"], bounds.get("loosely", bounds["at_most"])
    slack = 1e-9 * max(1.0, abs(bound))
    if (miss <= bound + slack).all():
        return "yes"
    return "loosely" if (miss <= loose + slack).all() or (miss <= bound + slack).any() else "no"


def judge(kind: str, recomputed: str | None, found: list[str], own_setting: bool, weak: bool = False) -> str:
    """Grades -> verdict.

    Args:
        kind: of the claim; measured kinds need a measurement before they can hold.
        recomputed: grade on the paper's own numbers or by theory, if there is such a check.
        found: one grade a scale that has measured it.
        own_setting: some measurement was made in the paper's own setting.
        weak: a failed recomputation shows a weak argument, not a contradiction.
    """
    if recomputed == "no":
        return "does not hold" if kind == "theory" else "weakly supported" if weak else "contradicts the paper itself"
    if recomputed == "varies" or "varies" in found or {"yes", "no"} <= set(found):
        return "undetermined"
    if kind in ("paper", "theory"):
        return {"yes": "holds", "loosely": "holds loosely", None: "not tested here"}[recomputed]
    if not found:
        return "not tested here"
    if set(found) == {"no"}:
        return "does not hold"
    if set(found) == {"yes"} and recomputed in ("yes", None):
        return "holds" if own_setting else "holds at our scale"
    return "holds loosely"


# ------------------------------------------------------------------------------------------------------------- record


def claim(
    id: str,
    value: Value,
    text: str = "",
    *,
    why: str = "",
    undetermined: str = "",
    scale: str = PRINTED,
    own_setting: bool = False,
) -> HTML:
    """Record what was found of a claim, judge it by this alone, and show a card.

    Args:
        value: one number, several, or a mapping from a choice of ours to either.
        text: how it reads; the numbers with their tolerances if left out.
        why: what a reader needs besides the number.
        undetermined: why the number, though measured, decides nothing (a budget too small, say).
        scale: where it was measured; ``PRINTED`` if on the paper's own numbers, or by a formula.
        own_setting: that is the paper's own setting.

    Raises:
        KeyError: there is no such claim.
        ValueError: a value that is no number, or a claim without bounds for what was found.
    """
    entry = claims()[id]
    part = "recompute" if scale == PRINTED else "measure"
    if part not in entry:
        raise ValueError(f"Claim {id} has no bounds to {part}; add {part} in claims.yaml.")
    flat = _flat(value)
    names = [f"claim {id} {name}".strip() for name in flat]
    printed = [measured.number(entry["where"], scale, name, x) for name, x in zip(names, flat.values(), strict=True)]
    if not text:
        labels = [f"{name}: " if name and not name.isdigit() else "" for name in flat]
        text = ", ".join(label + shown for label, shown in zip(labels, printed, strict=True))
    row = {"id": id, "value": json.dumps(_plain(value)), "text": text, "why": undetermined or why}
    row |= {"undetermined": bool(undetermined), "own_setting": own_setting}
    file = RESULTS / scale / f"claims_{entry['where']}.csv"
    known = _read(file) if file.exists() else pd.DataFrame(columns=list(row))
    both = pd.concat([part for part in (known[known.id != id], pd.DataFrame([row])) if len(part)])
    replace_file(file, both.to_csv(index=False).encode())
    graded = _graded(pd.Series(row), entry, scale)
    if scale == PRINTED:  # alone, whatever models say
        kind = entry["kind"] if entry["kind"] == "theory" else "paper"
        verdict = judge(kind, graded, [], own_setting, entry.get("weak", False))
    else:
        verdict = judge(entry["kind"], None, [graded], own_setting)
    return card(entry, text, verdict, row["why"], part)


def _flat(value: Value) -> dict[str, float]:
    if isinstance(value, Mapping):
        return {f"{name} {at}".strip(): x for name, item in value.items() for at, x in _flat(item).items()}
    values = np.atleast_1d(np.asarray(value, dtype=float))
    return {str(n) if values.size > 1 else "": float(x) for n, x in enumerate(values)}


def _plain(value: Value) -> Any:
    return {str(k): _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else np.asarray(value).tolist()


def _graded(row: pd.Series, entry: Mapping[str, Any], scale: str) -> str:
    if row.undetermined:
        return "varies"
    value, spreads = json.loads(row.value), measured.spreads(entry["where"], scale)

    def tolerances(item: Any, name: str) -> Any:
        if isinstance(item, dict):
            return {key: tolerances(part, f"{name} {key}") for key, part in item.items()}
        names = [name] if np.size(item) == 1 else [f"{name} {n}" for n in range(len(item))]
        return [measured.MARGIN * float(spreads.get(each, 0.0)) for each in names]

    return grade(value, entry["recompute" if scale == PRINTED else "measure"], tolerances(value, f"claim {row.id}"))


def card(entry: Mapping[str, Any], text: str, verdict: str, why: str = "", part: str = "measure") -> HTML:
    """A claim for reading: the paper's words, printed, ours, verdict, and the reason for the bound."""
    ink = "white" if verdict in ("holds", "does not hold") else "black"
    lines = [
        f"<b>{entry['id']}</b> ({html.escape(entry['place'])}): “{html.escape(entry['quote'])}”",
        f"paper <b>{html.escape(str(entry['printed']))}</b>; ours <b>{html.escape(text)}</b> "
        f"<span style='background:{VERDICTS[verdict]};color:{ink};padding:0 .4em'>{verdict}</span>",
        html.escape(why),
        f"<small>Refuted if {html.escape(entry['refute'])}. Bound: {html.escape(entry[part]['reason'])}.</small>",
    ]
    style = f"border-left:4px solid {VERDICTS[verdict]};padding:.2em .8em;margin:.4em 0"
    return HTML(f"<div style='{style}'>{'<br>'.join(filter(None, lines))}</div>")


# ------------------------------------------------------------------------------------------------------------ collect


def ledger(
    entries: Mapping[str, Mapping[str, Any]] | None = None, scales: Iterable[str] = tuple(SCALES)
) -> pd.DataFrame:
    """One row a claim: what it says and where, printed, recomputed, one column a scale, verdict, why, headline."""
    entries, scales = entries or claims(), list(scales)
    records = {place: _records(place) for place in (PRINTED, *scales)}
    return pd.DataFrame([_row(entry, records, scales) for entry in entries.values()])


def _records(place: str) -> pd.DataFrame:
    files = results_files(place, "claims_*.csv")
    columns = ["id", "value", "text", "why", "undetermined", "own_setting"]
    frame = pd.concat([pd.DataFrame(columns=columns), *map(_read, files)])
    return frame.set_index("id", drop=False)


def _read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype={"value": str, "text": str, "why": str}).fillna({"text": "", "why": ""})


def _row(entry: Mapping[str, Any], records: Mapping[str, pd.DataFrame], scales: list[str]) -> dict[str, Any]:
    found = {
        place: frame.loc[entry["id"]]
        for place, frame in records.items()
        if entry["id"] in frame.index and ("recompute" if place == PRINTED else "measure") in entry
    }
    grades = {place: _graded(row, entry, place) for place, row in found.items()}
    own = any(bool(row.own_setting) or place == "pythia-410m" for place, row in found.items() if place != PRINTED)
    decided = [scale for scale in scales if scale in grades and not found[scale].undetermined]
    measured_grades = [grades[scale] for scale in decided or scales if scale in grades]
    verdict = judge(entry["kind"], grades.get(PRINTED), measured_grades, own, entry.get("weak", False))
    whys = [(f"{place}: " if place != PRINTED else "") + row.why for place, row in found.items() if row.why]
    if verdict == "not tested here":
        whys = [entry.get("untested", f"{entry['where']} has not measured it")]
    return {
        "id": entry["id"],
        "section": entry["section"],
        "place": entry["place"],
        "claim": entry["quote"],
        "kind": entry["kind"],
        "printed": str(entry["printed"]),
        "recomputed": found[PRINTED].text if PRINTED in found else "",
        **{scale: found[scale].text if scale in found else "" for scale in scales},
        "verdict": verdict,
        "why": "; ".join(whys),
        "headline": entry.get("headline", ""),
    }


def with_bounds(factor: float, entries: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """The claims with the room that every bound leaves multiplied by ``factor``.

    The room of ``near`` is its ``within``; that of ``at_least`` and ``at_most`` the distance from the ``ideal`` value
    (0 if none is named). A bound that the paper itself ``given`` is not ours to move.
    """

    def moved(bounds: Mapping[str, Any]) -> dict[str, Any]:
        if bounds.get("given"):
            return dict(bounds)
        ideal = 0.0 if "near" in bounds else bounds.get("ideal", 0.0)
        names = ("within", "loosely", "at_least", "at_most")
        return {k: ideal + factor * (v - ideal) if k in names else v for k, v in bounds.items()}

    return {
        id: {key: moved(part) if key in ("recompute", "measure") else part for key, part in entry.items()}
        for id, entry in (entries or claims()).items()
    }


# ------------------------------------------------------------------------------------------------------------ summary

START, END = "<!-- ledger:start -->", "<!-- ledger:end -->"


def measured_scales(frame: pd.DataFrame) -> list[str]:
    """The scales at which some claim was measured."""
    return [scale for scale in SCALES if scale in frame and (frame[scale] != "").any()]


def headlines(frame: pd.DataFrame) -> pd.DataFrame:
    """The claims that matter most: claim, paper, ours (and where: a scale, or the paper's own numbers), verdict."""
    scales, rows = measured_scales(frame), []
    for _, row in frame[frame.headline != ""].iterrows():
        found = [f"{row[scale]} ({scale})" for scale in scales if row[scale]]
        if row.recomputed and row.verdict != "not tested here":
            found.append(f"{row.recomputed} (recomputed)")
        rows.append((row.headline, row.printed, [*found, "–"][0], row.verdict))
    return pd.DataFrame(rows, columns=["claim", "paper", "ours", "verdict"])


def summary_markdown(frame: pd.DataFrame) -> str:
    """The README's summary between its markers: verdicts counted, and the headline claims."""
    table = headlines(frame).map(lambda cell: cell.replace("|", r"\|"))
    lines = ["| " + " | ".join(line) + " |" for line in [table.columns, ["---"] * table.shape[1], *table.to_numpy()]]
    return "\n".join([START, "", _counted(frame, "**{}**"), "", *lines, "", END])


def _counted(frame: pd.DataFrame, style: str = "{}") -> str:
    total = frame.verdict.value_counts()
    return f"{len(frame)} claims: " + ", ".join(f"{v} {style.format(total[v])}" for v in VERDICTS if v in total) + "."


def in_readme(text: str) -> str:
    """The summary block of a README, markers included.

    Raises:
        ValueError: the README has no such block, or more than one.
    """
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md needs the markers {START} and {END} once each.")
    return START + text.partition(START)[2].partition(END)[0] + END


def main() -> None:
    """Print the headline claims as a plain table; with ``--readme`` write them into the README too."""
    frame, readme = ledger(), OUT / "README.md"
    if "--readme" in sys.argv[1:]:
        text = readme.read_text()
        replace_file(readme, text.replace(in_readme(text), summary_markdown(frame)).encode())
    print(headlines(frame).to_string(index=False), _counted(frame), sep="\n\n")


if __name__ == "__main__":
    main()
