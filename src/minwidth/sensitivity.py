"""How much d* and the predicted floors depend on choices that nobody should have to guess.

``sae.measure`` at a scale's own settings, then with one of ``CHOICES`` changed at a time, each time for several
lambdas. ``python -m minwidth.sensitivity --scale tiny`` does that and writes two tables to ``data/results/<scale>``:
``sae_sensitivity.csv`` (a row an autoencoder) and ``sae_sensitivity_floors.csv`` (autoencoder x width). Each
measurement is a record of its own, and an interrupted one goes on where it stopped.
"""

import argparse
import logging
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from minwidth import errors, sae, scales, store

log = logging.getLogger(__name__)

CHOICES = {  # beside lambda: column of the tables, name in a sentence
    "layer": "the layer",
    "expansion": "latents per dimension",
    "tokens": "distinct tokens",
    "steps": "training steps",
    "seed": "the seed",
}
SMALL = 1.1  # a factor that is no dependence


def variations(scale: str) -> list[scales.Sae]:
    """The measurement that all others depart from, then those with one choice changed.

    Raises:
        ParameterError: the scale has no such grid, or a value is impossible.
    """
    if scale not in scales.SENSITIVITY:
        raise scales.ParameterError(
            f"scale = {scale!r} has no grid of choices; it can be {', '.join(scales.SENSITIVITY)}."
        )
    grid = scales.SENSITIVITY[scale]
    base = scales.parameters("03_sae", scale, **grid["base"])
    shared: dict[str, Any] = base.model_dump() | {"layers": [base.layer], "lams": grid["lams"], "doubling": False}
    found = [base]
    for choice in CHOICES:
        for value in grid[choice]:
            if value != getattr(base, choice):
                changed = {choice: value} | ({"layers": [value]} if choice == "layer" else {})
                found.append(scales.parameters("03_sae", **(shared | changed)))
    return found


def measure(scale: str) -> store.Record:
    """All measurements of a scale, computed or found, as one record.

    Returns:
        A record with the tables ``layers`` (a row an autoencoder, as ``sae.measure`` has it; ``default`` marks the one
        that all others depart from) and ``floors`` (autoencoder x width).
    """
    records, tables = [], {"layers": [], "floors": []}
    for number, p in enumerate(tqdm(variations(scale), desc="measurements", leave=False)):
        record = sae.measure(p)
        records.append(record)
        for name, parts in tables.items():
            part = record[name][record[name].layer == p.layer].assign(steps=p.steps)
            if name == "layers":
                part["default"] &= number == 0
            parts.append(part)
        log.info("%s, %d of %d", record.key, number + 1, len(variations(scale)))
    what, parameters = f"sae/{scale}/sensitivity", {"records": [record.key for record in records]}
    joined = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    seconds = sum(record.provenance["seconds"] for record in records)
    return store.find(what, parameters) or store.keep(what, parameters, joined, seconds)


# ------------------------------------------------------------------------------------------------- reading the table


def along(table: pd.DataFrame, choice: str) -> pd.DataFrame:
    """The rows in which nothing but ``choice`` and lambda departs from the default."""
    default = table[table["default"]].iloc[0]
    others = [name for name in CHOICES if name != choice]
    return table[(table[others] == default[others]).all(axis=1)].sort_values([choice, "lam"])


def crossing(part: pd.DataFrame) -> float:
    """The lambda at which d* = d_T, between the two that enclose it; 0 or infinity if d* lies below or above at all."""
    part = part.sort_values("lam")
    excess = np.log(part.d_star / part.d_teacher).to_numpy()
    if (excess <= 0).all():
        return 0.0
    if (excess > 0).all():
        return np.inf
    last = np.flatnonzero(excess > 0)[-1]  # above d_T for the last time
    if last == len(excess) - 1:
        return np.inf
    share = excess[last] / (excess[last] - excess[last + 1])
    lam = np.log(part.lam.to_numpy())
    return float(np.exp(lam[last] + share * (lam[last + 1] - lam[last])))


def with_floors(table: pd.DataFrame, floors: pd.DataFrame) -> pd.DataFrame:
    """``table`` with ``left``: Eq. 2 at half the teacher's width (or the next below), relative to the narrowest."""
    names = ["lam", *CHOICES]
    floors = floors.merge(table[[*names, "d_teacher"]], on=names).sort_values("width")
    narrowest = floors.groupby(names).eq2.first()
    half = floors[floors.width <= floors.d_teacher / 2].groupby(names).eq2.last()
    left = (half / narrowest).rename("left").reset_index()
    return table.drop(columns="left", errors="ignore").merge(left, on=names)


