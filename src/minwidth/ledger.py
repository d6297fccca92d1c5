"""The ledger: the paper's claims, the numbers that notebooks measured, and verdicts, none of them typed.

``data/paper/claims.yaml`` holds each claim in the paper's own words, what would refute it, and the bounds its number
must meet, each with a reason. A notebook judges a claim where it has measured it: ``claim(id, value)`` records the
number in ``data/results/<scale>/claims_<notebook>.csv`` and shows a card. ``grade`` compares a number with its bounds,
``judge`` turns grades into a verdict, and ``robust`` asks whether half or twice the room that our bounds leave would
change it. ``ledger`` collects all records; 06 shows them.
"""

import html
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from IPython.display import HTML

from minwidth import measured
from minwidth.scales import SCALES
from minwidth.store import COMMITTED, DATA, RESULTS, replace_file

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
PRINTED = "paper"  # the place of numbers that need no model: recomputed from the paper's own, or from formulas
ROOMS = {"as bounded": 1.0, "half the room": 0.5, "twice the room": 2.0}
Value = float | Iterable[float] | Mapping[str, float | Iterable[float]]


@cache
def claims() -> dict[str, dict[str, Any]]:
    """The claims by id, in the paper's order."""
    return {entry["id"]: entry for entry in yaml.safe_load((PAPER / "claims.yaml").read_text())}


# ---------------------------------------------------------------------------------------------------------- judgement


def grade(value: Value, bounds: Mapping[str, Any], tolerance: Value = 0.0) -> str:
    """Compare a value with its bounds: "yes", "loosely", "no", or "varies".

    Several values are "loosely" right where some are right and some are not. A mapping holds the value under each
    choice of ours (an L1 coefficient, say). "varies": the choice, or the measured tolerance, decides.
    """
    if isinstance(value, Mapping):
        grades = {grade(item, bounds, tolerance[name] if isinstance(tolerance, Mapping) else tolerance)
                  for name, item in value.items()}  # fmt: skip
    else:
        values, slack = np.array(value, dtype=float, ndmin=1), np.nan_to_num(np.asarray(tolerance, dtype=float))
        if not values.size or np.isnan(values).any():
            raise ValueError(f"A claim was given {value}; it needs numbers to be graded, or to stay unjudged.")
        grades = {_grade(values + sign * slack, bounds) for sign in (-1, 0, 1)}
    if len(grades) == 1:
        return grades.pop()
    return "loosely" if grades == {"yes", "loosely"} else "varies"


def _grade(values: np.ndarray, bounds: Mapping[str, Any]) -> str:
    if "near" in bounds:
        miss, bound, sign = np.abs(values - np.asarray(bounds["near"], dtype=float)), bounds["within"], 1
    else:
        sign = -1 if "at_least" in bounds else 1
        miss, bound = sign * values, sign * bounds["at_least" if sign < 0 else "at_most"]
    bound, loose = (x + 1e-9 * max(1.0, abs(bound)) for x in (bound, sign * bounds.get("loosely", sign * bound)))
    if (miss <= bound).all():
        return "yes"
    return "loosely" if (miss <= loose).all() or (miss <= bound).any() else "no"


def judge(kind: str, recomputed: str | None, found: list[str], own_setting: bool, weak: bool = False) -> str:
    """Grades -> verdict.

    Args:
        kind: of the claim; measured kinds need a measurement before they can hold.
        recomputed: grade on the paper's own numbers or by theory, if there is such a check.
        found: one grade a scale that has measured it; ``own_setting`` if one of them is the paper's own.
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


def with_room(bounds: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Bounds that leave ``factor`` times the room; ``given`` ones, the paper's own and its rounding, are not moved.

    Room is ``within``, or how far a bound lies from ``ideal`` (0 if left out). The shortfall that an ``at_least`` below
    its ideal grants is taken relative to what is reached, b to (ideal - b): 1/2 becomes 1/3, never 0, which all meet.
    """
    if bounds.get("given"):
        return dict(bounds)
    ideal = bounds.get("ideal", 0.0)

    def moved(bound: float) -> float:
        if "near" in bounds:
            return factor * bound
        if "at_least" in bounds and bound < ideal:
            return ideal * bound / (bound + factor * (ideal - bound))
        return ideal + factor * (bound - ideal)

    return {k: moved(v) if k in ("within", "loosely", "at_least", "at_most") else v for k, v in bounds.items()}


