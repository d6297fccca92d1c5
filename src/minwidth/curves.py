"""Where a loss curve ends, from its part, with an interval that has been shown to cover.

Losses are known after N/4, N/2 and N steps; how far do they fall until 2 N, 4 N or 8 N? If a loss is a power law plus a
limit, L(t) = L_inf + a t^-b, its falls per doubling shrink by 2^-b, so that

    L(N) - L(hN) = [L(N/2) - L(N)] (2^-b + 4^-b + ... + h^-b).

``METHODS`` differ in b: that of the model's own last two falls (geometric), of its whole curve by least squares (power
law), or one that many models share (shared exponent). The interval is split conformal: its half-width is a quantile of
abs(error) / last fall over calibration models, each with equal weight (Dunn, Wasserman & Ramdas 2022, arXiv:1809.07441,
pooled). It covers models that are exchangeable with those. Losses in nats per token; ``steps`` may as well be tokens.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar, nnls

from minwidth.store import DATA

Array = NDArray[np.float64]
METHODS = ("last value", "geometric", "power law", "shared exponent")
AHEAD = (2, 4, 8)
EXPONENTS = np.geomspace(0.02, 4, 80)  # searched for a power law
LEARNT = 0.9  # of what the best student known has learnt, that a student at its floor has too
SLOWEST = 0.25  # the unit is at least this share of the fall before: an exponent of at most 2


class Calibration(NamedTuple):
    """What calibration models teach."""

    method: str
    exponent: float  # shared; NaN for other methods
    radius: dict[int, float]  # half-width in last falls, by how many times further ahead
    models: int
    confidence: float


class End(NamedTuple):
    """A predicted loss with its interval."""

    loss: float
    low: float
    high: float


def public(kind: str) -> pd.DataFrame:
    """Public losses, a row a point: model, width, depth, params, tokens, loss; two kinds, calibrated apart.

    "finished": each budget a run with its own decay of the learning rate, as here: 12 series (arXiv:2403.08540; C4
    validation, unflagged, four budgets or more). "path": 22 runs of 35 checkpoints, no decay (arXiv:2502.06857).
    """
    columns = ["model", "width", "depth", "params", "tokens", "loss"]
    if kind == "path":
        return pd.read_csv(DATA / "public" / "gemstones.csv")[columns]
    if kind != "finished":
        raise ValueError(f"kind = {kind!r} is no kind of public curve: give 'finished' or 'path'")
    runs = pd.read_csv(DATA / "public" / "over_training.csv").query("eval_corpus == 'c4_val' and flag == 0")
    runs = runs.assign(model=runs.train_data + "-" + runs.width.astype(str))
    runs = runs[runs.groupby("model").tokens.transform("size") >= 4]
    return runs.sort_values(["model", "tokens"])[columns].reset_index(drop=True)


def alternate(curves: pd.DataFrame) -> set[str]:
    """Every other model in the order of parameters, then names: a half to calibrate on, the rest is held out."""
    order = curves.groupby("model").params.first().reset_index().sort_values(["params", "model"])
    return set(order.model[::2])


def cases(curves: pd.DataFrame) -> pd.DataFrame:
    """Each place of each curve (columns model, tokens, loss) from which an end can be predicted and is known.

    Columns: model, tokens seen, times ahead, last loss, unit (last fall), true further fall, and the falls predicted by
    the methods that need no calibration.
    """
    rows = []
    for model, curve in curves.sort_values("tokens").groupby("model"):
        tokens, losses = curve.tokens.to_numpy(float), curve.loss.to_numpy()
        for place, (now, last) in enumerate(zip(tokens, losses, strict=True)):
            back = [_at(tokens, now / step) for step in (4, 2, 1)]
            ends = {ahead: then for ahead in AHEAD if (then := _at(tokens, now * ahead)) is not None}
            if None in back or not ends:
                continue
            unit, ratio = _unit(losses[back])
            limit, scale, exponent = power_law(tokens[: place + 1], losses[: place + 1])
            for ahead, then in ends.items():
                falls = (0.0, unit * doublings(ratio, ahead), last - limit - scale * tokens[then] ** -exponent)
                row = {"model": model, "tokens": now, "ahead": ahead, "last": last, "unit": unit}
                rows.append(row | {"fall": last - losses[then]} | dict(zip(METHODS, falls, strict=False)))
    return pd.DataFrame(rows)


def doublings(ratio: ArrayLike, ahead: ArrayLike) -> Array:
    """r + r^2 + ... + r^k with k = log2(ahead): the further fall in units of the last, each r times the one before."""
    ratio, ahead = np.broadcast_arrays(np.asarray(ratio, float), np.asarray(ahead))
    powers = np.arange(1, 1 + int(np.log2(ahead.max())))
    return np.where(2**powers <= ahead[..., None], ratio[..., None] ** powers, 0).sum(-1)[()]


def calibrate(frame: pd.DataFrame, method: str = "shared exponent", confidence: float = 0.9) -> Calibration:
    """The exponent of least absolute error, and conformal half-widths by distance, from ``cases``.

    With fewer than confidence / (1 - confidence) models the largest error is taken, which is sure of a share
    models / (models + 1) only.
    """
    if method not in METHODS:
        raise ValueError(f"method = {method!r} is unknown: give one of {', '.join(METHODS)}")
    weights, exponent = 1 / frame.groupby(["model", "ahead"]).model.transform("size").to_numpy(), np.nan
    if method == "shared exponent":
        scaled, ahead = (frame.fall / frame.unit).to_numpy(), frame.ahead.to_numpy()
        fit = minimize_scalar(lambda b: weights @ abs(scaled - doublings(2.0**-b, ahead)), bounds=(0, 2))
        exponent = float(fit.x)
    errors = abs(frame.fall - _falls(frame, method, exponent)).to_numpy() / frame.unit.to_numpy()
    radius = {}
    for ahead, group in frame.groupby("ahead").indices.items():
        order = group[errors[group].argsort()]
        reached = np.cumsum(weights[order]) / weights[order].sum()
        level = confidence * (1 + 1 / frame.model.iloc[group].nunique())
        radius[int(ahead)] = float(errors[order[min(np.searchsorted(reached, level), order.size - 1)]])
    return Calibration(method, exponent, radius, frame.model.nunique(), confidence)


def judged(frame: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """``cases`` of held-out models with ``error`` (above 0: predicted too high), ``half`` of the interval, ``hit``."""
    error = frame.fall - _falls(frame, calibration.method, calibration.exponent)
    half = frame.unit * frame.ahead.map(calibration.radius)
    return frame.assign(error=error, half=half, hit=error.abs() <= half)


@cache
def calibrated() -> Calibration:
    """The shared exponent and half-widths from all public finished runs."""
    return calibrate(cases(public("finished")))


def end(
    steps: ArrayLike, losses: ArrayLike, ahead: int = 4, calibration: Calibration | None = None, bound: float = 0.0
) -> End:
    """The loss after ``ahead`` times as many steps, with an interval, by the shared exponent.

    Args:
        steps: [runs], N/2 and N (better N/4 too, and what was before), each a run with its schedule stretched.
        losses: [runs], where each run of the student ended.
        calibration: all public finished runs if None.
        bound: no loss can be lower, e.g. the provable part of a floor.
    """
    calibration = calibration or calibrated()
    steps, losses = np.asarray(steps, float), np.asarray(losses, float)
    if steps.shape != losses.shape or steps.ndim != 1 or steps.size < 2 or not np.isfinite(losses).all():
        raise ValueError(f"steps = {steps} and losses = {losses} do not fit: give two or more finite losses, one a run")
    if not np.isclose(steps[-3:][1:], 2 * steps[-3:][:-1], rtol=0.01).all():
        raise ValueError(f"steps = {steps} do not double at the end: give runs of N/4, N/2 and N steps, ascending")
    if ahead not in calibration.radius:
        raise ValueError(f"ahead = {ahead} was not calibrated: give one of {sorted(calibration.radius)}")
    if losses[-1] < bound:
        raise ValueError(f"the last loss, {losses[-1]:g}, is below the bound of {bound:g}: one of the two is wrong")
    unit = _unit(losses[-3:])[0]
    middle, half = losses[-1] - unit * doublings(2.0**-calibration.exponent, ahead), unit * calibration.radius[ahead]
    return End(*(float(max(loss, bound)) for loss in (middle, middle - half, middle + half)))


def verdict(
    steps: ArrayLike, losses: ArrayLike, start: float, best: float = np.inf, share: float = 0.02, **options
) -> tuple[str, End, float]:
    """The word, the end, and the share of what was learnt that the loss could still fall by, to the interval's low end.

    The word is "floor" if that is at most ``share``, else "upper bound". What was learnt is ``start``, the loss before
    training, less the last loss. A student that does not move because it has hardly learnt is at no floor: it must have
    learnt ``LEARNT`` of what the ``best`` student known of its width has. ``options`` are those of ``end``.
    """
    predicted, last = end(steps, losses, **options), float(np.asarray(losses, float)[-1])
    if not start > last:
        raise ValueError(f"start = {start:g} is not above the last loss, {last:g}: nothing has been learnt to judge by")
    could_fall = float((last - predicted.low) / (start - last))
    learnt = last <= best or start - last >= LEARNT * (start - best)
    return "floor" if learnt and could_fall <= share else "upper bound", predicted, could_fall


def power_law(steps: ArrayLike, losses: ArrayLike) -> tuple[float, float, float]:
    """Limit, scale and exponent, all at least 0, of L = limit + scale t^-exponent by least squares."""
    steps, losses = np.asarray(steps, float), np.asarray(losses, float)
    fits = [nnls(np.stack([np.ones_like(steps), (steps / steps[-1]) ** -b], 1), losses) for b in EXPONENTS]
    best = int(np.argmin([rest for _, rest in fits]))
    (limit, scale), exponent = fits[best][0], EXPONENTS[best]
    return float(limit), float(scale * steps[-1] ** exponent), float(exponent)


def _at(tokens: Array, value: float) -> int | None:
    near = np.flatnonzero(np.isclose(tokens, value, rtol=0.01))
    return int(near[0]) if near.size else None


def _unit(losses: Array) -> tuple[float, float]:
    """The last fall, kept from 0 against noise, and its ratio to the fall before, within 0 and 1."""
    drops = -np.diff(losses)
    before = drops[-2] if drops.size > 1 else 0.0
    ratio = drops[-1] / before if before > 0 else 1.0
    return float(max(abs(drops[-1]), SLOWEST * before)), float(np.clip(ratio, 0, 1))


def _falls(frame: pd.DataFrame, method: str, exponent: float) -> Array:
    if method != "shared exponent":
        return frame[method].to_numpy()
    return frame.unit.to_numpy() * doublings(2.0**-exponent, frame.ahead)