def spread(table: pd.DataFrame, floors: pd.DataFrame) -> pd.DataFrame:
    """A row a choice, lambda first: what d*, the lambda at d* = d_T and Eq. 2 do while it alone changes.

    ``factor`` is the spread of d* at the default lambda, ``worst`` at the lambda where it is largest.
    """
    table = with_floors(table, floors)
    default = table[table["default"]].iloc[0]
    rows = []
    for choice in ("lam", *CHOICES):
        part = along(table, choice) if choice != "lam" else along(table, "layer")
        if choice != "lam":
            crossings = [crossing(group) for _, group in part.groupby(choice)]
            worst = part.groupby("lam").d_star.agg(_factor).max()
            part = part[part.lam == default.lam]
        else:
            part = part[part.layer == default.layer]
            crossings = [crossing(part)]
            worst = _factor(part.d_star)
        if part[choice].nunique() > 1:
            ratio = part.d_star / part.d_teacher
            rows.append(
                {
                    "choice": choice, "tried": ", ".join(f"{value:g}" for value in sorted(part[choice].unique())),
                    "low": ratio.min(), "high": ratio.max(), "factor": _factor(ratio), "worst": worst,
                    "crossing_low": min(crossings), "crossing_high": max(crossings),
                    "left_low": part.left.min(), "left_high": part.left.max(),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _factor(values: pd.Series) -> float:
    return values.max() / values.min()


def about(table: pd.DataFrame, floors: pd.DataFrame) -> str:
    """What survives, in words (Markdown): whether d* > d_T is a property of the model or of lambda."""
    found = spread(table, floors).set_index("choice")
    by_lam, others = found.loc["lam"], found.drop(index="lam")
    factors = ", ".join(f"{CHOICES[choice]} by {row.factor:.2f} ({row.worst:.2f})" for choice, row in others.iterrows())
    said = [
        f"λ from {table.lam.min():g} to {table.lam.max():g} changes d* by a factor of {by_lam.factor:.1f}; "
        f"at the default λ (and at the λ where it does most), {factors}."
    ]
    settings = [crossing(part) for _, part in table.groupby(list(CHOICES))]
    both = [value for value in settings if 0 < value < np.inf]
    if both:
        said.append(
            f"In {len(both)} of {len(settings)} settings of everything else both answers occur, d* > d_T for small λ "
            f"and d* < d_T for large; they meet at λ between {min(both):.2g} and {max(both):.2g}."
        )
    if len(both) == len(settings):
        verdict = "Whether the teacher is in superposition is a property of λ, not of the model."
    elif both:
        verdict = (
            f"λ decides in {len(both) / len(settings):.0%} of the settings whether the teacher is in superposition."
        )
    else:
        verdict = "λ does not decide whether the teacher is in superposition: over those tried, the answer is the same."
    said += [f"**{verdict}**", _survivors(table, others)]
    said.append(
        f"The floor that Eq. 2 predicts at half the teacher's width goes from {by_lam.left_low:.2g} to "
        f"{by_lam.left_high:.2g} of the narrowest student's by λ alone."
    )
    return " ".join(text for text in said if text)


def _survivors(table: pd.DataFrame, others: pd.DataFrame) -> str:
    """What does not hang on lambda, choices that hardly matter and perhaps the order of the layers; and what does."""
    survives, changes = [], ""
    calm = others[others.factor < SMALL]
    if len(calm):
        names = " and ".join(CHOICES[choice] for choice in calm.index)
        where = "" if (calm.worst < SMALL).all() else " at the default λ"
        survives.append(f"{names} {'hardly matter' if len(calm) > 1 else 'hardly matters'}{where}")
    if "layer" in others.index:
        orders = along(table, "layer").pivot_table(index="lam", columns="layer", values="d_star").dropna()
        same = (np.argsort(orders.to_numpy(), axis=1) == np.argsort(orders.loc[orders.index[0]].to_numpy())).all(axis=1)
        if same.all():
            survives.append("the layers keep their order by d* at every λ")
        else:
            changes = "Even the order of the layers by d* changes with λ."
    survival = f"What survives: {'; '.join(survives)}." if survives else ""
    return " ".join(text for text in (survival, changes) if text)


# ----------------------------------------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> None:
    """Measure everything the scale's grid asks for and write its tables; records found are kept."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.sensitivity", description=main.__doc__)
    parser.add_argument("--scale", default="tiny", choices=list(scales.SENSITIVITY))
    scale = parser.parse_args(arguments).scale
    record = measure(scale)
    store.save_results(scale, "sae_sensitivity", record["layers"], record)
    store.save_results(scale, "sae_sensitivity_floors", record["floors"], record)
    log.info("%s", about(record["layers"], record["floors"]))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors.in_one_sentence():
        main()
