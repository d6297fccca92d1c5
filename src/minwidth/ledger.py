"""The ledger: the paper's claims + its tables + our results -> one table of verdicts, none of them typed.

``data/paper/claims.yaml`` names a check for each claim and what its value must be. A check is one of the functions
below: ``recompute`` checks get the paper's tables, ``measure`` checks get ``load(name)``, one scale's result table of
that name. Both return a ``Finding``; ``grade`` compares it with the tolerance, ``judge`` turns grades into a verdict.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from minwidth import calibration, capacity, runs
from minwidth.calibration import r_squared
from minwidth.paths import DATA, OUT, replace_file
from minwidth.scales import SCALES

PAPER = DATA / "paper"
VERDICTS = (
    "holds",
    "holds at our scale",
    "holds loosely",
    "does not hold",
    "contradicts the paper itself",
    "not tested here",
)
KINDS = ("paper", "theory", "toy", "sae", "distill", "probe")
EXACT = {
    "layer",
    "width",
    "alive_features",
    "kept_features",
    "dropped_features",
    "layers",
    "heads",
    "ffn_width",
}  # counts
Load = Callable[[str], pd.DataFrame]


class Finding(NamedTuple):
    """What a check found: the number(s) to be graded, how they read, and whether this was the paper's own setting."""

    value: float | Iterable[float]
    text: str
    why: str = ""
    own_setting: bool = False


class Untested(LookupError):
    """A check has nothing to work on; the message says what is missing."""


class Paper(NamedTuple):
    """The paper's tables by short name (``table1`` ... ``table8``): values, and half a unit of each last digit."""

    values: dict[str, pd.DataFrame]
    rounding: dict[str, pd.DataFrame]
    numbers: dict[str, float]
    claims: list[dict[str, Any]]


# -------------------------------------------------------------------------------------------------- the paper's numbers


def half_unit(printed: str) -> float:
    """Half a unit of the last printed digit: "1.320" -> 0.0005, "27" -> 0.5, "" -> nan."""
    return 0.5 * 10.0 ** -len(printed.partition(".")[2]) if printed else math.nan


def load_paper(folder: Path = PAPER) -> Paper:
    """Read the transcribed tables, the text's numbers and the claims.

    Raises:
        ValueError: a claim lacks a field, names no known check, or two share an id.
    """
    values, rounding = {}, {}
    for path in sorted(folder.glob("table*.csv")):
        printed = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns="corrected")
        name = path.stem.partition("_")[0]
        numeric = [column for column in printed if printed[column].str.fullmatch(r"-?[\d.]+|").all()]
        values[name] = printed.assign(**{column: pd.to_numeric(printed[column]) for column in numeric})
        rounding[name] = printed[numeric].map(half_unit)
        exact = EXACT | ({"alpha"} if name == "table7" else set())  # a grid, not measurements
        rounding[name][[column for column in numeric if column in exact]] = 0.0
    text = pd.read_csv(folder / "text_numbers.csv").set_index("name")["value"]
    claims = yaml.safe_load((folder / "claims.yaml").read_text())
    for claim in claims:
        _check_claim(claim)
    if len({claim["id"] for claim in claims}) < len(claims):
        raise ValueError("Two claims in claims.yaml share an id; each needs its own.")
    return Paper(values, rounding, text.to_dict(), claims)


def _check_claim(claim: dict[str, Any]) -> None:
    name = claim.get("id", "without an id")
    fields = {"id", "place", "section", "sentence", "printed", "kind", "how"}
    if missing := sorted(fields - claim.keys()):
        raise ValueError(f"Claim {name} lacks {', '.join(missing)}; every claim in claims.yaml needs it.")
    if unknown := sorted(claim.keys() - fields - {"recompute", "measure", "untested", "headline"}):
        raise ValueError(
            f"Claim {name} has the unknown field {unknown[0]!r}; a verdict, say, is computed, never typed."
        )
    if claim["kind"] not in KINDS:
        raise ValueError(f"Claim {name} is of kind {claim['kind']!r}; it can be {', '.join(KINDS)}.")
    if not claim.keys() & {"recompute", "measure", "untested"}:
        raise ValueError(f"Claim {name} has no check; give recompute, measure or untested.")
    for part in ("recompute", "measure"):
        if part in claim and claim[part]["check"] not in CHECKS:
            raise ValueError(f"Claim {name} names the check {claim[part]['check']!r}, which ledger.py does not have.")


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
    slope = (x @ y) / (x @ x)
    return slope, r_squared(y, slope * x)


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


def digits(values: Iterable[float], decimals: int) -> str:
    """Numbers as a table prints them, thousands by comma, minus signs as signs."""
    return " ".join(f"{value:,.{decimals}f}" for value in values)


# --------------------------------------------------------------------- checks on the paper's own numbers (and formulas)


def derived(paper: Paper, cells: list[str], rows: list[int] | None = None) -> Finding:
    """How many cells of these columns rounding cannot explain; shows the last column, or the row if it is one."""
    frames = [rederive(paper, column) for column in cells]
    if rows is not None:
        frames = [frame[frame["row"].isin(rows)] for frame in frames]
    cell = pd.concat(frames)
    shown = cell if rows is not None and len(rows) == 1 else frames[-1]
    text = " ".join(f"{value:,.{_decimals(half)}f}" for value, half in zip(shown["value"], shown["half"], strict=True))
    agree = int(cell["agrees"].sum())
    return Finding(
        len(cell) - agree, text, f"{agree} of {len(cell)} printed cells follow from the others, within rounding"
    )


def _decimals(half: float) -> int:
    return max(0, round(-math.log10(2 * half))) if half > 0 else 0


def identity(paper: Paper) -> Finding:
    features, l0 = paper.values["table1"]["alive_features"], paper.values["table1"]["mean_l0"]
    ours, law = capacity.critical_width(features, 1 - l0 / features), l0 * np.log(features / l0)
    return Finding(float(np.abs(ours / law - 1).max()), f"L0 ln(F/L0) = {digits(law, 0)}", "the same number, exactly")


def ideal_decoder(paper: Paper) -> Finding:
    features, l0 = paper.values["table1"].loc[1, ["alive_features", "mean_l0"]]
    alpha, importance, width = 1 - l0 / features, capacity.zipf(int(features)), paper.values["table2"]["width"]
    ideal = capacity.ideal_decoder_floor(importance, width, alpha)
    eq2 = capacity.eq2_floor(importance, width, alpha, capacity.second_moment(alpha))
    below = ideal < eq2
    why = (
        f"real numbers hold any feature count; at d_S = {width[0]} this decoder loses {ideal[0] / eq2[0]:.0%} of Eq. 2"
    )
    return Finding(float(below.mean()), f"{below.sum()} of {len(width)} below", why)


