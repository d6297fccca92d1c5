"""The toy model's measured floors beside what predicts them: tables in, tables out; no model is trained here.

A *cell* is one (n, alpha, width). Students that learn x know no teacher, so a cell's floors serve every teacher width
of the paper's 48 configurations: 120 cells make its 312 points, and 43 of them the 140 at which Eq. 2 is above zero.
Floors are importance-weighted squared error summed over features (Zipf importance, sum 1).
"""

import itertools

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from minwidth import capacity, toy
from minwidth.calibration import r_squared

PREDICTORS = ["eq2", "naive", "linear", "digon", "water_filling", "log_capacity"]
CELL = ["n", "alpha", "width"]


def predictions(cells: pd.DataFrame) -> pd.DataFrame:
    """``cells`` (n, alpha, width) with total, critical_width, eq2, naive, linear and digon: all without a fit.

    ``total`` is E[loss] of the answer 0, the sum of I_i E[x_i^2].
    """
    columns = {}
    for (n, alpha), part in cells.groupby(["n", "alpha"]):
        importance, width, moment = capacity.zipf(n), part.width.to_numpy(), capacity.second_moment(alpha)
        columns[n, alpha] = pd.DataFrame(
            {
                "total": moment * importance.sum(),
                "critical_width": capacity.critical_width(n, alpha),
                "eq2": capacity.eq2_floor(importance, width, alpha, moment),
                "naive": capacity.eq2_floor(importance, width, alpha, moment, capacity=1),
                "linear": capacity.linear_floor(importance, width, alpha),
                "digon": capacity.digon_floor(importance, width, alpha),
            },
            index=part.index,
        )
    return cells.join(pd.concat(columns.values()))


def fit_kappa(cells: pd.DataFrame) -> float:
    """The kappa of capacity.log_capacity_floor with the least squared error against ``floor_mean``."""

    def error(kappa: float) -> float:
        return float(((log_capacity(cells, kappa) - cells.floor_mean) ** 2).sum())

    grid = np.linspace(0, 1.5, 31)
    near = grid[np.argmin([error(kappa) for kappa in grid])]
    return float(minimize_scalar(error, bounds=(max(near - 0.05, 0), near + 0.05), method="bounded").x)


def log_capacity(cells: pd.DataFrame, kappa: float) -> NDArray[np.float64]:
    """capacity.log_capacity_floor of each cell."""
    found = pd.Series(index=cells.index, dtype=float)
    for (n, alpha), part in cells.groupby(["n", "alpha"]):
        found[part.index] = capacity.log_capacity_floor(capacity.zipf(n), part.width.to_numpy(), alpha, kappa)
    return found.to_numpy()


def water_filling(cells: pd.DataFrame, equal: pd.DataFrame) -> NDArray[np.float64]:
    """The approximate lower envelope (capacity.water_filling_floor) from toys of equal importance.

    Args:
        equal: the sweep of those toys (n, alpha, width, floor; importance 1 for each of the n features). The best seed
            counts. No dimension loses Var[x], a dimension of its own loses nothing.
    """
    found = pd.Series(index=cells.index, dtype=float)
    for (n, alpha), part in cells.groupby(["n", "alpha"]):
        best = equal[np.isclose(equal.alpha, alpha)].groupby(["n", "width"]).floor.min()
        share = [width / count for count, width in best.index]
        loss = best.to_numpy() / best.index.get_level_values("n")
        curve = (
            pd.Series([float(capacity.variance(alpha)), *loss, 0.0], index=[0.0, *share, 1.0]).groupby(level=0).min()
        )
        found[part.index] = capacity.water_filling_floor(
            capacity.zipf(n), part.width.to_numpy(), curve.index.to_numpy(), curve.to_numpy()
        )
    return found.to_numpy()