def robust(verdicts: Mapping[str, str]) -> tuple[str, str]:
    """The verdict of all of ``ROOMS`` if they agree, else "undetermined" and why."""
    verdict = verdicts["as bounded"]
    others = [f"with {room} “{other}”" for room, other in verdicts.items() if other != verdict]
    if verdict == "undetermined" or not others:
        return verdict, ""
    return "undetermined", f"the size of our bound decides: “{verdict}”, but {' and '.join(others)}"


# ------------------------------------------------------------------------------------------------------------- record


def _part(place: str) -> str:
    return "recompute" if place == PRINTED else "measure"


def claim(
    id: str, value: Value, text: str = "", *,
    why: str = "", undetermined: str = "", scale: str = PRINTED, own_setting: bool = False,
) -> HTML:  # fmt: skip
    """Record what was found of a claim, judge it by this alone, and show a card.

    Args:
        value: one number, several, or a mapping from a choice of ours to either.
        text: how it reads; the numbers with their tolerances if left out.
        why: what a reader needs besides the number.
        undetermined: why the number, though measured, decides nothing (a budget too small, say).
        scale: where it was measured; ``PRINTED`` if on the paper's own numbers, or by a formula.
        own_setting: that is the paper's own setting.
    """
    entry, part = claims()[id], _part(scale)
    if part not in entry:
        raise ValueError(f"Claim {id} has no bounds to {part}; add {part} in claims.yaml.")
    grade(value, entry[part])  # what has no numbers is refused before anything is recorded
    flat = _flat(value)
    names = [f"claim {id} {name}".strip() for name in flat]
    printed = [measured.number(entry["where"], scale, name, x) for name, x in zip(names, flat.values(), strict=True)]
    labels = [f"{name}: " if name and not name.isdigit() else "" for name in flat]
    text = text or ", ".join(label + shown for label, shown in zip(labels, printed, strict=True))
    plain = json.dumps(value, default=lambda numbers: np.asarray(numbers).tolist())
    row = {"id": id, "value": plain, "text": text, "why": undetermined or why}
    row |= {"undetermined": bool(undetermined), "own_setting": own_setting}
    name = f"claims_{entry['where']}.csv"  # a run may judge some claims only; the others stay as they are committed
    known = next((_read(at / scale / name) for at in (RESULTS, COMMITTED) if (at / scale / name).exists()), None)
    known = [] if known is None else known[known.id.isin(claims())].to_dict("records")
    rows = {other["id"]: other for other in known} | {id: row}  # in the order in which they were first judged
    replace_file(RESULTS / scale / name, pd.DataFrame(rows.values()).to_csv(index=False).encode())
    if scale == PRINTED and entry["kind"] != "theory":
        entry = entry | {"kind": "paper"}  # judged alone, whatever models say
    verdict, moves = robust(_verdicts(entry, {scale: pd.Series(row)}))
    return card(entry, text, verdict, "; ".join(filter(None, [row["why"], moves])), part)


def _flat(value: Value) -> dict[str, float]:
    if isinstance(value, Mapping):
        return {f"{name} {at}".strip(): x for name, item in value.items() for at, x in _flat(item).items()}
    values = np.array(value, dtype=float, ndmin=1)
    return {str(n) if values.size > 1 else "": float(x) for n, x in enumerate(values)}


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


def ledger() -> pd.DataFrame:
    """One row a claim: what it says and where, printed, recomputed, a column a scale, verdict, why, headline.

    The columns of ``ROOMS`` hold the verdict with each room; ``verdict`` is theirs where they agree.
    """
    records = {place: _records(place) for place in (PRINTED, *SCALES)}
    return pd.DataFrame([_row(entry, records) for entry in claims().values()])