def g_at_zero(paper: Paper) -> Finding:
    value = float(capacity.g(1e-6))
    return Finding(value, f"g(1e-6) = {value:.1e}", f"g has a pole at 0: g(0.01) = {capacity.g(0.01):.1f}")


def _alphas() -> np.ndarray:
    return np.linspace(0, 1, 10_001)[1:-1]


def g_falls(paper: Paper) -> Finding:
    alpha = _alphas()
    least = alpha[capacity.g(alpha).argmin()]
    text = f"falls until {least:.3f}"
    return Finding(
        least, text, f"g has its minimum, {capacity.g(alpha).min():.3f}, at alpha = 1 - 1/e, and a pole at 0"
    )


def critical_width_rises(paper: Paper) -> Finding:
    alpha = _alphas()
    alpha = alpha[alpha >= 0.5]
    rises = float((np.diff(1 / capacity.g(alpha)) > 0).mean())
    return Finding(rises, f"rises on {rises:.0%} of the axis", "F/g rises until alpha = 1 - 1/e = 0.632")


def g_measured(paper: Paper) -> Finding:
    row = paper.values["table1"].loc[1]
    value = float(capacity.g(1 - row["mean_l0"] / row["alive_features"]))
    return Finding(value, f"{value:.2f}")


def g_of(paper: Paper, alpha: float) -> Finding:
    value, high = float(capacity.g(alpha)), paper.values["table1"].loc[1]
    belongs = np.interp(27.0, capacity.g(np.linspace(0.99, 0.995, 5001)), np.linspace(0.99, 0.995, 5001))
    why = f"27.0 belongs to alpha = {belongs:.4f}, as Table 1's layer 12 has it: {high['alpha']}"
    return Finding(value, f"{value:.2f}", why)


@cache
def toy_grid() -> pd.DataFrame:
    """The paper's sweep, 312 rows: n, alpha, teacher_width, width and the floors of Eq. 2 and of the naive formula."""
    cells = itertools.product((10, 20, 40), (0.80, 0.90, 0.95, 0.99), (3, 5, 8, 10))
    rows = [(n, a, teacher, d) for n, a, teacher in cells for d in range(1, teacher + 1)]
    grid = pd.DataFrame(rows, columns=["n", "alpha", "teacher_width", "width"])
    floors = [
        [float(capacity.eq2_floor(capacity.zipf(n), d, a, capacity.second_moment(a), c)) for c in (None, 1)]
        for n, a, d in zip(grid.n, grid.alpha, grid.width, strict=True)
    ]
    return grid.assign(eq2=[pair[0] for pair in floors], naive=[pair[1] for pair in floors])


def toy_points(paper: Paper) -> Finding:
    grid = toy_grid()
    counts = grid[grid.eq2 > 0].groupby("alpha").size()
    configurations = len(grid[["n", "alpha", "teacher_width"]].drop_duplicates())
    text = f"{configurations}, {counts.sum()}"
    sums = " + ".join(str(count) for count in counts)
    return Finding(float(counts.sum()), text, f"of {len(grid)} points those with Eq. 2 above zero ({sums} by sparsity)")


def overestimation(paper: Paper) -> Finding:
    grid, number = toy_grid(), paper.numbers
    if not (grid.naive >= grid.eq2).all():
        raise AssertionError("the naive floor fell below Eq. 2")
    gaps = [number[f"fig10_r2_refined_a0{a}"] - number[f"fig10_r2_naive_a0{a}"] for a in (80, 90)]
    why = "naive >= Eq. 2 everywhere, so were Eq. 2 too high, naive would fit worse; Fig. 10 has it fit better"
    return Finding(min(gaps), f"R² of Eq. 2 less naive's {digits(gaps, 2)}", why)


def _plateau(frame: pd.DataFrame, floor: str) -> tuple[float, int]:
    first = frame[frame.width == 1].set_index(["n", "alpha", "teacher_width"])[floor]
    frame = frame.join(first.rename("first"), on=["n", "alpha", "teacher_width"])
    below = frame[(frame.width < capacity.critical_width(frame.n, frame.alpha)) & (frame.width > 1)]
    return float((below[floor] / below["first"]).mean()), len(below)


def plateau_of_eq2(paper: Paper) -> Finding:
    value, count = _plateau(toy_grid(), "eq2")
    return Finding(value, f"{value:.2f}", f"Eq. 2 itself falls steadily: {value:.2f} on average over {count} points")


def feature_death(paper: Paper) -> Finding:
    alive = paper.values["table1"]["alive_features"]
    dead = 100 * (1 - alive / paper.numbers["sae_latents"])
    return Finding(dead[1:].tolist(), f"{digits(dead[1:], 1)} %", f"Table 1 leaves {dead[0]:.1f} % dead at layer 8")


def l0_layer8(paper: Paper) -> Finding:
    row = paper.values["table1"].loc[0]
    would = float(capacity.critical_width_from_l0(row["alive_features"], paper.numbers["sae_l0_layer8"]))
    return Finding(row["mean_l0"], f"{row['mean_l0']}", f"7,400 would put the critical width at {would:,.0f}")


def l0_deeper(paper: Paper) -> Finding:
    l0 = paper.values["table1"]["mean_l0"][1:]
    return Finding(l0.tolist(), digits(l0, 1))


def critical_width_readings(paper: Paper) -> Finding:
    row, latents = paper.values["table1"].loc[1], paper.numbers["sae_latents"]
    alive, l0 = row["alive_features"], row["mean_l0"]
    value = [
        float(capacity.critical_width(f, 1 - l0 / n)) for f, n in ((alive, alive), (alive, latents), (latents, latents))
    ]
    why = f"with alpha over all {latents:,.0f} latents {value[1]:.0f}, with F over all of them too {value[2]:,.0f}"
    return Finding(value, digits(value, 0), f"{why}: the verdict hangs on what is counted")


def superposition_printed(paper: Paper) -> Finding:
    ratios = paper.values["table1"]["critical_width"] / paper.numbers["teacher_width"]
    return Finding(ratios.tolist(), digits(ratios, 2))


def layer_spread(paper: Paper) -> Finding:
    widths = paper.values["table1"]["critical_width"]
    return Finding(widths.max() / widths.min() - 1, f"{widths.max() / widths.min() - 1:.1%}")