def cells_of(floors: pd.DataFrame, equal: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: mean, least and standard deviation over seeds, and all predictors.

    ``log_capacity`` uses the kappa that fits the cells of the *other* n, where there is more than one n.
    """
    grouped = floors.groupby(CELL)
    cells = grouped.floor.agg(floor_mean="mean", floor_min="min", floor_std="std", seeds="size").reset_index()
    cells["standard_error"] = grouped.standard_error.mean().to_numpy()  # of the evaluation, the same rows for all seeds
    cells["represented"] = grouped.represented.mean().to_numpy()
    cells = predictions(cells)
    cells["water_filling"] = water_filling(cells, equal)
    for n in cells.n.unique():
        others = cells[cells.n != n] if cells.n.nunique() > 1 else cells
        cells.loc[cells.n == n, "log_capacity"] = log_capacity(cells[cells.n == n], fit_kappa(others))
    return cells


def points_of(cells: pd.DataFrame, teacher_widths: list[int]) -> pd.DataFrame:
    """A row a point: each cell once for every teacher that is at least as wide."""
    teachers = pd.DataFrame({"teacher_width": teacher_widths})
    points = cells.merge(teachers, how="cross").query("width <= teacher_width")
    order = ["n", "alpha", "teacher_width", "width"]
    return points.sort_values(order).reset_index(drop=True)[
        [*order, *(column for column in points if column not in order)]
    ]


def subset(points: pd.DataFrame, which: str) -> pd.DataFrame:
    """ "all" points, or those where Eq. 2 is "above zero": of the paper's grid 312 and 140."""
    return points if which == "all" else points[points.eq2 > 0]


def _scores(predicted: NDArray, measured: NDArray) -> dict[str, float]:
    error = 100 * np.abs(predicted - measured) / measured
    varies = np.ptp(predicted) > 0 and np.ptp(measured) > 0
    return {
        "pearson": float(np.corrcoef(predicted, measured)[0, 1]) if varies else np.nan,
        "r2": r_squared(measured, predicted) if np.ptp(measured) > 0 else np.nan,
        "mape": float(error.mean()),
        "median_error": float(np.median(error)),
        "below": float((predicted < measured).mean()),
    }


def score(points: pd.DataFrame, floors: pd.DataFrame, draws: int = 400, seed: int = 0) -> pd.DataFrame:
    """Every predictor against the mean and against the best seed, on all points and where Eq. 2 is above zero.

    Columns predictor, points (how many), target, pearson, r2 (about the mean of what was measured; no refit), mape and
    median_error in %, below (share of points at which the predictor is below the floor); ``_low`` and ``_high`` of the
    first three: 95 % intervals, normal, their width from drawing each cell's seeds again; for the mean alone, since the
    best of a draw is no better than the best. The cells themselves are the experiment's, fixed.
    """
    seeds = floors.pivot_table(index=CELL, columns="seed", values="floor")
    place = seeds.index.get_indexer(pd.MultiIndex.from_frame(points[CELL]))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, seeds.shape[1], (draws, *seeds.shape))
    again = np.take_along_axis(seeds.to_numpy()[None], drawn, axis=2)
    samples = again.mean(2)[:, place]
    rows = []
    for which, target, predictor in itertools.product(("all", "above zero"), ("mean", "min"), PREDICTORS):
        some = subset(points, which)
        if some.empty:
            continue
        predicted = some[predictor].to_numpy()
        row = {"predictor": predictor, "points": len(some), "target": target}
        row |= _scores(predicted, some[f"floor_{target}"].to_numpy())
        if target == "mean":
            spread = pd.DataFrame([_scores(predicted, sample[some.index]) for sample in samples])
            for name in ("pearson", "r2", "mape"):
                reach = 1.96 * spread[name].std()
                row[f"{name}_low"], row[f"{name}_high"] = row[name] - reach, row[name] + reach
        rows.append(row)
    return pd.DataFrame(rows)


# Readings of "93.9 %" and "> 93 %": (points, predicted, measured, total) -> one number for each point, and its summary.
READINGS = {
    "100 - mean error": (lambda p, m, t: 100 - 100 * abs(p - m) / m, "mean"),
    "100 - median error": (lambda p, m, t: 100 - 100 * abs(p - m) / m, "median"),
    "mean error itself": (lambda p, m, t: 100 * abs(p - m) / m, "mean"),
    "median error itself": (lambda p, m, t: 100 * abs(p - m) / m, "median"),
    "100 - mean error in % of the total": (lambda p, m, t: 100 - 100 * abs(p - m) / t, "mean"),
    "100 - median error in % of the total": (lambda p, m, t: 100 - 100 * abs(p - m) / t, "median"),
}


def _harmonic(points: pd.DataFrame) -> pd.Series:
    """H_n = 1 + ... + 1/n: what floors are multiplied by if importances are 1/i. Adam ignores the scale of the loss."""
    return points.n.map(lambda n: float((1 / np.arange(1, n + 1)).sum()))


def readings(points: pd.DataFrame) -> pd.DataFrame:
    """What "accuracy" of Eq. 2 is, under each reading: reading, alpha ("all" or a value), points, target, value in %.

    "unnormalised students": floors of students that were trained on I_i = 1/i, against Eq. 2 with importances of sum 1.
    """
    harmonic = _harmonic(points)
    measured = {  # floors and totals
        "mean seed": (points.floor_mean, points.total),
        "best seed": (points.floor_min, points.total),
        "unnormalised students": (harmonic * points.floor_mean, harmonic * points.total),
    }
    rows = []
    for which, (target, (floor, total)) in itertools.product(("all", "above zero"), measured.items()):
        chosen = subset(points, which)
        for alpha in ("all", *sorted(points.alpha.unique())):
            some = chosen if alpha == "all" else chosen[chosen.alpha == alpha]
            for reading, (each, summary) in READINGS.items():
                if len(some):
                    values = each(some.eq2, floor[some.index], total[some.index])
                    value = float(getattr(values, summary)())
                    rows.append((reading, str(alpha), len(some), which, target, value))
    return pd.DataFrame(rows, columns=["reading", "alpha", "points", "which", "target", "value"])