def _records(place: str) -> pd.DataFrame:
    """What was found of each claim, in this run or else in the committed one: a run may judge some claims only."""
    columns = ["id", "value", "text", "why", "undetermined", "own_setting"]
    files = [file for folder in (COMMITTED, RESULTS) for file in sorted((folder / place).glob("claims_*.csv"))]
    frame = pd.concat([pd.DataFrame(columns=columns), *map(_read, files)]).drop_duplicates("id", keep="last")
    return frame.set_index("id", drop=False)


def _read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype={"value": str, "text": str, "why": str}).fillna({"text": "", "why": ""})


def _verdicts(entry: Mapping[str, Any], found: Mapping[str, pd.Series]) -> dict[str, str]:
    """The verdict with each of ``ROOMS``, from a claim's records by place."""
    values = {place: json.loads(row.value) for place, row in found.items()}
    slack = {place: _tolerances(value, f"claim {entry['id']}", measured.spreads(entry["where"], place))
             for place, value in values.items()}  # fmt: skip

    def graded(place: str, factor: float) -> str:
        bounds = with_room(entry[_part(place)], factor)
        return "varies" if found[place].undetermined else grade(values[place], bounds, slack[place])

    models = [place for place in found if place != PRINTED]
    decided = [place for place in models if not found[place].undetermined] or models
    own = any(bool(found[place].own_setting) or place == "pythia-410m" for place in models)
    verdicts = {}
    for room, factor in ROOMS.items():
        recomputed = graded(PRINTED, factor) if PRINTED in found else None
        by_scale = [graded(place, factor) for place in decided]
        verdicts[room] = judge(entry["kind"], recomputed, by_scale, own, entry.get("weak", False))
    return verdicts


def _tolerances(value: Any, name: str, spreads: pd.Series) -> Any:
    if isinstance(value, dict):
        return {key: _tolerances(part, f"{name} {key}", spreads) for key, part in value.items()}
    names = [name] if np.size(value) == 1 else [f"{name} {n}" for n in range(len(value))]
    return [measured.MARGIN * float(spreads.get(each, 0.0)) for each in names]


def _row(entry: Mapping[str, Any], records: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    id = entry["id"]
    found = {at: frame.loc[id] for at, frame in records.items() if id in frame.index and _part(at) in entry}
    verdicts = _verdicts(entry, found)
    verdict, moves = robust(verdicts)
    whys = [(f"{place}: " if place != PRINTED else "") + row.why for place, row in found.items() if row.why]
    if verdict == "not tested here":
        whys = [entry.get("untested", f"{entry['where']} has not measured it")]
    row = {name: entry[name] for name in ("id", "section", "place", "kind")}
    row |= {"claim": entry["quote"], "printed": str(entry["printed"]), "headline": entry.get("headline", "")}
    row |= {"recomputed" if at == PRINTED else at: found[at].text if at in found else "" for at in records}
    return row | verdicts | {"verdict": verdict, "why": "; ".join(filter(None, [*whys, moves]))}


# ------------------------------------------------------------------------------------------------------------ summary


def measured_scales(frame: pd.DataFrame) -> list[str]:
    """The scales at which some claim was measured."""
    return [scale for scale in SCALES if (frame[scale] != "").any()]


def headlines(frame: pd.DataFrame) -> pd.DataFrame:
    """The claims that matter most: claim, paper, ours (and where: a scale, or the paper's own numbers), verdict."""
    scales, rows = measured_scales(frame), []
    for _, row in frame[frame.headline != ""].iterrows():
        found = [f"{row[scale]} ({scale})" for scale in scales if row[scale]]
        if row.recomputed and row.verdict != "not tested here":
            found.append(f"{row.recomputed} (recomputed)")
        rows.append((row.headline, row.printed, [*found, "–"][0], row.verdict))
    return pd.DataFrame(rows, columns=["claim", "paper", "ours", "verdict"])
