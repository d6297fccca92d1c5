"""What ``make paper`` left in MINWIDTH_OUT: its verdicts, what differs from the committed, the time; or copied over."""

import argparse
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from minwidth import ledger, measured
from minwidth.scales import SCALES
from minwidth.store import COMMITTED, FIGURES, OUT, RESULTS, ROOT, RUNS, replace_file

RELATIVE = 0.03  # by which a number may differ whose spread has not been measured
START, END = "<!-- ledger:start -->", "<!-- ledger:end -->"  # of the README's summary


def compare() -> pd.DataFrame:
    """A row for each table of this run that is committed too: ``table, differs`` (empty where it equals the other)."""
    files = [file.relative_to(RESULTS) for scale in SCALES for file in sorted((RESULTS / scale).glob("*.csv"))]
    both = [file for file in files if (COMMITTED / file).exists()]
    rows = [(str(file.with_suffix("")), difference(RESULTS / file, COMMITTED / file)) for file in both]
    return pd.DataFrame(rows, columns=["table", "differs"])


def difference(new: Path, old: Path) -> str:
    """Where two tables differ, in a few words; empty where they are equal within their tolerance.

    Printed numbers (``numbers_*.csv``, a claim's among them) have that of ``measured``, others ``RELATIVE``.
    """
    ours, theirs = pd.read_csv(new), pd.read_csv(old)
    if new.stem.startswith("claims_"):
        judged = [frame.set_index("id")[["undetermined", "own_setting"]].sort_index() for frame in (ours, theirs)]
        return "" if judged[0].equals(judged[1]) else "other claims were judged"
    if new.stem.startswith("numbers_"):
        both = ours.merge(theirs, on="name", how="outer", suffixes=("", "_old")).set_index("name")
        return _worst(both.value, both.value_old, measured.MARGIN * both.spread_old)
    if list(ours.columns) != list(theirs.columns) or len(ours) != len(theirs):
        return f"{ours.shape[0]} x {ours.shape[1]} for {theirs.shape[0]} x {theirs.shape[1]} entries"
    for name in ours:
        if pd.api.types.is_numeric_dtype(ours[name]) and pd.api.types.is_numeric_dtype(theirs[name]):
            numbers = [frame[name].astype(float).set_axis([name] * len(frame)) for frame in (ours, theirs)]
            if found := _worst(*numbers, pd.Series(math.nan, numbers[1].index)):
                return found
        elif not ours[name].equals(theirs[name]):
            return f"{name} has other entries"
    return ""


def _worst(new: pd.Series, old: pd.Series, slack: pd.Series) -> str:
    """The number that lies furthest beyond its slack, as ``name 3 for 2``; ``RELATIVE`` where that is not known."""
    slack = slack.fillna(RELATIVE * old.abs()).clip(lower=measured.NOTHING)
    beyond = ((new - old).abs() / slack).fillna(0.0).mask(new.isna() != old.isna(), np.inf).to_numpy()
    if not len(beyond) or beyond.max() <= 1:
        return ""
    at = int(beyond.argmax())
    return f"{new.index[at]} {new.iloc[at]:.3g} for {old.iloc[at]:.3g}"


def stages(scale: str) -> pd.DataFrame:
    """What each job of the pipeline took when it ran last: ``stage, minutes, CPU minutes, GB`` of memory."""
    files = sorted((RUNS / scale / "benchmarks").rglob("*.tsv"))
    found = {file.stem: pd.read_csv(file, sep="\t", na_values="-").iloc[-1] for file in files}
    rows = [(stage, last.s / 60, last.cpu_time / 60, last.max_rss / 1024) for stage, last in found.items()]
    table = pd.DataFrame(rows, columns=["stage", "minutes", "CPU minutes", "GB"])
    return table.sort_values("minutes", ascending=False, ignore_index=True)


def publish() -> Iterator[Path]:
    """Copy this run's tables and figures to where they are committed; those of other parameters stay away."""
    for source, target in ((RESULTS, COMMITTED), (FIGURES, ROOT / "figures")):
        for file in sorted(path for path in source.rglob("*") if path.is_file() and "other" not in path.parts):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            yield copy


def in_readme(text: str, frame: pd.DataFrame) -> str:
    """A README with the ledger's summary between its markers: verdicts counted, and the headline claims."""
    table = ledger.headlines(frame).map(lambda cell: cell.replace("|", r"\|"))
    lines = ["| " + " | ".join(line) + " |" for line in [table.columns, ["---"] * table.shape[1], *table.to_numpy()]]
    block = "\n".join([START, "", counted(frame, "**{}**"), "", *lines, "", END])
    return re.sub(f"{START}.*{END}", lambda _: block, text, flags=re.DOTALL)


def counted(frame: pd.DataFrame, style: str = "{}") -> str:
    """How many claims have which verdict."""
    total = frame.verdict.value_counts()
    said = ", ".join(f"{v} {style.format(total[v])}" for v in ledger.VERDICTS if v in total)
    return f"{len(frame)} claims: {said}."


def main() -> None:
    """Print the headline claims; copy a run's tables and figures over the committed ones, or compare them."""
    parser = argparse.ArgumentParser(prog="python -m workflow.publish", description=main.__doc__)
    parser.add_argument("--compare", metavar="SCALE", help="copy nothing; say what differs and where the time went")
    scale = parser.parse_args().compare
    if OUT == ROOT:
        raise SystemExit("Name the folder of the run with MINWIDTH_OUT, as make paper and make publish do.")
    frame, readme = ledger.ledger(), ROOT / "README.md"
    print(ledger.headlines(frame).to_string(index=False), counted(frame), sep="\n\n")
    if not scale:
        replace_file(readme, in_readme(readme.read_text(), frame).encode())
        print(f"\n{sum(1 for _ in publish())} tables and figures copied from {OUT}; git diff shows what has changed.")
        return
    table, took = compare(), stages(scale)
    differ = [f"{row.table} ({row.differs})" for row in table.itertuples() if row.differs]
    equal = f"{len(table) - len(differ)} of {len(table)} tables equal the committed ones within their tolerance"
    print(f"\n{equal}; these differ: {', '.join(differ)}" if differ else f"\n{equal}.")
    if len(took):
        print("\nWhere the time went:", took.round(1).to_string(index=False), sep="\n")


if __name__ == "__main__":
    main()