def conventions(points: pd.DataFrame) -> pd.DataFrame:
    """The paper's three numbers (r and mean error of Eq. 2, R^2 of naive) under the conventions that could give them.

    A convention that is the authors' should match all three at once: importances of the students (``sum 1`` or ``1/i``)
    and which points.
    """
    rows = []
    for importances, factor in (("sum 1", 1.0), ("1/i", _harmonic(points))):
        for which in ("all", "above zero"):
            some = subset(points, which)
            if len(some) > 1:
                floor = (factor * points.floor_mean)[some.index].to_numpy()
                refined, naive = _scores(some.eq2.to_numpy(), floor), _scores(some.naive.to_numpy(), floor)
                rows.append((importances, len(some), refined["pearson"], refined["mape"], naive["r2"]))
    return pd.DataFrame(rows, columns=["students' importances", "points", "r", "mean error (%)", "R² of naive"])


def teacher_points(floors: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """A row a (n, alpha, teacher_width, width) of students that learned a teacher's outputs, over seeds.

    loss_against_teacher and _against_x are means, ``_min`` and ``_std`` their least and spread; floor_mean is that of
    students of the same width that learned x.
    """
    order = ["n", "alpha", "teacher_width", "width"]
    grouped = floors.groupby(order)
    table = grouped[["loss_against_teacher", "loss_against_x"]].mean()
    for name in ("loss_against_teacher", "loss_against_x"):
        table[f"{name}_min"], table[f"{name}_std"] = grouped[name].min(), grouped[name].std()
    table["seeds"] = grouped.size()
    known = cells[[*CELL, "floor_mean", "floor_min", "eq2", "digon", "total"]]
    return table.reset_index().merge(known, on=CELL).sort_values(order).reset_index(drop=True)


def steps_to_floor(
    floors: pd.DataFrame, curves: NDArray[np.float32], steps: NDArray[np.int64], within: float = 0.1
) -> pd.Series:
    """For each model the first checkpoint from which on its training loss stays within a share of its last one."""
    above = curves > (1 + within) * curves[:, -1:]
    last = above.shape[1] - above[:, ::-1].argmax(1)  # one past the last checkpoint that is above
    return pd.Series(steps[np.where(above.any(1), last, 0)], index=floors.index)


def convergence(
    floors: pd.DataFrame, curves: NDArray[np.float32], steps: NDArray[np.int64], longer: pd.DataFrame
) -> pd.DataFrame:
    """A row a cell with d < n: how soon its models arrive, and what three times the steps change.

    Columns n, alpha, width, median_step and by_200 (median over seeds of ``steps_to_floor``; share that arrives within
    200 steps), floor and floor_longer (means over the seeds that both sweeps trained; NaN where none).
    """
    inside = floors[floors.width < floors.n]
    arrival = inside.assign(step=steps_to_floor(floors, curves, steps)[inside.index]).groupby(CELL).step
    table = pd.DataFrame({"median_step": arrival.median(), "by_200": arrival.agg(lambda step: (step <= 200).mean())})
    both = inside.merge(longer, on=[*CELL, "seed"], suffixes=("", "_longer"))
    return table.join(both.groupby(CELL)[["floor", "floor_longer"]].mean()).reset_index()


def mean_curves(
    floors: pd.DataFrame, curves: NDArray[np.float32], steps: NDArray[np.int64], cells: pd.DataFrame
) -> pd.DataFrame:
    """Mean training loss over seeds of each of ``cells`` (n, alpha, width, eq2), with a column step."""
    parts = []
    for cell in cells.itertuples():
        mine = (floors.n == cell.n) & (floors.alpha == cell.alpha) & (floors.width == cell.width)
        part = pd.DataFrame({"step": steps, "loss": curves[mine].mean(0)})
        parts.append(part.assign(n=cell.n, alpha=cell.alpha, width=cell.width, eq2=cell.eq2))
    return pd.concat(parts, ignore_index=True)


def dimensionalities(floors: pd.DataFrame, parameters: NDArray[np.float32], n: int, width: int) -> pd.DataFrame:
    """Elhage's dimensionality of every feature of every model of that size: alpha, seed, rank, dimensionality."""
    parts = []
    for row, found in floors[(floors.n == n) & (floors.width == width)].iterrows():
        shares = toy.dimensionality(toy.model_of(floors, parameters, row))
        part = pd.DataFrame({"rank": np.arange(1, n + 1), "dimensionality": shares})
        parts.append(part.assign(alpha=found.alpha, seed=found.seed))
    return pd.concat(parts, ignore_index=True)


def best_weights(floors: pd.DataFrame, parameters: NDArray[np.float32], n: int, alpha: float, width: int) -> NDArray:
    """W [width, n] of the seed with the least floor."""
    mine = floors[(floors.n == n) & (floors.alpha == alpha) & (floors.width == width)]
    return toy.model_of(floors, parameters, mine.floor.idxmin()).weight


def falling_share(x: pd.Series, share: pd.Series) -> float:
    """The part of the variance of ``share`` that the best falling function of ``x`` explains; NaN without variance."""
    from sklearn.isotonic import IsotonicRegression

    if not np.ptp(share) > 0:
        return np.nan
    return r_squared(share, IsotonicRegression(increasing=False).fit_transform(x, share))