def _exponents(kept: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Local power-law exponents of importance over rank, from the floors at increasing widths."""
    kept, floor = np.asarray(kept, dtype=float), np.asarray(floor, dtype=float)
    density = -np.diff(floor) / np.diff(kept)
    middle = np.sqrt(kept[1:] * kept[:-1])
    return -np.diff(np.log(density)) / np.diff(np.log(middle))


def importance_exponents(paper: Paper) -> Finding:
    table = paper.values["table2"]
    slopes = _exponents(table["kept_features"], table["predicted_floor"])
    why = f"the exponent grows along the tail, {digits(slopes, 1)}: no one power law"
    return Finding(slopes.max() / slopes.min(), digits(slopes, 1), why)


def importance_exponent(paper: Paper) -> Finding:
    value = paper.numbers["importance_exponent"]
    return Finding(value, f"{value}", f"section 6.3 gives {value}, Table 2 {importance_exponents(paper).text}")


def cliff(paper: Paper) -> Finding:
    table = paper.values["table2"]
    mean = (table.predicted_floor[0] - table.predicted_floor[1]) / (table.kept_features[1] - table.kept_features[0])
    orders = math.log10(mean / paper.numbers["cliff_importance"])
    why = f"sorted importances with that mean are above it at rank {table.kept_features[0]:,}: no cliff to 1e-7 before"
    return Finding(orders, f"{mean:.1e}", why)


def lost_share(paper: Paper) -> Finding:
    value = 100 * paper.values["table2"]["dropped_features"][0] / paper.values["table1"]["alive_features"][1]
    return Finding(value, f"{value:.1f} %")


def predicted_orders(paper: Paper) -> Finding:
    floors = paper.values["table2"]["predicted_floor"]
    value = math.log10(floors.iloc[0] / floors.iloc[-1])
    return Finding(value, f"{value:.1f}")


def _ladder(paper: Paper) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The paper's ladder: width, L* of Table 2 and the loss of Table 3 in nats per token (raw/2048)."""
    table = paper.values["table2"]
    return tuple(np.array(x) for x in (table.width, table.predicted_floor, paper.values["table3"].raw_kl / 2048))


def inversions(paper: Paper) -> Finding:
    _, _, loss = _ladder(paper)
    rises = int((np.diff(loss) >= 0).sum())
    return Finding(rises, digits(loss, 3), f"{rises} of {len(loss) - 1} neighbours out of order")


def fall_per_doubling_of_steps(paper: Paper) -> Finding:
    fall, steps = paper.numbers["longer_fall_percent"] / 100, paper.numbers["distill_steps"]
    doubling = 100 * (1 - (1 - fall) ** (1 / math.log2(paper.numbers["longer_steps"] / steps)))
    why = (
        f"a third more steps still lower the loss by {100 * fall:.1f} %, {doubling:.1f} % per doubling: an upper bound"
    )
    return Finding(doubling, f"{doubling:.1f} %", why)


def seed_gap(paper: Paper) -> Finding:
    value = 100 * paper.numbers["seed_gap"] / paper.values["table3"]["raw_kl"][0]
    return Finding(value, f"{value:.3f} %", "two seeds at one width")


def control_share(paper: Paper) -> Finding:
    _, floor, loss = _ladder(paper)
    value = 100 * paper.values["table4"]["slope_c"][1] * floor[-1] / loss[-1]
    return Finding(
        value, f"{value:.2f} %", f"Eq. 2 gives {floor[-1]} at d_S = 1024, C times that {value:.2f} % of {loss[-1]:.3f}"
    )


def baseline_gap(paper: Paper) -> Finding:
    value = 100 * (paper.numbers["baseline_fitted"] / paper.numbers["baseline_measured"] - 1)
    return Finding(value, f"{value:.1f} %")


def fixed_baseline_slope(paper: Paper) -> Finding:
    _, floor, loss = _ladder(paper)
    fit = calibration.fixed_baseline(floor[:-1], loss[:-1], paper.numbers["baseline_measured"])
    slope, five = fit.parameters["slope"], r_squared(loss, fit.predict(floor))
    why = f"then R² is {fit.r_squared:.3f} on four points and {five:.3f} on five; 0.993 is two parameters on five"
    return Finding(slope, f"C = {slope:.2f}", why)


def line_slope(paper: Paper) -> Finding:
    _, floor, loss = _ladder(paper)
    fit, printed = calibration.through_zero(floor, loss), paper.values["table4"]["slope_c"][0]
    slope, other = fit.parameters["slope"], r_squared(loss, printed * floor)
    why = f"C = {slope:.2f} has R² = {fit.r_squared:.2f}; {printed} would have {other:.2f}"
    return Finding(slope, f"C = {slope:.2f}", why)


def line_r2(paper: Paper) -> Finding:
    _, floor, loss = _ladder(paper)
    value = calibration.through_zero(floor, loss).r_squared
    return Finding(value, f"R² = {value:.3f}")


def rival_predictors(paper: Paper) -> Finding:
    width, floor, loss = _ladder(paper)
    shapes = {"Eq. 2": floor, "ln(1024/d)": np.log(1024 / width), "1/d": 1 / width, "1/sqrt(d)": width**-0.5}
    fits = {name: calibration.affine(x, loss) for name, x in shapes.items()}
    each = (f"{name} {fit.r_squared:.3f} {fit.leave_one_out:.3f}" for name, fit in fits.items())
    why = f"R² and R² left out: {', '.join(each)}"
    ours = fits.pop("Eq. 2").leave_one_out
    best = max(fit.leave_one_out for fit in fits.values())
    return Finding(ours - best, f"{ours:.3f} against {best:.3f}", why)


def decomposition_gap(paper: Paper) -> Finding:
    table = paper.values["table5"]
    sums = table.geometric + table.baseline
    why = f"the sums are {digits(sums, 3)}; C = 8.97 is the fit with B = 0.623, Table 5 pairs it with 0.586"
    return Finding(float((sums - table.observed).abs().max()), digits(sums, 3), why)


def geometric_share_gap(paper: Paper) -> Finding:
    _, floor, loss = _ladder(paper)
    shares = 100 * paper.values["table4"]["slope_c"][1] * floor / loss
    gap = float(np.abs(shares - paper.values["table5"]["geometric_percent"]).max())
    return Finding(gap, digits(shares, 1), f"C L*/observed is up to {gap:.1f} points off the printed share")


def power_law(paper: Paper) -> Finding:
    width, _, loss = _ladder(paper)
    fit = calibration.power_law(width, loss)
    scale, exponent, asymptote = (fit.parameters[name] for name in ("scale", "exponent", "asymptote"))
    why = f"{scale:.1f} d^-{exponent:.2f} + {asymptote:.2f}: three parameters, five points"
    return Finding(fit.r_squared, f"R² = {fit.r_squared:.3f}", why)


def asymptote(paper: Paper) -> Finding:
    value = paper.numbers["eq4_asymptote"]
    return Finding(
        value, f"{value}", f"the power law fits better ({power_law(paper).text}) and ends at {value}, not at B"
    )


def predicted_falls(paper: Paper) -> Finding:
    table = paper.values["table2"].set_index("width")["predicted_floor"]
    falls = [100 * (1 - table[2 * d] / table[d]) for d in (128, 256, 512)]
    why = f"28 % is 1 - 2^-{paper.numbers['eq4_exponent']}, Eq. 4's exponent; Eq. 2 falls by {digits(falls, 0)} %"
    return Finding(falls, f"{digits(falls, 0)} %", why)


def tail_exponent(paper: Paper) -> Finding:
    value = paper.numbers["importance_exponent"] - 1
    return Finding(value, f"{value:.2f}", "the tail of a power law falls with its exponent less 1")


def normalized_limit(paper: Paper) -> Finding:
    value = paper.numbers["baseline_measured"] / paper.values["table3"]["kl_per_token"][0]
    return Finding(value, f"{value:.3f}")


def naive_slope_gap(paper: Paper) -> Finding:
    number = paper.numbers
    slope = math.sqrt(12) * math.log(number["vocabulary"] / number["teacher_width"])
    value = 100 * (slope / paper.values["table4"]["slope_c"][1] - 1)
    return Finding(value, f"{slope:.2f}", f"the arithmetic is right, and {value:.0f} % above C")


def _changes(paper: Paper, width: int) -> pd.Series:
    """Student minus teacher accuracy of each concept, in points as printed."""
    wide = paper.values["table6"].set_index(["concept", "model", "width"])["accuracy_percent"]
    return wide.xs(("student", width), level=[1, 2]) - wide.xs("teacher", level=1).droplevel("width")


def probe_mean_change(paper: Paper) -> Finding:
    tests = paper.numbers["probe_examples"] * paper.numbers["probe_test_percent"] / 100
    table = paper.values["table6"]
    counts = np.rint(table["accuracy_percent"] * tests / 100)
    exact = paper._replace(values={"table6": table.assign(accuracy_percent=100 * counts / tests)})
    value, printed = _changes(exact, 128).abs().mean(), _changes(paper, 128).abs().mean()
    why = f"the printed digits alone give {printed:.2f}; as counts out of {tests:.0f} they give {value:.3f}"
    return Finding(value, f"{value:.2f} pp", why)


def probe_examples(paper: Paper) -> Finding:
    changes = _changes(paper, 128)
    values = [changes["sport"], changes["code"]]
    return Finding(values, ", ".join(f"{value:+.1f}" for value in values) + " pp")


def probe_largest_shift(paper: Paper) -> Finding:
    largest = {width: _changes(paper, width).abs().max() for width in (128, 768, 1024)}
    width = max(largest, key=largest.get)
    concept = _changes(paper, width).abs().idxmax()
    why = f"the largest is {concept} where nothing is compressed; at d_S = 128 it is {largest[128]:.1f}"
    return Finding(width, f"{largest[width]:.1f} pp at {width}", why)


def probe_largest_z(paper: Paper) -> Finding:
    tests = paper.numbers["probe_examples"] * paper.numbers["probe_test_percent"] / 100
    wide = paper.values["table6"].set_index(["concept", "model", "width"])["accuracy_percent"] / 100
    student, teacher = wide.xs(("student", 128), level=[1, 2]), wide.xs("teacher", level=1).droplevel("width")
    z = (student - teacher) / np.sqrt((student * (1 - student) + teacher * (1 - teacher)) / tests)
    worst = z.abs().idxmax()
    return Finding(
        z.abs().max(),
        f"|z| = {z.abs().max():.2f} ({worst})",
        f"{(z.abs() > 1.96).sum()} of {len(z)} changes exceed 1.96",
    )


def probe_lowest(paper: Paper) -> Finding:
    table = paper.values["table6"]
    value = table[(table.model == "student") & (table.width == 128)]["accuracy_percent"].min()
    return Finding(value, f"{value:.1f} %")


# ------------------------------------------------------------------------------------------------ checks on our results


def _toy(load: Load) -> tuple[pd.DataFrame, bool]:
    """The toy sweep, and whether it is the paper's own: all 312 points, 20 seeds or more each."""
    frame = load("toy_points")
    return frame, len(frame) == 312 and frame.seeds.min() >= 20


def _points(frame: pd.DataFrame, points: int) -> pd.DataFrame:
    return frame if points == 312 else frame[frame.eq2 > 0]


def toy_share_above(load: Load) -> Finding:
    frame, own = _toy(load)
    above = float((frame.floor_min >= 0.99 * frame.eq2).mean())
    zero = int((frame.eq2 == 0).sum())
    why = f"true at {above:.0%} of {len(frame)} points, at {zero} of them because the bound is zero"
    return Finding(above, f"{above:.0%}", why, own)


def toy_share_overestimated(load: Load) -> Finding:
    frame, own = _toy(load)
    above = float((frame.eq2 >= frame.floor_mean).mean())
    return Finding(above, f"{above:.0%}", f"Eq. 2 is above the floor at {above:.0%} of points", own)


def toy_boundary_error(load: Load) -> Finding:
    frame, own = _toy(load)
    near = frame[(frame.width / capacity.critical_width(frame.n, frame.alpha) - 1).abs() <= 0.25]
    value = float(100 * ((near.eq2 - near.floor_mean).abs() / near.floor_mean).median())
    return Finding(value, f"{value:.0f} %", f"median over {len(near)} points near d*", own)


def toy_capacity(load: Load) -> Finding:
    frame, own = _toy(load)
    if "represented" not in frame:
        raise Untested("the number of represented features was not kept")
    frame = frame[frame.eq2 > 0]  # else the budget is above n
    ratio = frame.represented / capacity.features_kept(frame.width, frame.alpha)
    by_alpha = (frame.represented / frame.width).groupby(frame.alpha).mean()
    why = f"features a dimension by sparsity {digits(by_alpha, 1)}, g = {digits(capacity.g(by_alpha.index), 1)}"
    return Finding(float(ratio.median()), f"{ratio.median():.2f}", why, own)


def _correlation(frame: pd.DataFrame, predictor: str) -> float:
    return float(np.corrcoef(frame[predictor], frame.floor_mean)[0, 1])


def toy_pearson(load: Load) -> Finding:
    frame, own = _toy(load)
    some, every = (_correlation(_points(frame, points), "eq2") for points in (140, 312))
    return Finding(some, f"r = {some:.2f}", f"r = {every:.2f} on all {len(frame)} points", own)


def _accuracies(frame: pd.DataFrame) -> pd.Series:
    return 100 * (1 - (frame.eq2 - frame.floor_mean).abs() / frame.floor_mean)


def toy_accuracy(load: Load, points: int = 140, alpha: float | None = None) -> Finding:
    frame, own = _toy(load)
    frame = _points(frame, points)
    if alpha is not None:
        frame = frame[np.isclose(frame.alpha, alpha)]
    value, zeros = float(_accuracies(frame).mean()), int((frame.eq2 == 0).sum())
    why = f"a mean error of {100 - value:.0f} % over {len(frame)} points"
    if zeros:
        why += f"; {zeros} have Eq. 2 = 0, an error of exactly 100 %: an error read as an accuracy would print 100"
    return Finding(value, f"{value:.0f} %", why, own)


def toy_median_accuracy(load: Load) -> Finding:
    frame, own = _toy(load)
    medians = _accuracies(_points(frame, 140)).groupby(frame.alpha).median()
    return Finding(float(medians.min()), f"{medians.min():.0f} %", f"by sparsity {digits(medians, 0)} %", own)


def toy_r2(load: Load, predictor: str) -> Finding:
    frame, own = _toy(load)
    frame = _points(frame, 140)
    value = r_squared(frame.floor_mean, frame[predictor])
    return Finding(value, f"{value:.2f}", "", own)


def toy_beats_naive(load: Load) -> Finding:
    frame, own = _toy(load)
    few, r = _points(frame, 140), _correlation
    refined, naive = r(few, "eq2"), r(few, "naive")
    every = f"on all {len(frame)} points {r(frame, 'eq2'):.3f} against {r(frame, 'naive'):.3f}"
    return Finding(refined - naive, f"r {refined:.3f} against {naive:.3f}", every, own)


def toy_r2_by_alpha(load: Load) -> Finding:
    frame, own = _toy(load)
    parts = [_points(frame, 140).query(f"abs(alpha - {alpha}) < 1e-9") for alpha in (0.8, 0.9)]
    values = [r_squared(part.floor_mean, part.eq2) for part in parts]
    return Finding(values, digits(values, 2), "", own)


def toy_accuracy_rises(load: Load) -> Finding:
    frame, own = _toy(load)
    means = _accuracies(frame).groupby(frame.alpha).mean()
    rises = int((means.diff().dropna() > 0).sum())
    return Finding(rises, f"{rises} of {len(means) - 1}", f"mean accuracy by sparsity {digits(means, 0)} %", own)


def toy_beyond(load: Load) -> Finding:
    frame, own = _toy(load)
    beyond = frame[frame.width >= capacity.critical_width(frame.n, frame.alpha)]
    share = beyond.floor_mean / beyond.total
    worst = beyond.loc[share.idxmax()]
    why = f"n = {worst.n:.0f}, alpha = {worst.alpha}, d_S = {worst.width:.0f} keeps {share.max():.0%} of the total"
    return Finding(float(share.max()), f"up to {share.max():.0%}", why, own)


def toy_plateau(load: Load) -> Finding:
    frame, own = _toy(load)
    value, count = _plateau(frame, "floor_mean")
    return Finding(value, f"{value:.2f}", f"mean over {count} points", own)


def toy_collapse(load: Load) -> Finding:
    frame, own = _toy(load)
    from sklearn.isotonic import IsotonicRegression

    share = frame.floor_mean / frame.total

    def explained(x: pd.Series) -> float:
        return r_squared(share, IsotonicRegression(increasing=False).fit_transform(x, share))

    critical, plain = (
        explained(frame.width / capacity.critical_width(frame.n, frame.alpha)),
        explained(frame.width / frame.n),
    )
    return Finding(
        critical, f"R² {critical:.2f}", f"d_S/d* explains {critical:.0%} of the variance, plain d_S/n {plain:.0%}", own
    )


def toy_sparsity_lowers(load: Load) -> Finding:
    frame, own = _toy(load)
    cells = ["n", "teacher_width", "width"]
    wide = frame.pivot_table(index=cells, columns="alpha", values="floor_mean")
    share = frame.assign(share=frame.floor_mean / frame.total).pivot_table(index=cells, columns="alpha", values="share")
    falls, of_total = (float((np.diff(table.to_numpy(), axis=1) < 0).mean()) for table in (wide, share))
    why = f"fewer active features also lower the total; as a share of it {of_total:.0%} of pairs fall"
    return Finding(falls, f"{falls:.0%}", why, own)


def _layers(load: Load) -> tuple[pd.DataFrame, pd.Series]:
    """All SAEs, and the default one."""
    frame = load("sae_layers")
    return frame, frame[frame["default"].astype(bool)].iloc[0]


def _alike(frame: pd.DataFrame, default: pd.Series, *columns: str) -> pd.DataFrame:
    """SAEs that share these settings with the default one."""
    return frame[(frame[list(columns)] == default[list(columns)]).all(axis=1)]


def sae_superposition(load: Load) -> Finding:
    frame, default = _layers(load)
    across = _alike(frame, default, "lam", "expansion", "tokens").sort_values("layer")
    ratios = across.d_star / across.d_teacher
    grid = _alike(frame, default, "layer", "expansion", "tokens")
    every = grid.d_star / grid.d_teacher
    why = (
        f"{(every > 1).sum()} of {len(every)} L1 coefficients put d* above d_T ({every.min():.2f} to {every.max():.2f})"
    )
    return Finding(ratios.tolist(), digits(ratios, 2), why)


def sae_layer_spread(load: Load) -> Finding:
    frame, default = _layers(load)
    across = _alike(frame, default, "lam", "expansion", "tokens").drop_duplicates("layer", keep="last")
    if len(across) < 2:
        raise Untested("SAEs were trained at one layer only")
    value = across.d_star.max() / across.d_star.min() - 1
    return Finding(
        value, f"{value:.0%}", f"d* {digits(across.sort_values('layer').d_star, 0)} over {len(across)} layers"
    )


def sae_lam_spread(load: Load) -> Finding:
    frame, default = _layers(load)
    grid = _alike(frame, default, "layer", "expansion", "tokens").sort_values("lam")
    if len(grid) < 2:
        raise Untested("SAEs were trained with one L1 coefficient only")
    value = grid.d_star.max() / grid.d_star.min()
    ends = " to ".join(f"{row.d_star:.0f} (lambda {row.lam:g})" for row in (grid.iloc[0], grid.iloc[-1]))
    return Finding(value, f"{value:.1f} times", f"d* goes from {ends}; d_T = {default.d_teacher:.0f}")


def sae_reconstruction(load: Load) -> Finding:
    frame, default = _layers(load)
    across = _alike(frame, default, "lam", "expansion", "tokens").sort_values("layer")
    value = across.fvu.iloc[1:].min() / across.fvu.iloc[0]
    return Finding(value, f"{value:.1f} times")


def sae_importance_exponents(load: Load) -> Finding:
    _, default = _layers(load)
    frame = load("sae_floors")
    frame = frame[(frame.layer == default.layer) & np.isclose(frame.lam, default.lam)].sort_values("width")
    frame = frame[frame.dropped > 0]
    if len(frame) < 3:
        raise Untested("fewer than three widths drop a feature")
    slopes = _exponents(frame.kept, frame.eq2)
    if not np.isfinite(slopes).all():
        raise Untested("two widths have the same Eq. 2")
    spread = slopes.max() / slopes.min() if slopes.min() > 0 else math.inf
    return Finding(spread, digits(slopes, 1), f"exponents {digits(slopes, 1)} along the tail")


def _first(load: Load, *names: str) -> pd.DataFrame:
    """The first of these tables that has been measured."""
    for name in names[:-1]:
        try:
            return load(name)
        except Untested:
            continue
    return load(names[-1])


def _distilled(load: Load, ladder: str) -> pd.DataFrame:
    """A ladder at its longest training of each width and seed, narrowest first; the long one where it was run."""
    frame = _first(load, "distill_long", "distill_ladder")
    frame = frame[frame.ladder == ladder].sort_values(["width", "seed", "steps"])
    if frame.empty:
        raise Untested(f"the ladder {ladder!r} was not trained")
    if frame.floor.isna().any():
        raise Untested(f"a student of the ladder {ladder!r} has no loss")
    return frame.drop_duplicates(["width", "seed"], keep="last")


def distill_inversions(load: Load) -> Finding:
    means = _distilled(load, "random").groupby("width").floor.mean()
    if len(means) < 2:
        raise Untested("one width only")
    rises = int((np.diff(means) >= 0).sum())
    return Finding(
        rises,
        f"{rises} of {len(means) - 1} out of order",
        f"widths {digits(means.index, 0)} end at {digits(means, 3)} nats",
    )


def distill_fall(load: Load, width: str) -> Finding:
    frame = _distilled(load, "random").dropna(subset="fall_per_doubling")
    if frame.empty:
        raise Untested("no doubling of the steps was run")
    if width == "widest" and frame.width.max() < frame.d_teacher.max():
        raise Untested("the student as wide as its teacher was not trained")
    falls = 100 * frame.groupby("width").fall_per_doubling.mean()
    chosen = frame.width.min() if width == "narrowest" else frame.width.max()
    value = float(falls.loc[chosen])
    floors = int((frame.groupby("width").verdict.last() == "floor").sum())
    why = f"falls per doubling {digits(falls, 0)} % by width; {floors} of {len(falls)} are floors"
    every = _first(load, "distill_long", "distill_ladder")
    every = every[(every.ladder == "random") & (every.width == chosen)].dropna(subset="fall_per_doubling")
    along = 100 * every.groupby("steps").fall_per_doubling.mean()
    if len(along) > 1:
        why += f"; at width {chosen} {digits(along, 0)} % up to {digits(along.index, 0)} steps"
    return Finding(value, f"{value:.0f} %", why)


def distill_seed_gap(load: Load) -> Finding:
    frame = _distilled(load, "random")
    narrowest = frame[frame.width == frame.width.min()].floor
    if len(narrowest) < 2:
        raise Untested("one seed only")
    value = 100 * (narrowest.max() - narrowest.min()) / narrowest.mean()
    return Finding(value, f"{value:.1f} %", f"{len(narrowest)} seeds at width {frame.width.min()}")


def distill_width_alone_control(load: Load) -> Finding:
    frame = _distilled(load, "width_alone")
    means, d_teacher = frame.groupby("width").floor.mean(), int(frame.d_teacher.max())
    if d_teacher not in means.index:
        raise Untested("the student as wide as its teacher is not in the ladder")
    value = 100 * means[d_teacher] / means.iloc[0]
    return Finding(
        value,
        f"{value:.1f} %",
        "cut by width alone, a student as wide as its teacher loses nothing" if value < 1 else "",
    )


def _fits(load: Load, fit: str, predictor: str = "eq2") -> pd.DataFrame:
    frame = _first(load, "distill_long_fits", "distill_fits")
    frame = frame[(frame.ladder == "random") & (frame.fit == fit) & (frame.predictor == predictor)]
    if frame.empty:
        raise Untested(f"no {fit} fit of {predictor} to the ladder from random weights")
    return frame.sort_values("lam")


def _chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """The fit at the L1 coefficient that was fixed before any student was trained; all fits if none is marked."""
    marked = frame[frame["chosen"].astype(bool)] if "chosen" in frame else frame
    return frame if marked.empty else marked


def _scored(frame: pd.DataFrame) -> Finding:
    values = _chosen(frame).r2
    each = " ".join(f"{lam:g}: {r2:.2f}" for lam, r2 in zip(frame.lam, frame.r2, strict=True))
    return Finding(values.tolist(), f"R² {digits(values, 2)}", f"by lambda {each}")


def distill_affine(load: Load) -> Finding:
    return _scored(_fits(load, "affine"))


def distill_line(load: Load) -> Finding:
    return _scored(_fits(load, "line"))


def distill_rivals(load: Load) -> Finding:
    ours = _fits(load, "affine")
    frame = _first(load, "distill_long_fits", "distill_fits")
    rivals = frame[(frame.ladder == "random") & (frame.fit == "affine") & (frame.predictor != "eq2")]
    if rivals.empty:
        raise Untested("no other predictor was fitted")
    best, chosen = rivals.loc[rivals.loo.idxmax()], _chosen(ours).loo
    why = f"left out, Eq. 2 has {digits(ours.loo, 2)} by lambda, {best.predictor} {best.loo:.3f}"
    return Finding((chosen - best.loo).tolist(), f"{digits(chosen, 3)} against {best.loo:.3f}", why)


def distill_objective_gap(load: Load) -> Finding:
    frame = load("distill_controls")
    frame = frame[(frame.ladder == "random") & (frame.objective != "cross_entropy")]
    means = frame.groupby(["width", "objective"]).kl.mean().unstack()
    if means.shape[1] < 2:
        raise Untested("one objective only")
    gaps = 100 * (means.max(axis=1) - means.min(axis=1)) / means.min(axis=1)
    narrow = means.iloc[0].sort_values()
    ends = f"{narrow.index[0]} ends at {narrow.iloc[0]:.3f} nats, {narrow.index[-1]} at {narrow.iloc[-1]:.3f}"
    why = f"at width {means.index[0]} after {frame.steps.max()} steps {ends}; gaps {digits(gaps, 0)} % by width"
    return Finding(float(gaps.iloc[0]), f"{gaps.iloc[0]:.0f} %", why)


def distill_student_features(load: Load) -> Finding:
    frame = load("distill_features")
    teacher = frame[frame.ladder == "teacher"].iloc[0]
    students = frame[(frame.ladder == "random") & (frame.width < teacher.width)].sort_values("width")
    if students.empty:
        raise Untested("no student narrower than its teacher was measured")
    values, whys = {}, []
    for rule, group in students.groupby("rule", sort=False):
        values[rule] = group.alive / (group.width * teacher.g)
        whys.append(f"lambda {rule}: {digits(values[rule], 1)}")
    chosen = values.get("relative", values[next(iter(values))])
    why = f"features of each student's own SAE over d_S g(alpha) at widths {digits(sorted(set(students.width)), 0)}; "
    return Finding(chosen.tolist(), digits(chosen, 1), why + "; ".join(whys))


def _probed(load: Load) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The teacher's rows and the narrowest student's (from random weights, where there are both), in percent.

    The student's rows hold its controls, and those of the words alone.
    """
    try:
        frame = load("probe_students")  # every student, on more passages
    except Untested:
        frame = load("probe_accuracy")
    frame = frame.assign(control=lambda table: table["control"].fillna("none"))
    if frame.accuracy.max() <= 1:
        frame = frame.assign(**{column: 100 * frame[column] for column in ("accuracy", "low", "high")})
    students = frame[frame.model == "student"]
    if "ladder" in frame and (students.ladder == "random").any():
        students = students[students.ladder == "random"]
    if students.empty:
        raise Untested("no student was probed")
    narrowest = students[students.width == students.width.min()]
    return frame[frame.model == "teacher"], pd.concat([narrowest, frame[frame.control == "bag_of_words"]])


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame.control == "none"].set_index("concept")


def probe_lowest_bound(load: Load) -> Finding:
    student = _plain(_probed(load)[1])
    low = student.low
    return Finding(
        low.min(), f"{low.min():.0f} %", f"{low.idxmin()} at width {student.width.iloc[0]}, {len(low)} concepts"
    )


def probe_change(load: Load) -> Finding:
    teacher, student = map(_plain, _probed(load))
    change = (student.accuracy - teacher.accuracy).dropna().abs()
    return Finding(change.mean(), f"{change.mean():.1f} pp", f"{len(change)} concepts at width {student.width.iloc[0]}")


def probe_beats_controls(load: Load) -> Finding:
    _, student = _probed(load)
    controls = student[student.control.isin(["bag_of_words", "embedding", "untrained"])]
    if controls.empty:
        raise Untested("no control was probed")
    low, best = _plain(student).low, controls.groupby("concept").high.max()
    wins = int((low > best.reindex(low.index)).sum())
    names = ", ".join(sorted(controls.control.unique())).replace("_", " ")
    return Finding(wins / len(low), f"{wins} of {len(low)}", f"concepts at which the narrowest student beats {names}")


CHECKS: dict[str, Callable[..., Finding]] = {  # every public function above that returns a Finding
    name: check
    for name, check in list(globals().items())
    if not name.startswith("_") and getattr(check, "__annotations__", {}).get("return") is Finding
}


# ---------------------------------------------------------------------------------------------------------- judgement


def grade(value: float | Iterable[float], expected: dict[str, Any]) -> str:
    """Compare a value with ``near``/``within``, ``at_least`` or ``at_most``, each with its ``loosely``.

    Several values are "loosely" right where some are right and some are not. Returns "yes", "loosely" or "no".
    """
    values = np.atleast_1d(np.asarray(value, dtype=float))
    if not values.size or np.isnan(values).any():
        raise ValueError(f"A check found {value}; it needs numbers to be graded, or to say what it lacks.")
    if "near" in expected:
        miss, bound = np.abs(values - np.asarray(expected["near"], dtype=float)), expected["within"]
        loose = expected.get("loosely", bound)
    elif "at_least" in expected:
        miss, bound, loose = -values, -expected["at_least"], -expected.get("loosely", expected["at_least"])
    else:
        miss, bound, loose = values, expected["at_most"], expected.get("loosely", expected["at_most"])
    slack = 1e-9 * max(1.0, abs(bound))
    if (miss <= bound + slack).all():
        return "yes"
    return "loosely" if (miss <= loose + slack).all() or (miss <= bound + slack).any() else "no"


def judge(kind: str, recomputed: str | None, measured: list[str], own_setting: bool) -> str:
    """Grades -> verdict.

    Args:
        kind: of the claim; measured kinds need a measurement before they can hold.
        recomputed: grade on the paper's own numbers or by theory, if there is such a check.
        measured: one grade a scale that has results.
        own_setting: some measurement was made in the paper's own setting.
    """
    if recomputed == "no":
        return "does not hold" if kind == "theory" else "contradicts the paper itself"
    if kind in ("paper", "theory"):
        return "holds" if recomputed == "yes" else "holds loosely" if recomputed else "not tested here"
    if not measured:
        return "not tested here"
    if set(measured) == {"no"}:
        return "does not hold"
    if set(measured) == {"yes"} and recomputed in ("yes", None):
        return "holds" if own_setting else "holds at our scale"
    return "holds loosely"


def ledger(
    paper: Paper | None = None,
    results: Callable[[str, str], pd.DataFrame | None] = runs.load_results,
    scales: Iterable[str] = tuple(SCALES),
) -> pd.DataFrame:
    """One row a claim: what it says and where, printed, recomputed, one column a scale, verdict, why, headline.

    Args:
        paper: the transcribed paper; read from data/paper/ if left out.
        results: (scale, name) -> result table, or None where there is none.
    """
    paper = paper or load_paper()
    return pd.DataFrame([_row(claim, paper, results, list(scales)) for claim in paper.claims])


def _row(claim: dict[str, Any], paper: Paper, results: Callable, scales: list[str]) -> dict[str, Any]:
    recomputed, texts, whys, grades, lacking, own = None, dict.fromkeys(scales, ""), [], [], [], False
    recomputed_text = ""
    if expected := claim.get("recompute"):
        finding = CHECKS[expected["check"]](paper, **expected.get("with", {}))
        recomputed, recomputed_text = grade(finding.value, expected), finding.text
        whys += [finding.why] if finding.why else []
    if expected := claim.get("measure"):
        for scale in expected.get("scales", scales):
            try:
                finding = CHECKS[expected["check"]](_loader(results, scale), **expected.get("with", {}))
                if np.isnan(np.asarray(finding.value, dtype=float)).any():
                    raise Untested("the records leave the number undefined")
            except Untested as lack:
                lacking.append((scale, str(lack)))
                continue
            grades.append(grade(finding.value, expected))
            texts[scale], own = finding.text, own or finding.own_setting or scale == "pythia-410m"
            whys += [f"{scale}: {finding.why}"] if finding.why else []
    verdict = judge(claim["kind"], recomputed, grades, own)
    if verdict == "not tested here":
        reasons = {reason: ", ".join(scale for scale, other in lacking if other == reason) for _, reason in lacking}
        whys = [claim["untested"]] if "untested" in claim else [f"{at}: {reason}" for reason, at in reasons.items()]
    return {
        "id": claim["id"],
        "section": claim["section"],
        "place": claim["place"],
        "claim": claim["sentence"],
        "kind": claim["kind"],
        "printed": str(claim["printed"]),
        "recomputed": recomputed_text,
        **texts,
        "verdict": verdict,
        "why": "; ".join(whys),
        "headline": claim.get("headline", ""),
    }


def with_tolerance(paper: Paper, factor: float) -> Paper:
    """The same paper with every tolerance of a ``near`` check, ``within`` and ``loosely``, multiplied by ``factor``."""

    def widen(check: dict[str, Any]) -> dict[str, Any]:
        return check | {
            name: factor * check[name] for name in ("within", "loosely") if "near" in check and name in check
        }

    parts = ("recompute", "measure")
    claims = [claim | {part: widen(claim[part]) for part in parts if part in claim} for claim in paper.claims]
    return paper._replace(claims=claims)


def _loader(results: Callable[[str, str], pd.DataFrame | None], scale: str) -> Load:
    def load(name: str) -> pd.DataFrame:
        frame = results(scale, name)
        if frame is None or frame.empty:
            raise Untested(f"no table {name}")
        return frame

    return load


# ------------------------------------------------------------------------------------------------------------ summaries

COLORS = {  # seaborn's colour-blind palette; the verdict is always written out too
    "holds": "#0173b2",
    "holds at our scale": "#56b4e9",
    "holds loosely": "#ece133",
    "does not hold": "#d55e00",
    "contradicts the paper itself": "#cc78bc",
    "not tested here": "#949494",
}
START, END = "<!-- ledger:start -->", "<!-- ledger:end -->"


def counts(frame: pd.DataFrame) -> pd.DataFrame:
    """How many claims of each section (rows, in the paper's order) have each verdict (columns, in the list's order)."""
    table = pd.crosstab(frame["section"], frame["verdict"])
    return table.reindex(columns=list(VERDICTS), fill_value=0).rename_axis(index="section", columns="verdict")


def measured_scales(frame: pd.DataFrame) -> list[str]:
    """The scales at which some claim was measured."""
    return [scale for scale in SCALES if scale in frame and (frame[scale] != "").any()]


def headlines(frame: pd.DataFrame) -> pd.DataFrame:
    """The claims that matter most: claim, paper, ours (and where: a scale, or the paper's own numbers), verdict."""
    scales, rows = measured_scales(frame), []
    for _, row in frame[frame["headline"] != ""].iterrows():
        found = [f"{row[scale]} ({scale})" for scale in scales if row[scale]]
        if row["recomputed"] and row["verdict"] != "not tested here":
            found.append(f"{row['recomputed']} (recomputed)")
        rows.append((row["headline"], row["printed"], [*found, "–"][0], row["verdict"]))
    return pd.DataFrame(rows, columns=["claim", "paper", "ours", "verdict"])


def styled(frame: pd.DataFrame, columns: Iterable[str] | None = None) -> "pd.io.formats.style.Styler":
    """Rows of the ledger (or of its ``headlines``) for reading: text wrapped, verdicts coloured.

    Without ``columns``, all that matter, and the scales that have results.
    """
    everything = ["id", "place", "claim", "printed", "recomputed", *measured_scales(frame), "verdict", "why"]
    shown = frame[everything if columns is None else list(columns)]

    def paint(verdict: str) -> str:
        ink = "white" if verdict in ("holds", "does not hold") else "black"
        return f"background-color: {COLORS[verdict]}; color: {ink}"

    wrap = {"white-space": "normal", "text-align": "left", "vertical-align": "top", "overflow-wrap": "break-word"}
    wide = [column for column in ("claim", "why") if column in shown]
    table = shown.style.hide().set_properties(**wrap).set_properties(subset=wide, **{"min-width": "14em"})
    table = table.set_table_styles([{"selector": "th", "props": "text-align: left; vertical-align: top"}])
    painted = table.map(paint, subset=["verdict"]) if "verdict" in shown else table
    return painted.set_uuid("-".join(["ledger", str(len(shown)), *shown.columns[-2:]]))  # the same in each run


def summary_markdown(frame: pd.DataFrame) -> str:
    """The README's summary between its markers: verdicts counted, and the headline claims."""
    total = frame["verdict"].value_counts()
    said = ", ".join(f"{verdict} **{total[verdict]}**" for verdict in VERDICTS if verdict in total)
    table = headlines(frame).map(lambda cell: cell.replace("|", r"\|"))
    lines = ["| " + " | ".join(line) + " |" for line in [table.columns, ["---"] * table.shape[1], *table.to_numpy()]]
    return "\n".join([START, "", f"{len(frame)} claims: {said}.", "", *lines, "", END])


def in_readme(text: str) -> str:
    """The summary block of a README, markers included.

    Raises:
        ValueError: the README has no such block, or more than one.
    """
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md needs the markers {START} and {END} once each.")
    return START + text.partition(START)[2].partition(END)[0] + END


def main() -> None:
    """Rewrite the README's summary (where there is a README) and print the headline claims as a plain table."""
    frame, readme = ledger(), OUT / "README.md"
    if readme.exists():
        text = readme.read_text()
        replace_file(readme, text.replace(in_readme(text), summary_markdown(frame)).encode())
    table = headlines(frame)
    lines = [list(table.columns), *table.to_numpy().tolist()]
    widths = [max(len(line[column]) for line in lines) for column in range(table.shape[1])]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    total = frame["verdict"].value_counts()
    said = ", ".join(f"{total[verdict]} {verdict}" for verdict in VERDICTS if verdict in total)
    rule = "-" * max(len(row) for row in rows)
    sys.stdout.write("\n".join(["", rows[0], rule, *rows[1:], rule, f"{len(frame)} claims: {said}", ""]))


if __name__ == "__main__":
    main()
