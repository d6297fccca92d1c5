"""Least-squares lines and a power law for a handful of points, with what tells a good fit from a lucky one.

The paper maps predicted floors (importance units) to observed ones (nats) by observed = C predicted + B on five
points. With so few, R^2 alone says little: every fit here also carries its residuals, the R^2 of predictions for
points left out, the corrected information criterion AICc, and intervals. Residuals are taken as independent and
normal with equal variance; ``bootstrap`` gives intervals without the normality. Vectors in, a ``Fit`` out.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
EXPONENTS = np.geomspace(1e-3, 10, 4001)  # searched for the power law


class Fit(NamedTuple):
    """A fitted curve: parameters by name, and how far to trust them."""

    form: str  # "affine", "through zero", "fixed baseline" or "power law"
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # at the confidence asked for; infinite where the data set no bound
    residuals: Array  # observed - fitted, in the unit of what was observed
    r_squared: float  # on the fitted points, about their mean, so that a line through zero can be below 0
    leave_one_out: float  # the same with each point predicted by a fit to the others
    aicc: float  # smaller is better; infinite where there are too few points for the number of parameters

    def predict(self, x: ArrayLike) -> Array:
        """The fitted curve at ``x``, in the unit of what was observed."""
        x = np.asarray(x, dtype=float)
        if self.form == "power law":
            return self.parameters["scale"] * x ** -self.parameters["exponent"] + self.parameters["asymptote"]
        return self.parameters["slope"] * x + self.parameters.get("baseline", 0.0)


def r_squared(observed: ArrayLike, predicted: ArrayLike) -> float:
    """1 - sum (observed - predicted)^2 / sum (observed - mean)^2, on whichever points are given.

    Raises:
        ValueError: the observed values do not vary.
    """
    observed = np.asarray(observed, dtype=float)
    spread = ((observed - observed.mean()) ** 2).sum()
    if not spread > 0:
        raise ValueError(f"observed = {observed} does not vary: R^2 needs at least two different values")
    return float(1 - ((observed - predicted) ** 2).sum() / spread)


def affine(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Fit:
    """y = slope x + baseline, both free (paper Eq. 3 and Table 4, where x is Eq. 2, slope is C and baseline is B)."""
    return _line("affine", x, y, confidence)


def through_zero(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Fit:
    """y = slope x: the least-squares line through the origin (paper Table 4, "linear")."""
    return _line("through zero", x, y, confidence)


def fixed_baseline(x: ArrayLike, y: ArrayLike, baseline: float, confidence: float = 0.95) -> Fit:
    """y = slope x + baseline with the baseline given (paper section 6.3: B measured on the student of full width).

    The points should not hold the one the baseline was read from; score on all points with ``r_squared``.
    """
    return _line("fixed baseline", x, y, confidence, baseline)


def power_law(width: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Fit:
    """y = scale width^-exponent + asymptote, all three free (paper Eq. 4).

    For each exponent the other two are linear least squares, so a search over one number finds the least sum of
    squares. The intervals are profile-likelihood ones, with an F quantile for the small sample; they end at
    infinity (and 0 for the exponent) where a logarithm, the limit of small exponents, is not excluded.
    """
    width, y = _points(width, y, "power law", 3)
    if not (width > 0).all():
        raise ValueError(f"width = {width} is not positive: a power law needs positive widths")
    solved = _solve_power(width, y)
    best = int(solved.squares.argmin())
    names = ("scale", "exponent", "asymptote")
    exponent = _refine(width, y, best)
    at_best = _solve_power(width, y, np.array([exponent]))
    values = dict(zip(names, (at_best.coefficients[0, 0], exponent, at_best.coefficients[0, 1]), strict=True))
    free = y.size - 3
    limit = at_best.squares[0] * (1 + stats.f.ppf(confidence, 1, free) / free)
    inside = solved.squares <= limit
    inside[best] = True  # the grid's best may lie a rounding above a limit that is nearly 0
    room = np.sqrt(np.maximum(limit - solved.squares[inside], 0))
    intervals = {}
    for column, name in ((0, "scale"), (1, "asymptote")):
        half = room * np.sqrt(solved.variances[inside, column])
        middle = solved.coefficients[inside, column]
        intervals[name] = (float((middle - half).min()), float((middle + half).max()))
    intervals["exponent"] = (float(EXPONENTS[inside].min()), float(EXPONENTS[inside].max()))
    if inside[0]:  # towards exponent 0 scale and asymptote grow without end, with opposite signs
        falls = solved.coefficients[0, 0] > 0
        low, high = intervals["scale"], intervals["asymptote"]
        intervals["scale"] = (low[0], np.inf) if falls else (-np.inf, low[1])
        intervals["asymptote"] = (-np.inf, high[1]) if falls else (high[0], np.inf)
        intervals["exponent"] = (0.0, intervals["exponent"][1])
    if inside[-1]:
        intervals["exponent"] = (intervals["exponent"][0], np.inf)

    left_out = np.empty_like(y)
    for i in range(y.size):
        others, d = np.arange(y.size) != i, width[i]
        near = int(_solve_power(width[others], y[others]).squares.argmin())
        exponent = np.array([_refine(width[others], y[others], near)])
        scale, asymptote = _solve_power(width[others], y[others], exponent).coefficients[0]
        left_out[i] = y[i] - scale * d ** -exponent[0] - asymptote
    residuals = y - values["scale"] * width ** -values["exponent"] - values["asymptote"]
    return _finish("power law", values, {name: intervals[name] for name in names}, y, residuals, left_out)


def bootstrap(
    fit: Callable[[Array, Array], Fit], x: ArrayLike, y: ArrayLike, draws: int, seed: int, confidence: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of a fit's parameters from residuals drawn again: no normality; rough below ten points.

    The residuals are centred and widened for the lost degrees of freedom, drawn with replacement, added to the fitted
    curve and fitted anew.

    Args:
        fit: e.g. ``affine``, or a ``functools.partial`` of ``fixed_baseline``.
        draws: refits; 1,000 give the ends to a few per cent.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    first = fit(x, y)
    rng = np.random.default_rng(seed)
    residuals = first.residuals - first.residuals.mean()
    residuals = residuals * np.sqrt(y.size / (y.size - _free_parameters(first.form)))
    found = []
    for _ in range(draws):
        found.append(fit(x, first.predict(x) + rng.choice(residuals, y.size)).parameters)
    tail = (1 - confidence) / 2
    return {
        name: tuple(float(end) for end in np.quantile([f[name] for f in found], [tail, 1 - tail]))
        for name in first.parameters
    }


# --- inside ---------------------------------------------------------------------------------------------------------


def _free_parameters(form: str) -> int:
    return {"affine": 2, "through zero": 1, "fixed baseline": 1, "power law": 3}[form]


def _points(x: ArrayLike, y: ArrayLike, form: str, parameters: int) -> tuple[Array, Array]:
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"x has shape {x.shape} and y {y.shape}: give two vectors of equal length")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x or y holds a value that is not finite: leave such points out")
    if x.size <= parameters:
        raise ValueError(f"{x.size} points are too few for {form}: give at least {parameters + 1}")
    different = np.unique(x).size
    if different < parameters:
        raise ValueError(f"x has {different} different values, too few for {form}: give at least {parameters}")
    if not x.any():
        raise ValueError("x is 0 everywhere: the slope is undetermined")
    return x, y


def _line(form: str, x: ArrayLike, y: ArrayLike, confidence: float, baseline: float = 0.0) -> Fit:
    x, y = _points(x, y, form, _free_parameters(form))
    design = np.stack([x, np.ones_like(x)], 1) if form == "affine" else x[:, None]
    orthogonal, triangle = np.linalg.qr(design)
    root = np.linalg.inv(triangle)
    coefficients = root @ orthogonal.T @ (y - baseline)
    residuals = y - design @ coefficients - baseline
    free = y.size - coefficients.size
    half = stats.t.ppf((1 + confidence) / 2, free) * np.sqrt((residuals**2).sum() / free * (root**2).sum(1))
    names = ("slope", "baseline")[: coefficients.size]
    parameters = dict(zip(names, coefficients, strict=True))
    intervals = {
        name: (float(value - h), float(value + h)) for name, value, h in zip(names, coefficients, half, strict=True)
    }
    if form == "fixed baseline":
        parameters["baseline"], intervals["baseline"] = float(baseline), (float(baseline), float(baseline))
    away = 1 - (orthogonal**2).sum(1)  # 1 - leverage: 0 where the others do not determine the line
    left_out = np.where(away > 1e-9, residuals / np.maximum(away, 1e-9), np.inf)
    return _finish(form, parameters, intervals, y, residuals, left_out)


def _finish(form, parameters, intervals, y: Array, residuals: Array, left_out: Array) -> Fit:
    """Scores of a fit from its residuals and from those of points predicted by a fit to the others."""
    estimated = _free_parameters(form) + 1  # and the variance
    spare = y.size - estimated - 1
    squares = max((residuals**2).sum(), np.finfo(float).tiny)
    aicc = y.size * np.log(squares / y.size) + 2 * estimated * y.size / spare if spare > 0 else np.inf
    parameters = {name: float(value) for name, value in parameters.items()}
    scores = r_squared(y, y - residuals), r_squared(y, y - left_out), float(aicc)
    return Fit(form, parameters, intervals, residuals, *scores)


class _Power(NamedTuple):
    coefficients: Array  # [exponents, 2]: scale, asymptote
    variances: Array  # [exponents, 2]: diagonal of (X^T X)^-1
    squares: Array  # [exponents]: residual sum of squares


def _solve_power(width: Array, y: Array, exponents: Array = EXPONENTS) -> _Power:
    """Least squares of scale and asymptote at every exponent, in closed form about the means."""
    basis = width ** -exponents[:, None]
    mean = basis.mean(1, keepdims=True)
    spread = ((basis - mean) ** 2).sum(1)
    scale = (basis - mean) @ (y - y.mean()) / spread
    asymptote = y.mean() - scale * mean[:, 0]
    squares = ((y - scale[:, None] * basis - asymptote[:, None]) ** 2).sum(1)
    variances = np.stack([1 / spread, 1 / y.size + mean[:, 0] ** 2 / spread], 1)
    return _Power(np.stack([scale, asymptote], 1), variances, squares)


def _refine(width: Array, y: Array, best: int) -> float:
    """The exponent of least squares between the grid's neighbours of ``best``."""
    low, high = EXPONENTS[max(best - 1, 0)], EXPONENTS[min(best + 1, EXPONENTS.size - 1)]
    for _ in range(4):  # each pass narrows the bracket a hundredfold
        grid = np.linspace(low, high, 201)
        at = int(_solve_power(width, y, grid).squares.argmin())
        low, high = grid[max(at - 1, 0)], grid[min(at + 1, 200)]
    return float(grid[at])
